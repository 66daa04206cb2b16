"""One call of a loader, as a job of the engine."""

import functools
import inspect
from collections.abc import Callable
from contextvars import Context
from typing import Any, NamedTuple

from swr.core.arguments import Arguments
from swr.core.codec import Codec
from swr.engine.engine import Engine
from swr.engine.load import Load
from swr.engine.load_slots import Seat
from swr.entry import Entry, Outcome, State
from swr.loaders.calling import (
    StoreIf,
    call_loader,
    call_past,
    context_of,
    last_of,
    name_of,
    store_answer,
)
from swr.loaders.context import LoadContext
from swr.loaders.request_parameters import warn_of_sessions
from swr.policy import Policy, Timeout


def is_async(function: Callable[..., Any]) -> bool:
    """Return whether a call of `function`, which may be a partial or an object, returns an awaitable."""
    while isinstance(function, functools.partial):
        function = function.func
    # The `__call__` method of an object may be a coroutine function.
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004  # the method itself is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Loader(NamedTuple):
    """A loader, and how it is called.

    Parameters:
        engine: the engine, whose threads run a plain `def`.
        function: the loader; with `asks` it takes the arguments as a tuple and a dict, and then a `LoadContext`.
        runs_in_thread: whether the loader is a plain `def`.
        asks: whether the loader takes a `LoadContext`.
        copies: whether the `LoadContext` has a copy of the last value.
        digest: the loader as its entries name it; see `Entry.loader`.
        tags: returns, for the arguments of a call, a function from the value to its tags; None: the policy has them.
        store_if: returns whether a value is stored; None: each is.
        new_seat: see `LoadTerms`.
    """

    engine: Engine
    function: Callable[..., Any]
    runs_in_thread: bool
    asks: bool
    copies: bool = False
    digest: str = ""
    tags: Callable[[tuple[Any, ...], dict[str, Any]], Callable[[Any], tuple[str, ...]]] | None = None
    store_if: StoreIf | None = None
    new_seat: Callable[[], Seat] | None = None

    def bound(
        self, args: tuple[Any, ...], kwargs: dict[str, Any], context: LoadContext[Any] | None
    ) -> Callable[[], Any]:
        """Return the function with its arguments, and with the context unless that is None."""
        if context is None:
            return functools.partial(self.function, *args, **kwargs)
        return functools.partial(self.function, args, kwargs, context)

    async def call_past(self, args: tuple[Any, ...], kwargs: dict[str, Any], hard_timeout: Timeout) -> Outcome[Any]:
        """Call the loader as if there were no cache; see `swr.loaders.calling.call_past`."""
        function = self.bound(args, kwargs, LoadContext() if self.asks else None)
        value = await call_past(self.engine, name_of(function), function, self.runs_in_thread, hard_timeout)
        return Outcome(value, State.MISSING, 0.0, bypassed=True)


class Call:
    """A job: one call of a loader with the arguments of the reader that caused it.

    Parameters:
        loader: the loader to call.
        arguments: the arguments of the call.
        policy: how long the value may be served.
        codec: how the value is written.
    """

    __slots__ = ("_arguments", "_loader", "codec", "policy")

    context: Context | None = None
    is_outer = False

    def __init__(self, loader: Loader, arguments: Arguments, policy: Policy, codec: Codec) -> None:
        self._loader = loader
        self._arguments = arguments
        self.policy = policy
        self.codec = codec

    @property
    def new_seat(self) -> Callable[[], Seat] | None:
        """A function that returns a seat, with which a load takes a slot of the loader; see `LoadTerms`."""
        return self._loader.new_seat

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the policy. The answer of the loader may have other tags."""
        return self.policy.tags

    @property
    def loader(self) -> str:
        """The loader's name as entries carry it."""
        return self._loader.digest

    async def run(self, load: Load) -> None:
        """Call the loader and store what it returns."""
        load.limit(self.policy.hard_timeout)
        loader = self._loader
        engine, asks, tags = loader.engine, loader.asks, loader.tags
        last = await last_of(engine, load, asks=asks)
        args, kwargs = self._arguments.for_load()
        warn_of_sessions(loader.function, args, kwargs)
        context = await context_of(engine, last, copies=loader.copies) if asks else None
        value = await call_loader(engine, loader.bound(args, kwargs, context), loader.runs_in_thread)
        self._arguments.check()
        tags_of = None if tags is None else tags(args, kwargs)
        await store_answer(load, value, self.policy, last, tags_of, loader.store_if)

    async def call_past(self) -> Outcome[Any]:
        """Call the loader as if there were no cache, and return the outcome."""
        return await self._loader.call_past(*self._arguments.for_load(), self.policy.hard_timeout)

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return True: the entry's own policy says how long it may be served after a failure."""
        return True

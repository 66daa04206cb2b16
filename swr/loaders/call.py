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
    """Return whether calling `function` gives an awaitable, wrapped and partial functions included."""
    while isinstance(function, functools.partial):
        function = function.func
    # Not whether it can be called, but the method, which may be a coroutine function.
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004  # the method itself is wanted
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Loader(NamedTuple):
    """A loader, and how it is called.

    Parameters:
        engine: in whose threads a plain `def` runs.
        function: the loader; one that asks is given its callers' arguments as a tuple and a dict, and a `LoadContext`.
        runs_in_thread: whether it is a plain `def`.
        asks: whether it takes a `LoadContext`.
        copies: whether that has a copy of the last value.
        digest: what its entries carry, see `Entry.loader`.
        tags: returns, for the arguments of a call, what makes tags of its value; None: they are the policy's.
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
        """Return the function with its arguments, and with the context, if it asks for one."""
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
        loader: what is called.
        arguments: what it is called with.
        policy: how long its value may be served.
        codec: how its value is written.
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
        """Returns what a load takes of the loader's slots."""
        return self._loader.new_seat

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the policy; the answer may have others."""
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
        """Return what the loader returns, as if there were no cache."""
        return await self._loader.call_past(*self._arguments.for_load(), self.policy.hard_timeout)

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return True: the entry's own policy says how long it may be served after a failure."""
        return True

"""The decorator for data loaders: the function as it was, answered from the cache."""

import functools
import inspect
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from contextvars import Context
from typing import Any, Concatenate, Generic, NamedTuple, ParamSpec, TypeVar, overload

from swr.core.arguments import Arguments
from swr.core.codec import Codec
from swr.core.keys import CallKeys
from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.engine.load import Load
from swr.entry import Entry, Outcome, State
from swr.errors import ConfigurationError
from swr.loaders.annotations import codec_for, codec_if_defined
from swr.loaders.calling import Asking, call_loader, context_of, last_of, store_answer
from swr.policy import Policy
from swr.stores.local import LocalCache
from swr.stores.threads import deep_copy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


def is_async(function: Callable[..., Any]) -> bool:
    """Whether calling `function` gives an awaitable, wrapped and partial functions included."""
    while isinstance(function, functools.partial):
        function = function.func
    # Not whether it can be called, but the method, which may be a coroutine function.
    call = function if inspect.isroutine(function) else getattr(function, "__call__", function)  # noqa: B004
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call)


class Loader(NamedTuple):
    """A loader, and how it is called.

    Parameters:
        engine: in whose threads a plain `def` runs.
        function: the loader; one that asks is given its callers' arguments as a tuple and a dict, and a `LoadContext`.
        runs_in_thread: whether it is a plain `def`.
        asks: whether it takes a `LoadContext`.
        copies: whether that has a copy of the last value.
    """

    engine: Engine
    function: Callable[..., Any]
    runs_in_thread: bool
    asks: bool
    copies: bool = False


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

    def __init__(self, loader: Loader, arguments: Arguments, policy: Policy, codec: Codec) -> None:
        self._loader = loader
        self._arguments = arguments
        self.policy = policy
        self.codec = codec

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the policy; the answer may have others."""
        return self.policy.tags

    async def run(self, load: Load) -> None:
        """Call the loader and store what it returns."""
        load.limit(self.policy.hard_timeout)
        engine, function, runs_in_thread, asks, copies = self._loader
        last = await last_of(engine, load, asks=asks)
        args, kwargs = self._arguments.for_load()
        if asks:
            function = functools.partial(function, args, kwargs, await context_of(engine, last, copies=copies))
        else:
            function = functools.partial(function, *args, **kwargs)
        value = await call_loader(engine, function, runs_in_thread)
        self._arguments.check()
        await store_answer(load, value, self.policy, last)

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return True: the entry's own policy says how long it may be served after a failure."""
        return True


class Cached(Generic[P, R]):
    """A loader behind the cache; calling it gives an awaitable of what the loader returns.

    Made by `Cache.cached`. The attributes of the loader (name, docstring, signature) are its own.
    """

    def __init__(
        self,
        engine: Engine,
        local: LocalCache,
        function: Callable[P, R] | Callable[P, Awaitable[R]],
        keys: CallKeys,
        policy: Policy,
        *,
        copies: bool,
        asking: Asking | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        if asking is not None:
            self.__signature__ = asking.signature
        called = function if asking is None else asking.call
        self._loader = Loader(engine, called, not is_async(function), asking is not None, copies)
        self._engine = engine
        self._local = local
        self._slots = local.slots
        self._clock = engine.clock
        self._events = engine.events
        self._function = function
        self._keys = keys
        self._remembered = keys.remembered
        self._policy = policy
        self._copies = copies
        # With any store, so that a type that Redis cannot hold is found in tests without Redis.
        self._codec = codec_if_defined(function)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the loader returns for these arguments, from the cache where it may.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            LoadTimeout: it ran longer than `hard_timeout`; likewise.
            ConfigurationError: an argument cannot be part of a key.
            CodecError: the value cannot be stored in Redis.
        """
        # The fresh hit, spelled out: `CallKeys.key`, `peek` and `decide` in the fewest steps.
        try:
            key, types = self._remembered[args]
            if kwargs or (types is not None and types != tuple(map(type, args))):
                raise KeyError
        except (KeyError, TypeError):
            key = self._keys.key(args, kwargs)
        try:
            slot = self._slots[key]
            if slot.checked == self._local.generation and self._clock() < slot.fresh_until:
                if self._events.reads:
                    self._engine.tell(key, slot.entry, State.FRESH)
                value: R = slot.value
                return await deep_copy(value) if self._copies else value
        except KeyError:
            pass
        value = (await self._fetch(key, args, kwargs)).value
        return await deep_copy(value) if self._copies else value

    def _fetch(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Outcome[Any]]:
        policy = self._policy
        return self._engine.fetch(key, self._job(args, kwargs), patience=policy.soft_timeout, early=policy.early)

    def _job(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        policy = self._policy
        if self._keys.fixed_tags is None:
            policy = policy.tagged(self._keys.tags(args, kwargs))
        return Call(self._loader, self._keys.keep(args, kwargs), policy, self.codec)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call.

        Raises:
            ConfigurationError: an argument cannot be part of a key.
        """
        return self._keys.key(args, kwargs)

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """The same as a call, with the state, the age and the error of the answer."""
        return await self._copied(await self._fetch(self._keys.key(args, kwargs), args, kwargs))

    @property
    def engine(self) -> Engine:
        """What runs its loads."""
        return self._engine

    @property
    def template(self) -> str:
        """The key template, given or made."""
        return self._keys.template.text

    @property
    def codec(self) -> Codec:
        """How its values are written."""
        if self._codec is None:
            self._codec = codec_for(self._function)
        return self._codec

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load what is stored for each call, unless it is newer than a version; see `Flight.newer_than`.

        Parameters:
            calls: positional arguments, and the version.
        """
        engine, flights = self._engine, []
        for args, newer_than in calls:
            key = self._keys.key(args, {})
            flights.append(engine.begin(key, self._job(args, {}), engine.store.peek(key), newer_than=newer_than))
        return flights

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now, whatever is stored, and return the new value.

        Raises:
            Exception: whatever the loader raised; what is stored stays.
        """
        outcome = await self._engine.refresh(self._keys.key(args, kwargs), self._job(args, kwargs))
        return (await self._copied(outcome)).value

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove what is stored for these arguments, here and in every process; loads in flight included."""
        await self._engine.invalidate(self._keys.key(args, kwargs))

    async def _copied(self, outcome: Outcome[Any]) -> Outcome[R]:
        if not self._copies:
            return outcome
        return Outcome(await deep_copy(outcome.value), outcome.state, outcome.age, outcome.error)

    @overload
    def __get__(self, instance: None, owner: type) -> "Cached[P, R]": ...
    @overload
    def __get__(
        self: "Cached[Concatenate[S, Q], R]", instance: S, owner: type | None = None
    ) -> "BoundCached[Q, R]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        return self if instance is None else BoundCached(self, instance)


class IndirectCached(Cached[P, R]):
    """A loader without the short way to a fresh hit: its values may be refreshed early, or none is held in memory."""

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.__call__`."""
        value: R = (await self._fetch(self._keys.key(args, kwargs), args, kwargs)).value
        return await deep_copy(value) if self._copies else value


class BoundCached(Generic[P, R]):
    """A cached method of one object: `Cached` with `self` filled in."""

    __slots__ = ("_cached", "_instance")

    def __init__(self, cached: "Cached[..., R]", instance: object) -> None:
        self._cached = cached
        self._instance = instance

    def __getattr__(self, name: str) -> Any:
        return getattr(self._cached, name)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.__call__`."""
        return await self._cached(self._instance, *args, **kwargs)

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """See `Cached.key`."""
        return self._cached.key(self._instance, *args, **kwargs)

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """See `Cached.begin`."""
        return self._cached.begin(((self._instance, *args), newer_than) for args, newer_than in calls)

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """See `Cached.outcome`."""
        return await self._cached.outcome(self._instance, *args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.refresh`."""
        return await self._cached.refresh(self._instance, *args, **kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """See `Cached.invalidate`."""
        await self._cached.invalidate(self._instance, *args, **kwargs)


def check_loader(function: Callable[..., Any]) -> None:
    """Refuse what cannot be a loader.

    Raises:
        ConfigurationError: no function, a generator, or an endpoint that is handed its request.
    """
    if isinstance(function, (staticmethod, classmethod)) or not inspect.isroutine(function):
        raise ConfigurationError(
            f"@cache.cached stands on a function, not on {function!r}: write @staticmethod or @classmethod above it, "
            f"and a def of your own around anything else"
        )
    name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{name} is a generator: a cached loader returns its value whole, a list for one")
    for parameter in inspect.signature(function).parameters.values():
        if _is_of_a_request(parameter):
            raise ConfigurationError(
                f"{name} takes {parameter.name!r}, which belongs to one request; a background load has none. "
                f"On an endpoint use @cache.response, which caches the response and gets dependencies of its own"
            )


def _is_of_a_request(parameter: inspect.Parameter) -> bool:
    """Whether a parameter is a Request, a Response, a WebSocket, or filled in by FastAPI's Depends."""
    marks = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
    if any(
        type(mark).__module__.startswith("fastapi") and type(mark).__name__ in ("Depends", "Security") for mark in marks
    ):
        return True
    annotation = parameter.annotation
    if isinstance(annotation, str):
        return annotation.split(".")[-1] in ("Request", "Response", "WebSocket") or "Depends(" in annotation
    kinds = [kind for kind in getattr(annotation, "__args__", (annotation,)) if isinstance(kind, type)]
    return any(
        base.__module__.startswith("starlette.") and base.__name__ in ("HTTPConnection", "Response")
        for kind in kinds
        for base in kind.__mro__
    )

"""Cached loaders, and the cache, for code that is not async: each call waits in its thread for the event loop."""

import functools
from collections.abc import Awaitable, Callable
from types import TracebackType
from typing import Any, Generic, ParamSpec, Protocol, Self, TypeVar, overload

from swr.engine.engine import Engine
from swr.engine.repeats import Repeats
from swr.entry import Outcome
from swr.loaders.context import Fresh, LoadContext, NotModified
from swr.policy import Policy

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
O_co = TypeVar("O_co", covariant=True)
V_contra = TypeVar("V_contra", contravariant=True)
F_co = TypeVar("F_co", covariant=True)


class AsyncLoader(Protocol[P, R_co, O_co, V_contra, F_co]):
    """The methods of `Cached`, `BoundCached` and `CachedMany` that `SyncLoader` calls."""

    @property
    def engine(self) -> Engine: ...
    @property
    def template(self) -> str: ...
    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> O_co: ...
    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...
    async def set(self, value: V_contra, /, *args: P.args, **kwargs: P.kwargs) -> bool: ...
    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> F_co: ...
    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    async def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None: ...
    async def invalidate_all(self) -> None: ...
    async def mark_stale_all(self) -> None: ...


class SyncLoader(Generic[P, R_co, O_co, V_contra, F_co]):
    """A cached loader for code that is not async: its calls wait for their answer; `top100.sync`.

    Parameters:
        loader: the cached loader.
    """

    __slots__ = ("_loader",)

    def __init__(self, loader: AsyncLoader[P, R_co, O_co, V_contra, F_co]) -> None:
        self._loader = loader

    def _call(self, function: Callable[..., Awaitable[Any]], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        call = functools.partial(function, *args, **kwargs)
        return self._loader.engine.portal.call(f"the .sync of the loader of {self._loader.template!r}", call)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Return the loader's value for these arguments, from the cache if possible.

        Raises:
            Exception: whatever an awaited call of the loader raises.
            ConfigurationError: an event loop runs in this thread.
        """
        value: R_co = self._call(self._loader.__call__, args, kwargs)
        return value

    def outcome(self, *args: P.args, **kwargs: P.kwargs) -> O_co:
        """Return the same value as a call, with the state, the age and the error of the answer."""
        outcome: O_co = self._call(self._loader.outcome, args, kwargs)
        return outcome

    def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Load now, whatever is stored, and return the new value."""
        value: R_co = self._call(self._loader.refresh, args, kwargs)
        return value

    def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R_co:
        """Call the loader without the cache, and return its value; see `Cached.uncached`."""
        value: R_co = self._call(self._loader.uncached, args, kwargs)
        return value

    def set(self, value: V_contra, /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store `value` as if the loader had just returned it for these arguments; see `Cached.set`."""
        is_stored: bool = self._call(self._loader.set, (value, *args), kwargs)
        return is_stored

    def peek(self, *args: P.args, **kwargs: P.kwargs) -> F_co:
        """Return what is stored for these arguments, fresh or stale; see `Cached.peek`."""
        found: F_co = self._call(self._loader.peek, args, kwargs)
        return found

    def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove what is stored for these arguments in every process; see `Cached.invalidate`."""
        self._call(self._loader.invalidate, args, kwargs)

    def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Mark the entry of these arguments as stale in every process; see `Cached.mark_stale`."""
        self._call(self._loader.mark_stale, args, kwargs)

    def invalidate_all(self) -> None:
        """Remove what is stored for all arguments, in one step; see `Cached.invalidate_all`."""
        self._call(self._loader.invalidate_all, (), {})

    def mark_stale_all(self) -> None:
        """Mark the entries of all arguments as stale, in one step; see `Cached.mark_stale`."""
        self._call(self._loader.mark_stale_all, (), {})


class AsyncCache(Protocol):
    """The methods of `Cache` that `SyncCache` calls."""

    engine: Engine

    async def __aenter__(self) -> Any: ...
    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None: ...

    # `SyncCache` has the types of these three.
    @property
    def get_or_load(self) -> Callable[..., Any]: ...
    @property
    def set(self) -> Callable[..., Any]: ...
    @property
    def peek(self) -> Callable[..., Any]: ...
    async def invalidate(self, key: str) -> None: ...
    async def mark_stale(self, key: str) -> None: ...
    async def invalidate_tag(self, tag: str) -> None: ...
    async def invalidate_tags(self, *tags: str) -> None: ...
    async def mark_stale_tags(self, *tags: str) -> None: ...
    async def invalidate_url(self, url: str) -> None: ...
    async def invalidate_urls(self, *urls: str) -> None: ...
    async def mark_stale_urls(self, *urls: str) -> None: ...
    async def clear(self) -> None: ...
    async def mark_stale_all(self) -> None: ...


class SyncCache:
    """The cache for code that is not async: `cache.sync`. Each call waits in its thread for the event loop.

    `with cache.sync:` opens the cache, and closes it at the end.

    Parameters:
        cache: the cache.
    """

    __slots__ = ("_cache",)

    def __init__(self, cache: AsyncCache) -> None:
        self._cache = cache

    def _call(self, name: str, function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
        return self._cache.engine.portal.call(f"cache.sync.{name}(...)", functools.partial(function, *args))

    def __enter__(self) -> Self:
        """Open the cache. If it is opened several times, the last exit closes it."""
        self._call("__enter__", self._cache.__aenter__)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the cache: wait for loads up to `drain_for`, cancel the rest, release leases, and disconnect."""
        self._call("__exit__", self._cache.__aexit__, kind, error, traceback)

    def close(self) -> None:
        """Close the cache now, wherever it is open, and end its own thread; it opens again at its next use.

        swr does so at the end of the process for a cache that has a thread of its own.
        """
        self._cache.engine.portal.close()

    @overload
    def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[R | Fresh[R] | NotModified]]
        | Callable[[LoadContext[Any]], Awaitable[R | Fresh[R] | NotModified]],
        policy: Policy | None = None,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    @overload
    def get_or_load(
        self,
        key: str,
        loader: Callable[[], R | Fresh[R] | NotModified] | Callable[[LoadContext[Any]], R | Fresh[R] | NotModified],
        policy: Policy | None = None,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    def get_or_load(
        self, key: str, loader: Callable[..., Any], policy: Policy | None = None, *, returns: Any = None
    ) -> Outcome[Any]:
        """Return what is stored under `key`, or what `loader` returns; see `Cache.get_or_load`."""
        load = functools.partial(self._cache.get_or_load, key, loader, policy, returns=returns)
        outcome: Outcome[Any] = self._call("get_or_load", load)
        return outcome

    def set(self, key: str, value: R | Fresh[R], policy: Policy | None = None, *, returns: Any = None) -> bool:
        """Store `value` under `key`; see `Cache.set`."""
        store = functools.partial(self._cache.set, key, value, policy, returns=returns)
        is_stored: bool = self._call("set", store)
        return is_stored

    @overload
    def peek(self, key: str, *, returns: type[R]) -> Outcome[R] | None: ...
    @overload
    def peek(self, key: str, *, returns: Any = None) -> Outcome[Any] | None: ...
    def peek(self, key: str, *, returns: Any = None) -> Outcome[Any] | None:
        """Return what is stored under `key`, fresh or stale, or None; see `Cache.peek`."""
        found: Outcome[Any] | None = self._call("peek", functools.partial(self._cache.peek, key, returns=returns))
        return found

    def invalidate(self, key: str) -> None:
        """Remove what is stored under `key`; see `Cache.invalidate`."""
        self._call("invalidate", self._cache.invalidate, key)

    def mark_stale(self, key: str) -> None:
        """Mark the entry of `key` as stale; see `Cached.mark_stale`."""
        self._call("mark_stale", self._cache.mark_stale, key)

    def invalidate_tag(self, tag: str) -> None:
        """Outdate every entry that carries `tag`; see `Cache.invalidate_tag`."""
        self._call("invalidate_tag", self._cache.invalidate_tag, tag)

    def invalidate_tags(self, *tags: str) -> None:
        """Outdate every entry that carries one of `tags`, in one step; see `Cache.invalidate_tags`."""
        self._call("invalidate_tags", self._cache.invalidate_tags, *tags)

    def mark_stale_tags(self, *tags: str) -> None:
        """Mark every entry that carries one of `tags` as stale, in one step; see `Cached.mark_stale`."""
        self._call("mark_stale_tags", self._cache.mark_stale_tags, *tags)

    def invalidate_url(self, url: str) -> None:
        """Outdate the responses to a URL; see `Cache.invalidate_url`."""
        self._call("invalidate_url", self._cache.invalidate_url, url)

    def invalidate_urls(self, *urls: str) -> None:
        """Outdate the responses to several URLs, in one step; see `Cache.invalidate_urls`."""
        self._call("invalidate_urls", self._cache.invalidate_urls, *urls)

    def mark_stale_urls(self, *urls: str) -> None:
        """Mark the responses to URLs as stale, in one step; see `Cached.mark_stale`."""
        self._call("mark_stale_urls", self._cache.mark_stale_urls, *urls)

    def clear(self) -> None:
        """Outdate everything in the cache's namespace; see `Cache.clear`."""
        self._call("clear", self._cache.clear)

    def mark_stale_all(self) -> None:
        """Mark everything in the cache's namespace as stale, in one step; see `Cached.mark_stale`."""
        self._call("mark_stale_all", self._cache.mark_stale_all)

    def until_committed(self) -> "SyncRepeats":
        """Return a `with` block that repeats, at its end, every invalidation inside it.

        Put it around the transaction; see `Cache.until_committed`.
        """
        return SyncRepeats(self._cache.engine)


class SyncRepeats:
    """The `with` block of `SyncCache.until_committed`.

    Parameters:
        engine: the engine of the cache.
    """

    __slots__ = ("_engine", "_repeats")

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._repeats = Repeats(engine)

    def __enter__(self) -> None:
        self._repeats.begin()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._repeats.end()
        if error is not None:
            self._repeats.fail()
        self._engine.portal.call("the end of cache.sync.until_committed()", self._repeats.repeat)

"""The cache: decorators, middleware and refreshers are made from this object."""

import time
from collections.abc import Awaitable, Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, ParamSpec, Self, TypeVar, cast, overload

from swr.core.arguments import NO_ARGUMENTS
from swr.core.keys import CallKeys
from swr.endpoints.decorator import ResponseRule
from swr.engine.engine import Engine
from swr.engine.repeats import Repeats
from swr.entry import Outcome
from swr.errors import ConfigurationError
from swr.events import KINDS, Event, Subscriber
from swr.http.request import digest_with, tag_of_url
from swr.loaders.annotations import codec_for, codec_of
from swr.loaders.cached import Cached, Call, IndirectCached, Loader, check_loader, is_async
from swr.loaders.cached_many import CachedMany
from swr.loaders.calling import asking
from swr.loaders.context import Fresh, LoadContext, NotModified
from swr.loaders.decorators import CachedDecorator, CachedManyDecorator
from swr.loaders.many_keys import ManyKeys
from swr.loaders.templates import Templates
from swr.policy import Duration, Policy, seconds
from swr.settings import checked
from swr.stores.base import LeasingStore
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.tag_versions import ALL
from swr.stores.tiered import TieredStore

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Event)
K = TypeVar("K")
S = TypeVar("S")

_ENTRIES: Final = 1_000_000


class Cache:
    """A stale-while-revalidate cache: in this process's memory, or in memory in front of Redis or Valkey.

    Parameters:
        url: `redis://host:port/db`, `rediss://…` (TLS), `unix:///path`, `redis+sentinel://host:port,host:port/master/db`
            or `redis+cluster://host:port,host:port`; None keeps everything in memory.
        redis: a client of your own in place of a URL, `redis.asyncio.Redis` or `RedisCluster`; you close it.
        namespace: the beginning of every key in Redis; caches that share it share their entries.
        l1_max_bytes: the most that this process holds in memory, in bytes; 0 with Redis: nothing.
        lease_for: how long a load may be silent before another process takes over. A lease is renewed at a third
            of it, so a load may last longer.
        drain_for: how long closing waits for loads that are under way.
        secret: hides the values of request fields and cookies in keys; the same for all processes. Without one,
            somebody who reads Redis can guess short values.
        timeout: how long Redis may stay silent before it counts as unreachable.
        connect_timeout: how long connecting to Redis may take. The first readers wait for it; a refused connection
            fails at once.
        clock: wall clock, seconds.

    It opens at its first use (on trio too) or by `async with`, and belongs to one event loop at a time.

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        url: str | None = None,
        *,
        redis: "Redis | RedisCluster | None" = None,
        namespace: str = "swr",
        l1_max_bytes: int = 64 * 2**20,
        lease_for: Duration = 30,
        drain_for: Duration = 10,
        timeout: Duration = 1,
        connect_timeout: Duration = 3,
        secret: str | bytes = b"",
        clock: Callable[[], float] = time.time,
    ) -> None:
        settings = checked(namespace, l1_max_bytes, lease_for, drain_for, timeout, connect_timeout, secret)
        self.namespace = settings.namespace
        self.digest = digest_with(settings.secret)
        self._encodes = url is not None or redis is not None
        store: LeasingStore
        if self._encodes:
            from swr.stores.redis.store import RedisStore
            from swr.stores.redis.urls import servers_of

            servers = servers_of(url, redis, settings.timeout, settings.connect_timeout)
            self.local = LocalCache(l1_max_bytes, _ENTRIES)
            store = TieredStore(self.local, RedisStore(servers, namespace, settings.timeout, clock), clock)
        else:
            memory = MemoryStore(l1_max_bytes, _ENTRIES, clock)
            self.local, store = memory.local, memory
        self.engine = Engine(store, settings.lease_for, settings.drain_for, clock)
        self._opened = 0
        self._templates = Templates()

    @property
    def is_shared(self) -> bool:
        """Whether other processes share what is stored: with Redis or Valkey they may."""
        return self._encodes

    # -- life -------------------------------------------------------------------------------------------------

    async def __aenter__(self) -> Self:
        """Open; what is opened several times is closed by the last exit."""
        self._opened += 1
        try:
            await self.engine.ready()
        except BaseException:
            self._opened -= 1
            raise
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Wait for loads within `drain_for`, cancel the rest, give back leases, disconnect."""
        self._opened = max(0, self._opened - 1)
        if self._opened == 0:
            await self.engine.aclose()

    async def aclose(self) -> None:
        """Close now, however often it was opened; it opens again at its next use."""
        self._opened = 0
        await self.engine.aclose()

    # -- loaders ----------------------------------------------------------------------------------------------

    def cached(
        self,
        template: str | None = None,
        *,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
        copy: bool = False,
        keep_for: Duration = 0,
        soft_timeout: Duration | None = "auto",
        hard_timeout: Duration | None = "auto",
        early: float = 0,
        jitter: float = 0,
    ) -> CachedDecorator:
        """Put a loader, `async def` or `def`, function or method, behind the cache.

        Parameters:
            template: the key, "ranking:{group}:{limit}"; it names every parameter or leaves it to `ignore`. None:
                a key of the function's name and all its arguments.
            fresh_for, stale_for, stale_if_error: see `Policy`.
            tags: names to invalidate by, "group:{group}".
            ignore: parameters that do not change the answer, `self` or a database session for two.
            copy: give every caller a deep copy. Without it all callers in this process share one object, which
                they must not change.
            keep_for: how long past `fresh_for` a value is kept at least, served or not, for a loader that asks for a
                `LoadContext`.
            soft_timeout, hard_timeout: how long a reader waits if there is an entry to fall back on, and how long a
                load may run; see `Policy`.
            early, jitter: refresh before a value's time, and spread the times of several; see `Policy`. With `early` a
                fresh hit costs some microseconds more.

        A `def` runs in a thread. A refresh in the background runs with the arguments of the call that found the
        entry stale; what lives only as long as a request, a database session for one, must not be among them.

        Raises:
            ConfigurationError: at decoration, for whatever of these cannot work.
        """
        policy = Policy(fresh_for, stale_for, stale_if_error, tags, keep_for, soft_timeout, hard_timeout, early, jitter)

        def decorate(function: Callable[..., Any]) -> Cached[..., Any]:
            check_loader(function)
            asks = asking(function)
            keys = CallKeys(function, template, policy.tags, ignore, None if asks is None else asks.signature)
            self._templates.claim(keys.template, function, is_default=template is None)
            indirect = policy.early or not self.local.slots.maxsize
            kind: type[Cached[..., Any]] = IndirectCached if indirect else Cached
            return kind(self.engine, self.local, function, keys, policy, copies=copy, asking=asks)

        return cast(CachedDecorator, decorate)

    def cached_many(
        self,
        template: str,
        *,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] = (),
        ignore: Sequence[str] = (),
        copy: bool = False,
        absent_for: Duration = 0,
        soft_timeout: Duration | None = "auto",
        hard_timeout: Duration | None = "auto",
        early: float = 0,
        jitter: float = 0,
    ) -> CachedManyDecorator:
        """Put a batch loader, which takes a list of items and returns a dict of their values, behind the cache.

        Parameters:
            template: the key of one item, "ranking:{group}:{limit}" for `async def top(groups, limit=100)`: it names
                every parameter but the list, or leaves it to `ignore`, and the item by any other name. The entries are
                those of a `cached` loader with this template, if there is one.
            absent_for: how long it is remembered that an item was not in the dict.
            fresh_for, stale_for, stale_if_error, tags, ignore, copy, soft_timeout, hard_timeout, early, jitter: see
                `cached`; tags may name the item.

        swr calls the loader once for each 1,000 missing items that no other load brings already.

        Raises:
            ConfigurationError: at decoration, for whatever of these cannot work.
        """
        policy = Policy(fresh_for, stale_for, stale_if_error, tags, 0, soft_timeout, hard_timeout, early, jitter)
        absent = seconds(absent_for, "absent_for")

        def decorate(function: Callable[..., Any]) -> CachedMany[..., Any, Any]:
            check_loader(function)
            keys = ManyKeys(function, template, policy.tags, ignore)
            if asking(function) is not None:
                raise ConfigurationError(
                    f"{keys.where} asks for a LoadContext; that is about one value, and it loads many"
                )
            self._templates.claim(keys.template, function, many=True)
            return CachedMany(self.engine, function, keys, policy, absent, copies=copy)

        return cast(CachedManyDecorator, decorate)

    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[R | Fresh[R] | NotModified]]
        | Callable[[LoadContext[Any]], Awaitable[R | Fresh[R] | NotModified]],
        policy: Policy,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], R | Fresh[R] | NotModified] | Callable[[LoadContext[Any]], R | Fresh[R] | NotModified],
        policy: Policy,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    async def get_or_load(
        self, key: str, loader: Callable[..., Any], policy: Policy, *, returns: Any = None
    ) -> Outcome[Any]:
        """Return what is stored under `key`, or what `loader` returns.

        Parameters:
            key: any text.
            loader: takes nothing, or a `LoadContext`; `async def` or `def`.
            policy: how long its value may be served, and how long it may be loaded.
            returns: the type of the value, for Redis; by default the loader's return annotation.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            LoadTimeout: it ran longer than `policy.hard_timeout`; likewise.
            CodecError: the value cannot be stored in Redis.
            ConfigurationError: arguments that cannot work.
        """
        if not isinstance(key, str):
            raise ConfigurationError(f"key={key!r} is not a string")
        if not isinstance(policy, Policy):
            raise ConfigurationError(f"policy={policy!r} is not a Policy: Policy(fresh_for=60, stale_for=600)")
        codec = codec_for(loader) if returns is None else codec_of(returns)
        asks = asking(loader)
        called = loader if asks is None else asks.call
        job = Call(Loader(self.engine, called, not is_async(loader), asks is not None), NO_ARGUMENTS, policy, codec)
        return await self.engine.fetch(key, job, patience=policy.soft_timeout, early=policy.early)

    # -- endpoints --------------------------------------------------------------------------------------------

    def response(
        self,
        *,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] = (),
        override: bool = False,
        vary: Sequence[str] = (),
        hard_timeout: Duration | None = None,
        ignore_fields: Sequence[str] = (),
        credentials: Literal["private", "vary"] = "private",
        key: Callable[..., Any] | None = None,
        shared: bool = False,
    ) -> ResponseRule:
        """Tell the middleware how to cache this endpoint's responses; its signature stays as it is.

        Parameters:
            fresh_for, stale_for, stale_if_error: see `Policy`; they fill in what the response leaves open.
            tags: names to invalidate by; they may name the endpoint's parameters.
            override: go before the response's own directives.
            vary: request fields that the response depends on and does not name in `Vary`. Those that the route
                declares to FastAPI (`Header()`, `APIKeyHeader`), in its endpoint or a dependency, are found without it.
            hard_timeout: how long a load of these responses may run; in place of the middleware's.
            ignore_fields: request fields that the response does not depend on, beside those that swr knows as harmless.
            credentials: "private": a request with credentials gets the response only if that says it is for everybody.
                "vary": each credential has a response of its own, and a revoked one gets it until it ends.
            key: returns what selects the response among the requests that the endpoint's dependencies admit, from
                parameters of the endpoint, which it names (`lambda user: user.id`), or from `scope`.
            shared: whether every request that they admit gets the same response, whatever the endpoint's arguments.
                Without `key` and `shared`, responses are shared behind dependencies if path and query alone reach
                the endpoint.

        Raises:
            ConfigurationError: whatever of these cannot work.
        """
        rule = ResponseRule(self, fresh_for, stale_for, stale_if_error, tags, override, vary, hard_timeout)
        return rule.about_requests(ignore_fields, credentials).about_readers(key, shared)

    # -- events -----------------------------------------------------------------------------------------------

    @overload
    def subscribe(self, subscriber: Callable[[Event], object]) -> Callable[[], None]: ...
    @overload
    def subscribe(self, subscriber: Callable[[E], object], kind: type[E], /) -> Callable[[], None]: ...
    @overload
    def subscribe(
        self, subscriber: Subscriber, kind: type[Event], other: type[Event], /, *kinds: type[Event]
    ) -> Callable[[], None]: ...
    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """Call `subscriber` with every event of this cache; call the returned function to end that.

        Parameters:
            subscriber: called with each event at once, in the task in which it happens: it must be quick, and must not
                block. What it raises is logged once and reaches nobody.
            kinds: classes of `swr.events`; none: all of them.

        Returns:
            What ends it, from the next event on.

        Raises:
            ConfigurationError: arguments that cannot work.
        """
        if not callable(subscriber):
            raise ConfigurationError(f"subscriber={subscriber!r} cannot be called: give a function of one event")
        if is_async(subscriber):
            raise ConfigurationError(
                f"subscriber={subscriber!r} is async, and swr would not await it: give a def, which may put the "
                f"event into a queue for a task of your own"
            )
        for kind in kinds:
            if kind not in KINDS:
                known = ", ".join(known.__name__ for known in KINDS)
                raise ConfigurationError(f"{kind!r} is no kind of event; of swr.events there are: {known}")
        return self.engine.events.subscribe(subscriber, kinds or KINDS)

    # -- invalidation -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Remove what is stored under `key`, here and in every process.

        After it returns, no reader in this process gets an older value, from a load under way either; in other
        processes, once the notification has arrived. While Redis is unreachable it takes effect here at once, and
        elsewhere when Redis is reachable again.
        """
        if not isinstance(key, str):
            raise ConfigurationError(f"key={key!r} is not a string; a decorated function has .invalidate(...)")
        await self.engine.invalidate(key)

    async def invalidate_tag(self, tag: str) -> None:
        """Outdate every entry that carries `tag`, in one step however many there are; else as `invalidate`."""
        if not isinstance(tag, str) or not tag:
            raise ConfigurationError(f"tag={tag!r} is not a non-empty string")
        await self.engine.invalidate_tag(tag)

    async def invalidate_url(self, url: str) -> None:
        """Outdate the responses to a URL, "/rankings/ATL?limit=10", for all its hosts, schemes and variants.

        Raises:
            ConfigurationError: it is no URL or path.
        """
        await self.engine.invalidate_tag(tag_of_url(url))

    def until_committed(self) -> Repeats:
        """Return an `async with` block that makes every invalidation inside it once more at its end.

        Let it enclose the transaction. Between an invalidation and the commit a reader may load the old value again;
        the second invalidation outdates that. `SWRMiddleware` does so for each request with an unsafe method.
        """
        return Repeats(self.engine)

    async def clear(self) -> None:
        """Outdate everything in this cache's namespace."""
        await self.engine.invalidate_tag(ALL)

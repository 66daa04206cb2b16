"""The cache: decorators, middleware and refreshers are made from this object."""

import functools
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any, Literal, ParamSpec, Self, TypeVar, Unpack, cast, overload

from swr.core.arguments import NO_ARGUMENTS
from swr.core.keys import CallKeys
from swr.endpoints.decorator import ResponseRule
from swr.entry import Outcome
from swr.errors import ConfigurationError
from swr.events import KINDS, Event, Subscriber
from swr.lifecycle.configured import Configured
from swr.lifecycle.options import Options, with_environment
from swr.loaders.annotations import codec_for, codec_of
from swr.loaders.cached import Cached, IndirectCached
from swr.loaders.cached_many import CachedMany
from swr.loaders.call import Call, Loader, is_async
from swr.loaders.calling import TagsOf, asking, tags_or_function
from swr.loaders.checks import check_loader
from swr.loaders.context import Fresh, LoadContext, NotModified
from swr.loaders.decorators import CachedDecorator, CachedManyDecorator, on_methods, with_options
from swr.loaders.many_keys import ManyKeys
from swr.loaders.stored_entries import StoredEntries
from swr.loaders.sync import SyncCache
from swr.loaders.templates import Templates
from swr.policy import Duration, Policy, seconds

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

P = ParamSpec("P")
R = TypeVar("R")
E = TypeVar("E", bound=Event)
K = TypeVar("K")
S = TypeVar("S")


class Cache(Configured, StoredEntries):
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
        clock: wall clock, seconds; None: that of this machine.
        enabled: False: every call goes to its loader and every request to the app, nothing is stored, and no
            connection is made.

    It opens at its first use (on trio too) or by `async with`, and belongs to one event loop at a time. Until then
    `configure` may change what you give here.

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
        clock: Callable[[], float] | None = None,
        enabled: bool = True,
    ) -> None:
        super().__init__(
            url,
            {
                "redis": redis,
                "namespace": namespace,
                "l1_max_bytes": l1_max_bytes,
                "lease_for": lease_for,
                "drain_for": drain_for,
                "timeout": timeout,
                "connect_timeout": connect_timeout,
                "secret": secret,
                "clock": clock,
                "enabled": enabled,
            },
        )
        self._templates = Templates()

    @classmethod
    def from_env(cls, url: str | None = None, **options: Unpack[Options]) -> Self:
        """Return a cache with the options of the environment: `SWR_REDIS_URL`, `SWR_NAMESPACE` and `SWR_ENABLED`.

        Parameters:
            url, options: those of `Cache`, for what the environment leaves open. A variable goes before its option;
                one that is empty counts as not there. `SWR_ENABLED` is 1, true, yes, on, 0, false, no or off.

        Raises:
            ConfigurationError: an option, or the value of a variable, cannot work. It names the variable, and shows no
                password.
        """
        url, options = with_environment(url, options)
        return cls(url, **options)

    @property
    def sync(self) -> SyncCache:
        """The cache for code that is not async: `cache.sync.invalidate_tag("group:ATL")`."""
        return SyncCache(self)

    # -- loaders ----------------------------------------------------------------------------------------------

    @with_options
    def cached(
        self,
        template: str | None = None,
        *,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] | TagsOf = (),
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
            tags: names to invalidate by, "group:{group}"; or a function that returns them, of the value and the
                loader's arguments.
            ignore: parameters that do not change the answer, `self` for one.
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
        tags, of_value = tags_or_function(tags)
        policy = Policy(fresh_for, stale_for, stale_if_error, tags, keep_for, soft_timeout, hard_timeout, early, jitter)

        def decorate(function: Callable[..., Any]) -> Cached[..., Any]:
            check_loader(function)
            asks = asking(function)
            keys = CallKeys(function, template, policy.tags, ignore, None if asks is None else asks.signature)
            self._templates.claim(keys.template, function, is_default=template is None)
            kind: type[Cached[..., Any]] = IndirectCached if policy.early else Cached
            return kind(self.engine, self.local, function, keys, policy, copies=copy, asking=asks, tags=of_value)

        return cast(CachedDecorator, functools.partial(on_methods, decorate))

    @with_options
    def cached_many(
        self,
        template: str,
        *,
        fresh_for: Duration,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] | TagsOf = (),
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
                `cached`; tags may name the item, and a function of tags gets it in the place of the list.

        swr calls the loader once for each 1,000 missing items that no other load brings already.

        Raises:
            ConfigurationError: at decoration, for whatever of these cannot work.
        """
        tags, of_value = tags_or_function(tags)
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
            return CachedMany(self.engine, function, keys, policy, absent, copies=copy, tags=of_value)

        return cast(CachedManyDecorator, functools.partial(on_methods, decorate))

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
        made = Loader(self.engine, called, not is_async(loader), asks is not None)
        if self.engine.switch.is_off:
            return await made.call_past((), {}, policy.hard_timeout)
        job = Call(made, NO_ARGUMENTS, policy, codec)
        return await self.engine.fetch(key, job, patience=policy.soft_timeout, early=policy.early)

    # -- endpoints --------------------------------------------------------------------------------------------

    @with_options
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
        client_max_age: Duration = 0,
        soft_timeout: Duration | None = None,
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
            client_max_age: how long clients may keep a response without asking, if it has no `Cache-Control` of its
                own; see `Rule`. Behind dependencies only the client itself may, and no shared cache.
            soft_timeout: how long a client waits for a load if there is an entry to fall back on; see `Policy`. None:
                to its end. Behind dependencies it applies to those who wait for another's run of the endpoint.

        Raises:
            ConfigurationError: whatever of these cannot work.
        """
        rule = ResponseRule(self, fresh_for, stale_for, stale_if_error, tags, override, vary, hard_timeout)
        rule = rule.about_requests(ignore_fields, credentials).about_readers(key, shared)
        return rule.about_clients(client_max_age, soft_timeout)

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

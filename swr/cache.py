"""The cache: decorators, middleware and refreshers are made from this object."""

from collections.abc import Callable, Sequence
from types import EllipsisType
from typing import TYPE_CHECKING, Literal, ParamSpec, Self, TypeVar, Unpack, overload

from swr.core.byte_codec import ByteCodec
from swr.core.key_functions import FunctionOf
from swr.errors import ConfigurationError
from swr.events import KINDS, Event, Subscriber
from swr.lifecycle.configured import Configured
from swr.lifecycle.options import Options, with_environment
from swr.loaders.call import is_async
from swr.loaders.calling import TagsOf
from swr.loaders.decorators import with_options
from swr.loaders.loaders import Loaders
from swr.loaders.stored_entries import StoredEntries
from swr.loaders.sync import SyncCache
from swr.loaders.templates import Templates
from swr.policy import Duration, Policy

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster

    from swr.endpoints.decorator import ResponseRule

Q = ParamSpec("Q")
E = TypeVar("E", bound=Event)


class Cache(Configured, Loaders, StoredEntries):
    """A stale-while-revalidate cache: in this process's memory, or in memory in front of Redis or Valkey.

    Parameters:
        url: `redis://host:port/db`, `rediss://…` (TLS), `unix:///path`, `redis+sentinel://host:port,host:port/master/db`
            or `redis+cluster://host:port,host:port`; None keeps everything in memory.
        redis: a client of your own instead of a URL, `redis.asyncio.Redis` or `RedisCluster`; you close it.
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
        codec: encodes what goes to Redis, such as `swr.encryption.Encryption`; None: nothing does. This process's
            memory holds values as they are.
        compress_above: bytes; longer values are compressed on their way to Redis. "auto": above 16,384 without a codec,
            never with one, because the length of what is encrypted would tell something of what is in it. None: never.
        clock: wall clock, seconds; None: that of this machine.
        policy: how long values may be served and loaded where a decorator or a call does not say; see `Policy`.
        reports: whether this process writes some 2 kB a second into Redis that say what it does, for dashboards of
            other processes. `swr.dashboard` turns that on.
        release: what a deploy changes, such as a date or a commit; dashboards mark when it changes.
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
        codec: ByteCodec | None = None,
        compress_above: int | Literal["auto"] | None = "auto",
        clock: Callable[[], float] | None = None,
        policy: Policy | None = None,
        reports: bool = False,
        release: str = "",
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
                "codec": codec,
                "compress_above": compress_above,
                "clock": clock,
                "policy": policy,
                "reports": reports,
                "release": release,
                "enabled": enabled,
            },
        )
        self._templates = Templates()

    @classmethod
    def from_env(cls, url: str | None = None, **options: Unpack[Options]) -> Self:
        """Return a cache with the options of the environment.

        The variables are `SWR_REDIS_URL`, `SWR_NAMESPACE`, `SWR_ENABLED`, `SWR_REPORTS`, `SWR_RELEASE`, `SWR_SECRET`,
        and `SWR_ENCRYPTION_KEYS` for `codec`: `Encryption.from_text` of these keys and of `SWR_SECRET`.

        Parameters:
            url: that of `Cache`, for what the environment leaves open.
            **options: those of `Cache`, likewise. A variable goes before its option; one that is empty counts as not
                there. `SWR_ENABLED` and `SWR_REPORTS` are 1, true, yes, on, 0, false, no or off.

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

    # -- endpoints --------------------------------------------------------------------------------------------

    @with_options
    def response(
        self,
        *,
        fresh_for: Duration | EllipsisType = ...,
        stale_for: Duration | EllipsisType = ...,
        stale_if_error: Duration | EllipsisType = ...,
        tags: Sequence[str] | TagsOf = (),
        override: bool = False,
        vary: Sequence[str] = (),
        hard_timeout: Duration | None = None,
        ignore_fields: Sequence[str] = (),
        credentials: Literal["private", "vary"] = "private",
        key: "FunctionOf[object, Q] | None" = None,
        shared: bool = False,
        client_max_age: Duration = 0,
        soft_timeout: Duration | None = None,
    ) -> "ResponseRule":
        """Tell the middleware how to cache this endpoint's responses; its signature stays as it is.

        Parameters:
            fresh_for: how long the response is fresh: seconds, or "90s", "10m", "1d".
            stale_for: how long after that swr serves it and refreshes it in the background.
            stale_if_error: how long after `fresh_for` it is a fallback if a load fails.
                The response's own directives go before these three. What you leave out of them is as the policy of the
                cache says.
            tags: names to invalidate by; they may name the endpoint's parameters. Or a function that returns them, of
                what the endpoint returns, and of parameters that it names: `lambda flights, group: ...`. If it raises,
                swr does not store the response.
            override: go before the response's own directives.
            vary: request fields that the response depends on and does not name in `Vary`. Those that the route
                declares to FastAPI (`Header()`, `APIKeyHeader`), in its endpoint or a dependency, are found without it.
            hard_timeout: how long a load of these responses may run; instead of the middleware's.
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
            ConfigurationError: one of these cannot work.
        """
        # It takes Starlette, which an app without endpoints does not need.
        from swr.endpoints.decorator import ResponseRule

        rule = ResponseRule(self, fresh_for, stale_for, stale_if_error, tags, override, vary, hard_timeout)
        rule = rule.about_requests(ignore_fields, credentials).about_readers(key, shared)
        return rule.about_clients(client_max_age, soft_timeout)

    # -- what happens -------------------------------------------------------------------------------------------------

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
                block. swr logs once what it raises, and no caller sees it.
            kinds: classes of `swr.events`; none: all of them.

        Returns:
            A function that ends the subscription, from the next event on.

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
                raise ConfigurationError(f"{kind!r} is not a kind of event; of swr.events there are: {known}")
        return self.engine.events.subscribe(subscriber, kinds or KINDS)

"""`Cache`, the object from which users make decorators, middleware and refreshers."""

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
        l1_max_bytes: limit of the local cache, in this process's memory, in bytes; 0, with Redis: no local cache.
        lease_for: how long the lease of a load lasts without a renewal; then another process takes over. swr renews
            a lease after a third of that time, so a load may take longer.
        drain_for: how long closing waits for loads that are under way.
        secret: the key with which swr hashes values of request fields and cookies in keys; the same for all
            processes. Without a secret, somebody who reads Redis can guess short values.
        timeout: how long Redis may stay silent before it counts as unreachable.
        connect_timeout: how long connecting to Redis may take. The first readers wait for it; a refused connection
            fails at once.
        codec: encodes data on its way to Redis, such as `swr.encryption.Encryption`; None: data is not encoded. The
            local cache never encodes values.
        compress_above: length in bytes above which swr compresses values on their way to Redis; None: never.
            "auto": 16,384 without a codec, never with one, because the length of encrypted data reveals some of it.
        clock: function that returns the wall-clock time in seconds; None: this machine's clock.
        policy: the lifetimes and time limits that a decorator or a call does not set; see `Policy`.
        reports: whether this process writes about 2 kB of statistics to Redis each second, for dashboards of other
            processes. `swr.dashboard` turns reports on.
        release: text that changes with each deploy, such as a date or a commit; dashboards mark the change.
        enabled: False turns the cache off: every call runs its loader, every request reaches the app, and swr stores
            nothing and opens no connection.

    A cache opens at its first use (on trio too) or by `async with`, and belongs to one event loop at a time. Until it
    opens, `configure` can change these parameters.

    Raises:
        ConfigurationError: a parameter has a value that cannot work.
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
        """Return a cache with options from environment variables.

        The variables are `SWR_REDIS_URL`, `SWR_NAMESPACE`, `SWR_ENABLED`, `SWR_REPORTS`, `SWR_RELEASE`, `SWR_SECRET`,
        and `SWR_ENCRYPTION_KEYS`. The last sets `codec` to `Encryption.from_text` of these keys and of `SWR_SECRET`.

        Parameters:
            url: the URL of Redis if `SWR_REDIS_URL` is not set; see `Cache`.
            **options: the options of `Cache` for which no variable is set. A variable overrides its option; an empty
                variable counts as not set. `SWR_ENABLED` and `SWR_REPORTS` are 1, true, yes, on, 0, false, no or off.

        Raises:
            ConfigurationError: an option, or the value of a variable, cannot work. The message names the variable and
                shows no password.
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
        """Tell the middleware how to cache this endpoint's responses. The endpoint's signature does not change.

        Parameters:
            fresh_for: how long the response is fresh: seconds, or "90s", "10m", "1d".
            stale_for: how long after `fresh_for` swr serves the response and refreshes it in the background.
            stale_if_error: how long after `fresh_for` the response is a fallback if a load fails.
                The response's own directives take precedence over these three. If you omit one, the policy of the
                cache applies.
            tags: names for invalidation, which may contain parameters of the endpoint. Or a function that returns the
                tags: it takes the endpoint's result and the parameters that it names: `lambda flights, group: ...`.
                If the function raises, swr does not store the response.
            override: whether these parameters take precedence over the response's own directives.
            vary: request fields that the response depends on and does not name in `Vary`. swr itself finds the fields
                that the endpoint or a dependency declares to FastAPI (`Header()`, `APIKeyHeader`).
            hard_timeout: how long a load of these responses may run; None: the `hard_timeout` of the middleware.
            ignore_fields: request fields that the response does not depend on, besides those that swr always ignores.
            credentials: "private": a request with credentials gets the stored response only if the response allows that
                (`public`, `s-maxage` or `must-revalidate`). "vary": each credential has its own response; a revoked
                credential still gets it until it expires.
            key: function whose result selects the response for a request that the endpoint's dependencies admit. It
                takes parameters of the endpoint, which it names (`lambda user: user.id`), or `scope`.
            shared: whether all requests that the dependencies admit get the same response, whatever the endpoint's
                arguments. Without `key` and `shared`, these requests share responses if only the path and the query
                reach the endpoint.
            client_max_age: how long clients may reuse a response without asking, if it has no `Cache-Control` of its
                own; see `Rule`. Behind dependencies this allows only the client's own cache, not shared caches.
            soft_timeout: how long a client waits for a load if there is an entry to fall back on; see `Policy`. None:
                until the load ends. Behind dependencies it limits only waits for another request's run of the endpoint.

        Raises:
            ConfigurationError: a parameter has a value that cannot work.
        """
        # This module imports Starlette, which an app without endpoints need not install.
        from swr.endpoints.decorator import ResponseRule

        rule = ResponseRule(self, fresh_for, stale_for, stale_if_error, tags, override, vary, hard_timeout)
        rule = rule.about_requests(ignore_fields, credentials).about_readers(key, shared)
        return rule.about_clients(client_max_age, soft_timeout)

    # -- events -------------------------------------------------------------------------------------------------------

    @overload
    def subscribe(self, subscriber: Callable[[Event], object]) -> Callable[[], None]: ...
    @overload
    def subscribe(self, subscriber: Callable[[E], object], kind: type[E], /) -> Callable[[], None]: ...
    @overload
    def subscribe(
        self, subscriber: Subscriber, kind: type[Event], other: type[Event], /, *kinds: type[Event]
    ) -> Callable[[], None]: ...
    def subscribe(self, subscriber: Subscriber, *kinds: type[Event]) -> Callable[[], None]:
        """Call `subscriber` with every event of this cache; return a function that ends the subscription.

        Parameters:
            subscriber: called at once with each event, in the task that publishes the event. It must be quick and must
                not block. If it raises, swr logs that once, and no caller sees the exception.
            kinds: classes of `swr.events`; none: all kinds.

        Returns:
            A function that ends the subscription, from the next event on.

        Raises:
            ConfigurationError: `subscriber` or one of `kinds` cannot work.
        """
        if not callable(subscriber):
            raise ConfigurationError(f"subscriber={subscriber!r} cannot be called: give a function that takes an event")
        if is_async(subscriber):
            raise ConfigurationError(
                f"subscriber={subscriber!r} is async, and swr would not await it: give a def, which may put the "
                f"event into a queue for a task of your own"
            )
        for kind in kinds:
            if kind not in KINDS:
                known = ", ".join(known.__name__ for known in KINDS)
                raise ConfigurationError(f"{kind!r} is not a kind of event: give classes of swr.events, {known}")
        return self.engine.events.subscribe(subscriber, kinds or KINDS)

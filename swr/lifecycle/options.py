"""The options of a cache by name, and those that the environment gives."""

from collections.abc import Callable
from typing import TYPE_CHECKING, TypedDict

from swr.errors import ConfigurationError
from swr.policy import Duration
from swr.settings import URL, read_environment

if TYPE_CHECKING:
    from redis.asyncio import Redis, RedisCluster


class Options(TypedDict, total=False):
    """The keyword options of `Cache`; see there."""

    redis: "Redis | RedisCluster | None"
    namespace: str
    l1_max_bytes: int
    lease_for: Duration
    drain_for: Duration
    timeout: Duration
    connect_timeout: Duration
    secret: str | bytes
    clock: Callable[[], float] | None
    enabled: bool


def with_environment(url: str | None, options: Options) -> tuple[str | None, Options]:
    """Return what the environment variables say of a cache, and for the rest what is given.

    Raises:
        ConfigurationError: the value of a variable cannot work.
    """
    found, whole = read_environment(), options.copy()
    if found.url is not None:
        from swr.stores.redis.urls import servers_of

        try:
            servers_of(found.url, None, 1.0)
        except ConfigurationError as error:
            raise ConfigurationError(f"{URL}: {error}") from None
        url, whole["redis"] = found.url, None
    if found.namespace is not None:
        whole["namespace"] = found.namespace
    if found.enabled is not None:
        whole["enabled"] = found.enabled
    return url, whole

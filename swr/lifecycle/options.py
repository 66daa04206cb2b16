"""The options of a cache by name, and the options from environment variables."""

from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, TypedDict

from swr.core.byte_codec import ByteCodec
from swr.errors import ConfigurationError
from swr.policy import Duration, Policy
from swr.settings import KEYS, SECRET, URL, Environment, read_environment

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
    codec: ByteCodec | None
    compress_above: int | Literal["auto"] | None
    clock: Callable[[], float] | None
    policy: Policy | None
    reports: bool
    release: str
    enabled: bool


def with_environment(url: str | None, options: Options) -> tuple[str | None, Options]:
    """Return URL and options from environment variables, and the given ones if a variable is not set.

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
    if found.secret is not None:
        whole["secret"] = found.secret
    if found.keys is not None:
        whole["codec"] = codec_in(found)
    if found.reports is not None:
        whole["reports"] = found.reports
    if found.release is not None:
        whole["release"] = found.release
    return url, whole


def codec_in(found: Environment) -> ByteCodec | None:
    """Return the codec that environment variables describe; None: they describe none.

    Raises:
        ConfigurationError: the codec cannot work, or one of its two variables is not set.
    """
    if found.keys is None:
        return None
    if found.secret is None:
        raise ConfigurationError(f"{KEYS} is set and {SECRET} is not: encryption needs both, the secret to hide names")
    try:
        from swr.encryption import Encryption
    except ImportError as error:
        raise ConfigurationError(f"{KEYS}: {error}") from None
    try:
        return Encryption.from_text(found.keys, found.secret)
    except ConfigurationError as error:
        raise ConfigurationError(f"{KEYS}, {SECRET}: {error}") from None

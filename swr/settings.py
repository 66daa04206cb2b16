"""The settings of a cache, checked when it is made."""

from typing import Final, NamedTuple

from swr.errors import ConfigurationError
from swr.policy import Duration, seconds

# Seconds. A lease in Redis that lasts longer is foreign, and is overwritten.
_LONGEST_LEASE: Final = 86_400.0


class Settings(NamedTuple):
    """What all parts of a cache go by.

    Parameters:
        namespace: the beginning of every key in Redis.
        l1_max_bytes: the most that the local cache holds, in bytes.
        lease_for: how long a load may be silent before another process takes over, in seconds.
        drain_for: how long closing waits for loads that are under way, in seconds.
        timeout: how long Redis may stay silent before it counts as unreachable, in seconds.
        connect_timeout: how long connecting to Redis may take, in seconds.
        secret: the key of the digests of secret values.
    """

    namespace: str
    l1_max_bytes: int
    lease_for: float
    drain_for: float
    timeout: float
    connect_timeout: float
    secret: bytes


def checked(
    namespace: str,
    l1_max_bytes: int,
    lease_for: Duration,
    drain_for: Duration,
    timeout: Duration,
    connect_timeout: Duration,
    secret: str | bytes,
) -> Settings:
    """Return the settings that a user gave to `Cache`, with durations in seconds.

    Raises:
        ConfigurationError: one of them cannot work.
    """
    if not isinstance(l1_max_bytes, int) or isinstance(l1_max_bytes, bool) or l1_max_bytes < 0:
        raise ConfigurationError(f"l1_max_bytes={l1_max_bytes!r} is not a number of bytes, 0 or more")
    if not isinstance(namespace, str) or not namespace or not namespace.isascii() or set(namespace) & set("{}% \r\n"):
        raise ConfigurationError(
            f"namespace={namespace!r} begins every key in Redis: ASCII without braces, '%' and spaces"
        )
    drain = seconds(drain_for, "drain_for")
    lease, silence, connecting = (
        seconds(lease_for, "lease_for"),
        seconds(timeout, "timeout"),
        seconds(connect_timeout, "connect_timeout"),
    )
    if min(lease, silence, connecting) <= 0:
        raise ConfigurationError(
            f"lease_for={lease_for!r}, timeout={timeout!r} and connect_timeout={connect_timeout!r} "
            f"must be more than 0 seconds"
        )
    if lease > _LONGEST_LEASE:
        raise ConfigurationError(
            f"lease_for={lease_for!r} is more than a day: a loader that dies would block its key for that"
        )
    key = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(key, bytes) or len(key) > 64:
        raise ConfigurationError("secret is not text or bytes, 64 bytes at most")
    return Settings(namespace, l1_max_bytes, lease, drain, silence, connecting, key)

"""The checked settings of a cache, and the settings from environment variables."""

import os
import re
from collections.abc import Mapping
from typing import Final, NamedTuple

from swr.errors import ConfigurationError
from swr.policy import Duration, seconds

# The longest lease, in seconds. swr takes a longer lease in Redis for foreign data, and overwrites it.
_LONGEST_LEASE: Final = 86_400.0
SCHEMES: Final = (
    "redis://",
    "rediss://",
    "unix://",
    "redis+sentinel://",
    "rediss+sentinel://",
    "redis+cluster://",
    "rediss+cluster://",
)
URL: Final = "SWR_REDIS_URL"
NAMESPACE: Final = "SWR_NAMESPACE"
ENABLED: Final = "SWR_ENABLED"
SECRET: Final = "SWR_SECRET"
KEYS: Final = "SWR_ENCRYPTION_KEYS"
REPORTS: Final = "SWR_REPORTS"
RELEASE: Final = "SWR_RELEASE"
PURGE_TOKEN: Final = "SWR_PURGE_TOKEN"
# Matches the places where a text is split. No user name or password extends across them, although a password may
# contain spaces and quotes.
_PART: Final = re.compile(r"(?=\n|[\s'\"]\w[\w+.-]*://)")
# The query of a Redis URL, which may also contain a password.
_QUERY: Final = re.compile(r"((?:rediss?|unix)(?:\+\w+)?://(?:(?!://)[^\s?])*\?)[^\s'\"]*")
_YES: Final = ("1", "true", "yes", "on")
_NO: Final = ("0", "false", "no", "off")


class Settings(NamedTuple):
    """Settings that all parts of a cache use.

    Parameters:
        namespace: the beginning of every key in Redis.
        l1_max_bytes: limit of the local cache, in bytes.
        lease_for: how long a lease lasts without a renewal before another process takes over, in seconds.
        drain_for: how long closing waits for loads that are under way, in seconds.
        timeout: how long Redis may stay silent before it counts as unreachable, in seconds.
        connect_timeout: how long connecting to Redis may take, in seconds.
        secret: the key with which secret values are hashed.
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
        ConfigurationError: a setting has a value that cannot work.
    """
    if not isinstance(l1_max_bytes, int) or isinstance(l1_max_bytes, bool) or l1_max_bytes < 0:
        raise ConfigurationError(f"l1_max_bytes={l1_max_bytes!r}: give a number of bytes, 0 or more")
    _check_namespace(namespace, "namespace")
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
            f"lease_for={lease_for!r} is more than a day: give less, because a loader that dies blocks its key so long"
        )
    key = secret.encode() if isinstance(secret, str) else secret
    if not isinstance(key, bytes) or len(key) > 64:
        raise ConfigurationError(
            "secret= must be text or bytes, 64 bytes at most: give get_secret_value() of a SecretStr"
        )
    return Settings(namespace, l1_max_bytes, lease, drain, silence, connecting, key)


def checked_reports(reports: object, release: object) -> tuple[bool, str]:
    """Return whether a cache reports to dashboards, and the release of the application.

    Raises:
        ConfigurationError: `reports` or `release` is of the wrong type.
    """
    if not isinstance(reports, bool):
        raise ConfigurationError(f"reports={reports!r}: give True or False")
    if not isinstance(release, str):
        raise ConfigurationError(
            f"release={release!r} is not text: give text that changes with each deploy, such as '2026-11-29'"
        )
    return reports, release


def _check_namespace(namespace: object, option: str) -> None:
    if not isinstance(namespace, str) or not namespace or not namespace.isascii() or set(namespace) & set("{}% \r\n"):
        raise ConfigurationError(
            f"{option}={namespace!r} cannot begin keys in Redis: give a word of ASCII without braces, '%' and spaces"
        )


class Environment:
    """The settings of a cache from environment variables; each is None if its variable is not set.

    Parameters:
        url: of `SWR_REDIS_URL`. It may contain a password, which `repr` leaves out.
        namespace: of `SWR_NAMESPACE`.
        enabled: of `SWR_ENABLED`.
        secret: of `SWR_SECRET`; `repr` leaves it out.
        keys: of `SWR_ENCRYPTION_KEYS`; `repr` leaves them out.
        reports: of `SWR_REPORTS`.
        release: of `SWR_RELEASE`.
    """

    __slots__ = ("enabled", "keys", "namespace", "release", "reports", "secret", "url")

    def __init__(
        self,
        url: str | None,
        namespace: str | None,
        enabled: bool | None,
        secret: str | None = None,
        keys: str | None = None,
        reports: bool | None = None,
        release: str | None = None,
    ) -> None:
        self.url = url
        self.namespace = namespace
        self.enabled = enabled
        self.secret = secret
        self.keys = keys
        self.reports = reports
        self.release = release

    def __repr__(self) -> str:
        url = None if self.url is None else redacted(self.url)
        return f"Environment(url={url}, namespace={self.namespace!r}, enabled={self.enabled!r})"


def read_environment(variables: Mapping[str, str] | None = None) -> Environment:
    """Return the settings from environment variables. An empty variable counts as not set.

    Parameters:
        variables: the variables by name; None: the environment of this process.

    Raises:
        ConfigurationError: the value of a variable cannot work; the message names the variable.
    """
    variables = os.environ if variables is None else variables
    url, namespace, secret, keys, release = (
        variables.get(name, "").strip() or None for name in (URL, NAMESPACE, SECRET, KEYS, RELEASE)
    )
    if url is not None and not url.startswith(SCHEMES):
        # Without a scheme, swr cannot tell which part is a password.
        shown = redacted(url) if "://" in url else "its value"
        raise ConfigurationError(f"{URL}: {shown} does not begin with {', '.join(SCHEMES)}")
    if namespace is not None:
        _check_namespace(namespace, NAMESPACE)
    return Environment(url, namespace, _switch(variables, ENABLED), secret, keys, _switch(variables, REPORTS), release)


def _switch(variables: Mapping[str, str], name: str) -> bool | None:
    """Return the value of a boolean variable, or None if it is not set."""
    text = variables.get(name, "").strip() or None
    if text is not None and text.lower() not in _YES + _NO:
        raise ConfigurationError(f"{name}={text!r}: give one of {', '.join(_YES + _NO)}")
    return None if text is None else text.lower() in _YES


def refusal_of(url: object) -> str:
    """Return why `url` cannot be the URL of Redis or Valkey, and what to give instead."""
    if not isinstance(url, str):
        kind = f"{type(url).__module__}.{type(url).__qualname__}"
        return (
            f"a {kind} is not a URL, which is text: give str(...) of a URL object, get_secret_value() of a SecretStr, "
            f"or a client as redis="
        )
    return f"{redacted(url)} does not begin with {', '.join(SCHEMES)}"


def redacted(url: object) -> str:
    """Return a URL without its passwords, for errors and logs."""
    scheme, slashes, rest = str(url).partition("://")
    if not slashes:
        scheme, rest = "", scheme
    location, mark, query = rest.partition("?")
    if "@" in query:
        # A password contains a question mark, or is in the query: swr cannot tell where it begins.
        return repr(f"{scheme}{slashes}…")
    _, at, host = location.rpartition("@")
    return repr(f"{scheme}{slashes}{'…@' if at else ''}{host}{mark and '?…'}")


def without_passwords(text: str) -> str:
    """Return `text` with the user and password of each URL left out, and the query of each Redis URL."""
    # Each part is searched only once, so the time grows in proportion to the length of the text.
    return _QUERY.sub(r"\1…", "".join(map(_without_account, _PART.split(text))))


def _without_account(part: str) -> str:
    """Return a part of a text without all that is between the beginning of its first URL and its last @."""
    scheme, _, rest = part.partition("://")
    _, at, host = rest.rpartition("@")
    return f"{scheme}://…@{host}" if at else part

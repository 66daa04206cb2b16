"""Texts that say why a server cannot be used, and what to do about it."""

import re
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    NoPermissionError,
    OutOfMemoryError,
    RedisError,
    ResponseError,
)

from swr.errors import ConfigurationError, StoreUnavailable

# The reason for the end of a connection if no other reason is known.
CLOSED: Final = "the server closed the connection"
# The oldest version of Redis with every command of the scripts.
_OLDEST: Final = (6, 2)
# redis-py's text -> swr's text for the same reason, so that the log does not report a change of the reason.
_SAID_OTHERWISE: Final = {"Connection closed by server.": CLOSED}
# Whether the user configured a single server, and which kind of server was found -> what to do.
_REMEDIES: Final = {
    (True, b"cluster"): "the server is a node of a cluster: give a URL redis+cluster://…",
    (True, b"sentinel"): "the server is a sentinel: give a URL redis+sentinel://…/name-of-the-master",
    (False, b"sentinel"): "the server is a sentinel and no node of a cluster: give a URL redis+sentinel://…",
}


def reason_of(error: BaseException) -> StoreUnavailable | ConfigurationError:
    """Return why there is no connection; of a group of errors, the first one counts."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (StoreUnavailable, ConfigurationError)):
        return error
    text = _SAID_OTHERWISE.get(str(error), str(error)) or type(error).__name__
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        # redis-py before 7 gives only the error number.
        text = f"{text.rstrip('.')}: {cause.strerror}"
    if isinstance(error, AuthenticationError):
        # redis-py cuts the error code off the text, and keeps it only from version 7 on.
        code = getattr(error, "status_code", None)
        return StoreUnavailable(f"the server refuses this user name or password: {f'{code} ' if code else ''}{text}")
    if isinstance(error, ResponseError) and "HELLO" in text:
        return StoreUnavailable(f"the server refuses HELLO ({text}): give the client protocol=2")
    if isinstance(error, ResponseError) and "cluster support disabled" in text:
        return StoreUnavailable(f"the server is not a node of a cluster ({text}): give a URL redis://…")
    return StoreUnavailable(with_remedy(text, error))


def check_kind(info: dict[bytes, bytes], *, is_single: bool) -> None:
    """Check that a server is of the right kind.

    Parameters:
        info: the fields of its INFO; empty if this user may not run INFO.
        is_single: whether the user configured a single server, not a cluster.

    Raises:
        StoreUnavailable: the server is of another kind.
    """
    kind = info.get(b"redis_mode", info.get(b"server_mode", b""))
    remedy = _REMEDIES.get((is_single, kind))
    if remedy is not None:
        raise StoreUnavailable(remedy)
    if info.get(b"role") == b"slave":
        raise StoreUnavailable("the server is a replica: give the URL of its master, or of the sentinels")
    version = re.match(rb"(\d+)\.(\d+)", info.get(b"redis_version", b""))
    if version is not None and (int(version[1]), int(version[2])) < _OLDEST:
        raise StoreUnavailable(f"Redis {version[0].decode()} is too old: swr needs 6.2 or newer, or Valkey")


def explain_redirect(error: AskError) -> str:
    """Return what to do about a redirect from a server that swr took for a single one."""
    return f"the server is a node of a cluster ({error}): give a URL redis+cluster://…"


def explain_refusal(error: RedisError) -> str:
    """Return what follows from a refused command and, if known, what to do about it."""
    text = f"Redis refused a command ({error}); swr serves what it cannot store from memory and from the loaders"
    return with_remedy(text, error)


def with_remedy(text: str, error: BaseException) -> str:
    """Return `text`, followed by what to do about a refused command if the kind of error says it."""
    if isinstance(error, OutOfMemoryError):
        return f"{text}: raise maxmemory, or set maxmemory-policy to volatile-lru"
    if isinstance(error, NoPermissionError):
        return f"{text}: give its user the rights that docs/redis.md lists"
    if str(error).startswith("WRONGTYPE"):
        return f"{text}: another program writes to these keys, so give swr a namespace of its own"
    return text

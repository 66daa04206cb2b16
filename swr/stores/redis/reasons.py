"""Why a server cannot be used, in words that say what to do about it."""

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

# Why a connection ended, if its end is all that is known.
CLOSED: Final = "the server closed the connection"
# The first server that has every command of the scripts.
_OLDEST: Final = (6, 2)
# redis-py's words -> swr's, so that the log does not take them for another reason.
_SAID_OTHERWISE: Final = {"Connection closed by server.": CLOSED}
# Whether one server is asked for, and which kind of server it is -> what to do.
_REMEDIES: Final = {
    (True, b"cluster"): "the server is a node of a cluster: give a URL redis+cluster://…",
    (True, b"sentinel"): "the server is a sentinel: give a URL redis+sentinel://…/name-of-the-master",
    (False, b"sentinel"): "the server is a sentinel and no node of a cluster: give a URL redis+sentinel://…",
}


def reason_of(error: BaseException) -> StoreUnavailable | ConfigurationError:
    """Return why there is no connection; of several errors the first."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, (StoreUnavailable, ConfigurationError)):
        return error
    text = _SAID_OTHERWISE.get(str(error), str(error)) or type(error).__name__
    cause = error.__cause__ or error.__context__
    if isinstance(cause, OSError) and cause.strerror and cause.strerror not in text:
        # redis-py before 7 names the number alone.
        text = f"{text.rstrip('.')}: {cause.strerror}"
    if isinstance(error, AuthenticationError):
        # redis-py takes the code for itself, and before 7 it keeps none.
        code = getattr(error, "status_code", None)
        return StoreUnavailable(f"the server refuses this user name or password: {f'{code} ' if code else ''}{text}")
    if isinstance(error, ResponseError) and "HELLO" in text:
        return StoreUnavailable(f"the server refuses HELLO ({text}): give the client protocol=2")
    if isinstance(error, ResponseError) and "cluster support disabled" in text:
        return StoreUnavailable(f"the server is not a node of a cluster ({text}): give a URL redis://…")
    return StoreUnavailable(with_remedy(text, error))


def check_kind(info: dict[bytes, bytes], *, is_single: bool) -> None:
    """Check by its INFO that a server is of the right kind; empty where this user may not ask.

    Raises:
        StoreUnavailable: it is not.
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
    """Return what to do about a redirect from a server that was taken for the only one."""
    return f"the server is a node of a cluster ({error}): give a URL redis+cluster://…"


def explain_refusal(error: RedisError) -> str:
    """Return what a refused command leads to and, where that is known, what to do about it."""
    text = f"Redis refused a command ({error}); swr serves what it cannot store from memory and from the loaders"
    return with_remedy(text, error)


def with_remedy(text: str, error: BaseException) -> str:
    """Return `text` and what to do about a refused command, where the kind of the error says it."""
    if isinstance(error, OutOfMemoryError):
        return f"{text}: raise maxmemory, or set maxmemory-policy to volatile-lru"
    if isinstance(error, NoPermissionError):
        return f"{text}: give its user the rights that docs/redis.md lists"
    if str(error).startswith("WRONGTYPE"):
        return f"{text}: another program writes to these keys, so give swr a namespace of its own"
    return text

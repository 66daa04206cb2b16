"""Makes exceptions of redis-py from the texts of error replies, in the same way for each of its releases."""

from collections.abc import Callable
from typing import Final

from redis.exceptions import (
    AskError,
    AuthenticationError,
    BusyLoadingError,
    ClusterDownError,
    ConnectionError,
    MasterDownError,
    MovedError,
    NoPermissionError,
    OutOfMemoryError,
    ReadOnlyError,
    RedisError,
    ResponseError,
    TryAgainError,
)

_KINDS: Final[dict[str, Callable[[str], RedisError]]] = {
    "ASK": AskError,
    "CLUSTERDOWN": ClusterDownError,
    "ERR": ResponseError,
    "LOADING": BusyLoadingError,
    "MASTERDOWN": MasterDownError,
    "MOVED": MovedError,
    "NOAUTH": AuthenticationError,
    "NOPERM": NoPermissionError,
    "OOM": OutOfMemoryError,
    "READONLY": ReadOnlyError,
    "TRYAGAIN": TryAgainError,
    "WRONGPASS": AuthenticationError,
}


def error_of(reply: str) -> RedisError:
    """Return the exception that an error reply stands for; its text has no code that redis-py has a class for.

    Raises:
        ValueError: a redirect to no address.
    """
    code, _, text = reply.partition(" ")
    if text == "max number of clients reached":
        return ConnectionError(text)
    kind = _KINDS.get(code)
    return ResponseError(reply) if kind is None else kind(text)

"""Makes exceptions of redis-py from the texts of error replies, in the same way for each of its releases."""

import re
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
# The prefix by which Redis 6.2 reports that a command of a script was refused. The error code, if any, follows it.
_IN_A_SCRIPT: Final = re.compile(
    r"(ERR Error running script \(call to \w+\): @user_script:\d+: )?(@user_script: \d+: -?)?"
)
# The suffix by which later servers name the script and the line of a refused command.
_WHERE: Final = re.compile(r"\.? script: (?:\w+, )?on @user_script:\d+\.?\Z")
# The texts by which Redis 6.2, and later servers, report without NOPERM that a script's user lacks a right.
_NEEDS_A_RIGHT: Final = ("The user executing the script can't ", "ERR ACL failure in script: ")


def error_of(reply: str) -> RedisError:
    """Return the exception for an error reply. If redis-py has a class for the error code, the text omits the code.

    Raises:
        ValueError: the reply is a redirect without an address.
    """
    reply = _WHERE.sub("", _IN_A_SCRIPT.sub("", reply, count=1).rstrip())
    if reply.startswith(_NEEDS_A_RIGHT):
        return NoPermissionError(reply.removeprefix("ERR "))
    code, _, text = reply.partition(" ")
    if text == "max number of clients reached":
        return ConnectionError(text)
    kind = _KINDS.get(code)
    return ResponseError(reply) if kind is None else kind(text)

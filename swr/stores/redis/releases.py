"""The differences between the releases of redis-py that swr supports."""

import asyncio
import inspect
from collections.abc import Callable, Collection
from typing import Any, Final, cast

from redis.asyncio.connection import AbstractConnection, ConnectionPool


def plain_options(known: Collection[str]) -> dict[str, Any]:
    """Return options for a connection that sends neither HELLO nor the name of the client library.

    Not every server knows HELLO, and each of the two would cost one more round trip.

    Parameters:
        known: the options that redis-py knows.
    """
    unnamed = ("driver_info",) if "driver_info" in known else ("lib_name", "lib_version")
    return {"protocol": 2, **dict.fromkeys(unnamed)}


def arguments_of(get_connection: Callable[..., Any]) -> tuple[str, ...]:
    """Return the arguments of a pool's `get_connection`: a name up to redis-py 5.2, and none from 5.3 on."""
    name = inspect.signature(get_connection).parameters.get("command_name")
    return () if name is None or name.default is not inspect.Parameter.empty else ("_",)


PLAIN: Final = plain_options(inspect.signature(AbstractConnection.__init__).parameters)
_ARGUMENTS: Final = arguments_of(ConnectionPool.get_connection)


async def connection_of(pool: Any) -> AbstractConnection:
    """Return a connection of a pool, connected and not used by any other code."""
    return cast(AbstractConnection, await pool.get_connection(*_ARGUMENTS))


def has_sentinels(pool: Any) -> bool:
    """Return whether a pool asks sentinels which server is the master."""
    return hasattr(pool, "sentinel_manager")


async def close_sentinels(pool: Any) -> None:
    """Close the clients of a pool's sentinels, if it has any."""
    if has_sentinels(pool):
        await asyncio.gather(*(sentinel.aclose() for sentinel in pool.sentinel_manager.sentinels))

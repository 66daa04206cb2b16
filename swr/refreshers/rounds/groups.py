"""Reads the groups of a refresher from the `keys` that a user gives."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

import anyio.lowlevel
import anyio.to_thread
import msgspec

from swr.errors import ConfigurationError, SWRError

T = TypeVar("T")
# Items between two yields to the event loop. A key takes some 20 microseconds, so the loop is blocked for about 4 ms.
_AT_ONCE: Final = 200

# A list of groups, or a function (`def` or `async def`) that returns or yields groups.
Keys = Iterable[Any] | Callable[..., Any]


def checked(keys: Keys, name: str = "keys") -> Keys:
    """Return `keys` unchanged.

    Raises:
        ConfigurationError: `keys` is neither a list nor a function, or can be iterated only once.
    """
    if isinstance(keys, (str, bytes)) or not (callable(keys) or isinstance(keys, Iterable)):
        raise ConfigurationError(f"{name}={keys!r}: give a list of groups, or a function that returns one")
    if isinstance(keys, (Iterator, AsyncIterator, Coroutine)):
        raise ConfigurationError(f"{name}={keys!r} would be used up by one round: give a list, or the function itself")
    return keys


async def groups_of(keys: Keys, *args: Any) -> list[tuple[Any, ...]]:
    """Return the arguments of every call. A plain `def` function runs in a thread.

    Raises:
        Exception: the function raised it.
        SWRError: a cancellation came from inside the function, so that it must not cancel the caller.
    """
    try:
        return await _groups_of(keys, *args)
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise SWRError("the function that lists the groups was cancelled from within") from error


async def _groups_of(keys: Keys, *args: Any) -> list[tuple[Any, ...]]:
    found: Any = keys
    if callable(keys):
        if inspect.isasyncgenfunction(keys) or inspect.iscoroutinefunction(keys):
            found = keys(*args)
        else:
            function = keys
            (found,) = await anyio.to_thread.run_sync(lambda: [_whole(function(*args))], abandon_on_cancel=True)
    if isinstance(found, Awaitable):
        found = await found
    if isinstance(found, (str, bytes)):
        raise ConfigurationError(f"the function keys= returned {found!r}, which is not a list of groups")
    listed = [item async for item in found] if isinstance(found, AsyncIterable) else list(found)
    return [item if isinstance(item, tuple) else (item,) for item in listed]


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items, and let other tasks of the event loop run after every 200 of them."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()


def _whole(found: Any) -> Any:
    """Return the groups as a list: a generator or a database's cursor must run in the thread of the function."""
    return found if isinstance(found, (str, bytes, Awaitable, AsyncIterable)) else list(found)


def travelling(key: str, args: tuple[Any, ...]) -> bytes:
    """Return arguments as JSON, as they are in the tasks of a queue.

    Raises:
        ConfigurationError: the arguments would not come back from JSON unchanged.
    """
    try:
        text = msgspec.json.encode(args)
        back = tuple(msgspec.json.decode(text))
    except (TypeError, msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise ConfigurationError(_cannot(key, args, str(error))) from None
    if repr(back) != repr(args):
        raise ConfigurationError(_cannot(key, args, f"it would come back as {back!r}"))
    return text


def _cannot(key: str, args: tuple[Any, ...], why: str) -> str:
    return (
        f"the group {args!r} of {key!r} cannot travel through a queue ({why}): name groups by strings, numbers and "
        f"booleans, an id for example"
    )

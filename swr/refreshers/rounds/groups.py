"""Which groups there are: what a user gives as `keys`."""

import asyncio
import inspect
from collections.abc import AsyncIterable, AsyncIterator, Awaitable, Callable, Coroutine, Iterable, Iterator
from typing import Any, Final, TypeVar

import anyio.lowlevel
import anyio.to_thread
import msgspec

from swr.errors import ConfigurationError, SWRError

T = TypeVar("T")
# A key costs some 20 microseconds. An app that shares its event loop with a refresher does not notice this many.
_AT_ONCE: Final = 200

# A list, or a function, `def` or `async def`, that returns or yields one.
Keys = Iterable[Any] | Callable[..., Any]


def checked(keys: Keys, name: str = "keys") -> Keys:
    """Return `keys`.

    Raises:
        ConfigurationError: they are neither a list nor a function.
    """
    if isinstance(keys, (str, bytes)) or not (callable(keys) or isinstance(keys, Iterable)):
        raise ConfigurationError(f"{name}={keys!r} is neither a list of groups nor a function that returns one")
    if isinstance(keys, (Iterator, AsyncIterator, Coroutine)):
        raise ConfigurationError(f"{name}={keys!r} would be used up by one round: give the function itself")
    return keys


async def groups_of(keys: Keys, *args: Any) -> list[tuple[Any, ...]]:
    """Return the arguments of every call; a plain function runs in a thread.

    Raises:
        Exception: whatever the function raised.
        SWRError: something inside it was cancelled, which ends nothing else.
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
        raise ConfigurationError(f"the function of the groups returned {found!r}, and not a list of groups")
    listed = [item async for item in found] if isinstance(found, AsyncIterable) else list(found)
    return [item if isinstance(item, tuple) else (item,) for item in listed]


async def in_turns(items: Iterable[T]) -> AsyncIterator[T]:
    """Yield items, and give everybody else on the event loop a turn between some hundred of them."""
    for number, item in enumerate(items, start=1):
        yield item
        if number % _AT_ONCE == 0:
            await anyio.lowlevel.checkpoint()


def _whole(found: Any) -> Any:
    return list(found) if inspect.isgenerator(found) else found


def travelling(key: str, args: tuple[Any, ...]) -> bytes:
    """Return arguments as they travel through a queue.

    Raises:
        ConfigurationError: they would not come back as they are.
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

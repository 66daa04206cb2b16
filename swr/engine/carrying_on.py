"""Steps that belong together: swr takes them all, even if the task is cancelled in between."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def insist(function: Callable[[], Awaitable[None]]) -> asyncio.CancelledError | None:
    """Await `function`, and again if a cancellation ends it; return the last cancellation, which the caller raises."""
    cancelled: asyncio.CancelledError | None = None
    while True:
        try:
            with anyio.CancelScope(shield=True):
                await function()
        except asyncio.CancelledError as error:
            # The shield does not stop `asyncio.timeout` and `Task.cancel`.
            cancelled = error
        else:
            return cancelled


async def carry_on(
    function: Callable[[T], Awaitable[None]],
    arguments: Iterable[T],
    ready: Callable[[], Awaitable[None]] | None = None,
) -> None:
    """Await `ready`, then `function` for each argument. A cancellation takes effect only after the last call.

    A cancelled caller has often already committed the change that its invalidations are about.
    """
    cancelled = None if ready is None else await insist(ready)
    with anyio.CancelScope(shield=True):
        for argument in arguments:
            try:
                await function(argument)
            except asyncio.CancelledError as error:
                cancelled = error
    if cancelled is not None:
        raise cancelled

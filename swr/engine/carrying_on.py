"""Steps that belong together, though the task that takes them is cancelled in between."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

import anyio

T = TypeVar("T")


async def carry_on(function: Callable[[T], Awaitable[None]], arguments: Iterable[T]) -> None:
    """Await `function` of each argument, even if the task is cancelled meanwhile: the last call comes before that.

    A caller that is cancelled has often committed already what its invalidations are about.
    """
    cancelled: asyncio.CancelledError | None = None
    with anyio.CancelScope(shield=True):
        for argument in arguments:
            try:
                await function(argument)
            except asyncio.CancelledError as error:
                # `asyncio.timeout` and `Task.cancel` reach behind the shield.
                cancelled = error
    if cancelled is not None:
        raise cancelled

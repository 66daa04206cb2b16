"""A time-out that is counted in this process's own turns, so that no server is late while the process itself sleeps."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

# A turn that comes late, because the machine is busy or the process was stopped, counts as one anyway.
_TURNS: Final = 30


@contextmanager
def patience(seconds: float, failure: str) -> Iterator[None]:
    """Cancel the block after some seconds.

    Parameters:
        seconds: how long the block may take.
        failure: what could not be done in that time, for the error.

    Raises:
        TimeoutError: the block took longer.
    """
    loop = asyncio.get_running_loop()
    timer: asyncio.TimerHandle

    def turn(left: int) -> None:
        nonlocal timer
        if left:
            timer = loop.call_later(seconds / _TURNS, turn, left - 1)
        else:
            scope.cancel()

    with anyio.CancelScope() as scope:
        turn(_TURNS)
        try:
            yield
        finally:
            timer.cancel()
    if scope.cancelled_caught:
        raise TimeoutError(f"{failure} within {seconds:g} s")

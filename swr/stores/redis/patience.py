"""A time-out that counts ticks of this process, so that a server is not late only because the process itself slept."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Final

import anyio

# Ticks in one time-out. A tick that comes late, because the machine is busy or the process was stopped, counts as one.
_TURNS: Final = 30


@contextmanager
def patience(seconds: float, failure: str) -> Iterator[None]:
    """Cancel the block after some seconds.

    Parameters:
        seconds: how long the block may take.
        failure: the beginning of the error's text, such as "no connection".

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

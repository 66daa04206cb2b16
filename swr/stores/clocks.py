"""The wall clock. swr looks up `time.time` at each reading, so that it sees the time that a test has frozen."""

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """An object with a function `time`, such as the module `time`."""

    def time(self) -> float:
        """Return seconds since 1970."""


class OwnClock:
    """A clock made of a user's function.

    Parameters:
        time: returns seconds since 1970.
    """

    __slots__ = ("time",)

    def __init__(self, time: Callable[[], float]) -> None:
        self.time = time


def clock_of(function: Callable[[], float] | None) -> Clock:
    """Return a clock that costs the fresh hit only one call.

    Parameters:
        function: the user's clock; None: this machine's. Then the module `time` is the clock, so that tests can
            replace its function to freeze time.
    """
    return time if function is None else OwnClock(function)


def wall_clock() -> float:
    """Return the time of this machine in seconds since 1970."""
    return time.time()

"""The wall clock. It is looked up at each reading, so that swr sees the time that a test has frozen."""

import time
from collections.abc import Callable
from typing import Protocol


class Clock(Protocol):
    """Something with a function `time`, such as the module `time`."""

    def time(self) -> float:
        """Return seconds since 1970."""


class OwnClock:
    """A clock that a user gave.

    Parameters:
        time: returns seconds since 1970.
    """

    __slots__ = ("time",)

    def __init__(self, time: Callable[[], float]) -> None:
        self.time = time


def clock_of(function: Callable[[], float] | None) -> Clock:
    """Return a clock that the fresh hit reads in one step; None: that of this machine.

    The module itself is the clock then. What freezes time replaces the function in the module.
    """
    return time if function is None else OwnClock(function)


def wall_clock() -> float:
    """Return the time of this machine."""
    return time.time()

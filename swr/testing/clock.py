"""A clock for tests."""

from typing import Final

from swr.policy import Duration
from swr.policy import seconds as seconds_of

START: Final = 1_700_000_000.0


class FakeClock:
    """A wall clock that stands still until it is moved.

    Parameters:
        now: seconds.
    """

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time."""
        return self.now

    def advance(self, seconds: Duration) -> None:
        """Move the clock by seconds, a timedelta or text such as "10m"; back, if the seconds are negative."""
        self.now += seconds if isinstance(seconds, (int, float)) else seconds_of(seconds, "seconds")

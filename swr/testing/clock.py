"""A clock for tests."""

from typing import Final

from swr.policy import Duration
from swr.policy import seconds as seconds_of

START: Final = 1_700_000_000.0


class FakeClock:
    """A wall clock that stands still until a test moves it.

    Parameters:
        now: the time at the start, in seconds since 1970.
    """

    def __init__(self, now: float = START) -> None:
        self.now = now

    def __call__(self) -> float:
        """Return the time, in seconds since 1970."""
        return self.now

    def advance(self, seconds: Duration) -> None:
        """Move the clock by seconds, a timedelta or text such as "10m". Negative seconds move it back."""
        self.now += seconds if isinstance(seconds, (int, float)) else seconds_of(seconds, "seconds")

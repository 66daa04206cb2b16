"""A clock for tests."""

from typing import Final

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

    def advance(self, seconds: float) -> None:
        """Move the clock; backwards too."""
        self.now += seconds

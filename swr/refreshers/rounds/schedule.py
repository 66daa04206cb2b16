"""The schedule of rounds, which begin at multiples of `every` by the server's clock, so that all workers agree."""

from typing import Final, NamedTuple

import anyio

from swr.engine.engine import Engine
from swr.errors import StoreUnavailable

MICROSECONDS: Final = 1_000_000
_AGAIN_IN: Final = 1.0


class Round(NamedTuple):
    """One round.

    Parameters:
        number: counts rounds since 1970.
        begins_at: its beginning, in microseconds since 1970, which is the unit of versions.
        missed: how many rounds directly before it this process has skipped.
        left: seconds that were left until the next round when `Rounds.next` returned this one.
    """

    number: int
    begins_at: int
    missed: int
    left: float


class Rounds:
    """The rounds of a refresher.

    Parameters:
        engine: has the store whose clock decides.
        every: seconds from the beginning of one round to the next.
    """

    def __init__(self, engine: Engine, every: float) -> None:
        self._engine = engine
        self._every = max(1, int(every * MICROSECONDS))
        self.last: int | None = None

    async def next(self) -> Round:
        """Wait for the next round and return it. The first call returns the current round at once."""
        while True:
            try:
                now = await self._engine.store.now()
            except StoreUnavailable:
                await anyio.sleep(_AGAIN_IN)
                continue
            number = now // self._every
            last, self.last = self.last, number
            if last is None or number > last:
                left = (number + 1) * self._every - now
                return Round(
                    number, number * self._every, 0 if last is None else number - last - 1, left / MICROSECONDS
                )
            # If the server's clock was set back, no round is repeated.
            self.last = last
            await anyio.sleep(min(max(1000, (last + 1) * self._every - now), self._every) / MICROSECONDS)

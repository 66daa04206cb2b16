"""The beginnings of rounds: multiples of `every`, by the clock of the server, which all workers share."""

from typing import Final, NamedTuple

import anyio

from swr.engine.engine import Engine
from swr.errors import StoreUnavailable

MICROSECONDS: Final = 1_000_000
_AGAIN_IN: Final = 1.0


class Round(NamedTuple):
    """One round.

    Parameters:
        number: which.
        begins_at: its beginning, in the unit of versions.
        missed: how many rounds before it no process has done; this one makes up for them.
        left: seconds until the next one, when this one was begun.
    """

    number: int
    begins_at: int
    missed: int
    left: float


class Rounds:
    """The rounds of a refresher.

    Parameters:
        engine: whose store's clock counts.
        every: seconds between two rounds.
    """

    def __init__(self, engine: Engine, every: float) -> None:
        self._engine = engine
        self._every = max(1, int(every * MICROSECONDS))
        self.last: int | None = None

    async def next(self) -> Round:
        """Wait for the next round and return it; at first, the one that is under way."""
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
            # A server's clock that went back does not begin a round again.
            self.last = last
            await anyio.sleep(min(max(1000, (last + 1) * self._every - now), self._every) / MICROSECONDS)

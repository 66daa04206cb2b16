"""Which shards of a queue a consumer looks at for tasks, and when."""

import heapq
import math
import random
from collections.abc import Callable
from typing import Final

# Seconds after which every shard is looked at without a message, because one may be lost.
_EVERY: Final = 5.0


class Looks:
    """The shards that one consumer looks at, and when.

    Parameters:
        shards: of the queue.
        clock: seconds.
    """

    def __init__(self, shards: range, clock: Callable[[], float]) -> None:
        self._shards = shards
        self._clock = clock
        self._due = set(shards)
        self._all_at = -math.inf
        # When shards are due, and which.
        self._later: list[tuple[float, int]] = []
        # Shards whose tasks this consumer was woken for, rather than another one.
        self._woken: set[int] = set()

    def due(self) -> list[int]:
        """Return the shards to look at now, in random order."""
        now = self._clock()
        if now >= self._all_at:
            self.wake_all()
        while self._later and self._later[0][0] <= now:
            self._due.add(heapq.heappop(self._later)[1])
        return random.sample(sorted(self._due), len(self._due))

    def next_in(self) -> float:
        """Return in how many seconds a shard is due that is not due now."""
        next_at = min(self._all_at, self._later[0][0] if self._later else math.inf)
        return max(0.0, next_at - self._clock())

    def wake(self, shard: int) -> None:
        """Look at a shard as soon as possible: this consumer is to take tasks of it."""
        self._due.add(shard)
        self._woken.add(shard)

    def wake_all(self) -> None:
        """Look at every shard as soon as possible."""
        self._due.update(self._shards)
        self._all_at = self._clock() + _EVERY

    def wake_in(self, shard: int, seconds: float) -> None:
        """Look at a shard in some seconds."""
        heapq.heappush(self._later, (self._clock() + seconds, shard))

    def begin(self, shard: int) -> None:
        """Note that this consumer looks at a shard now: only what it hears from now on makes it look again."""
        self._due.discard(shard)
        self._woken.discard(shard)

    def again(self, shard: int) -> None:
        """Look at a shard again: it may have more than could be taken, or no answer has come."""
        self._due.add(shard)

    def passed_on(self) -> list[int]:
        """Return the shards for which another consumer has to be woken, as this one has no place."""
        woken, self._woken = self._woken, set()
        return sorted(woken)

"""The schedule by which a consumer looks for tasks in the shards of a queue."""

import heapq
import math
import random
from collections.abc import Callable
from typing import Final

# Seconds after which a consumer looks at every shard even without a message, because messages can be lost.
_EVERY: Final = 5.0


class Looks:
    """The schedule by which one consumer looks at shards.

    Parameters:
        shards: the numbers of the queue's shards.
        clock: returns the time in seconds.
    """

    def __init__(self, shards: range, clock: Callable[[], float]) -> None:
        self._shards = shards
        self._clock = clock
        self._due = set(shards)
        self._all_at = -math.inf
        # A heap of pairs: when a shard is due, and its number.
        self._later: list[tuple[float, int]] = []
        # Shards for which a message has woken this consumer. If it has no free slots, it must wake another one.
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
        """Return the seconds until the next scheduled look."""
        next_at = min(self._all_at, self._later[0][0] if self._later else math.inf)
        return max(0.0, next_at - self._clock())

    def wake(self, shard: int) -> None:
        """Look at a shard as soon as possible, because a message has woken this consumer for tasks of the shard."""
        self._due.add(shard)
        self._woken.add(shard)

    def wake_all(self) -> None:
        """Look at every shard as soon as possible."""
        self._due.update(self._shards)
        self._all_at = self._clock() + _EVERY

    def wake_in(self, shard: int, seconds: float) -> None:
        """Look at a shard after `seconds`."""
        heapq.heappush(self._later, (self._clock() + seconds, shard))

    def begin(self, shard: int) -> None:
        """Note that the look at a shard begins now: messages up to now are done, later ones make it due again."""
        self._due.discard(shard)
        self._woken.discard(shard)

    def again(self, shard: int) -> None:
        """Look at a shard again, because it may have more tasks, or because the look failed."""
        self._due.add(shard)

    def passed_on(self) -> list[int]:
        """Return the shards for which another consumer must be woken, because this one has no free slots."""
        woken, self._woken = self._woken, set()
        return sorted(woken)

"""The choice of the entry that leaves a full local cache: S3-FIFO, with SIEVE in the place of its main queue.

A hit sets one flag, where LRU moves a node. What comes for the first time is in a small queue, and leaves it soon
unless it is used there: a crowd of keys that are asked for once takes no room from the others. An entry that was
used, or comes back soon after it went, is in the main queue. There a hand goes round from the oldest to the newest,
takes the flag from what was used since its last visit, and evicts what was not.

Sources: Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023; Zhang et al., SIEVE is simpler than
LRU, NSDI 2024.
"""

from array import array
from typing import Final, Generic, TypeVar, cast

# The small queue's share of the whole weight. A tenth, as in the paper, is worse for caches of few entries.
_SMALL: Final = 0.2
# Items that are looked at for one that goes: with a million that were all used, a look at each would take too long.
_MOST_VISITS: Final = 500


class Evictable:
    """A node that can be evicted.

    Attributes:
        key: under which it is held.
        weight: what it takes of the room.
        is_used: whether it was used since it came, or since the hand was there. Its user sets this.
        is_main: whether it is in the main queue.
    """

    __slots__ = ("is_main", "is_used", "key", "newer", "older", "weight")

    def __init__(self, key: str, weight: int) -> None:
        self.key = key
        self.weight = weight
        self.is_used = False
        self.is_main = False
        self.newer: Evictable = self
        self.older: Evictable = self


E = TypeVar("E", bound=Evictable)


class _Queue:
    """Items in the order in which they came, and a hand on one of them."""

    __slots__ = ("_end", "hand", "weight")

    def __init__(self) -> None:
        # Beyond the newest and before the oldest.
        self._end = self.hand = Evictable("", 0)
        self.weight = 0

    def add(self, item: Evictable) -> None:
        end = self._end
        item.newer, item.older = end, end.older
        end.older.newer = end.older = item
        self.weight += item.weight

    def remove(self, item: Evictable) -> None:
        if self.hand is item:
            self.hand = item.newer
        item.older.newer, item.newer.older = item.newer, item.older
        # A node that is gone must not keep its neighbours in memory.
        item.newer = item.older = item
        self.weight -= item.weight

    def oldest(self) -> Evictable:
        return self._end.newer

    def at_hand(self) -> Evictable:
        if self.hand is self._end:
            self.hand = self._end.newer
        return self.hand


class Eviction(Generic[E]):
    """The items in their two queues."""

    def __init__(self) -> None:
        self.clear()

    def clear(self) -> None:
        """Forget all items, and which were evicted."""
        self._small, self._main = _Queue(), _Queue()
        # By the lower bits of a key's hash, the upper bits of what went last from the small queue.
        self._gone = array("I")

    @property
    def weight(self) -> int:
        """Return the weight of all items."""
        return self._small.weight + self._main.weight

    def add(self, item: E, replaced: E | None = None) -> None:
        """Add an item as the newest.

        Parameters:
            replaced: what was held under its key until now, already removed; the new item takes its place.
        """
        if replaced is not None:
            item.is_main, item.is_used = replaced.is_main, replaced.is_used
        elif self._gone:
            place, mark = self._mark(item.key)
            if self._gone[place] == mark:
                item.is_main = True
                self._gone[place] = 0
        (self._main if item.is_main else self._small).add(item)

    def remove(self, item: E) -> None:
        """Remove an item."""
        (self._main if item.is_main else self._small).remove(item)

    def victim(self, held: int) -> E:
        """Return the item that should go next, not yet removed.

        Parameters:
            held: the number of items, at least one.
        """
        for _ in range(_MOST_VISITS):
            if self._small.weight > _SMALL * self.weight or not self._main.weight:
                item = self._small.oldest()
                if not item.is_used:
                    self._note(item.key, held)
                    return cast(E, item)
                self._small.remove(item)
                item.is_main, item.is_used = True, False
                self._main.add(item)
            else:
                item = self._main.at_hand()
                if not item.is_used:
                    break
                item.is_used = False
                self._main.hand = item.newer
        return cast(E, self._main.at_hand())

    def _note(self, key: str, held: int) -> None:
        """Remember an item that was evicted and never used."""
        if len(self._gone) < held:
            self._gone = array("I", bytes(4 << held.bit_length()))
        place, mark = self._mark(key)
        self._gone[place] = mark

    def _mark(self, key: str) -> tuple[int, int]:
        number = hash(key)
        return number & (len(self._gone) - 1), (number >> 32) & 0xFFFFFFFF

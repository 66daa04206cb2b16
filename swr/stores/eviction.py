"""Chooses the entry that a full local cache evicts, by S3-FIFO with SIEVE as its main queue.

A hit only sets a flag, whereas LRU moves a node. A new entry starts in the small queue, which evicts it soon unless it
is used there. So a burst of keys that are used once does not displace the others. Entries that were used, or that
return soon after their eviction, are in the main queue. There a hand moves from the oldest entry to the newest. It
clears the flag of an entry that was used since its last visit, and evicts an entry that was not.

Sources: Yang et al., FIFO queues are all you need for cache eviction, SOSP 2023; Zhang et al., SIEVE is simpler than
LRU, NSDI 2024.
"""

from array import array
from typing import Final, Generic, TypeVar, cast

# The small queue's share of the whole weight. A tenth, as in the paper, is worse for caches of few entries.
_SMALL: Final = 0.2
# Items visited at most for one eviction. If a million items were all used, visiting each of them would take too long.
_MOST_VISITS: Final = 500


class Evictable:
    """A node that can be evicted.

    Attributes:
        key: the key under which the cache holds it.
        weight: how much of the capacity it takes.
        is_used: whether it was used since it was added or since the hand last visited it. The code that serves it sets
            this.
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
    """Items in the order in which they were added, and a hand: the place at which the search for a victim goes on."""

    __slots__ = ("_end", "hand", "weight")

    def __init__(self) -> None:
        # The node between the newest item and the oldest, in a circular list.
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
        # A removed node must not keep its neighbours in memory.
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
        """Forget all items, and which keys were evicted."""
        self._small, self._main = _Queue(), _Queue()
        # The keys that the small queue evicted. The lower bits of a key's hash are the index, the upper bits the value.
        self._gone = array("I")

    @property
    def weight(self) -> int:
        """Return the weight of all items."""
        return self._small.weight + self._main.weight

    def add(self, item: E, replaced: E | None = None) -> None:
        """Add an item as the newest.

        Parameters:
            replaced: the item with this key until now, already removed; the new item takes over its queue and flag.
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
        """Return the item to evict next; the caller removes it.

        Parameters:
            held: the number of items in both queues, at least one.
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
        """Remember the key of an item that was evicted without being used."""
        if len(self._gone) < held:
            self._gone = array("I", bytes(4 << held.bit_length()))
        place, mark = self._mark(key)
        self._gone[place] = mark

    def _mark(self, key: str) -> tuple[int, int]:
        number = hash(key)
        return number & (len(self._gone) - 1), (number >> 32) & 0xFFFFFFFF

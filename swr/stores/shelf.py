"""The shelf: entries in this process's memory, least recently used last, bounded by bytes and by number.

The fresh hit reads it without a call that can be spared: it compares `Slot.checked` with `Shelf.generation`
and the clock with `Slot.fresh_until`. Whatever may make an entry wrong raises the generation, and every entry
is then looked at once more, when it is asked for.
"""

from typing import Any, Final

from cachetools import LRUCache

from swr.entry import Entry
from swr.weigh import weigh

# What a slot, its entry, its key and the two dictionaries they stand in weigh beside key text and value.
_OVERHEAD: Final = 900
UNCHECKED: Final = -1


class Slot:
    """An entry on the shelf, with what the fresh hit needs at hand.

    `ready` is for the face that serves it: what it has prepared, if anything.
    """

    __slots__ = ("checked", "entry", "epoch", "fresh_until", "ready", "stale_until", "superseded", "value", "weight")

    def __init__(self, entry: Entry[Any], epoch: int, weight: int) -> None:
        self.entry = entry
        self.value = entry.value
        self.fresh_until = entry.fresh_until
        self.stale_until = entry.stale_until
        self.checked = UNCHECKED
        self.epoch = epoch
        self.superseded = False
        self.ready: Any = None
        self.weight = weight


class Shelf:
    """Entries by key.

    Parameters:
        max_bytes: the most that keys and values may weigh, in bytes; 0 holds nothing.
        max_entries: the most entries.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self.slots: LRUCache[str, Slot] = LRUCache(max_bytes, getsizeof=_weight)
        self.generation = 0
        self._most = max_entries

    def get(self, key: str) -> Slot | None:
        """Return the slot of `key`, now the most recently used."""
        try:
            return self.slots[key]
        except KeyError:
            return None

    def put(self, key: str, entry: Entry[Any], epoch: int = 0) -> None:
        """Hold `entry`; one that is too large for the whole shelf is not held."""
        if not self.slots.maxsize:
            return
        slot = Slot(entry, epoch, _OVERHEAD + 2 * len(key) + weigh(entry.value))
        try:
            self.slots[key] = slot
        except ValueError:
            self.drop(key)
        if len(self.slots) > self._most:
            self.slots.popitem()

    def drop(self, key: str) -> None:
        """Forget `key`."""
        self.slots.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.slots.clear()

    def doubt(self) -> None:
        """Have every entry looked at again before it is served."""
        self.generation += 1


def _weight(slot: Slot) -> int:
    return slot.weight

"""The shelf: entries in this process's memory, least recently used last, bounded by bytes and by number.

The fresh hit reads it without a call that can be spared: it compares `Slot.checked` with `Shelf.generation`
and the clock with `Slot.fresh_until`. Whatever may make an entry wrong raises the generation, and every entry
is then looked at once more, when it is asked for.
"""

import contextlib
from collections.abc import Hashable
from typing import Any, Final

from cachetools import LRUCache

from swr.entry import Entry
from swr.weigh import weigh

# What a slot, its entry, its key and the two dictionaries they stand in weigh beside key text and value.
_OVERHEAD: Final = 900
UNCHECKED: Final = -1


class Slot:
    """An entry on the shelf, with what the fresh hit needs at hand.

    `ready` and `ready_until` are for the face that serves it: what it has prepared, and until when that will do.
    """

    __slots__ = (
        "alias",
        "checked",
        "entry",
        "epoch",
        "fresh_until",
        "ready",
        "ready_until",
        "stale_until",
        "superseded",
        "value",
        "weight",
    )

    def __init__(self, entry: Entry[Any], epoch: int, weight: int) -> None:
        self.entry = entry
        self.value = entry.value
        self.fresh_until = entry.fresh_until
        self.stale_until = entry.stale_until
        self.checked = UNCHECKED
        self.epoch = epoch
        self.superseded = False
        self.alias: Hashable = None
        self.ready: Any = None
        self.ready_until = 0.0
        self.weight = weight


class _Slots(LRUCache[str, Slot]):
    """Slots by key, least recently used first to go; what goes loses its alias."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=_weight)
        self.aliases: dict[Hashable, Slot] = {}

    def __delitem__(self, key: str) -> None:
        slot = self[key]
        if slot.alias is not None:
            del self.aliases[slot.alias]
        super().__delitem__(key)

    def clear(self) -> None:
        super().clear()
        self.aliases.clear()


class Shelf:
    """Entries by key.

    Parameters:
        max_bytes: the most that keys and values may weigh, in bytes; 0 holds nothing.
        max_entries: the most entries.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self.slots = _Slots(max_bytes)
        self.aliases = self.slots.aliases
        self.generation = 0
        self._holds = max_bytes > 0
        self._most = max_entries

    def get(self, key: str) -> Slot | None:
        """Return the slot of `key`, now the most recently used."""
        return self.slots.get(key) if self._holds else None

    def put(self, key: str, entry: Entry[Any], epoch: int = 0) -> None:
        """Hold `entry`; one that is too large for the whole shelf is not held."""
        if not self._holds:
            return
        self.drop(key)
        slot = Slot(entry, epoch, _OVERHEAD + 3 * len(key) + weigh(entry.value))
        with contextlib.suppress(ValueError):
            self.slots[key] = slot
        if len(self.slots) > self._most:
            self.slots.popitem()

    def alias(self, slot: Slot, alias: Hashable) -> None:
        """Have `aliases` lead to `slot`, as long as it is held.

        Looking there does not make it recently used; whoever does looks by its key, too, once in a while.
        """
        if slot.alias is None:
            slot.alias = alias
            self.aliases[alias] = slot

    def drop(self, key: str) -> None:
        """Forget `key`."""
        if self._holds:
            self.slots.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.slots.clear()

    def doubt(self) -> None:
        """Have every entry looked at again before it is served."""
        self.generation += 1


def _weight(slot: Slot) -> int:
    return slot.weight

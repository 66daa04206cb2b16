"""The local cache (L1): entries in this process's memory, bounded by bytes and by number.

The fresh hit reads it with as few calls as possible: it compares `Slot.checked` with `LocalCache.generation` and the
clock with `Slot.fresh_until`. Whatever may make an entry wrong raises the generation; every entry is then checked
again when it is next asked for.
"""

import contextlib
from collections.abc import Hashable
from typing import Any, Final

from cachetools import LRUCache

from swr.entry import Entry
from swr.stores.memory_size import memory_size

# Bytes that a slot, its entry, its key and two dictionary items take beside the text of the key and the value.
_OVERHEAD: Final = 900
UNCHECKED: Final = -1


class Slot:
    """An entry in the local cache, with what the fresh hit needs at hand.

    `ready` and `ready_until` belong to the decorator or middleware that serves it: what it has prepared, and until when
    that may be used.
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


class LocalCache:
    """Entries by key.

    Parameters:
        max_bytes: most memory that keys and values may take, in bytes; 0 holds nothing.
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
        """Hold `entry`, unless it is too large for the whole cache."""
        if not self._holds:
            return
        self.drop(key)
        slot = Slot(entry, epoch, _OVERHEAD + 3 * len(key) + memory_size(entry.value))
        with contextlib.suppress(ValueError):
            self.slots[key] = slot
        if len(self.slots) > self._most:
            self.slots.popitem()

    def alias(self, slot: Slot, alias: Hashable) -> None:
        """Have `aliases` lead to `slot`, as long as it is held.

        Looking there does not make it recently used; so look by its key, too, once in a while.
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

    def recheck_all(self) -> None:
        """Have every entry checked again before it is served."""
        self.generation += 1


def _weight(slot: Slot) -> int:
    return slot.weight

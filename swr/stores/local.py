"""The local cache (L1): entries in this process's memory, bounded by bytes and by number.

The fresh hit reads it with as few calls as possible: it compares `Slot.checked` with `LocalCache.generation` and the
clock with `Slot.fresh_until`. Whatever may make an entry wrong raises the generation; every entry is then checked
again when it is next asked for.
"""

from collections.abc import Callable, Hashable
from typing import Any, Final

from cachetools import LRUCache

from swr.entry import Entry
from swr.stores.base import Start
from swr.stores.memory_size import measure, memory_size
from swr.stores.tag_versions import ALL
from swr.stores.threads import in_thread

# Bytes that a slot, its entry, its key and two dictionary items take beside the text of the key and the value.
_OVERHEAD: Final = 900
# Objects of a value that are measured at once: some milliseconds. A thread measures larger values afterwards.
_MEASURED_AT_ONCE: Final = 10_000
UNCHECKED: Final = -1


class Slot:
    """An entry in the local cache, with what the fresh hit needs at hand.

    `replaced` belongs to the store in front of which the cache lies. `ready` and `ready_until` belong to the decorator
    or middleware that serves it: what it has prepared, and until when that may be used.
    """

    __slots__ = (
        "alias",
        "aliases",
        "checked",
        "entry",
        "epoch",
        "fingerprint",
        "fresh_until",
        "ready",
        "ready_until",
        "replaced",
        "stale_until",
        "superseded",
        "value",
        "weight",
    )

    def __init__(self, entry: Entry[Any], epoch: int, weight: int, fingerprint: str) -> None:
        self.entry = entry
        self.fingerprint = fingerprint
        self.value = entry.value
        self.fresh_until = entry.fresh_until
        self.stale_until = entry.stale_until
        self.checked = UNCHECKED
        self.epoch = epoch
        self.superseded = False
        self.replaced: object = None
        self.alias: Hashable = None
        self.aliases: dict[Hashable, Slot] | None = None
        self.ready: Any = None
        self.ready_until = 0.0
        self.weight = weight

    def weighing(self, weight: int) -> "Slot":
        """Return a slot for the same entry, in the same state, of another weight."""
        slot = Slot(self.entry, self.epoch, weight, self.fingerprint)
        slot.checked, slot.superseded, slot.replaced = self.checked, self.superseded, self.replaced
        return slot


class _Slots(LRUCache[str, Slot]):
    """Slots by key, least recently used first to go; what goes loses its alias."""

    def __init__(self, max_bytes: int) -> None:
        super().__init__(max_bytes, getsizeof=_weight)
        self.aliases: dict[str, dict[Hashable, Slot]] = {}
        # How many slots carry each tag.
        self.tags: dict[str, int] = {}

    def __setitem__(self, key: str, slot: Slot) -> None:
        super().__setitem__(key, slot)
        for tag in slot.entry.tags:
            self.tags[tag] = self.tags.get(tag, 0) + 1

    def __delitem__(self, key: str) -> None:
        slot = self[key]
        for tag in slot.entry.tags:
            left = self.tags.pop(tag) - 1
            if left:
                self.tags[tag] = left
        if slot.aliases is not None:
            del slot.aliases[slot.alias]
        super().__delitem__(key)

    def clear(self) -> None:
        super().clear()
        self.tags.clear()
        for aliases in self.aliases.values():
            aliases.clear()


class LocalCache:
    """Entries by key.

    Parameters:
        max_bytes: most memory that keys and values may take, in bytes; 0 holds nothing.
        max_entries: the most entries.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self.slots = _Slots(max_bytes)
        self.generation = 0
        # Starts a task of the cache, while that is open.
        self.start: Start | None = None
        # Called with the key of a value that is too large.
        self.on_refused: Callable[[str], None] = _ignore
        self._holds = max_bytes > 0
        self._most = max_entries

    def get(self, key: str) -> Slot | None:
        """Return the slot of `key`, now the most recently used."""
        return self.slots.get(key) if self._holds else None

    def put(self, key: str, entry: Entry[Any], epoch: int = 0, fingerprint: str = "", replaced: object = None) -> None:
        """Hold `entry`, unless it is too large for the whole cache; the fingerprint is that of its value's type."""
        if not self._holds:
            self.on_refused(key)
            return
        self.drop(key)
        size, is_whole = measure(entry.value, _MEASURED_AT_ONCE)
        slot = Slot(entry, epoch, _overhead(key) + size, fingerprint)
        slot.replaced = replaced
        self._insert(key, slot)
        if len(self.slots) > self._most:
            self.slots.popitem()
        if not is_whole and self.start is not None and key in self.slots:
            self.start(self._weigh, key, slot)

    def _insert(self, key: str, slot: Slot) -> None:
        try:
            self.slots[key] = slot
        except ValueError:
            self.on_refused(key)

    async def _weigh(self, key: str, slot: Slot) -> None:
        """Measure a large value in a thread, and hold it with its true weight."""
        size = await in_thread(memory_size, slot.value)
        if self.slots.get(key) is slot:
            self.drop(key)
            self._insert(key, slot.weighing(_overhead(key) + size))

    def aliases_of(self, version: str) -> dict[Hashable, Slot]:
        """Return the slots by alias, of one version of an app."""
        return self.slots.aliases.setdefault(version, {})

    def alias(self, slot: Slot, alias: Hashable, aliases: dict[Hashable, Slot]) -> None:
        """Have an alias lead to `slot`, as long as it is held, unless it has one already.

        Looking there does not make it recently used; so look by its key, too, once in a while.
        """
        if slot.aliases is None:
            slot.alias = alias
            slot.aliases = aliases
            aliases[alias] = slot

    def drop(self, key: str) -> None:
        """Forget `key`."""
        if self._holds:
            self.slots.pop(key, None)

    def clear(self) -> None:
        """Forget everything."""
        self.slots.clear()

    def recheck_tag(self, tag: str) -> None:
        """Have every entry checked again before it is served, if any has the tag; ALL concerns every entry."""
        if tag == ALL or tag in self.slots.tags:
            self.recheck_all()

    def recheck_all(self) -> None:
        """Have every entry checked again before it is served."""
        self.generation += 1


def _weight(slot: Slot) -> int:
    return slot.weight


def _overhead(key: str) -> int:
    return _OVERHEAD + 3 * len(key)


def _ignore(key: str) -> None:
    """Do nothing: what is too large for this cache is stored elsewhere."""

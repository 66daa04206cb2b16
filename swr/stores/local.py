"""The local cache (L1): entries in this process's memory, bounded by bytes and by number.

The fresh hit reads it with as few calls as possible: it compares the clock with `Slot.fresh_until` and with the end of
`Slot.trust`, which the entries share that were checked since the last doubt. Whatever may make an entry wrong ends that
trust; every entry is then checked again when it is next asked for.
"""

import math
from collections.abc import Callable, Hashable
from typing import Any, Final

import anyio
import anyio.lowlevel
from cachetools import LRUCache

from swr.entry import Entry, marked_stale
from swr.stores.base import Start
from swr.stores.clocks import Clock, clock_of
from swr.stores.memory_size import measure, memory_size
from swr.stores.tag_versions import ALL, Name, OfKey, Raised, Soft
from swr.stores.threads import in_thread

# Bytes that a slot, its entry, its key and two dictionary items take beside the text of the key and the value.
_OVERHEAD: Final = 900
# Objects of a value that are measured at once: some milliseconds. A thread measures larger values afterwards.
_MEASURED_AT_ONCE: Final = 10_000
# Entries that are freed at once, and tags that are remembered as forgotten.
_FREED_AT_ONCE: Final = 1000
_MOST_FORGOTTEN: Final = 10_000


class Trust:
    """Until when, by the wall clock, entries may be served that were checked while this was `LocalCache.trust`."""

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


UNTRUSTED: Final = Trust(-math.inf)

# What an entry stands in the place of: which servers had it, its version, and when it was marked.
Replaced = tuple[str, int, int]


class Slot:
    """An entry in the local cache, with what the fresh hit needs at hand.

    `replaced` belongs to the store in front of which the cache lies. `ready` and `ready_until` belong to the decorator
    or middleware that serves it: what it has prepared, and until when that may be used.
    """

    __slots__ = (
        "alias",
        "aliases",
        "entry",
        "epoch",
        "fingerprint",
        "fresh_until",
        "number",
        "ready",
        "ready_until",
        "replaced",
        "stale_until",
        "superseded",
        "trust",
        "value",
        "weight",
    )

    def __init__(self, entry: Entry[Any], epoch: int, weight: int, fingerprint: str, number: int) -> None:
        self.entry = entry
        # Of those that came later it is greater.
        self.number = number
        self.fingerprint = fingerprint
        self.value = entry.value
        # Whatever a clock says.
        self.fresh_until = 0.0 if entry.is_marked else entry.fresh_until
        self.stale_until = entry.stale_until
        self.trust = UNTRUSTED
        self.epoch = epoch
        self.superseded = False
        self.replaced: Replaced | None = None
        self.alias: Hashable = None
        self.aliases: dict[Hashable, Slot] | None = None
        self.ready: Any = None
        self.ready_until = 0.0
        self.weight = weight

    def mark_stale(self, version: int) -> None:
        """Have the entry not be fresh any more; 0: it was not marked."""
        if version > self.entry.marked_at:
            self.entry = entry = marked_stale(self.entry, version)
            self.fresh_until, self.stale_until = 0.0, entry.stale_until
            self.ready, self.ready_until = None, 0.0

    def weighing(self, weight: int) -> "Slot":
        """Return a slot for the same entry, in the same state, of another weight."""
        slot = Slot(self.entry, self.epoch, weight, self.fingerprint, self.number)
        slot.trust, slot.superseded, slot.replaced = self.trust, self.superseded, self.replaced
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

    def resize(self, max_bytes: int) -> None:
        """Forget everything, and hold so many bytes from now on."""
        self.clear()
        super().__init__(max_bytes, getsizeof=_weight)

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

    Attributes:
        clock: what the short way to a fresh hit compares deadlines with; `swr.engine.switch` sets it.
        trust: that of the entries that are checked from now on. What lies in front of a shared store ends and prolongs
            it as notifications require.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self.slots = _Slots(max_bytes)
        self.clock: Clock = clock_of(None)
        self.trust = Trust(math.inf)
        # Starts a task of the cache, while that is open.
        self.start: Start | None = None
        # Called with the key of a value that is too large.
        self.on_refused: Callable[[str], None] = _ignore
        self._holds = max_bytes > 0
        self._most = max_entries
        # The number of the last slot; and up to which number slots may be forgotten or marked, and are.
        self._numbers = 0
        self._suspect = 0
        self._forgotten, self._marked = Raised(), Raised()
        # The version at which slots were marked last.
        self._marked_at = 0

    def configure(self, max_bytes: int) -> None:
        """Forget everything, and hold so many bytes from now on."""
        self.slots.resize(max_bytes)
        self.start = None
        self.on_refused = _ignore
        self._holds = max_bytes > 0

    def get(self, key: str) -> Slot | None:
        """Return the slot of `key`, now the most recently used."""
        slot = self.slots.get(key) if self._holds else None
        if slot is not None and slot.number <= self._suspect:
            tags, loader = slot.entry.tags, slot.entry.loader
            if slot.number <= self._forgotten.of(tags, loader):
                self.drop(key)
                return None
            if slot.number <= self._marked.of(tags, loader):
                slot.mark_stale(self._marked_at)
        return slot

    def put(
        self, key: str, entry: Entry[Any], epoch: int = 0, fingerprint: str = "", replaced: Replaced | None = None
    ) -> None:
        """Hold `entry`, unless it is too large for the whole cache; the fingerprint is that of its value's type."""
        if not self._holds:
            self.on_refused(key)
            return
        self.drop(key)
        size, is_whole = measure(entry.value, _MEASURED_AT_ONCE)
        self._numbers += 1
        slot = Slot(entry, epoch, _overhead(key) + size, fingerprint, self._numbers)
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
        """Forget everything; many entries are freed in turns of the event loop."""
        self._suspect = self._numbers
        self._forgotten, self._marked = Raised(), Raised()
        self._forgotten.all = self._numbers
        self.recheck_all()
        if self.start is None or len(self.slots) <= _FREED_AT_ONCE:
            self.slots.clear()
        else:
            self.start(self._free, list(self.slots))

    async def _free(self, keys: list[str]) -> None:
        for first in range(0, len(keys), _FREED_AT_ONCE):
            for key in keys[first : first + _FREED_AT_ONCE]:
                self.get(key)
            await anyio.lowlevel.checkpoint()

    def forget(self, name: Name, version: int) -> None:
        """Forget or mark every entry that is concerned. It costs the same however many there are.

        Parameters:
            name: what was invalidated or marked.
            version: a version that is not older than now.
        """
        raised = self._marked if isinstance(name, Soft) else self._forgotten
        of = name.of if isinstance(name, Soft) else name
        if isinstance(of, OfKey):
            slot = self.get(of.key)
            if slot is not None:
                slot.mark_stale(version)
        elif name == ALL or len(raised.tags) >= _MOST_FORGOTTEN:
            self.clear()
        elif not isinstance(of, str) or of == ALL or of in self.slots.tags:
            raised.raise_to(of, self._numbers, 0)
            self._suspect = self._numbers
            if raised is self._marked:
                self._marked_at = version
            self.recheck_all()

    def recheck_tag(self, name: Name) -> None:
        """Have every entry checked again before it is served, unless none has the tag that it is the name of."""
        of = name.of if isinstance(name, Soft) else name
        if of == ALL or not isinstance(of, str) or of in self.slots.tags:
            self.recheck_all()

    def recheck_all(self) -> None:
        """Have every entry checked again before it is served."""
        trust, self.trust = self.trust, Trust(self.trust.until)
        trust.until = -math.inf


def _weight(slot: Slot) -> int:
    return slot.weight


def _overhead(key: str) -> int:
    return _OVERHEAD + 3 * len(key)


def _ignore(key: str) -> None:
    """Do nothing: what is too large for this cache is stored elsewhere."""

"""The local cache (L1): entries in this process's memory, bounded by bytes and by number.

A fresh hit makes as few calls as possible. It compares the clock with `Slot.fresh_until` and with the end of
`Slot.trust`. Entries share one `Trust` if they were checked since it began. Any event that may make an entry wrong ends
that trust; every entry is then checked again at its next use.
"""

import functools
import math
from collections.abc import Callable, Hashable
from typing import Any, Final, NamedTuple, TypeVar

import anyio
import anyio.lowlevel

from swr.entry import Entry, marked_stale
from swr.stats.counts import Counts, Reads, Tally
from swr.stores.base import Start
from swr.stores.clocks import Clock, clock_of
from swr.stores.eviction import Evictable, Eviction
from swr.stores.memory_size import measure, memory_size
from swr.stores.tag_versions import ALL, Name, OfKey, Raised, Soft
from swr.stores.threads import in_thread

# Bytes of a slot with its entry, key, alias and dictionary items, without the value and the texts of key and alias.
_OVERHEAD: Final = 640
# Weights are rounded up to multiples of this, in bytes.
_WEIGHED_IN: Final = 64
# How many weights, and how many origins, are remembered so that slots with equal ones share one object.
_MOST_SHARED: Final = 4096
# The most objects of a value that the event loop measures: some milliseconds. A thread measures larger values later.
_MEASURED_AT_ONCE: Final = 10_000
# Entries that are freed in one turn of the event loop.
_FREED_AT_ONCE: Final = 1000
# The most tags that are remembered as invalidated, or as marked. For one more, the cache drops all entries.
_MOST_FORGOTTEN: Final = 10_000


class Trust:
    """A period in which checked entries are trusted, shared by all entries that were checked in it.

    Attributes:
        until: the wall-clock time until which these entries may be served.
    """

    __slots__ = ("until",)

    def __init__(self, until: float) -> None:
        self.until = until


H = TypeVar("H", bound=Hashable)

UNTRUSTED: Final = Trust(-math.inf)
_SUPERSEDED: Final = Trust(-math.inf)

# The store's entry that a local entry has replaced, although the store did not take the local one: the servers, the
# version and the mark of the store's entry.
Replaced = tuple[str, int, int]


class Origin(NamedTuple):
    """The origin of an entry in the local cache. Most entries of a loader share one object.

    Parameters:
        tally: the counters of its loader or route.
        fingerprint: the fingerprint of its value's type.
        epoch, replaced: notes of `TieredStore`, which the local cache does not read.
        number: a number that grows at each invalidation or mark, so that entries from before can be told apart.
    """

    tally: Tally
    fingerprint: str
    epoch: int
    replaced: Replaced | None
    number: int


class Slot(Evictable):
    """An entry in the local cache with everything that a fresh hit reads, in as few bytes as possible.

    Attributes:
        fresh_until: the time until which the short path for fresh hits is open: the entry's deadline, or that of the
            response that the middleware has prepared.
        ready: the response that the middleware has prepared, or None.
        hits: the counter of fresh hits.
        types: the types of the arguments in the alias, if not all are strings.
    """

    __slots__ = ("alias", "aliases", "entry", "fresh_until", "hits", "origin", "ready", "trust", "types", "value")

    def __init__(self, key: str, entry: Entry[Any], weight: int, origin: Origin) -> None:
        super().__init__(key, weight)
        self.entry = entry
        self.origin = origin
        self.hits = origin.tally.fresh
        self.value = entry.value
        # A marked entry is not fresh, whatever the clock says.
        self.fresh_until = 0.0 if entry.is_marked else entry.fresh_until
        self.trust = UNTRUSTED
        self.alias: Hashable = None
        self.aliases: dict[Any, Slot] | None = None
        self.types: tuple[type, ...] = ()
        self.ready: Any = None

    def mark_stale(self, version: int) -> None:
        """Mark the entry as stale, unless it was marked at this version or later; 0 marks nothing."""
        if version > self.entry.marked_at:
            self.entry = marked_stale(self.entry, version)
            self.fresh_until, self.ready = 0.0, None

    def supersede(self) -> None:
        """End the trust of this entry, so that it is compared with the store before it is served as fresh."""
        self.trust = _SUPERSEDED

    @property
    def is_superseded(self) -> bool:
        """Return whether the store has a newer entry."""
        return self.trust is _SUPERSEDED

    def weighing(self, weight: int) -> "Slot":
        """Return a slot for the same entry, with the same trust and another weight."""
        slot = Slot(self.key, self.entry, weight, self.origin)
        slot.trust = self.trust
        return slot


class NoSlot:
    """A slot for a key that is not held. It is never fresh, so the other attributes are never read."""

    __slots__ = ("key",)

    fresh_until: Final = -math.inf
    trust: Final = UNTRUSTED
    value: Any
    is_used: bool
    hits: Reads

    def __init__(self, key: str) -> None:
        self.key = key


class Slots(dict[str, Slot]):
    """Slots by key; only `put`, `drop` and `clear` change them. A removed slot loses its alias.

    Attributes:
        maxsize: the most bytes.
        eviction: chooses the slot to evict if there is no room.
        tags: how many slots carry each tag.
    """

    def __init__(self, maxsize: int, counts: Counts) -> None:
        super().__init__()
        self.maxsize = maxsize
        self._counts = counts
        self.eviction: Eviction[Slot] = Eviction()
        # For each owner (see `LocalCache.aliases_of`), its slots by alias.
        self.aliases: dict[Hashable, dict[Any, Slot]] = {}
        self.tags: dict[str, int] = {}

    @property
    def currsize(self) -> int:
        """Return the bytes that all slots take."""
        return self.eviction.weight

    def put(self, slot: Slot, most: int) -> bool:
        """Hold a slot and replace the one with its key; return False if it is larger than the whole cache.

        Parameters:
            most: the most slots.
        """
        replaced = self.drop(slot.key)
        if slot.weight > self.maxsize:
            return False
        while self and (self.eviction.weight + slot.weight > self.maxsize or len(self) >= most):
            self._counts.evictions += 1
            self.drop(self.eviction.victim(len(self)).key)
        self[slot.key] = slot
        self.eviction.add(slot, replaced)
        slot.origin.tally.bytes += slot.weight
        for tag in slot.entry.tags:
            self.tags[tag] = self.tags.get(tag, 0) + 1
        return True

    def drop(self, key: str) -> Slot | None:
        """Remove and return the slot of `key`, or return None."""
        slot = self.pop(key, None)
        if slot is not None:
            self.eviction.remove(slot)
            slot.origin.tally.bytes -= slot.weight
            for tag in slot.entry.tags:
                left = self.tags.pop(tag) - 1
                if left:
                    self.tags[tag] = left
            if slot.aliases is not None:
                del slot.aliases[slot.alias]
        return slot

    def clear(self) -> None:
        """Remove all slots."""
        super().clear()
        self.eviction.clear()
        self._counts.forget_bytes()
        self.tags.clear()
        for aliases in self.aliases.values():
            aliases.clear()


class LocalCache:
    """The entries of one process by key.

    Parameters:
        max_bytes: most memory that keys and values may take, in bytes; with 0 the cache holds nothing.
        max_entries: the most entries.

    Attributes:
        clock: the clock that the short path for fresh hits compares with deadlines; `swr.engine.switch` sets it.
        short_clock: the same for the decorator, whose short path checks nothing else. While subscribers want events of
            hits, this clock is past every deadline.
        counts: the counters of the cache.
        trust: the current period of trust, for the entries that are checked in it. In front of a shared store,
            notifications end and prolong it.
    """

    def __init__(self, max_bytes: int, max_entries: int) -> None:
        self.counts = Counts()
        self.slots = Slots(max_bytes, self.counts)
        self.clock: Clock = clock_of(None)
        self.short_clock: Clock = self.clock
        self.trust = Trust(math.inf)
        # Starts a task of the cache; None while the cache is not open.
        self.start: Start | None = None
        # Called with the key of a value that is too large.
        self.on_refused: Callable[[str], None] = _ignore
        self._holds = max_bytes > 0
        self._most = max_entries
        # The number that new slots get.
        self._number = 1
        # Slots up to this number may be invalidated or marked.
        self._suspect = 0
        # For each tag, for each loader and for all: the number up to which slots are invalidated, and that up to which
        # they are marked.
        self._forgotten, self._marked = Raised(), Raised()
        # The version at which slots were marked last.
        self._marked_at = 0
        # Returns one object for equal origins.
        self._shared_origin = functools.lru_cache(maxsize=_MOST_SHARED)(_same)

    def configure(self, max_bytes: int) -> None:
        """Forget all entries, and hold at most this many bytes from now on."""
        self.slots.clear()
        self.slots.maxsize = max_bytes
        self.start = None
        self.on_refused = _ignore
        self._holds = max_bytes > 0

    def get(self, key: str) -> Slot | None:
        """Return the slot of `key`, or None; the caller sets `is_used` when it serves the slot."""
        slot = self.slots.get(key) if self._holds else None
        if slot is not None and (number := slot.origin.number) <= self._suspect:
            tags, loader = slot.entry.tags, slot.entry.loader
            if number <= self._forgotten.of(tags, loader):
                self.drop(key)
                return None
            if number <= self._marked.of(tags, loader):
                slot.mark_stale(self._marked_at)
        return slot

    def put(
        self, key: str, entry: Entry[Any], epoch: int = 0, fingerprint: str = "", replaced: Replaced | None = None
    ) -> None:
        """Hold `entry`, unless it is too large for the whole cache; see `Origin` for the other parameters."""
        if not self._holds:
            self.on_refused(key)
            return
        size, is_whole = measure(entry.value, _MEASURED_AT_ONCE)
        origin = self._shared_origin(Origin(self.counts.of(entry.loader), fingerprint, epoch, replaced, self._number))
        slot = Slot(key, entry, _weight(key, size), origin)
        if not self.slots.put(slot, self._most):
            self.on_refused(key)
        elif not is_whole and self.start is not None:
            self.start(self._weigh, slot)

    async def _weigh(self, slot: Slot) -> None:
        """Measure a large value in a thread, and then hold its entry with the true weight."""
        size = await in_thread(memory_size, slot.value)
        weighed = slot.weighing(_weight(slot.key, size))
        if self.slots.get(slot.key) is slot and not self.slots.put(weighed, self._most):
            self.on_refused(slot.key)

    def aliases_of(self, owner: Hashable) -> dict[Any, Slot]:
        """Return the slots by alias of one owner, which is a loader or one version of an app."""
        return self.slots.aliases.setdefault(owner, {})

    def alias(
        self, slot: Slot, alias: H, aliases: dict[H, Slot], types: tuple[type, ...] = (), *, replaces: bool = False
    ) -> None:
        """Let an alias lead to `slot` while it is held, unless the slot has an alias or the alias has a slot.

        Code that finds the slot by its alias and serves it sets its `is_used`.

        Parameters:
            types: the types of the arguments in the alias; empty if all are strings or if there are none. Arguments of
                different types may be equal, such as 1 and True.
            replaces: whether this alias replaces the one that the slot has.
        """
        if replaces and slot.aliases is not None:
            del slot.aliases[slot.alias]
            slot.aliases = None
        if slot.aliases is None and alias not in aliases:
            slot.alias, slot.aliases, slot.types = alias, aliases, types
            aliases[alias] = slot

    def drop(self, key: str) -> None:
        """Forget `key`."""
        if self._holds:
            self.slots.drop(key)

    def clear(self) -> None:
        """Forget all entries; if there are many, a task frees their memory in several turns of the event loop."""
        self._forgotten, self._marked = Raised(), Raised()
        self._forgotten.all = self._suspects()
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
        """Forget or mark every entry that `name` concerns. The cost does not depend on the number of entries.

        Parameters:
            name: what was invalidated or marked.
            version: the version of a mark, not older than now.
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
            raised.raise_to(of, self._suspects(), 0)
            if raised is self._marked:
                self._marked_at = version
            self.recheck_all()

    def _suspects(self) -> int:
        """Make all slots suspect, and return the highest number of a slot so far; later slots have higher numbers."""
        self._suspect = self._number
        self._number += 1
        return self._suspect

    def recheck_tag(self, name: Name) -> None:
        """End the trust of all entries, unless `name` is a tag that no entry has; see `recheck_all`."""
        of = name.of if isinstance(name, Soft) else name
        if of == ALL or not isinstance(of, str) or of in self.slots.tags:
            self.recheck_all()

    def recheck_all(self) -> None:
        """End the trust of all entries, so that each is checked again before it is served."""
        trust, self.trust = self.trust, Trust(self.trust.until)
        trust.until = -math.inf


def _weight(key: str, size: int) -> int:
    """Return the weight of a slot in bytes, rounded up so that many slots share few number objects."""
    return _shared_number(-(-(_OVERHEAD + 3 * len(key) + size) // _WEIGHED_IN) * _WEIGHED_IN)


@functools.lru_cache(maxsize=_MOST_SHARED)
def _shared_number(number: int) -> int:
    """Return the same object for equal numbers."""
    return number


def _same(origin: Origin) -> Origin:
    return origin


def _ignore(key: str) -> None:
    """Do nothing: a shared store has the value that is too large for this cache."""

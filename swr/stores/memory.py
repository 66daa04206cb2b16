"""The store in this process's memory, with entries, leases and tag versions. Its methods never wait."""

import logging
import math
from collections.abc import Callable, Sequence
from typing import Any, Final

from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import LeaseLost
from swr.stores.base import Held, Kind, Lease, Notification, Start, Subscriber
from swr.stores.clocks import wall_clock
from swr.stores.expiring import Expiring
from swr.stores.local import LocalCache
from swr.stores.tag_versions import ALL, Name, TagVersions, is_announced

log = logging.getLogger("swr")
_MOST_WARNINGS: Final = 100
_GROUPS: Final = 4096
_MOST_ANNOUNCED: Final = 10_000
_ANNOUNCED_FOR: Final = 300.0
_MOST_HOLDS: Final = 1_000_000
# Seconds that a pause is remembered after its end.
_PAUSE_KEPT: Final = 60.0
# With more leases and pauses than this, swr does not search them for a tag: any tag counts as carried by a load.
_MOST_SEARCHED: Final = 1000


class _Hold:
    """A lease, or a pause after failures (token None). Either keeps other callers from loading a key."""

    __slots__ = ("ends_at", "failures", "tags", "token", "until", "version")

    def __init__(
        self, token: str | None, version: int, until: float, failures: int, tags: tuple[str, ...] = ()
    ) -> None:
        self.token = token
        self.version = version
        self.until = until
        # A pause is remembered for a while after its end, so that the next failure adds to its count.
        self.ends_at = until + (_PAUSE_KEPT if token is None else 0.0)
        self.failures = failures
        self.tags = tags


class _Announced:
    """The announcement of a tag by a load."""

    __slots__ = ("ends_at",)

    def __init__(self, ends_at: float) -> None:
        self.ends_at = ends_at


class MemoryStore:
    """Entries and leases in memory, shared by all caches that were given this object.

    Parameters:
        max_bytes: most memory that keys and values may take, in bytes.
        max_entries: the most entries.
        clock: wall clock, seconds.
        local: the local cache that holds the entries; None: a new one.
    """

    def __init__(
        self,
        max_bytes: int = 64 * 2**20,
        max_entries: int = 1_000_000,
        clock: Callable[[], float] = wall_clock,
        local: LocalCache | None = None,
    ) -> None:
        self.local = LocalCache(max_bytes, max_entries) if local is None else local
        self.local.on_refused = self._warn
        self._refused: set[str] = set()
        self.tag_versions = TagVersions()
        self._clock = clock
        self._last = 0
        # Tags of recent loads. Other parts of swr may have learned from these loads, even if nothing is stored here.
        self._announced: Expiring[_Announced] = Expiring(_MOST_ANNOUNCED, clock)
        # The version at which an invalidation was last passed over, by group of tags.
        self._passed_over = [0] * _GROUPS
        self._holds: Expiring[_Hold] = Expiring(_MOST_HOLDS, clock)
        self._subscribers: list[Subscriber] = []

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Call `subscriber` with every notification from now on."""
        self.local.start = start
        # The local cache may have been in front of another store, which limited the trust.
        self.local.trust.until = math.inf
        if subscriber not in self._subscribers:
            self._subscribers.append(subscriber)
        subscriber(Notification(Kind.REACHABLE))

    async def aclose(self, subscriber: Subscriber) -> None:
        """Stop calling `subscriber`; the entries stay."""
        if subscriber in self._subscribers:
            self._subscribers.remove(subscriber)

    def is_unreachable(self, key: str) -> bool:
        """Return False: this store has no server."""
        return False

    @property
    def has_pending(self) -> bool:
        """Return False: this store applies every invalidation at once."""
        return False

    async def settled(self) -> None:
        """Return at once: nothing is ever pending."""

    async def now(self) -> int:
        """Return the clock in microseconds: older than every later version, not older than any version so far."""
        return max(int(self._clock() * 1e6) - 1, self._last)

    @property
    def sent(self) -> int:
        """Return 0: there is no server."""
        return 0

    def forget(self) -> None:
        """Do nothing: no other process changes what is stored here."""

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Do nothing: this store never leaves a commit unconfirmed."""

    def _warn(self, key: str) -> None:
        """Log once for a key, and for a limited number of keys, that its value is not kept."""
        if key not in self._refused and len(self._refused) < _MOST_WARNINGS:
            self._refused.add(key)
            log.warning(
                "the value of %r is larger than l1_max_bytes=%d and is not kept, so each call loads it again: "
                "give the cache more memory, or Redis",
                key,
                self.local.slots.maxsize,
            )

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the entry of `key` unless a tag version has outdated it."""
        slot = self.local.get(key)
        if slot is None:
            return None
        entry = slot.entry
        if slot.trust is not self.local.trust:
            if not self.tag_versions.admits_entry(entry):
                self.local.drop(key)
                return None
            slot.mark_stale(self.tag_versions.marked_at(entry))
            slot.trust = self.local.trust
        slot.is_used = True
        return slot.entry

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the same as `peek`."""
        return self.peek(key)

    def _next(self) -> int:
        """Return a number greater than all before it, near the clock's microseconds."""
        self._last = max(int(self._clock() * 1e6), self._last + 1)
        return self._last

    def _notify(self, kind: Kind, name: Name, version: int = 0, fingerprint: str = "") -> None:
        notification = Notification(kind, name, version, fingerprint=fingerprint)
        for subscriber in self._subscribers:
            subscriber(notification)

    async def acquire(
        self,
        key: str,
        token: str,
        ttl: float,
        known: int,
        codec: Codec,
        *,
        force: bool = False,
        tags: tuple[str, ...] = (),
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, or return a newer entry or a refusal; see `Leases.acquire`."""
        entry = self.peek(key)
        if entry is not None and entry.version > known:
            return entry
        now = self._clock()
        before = await self.now()
        hold = self._holds.get(key)
        failures = 0
        if hold is not None and hold.token is None:
            if now < hold.until and not force:
                return Held(hold.until - now, before, hold.failures)
            failures = hold.failures
        elif hold is not None and hold.token != token:
            return Held(hold.until - now, before)
        version = hold.version if hold is not None and hold.token == token else self._next()
        self._holds[key] = _Hold(token, version, now + ttl, failures, tags)
        for tag in tags:
            if is_announced(tag):
                self._announced[tag] = _Announced(now + _ANNOUNCED_FOR)
        return Lease(key, token, version, self.tag_versions.newest, failures)

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Remove the entry of `key`, and take the lease from its holder."""
        self.local.drop(key)
        version = self._next()
        self._holds[key] = _Hold(token, version, self._clock() + ttl, 0)
        self._notify(Kind.INVALIDATED, key, version)
        return Lease(key, token, version, self.tag_versions.newest)

    def _held_by(self, lease: Lease) -> _Hold | None:
        hold = self._holds.get(lease.key)
        is_held = hold is not None and hold.token == lease.token and lease.version in (hold.version, 0)
        return hold if is_held else None

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        hold = self._held_by(lease)
        if hold is None:
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        self._holds[lease.key] = _Hold(lease.token, lease.version, self._clock() + ttl, lease.failures, hold.tags)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry if the lease is still held, and give the lease back."""
        if not self._held_by(lease):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        del self._holds[lease.key]
        if not self.tag_versions.admits_entry(entry):
            self._notify(Kind.RELEASED, lease.key)
            raise LeaseLost(f"a tag of {lease.key!r} was invalidated while it was loaded")
        self.local.put(lease.key, entry)
        self._notify(Kind.COMMITTED, lease.key, entry.version, codec.fingerprint)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back if it is still held."""
        if not self._held_by(lease):
            return
        del self._holds[lease.key]
        if pause:
            until = self._clock() + pause
            self._holds[lease.key] = _Hold(None, lease.version, until, lease.failures + 1)
        self._notify(Kind.RELEASED, lease.key)

    async def invalidate(self, key: str) -> None:
        """Remove the entry and the lease of `key`."""
        self.local.drop(key)
        self._holds.pop(key, None)
        self._notify(Kind.INVALIDATED, key, self._next())

    async def mark_stale(self, key: str) -> None:
        """Mark the entry of `key` as stale, and remove the lease."""
        version, slot = self._next(), self.local.get(key)
        if slot is not None:
            slot.mark_stale(version)
        self._holds.pop(key, None)
        self._notify(Kind.MARKED, key, version)

    async def invalidate_tag(self, *names: Name) -> None:
        """Raise the versions of `names`: tags, loaders, ALL, or marks of these."""
        for name in names:
            number = self._next()
            self.tag_versions.raise_to(name, number)
            self.local.recheck_tag(name)
            if name == ALL:
                self.local.clear()
            self._notify(Kind.TAG_VERSION, name, number)

    @property
    def heard(self) -> int:
        """Return the clock in microseconds; never older than a version so far."""
        return max(int(self._clock() * 1e6), self._last)

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Raise the versions of those of `tags` that an entry or a load may carry, and pass over the others."""
        for tag in tags:
            if self._is_carried(tag):
                await self.invalidate_tag(tag)
            else:
                self._passed_over[hash(tag) % _GROUPS] = self._next()

    def _is_carried(self, tag: str) -> bool:
        if tag in self.local.slots.tags or tag in self._announced or len(self._holds) > _MOST_SEARCHED:
            return True
        # A lease may expire during the search.
        holds = (self._holds.get(key) for key in self._holds)
        return any(hold is not None and tag in hold.tags for hold in holds)

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Return whether an invalidation of one of `tags` may have been passed over after the version `since`."""
        return any(self._passed_over[hash(tag) % _GROUPS] > since for tag in tags)

"""The store in this process's memory: the whole protocol, leases and barriers included, and no waiting."""

import time
from collections.abc import Callable
from typing import Any

from cachetools import TLRUCache

from swr.codec import Codec
from swr.entry import Entry
from swr.errors import LeaseLost
from swr.stores.barriers import ALL, Barriers
from swr.stores.base import Held, Kind, Lease, Listener, Message, Start
from swr.stores.shelf import Shelf


class _Hold:
    """What stands where a lease can be: the lease itself, or a pause after failures."""

    __slots__ = ("failures", "token", "until", "version")

    def __init__(self, token: str | None, version: int, until: float, failures: int) -> None:
        self.token = token
        self.version = version
        self.until = until
        self.failures = failures


class MemoryStore:
    """Entries and leases in memory, shared by all caches that were given this object.

    Parameters:
        max_bytes: the most that keys and values may weigh, in bytes.
        max_entries: the most entries.
        clock: wall clock, seconds.
    """

    def __init__(
        self,
        max_bytes: int = 64 * 2**20,
        max_entries: int = 1_000_000,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self.shelf = Shelf(max_bytes, max_entries)
        self.barriers = Barriers()
        self._clock = clock
        self._last = 0
        # A pause is remembered for a while after its end, so that failures go on being counted.
        self._holds: TLRUCache[str, _Hold] = TLRUCache(
            1_000_000,
            ttu=lambda _key, hold, _now: hold.until + (60.0 if hold.token is None else 0.0),
            timer=clock,
        )
        self._listeners: list[Listener] = []

    async def open(self, start: Start, listener: Listener) -> None:
        """Tell `listener` what happens."""
        if listener not in self._listeners:
            self._listeners.append(listener)
        listener(Message(Kind.UP))

    async def aclose(self, listener: Listener) -> None:
        """Stop telling `listener`; the entries stay."""
        if listener in self._listeners:
            self._listeners.remove(listener)

    def is_away(self, key: str) -> bool:
        """Never."""
        return False

    async def settled(self) -> None:
        """At once."""

    async def now(self) -> int:
        """Return the clock's microseconds: older than every version to come, newer than none so far."""
        return max(int(self._clock() * 1e6) - 1, self._last)

    @property
    def sent(self) -> int:
        """None: there is no server."""
        return 0

    def forget(self) -> None:
        """Nothing: what lies here is the truth, with or without listeners."""

    def keep(self, key: str, entry: Entry[Any]) -> None:
        """Nothing: a commit that this store did not confirm did not happen."""

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the entry of `key` unless a barrier has outdated it."""
        slot = self.shelf.get(key)
        if slot is None:
            return None
        entry = slot.entry
        if slot.checked != self.shelf.generation:
            if not self.barriers.admits(entry.head, entry.tags):
                self.shelf.drop(key)
                return None
            slot.checked = self.shelf.generation
        return entry

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """The same as `peek`."""
        return self.peek(key)

    def _next(self) -> int:
        """A number greater than all before it, near the clock's microseconds."""
        self._last = max(int(self._clock() * 1e6), self._last + 1)
        return self._last

    def _tell(self, kind: Kind, name: str, version: int = 0) -> None:
        message = Message(kind, name, version)
        for listener in self._listeners:
            listener(message)

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the lease, or say who is before; see `Leases.acquire`."""
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
        self._holds[key] = _Hold(token, version, now + ttl, failures)
        return Lease(key, token, version, self.barriers.head, failures)

    def _held_by(self, lease: Lease) -> bool:
        hold = self._holds.get(lease.key)
        return hold is not None and hold.token == lease.token and lease.version in (hold.version, 0)

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the lease."""
        if not self._held_by(lease):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        self._holds[lease.key] = _Hold(lease.token, lease.version, self._clock() + ttl, lease.failures)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Store the entry if the lease still stands."""
        if not self._held_by(lease):
            raise LeaseLost(f"the lease on {lease.key!r} had expired or was deleted")
        del self._holds[lease.key]
        if not self.barriers.admits(entry.head, entry.tags):
            self._tell(Kind.RELEASED, lease.key)
            raise LeaseLost(f"a tag of {lease.key!r} was invalidated while it was loaded")
        self.shelf.put(lease.key, entry)
        self._tell(Kind.COMMITTED, lease.key, entry.version)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the lease back if it still stands."""
        if not self._held_by(lease):
            return
        del self._holds[lease.key]
        if pause:
            until = self._clock() + pause
            self._holds[lease.key] = _Hold(None, lease.version, until, lease.failures + 1)
        self._tell(Kind.RELEASED, lease.key)

    async def invalidate(self, key: str) -> None:
        """Remove the entry and the lease of `key`."""
        self.shelf.drop(key)
        self._holds.pop(key, None)
        self._tell(Kind.INVALIDATED, key, self._next())

    async def invalidate_tag(self, tag: str) -> None:
        """Raise the barrier of `tag`."""
        number = self._next()
        self.barriers.raise_to(tag, number)
        self.shelf.doubt()
        if tag == ALL:
            self.shelf.clear()
        self._tell(Kind.BARRIER, tag, number)

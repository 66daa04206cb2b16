"""The local cache (L1) in front of a store that many processes share; the store's notifications keep it true.

A local entry is *confirmed* (notifications arrived ever since it came), *superseded* (another process committed a
newer one), or *suspect* (notifications may have been missed, or its commit was never confirmed). A confirmed entry is
served. The others are checked against the store first; but a stale entry that is only superseded is served at once, as
stale entries are. While the store is unreachable nothing can be checked, and local entries are served within their
deadlines.

The store may have lost what this process has served: it has restarted with older data, or a replica has taken over
that was behind. An entry of the store that is older than the local one, or may be, is therefore no answer. Its key is
loaded again, which replaces both; only if that fails, the store's may be served. The local one is not: what the store
has lost, or what this process has missed, may have invalidated it.

A notification may overtake an answer of the store that is on its way. Every operation that brings an entry therefore
has a `Watch`, and the local cache never takes an entry that a notification has already outdated.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final

import anyio

from swr.core.codec import Codec
from swr.entry import Entry, doubtful
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import Held, Kind, Lease, Notification, SharedStore, Start, StoreRefused, Subscriber
from swr.stores.local import UNCHECKED, LocalCache, Slot
from swr.stores.tag_versions import ALL, TagVersions
from swr.stores.watch import Watch

_MOST_PENDING: Final = 10_000
_NEVER: Final = -1
_AGAIN_AFTER: Final = 1.0
_LOOKED_AFTER: Final = 0.01

log = logging.getLogger("swr")


class TieredStore:
    """A local cache in front of a shared store.

    Parameters:
        local: this process's memory; one of no bytes holds nothing, and every read then goes to the store.
        store: what the processes share.
        clock: wall clock, seconds.

    Attributes:
        is_reachable: whether notifications arrive, so that confirmed entries are true.
    """

    def __init__(self, local: LocalCache, store: SharedStore, clock: Callable[[], float] = time.time) -> None:
        self.local = local
        self.store = store
        self._clock = clock
        self.is_reachable = False
        self._epoch = 0
        # Which servers these are, and their clock when they were last reached.
        self._servers = ""
        self._reached_at = 0
        # By key and fingerprint.
        self._watches: dict[str, dict[str, Watch]] = {}
        # What the store did not take: keys and tags to invalidate, leases to give back, by token.
        self._pending_keys: dict[str, object] = {}
        self._pending_tags: dict[str, object] = {}
        self._pending_releases: dict[str, Lease] = {}
        self._replaying = False
        # Whether it was logged that the store refuses invalidations.
        self._refused = False

    @property
    def tag_versions(self) -> TagVersions:
        """The shared store's tag versions."""
        return self.store.tag_versions

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Open the shared store and subscribe to its notifications."""
        self._start, self._subscriber = start, subscriber
        self.local.start = start
        await self.store.open(start, self._on_notification)

    def is_unreachable(self, key: str) -> bool:
        """Return whether the shared store is unreachable for `key`."""
        return self.store.is_unreachable(key)

    @property
    def has_pending(self) -> bool:
        """Whether the shared store has to get an invalidation yet."""
        return bool(self._pending_keys or self._pending_tags)

    async def settled(self) -> None:
        """Wait until nothing is pending."""
        # Only closing waits for it: not worth an event at every invalidation.
        while self._pending_keys or self._pending_tags or self._pending_releases:  # noqa: ASYNC110
            await anyio.sleep(_LOOKED_AFTER)

    async def now(self) -> int:
        """Return the shared store's clock."""
        return await self.store.now()

    @property
    def sent(self) -> int:
        """Return how many commands the shared store has sent."""
        return self.store.sent

    async def aclose(self, subscriber: Subscriber) -> None:
        """Close the shared store."""
        pending = len(self._pending_keys) + len(self._pending_tags)
        if pending:
            log.warning("closed while Redis is unreachable: %d invalidations have reached this process alone", pending)
        await self.store.aclose(self._on_notification)

    def forget(self) -> None:
        """Empty the local cache, because no notification reaches it any more."""
        self.is_reachable = False
        self._replaying = False
        self.local.clear()
        self.store.forget()

    # -- notifications ----------------------------------------------------------------------------------------

    def _on_notification(self, notification: Notification) -> None:
        kind, name, version, _, fingerprint = notification
        if kind is Kind.REACHABLE:
            # Notifications may have been missed: every local entry is suspect now.
            self.is_reachable = True
            self._epoch += 1
            self._servers, self._reached_at = name, version
            self.local.recheck_all()
            self._start(self._replay_all)
        elif kind is Kind.UNREACHABLE:
            self.is_reachable = False
            self.local.recheck_all()
        elif kind is Kind.TAG_VERSION:
            self.local.recheck_tag(name)
        elif kind is Kind.INVALIDATED:
            for watch in self._watches.get(name, {}).values():
                watch.minimum = max(watch.minimum, version)
            slot = self.local.get(name)
            if slot is not None and slot.entry.version < version:
                self.local.drop(name)
        elif kind is Kind.COMMITTED:
            self._on_commit(name, version, fingerprint)
        elif kind is Kind.PENDING_KEY or kind is Kind.PENDING_TAG:
            # Whoever lives longest replays it.
            self._keep_pending(kind, name, elsewhere=True)
            return
        self._subscriber(notification)

    def _on_commit(self, key: str, version: int, fingerprint: str) -> None:
        """Outdate older copies, unless their values are of another type: another version of the application's."""
        own = self._watches.get(key, {}).get(fingerprint)
        if own is not None:
            own.minimum = max(own.minimum, version)
        slot = self.local.get(key)
        if slot is not None and slot.fingerprint == fingerprint and slot.entry.version < version:
            slot.superseded = True
            slot.checked = UNCHECKED

    def _watching(self, key: str, codec: Codec) -> Watch:
        of_key = self._watches.setdefault(key, {})
        watch = of_key.get(codec.fingerprint)
        if watch is None:
            watch = of_key[codec.fingerprint] = Watch(self._watches, key, codec.fingerprint)
        return watch

    # -- reading ----------------------------------------------------------------------------------------------

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the local entry if it may be trusted, or if the store cannot be asked."""
        slot = self.local.get(key)
        if slot is None or (slot.checked != self.local.generation and not self._trust(key, slot)):
            return None
        return slot.entry

    def _trust(self, key: str, slot: Slot) -> bool:
        entry = slot.entry
        if not self.tag_versions.admits(entry.tag_version, entry.tags):
            self.local.drop(key)
            return False
        # While the store is unreachable this will do; every entry is checked again once it is reachable.
        if self.is_reachable:
            if slot.epoch != self._epoch:
                return False
            if slot.superseded:
                return self._clock() >= entry.fresh_until and not entry.absent
        slot.checked = self.local.generation
        return True

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the shared store's entry and keep it here; while the store is unreachable, return the local entry."""
        if not self.is_reachable and self.store.is_unreachable(key):
            return self._fallback(key)
        epoch = self._epoch
        with self._watching(key, codec) as watch:
            try:
                entry = await self.store.read(key, codec)
            except StoreUnavailable:
                return self._fallback(key)
            slot = self.local.get(key)
            if slot is not None and self._confirmed(slot) and (entry is None or slot.entry.version >= entry.version):
                # It came while the answer was on its way.
                return slot.entry
            if entry is None or entry.version < watch.minimum or self._is_pending(key, entry):
                self.local.drop(key)
                return None
            newer = self._newer(key, entry, codec)
            if newer is None:
                self.local.put(key, entry, epoch, codec.fingerprint)
            elif newer.replaced == (self._servers, entry.version):
                # Nothing has changed there since this process loaded something newer, in vain.
                self.local.put(key, newer.entry, epoch, codec.fingerprint, newer.replaced)
                return newer.entry
            else:
                return doubtful(entry)
            return entry

    def _newer(self, key: str, entry: Entry[Any], codec: Codec) -> Slot | None:
        """Return what is held of the same type if the store's entry may be older."""
        slot = self.local.get(key)
        if slot is None or slot.fingerprint != codec.fingerprint or not self._admits(slot.entry):
            return None
        # What was loaded without a lease was loaded before the servers were reached again.
        return slot if entry.version < (slot.entry.version or self._reached_at + 1) else None

    def _fallback(self, key: str) -> Entry[Any] | None:
        slot = self.local.get(key)
        return slot.entry if slot is not None and self._admits(slot.entry) else None

    def _admits(self, entry: Entry[Any]) -> bool:
        return self.tag_versions.admits(entry.tag_version, entry.tags)

    def _confirmed(self, slot: Slot) -> bool:
        return slot.epoch == self._epoch and not slot.superseded and self._admits(slot.entry)

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Hold an entry that the store did not take; it is checked as soon as the store is reachable again."""
        slot, replaced = self.local.get(key), None
        if slot is not None:
            replaced = slot.replaced or (self._servers, slot.entry.version)
        # If the store is reachable and refused the entry, notifications about it arrive as for any other.
        self.local.put(key, entry, self._epoch if self.is_reachable else _NEVER, codec.fingerprint, replaced)

    # -- invalidating -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Invalidate `key` everywhere; while the store is unreachable, here at once and elsewhere later."""
        with anyio.CancelScope(shield=True):
            try:
                await self.store.invalidate(key)
            except StoreUnavailable as error:
                self._on_refusal(error)
                self._keep_pending(Kind.PENDING_KEY, key)
                self.store.tell_pending(Kind.PENDING_KEY, key)

    async def invalidate_tag(self, tag: str) -> None:
        """Invalidate every entry with `tag` everywhere, as `invalidate` does."""
        with anyio.CancelScope(shield=True):
            try:
                await self.store.invalidate_tag(tag)
            except StoreUnavailable as error:
                self._on_refusal(error)
                self._keep_pending(Kind.PENDING_TAG, tag)
                self.store.tell_pending(Kind.PENDING_TAG, tag)

    def _on_refusal(self, error: StoreUnavailable) -> None:
        if isinstance(error, StoreRefused) and not self._refused:
            self._refused = True
            log.warning(
                "Redis refuses invalidations (%s): they count in the processes that run, which replay them to it", error
            )

    def _keep_pending(self, kind: Kind, name: str, *, elsewhere: bool = False) -> None:
        """Have an invalidation count here at once, and replay it until the store has it."""
        # An operation under way may still bring the entry; while this is pending it is refused.
        if kind is Kind.PENDING_KEY:
            self._add_pending(self._pending_keys, name)
            self.local.drop(name)
            self._subscriber(Notification(Kind.INVALIDATED, name, 0, elsewhere))
            return
        self._add_pending(self._pending_tags, name)
        # Only the server can raise the tag version; until it does, drop the entries one by one.
        for key, slot in list(self.local.slots.items()):
            if name == ALL or name in slot.entry.tags:
                self.local.drop(key)
        self._subscriber(Notification(Kind.TAG_VERSION, name, 0, elsewhere))

    def _add_pending(self, pending: dict[str, object], name: str) -> None:
        if len(pending) >= _MOST_PENDING:
            pending, name = self._pending_tags, ALL
        pending[name] = object()
        self._replay_soon()

    def _replay_soon(self) -> None:
        if self.is_reachable and not self._replaying:
            self._replaying = True
            self._start(self._replay_all)

    async def _replay_all(self) -> None:
        """Replay what is pending; if the store is reachable and refuses, again and again."""
        while self.is_reachable and (self._pending_keys or self._pending_tags or self._pending_releases):
            try:
                await self._replay_once()
            except StoreUnavailable:
                await anyio.sleep(_AGAIN_AFTER)
        if self._refused and not self.has_pending:
            self._refused = False
            log.warning("Redis takes invalidations again; all that were pending are replayed")
        self._replaying = False

    def _is_pending(self, key: str, entry: Entry[Any]) -> bool:
        """Return whether the invalidation of `entry` is pending."""
        if not self._pending_keys and not self._pending_tags:
            return False
        return (
            key in self._pending_keys
            or ALL in self._pending_tags
            or any(tag in self._pending_tags for tag in entry.tags)
        )

    async def _replay_once(self) -> None:
        # Invalidations first: until then other processes serve outdated entries, while leases expire anyway.
        await self._replay(self._pending_tags, self.store.invalidate_tag, list(self._pending_tags))
        await self._replay(self._pending_keys, self.store.invalidate, list(self._pending_keys))
        for token, lease in list(self._pending_releases.items()):
            await self.store.release(lease)
            self._pending_releases.pop(token, None)

    async def _replay(
        self, pending: dict[str, object], invalidate: Callable[[str], Awaitable[None]], names: Iterable[str]
    ) -> None:
        for name in names:
            mark = pending.get(name)
            if mark is not None:
                await invalidate(name)
                # Unless it was invalidated once more, in vain, while this was under way.
                if pending.get(name) is mark:
                    del pending[name]

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the shared store's lease; an entry that it returns instead goes into the local cache."""
        if self.store.is_unreachable(key):
            # Nothing was sent: no lease has to be given back.
            raise StoreUnavailable("Redis cannot be reached")
        while True:
            epoch = self._epoch
            with self._watching(key, codec) as watch:
                try:
                    # What is loaded from now on is newer than these; replayed later, they would remove it again.
                    await self._replay(self._pending_tags, self.store.invalidate_tag, list(self._pending_tags))
                    await self._replay(self._pending_keys, self.store.invalidate, (key,))
                    answer = await self.store.acquire(key, token, ttl, known, codec, force=force)
                except StoreUnavailable:
                    # The request may have arrived: a lease without a holder would block every process.
                    self._add_pending_release(Lease(key, token, 0, 0))
                    raise
                if not isinstance(answer, Entry):
                    return answer
                is_newest = answer.version >= watch.minimum and self._newer(key, answer, codec) is None
                if is_newest and not self._is_pending(key, answer):
                    self.local.put(key, answer, epoch, codec.fingerprint)
                    return answer
            known = answer.version

    def _add_pending_release(self, lease: Lease) -> None:
        if len(self._pending_releases) < _MOST_PENDING:
            self._pending_releases[lease.token] = lease
        self._replay_soon()

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the shared store's lease."""
        await self.store.renew(lease, ttl)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Commit to the shared store, then to the local cache."""
        if self._is_pending(lease.key, entry):
            await self.release(lease)
            raise LeaseLost(f"{lease.key!r} was invalidated while it was loaded")
        epoch = self._epoch
        with self._watching(lease.key, codec) as watch:
            try:
                await self.store.commit(lease, entry, codec)
            except StoreUnavailable:
                self._add_pending_release(lease)
                raise
            if entry.version < watch.minimum or not self._admits(entry) or self._is_pending(lease.key, entry):
                raise LeaseLost(f"{lease.key!r} was invalidated while it was committed")
            self.local.put(lease.key, entry, epoch, codec.fingerprint)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the shared store's lease back; if the store is unreachable, later."""
        try:
            await self.store.release(lease, pause)
        except StoreUnavailable:
            self._add_pending_release(lease)

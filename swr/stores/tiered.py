"""The local cache (L1) in front of a store that many processes share; the store's notifications keep it up to date.

A local entry is *confirmed* if no notification was missed since it was stored here. It is *superseded* if another
process committed a newer one. It is *suspect* if notifications may have been missed, or its commit was never confirmed.
Confirmed entries are served. The others are checked against the store first, but a stale entry that is only superseded
is served at once, like any stale entry. While the store is unreachable, all are served within their deadlines.

The store may have lost entries: it has restarted with older data, or a replica has taken over that was behind. So an
entry of the store is not served if it may be older than the one served last. The key is loaded again. Only if that load
fails, one of the two is served: the local one if this process has missed nothing since it came, otherwise the store's.

A notification may overtake an answer of the store that is on its way. Every operation that brings an entry therefore
has a `Watch`, and the local cache never takes an entry that a notification has already outdated.
"""

from collections.abc import Callable, Collection, Sequence
from typing import Any, Final

from swr.core.codec import Codec
from swr.core.decision import is_fresh
from swr.entry import Entry, marked_stale
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.base import NEWEST, Held, Kind, Lease, Notification, SharedStore, Start, Subscriber
from swr.stores.clocks import wall_clock
from swr.stores.hearing import Hearing
from swr.stores.invalidations import SharedInvalidations
from swr.stores.local import LocalCache, Replaced, Slot
from swr.stores.served import Served, is_newest
from swr.stores.tag_versions import Name, TagVersions
from swr.stores.watch import Watch

_NEVER: Final = -1


class TieredStore:
    """A local cache in front of a shared store.

    Parameters:
        local: the local cache; with 0 bytes it holds nothing, and every read goes to the store.
        store: the store that the processes share.
        clock: wall clock, seconds.
        passed_by: the loaders (see `Entry.loader`) whose entries the local cache does not hold.

    Attributes:
        is_reachable: whether notifications arrive, so that confirmed entries are up to date.
    """

    def __init__(
        self,
        local: LocalCache,
        store: SharedStore,
        clock: Callable[[], float] = wall_clock,
        passed_by: Collection[str] = (),
    ) -> None:
        self.local = local
        self.store = store
        self.passed_by = passed_by
        self._clock = clock
        self.is_reachable = False
        self._epoch = 0
        # The watches of operations under way, by key and fingerprint.
        self._watches: dict[str, dict[str, Watch]] = {}
        self._served = Served(local, self._admits)
        self._invalidations = SharedInvalidations(local, store, clock, lambda: self.is_reachable)
        self._pending = self._invalidations.pending
        self._hearing = Hearing(local, clock, lambda: self._on_notification(Notification(Kind.GAP)))

    @property
    def tag_versions(self) -> TagVersions:
        """The shared store's tag versions."""
        return self.store.tag_versions

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Open the shared store and subscribe to its notifications."""
        self._subscriber = subscriber
        self._invalidations.open(start, subscriber)
        self.local.start = start
        start(self._hearing.keep)
        await self.store.open(start, self._on_notification)

    def is_unreachable(self, key: str) -> bool:
        """Return whether the shared store is unreachable for `key`."""
        return self.store.is_unreachable(key)

    @property
    def has_pending(self) -> bool:
        """Return whether the shared store has not taken all invalidations yet."""
        return self._pending.invalidations > 0

    async def settled(self) -> None:
        """Wait until nothing is pending, and until the shared store has settled."""
        await self._invalidations.settled()
        await self.store.settled()

    async def now(self) -> int:
        """Return the shared store's clock."""
        return await self.store.now()

    @property
    def sent(self) -> int:
        """Return how many commands the shared store has sent."""
        return self.store.sent

    async def aclose(self, subscriber: Subscriber) -> None:
        """Close the shared store."""
        self._pending.on_close()
        await self.store.aclose(self._on_notification)

    def forget(self) -> None:
        """Empty the local cache, because it gets no notifications any more."""
        self.is_reachable = False
        self._invalidations.forget()
        self._hearing.lose()
        # Without `start`, the local cache frees its entries at once instead of in a task.
        self.local.start = None
        self.local.clear()
        self.store.forget()

    # -- notifications ----------------------------------------------------------------------------------------

    def _on_notification(self, notification: Notification) -> None:
        kind, name, version, _, fingerprint = notification
        if kind is Kind.REACHABLE:
            # Notifications may have been missed: every local entry is suspect now.
            self.is_reachable = True
            self._served.servers, self._served.reached_at = notification.text, version
            self._suspect_all()
            self._invalidations.replay()
        elif kind is Kind.UNREACHABLE:
            self.is_reachable = False
            self.local.recheck_all()
        elif kind is Kind.GAP:
            self._suspect_all()
        elif kind is Kind.TAG_VERSION:
            self.local.recheck_tag(name)
        elif kind is Kind.INVALIDATED:
            key = notification.text
            for watch in self._watches.get(key, {}).values():
                watch.minimum = max(watch.minimum, version)
            # Drop a copy with a higher version, too: it is older if the server's clock was set back.
            self.local.drop(key)
        elif kind is Kind.MARKED:
            self._on_mark(notification.text, version)
        elif kind is Kind.COMMITTED:
            self._on_commit(notification.text, version, fingerprint)
        elif kind is Kind.PENDING_KEY or kind is Kind.PENDING_TAG:
            # Every process replays the invalidation, because the process that asked for it may end too early.
            self._invalidations.keep_pending(kind, name, elsewhere=True)
            return
        self._subscriber(notification)

    def _suspect_all(self) -> None:
        self._epoch += 1
        self.local.recheck_all()

    def _on_mark(self, key: str, version: int) -> None:
        for watch in self._watches.get(key, {}).values():
            watch.marked_at = max(watch.marked_at, version)
        slot = self.local.get(key)
        if slot is not None and slot.entry.version < version:
            slot.mark_stale(version)
        elif slot is not None:
            slot.supersede()

    def _on_commit(self, key: str, version: int, fingerprint: str) -> None:
        """Outdate older copies of the same type; values of other types belong to other versions of the application."""
        self._served.note_commit(key, fingerprint, version)
        own = self._watches.get(key, {}).get(fingerprint)
        if own is not None:
            own.minimum = max(own.minimum, version)
        slot = self.local.get(key)
        if slot is not None and slot.origin.fingerprint == fingerprint and slot.entry.version < version:
            slot.supersede()

    def _watching(self, key: str, codec: Codec) -> Watch:
        of_key = self._watches.get(key) or self._watches.setdefault(key, {})
        watch = of_key.get(codec.fingerprint)
        if watch is None:
            watch = of_key[codec.fingerprint] = Watch(self._watches, key, codec.fingerprint)
        return watch

    # -- reading ----------------------------------------------------------------------------------------------

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the local entry if it may be trusted, or if the store cannot be asked."""
        slot = self.local.get(key)
        if slot is None or (self._clock() >= slot.trust.until and not self._trust(key, slot)):
            return None
        slot.is_used = True
        return slot.entry

    def _trust(self, key: str, slot: Slot) -> bool:
        entry = slot.entry
        if not self.tag_versions.admits_entry(entry):
            self.local.drop(key)
            return False
        if self._hearing.is_lost:
            return False
        slot.mark_stale(self.tag_versions.marked_at(entry))
        # While its server is unreachable, a suspect entry is served. All entries are checked again after the outage.
        is_unreachable = not self.is_reachable and self.store.is_unreachable(key)
        if not is_unreachable and slot.origin.epoch != self._epoch:
            return False
        if slot.is_superseded:
            # The slot stays superseded: the store may be reachable again before anything else ends this trust.
            return is_unreachable or (not is_fresh(entry, self._clock()) and not entry.absent)
        slot.trust = self.local.trust
        return True

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the shared store's entry and keep it here; while the store is unreachable, return the local entry."""
        self._hearing.resume()
        if codec.stays_here:
            return self._read_unshared(key)
        if not self.is_reachable and self.store.is_unreachable(key):
            return self._fallback(key)
        epoch = self._epoch
        with self._watching(key, codec) as watch:
            try:
                entry = await self.store.read(key, codec)
            except StoreUnavailable:
                return self._fallback(key)
            slot = self.local.get(key)
            if slot is not None and self._confirmed(slot) and is_newest(slot.entry, entry):
                # The local entry was stored while the answer was on its way, or the store refused it.
                slot.mark_stale(self.tag_versions.marked_at(slot.entry))
                return slot.entry
            if entry is None or entry.version < watch.minimum or self._pending.outdates(key, entry):
                self.local.drop(key)
                return None
            entry = self._marked(key, entry, watch)
            newer = self._served.newer(slot, entry, codec)
            if newer is not None and self._served.replaces(newer, entry):
                kept = self._marked(key, newer.entry, watch)
                if self._served.was_marked(newer, entry):
                    kept = marked_stale(kept, entry.marked_at)
                self._hold(key, kept, epoch, codec, newer.origin.replaced)
                return kept
            if newer is not None or self._served.is_older(key, entry, codec):
                held = self._served.held(slot, codec, self._epoch)
                own = None if held is None else self._marked(key, held.entry, watch)
                return self._served.in_doubt(key, entry, own, self._clock())
            self._put(key, entry, epoch, codec)
            return entry

    def _put(self, key: str, entry: Entry[Any], epoch: int, codec: Codec) -> None:
        self._served.note(key, codec.fingerprint, entry.version)
        self._hold(key, entry, epoch, codec)

    def _hold(self, key: str, entry: Entry[Any], epoch: int, codec: Codec, replaced: Replaced | None = None) -> None:
        if entry.loader not in self.passed_by:
            self.local.put(key, entry, epoch, codec.fingerprint, replaced)

    def _read_unshared(self, key: str) -> Entry[Any] | None:
        """Return the local entry of a value that stays in this process; if it is suspect, drop it and return None."""
        slot = self.local.get(key)
        is_unreachable = not self.is_reachable and self.store.is_unreachable(key)
        if slot is not None and not is_unreachable and not self._confirmed(slot):
            self.local.drop(key)
            return None
        return self._fallback(key)

    def _marked(self, key: str, entry: Entry[Any], watch: Watch) -> Entry[Any]:
        """Return an entry of the shared store, marked stale if this process knows of a mark."""
        version = self.tag_versions.marked_at(entry)
        if entry.version < watch.marked_at:
            version = max(version, watch.marked_at)
        if not version and self._pending.marks(key, entry):
            version = int(self._clock() * 1e6)
        return marked_stale(entry, version) if version else entry

    def _fallback(self, key: str) -> Entry[Any] | None:
        slot = self.local.get(key)
        if slot is None or not self._admits(slot.entry):
            return None
        slot.mark_stale(self.tag_versions.marked_at(slot.entry))
        slot.is_used = True
        return slot.entry

    def _admits(self, entry: Entry[Any]) -> bool:
        return self.tag_versions.admits_entry(entry)

    def _confirmed(self, slot: Slot) -> bool:
        return slot.origin.epoch == self._epoch and not slot.is_superseded and self._admits(slot.entry)

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Hold an entry that the store did not take; it is checked as soon as the store is reachable again."""
        if self._served.is_overtaken(key, entry, codec):
            return
        replaced = self._served.replaced_by_keeping(self.local.get(key))
        # If the store is reachable but refused the entry, this process still gets notifications about it.
        epoch, version = (self._epoch, entry.version or NEWEST) if self.is_reachable else (_NEVER, -entry.version)
        if not codec.stays_here:
            self._served.note(key, codec.fingerprint, version)
        self._hold(key, entry, epoch, codec, replaced)
        self._subscriber(Notification(Kind.HELD, key, entry.version))

    # -- invalidating -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Invalidate `key` everywhere; while the store is unreachable, in this process at once and elsewhere later."""
        await self._invalidations.invalidate(key)

    async def mark_stale(self, key: str) -> None:
        """Mark the entries of `key` as stale everywhere, in the same way as `invalidate`."""
        await self._invalidations.mark_stale(key)

    async def invalidate_tag(self, *names: Name) -> None:
        """Invalidate or mark every entry that `names` concern, in the same way as `invalidate`."""
        await self._invalidations.invalidate_tag(*names)

    @property
    def heard(self) -> int:
        """Return the shared store's clock as this process last heard it."""
        return self.store.heard

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Invalidate those of `tags` that an entry may carry, in the same way as `invalidate_tag`."""
        await self._invalidations.invalidate_announced(tags)

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """See `Store.was_passed_over`."""
        return await self.store.was_passed_over(tags, since)

    # -- leases -----------------------------------------------------------------------------------------------

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
        """Take the shared store's lease; if the store returns an entry instead, hold it in the local cache, too."""
        if codec.stays_here:
            raise StoreUnavailable(f"the value of {key!r} stays in this process, as shared=False says")
        if self.store.is_unreachable(key):
            # Nothing was sent: no lease has to be given back.
            self._pending.add_unannounced(key, tags)
            raise StoreUnavailable("Redis cannot be reached")
        while True:
            epoch = self._epoch
            with self._watching(key, codec) as watch:
                try:
                    # Replay before taking the lease: a later replay would remove the entry that is loaded under it.
                    await self._pending.replay_before_load(key)
                    answer = await self.store.acquire(key, token, ttl, known, codec, force=force, tags=tags)
                except StoreUnavailable:
                    self._pending.add_unannounced(key, tags)
                    # The request may have arrived: a lease without a holder would block every process.
                    self._invalidations.give_back_later(Lease(key, token, 0, 0))
                    raise
                if not isinstance(answer, Entry):
                    return answer
                is_current = answer.version >= watch.minimum and not self._served.knows_newer(key, answer, codec)
                if is_current and not self._pending.outdates(key, answer):
                    answer = self._marked(key, answer, watch)
                    self._put(key, answer, epoch, codec)
                    return answer
            known = answer.version

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Invalidate `key` as `invalidate` does, and take the shared store's lease if it is reachable."""
        if codec.stays_here:
            await self.invalidate(key)
            raise StoreUnavailable(f"the value of {key!r} stays in this process, as shared=False says")
        return await self._invalidations.seize(key, token, ttl, codec)

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the shared store's lease."""
        await self.store.renew(lease, ttl)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Commit to the shared store, then to the local cache."""
        if self._pending.outdates(lease.key, entry) or self._pending.marks(lease.key, entry):
            await self.release(lease)
            raise LeaseLost(f"{lease.key!r} was invalidated while it was loaded")
        epoch = self._epoch
        with self._watching(lease.key, codec) as watch:
            try:
                await self.store.commit(lease, entry, codec)
            except StoreUnavailable:
                self._invalidations.give_back_later(lease)
                raise
            if entry.version < watch.minimum or not self._admits(entry) or self._pending.outdates(lease.key, entry):
                raise LeaseLost(f"{lease.key!r} was invalidated while it was committed")
            if not self._served.began_later(lease.key, entry, codec):
                self._put(lease.key, self._marked(lease.key, entry, watch), epoch, codec)
        self._subscriber(Notification(Kind.HELD, lease.key, lease.version))

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the shared store's lease back; if the store is unreachable, later."""
        try:
            await self.store.release(lease, pause)
        except StoreUnavailable:
            self._invalidations.give_back_later(lease)

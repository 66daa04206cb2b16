"""The local cache (L1) in front of a store that many processes share; the store's notifications keep it true.

A local entry is *confirmed* if notifications arrived ever since it came, and *superseded* if another process
committed a newer one. It is *suspect* if notifications may have been missed, or its commit was never confirmed. A
confirmed entry is served. The others are checked against the store first; but a stale entry that is only superseded
is served at once, as stale entries are. While the store is unreachable, all are served within their deadlines.

The store may have lost what this process has served: it has restarted with older data, or a replica has taken over
that was behind. An entry of the store that is older than the local one, or may be, is therefore no answer. Its key is
loaded again, which replaces both; only if that fails, the store's may be served. The local one is not: what the store
has lost, or what this process has missed, may have invalidated it.

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
from swr.stores.served import Served, in_doubt, is_newest
from swr.stores.tag_versions import Name, TagVersions
from swr.stores.watch import Watch

_NEVER: Final = -1


class TieredStore:
    """A local cache in front of a shared store.

    Parameters:
        local: this process's memory; one of no bytes holds nothing, and every read then goes to the store.
        store: what the processes share.
        clock: wall clock, seconds.
        passed_by: the loaders, see `Entry.loader`, whose entries the local cache does not hold.

    Attributes:
        is_reachable: whether notifications arrive, so that confirmed entries are true.
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
        # By key and fingerprint.
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
        """Return whether the shared store has to get an invalidation yet."""
        return self._pending.invalidations > 0

    async def settled(self) -> None:
        """Wait until nothing is pending, and let the shared store end."""
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
        """Empty the local cache, because no notification reaches it any more."""
        self.is_reachable = False
        self._invalidations.forget()
        self._hearing.lose()
        # No task frees what it holds.
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
            # A copy that has a higher version may be older anyway: the server's clock was put back.
            self.local.drop(key)
        elif kind is Kind.MARKED:
            self._on_mark(notification.text, version)
        elif kind is Kind.COMMITTED:
            self._on_commit(notification.text, version, fingerprint)
        elif kind is Kind.PENDING_KEY or kind is Kind.PENDING_TAG:
            # The process that lives longest replays it.
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
        """Outdate older copies, unless their values are of another type: another version of the application's."""
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
        # While its server is unreachable this will do; every entry is checked again once a server can be reached.
        is_unreachable = not self.is_reachable and self.store.is_unreachable(key)
        if not is_unreachable and slot.origin.epoch != self._epoch:
            return False
        if slot.is_superseded:
            # It stays so: the store may be reachable again before anything else ends this trust.
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
                # It came while the answer was on its way, or the store has refused it.
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
                own = None if (held := self._served.held(slot, codec)) is None else self._marked(key, held.entry, watch)
                return in_doubt(entry, own, self._clock())
            self._put(key, entry, epoch, codec)
            return entry

    def _put(self, key: str, entry: Entry[Any], epoch: int, codec: Codec) -> None:
        self._served.note(key, codec.fingerprint, entry.version)
        self._hold(key, entry, epoch, codec)

    def _hold(self, key: str, entry: Entry[Any], epoch: int, codec: Codec, replaced: Replaced | None = None) -> None:
        if entry.loader not in self.passed_by:
            self.local.put(key, entry, epoch, codec.fingerprint, replaced)

    def _read_unshared(self, key: str) -> Entry[Any] | None:
        """Return the local entry of a value that no other process has, or None; the store cannot confirm it."""
        slot = self.local.get(key)
        is_unreachable = not self.is_reachable and self.store.is_unreachable(key)
        if slot is not None and not is_unreachable and not self._confirmed(slot):
            self.local.drop(key)
            return None
        return self._fallback(key)

    def _marked(self, key: str, entry: Entry[Any], watch: Watch) -> Entry[Any]:
        """Return an entry of the shared store, marked stale if this process knows that it was."""
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
        # If the store is reachable and refused the entry, notifications about it arrive as for any other.
        epoch, version = (self._epoch, entry.version or NEWEST) if self.is_reachable else (_NEVER, -entry.version)
        if not codec.stays_here:
            self._served.note(key, codec.fingerprint, version)
        self._hold(key, entry, epoch, codec, replaced)
        self._subscriber(Notification(Kind.HELD, key, entry.version))

    # -- invalidating -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Invalidate `key` everywhere; while the store is unreachable, here at once and elsewhere later."""
        await self._invalidations.invalidate(key)

    async def mark_stale(self, key: str) -> None:
        """Mark what is stored for `key` everywhere, as `invalidate` does."""
        await self._invalidations.mark_stale(key)

    async def invalidate_tag(self, *names: Name) -> None:
        """Invalidate or mark every entry that is concerned everywhere, as `invalidate` does."""
        await self._invalidations.invalidate_tag(*names)

    @property
    def heard(self) -> int:
        """Return the shared store's clock as it was last heard."""
        return self.store.heard

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Invalidate those of `tags` that anything carries, as `invalidate_tag` does."""
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
        """Take the shared store's lease; an entry that it returns instead goes into the local cache."""
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
                    # Later loads are newer than these; a later replay would remove them again.
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

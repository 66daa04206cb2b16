"""The shelf of this process in front of a store that many processes share, kept true by the store's messages.

An entry on the shelf is *confirmed* (the link was whole ever since it came), *superseded* (a newer one was
committed elsewhere), or *suspect* (messages may have been missed, or its commit was never confirmed). The first is
served. The others are checked against the store first, except that a stale entry which is merely superseded goes
out at once, as stale entries do. While the store is away nothing can be checked, and what is on the shelf is
served within its deadlines.

An answer of the store that was on its way when news of its key arrived is compared with the news: every operation
that brings an entry is watched, and the shelf never takes what a message has already outdated.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, Self

import anyio

from swr.codec import Codec
from swr.entry import Entry
from swr.errors import LeaseLost, StoreUnavailable
from swr.stores.barriers import ALL, Barriers
from swr.stores.base import Held, Kind, Lease, LeasingStore, Listener, Message, Start
from swr.stores.shelf import UNCHECKED, Shelf, Slot

_MOST_OWED: Final = 10_000
_NEVER: Final = -1
_AGAIN_AFTER: Final = 1.0
_LOOKED_AFTER: Final = 0.01

log = logging.getLogger("swr")


class _Watch:
    """The operations on one key that are under way: what they bring must be at least as new as `floor`."""

    __slots__ = ("_key", "_under_way", "_watches", "floor")

    def __init__(self, watches: "dict[str, _Watch]", key: str) -> None:
        self.floor = 0
        self._under_way = 0
        self._watches = watches
        self._key = key

    def __enter__(self) -> Self:
        self._under_way += 1
        return self

    def __exit__(self, *_: object) -> None:
        self._under_way -= 1
        if not self._under_way:
            del self._watches[self._key]


class TieredStore:
    """A shelf in front of a shared store.

    Parameters:
        shelf: this process's memory; one of no bytes holds nothing, and every read then goes to the store.
        store: what the processes share.
        clock: wall clock, seconds.
    """

    def __init__(self, shelf: Shelf, store: LeasingStore, clock: Callable[[], float] = time.time) -> None:
        self.shelf = shelf
        self.store = store
        self._clock = clock
        self.up = False
        self._epoch = 0
        self._watches: dict[str, _Watch] = {}
        # What could not be told to the store: keys and tags to invalidate, tokens to give back.
        self._owed_keys: dict[str, object] = {}
        self._owed_tags: dict[str, object] = {}
        self._owed_leases: dict[str, Lease] = {}
        self._paying = False

    @property
    def barriers(self) -> Barriers:
        """Those of the shared store."""
        return self.store.barriers

    async def open(self, start: Start, listener: Listener) -> None:
        """Open the shared store and listen to it."""
        self._start, self._listener = start, listener
        await self.store.open(start, self._hear)

    def is_away(self, key: str) -> bool:
        """Whether the shared store is."""
        return self.store.is_away(key)

    async def settled(self) -> None:
        """Wait until what is owed is paid."""
        # Only closing waits for it: not worth an event at every debt.
        while self._owed_keys or self._owed_tags or self._owed_leases:  # noqa: ASYNC110
            await anyio.sleep(_LOOKED_AFTER)

    async def now(self) -> int:
        """Return the shared store's clock."""
        return await self.store.now()

    @property
    def sent(self) -> int:
        """Return how many commands the shared store has sent."""
        return self.store.sent

    async def aclose(self, listener: Listener) -> None:
        """Close the shared store."""
        owed = len(self._owed_keys) + len(self._owed_tags)
        if owed:
            log.warning("closed while the store is away: %d invalidations have reached this process alone", owed)
        await self.store.aclose(self._hear)

    def forget(self) -> None:
        """Empty the shelf, for nobody tells it of changes any more."""
        self.up = False
        self._paying = False
        self.shelf.clear()
        self.store.forget()

    # -- news -------------------------------------------------------------------------------------------------

    def _hear(self, message: Message) -> None:
        kind, name, version, _ = message
        if kind is Kind.UP:
            # Whatever was said while nobody listened: all that is here is suspect now.
            self.up = True
            self._epoch += 1
            self.shelf.doubt()
            self._start(self._pay_all)
        elif kind is Kind.DOWN:
            self.up = False
            self.shelf.doubt()
        elif kind is Kind.BARRIER:
            self.shelf.doubt()
        elif kind is Kind.INVALIDATED:
            self._raise_floor(name, version)
            slot = self.shelf.get(name)
            if slot is not None and slot.entry.version < version:
                self.shelf.drop(name)
        elif kind is Kind.COMMITTED:
            self._raise_floor(name, version)
            slot = self.shelf.get(name)
            if slot is not None and slot.entry.version < version:
                slot.superseded = True
                slot.checked = UNCHECKED
        self._listener(message)

    def _raise_floor(self, key: str, version: int) -> None:
        watch = self._watches.get(key)
        if watch is not None and watch.floor < version:
            watch.floor = version

    def _watching(self, key: str) -> _Watch:
        watch = self._watches.get(key)
        if watch is None:
            watch = self._watches[key] = _Watch(self._watches, key)
        return watch

    # -- reading ----------------------------------------------------------------------------------------------

    def peek(self, key: str) -> Entry[Any] | None:
        """Return the entry on the shelf if it may be trusted, or if there is nobody to ask."""
        slot = self.shelf.get(key)
        if slot is None or (slot.checked != self.shelf.generation and not self._trust(key, slot)):
            return None
        return slot.entry

    def _trust(self, key: str, slot: Slot) -> bool:
        entry = slot.entry
        if not self.barriers.admits(entry.head, entry.tags):
            self.shelf.drop(key)
            return False
        # While the store is away there is nobody to ask, and all of this is looked at again once it is back.
        if self.up:
            if slot.epoch != self._epoch:
                return False
            if slot.superseded:
                return self._clock() >= entry.fresh_until and not entry.absent
        slot.checked = self.shelf.generation
        return True

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Return the shared store's entry and keep it on the shelf; while the store is away, the shelf's."""
        if not self.up and self.store.is_away(key):
            return self._left(key)
        epoch = self._epoch
        with self._watching(key) as watch:
            try:
                entry = await self.store.read(key, codec)
            except StoreUnavailable:
                return self._left(key)
            slot = self.shelf.get(key)
            if slot is not None and self._confirmed(slot) and (entry is None or slot.entry.version >= entry.version):
                # It came while the answer was on its way.
                return slot.entry
            if entry is None or entry.version < watch.floor or self._is_owed(key, entry):
                self.shelf.drop(key)
                return None
            self.shelf.put(key, entry, epoch)
            return entry

    def _left(self, key: str) -> Entry[Any] | None:
        slot = self.shelf.get(key)
        return slot.entry if slot is not None and self._admits(slot.entry) else None

    def _admits(self, entry: Entry[Any]) -> bool:
        return self.barriers.admits(entry.head, entry.tags)

    def _confirmed(self, slot: Slot) -> bool:
        return slot.epoch == self._epoch and not slot.superseded and self._admits(slot.entry)

    def keep(self, key: str, entry: Entry[Any]) -> None:
        """Hold an entry that the store did not take: served while the store is away, checked when it is back."""
        # With the link whole, one that the store refused to store is as good as any: news of it would be heard.
        self.shelf.put(key, entry, self._epoch if self.up else _NEVER)

    # -- invalidating -----------------------------------------------------------------------------------------

    async def invalidate(self, key: str) -> None:
        """Invalidate `key` here and everywhere; while the store is away, here now and everywhere when it is back."""
        with anyio.CancelScope(shield=True):
            try:
                await self.store.invalidate(key)
            except StoreUnavailable:
                # What an operation under way may still bring is refused for it.
                self._owe(self._owed_keys, key)
                self.shelf.drop(key)
                self._listener(Message(Kind.INVALIDATED, key, 0))

    async def invalidate_tag(self, tag: str) -> None:
        """Invalidate all that carries `tag`, here and everywhere, as `invalidate` does."""
        with anyio.CancelScope(shield=True):
            try:
                await self.store.invalidate_tag(tag)
            except StoreUnavailable:
                self._owe(self._owed_tags, tag)
                # The barrier's number is the server's to give; until then the shelf is walked.
                for key, slot in list(self.shelf.slots.items()):
                    if tag == ALL or tag in slot.entry.tags:
                        self.shelf.drop(key)
                self._listener(Message(Kind.BARRIER, tag, 0))

    def _owe(self, owed: dict[str, object], name: str) -> None:
        if len(owed) >= _MOST_OWED:
            owed, name = self._owed_tags, ALL
        owed[name] = object()
        self._pay_soon()

    def _pay_soon(self) -> None:
        if self.up and not self._paying:
            self._paying = True
            self._start(self._pay_all)

    async def _pay_all(self) -> None:
        """Tell the store what it missed; one that is there and refuses, again and again."""
        while self.up and (self._owed_keys or self._owed_tags or self._owed_leases):
            try:
                await self._repay()
            except StoreUnavailable:
                await anyio.sleep(_AGAIN_AFTER)
        self._paying = False

    def _is_owed(self, key: str, entry: Entry[Any]) -> bool:
        """Whether `entry` was invalidated here and the store does not know it yet."""
        if not self._owed_keys and not self._owed_tags:
            return False
        return key in self._owed_keys or ALL in self._owed_tags or any(tag in self._owed_tags for tag in entry.tags)

    async def _repay(self) -> None:
        # Invalidations first: others answer what they outdate, and leases, of which there may be many, end anyway.
        await self._pay(self._owed_tags, self.store.invalidate_tag, list(self._owed_tags))
        await self._pay(self._owed_keys, self.store.invalidate, list(self._owed_keys))
        for token, lease in list(self._owed_leases.items()):
            await self.store.release(lease)
            self._owed_leases.pop(token, None)

    async def _pay(self, owed: dict[str, object], tell: Callable[[str], Awaitable[None]], names: Iterable[str]) -> None:
        for name in names:
            debt = owed.get(name)
            if debt is not None:
                await tell(name)
                # Unless it was invalidated once more, in vain, while this was under way.
                if owed.get(name) is debt:
                    del owed[name]

    # -- leases -----------------------------------------------------------------------------------------------

    async def acquire(
        self, key: str, token: str, ttl: float, known: int, codec: Codec, *, force: bool = False
    ) -> Lease | Held | Entry[Any]:
        """Take the shared store's lease; an entry that it returns instead goes onto the shelf."""
        if self.store.is_away(key):
            # Nothing was asked: there is no lease to be given back.
            raise StoreUnavailable("Redis is away")
        while True:
            epoch = self._epoch
            with self._watching(key) as watch:
                try:
                    # What is loaded from now on is newer than these; told later, they would take it away again.
                    await self._pay(self._owed_tags, self.store.invalidate_tag, list(self._owed_tags))
                    await self._pay(self._owed_keys, self.store.invalidate, (key,))
                    answer = await self.store.acquire(key, token, ttl, known, codec, force=force)
                except StoreUnavailable:
                    # The request may have arrived: a lease that nobody knows of would stand in everyone's way.
                    self._owe_lease(Lease(key, token, 0, 0))
                    raise
                if not isinstance(answer, Entry):
                    return answer
                if answer.version >= watch.floor and not self._is_owed(key, answer):
                    self.shelf.put(key, answer, epoch)
                    return answer
            known = answer.version

    def _owe_lease(self, lease: Lease) -> None:
        if len(self._owed_leases) < _MOST_OWED:
            self._owed_leases[lease.token] = lease
        self._pay_soon()

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Prolong the shared store's lease."""
        await self.store.renew(lease, ttl)

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Commit to the shared store, then to the shelf."""
        if self._is_owed(lease.key, entry):
            await self.release(lease)
            raise LeaseLost(f"{lease.key!r} was invalidated while it was loaded")
        epoch = self._epoch
        with self._watching(lease.key) as watch:
            try:
                await self.store.commit(lease, entry, codec)
            except StoreUnavailable:
                self._owe_lease(lease)
                raise
            if entry.version < watch.floor or not self._admits(entry) or self._is_owed(lease.key, entry):
                raise LeaseLost(f"{lease.key!r} was invalidated while it was committed")
            self.shelf.put(lease.key, entry, epoch)

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Give the shared store's lease back, later if it must be."""
        try:
            await self.store.release(lease, pause)
        except StoreUnavailable:
            self._owe_lease(lease)

"""Invalidations in a shared store. If the store does not take one, this process applies it at once and replays it."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Final

import anyio

from swr.core.codec import Codec
from swr.errors import StoreUnavailable
from swr.stores.base import Kind, Lease, Notification, SharedStore, Start, Subscriber
from swr.stores.local import LocalCache
from swr.stores.pending import Pending
from swr.stores.tag_versions import ALL, Name, OfKey, Soft

# Seconds after which a replay that the store refused is repeated.
_AGAIN_AFTER: Final = 1.0
# Seconds between two checks whether anything is pending.
_LOOKED_AFTER: Final = 0.01


class SharedInvalidations:
    """Invalidates entries in the shared store and in this process.

    Parameters:
        local: the local cache of this process.
        store: the store that the processes share.
        clock: wall clock, seconds.
        is_reachable: returns whether the store can be reached.

    Attributes:
        pending: the invalidations that the store has not taken yet.
    """

    def __init__(
        self, local: LocalCache, store: SharedStore, clock: Callable[[], float], is_reachable: Callable[[], bool]
    ) -> None:
        self.pending = Pending(store)
        self._local = local
        self._store = store
        self._clock = clock
        self._is_reachable = is_reachable
        self._replaying = False

    def open(self, start: Start, subscriber: Subscriber) -> None:
        """Replay in tasks that `start` starts; notify `subscriber` of invalidations that the store did not take."""
        self._start, self._subscriber = start, subscriber
        self.pending.open()

    def forget(self) -> None:
        """Note that no task replays anything any more, because the event loop has ended."""
        self._replaying = False

    async def settled(self) -> None:
        """Wait until nothing is pending."""
        # Only closing waits for this.
        while not self.pending.is_empty:  # noqa: ASYNC110  # an event would cost at every invalidation
            await anyio.sleep(_LOOKED_AFTER)

    def give_back_later(self, lease: Lease) -> None:
        """Give a lease back as soon as the store can be reached."""
        self.pending.add_release(lease)
        self._replay_soon()

    def replay(self) -> None:
        """Replay what is pending, in a task."""
        self._start(self._replay_all)

    async def invalidate(self, key: str) -> None:
        """Invalidate `key` everywhere; while the store is unreachable, in this process at once and elsewhere later."""
        with self._made(Kind.PENDING_KEY, key):
            await self._store.invalidate(key)

    async def mark_stale(self, key: str) -> None:
        """Mark the entries of `key` as stale everywhere, in the same way as `invalidate`."""
        with self._made(Kind.PENDING_TAG, Soft(OfKey(key))):
            await self._store.mark_stale(key)

    async def invalidate_tag(self, *names: Name) -> None:
        """Invalidate or mark every entry that `names` concern, in the same way as `invalidate`."""
        with self._made(Kind.PENDING_TAG, *names):
            await self._store.invalidate_tag(*names)

    @contextlib.contextmanager
    def _made(self, kind: Kind, *names: Name) -> Iterator[None]:
        """Keep these invalidations pending if the store does not take them, or the caller is cancelled meanwhile."""
        try:
            with self._even_if_cancelled(kind, *names):
                yield
        except StoreUnavailable as error:
            for name in names:
                self._invalidate_later(kind, name, error)

    def _invalidate_later(self, kind: Kind, name: Name, error: StoreUnavailable) -> None:
        self.pending.note_refusal(error)
        self.keep_pending(kind, name)
        self._store.tell_pending(kind, name)

    @contextlib.contextmanager
    def _even_if_cancelled(self, kind: Kind, *names: Name) -> Iterator[None]:
        """Keep these invalidations pending if the caller is cancelled meanwhile."""
        try:
            with anyio.CancelScope(shield=True):
                yield
        except asyncio.CancelledError:
            # `asyncio.timeout` and `Task.cancel` ignore the shield. The store may have invalidated the names, and does
            # not notify the process that asked for it.
            for name in names:
                self.keep_pending(kind, name)
            raise

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Invalidate those of `tags` that an entry may carry, in the same way as `invalidate_tag`."""
        # While loads of this process are not announced, the store does not know their tags: invalidate all of `tags`.
        if not self.pending.unannounced:
            with contextlib.suppress(StoreUnavailable), self._even_if_cancelled(Kind.PENDING_TAG, *tags):
                await self._store.invalidate_announced(tags)
                return
        await self.invalidate_tag(*tags)

    def keep_pending(self, kind: Kind, name: Name, *, elsewhere: bool = False) -> None:
        """Apply an invalidation here at once, and replay it until the store has it."""
        # Add it first: an operation under way may still bring the entry, which is refused while this is pending.
        if isinstance(name, str) and kind is Kind.PENDING_KEY:
            self.pending.add_key(name)
            self._forget(name, elsewhere=elsewhere)
        else:
            self.pending.add_tag(name)
            self._forget_named(name, elsewhere=elsewhere)
        self._replay_soon()

    def _forget(self, key: str, *, elsewhere: bool = False) -> None:
        """Drop the local entry of a key, and outdate the loads of the key that are under way in this process."""
        self._local.drop(key)
        self._subscriber(Notification(Kind.INVALIDATED, key, 0, elsewhere))

    def _forget_named(self, name: Name, *, elsewhere: bool = False) -> None:
        """Do the same as `_forget` for all keys that `name` concerns, or mark their entries as stale."""
        # Only the server can raise the tag version, so this version comes from the clock of this process.
        self._local.forget(name, int(self._clock() * 1e6))
        if isinstance(name, Soft) and isinstance(name.of, OfKey):
            self._subscriber(Notification(Kind.MARKED, name.of.key, 0, elsewhere))
        else:
            self._subscriber(Notification(Kind.TAG_VERSION, name, 0, elsewhere))

    def _replay_soon(self) -> None:
        if self._is_reachable() and not self._replaying:
            self._replaying = True
            self._start(self._replay_all)

    async def _replay_all(self) -> None:
        """Replay what is pending, and repeat this while the store is reachable but refuses."""
        while self._is_reachable() and not self.pending.is_empty:
            try:
                # The store did not know of these loads. It may have passed over invalidations by other processes.
                for key in await self.pending.replay():
                    if key == ALL:
                        self._forget_named(ALL)
                    else:
                        self._forget(key)
            except StoreUnavailable:
                await anyio.sleep(_AGAIN_AFTER)
        self._replaying = False

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Invalidate `key` as `invalidate` does, and take the shared store's lease if it is reachable."""
        with anyio.CancelScope(shield=True):
            try:
                # Replay before taking the lease: a later replay would remove the entry that is loaded under it.
                await self.pending.replay_before_load(key)
                lease = await self._store.seize(key, token, ttl, codec)
            except StoreUnavailable as error:
                self.pending.add_release(Lease(key, token, 0, 0))
                self._invalidate_later(Kind.PENDING_KEY, key, error)
                raise
        return lease

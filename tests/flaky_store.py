"""A store that fails when a test says so."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import anyio
import anyio.lowlevel

from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.base import Held, Kind, Lease, LeasingStore, Notification, Start, Subscriber
from swr.stores.tag_versions import Name, TagVersions, is_announced

T = TypeVar("T")


class FlakyStore:
    """A store that fails when a test says so.

    Parameters:
        store: the store behind it.

    Attributes:
        is_down: whether every operation fails and does not reach the store behind; `set_down` notifies the subscriber.
        lost: names of operations whose next reply is lost: the store carries them out, and they fail anyway.
        before, after: by name of an operation, functions to await before it is carried out, or before its reply comes.
        calls: the names of the operations so far.
    """

    def __init__(self, store: LeasingStore) -> None:
        self.store = store
        self.is_down = False
        self.lost: set[str] = set()
        self.before: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.after: dict[str, Callable[[], Awaitable[Any]]] = {}
        self.calls: list[str] = []

    async def _do(self, name: str, operation: Callable[[], Awaitable[T]]) -> T:
        self.calls.append(name)
        if name in self.before:
            await self.before[name]()
        if self.is_down:
            raise StoreUnavailable("down")
        result = await operation()
        if name in self.after:
            await self.after[name]()
        if name in self.lost:
            self.lost.discard(name)
            raise StoreUnavailable("the reply was lost")
        return result

    def set_down(self, is_down: bool) -> None:
        """Make the store unreachable or reachable, and notify the subscriber."""
        self.is_down = is_down
        self._subscriber(Notification(Kind.UNREACHABLE if is_down else Kind.REACHABLE))

    @property
    def tag_versions(self) -> TagVersions:
        """The tag versions of the store behind."""
        return self.store.tag_versions

    async def open(self, start: Start, subscriber: Subscriber) -> None:
        """Open the store behind."""
        self._subscriber = subscriber
        await self.store.open(start, self._on_notification)

    def _on_notification(self, notification: Notification) -> None:
        if not self.is_down:
            self._subscriber(notification)

    async def now(self) -> int:
        """Return the clock of the store behind, or fail."""
        return await self._do("now", self.store.now)

    @property
    def sent(self) -> int:
        """Return how many operations there were."""
        return len(self.calls)

    async def aclose(self, subscriber: Subscriber) -> None:
        """Close the store behind."""
        await self.store.aclose(self._on_notification)

    def is_unreachable(self, key: str) -> bool:
        """Return False: this store is known to be down only once it is asked."""
        return False

    @property
    def has_pending(self) -> bool:
        """Return False: this store has no pending invalidations."""
        return False

    def tell_pending(self, kind: Kind, name: Name) -> None:
        """Do nothing: other processes get no notification."""

    async def settled(self) -> None:
        """Return at once."""

    def forget(self) -> None:
        """Let the store behind forget."""
        self.store.forget()

    def keep(self, key: str, entry: Entry[Any], codec: Codec) -> None:
        """Let the store behind keep an entry."""
        self.store.keep(key, entry, codec)

    def peek(self, key: str) -> Entry[Any] | None:
        """Peek into the store behind."""
        return self.store.peek(key)

    async def read(self, key: str, codec: Codec) -> Entry[Any] | None:
        """Read, or fail."""
        return await self._do("read", lambda: self.store.read(key, codec))

    async def invalidate(self, key: str) -> None:
        """Invalidate, or fail."""
        await self._do("invalidate", lambda: self.store.invalidate(key))

    async def mark_stale(self, key: str) -> None:
        """Mark, or fail."""
        await self._do("mark_stale", lambda: self.store.mark_stale(key))

    async def invalidate_tag(self, *names: Name) -> None:
        """Invalidate, or fail."""
        await self._do("invalidate_tag", lambda: self.store.invalidate_tag(*names))

    @property
    def heard(self) -> int:
        """Return the clock of the store behind."""
        return self.store.heard

    async def invalidate_announced(self, tags: Sequence[str]) -> None:
        """Invalidate, or fail."""
        await self._do("invalidate_announced", lambda: self.store.invalidate_announced(tags))

    async def was_passed_over(self, tags: tuple[str, ...], since: int) -> bool:
        """Ask the store behind, or fail."""
        return await self._do("was_passed_over", lambda: self.store.was_passed_over(tags, since))

    def unannounced(self, tags: tuple[str, ...]) -> tuple[str, ...]:
        """Return the tags that have not been announced: none, or if the store is down, all that must be announced."""
        return tuple(tag for tag in tags if is_announced(tag)) if self.is_down else ()

    async def announce(self, tags: tuple[str, ...]) -> None:
        """Announce, or fail."""
        await self._do("announce", anyio.lowlevel.checkpoint)

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
        """Acquire, or fail."""
        return await self._do(
            "acquire", lambda: self.store.acquire(key, token, ttl, known, codec, force=force, tags=tags)
        )

    async def seize(self, key: str, token: str, ttl: float, codec: Codec) -> Lease:
        """Seize, or fail."""
        return await self._do("seize", lambda: self.store.seize(key, token, ttl, codec))

    async def renew(self, lease: Lease, ttl: float) -> None:
        """Renew, or fail."""
        await self._do("renew", lambda: self.store.renew(lease, ttl))

    async def commit(self, lease: Lease, entry: Entry[Any], codec: Codec) -> None:
        """Commit, or fail."""
        await self._do("commit", lambda: self.store.commit(lease, entry, codec))

    async def release(self, lease: Lease, pause: float = 0.0) -> None:
        """Release, or fail."""
        await self._do("release", lambda: self.store.release(lease, pause))

"""Invalidations that the shared store has not taken yet."""

import logging
from collections.abc import Awaitable, Callable
from typing import Any, Final, TypeVar

import anyio

from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.base import Lease, SharedStore, StoreRefused
from swr.stores.tag_versions import ALL, Name, OfKey, OfLoader, Soft, concerns

_MOST: Final = 10_000
# Keys that are replayed at the same time.
_AT_ONCE: Final = 200

N = TypeVar("N")
log = logging.getLogger("swr")


class Pending:
    """Invalidations, leases to give back, and announcements that the store has not taken yet.

    Parameters:
        store: the store that the processes share.

    Attributes:
        unannounced: by key, the tags of loads that this process could not announce to the store. The key ALL, without
            tags, means that there were more keys than are remembered.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._keys: dict[str, object] = {}
        # Pending invalidations of tags, of loaders and of everything; and all pending marks, including those of keys.
        self._tags: dict[Name, object] = {}
        # Names of loaders that are in `_tags`, or were: there are few of them.
        self._of_loaders: set[Name] = set()
        self._releases: dict[str, Lease] = {}
        self._is_refused = False
        self.unannounced: dict[str, tuple[str, ...]] = {}

    def open(self) -> None:
        """Begin on this event loop."""
        self._turn = anyio.Lock()

    @property
    def invalidations(self) -> int:
        """Return how many invalidations are pending."""
        return len(self._keys) + len(self._tags)

    @property
    def is_empty(self) -> bool:
        """Return whether nothing is pending: no invalidation, lease or announcement."""
        return not (self._keys or self._tags or self._releases or self.unannounced)

    def add_key(self, key: str) -> None:
        """Add the invalidation of a key; if too many are pending, add one of everything instead."""
        if len(self._keys) >= _MOST:
            self._tags[ALL] = object()
        else:
            self._keys[key] = object()

    def add_tag(self, name: Name) -> None:
        """Add an invalidation or a mark of `name`; if too many are pending, invalidate everything instead."""
        if len(self._tags) >= _MOST:
            name = ALL
        self._tags[name] = object()
        if isinstance(name.of if isinstance(name, Soft) else name, OfLoader):
            self._of_loaders.add(name)

    def add_release(self, lease: Lease) -> None:
        """Add a lease to give back; if too many are pending, leave it to expire."""
        if len(self._releases) < _MOST:
            self._releases[lease.token] = lease

    def add_unannounced(self, key: str, tags: tuple[str, ...]) -> None:
        """Add the tags of a load of `key` that are not announced to the store."""
        missing = self._store.unannounced(tags)
        if missing:
            if len(self.unannounced) >= _MOST:
                key, missing = ALL, ()
            self.unannounced[key] = missing

    def note_refusal(self, error: StoreUnavailable) -> None:
        """Log a refusal of invalidations, once until the store takes them again; other errors are not logged."""
        if isinstance(error, StoreRefused) and not self._is_refused:
            self._is_refused = True
            log.warning(
                "Redis refuses invalidations (%s): swr replays them; until then they count only in the processes "
                "that run now",
                error,
            )

    def on_close(self) -> None:
        """Log how many invalidations are lost with this process, because the store has not taken them."""
        if self.invalidations:
            log.warning(
                "closed before Redis had taken %d invalidations: other processes may go on with older values; "
                "run `swr invalidate --all` once Redis can be reached",
                self.invalidations,
            )

    def outdates(self, key: str, entry: Entry[Any]) -> bool:
        """Return whether an invalidation of `entry` is pending."""
        if not self._keys and not self._tags:
            return False
        return key in self._keys or any(name in self._tags for name in (ALL, *entry.tags)) or self._is_of_loader(entry)

    def marks(self, key: str, entry: Entry[Any]) -> bool:
        """Return whether a mark of `entry` is pending."""
        if not self._tags:
            return False
        names = (Soft(OfKey(key)), Soft(ALL), *map(Soft, entry.tags))
        return any(name in self._tags for name in names) or self._is_of_loader(entry, is_soft=True)

    def _is_of_loader(self, entry: Entry[Any], *, is_soft: bool = False) -> bool:
        return any(
            isinstance(name, Soft) is is_soft and name in self._tags and concerns(name, (), entry.loader)
            for name in self._of_loaders
        )

    async def replay_before_load(self, key: str) -> None:
        """Send the store the pending invalidations that may outdate a load of `key`, before that load begins.

        Raises:
            StoreUnavailable: the store did not answer, or refused.
        """
        if self._keys or self._tags:
            await self._replay_names()
            await self._replay_key(key)

    async def replay(self) -> list[str]:
        """Send the store everything that is pending; return the keys of loads that are announced only now.

        ALL among them means that there were more keys than are remembered.

        Raises:
            StoreUnavailable: the store did not answer, or refused.
        """
        # Invalidations first: until then other processes serve outdated entries, while leases expire anyway.
        await self._replay_names()
        marked = (key for key in map(_key_of, self._tags) if key is not None)
        await self._replay_keys([*self._keys, *marked])
        for token, lease in list(self._releases.items()):
            await self._store.release(lease)
            self._releases.pop(token, None)
        unannounced = dict(self.unannounced)
        if unannounced:
            # If there were too many keys, their tags are not known. The caller gets ALL and forgets every entry.
            await self._store.announce(tuple({tag for tags in unannounced.values() for tag in tags}))
        for key, tags in unannounced.items():
            if self.unannounced.get(key) == tags:
                del self.unannounced[key]
        if self._is_refused and not self.invalidations:
            self._is_refused = False
            log.warning("Redis takes invalidations again; all that were pending are replayed")
        return list(unannounced)

    async def _replay_names(self) -> None:
        """Replay all pending invalidations but those of single keys. Loads that begin together share the commands."""
        names = [name for name in self._tags if _key_of(name) is None]
        if names:
            async with self._turn:
                await _replay(self._tags, self._store.invalidate_tag, *names)

    async def _replay_keys(self, keys: list[str]) -> None:
        """Replay the invalidations of single keys, many at once. One after the other, each would take a round trip."""
        failures: list[StoreUnavailable] = []

        async def replay_one(key: str) -> None:
            try:
                await self._replay_key(key)
            except StoreUnavailable as error:
                failures.append(error)

        for first in range(0, len(keys), _AT_ONCE):
            async with anyio.create_task_group() as group:
                for key in keys[first : first + _AT_ONCE]:
                    group.start_soon(replay_one, key)
            if failures:
                raise failures[0]

    async def _replay_key(self, key: str) -> None:
        await _replay(self._keys, self._store.invalidate, key)
        await _replay(self._tags, lambda name: self._store.mark_stale(key), Soft(OfKey(key)))


def _key_of(name: Name) -> str | None:
    """Return the key that the mark `name` concerns, or None."""
    return name.of.key if isinstance(name, Soft) and isinstance(name.of, OfKey) else None


async def _replay(pending: dict[N, object], invalidate: Callable[..., Awaitable[None]], *names: N) -> None:
    marks = {name: pending[name] for name in names if name in pending}
    if marks:
        await invalidate(*marks)
        for name, mark in marks.items():
            # Keep it pending if the store did not take another invalidation of it meanwhile.
            if pending.get(name) is mark:
                del pending[name]

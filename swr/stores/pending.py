"""Invalidations that the shared store has not taken yet."""

import logging
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Final, TypeVar

from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.base import Lease, SharedStore, StoreRefused
from swr.stores.tag_versions import ALL, Name, OfKey, OfLoader, Soft, concerns

_MOST: Final = 10_000

N = TypeVar("N")
log = logging.getLogger("swr")


class Pending:
    """Invalidations, leases to give back, and announcements, until the store has them.

    Parameters:
        store: what the processes share.

    Attributes:
        unannounced: the tags of what this process loads or holds without the store's knowledge, by key; ALL: of more
            than are remembered.
    """

    def __init__(self, store: SharedStore) -> None:
        self._store = store
        self._keys: dict[str, object] = {}
        # Tags and the like, and what is marked.
        self._tags: dict[Name, object] = {}
        # Those of loaders among them, or that were: they are few.
        self._of_loaders: set[Name] = set()
        self._releases: dict[str, Lease] = {}
        self._is_refused = False
        self.unannounced: dict[str, tuple[str, ...]] = {}

    @property
    def invalidations(self) -> int:
        """Return how many invalidations are pending."""
        return len(self._keys) + len(self._tags)

    @property
    def is_empty(self) -> bool:
        """Return whether no invalidation is pending."""
        return not (self._keys or self._tags or self._releases or self.unannounced)

    def add_key(self, key: str) -> None:
        """Add the invalidation of a key; if too many are pending, one of everything."""
        if len(self._keys) >= _MOST:
            self._tags[ALL] = object()
        else:
            self._keys[key] = object()

    def add_tag(self, name: Name) -> None:
        """Add an invalidation or a mark of a tag or the like; if too many are pending, one of everything."""
        if len(self._tags) >= _MOST:
            name = ALL
        self._tags[name] = object()
        if isinstance(name.of if isinstance(name, Soft) else name, OfLoader):
            self._of_loaders.add(name)

    def add_release(self, lease: Lease) -> None:
        """Add a lease to give back. One that is too much expires."""
        if len(self._releases) < _MOST:
            self._releases[lease.token] = lease

    def add_unannounced(self, key: str, tags: tuple[str, ...]) -> None:
        """Add what is loaded under a key, unless the store knows of it."""
        missing = self._store.unannounced(tags)
        if missing:
            if len(self.unannounced) >= _MOST:
                key, missing = ALL, ()
            self.unannounced[key] = missing

    def note_refusal(self, error: StoreUnavailable) -> None:
        """Log, once until it ends, that the store refuses invalidations, if `error` says so."""
        if isinstance(error, StoreRefused) and not self._is_refused:
            self._is_refused = True
            log.warning(
                "Redis refuses invalidations (%s): swr replays them; until then they count only in the processes "
                "that run now",
                error,
            )

    def on_close(self) -> None:
        """Log how many invalidations this process takes with it, because the store has not taken them."""
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
        """Send the store the invalidations that would outdate a load of `key` that begins now.

        Raises:
            StoreUnavailable: no answer, or a refusal.
        """
        if self._keys or self._tags:
            await _replay(self._tags, self._replay_name, list(self._tags))
            await _replay(self._keys, self._store.invalidate, (key,))

    async def replay(self) -> list[str]:
        """Send the store all that is pending; return the keys of loads that it did not know of, ALL if they are too
        many.

        Raises:
            StoreUnavailable: no answer, or a refusal.
        """
        # Invalidations first: until then other processes serve outdated entries, while leases expire anyway.
        await _replay(self._tags, self._replay_name, list(self._tags))
        await _replay(self._keys, self._store.invalidate, list(self._keys))
        for token, lease in list(self._releases.items()):
            await self._store.release(lease)
            self._releases.pop(token, None)
        unannounced = dict(self.unannounced)
        if unannounced:
            # In vain for more than are remembered: their keys are not known either, and nothing of them is kept.
            await self._store.announce(tuple({tag for tags in unannounced.values() for tag in tags}))
        for key, tags in unannounced.items():
            if self.unannounced.get(key) == tags:
                del self.unannounced[key]
        if self._is_refused and not self.invalidations:
            self._is_refused = False
            log.warning("Redis takes invalidations again; all that were pending are replayed")
        return list(unannounced)

    async def _replay_name(self, name: Name) -> None:
        if isinstance(name, Soft) and isinstance(name.of, OfKey):
            await self._store.mark_stale(name.of.key)
        else:
            await self._store.invalidate_tag(name)


async def _replay(pending: dict[N, object], invalidate: Callable[[N], Awaitable[None]], names: Iterable[N]) -> None:
    for name in names:
        mark = pending.get(name)
        if mark is not None:
            await invalidate(name)
            # Unless it was invalidated once more, in vain, while this was under way.
            if pending.get(name) is mark:
                del pending[name]

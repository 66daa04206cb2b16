"""Decides which stored variants of a URL stay when there are too many."""

from typing import Final
from weakref import WeakValueDictionary

import anyio

# Clients choose the variants, so swr remembers the uses of a limited number of them.
_MOST_REMEMBERED: Final = 10_000


class Variants:
    """The uses of variants by this process, by which swr makes room for new ones.

    Parameters:
        most: how many variants of one URL may be stored.
    """

    def __init__(self, most: int) -> None:
        self._most = most
        # The number of the last use of each variant, by key; least recently used first.
        self._used: dict[str, int] = {}
        self._uses = 0
        self._locks: WeakValueDictionary[str, anyio.Lock] = WeakValueDictionary()

    def use(self, key: str) -> None:
        """Note that a request was answered with the variant of this key."""
        self._used.pop(key, None)
        self._uses += 1
        self._used[key] = self._uses
        if len(self._used) > _MOST_REMEMBERED:
            del self._used[next(iter(self._used))]

    def lock(self, url: str) -> anyio.Lock:
        """Return the lock of the list of variants of a URL."""
        lock = self._locks.get(url)
        if lock is None:
            lock = self._locks[url] = anyio.Lock(fast_acquire=True)
        return lock

    def make_room(self, url: str, known: tuple[str, ...]) -> tuple[tuple[str, ...], tuple[str, ...]]:
        """Return the variants that stay when a new one comes, and those that go.

        The first to go are variants that no request has used since they were stored, newest first. So a client that
        sends ever new values displaces only variants that no other client uses. Then the least recently used ones go.

        Parameters:
            url: the key of the URL.
            known: the suffixes that make the keys of its variants from the key of the URL, oldest first.
        """
        number = len(known) + 1 - self._most
        if number <= 0:
            return known, ()
        # Unused variants come first, the newest of them at the front.
        order = sorted(range(len(known)), key=lambda at: (self._used.get(url + known[at], 0), -at))
        going = set(order[:number])
        kept = tuple(variant for at, variant in enumerate(known) if at not in going)
        return kept, tuple(known[at] for at in sorted(going))

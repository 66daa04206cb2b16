"""The backoff: keys that this process leaves alone for a while, because a load failed or another process loads."""

import math
from collections.abc import Callable
from typing import Final, NamedTuple

from cachetools import Cache, LRUCache

from swr.engine.failures import for_later

_MOST_KEYS: Final = 10_000
# The first and the longest backoff, in seconds. Each further failure multiplies the backoff by the factor.
_SHORTEST: Final = 1.0
_LONGEST: Final = 60.0
_FACTOR: Final = 2.0


def backoff_after(failures: int, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds between a failed load and the next one.

    The delay starts at 1 s, doubles with each failure up to 60 s, and varies by 25 %, so that keys retry apart.

    Parameters:
        failures: failed loads in a row before this one.
        uniform: returns a random number between its two arguments.
    """
    return min(_LONGEST, _SHORTEST * _FACTOR ** min(failures, 10)) * uniform(0.75, 1.25)


class _Backoff(NamedTuple):
    until: float
    error: BaseException | None
    origin: str
    failures: int


class Backoffs:
    """The backoffs of keys, each with its end, and with the error if a load failed.

    Parameters:
        time: returns the event loop's time, in seconds.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._backoffs: LRUCache[str, _Backoff] = LRUCache(_MOST_KEYS)

    def begin(self, key: str, seconds: float, error: BaseException | None, origin: str = "", failures: int = 0) -> None:
        """Begin a backoff of `key` that ends in `seconds`.

        Parameters:
            origin: the loader of the key; see `Entry.loader`.
            failures: how many loads of the key have failed in a row.
        """
        kept = None if error is None else for_later(error)
        self._backoffs[key] = _Backoff(self._time() + seconds, kept, origin, failures)

    def failures(self, key: str) -> int:
        """Return how many failures in a row made `key` back off."""
        backoff = self._backoffs.get(key)
        return 0 if backoff is None else backoff.failures

    def origins(self) -> list[str]:
        """Return the origin of each key that backs off now because a load has failed."""
        return [origin for origin, _ in self._failed()]

    def soonest(self) -> dict[str, float]:
        """Return for each origin the seconds until the first of its keys may be loaded again after a failure."""
        left: dict[str, float] = {}
        for origin, seconds in self._failed():
            left[origin] = min(left.get(origin, math.inf), seconds)
        return left

    def _failed(self) -> list[tuple[str, float]]:
        """Return the origin of each key that backs off because a load has failed, and the seconds that are left."""
        if not self._backoffs:
            return []
        now, found = self._time(), []
        # Another thread may begin and end backoffs meanwhile. `list` copies the keys of a dict in one step, but would
        # first call `LRUCache.__len__`, which is Python code.
        for key in list(iter(self._backoffs)):
            try:
                # This way, the look-up does not count as a use of the key.
                until, error, origin, _ = Cache.__getitem__(self._backoffs, key)
            except KeyError:
                continue
            if error is not None and until > now:
                found.append((origin, until - now))
        return found

    def end(self, key: str) -> None:
        """Let `key` be loaded again."""
        self._backoffs.pop(key, None)

    def clear(self) -> None:
        """Let every key be loaded again."""
        self._backoffs.clear()

    def left(self, key: str) -> float:
        """Return the seconds for which `key` still backs off."""
        backoff = self._backoffs.get(key)
        return 0.0 if backoff is None else max(0.0, backoff.until - self._time())

    def last_error(self, key: str) -> BaseException | None:
        """Return the error that this process last saw for `key`, even if its backoff is over, or None."""
        backoff = self._backoffs.get(key)
        return None if backoff is None or backoff.error is None else for_later(backoff.error)

    def error(self, key: str) -> BaseException | None:
        """Return the error because of which `key` backs off; None: no backoff, or one without an error."""
        return self.last_error(key) if self.left(key) > 0 else None

"""The backoff: keys that this process leaves alone for a while, because a load failed or another process loads."""

import contextlib
import math
from collections.abc import Callable
from typing import Final, NamedTuple

from cachetools import Cache, LRUCache

from swr.engine.failures import for_later

_MOST_KEYS: Final = 10_000
# Seconds.
_SHORTEST: Final = 1.0
_LONGEST: Final = 60.0
_FACTOR: Final = 2.0


def backoff_after(failures: int, uniform: Callable[[float, float], float]) -> float:
    """Return the seconds until the next load after `failures` failed loads in a row and one more.

    The delay starts at 1 s, doubles with each failure up to 60 s, and varies by 25 % so that keys do not retry at once.

    Parameters:
        failures: failed loads in a row before this one.
        uniform: random number between two.
    """
    return min(_LONGEST, _SHORTEST * _FACTOR ** min(failures, 10)) * uniform(0.75, 1.25)


class _Backoff(NamedTuple):
    until: float
    error: BaseException | None
    origin: str
    failures: int


class Backoffs:
    """The keys that back off, until when, and the error that caused it, if a load failed.

    Parameters:
        time: the event loop's clock, seconds.
    """

    def __init__(self, time: Callable[[], float]) -> None:
        self._time = time
        self._backoffs: LRUCache[str, _Backoff] = LRUCache(_MOST_KEYS)

    def begin(self, key: str, seconds: float, error: BaseException | None, origin: str = "") -> None:
        """Begin a backoff of `key` that ends in `seconds`.

        Parameters:
            origin: of its loads, see `Entry.loader`.
        """
        kept = None if error is None else for_later(error)
        failures = self.failures(key) + (error is not None)
        self._backoffs[key] = _Backoff(self._time() + seconds, kept, origin, failures)

    def failures(self, key: str) -> int:
        """Return how many times in a row `key` backed off for an error."""
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
        """Return the origin of each key that backs off because a load has failed, and for how many seconds."""
        if not self._backoffs:
            return []
        now, found = self._time(), []
        for key in list(self._backoffs):
            # Looked at in a way that does not make it the most recently used. It may end meanwhile, in another thread.
            with contextlib.suppress(KeyError):
                backoff = Cache.__getitem__(self._backoffs, key)
                if backoff.error is not None and backoff.until > now:
                    found.append((backoff.origin, backoff.until - now))
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
        """Return the error for which `key` backs off; None if it does not, or not for an error."""
        return self.last_error(key) if self.left(key) > 0 else None

"""Log lines about failed loads whose callers get a stored value, and so do not see the failure."""

import logging
from typing import Final

from swr.engine.failures import text_of
from swr.errors import SWRError

log = logging.getLogger("swr")
# Most lines for one loader within these seconds. If a database is down, the loads of every popular key fail.
_MOST_LINES: Final = 10
_WITHIN: Final = 60.0


class FailureLog:
    """A log of failed loads, with a limited number of lines for each loader."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._ends = 0.0

    def write(self, key: str, origin: str, error: BaseException, then: str, now: float) -> None:
        """Log that the load of `key` failed, unless its loader or route has reached the limit.

        Parameters:
            key: the key that was loaded.
            origin: the loader or the route.
            error: the failure.
            then: text that says what swr does after the failure.
            now: the time in seconds, of a monotonic clock.
        """
        if now >= self._ends:
            self._lines.clear()
            self._ends = now + _WITHIN
        lines = self._lines[origin] = self._lines.get(origin, 0) + 1
        if lines > _MOST_LINES:
            return
        is_last = lines == _MOST_LINES
        rest = f"; swr logs no further failures of {origin!r} for {self._ends - now:.0f} s" if is_last else ""
        trace = None if isinstance(error, SWRError) else error
        log.warning("the load of %r failed (%s); %s%s", key, text_of(error), then, rest, exc_info=trace)

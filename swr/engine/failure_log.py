"""Log lines about failed loads whose callers get the stored value, and so do not see the failure."""

import logging
from typing import Final

from swr.engine.failures import text_of
from swr.errors import SWRError

log = logging.getLogger("swr")
# The most lines of one loader within these seconds: a database that is down fails the loads of every popular key.
_MOST_LINES: Final = 10
_WITHIN: Final = 60.0


class FailureLog:
    """Log failed loads, some of each loader."""

    def __init__(self) -> None:
        self._lines: dict[str, int] = {}
        self._ends = 0.0

    def write(self, key: str, origin: str, error: BaseException, then: str, now: float) -> None:
        """Log that the load of `key` failed, unless enough is logged of where it comes from.

        Parameters:
            key: what was loaded.
            origin: the loader or the route.
            error: the failure.
            then: what follows from it.
            now: in seconds of a clock that is not put back.
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

"""Refused commands: swr notifies its subscriber of each refusal, and logs when refusals begin and end."""

import logging
import time
from collections import deque
from typing import Final

from redis.exceptions import RedisError

from swr.stores.base import Kind, Notification, Subscriber
from swr.stores.redis.reasons import explain_refusal, with_remedy

log = logging.getLogger("swr")
# The most log lines in this many seconds. A server at its limit may refuse one command and accept the next.
_MOST_LINES: Final = 10
_WITHIN: Final = 3600.0
# Seconds after which a refusal counts as over.
_LATELY: Final = 15.0


class Refusals:
    """Tracks whether the servers of one store refuse commands."""

    def __init__(self) -> None:
        # The kind of refusal that was logged last; None: there was none, or its end was logged.
        self._logged: type[RedisError] | None = None
        self._lines: deque[float] = deque(maxlen=_MOST_LINES)
        # The text of the last refusal, since when there are refusals without a break (in seconds since 1970), and when
        # the last one came (by the monotonic clock).
        self._last: tuple[str, float, float] | None = None

    def open(self, subscriber: Subscriber) -> None:
        """Notify `subscriber` of each refusal from now on."""
        self._subscriber = subscriber

    def refused(self, error: RedisError) -> None:
        """Note that a command was refused."""
        began = self.lately()
        text = with_remedy(str(error).rstrip("."), error)
        self._last = (text, time.time() if began is None else began[1], time.monotonic())
        self._subscriber(Notification(Kind.REFUSED, str(error)))
        if type(error) is not self._logged:
            self._log(type(error), explain_refusal(error))

    def lately(self) -> tuple[str, float] | None:
        """Return the last refusal with its remedy, and since when commands are refused, in seconds since 1970.

        Return None if nothing was refused in the last 15 seconds.
        """
        if self._last is None:
            return None
        text, since, last = self._last
        return (text, since) if time.monotonic() - last < _LATELY else None

    def stored(self) -> None:
        """Note that a value was stored."""
        if self._logged is not None:
            self._log(None, "Redis stores values again")

    def _log(self, kind: type[RedisError] | None, text: str) -> None:
        now = time.monotonic()
        if len(self._lines) < _MOST_LINES or now - self._lines[0] > _WITHIN:
            self._logged = kind
            self._lines.append(now)
            log.warning("%s", text)

"""Refusals of servers: publish each of them, and log when they begin and end."""

import logging
import time
from collections import deque
from typing import Final

from redis.exceptions import RedisError

from swr.stores.base import Kind, Notification, Subscriber
from swr.stores.redis.reasons import explain_refusal, with_remedy

log = logging.getLogger("swr")
# The most lines within these seconds: a server at its limit may change its mind with each command.
_MOST_LINES: Final = 10
_WITHIN: Final = 3600.0
# Seconds. A refusal that is further back is over.
_LATELY: Final = 15.0


class Refusals:
    """Notes whether the servers of one store refuse commands."""

    def __init__(self) -> None:
        # The kind of refusal that was logged last; None: that there is none any more.
        self._logged: type[RedisError] | None = None
        self._lines: deque[float] = deque(maxlen=_MOST_LINES)
        # The last refusal; since when they come without a pause, in seconds since 1970; and when it came, by the
        # monotonic clock.
        self._last: tuple[str, float, float] | None = None

    def open(self, subscriber: Subscriber) -> None:
        """Tell `subscriber` of each refusal from now on."""
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
        """Return the last refusal with its remedy, and since when commands are refused.

        The moment is in seconds since 1970. None: nothing was refused in the last 15 seconds.
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

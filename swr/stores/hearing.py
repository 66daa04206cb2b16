"""Tracks whether this process reads notifications, which it can do only while its event loop runs.

A script may run its loop only during calls, or go on with another loop without closing this one. A process may be
stopped, or block its loop for long. In these cases local entries are trusted for at most `HEARD_FOR`. Usually their
trust ends at once, because swr notices when asyncio ends a run of the loop. When the loop goes on, notifications may be
unread, and callers are answered before they are read. So every local entry is suspect from then on, as after any gap.
"""

import math
import sys
import time
import weakref
from collections.abc import Callable
from typing import Final

import anyio

from swr.stores.local import LocalCache

# Seconds for which entries stay trusted after the event loop last ran. Together with the delay of a message, this must
# stay below 2 s.
HEARD_FOR: Final = 1.5
# Seconds between two notes that the event loop runs.
_TURNED_EVERY: Final = 0.4
_NEVER: Final = (-math.inf, -math.inf)


class Hearing:
    """Lets the entries of a local cache be trusted while the event loop runs without a pause.

    Parameters:
        local: the local cache.
        clock: the wall clock that fresh hits read, in seconds.
        on_gap: called before entries are trusted again, if notifications may be unread.
    """

    def __init__(self, local: LocalCache, clock: Callable[[], float], on_gap: Callable[[], None]) -> None:
        self._local = local
        self._clock = clock
        self._on_gap = on_gap
        # An object that exists only during this run of the event loop.
        self._run: weakref.ref[object] | None = None
        # When the event loop last ran, by this machine's clocks. The user may set a clock of their own to any time.
        self._turned_at = _NEVER
        self._turning: object = None
        self.lose()

    async def keep(self) -> None:
        """Trust local entries while this call runs; a later call ends it."""
        turning = self._turning = object()
        while self._turning is turning:
            self.resume()
            self._turn()
            await anyio.sleep(_TURNED_EVERY)

    @property
    def is_lost(self) -> bool:
        """Return whether notifications may be unread, so that no local entry can be trusted."""
        # While the whole machine sleeps, only its wall clock goes on.
        (wall, monotonic), (turned, turned_monotonic) = machine_clocks(), self._turned_at
        return wall - turned >= HEARD_FOR or monotonic - turned_monotonic >= HEARD_FOR

    def resume(self) -> None:
        """Make the held entries suspect if notifications may be unread, and let later ones be trusted again."""
        if self.is_lost:
            # The loop's hook for async generators is a bound method: the loop makes it for a run, and drops it then.
            hook = sys.get_asyncgen_hooks().firstiter
            self._run = None if hook is None else weakref.ref(hook, self._on_end)
            self._on_gap()
            self._turn()

    def _turn(self) -> None:
        self._turned_at = machine_clocks()
        self._local.trust.until = self._clock() + HEARD_FOR

    def _on_end(self, _: object) -> None:
        self._turned_at = _NEVER
        self._local.trust.until = -math.inf

    def lose(self) -> None:
        """Trust no entry from now on, because the event loop has ended or changed."""
        # Another store may use the local cache from now on, so this object must not change its trust later.
        self._turning = self._run = None
        self._on_end(None)


def machine_clocks() -> tuple[float, float]:
    """Return this machine's wall clock and its monotonic one, in seconds."""
    return time.time(), time.monotonic()

"""Notes whether this process reads notifications, which it does only while its event loop runs.

The loop of a script may run during calls alone, and be left for another one without closing; a process may be stopped,
or hold its loop for long. Local entries are then trusted for no longer than `HEARD_FOR`. Most often not even for that:
asyncio tells when a loop ends its run. Whatever was told meanwhile may lie unread when the loop goes on, and before it
is read callers are answered. So every local entry is suspect from then on, as after any gap.
"""

import math
import sys
import time
import weakref
from collections.abc import Callable
from typing import Final

import anyio

from swr.stores.local import LocalCache

# Seconds that entries are trusted once the event loop has turned: with what a message takes, less than two.
HEARD_FOR: Final = 1.5
_TURNED_EVERY: Final = 0.4
_NEVER: Final = (-math.inf, -math.inf)


class Hearing:
    """Has a local cache trusted while the event loop turns.

    Parameters:
        local: the local cache.
        clock: wall clock, seconds, as the fresh hit reads it.
        on_gap: called, before entries are trusted again, when notifications may lie unread.
    """

    def __init__(self, local: LocalCache, clock: Callable[[], float], on_gap: Callable[[], None]) -> None:
        self._local = local
        self._clock = clock
        self._on_gap = on_gap
        # What exists during this run of the event loop alone.
        self._run: weakref.ref[object] | None = None
        # When the event loop turned, by this machine's clocks: a user's own may be moved at will.
        self._turned_at = _NEVER
        self._turning: object = None
        self.lose()

    async def keep(self) -> None:
        """Trust local entries while this call runs; a later call takes over from it."""
        turning = self._turning = object()
        while self._turning is turning:
            self.resume()
            self._turn()
            await anyio.sleep(_TURNED_EVERY)

    @property
    def is_lost(self) -> bool:
        """Return whether notifications may lie unread, so that no local entry can be trusted."""
        # While a whole machine sleeps only its wall clock goes on.
        (wall, monotonic), (turned, turned_monotonic) = machine_clocks(), self._turned_at
        return wall - turned >= HEARD_FOR or monotonic - turned_monotonic >= HEARD_FOR

    def resume(self) -> None:
        """Suspect the held entries if notifications may lie unread, and have later ones trusted."""
        if self.is_lost:
            # The loop's hook for generators is a method that it binds for each run, and lets go of at its end.
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
        """Trust no entry: the event loop is not this one any more."""
        # Another store may go on with the local cache.
        self._turning = self._run = None
        self._on_end(None)


def machine_clocks() -> tuple[float, float]:
    """Return this machine's wall clock and its monotonic one, in seconds."""
    return time.time(), time.monotonic()

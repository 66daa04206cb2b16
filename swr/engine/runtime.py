"""The parts of an engine that all others use: the store, the clocks, random numbers, events and background tasks."""

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio

from swr.engine.background import BackgroundTasks, running_loop
from swr.engine.counting import count_events
from swr.engine.publisher import Publisher
from swr.engine.threads import Threads
from swr.engine.tracing import UNTRACED, Tracing
from swr.stats.counts import Counts
from swr.stores.base import LeasingStore

# Seconds that giving back a lease may take when its task is cancelled.
RELEASED_WITHIN: Final = 1.0


class Runtime:
    """Give every part of an engine the same store, clocks, random numbers, events and tasks.

    Parameters:
        store: keeps entries and leases.
        tasks: runs what outlives its caller.
        lease_for: seconds that a lease lasts unless it is renewed.
        clock: wall clock, seconds.
        uniform: random number between two.
        counts: what is counted.
        on_reads: see `Publisher`.
    """

    # From the first opening on.
    _instance: str

    def __init__(
        self,
        store: LeasingStore,
        tasks: BackgroundTasks,
        lease_for: float,
        clock: Callable[[], float],
        uniform: Callable[[float, float], float],
        counts: Counts,
        on_reads: Callable[[bool], object],
    ) -> None:
        self.store = store
        self.tasks = tasks
        self.lease_for = lease_for
        self.clock = clock
        self.uniform = uniform
        self.counts = counts
        self.events = Publisher(on_reads)
        count_events(self.events, counts)
        # None: loads are not traced.
        self.tracing: Tracing | None = None
        # The event loop's clock. anyio would look up the running loop at each call.
        self.time: Callable[[], float] = anyio.current_time
        # Called before each job runs, to simulate a fault; None: nothing is simulated.
        self.strike: Callable[[Any], Awaitable[None]] | None = None
        self._tokens = 0
        self._threads: Threads | None = None

    def configure(self, store: LeasingStore, lease_for: float, clock: Callable[[], float]) -> None:
        """Go by these from now on; see the class."""
        self.store = store
        self.lease_for = lease_for
        self.clock = clock

    def enter(self, loop: object) -> None:
        """Use the clock of `loop`, the event loop that runs now, and lease tokens that no other run has used."""
        self.time = loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time
        self._instance = secrets.token_hex(8)

    @property
    def threads(self) -> Threads:
        """The threads of the event loop that runs now; the cache need not be open."""
        loop, threads = running_loop(), self._threads
        if threads is None or threads.loop is not loop:
            threads = self._threads = Threads(loop)
        return threads

    def replaying(self, key: str) -> AbstractContextManager[None]:
        """Return what surrounds a run of the app in the background, caused here, within which `key` is refreshed."""
        return UNTRACED if self.tracing is None else self.tracing.replay(key, self.tracing.cause())

    def new_token(self) -> str:
        """Return a lease token that no other load uses."""
        self._tokens += 1
        return f"{self._instance}{self._tokens:x}"

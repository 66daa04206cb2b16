"""The objects that all parts of an engine share: the store, clocks, random numbers, events and background tasks."""

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

# Seconds that the release of a lease may take in a task that was cancelled.
RELEASED_WITHIN: Final = 1.0


class Runtime:
    """The store, clocks, random numbers, events and tasks that all parts of an engine share.

    Parameters:
        store: keeps entries and leases.
        tasks: runs tasks that outlive their callers.
        lease_for: seconds that a lease lasts unless it is renewed.
        clock: returns the wall clock's time, in seconds.
        uniform: returns a random number between its two arguments.
        counts: the counters of the cache.
        on_reads: see `Publisher`.
    """

    # The beginning of lease tokens. Each opening sets it.
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
        # The threads of each event loop. When another loop needs threads, swr forgets the loops that use none.
        self._threads: dict[object, Threads] = {}

    def configure(self, store: LeasingStore, lease_for: float, clock: Callable[[], float]) -> None:
        """Use these options of the class from now on."""
        self.store = store
        self.lease_for = lease_for
        self.clock = clock

    def enter(self, loop: object) -> None:
        """Use the clock of `loop`, the running event loop, and lease tokens that no other run has used."""
        self.time = loop.time if isinstance(loop, asyncio.AbstractEventLoop) else anyio.current_time
        self._instance = secrets.token_hex(8)

    @property
    def threads(self) -> Threads:
        """The threads of the running event loop. The cache need not be open."""
        loop = running_loop()
        threads = self._threads.get(loop)
        if threads is None:
            for other in list(self._threads.values()):
                if not other.taken:
                    self._threads.pop(other.loop, None)
            threads = self._threads[loop] = Threads(loop)
        return threads

    def replaying(self, key: str) -> AbstractContextManager[None]:
        """Return a context manager for a background run of the app, caused by this request, that refreshes `key`."""
        return UNTRACED if self.tracing is None else self.tracing.replay(key, self.tracing.cause())

    def new_token(self) -> str:
        """Return a lease token that no other load uses."""
        self._tokens += 1
        return f"{self._instance}{self._tokens:x}"

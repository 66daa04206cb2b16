"""Reads of the store for one reader. If a miss is likely, the lease request is sent together with the read."""

from collections.abc import Coroutine
from typing import Any

from swr.core.decision import decide
from swr.engine import deadlocks
from swr.engine.backoff import Backoffs
from swr.engine.flights import Flights
from swr.engine.load import Job
from swr.engine.refresh_path import RefreshPath
from swr.engine.tracing import FirstReader
from swr.entry import Entry
from swr.policy import Limits
from swr.stats.counts import Tally


class StoreReads:
    """The reads of the store for readers of an engine.

    Parameters:
        path: begins flights.
        flights: the flights under way.
        backoffs: the keys that back off.
    """

    def __init__(self, path: RefreshPath, flights: Flights, backoffs: Backoffs) -> None:
        self._path = path
        self._flights = flights
        self._backoffs = backoffs

    def read(
        self, key: str, job: Job, tally: Tally, held: Entry[Any] | None, limits: Limits
    ) -> Coroutine[Any, Any, Entry[Any] | None]:
        """Return a coroutine that reads the store. If a miss is likely, the coroutine also begins a flight.

        A miss is likely if most of the loader's last reads were misses. It then takes one round trip before the load,
        instead of two, because the reader joins the flight. The flight acts as if another reader had begun it: it takes
        a fresh entry, and refreshes a stale one.

        Parameters:
            tally: the counters of the loader.
            held: the entry that this process holds and may not serve, or None.
            limits: the limits of the reader.
        """
        if held is None and tally.is_mostly_absent and self._may_begin(key):
            return self._read_and_ask(key, job, limits)
        # Every hit in the store takes this path, so there is no other coroutine in between.
        return self._path.runtime.store.read(key, job.codec)

    async def _read_and_ask(self, key: str, job: Job, limits: Limits) -> Entry[Any] | None:
        """Return the stored entry. The lease request of a new flight is sent together with the read."""
        runtime = self._path.runtime
        is_served = False
        first = FirstReader()
        flight = self._path.launch(key, job, None, first=first)
        # This reader may need the value. Without a waiter, the flight would leave the key to the holder of the lease.
        flight.waiters += 1
        try:
            entry = await runtime.store.read(key, job.codec)
            is_served = decide(entry, runtime.clock(), limits).serve
        finally:
            flight.waiters -= 1
            first.answer(is_served=is_served)
        return entry

    def _may_begin(self, key: str) -> bool:
        if key in self._flights or self._backoffs.left(key) > 0 or self._path.runtime.store.is_unreachable(key):
            return False
        # A loader may read the very key that it loads, and must not begin another flight for it.
        return not deadlocks.chain()

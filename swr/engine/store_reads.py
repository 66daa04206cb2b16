"""Reading the store for one reader. Where it has probably nothing, the lease request leaves with the read."""

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
    """Reads for one reader at a time.

    Parameters:
        path: begins flights.
        flights: those under way.
        backoffs: the keys to be left alone for a while.
    """

    def __init__(self, path: RefreshPath, flights: Flights, backoffs: Backoffs) -> None:
        self._path = path
        self._flights = flights
        self._backoffs = backoffs

    def read(
        self, key: str, job: Job, tally: Tally, held: Entry[Any] | None, limits: Limits
    ) -> Coroutine[Any, Any, Entry[Any] | None]:
        """Return what reads the store. If the reader may not be given that, it joins the flight under way.

        A miss takes one round trip before the load, instead of two, if most of the loader's last reads were misses.
        The flight acts as one that another reader has begun: it takes what is fresh, and refreshes what is stale.

        Parameters:
            tally: the loader's.
            held: what this process holds, and may not serve.
            limits: what the reader accepts.
        """
        if held is None and tally.is_mostly_absent and self._may_begin(key):
            return self._read_and_ask(key, job, limits)
        # Without a coroutine in between: this is every hit in the store.
        return self._path.runtime.store.read(key, job.codec)

    async def _read_and_ask(self, key: str, job: Job, limits: Limits) -> Entry[Any] | None:
        """Return what the store has; the lease request leaves with the read."""
        runtime = self._path.runtime
        is_served = False
        first = FirstReader()
        flight = self._path.launch(key, job, None, first=first)
        # It must not leave the key to another process while this reader may need it.
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
        # A loader may read what it is itself to load.
        return not deadlocks.chain()

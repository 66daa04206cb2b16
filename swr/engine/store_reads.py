"""Reading the store for one reader. Where it has probably nothing, the lease request leaves with the read."""

from typing import Any

from swr.engine import deadlocks
from swr.engine.backoff import Backoffs
from swr.engine.flights import Flight, Flights
from swr.engine.load import Job
from swr.engine.refresh_path import RefreshPath
from swr.entry import Entry


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

    async def read(self, key: str, job: Job, held: Entry[Any] | None) -> Entry[Any] | None:
        """Return what the store has. A flight has perhaps begun meanwhile, for the reader to join if that is no answer.

        A miss takes one round trip before the load, in place of two, if most of the loader's last reads were misses.
        The flight acts as one that another reader has begun: it takes what is fresh, and refreshes what is stale.

        Parameters:
            held: what this process holds, and may not serve.
        """
        runtime = self._path.runtime
        tally = runtime.counts.of(job.loader)
        flight: Flight | None = None
        if held is None and tally.is_mostly_absent and self._may_begin(key):
            flight = self._path.launch(key, job, None)
            # It must not leave the key to another process while this reader may need it.
            flight.waiters += 1
        try:
            entry = await runtime.store.read(key, job.codec)
        finally:
            if flight is not None:
                flight.waiters -= 1
        tally.note_read(found=entry is not None)
        return entry

    def _may_begin(self, key: str) -> bool:
        if key in self._flights or self._backoffs.left(key) > 0 or self._path.runtime.store.is_unreachable(key):
            return False
        # A loader may read what it is itself to load.
        return not deadlocks.chain()

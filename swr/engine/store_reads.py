"""Reading the store for one reader. Where it has probably nothing, the lease request leaves with the read."""

from typing import Any

from swr.core.decision import Decision, decide
from swr.engine import deadlocks
from swr.engine.backoff import Backoffs
from swr.engine.flights import Flight, Flights
from swr.engine.load import Job
from swr.engine.refresh_path import RefreshPath
from swr.engine.tracing import FirstReader
from swr.entry import Entry
from swr.policy import Limits


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

    async def read(
        self, key: str, job: Job, held: Entry[Any] | None, limits: Limits
    ) -> tuple[Entry[Any] | None, Decision]:
        """Return what the store has, and whether that is an answer. If not, the reader joins the flight under way.

        A miss takes one round trip before the load, instead of two, if most of the loader's last reads were misses.
        The flight acts as one that another reader has begun: it takes what is fresh, and refreshes what is stale.

        Parameters:
            held: what this process holds, and may not serve.
            limits: what the reader accepts.
        """
        runtime = self._path.runtime
        tally = runtime.counts.of(job.loader)
        early: tuple[Flight, FirstReader] | None = None
        is_served = False
        if held is None and tally.is_mostly_absent and self._may_begin(key):
            first = FirstReader()
            flight = self._path.launch(key, job, None, first=first)
            # It must not leave the key to another process while this reader may need it.
            flight.waiters += 1
            early = flight, first
        try:
            entry = await runtime.store.read(key, job.codec)
            decision = decide(entry, runtime.clock(), limits)
            is_served = decision.serve
        finally:
            if early is not None:
                flight, first = early
                flight.waiters -= 1
                first.answer(is_served=is_served)
        tally.note_read(found=entry is not None)
        return entry, decision

    def _may_begin(self, key: str) -> bool:
        if key in self._flights or self._backoffs.left(key) > 0 or self._path.runtime.store.is_unreachable(key):
            return False
        # A loader may read what it is itself to load.
        return not deadlocks.chain()

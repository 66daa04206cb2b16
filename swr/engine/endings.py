"""The end of a flight: its fallback, the backoff after a failure, and the wake-up of its waiters."""

import contextlib
import logging
import time
from collections.abc import Iterable
from typing import Any, Final

from swr.core.decision import decide
from swr.engine.backoff import Backoffs, backoff_after
from swr.engine.failure_log import FailureLog
from swr.engine.failures import of_loader, shortened, text_of
from swr.engine.flights import Finished, Flight, Flights
from swr.engine.results import Failed, HeldElsewhere, LocalOnly, NoValue, Result, Stored, Unstored
from swr.engine.runtime import Runtime
from swr.entry import Entry
from swr.errors import StoreUnavailable, SWRError
from swr.events import Loaded, LoadFailed
from swr.stores.base import Held, Lease

log = logging.getLogger("swr")

# With `soft_timeout="auto"`, a reader with a fallback waits until the load has run for this many seconds. It waits
# longer after a long load: until the load has run for this many times the duration of the last one.
_LEAST_PATIENCE: Final = 10.0
_LOADS: Final = 3
# Number of loads that the log line of closing names.
_MOST_NAMED: Final = 10


class Endings:
    """The steps that end the flights of an engine.

    Parameters:
        runtime: the runtime of the engine.
        flights: the flights under way.
        backoffs: the keys that back off.
    """

    def __init__(self, runtime: Runtime, flights: Flights, backoffs: Backoffs) -> None:
        self.runtime = runtime
        self.flights = flights
        self.backoffs = backoffs
        self._failure_log = FailureLog()

    def fallback(self, flight: Flight, error: BaseException | None = None) -> Entry[Any] | None:
        """Return the entry that may be served if `flight` fails, or None.

        Parameters:
            error: the failure; None: the load has not ended yet.
        """
        store = self.runtime.store
        # An invalidation that outdates `flight.entry` sets it to None.
        entry = flight.entry or store.peek(flight.key)
        now = self.runtime.clock()
        decision = decide(entry, now)
        if entry is None or not (decision.serve or decision.fallback):
            return None
        if not store.tag_versions.admits_entry(entry):
            return None
        return entry if error is None or flight.job.may_fall_back(entry, error, now) else None

    def patience_for(self, flights: Iterable[Flight]) -> float | None:
        """Return how many seconds a reader waits with `soft_timeout="auto"`; None: until the loads end.

        The result shrinks while a load is under way. So a hanging load costs its first readers some time, and later
        readers none.
        """
        now, longest = self.runtime.time(), 0.0
        for flight in flights:
            entry = flight.entry
            if entry is None or self.fallback(flight) is None:
                return None
            waits_until = flight.under_way_since(now) + max(_LEAST_PATIENCE, _LOADS * entry.took)
            longest = max(longest, waits_until - now)
        return longest

    def finish(self, flight: Flight, result: Result, ended: float | None = None) -> None:
        """End `flight` with `result`: wake its waiters, and the flights that wait for its lease.

        Parameters:
            ended: when the loader returned, in seconds of the event loop's clock; None: now.
        """
        load = flight.load
        flight.state = Finished(result, load)
        self.flights.remove(flight)
        if not isinstance(result, (Failed, HeldElsewhere)):
            self.backoffs.end(flight.key)
        flight.done.set()
        self.flights.wake(flight.key)
        for then in flight.then:
            then(flight)
        if load is not None:
            events, seconds = self.runtime.events, (self.runtime.time() if ended is None else ended) - load.began
            error = result.error if isinstance(result, Failed) else None
            tally, is_outer = self.runtime.counts.of(flight.job.loader), flight.job.is_outer
            if not is_outer:
                tally.end_load(flight.key, seconds, error, self.runtime.clock())
            if error is not None:
                events.publish(LoadFailed, flight.key, seconds, error, tally.loader, tally.route, is_outer)
            else:
                events.publish(Loaded, flight.key, seconds, tally.loader, tally.route, is_outer)
        if log.isEnabledFor(logging.DEBUG):
            if isinstance(result, Failed):
                log.debug("load of %r: failed (%s)", flight.key, text_of(result.error))
            else:
                text = "superseded, so not stored" if flight.superseded else _description(result)
                log.debug("load of %r: %s", flight.key, text)

    async def fail(self, flight: Flight, lease: Lease | None, error: BaseException, ended: float | None = None) -> None:
        """End `flight` with `error`, and release the lease. With a fallback, or for a refresher, the key backs off.

        Parameters:
            ended: see `finish`.
        """
        runtime, pause, failures = self.runtime, 0.0, 0
        ended = runtime.time() if ended is None else ended
        if flight.entry is None and flight.fence != self.flights.fence:
            # After a gap in the notifications the flight has no fallback any more, but the store may have one.
            with contextlib.suppress(StoreUnavailable):
                found = await runtime.store.read(flight.key, flight.job.codec)
                if found is not None:
                    self.flights.fall_back(flight, found)
        fallback = self.fallback(flight, error)
        if fallback is not None or flight.newer_than is not None:
            failures = self.backoffs.failures(flight.key) if lease is None else lease.failures
            pause = backoff_after(failures, runtime.uniform)
            tally = runtime.counts.of(flight.job.loader)
            then = "swr serves the stored value, " if fallback is not None else ""
            then += f"the next try comes in {pause:.1f} s"
            self._failure_log.write(flight.key, tally.loader or tally.route, error, then, time.monotonic())
        if lease is not None:
            await runtime.store.release(lease, pause)
        if pause:
            # The notification of the release ends backoffs of the key, so this backoff begins after it.
            self.backoffs.begin(flight.key, pause, error, flight.job.loader, failures + 1)
        traceback = of_loader(error.__traceback__)
        self.finish(flight, Failed(error, traceback, short=shortened(error, traceback)), ended)

    def cut_off(self, drained_for: float) -> None:
        """Log the loads that closing cancels because they have not ended within `drained_for` seconds."""
        keys = [flight.key for flight in self.flights.all()]
        log.warning(
            "closing cancels %d loads that have not ended within drain_for=%g s: %s%s",
            len(keys),
            drained_for,
            ", ".join(map(repr, keys[:_MOST_NAMED])),
            ", ..." if len(keys) > _MOST_NAMED else "",
        )

    def back_off(self, flight: Flight, held: Held) -> None:
        """End `flight` without a load: another process holds the lease, or the key backs off after failures."""
        error: BaseException | None = None
        if held.failures:
            error = self.backoffs.last_error(flight.key) or SWRError(
                f"the last {held.failures} loads of {flight.key!r} failed in another process; "
                f"the next is tried in {held.retry_after:.1f} s"
            )
        self.backoffs.begin(flight.key, held.retry_after, error, flight.job.loader, held.failures)
        self.finish(flight, HeldElsewhere() if error is None else Failed(error, is_earlier=True))


def _description(result: Stored | LocalOnly | Unstored | NoValue | HeldElsewhere) -> str:
    match result:
        case Stored(entry):
            return f"stored as version {entry.version}"
        case LocalOnly(entry):
            return f"kept in this process alone, version {entry.version}"
        case Unstored():
            return "not stored, because store_if says so"
        case NoValue():
            return "there is no value to store"
    return "left to the process that holds the lease"

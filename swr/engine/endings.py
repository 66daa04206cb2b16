"""How a flight ends: what can be served if it fails, the backoff after a failure, and the wake-up of its waiters."""

import logging
from typing import Any

from swr.core.decision import decide
from swr.engine.backoff import Backoffs, backoff_after
from swr.engine.flights import (
    Failed,
    Finished,
    Flight,
    Flights,
    HeldElsewhere,
    LocalOnly,
    NoValue,
    Result,
    Stored,
)
from swr.engine.runtime import Runtime
from swr.entry import Entry
from swr.errors import SWRError
from swr.events import Loaded, LoadFailed
from swr.stores.base import Held, Lease

log = logging.getLogger("swr")


class Endings:
    """End flights.

    Parameters:
        runtime: of the engine whose flights they are.
        flights: those under way.
        backoffs: the keys that are left alone for a while.
    """

    def __init__(self, runtime: Runtime, flights: Flights, backoffs: Backoffs) -> None:
        self.runtime = runtime
        self.flights = flights
        self.backoffs = backoffs

    def fallback(self, flight: Flight, error: BaseException | None = None) -> Entry[Any] | None:
        """Return the entry that may be served if `flight` fails, or None.

        Parameters:
            error: the failure; None: the load has not ended yet.
        """
        is_informed = flight.fence == self.flights.fence and not flight.is_detached
        entry = flight.entry if is_informed else self.runtime.store.peek(flight.key)
        now = self.runtime.clock()
        decision = decide(entry, now)
        if entry is None or not (decision.serve or decision.fallback):
            return None
        return entry if error is None or flight.job.may_fall_back(entry, error, now) else None

    def finish(self, flight: Flight, result: Result, ended: float | None = None) -> None:
        """Give `result` to everybody who waits for `flight`, and wake the flights that wait for its lease.

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
            if isinstance(result, Failed):
                events.publish(LoadFailed, flight.key, seconds, result.error)
            else:
                events.publish(Loaded, flight.key, seconds)
        if log.isEnabledFor(logging.DEBUG):
            if isinstance(result, Failed):
                log.debug("load of %r: failed (%s: %s)", flight.key, type(result.error).__name__, result.error)
            else:
                text = "superseded, so not stored" if flight.superseded else _description(result)
                log.debug("load of %r: %s", flight.key, text)

    async def fail(self, flight: Flight, lease: Lease | None, error: BaseException, ended: float | None = None) -> None:
        """End `flight` with `error`: give the lease back, and back off if an entry can be served meanwhile.

        Parameters:
            ended: see `finish`.
        """
        runtime, pause = self.runtime, 0.0
        ended = runtime.time() if ended is None else ended
        fallback = self.fallback(flight, error)
        if fallback is not None or flight.newer_than is not None:
            pause = backoff_after(0 if lease is None else lease.failures, runtime.uniform)
            log.warning(
                "the load of %r failed (%s: %s); %sthe next try comes in %.1f s",
                flight.key,
                type(error).__name__,
                error,
                "swr serves the stored value, " if fallback is not None else "",
                pause,
                exc_info=None if isinstance(error, SWRError) else error,
            )
        if lease is not None:
            await runtime.store.release(lease, pause)
        if pause:
            # The notification of the release ends a backoff, so this one begins after it.
            self.backoffs.begin(flight.key, pause, error)
        self.finish(flight, Failed(error), ended)

    def back_off(self, flight: Flight, held: Held) -> None:
        """End `flight` without a load: another process holds the lease, or the key backs off after failures."""
        error: BaseException | None = None
        if held.failures:
            error = self.backoffs.last_error(flight.key) or SWRError(
                f"the last {held.failures} loads of {flight.key!r} failed in another process; "
                f"the next is tried in {held.retry_after:.1f} s"
            )
        self.backoffs.begin(flight.key, held.retry_after, error)
        self.finish(flight, HeldElsewhere() if error is None else Failed(error))


def _description(result: Stored | LocalOnly | NoValue | HeldElsewhere) -> str:
    match result:
        case Stored(entry):
            return f"stored as version {entry.version}"
        case LocalOnly(entry):
            return f"kept in this process alone, version {entry.version}"
        case NoValue():
            return "there is no value to store"
    return "left to the process that holds the lease"

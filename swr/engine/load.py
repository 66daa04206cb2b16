"""One run of a job: when it began, under which lease, and how it ends."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

import anyio

from swr.core.decision import decide
from swr.engine.endings import Endings
from swr.engine.flights import Finished, Flight, Loading, LoadTerms
from swr.engine.lease import LIVES, Renewals
from swr.engine.results import Failed, LocalOnly, NoValue, Stored, Unstored
from swr.engine.tracing import UNTRACED
from swr.entry import Entry, Outcome, absence, marked_stale, stamp
from swr.errors import LeaseLost, LoadTimeout, StoreUnavailable
from swr.events import CommitRejected, Committed, Invalidated
from swr.policy import Policy, Timeout
from swr.stores.base import Lease

log = logging.getLogger("swr")


class Job(LoadTerms, Protocol):
    """A job: what a decorator, the middleware or a refresher wants to load, and how."""

    def run(self, load: "Load") -> Coroutine[Any, Any, None]:
        """Load, and call `load.store(...)` or `load.skip()` once; an exception is the load's failure."""


class Reading(Job, Protocol):
    """A job of a reader, which can also run without the cache."""

    def call_past(self) -> Coroutine[Any, Any, Outcome[Any]]:
        """Load as if there were no cache, and return the outcome."""


class Snapshot(NamedTuple):
    """The state of this process when a load began. The load reads no data that is older than this state.

    Parameters:
        began: time of the wall clock, in seconds.
        tag_version: the newest tag version.
        fence: `Flights.fence`.
        flight: the flight of the load, if it has one.
        heard: `Store.heard` at that time, if the load announces its tags only when the value is stored; else None.
        origin: the loader; see `Entry.loader`.
    """

    began: float
    tag_version: int
    fence: int
    flight: Flight | None = None
    heard: int | None = None
    origin: str = ""


class Load:
    """One run of a job: when it began, under which lease, and how it ends.

    Parameters:
        endings: ends the flight.
        renewals: renews the lease during the load.
        flight: the flight of this load.
        lease: the right to store the value; None: the store gave none, because it was unreachable or refused.
    """

    __slots__ = (
        "_endings",
        "_given_up",
        "_renewals",
        "_runtime",
        "_timer",
        "began",
        "ended",
        "flight",
        "lease",
        "tag_version",
    )

    def __init__(self, endings: Endings, renewals: Renewals, flight: Flight, lease: Lease | None) -> None:
        self._endings = endings
        self._renewals = renewals
        self._runtime = runtime = endings.runtime
        self.flight = flight
        self.lease = lease
        self.began = runtime.clock()
        # When the loader returned, in seconds of the event loop's clock; None: it still runs.
        self.ended: float | None = None
        self.tag_version = runtime.store.tag_versions.newest if lease is None else lease.tag_version
        self._timer: anyio.CancelScope | None = None
        # Called with the failure, if swr gives the load up.
        self._given_up: Callable[[BaseException], None] | None = None
        flight.state = Loading(lease, runtime.time())
        renewals.begin(flight, lease, self._give_up)

    @property
    def snapshot(self) -> Snapshot:
        """The state of this process when the load began."""
        flight = self.flight
        return Snapshot(self.began, self.tag_version, flight.fence, flight, origin=flight.job.loader)

    @property
    def may_replace(self) -> bool:
        """Return whether the store must learn of a load without a value: an older entry or a refresher may exist."""
        flight = self.flight
        # After a gap in the notifications the flight knows of no entry, and there may be one.
        is_known = flight.entry is not None or flight.fence != self._endings.flights.fence
        return is_known or flight.forced or flight.newer_than is not None

    def limit(self, seconds: Timeout, given_up: Callable[[BaseException], None] | None = None) -> None:
        """Give the load up after `seconds`. This replaces any limit that was set before.

        The load is cancelled, and fails with `LoadTimeout` even if its job ignores the cancellation.

        Parameters:
            seconds: counted from the load's beginning; "auto": ten times `lease_for`; None: no limit.
            given_up: called with the failure.
        """
        self._stop_timer()
        self._given_up = given_up
        if seconds == "auto":
            return
        self._renewals.lift_limit(self.flight)
        load = self.flight.load
        if seconds is not None and load is not None and not self.flight.is_finished:
            self._timer = anyio.CancelScope()
            self._runtime.tasks.start(self._expire, load.began + seconds, self._timer, seconds)

    def warn_timed_out(self, error: BaseException) -> None:
        """Log a time-out that ends in a 504 response, because the response does not tell the client the reason."""
        if isinstance(error, LoadTimeout) and self._endings.fallback(self.flight, error) is None:
            log.warning("%s, and there is no stored response to fall back on", error)

    async def store(
        self, value: Any, policy: Policy, validator: str | None = None, *, absent: bool = False, is_stored: bool = True
    ) -> None:
        """Store `value` and give it to all waiters.

        Parameters:
            policy: how long the value may be served.
            validator: given to the next load, which can ask with it whether the value has changed.
            absent: whether to store that there is no value.
            is_stored: False: swr gives the value to waiters, does not store it, and removes the stored entry.

        Raises:
            CodecError: the value cannot be stored.
        """
        runtime, endings, flight = self._runtime, self._endings, self.flight
        if not self._returns():
            return
        took = max(0.0, runtime.clock() - self.began)
        shortened = runtime.uniform(0.0, policy.jitter) if policy.jitter else 0.0
        version = 0 if self.lease is None else self.lease.version
        entry = stamp(
            value, policy, self.began, version, self.tag_version, validator, took, shortened, flight.job.loader
        )
        if absent:
            entry = absence(entry)
        result: Stored | LocalOnly | Unstored
        if is_stored:
            result = Stored(entry) if await self._commit(entry) else LocalOnly(entry)
        else:
            await self._remove()
            result = Unstored(entry)
        endings.finish(flight, result, self.ended)

    async def _commit(self, entry: Entry[Any]) -> bool:
        """Store `entry`, unless something outdates it; return whether the store has it."""
        runtime, flights, flight, lease = self._runtime, self._endings.flights, self.flight, self.lease
        if lease is not None and flight.superseded:
            await runtime.store.release(lease)
        elif lease is not None:
            try:
                with UNTRACED if runtime.tracing is None else runtime.tracing.commit(flight):
                    await runtime.store.commit(lease, entry, flight.job.codec)
            except LeaseLost:
                flight.superseded = True
            except StoreUnavailable:
                lease = None
            else:
                runtime.events.publish(Committed, flight.key, entry.version)
                mark = runtime.store.tag_versions.marked_at(entry)
                if mark and not decide(marked_stale(entry, mark), runtime.clock()).serve:
                    # A tag of the value was marked stale during the load. Readers that came after the mark must not get
                    # this value.
                    flight.superseded = True
                return True
        if lease is None:
            # No lease fences this load. Only notifications that this process received can show that it is outdated.
            if flight.fence != flights.fence or not flights.is_current(flight):
                flight.superseded = True
            if not flight.superseded:
                runtime.store.keep(flight.key, entry, flight.job.codec)
        if flight.superseded:
            runtime.events.publish(CommitRejected, flight.key)
        return False

    async def _remove(self) -> None:
        """Release the lease, and remove the stored entry, which is older than the loaded value."""
        flight, lease = self.flight, self.lease
        if self.may_replace:
            version = 0 if lease is None else lease.version
            none = stamp(None, Policy(0), self.began, version, self.tag_version, loader=flight.job.loader)
            await self._commit(absence(none))
        elif lease is not None:
            await self._runtime.store.release(lease)

    async def fail(self, error: BaseException) -> None:
        """End with a failure while the job still runs. An exception that the job raises does the same."""
        if self._returns():
            await self._endings.fail(self.flight, self.lease, error, self.ended)

    async def skip(self, *, drop: bool = False) -> None:
        """End without a value to store.

        Parameters:
            drop: whether to remove the stored entry.
        """
        if not self._returns():
            return
        store, key = self._runtime.store, self.flight.key
        if drop:
            await store.invalidate(key)
            self._runtime.events.publish(Invalidated, key, None, False)
        if self.lease is not None:
            await store.release(self.lease)
        self._endings.finish(self.flight, NoValue(), self.ended)

    def close(self) -> None:
        """Stop the timer and the renewals: the job has ended."""
        self._renewals.end(self.flight)
        self._stop_timer()
        # The callback may refer to the job, which refers to this load. Such a cycle would keep both alive for long.
        self._given_up = None

    def _returns(self) -> bool:
        """Note that the loader has returned; return False if the flight has ended already, such as by a time-out."""
        self._stop_timer()
        if self.flight.is_finished:
            return False
        self.ended = self._runtime.time()
        # The limit is for the loader alone. Storing the value may take long, and needs the lease.
        self._renewals.lift_limit(self.flight)
        return True

    def _stop_timer(self) -> None:
        # Most loads have no timer, and cancelling is not cheap.
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    async def _expire(self, at: float, timer: anyio.CancelScope, seconds: float) -> None:
        with timer:
            await anyio.sleep_until(at)
        if not timer.cancel_called:
            await self._give_up(seconds)

    async def _give_up(self, seconds: float | None = None) -> None:
        """End the load with a time-out after `seconds`; None: after the time for loads without a limit of their own."""
        flight = self.flight
        if flight.is_finished:
            return
        error = LoadTimeout(flight.key, LIVES * self._runtime.lease_for if seconds is None else seconds)
        flight.state = Finished(Failed(error), flight.load)
        flight.scope.cancel()
        if flight.seat is not None:
            flight.seat.give_up(flight)
        self._renewals.end(flight)
        if self._given_up is not None:
            self._given_up(error)
        # No other code ends this flight from here on, not even closing the cache.
        with anyio.CancelScope(shield=True):
            await self._endings.fail(flight, self.lease, error)

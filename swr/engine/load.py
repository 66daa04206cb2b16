"""One run of a job: when it began, under which lease, and how it ends."""

import logging
from collections.abc import Callable, Coroutine
from typing import Any, NamedTuple, Protocol

import anyio

from swr.engine.endings import Endings
from swr.engine.flights import Failed, Finished, Flight, Loading, LoadTerms, LocalOnly, NoValue, Stored
from swr.engine.lease import LIVES, Renewals
from swr.entry import absence, stamp
from swr.errors import LeaseLost, LoadTimeout, StoreUnavailable
from swr.events import CommitRejected, Committed, Invalidated
from swr.policy import Policy, Timeout
from swr.stores.base import Lease

log = logging.getLogger("swr")


class Job(LoadTerms, Protocol):
    """What a decorator, the middleware or a refresher wants loaded."""

    def run(self, load: "Load") -> Coroutine[Any, Any, None]:
        """Load, and call `load.store(...)` or `load.skip()` once; an exception is the load's failure."""


class Snapshot(NamedTuple):
    """What this process knew when a load began: what the load reads is not older than that.

    Parameters:
        began: wall clock, seconds.
        tag_version: the newest tag version.
        fence: see `Flights.fence`.
        flight: the load's own, if it has one.
        heard: `Store.heard` of then, if the tags of what is loaded are announced only when it is stored; else None.
    """

    began: float
    tag_version: int
    fence: int
    flight: Flight | None = None
    heard: int | None = None


class Load:
    """One run of a job: when it began, under which lease, and how it ends.

    Parameters:
        endings: ends the flight.
        renewals: renews the lease meanwhile.
        flight: everybody who waits for it.
        lease: the right to store the value; None: the store is unreachable.
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
        # When the loader returned, in seconds of the event loop's clock; None: it runs.
        self.ended: float | None = None
        self.tag_version = runtime.store.tag_versions.newest if lease is None else lease.tag_version
        self._timer: anyio.CancelScope | None = None
        # Called with the failure of a load that is given up.
        self._given_up: Callable[[BaseException], None] | None = None
        flight.state = Loading(lease, runtime.time())
        renewals.begin(flight, lease, self._give_up)

    @property
    def snapshot(self) -> Snapshot:
        """What was known when the load began."""
        return Snapshot(self.began, self.tag_version, self.flight.fence, self.flight)

    def limit(self, seconds: Timeout, given_up: Callable[[BaseException], None] | None = None) -> None:
        """Give the load up after `seconds`, in place of any limit that was set before.

        The load is cancelled, and fails with `LoadTimeout` even if its job disregards that.

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
        """Log a time-out for which no stored response is a fallback, because a 504 does not say what it was."""
        if isinstance(error, LoadTimeout) and self._endings.fallback(self.flight, error) is None:
            log.warning("%s, and no stored response is a fallback", error)

    async def store(self, value: Any, policy: Policy, validator: str | None = None, *, absent: bool = False) -> None:
        """Store `value` and give it to everybody who waits.

        Parameters:
            policy: how long the value may be served.
            validator: what the loader may be given to ask whether the value has changed.
            absent: store that there is no value.

        Raises:
            CodecError: the value cannot be stored.
        """
        runtime, endings, flight, lease = self._runtime, self._endings, self.flight, self.lease
        if not self._returns():
            return
        took = max(0.0, runtime.clock() - self.began)
        shortened = runtime.uniform(0.0, policy.jitter) if policy.jitter else 0.0
        version = 0 if lease is None else lease.version
        entry = stamp(
            value, policy, self.began, version, self.tag_version, validator, took, shortened, flight.job.loader
        )
        if absent:
            entry = absence(entry)
        committed = False
        if lease is not None and not flight.superseded:
            try:
                await runtime.store.commit(lease, entry, flight.job.codec)
            except LeaseLost:
                flight.superseded = True
            except StoreUnavailable:
                lease = None
            else:
                committed = True
                runtime.events.publish(Committed, flight.key, entry.version)
        elif lease is not None:
            await runtime.store.release(lease)
        if lease is None:
            # No lease fences this load; only the notifications of this process can.
            if flight.fence != endings.flights.fence or not endings.flights.is_current(flight):
                flight.superseded = True
            if not flight.superseded:
                runtime.store.keep(flight.key, entry, flight.job.codec)
        if flight.superseded:
            runtime.events.publish(CommitRejected, flight.key)
        endings.finish(flight, Stored(entry) if committed else LocalOnly(entry), self.ended)

    async def fail(self, error: BaseException) -> None:
        """End with a failure before the job itself ends; an exception out of the job does the same."""
        if self._returns():
            await self._endings.fail(self.flight, self.lease, error, self.ended)

    async def skip(self, *, drop: bool = False) -> None:
        """End without a value to store.

        Parameters:
            drop: remove what is stored so far.
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

    def _returns(self) -> bool:
        """Note that the loader has returned; return whether that counts, which it does unless the load was given up."""
        self._stop_timer()
        if self.flight.is_finished:
            return False
        self.ended = self._runtime.time()
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
        """End the load, which has run for `seconds`; None: for as long as a load may without a limit of its own."""
        flight = self.flight
        if flight.is_finished:
            return
        error = LoadTimeout(flight.key, LIVES * self._runtime.lease_for if seconds is None else seconds)
        flight.state = Finished(Failed(error), flight.load)
        flight.scope.cancel()
        self._renewals.end(flight)
        if self._given_up is not None:
            self._given_up(error)
        # Nothing else ends the flight now, even if the cache is closed.
        with anyio.CancelScope(shield=True):
            await self._endings.fail(flight, self.lease, error)

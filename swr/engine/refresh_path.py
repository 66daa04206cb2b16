"""The one refresh path: flight, lease, second look at the store, load, fenced commit, wake-up.

A miss, a stale hit, an early refresh, an explicit refresh and each key of a batch all run `RefreshPath.launch`. No
other code in swr loads and stores.
"""

import asyncio
import functools
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import AbstractContextManager
from typing import Any, Final

import anyio

from swr.engine import deadlocks
from swr.engine.endings import Endings
from swr.engine.flights import ASKING, Flight, WaitingForLease, WaitingForSlot
from swr.engine.lease import Renewals
from swr.engine.load import Job, Load
from swr.engine.next_step import AskAgain, Asker, BackOff, GiveUp, LoadNow, Step, Take, Wait, next_step
from swr.engine.one_shot_event import OneShotEvent
from swr.engine.results import Failed, Stored
from swr.engine.runtime import RELEASED_WITHIN
from swr.engine.tracing import UNTRACED, FirstReader, Tracing
from swr.entry import Entry
from swr.errors import StoreUnavailable, SWRError
from swr.events import LeaseHeld, LeaseWaited, LoadBegun
from swr.stores.base import NEWEST, Held, Lease

log = logging.getLogger("swr")

# Returns the context manager around the run of a load, as soon as it is known whether a reader waits.
_Traced = Callable[[], Awaitable[AbstractContextManager[None]]]

# Notifications may be lost, so a flight that waits for one asks again after this many seconds at the latest.
_LONGEST_WAIT: Final = 1.0
_SHORTEST_WAIT: Final = 0.01


class RefreshPath:
    """The path of flights from their beginning to their end.

    Parameters:
        endings: ends flights.
        renewals: renews the leases of loads.
    """

    def __init__(self, endings: Endings, renewals: Renewals) -> None:
        self.runtime = endings.runtime
        self._flights = endings.flights
        self._endings = endings
        self._renewals = renewals

    def launch(
        self,
        key: str,
        job: Job,
        entry: Entry[Any] | None,
        *,
        forced: bool = False,
        newer_than: int | None = None,
        chain: deadlocks.Chain = (),
        is_behind: bool = False,
        first: FirstReader | None = None,
    ) -> Flight:
        """Begin a flight in a task of its own; later callers join it.

        Parameters:
            key: the key to load.
            job: how the value is loaded.
            entry: the stored entry, or None.
            forced: see `Flight`.
            newer_than: see `Flight`.
            chain: the loaders that wait for this flight.
            is_behind: whether the flight runs in the background, without readers that wait.
            first: tells, once it is known, whether the flight runs in the background; None: `is_behind` decides.

        Raises:
            SWRError: the cache is closed.
        """
        tasks = self.runtime.tasks
        if not tasks.is_open:
            raise SWRError(f"the cache was closed while {key!r} was asked for")
        flight = Flight(self.runtime, key, job, entry, self._flights.fence, forced=forced, newer_than=newer_than)
        self._flights.add(flight)
        tracing, traced = self.runtime.tracing, None
        if tracing is not None:
            is_behind = is_behind or newer_than is not None
            traced = functools.partial(_traced, tracing, flight, tracing.cause(), first, is_behind)
        flight.scope = tasks.start(self._fly, flight, job, chain, traced, drained=True, context=job.context)
        return flight

    def join(self, flight: Flight, entry: Entry[Any] | None) -> None:
        """Let one more caller join `flight`; the `entry` that it has found becomes the fallback if it is newer."""
        if entry is not None and (flight.entry is None or flight.entry.version < entry.version):
            self._flights.fall_back(flight, entry)
        if self.runtime.tracing is not None:
            self.runtime.tracing.join(flight)

    def give_way(self, flights: Iterable[Flight]) -> None:
        """Release the leases of superseded flights at once, so that the next load need not wait for them."""
        for flight in flights:
            lease = self._renewals.let_go(flight)
            if lease is not None and self.runtime.tasks.is_open:
                self.runtime.tasks.start(self.runtime.store.release, lease)

    async def leave_behind(self) -> None:
        """End the flights whose loaders ignore their cancellation, and release their leases."""
        for flight in self._flights.all():
            lease = self._renewals.let_go(flight)
            if not flight.is_finished:
                self._endings.finish(flight, _closed(flight))
            if lease is not None:
                await self.runtime.store.release(lease)

    async def _fly(self, flight: Flight, job: Job, chain: deadlocks.Chain, traced: _Traced | None) -> None:
        seat = flight.seat
        if seat is None:
            await self._ask_and_load(flight, job, chain, traced)
            return
        flight.state = WaitingForSlot(self.runtime.time())
        try:
            await seat.take(flight)
        except BaseException:
            self._endings.finish(flight, _closed(flight))
            raise
        flight.state = ASKING
        try:
            await self._ask_and_load(flight, job, chain, traced)
        finally:
            seat.leave(flight)

    async def _ask_and_load(self, flight: Flight, job: Job, chain: deadlocks.Chain, traced: _Traced | None) -> None:
        asked, token = self.runtime.time(), self.runtime.new_token()
        # Until the store has answered, a lease with this token may exist.
        lease: Lease | None = Lease(flight.key, token, 0, 0)
        load: Load | None = None
        try:
            step = await self._get_lease(flight, token)
            if step is None:
                return
            lease = step.lease
            load = Load(self._endings, self._renewals, flight, lease)
            if self.runtime.events.has_subscriber(LoadBegun):
                loader = self.runtime.counts.of(job.loader).loader
                self.runtime.events.publish(LoadBegun, flight.key, self.runtime.time() - asked, loader)
            with UNTRACED if traced is None else await traced():
                await self._run(load, job, chain)
        except BaseException as error:
            failure = self._failure(flight, error)
            if failure is None:
                raise
            if flight.is_finished:
                log.exception("the load of %r went on after its value was stored or given up, and failed", flight.key)
            else:
                if load is not None and load.ended is None:
                    load.ended = self.runtime.time()
                await self._endings.fail(flight, lease, failure, None if load is None else load.ended)
        finally:
            if not flight.is_finished:
                self._endings.finish(flight, _closed(flight), None if load is None else load.ended)
                if lease is not None:
                    with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASED_WITHIN):
                        await self.runtime.store.release(lease)

    async def _run(self, load: Load, job: Job, chain: deadlocks.Chain) -> None:
        flight = load.flight
        deadlocks.begin(chain, flight)
        try:
            if self.runtime.strike is not None:
                await self.runtime.strike(load)
            await job.run(load)
        finally:
            load.close()
        if not flight.is_finished:
            raise SWRError(f"the loader of {flight.key!r} ended without a value")

    def _failure(self, flight: Flight, error: BaseException) -> BaseException | None:
        """Return the failure of the load, or None if the flight's task was cancelled."""
        if not isinstance(error, anyio.get_cancelled_exc_class()):
            # The callers raise even a loader's SystemExit. If this task raised it, every other load would end.
            return error
        if flight.is_finished or self.runtime.tasks.is_closing or not isinstance(error, asyncio.CancelledError):
            return None
        # Something inside the loader was cancelled. Only this load fails.
        return SWRError(f"the loader of {flight.key!r} was cancelled from within")

    async def _get_lease(self, flight: Flight, token: str) -> LoadNow | None:
        """Ask for the lease until `flight` may load; None: it finished without a load."""
        known = flight.entry.version if flight.entry is not None else 0
        if flight.forced:
            known = NEWEST
        elif flight.newer_than is not None:
            known = flight.newer_than
        waiting: WaitingForLease | None = None
        is_published = False
        try:
            while True:
                # A notification that comes while the answer is on its way must not be missed.
                flight.is_notified = False
                answer = await self._ask(flight, token, known)
                step = next_step(answer, self._asker(flight, answer), self.runtime.clock())
                if log.isEnabledFor(logging.DEBUG):
                    log.debug("lease of %r: %s", flight.key, _description(step))
                if isinstance(step, LoadNow):
                    return step
                if isinstance(step, (AskAgain, Wait, BackOff)) and step.held is not None and not is_published:
                    is_published = True
                    self.runtime.events.publish(LeaseHeld, flight.key, step.held.retry_after, step.held.failures)
                if isinstance(step, AskAgain):
                    known = known if step.known is None else step.known
                elif isinstance(step, Wait):
                    if known == NEWEST:
                        known = step.held.now
                    if waiting is None:
                        flight.state = waiting = WaitingForLease(self.runtime.time())
                    await self._wait(flight, step.held)
                else:
                    self._finish(flight, step)
                    return None
        finally:
            if waiting is not None:
                self.runtime.events.publish(LeaseWaited, flight.key, self.runtime.time() - waiting.since)

    async def _wait(self, flight: Flight, held: Held) -> None:
        """Wait for a notification of the key or for the end of the other lease, without a slot of the loader."""
        if flight.seat is not None:
            flight.seat.leave(flight)
        with anyio.move_on_after(min(_LONGEST_WAIT, max(_SHORTEST_WAIT, held.retry_after))):
            await flight.notification()
        if flight.seat is not None:
            await flight.seat.take(flight)

    async def _ask(self, flight: Flight, token: str, known: int) -> Lease | Held | Entry[Any] | StoreUnavailable:
        if flight.answered.is_set():
            flight.answered = OneShotEvent()
        try:
            answer = await self.runtime.store.acquire(
                flight.key,
                token,
                self.runtime.lease_for,
                known,
                flight.job.codec,
                # Readers without a fallback get the answer of their own loader, in spite of a backoff.
                force=flight.forced or (not flight.is_unasked and self._endings.fallback(flight) is None),
                tags=flight.job.tags,
            )
        except StoreUnavailable as error:
            return error
        finally:
            flight.answered.set()
        if isinstance(answer, Entry):
            self._flights.fall_back(flight, answer)
        return answer

    def _asker(self, flight: Flight, answer: object) -> Asker:
        return Asker(
            flight.forced,
            flight.is_unasked,
            flight.waiters > 0,
            flight.state is not ASKING,
            isinstance(answer, Held) and self._endings.fallback(flight) is not None,
            flight.is_notified,
        )

    def _finish(self, flight: Flight, step: Take | BackOff | GiveUp) -> None:
        if isinstance(step, Take):
            self._endings.finish(flight, Stored(step.entry))
        elif isinstance(step, GiveUp):
            self._endings.finish(flight, Failed(step.error))
        else:
            self._endings.back_off(flight, step.held)


async def _traced(
    tracing: Tracing, flight: Flight, cause: Any, first: FirstReader | None, is_behind: bool
) -> AbstractContextManager[None]:
    if first is not None:
        if flight.entry is not None:
            # The first reader may have got this entry from its own read, which was sent before. Then the flight runs in
            # the background. A span cannot change its trace later.
            await first.wait()
        is_behind = first.is_served
    return tracing.load(flight, cause, is_behind=is_behind)


def _closed(flight: Flight) -> Failed:
    return Failed(SWRError(f"the cache was closed while {flight.key!r} was loaded"))


def _description(step: Step) -> str:
    match step:
        case LoadNow(lease):
            return f"taken; loading version {lease.version}" if lease else "the store gave none; loading without it"
        case Take(entry):
            return f"not needed; another load stored version {entry.version}"
        case AskAgain():
            return "asking again"
        case BackOff(held):
            why = f"{held.failures} loads in a row failed" if held.failures else "another load holds it"
            return f"refused for {held.retry_after:.3f} s, because {why}; backing off"
        case Wait(held):
            return f"held by another load for {held.retry_after:.3f} s at most; waiting"
    return f"the store gave none ({step.error}); giving up, because no reader waits"

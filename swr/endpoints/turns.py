"""The load of an endpoint's response: one of the readers whose dependencies are resolved runs the endpoint for all.

It does so in its own task, and another one takes over if it leaves. So a reader never waits for a run that still needs
a dependency, such as a connection: the readers may hold all of them.
"""

import contextlib
from collections import deque
from contextvars import Context

import anyio
from starlette.exceptions import HTTPException

from swr.engine import deadlocks
from swr.engine.flights import Flight
from swr.engine.load import Load
from swr.engine.one_shot_event import OneShotEvent
from swr.entry import Entry
from swr.http.failures import ErrorResponse, is_fallback
from swr.http.stored_response import RESPONSES, StoredResponse
from swr.policy import Policy, Timeout


class _Seat:
    """A reader that waits for its turn, or for the end of the flight."""

    __slots__ = ("event", "leads")

    def __init__(self) -> None:
        self.event = OneShotEvent()
        self.leads = False


class Turns:
    """A job of the engine: give one reader after the other the turn to run the endpoint, until one has done it.

    Parameters:
        hard_timeout: see `Policy`; of the run of the endpoint.
        tags: of what is loaded, as far as they are known before.
        loader: what entries carry of the route.
    """

    codec, new_seat, is_outer = RESPONSES, None, False
    # Of the flight, once a reader has the turn.
    load: Load

    def __init__(self, hard_timeout: Timeout, tags: tuple[str, ...], loader: str) -> None:
        self.tags = tags
        self.loader = loader
        self.context: Context | None = Context()
        # The exception that the endpoint raised on purpose, for those who wait.
        self.refusal: HTTPException | None = None
        # Why the response was not stored.
        self.reason = ""
        # Ends the run of the endpoint.
        self.running = anyio.CancelScope()
        # Whether a reader runs the endpoint, or has run it.
        self.is_taken = False
        self._hard_timeout = hard_timeout
        self._seats: deque[_Seat] = deque()
        self._is_linked = False
        self._is_over = OneShotEvent()

    @property
    def is_abandoned(self) -> bool:
        """Return whether the load is over because all readers have left: that says nothing about the response."""
        return self._is_over.is_set() and not self.is_taken

    def may_fall_back(self, entry: Entry[StoredResponse], error: BaseException, now: float) -> bool:
        """Return whether a stored response may answer for a failure; see `is_fallback`."""
        failure = ErrorResponse(error.status_code, None) if isinstance(error, HTTPException) else error
        return is_fallback(entry, failure, now)

    async def run(self, load: Load) -> None:
        """Give the turn to a reader, and wait until one has run the endpoint."""
        load.limit(self._hard_timeout, self._give_up)
        self.load = load
        self.pass_on()
        await self._is_over.wait()
        await load.skip()

    # -- the readers ------------------------------------------------------------------------------------------

    async def wait_for_turn(self, flight: Flight) -> bool:
        """Wait for the turn to run the endpoint, or for the end of `flight`; return whether the turn is its own."""
        if flight.done.is_set():
            return False
        if not self._is_linked:
            self._is_linked = True
            flight.then += (self._release,)
        seat = _Seat()
        self._seats.append(seat)
        try:
            with deadlocks.waiting_for((flight,)):
                await seat.event.wait()
        except BaseException:
            if seat.leads:
                self.pass_on()
            else:
                # Unless the flight has ended in this very moment.
                with contextlib.suppress(ValueError):
                    self._seats.remove(seat)
            raise
        return seat.leads

    def pass_on(self) -> None:
        """Give the turn to the next reader; if there is none, the load is over."""
        self.running = anyio.CancelScope()
        self.is_taken = bool(self._seats)
        if not self._seats:
            self._is_over.set()
            return
        seat = self._seats.popleft()
        seat.leads = True
        seat.event.set()

    # -- the end of the run -----------------------------------------------------------------------------------

    async def store(self, response: StoredResponse, policy: Policy) -> None:
        """Store what the endpoint has returned, whether its reader stays or not."""
        with anyio.CancelScope(shield=True):
            await self.load.store(response, policy)
        self._is_over.set()

    async def skip(self, reason: str, *, drop: bool) -> None:
        """End without a response to store.

        Parameters:
            reason: why.
            drop: remove what is stored so far.
        """
        self.reason = reason
        with anyio.CancelScope(shield=True):
            await self.load.skip(drop=drop)
        self._is_over.set()

    async def fail(self, error: BaseException) -> None:
        """End with a failure."""
        with anyio.CancelScope(shield=True):
            await self.load.fail(error)
        self._is_over.set()

    def _give_up(self, error: BaseException) -> None:
        self.load.warn_timed_out(error)
        self.running.cancel()

    def _release(self, flight: Flight) -> None:
        for seat in self._seats:
            seat.event.set()
        self._seats.clear()


def turns_of(flight: Flight) -> Turns:
    """Return the job of the load of an endpoint's response."""
    turns = flight.job
    assert isinstance(turns, Turns)
    return turns

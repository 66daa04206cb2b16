"""The load of an endpoint's response: of all requests whose dependencies are resolved, one runs the endpoint.

This request, the reader that has the turn, runs the endpoint in its own task, for all of them. If it leaves, another
reader gets the turn. So no reader waits for a run that still needs a dependency, such as a database connection: the
waiting readers may hold all of these.
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
    """The seat of a reader that waits for the turn, or for the end of the flight."""

    __slots__ = ("event", "leads")

    def __init__(self) -> None:
        self.event = OneShotEvent()
        self.leads = False


class Turns:
    """A job of the engine that gives the turn to one reader after the other until one has run the endpoint.

    Parameters:
        hard_timeout: how long the run of the endpoint may take; see `Policy`.
        tags: the tags of the response that are known before the load.
        loader: the name of the route, as entries carry it.
    """

    codec, new_seat, is_outer = RESPONSES, None, False
    # The load of the flight; set before the first reader gets the turn.
    load: Load

    def __init__(self, hard_timeout: Timeout, tags: tuple[str, ...], loader: str) -> None:
        self.tags = tags
        self.loader = loader
        self.context: Context | None = Context()
        # The `HTTPException` with a status below 500 that the endpoint has raised, for the waiting readers.
        self.refusal: HTTPException | None = None
        # Why swr has not stored the response.
        self.reason = ""
        # Cancels the run of the endpoint.
        self.running = anyio.CancelScope()
        # Whether a reader runs the endpoint, or has run it.
        self.is_taken = False
        self._hard_timeout = hard_timeout
        self._seats: deque[_Seat] = deque()
        self._is_linked = False
        self._is_over = OneShotEvent()

    @property
    def is_abandoned(self) -> bool:
        """Return whether the load has ended because all readers have left, and not because of the response."""
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
        """Wait for the turn to run the endpoint, or for the end of `flight`; return whether the caller has the turn."""
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
                # If the flight has just ended, `_release` has removed the seat already.
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
        """Store the endpoint's response, even if the reader is cancelled meanwhile."""
        with anyio.CancelScope(shield=True):
            await self.load.store(response, policy)
        self._is_over.set()

    async def skip(self, reason: str, *, drop: bool) -> None:
        """End without a response to store.

        Parameters:
            reason: why swr does not store the response.
            drop: whether to remove the stored response.
        """
        self.reason = reason
        with anyio.CancelScope(shield=True):
            await self.load.skip(drop=drop)
        self._is_over.set()

    async def fail(self, error: BaseException) -> None:
        """End the load with a failure."""
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
    """Return the job of the flight that loads an endpoint's response."""
    turns = flight.job
    assert isinstance(turns, Turns)
    return turns

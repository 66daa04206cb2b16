"""The answer to a request that an endpoint's dependencies have admitted: from the cache, or from the endpoint."""

import logging
import math
from collections.abc import Callable
from typing import Any, Final

import anyio
from starlette.exceptions import HTTPException
from starlette.responses import Response

from swr.core.decision import FRESH, Revalidate, decide, is_fresh
from swr.endpoints.answers import response_behind
from swr.endpoints.origin import origin_of
from swr.endpoints.raised import copied, exception_of
from swr.endpoints.taking import Answer, Taking
from swr.endpoints.terms import Admission, Owner
from swr.endpoints.turns import Turns, turns_of
from swr.engine.engine import AGAIN
from swr.engine.flights import Flight
from swr.entry import Entry, State, stamp
from swr.http.caching import Terms, cache_status
from swr.http.failures import ErrorResponse, has_timed_out
from swr.http.fields import Headers
from swr.http.statuses import ABOUT_THE_CLIENT, ERRORS, GONE
from swr.http.stored_response import RESPONSES, age_of, is_response, marks_of
from swr.policy import Policy
from swr.stats.counts import Layer

log = logging.getLogger("swr")

# RFC 8941: of two parameters with the same name only the last counts, so each member has one `detail`.
_DETAIL: Final = b'; detail="after dependencies"'
_TIMEOUT: Final = b'; detail="timeout, after dependencies"'
# The reason for not storing an answer that an exception handler of the app makes.
_HANDLED: Final = "exception handler"
_SOFT_TIMEOUT: Final = b'; detail="soft timeout, after dependencies"'


class Reader:
    """The reader that answers one request after its dependencies have run.

    Parameters:
        owner: the cache.
        admission: the admission that the middleware has put into the scope.
        key: the key of the response.
        terms: the terms of the endpoint.
        where: FastAPI's route; None: Starlette calls the endpoint.
        own: the response on which the dependencies set fields; None: there is none.
        tags_of: returns the tags of what the endpoint returns; see `EndpointTerms`.
    """

    __slots__ = (
        "_admission",
        "_engine",
        "_fields",
        "_taking",
        "_terms",
        "_why",
        "key",
        "running",
        "turns",
    )

    def __init__(
        self,
        owner: Owner,
        admission: Admission,
        key: str,
        terms: Terms,
        where: Any,
        own: Response | None,
        tags_of: Callable[[Any], tuple[str, ...] | None] | None = None,
    ) -> None:
        self._engine = owner.engine
        self._admission = admission
        self.key = key
        self._terms = terms
        # The fields that the dependencies have set for this request.
        self._fields: Headers = [] if own is None else list(own.raw_headers)
        self._taking = Taking(admission.asked, terms, where, own, self._fields, tags_of)
        self._why = b"uri-miss"
        # Set once this reader has the turn to run the endpoint for all.
        self.turns: Turns | None = None

    # Cancels the run of the endpoint; set together with `turns`.
    running: anyio.CancelScope

    @property
    def flight(self) -> Flight:
        """The flight for which this reader runs the endpoint."""
        assert self.turns is not None
        return self.turns.load.flight

    # -- before the endpoint ----------------------------------------------------------------------------------

    async def seek(self) -> Response | None:
        """Return the answer; None: the endpoint has to run, for all waiting readers if `turns` is set.

        Raises:
            Exception: the endpoint raised it in another request, and it is stored or this request has waited for it.
        """
        engine, admission, key = self._engine, self._admission, self.key
        # Not in the constructor, which may run in a worker thread.
        admission.asked.admit()
        if admission.refreshing:
            return await self._refresh(admission.refreshing)
        entry = engine.store.peek(key)
        limits = admission.asked.limits
        decision = decide(entry, engine.clock(), limits)
        asked = not decision.serve
        if decision is not FRESH:
            if not await engine.enter():
                self._mark(0, "off")
                return None
            if asked:
                entry = await engine.store.read(key, RESPONSES)
                decision = decide(entry, engine.clock(), limits)
        if decision.serve and entry is not None and is_response(entry):
            if decision.revalidate is Revalidate.BACKGROUND and not engine.backs_off(key):
                admission.stale = key
            return self._give(entry, decision.state, layer=Layer.REDIS if asked else Layer.L1)
        if entry is not None:
            self._why = b"stale"
        reason = admission.asked.why_not(key)
        if reason or not admission.asked.may_load:
            self._mark(0, reason or "no-store")
            return None
        return await self._wait(entry)

    async def _refresh(self, key: str) -> Response | None:
        """Return None if the endpoint has to run to refresh `key`, or else an empty answer, which no client gets."""
        flight = self._engine.flights.get(key)
        # Join a load that no reader runs: it may still wait for its lease while all its readers have left.
        is_wanted = not self._engine.backs_off(key) if flight is None else not turns_of(flight).is_taken
        if self.key == key and is_wanted:
            await self._wait(self._engine.store.peek(key))
        return Response(status_code=204) if self.turns is None else None

    async def _wait(self, entry: Entry[Any] | None) -> Response | None:
        """Wait for the turn to run the endpoint and return None, or return the answer of another reader's run."""
        engine, again, has_retried = self._engine, 0, False
        limit = self._terms.policy.hard_timeout
        if limit is None:
            limit = self._admission.asked.hard_timeout
        tags = (*self._admission.asked.tags, *self._terms.policy.tags)
        # A background refresh has no client, so it waits without a soft time-out.
        soft_timeout = None if self._admission.refreshing else self._terms.policy.soft_timeout
        while True:
            flight = engine.begin(self.key, Turns(limit, tags, origin_of(self._admission.scope)), entry)
            turns = turns_of(flight)
            with anyio.move_on_after(engine.patience_for((flight,), soft_timeout)) as patience:
                if await turns.wait_for_turn(flight):
                    self.turns, self.running = turns, turns.running
                    return None
            if patience.cancelled_caught:
                fallback, soft_timeout, entry = engine.fallback(flight), None, None
                if fallback is not None:
                    return self._give_up(fallback, turns)
                continue
            loaded, error = flight.loaded, flight.error
            if loaded is not None:
                if not flight.superseded or again == AGAIN:
                    return self._give(loaded, State.MISSING, b"swr; fwd=%b; collapsed" % self._why)
                again += 1
                entry = engine.store.peek(self.key)
                continue
            if flight.has_no_value:
                if turns.is_abandoned:
                    continue
                self._take_no_value(turns)
                return None
            fallback = engine.fallback(flight, error)
            if fallback is not None:
                return self._fall_back(fallback, error)
            if has_timed_out(self.key, error):
                return self.time_out()
            if error is not None and has_retried:
                return self._repeat(flight, error)
            # An invalidation may have outdated the entry: another flight must not fall back on it.
            has_retried, entry = has_retried or error is not None, None

    def _give_up(self, fallback: Entry[Any], turns: Turns) -> Response:
        """Answer with a fallback after the soft time-out, before this reader has had the turn."""
        if not turns.is_taken:
            # No reader runs the endpoint, so start a background refresh.
            self._admission.stale = self.key
        return self._give_stale(fallback, b"swr; fwd=stale", detail=_SOFT_TIMEOUT)

    def _take_no_value(self, turns: Turns) -> None:
        """Let this reader run the endpoint for itself, because swr has not stored the response of another run.

        Raises:
            HTTPException: a copy of the one with a status below 500 that the endpoint has raised in the other run.
        """
        if turns.refusal is not None:
            self._mark(0, f"status {turns.refusal.status_code}")
            raise copied(turns.refusal)
        self._mark(0, turns.reason)

    def _repeat(self, flight: Flight, error: BaseException) -> Response | None:
        """Answer with the second failure of other readers' loads; None: run the endpoint for this reader."""
        self._admission.has_failed = True
        if not isinstance(error, ErrorResponse):
            raise flight.failure()
        if error.response is None:
            return None
        entry = stamp(error.response, Policy(0), self._engine.clock())
        return self._response(entry, b"swr; fwd=%b; fwd-status=%d; collapsed" % (self._why, error.status))

    # -- after the endpoint -----------------------------------------------------------------------------------

    def take(self, value: Any) -> Answer:
        """Return the judged answer for a value of the endpoint; see `Taking.take`."""
        assert self.turns is not None
        return self._taking.take(value, self.turns.load.began)

    def _may_replace(self, status: int) -> bool:
        """Return whether a response with this status may replace the stored one."""
        entry = self._engine.fallback(self.flight)
        if entry is None or not is_response(entry) or status not in ABOUT_THE_CLIENT:
            return True
        # The status is about this client; others may still get the stored response, unless that is an error.
        return bool(entry.value.status >= 400)

    async def finish(self, answer: Answer) -> Any:
        """Store the endpoint's response if it may be stored; return that response, or else the endpoint's value."""
        turns, status = self.turns, answer.status
        assert turns is not None
        if answer.policy is not None and not self._may_replace(status):
            answer = answer._replace(policy=None, reason=f"status {status}")
        if status in ERRORS and (answer.policy is None or self._engine.fallback(self.flight) is not None):
            error = ErrorResponse(status, None if answer.reason in ("private", "no-store") else answer.stored)
            await turns.fail(error)
            fallback = self._engine.fallback(self.flight, error)
            if fallback is not None:
                return self._fall_back(fallback, error)
            self._admission.has_failed = True
            self._mark(0, "")
            return answer.value
        if answer.policy is None or answer.stored is None:
            is_about_all = status < 500 and status not in ABOUT_THE_CLIENT
            if is_about_all:
                asked, load = self._admission.asked, turns.load
                asked.note(self.key, answer.reason, (*asked.tags, *self._terms.policy.tags), load.tag_version)
            await turns.skip(answer.reason, drop=is_about_all and self.flight.entry is not None)
            self._mark(0, answer.reason)
            return answer.value
        await turns.store(answer.stored, answer.policy)
        entry = stamp(answer.stored, answer.policy, turns.load.began)
        response = self._response(entry, b"swr; fwd=%b; stored" % self._why, State.MISSING)
        if response.status_code != status:
            self._mark(response.status_code, b"swr; fwd=%b; fwd-status=%d; stored" % (self._why, status))
        return response

    async def fail(self, error: Exception) -> Response:
        """Answer with a fallback after an exception of the endpoint.

        Raises:
            Exception: the exception itself, if there is no fallback for it.
        """
        turns = self.turns
        assert turns is not None
        if isinstance(error, HTTPException) and await self._end_raised(turns, error):
            raise error
        if not isinstance(error, HTTPException) and self._handles(error):
            # The app's handler makes the answer, a 404 perhaps. It runs after the dependencies, so swr does not see it.
            self._mark(0, _HANDLED)
            await turns.skip(_HANDLED, drop=False)
            raise error
        await turns.fail(error)
        fallback = self._engine.fallback(self.flight, error)
        if fallback is None:
            self._admission.has_failed = True
            raise error
        return self._fall_back(fallback, error)

    async def _end_raised(self, turns: Turns, error: HTTPException) -> bool:
        """End the load with an `HTTPException`, and return True. Return False for a 5xx that swr does not store.

        swr stores the exception if its fields say for how long.
        """
        status = error.status_code
        answer, is_own = self._taking.take_raised(error, turns.load.began)
        may_store = self._may_replace(status) if status < 500 else self._engine.fallback(self.flight, error) is None
        if answer.policy is not None and answer.stored is not None and may_store:
            await turns.store(answer.stored, answer.policy)
            self._mark(status, b"swr; fwd=%b; stored" % self._why)
            return True
        if status >= 500:
            return False
        reason = answer.reason or f"status {status}"
        self._mark(0, reason)
        if not is_own:
            turns.refusal = error
        await turns.skip(reason, drop=status in GONE and self.flight.entry is not None)
        return True

    def _handles(self, error: Exception) -> bool:
        """Return whether the app has a handler for an exception's class; one for all exceptions does not count."""
        handlers, _ = self._admission.scope.get("starlette.exception_handlers", ({}, {}))
        return any(kind in handlers for kind in type(error).__mro__)

    async def end(self) -> Response:
        """Answer after the time limit has ended the endpoint."""
        flight = self.flight
        await flight.done.wait()
        fallback = self._engine.fallback(flight, flight.error)
        return self.time_out() if fallback is None else self._fall_back(fallback, flight.error)

    def leave(self) -> None:
        """Give the turn to another reader, because this one was cancelled."""
        assert self.turns is not None
        self.turns.pass_on()

    # -- answers ----------------------------------------------------------------------------------------------

    def time_out(self) -> Response:
        """Return the 504 for an endpoint that is too slow."""
        self._mark(504, b"swr; fwd=%b" % self._why, _TIMEOUT)
        return Response(status_code=504)

    def _give(
        self,
        entry: Entry[Any],
        state: State,
        status: bytes | None = None,
        error: BaseException | None = None,
        layer: Layer = Layer.LOAD,
        detail: bytes = _DETAIL,
    ) -> Response:
        """Return a stored response for this request, and publish the read.

        Raises:
            HTTPException: the entry is a stored exception.
        """
        engine, admission = self._engine, self._admission
        now = engine.clock()
        if not admission.refreshing:
            engine.tell(self.key, entry, state, error, layer)
        admission.is_answered = True
        status = status or cache_status(state, math.floor(entry.fresh_until - now) - entry.value.overdue)
        marks = marks_of(entry, state, now, status + detail)
        if entry.value.raised:
            admission.marks, admission.status = marks, entry.value.status
            raise exception_of(entry.value)
        response = self._response(entry, status, state, age_of(entry, now))
        admission.marks = marks
        return response

    def _fall_back(self, entry: Entry[Any], error: BaseException | None) -> Response:
        failed = 504 if has_timed_out(self.key, error) else getattr(error, "status", getattr(error, "status_code", 500))
        return self._give_stale(entry, b"swr; fwd=stale; fwd-status=%d" % failed, error)

    def _give_stale(
        self, entry: Entry[Any], status: bytes, error: BaseException | None = None, detail: bytes = _DETAIL
    ) -> Response:
        state = State.FRESH if is_fresh(entry, self._engine.clock()) else State.STALE
        return self._give(entry, state, status, error, detail=detail)

    def _response(self, entry: Entry[Any], mark: bytes, state: State | None = None, age: int = 0) -> Response:
        """Return a stored response for this request, whole or in part; see `response_behind`."""
        max_age = self._terms.client_max_age or 0
        response = response_behind(entry, self._fields, self._admission.asked.fields, max_age, state, age)
        self._mark(response.status_code, mark)
        return response

    def _mark(self, status: int, mark: bytes | str, detail: bytes = _DETAIL) -> None:
        """Note for the middleware where the answer comes from.

        Parameters:
            status: the status code of the answer; 0, if `mark` is a reason: the app sets it.
            mark: the member of `Cache-Status`, or the reason why swr does not store the answer.
            detail: the end of the member.
        """
        admission = self._admission
        if isinstance(mark, str):
            admission.reason = mark
        else:
            admission.marks, admission.status = [(b"swr-state", b"missing"), (b"cache-status", mark + detail)], status

"""Handling one request: classify it, look it up, and answer from the cache, from a load or from the app."""

import logging
from typing import Any, Final

import anyio
from starlette.types import Receive, Send

from swr.core.decision import FRESH, Revalidate, decide
from swr.engine.flights import Flight
from swr.entry import Entry, State
from swr.errors import LoadTimeout, SWRError
from swr.events import Miss as MissEvent
from swr.http.classify import Action, Handling, Miss, classify, classify_miss
from swr.http.stored_response import Varies, answers_range, is_response
from swr.middleware.capture import Capture
from swr.middleware.captured import ErrorResponse
from swr.middleware.config import Config
from swr.middleware.lookup import PART, Found, limits_for, look_up, look_up_local, may_use, read_entry
from swr.middleware.messages import begin_with, send_error, send_gateway_timeout, send_stored
from swr.middleware.outbox import Outbox
from swr.middleware.passthrough import Unsafe, bypass, head
from swr.middleware.request import Request

log = logging.getLogger("swr")

# A load may show that the URL varies; then swr looks the request up again. It does so this many times at most.
_MOST_LOOKUPS: Final = 4


class RequestHandler:
    """Answers one request that swr looks at: GET, HEAD, or a method that may change something.

    Parameters:
        config: of the middleware.
        request: what is asked.
        receive, send: of ASGI.
    """

    __slots__ = ("_accepted", "_config", "_engine", "_facts", "_receive", "_request", "_send")

    def __init__(self, config: Config, request: Request, receive: Receive, send: Send) -> None:
        self._config = config
        self._engine = config.engine
        self._request = request
        self._receive = receive
        self._send = send
        self._facts, self._accepted = request.read_facts(config.sharing, config.honoured)

    async def handle(self) -> None:
        """Answer the request."""
        handling = classify(self._facts)
        if handling.action is Action.INVALIDATE:
            self._log(handling)
            await Unsafe(self._config, self._request).answer(self._receive, self._send)
        else:
            try:
                await self._answer(handling)
            finally:
                if not self._request.answered:
                    self._engine.events.publish(MissEvent, self._request.key)

    async def _answer(self, handling: Handling) -> None:
        """Answer a GET or HEAD."""
        if handling.action is Action.BYPASS:
            await self._bypass(handling, handling.cache_status)
            return
        if handling.action is Action.LOOK_UP:
            found = look_up_local(self._engine, self._request)
            if await self._serve(found):
                return
            is_uncacheable = found.entry is None and found.key in self._config.uncacheable
            handling = classify_miss(self._facts, Miss(False, is_uncacheable=is_uncacheable))
            if handling.action is Action.BYPASS:
                await self._bypass(handling, self._miss_status(found.key, found.why_missing(0)))
                return
            if self._request.method == "GET" and await self._has_unannounced_content():
                handling = classify(self._facts._replace(has_content=True))
                await self._bypass(handling, handling.cache_status)
                return
        for _ in range(_MOST_LOOKUPS):
            if await self._ask_store():
                return
        handling = classify_miss(self._facts, Miss(True, is_unsettled=True))
        await self._bypass(handling, handling.cache_status)

    async def _has_unannounced_content(self) -> bool:
        """Whether a body comes that no field has announced, as HTTP/2 and 3 allow."""
        message = await self._receive()
        while message.get("more_body") and not message.get("body"):
            message = await self._receive()
        self._receive = begin_with(message, self._receive)
        return bool(message.get("body"))

    async def _ask_store(self) -> bool:
        """Answer with what the store has, or as its miss demands; False: look the request up again."""
        request = self._request
        found = await look_up(self._engine, request, self._accepted)
        if await self._serve(found):
            return True
        has_response = is_response(found.entry)
        known = found.entry if has_response else None
        is_unshared = known is not None and not may_use(request, known)
        is_confirming = known is not None and known.value.validate and self._engine.is_loading(found.key)
        miss = Miss(True, is_unshared=is_unshared, is_confirming=is_confirming)
        handling = classify_miss(self._facts, miss)
        if handling.action is Action.LOAD:
            return await self._load(handling, found)
        if handling.action is Action.GATEWAY_TIMEOUT:
            self._log(handling)
            await send_gateway_timeout(self._send, handling.cache_status)
        elif handling.action is Action.FORWARD_HEAD:
            self._log(handling)
            usable = found._replace(entry=None) if is_unshared else found
            status = b"swr; fwd=%b" % usable.why_missing(self._engine.clock())
            known = None if is_unshared else known
            await head(self._config, request, self._receive, self._send, found.key, known, status)
        else:
            status = handling.cache_status or b"swr; fwd=%b" % found.why_missing(self._engine.clock())
            await self._bypass(handling, status)
        return True

    async def _bypass(self, handling: Handling, status: bytes) -> None:
        self._log(handling)
        await bypass(self._config, self._request, self._receive, self._send, status)

    # -- answers from the cache -------------------------------------------------------------------------------

    async def _serve(self, found: Found) -> bool:
        """Answer with the entry of a lookup, if it may answer."""
        key, names, entry, layer = found
        if entry is None or not is_response(entry) or not may_use(self._request, entry):
            return False
        now = self._engine.clock()
        decision = decide(entry, now, limits_for(self._accepted, entry))
        if not decision.serve:
            return False
        if decision.revalidate is Revalidate.BACKGROUND:
            backs_off = self._engine.backs_off(key)
            if not backs_off:
                await self._engine.ready()
                self._engine.refresh_soon(key, Capture(self._config, self._request, names=names), entry)
            if log.isEnabledFor(logging.DEBUG):
                refresh = "no refresh now: one is under way, or the last one failed" if backs_off else "refresh started"
                log.debug(
                    "%s %r: answer (stale) from the %s; %s",
                    self._request.method,
                    self._request.url,
                    layer.value,
                    refresh,
                )
        await self._give(key, entry, decision.state, now)
        return True

    async def _serve_part(self, key: str, part: Entry[Any] | None) -> bool:
        """Answer with a stored part, if it holds all that the client asks for and is fresh: swr refreshes no part."""
        request = self._request
        if part is None or not may_use(request, part):
            return False
        if not answers_range(request.fields, part.value, part.created_at):
            return False
        now = self._engine.clock()
        if decide(part, now, limits_for(self._accepted, part)) is not FRESH:
            return False
        await self._give(key, part, State.FRESH, now)
        return True

    async def _give(
        self,
        key: str,
        entry: Entry[Any],
        state: State,
        now: float,
        status: bytes | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Answer with a stored response, fresh or stale, and publish that; see `send_stored`."""
        self._request.answered = True
        self._engine.tell(key, entry, state, error)
        await send_stored(self._request, self._send, entry, state, now, status)

    # -- answers from a load ----------------------------------------------------------------------------------

    async def _load(self, handling: Handling, found: Found) -> bool:
        """Load the response, or wait for a load of another request, and answer; False: look the request up again."""
        request = self._request
        why = found.why_missing(self._engine.clock())
        key, entry = found.key, found.entry
        if b"range" in request.fields:
            part, _ = await read_entry(self._engine, key + PART, self._accepted)
            if await self._serve_part(key + PART, part):
                return True
            # Only requests for the same part may share a load.
            asked = (request.fields.get(name, b"").decode("latin-1") for name in (b"range", b"if-range"))
            key, entry = "\n".join([key, "range", *asked]), None
        outbox = Outbox(self._receive)
        job = Capture(self._config, request, outbox, found.names, why)
        failure: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(outbox.deliver, self._send)
                try:
                    flight = await self._engine.join(key, job, entry)
                    await job.wait()
                except Exception as error:
                    # The group would wrap it in an ExceptionGroup.
                    failure = error
                group.cancel_scope.cancel()
        finally:
            job.detach()
        if failure is not None:
            raise failure
        if outbox.error is not None and not isinstance(outbox.error, OSError):
            raise outbox.error
        if job.error is not None and outbox.is_begun and not isinstance(job.error, ErrorResponse):
            raise job.error
        if outbox.is_begun and not outbox.is_complete and not outbox.has_left:
            # The middleware around swr must not take it for the whole response.
            raise SWRError(f"the response to {key!r} broke off")
        outcome = job.outcome if outbox.is_begun else await self._answer_with(flight, why)
        if outcome is not None and log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s %r: %s (%s): missing in the %s, %s; %s",
                request.method,
                request.url,
                handling.action.value,
                handling.reason.value,
                found.layer.value,
                why.decode(),
                outcome,
            )
        return outcome is not None

    async def _answer_with(self, flight: Flight, why: bytes) -> str | None:
        """Answer with the result of another request's flight; return what that was, or None to look up again."""
        request, send, error = self._request, self._send, flight.error
        loaded = flight.loaded
        if loaded is not None:
            if flight.superseded or type(loaded.value) is Varies:
                return None
            if may_use(request, loaded) and not loaded.value.validate:
                status = b"swr; fwd=%b; collapsed" % why
                await send_stored(request, send, loaded, State.MISSING, self._engine.clock(), status)
                return "another request's load answered"
        elif error is not None:
            outcome = await self._answer_failure(flight, error, why)
            if outcome is not None:
                return outcome
        elif isinstance(flight.job, Capture) and flight.job.is_stored_elsewhere:
            return None
        # The result is not for this request, or only for the one that loaded it.
        await bypass(self._config, request, self._receive, send, self._miss_status(flight.key, why))
        return "another request's load was of no use; the app answered"

    async def _answer_failure(self, flight: Flight, error: BaseException, why: bytes) -> str | None:
        """Answer for a load that has failed; return how, or None if the app must answer.

        Raises:
            BaseException: the failure, if it is neither a time-out nor an answer of the app.
        """
        now = self._engine.clock()
        is_timeout = isinstance(error, LoadTimeout)
        fallback = self._engine.fallback(flight, error)
        if fallback is not None and may_use(self._request, fallback):
            status = error.status if isinstance(error, ErrorResponse) else 504 if is_timeout else 500
            # A fallback may be fresh, but not fresh enough for the client.
            state = State.FRESH if now < fallback.fresh_until else State.STALE
            mark = b"swr; fwd=%b; fwd-status=%d" % (why, status)
            await self._give(flight.key, fallback, state, now, mark, error)
            return f"failed ({type(error).__name__}), answered with the {state.value} fallback"
        if is_timeout:
            await send_gateway_timeout(self._send, b'swr; fwd=%b; detail="timeout"' % why)
            return "failed (LoadTimeout), answered 504"
        if not isinstance(error, ErrorResponse):
            raise error
        if error.response is None:
            return None
        await send_error(self._send, error.response, why)
        return f"another request's load failed, answered {error.status}"

    def _miss_status(self, key: str, why: bytes) -> bytes:
        """Return the member of `Cache-Status` for a miss, with the reason why it is not stored, if that is known."""
        reason = self._config.uncacheable.get(key)
        return b'swr; fwd=%b; detail="%b"' % (why, reason.encode()) if reason else b"swr; fwd=%b" % why

    def _log(self, handling: Handling) -> None:
        if log.isEnabledFor(logging.DEBUG):
            # The URL alone: the key may hold cookies and other fields of the client.
            log.debug(
                "%s %r: %s (%s)", self._request.method, self._request.url, handling.action.value, handling.reason.value
            )

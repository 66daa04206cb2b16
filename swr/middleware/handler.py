"""The handling of one request: classify it, look it up, and answer from the cache, from a load or from the app."""

import contextlib
import logging
from typing import Any, Final

from starlette.types import Receive, Send

from swr.core.decision import FRESH, Revalidate, decide, is_fresh
from swr.engine.flights import Flight
from swr.entry import Entry, State
from swr.errors import SWRError
from swr.http.classify import ADMITTING, CONTENT, OFF, Action, Handling, Miss, Reason, classify, classify_miss
from swr.http.failures import ErrorResponse, has_timed_out
from swr.http.stored_response import Varies, answers_range, is_response
from swr.middleware.admission import admission_of, is_guarded
from swr.middleware.capture import Capture
from swr.middleware.config import Config, refuse_second
from swr.middleware.delivery import Delivery
from swr.middleware.lookup import PART, Found, find_unknown, limits_for, look_up, look_up_local, may_use, read_entry
from swr.middleware.messages import REFRESHES_ALREADY, look_ahead, send_empty, send_error, send_stored
from swr.middleware.outbox import Outbox
from swr.middleware.passthrough import Unsafe, bypass, head
from swr.middleware.request import Request
from swr.middleware.results import tell
from swr.middleware.retrying import blames_client
from swr.policy import Timeout
from swr.stats.counts import Layer

log = logging.getLogger("swr")

# A load may show that the URL varies by other fields, so swr looks the request up again, up to this many times.
_MOST_LOOKUPS: Final = 4


class RequestHandler:
    """The handler of one request that swr may answer from the cache, or that may change something.

    Parameters:
        config: the middleware's options.
        request: the client's request.
        receive, send: the callables of ASGI.
    """

    __slots__ = ("_accepted", "_config", "_engine", "_facts", "_has_retried", "_receive", "_request", "_send")

    def __init__(self, config: Config, request: Request, receive: Receive, send: Send) -> None:
        self._config = config
        self._engine = config.engine
        self._request = request
        self._receive = receive
        self._send = send
        # Whether this request was looked up again because another request's load could not answer it.
        self._has_retried = False
        facts, self._accepted = request.read_facts(config.sharing, config.honoured)
        self._facts = facts._replace(is_off=True) if config.engine.switch.is_off else facts

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
                if not self._facts.is_off:
                    tell(self._engine, self._request)

    async def _answer(self, handling: Handling) -> None:
        """Answer a request that changes nothing."""
        if handling.action is Action.BYPASS:
            await self._bypass(handling, handling.cache_status)
            return
        # HTTP/1 announces content in a field. HTTP/2 and 3 need not, so swr waits for the client's first message.
        is_unsure = self._request.scope.get("http_version", "1.1") > "1.1"
        if is_unsure and await self._has_unannounced_content():
            await self._bypass(CONTENT, CONTENT.cache_status)
            return
        if handling.action is Action.LOOK_UP:
            found = look_up_local(self._engine, self._request)
            if await self._serve(found):
                return
            is_uncacheable = found.entry is None and bool(self._config.why_uncacheable(found.key, self._request))
            behind = is_guarded(self._config, self._request, found)
            handling = classify_miss(self._facts, Miss(False, is_uncacheable=is_uncacheable, is_guarded=behind))
            if handling.action is Action.BYPASS:
                await self._bypass(handling, self._config.miss_status(found.key, self._request, found.why_missing(0)))
                return
            if self._request.method == "GET" and not is_unsure and await self._has_unannounced_content():
                await self._bypass(CONTENT, CONTENT.cache_status)
                return
        if not await self._engine.enter():
            # Another event loop has opened the cache since this request began.
            self._facts = self._facts._replace(is_off=True)
            await self._bypass(OFF, OFF.cache_status)
            return
        for _ in range(_MOST_LOOKUPS):
            if await self._ask_store():
                return
        handling = classify_miss(self._facts, Miss(True, is_unsettled=True))
        await self._bypass(handling, handling.cache_status)

    async def _has_unannounced_content(self) -> bool:
        """Return whether the request has a body that no field has announced, as HTTP/2 and 3 allow."""
        if self._request.by_content:
            return False
        has_content, self._receive = await look_ahead(self._receive)
        return has_content

    async def _ask_store(self) -> bool:
        """Answer with the entry in the store, or handle the miss; False: look the request up again."""
        request = self._request
        found = await look_up(self._engine, request, self._accepted)
        if await self._serve(found):
            return True
        has_response = is_response(found.entry)
        known = found.entry if has_response else None
        is_unshared = known is not None and not may_use(request, known)
        field = find_unknown(request, found)
        is_confirming = known is not None and known.value.validate and self._engine.is_loading(found.key)
        is_joinable = self._engine.is_loading(found.key) and request.method != "HEAD" and not request.has_range
        miss = Miss(
            True,
            is_guarded=is_guarded(self._config, request, found),
            has_unknown_field=field is not None,
            has_response=has_response,
            is_unshared=is_unshared,
            is_confirming=is_confirming,
            is_joinable=is_joinable,
        )
        handling = classify_miss(self._facts, miss)
        if handling.action in (Action.LOAD, Action.LOAD_APART):
            return await self._load(handling, found)
        if handling.action is Action.GATEWAY_TIMEOUT:
            self._log(handling)
            await send_empty(self._send, 504, handling.cache_status)
        elif handling.action is Action.FORWARD_HEAD:
            self._log(handling)
            request.result.bypass = handling.reason.value
            usable = found._replace(entry=None) if is_unshared else found
            status = b"swr; fwd=%b" % usable.why_missing(self._engine.clock())
            known = None if is_unshared else known
            await head(self._config, request, self._receive, self._send, found.key, known, status)
        else:
            status = handling.cache_status or b"swr; fwd=%b" % found.why_missing(self._engine.clock())
            if field is not None and handling.reason is Reason.UNKNOWN_FIELD:
                self._config.warn_unknown(field)
                status = b'swr; fwd=bypass; detail="field %b"' % field.encode("latin-1")
            await self._bypass(handling, status)
        return True

    async def _bypass(self, handling: Handling, status: bytes) -> None:
        self._log(handling)
        self._request.result.pass_by(status, handling.reason)
        admission = None
        if handling.reason in ADMITTING and not await self._has_unannounced_content():
            admission = admission_of(self._config, self._request, self._facts, self._accepted)
        await bypass(self._config, self._request, self._receive, self._send, status, admission=admission)

    # -- answers from the cache -------------------------------------------------------------------------------

    async def _serve(self, found: Found) -> bool:
        """Answer with the entry of a lookup; return False if the entry may not answer."""
        key, varies, entry, layer = found
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
                self._engine.refresh_soon(key, Capture(self._config, self._request, varies=varies), entry)
            if log.isEnabledFor(logging.DEBUG):
                refresh = REFRESHES_ALREADY if backs_off else "refresh started"
                method, url = self._request.method, self._request.url
                log.debug("%s %r: answer (stale) from the %s; %s", method, url, found.where, refresh)
        if varies.names:
            self._config.variants.use(key)
        await self._give(key, entry, decision.state, now, layer=layer)
        return True

    async def _serve_part(self, key: str, part: Entry[Any] | None, layer: Layer) -> bool:
        """Answer with a stored part if it has the whole range and is fresh, because swr does not refresh parts."""
        request = self._request
        if part is None or not may_use(request, part):
            return False
        if not answers_range(request.fields, part.value, part.created_at):
            return False
        now = self._engine.clock()
        if decide(part, now, limits_for(self._accepted, part)) is not FRESH:
            return False
        await self._give(key, part, State.FRESH, now, layer=layer)
        return True

    async def _give(
        self,
        key: str,
        entry: Entry[Any],
        state: State,
        now: float,
        status: bytes | None = None,
        error: BaseException | None = None,
        layer: Layer = Layer.LOAD,
    ) -> None:
        """Answer with a stored response, fresh or stale, and publish the read; see `send_stored`."""
        self._request.result.is_told = True
        self._engine.tell(key, entry, state, error, layer)
        await send_stored(self._request, self._send, entry, state, now, status)

    # -- answers from a load ----------------------------------------------------------------------------------

    async def _load(self, handling: Handling, found: Found) -> bool:
        """Load the response, or wait for a load of another request, and answer; False: look the request up again."""
        request = self._request
        why = found.why_missing(self._engine.clock())
        key, entry = found.key, found.entry
        if handling.action is Action.LOAD_APART:
            key, entry = request.private_key, None
        if request.has_range:
            part, layer = await read_entry(self._engine, key + PART, self._accepted)
            if await self._serve_part(key + PART, part, layer):
                return True
            # Only requests for the same range may share a load.
            key, entry = request.range_key(key), None
        # The lookup may have read the local cache alone, so the cache may not be open on this event loop.
        await self._engine.ready()
        is_shareable = self._config.shareable.get(request.key)
        if request.hides_cookies and (is_shareable is False or (request.authorized and not is_shareable)):
            # The response is probably for this client alone.
            request.hides_cookies, request.shows_cookies = False, True
        outbox = Outbox(self._receive, is_holding=request.hides_cookies)
        job = Capture(self._config, request, outbox, found.varies, why)
        refuse_second(self._config.cache, key, request)
        flight = self._engine.begin(key, job, entry)
        soft_timeout = self._soft_timeout(flight.entry)
        delivery = Delivery(self._config, flight, job, soft_timeout, lambda: self._usable_fallback(flight) is not None)
        is_answered = await delivery.deliver(self._send)
        request.result.origin = flight.job.loader
        if request.hides_cookies and job.is_begun and not outbox.is_begun:
            self._config.shareable[request.key] = False
        if not is_answered:
            await self._answer_nobody(outbox, why)
            return True
        self._receive = outbox.unread_before(self._receive)
        if outbox.error is not None and not isinstance(outbox.error, OSError):
            raise outbox.error
        if job.error is not None and outbox.is_begun and not isinstance(job.error, ErrorResponse):
            try:
                raise job.error
            finally:
                # The traceback refers to the run. A reference cycle would delay closing what the app has left open.
                job.error = None if outbox.is_passing else job.error
        if outbox.is_begun and not outbox.is_complete and not outbox.has_left:
            # Without this, middleware around swr would take the truncated response for a whole one.
            raise SWRError(f"the response to {key!r} broke off")
        outcome = job.outcome if outbox.is_begun else await self._answer_with(flight, why, is_own=job.is_begun)
        if job.is_begun and flight.error is not None and not self._engine.is_loading(key):
            self._refresh_without_client(flight, found.varies)
        if outcome is not None and log.isEnabledFor(logging.DEBUG):
            log.debug(
                "%s %r: %s (%s): missing in the %s, %s; %s",
                request.method,
                request.url,
                handling.action.value,
                handling.reason.value,
                found.where,
                why.decode(),
                outcome,
            )
        return outcome is not None

    def _soft_timeout(self, entry: Entry[Any] | None) -> Timeout:
        """Return the decorator's or a rule's soft time-out for this client; None: there is none."""
        if entry is not None and is_response(entry) and entry.value.client_max_age is not None:
            timeout: Timeout = entry.value.soft_timeout
            return timeout
        rule = self._request.find_rule()
        return None if rule is None else rule.soft_timeout

    async def _answer_nobody(self, outbox: Outbox, why: bytes) -> None:
        """Send a 499 to a client that has left, because middleware around swr may wait for a response."""
        if not outbox.is_begun:
            with contextlib.suppress(OSError):
                await send_empty(self._send, 499, b'swr; fwd=%b; detail="client left"' % why)

    def _refresh_without_client(self, flight: Flight, varies: Varies) -> None:
        """Refresh a stale response with a replay, because a field of this client may have made the app fail.

        The replay does not wait for the backoff that the failure has begun. If it fails too, the backoff goes on.
        """
        fallback = self._engine.fallback(flight, flight.error)
        # Another load may have stored something fresh meanwhile.
        if fallback is not None and not is_fresh(fallback, self._engine.clock()):
            job = Capture(self._config, self._request, varies=varies)
            self._engine.refresh_soon(flight.key, job, fallback, forced=True)

    def _may_retry(self) -> bool:
        """Return True only the first time: loads that bring nothing for this request cause at most one more lookup."""
        may_retry, self._has_retried = not self._has_retried, True
        return may_retry

    async def _answer_with(self, flight: Flight, why: bytes, *, is_own: bool) -> str | None:
        """Answer with the result of a flight; return that result for the log, or None to look the request up again.

        Parameters:
            is_own: whether this request has run the app for the flight.
        """
        request, send, error = self._request, self._send, flight.error
        if not flight.done.is_set():
            # The soft time-out is over. An invalidation may have removed the fallback meanwhile.
            fallback = self._usable_fallback(flight)
            if fallback is None:
                return None
            await self._fall_back(flight, fallback, b'swr; fwd=%b; detail="soft timeout"' % why)
            return "is still under way, answered with the stored response"
        loaded = flight.loaded
        if loaded is not None:
            if flight.superseded or type(loaded.value) is Varies:
                return None
            if may_use(request, loaded) and not loaded.value.validate:
                status = b"swr; fwd=%b; collapsed" % why
                await send_stored(request, send, loaded, State.MISSING, self._engine.clock(), status)
                return "another request's load answered"
        elif error is not None:
            if flight.must_be_repeated and self._engine.fallback(flight, error) is None:
                return None
            fallback = self._usable_fallback(flight, error)
            if fallback is None and not is_own and blames_client(request, flight, error) and self._may_retry():
                return None
            outcome = await self._answer_failure(flight, error, why, fallback, is_own=is_own)
            if outcome is not None:
                return outcome
        elif (
            not is_own
            and isinstance(flight.job, Capture)
            and (flight.job.is_stored_elsewhere or (not flight.job.response.is_about(request) and self._may_retry()))
        ):
            return None
        # The result does not answer this request: it may be for the client alone that caused the load.
        status = self._config.miss_status(flight.key, request, why)
        request.result.pass_through(status)
        admission = admission_of(self._config, request, self._facts, self._accepted)
        await bypass(self._config, request, self._receive, send, status, admission=admission)
        return "another request's load brought no answer for this one; the app answered"

    def _usable_fallback(self, flight: Flight, error: BaseException | None = None) -> Entry[Any] | None:
        """Return the entry that may answer this request after a failed load or a soft time-out, or None."""
        fallback = self._engine.fallback(flight, error)
        return fallback if fallback is not None and may_use(self._request, fallback) else None

    async def _answer_failure(
        self, flight: Flight, error: BaseException, why: bytes, fallback: Entry[Any] | None, *, is_own: bool
    ) -> str | None:
        """Answer after a failed load, if possible with `fallback`. Return how, for the log; None: the app must answer.

        Raises:
            BaseException: the failure, if it is neither the middleware's time-out nor an answer of the app.
        """
        is_timeout = has_timed_out(flight.key, error)
        if fallback is not None:
            status = error.status if isinstance(error, ErrorResponse) else 504 if is_timeout else 500
            state = await self._fall_back(flight, fallback, b"swr; fwd=%b; fwd-status=%d" % (why, status), error)
            return f"failed ({type(error).__name__}), answered with the {state.value} fallback"
        if is_timeout:
            await send_empty(self._send, 504, b'swr; fwd=%b; detail="timeout"' % why)
            return "failed (LoadTimeout), answered 504"
        if is_own and self._request.hides_cookies:
            # The app may have failed because it lacked a cookie.
            return None
        if not isinstance(error, ErrorResponse):
            if not is_own and isinstance(flight.job, Capture) and flight.job.response.depends_on_client:
                return None
            raise flight.failure()
        if error.response is None:
            return None
        await send_error(self._send, error.response, why)
        return f"another request's load failed, answered {error.status}"

    async def _fall_back(
        self, flight: Flight, fallback: Entry[Any], status: bytes, error: BaseException | None = None
    ) -> State:
        """Answer with a fallback entry, and return its state."""
        now = self._engine.clock()
        # A fallback may be fresh, but not fresh enough for the client.
        state = State.FRESH if is_fresh(fallback, now) else State.STALE
        await self._give(flight.key, fallback, state, now, status, error)
        return state

    def _log(self, handling: Handling) -> None:
        if log.isEnabledFor(logging.DEBUG):
            # Log the URL and not the key, which may contain values of the client.
            log.debug(
                "%s %r: %s (%s)", self._request.method, self._request.url, handling.action.value, handling.reason.value
            )

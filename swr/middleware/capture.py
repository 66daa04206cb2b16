"""The job that runs the app to fill the cache: for a waiting client, or in the background."""

import logging
from typing import Final

import anyio
from starlette.types import Message, Receive

from swr.endpoints.decorator import warn_if_above
from swr.endpoints.terms import EndpointTerms, endpoint_terms
from swr.endpoints.variables import replayed
from swr.engine.load import Load
from swr.entry import State, stamp
from swr.errors import LoadTimeout, SWRError
from swr.http.failures import ErrorResponse, is_fallback
from swr.http.statuses import ABOUT_THE_CLIENT
from swr.http.stored_response import RESPONSES, Varies, headers_for, messages_of, part_of, validated
from swr.middleware.admission import admission_of, admitted, settle
from swr.middleware.captured import CapturedResponse
from swr.middleware.config import Config, Uncacheable
from swr.middleware.failures import has_entry, has_fallback, is_failure
from swr.middleware.kind import Kind
from swr.middleware.lookup import NO_VARIES
from swr.middleware.messages import begin_run, begin_with
from swr.middleware.outbox import Outbox
from swr.middleware.request import Request
from swr.middleware.storing import store_response, withdraw
from swr.middleware.telling import beginning, told_to
from swr.policy import Policy, Timeout

log = logging.getLogger("swr")

# Messages that tell the server to send a file; swr does not see the file's content.
_UNSEEN: Final = frozenset({"http.response.pathsend", "http.response.zerocopysend"})


class Capture:
    """A job of the engine: run the app, send its response to the client, and store it if that is allowed.

    Parameters:
        config: the middleware's options.
        request: the client's request.
        outbox: the outbox of the waiting client; None: a background run, which replays the request.
        varies: the request fields that the URL varies by, as far as known.
        why: the `fwd` of `Cache-Status` (RFC 9211 2.2).
    """

    new_seat = None
    may_fall_back = staticmethod(is_fallback)
    _load: Load  # Exists only during the run.

    def __init__(
        self,
        config: Config,
        request: Request,
        outbox: Outbox | None = None,
        varies: Varies = NO_VARIES,
        why: bytes = b"stale",
    ) -> None:
        self.codec, self.context = RESPONSES, None
        if outbox is None:
            self.context = replayed(config.ambient(), request.outer, is_keyed=request.has_key)
        self.outbox = Outbox() if outbox is None else outbox
        admission = None if outbox is None else admission_of(config, request)
        self._terms = EndpointTerms(config.cache, self._limit, admission)
        self.response = CapturedResponse(config, request, self._terms, varies, is_replay=outbox is None)
        self.error: BaseException | None = None
        # Whether the response was stored under another key than the flight's.
        self.is_stored_elsewhere = False
        self._config = config
        self._request = request
        # The client as the app sees it; None in a replay, which shows the app only what the key covers.
        self.sender = None if outbox is None else request.sender
        self._varies = varies
        self._why = why
        self._scope = config.engine.runtime.tasks.new_scope()
        # Whether this job has run the app: another request's flight or a backoff may answer instead.
        self.is_begun = False
        # Whether the run has ended, or was given up.
        self.is_over = False
        # Whether a time limit has ended the run.
        self._is_given_up = False
        # Set when a task other than the run's own has ended the load; None: no such task runs.
        self._settled: anyio.Event | None = None
        # The beginning of the response, held until the next message comes.
        self._start: Message | None = None
        # The beginning of a 304 that answers this client's condition, held until it is sent.
        self._short: Message | None = None
        # Whether the app has ended its response; and whether the last message or the length of the body proves it.
        self._has_last = self._is_sure = False

    @property
    def loader(self) -> str:
        """The name of the route, as entries carry it; known once the app has chosen its route."""
        return self.response.origin

    @property
    def is_outer(self) -> bool:
        """Return whether the endpoint's own load counts instead: its dependencies have admitted the request."""
        admission = self._terms.admission
        return admission is not None and admission.is_admitted

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the URL; the response may have others."""
        return self._request.tags

    def detach(self) -> None:
        """Go on for the store alone, because the client has left; end the run if nothing will be stored."""
        self.outbox.detach()
        if self.outbox.is_passing:
            self._scope.cancel()

    @property
    def outcome(self) -> str:
        """The result of the run, for the log."""
        if self.outbox.is_passing:
            return f"passed through, not stored: {self.response.verdict.reason}"
        if self.error is not None:
            return f"failed: {type(self.error).__name__}"
        return "confirmed by the app" if self.response.kind is Kind.CONFIRMATION else "stored"

    # -- the run ----------------------------------------------------------------------------------------------

    async def run(self, load: Load) -> None:
        """Run the app. The load ends with the last message of the body, before the app's background tasks run."""
        self._load, self.is_begun = load, True
        self._limit(self._config.limit_by(self._request.find_rule()))
        endpoint_terms.set(self._terms)
        self.response.choose_base(load.flight.entry)
        response = self.response
        try:
            with self._scope:
                await self._ask(self.outbox.receive)
                if response.kind is Kind.UNRELATED:
                    # RFC 9111 4.3.4: ask for the whole response.
                    response.forget_unrelated()
                    await self._ask(self.outbox.receive)
            if self._settled is not None:
                with anyio.CancelScope(shield=True):
                    await self._settled.wait()
            # An app that learns that its client has left may end without ending its response.
            if not (self._has_last or self.outbox.is_passing or (response.is_ended and self.outbox.has_left)):
                raise SWRError(f"the app ended before its response to {self._request.key!r} did")
        except Exception as error:
            if self._is_given_up:
                return
            self.error = error
            if response.is_ended and response.kind is Kind.RESPONSE and not self._is_sure:
                # `BaseHTTPMiddleware` ends even a truncated response properly, and raises the failure afterwards.
                await withdraw(self._config, self._request, response.verdict)
            if not load.flight.done.is_set():
                raise
            if not self.outbox.is_attached and not self.outbox.is_passing:
                log.exception("the app failed after its response to %r was stored", self._request.key)
        finally:
            settle(self._config, self._request, self._terms.admission)
            self._config.slow_bodies.end(self)
            self.is_over = True
            self.outbox.wake()
            # Both refer to this job. A reference cycle would keep all objects of the run in memory for longer.
            self._terms.limit = None
            del self._load
            if response.is_replay and log.isEnabledFor(logging.DEBUG):
                log.debug("%s %r: background refresh: %s", self._request.method, self._request.url, self.outcome)

    def _limit(self, seconds: Timeout) -> None:
        self._load.limit(seconds, self._give_up)

    def _give_up(self, error: BaseException) -> None:
        """Release the client when the time limit is over, whether the app ends now or not."""
        self._is_given_up = True
        self.error = error
        self._load.warn_timed_out(error)
        self.detach()
        self.is_over = True
        self.outbox.wake()

    def on_due(self, seconds: float) -> None:
        """Store nothing, and release the waiting requests: the response has not ended in time."""
        self._config.engine.start(self._give_up_storing, seconds)

    async def _give_up_storing(self, seconds: float) -> None:
        response = self.response
        if self.outbox.is_passing or response.is_ended or self.is_over:
            return
        self._settled = anyio.Event()
        try:
            with anyio.CancelScope(shield=True):
                if response.kind is Kind.ERROR:
                    await self._pass_error_through()
                elif response.kind is Kind.RESPONSE and not response.is_replay:
                    await self._pass_through("too slow")
                else:
                    # The refresh has failed, and the stored response may still be the answer.
                    error = LoadTimeout(self._load.flight.key, seconds, "max_body_time")
                    self._give_up(error)
                    self._scope.cancel()
                    await self._load.fail(error)
        finally:
            self._settled.set()

    async def _ask(self, receive: Receive) -> None:
        if self.response.is_replay:
            scope = self.response.scope_for(self._request.replay(self._varies.names, self._config.app_state()))
            await self._config.app(scope, begin_with(self._request.content_message, receive), self._on_message)
            return
        client, receive = begin_run(self._request, receive)
        asked, scope = client["headers"], self.response.scope_for(client)
        try:
            with admitted(scope, self._terms.admission):
                await self._config.app(scope, receive, self._on_message)
        finally:
            client["headers"] = asked

    # -- the app's messages -----------------------------------------------------------------------------------

    async def _on_message(self, message: Message) -> None:
        """Handle a message of the app: this is the app's `send`."""
        if self.is_over:
            why = "was given up: it took longer than its hard_timeout" if self._is_given_up else "is over"
            raise ConnectionError(f"this request {why}")
        kind = message["type"]
        if kind == "http.response.start":
            self._config.slow_bodies.begin(self)
            await self._on_start(message)
            return
        # The server sends the file, so swr has no content to store.
        if kind in _UNSEEN and not self.outbox.is_passing:
            await self._pass_through("not seen")
        start, self._start = self._start, None
        if start is not None and self.outbox.is_attached:
            await self._begin(start, message)
        if kind == "http.response.body":
            await self._on_body(message)
        else:
            await self._send(dict(message))

    async def _send(self, message: Message) -> None:
        if self.response.is_ended:
            self.outbox.release()
        # A response that is too long for the store must not fill the memory while its client is slow.
        await self.outbox.put(message, wait=not self.response.fits)

    async def _on_start(self, message: Message) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        message = {**message, "headers": headers}
        response, status = self.response, message["status"]
        if self._terms.terms is None:
            warn_if_above(self._request.scope.get("endpoint"))
        response.begin(message, self._load.began)
        if response.kind is Kind.UNRELATED:
            return
        if response.kind is Kind.CONFIRMATION:
            if response.verdict.policy is None:
                await self._pass_through(response.verdict.reason)
            return
        engine, flight = self._config.engine, self._load.flight
        if is_failure(response, engine, flight):
            response.take_as_error()
            if self.outbox.is_holding or has_fallback(engine, flight, status):
                self.outbox.hold_back()
            await self._send(self.response.marked(message, b"swr; fwd=%b" % self._why))
            return
        if status in ABOUT_THE_CLIENT and response.verdict.policy is not None and has_entry(engine, flight):
            # The status is about this client; others may still get the stored response.
            response.reject(f"status {status}")
        if response.verdict.policy is None:
            await self._pass_through(response.verdict.reason)
            await self._send(self.response.refused(message, self._why))
            return
        # Hold the beginning back, as servers do: the next message may have the whole body, or send a file.
        self._start = message

    async def _begin(self, start: Message, following: Message) -> None:
        """Send the beginning of a response that swr held back because it meant to store it."""
        response = self.response
        if response.verdict.policy is None:
            await self._send(response.refused(start, self._why))
            return
        first = beginning(self._request, start, following, response.verdict, self._config.engine.clock())
        if first["status"] != start["status"]:
            self._short = response.marked(first, b"swr; fwd=%b; fwd-status=200; stored" % self._why)
            return
        await self._send(response.marked(first, b"swr; fwd=%b; stored" % self._why))

    async def _on_body(self, message: Message) -> None:
        response = self.response
        more = message.get("more_body", False)
        if response.kind is Kind.UNRELATED:
            return
        if response.kind is Kind.CONFIRMATION:
            # A 304 has no content, even if the app sends some.
            if not response.is_ended:
                self._has_last = True
                await self._end_confirmation()
            elif more:
                self._scope.cancel()
            return
        # Copy it, because an app may reuse its buffer.
        chunk = bytes(message.get("body", b""))
        if not self.outbox.is_passing:
            await self._take(chunk, more=more)
        if not more and not self._has_last:
            self._has_last, self._is_sure = True, bool(chunk) or response.is_whole
        short, self._short = self._short, None
        if short is not None:
            await self.outbox.put_whole(short)
        await self._send({**message, "body": chunk})

    async def _take(self, chunk: bytes, *, more: bool) -> None:
        """Take a piece of the body; store the response, or fail, before the client gets the last piece.

        The next request must find the response, and must not join a load that has failed. Middleware inside the app may
        announce more although nothing follows, so the last piece is the one that completes the client's copy.
        """
        response = self.response
        if self._has_last:
            return
        response.add(chunk)
        is_error = response.kind is Kind.ERROR
        more = more and not (self.outbox.is_attached and response.is_whole)
        if not is_error and (response.is_ended or not more):
            response.check_length()
        if response.is_ended:
            return
        response.is_ended = not more
        if is_error:
            if not more:
                stored = response.to_stored() if response.fits and response.is_for_others() else None
                self.error = ErrorResponse(response.status, stored)
                await self._load.fail(self.error)
            elif not response.fits:
                await self._pass_error_through()
        elif not response.fits:
            await self._pass_through("too large")
        elif not more:
            await self._store()

    async def _end_confirmation(self) -> None:
        """Store the confirmed response, and answer the client with it."""
        response = self.response
        response.is_ended = True
        stored = response.to_stored()
        status = b"swr; fwd=%b; fwd-status=304" % self._why
        if not self.outbox.is_passing:
            status += b"; stored"
            await self._store()
        entry = stamp(stored, response.verdict.policy or Policy(0), self._load.began)
        now = self._config.engine.clock()
        headers = headers_for(entry, told_to(self._request, stored), State.MISSING, now)
        marks = validated(entry, now, status)
        for message in messages_of(self._request.method, self._request.fields, entry, headers, marks):
            await self._send(message)

    async def _store(self) -> None:
        """Store the response under the key that the request selects, and end the load."""
        verdict, stored = self.response.verdict, self.response.to_stored()
        assert verdict.policy is not None
        if reason := self.response.why_late():
            await self._pass_through(reason)
            return
        if stored.status == 206:
            part = part_of(stored)
            if part is None:
                await self._pass_through("partial")
                return
            stored = part
        self.is_stored_elsewhere = await store_response(
            self._config,
            self._request,
            self._load,
            stored,
            verdict,
            is_apart=self.response.is_range or self._request.is_private(self._load.flight.key),
        )

    async def _pass_through(self, reason: str) -> None:
        """Store nothing: free the memory, and release the waiting requests."""
        response = self.response
        response.reject(reason)
        if not response.is_replay:
            self._request.result.not_stored = reason
        self.outbox.pass_through()
        if response.is_about_all:
            found = Uncacheable(reason, self._request.tags, self._load.tag_version, response.varies_by)
            self._config.note_uncacheable(self._request.variant(self._varies.names), self._request, found)
        # If the client leaves now and ends the run, the load must still be ended.
        with anyio.CancelScope(shield=True):
            await self._load.skip(drop=response.is_in_place_of_stored and self._load.flight.entry is not None)
        if not self.outbox.is_needed:
            self._scope.cancel()

    async def _pass_error_through(self) -> None:
        """Fail the load without the error's body, which is too long or too slow for the waiting requests."""
        self.error = ErrorResponse(self.response.status, None)
        self.outbox.pass_through()
        await self._load.fail(self.error)
        if not self.outbox.is_needed:
            self._scope.cancel()

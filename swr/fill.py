"""Running the inner app to fill the cache: for a client that watches, or behind everybody's back."""

import logging
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Any, Final

import anyio
from starlette.types import Message, Receive, Send

from swr.answer import (
    RESPONSES,
    StoredResponse,
    Varies,
    capture,
    combined,
    is_response,
    marked,
    messages_of,
    part_of,
    validated,
)
from swr.conditions import CONDITIONS, headers_of_304, not_modified, selects, updated, validators
from swr.entry import Entry, stamp
from swr.errors import SWRError
from swr.fields import Headers, content_length, content_range, directives, strings, values_of
from swr.load import Load
from swr.policy import Policy
from swr.request import Request
from swr.response import Slip, slip
from swr.semantics import ABOUT_THE_CLIENT, ERRORS, UNREACHABLE, Verdict, judge

if TYPE_CHECKING:
    from swr.middleware import SWRMiddleware

log = logging.getLogger("swr")

# Under a URL that varies lies a note of by what; it has to outlive the variants.
_VARIES_FOR: Final = 7 * 86400.0
# What selects a variant is part of its key: a longer one is not stored.
_LONGEST_VARIANT: Final = 4096
# RFC 9875 2 lets a cache draw a line; so many groups of a response count.
_MOST_GROUPS: Final = 128
# After the key of a variant: that of the parts of it.
PART: Final = "\npart"
_NO_CONTENT: Final[Message] = {"type": "http.request", "body": b"", "more_body": False}
# What ends a response.
_LAST: Final = frozenset({"http.response.body", "http.response.pathsend", "http.response.zerocopysend"})


class ErrorResponse(SWRError):
    """The app answered with a status that something stale may stand in for.

    Parameters:
        status: of the answer.
        response: the answer, for those who waited and have nothing else; None where it is not for others.
    """

    def __init__(self, status: int, response: StoredResponse | None) -> None:
        super().__init__(f"the app answered {status}")
        self.status = status
        self.response = response


class Fill:
    """A job: run the app for a request, pass on what it sends to a client that is there, store what may be.

    Parameters:
        middleware: whose app, and whose limits.
        request: what is asked.
        receive: of the client that waits; None: nobody does, and the request is replayed.
        names: the request fields that select the variant, as far as known.
        why: what `fwd` of `Cache-Status` says (RFC 9211 2.2).
    """

    def __init__(
        self,
        middleware: "SWRMiddleware",
        request: Request,
        receive: Receive | None = None,
        names: tuple[str, ...] = (),
        why: bytes = b"stale",
    ) -> None:
        self.codec = RESPONSES
        self.context = Context() if receive is None else None
        # The client has the beginning of an answer; all of it.
        self.sent = self.complete = False
        # It will read no more.
        self.left = False
        self.error: BaseException | None = None
        self.client_error: Exception | None = None
        # What was brought lies under another key than that of the flight.
        self.elsewhere = False
        self._middleware = middleware
        self._request = request
        self._receive = receive
        self._replays = receive is None
        self._ranged = receive is not None and request.method == "GET" and b"range" in request.fields
        self._watched = receive is not None
        self._names = names
        # A replay has credentials only where they select what is stored.
        self._authorized = request.authorized and (
            receive is not None or not {"authorization", "x-api-key"}.isdisjoint(names)
        )
        self._why = why
        # What the client is still to be sent, and the turns of who fills and who empties it.
        self._outbox: deque[Message] = deque()
        self._news, self._taken = anyio.Event(), anyio.Event()
        self._finished = anyio.Event()
        self._begun = False
        # The stored response that the app is asked to confirm, and whether it did.
        self._base: StoredResponse | None = None
        self._confirmed = False
        self._unrelated = False
        # The client has its answer, a 304; the rest is for the store.
        self._answered = False
        self._start: Message = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._verdict = Verdict(None)
        self._status = 0
        self._length: int | None = None
        # The app answered with an error that something stale may stand in for.
        self._failed = False
        self._for_others = True
        self._ended = False
        # Set once it is known that nothing will be stored: from then on the client's leaving ends the run.
        self._passing = anyio.Event()
        self._scope = anyio.CancelScope()
        self._given_up = False
        self._paper = Slip(middleware.cache, self._limit)

    def masks(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Whether a stored response stands in for a failure: for any by its own word, for no answer at all longer.

        RFC 5861 4; RFC 9111 4.2.4 and 4.3.3.
        """
        if not is_response(entry):
            return False
        if isinstance(error, ErrorResponse):
            unreachable = error.status in UNREACHABLE
        else:
            unreachable = isinstance(error, (ConnectionError, TimeoutError, SWRError))
        return unreachable or now < max(entry.stale_until, entry.fresh_until + entry.value.stale_if_error)

    # -- the client -------------------------------------------------------------------------------------------

    async def deliver(self, send: Send) -> None:
        """Send the client what comes, in the client's own task: one that reads slowly keeps nobody else waiting."""
        while True:
            while self._outbox:
                try:
                    await send(self._outbox[0])
                except Exception as error:
                    self.client_error = error
                    self.left = True
                    self._watched = self.passing
                    self._outbox.clear()
                    self._taken.set()
                    return
                self._outbox.popleft()
                self._taken.set()
            self._news = anyio.Event()
            await self._news.wait()

    async def over(self) -> None:
        """Wait until the run, if it has begun, has ended and all of it is delivered."""
        if self._begun:
            await self._finished.wait()
            await self._delivered()

    async def _delivered(self) -> None:
        while self._outbox and self._watched:
            self._taken = anyio.Event()
            await self._taken.wait()

    def detach(self) -> None:
        """The client is gone: go on for the store's sake, or end if there is nothing to store."""
        self._watched = False
        self._taken.set()
        if self.passing:
            self._scope.cancel()

    @property
    def passing(self) -> bool:
        """Whether it is known that nothing will be stored."""
        return self._passing.is_set()

    async def _hear(self) -> Message:
        while self._receive is None or not self._watched:
            await anyio.sleep_forever()
        message = await self._receive()
        if message["type"] == "http.disconnect":
            self.left = True
            # The app would stop; but what it is making is wanted by more than this client.
            await self._passing.wait()
        return message

    async def _tell(self, message: Message) -> None:
        if self._watched and self.client_error is None and not self._answered:
            self.sent = self.sent or message["type"] == "http.response.start"
            self.complete = self.complete or (message["type"] in _LAST and not message.get("more_body", False))
            self._outbox.append(message)
            self._news.set()
            if self.passing or self._size > self._middleware.max_body_bytes:
                # What only passes through is held back by its client; what is stored is held here anyway.
                await self._delivered()
        if self.passing and self.client_error is not None:
            # The app is told once, as it would be without the cache.
            error, self.client_error, self._watched = self.client_error, None, False
            raise error

    # -- the run ----------------------------------------------------------------------------------------------

    async def run(self, load: Load) -> None:
        """Run the app; land at the last message of its body, before its background tasks."""
        self._load = load
        self._begun = True
        rule = self._request.find_rule()
        if rule is not None and rule.hard_timeout is not None:
            self._limit(rule.hard_timeout)
        elif self._middleware.hard_timeout is not None:
            self._limit(self._middleware.hard_timeout)
        slip.set(self._paper)
        entry = load.flight.entry
        if is_response(entry) and not self._ranged:
            assert entry is not None
            # RFC 9110 13.2.1: conditions are about what would be a success.
            stored: StoredResponse = entry.value
            if (
                200 <= stored.status < 300
                and validators(stored.headers)
                and self._middleware.fits(self._request, entry)
            ):
                self._base = stored
        try:
            with self._scope:
                await self._ask(self._hear)
                if self._unrelated:
                    # A 304 to something else than what is stored (RFC 9111 4.3.4): it is asked for as a whole. What
                    # the client sent with its request has been heard.
                    self._base, self._unrelated = None, False
                    await self._ask(begin_with(_NO_CONTENT, self._hear))
            if not self._ended and not self.passing:
                raise SWRError(f"the app ended before its response to {self._request.key!r} did")
        except Exception as error:
            if self._given_up:
                return
            self.error = error
            if not load.flight.done.is_set():
                raise
            if not self._watched and not self.passing:
                log.exception("the app failed after its response to %r was stored", self._request.key)
        finally:
            self._finished.set()

    def _limit(self, seconds: float) -> None:
        self._load.limit(seconds, self._give_up)

    def _give_up(self, error: BaseException) -> None:
        """The app has had its time: let go of the client, whether the app ends now or not."""
        self._given_up = True
        self.error = error
        if self._middleware.engine.fallback(self._load.flight, error) is None:
            log.warning("%s, and nothing stored stands in", error)
        self.detach()
        self._finished.set()

    async def _ask(self, receive: Receive) -> None:
        app = self._middleware.app
        if self._replays:
            scope = self._request.replay(self._names, self._middleware.state)
            scope["headers"] = self._conditional(scope["headers"])
            await app(scope, begin_with(_NO_CONTENT, receive), self._hear_app)
            return
        # The app gets the very scope of the client, for it may leave something there for those around the cache.
        scope = self._request.scope
        asked = scope["headers"]
        scope["headers"] = self._conditional(asked)
        try:
            await app(scope, receive, self._hear_app)
        finally:
            scope["headers"] = asked

    def _conditional(self, headers: Headers) -> Headers:
        """Return the request's fields with the cache's own conditions in place of the client's (RFC 9111 4.3.1).

        The client's are answered from what comes: with them the app would send what is of no use to anybody else.
        """
        if self._ranged:
            return headers
        kept = [(name, value) for name, value in headers if name not in CONDITIONS]
        return kept if self._base is None else kept + validators(self._base.headers)

    async def _hear_app(self, message: Message) -> None:
        """The app's `send`."""
        if self._given_up:
            raise ConnectionError("this request was given up: it took longer than its hard_timeout")
        kind = message["type"]
        if kind == "http.response.start":
            await self._on_start(message)
        elif kind == "http.response.body":
            await self._on_body(message)
        else:
            # Files sent by path, trailers: what is not seen here cannot be stored.
            unseen = kind in ("http.response.pathsend", "http.response.zerocopysend")
            if unseen and not self.passing:
                await self._pass("not seen")
            await self._tell(dict(message))

    async def _on_start(self, message: Message) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        self._start = message = {**message, "headers": headers}
        self._status = status = message["status"]
        if status == 304 and self._base is not None:
            await self._on_304(self._base, headers)
            return
        verdict = self._judge(status, headers, message)
        # An error is stored only where its author said for how long, and only where nothing better is.
        if (status in ERRORS and not self._may_store_error(status, verdict)) or (
            # A replay has no credentials; that it is refused says nothing about what is stored.
            self._replays and status in ABOUT_THE_CLIENT
        ):
            await self._on_error(status, headers, message)
            return
        self._verdict = verdict
        if verdict.policy is None:
            await self._pass(verdict.reason)
            detail = verdict.reason.encode()
            await self._tell(marked(message, b'swr; fwd=%b; detail="%b"' % (self._why, detail)))
            return
        asked = self._request.fields
        now = self._middleware.engine.clock()
        if status == 200 and not self._ranged and not_modified(asked, headers, now) and self._watched:
            brief = {"type": message["type"], "status": 304, "headers": headers_of_304(headers)}
            await self._tell(marked(brief, b"swr; fwd=%b; fwd-status=200; stored" % self._why))
            await self._tell({"type": "http.response.body", "body": b""})
            self._answered = True
            return
        await self._tell(marked(message, b"swr; fwd=%b; stored" % self._why))

    def _may_store_error(self, status: int, verdict: Verdict) -> bool:
        if self._replays or verdict.policy is None:
            return False
        return self._middleware.engine.fallback(self._load.flight, ErrorResponse(status, None)) is None

    async def _on_error(self, status: int, headers: Headers, message: Message) -> None:
        self._failed = True
        said = directives(values_of(headers, b"cache-control"))
        self._for_others = said.keys().isdisjoint(("private", "no-store")) and not (
            self._authorized or values_of(headers, b"set-cookie")
        )
        if self._middleware.engine.fallback(self._load.flight, ErrorResponse(status, None)) is not None:
            # Held back: something stale can stand in.
            self._watched = False
        await self._tell(marked(message, b"swr; fwd=%b" % self._why))

    async def _on_304(self, base: StoredResponse, headers: Headers) -> None:
        """The app confirms what is stored, and says what of its header has changed (RFC 9111 4.3.4)."""
        if not selects(headers, base.headers):
            self._unrelated = True
            return
        self._confirmed = True
        merged = updated(base.headers, headers)
        # The age is that of the confirmation.
        ages = [(b"age", value) for value in values_of(headers, b"age")]
        self._status = base.status
        self._start = {**self._start, "status": base.status, "headers": merged}
        self._verdict = self._judge(base.status, [*merged, *ages], {})
        if self._verdict.policy is None:
            await self._pass(self._verdict.reason)

    def _judge(self, status: int, headers: Headers, message: Message) -> Verdict:
        self._length = content_length(headers)
        if (self._length or 0) > self._middleware.max_body_bytes:
            return Verdict(None, "too large")
        if message.get("trailers"):
            return Verdict(None, "trailers")
        request = self._request
        groups = strings(values_of(headers, b"cache-groups"))[:_MOST_GROUPS]
        verdict = judge(
            status,
            headers,
            self._paper.terms or request.terms(),
            self._middleware.practice,
            began=self._load.began,
            authorized=self._authorized,
            tags=(request.tag, *(request.group_tag(group) for group in groups)),
        )
        # Of a part, what selects it must be known already, and where it belongs must be clear.
        known = self._ranged and verdict.vary == self._names and content_range(headers) is not None
        if status == 206 and verdict.policy is not None and not known:
            return Verdict(None, "partial")
        if len(request.variant(verdict.vary)) - len(request.key) > _LONGEST_VARIANT:
            return Verdict(None, "vary too long")
        return verdict

    async def _on_body(self, message: Message) -> None:
        if self._unrelated:
            return
        more = message.get("more_body", False)
        # An app may use its message, and the buffer in it, again.
        chunk = bytes(message.get("body", b""))
        message = {**message, "body": chunk}
        if self._confirmed:
            if not more and not self._ended:
                await self._end_confirmed()
            return
        if not self.passing and not self._ended:
            self._size += len(chunk)
            if not more and self._length is not None and self._length != self._size and not self._failed:
                # RFC 9111 3.3: incomplete; so is what the client gets.
                raise SWRError(
                    f"the response to {self._request.key!r} has {self._size} bytes, "
                    f"and its Content-Length says {self._length}"
                )
            self._ended = not more
            if self._size <= self._middleware.max_body_bytes:
                self._chunks.append(chunk)
            elif not self._failed:
                await self._pass("too large")
            if self._ended and not self._failed and not self.passing:
                # Stored before the last byte goes out: the client's next request must find it.
                await self._land(self._captured())
            elif self._ended and self._failed:
                # Over before the last byte goes out: the client's next request must not be answered with it.
                response = self._captured() if self._size <= self._middleware.max_body_bytes else None
                self.error = ErrorResponse(self._status, response if self._for_others else None)
                await self._load.fail(self.error)
        await self._tell(message)

    async def _end_confirmed(self) -> None:
        self._ended = True
        response = self._captured()
        status = b"swr; fwd=%b; fwd-status=304" % self._why
        if not self.passing:
            status += b"; stored"
            await self._land(response)
        entry = stamp(response, self._verdict.policy or Policy(0), self._load.began)
        marks = validated(entry, self._middleware.engine.clock(), status)
        for message in messages_of(self._request, entry, marks):
            await self._tell(message)

    # -- the store --------------------------------------------------------------------------------------------

    async def _land(self, response: StoredResponse) -> None:
        """Store the response under the key that it selects, and give it, or word of where it is, to who waits."""
        policy, load, engine = self._verdict.policy, self._load, self._middleware.engine
        assert policy is not None
        key = self._request.variant(self._verdict.vary)
        if response.status == 206:
            part = part_of(response)
            if part is None:
                await self._pass("partial")
                return
            key, response = await self._joined(key, part)
        if key == load.flight.key:
            await load.land(response, policy)
            if self._verdict.vary:
                await self._note(key, put=True)
            return
        await engine.put(key, RESPONSES, response, policy, load.since)
        self.elsewhere = True
        if self._ranged:
            if self._verdict.vary:
                await self._note(key, put=True)
            await load.leave()
            return
        # The URL turns out to vary, or to vary by other fields: those who wait are told by what to choose.
        note = await self._note(key, put=load.flight.key != self._request.key)
        await load.land(note, Policy(_VARIES_FOR, tags=(self._request.tag,)))

    async def _joined(self, key: str, part: StoredResponse) -> tuple[str, StoredResponse]:
        """Return a part together with what is stored of the same whole, and the key where that belongs."""
        known = await self._middleware.engine.store.read(key + PART, RESPONSES)
        if known is not None and is_response(known):
            part = combined(known.value, part)
        return (key if part.complete is None else key + PART), part

    async def _note(self, key: str, *, put: bool) -> Varies:
        """Return the note of what the URL varies by, this variant in it; past the cap the oldest ones are outdated.

        Parameters:
            key: of this variant.
            put: store the note, if this variant is new.
        """
        engine, request, names = self._middleware.engine, self._request, self._verdict.vary
        entry = engine.store.peek(request.key)
        known: tuple[str, ...] = ()
        if entry is not None and type(entry.value) is Varies and entry.value.names == names:
            known = entry.value.variants
        mine = key[len(request.key) :]
        if mine in known:
            return Varies(names, known)
        variants = (*known, mine)
        cap = self._middleware.max_variants
        for old in variants[:-cap]:
            await engine.invalidate(request.key + old)
        note = Varies(names, variants[-cap:])
        if put:
            policy = Policy(_VARIES_FOR, tags=(request.tag,))
            await engine.put(request.key, RESPONSES, note, policy, self._load.since)
        return note

    def _captured(self) -> StoredResponse:
        body = self._base.body if self._confirmed and self._base is not None else b"".join(self._chunks)
        return capture(self._status, self._start["headers"], body, self._verdict)

    async def _pass(self, reason: str) -> None:
        """Nothing will be stored: let go of what was kept and of everyone who waits."""
        self._chunks.clear()
        self._passing.set()
        request = self._request
        about_all = self._status not in ABOUT_THE_CLIENT and self._status != 206 and not self._authorized
        if about_all:
            self._middleware.passes[request.variant(self._names)] = reason
        # What is stored so far is no longer what the app answers. The client may leave meanwhile, and end the run.
        with anyio.CancelScope(shield=True):
            await self._load.leave(drop=about_all and self._load.flight.entry is not None)
        if not self._watched:
            self._scope.cancel()


def begin_with(first: Message, receive: Receive) -> Receive:
    """Return a `receive` that gives `first`, and after it what `receive` gives."""
    messages = [first]

    async def hear() -> Message:
        return messages.pop() if messages else await receive()

    return hear

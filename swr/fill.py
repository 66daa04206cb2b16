"""Running the inner app to fill the cache: for a client that watches, or behind everybody's back."""

import logging
from collections import deque
from contextvars import Context
from typing import TYPE_CHECKING, Final

import anyio
from starlette.types import Message, Receive, Scope, Send

from swr.engine import Load
from swr.errors import SWRError
from swr.exchange import RESPONSES, Request, StoredResponse, Varies, marked
from swr.policy import Policy
from swr.response import Slip, slip
from swr.semantics import (
    ABOUT_THE_CLIENT,
    ERRORS,
    Headers,
    Terms,
    Verdict,
    delta_seconds,
    directives,
    judge,
    stored_headers,
    values_of,
)

if TYPE_CHECKING:
    from swr.middleware import SWRMiddleware

log = logging.getLogger("swr")

# Under a URL that varies lies a note of by what; it has to outlive the variants.
_VARIES_FOR: Final = 7 * 86400.0


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
    """

    def __init__(
        self,
        middleware: "SWRMiddleware",
        request: Request,
        receive: Receive | None = None,
        names: tuple[str, ...] = (),
    ) -> None:
        self.codec = RESPONSES
        self.context = Context() if receive is None else None
        self.sent = False
        self.error: BaseException | None = None
        self.client_error: Exception | None = None
        self._middleware = middleware
        self._request = request
        self._receive = receive
        self._replays = receive is None
        self._watched = receive is not None
        self._names = names
        # What the client is still to be sent, and the turns of who fills and who empties it.
        self._outbox: deque[Message] = deque()
        self._news, self._taken = anyio.Event(), anyio.Event()
        self._finished = anyio.Event()
        self._begun = False
        self._start: Message = {}
        self._chunks: list[bytes] = []
        self._size = 0
        self._verdict = Verdict(None)
        self._status = 0
        # The app answered with an error that something stale may stand in for.
        self._failed = False
        self._for_others = True
        self._ended = False
        # Set once it is known that nothing will be stored: from then on the client's leaving ends the run.
        self._passing = anyio.Event()
        self._scope = anyio.CancelScope()
        self._paper = Slip(middleware.cache)

    # -- the client -------------------------------------------------------------------------------------------

    async def deliver(self, send: Send) -> None:
        """Send the client what comes, in the client's own task: one that reads slowly keeps nobody else waiting."""
        while True:
            while self._outbox:
                try:
                    await send(self._outbox[0])
                except Exception as error:
                    self.client_error = error
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
            # The app would stop; but what it is making is wanted by more than this client.
            await self._passing.wait()
        return message

    async def _tell(self, message: Message) -> None:
        if self._watched and self.client_error is None:
            self.sent = True
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
        slip.set(self._paper)
        try:
            with self._scope:
                await self._middleware.app(self._asgi_scope(), self._asgi_receive(), self._hear_app)
            if not self._ended and not self.passing:
                raise SWRError(f"the app ended before its response to {self._request.key!r} did")
            if self._failed:
                response = self._captured() if self._size <= self._middleware.max_body_bytes else None
                raise ErrorResponse(self._status, response if self._for_others else None)
        except Exception as error:
            self.error = error
            if not load.flight.done.is_set():
                raise
            if not self._watched and not self.passing:
                log.exception("the app failed after its response to %r was stored", self._request.key)
        finally:
            self._finished.set()

    def _asgi_scope(self) -> Scope:
        if self._replays:
            return self._request.replay(self._names, self._middleware.state)
        return self._request.scope

    def _asgi_receive(self) -> Receive:
        if not self._replays:
            return self._hear
        messages: list[Message] = [{"type": "http.request", "body": b"", "more_body": False}]

        async def receive() -> Message:
            while not messages:
                await anyio.sleep_forever()
            return messages.pop()

        return receive

    async def _hear_app(self, message: Message) -> None:
        """The app's `send`."""
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
            await self._tell(message)

    async def _on_start(self, message: Message) -> None:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        self._start = message = {**message, "headers": headers}
        self._status = status = message["status"]
        request, middleware = self._request, self._middleware
        # A replay has no credentials; that it is refused says nothing about what is stored.
        if status in ERRORS or (self._replays and status in ABOUT_THE_CLIENT):
            self._failed = True
            said = directives(values_of(headers, b"cache-control"))
            self._for_others = said.keys().isdisjoint(("private", "no-store")) and not (
                request.authorized or values_of(headers, b"set-cookie")
            )
            if middleware.engine.fallback(self._load.flight) is not None:
                # Held back: something stale can stand in.
                self._watched = False
            await self._tell(marked(message, b"swr; fwd=uri-miss"))
            return
        self._verdict = verdict = self._judge(status, headers, message)
        if verdict.policy is None:
            await self._pass(verdict.reason)
            await self._tell(marked(message, b'swr; fwd=uri-miss; detail="%b"' % verdict.reason.encode()))
        else:
            await self._tell(marked(message, b"swr; fwd=uri-miss; stored"))

    def _judge(self, status: int, headers: Headers, message: Message) -> Verdict:
        length = delta_seconds(b"".join(values_of(headers, b"content-length")[:1]).decode("latin-1"))
        if (length or 0) > self._middleware.max_body_bytes:
            return Verdict(None, "too large")
        if message.get("trailers"):
            return Verdict(None, "trailers")
        return judge(
            status,
            headers,
            self._paper.terms or self._rule_terms(),
            authorized=self._request.authorized,
            cookies_private=self._middleware.cookies_private,
            tags=(self._request.tag,),
        )

    def _rule_terms(self) -> Terms | None:
        found = self._request.rule
        if found is None and self._request.find_rule() is not None:
            found = self._request.rule
        return found[0].terms(found[1]) if found is not None else None

    async def _on_body(self, message: Message) -> None:
        more = message.get("more_body", False)
        if not self.passing and not self._ended:
            chunk = message.get("body", b"")
            self._size += len(chunk)
            self._ended = not more
            if self._size <= self._middleware.max_body_bytes:
                self._chunks.append(chunk)
            elif not self._failed:
                await self._pass("too large")
            if self._ended and not self._failed and not self.passing:
                # Stored before the last byte goes out: the client's next request must find it.
                await self._land()
        await self._tell(message)

    async def _land(self) -> None:
        verdict = self._verdict
        assert verdict.policy is not None
        response = self._captured()
        key = self._request.variant(verdict.vary)
        if key == self._load.flight.key:
            await self._load.land(response, verdict.policy)
            return
        # The URL turns out to vary, or to vary by other fields: the response goes to its variant's key, and to
        # those who wait goes the word by what to choose.
        load, engine = self._load, self._middleware.engine
        await engine.put(key, self, response, verdict.policy, load)
        note = Varies(verdict.vary)
        policy = Policy(_VARIES_FOR, tags=(self._request.tag,))
        if load.flight.key != self._request.key:
            await engine.put(self._request.key, self, note, policy, load)
        await load.land(note, policy)

    def _captured(self) -> StoredResponse:
        headers, verdict = stored_headers(self._start["headers"]), self._verdict
        return StoredResponse(self._status, headers, b"".join(self._chunks), verdict.shared, verdict.initial_age)

    async def _pass(self, reason: str) -> None:
        """Nothing will be stored: let go of what was kept and of everyone who waits."""
        self._chunks.clear()
        self._passing.set()
        request = self._request
        about_all = self._status not in ABOUT_THE_CLIENT and not request.authorized
        if about_all:
            self._middleware.passes[request.key] = reason
        # What is stored so far is no longer what the app answers.
        await self._load.leave(drop=about_all and self._load.flight.entry is not None)
        if not self._watched:
            self._scope.cancel()

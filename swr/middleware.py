"""The ASGI middleware: GET and HEAD answered from the cache where they may, everything else left alone."""

from collections.abc import Sequence
from typing import Any, Final, Literal

import anyio
from cachetools import TTLCache
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swr.cache import Cache
from swr.decision import Revalidate, decide
from swr.entry import Entry, State
from swr.errors import ConfigurationError
from swr.exchange import (
    RESPONSES,
    Request,
    StoredResponse,
    Varies,
    headers_of_hit,
    marked,
    plain_key,
    send_stored,
)
from swr.fill import ErrorResponse, Fill
from swr.flight import Flight
from swr.policy import NO_LIMITS, Limits
from swr.response import Slip, slip
from swr.rules import Rule
from swr.semantics import directives, limits

__all__ = ["Rule", "SWRMiddleware"]

# What was found not to be storable is not queued behind one load for so many seconds.
_PASSED_FOR: Final = 120.0
_MOST_PASSED: Final = 10_000
# A URL may turn out to vary while it is looked up; then it is looked up again.
_TURNS: Final = 4


class SWRMiddleware:
    """Serves GET and HEAD from the cache, and lets the app's own `Cache-Control` say how long.

    Parameters:
        app: any ASGI app.
        cache: the cache; it is opened and drained with the app's lifespan.
        rules: fill in what responses leave open; the first that matches applies.
        cookies: "private": requests with `Cookie` are not answered from the cache (unless a rule names the cookies
            that matter), and nothing with `Set-Cookie` is stored. "rfc9111": cookies do not matter, directives do.
        max_body_bytes: a longer response passes through, unbuffered and not stored.

    Every answer to GET and HEAD carries `SWR-State` and `Cache-Status` (RFC 9211).

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        app: ASGIApp,
        cache: Cache,
        rules: Sequence[Rule] = (),
        cookies: Literal["private", "rfc9111"] = "private",
        max_body_bytes: int = 2**20,
    ) -> None:
        if not isinstance(cache, Cache):
            raise ConfigurationError(f"cache={cache!r} is not a swr.Cache")
        if cookies not in ("private", "rfc9111"):
            raise ConfigurationError(f'cookies={cookies!r}: give "private" or "rfc9111"')
        for rule in rules:
            if not isinstance(rule, Rule):
                raise ConfigurationError(f"rules holds {rule!r}: every rule is a swr.middleware.Rule")
        if not isinstance(max_body_bytes, int) or max_body_bytes < 0:
            raise ConfigurationError(f"max_body_bytes={max_body_bytes!r} is not a number of bytes, 0 or more")
        self.app = app
        self.cache = cache
        self.engine = cache.engine
        self._shelf = cache.shelf
        self._clock = cache.engine.clock
        self.cookies_private = cookies == "private"
        self.max_body_bytes = max_body_bytes
        self.passes: TTLCache[str, str] = TTLCache(_MOST_PASSED, _PASSED_FOR, timer=self.engine.clock)
        # The lifespan's state: what a replayed request is given, not what other middleware wrote for one client.
        self.state: dict[str, Any] = {}
        self._rules = list(rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            # The fresh hit, spelled out: `_look`, `decide` and `send_stored` in the fewest steps.
            slot = None
            if scope["method"] == "GET" and (key := plain_key(scope)) is not None:
                slot = self._shelf.get(key)
            if slot is not None and slot.checked == self._shelf.generation and type(slot.value) is StoredResponse:
                now = self._clock()
                if now < slot.fresh_until:
                    until, headers = slot.ready
                    if now >= until:
                        until, headers = slot.ready = headers_of_hit(slot.entry, now)
                    value = slot.value
                    await send({"type": "http.response.start", "status": value.status, "headers": headers.copy()})
                    await send({"type": "http.response.body", "body": value.body})
                    return
            await self._answer(Request(scope, self._rules), receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http":
            token = slip.set(Slip(self.cache))
            try:
                await self.app(scope, receive, send)
            finally:
                slip.reset(token)
        else:
            await self.app(scope, receive, send)

    # -- lifespan ---------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open the cache before the app starts, drain it after the app has stopped."""
        self.state = scope.get("state", {})
        opened = False

        async def hear() -> Message:
            nonlocal opened
            message = await receive()
            if message["type"] == "lifespan.startup":
                await self.cache.__aenter__()
                opened = True
            return message

        async def tell(message: Message) -> None:
            nonlocal opened
            if opened and message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                opened = False
                await self.cache.__aexit__(None, None, None)
            await send(message)

        try:
            await self.app(scope, hear, tell)
        finally:
            if opened:
                await self.cache.__aexit__(None, None, None)

    # -- requests ---------------------------------------------------------------------------------------------

    async def _answer(self, request: Request, receive: Receive, send: Send) -> None:
        accepted = NO_LIMITS
        fields = request.fields
        if b"cookie" in fields and self.cookies_private:
            rule = request.find_rule()
            if rule is None or rule.cookies is None:
                await self._bypass(request, receive, send, b'swr; fwd=bypass; detail="cookie"')
                return
            request.key_cookies(rule.cookies)
        if b"range" in fields:
            await self._bypass(request, receive, send, b'swr; fwd=bypass; detail="range"')
            return
        if b"cache-control" in fields:
            said = directives([fields[b"cache-control"]])
            if "no-store" in said:
                await self._bypass(request, receive, send, b"swr; fwd=request")
                return
            accepted = limits(said)
            if "only-if-cached" in said and not await self._stored(request, send, accepted, ask=True):
                await _gateway_timeout(send)
                return
            if "only-if-cached" in said:
                return
        if await self._stored(request, send, accepted, ask=False):
            return
        if request.key in self.passes:
            await self._bypass(request, receive, send, self._miss(request))
            return
        if request.method == "HEAD":
            if not await self._stored(request, send, accepted, ask=True):
                await self._bypass(request, receive, send, b"swr; fwd=uri-miss")
            return
        for _ in range(_TURNS):
            if await self._stored(request, send, accepted, ask=True):
                return
            if await self._filled(request, receive, send):
                return
        await self._bypass(request, receive, send, b"swr; fwd=vary-miss")

    async def _stored(self, request: Request, send: Send, accepted: Limits, *, ask: bool) -> bool:
        """Answer from what is stored, if that may be; `ask` the store, or look at what is at hand."""
        key, names, entry = await self._look(request, accepted, ask=ask)
        now = self.engine.clock()
        decision = decide(entry, now, accepted)
        if entry is None or not decision.serve or not _fits(request, entry):
            return False
        if decision.revalidate is Revalidate.BACKGROUND:
            await self.engine.ready()
            self.engine.refresh_soon(key, Fill(self, request, names=names), entry)
        await send_stored(request, send, entry, decision.state, now)
        return True

    async def _look(
        self, request: Request, accepted: Limits, *, ask: bool
    ) -> tuple[str, tuple[str, ...], Entry[Any] | None]:
        """Return the key that the request selects, the fields that select it, and the entry there."""
        key = request.key
        names: tuple[str, ...] = ()
        entry = await self._entry(key, accepted, ask=ask)
        if entry is not None and type(entry.value) is Varies:
            names = entry.value.names
            key = request.variant(names)
            entry = await self._entry(key, accepted, ask=ask)
        return key, names, entry

    async def _entry(self, key: str, accepted: Limits, *, ask: bool) -> Entry[Any] | None:
        """Return what is at hand, or, where that will not do and `ask` says so, what the store has."""
        entry = self.engine.store.peek(key)
        if not ask or decide(entry, self.engine.clock(), accepted).serve:
            return entry
        await self.engine.ready()
        return await self.engine.store.read(key, RESPONSES)

    async def _filled(self, request: Request, receive: Receive, send: Send) -> bool:
        """Have the response loaded, by this request or by one that was before it, and answer with it.

        False: it must be looked up again.
        """
        key, names, entry = await self._look(request, NO_LIMITS, ask=True)
        if entry is not None and type(entry.value) is StoredResponse and not _fits(request, entry):
            # What others share is not for this request; nor is its answer for them.
            await self._bypass(request, receive, send, b'swr; fwd=bypass; detail="authorization"')
            return True
        fill = Fill(self, request, receive, names)
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(fill.deliver, send)
                flight = await self.engine.join(key, fill, entry)
                await fill.over()
                group.cancel_scope.cancel()
        finally:
            fill.detach()
        if fill.client_error is not None and not isinstance(fill.client_error, OSError):
            raise fill.client_error
        if fill.error is not None and fill.sent and not isinstance(fill.error, ErrorResponse):
            raise fill.error
        return fill.sent or await self._landed(request, flight, receive, send)

    async def _landed(self, request: Request, flight: Flight, receive: Receive, send: Send) -> bool:
        """Answer with what somebody else's flight has brought."""
        now = self.engine.clock()
        if flight.landed is not None:
            if flight.doomed or type(flight.landed.value) is Varies:
                return False
            if _fits(request, flight.landed):
                await send_stored(request, send, flight.landed, State.MISSING, now, b"swr; fwd=uri-miss; collapsed")
                return True
        elif flight.error is not None:
            status = flight.error.status if isinstance(flight.error, ErrorResponse) else 500
            fallback = self.engine.fallback(flight)
            if fallback is not None and _fits(request, fallback):
                mark = b"swr; fwd=stale; fwd-status=%d" % status
                await send_stored(request, send, fallback, State.STALE, now, mark)
                return True
            if not isinstance(flight.error, ErrorResponse):
                raise flight.error
            if flight.error.response is not None:
                await _send_error(request, send, flight.error.response)
                return True
        # What came is not for this request, or for nobody but the one who asked.
        await self._bypass(request, receive, send, self._miss(request))
        return True

    def _miss(self, request: Request) -> bytes:
        """Return the member of `Cache-Status` of a miss, with the reason why it is not stored, where known."""
        reason = self.passes.get(request.key)
        return b'swr; fwd=uri-miss; detail="%b"' % reason.encode() if reason else b"swr; fwd=uri-miss"

    async def _bypass(self, request: Request, receive: Receive, send: Send, status: bytes) -> None:
        """Let the app answer, in the client's own task."""
        token = slip.set(Slip(self.cache))

        async def mark(message: Message) -> None:
            await send(marked(message, status) if message["type"] == "http.response.start" else message)

        try:
            await self.app(request.scope, receive, mark)
        finally:
            slip.reset(token)


def _fits(request: Request, entry: Entry[Any]) -> bool:
    """Whether a request may be answered with what was stored for others (RFC 9111 3.5)."""
    value = entry.value
    return type(value) is StoredResponse and (not request.authorized or value.shared)


async def _send_error(request: Request, send: Send, response: StoredResponse) -> None:
    start: Message = {"type": "http.response.start", "status": response.status, "headers": response.headers}
    await send(marked(start, b"swr; fwd=uri-miss; fwd-status=%d; collapsed" % response.status))
    await send({"type": "http.response.body", "body": response.body})


async def _gateway_timeout(send: Send) -> None:
    """Answer to `only-if-cached` where nothing is (RFC 9111 5.2.1.7)."""
    start: Message = {"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"0")]}
    await send(marked(start, b"swr; fwd=request"))
    await send({"type": "http.response.body", "body": b""})

"""The ASGI middleware: a shared HTTP cache (RFC 9111) around an app."""

import math
from collections.abc import Collection, Sequence
from typing import Any, Final, Literal

import anyio
import msgspec
from cachetools import TTLCache
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from swr.answer import (
    RESPONSES,
    StoredResponse,
    Varies,
    answers_range,
    is_response,
    make_ready,
    marked,
    send_stored,
)
from swr.cache import Cache
from swr.decision import FRESH, Revalidate, decide
from swr.entry import Entry, State
from swr.errors import ConfigurationError, LoadTimeout, SWRError
from swr.events import Miss
from swr.fields import Directives, directives
from swr.fill import PART, ErrorResponse, Fill, begin_with
from swr.flight import Flight
from swr.forward import Unsafe, bypass, head
from swr.policy import Duration, Limits, seconds, timeout
from swr.request import URL, Request, plain_url, url_key
from swr.response import Slip, slip
from swr.rules import Rule, field_names
from swr.semantics import HONOURED, REQUEST_DIRECTIVES, SAFE, Practice, limits
from swr.stores.shelf import Slot

__all__ = ["Rule", "SWRMiddleware"]

# What was found not to be storable is not queued behind one load for so many seconds.
_PASSED_FOR: Final = 120.0
_MOST_PASSED: Final = 10_000
# A URL may turn out to vary while it is looked up; then it is looked up again.
_TURNS: Final = 4


class SWRMiddleware:
    """A shared HTTP cache: GET and HEAD are answered from it as long as the app's own `Cache-Control` lets it.

    Parameters:
        app: any ASGI app.
        cache: the cache; it is opened and drained with the app's lifespan.
        rules: fill in what responses leave open; the first that matches applies.
        cookies: "private": requests with `Cookie` are not answered from the cache (unless a rule names the cookies
            that matter), and nothing with `Set-Cookie` is stored. "rfc9111": cookies do not matter, directives do.
        max_body_bytes: a longer response passes through, unbuffered and not stored.
        max_variants: how many responses one URL may have that varies; of more the oldest ones go.
        request_directives: what of a request's `Cache-Control` (and `Pragma`) is honoured; "no-cache", "max-age" and
            "pragma" are not by default, for with them any client can make the app work. What they force is one load
            for all who ask meanwhile.
        targeted: fields that go before `Cache-Control`, in order of preference (RFC 9213).
        heuristic: the share of the time since `Last-Modified` that a response without any word on it counts as fresh,
            a day at most (RFC 9111 4.2.2); 0: never.
        stale_if_unreachable: how long past its lifetime a response stands in for an app that gives no answer (a
            connection error, a time-out, a 502 or 504), unless a directive forbids it. So long it is kept, too, to be
            confirmed by the app, if it can be.
        hard_timeout: how long the app may take for a response that others may be given, its body included; then the
            run is cancelled, and what is stored stands in, or the answer is 504. None: as long as it likes. What
            passes through unstored is not limited. A rule or `@cache.response` may say otherwise.
        show_key: `Cache-Status` names the key (RFC 9211 2.7); for looking into things.

    Every answer to GET and HEAD carries `SWR-State` and `Cache-Status` (RFC 9211). A request of any other method that
    may change something outdates its URL, and what its answer names (RFC 9111 4.4, RFC 9875).

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
        *,
        max_variants: int = 64,
        request_directives: Collection[str] = HONOURED,
        targeted: Sequence[str] = ("SWR-Cache-Control", "CDN-Cache-Control"),
        heuristic: float = 0.1,
        stale_if_unreachable: Duration = "1d",
        hard_timeout: Duration | None = None,
        show_key: bool = False,
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
        if not isinstance(max_variants, int) or max_variants < 1:
            raise ConfigurationError(f"max_variants={max_variants!r} is not a number, 1 or more")
        if isinstance(request_directives, str) or not set(request_directives) <= REQUEST_DIRECTIVES:
            known = ", ".join(sorted(REQUEST_DIRECTIVES))
            raise ConfigurationError(f"request_directives={request_directives!r}: give a collection of: {known}")
        if not isinstance(heuristic, (int, float)) or not 0 <= heuristic <= 1:
            raise ConfigurationError(f"heuristic={heuristic!r} is not a share, from 0 to 1")
        self.app = app
        self.cache = cache
        self.engine = cache.engine
        self._shelf = cache.shelf
        self._aliases = cache.shelf.aliases
        self._clock = cache.engine.clock
        self._events = cache.engine.events
        self.max_body_bytes = max_body_bytes
        self.max_variants = max_variants
        self.practice = Practice(
            cookies == "private",
            tuple(name.encode() for name in field_names(targeted, "targeted")),
            heuristic,
            seconds(stale_if_unreachable, "stale_if_unreachable"),
        )
        self.hard_timeout = timeout(hard_timeout, "hard_timeout")
        self.passes: TTLCache[str, str] = TTLCache(_MOST_PASSED, _PASSED_FOR, timer=self.engine.clock)
        # The lifespan's state: what a replayed request is given, not what other middleware wrote for one client.
        self.state: dict[str, Any] = {}
        self._rules = list(rules)
        self.honoured = frozenset(request_directives)
        self._shows_key = show_key
        # With either of these a look at the URL as it was sent does not do.
        self._plain = not show_key and not any(rule.reads_query for rule in rules)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD"):
            # The hit, spelled out: `_look`, `decide` and `messages_of` in the fewest steps. For as long as what is
            # ready will do, a second at most, the URL as it was sent leads to it, without a key.
            if scope["method"] == "GET" and self._plain:
                url, condition = plain_url(scope)
                slot = self._aliases.get(url)
                if slot is None or slot.checked != self._shelf.generation or self._clock() >= slot.ready_until:
                    slot = self._ready(url) if url is not None else None
                if slot is not None:
                    ready = slot.ready
                    if condition is None:
                        if self._events.reads:
                            self._tell(url, slot)
                        stored, headers = slot.value, ready.headers.copy()
                        await send({"type": "http.response.start", "status": stored.status, "headers": headers})
                        await send({"type": "http.response.body", "body": stored.body})
                        return
                    if condition == ready.etag:
                        if self._events.reads:
                            self._tell(url, slot)
                        await send({"type": "http.response.start", "status": 304, "headers": ready.brief.copy()})
                        await send({"type": "http.response.body", "body": b""})
                        return
            request = Request(scope, self._rules)
            try:
                await self._answer(request, receive, self._showing(scope, send))
            finally:
                if not request.answered:
                    self._events.publish(Miss, request.key)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        elif scope["type"] == "http" and scope["method"] not in SAFE:
            await Unsafe(self, Request(scope, self._rules)).answer(receive, send)
        elif scope["type"] == "http":
            token = slip.set(Slip(self.cache))
            try:
                await self.app(scope, receive, send)
            finally:
                slip.reset(token)
        else:
            await self.app(scope, receive, send)

    def _ready(self, url: URL) -> Slot | None:
        """Return the slot of a URL whose response can be sent as it is, with what is to be sent made ready."""
        key = url_key(url)
        slot = self._shelf.get(key)
        if slot is None or slot.checked != self._shelf.generation or type(slot.value) is not StoredResponse:
            return None
        if slot.value.validate:
            return None
        now = self._clock()
        if now < slot.fresh_until:
            slot.ready = make_ready(slot.entry, now)
            slot.ready_until = slot.ready.until
            self._shelf.alias(slot, url)
            return slot
        # A stale one costs no more, as long as somebody refreshes it already.
        if now < slot.stale_until and self.engine.keeps_off(key):
            if slot.ready is None or now >= slot.ready.until:
                slot.ready = make_ready(slot.entry, now)
            return slot
        return None

    def _tell(self, url: URL | None, slot: Slot) -> None:
        """Tell whoever listens of an answer that was ready."""
        assert url is not None
        state = State.FRESH if self._clock() < slot.fresh_until else State.STALE
        self.engine.tell(url_key(url), slot.entry, state)

    def _showing(self, scope: Scope, send: Send) -> Send:
        """Return a `send` that adds the key to our member of `Cache-Status`, if that is wanted."""
        if not self._shows_key:
            return send
        key = Request(scope, self._rules).key.replace("\n", "")
        shown = "".join(f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else "?" for char in key)

        async def show(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = list(message["headers"])
                # Ours is the last: it was appended to what there was.
                name, status = headers[-1]
                headers[-1] = (name, b'%b; key="%b"' % (status, shown.encode("ascii")))
                message = {**message, "headers": headers}
            await send(message)

        return show

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
        fields = request.fields
        if not self.admits(request):
            await bypass(self, request, receive, send, b'swr; fwd=bypass; detail="cookie"')
            return
        if b"if-match" in fields or b"if-unmodified-since" in fields:
            # RFC 9110 13.1.1: these are about the state of the resource itself, which its origin knows.
            await bypass(self, request, receive, send, b'swr; fwd=bypass; detail="precondition"')
            return
        if request.has_content:
            # The key does not account for it.
            await bypass(self, request, receive, send, b'swr; fwd=bypass; detail="content"')
            return
        said: Directives = {}
        if b"cache-control" in fields:
            said = directives([fields[b"cache-control"]])
        elif b"pragma" in fields and "pragma" in self.honoured:
            # RFC 9111 5.4: as Cache-Control has it, where there is none.
            said = {"no-cache": None} if "no-cache" in directives([fields[b"pragma"]]) else {}
        if "no-store" in said and "no-store" in self.honoured:
            await bypass(self, request, receive, send, b'swr; fwd=request; detail="no-store"')
            return
        accepted = limits(said, self.honoured if b"cache-control" in fields else REQUEST_DIRECTIVES)
        if "only-if-cached" in said and "only-if-cached" in self.honoured:
            if not await self._stored(request, send, accepted):
                await _gateway_timeout(send, b'swr; fwd=request; detail="only-if-cached"')
            return
        key, names, entry = await self._look(request, accepted, ask=False)
        if await self._served(request, send, accepted, key, names, entry):
            return
        if entry is None and key in self.passes:
            await bypass(self, request, receive, send, self._miss(key, _why(names, None, 0)))
            return
        if request.method == "HEAD":
            await self._head(request, receive, send, accepted)
            return
        # HTTP/2 and 3 may bring content that no field has announced.
        begun = await receive()
        while begun.get("more_body") and not begun.get("body"):
            begun = await receive()
        receive = begin_with(begun, receive)
        if begun.get("body"):
            await bypass(self, request, receive, send, b'swr; fwd=bypass; detail="content"')
            return
        for _ in range(_TURNS):
            key, names, entry = await self._look(request, accepted, ask=True)
            if await self._served(request, send, accepted, key, names, entry):
                return
            if await self._filled(request, receive, send, accepted, key, names, entry):
                return
        await bypass(self, request, receive, send, b"swr; fwd=vary-miss")

    async def _stored(self, request: Request, send: Send, accepted: Limits) -> bool:
        """Answer from what is stored, here or in the store."""
        return await self._served(request, send, accepted, *await self._look(request, accepted, ask=True))

    async def _served(
        self,
        request: Request,
        send: Send,
        accepted: Limits,
        key: str,
        names: tuple[str, ...],
        entry: Entry[Any] | None,
    ) -> bool:
        """Answer with `entry`, if that may be."""
        if entry is None or not is_response(entry) or not self.fits(request, entry):
            return False
        now = self.engine.clock()
        decision = decide(entry, now, _bounded(accepted, entry))
        if not decision.serve:
            return False
        if decision.revalidate is Revalidate.BACKGROUND and not self.engine.keeps_off(key):
            await self.engine.ready()
            self.engine.refresh_soon(key, Fill(self, request, names=names), entry)
        await self._give(request, send, key, entry, decision.state, now)
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

    async def _head(self, request: Request, receive: Receive, send: Send, accepted: Limits) -> None:
        key, names, entry = await self._look(request, accepted, ask=True)
        if not await self._served(request, send, accepted, key, names, entry):
            known = entry if entry is not None and is_response(entry) and self.fits(request, entry) else None
            status = b"swr; fwd=%b" % _why(names, known, self.engine.clock())
            await head(self, request, receive, send, key, known, status)

    async def _filled(
        self,
        request: Request,
        receive: Receive,
        send: Send,
        accepted: Limits,
        key: str,
        names: tuple[str, ...],
        entry: Entry[Any] | None,
    ) -> bool:
        """Have the response loaded, by this request or by one that was before it, and answer with it.

        False: it must be looked up again.
        """
        why = _why(names, entry, self.engine.clock())
        if entry is not None and is_response(entry):
            if not self.fits(request, entry):
                # What others share is not for this request; nor is its answer for them.
                await bypass(self, request, receive, send, b'swr; fwd=bypass; detail="authorization"')
                return True
            if entry.value.validate and self.engine.is_loading(key):
                # What has to be confirmed for every request is not to be waited for behind another one.
                await bypass(self, request, receive, send, b"swr; fwd=%b" % why)
                return True
        if b"range" in request.fields:
            part = await self._entry(key + PART, accepted, ask=True)
            if await self._part_served(request, send, accepted, key + PART, part):
                return True
            # Only who asks for the same part can be answered with it.
            asked = (request.fields.get(name, b"").decode("latin-1") for name in (b"range", b"if-range"))
            key, entry = "\n".join([key, "range", *asked]), None
        fill = Fill(self, request, receive, names, why)
        refused: Exception | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(fill.deliver, send)
                try:
                    flight = await self.engine.join(key, fill, entry)
                    await fill.over()
                except Exception as error:
                    # Raised here it would leave the group as an ExceptionGroup.
                    refused = error
                group.cancel_scope.cancel()
        finally:
            fill.detach()
        if refused is not None:
            raise refused
        if fill.client_error is not None and not isinstance(fill.client_error, OSError):
            raise fill.client_error
        if fill.error is not None and fill.sent and not isinstance(fill.error, ErrorResponse):
            raise fill.error
        if fill.sent and not fill.complete and not fill.left:
            # Those around the cache must not take it for the whole.
            raise SWRError(f"the response to {key!r} broke off")
        return fill.sent or await self._landed(request, flight, receive, send, why)

    async def _part_served(
        self, request: Request, send: Send, accepted: Limits, key: str, part: Entry[Any] | None
    ) -> bool:
        """Answer with a stored part, if all that is asked for is in it and it is fresh: nothing refreshes a part."""
        if part is None or not self.fits(request, part) or not answers_range(request, part.value, part.created_at):
            return False
        now = self.engine.clock()
        if decide(part, now, _bounded(accepted, part)) is not FRESH:
            return False
        await self._give(request, send, key, part, State.FRESH, now)
        return True

    async def _landed(self, request: Request, flight: Flight, receive: Receive, send: Send, why: bytes) -> bool:
        """Answer with what somebody else's flight has brought."""
        now = self.engine.clock()
        landed = flight.landed
        if landed is not None:
            if flight.doomed or type(landed.value) is Varies:
                return False
            if self.fits(request, landed) and not landed.value.validate:
                await send_stored(request, send, landed, State.MISSING, now, b"swr; fwd=%b; collapsed" % why)
                return True
        elif flight.error is not None:
            status = flight.error.status if isinstance(flight.error, ErrorResponse) else 500
            if isinstance(flight.error, LoadTimeout):
                status = 504
            fallback = self.engine.fallback(flight, flight.error)
            if fallback is not None and self.fits(request, fallback):
                # One that is fresh was not fresh enough for the client.
                state = State.FRESH if now < fallback.fresh_until else State.STALE
                mark = b"swr; fwd=%b; fwd-status=%d" % (why, status)
                await self._give(request, send, flight.key, fallback, state, now, mark, flight.error)
                return True
            if isinstance(flight.error, LoadTimeout):
                await _gateway_timeout(send, b'swr; fwd=%b; detail="timeout"' % why)
                return True
            if not isinstance(flight.error, ErrorResponse):
                raise flight.error
            if flight.error.response is not None:
                await _send_error(request, send, flight.error.response, why)
                return True
        elif isinstance(flight.job, Fill) and flight.job.elsewhere:
            return False
        # What came is not for this request, or for nobody but the one who asked.
        await bypass(self, request, receive, send, self._miss(flight.key, why))
        return True

    async def _give(
        self,
        request: Request,
        send: Send,
        key: str,
        entry: Entry[Any],
        state: State,
        now: float,
        status: bytes | None = None,
        error: BaseException | None = None,
    ) -> None:
        """Answer with what is stored, fresh or stale, and tell of it; see `send_stored`."""
        request.answered = True
        self.engine.tell(key, entry, state, error)
        await send_stored(request, send, entry, state, now, status)

    def _miss(self, key: str, why: bytes) -> bytes:
        """Return the member of `Cache-Status` of a miss, with the reason why it is not stored, where known."""
        reason = self.passes.get(key)
        return b'swr; fwd=%b; detail="%b"' % (why, reason.encode()) if reason else b"swr; fwd=%b" % why

    def admits(self, request: Request) -> bool:
        """Whether a request's cookies let it use the cache; those that a rule names become part of its key."""
        if b"cookie" not in request.fields or not self.practice.cookies_private:
            return True
        rule = request.find_rule()
        if rule is None or rule.cookies is None:
            return False
        request.key_cookies(rule.cookies)
        return True

    def fits(self, request: Request, entry: Entry[Any]) -> bool:
        """Whether a request may be answered with what was stored for others (RFC 9111 3.5)."""
        return not request.authorized or bool(entry.value.shared)


def _bounded(accepted: Limits, entry: Entry[StoredResponse]) -> Limits:
    """What a request accepts of this response: nothing that must not be stale, and its time elsewhere counts."""
    stored = entry.value
    if stored.strict and stored.validate:
        # Whatever the clock says, which may have been put back since.
        return msgspec.structs.replace(accepted, no_cache=True)
    if accepted.max_stale is not None and (stored.strict or stored.overdue):
        rest = accepted.max_stale - stored.overdue
        accepted = msgspec.structs.replace(accepted, max_stale=None if stored.strict or rest < 0 else rest)
    if stored.initial_age and accepted.max_age < math.inf:
        accepted = msgspec.structs.replace(accepted, max_age=accepted.max_age - stored.initial_age)
    return accepted


def _why(names: tuple[str, ...], entry: Entry[Any] | None, now: float) -> bytes:
    """Why a request goes to the app (RFC 9211 2.2)."""
    if entry is None or not is_response(entry):
        return b"vary-miss" if names else b"uri-miss"
    return b"request" if decide(entry, now) is FRESH else b"stale"


async def _send_error(request: Request, send: Send, response: StoredResponse, why: bytes) -> None:
    start: Message = {"type": "http.response.start", "status": response.status, "headers": response.headers}
    await send(marked(start, b"swr; fwd=%b; fwd-status=%d; collapsed" % (why, response.status)))
    await send({"type": "http.response.body", "body": response.body})


async def _gateway_timeout(send: Send, status: bytes) -> None:
    """Answer for an app that gave none in time, or, to `only-if-cached`, may not be asked (RFC 9111 5.2.1.7)."""
    start: Message = {"type": "http.response.start", "status": 504, "headers": [(b"content-length", b"0")]}
    await send(marked(start, status))
    await send({"type": "http.response.body", "body": b""})

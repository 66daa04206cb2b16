"""Requests that the app answers itself, and what its answers tell the cache."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any, Final

from starlette.types import Message, Receive, Send

from swr.answer import RESPONSES, StoredResponse, capture, marked
from swr.conditions import agrees, updated
from swr.entry import Entry
from swr.fields import Headers, content_length, directives, strings, values_of
from swr.load import Since
from swr.request import Request
from swr.response import Slip, slip
from swr.semantics import Verdict, control, judge, vary_of

if TYPE_CHECKING:
    from swr.middleware import SWRMiddleware

# RFC 9875 5 lets a cache draw a line; so many groups of a response count.
_MOST_GROUPS: Final = 128


async def bypass(
    middleware: "SWRMiddleware",
    request: Request,
    receive: Receive,
    send: Send,
    status: bytes,
    heed: Callable[[Message], Awaitable[None]] | None = None,
) -> None:
    """Let the app answer, in the client's own task.

    Parameters:
        status: the member of `Cache-Status`.
        heed: is told how the answer begins, before the client is.
    """

    async def mark(message: Message) -> None:
        if message["type"] == "http.response.start":
            if heed is not None:
                await heed(message)
            message = marked(message, status)
        await send(message)

    token = slip.set(Slip(middleware.cache))
    try:
        await middleware.app(request.scope, receive, mark)
    finally:
        slip.reset(token)


async def head(
    middleware: "SWRMiddleware",
    request: Request,
    receive: Receive,
    send: Send,
    key: str,
    entry: Entry[StoredResponse] | None,
    status: bytes,
) -> None:
    """Let the app answer HEAD; a 200 confirms or outdates what GET has stored (RFC 9111 4.3.5).

    Parameters:
        key: of what is stored.
        entry: what is stored, as far as it is this request's to use.
        status: the member of `Cache-Status`.
    """
    engine = middleware.engine
    since = engine.since()

    async def heed(message: Message) -> None:
        if message["status"] == 200 and entry is not None:
            headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
            if not await _freshen(middleware, request, headers, key, entry, since):
                await engine.invalidate(key)

    await bypass(middleware, request, receive, send, status, heed)


async def _freshen(
    middleware: "SWRMiddleware",
    request: Request,
    headers: Headers,
    key: str,
    entry: Entry[StoredResponse],
    since: Since,
) -> bool:
    """Give a stored response the header of a HEAD that agrees with it; False if it does not, or may not be kept."""
    stored = entry.value
    if stored.status != 200 or stored.complete is not None or not agrees(headers, stored.headers):
        return False
    merged = updated(stored.headers, headers)
    if vary_of(merged) != vary_of(stored.headers):
        # It is kept where what selected it until now says.
        return False
    ages = [(b"age", value) for value in values_of(headers, b"age")]
    verdict = _judged(middleware, request, stored.status, [*merged, *ages], since, entry.tags)
    if verdict.policy is None:
        return False
    response = capture(stored.status, merged, stored.body, verdict)
    # What has become newer in the meantime stays.
    await middleware.engine.put(key, RESPONSES, response, verdict.policy, since, known=entry.version)
    return True


def _judged(
    middleware: "SWRMiddleware",
    request: Request,
    status: int,
    headers: Headers,
    since: Since,
    tags: tuple[str, ...],
) -> Verdict:
    return judge(
        status,
        headers,
        request.terms(),
        middleware.practice,
        began=since.began,
        authorized=request.authorized,
        tags=tags,
    )


class Unsafe:
    """A request whose method may change something: what it may have changed is outdated (RFC 9111 4.4).

    Twice: before the client hears of it, so that its next request finds nothing older; and when the app has ended,
    for a framework may commit its transaction only after the response (FastAPI's dependencies with `yield`).

    Parameters:
        middleware: whose app.
        request: what is asked.
    """

    def __init__(self, middleware: "SWRMiddleware", request: Request) -> None:
        self._middleware = middleware
        self._request = request
        self._tags: list[str] = []
        # A response to POST that is stored for GET, as far as it has come (RFC 9110 9.3.3).
        self._verdict = Verdict(None)
        self._headers: Headers = []
        self._status = 0
        self._body = bytearray()

    async def answer(self, receive: Receive, send: Send) -> None:
        """Let the app answer."""
        middleware = self._middleware
        self._since = middleware.engine.since()

        async def hear(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = await self._on_start(message)
            elif message["type"] == "http.response.body" and self._verdict.policy is not None:
                await self._on_body(message)
            await send(message)

        token = slip.set(Slip(middleware.cache))
        try:
            await middleware.app(self._request.scope, receive, hear)
        finally:
            slip.reset(token)
            await self._outdate()

    async def _on_start(self, message: Message) -> Message:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        status, request = message["status"], self._request
        if 200 <= status < 400:
            references = [*values_of(headers, b"location"), *values_of(headers, b"content-location")]
            groups = strings(values_of(headers, b"cache-group-invalidation"))[:_MOST_GROUPS]
            tags = [request.tag, *map(request.tag_of, references), *map(request.group_tag, groups)]
            self._tags = list(dict.fromkeys(tag for tag in tags if tag is not None))
            self._consider(status, headers)
            await self._outdate()
        return {**message, "headers": [*headers, (b"cache-status", b"swr; fwd=method")]}

    async def _outdate(self) -> None:
        for tag in self._tags:
            await self._middleware.engine.invalidate_tag(tag)

    def _consider(self, status: int, headers: Headers) -> None:
        """Prepare to store a response to POST that says how long it stands for a GET of this very URL."""
        middleware, request = self._middleware, self._request
        where = [request.tag_of(value) for value in values_of(headers, b"content-location")]
        said, targeted = control(headers, middleware.practice.targeted)
        explicit = "max-age" in said or "s-maxage" in said or (not targeted and values_of(headers, b"expires"))
        # What somebody else has outdated since this began must not come back with it.
        current = middleware.engine.store.barriers.admits(self._since.head, (request.tag,))
        if request.method != "POST" or status != 200 or where != [request.tag] or not explicit or not current:
            return
        asked = directives([request.fields.get(b"cache-control", b"")])
        if ("no-store" in asked and "no-store" in middleware.honoured) or not middleware.admits(request):
            return
        verdict = _judged(middleware, request, status, headers, self._since, (request.tag,))
        if verdict.policy is not None and verdict.policy.fresh_for > 0 and not verdict.vary:
            self._verdict, self._headers, self._status = verdict, headers, status

    async def _on_body(self, message: Message) -> None:
        self._body += message.get("body", b"")
        verdict, engine = self._verdict, self._middleware.engine
        if len(self._body) > self._middleware.max_body_bytes:
            self._verdict = Verdict(None, "too large")
        elif not message.get("more_body", False) and verdict.policy is not None:
            self._verdict = Verdict(None)
            if content_length(self._headers) not in (None, len(self._body)):
                return
            response = capture(self._status, self._headers, bytes(self._body), verdict)
            since: Any = self._since._replace(head=engine.store.barriers.head, fence=engine.fence)
            if await engine.put(self._request.key, RESPONSES, response, verdict.policy, since):
                # It would be the first thing to be outdated.
                self._tags = []

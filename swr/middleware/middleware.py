"""The ASGI middleware: a shared HTTP cache (RFC 9111) around an app."""

import logging
from collections.abc import Awaitable, Callable, Collection, Sequence
from contextvars import copy_context
from typing import Any, Literal

from starlette.types import Message, Receive, Scope, Send

from swr.cache import Cache
from swr.engine.background import InUse
from swr.events import Answered
from swr.http.caching import HONOURED
from swr.http.classify import Action, RequestFacts, classify
from swr.http.request import is_below, plain_url
from swr.middleware.config import make_config, warn_if_one_of_several
from swr.middleware.content import read_request
from swr.middleware.handler import RequestHandler
from swr.middleware.messages import without_fields
from swr.middleware.observed import observed
from swr.middleware.passthrough import pass_through
from swr.middleware.purging import purge
from swr.middleware.ready import ReadySlots
from swr.middleware.request import Request
from swr.middleware.rules import Rule
from swr.middleware.usual import Usual
from swr.policy import Duration

__all__ = ["Rule", "SWRMiddleware"]

log = logging.getLogger("swr")


class SWRMiddleware:
    """A shared HTTP cache that answers GET, HEAD and QUERY as far as the app's own `Cache-Control` allows it.

    Parameters:
        app: any ASGI app.
        cache: the cache; the middleware opens and drains it with the app's lifespan.
        rules: how to cache responses whose own fields do not say; the first rule that matches applies.
        cookies: "private": swr does not answer requests with `Cookie` from the cache (unless a rule names the cookies
            that matter), and stores nothing with `Set-Cookie`. "rfc9111": only directives count, cookies do not.
        max_body_bytes: the longest body that swr stores; a longer response passes through unbuffered.
        max_body_time: how long a response may take from its beginning to its end to be stored. After that it passes
            through as it comes, and the waiting requests ask the app themselves. None: no limit. The content of a
            request, if it is part of the key, may take as long to arrive.
        max_content_bytes: the longest content that can be part of a key, for QUERY, and for POST if a rule says so. A
            request with longer content goes to the app.
        max_variants: how many responses swr stores for one URL that varies. swr first removes variants that no other
            request has used, and then the least recently used ones.
        request_directives: the directives of a request's `Cache-Control` (and `Pragma`) that swr honours. By default
            swr ignores "no-cache", "max-age", "min-fresh" and "pragma", because with them any client can make the app
            work. Each forces one load for all requests that come meanwhile.
        targeted: fields that take precedence over `Cache-Control`, in order of preference (RFC 9213).
        heuristic: the share of the time since `Last-Modified` for which a response without directives is fresh, at
            most a day (RFC 9111 4.2.2); 0, the default: never.
        stale_if_unreachable: how long past its lifetime swr serves a response if the app gives no answer, unless a
            directive forbids it. A connection error, a time-out, a 502 and a 504 count as no answer. swr also stores
            the response for that long, so that the app can confirm it.
        hard_timeout: how long the app may take for a response that others may get, its body included. After that swr
            cancels the run, and serves the stored response or answers 504. None: ten times the cache's `lease_for`.
            A response that passes through has no limit. A rule or `@cache.response` may set another limit.
        ignore_fields: request fields that no response depends on, besides those that swr knows as harmless; see *Who
            gets whose answer?* in the documentation.
        key: a function of the scope that returns what selects a response besides the request itself, such as a tenant
            in `scope["state"]`. It returns a string, a number, a date, a UUID or a tuple of these.
        version: the version of the app, such as its release. Processes of another version that share the cache
            have responses of their own; invalidations reach those of every version. Two apps that share a cache and
            see the same URL each need one.
        tag_fields: response fields that name tags of the response: separated by commas in `Cache-Tag` and the like, by
            white space in the others.
        strip_tag_fields: whether swr removes these fields before clients get the response. By default it does not,
            because a CDN in between reads the same fields, and removes them itself.
        purge_token: lets clients invalidate by `PURGE /path` with `Authorization: Bearer` and this token; empty, the
            default: `PURGE` goes to the app like any method that may change something.
        show_key: whether `Cache-Status` names the key (RFC 9211 2.7), so that you can look the entry up.

    Every answer to GET, HEAD and QUERY carries `SWR-State` and `Cache-Status` (RFC 9211). A request with a method that
    may change something invalidates its URL, and the URLs and groups that its answer names (RFC 9111 4.4, RFC 9875).

    Raises:
        ConfigurationError: one of these options cannot work.
    """

    def __init__(
        self,
        app: Callable[[Any, Any, Any], Awaitable[Any]],
        cache: Cache,
        rules: Sequence[Rule] = (),
        cookies: Literal["private", "rfc9111"] = "private",
        max_body_bytes: int = 2**20,
        *,
        max_body_time: Duration | None = 5,
        max_content_bytes: int = 2**16,
        max_variants: int = 64,
        request_directives: Collection[str] = HONOURED,
        targeted: Sequence[str] = ("SWR-Cache-Control", "CDN-Cache-Control"),
        heuristic: float = 0.0,
        stale_if_unreachable: Duration = "1d",
        hard_timeout: Duration | None = None,
        ignore_fields: Sequence[str] = (),
        key: Callable[[Scope], object] | None = None,
        version: str = "",
        tag_fields: Sequence[str] = ("Surrogate-Key", "Cache-Tag", "xkey"),
        strip_tag_fields: bool = False,
        purge_token: str | bytes = "",
        show_key: bool = False,
    ) -> None:
        self.config = make_config(
            self._run_app,
            cache,
            rules,
            cookies,
            max_body_bytes,
            max_body_time=max_body_time,
            max_content_bytes=max_content_bytes,
            max_variants=max_variants,
            request_directives=request_directives,
            targeted=targeted,
            heuristic=heuristic,
            stale_if_unreachable=stale_if_unreachable,
            hard_timeout=hard_timeout,
            ignore_fields=ignore_fields,
            key=key,
            version=version,
            tag_fields=tag_fields,
            strip_tag_fields=strip_tag_fields,
            purge_token=purge_token,
            app_state=lambda: self._usual.state,
            ambient=lambda: self._usual.context,
        )
        # Background runs get the state of the lifespan, and nothing that other middleware has set for one client.
        self._usual = Usual(self.config.selection.outer, copy_context(), self.config.selection.ignored)
        self.app = app
        self.cache = cache
        self._engine = cache.engine
        self._local = cache.local
        self._events = cache.engine.events
        self._rules = self.config.rules.of_get
        self._shows_key = show_key
        if cookies == "rfc9111" and all(rule.cookies is None for rule in self._rules):
            self._usual.ignored.add(b"cookie")
        # Whether the request as it was sent identifies the answer, so that the fast path below may use it.
        self._plain = not show_key and key is None and all(rule.key is None for rule in self._rules)
        self._ready = ReadySlots(
            cache.engine, cache.local, self._rules, self.config.selection, self.config.variants.use
        )
        self._slots = self._ready.slots

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, or handle the lifespan; other connections go to the app."""
        if scope["type"] == "http" and scope["method"] == "GET" and self._plain:
            # The fast path of a hit: lookup, `decide` and `messages_of` in as few steps as possible. As long as the
            # ready messages are valid, at most a second, swr finds them by the URL as it was sent, without a key.
            url, condition = plain_url(scope, self._usual)
            slot = self._slots.get(url)
            if slot is None or (now := self._local.clock.time()) >= slot.fresh_until or now >= slot.trust.until:
                slot = self._ready.find(url, condition, scope["headers"]) if url is not None else None
            if slot is not None:
                slot.is_used, ready = True, slot.ready
                if condition is None:
                    slot.hits.l1 += 1
                    if self._events.reads:
                        self._ready.tell(url, slot, slot.value.status)
                    stored, headers = slot.value, ready.headers.copy()
                    await send({"type": "http.response.start", "status": stored.status, "headers": headers})
                    await send({"type": "http.response.body", "body": stored.body})
                    return
                if condition == ready.etag:
                    slot.hits.l1 += 1
                    if self._events.reads:
                        self._ready.tell(url, slot, 304)
                    await send({"type": "http.response.start", "status": 304, "headers": ready.brief.copy()})
                    await send({"type": "http.response.body", "body": b""})
                    return
        if scope["type"] == "http" and not (self.cache.mounted and is_below(scope, self.cache.mounted)):
            await self._handle(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(scope, receive, send)
        else:
            await self.app(scope, receive, send)

    async def _handle(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request without ready messages."""
        if self.config.sharing.strips_tags:
            send = without_fields(send, self.config.sharing.tag_fields)
        token = self.config.purge_token
        if scope["method"] == "PURGE" and token is not None:
            await purge(self.config, token, scope, send)
            return
        handling = classify(RequestFacts(scope["method"]))
        if handling.action is Action.PASS_THROUGH:
            await pass_through(self.config, scope, receive, send, handling)
            return
        request, receive = await read_request(self.config, scope, receive)
        if handling.action is not Action.INVALIDATE or request.by_content:
            if self._events.has_subscriber(Answered):
                send = observed(self._engine, request, send)
            if self._shows_key:
                send = _show_key(request, send)
        await RequestHandler(self.config, request, receive, send).handle()

    async def _run_app(self, scope: Scope, receive: Receive, send: Send) -> None:
        # Look the attribute up for each request, because instrumentation may replace it.
        await self.app(scope, receive, send)

    # -- lifespan ---------------------------------------------------------------------------------------------

    async def _lifespan(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Open the cache before the app starts, and drain it after the app has stopped."""
        # A server in another thread does not see the context variables that were set where swr was created.
        self._usual.state, self._usual.context = scope.get("state", {}), copy_context()
        opened = False

        async def open_cache() -> Message:
            nonlocal opened
            message = await receive()
            if message["type"] == "lifespan.startup":
                try:
                    await self.cache.__aenter__()
                    opened = True
                except InUse:
                    self._engine.switch.warn()
                warn_if_one_of_several(self.cache)
            return message

        async def close_cache(message: Message) -> None:
            nonlocal opened
            if opened and message["type"] in ("lifespan.shutdown.complete", "lifespan.shutdown.failed"):
                opened = False
                await self.cache.__aexit__(None, None, None)
            await send(message)

        try:
            await self.app(scope, open_cache, close_cache)
        finally:
            if opened:
                await self.cache.__aexit__(None, None, None)


def _show_key(request: Request, send: Send) -> Send:
    """Return a `send` that adds the key to swr's member of `Cache-Status`."""
    key = request.key.replace("\n", "")
    shown = "".join(f"\\{char}" if char in '"\\' else char if " " <= char <= "~" else "?" for char in key)

    async def send_with_key(message: Message) -> None:
        if message["type"] == "http.response.start":
            headers = list(message["headers"])
            # swr has appended its `Cache-Status` line last.
            name, status = headers[-1]
            headers[-1] = (name, b'%b; key="%b"' % (status, shown.encode("ascii")))
            message = {**message, "headers": headers}
        await send(message)

    return send_with_key

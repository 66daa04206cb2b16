"""Requests that the app answers itself, and what swr learns from its answers."""

import logging
from collections.abc import Awaitable, Callable
from typing import Final

from starlette.types import Message, Receive, Scope, Send

from swr.endpoints.declared import declared
from swr.endpoints.origin import origin_of
from swr.endpoints.routed_scope import routed
from swr.endpoints.terms import Admission, EndpointTerms, endpoint_terms
from swr.engine.load import Snapshot
from swr.engine.repeats import Repeats
from swr.entry import Entry
from swr.http.caching import Verdict, control, judge
from swr.http.classify import Handling
from swr.http.conditional import describes, updated
from swr.http.fields import Headers, content_length, parse_directives, strings, values_of, vary_of
from swr.http.stored_response import RESPONSES, StoredResponse, as_stored
from swr.middleware.admission import admitted, marked_after, settle
from swr.middleware.captured import MOST_GROUPS
from swr.middleware.config import Config
from swr.middleware.request import Request
from swr.middleware.selection import is_personal
from swr.stores.tag_versions import is_announced

log = logging.getLogger("swr")

# Both fields have one value (RFC 9110 8.7, 10.2.2). Each costs a command of the store.
_MOST_REFERENCES: Final = 8


async def pass_through(config: Config, scope: Scope, receive: Receive, send: Send, handling: Handling) -> None:
    """Let the app answer a request that does not concern the cache; swr reads its method alone."""
    if log.isEnabledFor(logging.DEBUG):
        action, reason = handling.action.value, handling.reason.value
        log.debug("%s %r: %s (%s)", scope["method"], scope.get("path"), action, reason)
    token = endpoint_terms.set(EndpointTerms(config.cache))
    try:
        await config.app(scope, receive, send)
    finally:
        endpoint_terms.reset(token)


async def bypass(
    config: Config,
    request: Request,
    receive: Receive,
    send: Send,
    status: bytes,
    on_start: Callable[[Message], Awaitable[None]] | None = None,
    admission: Admission | None = None,
) -> None:
    """Let the app answer, in the client's own task.

    Parameters:
        status: the member of `Cache-Status`.
        on_start: called with the beginning of the answer, before the client gets it.
        admission: lets the endpoint be answered from the cache after its dependencies.
    """

    async def mark(message: Message) -> None:
        if message["type"] == "http.response.start":
            if on_start is not None:
                await on_start(message)
            message = marked_after(admission, message, status)
        await send(message)

    token = endpoint_terms.set(EndpointTerms(config.cache, None, admission))
    try:
        with admitted(request.scope, admission):
            await config.app(request.scope, receive, mark)
    finally:
        endpoint_terms.reset(token)
        settle(config, request, admission)


async def head(
    config: Config,
    request: Request,
    receive: Receive,
    send: Send,
    key: str,
    entry: Entry[StoredResponse] | None,
    status: bytes,
) -> None:
    """Let the app answer HEAD; a 200 may confirm or outdate what GET has stored (RFC 9111 4.3.5).

    It outdates nothing that is stored on the terms of a rule or an endpoint's decorator.

    Parameters:
        key: of what is stored.
        entry: what is stored, if this request may use it.
        status: the member of `Cache-Status`.
    """
    engine = config.engine
    snapshot = engine.snapshot()._replace(origin="" if entry is None else entry.loader)

    async def on_start(message: Message) -> None:
        # With cookies that do not matter by a rule, the answer may be of this client alone.
        if message["status"] != 200 or entry is None or request.has_other_cookies:
            return
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        is_described = describes(headers, entry.value.headers)
        if is_described and await _freshen(config, request, headers, key, entry, snapshot):
            return
        if is_described is not None and entry.value.own_terms:
            await engine.invalidate(key)

    await bypass(config, request, receive, send, status, on_start)


async def _freshen(
    config: Config,
    request: Request,
    headers: Headers,
    key: str,
    entry: Entry[StoredResponse],
    snapshot: Snapshot,
) -> bool:
    """Give a stored response the header of a HEAD that describes it; return False if it describes another one."""
    stored = entry.value
    if stored.status != 200 or stored.complete is not None:
        return False
    merged = updated(stored.headers, headers)
    vary = vary_of(merged)
    if vary is None or not set(vary) <= set(stored.names):
        # It would have to move to another variant's key.
        return False
    ages = [(b"age", value) for value in values_of(headers, b"age")]
    verdict = _judged(config, request, stored.status, [*merged, *ages], snapshot, entry.tags)
    if verdict.policy is None:
        return False
    response = as_stored(stored.status, merged, stored.body, verdict)
    response.names, response.ignores, response.per_credential = stored.names, stored.ignores, stored.per_credential
    response.client_max_age, response.soft_timeout = stored.client_max_age, stored.soft_timeout
    # A response that has become newer in the meantime stays.
    await config.engine.put(key, RESPONSES, response, verdict.policy, snapshot, known=entry.version)
    return True


def _judged(
    config: Config,
    request: Request,
    status: int,
    headers: Headers,
    snapshot: Snapshot,
    tags: tuple[str, ...],
) -> Verdict:
    return judge(
        status,
        headers,
        request.terms(),
        config.sharing,
        began=snapshot.began,
        authorized=request.authorized,
        tags=tags,
    )


class Unsafe:
    """A request whose method may change something; swr invalidates what it may have changed (RFC 9111 4.4).

    That costs no tag version and no message, but one command, where nothing of the URL is stored or being loaded.

    It does so twice: before the client gets the answer, so that its next request finds nothing older, and when the app
    has ended. A framework may commit its transaction after the response, as FastAPI's dependencies with `yield` do.
    So are the keys and tags that the app itself invalidates.

    Parameters:
        config: of the middleware.
        request: what is asked.
    """

    def __init__(self, config: Config, request: Request) -> None:
        self._config = config
        self._request = request
        self._scope = routed(request.scope)
        self._tags: list[str] = []
        self._repeats = Repeats(config.engine)
        # A response to POST that swr stores for GET, as far as it has come (RFC 9110 9.3.3).
        self._verdict = Verdict(None)
        self._headers: Headers = []
        self._status = 0
        self._body = bytearray()
        # None: swr has not tried.
        self._is_stored: bool | None = None

    async def answer(self, receive: Receive, send: Send) -> None:
        """Let the app answer."""
        config = self._config
        self._snapshot = config.engine.snapshot()._replace(heard=config.engine.store.heard)

        async def observe(message: Message) -> None:
            if message["type"] == "http.response.start":
                message = await self._on_start(message)
            elif message["type"] == "http.response.body" and self._verdict.policy is not None:
                await self._on_body(message)
            await send(message)

        token = endpoint_terms.set(EndpointTerms(config.cache))
        try:
            async with self._repeats:
                await config.app(self._scope, receive, observe)
        finally:
            endpoint_terms.reset(token)

    async def _on_start(self, message: Message) -> Message:
        headers = [(bytes(name), bytes(value)) for name, value in message.get("headers", ())]
        status, request = message["status"], self._request
        if status >= 400:
            self._repeats.fail()
        # RFC 9111 4.4, but for 307 and 308: the request changes something only where it is sent again.
        if 200 <= status < 300 or status in (301, 302, 303):
            references = [
                value
                for name in (b"location", b"content-location")
                for value in values_of(headers, name)[:_MOST_REFERENCES]
            ]
            groups = strings(values_of(headers, b"cache-group-invalidation"))[:MOST_GROUPS]
            tags = [*request.host_tags, *map(request.tag_of, references), *map(request.group_tag, groups)]
            self._tags = list(dict.fromkeys(tag for tag in tags if tag is not None))
            self._consider(status, headers)
            await self._invalidate()
        return {**message, "headers": [*headers, (b"cache-status", b"swr; fwd=method")]}

    async def _invalidate(self) -> None:
        """Invalidate what the request may have changed; of URLs, only those for which something is stored or loaded."""
        engine, certain = self._config.engine, [tag for tag in self._tags if not is_announced(tag)]
        if self._verdict.policy is not None:
            # It will be stored, if nobody else has invalidated it since this request began.
            certain.append(self._request.tags[1])
        await engine.invalidate_tag(*certain)
        await engine.invalidate_announced(*(tag for tag in self._tags if tag not in certain))
        self._snapshot = engine.snapshot()._replace(began=self._snapshot.began, heard=self._snapshot.heard)

    def _consider(self, status: int, headers: Headers) -> None:
        """Prepare to store a response to POST that says how long it may answer a GET of this very URL."""
        config, request = self._config, self._request
        if config.engine.switch.is_off:
            return
        where = [request.tag_of(value) for value in values_of(headers, b"content-location")]
        directives, targeted = control(headers, config.sharing.targeted)
        has_expires = not targeted and bool(values_of(headers, b"expires"))
        explicit = "max-age" in directives or "s-maxage" in directives or has_expires
        # An invalidation since this request began must not be undone by its response.
        current = config.engine.store.tag_versions.admits(self._snapshot.tag_version, request.tags)
        if request.method != "POST" or status != 200 or where != [request.tags[1]] or not explicit or not current:
            return
        asked = parse_directives([request.fields.get(b"cache-control", b"")])
        if "no-store" in asked and "no-store" in config.honoured:
            return
        has_cookie = config.sharing.cookies_private and b"cookie" in request.fields
        # The app has seen all cookies, also those that do not matter by a rule.
        if has_cookie and (not request.key_cookies() or request.has_other_cookies):
            return
        route = declared(self._scope)
        if request.is_too_long or request.unknown or request.authorized or is_personal(self._scope):
            # Only what anybody may have sent says what a GET of anybody gets.
            return
        rule = request.find_rule()
        if route.fields or not route.is_complete or request.is_apart or (rule is not None and rule.left_out(route)):
            return
        verdict = _judged(config, request, status, headers, self._snapshot, request.tags)
        if verdict.policy is not None and verdict.policy.fresh_for > 0 and not verdict.vary and not verdict.tags_of:
            self._verdict, self._headers, self._status = verdict, headers, status

    async def _on_body(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if len(self._body) > self._config.max_body_bytes:
            self._verdict = Verdict(None, "too large")
            return
        length, is_last = content_length(self._headers), not message.get("more_body", False)
        if length == len(self._body) or (length is None and is_last):
            # The client holds all of it, even if the app announces more.
            await self._store()
        if is_last and self._is_stored and length in (None, len(self._body)):
            # The second invalidation would drop it.
            self._repeats.forget(self._tags)

    async def _store(self) -> None:
        verdict, engine = self._verdict, self._config.engine
        if self._is_stored is not None or verdict.policy is None:
            return
        response = as_stored(self._status, self._headers, bytes(self._body), verdict)
        snapshot = self._snapshot._replace(origin=origin_of(self._scope))
        self._is_stored = await engine.put(self._request.key, RESPONSES, response, verdict.policy, snapshot)

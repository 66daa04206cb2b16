"""Requests that go to the app without the cache, and what swr invalidates or stores after the app's answers."""

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
from swr.middleware.messages import begin_run
from swr.middleware.request import Request
from swr.middleware.selection import is_personal
from swr.stores.tag_versions import is_announced

log = logging.getLogger("swr")

# `Location` and `Content-Location` have one value (RFC 9110 8.7, 10.2.2), and each value costs a command of the store.
_MOST_REFERENCES: Final = 8


async def pass_through(config: Config, scope: Scope, receive: Receive, send: Send, handling: Handling) -> None:
    """Let the app answer a request that does not concern the cache; swr reads nothing but its method."""
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
        admission: with it the endpoint may answer from the cache after its dependencies have run.
    """

    async def mark(message: Message) -> None:
        if message["type"] == "http.response.start":
            if on_start is not None:
                await on_start(message)
            message = marked_after(admission, message, status)
        await send(message)

    token = endpoint_terms.set(EndpointTerms(config.cache, None, admission))
    scope, receive = begin_run(request, receive)
    try:
        with admitted(scope, admission):
            await config.app(scope, receive, mark)
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
    """Let the app answer HEAD; a 200 may update or invalidate the response that GET has stored (RFC 9111 4.3.5).

    It does not invalidate a response that is stored on the terms of a rule or an endpoint's decorator.

    Parameters:
        key: the key of the stored response.
        entry: the stored response, if this request may use it.
        status: the member of `Cache-Status`.
    """
    engine = config.engine
    snapshot = engine.snapshot()._replace(origin="" if entry is None else entry.loader)

    async def on_start(message: Message) -> None:
        # The app has seen all cookies, also those that the key ignores, so its answer may be for this client alone.
        if message["status"] != 200 or entry is None or request.hides_cookies:
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
    """Update the header of a stored response from an answer to HEAD; return False if that is impossible."""
    stored = entry.value
    if stored.status != 200 or stored.complete is not None:
        return False
    merged = updated(stored.headers, headers)
    vary = vary_of(merged)
    if vary is None or not set(vary) <= set(stored.names):
        # The response would belong under the key of another variant.
        return False
    ages = [(b"age", value) for value in values_of(headers, b"age")]
    verdict = _judged(config, request, stored.status, [*merged, *ages], snapshot, entry.tags)
    if verdict.policy is None:
        return False
    response = as_stored(stored.status, merged, stored.body, verdict)
    response.names, response.ignores, response.per_credential = stored.names, stored.ignores, stored.per_credential
    response.client_max_age, response.soft_timeout = stored.client_max_age, stored.soft_timeout
    # `known` keeps a response that another load has stored meanwhile.
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

    If nothing of the URL is stored or being loaded, that costs one command, but no tag version and no notification.

    swr invalidates twice: before the client gets the answer, so that its next request finds nothing older, and after
    the app has ended. A framework may commit its transaction after the response, as FastAPI's dependencies with `yield`
    do. swr also repeats the invalidations that the app itself makes during the request.

    Parameters:
        config: the middleware's options.
        request: the client's request.
    """

    def __init__(self, config: Config, request: Request) -> None:
        self._config = config
        self._request = request
        self._scope = routed(request.scope)
        self._tags: list[str] = []
        self._repeats = Repeats(config.engine)
        # A response to POST that swr stores for GET (RFC 9110 9.3.3), as far as swr has received it.
        self._verdict = Verdict(None)
        self._headers: Headers = []
        self._status = 0
        self._body = bytearray()
        # Whether swr has stored the response; None: swr has not tried.
        self._is_stored: bool | None = None

    async def answer(self, receive: Receive, send: Send) -> None:
        """Let the app answer, and invalidate what the request may have changed."""
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
        # RFC 9111 4.4, except 307 and 308: with these the client sends the request again elsewhere.
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
        """Invalidate what the request may have changed, except URLs for which nothing is stored or being loaded."""
        engine, certain = self._config.engine, [tag for tag in self._tags if not is_announced(tag)]
        if self._verdict.policy is not None:
            # swr will store this response for GET, so it raises the tag version of the URL in any case.
            certain.append(self._request.tags[1])
        await engine.invalidate_tag(*certain)
        await engine.invalidate_announced(*(tag for tag in self._tags if tag not in certain))
        self._snapshot = engine.snapshot()._replace(began=self._snapshot.began, heard=self._snapshot.heard)

    def _consider(self, status: int, headers: Headers) -> None:
        """Prepare to store a response to POST that says how long it may answer a GET of the same URL."""
        config, request = self._config, self._request
        if config.engine.switch.is_off:
            return
        where = [request.tag_of(value) for value in values_of(headers, b"content-location")]
        directives, targeted = control(headers, config.sharing.targeted)
        has_expires = not targeted and bool(values_of(headers, b"expires"))
        explicit = "max-age" in directives or "s-maxage" in directives or has_expires
        # After an invalidation during this request, its response may be outdated.
        current = config.engine.store.tag_versions.admits(self._snapshot.tag_version, request.tags)
        if request.method != "POST" or status != 200 or where != [request.tags[1]] or not explicit or not current:
            return
        asked = parse_directives([request.fields.get(b"cache-control", b"")])
        if "no-store" in asked and "no-store" in config.honoured:
            return
        has_cookie = config.sharing.cookies_private and b"cookie" in request.fields
        # The app has seen all cookies, also those that the key ignores.
        if has_cookie and (not request.key_cookies() or request.hides_cookies):
            return
        route = declared(self._scope)
        if request.is_too_long or request.unknown or request.authorized or is_personal(self._scope):
            # The response may be for this client alone, and a GET of any client would get it.
            return
        rule = request.find_rule()
        if route.fields or not route.is_complete or request.is_apart or (rule is not None and rule.left_out(route)):
            return
        verdict = _judged(config, request, status, headers, self._snapshot, request.tags)
        # swr notes no reads of such a run. So the response itself must say that it is for others.
        is_for_all = verdict.own_terms and not verdict.vary and not verdict.tags_of
        if verdict.policy is not None and verdict.policy.fresh_for > 0 and is_for_all:
            self._verdict, self._headers, self._status = verdict, headers, status

    async def _on_body(self, message: Message) -> None:
        self._body += message.get("body", b"")
        if len(self._body) > self._config.max_body_bytes:
            self._verdict = Verdict(None, "too large")
            return
        length, is_last = content_length(self._headers), not message.get("more_body", False)
        if length == len(self._body) or (length is None and is_last):
            # The body is complete, even if the app announces more.
            await self._store()
        if is_last and self._is_stored and length in (None, len(self._body)):
            # The second invalidation would remove the response that swr has just stored.
            self._repeats.forget(self._tags)

    async def _store(self) -> None:
        verdict, engine = self._verdict, self._config.engine
        if self._is_stored is not None or verdict.policy is None:
            return
        response = as_stored(self._status, self._headers, bytes(self._body), verdict)
        snapshot = self._snapshot._replace(origin=origin_of(self._scope))
        self._is_stored = await engine.put(self._request.key, RESPONSES, response, verdict.policy, snapshot)

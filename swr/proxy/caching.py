"""The caching reverse proxy: the middleware around `Proxy`."""

from collections.abc import Sequence
from typing import Literal

from starlette.types import ASGIApp, Receive, Scope, Send

from swr.cache import Cache
from swr.core.byte_codec import ByteCodec
from swr.middleware import Rule, SWRMiddleware
from swr.policy import Duration
from swr.proxy.answers import dated, say
from swr.proxy.headers import named_in
from swr.proxy.proxy import Proxy
from swr.proxy.targets import misdirected, origin_form


def caching_proxy(
    upstream: str,
    *,
    redis: str | None = None,
    namespace: str = "swr",
    l1_max_bytes: int = 64 * 2**20,
    fresh_for: Duration | None = None,
    stale_for: Duration = 0,
    stale_if_error: Duration = 0,
    cookies: Literal["private", "rfc9111"] = "private",
    ignore_fields: Sequence[str] = (),
    heuristic: float = 0.1,
    secret: str | bytes = b"",
    codec: ByteCodec | None = None,
    compress_above: int | Literal["auto"] | None = "auto",
    max_body_bytes: int = 2**20,
    timeout: Duration = 30,
    connect_timeout: Duration = 5,
    max_connections: int = 100,
    client_timeout: Duration = 30,
    hard_timeout: Duration | None = 60,
    trust_forwarded: bool = False,
    purge_token: str | bytes = "",
) -> ASGIApp:
    """Return a caching reverse proxy, an ASGI app.

    Parameters:
        upstream: see `Proxy`.
        timeout: see `Proxy`.
        connect_timeout: see `Proxy`.
        max_connections: see `Proxy`.
        client_timeout: see `Proxy`.
        trust_forwarded: see `Proxy`.
        redis: the URL of Redis or Valkey; None keeps everything in memory.
        namespace: see `Cache`.
        l1_max_bytes: see `Cache`.
        secret: see `Cache`.
        codec: see `Cache`.
        compress_above: see `Cache`.
        fresh_for: how long an answer is fresh: seconds, or "90s", "10m", "1d".
        stale_for: how long after that swr serves it and refreshes it in the background.
        stale_if_error: how long after `fresh_for` it is a fallback if a load fails.
            These three options apply to answers that name no lifetime themselves; see `Rule`.
        cookies: see `SWRMiddleware`.
        ignore_fields: see `SWRMiddleware`.
        heuristic: see `SWRMiddleware`.
        max_body_bytes: see `SWRMiddleware`.
        purge_token: see `SWRMiddleware`.
        hard_timeout: see `SWRMiddleware`; None: an answer that comes in small pieces may take any time.

    Raises:
        ConfigurationError: an option cannot work.
    """
    proxy = Proxy(
        upstream,
        timeout=timeout,
        connect_timeout=connect_timeout,
        max_connections=max_connections,
        client_timeout=client_timeout,
        trust_forwarded=trust_forwarded,
    )
    rules = []
    if fresh_for is not None or stale_for or stale_if_error:
        rules.append(
            Rule("/{path:path}", fresh_for=fresh_for, stale_for=stale_for, stale_if_error=stale_if_error),
        )
    cache = Cache(
        redis,
        namespace=namespace,
        l1_max_bytes=l1_max_bytes,
        secret=secret,
        codec=codec,
        compress_above=compress_above,
    )
    app = SWRMiddleware(
        proxy,
        cache,
        rules,
        cookies,
        max_body_bytes,
        ignore_fields=ignore_fields,
        heuristic=heuristic,
        hard_timeout=hard_timeout,
        purge_token=purge_token,
    )
    return _gate(app, proxy)


def _gate(app: ASGIApp, proxy: Proxy) -> ASGIApp:
    """Return an app that checks requests before the cache sees them, and refuses some; see `misdirected`.

    A request that passes this proxy for the second time must not reach the cache, where it would wait for its own
    flight. A field that `Connection` names does not reach the service, so the cache must not see that field either.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await app(scope, receive, send)
            return
        scope = origin_form(scope)
        refused = misdirected(scope, proxy.rules)
        if refused is not None:
            await say(scope, send, *refused)
            return
        named = named_in(scope["headers"])
        if named:
            scope = {**scope, "headers": [pair for pair in scope["headers"] if pair[0] not in named]}
        await app(scope, receive, dated(send))

    return answer

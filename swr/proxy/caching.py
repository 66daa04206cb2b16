"""The caching reverse proxy: the middleware around `Proxy`."""

import re
from collections.abc import Sequence
from typing import Final, Literal
from urllib.parse import unquote

from starlette.types import ASGIApp, Receive, Scope, Send

from swr.cache import Cache
from swr.middleware import Rule, SWRMiddleware
from swr.policy import Duration
from swr.proxy.headers import without
from swr.proxy.proxy import Proxy

_ABSOLUTE: Final = re.compile(rb"https?://([^/?#@]+)(/.*)?", re.IGNORECASE | re.DOTALL)


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
    max_body_bytes: int = 2**20,
    timeout: Duration = 30,
    connect_timeout: Duration = 5,
    max_connections: int = 100,
    trust_forwarded: bool = False,
) -> ASGIApp:
    """Return a caching reverse proxy, an ASGI app.

    Parameters:
        upstream, timeout, connect_timeout, max_connections, trust_forwarded: see `Proxy`.
        redis: the URL of Redis or Valkey; None keeps everything in memory.
        namespace, l1_max_bytes, secret: see `Cache`.
        fresh_for, stale_for, stale_if_error: for answers that do not say themselves; see `Rule`.
        cookies, ignore_fields, heuristic, max_body_bytes: see `SWRMiddleware`.

    Raises:
        ConfigurationError: any of these that cannot work.
    """
    proxy = Proxy(
        upstream,
        timeout=timeout,
        connect_timeout=connect_timeout,
        max_connections=max_connections,
        trust_forwarded=trust_forwarded,
    )
    rules = []
    if fresh_for is not None or stale_for or stale_if_error:
        rules.append(
            Rule("/{path:path}", fresh_for=fresh_for, stale_for=stale_for, stale_if_error=stale_if_error),
        )
    cache = Cache(redis, namespace=namespace, l1_max_bytes=l1_max_bytes, secret=secret)
    return _origin_form(
        SWRMiddleware(proxy, cache, rules, cookies, max_body_bytes, ignore_fields=ignore_fields, heuristic=heuristic)
    )


def _origin_form(app: ASGIApp) -> ASGIApp:
    """Return an app that sees `GET http://host/path` as what it stands for (RFC 9112 3.2.2).

    Servers may hand it over as it came; the cache must not take it for another resource.
    """

    async def answer(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            match = _ABSOLUTE.fullmatch(scope.get("raw_path") or b"")
            if match:
                path = match[2] or b"/"
                headers = [(b"host", match[1]), *without(list(scope["headers"]), b"host")]
                scope = {**scope, "raw_path": path, "path": unquote(path.decode("latin-1")), "headers": headers}
        await app(scope, receive, send)

    return answer

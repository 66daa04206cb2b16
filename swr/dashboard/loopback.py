"""The gate without `auth=`: it lets in browsers on this machine that have the token of the process's user."""

import functools
import ipaddress
import logging
import math
import secrets
import time
from typing import Final
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import HTMLResponse, RedirectResponse, Response

from swr.dashboard.answers import SECURITY, refused
from swr.dashboard.own_token import own_token
from swr.http.fields import values_of
from swr.http.purge import bearer_of

log = logging.getLogger("swr")

# Fields that proxies add. With one of them, the client's address is that of the proxy, and proves nothing.
_FORWARDING: Final = (
    "forwarded",
    "via",
    "client-ip",
    "true-client-ip",
    "x-client-ip",
    "x-cluster-client-ip",
    "x-azure-clientip",
    "x-scheme",
    "x-url-scheme",
    "x-nginx-proxy",
    "x-varnish",
    "front-end-https",
)
_FORWARDING_PREFIXES: Final = ("x-forward", "x-real-", "x-original-", "x-envoy-", "x-amz", "cf-", "fastly-", "fly-")
_COOKIE: Final = "swr-dashboard"
# Seconds that the cookie lasts, and seconds between two log lines with the address.
_COOKIE_LASTS: Final = 30 * 86_400
_TOLD_EVERY: Final = 60.0
_NOT_FROM_HERE: Final = (
    "without auth= only a browser on this machine is let in, under the name localhost, and not through a proxy"
)
_NO_TOKEN: Final = (
    "the token of this machine's user is missing: open the page, then the address with a token that its process logs; "
    "a program sends Authorization: Bearer with the token"
)
_PAGE: Final = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>swr</title><meta name="viewport" content="width=device-width">
<meta name="color-scheme" content="light dark"></head><body><main>
<h1>Open the address in the log</h1>
<p>The process that serves this dashboard has just logged an address that ends in <code>?token=…</code>. Open it once.
This browser remembers it for 30 days.</p>
<p>To let others in, give <code>auth=</code> to <code>swr.dashboard</code>.</p>
</main></body></html>
"""


class Loopback:
    """A gate for requests from this machine with the token of the user who runs the process.

    The client's address alone is not enough: a tunnel or a proxy on this machine may hide a remote client, and other
    users may work on the machine. The request's `Host` must be that of the loopback, too, because another site can make
    its own name resolve to the loopback address (DNS rebinding).
    """

    def __init__(self) -> None:
        self._told_at = -math.inf

    @functools.cached_property
    def _token(self) -> bytes:
        return own_token().encode()

    async def admit(self, request: Request) -> str | Response:
        """Return the client's address or a refusal; for a link with the token, a redirect that sets the cookie."""
        client = request.client
        if client is None or not _is_from_here(request, client.host):
            return refused(_NOT_FROM_HERE, 403)
        is_page = request.method == "GET" and request.scope["path"].removeprefix(_place(request)) == "/"
        if is_page and self._is_token(request.query_params.get("token", "").encode()):
            return self._with_cookie(request)
        bearer = bearer_of(values_of(request.scope["headers"], b"authorization")) or b""
        if any(map(self._is_token, (bearer, request.cookies.get(_COOKIE, "").encode()))):
            return client.host
        if not is_page:
            return refused(_NO_TOKEN, 403)
        self._tell(request)
        return HTMLResponse(_PAGE, 403, SECURITY)

    def _is_token(self, given: bytes) -> bool:
        return secrets.compare_digest(given, self._token)

    def _with_cookie(self, request: Request) -> Response:
        answer = RedirectResponse("./", 303, SECURITY)
        answer.set_cookie(
            _COOKIE,
            self._token.decode(),
            max_age=_COOKIE_LASTS,
            path=f"{quote(_place(request))}/",
            secure=request.url.scheme == "https",
            httponly=True,
            samesite="lax",
        )
        return answer

    def _tell(self, request: Request) -> None:
        """Log the address with the token, because only the user who runs the process can read its log."""
        now = time.monotonic()
        if now - self._told_at >= _TOLD_EVERY:
            self._told_at = now
            host = quote(request.headers["host"], safe="[]:.")
            log.warning(
                "the dashboard has no auth=, so it lets in everybody who knows this address: %s",
                link(f"{request.url.scheme}://{host}{quote(_place(request))}/", self._token.decode()),
            )


def link(page: str, token: str) -> str:
    """Return the address that lets a browser in.

    Parameters:
        page: the URL of the dashboard, with a slash at its end.
        token: the token of this user; see `own_token`.
    """
    return f"{page}?token={token}"


def _place(request: Request) -> str:
    """Return the path under which the dashboard is mounted, without a slash at its end."""
    place: str = request.scope.get("root_path", "")
    return place


def _is_from_here(request: Request, client: str) -> bool:
    """Return whether a request seems to come from this machine: by its address, its `Host`, and no field of a proxy."""
    names = request.headers.keys()
    # Browsers do not speak HTTP/1.0. nginx before 1.29.7 does by default, and then adds no field about the client.
    if request.scope.get("http_version") == "1.0" or not _is_loopback(client):
        return False
    if any(name in _FORWARDING or name.startswith(_FORWARDING_PREFIXES) for name in names):
        return False
    hosts = request.headers.getlist("host")
    return len(hosts) == 1 and _is_loopback(_host_of(hosts[0]))


def _is_loopback(host: str) -> bool:
    if host.lower() == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return (mapped or address).is_loopback


def _host_of(authority: str) -> str:
    """Return the host of a `Host` field."""
    if authority.startswith("["):
        host, bracket, port = authority[1:].partition("]")
        return host if bracket and (not port or port[0] == ":") else ""
    host, _, port = authority.partition(":")
    return host if not port or port.isdecimal() else ""

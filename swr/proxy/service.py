"""The proxy's connections to the service."""

import functools
import logging
import os
import socket
import ssl
from typing import Any, Final

import anyio
import httpx

from swr.errors import ConfigurationError
from swr.proxy.headers import Fields
from swr.proxy.request_body import RequestBody
from swr.proxy.slots import Exchange, Slots

log = logging.getLogger("swr")

# Seconds after which the proxy closes an idle connection. Many servers do so after 5 seconds. Closing first keeps
# requests from running into a connection that the server is closing.
_IDLE: Final = 4.0
# Bytes of an answer that the kernel may buffer. By default it buffers megabytes for each client that does not read its
# answer, and the event loop then reads all of them at once.
_RECEIVE_BUFFER: Final = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)]
# Safe methods (RFC 9110 9.2.1), so that the proxy may repeat such a request or give it up.
_SAFE: Final = ("GET", "HEAD", "OPTIONS")


class Service:
    """The connections to the service, which open at the first use.

    Parameters:
        url: the URL of the service.
        silence: seconds that the header section of an answer may take after the request, and seconds for which the
            service may be silent during its answer.
        patience: seconds that connecting may take, and seconds for which a request waits for a free connection.
        max_connections: the most connections.
    """

    def __init__(self, url: httpx.URL, silence: float, patience: float, max_connections: int) -> None:
        self._url = url
        self._timeout = {"connect": patience, "pool": patience, "read": silence, "write": silence}
        self._silence = silence
        self._max_connections = max_connections
        self._patience = patience
        self._slots = Slots(max_connections, patience)
        self._transport: httpx.AsyncHTTPTransport | None = None

    def open(self) -> httpx.AsyncHTTPTransport:
        """Open the connections, unless they are open, and return them.

        This is a transport of httpx, not a client, which has a cookie jar, default fields, redirects and `.netrc`.
        """
        if self._transport is None:
            # This trusts the certificates of the system, or of SSL_CERT_FILE.
            verify = ssl.create_default_context() if self._url.scheme == "https" else False
            count = self._max_connections
            limits = httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=_IDLE)
            self._slots = Slots(count, self._patience)
            self._transport = httpx.AsyncHTTPTransport(
                verify=verify, trust_env=False, limits=limits, socket_options=_RECEIVE_BUFFER
            )
        return self._transport

    @property
    def is_busy(self) -> bool:
        """Return whether a request has a connection, or waits for one."""
        return self._slots.are_taken

    def release(self, exchange: Exchange) -> None:
        """Release the connection of an exchange, or its place in the queue for connections."""
        self._slots.release(exchange)

    async def aclose(self) -> None:
        """Close the connections. The next request opens them again."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def ask(
        self, exchange: Exchange, method: str, target: bytes, fields: Fields, body: RequestBody | None
    ) -> httpx.Response:
        """Send the request when a connection is free, and return the answer with its header section, before its body.

        The exchange keeps the connection until `release`, which the caller must always call. A server may close an idle
        connection while a request is on its way. The proxy then repeats a request with a safe method, on the other idle
        connections and finally on a new one (RFC 9110 9.2.2, RFC 9112 9.3.1).

        Raises:
            httpx.TransportError: the service gave no answer.
        """
        transport = self.open()
        await self._slots.take(exchange)
        connected = False

        async def trace(event: str, _: object) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.started"
            if event == "http11.receive_response_headers.started":
                # This bounds the whole header section. The read time-out does not: a service that sends interim
                # answers, or its fields byte by byte, is never silent.
                scope.deadline = anyio.current_time() + self._silence
                if method in _SAFE:
                    exchange.ask(scope)

        request = httpx.Request(
            method,
            self._url,
            headers=fields,
            # With a stream, httpx adds no fields of its own.
            stream=body or httpx.ByteStream(b""),
            extensions={"target": target, "timeout": self._timeout, "trace": trace},
        )
        with anyio.CancelScope() as scope:
            # The service may have closed all idle connections. After that many tries, httpx opens a new one.
            idle = self._max_connections
            while True:
                try:
                    response = await transport.handle_async_request(request)
                    break
                except (httpx.ReadError, httpx.RemoteProtocolError):
                    if connected or body is not None or method not in _SAFE or not idle:
                        raise
                    idle -= 1
            self._slots.answered(exchange)
            return response
        raise httpx.ReadTimeout("the service did not end the head of its answer in time")


async def close_if_overrun(response: httpx.Response) -> None:
    """Close the connection of a complete answer, unless it is certain that no further bytes came after the answer.

    Without this, the further bytes would become the answer to the next request (RFC 9112 9.2, 11.2). This looks at
    private attributes of httpx, which has no public way to see such bytes. In a release of httpx without these
    attributes, each connection serves only one request, which is slower but safe.
    """
    inside: Any = response.stream
    for name in ("_httpcore_stream", "_stream", "_connection", "_h11_state"):
        inside = getattr(inside, name, None)
    if getattr(inside, "trailing_data", None) == (b"", False):
        return
    if inside is None:
        _warn_if_blind()
    connection = response.extensions["network_stream"]
    try:
        # After this shutdown, httpx treats the connection as closed by the service.
        with socket.socket(fileno=os.dup(connection.get_extra_info("socket").fileno())) as twin:
            twin.shutdown(socket.SHUT_RDWR)
    except OSError:
        await connection.aclose()


@functools.cache
def _warn_if_blind() -> None:
    log.warning(
        "this release of httpcore does not show whether a connection is in order after an answer: "
        "swr closes it each time, which is slower"
    )


def upstream_url(upstream: str) -> httpx.URL:
    """Return the URL of the service.

    Raises:
        ConfigurationError: `upstream` is not the URL of an HTTP service.
    """
    problem = 'give one such as "http://127.0.0.1:9000"'
    if not isinstance(upstream, str):
        raise ConfigurationError(f"upstream={upstream!r} is not a URL: {problem}")
    try:
        url = httpx.URL(upstream)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"upstream={upstream!r} is not a URL ({error}): {problem}") from None
    if url.userinfo:
        # The message does not show the URL, because it may contain a password.
        raise ConfigurationError("the upstream's URL holds a user or password, which is not passed on: leave it out")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 2**16:
        raise ConfigurationError(f"upstream={upstream!r} is not a valid http:// or https:// URL: {problem}")
    if "?" in upstream or "#" in upstream:
        raise ConfigurationError(f"upstream={upstream!r} has a query or a fragment: leave it out")
    return url

"""The connections to the service."""

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

# An idle connection is given up before servers usually do so, after 5 seconds: no request runs into a closing one.
_IDLE: Final = 4.0
# Bytes of a response that the system may hold. Without a bound they are megabytes for each client that does not take
# its answer, and an event loop takes all of them at once.
_RECEIVE_BUFFER: Final = [(socket.SOL_SOCKET, socket.SO_RCVBUF, 2**17)]
# They change nothing (RFC 9110 9.2.1), so they may be asked again, or given up.
_SAFE: Final = ("GET", "HEAD", "OPTIONS")


class Service:
    """The service and the connections to it, which open at the first use.

    Parameters:
        url: of the service.
        silence: seconds that the head of its answer may take after the request, and that it may be silent during its
            answer.
        patience: seconds that connecting may take, and that a request waits for one of the connections.
        max_connections: to the service.
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
        """Return the connections to the service.

        The transport and not a client: that one has a cookie jar, defaults for fields, redirects and `.netrc`.
        """
        if self._transport is None:
            # The system's certificates, or SSL_CERT_FILE.
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
        """The exchange needs no connection, or no more."""
        self._slots.release(exchange)

    async def aclose(self) -> None:
        """Close the connections; they open again at the next use."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def ask(
        self, exchange: Exchange, method: str, target: bytes, fields: Fields, body: RequestBody | None
    ) -> httpx.Response:
        """Send the request when a connection is free, and return the answer as far as its header.

        The exchange keeps the connection until `release`, which must be called in any case. A server may close an idle
        connection while a request is on its way to it. One that changes nothing is then asked again, on the next
        kept connection or at last on a new one (RFC 9110 9.2.2, RFC 9112 9.3.1).

        Raises:
            httpx.TransportError: there is no answer.
        """
        transport = self.open()
        await self._slots.take(exchange)
        connected = False

        async def trace(event: str, _: object) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.started"
            if event == "http11.receive_response_headers.started":
                # A service that sends interim answers, or its head byte by byte, is never silent.
                scope.deadline = anyio.current_time() + self._silence
                if method in _SAFE:
                    exchange.ask(scope)

        request = httpx.Request(
            method,
            self._url,
            headers=fields,
            # Given as a stream: then httpx adds no fields.
            stream=body or httpx.ByteStream(b""),
            extensions={"target": target, "timeout": self._timeout, "trace": trace},
        )
        with anyio.CancelScope() as scope:
            # A busy service may have closed all of them. After these comes a new one.
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
    """Close the connection of an answer that has ended, unless it is certain that nothing more came on it.

    The next request would be answered with the rest (RFC 9112 9.2, 11.2). httpx does not show what is left over. Where
    it cannot be found in its insides, each connection serves one request: slower, and safe.
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
        # httpx takes a connection that has ended for one that the service has closed.
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
    """Return the service's URL.

    Raises:
        ConfigurationError: it is not a URL of a service.
    """
    problem = 'give one such as "http://127.0.0.1:9000"'
    if not isinstance(upstream, str):
        raise ConfigurationError(f"upstream={upstream!r} is not a URL: {problem}")
    try:
        url = httpx.URL(upstream)
    except httpx.InvalidURL as error:
        raise ConfigurationError(f"upstream={upstream!r} is not a URL ({error}): {problem}") from None
    if url.userinfo:
        # Not shown: it holds a password.
        raise ConfigurationError("the upstream's URL holds a user or password, which is not passed on: leave it out")
    if url.scheme not in ("http", "https") or not url.host or not 0 < (url.port or 80) < 2**16:
        raise ConfigurationError(f"upstream={upstream!r} is not a URL of http:// or https://: {problem}")
    if "?" in upstream or "#" in upstream:
        raise ConfigurationError(f"upstream={upstream!r} has a query or a fragment: leave it out")
    return url

"""A reverse proxy as an ASGI app: every request goes to one upstream service, and its answer comes back as it is.

It caches nothing; `SWRMiddleware(Proxy("http://127.0.0.1:9000"), cache=cache)` does, and `caching_proxy` returns that.
"""

import logging
import re
import ssl
from collections.abc import AsyncIterator, Sequence
from email.utils import formatdate
from typing import Any, Final
from urllib.parse import quote

import anyio
from starlette.types import Message, Receive, Scope, Send

from swr.errors import ConfigurationError
from swr.http.request import path_of
from swr.policy import Duration, seconds
from swr.proxy.headers import (
    FieldRules,
    Fields,
    end_to_end,
    members,
    request_fields,
    response_fields,
    without,
)

try:
    import httpx
except ImportError as error:
    raise ImportError("swr.proxy needs httpx: pip install 'swr[proxy]'") from error

log = logging.getLogger("swr")

# An idle connection is given up before servers usually do so, after 5 seconds: no request runs into a closing one.
_IDLE: Final = 4.0
# What servers refuse to send in a field (RFC 9110 5.5).
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class _ClientGone(Exception):
    """The client left before its request was complete."""


class Proxy:
    """An ASGI app that passes HTTP requests on to a service, and its answers back, as a gateway does (RFC 9110 3.7).

    Parameters:
        upstream: the service, "http://127.0.0.1:9000"; a path, "http://127.0.0.1:9000/api", is put before every path.
        timeout: how long the service may be silent, before and amid its answer.
        connect_timeout: how long connecting may take, and how long a request waits for one of the connections.
        max_connections: to the service.
        preserve_host: the service sees the `Host` that the client sent; else its own.
        forwarded: tell the service who asks, by `Forwarded` (RFC 7239) and `X-Forwarded-For`, `-Proto` and `-Host`.
        trust_forwarded: keep what the client sent of these, and add to it: for what stands behind another proxy.
            Anybody can write them, so by default they are dropped, and `X-Real-IP` with them.
        pseudonym: what this proxy is called in `Via`.

    Paths, queries, fields and bodies go through byte for byte. It opens its connections at startup or at its first
    use, belongs to one event loop at a time, and closes at shutdown or by `aclose`.

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        upstream: str,
        *,
        timeout: Duration = 30,
        connect_timeout: Duration = 5,
        max_connections: int = 100,
        preserve_host: bool = True,
        forwarded: bool = True,
        trust_forwarded: bool = False,
        pseudonym: str = "swr",
    ) -> None:
        self._url = _upstream_url(upstream)
        self._base = self._url.raw_path.rstrip(b"/")
        silence, patience = seconds(timeout, "timeout"), seconds(connect_timeout, "connect_timeout")
        if silence <= 0 or patience <= 0:
            raise ConfigurationError(
                f"timeout={timeout!r} and connect_timeout={connect_timeout!r} must be more than 0 seconds"
            )
        if not isinstance(max_connections, int) or isinstance(max_connections, bool) or max_connections < 1:
            raise ConfigurationError(f"max_connections={max_connections!r} is not a number, 1 or more")
        if not isinstance(pseudonym, str) or not _TOKEN.fullmatch(pseudonym):
            raise ConfigurationError(f'pseudonym={pseudonym!r} stands in Via: one word, such as "swr"')
        self._timeout = {"connect": patience, "pool": patience, "read": silence, "write": silence}
        self._max_connections = max_connections
        self._rules = FieldRules(self._url.netloc, preserve_host, forwarded, trust_forwarded, pseudonym.encode())
        self._transport: httpx.AsyncHTTPTransport | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            await self._answer(scope, receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            # A WebSocket, which is not passed on: closed before it is accepted, it is answered with 403.
            await receive()
            await send({"type": "websocket.close"})

    async def aclose(self) -> None:
        """Close the connections; they open again at the next use."""
        transport, self._transport = self._transport, None
        if transport is not None:
            await transport.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            self._open()
            await send({"type": "lifespan.startup.complete"})
        await self.aclose()
        await send({"type": "lifespan.shutdown.complete"})

    def _open(self) -> httpx.AsyncHTTPTransport:
        """Return the connections to the service.

        The transport and not a client: that one has a cookie jar, defaults for fields, redirects and `.netrc`.
        """
        if self._transport is None:
            # The system's certificates, or SSL_CERT_FILE.
            verify = ssl.create_default_context() if self._url.scheme == "https" else False
            count = self._max_connections
            limits = httpx.Limits(max_connections=count, max_keepalive_connections=count, keepalive_expiry=_IDLE)
            self._transport = httpx.AsyncHTTPTransport(verify=verify, trust_env=False, limits=limits)
        return self._transport

    # -- one request ------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; if the client leaves, so do we."""
        body = _Body(receive)
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            group.start_soon(body.watch, group.cancel_scope)
            try:
                await self._exchange(scope, body, send)
            except _ClientGone:
                pass
            except Exception as error:
                # Raised here it would leave the group as an ExceptionGroup.
                failed = error
            group.cancel_scope.cancel()
        if failed is not None:
            raise failed

    async def _exchange(self, scope: Scope, body: "_Body", send: Send) -> None:
        """Pass a request on and its answer back, or answer it here."""
        method: str = scope["method"]
        target = self._target(scope)
        fields, named = end_to_end(scope["headers"])
        hops = _hops_left(fields) if method == "OPTIONS" else None
        refusal = _refusal(scope, target, hops)
        if refusal is not None:
            await _say(scope, send, *refusal)
            return
        assert target is not None
        if hops is not None:
            fields = [*without(fields, b"max-forwards"), (b"max-forwards", b"%d" % (hops - 1))]
        fields = request_fields(scope, fields, self._rules)
        has_body = await _frame(scope["headers"], fields, body)
        try:
            response = await self._ask(method, target, fields, body if has_body else None)
        except httpx.TransportError as error:
            status, text = _failure(error)
            log.warning("%s %r: %s (%r)", method, scope["path"], text, error)
            await _say(scope, send, status, text)
            return
        body.sent.set()
        await self._relay(scope, response, send, unshared=bool(named))

    async def _relay(self, scope: Scope, response: httpx.Response, send: Send, *, unshared: bool) -> None:
        """Send the service's answer to the client.

        Parameters:
            unshared: whether the service did not see all that the client sent.
        """
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        overrun = None
        try:
            received = response.headers.raw
            if not 200 <= response.status_code <= 599 or any(_CONTROL.search(value) for _, value in received):
                await _say(scope, send, 502, "The service's answer is not valid.")
                return
            version: bytes = response.extensions["http_version"]
            headers = response_fields(response.status_code, received, version, self._rules, unshared=unshared)
            if log.isEnabledFor(logging.DEBUG):
                status = response.status_code
                log.debug("%s %r: passed on; the service answered %d", scope["method"], scope["path"], status)
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in stream:
                await send({"type": "http.response.body", "body": chunk, "more_body": True})
            overrun = _overrun(stream)
            await send({"type": "http.response.body", "body": b""})
        except httpx.TimeoutException as error:
            # An exception makes the server break the connection, so the client never takes half an answer for a whole.
            raise TimeoutError(f"the service fell silent amid its answer to {scope['path']!r}") from error
        except httpx.TransportError as error:
            raise ConnectionError(f"the service broke off its answer to {scope['path']!r}") from error
        finally:
            await stream.aclose()
            if overrun is not None:
                await overrun.aclose()

    async def _ask(self, method: str, target: bytes, fields: Fields, body: "_Body | None") -> httpx.Response:
        """Send the request and return the answer as far as its header.

        A server may close an idle connection while a request is on its way to it. One that changes nothing is then
        asked once more (RFC 9110 9.2.2, RFC 9112 9.3.1).
        """
        connected = False

        async def trace(event: str, _: object) -> None:
            nonlocal connected
            connected = connected or event == "connection.connect_tcp.started"

        request = httpx.Request(
            method,
            self._url,
            headers=fields,
            # Given as a stream: then httpx adds no fields.
            stream=body or httpx.ByteStream(b""),
            extensions={"target": target, "timeout": self._timeout, "trace": trace},
        )
        try:
            return await self._open().handle_async_request(request)
        except (httpx.ReadError, httpx.RemoteProtocolError):
            if connected or body is not None or method not in ("GET", "HEAD", "OPTIONS"):
                raise
        return await self._open().handle_async_request(request)

    def _target(self, scope: Scope) -> bytes | None:
        """Return what stands in the request line: the client's bytes, after the service's own path.

        None: it is no path.
        """
        # What a path may hold (RFC 3986 3.3).
        path: bytes = scope.get("raw_path") or b""
        if not path or path_of(scope) != path:  # An outer middleware has changed it.
            path = quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
        if path == b"*" and scope["method"] == "OPTIONS":
            return path
        if not path.startswith(b"/"):
            return None
        query: bytes = scope["query_string"]
        return self._base + path + (b"?" + query if query else b"")


class _Body(httpx.AsyncByteStream):
    """The body of a request as it comes from the client, and a watch for the client's disconnect.

    Parameters:
        receive: of ASGI; it is asked from one place at a time.
    """

    def __init__(self, receive: Receive) -> None:
        self._receive = receive
        self._begun: Message | None = None
        # Set when the body needs no more reading.
        self.sent = anyio.Event()

    async def is_empty(self) -> bool:
        """Wait for the beginning of the body, and say whether that is all."""
        self._begun = await self._next()
        return not self._begun.get("body") and not self._begun.get("more_body", False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        more = True
        while more:
            message, self._begun = self._begun or await self._next(), None
            if message.get("body"):
                yield message["body"]
            more = message.get("more_body", False)
        self.sent.set()

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` when the client leaves after it has sent what it had to send."""
        await self.sent.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _next(self) -> Message:
        message = await self._receive()
        if message["type"] == "http.disconnect":
            raise _ClientGone
        return message


def _overrun(stream: Any) -> Any:
    """Return the connection of an answer if more came on it than the answer holds, else None.

    The next request would be answered with the rest (RFC 9112 9.2, 11.2). The connection cannot be seen from outside.
    """
    for name in ("_httpcore_stream", "_stream", "_connection"):
        stream = getattr(stream, name, None)
    state = getattr(stream, "_h11_state", None)
    return stream if state is not None and state.trailing_data[0] else None


def _hops_left(fields: Fields) -> int | None:
    """Return the number in `Max-Forwards` (RFC 9110 7.6.2); None if there is none that counts."""
    hops = next((value for name, value in fields if name == b"max-forwards"), b"")
    return int(hops) if hops.isdigit() and len(hops) < 10 else None


def _refusal(scope: Scope, target: bytes | None, hops: int | None) -> tuple[int, str] | None:
    """Return the status and the text of a request that the proxy answers itself; None for one that it passes on."""
    if scope["method"] in ("CONNECT", "TRACE"):
        return 501, f"{scope['method']} is not supported."
    if target is None:
        return 400, "The target of the request is not a path."
    if members(scope["headers"], b"transfer-encoding") - {b"chunked"}:
        # RFC 9112 6.1: a coding that was not taken off by the server would be lost.
        return 501, "A transfer coding other than chunked is not supported."
    return (200, "") if hops == 0 else None


async def _frame(headers: Sequence[tuple[bytes, bytes]], fields: Fields, body: _Body) -> bool:
    """Say whether the request has a body, and see to it that the fields say where it ends (RFC 9112 6)."""
    names = {name for name, _ in headers}
    if b"transfer-encoding" not in names:
        if b"content-length" in names:
            return True
        # In HTTP/1.1 that is none; in HTTP/2 and 3 nothing needs to be said.
        if await body.is_empty():
            body.sent.set()
            return False
    fields[:] = [*without(fields, b"content-length"), (b"transfer-encoding", b"chunked")]
    return True


# -- our own answers ------------------------------------------------------------------------------------------


def _failure(error: httpx.TransportError) -> tuple[int, str]:
    """Return the status and the text that tell a client what failed, and nothing of what is behind it."""
    if isinstance(error, httpx.PoolTimeout):
        return 504, "The service is busy: no connection to it became free in time."
    if isinstance(error, httpx.ConnectTimeout):
        return 504, "The service could not be reached in time."
    if isinstance(error, httpx.TimeoutException):
        return 504, "The service did not answer in time."
    if isinstance(error, httpx.ConnectError):
        return 502, "The service could not be reached."
    if isinstance(error, httpx.LocalProtocolError):
        return 400, "The request cannot be passed on."
    return 502, "The service gave no valid answer."


async def _say(scope: Scope, send: Send, status: int, text: str) -> None:
    """Answer with a line of text.

    Without `Cache-Control`: no cache stores a 502 or 504 of its own accord, and one in front of this proxy may give
    it to all who wait for the same answer, who would otherwise have to find out one by one.
    """
    if log.isEnabledFor(logging.DEBUG):
        log.debug("%s %r: answered %d here (%s)", scope["method"], scope["path"], status, text or "Max-Forwards is 0")
    content = f"{text}\n".encode() if text else b""
    headers = [
        (b"content-type", b"text/plain; charset=utf-8"),
        (b"content-length", b"%d" % len(content)),
        (b"date", formatdate(usegmt=True).encode()),
    ]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else content})


# -- construction ---------------------------------------------------------------------------------------------


def _upstream_url(upstream: str) -> httpx.URL:
    """Return the service's URL.

    Raises:
        ConfigurationError: it is no URL of a service.
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

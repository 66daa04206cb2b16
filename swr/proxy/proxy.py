"""A reverse proxy as an ASGI app: it passes every request on to one upstream service, and returns its answer unchanged.

The proxy caches nothing. `SWRMiddleware(Proxy("http://127.0.0.1:9000"), cache=cache)` caches, and `caching_proxy`
returns such an app.
"""

import contextlib
import logging
import re
import secrets
from typing import Final
from urllib.parse import quote

import anyio
import anyio.lowlevel
import httpx
from starlette.types import Receive, Scope, Send

from swr.errors import ConfigurationError
from swr.http.request import path_of
from swr.policy import Duration, seconds
from swr.proxy.answers import failure, hops_left, refusal, say
from swr.proxy.headers import FieldRules, end_to_end, request_fields, response_fields, without
from swr.proxy.request_body import ClientGone, RequestBody, frame
from swr.proxy.service import Service, close_if_overrun, upstream_url
from swr.proxy.slots import ClientTooSlow, Exchange
from swr.proxy.targets import misdirected, origin_form

log = logging.getLogger("swr")

# Control characters, which a field value must not contain (RFC 9110 5.5).
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Proxy:
    """An ASGI app that passes HTTP requests on to a service, and its answers back, as a gateway does (RFC 9110 3.7).

    Parameters:
        upstream: the service, "http://127.0.0.1:9000". A path in it, as in "http://127.0.0.1:9000/api", is put before
            the path of every request.
        timeout: how long the service may be silent, before and during its answer.
        connect_timeout: how long connecting may take, and how long a request waits for a free connection.
        max_connections: the most connections to the service. If all are taken, the proxy ends the exchange with a
            client that is a second or more behind. Or it gives up a GET, HEAD or OPTIONS whose answer takes longer than
            usual to begin.
        client_timeout: seconds that a client may fall behind while it sends a body or takes an answer. The proxy counts
            the time for which it waits for the client, minus the time for the client's bytes at 500 a second.
        preserve_host: whether the service sees the `Host` that the client sent. Otherwise it sees that of `upstream`.
        forwarded: whether to describe the client to the service, by `Forwarded` (RFC 7239) and `X-Forwarded-For`,
            `-Proto` and `-Host`.
        trust_forwarded: whether to keep these fields if the client sends them, and add to them. Set it behind another
            proxy. Any client can send them, so by default the proxy drops them, and `X-Real-IP`, too.
        pseudonym: the name of this proxy in `Via`.

    Paths, queries, fields and bodies pass through byte for byte. The proxy opens its connections at startup or at the
    first request. It belongs to one event loop at a time, and closes at shutdown or by `aclose`.

    Raises:
        ConfigurationError: an option cannot work.
    """

    def __init__(
        self,
        upstream: str,
        *,
        timeout: Duration = 30,
        connect_timeout: Duration = 5,
        max_connections: int = 100,
        client_timeout: Duration = 30,
        preserve_host: bool = True,
        forwarded: bool = True,
        trust_forwarded: bool = False,
        pseudonym: str = "swr",
    ) -> None:
        url = upstream_url(upstream)
        self._base = url.raw_path.rstrip(b"/")
        silence, patience = seconds(timeout, "timeout"), seconds(connect_timeout, "connect_timeout")
        if silence <= 0 or patience <= 0:
            raise ConfigurationError(
                f"timeout={timeout!r} and connect_timeout={connect_timeout!r} must be more than 0 seconds"
            )
        self._client_limit = seconds(client_timeout, "client_timeout")
        if self._client_limit <= 0:
            raise ConfigurationError(f"client_timeout={client_timeout!r} must be more than 0 seconds")
        if not isinstance(max_connections, int) or isinstance(max_connections, bool) or max_connections < 1:
            raise ConfigurationError(f"max_connections={max_connections!r}: give a number, 1 or more")
        if not isinstance(pseudonym, str) or not _TOKEN.fullmatch(pseudonym):
            raise ConfigurationError(f'pseudonym={pseudonym!r} goes into Via: give one word, such as "swr"')
        self._service = Service(url, silence, patience, max_connections)
        # Whether the lifespan has ended.
        self._is_over = False
        identity = secrets.token_hex(4).encode()
        self.rules = FieldRules(url.netloc, preserve_host, forwarded, trust_forwarded, pseudonym.encode(), identity)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle one ASGI connection: a request, the lifespan, or a WebSocket, which is refused."""
        if scope["type"] == "http":
            await self._answer(origin_form(scope), receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            # The proxy does not pass WebSockets on. The server answers 403 if the app closes one before accepting it.
            await receive()
            await send({"type": "websocket.close"})

    async def aclose(self) -> None:
        """Close the connections. The next request opens them again."""
        await self._service.aclose()

    async def _lifespan(self, receive: Receive, send: Send) -> None:
        while (await receive())["type"] == "lifespan.startup":
            self._is_over = False
            self._service.open()
            await send({"type": "lifespan.startup.complete"})
        self._is_over = True
        await self._close_if_over()
        await send({"type": "lifespan.shutdown.complete"})

    async def _close_if_over(self) -> None:
        """Close the connections after shutdown, if no request needs them: loads of a cache may still run then."""
        if self._is_over and not self._service.is_busy:
            with anyio.CancelScope(shield=True):
                await self.aclose()

    # -- one request ------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; if the client leaves, give up the exchange with the service."""
        exchange = Exchange(self._client_limit)
        body = RequestBody(receive, exchange)
        failed: Exception | None = None
        async with anyio.create_task_group() as group:
            exchange.begin(group.cancel_scope)
            group.start_soon(body.watch, group.cancel_scope)
            try:
                await self._exchange(scope, exchange, body, send)
            except ClientGone:
                pass
            except Exception as error:
                # If it were raised here, the task group would wrap it into an ExceptionGroup.
                failed = error
            finally:
                self._service.release(exchange)
                await self._close_if_over()
            group.cancel_scope.cancel()
        if exchange.has_given_way or isinstance(failed, ClientTooSlow):
            await self._let_go(scope, exchange, send)
        elif failed is not None:
            raise failed

    async def _let_go(self, scope: Scope, exchange: Exchange, send: Send) -> None:
        """End the exchange with a client that has kept the proxy waiting for too long."""
        if exchange.is_answered:
            raise TimeoutError(f"the client took too long to take the answer to {scope['path']!r}")
        # RFC 9110 15.5.9
        await say(scope, send, 408, "The request took too long to come.", is_last=True)

    async def _exchange(self, scope: Scope, exchange: Exchange, body: RequestBody, send: Send) -> None:
        """Pass a request on and its answer back, or answer it without the service."""
        method: str = scope["method"]
        target = self._target(scope)
        # Convert to plain bytes: swr may pass objects that note each read of a field by the app, and httpx reads all.
        fields, named = end_to_end([(bytes(name), bytes(value)) for name, value in scope["headers"]])
        hops = hops_left(fields) if method == "OPTIONS" else None
        refused = misdirected(scope, self.rules) or refusal(scope, target, hops)
        if refused is not None:
            await say(scope, send, *refused)
            return
        assert target is not None
        if hops is not None:
            fields = [*without(fields, b"max-forwards"), (b"max-forwards", b"%d" % (hops - 1))]
        fields = request_fields(scope, fields, self.rules)
        has_body = await frame(scope["headers"], fields, body)
        try:
            response = await self._service.ask(exchange, method, target, fields, body if has_body else None)
        except httpx.TransportError as error:
            self._service.release(exchange)
            status, text = failure(error)
            log.warning("%s %r: %s (%r)", method, scope["path"], text, error)
            await say(scope, send, status, text)
            return
        body.read.set()
        await self._relay(scope, exchange, response, send, unshared=bool(named))

    async def _relay(
        self, scope: Scope, exchange: Exchange, response: httpx.Response, send: Send, *, unshared: bool
    ) -> None:
        """Send the service's answer to the client.

        Parameters:
            unshared: see `response_fields`.
        """
        stream = response.stream
        assert isinstance(stream, httpx.AsyncByteStream)
        chunks = aiter(stream)
        try:
            received = response.headers.raw
            if not 200 <= response.status_code <= 599 or any(_CONTROL.search(value) for _, value in received):
                await say(scope, send, 502, "The service's answer is not valid.")
                return
            version: bytes = response.extensions["http_version"]
            headers = response_fields(response.status_code, received, version, self.rules, unshared=unshared)
            if log.isEnabledFor(logging.DEBUG):
                status = response.status_code
                log.debug("%s %r: passed on; the service answered %d", scope["method"], scope["path"], status)
            exchange.is_answered = True
            await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
            async for chunk in chunks:
                message = {"type": "http.response.body", "body": chunk, "more_body": True}
                await exchange.wait(send(message), len(chunk))
                # Thousands of short pieces may be ready at once. This lets other tasks run between them.
                await anyio.lowlevel.checkpoint()
            await close_if_overrun(response)
        except httpx.TimeoutException as error:
            # An exception makes the server break the connection, so that the client notices the incomplete answer.
            raise TimeoutError(f"the service fell silent during its answer to {scope['path']!r}") from error
        except httpx.TransportError as error:
            raise ConnectionError(f"the service broke off its answer to {scope['path']!r}") from error
        finally:
            await stream.aclose()
            self._service.release(exchange)
            # On trio, the iterators of httpx must be exhausted. On a closed connection they end at once.
            with contextlib.suppress(httpx.TransportError):
                async for _ in chunks:
                    pass
        await send({"type": "http.response.body", "body": b""})

    def _target(self, scope: Scope) -> bytes | None:
        """Return the target for the service's request line: the path of `upstream`, and the client's path and query.

        The client's bytes stay as they are. Return None if the target is not a path.
        """
        path: bytes = scope.get("raw_path") or b""
        if not path or path_of(scope) != path:  # An outer middleware has changed it.
            # RFC 3986 3.3 lists the characters that a path may contain.
            path = quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
        if path == b"*" and scope["method"] == "OPTIONS":
            return path
        if not path.startswith(b"/"):
            return None
        query: bytes = scope["query_string"]
        return self._base + path + (b"?" + query if query else b"")

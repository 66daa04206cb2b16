"""A reverse proxy as an ASGI app: every request goes to one upstream service, and its answer comes back as it is.

It caches nothing; `SWRMiddleware(Proxy("http://127.0.0.1:9000"), cache=cache)` does, and `caching_proxy` returns that.
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

# What servers refuse to send in a field (RFC 9110 5.5).
_CONTROL: Final = re.compile(rb"[\x00-\x08\x0a-\x1f\x7f]")
_TOKEN: Final = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")


class Proxy:
    """An ASGI app that passes HTTP requests on to a service, and its answers back, as a gateway does (RFC 9110 3.7).

    Parameters:
        upstream: the service, "http://127.0.0.1:9000"; a path, "http://127.0.0.1:9000/api", is put before every path.
        timeout: how long the service may be silent, before and during its answer.
        connect_timeout: how long connecting may take, and how long a request waits for one of the connections.
        max_connections: how many connections to the service. If all are taken, the proxy ends the exchange with a
            client that is a second or more behind. Or it ends a GET, HEAD or OPTIONS whose answer takes longer than
            usual to begin.
        client_timeout: seconds that a client may fall behind while it sends a body or takes an answer. That is how long
            the proxy has waited for it, less the time for its bytes at 500 a second.
        preserve_host: the service sees the `Host` that the client sent; else its own.
        forwarded: tell the service who asks, by `Forwarded` (RFC 7239) and `X-Forwarded-For`, `-Proto` and `-Host`.
        trust_forwarded: keep what the client sent of these, and add to it: for what is behind another proxy.
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
            raise ConfigurationError(f"max_connections={max_connections!r} is not a number, 1 or more")
        if not isinstance(pseudonym, str) or not _TOKEN.fullmatch(pseudonym):
            raise ConfigurationError(f'pseudonym={pseudonym!r} goes into Via: give one word, such as "swr"')
        self._service = Service(url, silence, patience, max_connections)
        # Whether the lifespan has ended.
        self._is_over = False
        identity = secrets.token_hex(4).encode()
        self.rules = FieldRules(url.netloc, preserve_host, forwarded, trust_forwarded, pseudonym.encode(), identity)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one connection."""
        if scope["type"] == "http":
            await self._answer(origin_form(scope), receive, send)
        elif scope["type"] == "lifespan":
            await self._lifespan(receive, send)
        else:
            # A WebSocket, which is not passed on: closed before it is accepted, it is answered with 403.
            await receive()
            await send({"type": "websocket.close"})

    async def aclose(self) -> None:
        """Close the connections; they open again at the next use."""
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
        """Close the connections after shutdown, when no request needs one: a cache in front drains after that."""
        if self._is_over and not self._service.is_busy:
            with anyio.CancelScope(shield=True):
                await self.aclose()

    # -- one request ------------------------------------------------------------------------------------------

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer a request; if the client leaves, so do we."""
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
                # Raised here it would leave the group as an ExceptionGroup.
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
        """Pass a request on and its answer back, or answer it here."""
        method: str = scope["method"]
        target = self._target(scope)
        # Plain ones: beside an app of FastAPI they note who looks, and a client of HTTP looks at all.
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
            unshared: whether the service did not see all that the client sent.
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
                # Thousands of short pieces may have come at once. The others take turns.
                await anyio.lowlevel.checkpoint()
            await close_if_overrun(response)
        except httpx.TimeoutException as error:
            # An exception makes the server break the connection, so the client never takes half an answer for a whole.
            raise TimeoutError(f"the service fell silent during its answer to {scope['path']!r}") from error
        except httpx.TransportError as error:
            raise ConnectionError(f"the service broke off its answer to {scope['path']!r}") from error
        finally:
            await stream.aclose()
            self._service.release(exchange)
            # On trio the iterators of httpx must come to their end, which is near on a closed connection.
            with contextlib.suppress(httpx.TransportError):
                async for _ in chunks:
                    pass
        await send({"type": "http.response.body", "body": b""})

    def _target(self, scope: Scope) -> bytes | None:
        """Return what is in the request line: the client's bytes, after the service's own path.

        None: it is not a path.
        """
        # Characters of a path (RFC 3986 3.3).
        path: bytes = scope.get("raw_path") or b""
        if not path or path_of(scope) != path:  # An outer middleware has changed it.
            path = quote(scope["path"], safe="/:@!$&'()*+,;=~").encode()
        if path == b"*" and scope["method"] == "OPTIONS":
            return path
        if not path.startswith(b"/"):
            return None
        query: bytes = scope["query_string"]
        return self._base + path + (b"?" + query if query else b"")

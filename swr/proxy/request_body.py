"""The body of a request, which goes to the service piece by piece as it comes from the client."""

from collections.abc import AsyncIterator
from typing import Final

import anyio
import httpx
from starlette.types import Message, Receive

from swr.http.fields import content_length
from swr.proxy.headers import Fields, without
from swr.proxy.slots import Exchange

# Bytes. A body with a Content-Length up to this is read completely before the service is asked.
_SMALL: Final = 2**16


class ClientGone(Exception):
    """The client left before its request was complete."""


class RequestBody(httpx.AsyncByteStream):
    """The body of a request as it comes from the client, with a watch for the client's disconnect.

    Parameters:
        receive: ASGI's `receive`. Only one task calls it at a time.
        exchange: measures the time for which the proxy waits for the client.
    """

    def __init__(self, receive: Receive, exchange: Exchange) -> None:
        self._receive = receive
        self._exchange = exchange
        self._begun: list[bytes] = []
        # Set when the body needs no more reading.
        self.read = anyio.Event()

    async def begin(self, *, whole: bool) -> bool:
        """Wait for the beginning of the body, and return whether the body has any bytes.

        Parameters:
            whole: whether to wait for the whole body.
        """
        while not self.read.is_set() and (whole or not self._begun):
            piece = await self._next()
            if piece:
                self._begun.append(piece)
        return bool(self._begun)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """Yield the body, piece by piece."""
        for piece in self._begun:
            yield piece
        while not self.read.is_set():
            piece = await self._next()
            if piece:
                yield piece

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` when the client leaves after its request is complete or no longer needed."""
        await self.read.wait()
        while (await self._receive())["type"] != "http.disconnect":
            pass
        scope.cancel()

    async def _next(self) -> bytes:
        message: Message = await self._exchange.wait(self._receive())
        if message["type"] == "http.disconnect":
            raise ClientGone
        piece: bytes = message.get("body", b"")
        self._exchange.credit(len(piece))
        if not message.get("more_body", False):
            self.read.set()
        return piece


async def frame(headers: Fields, fields: Fields, body: RequestBody) -> bool:
    """Return whether the request has a body, and make the fields say where the body ends (RFC 9112 6).

    This waits for the beginning of the body. So a client that announces a body and sends nothing takes no connection.

    Parameters:
        headers: the fields that the client sent.
        fields: the fields for the service, which this function changes.
        body: the body of the request.
    """
    names = {name for name, _ in headers}
    is_chunked = b"transfer-encoding" in names
    length = None if is_chunked else content_length(headers)
    has_body = await body.begin(whole=length is not None and length <= _SMALL)
    if not is_chunked:
        if b"content-length" in names:
            return True
        # In HTTP/1.1, a request without either field has no body. HTTP/2 and 3 need no such field for a body.
        if not has_body:
            return False
    fields[:] = [*without(fields, b"content-length"), (b"transfer-encoding", b"chunked")]
    return True

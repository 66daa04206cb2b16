"""The body of a request: it goes to the service as it comes from the client."""

from collections.abc import AsyncIterator
from typing import Final

import anyio
import httpx
from starlette.types import Message, Receive

from swr.http.fields import content_length
from swr.proxy.headers import Fields, without
from swr.proxy.slots import Exchange

# A body that is announced to have no more bytes is complete before the service is asked.
_SMALL: Final = 2**16


class ClientGone(Exception):
    """The client left before its request was complete."""


class RequestBody(httpx.AsyncByteStream):
    """The body of a request as it comes from the client, and a watch for the client's disconnect.

    Parameters:
        receive: of ASGI; it is asked from one place at a time.
        exchange: waits for the client.
    """

    def __init__(self, receive: Receive, exchange: Exchange) -> None:
        self._receive = receive
        self._exchange = exchange
        self._begun: list[bytes] = []
        # Set when the body needs no more reading.
        self.read = anyio.Event()

    async def begin(self, *, whole: bool) -> bool:
        """Wait for the beginning of the body, and return whether there is any.

        Parameters:
            whole: wait for all of it.
        """
        while not self.read.is_set() and (whole or not self._begun):
            piece = await self._next()
            if piece:
                self._begun.append(piece)
        return bool(self._begun)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body, piece by piece."""
        for piece in self._begun:
            yield piece
        while not self.read.is_set():
            piece = await self._next()
            if piece:
                yield piece

    async def watch(self, scope: anyio.CancelScope) -> None:
        """Cancel `scope` when the client leaves after it has sent what it had to send."""
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
    """Say whether the request has a body, and see to it that the fields say where it ends (RFC 9112 6).

    Waits for the beginning of the body, so that a client that announces one and sends nothing takes up no connection.
    """
    names = {name for name, _ in headers}
    is_chunked = b"transfer-encoding" in names
    length = None if is_chunked else content_length(headers)
    has_body = await body.begin(whole=length is not None and length <= _SMALL)
    if not is_chunked:
        if b"content-length" in names:
            return True
        # In HTTP/1.1 that is none; in HTTP/2 and 3 nothing needs to be said.
        if not has_body:
            return False
    fields[:] = [*without(fields, b"content-length"), (b"transfer-encoding", b"chunked")]
    return True

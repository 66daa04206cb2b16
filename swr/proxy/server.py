"""The client's connection under uvicorn, which is closed if the client keeps the server waiting for too long.

uvicorn limits only how long a connection may be idle between two requests. This protocol adds these limits:

| the client                                           | may take                                                  |
| ---------------------------------------------------- | --------------------------------------------------------- |
| has sent nothing, or only a part of a header section | `head_timeout`                                            |
| sends a body                                         | `client_timeout` more than its bytes take at 500 a second |
| goes on sending a body that was answered already     | `head_timeout`                                            |
| takes an answer, also one from the cache             | `client_timeout` more than its bytes take at 500 a second |

The time that the app takes does not count.
"""

import asyncio
import enum
import logging
import socket
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from swr.proxy.old_clients import AT_ONCE, UnchunkedSend
from swr.proxy.parser import RequestParser
from swr.proxy.slots import LEAST_RATE
from swr.proxy.targets import split_absolute, with_host

log = logging.getLogger("swr")

# The most bytes in the header section of a request, including its trailers.
MOST_HEAD_BYTES: Final = 2**16
# The most pipelined requests that wait on one connection for the answers to earlier requests.
_MOST_PIPELINED: Final = 64
_TOO_LARGE: Final = b"431 Request Header Fields Too Large"


class _Refused(Exception):
    """Raised in callbacks of the parser to refuse a request."""


class _Stage(enum.Enum):
    """The part of a request that the client is sending."""

    BETWEEN = "between requests"
    HEAD = "in the head"
    BODY = "in the body"


class _Wait(enum.Enum):
    """The action of the client that the server waits for."""

    NOTHING = "nothing"
    ASK = "send the head of a request"
    FINISH = "finish a body that was answered"
    SEND = "send the body"
    TAKE = "take the answer"


class _Progress:
    """The measure of how far a client is behind with the action that the server waits for.

    Parameters:
        now: seconds by the event loop's clock.
        most: the most seconds that count between two looks. More than that means that the server itself was blocked.
    """

    def __init__(self, now: float, most: float) -> None:
        self._most = most
        # The action that the server waited for at its last look, and the number of the request; then the seconds by
        # which the client is behind.
        self._waited: tuple[_Wait, int] = (_Wait.NOTHING, 0)
        self._behind = 0.0
        self._looked_at = now
        self._sent = self._buffered = self._drained = 0

    def drain(self, size: int) -> None:
        """Note how many of the buffered bytes the client has taken."""
        self._drained += size

    def look(self, now: float, waited: tuple[_Wait, int], sent: int, buffered: int) -> float:
        """Return the seconds by which the client is behind.

        Parameters:
            now: seconds by the event loop's clock.
            waited: the action that the server waits for, and the number of the request.
            sent: bytes of bodies that the client has sent so far.
            buffered: bytes that the client has not taken so far.
        """
        elapsed, self._looked_at = min(self._most, now - self._looked_at), now
        moved = max(0, self._drained + self._buffered - buffered) + sent - self._sent
        self._drained, self._buffered, self._sent = 0, buffered, sent
        if waited != self._waited or waited[0] is _Wait.NOTHING:
            self._waited, self._behind = waited, 0.0
        else:
            is_moving = waited[0] in (_Wait.SEND, _Wait.TAKE)
            self._behind = max(0.0, self._behind + elapsed - (moved / LEAST_RATE if is_moving else 0))
        return self._behind


class ClientProtocol(HttpToolsProtocol):
    """uvicorn's protocol for the connection of a client, with further limits.

    Attributes:
        head_timeout, client_timeout: seconds; see the table of this module. A subclass sets them.
    """

    head_timeout = 10.0
    client_timeout = 30.0

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.parser = RequestParser(self)  # type: ignore[assignment]  # it has the methods that uvicorn uses
        self._stage = _Stage.BETWEEN
        self._requests = 0
        # The status of the answer to a malformed or refused request.
        self._refusal = b"400 Bad Request"
        # The unanswered requests.
        self._cycles: list[RequestResponseCycle] = []
        # Bytes of the current header section: those of complete fields, and those that came in reads of the socket.
        # The third number is the bytes of all bodies.
        self._head_size = self._head_received = self._body_size = 0
        self._look_every = min(self.head_timeout, self.client_timeout) / 8

    # -- the connection ---------------------------------------------------------------------------------------

    # The parameter has the narrower type that uvicorn gives it.
    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]  # as uvicorn has it
        super().connection_made(transport)
        _, self._high_water = transport.get_write_buffer_limits()
        self._progress = _Progress(self.loop.time(), 2 * self._look_every)
        self._timer = self.loop.call_later(self._look_every, self._look)

    def connection_lost(self, exc: Exception | None) -> None:
        self._timer.cancel()
        self.parser.close()  # type: ignore[attr-defined]  # it is a RequestParser
        super().connection_lost(exc)
        # uvicorn tells only the last request about the disconnect. Earlier pipelined requests would wait forever.
        for cycle in self._cycles:
            cycle.disconnected = True
            cycle.message_event.set()

    def data_received(self, data: bytes) -> None:
        requests = self._requests
        super().data_received(data)
        if self._stage is _Stage.HEAD and requests == self._requests:
            # The parser reports only complete fields. A client may send a field that never ends.
            self._head_received += len(data)
            if self._head_received > MOST_HEAD_BYTES:
                self._refuse(_TOO_LARGE)

    def resume_writing(self) -> None:
        # The write buffer was full, and is now nearly empty.
        self._progress.drain(self._high_water)
        super().resume_writing()

    # -- the parser's callbacks -------------------------------------------------------------------------------

    def on_message_begin(self) -> None:
        self._stage = _Stage.HEAD
        self._requests += 1
        self._head_size = self._head_received = 0
        super().on_message_begin()

    def on_url(self, url: bytes) -> None:
        self._count(len(url))
        super().on_url(url)

    def on_header(self, name: bytes, value: bytes) -> None:
        self._count(len(name) + len(value))
        if self._stage is _Stage.HEAD:
            # uvicorn would add trailers to the header section (RFC 9110 6.5.1), so they are skipped. httptools leaves
            # tabs at the end of a value.
            super().on_header(name, value.rstrip(b" \t"))

    def on_headers_complete(self) -> None:
        self._stage = _Stage.BODY
        if len(self.pipeline) >= _MOST_PIPELINED:
            raise _Refused
        self._read_line()
        is_old = self.parser.get_http_version() == "1.0"
        if is_old:
            self.expect_100_continue = False  # RFC 9110 10.1.1
        super().on_headers_complete()
        if is_old:
            self.cycle.send = UnchunkedSend(self.cycle)  # type: ignore[method-assign]  # uvicorn reads the attribute
        self._cycles = [cycle for cycle in (*self._cycles, self.cycle) if not cycle.response_complete]

    def _read_line(self) -> None:
        """Refuse request lines that uvicorn would misinterpret, and take the host from an absolute target."""
        version = self.parser.get_http_version()
        if version not in ("1.0", "1.1"):
            # The parser also accepts 0.9, which has no fields, and 2.0, which has no request line.
            self._refusal = b"505 HTTP Version Not Supported"
            raise _Refused
        if self.parser.get_method() == b"CONNECT":
            self._refusal = b"501 Not Implemented"
            raise _Refused
        absolute = split_absolute(self.url)
        if absolute is not None:
            # uvicorn takes only the path of such a target, and ignores its host.
            host, self.url = absolute
            self.headers[:] = with_host(self.headers, host, version)
        elif not self.url.startswith(b"/") and self.url != b"*":
            raise _Refused

    def on_body(self, body: bytes) -> None:
        self._body_size += len(body)
        super().on_body(body)

    def on_message_complete(self) -> None:
        self._stage = _Stage.BETWEEN
        super().on_message_complete()

    def _count(self, size: int) -> None:
        self._head_size += size
        if self._head_size > MOST_HEAD_BYTES:
            self._refusal = _TOO_LARGE
            raise _Refused

    def send_400_response(self, msg: str) -> None:
        """Answer a request that is malformed or refused. uvicorn calls this."""
        self._refuse(self._refusal)

    # -- the clock --------------------------------------------------------------------------------------------

    def _look(self) -> None:
        """Close the connection if the client is too far behind."""
        self._timer = self.loop.call_later(self._look_every, self._look)
        waited, buffered = self._awaited(), self.transport.get_write_buffer_size()
        behind = self._progress.look(self.loop.time(), (waited, self._requests), self._body_size, buffered)
        is_moving = waited in (_Wait.SEND, _Wait.TAKE)
        if behind >= (self.client_timeout if is_moving else self._head_limit()):
            self._let_go(waited)

    def _awaited(self) -> _Wait:
        is_answering = self.cycle is not None and not self.cycle.response_complete
        if self.transport.get_write_buffer_size():
            return _Wait.TAKE
        if self._stage is _Stage.BODY:
            if not is_answering:
                return _Wait.FINISH
            # uvicorn pauses reading while the app does not take the body that has come so far.
            return _Wait.SEND if self.transport.is_reading() else _Wait.NOTHING
        return _Wait.NOTHING if is_answering else _Wait.ASK

    def _head_limit(self) -> float:
        # Between two requests, uvicorn's own time-out must come first.
        return max(self.head_timeout, self.timeout_keep_alive if self._stage is _Stage.BETWEEN else 0)

    def _let_go(self, wait: _Wait) -> None:
        log.debug("closed the connection of a client that was too slow to %s", wait.value)
        if wait is _Wait.ASK and self._stage is _Stage.HEAD:
            # RFC 9110 15.5.9
            self._refuse(b"408 Request Timeout")
            return
        if wait is _Wait.TAKE:
            # Otherwise the kernel would try for minutes to send the bytes that it has buffered.
            self.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, AT_ONCE)
        self.transport.abort()

    def _refuse(self, status: bytes) -> None:
        """Close the connection after an error answer, or without one if another answer is under way."""
        if self.cycle is not None and not self.cycle.response_complete:
            self.transport.abort()
        elif not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 %b\r\ncontent-length: 0\r\nconnection: close\r\n\r\n" % status)
            self.transport.close()

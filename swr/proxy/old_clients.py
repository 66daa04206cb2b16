"""Answers to clients that speak HTTP/1.0.

These clients do not know chunked coding (RFC 9112 6.1). An answer without a length ends with the connection. By
default, uvicorn sends such an answer in chunks. The client would take the chunk sizes for a part of the body.
"""

import contextlib
import socket
import struct
import sys
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_LINGER: Final = "hh" if sys.platform == "win32" else "ii"
# SO_LINGER with 0 seconds: closing the socket resets the connection.
AT_ONCE: Final = struct.pack(_LINGER, 1, 0)
_AS_USUAL: Final = struct.pack(_LINGER, 0, 0)


class UnchunkedSend:
    """The `send` of one answer, without chunked coding.

    If the connection is closed before the answer is complete, it is reset. Otherwise the client would take half an
    answer for a whole one.

    Parameters:
        cycle: uvicorn's state of the request.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._has_length = True

    async def __call__(self, message: Any) -> None:
        """Send a message of the app."""
        if message["type"] == "http.response.start":
            self._has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            # On a closed transport, uvloop still returns the socket's number, which another connection may have by now.
            if not self._has_length and not self._cycle.transport.is_closing():
                self._cycle.chunked_encoding = False
                self._linger(AT_ONCE)
        elif message["type"] == "http.response.body" and not self._has_length:
            # uvicorn subtracts each part from the expected length, and fails if a part is longer.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
        if self._cycle.response_complete and not self._has_length:
            self._linger(_AS_USUAL)

    def _linger(self, how: bytes) -> None:
        # The socket may be closed already.
        with contextlib.suppress(OSError):
            self._cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)

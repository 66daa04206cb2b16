"""Answers to clients that speak HTTP/1.0.

They know no chunks (RFC 9112 6.1). If an answer does not say its length, the end of the connection ends it. By itself
uvicorn sends such an answer in chunks. The client would take these for a part of the body.
"""

import contextlib
import socket
import struct
import sys
from typing import Any, Final

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

_LINGER: Final = "hh" if sys.platform == "win32" else "ii"
# Linger, for 0 seconds: the connection is reset.
AT_ONCE: Final = struct.pack(_LINGER, 1, 0)
_AS_USUAL: Final = struct.pack(_LINGER, 0, 0)


class UnchunkedSend:
    """Sends one answer, without chunks.

    Until the answer is complete, the connection ends with a reset: half an answer is not to look like a whole one.

    Parameters:
        cycle: what uvicorn knows of the request.
    """

    def __init__(self, cycle: RequestResponseCycle) -> None:
        self._cycle = cycle
        self._send = cycle.send
        self._has_length = True

    async def __call__(self, message: Any) -> None:
        """Send a message of the app."""
        if message["type"] == "http.response.start":
            self._has_length = any(name.lower() == b"content-length" for name, _ in message.get("headers", ()))
            # uvloop gives the number of a socket that it has closed, and another connection may have that by now.
            if not self._has_length and not self._cycle.transport.is_closing():
                self._cycle.chunked_encoding = False
                self._linger(AT_ONCE)
        elif message["type"] == "http.response.body" and not self._has_length:
            # uvicorn compares each part with what is left of the length.
            self._cycle.expected_content_length = len(message.get("body", b""))
        await self._send(message)
        if self._cycle.response_complete and not self._has_length:
            self._linger(_AS_USUAL)

    def _linger(self, how: bytes) -> None:
        # The client may leave at any time.
        with contextlib.suppress(OSError):
            self._cycle.transport.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, how)

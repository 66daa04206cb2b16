"""Encoding of task arguments and of error texts in Redis, with the codec of the cache (encryption, for example)."""

import base64
from typing import Any, Final

import msgspec

from swr.core.packing import Packing

# First character of an encoded error text. The Lua scripts write some error texts themselves, unencoded.
_SEALED: Final = "\0"


class Sealing:
    """The encoding of arguments and error texts in one queue. Without a codec, both stay as they are.

    Parameters:
        packing: applies the codec of the cache.
        queue: the name of the queue.
    """

    def __init__(self, packing: Packing, queue: str) -> None:
        self._packing = packing
        self._queue = queue

    def _place(self, key: str) -> bytes:
        return f"{self._queue}\n{key}".encode("utf-8", "surrogatepass")

    def sealed(self, key: str, args: bytes) -> bytes:
        """Return the encoded form of arguments, which are a JSON list: `[=`, base64, `]`.

        Raises:
            StoreUnavailable: the codec failed.
        """
        if self._packing.codec is None:
            return args
        return b"[=%b]" % base64.b64encode(self._packing.encoded(args, b"task", self._place(key)))

    def arguments(self, key: str, text: bytes) -> list[Any]:
        """Return the arguments of a task, decoded.

        Raises:
            CodecError, ValueError, msgspec.DecodeError: the arguments cannot be decoded.
        """
        if self._packing.codec is not None:
            sealed = base64.b64decode(text[2:-1], validate=True)
            text = self._packing.decoded(sealed, b"task", self._place(key))
        return msgspec.json.decode(text, type=list[Any])

    def sealed_text(self, key: str, why: str) -> bytes:
        """Return the encoded form of an error text.

        Raises:
            StoreUnavailable: the codec failed.
        """
        text = why[:1000].encode("utf-8", "replace")
        if self._packing.codec is None or not text:
            return text
        return _SEALED.encode() + base64.b64encode(self._packing.encoded(text, b"why", self._place(key)))

    def text(self, key: str, stored: str) -> str:
        """Return an error text from Redis, decoded.

        Raises:
            CodecError, ValueError: the text cannot be decoded.
        """
        if self._packing.codec is None or not stored.startswith(_SEALED):
            return stored
        return self._packing.decoded(base64.b64decode(stored[1:]), b"why", self._place(key)).decode()

"""The arguments of tasks, and the errors of dead letters, as they are in Redis."""

import base64
from typing import Any, Final

import msgspec

from swr.core.packing import Packing

# The beginning of a sealed error. The server writes some errors itself, in clear.
_SEALED: Final = "\0"


class Sealing:
    """Arguments and errors of the tasks of one queue, as the codec of the cache encodes them.

    Parameters:
        packing: of the cache.
        queue: its name.
    """

    def __init__(self, packing: Packing, queue: str) -> None:
        self._packing = packing
        self._queue = queue

    def _place(self, key: str) -> bytes:
        return f"{self._queue}\n{key}".encode("utf-8", "surrogatepass")

    def sealed(self, key: str, args: bytes) -> bytes:
        """Return arguments, which are a JSON list, in brackets that hold no JSON.

        Raises:
            StoreUnavailable: the codec has failed.
        """
        if self._packing.codec is None:
            return args
        return b"[=%b]" % base64.b64encode(self._packing.encoded(args, b"task", self._place(key)))

    def arguments(self, key: str, text: bytes) -> list[Any]:
        """Return the arguments of a task.

        Raises:
            CodecError, ValueError, msgspec.DecodeError: they cannot be read.
        """
        if self._packing.codec is not None:
            sealed = base64.b64decode(text[2:-1], validate=True)
            text = self._packing.decoded(sealed, b"task", self._place(key))
        return msgspec.json.decode(text, type=list[Any])

    def sealed_text(self, key: str, why: str) -> bytes:
        """Return why a task has failed, as it is in Redis.

        Raises:
            StoreUnavailable: the codec has failed.
        """
        text = why[:1000].encode("utf-8", "replace")
        if self._packing.codec is None or not text:
            return text
        return _SEALED.encode() + base64.b64encode(self._packing.encoded(text, b"why", self._place(key)))

    def text(self, key: str, stored: str) -> str:
        """Return why a task has failed.

        Raises:
            CodecError, ValueError: it cannot be read.
        """
        if self._packing.codec is None or not stored.startswith(_SEALED):
            return stored
        return self._packing.decoded(base64.b64decode(stored[1:]), b"why", self._place(key)).decode()

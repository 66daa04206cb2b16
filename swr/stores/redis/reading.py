"""Readings: what coroutines read in one turn of the event loop, shared by the readers of one key."""

import asyncio
from collections.abc import Callable
from typing import Any

from swr.core import codec as frames
from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import CodecError
from swr.stores.redis.connection import settle
from swr.stores.redis.scripts import number


class Reading:
    """One key that is read, everyone who waits for it, and the entry that the answer held.

    Each reader waits on a future of its own, so that one reader's cancellation does not reach the others.

    Attributes:
        frame: what is stored, or None.
        newest: the newest tag version, if it was read with this key.
        codec, entry: which entry was decoded from the frame, with which codec.
    """

    __slots__ = ("_readings", "codec", "entry", "frame", "key", "newest", "waiting")

    frame: bytes | None
    newest: int | None
    entry: Entry[Any] | None

    def __init__(self, readings: "dict[str, Reading]", key: str, first: asyncio.Future[None]) -> None:
        self.key = key
        self.waiting = [first]
        self.codec: Codec | None = None
        self._readings = readings

    def settle(self, frame: bytes | None, newest: int | None) -> None:
        """Take the answer, and wake the readers."""
        self.frame, self.newest = frame, newest
        if self._readings.get(self.key) is self:
            del self._readings[self.key]
        for future in self.waiting:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Tell the readers that there is no answer."""
        if self._readings.get(self.key) is self:
            del self._readings[self.key]
        for future in self.waiting:
            settle(future, error)


def settle_all(readings: list[Reading], reply: Any) -> None:
    """Give each reading its part of one reply, and the newest tag version, which comes last."""
    if isinstance(reply, Exception):
        for reading in readings:
            reading.fail(reply)
    else:
        newest = number(reply[-1])
        for reading, frame in zip(readings, reply, strict=False):
            reading.settle(frame, newest)


def settle_one(reading: Reading, reply: Any) -> None:
    """Give a reading a reply of its own."""
    if isinstance(reply, Exception):
        reading.fail(reply)
    else:
        reading.settle(reply[0], None)


def decode(key: str, frame: bytes | None, codec: Codec, warn_once: Callable[[str, str], None]) -> Entry[Any] | None:
    """Return the entry in a frame; None for no frame, a tombstone, or, with one warning, an undecodable frame."""
    if not frame:
        return None
    try:
        return frames.decode(key, frame, codec)
    except CodecError as error:
        if not frames.is_tombstone(frame):
            why = f"was passed over: {error}" if frames.is_entry(frame) else "is not swr's and was passed over"
            warn_once(f"frame {key}", f"the entry of {key!r} in Redis {why}")
        return None

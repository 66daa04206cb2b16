"""Readings: what coroutines read in one turn of the event loop, shared by the readers of one key."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any, Final

from swr.core import frames
from swr.core.codec import Codec
from swr.core.packing import Packing, Unreadable
from swr.entry import Entry, marked_stale
from swr.errors import CodecError
from swr.stores.redis.connection import settle
from swr.stores.threads import in_thread

# Frames of more bytes are made and decoded in a thread: some milliseconds at least.
LARGE: Final = 200_000


class Reading:
    """One key that is read, everyone who waits for it, and the entry that the answer held.

    Each reader waits on a future of its own, so that one reader's cancellation does not reach the others.

    Parameters:
        readings: those under way, by key.
        key: which is read.
        name: where its entry is.
        first: the future of the first reader.

    Attributes:
        frame: what is stored, or None.
        newest: what the key of the newest tag version holds, if it was read with this key.
        codec, entry: which entry was decoded from the frame, with which codec.
    """

    __slots__ = ("_lock", "_readings", "codec", "entry", "frame", "key", "name", "newest", "waiting")

    frame: bytes | None
    newest: bytes | None
    entry: Entry[Any] | None

    def __init__(self, readings: "dict[str, Reading]", key: str, name: bytes, first: asyncio.Future[None]) -> None:
        self.key = key
        self.name = name
        self.waiting = [first]
        self.codec: Codec | None = None
        self._readings = readings
        self._lock: asyncio.Lock | None = None

    def decoded(
        self, codec: Codec, packing: Packing, warn_once: Callable[[str, str], None]
    ) -> Entry[Any] | Awaitable[Entry[Any] | None] | None:
        """Return the entry of a codec's type, or await the thread that decodes a large one for all readers."""
        if self.codec is codec:
            return self.entry
        data = self.frame
        frame = frames.frame_of(data, codec.fingerprint) if data else None
        if frame is not None and frames.weight(frame) > LARGE:
            return self._decode_in_thread(frame, codec, packing, warn_once)
        self.codec, self.entry = codec, decode(self.key, data, frame, codec, packing, warn_once)
        return self.entry

    async def _decode_in_thread(
        self, frame: bytes | None, codec: Codec, packing: Packing, warn_once: Callable[[str, str], None]
    ) -> Entry[Any] | None:
        if self._lock is None:
            self._lock = asyncio.Lock()
        async with self._lock:
            if self.codec is not codec:
                self.entry = await in_thread(decode, self.key, self.frame, frame, codec, packing, warn_once)
                self.codec = codec
            return self.entry

    def settle(self, frame: bytes | None, newest: bytes | None) -> None:
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
    """Give each reading its part of one reply, and what the key of the newest tag version holds, which comes last."""
    if isinstance(reply, Exception):
        for reading in readings:
            reading.fail(reply)
    else:
        newest = reply[-1] or b""
        for reading, frame in zip(readings, reply, strict=False):
            reading.settle(frame, newest)


def settle_one(reading: Reading, reply: Any) -> None:
    """Give a reading a reply of its own."""
    if isinstance(reply, Exception):
        reading.fail(reply)
    else:
        reading.settle(reply[0], None)


async def decode_soon(
    key: str, data: bytes, codec: Codec, packing: Packing, warn_once: Callable[[str, str], None]
) -> Entry[Any] | None:
    """Return what `decode` returns, from a thread if that takes long."""
    frame = frames.frame_of(data, codec.fingerprint) if data else None
    if frame is not None and frames.weight(frame) > LARGE:
        return await in_thread(decode, key, data, frame, codec, packing, warn_once)
    return decode(key, data, frame, codec, packing, warn_once)


def decode(
    key: str,
    data: bytes | None,
    frame: bytes | None,
    codec: Codec,
    packing: Packing,
    warn_once: Callable[[str, str], None],
) -> Entry[Any] | None:
    """Return the entry in a frame.

    None means nothing, a tombstone, entries of other types alone, or, with one warning, what cannot be decoded.

    Parameters:
        data: what is stored for the key.
        frame: the one of the codec's type in it.
    """
    if not frame:
        return None
    try:
        entry = frames.decode(key, frame, codec, packing)
    except Unreadable as error:
        warn_once(
            f"packing {error.about}",
            f"the entry of {key!r} in Redis was passed over: {error} (logged once, though others may be like it)",
        )
        return None
    except CodecError as error:
        if not frames.is_tombstone(frame):
            why = f"was passed over: {error}" if frames.is_entry(frame) else "is not swr's and was passed over"
            warn_once(f"frame {key}", f"the entry of {key!r} in Redis {why}")
        return None
    # Most entries are alone under their key, without a mark.
    mark = frames.mark_in(data) if data and len(data) > len(frame) else 0
    return marked_stale(entry, mark) if mark > entry.version else entry

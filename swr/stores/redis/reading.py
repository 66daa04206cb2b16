"""Readings: each reads one key for all coroutines that ask for it at the same time."""

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

# In bytes. A thread packs and decodes larger frames, because that takes some milliseconds at least.
LARGE: Final = 200_000


class Reading:
    """One read of a key, with the readers that wait for it and the entry in the answer.

    Each reader waits on a future of its own, so that one reader's cancellation does not reach the others.

    Parameters:
        readings: the readings under way, by key.
        key: the key that is read.
        name: the Redis key of its entry.
        first: the future of the first reader.

    Attributes:
        frame: the stored data, or None.
        newest: the text of the newest tag version's key, if it was read in the same command.
        codec, entry: the codec that last decoded the data, and the entry that it returned.
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
        """Return the entry of a codec's type, or an awaitable of it while a thread decodes it for all readers."""
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
    """Give each reading its part of one reply, and the last part: the text of the newest tag version's key."""
    if isinstance(reply, Exception):
        for reading in readings:
            reading.fail(reply)
    else:
        newest = reply[-1] or b""
        for reading, frame in zip(readings, reply, strict=False):
            reading.settle(frame, newest)


def settle_one(reading: Reading, reply: Any) -> None:
    """Give a reading the reply to its own command."""
    if isinstance(reply, Exception):
        reading.fail(reply)
    else:
        reading.settle(reply[0], None)


async def decode_soon(
    key: str, data: bytes, codec: Codec, packing: Packing, warn_once: Callable[[str, str], None]
) -> Entry[Any] | None:
    """Return what `decode` returns; a thread decodes a large frame."""
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

    Return None for no data, a tombstone, or entries of other types only. If the data cannot be decoded, log one
    warning and return None.

    Parameters:
        data: the data that are stored for the key.
        frame: the frame of the codec's type in the data.
    """
    if not frame:
        return None
    try:
        entry = frames.decode(key, frame, codec, packing)
    except Unreadable as error:
        warn_once(
            f"packing {error.about}",
            f"the entry of {key!r} in Redis was passed over: {error} (logged once; it may concern other entries, too)",
        )
        return None
    except CodecError as error:
        if not frames.is_tombstone(frame):
            why = f"was passed over: {error}" if frames.is_entry(frame) else "is not swr's and was passed over"
            warn_once(f"frame {key}", f"the entry of {key!r} in Redis {why}")
        return None
    # Most data are a single frame without a mark: then there is nothing to search.
    mark = frames.mark_in(data) if data and len(data) > len(frame) else 0
    return marked_stale(entry, mark) if mark > entry.version else entry

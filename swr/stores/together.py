"""What is asked of Redis in one turn of the event loop, and leaves together: values to read, leases to take."""

import asyncio
from typing import Any, NamedTuple

from swr.codec import Codec
from swr.entry import Entry
from swr.stores.wire import settle


class Claim(NamedTuple):
    """A lease that is asked for."""

    key: str
    token: str
    ttl: int
    known: int
    force: bool

    @property
    def arguments(self) -> tuple[str | int, ...]:
        return self.token, self.ttl, self.known, "1" if self.force else "0"


class Claims:
    """The leases that are asked for in one turn of the event loop, and the answer to all."""

    sent: "asyncio.Future[tuple[bytes, dict[Claim, list[Any]]]]"

    def __init__(self) -> None:
        self.made: list[Claim] = []


class Reading:
    """One key that is asked for, everyone who waits for it, and what was made of the answer.

    Each waits on a future of his own, so that one reader's cancellation does not reach the others.
    """

    __slots__ = ("_readings", "_waiting", "codec", "entry", "key")

    def __init__(self, readings: "dict[str, Reading]", key: str) -> None:
        self.key = key
        self._readings = readings
        self._waiting: list[asyncio.Future[Any]] = []
        self.codec: Codec | None = None
        self.entry: Entry[Any] | None = None

    def reply(self) -> asyncio.Future[Any]:
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        return future

    def settle(self, reply: Any) -> None:
        if self._readings.get(self.key) is self:
            del self._readings[self.key]
        for future in self._waiting:
            settle(future, reply)


def share(readings: list[Reading], reply: Any) -> None:
    """Give each reading its part of one reply, and the newest barrier, which is the last."""
    if isinstance(reply, Exception):
        for reading in readings:
            reading.settle(reply)
    else:
        head = reply[-1]
        for reading, frame in zip(readings, reply, strict=False):
            reading.settle((frame, head))


def give(reading: Reading, reply: Any) -> None:
    """Give a reading a reply of its own."""
    reading.settle(reply if isinstance(reply, Exception) else (reply[0], None))

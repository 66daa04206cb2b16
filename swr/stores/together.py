"""What is asked of Redis in one turn of the event loop, and leaves together: to read, to take leases, to commit."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, NamedTuple, TypeVar

from swr.codec import VERSION_DIGITS, Codec
from swr.entry import Entry
from swr.stores.base import Lease
from swr.stores.wire import settle

Asked = TypeVar("Asked")


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


class Commit(NamedTuple):
    """An entry that is to be stored under a lease."""

    lease: Lease
    frame: bytes
    ttl: int
    message: bytes

    @property
    def arguments(self) -> tuple[bytes | str | int, ...]:
        return self.lease.token, digits(self.lease.version), self.frame, self.ttl, self.message


class Together(Generic[Asked]):
    """What coroutines ask for in one turn of the event loop, sent in few commands.

    Whoever is cancelled before that has not asked.

    Parameters:
        send: sends one command for all that it is given, and settles their futures with what is answered.
        most: how much leaves in one command.
    """

    def __init__(self, send: Callable[[list[Asked], list[asyncio.Future[Any]]], None], most: int) -> None:
        self._send = send
        self._most = most
        self._asked: list[tuple[Asked, int, asyncio.Future[Any]]] = []

    def ask(self, asked: Asked, weight: int = 1) -> asyncio.Future[Any]:
        """Ask; the future holds the answer, or the exception that it came to."""
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._leave)
        future: asyncio.Future[Any] = loop.create_future()
        self._asked.append((asked, weight, future))
        return future

    def _leave(self) -> None:
        waiting, self._asked = self._asked, []
        some: list[Asked] = []
        futures: list[asyncio.Future[Any]] = []
        total = 0
        for asked, weight, future in waiting:
            if future.done():
                continue
            if some and total + weight > self._most:
                self._send(some, futures)
                some, futures, total = [], [], 0
            some.append(asked)
            futures.append(future)
            total += weight
        if some:
            self._send(some, futures)


def settle_each(futures: list[asyncio.Future[Any]], reply: Any) -> None:
    """Give each its answer of one reply."""
    answers = [reply] * len(futures) if isinstance(reply, Exception) else reply
    for future, answer in zip(futures, answers, strict=True):
        settle(future, answer)


class Reading:
    """One key that is asked for, everyone who waits for it, and what was made of the answer.

    Each waits on a future of his own, so that one reader's cancellation does not reach the others.

    Attributes:
        frame: what is stored, or None.
        newest: the newest barrier, if it was asked for with this key.
        codec, entry: what made which entry of the frame.
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
        """Take the answer, and wake whoever waits for it."""
        self.frame, self.newest = frame, newest
        if self._readings.get(self.key) is self:
            del self._readings[self.key]
        for future in self.waiting:
            if not future.done():
                future.set_result(None)

    def fail(self, error: Exception) -> None:
        """Tell whoever waits that there is no answer."""
        if self._readings.get(self.key) is self:
            del self._readings[self.key]
        for future in self.waiting:
            settle(future, error)


def share(readings: list[Reading], reply: Any) -> None:
    """Give each reading its part of one reply, and the newest barrier, which is the last."""
    if isinstance(reply, Exception):
        for reading in readings:
            reading.fail(reply)
    else:
        newest = number(reply[-1])
        for reading, frame in zip(readings, reply, strict=False):
            reading.settle(frame, newest)


def give(reading: Reading, reply: Any) -> None:
    """Give a reading a reply of its own."""
    if isinstance(reply, Exception):
        reading.fail(reply)
    else:
        reading.settle(reply[0], None)


def digits(version: int) -> str:
    """Return a version as scripts write it."""
    return f"{version:016d}"


def number(digits: bytes | None) -> int:
    """Return a barrier's number; what is none counts as lost."""
    return int(digits) if digits and digits.isdigit() and len(digits) <= VERSION_DIGITS else 0


def messages_in(data: bytes) -> list[bytes] | None:
    """Return the message, or the several that were sent as one: "m", and each behind its length in eight digits.

    None: it is neither.
    """
    if data[:1] != b"m":
        return [data]
    messages, first = [], 1
    while first < len(data):
        length = data[first : first + 8]
        if not length.isdigit():
            return None
        first += 8 + int(length)
        messages.append(data[first - int(length) : first])
    return messages

"""One connection to Redis on which the commands of many coroutines are pipelined.

A coroutine that asks is not the one that reads: whoever is cancelled while waiting leaves the connection in
order, and commands issued in the same turn of the event loop leave in one write.
"""

import asyncio
import functools
import math
from collections import deque
from collections.abc import Callable
from typing import Any, Final

import anyio
from redis.asyncio.connection import AbstractConnection
from redis.exceptions import RedisError, ResponseError

from swr.errors import StoreUnavailable

_TICKS: Final = 5


class Closed(StoreUnavailable):
    """The connection was closed on this side: the cache is closing, or its event loop ends."""


def settle(future: "asyncio.Future[Any]", reply: Any) -> None:
    """Give a reply to whoever waits for it, unless he has left."""
    if future.done():
        return
    if isinstance(reply, Exception):
        future.set_exception(reply)
    else:
        future.set_result(reply)


def packed(command: tuple[bytes | str | int, ...]) -> bytes:
    """Return a command as it goes over the wire, an array of bulk strings; redis-py takes ten times as long for it."""
    words = [
        word if isinstance(word, bytes) else word.encode() if isinstance(word, str) else b"%d" % word
        for word in command
    ]
    return b"*%d\r\n%b" % (len(words), b"".join([b"$%d\r\n%b\r\n" % (len(word), word) for word in words]))


class Wire:
    """Commands in, replies out, in order.

    Parameters:
        connection: connected, and used by nobody else.
        timeout: seconds without any reply after which the server counts as hung.

    Attributes:
        sent: how many commands so far.
    """

    def __init__(self, connection: AbstractConnection, timeout: float) -> None:
        self.sent = 0
        self._connection = connection
        self._tick_for = timeout / _TICKS
        self._pending: deque[Callable[[Any], None]] = deque()
        self._outbox: list[bytes] = []
        self._filled = asyncio.Event()
        self._ticking = False
        self._answered = 0
        self._ended = asyncio.Event()
        self._reason = ""
        self.broken: StoreUnavailable | None = None

    def send(self, command: tuple[bytes | str | int, ...], on_reply: Callable[[Any], None]) -> None:
        """Send a command; `on_reply` is called with its reply, or with the exception that it came to."""
        if self.broken is not None:
            on_reply(StoreUnavailable(str(self.broken)))
            return
        self._outbox.append(packed(command))
        self._pending.append(on_reply)
        self.sent += 1
        self._filled.set()
        if not self._ticking:
            self._ticking = True
            self._tick(self._answered, 0)

    def ask(self, *command: bytes | str | int) -> asyncio.Future[Any]:
        """Send a command; the future holds its reply, or the exception that it came to."""
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self.send(command, functools.partial(settle, future))
        return future

    def _tick(self, answered: int, stuck: int) -> None:
        """Count turns of a timer without a reply: after a pause of this process itself, replies come first."""
        if not self._pending or self.broken is not None:
            self._ticking = False
            return
        stuck = stuck + 1 if answered == self._answered else 0
        if stuck > _TICKS:
            self.abandon(f"Redis has not answered for {self._tick_for * _TICKS:g} s")
            return
        asyncio.get_running_loop().call_later(self._tick_for, self._tick, self._answered, stuck)

    async def run(self) -> None:
        """Carry commands and replies until the connection breaks; then every waiting coroutine is told.

        Raises:
            StoreUnavailable: why it broke.
        """
        try:
            # Not asyncio's group and not its time-outs around redis-py: they cancel once, which `asyncio.wait_for` in
            # redis-py may swallow (before Python 3.12, python/cpython#86296), and then wait forever.
            async with anyio.create_task_group() as group:
                group.start_soon(self._write)
                group.start_soon(self._read)
                group.start_soon(self._watch)
        except* (RedisError, OSError, StoreUnavailable) as errors:
            self._break(StoreUnavailable(str(errors.exceptions[0])))
        finally:
            self._break(Closed("the connection to Redis was closed"))
        raise StoreUnavailable(str(self.broken))

    def _break(self, error: StoreUnavailable) -> None:
        if self.broken is None:
            self.broken = error
        while self._pending:
            self._pending.popleft()(type(self.broken)(str(self.broken)))

    async def _write(self) -> None:
        while True:
            await self._filled.wait()
            self._filled.clear()
            outbox, self._outbox = self._outbox, []
            await self._connection.send_packed_command(outbox, check_health=False)

    async def _read(self) -> None:
        read, pending = self._connection.read_response, self._pending
        while True:
            try:
                reply = await read(disable_decoding=True, timeout=math.inf, disconnect_on_error=False)
            except ResponseError as error:
                reply = error
            self._answered += 1
            pending.popleft()(reply)

    def abandon(self, reason: str) -> None:
        """End the connection, for a reason."""
        self._reason = reason
        self._ended.set()

    async def _watch(self) -> None:
        await self._ended.wait()
        raise StoreUnavailable(self._reason)

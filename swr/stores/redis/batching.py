"""Batching: the requests that coroutines make in one turn of the event loop share few commands."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from swr.stores.redis.connection import settle

Asked = TypeVar("Asked")


class Room:
    """A limit on the bytes that are on their way to a server, which may take them more slowly than swr makes them.

    Parameters:
        most: the limit, in bytes. A request waits only until there is any room, so the last one may exceed the limit.

    Attributes:
        turn: a lock; its holder may wait for room and take it.
    """

    def __init__(self, most: int) -> None:
        self.turn = asyncio.Lock()
        self._most = most
        self._taken = 0
        self._freed = asyncio.Event()

    async def wait(self) -> None:
        """Wait until there is room."""
        while self._taken >= self._most:
            self._freed.clear()
            await self._freed.wait()

    def take(self, size: int) -> None:
        """Take room for some bytes."""
        self._taken += size

    def give_back(self, size: int) -> None:
        """Give back the room of bytes that have arrived, or never will."""
        self._taken -= size
        self._freed.set()


class Batcher(Generic[Asked]):
    """Collects the requests of one turn of the event loop, and sends them in few commands.

    A request that is cancelled before that is not sent.

    Parameters:
        send: sends one command for several requests, and settles their futures with the answers.
        most: the most weight of one command; one request may weigh more.
    """

    def __init__(self, send: Callable[[list[Asked], list[asyncio.Future[Any]]], None], most: int) -> None:
        self._send = send
        self._most = most
        # Requests with their weights and futures, by place.
        self._asked: dict[int, list[tuple[Asked, int, asyncio.Future[Any]]]] = {}

    def ask(self, asked: Asked, place: int, weight: int = 1) -> asyncio.Future[Any]:
        """Return a future that will hold the answer, or the exception that was raised instead.

        Parameters:
            place: only requests for one place can share a command; see `Servers.place_of`.
            weight: how much the request adds to its command.
        """
        loop = asyncio.get_running_loop()
        if not self._asked:
            loop.call_soon(self._send_all)
        future: asyncio.Future[Any] = loop.create_future()
        self._asked.setdefault(place, []).append((asked, weight, future))
        return future

    def _send_all(self) -> None:
        asked, self._asked = self._asked, {}
        for waiting in asked.values():
            self._send_some(waiting)

    def _send_some(self, waiting: list[tuple[Asked, int, asyncio.Future[Any]]]) -> None:
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
    """Give each future its part of one reply, or the exception that replaces the reply."""
    answers = [reply] * len(futures) if isinstance(reply, Exception) else reply
    for future, answer in zip(futures, answers, strict=True):
        settle(future, answer)

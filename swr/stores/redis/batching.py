"""Batching: what coroutines ask for in one turn of the event loop leaves in few commands."""

import asyncio
from collections.abc import Callable
from typing import Any, Generic, TypeVar

from swr.stores.redis.connection import settle

Asked = TypeVar("Asked")


class Room:
    """Bounds what is on its way to a server, which may take the bytes more slowly than they are made.

    Parameters:
        most: bytes. Something larger waits until there is any room, and then goes, too.

    Attributes:
        turn: its holder may wait for room, and take what it needs.
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
        """Give it back: the bytes have arrived, or never will."""
        self._taken -= size
        self._freed.set()


class Batcher(Generic[Asked]):
    """Collects what coroutines ask for in one turn of the event loop, and sends it in few commands.

    A command that is cancelled before that is not sent.

    Parameters:
        send: sends one command for everything that it gets, and settles the futures with the answers.
        most: the most weight of one command.
    """

    def __init__(self, send: Callable[[list[Asked], list[asyncio.Future[Any]]], None], most: int) -> None:
        self._send = send
        self._most = most
        # By place.
        self._asked: dict[int, list[tuple[Asked, int, asyncio.Future[Any]]]] = {}

    def ask(self, asked: Asked, place: int, weight: int = 1) -> asyncio.Future[Any]:
        """Return a future that will hold the answer, or the exception that was raised instead.

        Parameters:
            place: only what is asked of one place can be in one command; see `Servers.place_of`.
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
    """Give each its answer of one reply."""
    answers = [reply] * len(futures) if isinstance(reply, Exception) else reply
    for future, answer in zip(futures, answers, strict=True):
        settle(future, answer)

"""A TCP proxy between a client and a server, on the loopback, that can cut, delay, black-hole and lose replies."""

import asyncio
import contextlib
from types import TracebackType
from typing import Self


class Proxy:
    """Forwards to a port.

    Attributes:
        lose: what a command must contain for its reply, and all after it, to vanish; the command gets through. Once.
        hang: nothing is forwarded any more, in either direction; connections are accepted.
        delay: seconds by which replies are late, those on subscriptions apart.
        hang_subscriptions: the same for connections that have subscribed.
        refuse: connections are closed as soon as they come.
        connections: how many were accepted.
    """

    def __init__(self, port: int) -> None:
        self._target = port
        self.lose: bytes | None = None
        self.hang = False
        self.hang_subscriptions = False
        self.refuse = False
        self.delay = 0.0
        self.connections = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port = self._server.sockets[0].getsockname()[1]
        self.url = f"redis://127.0.0.1:{self.port}/0"
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._server.close()
        self.cut()
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def cut(self) -> None:
        """Close every connection."""
        for writer in self._writers:
            writer.close()
        self._writers.clear()

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        if self.refuse:
            writer.close()
            return
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        self._writers |= {writer, their_writer}
        lost, subscribed = asyncio.Event(), asyncio.Event()
        for source, sink, commands in ((reader, their_writer, True), (their_reader, writer, False)):
            task = asyncio.create_task(self._pump(source, sink, commands, lost, subscribed))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _pump(
        self,
        source: asyncio.StreamReader,
        sink: asyncio.StreamWriter,
        commands: bool,
        lost: asyncio.Event,
        subscribed: asyncio.Event,
    ) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if commands and b"SUBSCRIBE" in data:
                    subscribed.set()
                if commands and self.lose is not None and self.lose in data:
                    self.lose = None
                    lost.set()
                if not commands and self.delay and not subscribed.is_set():
                    await asyncio.sleep(self.delay)
                while self.hang or (self.hang_subscriptions and subscribed.is_set()):
                    await asyncio.sleep(0.005)
                if not commands and lost.is_set():
                    continue
                sink.write(data)
                await sink.drain()
        sink.close()

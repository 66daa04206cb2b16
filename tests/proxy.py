"""A TCP proxy between a client and a server, on the loopback, that can cut, delay, black-hole and lose replies."""

import asyncio
import contextlib
import json
import re
import socket
import ssl
import sys
from asyncio.subprocess import PIPE
from types import TracebackType
from typing import Final, Self

# A message that a server pushes to a subscriber.
_MESSAGE: Final = re.compile(rb"[*>]3\r\n\$7\r\nmessage\r\n\$\d+\r\n[^\r]*\r\n\$\d+\r\n[^\r]*\r\n")


class Proxy:
    """A proxy that forwards to a port.

    Parameters:
        port: the port of the server.
        tls: TLS for the connections of clients, or None; connections to the server have none.
        rate: bytes per second that reach the server on each connection, as on a slow line; None: no limit.

    Attributes:
        lose: bytes of a command. The next command that contains them reaches the server, but its reply and all later
            replies on its connection vanish.
        hang: whether nothing is forwarded any more, in either direction; connections are still accepted.
        delay: seconds by which replies are late, except on subscriptions.
        holds_replies: whether replies are held back, except on subscriptions.
        latency: seconds that all data takes in each direction, as on a long line; connecting takes a round trip.
        swallow: whether messages on subscriptions vanish; replies to commands there pass.
        swallowed: how many messages have vanished.
        hang_subscriptions: like `hang`, but only for connections that have subscribed.
        refuse: whether connections are closed as soon as they are accepted.
        connections: how many were accepted.
        commands: how many were counted since `arm`.
        struck: whether the fault of `arm` has struck.
    """

    def __init__(self, port: int, tls: ssl.SSLContext | None = None, rate: float | None = None) -> None:
        self._target = port
        self._tls = tls
        self._rate = rate
        self.lose: bytes | None = None
        self.hang = False
        self.hang_subscriptions = False
        self.swallow = False
        self.swallowed = 0
        self.refuse = False
        self.delay = 0.0
        self.holds_replies = False
        self.latency = 0.0
        self.connections = 0
        self.commands = 0
        self.struck = False
        self._fault = ""
        self._strikes_at = 0
        self._writers: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> Self:
        listening = socket.create_server(("127.0.0.1", 0))
        if self._rate:
            # The client counts bytes that the kernel accepts as sent. With a small buffer it accepts few of them.
            listening.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 65536)
        self._server = await asyncio.start_server(self._accept, sock=listening, ssl=self._tls)
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

    def arm(self, fault: str, number: int) -> None:
        """Let one fault strike at a command.

        Parameters:
            fault: "unsent": the connection breaks before the command reaches the server. "unanswered": it breaks after
                that, before the reply. "silent": the command reaches the server, but nothing more is forwarded on any
                connection until `hang` is False. "swallowed": the same, but the command does not reach the server.
                "late": the reply takes a second.
            number: the number of the command, counted on all connections from now on, from 1.
        """
        self._fault, self._strikes_at = fault, number
        self.commands, self.struck = 0, False

    def heal(self) -> None:
        """End the fault, or keep it from striking."""
        self._fault, self.hang = "", False

    async def _strike(self, writer: asyncio.StreamWriter, command: bytes) -> None:
        """Apply the fault of `arm` to a command and its connection."""
        self.struck = True
        if self._fault in ("unanswered", "silent", "late"):
            writer.write(command)
            await writer.drain()
        if self._fault == "late":
            self.delay = 1.0
            asyncio.get_running_loop().call_later(1.0, setattr, self, "delay", 0.0)
        elif self._fault in ("silent", "swallowed"):
            self.hang = True
        else:
            self.cut()

    def tell(self, *, hang: bool = False, refuse: bool = False, delay: float = 0.0, latency: float = 0.0) -> None:
        """Apply these faults from now on, and no others; `refuse` also closes the open connections."""
        self.hang, self.refuse, self.delay, self.latency = hang, refuse, delay, latency
        if refuse:
            self.cut()

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
        self._writers.add(writer)
        # Connecting takes a round trip.
        await asyncio.sleep(2 * self.latency)
        try:
            their_reader, their_writer = await asyncio.open_connection("127.0.0.1", self._target)
        except OSError:
            writer.close()
            return
        if writer not in self._writers:
            # The connection was cut meanwhile.
            their_writer.close()
            return
        self._writers.add(their_writer)
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
        buffer, has_lost = b"", False
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if commands and b"SUBSCRIBE" in data:
                    subscribed.set()
                if commands and self.lose is not None and self.lose in data:
                    self.lose = None
                    lost.set()
                if not commands and self.delay and not subscribed.is_set():
                    await asyncio.sleep(self.delay)
                if commands and self._fault and not self.struck:
                    buffer += data
                    data = b""
                    while not self.struck and (end := _end_of_command(buffer)):
                        command, buffer = buffer[:end], buffer[end:]
                        self.commands += 1
                        if self.commands == self._strikes_at:
                            if self._fault in ("silent", "swallowed", "late"):
                                # Earlier commands of the packet get through first; a broken connection loses them.
                                sink.write(data)
                                data = b""
                            has_lost = self._fault == "swallowed"
                            await self._strike(sink, command)
                        else:
                            data += command
                    if self.struck:
                        data, buffer = data + buffer, b""
                while (
                    self.hang
                    or (self.hang_subscriptions and subscribed.is_set())
                    or (self.holds_replies and not commands and not subscribed.is_set())
                ):
                    await asyncio.sleep(0.005)
                if has_lost:
                    # Nothing may follow a lost command on its connection: each reply would be for another command.
                    break
                if not commands and lost.is_set():
                    continue
                if self.swallow and not commands and subscribed.is_set():
                    data, vanished = _MESSAGE.subn(b"", data)
                    self.swallowed += vanished
                if self.latency:
                    asyncio.get_running_loop().call_later(self.latency, sink.write, data)
                    continue
                if commands and self._rate:
                    await asyncio.sleep(len(data) / self._rate)
                # After a second `close` of a TLS transport, `write` would fail (Python 3.11).
                if sink.is_closing():
                    break
                sink.write(data)
                await sink.drain()
        # Close after the data that is still on its way.
        asyncio.get_running_loop().call_later(self.latency, sink.close)


class ProxyElsewhere:
    """A proxy in a process of its own, so that it does not use the event loop of a test.

    Parameters:
        port: the port of the server.
    """

    def __init__(self, port: int) -> None:
        self._target = port

    async def __aenter__(self) -> Self:
        command = [sys.executable, "-m", "tests.proxy", str(self._target)]
        self._process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE)
        self.url = await self._heard()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        await self._process.wait()

    async def tell(self, **what: bool | float) -> None:
        """Apply faults, as `Proxy.tell` does; they apply when this returns."""
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(what).encode() + b"\n")
        await self._heard()

    async def _heard(self) -> str:
        assert self._process.stdout is not None
        said = await self._process.stdout.readline()
        if not said:
            raise RuntimeError(f"the proxy has ended with {await self._process.wait()}")
        return said.decode().strip()


async def _obey(port: int) -> None:
    """Run a proxy to `port`, print its URL, and apply the faults that each line of input says, until input ends."""
    loop = asyncio.get_running_loop()
    told = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(told), sys.stdin)
    async with Proxy(port) as proxy:
        print(proxy.url, flush=True)
        while line := await told.readline():
            proxy.tell(**json.loads(line))
            print("done", flush=True)


def _end_of_command(data: bytes) -> int:
    """Return the end of the first command (RESP: an array of bulk strings); 0 if the command is incomplete."""
    at = data.find(b"\r\n") + 2
    if at < 2:
        return 0
    for _ in range(int(data[1 : at - 2])):
        begins = data.find(b"\r\n", at) + 2
        if begins < 2:
            return 0
        at = begins + int(data[at + 1 : begins - 2]) + 2
    return at if at <= len(data) else 0


if __name__ == "__main__":
    asyncio.run(_obey(int(sys.argv[1])))

"""`swr proxy` among clients that mean harm: what the others notice of them, and what is left when they have gone.

    scripts/bench hostile [--quick] [--alone SECONDS] [--among SECONDS]

50 good clients ask for what is stored, for what is not, and send short bodies, one request after the other with pauses;
alone, then among hostile ones for five minutes, then alone again, all over the loopback. More than 500 hostile clients
hold a connection each for as long as they may, and come back as soon as they are let go. They

- say nothing, or send the head of a request, a short body or a long one byte by byte;
- read nothing of a long answer, or read an endless one, or send a body without an end.

More than 100 others come and go. They

- leave before the answer or amid it, with one request or several on the way;
- send what is not a request, or a head without an end.

Together they hold fewer of the service's connections than `--max-connections` (100) allows. Where you have to expect
more, raise that, or limit the connections of each address in front of the proxy.

The proxy, the service, the good clients and the hostile ones have a process each. The hostile ones give way to the
others where the cores do not suffice: they represent clients with machines of their own. How late the good clients'
own event loop runs says how much of their times is not the proxy's.
"""

import argparse
import asyncio
import contextlib
import gc
import json
import os
import random
import runpy
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NamedTuple

from benchmarks.measure import percentile, print_machine, run_with_loop, table, verdict
from benchmarks.processes import Worker

_MB = 2**20
_PIECE = b"x" * 2**16
# What is stored is bounded too, so that it does not look like memory that is lost.
_SLOW = ("--head-timeout", "10s", "--client-timeout", "20s", "--l1-max-bytes", str(4 * _MB))


class Setting(NamedTuple):
    """How long each part takes (seconds), how many clients there are, and the options of the proxy.

    Parameters:
        alone, among: how long the good clients ask without the hostile ones, and with them.
        good: how many good clients.
        hostile: connections that hostile clients hold at one time, at least.
        options: of the proxy.
    """

    alone: float
    among: float
    good: int
    hostile: int
    options: tuple[str, ...]


FULL = Setting(60.0, 300.0, 50, 500, _SLOW)
QUICK = Setting(1.0, 2.0, 5, 26, _SLOW)


# -- the service ----------------------------------------------------------------------------------------------


async def _serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Answer requests by their paths."""
    try:
        while head := await reader.readuntil(b"\r\n\r\n"):
            method, path = head.split(b" ", 2)[:2]
            fields = head.lower()
            if b"\r\ntransfer-encoding:" in fields:
                while size := int(await reader.readline(), 16):
                    await reader.readexactly(size + 2)
                await reader.readline()
            elif b"\r\ncontent-length: " in fields:
                await reader.readexactly(int(fields.partition(b"\r\ncontent-length: ")[2].partition(b"\r\n")[0]))
            await asyncio.sleep(0.005)
            if path == b"/endless":
                writer.write(b"HTTP/1.1 200 OK\r\nCache-Control: no-store\r\nTransfer-Encoding: chunked\r\n\r\n")
                while not writer.is_closing():
                    writer.write(b"3e8\r\n%b\r\n" % (b"x" * 1000))
                    await writer.drain()
                    await asyncio.sleep(0.5)
            size, control = (8 * _MB, b"no-store") if path == b"/long" else (2000, b"max-age=600")
            control = b"no-store" if method == b"POST" else control
            writer.write(b"HTTP/1.1 200 OK\r\nCache-Control: %b\r\nContent-Length: %d\r\n\r\n" % (control, size))
            for at in range(0, size, len(_PIECE)):
                writer.write(_PIECE[: size - at])
                await writer.drain()
    except (OSError, RuntimeError, ValueError, asyncio.IncompleteReadError):
        # uvloop raises RuntimeError where a connection is closed.
        pass
    finally:
        writer.close()


async def _service() -> None:
    server = await asyncio.start_server(_serve, "127.0.0.1", 0, limit=2**18)
    print(server.sockets[0].getsockname()[1], flush=True)
    await asyncio.get_running_loop().run_in_executor(None, sys.stdin.read)
    os._exit(0)


# -- the proxy ------------------------------------------------------------------------------------------------


def _proxy(arguments: list[str]) -> None:
    """Run `swr proxy`, and say on demand what the process holds."""

    def tell() -> None:
        for _ in sys.stdin:
            gc.collect()
            tasks = sum(isinstance(thing, asyncio.Task) and not thing.done() for thing in gc.get_objects())
            with open("/proc/self/statm") as statm:
                resident = int(statm.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
            sockets = 0
            for number in os.listdir("/proc/self/fd"):
                with contextlib.suppress(OSError):
                    sockets += os.readlink(f"/proc/self/fd/{number}").startswith("socket:")
            held = {"tasks": tasks, "resident": resident, "sockets": sockets, "seconds": time.process_time()}
            print(json.dumps(held), flush=True)
        os._exit(0)

    threading.Thread(target=tell, daemon=True).start()
    sys.argv = ["swr", "proxy", *arguments]
    runpy.run_module("swr", run_name="__main__")


class Held(NamedTuple):
    """What the proxy's process holds: tasks, bytes of memory, sockets; and how many seconds it has run for."""

    tasks: int
    resident: int
    sockets: int
    seconds: float = 0.0


def _held(proxy: Worker) -> Held:
    proxy.tell("what")
    return Held(**json.loads(proxy.answer()))


# -- the clients ----------------------------------------------------------------------------------------------

Streams = tuple[asyncio.StreamReader, asyncio.StreamWriter]


async def _dripping(streams: Streams, piece: bytes, every: float) -> None:
    reader, writer = streams
    while not writer.is_closing() and not reader.at_eof():
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(every)


async def _until_closed(streams: Streams) -> None:
    while await streams[0].read(2**16):
        pass


async def silent(streams: Streams) -> None:
    """Say nothing."""
    await _until_closed(streams)


async def slow_head(streams: Streams) -> None:
    """Send a head byte by byte."""
    streams[1].write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
    await _dripping(streams, b"x", 0.5)


async def slow_body(streams: Streams) -> None:
    """Send a body byte by byte that is short enough to be waited for."""
    streams[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 50000\r\n\r\n")
    await _dripping(streams, b"x", 0.5)


async def slow_long_body(streams: Streams) -> None:
    """Send a body byte by byte that goes through as it comes."""
    streams[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _dripping(streams, b"1\r\nx\r\n", 0.5)


async def reading_nothing(streams: Streams) -> None:
    """Ask for something long and read none of it."""
    streams[1].write(b"GET /long HTTP/1.1\r\nHost: x\r\n\r\n")
    while not streams[1].is_closing() and not streams[0].at_eof():
        await asyncio.sleep(1.0)
        streams[1].write(b"\r\n")


async def endless_answer(streams: Streams) -> None:
    """Read what has no end."""
    streams[1].write(b"GET /endless HTTP/1.1\r\nHost: x\r\n\r\n")
    await _until_closed(streams)


async def endless_body(streams: Streams) -> None:
    """Send what has no end."""
    streams[1].write(b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n")
    await _dripping(streams, b"3e8\r\n%b\r\n" % (b"x" * 1000), 0.5)


async def leaving(streams: Streams) -> None:
    """Ask, several times perhaps, and leave before the answer or amid it."""
    path = random.choice([b"/endless", b"/stored/1", b"/new/%d" % random.randrange(10**9)])
    streams[1].write(b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path * random.choice([1, 1, 3]))
    await asyncio.sleep(random.choice([0.0, 0.003, 0.02]))


async def malformed(streams: Streams) -> None:
    """Send what is not a request."""
    streams[1].write(
        random.choice(
            [random.randbytes(200), b"GET\r\n\r\n", b"GET / HTTP/1.1\r\nHost: a b\r\n\r\n", b"POST /\r\n\r\n"]
        )
    )
    await _until_closed(streams)


async def huge_head(streams: Streams) -> None:
    """Send a head without an end."""
    streams[1].write(b"GET / HTTP/1.1\r\nHost: x\r\nX: ")
    await _dripping(streams, b"x" * 30_000, 0.05)


Kind = Callable[[Streams], Awaitable[None]]
# Who holds a connection, and how many of 500; some are about to come back at any time.
HOLDING: dict[Kind, int] = {
    silent: 220,
    slow_head: 150,
    slow_body: 150,
    slow_long_body: 10,
    reading_nothing: 20,
    endless_answer: 15,
    endless_body: 15,
}
# Who comes and goes, and how many for 500 of the others.
PASSING: dict[Kind, int] = {leaving: 40, malformed: 40, huge_head: 40}


class Attack:
    """All hostile clients.

    Parameters:
        port: of the proxy.
        number: of connections that they are to hold at one time.

    Attributes:
        open: how many connections they hold now; those count that hold them, not those that come and go.
        all_hold: set when they have held `number` of them for the first time.
    """

    def __init__(self, port: int, number: int) -> None:
        self._port = port
        self._number = number
        self.open = 0
        self.all_hold = asyncio.Event()

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """Run them."""
        clients = [
            asyncio.create_task(self._be(kind, pause))
            for kinds, pause in ((HOLDING, 0.0), (PASSING, 2.0))
            for kind, count in kinds.items()
            for _ in range(max(1, round(count * self._number / 500)))
        ]
        try:
            yield
        finally:
            for client in clients:
                client.cancel()
            await asyncio.gather(*clients, return_exceptions=True)

    async def _be(self, kind: Kind, pause: float) -> None:
        """Be a hostile client of this kind, again and again.

        Parameters:
            pause: seconds before it comes back, at most.
        """
        await asyncio.sleep(random.random() * 2)
        while True:
            with contextlib.suppress(OSError):
                await self._connect(kind)
            await asyncio.sleep(0.2 + random.random() * pause)

    async def _connect(self, kind: Kind) -> None:
        """Hold one connection."""
        buffer = socket.socket()
        if kind is reading_nothing:
            buffer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        buffer.setblocking(False)
        try:
            await asyncio.get_running_loop().sock_connect(buffer, ("127.0.0.1", self._port))
        except OSError:
            buffer.close()
            raise
        streams = await asyncio.open_connection(sock=buffer, limit=1024 if kind is reading_nothing else 2**16)
        self.open += kind in HOLDING
        if self.open >= self._number:
            self.all_hold.set()
        try:
            await kind(streams)
        finally:
            self.open -= kind in HOLDING
            streams[1].transport.abort()


async def _attack(port: int, number: int) -> None:
    """Run all hostile clients until standard input ends. At each line, say how many connections they have held."""
    with contextlib.suppress(OSError):
        os.nice(10)
    attack = Attack(port, number)
    held: list[int] = []

    async def count() -> None:
        while True:
            held.append(attack.open)
            await asyncio.sleep(0.1)

    async with attack.running():
        # On a slow machine they may never do so; what is printed says it.
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(attack.all_hold.wait(), 20.0)
        print("ready", flush=True)
        counting = asyncio.create_task(count())
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(json.dumps([min(held), percentile(held, 50)]), flush=True)
        counting.cancel()


class Seen(NamedTuple):
    """What the good clients have seen.

    Parameters:
        seconds: for each answer.
        late: seconds by which their own event loop ran late, each time that it was looked at.
        errors: answers that were wrong or missing.
    """

    seconds: list[float]
    late: list[float]
    errors: list[str]

    def __add__(self, other: "Seen") -> "Seen":  # type: ignore[override]  # sums, no longer tuples
        return Seen(self.seconds + other.seconds, self.late + other.late, self.errors + other.errors)


async def _good(port: int, until: float, seen: list[float], errors: list[str]) -> None:
    """Be a good client: ask, take the answer, pause; once at least."""
    reader = writer = None
    await asyncio.sleep(random.random() * 0.3)
    while True:
        dice = random.random()
        path = b"/stored/%d" % random.randrange(20) if dice < 0.7 else b"/new/%d" % random.randrange(10**9)
        request = b"GET %b HTTP/1.1\r\nHost: x\r\n\r\n" % path
        if dice > 0.9:
            request = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000\r\n\r\n" + b"x" * 1000
        began = time.perf_counter()
        try:
            if writer is None or reader is None or reader.at_eof():
                reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(request)
            async with asyncio.timeout(30):
                head = await reader.readuntil(b"\r\n\r\n")
                body = await reader.readexactly(2000)
            if not head.startswith(b"HTTP/1.1 200 ") or body != b"x" * 2000:
                raise ValueError(head[:30])
            seen.append(time.perf_counter() - began)
        except (OSError, ValueError, asyncio.IncompleteReadError, TimeoutError) as error:
            errors.append(repr(error))
            if writer is not None:
                writer.close()
            reader = writer = None
        if time.perf_counter() > until:
            break
        await asyncio.sleep(0.1 + random.random() * 0.2)
    if writer is not None:
        writer.close()


async def _ask(port: int, clients: int, seconds: float) -> Seen:
    """Return what the good clients see in that time."""
    seen = Seen([], [], [])
    until = time.perf_counter() + seconds

    async def look() -> None:
        while (began := time.perf_counter()) < until:
            await asyncio.sleep(0.01)
            seen.late.append(time.perf_counter() - began - 0.01)

    await asyncio.gather(look(), *(_good(port, until, seen.seconds, seen.errors) for _ in range(clients)))
    for error in seen.errors[:3]:
        print(error, file=sys.stderr)
    return seen


# -- the measurement ------------------------------------------------------------------------------------------


async def measure(setting: Setting) -> None:
    """Run it and print the tables."""
    module = "benchmarks.hostile"
    with contextlib.ExitStack() as stack:

        def start(*arguments: str) -> Worker:
            worker = Worker(module, *arguments)
            stack.callback(worker.close)
            return worker

        service = start("--service")
        url = f"http://127.0.0.1:{service.answer()}"
        proxy = start("--proxy", url, "--listen", "127.0.0.1:0", "--log-level", "critical", *setting.options)
        port = int(proxy.answer().partition(" -> ")[0].rpartition(":")[2])
        await _ask(port, setting.good, setting.alone / 4)
        idle = _held(proxy)
        alone = await _ask(port, setting.good, setting.alone / 2)
        busy = _held(proxy).seconds - idle.seconds
        before = await _settled(proxy, port, Held(10**6, 0, 0), 6.0)
        attack = start("--attack", str(port), str(setting.hostile))
        attack.answer()
        first = await _ask(port, setting.good, setting.among / 3)
        early = _held(proxy)
        among = first + await _ask(port, setting.good, setting.among * 2 / 3)
        late = _held(proxy)
        attack.tell("how many")
        least, usual = json.loads(attack.answer())
        attack.close()
        after = await _settled(proxy, port, before, 120.0)
        alone += await _ask(port, setting.good, setting.alone / 2)
    rows = []
    base = percentile(alone.seconds, 99)
    shares = busy / (setting.alone / 2), (late.seconds - before.seconds) / setting.among
    for name, seen, cpu in (("alone", alone, shares[0]), (f"among {setting.hostile} hostile", among, shares[1])):
        p50, p99 = percentile(seen.seconds, 50), percentile(seen.seconds, 99)
        goal = verdict(p99 / base, at_most=2.0) if seen is among else ""
        times = f"{p50 * 1e3:.1f}", f"{p99 * 1e3:.1f}", f"{percentile(seen.late, 99) * 1e3:.1f}", f"{p99 / base:.2f}"
        rows.append((name, f"{len(seen.seconds):,}", str(len(seen.errors)), f"{cpu:.0%}", *times, goal))
    table(
        f"{setting.good} good clients",
        (
            "good clients", "answers", "errors", "the proxy, of a core",
            "p50, ms", "p99, ms", "of it their own, ms", "p99 to alone", "goal",
        ),
        rows,
    )  # fmt: skip
    print(f"\nThe hostile clients have held {least:,} connections at least, {usual:,.0f} usually.")
    held = (("before", before), ("after a third", early), ("at the end", late), ("when they have gone", after))
    table(
        "What the proxy holds",
        ("the proxy", "resident, MB", "sockets", "tasks"),
        [(name, f"{it.resident / _MB:.1f}", str(it.sockets), str(it.tasks)) for name, it in held],
    )


async def _settled(proxy: Worker, port: int, goal: Held, patience: float) -> Held:
    """Return what the proxy holds when that is no more tasks and sockets than `goal`, or `patience` is over."""
    until = time.perf_counter() + patience
    while True:
        await _ask_once(port)
        held = _held(proxy)
        is_reached = held.tasks <= goal.tasks and held.sockets <= goal.sockets
        if is_reached or time.perf_counter() > until:
            return held
        await asyncio.sleep(0.5)


async def _ask_once(port: int) -> None:
    """Ask for something new: only a request has the proxy close the connections to the service that were idle."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /new/%d HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % random.randrange(10**9))
    await reader.read()
    writer.close()


def main(arguments: list[str]) -> None:
    """Run it, or one of its processes."""
    runs: dict[str, Callable[[], Any]] = {
        "--service": lambda: run_with_loop(_service, "uvloop"),
        "--proxy": lambda: _proxy(arguments[1:]),
        "--attack": lambda: run_with_loop(lambda: _attack(int(arguments[1]), int(arguments[2])), "uvloop"),
    }
    if arguments and arguments[0] in runs:
        runs[arguments[0]]()
        return
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a moment each: to see that it runs, not to measure")
    parser.add_argument("--alone", type=float, metavar="SECONDS", help="how long the good clients ask alone (60)")
    parser.add_argument("--among", type=float, metavar="SECONDS", help="how long they ask among the hostile ones (300)")
    options = parser.parse_args(arguments)
    print_machine("swr", "uvicorn", "httptools", "uvloop", "httpx")
    parts = {name: getattr(options, name) for name in ("alone", "among") if getattr(options, name) is not None}
    setting = (QUICK if options.quick else FULL)._replace(**parts)
    run_with_loop(lambda: measure(setting), "uvloop")


if __name__ == "__main__":
    main(sys.argv[1:])

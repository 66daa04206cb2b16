"""Three instances behind a balancer: real server processes, many clients, invalidations that fly between them.

The counts here are reduced; SWR_FULL=1 (scripts/chaos) asks 50,000 times with 1,000 clients at once.
"""

import asyncio
import json
import os
import random
import sys
import time
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, ExitStack, asynccontextmanager
from itertools import cycle
from pathlib import Path
from typing import Any

import pytest

from examples.demo.servers import exchange, free_port, running
from tests.servers import Server

FULL = os.environ.get("SWR_FULL") == "1"
CLIENTS, REQUESTS = (1000, 50) if FULL else (100, 10)
INSTANCES = 3
GROUPS = [f"g{number}" for number in range(30)]
# Each makes a load of its own.
KINDS = ("values", "responses")
PATIENCE = 300
HEARD = b"GET /heard HTTP/1.1\r\nHost: balanced.test\r\nConnection: close\r\n\r\n"

pytestmark = [pytest.mark.promise, pytest.mark.uncounted]


class Front(asyncio.Protocol):
    """A client's side of a connection through the balancer.

    Parameters:
        port: of the instance that it is passed on to.
    """

    def __init__(self, port: int) -> None:
        self.port = port
        self.back: asyncio.WriteTransport | None = None
        self.waiting: list[bytes] = []

    def connection_made(self, transport: Any) -> None:
        self.transport = transport
        self.task = asyncio.ensure_future(
            asyncio.get_running_loop().create_connection(lambda: Back(self), "127.0.0.1", self.port)
        )

    def data_received(self, data: bytes) -> None:
        if self.back is None:
            self.waiting.append(data)
        else:
            self.back.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        if self.back is None:
            self.task.cancel()
        else:
            self.back.close()


class Back(asyncio.Protocol):
    """The instance's side."""

    def __init__(self, front: Front) -> None:
        self.front = front

    def connection_made(self, transport: Any) -> None:
        self.front.back = transport
        transport.writelines(self.front.waiting)

    def data_received(self, data: bytes) -> None:
        self.front.transport.write(data)

    def connection_lost(self, error: Exception | None) -> None:
        self.front.transport.close()


@asynccontextmanager
async def balancer(ports: list[int]) -> AsyncIterator[int]:
    """Pass connections on to the ports in turn; gives its own."""
    turns = cycle(ports)
    server = await asyncio.get_running_loop().create_server(lambda: Front(next(turns)), "127.0.0.1", 0, backlog=2048)
    async with server:
        yield server.sockets[0].getsockname()[1]


class Client:
    """One connection that is kept, one request at a time; `worker` is the instance at its other end."""

    worker = ""

    @classmethod
    @asynccontextmanager
    async def to(cls, port: int) -> AsyncIterator["Client"]:
        client = cls()
        client.reader, client.writer = await asyncio.open_connection("127.0.0.1", port)
        try:
            yield client
        finally:
            client.writer.close()
            await client.writer.wait_closed()

    async def ask(self, path: str, body: str | None = None) -> tuple[int, Any]:
        """Return the status and the JSON of the answer."""
        method = "GET" if body is None else "POST"
        length = "" if body is None else f"Content-Length: {len(body)}\r\n"
        self.writer.write(f"{method} {path} HTTP/1.1\r\nHost: balanced.test\r\n{length}\r\n{body or ''}".encode())
        first, *lines = (await self.reader.readuntil(b"\r\n\r\n")).decode("latin-1").lower().strip().split("\r\n")
        fields = dict(line.split(": ", 1) for line in lines)
        answer = await self.reader.readexactly(int(fields.get("content-length", 0)))
        assert self.worker in ("", fields["worker"]), "one connection, two instances"
        self.worker = fields["worker"]
        return int(first.split()[1]), json.loads(answer) if answer else None


class Truth:
    """What every answer is held against.

    Attributes:
        written: by group the newest number that was sent.
        floors: by instance, kind and group the least number that may still come from there.
        invalidated: by instance how often it has invalidated a group.
    """

    def __init__(self) -> None:
        self.written = dict.fromkeys(GROUPS, 0)
        self.minimums: defaultdict[tuple[str, str, str], int] = defaultdict(int)
        self.invalidated: Counter[str] = Counter()
        self.right = 0

    async def read(self, client: Client, kind: str, group: str) -> int:
        """Ask for a group's number, and check the answer."""
        least = self.minimums[client.worker, kind, group]
        status, answer = await client.ask(f"/{kind}/{group}")
        assert (status, answer["group"]) == (200, group)
        number = answer["number"]
        # Nothing that this instance had ceased to give before it was asked, and nothing that was never said.
        assert least <= number <= self.written[group]
        place = client.worker, kind, group
        self.minimums[place] = max(number, self.minimums[place])
        return int(number)

    async def change(self, client: Client, group: str) -> None:
        """Give a group its next number; nobody else does with this one."""
        self.written[group] = number = self.written[group] + 1
        assert await client.ask(f"/numbers/{group}", str(number)) == (204, None)
        self.invalidated[client.worker] += 1
        for kind in KINDS:
            self.minimums[client.worker, kind, group] = number
            # So each number is loaded before the next is given: a window.
            assert await self.read(client, kind, group) == number


@pytest.fixture
def instances(any_server: Server, tmp_path: Path) -> Iterator[list[int]]:
    """The ports of the instances."""
    any_server.command("FLUSHALL")
    environment = {"REDIS_URL": any_server.url, "LOADS": str(tmp_path)}
    ports = [free_port() for _ in range(INSTANCES)]
    with ExitStack() as stack:
        for port in ports:
            command = [
                sys.executable,
                "-m",
                "uvicorn",
                "tests.balanced:app",
                "--port",
                str(port),
                "--log-level",
                "warning",
            ]
            log = tmp_path / f"{port}.log"
            ready = lambda port=port: exchange(port, HEARD).startswith(b"HTTP/1.1 200")  # noqa: E731  # a def would not fit into the table
            stack.enter_context(running(command, environment, log, ready))
        yield ports


def test_balanced_instances_answer_correctly_and_load_each_value_at_most_twice(
    instances: list[int], tmp_path: Path
) -> None:
    """1,000 clients x 50 requests; each process hears each invalidation once."""

    async def main() -> Truth:
        truth, done = Truth(), asyncio.Event()

        async def read(port: int) -> None:
            async with Client.to(port) as client:
                for _ in range(REQUESTS):
                    await truth.read(client, random.choice(KINDS), random.choice(GROUPS))
                    truth.right += 1

        async def write(client: Client, groups: list[str]) -> None:
            # Five times each at least, however quick the readers are.
            for turn, group in enumerate(cycle(groups)):
                if done.is_set() and turn >= 5 * len(groups):
                    return
                await truth.change(client, group)

        async with balancer(instances) as port, AsyncExitStack() as stack:
            writers = [await stack.enter_async_context(Client.to(port)) for _ in instances]
            for number, writer in enumerate(writers):
                for group in GROUPS[number::INSTANCES]:
                    for kind in KINDS:
                        assert await truth.read(writer, kind, group) == 0
            assert len({writer.worker for writer in writers}) == INSTANCES
            writing = [
                asyncio.create_task(write(writer, GROUPS[number::INSTANCES])) for number, writer in enumerate(writers)
            ]
            async with asyncio.timeout(PATIENCE), asyncio.TaskGroup() as group:
                for _ in range(CLIENTS):
                    group.create_task(read(port))
            done.set()
            await asyncio.gather(*writing)
            await heard_by_all(instances, truth)
            for port in instances:
                async with Client.to(port) as client:
                    for group_ in GROUPS:
                        for kind in KINDS:
                            assert await truth.read(client, kind, group_) == truth.written[group_]
        return truth

    truth = asyncio.run(main())
    assert truth.right == CLIENTS * REQUESTS
    loads = Counter((tmp_path / "loads").read_text().splitlines())
    windows = [
        f"{kind} {group} {number}"
        for kind in KINDS
        for group, newest in truth.written.items()
        for number in range(newest + 1)
    ]
    assert set(loads) == set(windows)
    # A window that was loaded before the request that began it had ended is invalidated again, and loaded again.
    assert max(loads.values()) <= 2


async def heard_by_all(ports: list[int], truth: Truth) -> None:
    """Wait until each instance has heard of what the others have invalidated; it hears nothing of its own.

    A request that may change something invalidates at once, and again when it is over.
    """
    truth.invalidated = Counter({worker: 2 * number for worker, number in truth.invalidated.items()})
    everything = sum(truth.invalidated.values())
    for port in ports:
        async with Client.to(port) as client:
            deadline = time.monotonic() + 60
            while True:
                _, heard = await client.ask("/heard")
                own = truth.invalidated[client.worker]
                if heard["elsewhere"] >= everything - own and heard["here"] >= own:
                    break
                assert time.monotonic() < deadline, heard
                await asyncio.sleep(0.05)
            assert own > 0
            assert heard == {"here": own, "elsewhere": everything - own}

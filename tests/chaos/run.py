"""The long run: python -m tests.chaos.run [--minutes 5] [--kind valkey|redis] [--processes 8] [--seed 1]

It starts a server, the processes and a proxy for the link of each, breaks and mends all of them at random, and then
has the oracle judge. It ends with 1 if anything was wrong, and leaves the processes' logs.

The server writes every command to its file and syncs that once a second (`appendfsync everysec`). Killed with -9, it
therefore keeps nearly everything, leases included, as in production. It may lose what it acknowledged just before.
"""

import argparse
import asyncio
import contextlib
import json
import random
import shutil
import signal
import ssl
import sys
import tempfile
import time
from asyncio.subprocess import PIPE, Process
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Final, NamedTuple

import msgspec
import trustme

from tests.chaos.oracle import AFTER, Life, Oracle, Story, tags
from tests.chaos.rows import KEYS, LEASE_FOR, Rows, tags_of
from tests.proxy import Proxy
from tests.servers import Server, kinds

# Its file is never rewritten: a server that does so on a busy disk is silent for seconds, unknown to the run.
AOF: Final = ("--appendonly", "yes", "--appendfsync", "everysec", "--auto-aof-rewrite-percentage", "0")
# Everything is broken for a while, then nothing is: only then is it known that each load is the only one.
STORM, CALM = 20.0, 8.0
STALLED: Final = 0.3
# Seconds that everything takes in either direction.
LATENCIES: Final = (0.0, 0.0, 0.005, 0.015, 0.05)
PATIENCE: Final = 60.0
TAGS, TAGS_AT_ONCE = 100_000, 5000
START: Final = "from tests.chaos.worker import main; main()"


class Verdict(NamedTuple):
    """What was wrong, the run in figures, and where its logs are if anything was wrong."""

    violations: list[str]
    summary: list[str]
    folder: Path


class Seat:
    """A link, and the process that has it now."""

    def __init__(self, number: int, proxy: Proxy, url: str) -> None:
        self.number = number
        self.proxy = proxy
        self.url = url
        self.name = ""
        self.process: Process | None = None

    def tell(self, *what: object) -> None:
        assert self.process is not None
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(what).encode() + b"\n")

    async def hears(self, line: bytes) -> None:
        assert self.process is not None
        assert self.process.stdout is not None
        async with asyncio.timeout(PATIENCE):
            said = await self.process.stdout.readline()
        if said != line:
            raise RuntimeError(f"{self.name} said {said!r} instead of {line!r}")


class Run:
    """One run.

    Parameters:
        seconds: how long things break.
        kind: of the server.
        number: of processes.
        seed: of what is done, and when; not of how it goes.
        sabotage: Python that every process runs first.
    """

    def __init__(self, seconds: float, kind: str, number: int, seed: int, sabotage: str = "") -> None:
        self.seconds = seconds
        self.kind = kind
        self.number = number
        self.random = random.Random(seed)
        self.start = f"{sabotage}\n{START}"
        self.folder = Path(tempfile.mkdtemp(prefix="swr-chaos-"))
        self.story = Story()
        self.seats: list[Seat] = []
        self.started = 0
        # Whether things may be broken; what is broken is mended first.
        self.stormy = asyncio.Event()
        self.broken = 0
        # A seat is stopped, killed or told by one task at a time.
        self.locks: list[asyncio.Lock] = []

    # -- processes --------------------------------------------------------------------------------------------

    async def seat(self, seat: Seat) -> None:
        """Start a process where there is none."""
        self.started += 1
        seat.name = f"w{self.started}"
        # A deploy without an end: of the processes one half is of the release before, the other of the one after it.
        release = self.started % 2
        self.story.lives[seat.name] = Life(seat.number, time.monotonic(), release=release)
        command = (sys.executable, "-c", self.start, seat.name, seat.url, str(self.folder), str(release))
        with open(self.folder / f"{seat.name}.err", "wb") as errors:
            seat.process = await asyncio.create_subprocess_exec(*command, stdin=PIPE, stdout=PIPE, stderr=errors)
        await seat.hears(b"ready\n")

    async def kill(self, seat: Seat) -> None:
        assert seat.process is not None
        with contextlib.suppress(ProcessLookupError):
            seat.process.kill()
        self.story.lives[seat.name].ended = time.monotonic()
        await seat.process.wait()

    @asynccontextmanager
    async def linked(self, number: int, server: Server) -> AsyncIterator[Seat]:
        """Make a seat; every second one speaks TLS."""
        if number % 2 == 0:
            async with Proxy(server.port) as proxy:
                yield Seat(number, proxy, proxy.url)
            return
        authority, context = trustme.CA(), ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1").configure_cert(context)
        known = self.folder / f"authority{number}.pem"
        authority.cert_pem.write_to_path(str(known))
        async with Proxy(server.port, context) as proxy:
            yield Seat(number, proxy, f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={known}")

    # -- what breaks ------------------------------------------------------------------------------------------

    def wait(self, low: float, high: float) -> Coroutine[Any, Any, None]:
        return asyncio.sleep(self.random.uniform(low, high))

    @asynccontextmanager
    async def breaking(self, spans: list[tuple[float, float]], what: str) -> AsyncIterator[None]:
        """Note that something is broken while this lasts."""
        self.broken += 1
        self.story.counts[what] += 1
        began = time.monotonic()
        try:
            yield
        finally:
            self.broken -= 1
            spans.append((began, time.monotonic()))

    async def hurt_link(self, seat: Seat) -> None:
        proxy = seat.proxy
        faults = (
            "cut",
            "hang",
            "hang subscriptions",
            "swallow",
            "refuse",
            "delay",
            "lose",
            *("unsent", "unanswered", "late"),
        )
        while True:
            await self.wait(0.5, 8)
            fault = self.random.choice(faults)
            await self.stormy.wait()
            async with self.breaking(self.story.links[seat.number], f"links: {fault}"):
                if fault == "cut":
                    proxy.cut()
                elif fault == "hang":
                    proxy.hang = True
                    await self.wait(0.2, 4)
                    proxy.hang = False
                elif fault == "hang subscriptions":
                    proxy.hang_subscriptions = True
                    await self.wait(0.2, 4)
                    proxy.hang_subscriptions = False
                elif fault == "swallow":
                    proxy.swallow = True
                    # What is lost between two probes alone, nobody can notice.
                    await self.wait(1, 4)
                    proxy.swallow = False
                elif fault == "refuse":
                    proxy.refuse = True
                    proxy.cut()
                    await self.wait(0.2, 4)
                    proxy.refuse = False
                elif fault == "delay":
                    proxy.delay = self.random.uniform(0.02, 0.4)
                    await self.wait(0.5, 3)
                    proxy.delay = 0.0
                elif fault == "lose":
                    proxy.lose = b"EVAL"
                    await self.struck(lambda: proxy.lose is None)
                    proxy.lose = None
                else:
                    proxy.arm(fault, self.random.randint(1, 30))
                    await self.struck(lambda: proxy.struck)
                    proxy.heal()

    async def struck(self, has: Callable[[], bool]) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(3):
                while not has():
                    await asyncio.sleep(0.02)
        await asyncio.sleep(1.0)

    async def stop_processes(self) -> None:
        while True:
            await self.wait(0.5, 3)
            seat = self.random.choice(self.seats)
            async with self.locks[seat.number]:
                if not self.stormy.is_set():
                    continue
                past = self.random.random() < 0.7
                async with self.breaking(self.story.stops[seat.name], "processes stopped"):
                    assert seat.process is not None
                    seat.process.send_signal(signal.SIGSTOP)
                    await self.wait(LEASE_FOR if past else 0.1, 3 * LEASE_FOR if past else LEASE_FOR)
                    seat.process.send_signal(signal.SIGCONT)

    async def kill_processes(self) -> None:
        while True:
            await self.wait(1, 5)
            seat = self.random.choice(self.seats)
            async with self.locks[seat.number]:
                if not self.stormy.is_set():
                    continue
                # What it leaves behind is over once its leases are.
                async with self.breaking(self.story.stops[seat.name], "processes killed"):
                    await self.kill(seat)
                await self.seat(seat)

    async def hurt_server(self, server: Server) -> None:
        while True:
            await self.wait(4, 20)
            await self.stormy.wait()
            if self.random.random() < 0.7:
                async with self.breaking(self.story.server, "server killed"):
                    await asyncio.to_thread(server.kill)
                    await self.wait(0.1, 3)
                    await asyncio.to_thread(server.start)
            else:
                async with self.breaking(self.story.server, "server stopped"):
                    server.pause()
                    await self.wait(0.1, 3)
                    server.resume()

    async def evict_keys(self, server: Server) -> None:
        """Remove keys as a server does that has no memory left: those of the tags, or whichever."""
        while True:
            await self.wait(0.2, 3)
            await self.stormy.wait()
            tags = self.random.choice((("swr:{!}b",), ("swr:{!}h",), ("swr:{!}a",), ("swr:{!}b", "swr:{!}h"), ()))
            async with self.breaking(self.story.server, "times keys evicted"):
                # It may be stopped, or not there.
                with contextlib.suppress(OSError):
                    await asyncio.to_thread(server.command, "EVAL", _EVICT, "0", *tags)

    async def fill_memory(self, server: Server) -> None:
        """Leave the server no memory for a while: it refuses leases and values, and takes invalidations."""
        while True:
            await self.wait(3, 15)
            await self.stormy.wait()
            async with self.breaking(self.story.refusals, "times without memory"):
                await self.told(server, "CONFIG", "SET", "maxmemory", "1")
                await self.wait(0.2, 4)
                # If it was killed meanwhile, its successor has all the memory that it wants.
                await self.told(server, "CONFIG", "SET", "maxmemory", "0")

    async def flood_with_tags(self, server: Server) -> None:
        """Have 100,000 tags invalidated that no value has: whoever starts learns them all."""
        while True:
            await self.wait(10, 60)
            await self.stormy.wait()
            self.story.counts["times 100,000 tags invalidated"] += 1
            for first in range(0, TAGS, TAGS_AT_ONCE):
                await self.told(server, "EVAL", _FLOOD, "2", "swr:{!}b", "swr:{!}h", str(first), str(TAGS_AT_ONCE))

    async def told(self, server: Server, *command: str) -> None:
        """Tell the server something, until it is there and runs."""
        while True:
            with contextlib.suppress(OSError):
                await asyncio.to_thread(server.command, *command)
                return
            await asyncio.sleep(0.05)

    async def weather(self) -> None:
        while True:
            self.stormy.set()
            await asyncio.sleep(STORM)
            await self.calm_down()
            await asyncio.sleep(CALM)

    async def calm_down(self) -> None:
        """Break nothing any more, and wait until all that is broken is mended."""
        self.stormy.clear()
        while self.broken:
            await asyncio.sleep(0.05)

    # -- what happens anyway ----------------------------------------------------------------------------------

    async def write(self, rows: Rows) -> None:
        """Raise rows, then have some process invalidate what has changed; each kind of invalidation at its own rate."""
        while True:
            await self.wait(0.0, 0.12)
            seat = self.random.choice(self.seats)
            draw = self.random.random()
            if draw < 0.01:
                self.raise_rows(rows, range(KEYS))
                self.send(seat, "all", "")
            elif draw < 0.06:
                tag = self.random.choice(tags())
                self.raise_rows(rows, [number for number in range(KEYS) if tag in tags_of(number)])
                self.send(seat, "tag", tag)
            else:
                number = min(int(self.random.expovariate(1 / 40)), KEYS - 1)
                self.raise_rows(rows, (number,))
                self.send(seat, "key", number)

    def raise_rows(self, rows: Rows, numbers: Any) -> None:
        for number in numbers:
            rows.raise_row(number)
            self.story.writes[number].append(time.monotonic())

    def send(self, seat: Seat, *what: object) -> None:
        """Tell a process, if there is one that hears it."""
        if seat.process is not None and seat.process.returncode is None:
            seat.tell(*what)

    async def watch_the_clock(self) -> None:
        """The links lead through this process: while it does not run, all of them hang."""
        last = time.monotonic()
        while True:
            await asyncio.sleep(0.05)
            now = time.monotonic()
            if now - last > STALLED:
                self.story.server.append((last, now))
            last = now

    # -- the run ----------------------------------------------------------------------------------------------

    async def run(self) -> None:
        async with AsyncExitStack() as stack:
            server = stack.enter_context(Server(self.kind, *AOF))
            rows = stack.enter_context(Rows(self.folder / "rows"))
            for number in range(self.number):
                self.seats.append(await stack.enter_async_context(self.linked(number, server)))
                self.locks.append(asyncio.Lock())
            stack.push_async_callback(self.end)
            await asyncio.gather(*(self.seat(seat) for seat in self.seats))
            async with asyncio.TaskGroup() as group:
                ticking = group.create_task(self.watch_the_clock())
                writing = group.create_task(self.write(rows))
                breaking = [
                    group.create_task(what)
                    for what in (
                        *(self.hurt_link(seat) for seat in self.seats),
                        *(self.stop_processes(), self.kill_processes(), self.hurt_server(server)),
                        *(self.evict_keys(server), self.fill_memory(server), self.flood_with_tags(server)),
                        self.weather(),
                    )
                ]
                await asyncio.sleep(self.seconds)
                breaking.pop().cancel()
                await self.calm_down()
                # A process that was killed may be about to be replaced.
                for lock in self.locks:
                    await lock.acquire()
                for task in (*breaking, writing):
                    task.cancel()
                await self.look_around(rows, server)
                ticking.cancel()

    async def look_around(self, rows: Rows, server: Server) -> None:
        """With everything mended all processes answer the last rows, and no lease is left."""
        self.raise_rows(rows, range(KEYS))
        self.send(self.seats[0], "all", "")
        await asyncio.sleep(2 * AFTER)
        self.story.healed = time.monotonic()
        for seat in self.seats:
            seat.tell("look")
        await asyncio.gather(*(seat.hears(b"looked\n") for seat in self.seats))
        for seat in self.seats:
            seat.tell("rest")
        left = time.monotonic() + 10 * LEASE_FOR
        while (leases := self.leases(server)) and time.monotonic() < left:
            await asyncio.sleep(0.2)
        self.story.leases_left = leases

    def leases(self, server: Server) -> list[str]:
        """Return the leases that stand; what is in their place after failures is none."""
        found = server.command("EVAL", _LEASES, "0", "swr:*:l").decode().split("\r\n")
        return [line for line in found if line.startswith("swr:")]

    async def end(self) -> None:
        for seat in self.seats:
            if seat.process is None or seat.process.returncode is not None:
                continue
            with contextlib.suppress(ProcessLookupError):
                seat.process.send_signal(signal.SIGCONT)
            assert seat.process.stdin is not None
            seat.process.stdin.close()
            try:
                async with asyncio.timeout(10):
                    await seat.process.wait()
            except TimeoutError:
                seat.process.kill()
                await seat.process.wait()


_LEASES: Final = """
local found = {}
for _, key in ipairs(redis.call('KEYS', ARGV[1])) do
  for _, text in ipairs(redis.call('HVALS', key)) do
    if string.sub(text, 1, 1) == 'l' then found[#found + 1] = key end
  end
end
return found
"""

_FLOOD: Final = """
local newest = tonumber(string.sub(redis.call('GET', KEYS[2]) or '', 1, 16))
if newest then
  for first = ARGV[1] + 1, ARGV[1] + ARGV[2], 1000 do
    local pairs = {}
    for i = first, first + 999 do
      pairs[#pairs + 1] = newest - i
      pairs[#pairs + 1] = 'tflood' .. i
    end
    redis.call('ZADD', KEYS[1], unpack(pairs))
  end
end
"""

_EVICT: Final = """
if #ARGV > 0 then return redis.call('DEL', unpack(ARGV)) end
for _ = 1, 5 do
  local key = redis.call('RANDOMKEY')
  if key then redis.call('DEL', key) end
end
"""


def chaos(seconds: float, kind: str, processes: int = 8, seed: int = 1, sabotage: str = "") -> Verdict:
    """Run, and judge."""
    run = Run(seconds, kind, processes, seed, sabotage)
    asyncio.run(run.run())
    (run.folder / "story.json").write_bytes(msgspec.json.encode(run.story))
    verdict = judge(run.folder)
    if not verdict.violations:
        shutil.rmtree(run.folder)
    return verdict


def judge(folder: Path) -> Verdict:
    """Judge a run by what it has left."""
    oracle = Oracle(msgspec.json.decode((folder / "story.json").read_bytes(), type=Story), folder)
    return Verdict(oracle.judge(), oracle.summary(), folder)


def report(verdict: Verdict) -> int:
    print(*(f"  {line}" for line in verdict.summary), *verdict.violations[:50], sep="\n", flush=True)
    if verdict.violations:
        print(f"  the logs: {verdict.folder}")
    return bool(verdict.violations)


def main() -> int:
    parser = argparse.ArgumentParser(prog="scripts/chaos", description=__doc__)
    parser.add_argument("--minutes", type=float, default=5.0, help="how long things break, on each kind of server")
    parser.add_argument("--kind", choices=kinds(), help="of server; without it all that there are, in turn")
    parser.add_argument("--processes", type=int, default=8)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10**6), help="of what is done")
    parser.add_argument("--judge", type=Path, metavar="FOLDER", help="run nothing: judge the logs of a run again")
    options = parser.parse_args()
    if options.judge is not None:
        return report(judge(options.judge))
    failed = 0
    for kind in [options.kind] if options.kind else kinds():
        print(f"{kind}: {options.minutes:g} minutes, {options.processes} processes, --seed {options.seed}", flush=True)
        verdict = chaos(60 * options.minutes, kind, options.processes, options.seed)
        failed |= report(verdict)
    return failed


if __name__ == "__main__":
    sys.exit(main())

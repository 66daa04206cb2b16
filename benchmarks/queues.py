"""What a task costs: `Refresher(..., strategy="queue")` against the Python queues, and its list against its stream.

    scripts/bench queues [--quick]

All tasks are enqueued, then one worker process drains them, in turns. The loader is empty. What swr does with a task
beside handing it out, which the others do not: it takes a lease, stores the loaded entry, fenced, and tells every
process of it. Its clock stops when the last task is acknowledged, theirs when the last task is called.

arq and saq pin an older redis-py than swr needs: each contestant has an environment of its own, made by the first run
(not by `--quick`) in `.venv/contestants`.

Then a worker is killed (-9) half-way, again and again, and the next one goes on: what is never loaded is lost.
"""

import argparse
import asyncio
import itertools
import logging
import math
import os
import statistics
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from benchmarks.contestants import Tasks
from benchmarks.measure import print_machine, ratio, table, verdict
from benchmarks.processes import workers
from swr import Cache
from swr.events import RoundQueued
from swr.refreshers import Refresher
from tests.servers import Server, kinds, until

_NAME = "queues"
# No second round begins while this runs.
_EVERY = 1e9
# Of each task, where workers are killed.
_PAUSE = 0.02
# A busy machine is not an outage, in seconds.
_PATIENCE = 5.0
_HERE = Path(__file__).parent
_HOMES = Path(sys.prefix) / "contestants"
# How each is installed, and what runs in it.
CONTESTANTS = {
    "arq": (("arq>=0.28",), ("arq",)),
    # It imports typing_extensions, and does not say so.
    "saq": (("saq[redis,hiredis]>=0.26", "typing_extensions"), ("saq",)),
    "taskiq-redis": (("taskiq-redis>=1.2", "hiredis"), ("taskiq-streams", "taskiq-list")),
}
OWN: dict[str, tuple[Literal["streams", "list"], bool]] = {
    "swr, streams": ("streams", False),
    "swr, list": ("list", False),
    "swr, streams, batch loader": ("streams", True),
    "swr, list, batch loader": ("list", True),
}


class Setting(NamedTuple):
    """Tasks of one turn, turns, how many tasks at once; tasks and kills where workers are killed."""

    tasks: int
    turns: int
    at_once: int
    kills: int


FULL = Setting(tasks=10_000, turns=7, at_once=100, kills=10)
QUICK = Setting(tasks=200, turns=1, at_once=32, kills=1)


# -- swr ------------------------------------------------------------------------------------------------------


def loader_of(cache: Cache, batch: bool, tasks: Tasks) -> Any:
    """Return a loader that does nothing, of one group or of many, and where its calls are counted."""
    if batch:

        @cache.cached_many("group:{group}", fresh_for=3600)
        async def many(groups: list[int]) -> dict[int, int]:
            for _ in groups:
                tasks.call()
            return dict.fromkeys(groups, 1)

        return many

    @cache.cached("group:{group}", fresh_for=3600)
    async def one(group: int) -> int:
        tasks.call()
        return 1

    return one


def hanging_loader_of(cache: Cache, batch: bool) -> Any:
    """Return a loader, of one group or of many, that never ends."""
    if batch:

        @cache.cached_many("group:{group}", fresh_for=3600)
        async def many(groups: list[int]) -> dict[int, int]:
            await asyncio.Event().wait()
            return {}

        return many

    @cache.cached("group:{group}", fresh_for=3600)
    async def one(group: int) -> int:
        await asyncio.Event().wait()
        return 1

    return one


def refresher_of(loader: Any, backend: Literal["streams", "list"], tasks: int, **options: Any) -> Refresher:
    """Return the refresher of the groups, the same in every process."""
    return Refresher(loader, range(tasks), _EVERY, strategy="queue", name=_NAME, backend=backend, **options)


async def fill(url: str, backend: Literal["streams", "list"], batch: bool, tasks: int) -> None:
    """Enqueue a round, as its leader does, and lead no more; what was taken meanwhile is handed back."""
    queued = asyncio.Event()
    # A load that is under way at the end is cancelled at once.
    async with Cache(url, namespace=_NAME, timeout=_PATIENCE, drain_for=0) as cache:
        cache.subscribe(lambda event: queued.set(), RoundQueued)
        async with refresher_of(hanging_loader_of(cache, batch), backend, tasks, at_once=1, drain_for=0):
            await queued.wait()


async def drain(url: str, backend: Literal["streams", "list"], batch: bool, tasks: int, at_once: int) -> None:
    """Drain it; say how many seconds that took, and how many requests were sent."""
    calls = Tasks(tasks)
    async with Cache(url, namespace=_NAME, timeout=_PATIENCE) as cache:
        loader = loader_of(cache, batch, calls)
        refresher = refresher_of(loader, backend, tasks, at_once=at_once)
        await cache.engine.ready()
        began, sent = time.perf_counter(), cache.engine.store.sent
        async with refresher:
            await calls.done.wait()
            asked = await settled(refresher, 0.002)
            seconds = time.perf_counter() - began
            requests = cache.engine.store.sent - sent - asked
    print(seconds, requests, flush=True)


async def settled(refresher: Refresher, every: float) -> int:
    """Wait until nothing is left, looking every so many seconds; return how many requests that took."""
    for looked in itertools.count(1):
        status = await refresher.status()
        if not (status.queued or status.running or status.waiting):
            # Each is a script and two commands.
            return 3 * looked
        await asyncio.sleep(every)
    raise AssertionError


async def take(url: str, backend: Literal["streams", "list"], log: str, tasks: int, at_once: int) -> None:
    """Take tasks, each a while, until killed; every load is written to a file."""
    loads = os.open(log, os.O_WRONLY | os.O_APPEND)
    async with Cache(url, namespace=_NAME, timeout=_PATIENCE, lease_for=1) as cache:

        @cache.cached("group:{group}", fresh_for=3600)
        async def load(group: int) -> int:
            await asyncio.sleep(_PAUSE)
            os.write(loads, b"%d\n" % group)
            return 1

        async with refresher_of(load, backend, tasks, at_once=at_once, reclaim_after=1, lead_for=1, drain_for=0):
            print("ready", flush=True)
            await asyncio.to_thread(sys.stdin.readline)


# -- in turns -------------------------------------------------------------------------------------------------


class Turn(NamedTuple):
    """Seconds per task, commands of the server per task, and requests of the client per task, where it counts them."""

    seconds: float
    commands: float
    requests: float


def commands_of(server: Server) -> int:
    """Return how many commands a server has carried out, those inside of scripts included."""
    stats = server.says("INFO", "commandstats").splitlines()
    return sum(int(line.partition("calls=")[2].partition(",")[0]) for line in stats if line.startswith("cmdstat_"))


def run(command: Sequence[str]) -> list[float]:
    """Run a process; return the numbers that it prints."""
    done = subprocess.run(command, capture_output=True, text=True, timeout=600, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{done.stderr}")
    return [float(word) for word in done.stdout.split()]


def python_of(home: str) -> Path:
    """Return the interpreter of an environment."""
    return _HOMES / home / "bin" / "python"


def install() -> None:
    """Make the environments that are not there."""
    for home, (packages, _) in CONTESTANTS.items():
        if python_of(home).exists():
            continue
        print(f"installing {home} into {_HOMES / home} (once)", file=sys.stderr)
        try:
            venv.create(_HOMES / home, with_pip=True)
            pip = [str(python_of(home)), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
            subprocess.run([*pip, *packages], check=True)
        except (subprocess.CalledProcessError, OSError) as error:
            python_of(home).unlink(missing_ok=True)
            print(f"{home} is left out: {error}", file=sys.stderr)


def installed() -> dict[str, str]:
    """Return the contestants that are there, and the environment of each."""
    return {name: home for home, (_, names) in CONTESTANTS.items() for name in names if python_of(home).exists()}


def turn(name: str, homes: dict[str, str], server: Server, setting: Setting) -> Turn:
    """Enqueue, then drain."""
    server.command("FLUSHALL")
    if name in OWN:
        backend, batch = OWN[name]
        asyncio.run(fill(server.url, backend, batch, setting.tasks))
        worker = [sys.executable, "-m", "benchmarks.queues", "--drain", name]
    else:
        script = [str(python_of(homes[name])), str(_HERE / "contestants.py"), name]
        run([*script, "enqueue", server.url, str(setting.tasks), str(setting.at_once)])
        worker = [*script, "drain"]
    before = commands_of(server)
    seconds, *requests = run([*worker, server.url, str(setting.tasks), str(setting.at_once)])
    commands = commands_of(server) - before
    return Turn(*(number / setting.tasks for number in (seconds, commands, *(requests or [math.nan]))))


def compare(kind: str, setting: Setting) -> None:
    """Print the table of all contestants."""
    homes = installed()
    names = [*OWN, *homes]
    turns: dict[str, list[Turn]] = {name: [] for name in names}
    for number in range(setting.turns):
        for name in names[number % len(names) :] + names[: number % len(names)]:
            with Server(kind) as server:
                turns[name].append(turn(name, homes, server, setting))
    taken = {name: [one.seconds for one in of_one] for name, of_one in turns.items()}
    fastest = min(homes, key=lambda name: statistics.median(taken[name]), default=None)
    rows = []
    for name in names:
        factor = math.nan if fastest is None else ratio(taken[fastest], taken[name])
        commands, requests = (statistics.median(column) for column in list(zip(*turns[name], strict=True))[1:])
        rows.append(
            [
                name,
                f"{1 / statistics.median(taken[name]):,.0f}",
                f"{commands:.1f}",
                "" if math.isnan(requests) else f"{requests:.2f}",
                "" if math.isnan(factor) else f"{factor:.2f}",
                verdict(factor, at_least=2) if name in OWN and fastest is not None else "",
            ]
        )
    columns = ["", "tasks/s", "server's commands a task", "requests a task", "to the fastest other", "goal"]
    table(f"{setting.tasks:,} empty tasks, one worker, server {kind} (median of {setting.turns} turns)", columns, rows)
    for home, (packages, _) in CONTESTANTS.items():
        if not python_of(home).exists():
            print(f"{packages[0]} is not installed and left out")


# -- killed ---------------------------------------------------------------------------------------------------


def killed(kind: str, backend: Literal["streams", "list"], setting: Setting) -> list[str]:
    """Kill one worker after the other; return the cells of a row."""
    with Server(kind) as server, tempfile.NamedTemporaryFile() as log:
        asyncio.run(fill(server.url, backend, False, setting.tasks))
        began = time.monotonic()
        arguments = ("--take", backend, server.url, log.name, str(setting.tasks), str(setting.at_once))
        for number in range(1, setting.kills + 1):
            with workers(1, "benchmarks.queues", *arguments) as (worker,):
                # Each has a part of the tasks.
                part = setting.tasks * number // (setting.kills + 1)
                until(lambda part=part: loads_in(log.name) >= part)
                worker.kill()
        with workers(1, "benchmarks.queues", *arguments):
            asyncio.run(empty(server.url, backend))
        seconds = time.monotonic() - began
        groups = Path(log.name).read_text().split()
        missing = asyncio.run(missing_of(server.url, setting.tasks))
    return [
        f"{setting.tasks:,}",
        str(setting.kills),
        str(missing),
        str(len(groups) - len(set(groups))),
        f"{seconds:.1f}",
        f"0 {'reached' if missing == 0 else 'MISSED'}",
    ]


def loads_in(log: str) -> int:
    """Return how many loads there were."""
    return Path(log).read_bytes().count(b"\n")


async def missing_of(url: str, tasks: int) -> int:
    """Return how many groups have no entry."""
    async with Cache(url, namespace=_NAME, timeout=_PATIENCE) as cache:
        calls = Tasks(tasks)
        loader = loader_of(cache, False, calls)
        for group in range(tasks):
            await loader(group)
        return calls.called


async def empty(url: str, backend: Literal["streams", "list"]) -> None:
    """Wait until nothing is left."""
    async with Cache(url, namespace=_NAME, timeout=_PATIENCE) as cache:
        await settled(refresher_of(loader_of(cache, False, Tasks(0)), backend, 0), 0.05)


def kills(kind: str, setting: Setting) -> None:
    """Print the table of workers that are killed."""
    backends: tuple[Literal["streams", "list"], ...] = ("streams", "list")
    rows = [[f"{backend}, kill -9", *killed(kind, backend, setting)] for backend in backends]
    columns = ["", "tasks", "kills", "lost", "loaded twice", "seconds", "goal (lost)"]
    table(f"One worker after the other is killed; each task takes 20 ms, server {kind}", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few tasks, once: to see that it runs, not to measure")
    parser.add_argument("--drain", nargs=4, help=argparse.SUPPRESS)
    parser.add_argument("--take", nargs=5, help=argparse.SUPPRESS)
    options = parser.parse_args()
    logging.getLogger("swr").setLevel(logging.ERROR)
    if options.drain:
        name, url, tasks, at_once = options.drain
        asyncio.run(drain(url, *OWN[name], int(tasks), int(at_once)))
        return
    if options.take:
        backend, url, log, tasks, at_once = options.take
        asyncio.run(take(url, backend, log, int(tasks), int(at_once)))
        return
    setting = QUICK if options.quick else FULL
    print_machine("swr", "redis", "hiredis")
    if not options.quick:
        install()
    kind = kinds()[-1]
    compare(kind, setting)
    kills(kind, setting)


if __name__ == "__main__":
    main()

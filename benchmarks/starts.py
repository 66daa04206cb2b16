"""Processes that start together, as at a deploy: how often one cold key is loaded, and one that has become stale.

    scripts/bench starts [--quick]

Each run has a key of its own, and in each process a new cache. Nothing is opened before the callers come: all
processes connect at once, and their first callers wait for it. In the first run of a table the processes have not yet
imported what a cache with Redis needs. Loads are counted over all processes.
"""

import argparse
import asyncio
import json
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.measure import print_machine, table
from benchmarks.processes import Worker, workers
from swr import Cache
from tests.proxy import ProxyElsewhere
from tests.servers import Server, kinds

_LOADER_TAKES = 0.3
# Seconds until all have heard when to begin.
_AHEAD = 0.5


class Setting(NamedTuple):
    """One row.

    Parameters:
        processes: how many start together.
        callers: in each of them.
        round_trip: to Redis, in seconds.
        fresh_for: seconds until a second crowd comes; 0: none comes.
        runs: how many.
    """

    processes: int
    callers: int
    round_trip: float
    fresh_for: int
    runs: int


FULL = (
    Setting(processes=32, callers=1000, round_trip=0.0, fresh_for=15, runs=10),
    Setting(processes=32, callers=1, round_trip=0.0, fresh_for=0, runs=20),
    Setting(processes=4, callers=1, round_trip=0.03, fresh_for=0, runs=20),
)
QUICK = (
    Setting(processes=2, callers=10, round_trip=0.0, fresh_for=3, runs=1),
    Setting(processes=2, callers=1, round_trip=0.03, fresh_for=0, runs=1),
)


class Run(NamedTuple):
    """Loads by all processes, cold and stale, and how long the slowest caller of the cold key waited (seconds)."""

    cold: int
    stale: int
    slowest: float


# -- a process ------------------------------------------------------------------------------------------------


async def work() -> None:
    """Do as each line of standard input says: a cache and a key, and times at which to begin; an empty one ends it."""
    print("ready", flush=True)
    while line := (await asyncio.to_thread(sys.stdin.readline)).strip():
        url, key, callers, fresh_for, at = json.loads(line)
        loads = 0

        async def load() -> int:
            nonlocal loads
            loads += 1
            await asyncio.sleep(_LOADER_TAKES)
            return 1

        cache = Cache(url)
        read = cache.cached(key, fresh_for=fresh_for or 3600, stale_for=3600)(load)
        await _crowd(read, callers, at)
        print(json.dumps([loads, time.time() - at]), flush=True)
        if fresh_for:
            await _crowd(read, callers, json.loads(await asyncio.to_thread(sys.stdin.readline)))
            print("read", flush=True)
        # Others may load yet, for which this one's closing waits not.
        await asyncio.to_thread(sys.stdin.readline)
        await cache.aclose()
        print(loads, flush=True)


async def _crowd(read: Callable[[], Awaitable[int]], callers: int, at: float) -> None:
    await asyncio.sleep(at - time.time())
    await asyncio.gather(*(read() for _ in range(callers)))


# -- the conductor --------------------------------------------------------------------------------------------


def conduct(started: list[Worker], url: str, key: str, setting: Setting) -> Run:
    """Return what came of one run."""

    def tell(*line: object) -> None:
        for worker in started:
            worker.tell(json.dumps(line[0] if len(line) == 1 else line))

    tell(url, key, setting.callers, setting.fresh_for, time.time() + _AHEAD)
    answers = [json.loads(worker.answer()) for worker in started]
    cold = sum(loads for loads, _ in answers)
    if setting.fresh_for:
        time.sleep(setting.fresh_for)
        tell(time.time() + _AHEAD)
        for worker in started:
            worker.answer()
        # Until what runs in the background is stored.
        time.sleep(4 * _LOADER_TAKES)
    tell("close")
    loads = sum(int(worker.answer()) for worker in started)
    return Run(cold, loads - cold, max(slowest for _, slowest in answers))


async def row(server: Server, setting: Setting) -> list[str]:
    """Return the cells of a row."""
    runs = []
    async with ProxyElsewhere(server.port) as proxy:
        await proxy.tell(latency=setting.round_trip / 2)
        url = proxy.url if setting.round_trip else server.url
        with workers(setting.processes, "benchmarks.starts", "--work") as started:
            for number in range(setting.runs):
                key = f"starts:{setting.processes}:{setting.callers}:{number}"
                runs.append(await asyncio.to_thread(conduct, started, url, key, setting))
    right = sum(run.cold == 1 and run.stale == bool(setting.fresh_for) for run in runs)
    trip = f", a round trip of {1e3 * setting.round_trip:.0f} ms" if setting.round_trip else ""
    return [
        f"{setting.processes} processes x {setting.callers:,}{trip}",
        str(setting.runs),
        _range([run.cold for run in runs]),
        _range([run.stale for run in runs]) if setting.fresh_for else "",
        f"{max(run.slowest for run in runs):.2f}",
        f"1 load in {right} of {setting.runs} {'reached' if right == setting.runs else 'MISSED'}",
    ]


def _range(numbers: list[int]) -> str:
    least, most = min(numbers), max(numbers)
    return str(least) if least == most else f"{least} to {most}"


async def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few processes: to see that it runs, not to measure")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        await work()
        return
    print_machine("swr", "redis", "hiredis")
    rows = []
    with Server(kinds()[-1]) as server:
        for setting in QUICK if options.quick else FULL:
            rows.append(await row(server, setting))
    columns = ["", "runs", "loads cold", "loads stale", "slowest caller s", "goal"]
    table(f"Processes that start together, a loader of {_LOADER_TAKES:g} s", columns, rows)


if __name__ == "__main__":
    asyncio.run(main())

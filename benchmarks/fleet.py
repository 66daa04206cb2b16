"""A fleet's everyday and its worst: how long an invalidation takes, how long a killed master holds up refreshes.

    scripts/bench fleet [--quick]

Eight processes ask for one key every two milliseconds and a ninth invalidates it, by key and by tag in turns: from the
call until the last of the eight has asked and was not given the old value from its memory.

Then masters, of a cluster and behind sentinels, are killed (-9) while three caches, one of them without memory, read,
refresh in the background and refresh on demand. Servers are told to miss a master after a second. What is taken: the
seconds from the kill until the servers have another master, until the first entry of a key of the killed one has been
committed to Redis again (`Committed`), and until each of them has.
"""

import argparse
import asyncio
import contextlib
import json
import logging
import math
import random
import sys
import time
from collections.abc import Awaitable, Callable
from typing import NamedTuple

from benchmarks.measure import percentile, print_machine, table, verdict
from benchmarks.processes import workers
from swr import Cache, Cached
from swr.events import Committed
from tests.servers import ClusterOfSix, Sentinels, Server, kinds

_NAMESPACE = "fleet"
_TAG = "fleet"
_KEYS = 24
# Seconds: what refreshes may take longer than the servers' own time-out, and when they are given up.
_ALLOWED = 2.0
_AT_MOST = 30.0
# What was on its way at the kill does not count.
_ON_ITS_WAY = 0.05
_ASKED_EVERY = 0.002


class Setting(NamedTuple):
    """How many kills, processes and invalidations; when servers miss a master, and when it is killed (seconds)."""

    kills: int
    silent_for: float
    killed_after: float
    processes: int
    invalidations: int


FULL = Setting(kills=6, silent_for=1.0, killed_after=1.0, processes=8, invalidations=600)
QUICK = Setting(kills=1, silent_for=0.3, killed_after=0.2, processes=2, invalidations=6)


# -- a master -------------------------------------------------------------------------------------------------


class Outage:
    """What came of one kill, in seconds from it."""

    def __init__(self) -> None:
        self.answers = 0
        self.errors = 0
        self.keys: set[str] = set()
        self.killed_at = 0.0
        self.elected = math.inf
        self.over = asyncio.Event()
        self._committed: dict[str, float] = {}

    def note(self, event: Committed) -> None:
        """Listen to a cache."""
        seconds = time.monotonic() - self.killed_at
        if event.key in self.keys and seconds > _ON_ITS_WAY:
            self._committed.setdefault(event.key, seconds)
            if len(self._committed) == len(self.keys):
                self.over.set()

    def wait_for(self, elected: Callable[[], bool]) -> None:
        """Wait until there is another master, in a thread."""
        while (seconds := time.monotonic() - self.killed_at) < _AT_MOST:
            with contextlib.suppress(LookupError, OSError):
                if elected():
                    self.elected = seconds
                    return
            time.sleep(0.02)

    @property
    def first(self) -> float:
        """Until a refresh was committed."""
        return min(self._committed.values(), default=math.inf)

    @property
    def every(self) -> float:
        """Until every key had been."""
        return max(self._committed.values()) if self.over.is_set() else math.inf


class Fleet:
    """Three caches over the same servers, the last without memory, with their readers and refreshers.

    Parameters:
        url: of the servers.
        outage: where it is noted what becomes of them.
    """

    def __init__(self, url: str, outage: Outage) -> None:
        self._outage = outage
        self.caches = [Cache(url, namespace=_NAMESPACE, l1_max_bytes=size) for size in (2**20, 2**20, 0)]
        self._reads = [self._reader_of(cache) for cache in self.caches]
        self.keys = [self._reads[0].key(number) for number in range(_KEYS)]

    def _reader_of(self, cache: Cache) -> Cached[[int], int]:
        @cache.cached("key:{number}", fresh_for=0.1, stale_for=600)
        async def read(number: int) -> int:
            await asyncio.sleep(0.005)
            return number

        return read

    async def run(self) -> None:
        """Read, and refresh on demand, until cancelled."""
        async with asyncio.TaskGroup() as group:
            for read in self._reads:
                group.create_task(self._ask(read, 0.01))
                group.create_task(self._ask(read.refresh, 0.05))

    async def _ask(self, ask: Callable[[int], Awaitable[int]], every: float) -> None:
        while True:
            for number in range(_KEYS):
                try:
                    self._outage.errors += await ask(number) != number
                except Exception:
                    self._outage.errors += 1
                self._outage.answers += 1
            await asyncio.sleep(every)


async def kill(
    url: str, victim: Server, killed_after: float, has: Callable[[str], bool], elected: Callable[[], bool]
) -> Outage:
    """Kill a master while a fleet goes on.

    Parameters:
        killed_after: seconds.
        has: whether the victim has a key.
        elected: whether there is another master in its place; asked in a thread.
    """
    outage = Outage()
    fleet = Fleet(url, outage)
    async with contextlib.AsyncExitStack() as stack:
        for cache in fleet.caches:
            await stack.enter_async_context(cache)
        going_on = asyncio.create_task(fleet.run())
        await asyncio.sleep(killed_after)
        outage.keys = {key for key in fleet.keys if has(key)}
        for cache in fleet.caches:
            cache.subscribe(outage.note, Committed)
        outage.killed_at = time.monotonic()
        victim.kill()
        await asyncio.to_thread(outage.wait_for, elected)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_AT_MOST):
                await outage.over.wait()
        going_on.cancel()
        await asyncio.wait((going_on,))
    return outage


def in_cluster(kind: str, setting: Setting, turn: int) -> Outage:
    """Kill one of the masters of a new cluster."""
    with ClusterOfSix(kind, node_timeout=setting.silent_for) as cluster:
        victim = cluster.masters()[turn % 3]

        def has(key: str) -> bool:
            return cluster.master_of(f"{_NAMESPACE}:{{{key}}}".encode()) is victim

        def elected() -> bool:
            masters = cluster.masters()
            return len(masters) == 3 and victim not in masters

        return asyncio.run(kill(cluster.url, victim, setting.killed_after, has, elected))


def behind_sentinels(kind: str, setting: Setting, turn: int) -> Outage:
    """Kill the master that new sentinels watch."""
    with Sentinels(kind, down_after=setting.silent_for) as group:
        victim = group.master()
        return asyncio.run(
            kill(group.url, victim, setting.killed_after, lambda key: True, lambda: group.master() is not victim)
        )


def failover(kind: str, setting: Setting) -> None:
    """Print the table of masters that are killed."""
    rows = []
    goal = setting.silent_for + _ALLOWED
    for name, one in (("cluster, node_timeout", in_cluster), ("sentinels, down_after", behind_sentinels)):
        outages = [one(kind, setting, turn) for turn in range(setting.kills)]
        errors = sum(outage.errors for outage in outages)
        longest = max(outage.first for outage in outages)
        rows.append(
            [
                f"{name} {setting.silent_for:g} s",
                f"{sum(outage.answers for outage in outages):,}",
                str(errors),
                *(
                    ", ".join(f"{seconds:.1f}" for seconds in column)
                    for column in (
                        [outage.elected for outage in outages],
                        [outage.first for outage in outages],
                        [outage.every for outage in outages],
                    )
                ),
                f"0, ≤ {goal:g} s {'reached' if errors == 0 and longest <= goal else 'MISSED'}",
            ]
        )
    columns = ["a master is killed", "answers", "errors", "another s", "refreshes resume s", "of every key s", "goal"]
    table(f"Seconds from the kill, each of {setting.kills}, server {kind}", columns, rows)


# -- an invalidation ------------------------------------------------------------------------------------------


def reader_of(cache: Cache) -> Cached[[], float]:
    """Return a loader, behind the cache, of the time: the clock is that of the machine, the same in all processes."""

    @cache.cached("key", fresh_for=3600, tags=(_TAG,))
    async def read() -> float:
        return time.monotonic()

    return read


async def work(url: str) -> None:
    """Ask until a line comes; then say when which value was given for the first time."""
    async with Cache(url, namespace=_NAMESPACE) as cache:
        read = reader_of(cache)
        seen = [(time.monotonic(), await read())]
        print("ready", flush=True)
        end = asyncio.create_task(asyncio.to_thread(sys.stdin.readline))
        while not end.done():
            asked = time.monotonic()
            value = await read()
            if value != seen[-1][1]:
                seen.append((asked, value))
            await asyncio.sleep(_ASKED_EVERY)
        print(json.dumps(seen), flush=True)


async def invalidate(url: str, times: int) -> list[tuple[str, float, float]]:
    """Invalidate in this process; return how, and from when to when that took."""
    calls = []
    async with Cache(url, namespace=_NAMESPACE) as cache:
        read = reader_of(cache)
        await asyncio.sleep(0.5)
        for number in range(times):
            how = ("key", "tag")[number % 2]
            began = time.monotonic()
            await (read.invalidate() if how == "key" else cache.invalidate_tag(_TAG))
            calls.append((how, began, time.monotonic()))
            # Until all of them have it in memory again.
            await asyncio.sleep(random.uniform(0.08, 0.12))
    return calls


def invalidation(kind: str, setting: Setting) -> None:
    """Print the table of invalidations."""
    with Server(kind) as server, workers(setting.processes, "benchmarks.fleet", "--work", server.url) as started:
        calls = asyncio.run(invalidate(server.url, setting.invalidations))
        for worker in started:
            worker.tell("end")
        seen = [json.loads(worker.answer()) for worker in started]
    last: dict[str, list[float]] = {"key": [], "tag": []}
    for how, began, _ in calls:
        # When each first asked for what then was not the old value any more.
        asked = [next((asked for asked, value in of_one if value > began), math.inf) for of_one in seen]
        last[how].append(1000 * (max(asked) - began))
    rows = []
    for how, waits in last.items():
        returned = [1000 * (end - began) for how_called, began, end in calls if how_called == how]
        figures = [f"{percentile(waits, percent):.1f}" for percent in (50, 99, 100)]
        goal = verdict(percentile(waits, 99), at_most=20)
        rows.append([f"by {how}", str(len(waits)), f"{percentile(returned, 50):.1f}", *figures, goal])
    columns = ["invalidated", "times", "returned p50 ms", "p50 ms", "p99 ms", "most ms", "goal (p99)"]
    table(f"Until the last of {setting.processes} processes serves it no more, server {kind}", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="one kill: to see that it runs, not to measure")
    parser.add_argument("--work", metavar="URL", help=argparse.SUPPRESS)
    options = parser.parse_args()
    # That Redis is away is said at every kill.
    logging.getLogger("swr").setLevel(logging.ERROR)
    if options.work:
        asyncio.run(work(options.work))
        return
    setting = QUICK if options.quick else FULL
    print_machine("swr", "redis")
    kind = kinds()[-1]
    invalidation(kind, setting)
    failover(kind, setting)


if __name__ == "__main__":
    main()

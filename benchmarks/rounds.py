"""What a round of many groups asks of Redis, by the number of workers, and on a cluster of six masters.

    scripts/bench rounds [--quick]

One round of a refresher whose loader returns at once. A worker is a cache of its own, with connections of its own;
several share a process. The round lasts from the moment at which all workers are told to begin until every group is
loaded and its task settled. Requests are those that all workers send in it, without the signs of life that they also
send when there is nothing to do. The server's time is the CPU time of the busiest server.
"""

import argparse
import asyncio
import json
import sys
import time
from contextlib import AsyncExitStack
from typing import Any, Literal, NamedTuple, Self

from benchmarks.measure import print_machine, table, verdict
from benchmarks.processes import Worker, workers
from examples.cluster.servers import join
from swr import Cache, Refresher
from tests.servers import ClusterOfSix, Server, kinds

_NAME = "rounds"
# No second round begins while this runs.
_EVERY = 1e9
# A busy machine is not an outage, in seconds.
_PATIENCE = 10.0
_MASTERS = 6
_MILLION = 1_000_000
_WITHIN = 60.0


class Setting(NamedTuple):
    """One row: the workers are spread over processes; on a cluster, there is a shard for each master."""

    strategy: Literal["locks", "queue"]
    groups: int
    workers: int
    processes: int
    is_cluster: bool = False


FULL = [
    *(Setting("queue", 10_000, number, 4) for number in (4, 16, 48, 96)),
    *(Setting(strategy, 100_000, 4, 4, is_cluster=True) for strategy in ("locks", "queue")),
]
QUICK = [Setting("queue", 200, 4, 2), Setting("locks", 200, 2, 2)]


class SixMasters(ClusterOfSix):
    """Six masters without replicas."""

    def __enter__(self) -> Self:
        try:
            for node in self.nodes:
                node.start()
            join(self.nodes, [])
        except BaseException:
            self.__exit__()
            raise
        return self


class Round(NamedTuple):
    """Seconds; requests; loads; CPU seconds of the busiest server."""

    seconds: float
    requests: float
    loads: int
    server: float


# -- a process of workers -------------------------------------------------------------------------------------


async def work(url: str, setting: Setting) -> None:
    """Begin a round when a line comes; answer each further one with loads, requests, and what is left to do."""
    loads = 0
    number = setting.workers // setting.processes
    caches = [Cache(url, namespace=_NAME, timeout=_PATIENCE, l1_max_bytes=2**20) for _ in range(number)]

    def refresher_of(cache: Cache) -> Refresher:
        @cache.cached("rounds:{group}", fresh_for=3600)
        async def load(group: int) -> int:
            nonlocal loads
            loads += 1
            return group

        shards = _MASTERS if setting.is_cluster and setting.strategy == "queue" else 1
        return Refresher(load, range(setting.groups), _EVERY, setting.strategy, name=_NAME, shards=shards)

    refreshers = [refresher_of(cache) for cache in caches]
    async with AsyncExitStack() as stack:
        for cache in caches:
            await stack.enter_async_context(cache)
            await cache.engine.ready()
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
        for refresher in refreshers:
            await stack.enter_async_context(refresher)
        while (line := (await asyncio.to_thread(sys.stdin.readline)).strip()) != "":
            sent = sum(cache.engine.store.sent for cache in caches)
            left = 0
            if line == "left" and setting.strategy == "queue":
                status = await refreshers[0].status()
                left = status.queued + status.running + status.waiting + (status.round is None)
            print(json.dumps([loads, sent, left]), flush=True)


# -- the conductor --------------------------------------------------------------------------------------------


def _told(started: list[Worker], line: str) -> list[list[int]]:
    for worker in started:
        worker.tell(line)
    return [json.loads(worker.answer()) for worker in started]


def _cpu_of(servers: list[Server]) -> list[float]:
    taken = []
    for server in servers:
        lines = dict(line.split(":") for line in server.says("INFO", "cpu").split() if ":" in line)
        taken.append(float(lines["used_cpu_user"]) + float(lines["used_cpu_sys"]))
    return taken


def conduct(url: str, servers: list[Server], setting: Setting) -> Round:
    """Return what a round came to."""
    arguments = ["--work", url, json.dumps(setting)]
    with workers(setting.processes, "benchmarks.rounds", *arguments) as started:
        before, began = _cpu_of(servers), time.monotonic()
        for worker in started:
            worker.tell("begin")
        while True:
            time.sleep(0.2)
            answers = _told(started, "how far")
            if sum(loads for loads, _, _ in answers) >= setting.groups:
                worker = started[0]
                worker.tell("left")
                if json.loads(worker.answer())[2] == 0:
                    break
        seconds = time.monotonic() - began
        taken = [after - at for after, at in zip(_cpu_of(servers), before, strict=True)]
        loads, sent, _ = map(sum, zip(*_told(started, "how far"), strict=True))
        rest = 5.0 if setting in FULL else 0.5
        time.sleep(rest)
        # What all send when there is nothing to do.
        alive = (sum(sent for _, sent, _ in _told(started, "how far")) - sent) / rest
    return Round(seconds, sent - alive * seconds, loads, max(taken))


def row(setting: Setting) -> list[str]:
    """Return the cells of a row."""
    kind = kinds()[-1]
    if setting.is_cluster:
        with SixMasters(kind, node_timeout=_PATIENCE) as cluster:
            one = conduct(cluster.url, cluster.nodes, setting)
    else:
        with Server(kind) as server:
            one = conduct(server.url, [server], setting)
    of_group = 1e6 * one.server / setting.groups
    for_million = of_group * _MILLION / 1e6
    return [
        f"{setting.strategy}, {setting.groups:,} groups, {setting.workers} workers{', cluster' * setting.is_cluster}",
        f"{one.loads / setting.groups:.2f}",
        f"{one.requests / setting.groups:.2f}",
        verdict(one.requests / setting.groups, at_most=2),
        f"{one.seconds:.1f}",
        f"{of_group:.0f}",
        f"{for_million:.0f}",
        verdict(for_million, at_most=_WITHIN) if setting.is_cluster else "",
    ]


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few groups: to see that it runs, not to measure")
    parser.add_argument("--work", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.work:
        url, setting = options.work
        values: list[Any] = json.loads(setting)
        asyncio.run(work(url, Setting(*values)))
        return
    print_machine("swr", "redis", "hiredis")
    rows = []
    for setting in QUICK if options.quick else FULL:
        rows.append(row(setting))
        print(f"done: {', '.join(rows[-1])}", file=sys.stderr)
    columns = ["", "loads a group", "requests a group", "goal", "round s", "busiest server, µs a group"]
    columns += ["s a million groups", "goal (s)"]
    table("One round, a loader that returns at once", columns, rows)


if __name__ == "__main__":
    main()

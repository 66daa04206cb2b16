"""What the dashboard costs: Redis for the digests of a fleet, a process for making them, and a hit for nothing.

    scripts/bench dashboard [--quick]

A hundred caches with ten loaders each, on one event loop, heartbeat to one server. With and without `reports=True` the
time that the server's process computes is compared. The page is looked at once a second in a third run.
"""

import argparse
import asyncio
import time
from contextlib import AsyncExitStack
from typing import Any

import httpx

import swr
from benchmarks.decorator import repeated
from benchmarks.measure import Run, interleave, print_machine, ratio, table
from swr import Cache
from tests.servers import Server, kinds

_LOADERS = 10


async def load(group: str) -> str:
    """Return something."""
    return group


def computed(server: Server) -> float:
    """Return the seconds that a server has computed."""
    lines = server.command("INFO", "cpu").decode().splitlines()
    found = dict(line.split(":", 1) for line in lines if ":" in line)
    return float(found["used_cpu_sys"]) + float(found["used_cpu_user"])


def sent(caches: list[Cache]) -> int:
    """Return how many commands caches have sent."""
    return sum(cache.engine.store.sent for cache in caches)


async def fleet(
    server: Server, processes: int, seconds: float, *, reports: bool, page: bool
) -> tuple[float, float, int]:
    """Return the share of a core that a server computes, its commands by process and second, and a digest's bytes."""
    server.command("FLUSHALL")
    async with AsyncExitStack() as stack:
        caches = [await stack.enter_async_context(Cache(server.url, reports=reports)) for _ in range(processes)]
        for cache in caches:
            for number in range(_LOADERS):
                await cache.cached(f"ranking-{number}:{{group}}", fresh_for=3600)(load)("ATL")
        looking: asyncio.Task[None] | None = None
        if page:
            transport = httpx.ASGITransport(swr.dashboard(caches[0], auth=lambda request: True))
            client = await stack.enter_async_context(
                httpx.AsyncClient(transport=transport, base_url="http://localhost")
            )
            looking = asyncio.create_task(look(client))
        await asyncio.sleep(2)
        began, before, commands = time.perf_counter(), computed(server), sent(caches)
        await asyncio.sleep(seconds)
        took = time.perf_counter() - began
        share, number = (computed(server) - before) / took, (sent(caches) - commands) / took / processes
        size = 0
        if reports:
            made: Any = caches[0].report()
            size = len(made.make())
        if looking is not None:
            looking.cancel()
        return share, number, size


async def look(client: httpx.AsyncClient) -> None:
    """Look at the page once a second."""
    while True:
        await client.get("/state")
        await asyncio.sleep(1)


async def hits(rounds: int, calls: int) -> None:
    """Print what a fresh hit costs with and without reports."""
    async with Cache() as without, Cache(reports=True) as reporting:
        runs: dict[str, Run] = {
            "without": repeated(without.cached("ranking:{group}", fresh_for=3600)(load)),
            "reports=True": repeated(reporting.cached("ranking:{group}", fresh_for=3600)(load)),
        }
        taken = await interleave(runs, dict.fromkeys(runs, calls), rounds)
    rows = [
        [name, f"{min(figures) * 1e6:.3f}", f"{ratio(figures, taken['without']):.3f}"]
        for name, figures in taken.items()
    ]
    table(f"A fresh hit (best of {rounds} rounds, ratio by the median)", ["", "µs", "to without"], rows)


async def digests(calls: int) -> None:
    """Print what making a digest, and merging a hundred, takes."""
    async with Cache(reports=True) as cache:
        for number in range(_LOADERS):
            await cache.cached(f"ranking-{number}:{{group}}", fresh_for=3600)(load)("ATL")
        made: Any = cache.report()
        began = time.perf_counter()
        for _ in range(calls):
            made.make()
        took = (time.perf_counter() - began) / calls
        table("In each process, once a second", ["work", "µs"], [["make and encode a digest", f"{took * 1e6:.0f}"]])


async def measure(quick: bool) -> None:
    """Print all tables."""
    # Longer than between two heartbeats.
    processes, seconds = (5, 1.5) if quick else (100, 10.0)
    rows = []
    with Server(kinds()[0]) as server:
        for name, reports, page in (
            ("without digests", False, False),
            ("with digests", True, False),
            ("with digests, and a page is open", True, True),
        ):
            share, number, size = await fleet(server, processes, seconds, reports=reports, page=page)
            by_command = share / (number * processes) * 1e6
            rows.append([name, f"{share:.2%}", f"{number:.2f}", f"{by_command:.0f}", str(size or "-")])
    columns = ["", "of a core in Redis", "commands/s by process", "µs of Redis by command", "bytes of a digest"]
    table(f"{processes} idle processes with {_LOADERS} loaders each", columns, rows)
    await digests(10 if quick else 2000)
    await hits(2 if quick else 15, 100 if quick else 100_000)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few calls: to see that it runs, not to measure")
    quick = parser.parse_args().quick
    print_machine("swr", "redis")
    asyncio.run(measure(quick))


if __name__ == "__main__":
    main()

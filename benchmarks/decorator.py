"""What a hit costs: `@cache.cached` in memory and in Redis, against others in the same run.

    scripts/bench decorator [--quick]

One reader, one key, one call after the other. In memory the figures are of the call alone; in Redis, of the
call and its trip over the loopback. `.sync` is called on a thread without an event loop.
"""

import argparse
import asyncio
import json
import statistics
import time
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from typing import Any

from redis.asyncio import Redis

from benchmarks.measure import (
    Run,
    installed,
    interleave,
    print_machine,
    ratio,
    run_with_loop,
    share,
    table,
    verdict,
)
from benchmarks.rankings import Aircraft, top100, top100_plain
from swr import Cache
from tests.servers import Server, kinds


def repeated(hit: Callable[[str], Awaitable[Any]]) -> Run:
    """Return what calls `hit` so many times and returns the seconds."""

    async def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            await hit("ATL")
        return time.perf_counter() - began

    return run


async def in_memory(url: str, rounds: int, calls: int) -> None:
    """Print the table of hits in this process's memory."""
    ranking = top100_plain()

    async def load(group: str) -> list[dict[str, Any]]:
        return ranking

    async with AsyncExitStack() as stack:
        embedded = await stack.enter_async_context(Cache())
        tiered = await stack.enter_async_context(Cache(url))
        hits: dict[str, Callable[[str], Awaitable[Any]]] = {
            "swr, Cache()": embedded.cached("ranking:{group}", fresh_for=3600)(load),
            "swr, Cache(redis), L1": tiered.cached("ranking:{group}", fresh_for=3600)(load),
        }
        if installed("async_lru"):
            from async_lru import alru_cache

            hits["async_lru"] = alru_cache(maxsize=1024, ttl=3600)(load)
        if installed("cashews"):
            from cashews import Cache as CashewsCache

            cashews = CashewsCache()
            cashews.setup("mem://")
            hits["cashews, early"] = cashews.early(ttl=3600, early_ttl=1800, key="ranking:{group}")(load)
        if installed("aiocache"):
            import aiocache

            hits["aiocache, memory"] = aiocache.cached(ttl=3600, key_builder=lambda _, group: f"ranking:{group}")(load)
        for hit in hits.values():
            assert await hit("ATL") == ranking
        slow = ("cashews", "aiocache")
        counts = {name: max(1, calls // 20) if name.startswith(slow) else calls for name in hits}
        taken = await interleave({name: repeated(hit) for name, hit in hits.items()}, counts, rounds)

    ours = [name for name in hits if name.startswith("swr")]
    rows = []
    for name, seconds in taken.items():
        cells = [name, f"{statistics.median(seconds) * 1e6:.2f}"]
        if name in ours:
            rows.append([*cells, *("" for _ in ours), ""])
            continue
        factors = [ratio(taken[own], seconds) for own in ours]
        # A hit of async_lru does nothing that could be left out; the others show what a hit usually costs.
        goal = 1.5 if name == "async_lru" else 1 / 15
        rows.append([*cells, *map(share, factors), verdict(max(factors), at_most=goal)])
    columns = ["fresh hit in memory", "µs per call", *(f"{own} to it" for own in ours), "goal"]
    table(f"A hit in memory (median of {rounds} rounds)", columns, rows)


def without_a_loop(rounds: int, calls: int) -> None:
    """Print the table of hits in memory by `.sync`, beside awaited ones."""
    ranking = top100_plain()

    async def load(group: str) -> list[dict[str, Any]]:
        return ranking

    def sync_hits(hit: Callable[[str], Any], times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            hit("ATL")
        return time.perf_counter() - began

    async def awaited_hits() -> float:
        async with Cache() as cache:
            hit = cache.cached("ranking:{group}", fresh_for=3600)(load)
            assert await hit("ATL") == ranking
            return await repeated(hit)(calls) / calls

    cache = Cache()
    hit = cache.cached("ranking:{group}", fresh_for=3600)(load).sync
    assert hit("ATL") == ranking
    times = max(1, calls // 20)
    taken: dict[str, list[float]] = {"await": [], ".sync": []}
    for _ in range(rounds):
        taken["await"].append(asyncio.run(awaited_hits()))
        taken[".sync"].append(sync_hits(hit, times) / times)
    cache.sync.close()
    rows = [[name, f"{statistics.median(seconds) * 1e6:.2f}"] for name, seconds in taken.items()]
    table(f"A hit in memory, awaited and by .sync (median of {rounds} rounds)", ["fresh hit", "µs per call"], rows)


async def in_redis(url: str, kind: str, loop: str, rounds: int, calls: int) -> None:
    """Print the table of hits in Redis, with nothing held in this process."""
    plain, typed = top100_plain(), top100()

    async def load_plain(group: str) -> list[dict[str, Any]]:
        return plain

    async def load_typed(group: str) -> list[Aircraft]:
        return typed

    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(Cache(url, l1_max_bytes=0, namespace="bench-l2"))
        client = await stack.enter_async_context(Redis.from_url(url, socket_timeout=60, socket_connect_timeout=60))
        await client.set("bench:json", json.dumps(plain))

        async def get_and_loads(group: str) -> Any:
            return json.loads(await client.get("bench:json"))

        async def get_and_rows(group: str) -> Any:
            return [Aircraft(**row) for row in json.loads(await client.get("bench:json"))]

        hits: dict[str, Callable[[str], Awaitable[Any]]] = {
            "redis-py GET + json.loads": get_and_loads,
            "redis-py GET + json.loads + dataclasses": get_and_rows,
            "swr, list[dict]": cache.cached("plain:{group}", fresh_for=3600)(load_plain),
            "swr, list[dataclass]": cache.cached("typed:{group}", fresh_for=3600)(load_typed),
        }
        for hit in hits.values():
            assert await hit("ATL") in (plain, typed)
        # Loaded once; from now on they come from Redis, and a new object every time.
        for name in ("swr, list[dict]", "swr, list[dataclass]"):
            assert await hits[name]("ATL") is not await hits[name]("ATL")
        taken = await interleave(
            {name: repeated(hit) for name, hit in hits.items()}, dict.fromkeys(hits, calls), rounds
        )

    bare, built = taken["redis-py GET + json.loads"], taken["redis-py GET + json.loads + dataclasses"]
    rows = []
    for name, seconds in taken.items():
        own = name.startswith("swr")
        factor = ratio(seconds, bare)
        rows.append(
            [
                name,
                f"{statistics.median(seconds) * 1e6:.0f}",
                f"{factor:.2f}",
                f"{ratio(seconds, built):.2f}",
                verdict(factor, at_most=1.25) if own else "",
            ]
        )
    columns = [
        f"{loop}: hit in Redis, L1 off",
        "µs per call",
        "to GET + loads",
        "to GET + loads + dataclasses",
        "goal (to GET + loads)",
    ]
    table(f"A hit in Redis, event loop {loop}, server {kind} (median of {rounds} rounds)", columns, rows)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few calls: to see that it runs, not to measure")
    quick = parser.parse_args().quick
    rounds, calls, trips = (2, 200, 20) if quick else (15, 100_000, 1_000)
    print_machine("swr", "redis", "async-lru", "cashews", "aiocache", "uvloop")
    kind = kinds()[-1]
    with Server(kind) as server:
        asyncio.run(in_memory(server.url, rounds, calls))
        without_a_loop(rounds, calls)
        for loop in ("asyncio", "uvloop"):
            if loop == "asyncio" or installed(loop):
                run_with_loop(lambda loop=loop: in_redis(server.url, kind, loop, rounds, trips), loop)


if __name__ == "__main__":
    main()

"""What Redis gives to many at once: 64 coroutines that read distinct values, against redis-py in the same run.

    scripts/bench reads [--quick]

Nothing is held in the process (`l1_max_bytes=0`), and every key is there. What is timed is one read by each of the 64
coroutines, again and again; "one by one" is one coroutine that reads as many.
"""

import argparse
import asyncio
import functools
import json
import statistics
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from typing import Any

from redis.asyncio import Redis

from benchmarks.measure import Run, installed, interleave, print_machine, ratio, run_with_loop, table, verdict
from benchmarks.rankings import top100_body, top100_plain
from swr import Cache
from tests.servers import Server, kinds

COROUTINES = 64
SWR, MGET = "swr, 64 coroutines", "redis-py MGET of 64"


def side_by_side(read: Callable[[int], Awaitable[Any]]) -> Run:
    """Return what has every coroutine read its own value so many times, and returns the seconds."""

    async def one(number: int, times: int) -> None:
        for _ in range(times):
            await read(number)

    async def run(times: int) -> float:
        began = time.perf_counter()
        async with asyncio.TaskGroup() as group:
            for number in range(COROUTINES):
                group.create_task(one(number, times))
        return time.perf_counter() - began

    return run


def one_by_one(read: Callable[[int], Awaitable[Any]]) -> Run:
    """Return what reads all values, each after the other, so many times, and returns the seconds."""

    async def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            for number in range(COROUTINES):
                await read(number)
        return time.perf_counter() - began

    return run


def at_once(read: Callable[[], Awaitable[Any]]) -> Run:
    """Return what reads all values by one command, so many times, and returns the seconds."""

    async def run(times: int) -> float:
        began = time.perf_counter()
        for _ in range(times):
            await read()
        return time.perf_counter() - began

    return run


async def compare(
    client: Redis,
    swr: Callable[[int], Awaitable[Any]],
    stored: Sequence[bytes],
    decode: Callable[[Any], Any],
    setting: tuple[int, int],
) -> dict[str, list[float]]:
    """Return, by contestant, the seconds per value of each round."""
    rounds, times = setting
    names = [f"bench:{number}" for number in range(COROUTINES)]
    await client.mset(dict(zip(names, stored, strict=True)))

    async def get(number: int) -> Any:
        return decode(await client.get(names[number]))

    async def mget() -> list[Any]:
        return [decode(value) for value in await client.mget(names)]

    values = await mget()
    # Loaded once; from now on they come from Redis, and a new object every time.
    assert [await swr(number) for number in range(COROUTINES)] == values
    assert await swr(0) is not await swr(0)
    contestants = {
        SWR: side_by_side(swr),
        "redis-py GET, one by one": one_by_one(get),
        "redis-py GET, 64 coroutines": side_by_side(get),
        MGET: at_once(mget),
    }
    taken = await interleave(contestants, dict.fromkeys(contestants, times), rounds)
    return {name: [seconds / COROUTINES for seconds in per_round] for name, per_round in taken.items()}


def show(title: str, what: str, goals: dict[str, float], taken: dict[str, list[float]]) -> None:
    """Print a table.

    Parameters:
        goals: for swr, to single GETs; and for one MGET, to swr.
    """
    swr, single = taken[SWR], taken["redis-py GET, one by one"]
    rows = []
    for name, seconds in taken.items():
        faster, to_swr = ratio(single, seconds), ratio(seconds, swr)
        rows.append(
            [
                name,
                f"{statistics.median(seconds) * 1e6:.1f}",
                f"{faster:.2f}",
                f"{to_swr:.2f}",
                verdict(faster if seconds is swr else to_swr, at_least=goals.get(name)),
            ]
        )
    table(title, [what, "µs per value", "x as fast as one by one", "to swr", "goal"], rows)


async def both(url: str, kind: str, loop: str, setting: tuple[int, int]) -> None:
    """Print the tables of bytes and of rankings."""
    bodies = [b"%b%02d" % (top100_body(), number) for number in range(COROUTINES)]
    rankings = [[{**row, "flights": number} for row in top100_plain()] for number in range(COROUTINES)]
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(Cache(url, l1_max_bytes=0, namespace=f"reads-{loop}"))
        client = await stack.enter_async_context(Redis.from_url(url, socket_timeout=60, socket_connect_timeout=60))

        @cache.cached("body:{number}", fresh_for=3600)
        async def body(number: int) -> bytes:
            return bodies[number]

        @cache.cached("ranking:{number}", fresh_for=3600)
        async def ranking(number: int) -> list[dict[str, Any]]:
            return rankings[number]

        where = f"event loop {loop}, server {kind} (median of {setting[0]} rounds)"
        taken = await compare(client, body, bodies, lambda value: value, setting)
        show(f"64 distinct values of 5 kB, {where}", f"{loop}: bytes", {SWR: 5, MGET: 0.7}, taken)
        stored = [json.dumps(value).encode() for value in rankings]
        taken = await compare(client, ranking, stored, json.loads, setting)
        show(f"64 distinct rankings, json.loads for redis-py, {where}", f"{loop}: list[dict]", {SWR: 3}, taken)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few reads: to see that it runs, not to measure")
    setting = (2, 2) if parser.parse_args().quick else (25, 30)
    print_machine("swr", "redis", "hiredis", "uvloop")
    kind = kinds()[-1]
    with Server(kind) as server:
        for loop in ("asyncio", "uvloop"):
            if loop == "asyncio" or installed(loop):
                run_with_loop(functools.partial(both, server.url, kind, loop, setting), loop)


if __name__ == "__main__":
    main()

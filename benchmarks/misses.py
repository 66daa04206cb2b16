"""What a miss costs: through the middleware, and with Redis at the end of a long line.

    scripts/bench misses [--quick]

First one request after another, each for a path of its own, to a Starlette route that returns JSON, without and with
the middleware in memory; no server. Then one loader's misses through a proxy on the loopback that delays what goes to
Redis and back, with the time before the load and after it counted in round trips. At the end a process that starts
there: until its cache is open, for its first miss, and for an invalidation.
"""

import argparse
import asyncio
import itertools
import statistics
import time
from typing import Any

from benchmarks.measure import Run, interleave, print_machine, ratio, table, verdict
from benchmarks.middleware import FIELDS, _scope
from benchmarks.peers import misses as misses_of_peers
from swr import Cache, Policy
from swr.middleware import SWRMiddleware
from tests.proxy import ProxyElsewhere
from tests.servers import Server, kinds

ROUTE, OURS = "Starlette JSON route", "swr middleware, miss"
# What a route answers that makes its answer at each request.
ROWS = [{"rank": rank, "tailnum": f"N{rank:05}", "minutes": rank / 7} for rank in range(100)]
ROUND_TRIPS = (0.001, 0.002)
LONG_ROUND_TRIPS = (0.001, 0.03, 0.1)


def route() -> Any:
    """Return a Starlette app whose one route makes JSON of a hundred rows."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import JSONResponse
    from starlette.routing import Route

    async def ranking(request: Request) -> JSONResponse:
        return JSONResponse(ROWS, headers=FIELDS)

    return Starlette(routes=[Route("/rankings/{group}", ranking)])


def _called(app: Any) -> Run:
    numbers = itertools.count()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def run(times: int) -> float:
        taken = 0.0
        for _ in range(times):
            path = f"/rankings/{next(numbers)}"
            scope = {**_scope([]), "path": path, "raw_path": path.encode()}
            began = time.perf_counter()
            await app(scope, receive, send)
            taken += time.perf_counter() - began
        return taken

    return run


async def middleware(rounds: int, calls: int) -> None:
    """Print what a miss costs without a server."""
    async with Cache() as cache:
        runs = {ROUTE: _called(route()), OURS: _called(SWRMiddleware(route(), cache))}
        taken = await interleave(runs, dict.fromkeys(runs, calls), rounds)
    more = statistics.median(1e6 * (a - b) for a, b in zip(taken[OURS], taken[ROUTE], strict=True))
    to_route = ratio(taken[OURS], taken[ROUTE])
    rows = []
    for name, seconds in taken.items():
        goal = ""
        if name == OURS:
            goal = f"{verdict(to_route, at_most=1.3)}; + {more:.0f} µs, ≤ 150 {'reached' if more <= 150 else 'MISSED'}"
        cells = [name, f"{1e6 * statistics.median(seconds):.0f}", f"{ratio(seconds, taken[ROUTE]):.2f}", goal]
        rows.append(cells)
    title = f"A miss without a server (median of {rounds} rounds of {calls} requests)"
    table(title, ["ASGI app", "µs per request", "to the route", "goals"], rows)


async def long_line(misses: int) -> None:
    """Print how long a loader's miss waits for Redis, before the load and after it."""
    rows = []
    with Server(kinds()[-1]) as server:
        async with ProxyElsewhere(server.port) as proxy, Cache(proxy.url) as cache:
            moments: list[float] = []

            @cache.cached("misses:{number}", fresh_for=60)
            async def load(number: int) -> int:
                moments.append(time.perf_counter())
                return number

            numbers, near = itertools.count(), None
            await load(next(numbers))
            for round_trip in (0.0, *ROUND_TRIPS):
                await proxy.tell(latency=round_trip / 2)
                before, after = [], []
                for _ in range(misses):
                    began = time.perf_counter()
                    await load(next(numbers))
                    before.append(1e3 * (moments[-1] - began))
                    after.append(1e3 * (time.perf_counter() - moments[-1]))
                medians = statistics.median(before), statistics.median(after)
                near = near or medians
                trips = [
                    f"{(far - close) / 1e3 / round_trip:.1f}" if round_trip else ""
                    for far, close in zip(medians, near, strict=True)
                ]
                rows.append([f"+ {1e3 * round_trip:.0f} ms", *(f"{median:.2f}" for median in medians), *trips])
    columns = ["round trip to Redis", "before the load, ms", "after it, ms", "round trips before", "after"]
    table(f"One miss after another (median of {misses})", columns, rows)


async def openings(round_trips: tuple[float, ...], tags: int, invalidations: int) -> None:
    """Print how long a process waits until its cache is open, for its first miss, and for an invalidation."""
    rows = []
    with Server(kinds()[-1]) as server:
        async with ProxyElsewhere(server.port) as proxy:
            for round_trip in round_trips:
                await proxy.tell(latency=round_trip / 2)
                times = [await _opening(proxy.url, "few", invalidations)]
                await proxy.tell(latency=0.0)
                async with Cache(server.url, namespace="many") as cache:
                    for first in range(0, tags, 1000):
                        await cache.invalidate_tags(*(f"tag {number}" for number in range(first, first + 1000)))
                await proxy.tell(latency=round_trip / 2)
                times.append(await _opening(proxy.url, "many", invalidations))
                (few, miss, invalidation), (many, _, _) = times
                rows.append(
                    [f"{1e3 * round_trip:.0f} ms", *(f"{seconds:.3f}" for seconds in (few, many, miss, invalidation))]
                )
    columns = ["a round trip to Redis", "opening, s", f"opening, {tags:,} tags, s", "first miss, s", "invalidate, s"]
    table("A process that starts", columns, rows)


async def _opening(url: str, namespace: str, invalidations: int) -> tuple[float, float, float]:
    """Return the seconds of an opening, of the first miss after it, and the median of invalidations."""
    began = time.perf_counter()
    async with Cache(url, namespace=namespace, connect_timeout=30, timeout=30) as cache:
        opened = time.perf_counter()
        await cache.get_or_load("first", lambda: 1, Policy(fresh_for=60))
        loaded = time.perf_counter()
        taken = []
        for _ in range(invalidations):
            before = time.perf_counter()
            await cache.invalidate("first")
            taken.append(time.perf_counter() - before)
    return opened - began, loaded - opened, statistics.median(taken)


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few rounds: to see that it runs, not to measure")
    quick = parser.parse_args().quick
    print_machine("swr", "starlette", "redis")
    asyncio.run(middleware(2 if quick else 25, 20 if quick else 300))
    asyncio.run(misses_of_peers(2 if quick else 15, 10 if quick else 100))
    asyncio.run(long_line(10 if quick else 200))
    asyncio.run(
        openings(LONG_ROUND_TRIPS[:1] if quick else LONG_ROUND_TRIPS, 1000 if quick else 100_000, 3 if quick else 30)
    )


if __name__ == "__main__":
    main()

"""What a fresh hit in the middleware costs: requests per second under uvicorn, and microseconds without a server.

    scripts/bench middleware [--quick]

Every app answers with the same 5 kB and the same header fields; the middleware adds its three, and the proxy, in
front of the bare app, `Date` and `Via`. Each runs in a
uvicorn of its own (one worker, httptools, uvloop, no access log), and `wrk -t1 -c32` asks one after the other in
short rounds. Without wrk there is only the second table: one call of the ASGI app, its messages thrown away.
"""

import argparse
import asyncio
import contextlib
import json
import os
import re
import shutil
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

from benchmarks.measure import Run, installed, interleave, print_machine, ratio, table, verdict
from benchmarks.rankings import top100_body
from swr import Cache
from swr.middleware import SWRMiddleware
from tests.servers import Server, free_port, kinds

PATH = "/rankings/ATL"
BODY = top100_body()
ETAG = '"top100-1"'
FIELDS = {"cache-control": "max-age=3600, stale-while-revalidate=3600", "etag": ETAG}
HEADERS = [
    (b"content-length", str(len(BODY)).encode()),
    (b"content-type", b"application/json"),
    *((name.encode(), value.encode()) for name, value in FIELDS.items()),
]


# -- the apps; uvicorn finds them here by name ------------------------------------------------------------------


# What a browser, an app on a phone and a browser behind a load balancer send beside Host.
BROWSER = [
    (b"connection", b"keep-alive"),
    (b"sec-ch-ua", b'"Chromium";v="142", "Not_A Brand";v="99"'),
    (b"sec-ch-ua-mobile", b"?0"),
    (b"sec-ch-ua-platform", b'"Linux"'),
    (b"upgrade-insecure-requests", b"1"),
    (b"user-agent", b"Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 Chrome/142.0 Safari/537.36"),
    (b"accept", b"text/html,application/xhtml+xml,*/*;q=0.8"),
    (b"sec-fetch-site", b"same-origin"),
    (b"sec-fetch-mode", b"navigate"),
    (b"sec-fetch-user", b"?1"),
    (b"sec-fetch-dest", b"document"),
    (b"referer", b"https://example.com/"),
    (b"accept-encoding", b"gzip, deflate, br, zstd"),
    (b"accept-language", b"en-US,en;q=0.9"),
]
PHONE = [
    (b"user-agent", b"Rankings/7 CFNetwork/1568 Darwin/24"),
    (b"accept", b"*/*"),
    (b"accept-language", b"en-US"),
    (b"accept-encoding", b"gzip, deflate, br"),
    (b"connection", b"keep-alive"),
]
BALANCER = [(b"x-forwarded-for", b"203.0.113.9"), (b"x-forwarded-proto", b"https"), (b"x-forwarded-port", b"443")]
REAL_FIELDS = {
    "fields of a browser": BROWSER,
    "fields of a phone": PHONE,
    "browser behind a balancer": [*BROWSER, *BALANCER],
}


VARIED = [*HEADERS, (b"vary", b"Accept-Encoding")]

# What the middleware adds to a fresh hit.
MARKS = [(b"age", b"17"), (b"swr-state", b"fresh"), (b"cache-status", b"swr; hit; ttl=3583")]


async def _send(send: Any, headers: list[tuple[bytes, bytes]]) -> None:
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": BODY})


def bare(headers: list[tuple[bytes, bytes]] = HEADERS) -> Any:
    """Return an ASGI app that is one function.

    Parameters:
        headers: the fields of its answer.
    """

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await _send(send, headers)
        else:
            assert scope["type"] == "lifespan"
            for what in ("startup", "shutdown"):
                await receive()
                await send({"type": f"lifespan.{what}.complete"})

    return app


def marked() -> Any:
    """Return the bare app with the fields that the middleware adds."""
    return bare(HEADERS + MARKS)


def swr_memory() -> Any:
    """Return the middleware over the bare app, in memory."""
    return SWRMiddleware(bare(), cache=Cache())


def swr_stale() -> Any:
    """Return the middleware over an app that answers once; from then on its answer is stale and being refreshed."""
    fields = [*HEADERS[:2], (b"cache-control", b"max-age=0, stale-while-revalidate=3600"), (b"etag", ETAG.encode())]
    runs = 0

    async def app(scope: Any, receive: Any, send: Any) -> None:
        nonlocal runs
        if scope["type"] == "lifespan":
            await bare()(scope, receive, send)
            return
        runs += 1
        if runs > 1:
            await asyncio.sleep(3600)
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": BODY})

    return SWRMiddleware(app, cache=Cache(drain_for=0))


def swr_redis() -> Any:
    """Return the middleware over the bare app, in memory in front of Redis."""
    return SWRMiddleware(bare(), cache=Cache(os.environ["BENCHMARK_REDIS"]))


def starlette() -> Any:
    """Return a Starlette app whose one route returns ready bytes."""
    from starlette.applications import Starlette
    from starlette.requests import Request
    from starlette.responses import Response
    from starlette.routing import Route

    async def ranking(request: Request) -> Response:
        return Response(BODY, media_type="application/json", headers=FIELDS)

    return Starlette(routes=[Route("/rankings/{group}", ranking)])


# The endpoints return rows, and say nothing of their type, as in the documentation of both of the other caches; FastAPI
# then looks at every value of every answer. One that says `-> list[Row]` is quicker, and is measured beside.


def fastapi_plain() -> Any:
    """Return a FastAPI app that makes the same bytes out of rows at every request."""
    from fastapi import FastAPI, Response

    app = FastAPI()
    rows = _rows()

    # Here and below without a return type, as in the documentation of those libraries: FastAPI goes by it.
    @app.get("/rankings/{group}")
    async def ranking(group: str, response: Response):  # type: ignore[no-untyped-def]  # as the peers document it
        response.headers.update(FIELDS)
        return rows

    return app


def fastapi_swr() -> Any:
    """Return the same FastAPI app behind the middleware."""
    app = fastapi_plain()
    app.add_middleware(SWRMiddleware, cache=Cache())
    return app


def fastapi_fastapi_cache() -> Any:
    """Return a FastAPI app whose endpoint carries fastapi-cache2's decorator, in memory."""
    from fastapi import FastAPI
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.inmemory import InMemoryBackend
    from fastapi_cache.decorator import cache

    app = FastAPI()
    rows = _rows()
    FastAPICache.init(InMemoryBackend())

    @app.get("/rankings/{group}")
    @cache(expire=3600)
    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return rows

    return app


def fastapi_cashews() -> Any:
    """Return a FastAPI app whose endpoint carries cashews' decorator, in memory."""
    from cashews import Cache as CashewsCache
    from fastapi import FastAPI

    app = FastAPI()
    rows = _rows()
    cache = CashewsCache()
    cache.setup("mem://")

    @app.get("/rankings/{group}")
    @cache.early(ttl=3600, early_ttl=1800, key="ranking:{group}")
    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return rows

    return app


def fastapi_cashews_typed() -> Any:
    """Return the same with an endpoint that says what it returns."""
    from cashews import Cache as CashewsCache
    from fastapi import FastAPI
    from pydantic import BaseModel

    class Row(BaseModel):
        rank: int
        tailnum: str
        minutes: float

    app = FastAPI()
    rows = [Row(**row) for row in _rows()]
    cache = CashewsCache()
    cache.setup("mem://")

    @app.get("/rankings/{group}")
    @cache.early(ttl=3600, early_ttl=1800, key="ranking:{group}")
    async def ranking(group: str) -> list[Row]:
        return rows

    return app


def fastapi_guarded(*, cached: bool = True) -> Any:
    """Return a FastAPI app behind a login; without `cached` its endpoint returns ready bytes, and nothing is cached."""
    from fastapi import APIRouter, Depends, FastAPI, HTTPException, Response
    from fastapi.security import HTTPBearer

    bearer = HTTPBearer()

    # Here without annotations as above, for they would name what only this function knows.
    async def guard(token=Depends(bearer)):  # type: ignore[no-untyped-def]  # noqa: B008
        if token.credentials != "a-token":
            raise HTTPException(401)

    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return Response(BODY, media_type="application/json", headers=FIELDS)

    app, router, cache = FastAPI(), APIRouter(dependencies=[Depends(guard)]), Cache()
    router.get("/rankings/{group}")(cache.response(fresh_for=3600)(ranking) if cached else ranking)
    app.include_router(router)
    if cached:
        app.add_middleware(SWRMiddleware, cache=cache)
    return app


def _rows() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads(BODY)
    return rows


# -- under uvicorn --------------------------------------------------------------------------------------------

BARE = "bare ASGI function"
MARKED = "bare ASGI function, three fields more"
OURS = "swr middleware, fresh hit"
CONFIRMED = f"{OURS}, 304"
VARYING = f"{OURS}, fields of a browser, Vary: Accept-Encoding"
STALE = "swr middleware, stale hit"
PROXY = "swr proxy, fresh hit"
ROUTE = "Starlette route, ready bytes"
LOGIN = "FastAPI behind a login, ready bytes"
BEHIND = "swr behind a login, fresh hit"
TOKEN = [(b"authorization", b"Bearer a-token")]


def fastapi_cachex() -> Any:
    """Return a FastAPI app whose endpoint carries fastapi-cachex's decorator, in memory."""
    from fastapi import FastAPI
    from fastapi_cachex import BackendProxy, cache
    from fastapi_cachex.backends import MemoryBackend

    app = FastAPI()
    rows = _rows()
    BackendProxy.set(MemoryBackend())

    @app.get("/rankings/{group}")
    @cache(ttl=3600)
    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return rows

    return app


def fastapi_redis_sdk() -> Any:
    """Return a FastAPI app whose endpoint has fastapi-redis-sdk's dependency; it has no memory of its own."""
    from fastapi import Depends, FastAPI
    from redis_fastapi import FastAPIRedis, cache, get_settings

    get_settings().url = os.environ["BENCHMARK_REDIS"]
    app = FastAPI()
    FastAPIRedis(app).lifespan().caching()
    rows = _rows()

    @app.get("/rankings/{group}", dependencies=[Depends(cache(ttl=3600))])
    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return rows

    return app


# The app's factory, and header fields of the request, by name.
Apps = dict[str, tuple[str, list[str]]]
WITH_GOALS: Apps = {
    BARE: ("bare", []),
    MARKED: ("marked", []),
    OURS: ("swr_memory", []),
    CONFIRMED: ("swr_memory", [f"If-None-Match: {ETAG}"]),
    STALE: ("swr_stale", []),
    PROXY: ("proxy", []),
    ROUTE: ("starlette", []),
}


def others() -> Apps:
    """Return what is measured beside, without goals, and the bare app to hold it against."""
    apps: Apps = {BARE: ("bare", []), OURS: ("swr_memory", []), ROUTE: ("starlette", [])}
    apps[f"{OURS}, L1 of Redis"] = ("swr_redis", [])
    if installed("fastapi"):
        apps["FastAPI, no cache"] = ("fastapi_plain", [])
        apps["FastAPI with swr middleware"] = ("fastapi_swr", [])
        if installed("cashews"):
            apps["FastAPI with cashews early"] = ("fastapi_cashews", [])
            apps["FastAPI with cashews early, typed"] = ("fastapi_cashews_typed", [])
        if installed("fastapi_cache"):
            apps["FastAPI with fastapi-cache2"] = ("fastapi_fastapi_cache", [])
        if installed("fastapi_cachex"):
            apps["FastAPI with fastapi-cachex"] = ("fastapi_cachex", [])
        if installed("redis_fastapi"):
            apps["FastAPI with fastapi-redis-sdk"] = ("fastapi_redis_sdk", [])
    return apps


def with_fields() -> Apps:
    """Return the bare app and the middleware, each with the fields that real clients send."""
    apps: Apps = {BARE: ("bare", []), OURS: ("swr_memory", []), ROUTE: ("starlette", [])}
    for client, fields in REAL_FIELDS.items():
        lines = [f"{name.decode()}: {value.decode()}" for name, value in fields]
        apps |= {f"{BARE}, {client}": ("bare", lines), f"{OURS}, {client}": ("swr_memory", lines)}
    return apps


@contextlib.contextmanager
def uvicorn(factory: str, redis_url: str, origin: int) -> Iterator[int]:
    """Run one app under uvicorn, or `swr proxy` in front of the port `origin`; the port."""
    port = free_port()
    if factory == "proxy":
        command = [sys.executable, "-m", "swr", "proxy", f"http://127.0.0.1:{origin}", "--listen", f"127.0.0.1:{port}"]
    else:
        command = [sys.executable, "-m", "uvicorn", f"benchmarks.middleware:{factory}", "--factory"]
        command += ["--port", str(port), "--no-access-log", "--log-level", "warning"]
        command += ["--loop", "uvloop", "--http", "httptools"]
    process = subprocess.Popen(command, env={**os.environ, "BENCHMARK_REDIS": redis_url})
    try:
        until = time.monotonic() + 20
        while True:
            try:
                socket.create_connection(("127.0.0.1", port), timeout=1).close()
                break
            except OSError:
                if process.poll() is not None or time.monotonic() > until:
                    raise
                time.sleep(0.05)
        yield port
    finally:
        process.terminate()
        process.wait()


def wrk(port: int, seconds: int, fields: list[str]) -> tuple[float, float]:
    """Return requests per second and the 99th percentile of latency in milliseconds."""
    command = ["wrk", "-t1", "-c32", f"-d{seconds}s", "--latency"]
    for field in fields:
        command += ["-H", field]
    command.append(f"http://127.0.0.1:{port}{PATH}")
    printed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    if "Non-2xx" in printed or "Socket errors" in printed:
        raise RuntimeError(f"wrk met errors:\n{printed}")
    rate, last = re.search(r"Requests/sec:\s+([\d.]+)", printed), re.search(r"99%\s+([\d.]+)(us|ms|s)", printed)
    assert rate is not None
    assert last is not None
    return float(rate[1]), float(last[1]) * {"us": 1e-3, "ms": 1.0, "s": 1e3}[last[2]]


def under_uvicorn(apps: Apps, rounds: int, seconds: int) -> None:
    """Print the table of requests per second; a single round needs no warm apps."""
    seconds_each: dict[str, list[float]] = {name: [] for name in apps}
    last: dict[str, list[float]] = {name: [] for name in apps}
    with contextlib.ExitStack() as stack:
        redis_url = stack.enter_context(Server(kinds()[-1])).url
        ports: dict[str, int] = {}
        for factory in dict.fromkeys(factory for factory, _ in apps.values()):
            ports[factory] = stack.enter_context(uvicorn(factory, redis_url, ports.get("bare", 0)))
        for factory, fields in apps.values() if rounds > 1 else ():
            wrk(ports[factory], 1, fields)
        names = list(apps)
        for turn in range(rounds):
            for name in names[turn % len(names) :] + names[: turn % len(names)]:
                factory, fields = apps[name]
                rate, slowest = wrk(ports[factory], seconds, fields)
                seconds_each[name].append(1 / rate)
                last[name].append(slowest)
    rows = []
    for name in apps:
        to_bare, to_route = (
            ratio(seconds_each[BARE], seconds_each[name]),
            ratio(seconds_each[ROUTE], seconds_each[name]),
        )
        goal = ""
        if name == OURS:
            goal = f"{verdict(to_bare, at_least=0.95)}; {verdict(to_route, at_least=1.3)}"
        elif name.removeprefix(f"{OURS}, ") in REAL_FIELDS:
            same = ratio(seconds_each[name.replace(OURS, BARE)], seconds_each[name])
            goal = f"{same:.2f} of the bare app with these fields"
        elif name == CONFIRMED:
            goal = verdict(to_bare, at_least=0.9)
        elif name == PROXY:
            to_ours = ratio(seconds_each[OURS], seconds_each[PROXY])
            goal = f"{to_ours:.2f} of the middleware, {verdict(to_ours, at_least=0.95)}"
        elif name == STALE:
            slower = ratio(last[STALE], last[OURS])
            goal = f"p99 {slower:.2f} of the fresh one's, {verdict(slower, at_most=1.2)}"
        elif name.startswith("FastAPI with") and "swr" not in name and "typed" not in name:
            faster = ratio(seconds_each[name], seconds_each[OURS])
            goal = f"the fresh hit is {faster:.0f} x as fast"
            if name.endswith(("cashews early", "fastapi-cache2")):
                goal += f", {verdict(faster, at_least=25)}"
        rate = 1 / statistics.median(seconds_each[name])
        cells = [
            name,
            f"{rate:,.0f}",
            f"{statistics.median(last[name]):.1f}",
            f"{to_bare:.2f}",
            f"{to_route:.2f}",
            goal,
        ]
        rows.append(cells)
    columns = ["uvicorn, wrk -t1 -c32", "requests/s", "p99 ms", "to bare", "to Starlette route", "goals"]
    table(f"Requests per second (median of {rounds} rounds of {seconds} s)", columns, rows)


# -- without a server -----------------------------------------------------------------------------------------


def _scope(fields: list[tuple[bytes, bytes]]) -> dict[str, Any]:
    """As uvicorn makes it for wrk's request."""
    return {
        "type": "http",
        "asgi": {"version": "3.0", "spec_version": "2.3"},
        "http_version": "1.1",
        "server": ("127.0.0.1", 8000),
        "client": ("127.0.0.1", 50000),
        "scheme": "http",
        "method": "GET",
        "root_path": "",
        "path": PATH,
        "raw_path": PATH.encode(),
        "query_string": b"",
        "headers": [(b"host", b"127.0.0.1:8000"), *fields],
        "state": {},
    }


def _called(app: Any, fields: list[tuple[bytes, bytes]]) -> Run:
    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        pass

    async def run(times: int) -> float:
        taken = 0.0
        for _ in range(times):
            # A scope of its own for each call, as a server makes it; making it is not counted.
            scope = _scope(fields)
            began = time.perf_counter()
            await app(scope, receive, send)
            taken += time.perf_counter() - began
        return taken

    return run


async def without_server(rounds: int, calls: int) -> None:
    """Print the table of microseconds per call of an ASGI app."""
    cache = Cache()
    async with cache:
        middleware = SWRMiddleware(bare(), cache=cache)
        runs = {
            BARE: _called(bare(), []),
            OURS: _called(middleware, []),
            CONFIRMED: _called(middleware, [(b"if-none-match", ETAG.encode())]),
            **{f"{OURS}, {name}": _called(middleware, fields) for name, fields in REAL_FIELDS.items()},
            VARYING: _called(SWRMiddleware(bare(VARIED), cache=cache, version="varied"), BROWSER),
            ROUTE: _called(starlette(), []),
        }
        if installed("fastapi"):
            runs[LOGIN] = _called(fastapi_guarded(cached=False), TOKEN)
            runs[BEHIND] = _called(fastapi_guarded(), TOKEN)
        taken = await interleave(runs, dict.fromkeys(runs, calls), rounds)
    rows = []
    for name, seconds in taken.items():
        each = statistics.median(seconds)
        goal = f"≥ 6,300 {'reached' if 1 / each >= 6_300 else 'MISSED'}" if name == BEHIND else ""
        rows.append([name, f"{each * 1e6:.1f}", f"{1 / each:,.0f}", f"{ratio(seconds, taken[ROUTE]):.2f}", goal])
    table(
        f"One call without a server (median of {rounds} rounds)",
        ["ASGI app", "µs per call", "calls/s", "to Starlette route", "goal"],
        rows,
    )


def main() -> None:
    """Run it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="short rounds: to see that it runs, not to measure")
    quick = parser.parse_args().quick
    print_machine(
        "swr",
        "starlette",
        "uvicorn",
        "httptools",
        "uvloop",
        "fastapi",
        "fastapi-cache2",
        "fastapi-cachex",
        "fastapi-redis-sdk",
        "cashews",
    )
    if shutil.which("wrk") is None:
        print("\nwrk is not on PATH, so there are no requests per second: apt install wrk, or brew install wrk")
    elif not installed("uvicorn", "httptools", "uvloop"):
        print("\nuvicorn[standard] is not installed, so no requests per second: scripts/venv benchmark")
    else:
        under_uvicorn(WITH_GOALS, 1 if quick else 15, 1 if quick else 2)
        if not quick:
            under_uvicorn(with_fields(), 11, 1)
            under_uvicorn(others(), 5, 2)
    asyncio.run(without_server(2 if quick else 25, 50 if quick else 2_000))


if __name__ == "__main__":
    main()

"""What a miss costs a FastAPI app with swr, and with others, each set up as its documentation says."""

import itertools
import statistics
import time
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

from benchmarks.measure import Run, installed, interleave, ratio, table
from benchmarks.middleware import _rows, _scope
from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from tests.servers import Server, kinds

PLAIN = "FastAPI, no cache"
_TTL = 3600


def _plain(*decorators: Any, **options: Any) -> Any:
    from fastapi import FastAPI

    app, rows = FastAPI(), _rows()

    async def ranking(group: str):  # type: ignore[no-untyped-def]  # as the peers document it
        return rows

    for decorator in decorators:
        ranking = decorator(ranking)
    app.get("/rankings/{group}", **options)(ranking)
    return app


@asynccontextmanager
async def _swr(url: str | None) -> AsyncIterator[Any]:
    async with Cache(url) as cache:
        app = _plain()
        app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/rankings/{group}", fresh_for=_TTL)])
        yield app


@asynccontextmanager
async def _fastapi_cache2(url: str) -> AsyncIterator[Any]:
    from fastapi_cache import FastAPICache
    from fastapi_cache.backends.redis import RedisBackend
    from fastapi_cache.decorator import cache
    from redis.asyncio import Redis

    async with Redis.from_url(url) as client:
        FastAPICache.init(RedisBackend(client))
        yield _plain(cache(expire=_TTL))


@asynccontextmanager
async def _fastapi_cachex(url: str) -> AsyncIterator[Any]:
    from fastapi_cachex import BackendProxy, cache
    from fastapi_cachex.backends import AsyncRedisCacheBackend

    BackendProxy.set(AsyncRedisCacheBackend(port=int(url.rpartition(":")[2].partition("/")[0])))
    yield _plain(cache(ttl=_TTL))


@asynccontextmanager
async def _fastapi_redis_sdk(url: str) -> AsyncIterator[Any]:
    from fastapi import Depends
    from redis_fastapi import FastAPIRedis, cache, get_settings

    get_settings().url = url
    app = _plain(dependencies=[Depends(cache(ttl=_TTL))])
    FastAPIRedis(app).lifespan().caching()
    async with app.router.lifespan_context(app):
        yield app


# What has to be installed, and what makes the app, by name.
_OTHERS = {
    "fastapi-cache2, Redis": ("fastapi_cache", _fastapi_cache2),
    "fastapi-cachex, Redis": ("fastapi_cachex", _fastapi_cachex),
    "fastapi-redis-sdk": ("redis_fastapi", _fastapi_redis_sdk),
}


def _asked(app: Any, bodies: list[bytes]) -> Run:
    """Return what asks an app for one new path after another, and appends the bodies of the answers."""
    numbers = itertools.count()

    async def receive() -> dict[str, Any]:
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message: Any) -> None:
        if message["type"] == "http.response.body":
            bodies[-1] += message.get("body", b"")

    async def run(times: int) -> float:
        taken = 0.0
        for _ in range(times):
            path = f"/rankings/{next(numbers)}"
            scope = {**_scope([]), "path": path, "raw_path": path.encode()}
            bodies.append(b"")
            began = time.perf_counter()
            await app(scope, receive, send)
            taken += time.perf_counter() - began
        return taken

    return run


async def misses(rounds: int, calls: int) -> None:
    """Print the table of misses."""
    if not installed("fastapi"):
        return
    with Server(kinds()[-1]) as server:
        async with AsyncExitStack() as stack:
            apps = {PLAIN: _plain()}
            apps["swr middleware, memory"] = await stack.enter_async_context(_swr(None))
            apps["swr middleware, Redis"] = await stack.enter_async_context(_swr(server.url))
            for name, (module, make) in _OTHERS.items():
                if installed(module):
                    apps[name] = await stack.enter_async_context(make(server.url))
            bodies: dict[str, list[bytes]] = {name: [] for name in apps}
            runs = {name: _asked(app, bodies[name]) for name, app in apps.items()}
            taken = await interleave(runs, dict.fromkeys(runs, calls), rounds)
    (body,) = {body for of_app in bodies.values() for body in of_app}
    rows = [
        [name, f"{1e6 * statistics.median(seconds):,.0f}", f"{ratio(seconds, taken[PLAIN]):.2f}"]
        for name, seconds in taken.items()
    ]
    title = f"A miss of a FastAPI app without a server, {len(body):,} bytes (median of {rounds} rounds of {calls})"
    table(title, ["FastAPI with", "µs per request", "to no cache"], rows)

"""The app of the processes in `tests/test_page.py`: loaders, routes and a queue that fail while a file exists."""

import asyncio
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import FastAPI

from swr import Cache, Refresher, dashboard
from swr.middleware import SWRMiddleware

FAULTS = Path(os.environ["FAULTS"])
cache = Cache(os.environ["REDIS_URL"], namespace="shop", reports=True, release="2026.11.2", lease_for=2)


@cache.cached("ranking:{group}", fresh_for=1, stale_for=60, tags=("group:{group}",))
async def ranking(group: str) -> list[str]:
    await asyncio.sleep(0.02)
    return [f"{group} {rank}" for rank in range(100)]


@cache.cached("price:{region}", fresh_for=1, stale_for=60)
async def price(region: str) -> int:
    if (FAULTS / "price").exists():
        raise ConnectionError("the price service refuses connections")
    return 1


@cache.cached("any:{text}", fresh_for=60, stale_for=60, hard_timeout=600, tags=("{text}",))
async def anything(text: str) -> str:
    while text == "hung" and (FAULTS / "hang").exists():
        await asyncio.sleep(0.1)
    if "fail" in text:
        raise RuntimeError(text)
    return text


@cache.cached("report:{group}", fresh_for=600, stale_for=600)
async def report(group: str) -> str:
    if (FAULTS / "report").exists():
        raise TimeoutError(f"the report {group} takes too long")
    return group


refresher = Refresher(
    report, keys=["daily", "weekly", "yearly"], every=1, strategy="queue", deliveries=1, lead_for=2, reclaim_after=2
)


@asynccontextmanager
async def lifespan(app: FastAPI) -> AsyncIterator[None]:
    async with refresher:
        yield


app = FastAPI(lifespan=lifespan)
app.mount("/swr", dashboard(cache, actions=True, simulate=True))
app.add_middleware(SWRMiddleware, cache=cache)


@app.get("/rankings/{group}")
@cache.response(fresh_for=1, stale_for=60)
async def rankings(group: str) -> list[str]:
    return await ranking(group)


@app.get("/price/{region}")
async def prices(region: str) -> int:
    return await price(region)


@app.get("/any")
async def texts(text: str) -> str:
    return await anything(text)


@app.post("/invalidate")
async def invalidate(tag: str) -> None:
    await cache.invalidate_tag(tag)

"""Promise 10: memory holds its cap, however many distinct query strings a client invents."""

import gc
import os
import tracemalloc

import pytest

from swr import Cache
from swr.middleware import SWRMiddleware

pytestmark = [pytest.mark.anyio, pytest.mark.promise]

FULL = os.environ.get("SWR_FULL") == "1"
REQUESTS = 1_000_000 if FULL else 1_200
CAP = 64 * 2**20 if FULL else 2**18


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.mark.parametrize("stored", [True, False])
async def test_memory_stops_growing_with_many_distinct_query_strings(stored, monkeypatch):
    if not FULL:
        monkeypatch.setattr("swr.middleware.config._MOST_UNCACHEABLE", 150)
        monkeypatch.setattr("swr.stores.memory._MOST_ANNOUNCED", 150)
    control = b"max-age=600" if stored else b"private"

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", control)]})
        await send({"type": "http.response.body", "body": b"x" * 200})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    async with Cache(l1_max_bytes=CAP) as cache:
        middleware = SWRMiddleware(app, cache)

        async def ask(first, last):
            for number in range(first, last):
                query = b"q=%d" % number
                scope = {
                    "type": "http",
                    "method": "GET",
                    "scheme": "http",
                    "path": "/x",
                    "raw_path": b"/x",
                    "query_string": query,
                    "headers": [(b"host", b"test")],
                }
                await middleware(scope, receive, send)
            gc.collect()
            return tracemalloc.get_traced_memory()[0]

        tracemalloc.start()
        try:
            # By half of them everything that is bounded is full.
            half = await ask(0, REQUESTS // 2)
            whole = await ask(REQUESTS // 2, REQUESTS)
        finally:
            tracemalloc.stop()
        assert cache.local.slots.currsize <= CAP
        assert whole < half * 1.05 + 2**15, (half, whole)
        if stored:
            # What the cap counts is what is really there.
            assert len(cache.local.slots) > 125
            assert whole < 2 * CAP

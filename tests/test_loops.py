"""One app in several event loops of a process: no request fails, and what one loop changes is invalidated for all."""

import asyncio
import logging
import threading
import warnings
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import pytest
from fastapi import FastAPI

from swr import Cache, SWRError
from swr.middleware import Rule, SWRMiddleware

with warnings.catch_warnings():
    # It would rather have httpx2.
    warnings.simplefilter("ignore")
    from fastapi.testclient import TestClient

PATIENCE = 60.0


class App:
    """An app whose answers count how often each part of it ran."""

    def __init__(self, url: str | None) -> None:
        self.cache = cache = Cache(url, timeout=PATIENCE, connect_timeout=PATIENCE)
        self.runs: dict[str, int] = {}
        self.app = app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/pages/{name}", fresh_for=60)])

        def count(name: str) -> int:
            self.runs[name] = self.runs.get(name, 0) + 1
            return self.runs[name]

        @cache.cached("price:{name}", fresh_for=60, tags=["prices"])
        async def price(name: str) -> int:
            return count(f"price {name}")

        @cache.cached_many("stock:{name}", fresh_for=60)
        async def stock(names: list[str]) -> dict[str, int]:
            return {name: count(f"stock {name}") for name in names}

        @app.get("/pages/{name}")
        async def page(name: str) -> int:
            return count(f"page {name}")

        @app.post("/pages/{name}")
        async def change(name: str) -> None:
            await price.invalidate(name)
            await cache.invalidate_tag("unused")
            await price.mark_stale("other")

        @app.get("/prices/{name}")
        async def prices(name: str) -> int:
            return await price(name) + (await stock([name]))[name]

        self.price = price

    async def get(self, path: str, method: str = "GET") -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
            return await client.request(method, path)


def beside(function: Callable[[], Awaitable[Any]]) -> Any:
    """Return what `function` returns in an event loop of another thread, and wait for it in this one."""

    async def run() -> Any:
        return await function()

    return asyncio.to_thread(asyncio.run, run())


@pytest.fixture
def app(url: str | None) -> App:
    return App(url)


def test_requests_in_a_second_loop_go_past_the_cache_and_the_log_says_why_once(app: App, caplog):
    async def second() -> None:
        # What the first loop has made fresh here is answered anyway.
        assert (await app.get("/pages/fresh")).json() == 1
        for runs in (1, 2):
            answer = await app.get("/pages/a")
            assert (answer.json(), answer.headers["cache-status"]) == (runs, 'swr; fwd=bypass; detail="off"')
            assert (await app.get("/prices/a")).json() == 2 * runs
        assert (await app.cache.peek("price:a")) is None

    async def first() -> None:
        async with app.cache:
            for _ in range(2):
                await app.get("/pages/fresh")
            await beside(second)
            # The first loop goes on as before.
            assert (await app.get("/pages/a")).headers["swr-state"] == "missing"
            assert (await app.get("/pages/a")).headers["swr-state"] == "fresh"
        # And when it has closed the cache, the second may have it.
        await beside(third)

    async def third() -> None:
        assert (await app.get("/pages/b")).headers["swr-state"] == "missing"
        assert (await app.get("/pages/b")).headers["swr-state"] == "fresh"
        await app.cache.aclose()

    with caplog.at_level(logging.WARNING, logger="swr"):
        asyncio.run(first())
    assert [record.getMessage().partition(" of this")[0] for record in caplog.records] == [
        "the cache is in use on another event loop"
    ]


def test_what_a_second_loop_changes_is_invalidated_for_both(app: App):
    async def second() -> None:
        assert await app.price("a") == 1
        assert (await app.get("/pages/a", "POST")).status_code == 200
        await app.price.set(10, "c")
        async with app.cache.until_committed():
            await app.cache.invalidate_url("/pages/b")

    async def first() -> None:
        async with app.cache:
            for name in ("a", "b", "c"):
                for _ in range(2):
                    assert (await app.get(f"/pages/{name}")).json() == 1
                    assert await app.price(name) == 1
            await beside(second)
            assert (await app.get("/pages/a")).json() == 2
            assert (await app.get("/pages/b")).json() == 2
            # The second loop cannot store its value, and leaves none that is older.
            assert [await app.price(name) for name in ("a", "b", "c")] == [2, 1, 2]

    asyncio.run(first())


def test_an_app_starts_in_a_second_loop_and_leaves_the_cache_open_in_the_first(app: App):
    def second() -> None:
        with TestClient(app.app) as client:
            assert client.get("/pages/a").headers["cache-status"].endswith('detail="off"')

    async def first() -> None:
        async with app.cache:
            await asyncio.to_thread(second)
            assert (await app.get("/pages/a")).headers["swr-state"] == "missing"
            assert (await app.get("/pages/a")).headers["swr-state"] == "fresh"

    asyncio.run(first())


def test_test_clients_in_several_threads_at_once_get_answers_and_no_errors(app: App):
    starts = threading.Barrier(3)

    def use() -> None:
        starts.wait()
        for number in range(4):
            with TestClient(app.app) as client:
                for path in (f"/pages/{number}", f"/prices/{number}"):
                    assert client.get(path).status_code == 200
                assert client.post(f"/pages/{number}").status_code == 200

    async def first() -> None:
        async with app.cache:
            await asyncio.gather(*(asyncio.to_thread(use) for _ in range(3)))

    asyncio.run(first())


def test_an_invalidation_is_made_although_another_loop_takes_the_cache_meanwhile(app: App):
    """It has seen that nobody has the cache, and then somebody has."""
    tries = []

    async def third(taken: asyncio.Event, done: threading.Event) -> None:
        async with app.cache:
            second.call_soon_threadsafe(taken.set)
            await asyncio.to_thread(done.wait)

    async def invalidate() -> None:
        tries.append(asyncio.get_running_loop())
        if len(tries) == 1:
            taken = asyncio.Event()
            threads.submit(asyncio.run, third(taken, done))
            await taken.wait()
        await app.cache.engine.ready()

    async def main() -> None:
        nonlocal second
        second = asyncio.get_running_loop()
        await app.cache.engine.portal.reach(invalidate)
        done.set()

    second: asyncio.AbstractEventLoop
    done = threading.Event()
    with ThreadPoolExecutor() as threads:
        asyncio.run(main())
    assert tries[0] is second
    assert tries[1] is not second


def test_a_test_client_in_an_async_test_gets_answers_and_an_unsafe_request_an_error_that_says_what_to_do(
    app: App, monkeypatch
):
    monkeypatch.setattr("swr.engine.crossing._LOOKED_AFTER", 0.01)

    async def test() -> None:
        async with app.cache:
            for _ in range(2):
                assert (await app.get("/pages/a")).json() == 1
                assert await app.price("a") == 1
            # It holds this very loop, in which the cache is open.
            client = TestClient(app.app, base_url="http://test")
            assert client.get("/pages/a").json() == 1
            assert client.get("/pages/b").json() == 1
            with pytest.raises(
                SWRError, match=r"^the event loop of the cache has been held up for 0\.3 s\. An async test"
            ):
                client.post("/pages/a")
            # It is made as soon as this loop turns.
            async with asyncio.timeout(PATIENCE):
                while await app.price("a") == 1:
                    await asyncio.sleep(0.001)

    asyncio.run(test())

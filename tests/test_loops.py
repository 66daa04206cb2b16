"""One app in several event loops of a process: no request fails, and what one loop changes is invalidated for all."""

import asyncio
import contextlib
import logging
import threading
import warnings
from collections.abc import AsyncIterator, Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, Header

from swr import Cache, Policy, State, SWRError
from swr.middleware import Rule, SWRMiddleware
from tests.servers import Server

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

        async def login() -> None:
            await self.log_in()

        @app.get("/offers/{name}", dependencies=[Depends(login)])
        @cache.response(fresh_for=60, shared=True)
        async def offers(name: str, authorization: Annotated[str, Header()]) -> int:
            return count(f"offer {name}")

        self.price, self.stock = price, stock

    def count_later(self, name: str) -> Callable[[], Awaitable[int]]:
        """Return a loader that counts."""

        async def load() -> int:
            self.runs[name] = self.runs.get(name, 0) + 1
            return self.runs[name]

        return load

    async def log_in(self) -> None:
        """Let everybody in; a test may put something else in its place."""

    async def get(self, path: str, method: str = "GET", **fields: str) -> httpx.Response:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(self.app), base_url="http://test") as client:
            return await client.request(method, path, headers=fields)


def beside(function: Callable[[], Awaitable[Any]]) -> Any:
    """Return what `function` returns in an event loop of another thread, and wait for it in this one."""

    async def run() -> Any:
        return await function()

    return asyncio.to_thread(asyncio.run, run())


@pytest.fixture
def app(url: str | None) -> App:
    return App(url)


def test_requests_in_a_second_loop_bypass_the_cache_and_are_logged_once(app: App, caplog):
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


def test_invalidations_from_a_second_loop_hold_in_both_loops(app: App):
    async def second() -> None:
        assert await app.price("a") == 1
        assert (await app.get("/pages/a", "POST")).status_code == 200
        await app.price.set(10, "c")
        async with app.cache.until_committed():
            await app.cache.invalidate_url("/pages/b")
        with anyio.CancelScope() as scope:
            scope.cancel()
            await app.cache.invalidate("price:d")

    async def first() -> None:
        async with app.cache:
            for name in ("a", "b", "c", "d"):
                for _ in range(2):
                    assert (await app.get(f"/pages/{name}")).json() == 1
                    assert await app.price(name) == 1
            await beside(second)
            assert (await app.get("/pages/a")).json() == 2
            assert (await app.get("/pages/b")).json() == 2
            # The second loop cannot store its value, and leaves none that is older.
            assert [await app.price(name) for name in ("a", "b", "c", "d")] == [2, 1, 2, 2]

    asyncio.run(first())


def test_app_started_in_a_second_loop_leaves_the_cache_open_in_the_first(app: App):
    def second() -> None:
        with TestClient(app.app) as client:
            assert client.get("/pages/a").headers["cache-status"].endswith('detail="off"')

    async def first() -> None:
        async with app.cache:
            await asyncio.to_thread(second)
            assert (await app.get("/pages/a")).headers["swr-state"] == "missing"
            assert (await app.get("/pages/a")).headers["swr-state"] == "fresh"

    asyncio.run(first())


def test_test_clients_in_several_threads_get_answers_without_errors(app: App):
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


async def _get_or_load(app: App) -> int:
    async def load() -> int:
        return 1

    return (await app.cache.get_or_load("k", load, Policy(fresh_for=60))).value


@pytest.mark.parametrize(
    ("use", "answer"),
    [
        (lambda app: app.price("a"), 1),
        (lambda app: app.price.refresh("a"), 1),
        (lambda app: app.price.peek("a"), None),
        (lambda app: app.price.set(5, "a"), False),
        (lambda app: app.stock(["a"]), {"a": 1}),
        (lambda app: app.stock.refresh(["a"]), {"a": 1}),
        (_get_or_load, 1),
    ],
)
def test_call_bypasses_a_cache_that_another_loop_opens_at_the_same_moment(app: App, use, answer, monkeypatch):
    """Two servers in threads, or two tests, start together, and each sees a closed cache."""

    async def main() -> None:
        async with taken_meanwhile(app, monkeypatch):
            assert await use(app) == answer
        # Nothing is stored.
        runs = app.runs.get("price a", 0)
        assert [await app.price("a"), await app.price("a")] == [runs + 1, runs + 1]
        await app.cache.aclose()

    asyncio.run(main())


def test_fresh_hit_returns_although_another_loop_opens_the_cache_meanwhile(monkeypatch):
    app = App(None)

    async def main() -> None:
        # So eager that each hit begins a refresh.
        policy, job = Policy(fresh_for=60, early=1e300), app.count_later("hit")
        assert (await app.cache.get_or_load("k", job, policy)).value == 1
        await app.cache.aclose()
        async with taken_meanwhile(app, monkeypatch):
            outcome = await app.cache.get_or_load("k", job, policy)
            assert (outcome.value, outcome.state) == (1, State.FRESH)

    asyncio.run(main())


@pytest.mark.parametrize(("path", "fields"), [("/pages/a", {}), ("/offers/a", {"authorization": "a"})])
def test_request_bypasses_a_cache_that_another_loop_opens_at_the_same_moment(app: App, path, fields, monkeypatch):
    async def main() -> None:
        async with taken_meanwhile(app, monkeypatch):
            answer = await app.get(path, **fields)
            assert answer.json() == 1
            assert 'detail="' in answer.headers["cache-status"]
            assert 'off"' in answer.headers["cache-status"]
        answer = await app.get(path, **fields)
        assert (answer.json(), answer.headers["swr-state"]) == (2, "missing")
        assert (await app.get(path, **fields)).headers["swr-state"] == "fresh"
        await app.cache.aclose()

    asyncio.run(main())


def test_request_bypasses_a_cache_that_another_loop_opens_during_its_login(app: App, monkeypatch):
    """The first server stops, and closes the cache, while its last requests run; a second one begins."""

    async def close() -> None:
        await app.cache.aclose()

    async def main() -> None:
        # From now on it is known that the endpoint is behind a login.
        await app.get("/offers/a", authorization="a")
        await app.cache.clear()
        async with taken_meanwhile(app, monkeypatch):
            app.log_in = close
            answer = await app.get("/offers/a", authorization="a")
            assert (answer.json(), answer.headers["swr-state"]) == (2, "missing")
            assert 'off"' in answer.headers["cache-status"]

    asyncio.run(main())


@contextlib.asynccontextmanager
async def taken_meanwhile(app: App, monkeypatch) -> AsyncIterator[None]:
    """Another event loop opens the cache when the block first wants to open it, and closes it after the block."""
    engine, taken, done = app.cache.engine, asyncio.Event(), threading.Event()
    here, opens = asyncio.get_running_loop(), engine.ready

    async def other() -> None:
        async with app.cache:
            here.call_soon_threadsafe(taken.set)
            await asyncio.to_thread(done.wait)

    async def opens_too_late() -> None:
        monkeypatch.setattr(engine, "ready", opens)
        threads.submit(asyncio.run, other())
        await taken.wait()
        await opens()

    monkeypatch.setattr(engine, "ready", opens_too_late)
    with ThreadPoolExecutor() as threads:
        try:
            yield
            assert taken.is_set()
        finally:
            done.set()


def test_cache_opens_once_although_another_loop_reads_during_its_opening(own_server: Server, monkeypatch):
    """The reader in the second loop bypasses the cache, and readers in the first loop wait for the opening."""
    app = App(own_server.url)
    engine, openings, begun = app.cache.engine, [], threading.Event()
    engine.on_opened.append(lambda: openings.append(None))
    opens = engine.ready

    async def opens_too_late() -> None:
        monkeypatch.setattr(engine, "ready", opens)
        here.call_soon_threadsafe(asked.set)
        await asyncio.to_thread(begun.wait)
        await opens()

    async def main() -> None:
        nonlocal asked, here
        asked, here = asyncio.Event(), asyncio.get_running_loop()
        monkeypatch.setattr(engine, "ready", opens_too_late)
        second = asyncio.create_task(beside(lambda: app.price("a")))
        await asked.wait()
        own_server.pause()
        readers = [asyncio.create_task(app.price("b"))]
        await asyncio.sleep(0)
        begun.set()
        assert await second == 1
        readers += [asyncio.create_task(app.price("b"))]
        await asyncio.sleep(0)
        own_server.resume()
        assert [await reader for reader in readers] == [1, 1]
        await app.cache.aclose()

    asked: asyncio.Event
    here: asyncio.AbstractEventLoop
    asyncio.run(main())
    assert openings == [None]


def test_invalidation_moves_to_the_loop_that_opens_the_cache_meanwhile(app: App):
    """The cache was closed when the invalidation began, and another loop opens it then."""
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


def test_post_from_a_test_client_that_blocks_the_caches_loop_raises_an_error(app: App, monkeypatch):
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

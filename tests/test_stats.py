"""What `cache.stats()` counts, in memory and with real servers."""

import asyncio
import json
import random
import sys
import threading
from concurrent.futures import ThreadPoolExecutor

import anyio
import msgspec
import pytest
from fastapi import APIRouter, FastAPI
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import Mount, Route

from swr import Cache, Policy
from swr.engine.backoff import Backoffs
from swr.entry import stamp
from swr.middleware import SWRMiddleware
from swr.stats import Distribution
from swr.stats.counts import MOST_NAMES, ROUTE, Counts, Details
from swr.stores.local import LocalCache
from swr.testing import FakeClock
from tests.fleet import Loader, until
from tests.web import MAX_AGE, NAMES_ROUTES, App, Origin, client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(place):
    return place.rpartition(" ")[2]


@pytest.fixture
async def cache(place_url):
    async with Cache(place_url, namespace="shop", timeout=5) as cache:
        yield cache


async def test_reads_and_loads_are_counted_by_key_template(cache):
    load = Loader()

    @cache.cached("top:{group}", fresh_for=60, stale_for=600)
    async def top(group: str) -> object:
        return await load()

    for _ in range(3):
        await top("ATL")
    stats = cache.stats()
    counted = stats.loaders["top:{group}"]
    assert (counted.fresh.l1, counted.missing.load, counted.loads, counted.failed) == (2, 1, 1, 0)
    assert (counted.fresh.total, counted.stale.total, counted.missing.total) == (2, 0, 1)
    assert counted.bytes == stats.local.bytes > 0
    assert json.loads(json.dumps(stats.as_dict()))["loaders"]["top:{group}"]["fresh"]["l1"] == 2


async def test_requests_count_by_path_template_and_bypasses_are_no_misses(cache):
    app = FastAPI()

    @app.get("/rankings/{group}")
    @cache.response(fresh_for=60)
    def rankings(group: str) -> str:
        return group

    @app.get("/me")
    def me() -> str:
        return "me"

    async with client(SWRMiddleware(app, cache)) as http:
        for _ in range(3):
            await http.get("/rankings/ATL")
            await http.get("/me")
        await http.get("/rankings/BOS", headers={"cookie": "a=b"})
        await http.head("/rankings/LAX")
    stats = cache.stats()
    counted = stats.routes["/rankings/{group}"]
    assert (counted.fresh.l1, counted.missing.load, counted.loads) == (2, 2, 2)
    assert stats.bypasses == {"no freshness": 2, "HEAD": 1}
    assert stats.not_stored == {"no freshness": 1}


async def test_stale_read_failed_load_and_fallback_are_counted_separately(place_url):
    clock, load = FakeClock(), Loader()
    async with Cache(place_url, namespace="shop", timeout=5, clock=clock) as cache:

        @cache.cached("top", fresh_for=60, stale_for=60, stale_if_error=3600, soft_timeout=None)
        async def top() -> object:
            return await load()

        await top()
        clock.advance(70)
        await top()
        await until(lambda: load.runs == 2 and not cache.engine.is_loading("top"))
        clock.advance(200)
        load.error = ValueError("no " + "x" * 500)
        await top()
        counted = cache.stats().loaders["top"]
        assert (counted.stale.l1, counted.stale.load, counted.missing.load) == (1, 1, 1)
        assert (counted.loads, counted.failed, counted.failures.count, counted.seconds.count) == (2, 1, 1, 3)
        assert (counted.error.type, len(counted.error.text), counted.error.at) == ("ValueError", 200, clock())
        assert counted.backoffs == 1
        with pytest.raises(AttributeError):
            counted.loads = 5


async def test_loads_in_flight_and_invalidations_are_counted(cache):
    load = Loader()
    load.gate = anyio.Event()

    @cache.cached("top", fresh_for=60)
    async def top() -> object:
        return await load()

    async with anyio.create_task_group() as group:
        group.start_soon(top)
        await load.begun.wait()
        assert cache.stats().loaders["top"].in_flight == 1
        load.gate.set()
    assert cache.stats().loaders["top"].in_flight == 0
    await cache.invalidate_tag("a")
    await cache.mark_stale("b")
    await top.invalidate_all()
    await cache.clear()
    assert cache.stats().invalidations == {"key": 1, "tag": 1, "loader": 1, "all": 1}


class TestRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_second_process_counts_redis_reads_by_loader_and_route(self, server):
        async with Cache(server.url, timeout=5) as one, Cache(server.url, timeout=5) as two:
            for cache in (one, two):
                app = FastAPI()
                app.get("/x/{name}")(cache.response(fresh_for=60)(rankings))

                @cache.cached("top:{group}", fresh_for=60)
                async def top(group: str) -> str:
                    return group

                await top("ATL")
                async with client(SWRMiddleware(app, cache)) as http:
                    for _ in range(2):
                        await http.get("/x/ATL")
            stats = two.stats()
            assert (stats.loaders["top:{group}"].fresh.redis, stats.loaders["top:{group}"].loads) == (1, 0)
            assert (stats.routes["/x/{name}"].fresh.redis, stats.routes["/x/{name}"].fresh.l1) == (1, 1)
            assert stats.store.reachable
            assert stats.store.seconds.count > 0


def rankings(name: str) -> str:
    return name


async def test_batch_items_count_as_reads_of_their_key_template(cache):
    @cache.cached_many("row:{n}", fresh_for=60)
    async def rows(numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers}

    await rows([1, 2])
    await rows([1, 2, 3])
    counted = cache.stats().loaders["row:{n}"]
    assert (counted.missing.load, counted.fresh.l1, counted.loads) == (3, 2, 3)


async def test_failed_load_without_a_fallback_counts_as_a_miss(cache):
    load = Loader()
    load.error = ValueError("no")

    @cache.cached("top", fresh_for=60)
    async def top() -> object:
        return await load()

    with pytest.raises(ValueError, match="no"):
        await top()
    counted = cache.stats().loaders["top"]
    assert (counted.missing.load, counted.failed) == (1, 1)


@NAMES_ROUTES
async def test_mounted_and_included_routes_are_counted_by_path_template(cache):
    async def answer(request):
        return PlainTextResponse("x", headers={"cache-control": "max-age=60"})

    inner = Starlette(routes=[Route("/item/{id}", answer)])
    starlette = Starlette(routes=[Mount("/shops/{shop}", inner), Mount("/raw", App(MAX_AGE)), Route("/plain", answer)])
    router = APIRouter(prefix="/api")
    router.get("/top/{group}")(cache.response(fresh_for=60)(rankings_of))
    fastapi = FastAPI()
    fastapi.include_router(router, prefix="/v1")
    fastapi.mount("/old", starlette)
    for app, paths in ((starlette, ("/shops/7/item/1", "/raw/a", "/plain")), (fastapi, ("/v1/api/top/ATL",))):
        async with client(SWRMiddleware(app, cache)) as http:
            for path in paths:
                await http.get(path)
    routes = cache.stats().routes
    assert {"/shops/{shop}/item/{id}", "/raw", "/plain", "/v1/api/top/{group}"} <= routes.keys()
    assert all("7" not in name for name in routes)


@NAMES_ROUTES
async def test_variant_spellings_of_a_mount_parameter_count_as_one_route(cache):
    async def answer(request):
        return PlainTextResponse("x", headers={"cache-control": "max-age=60"})

    kinds = {"int": ["7", "007"], "float": ["1.5", "1.50"], "path": ["a/b", "c"]}
    kinds["uuid"] = ["aaaaaaaa-0000-0000-0000-000000000000", "AAAAAAAA-0000-0000-0000-000000000000"]
    mounts = [Mount(f"/{kind}/{{of:{kind}}}", routes=[Route("/x", answer)]) for kind in kinds]
    async with client(SWRMiddleware(Starlette(routes=[*mounts, Route("/r/{of:path}", answer)]), cache)) as http:
        for path in ("/r/", *(f"/{kind}/{value}/x" for kind, values in kinds.items() for value in values)):
            assert (await http.get(path)).status_code == 200
    templates = {"/r/{of:path}", *(f"/{kind}/{{of}}/x" for kind in kinds)}
    assert {name for name in cache.stats().routes if name} == templates


def rankings_of(group: str) -> str:
    return group


async def test_stale_hits_during_backoff_are_counted_as_stale(cache):
    """While a refresh fails and backs off, the middleware answers a stale hit on its shortest way."""
    clock = FakeClock()
    async with Cache(clock=clock) as cache:
        app = Origin((200, {"cache-control": "max-age=60, stale-while-revalidate=6000", "etag": '"1"'}, "x"))
        async with client(SWRMiddleware(app, cache)) as http:
            for _ in range(3):
                await http.get("/x")
            clock.advance(70)
            app.answers((500, {}, "no"))
            await http.get("/x")
            await until(lambda: cache.stats().routes[""].failed == 1)
            for fields in ({}, {"if-none-match": '"1"'}, {"if-none-match": '"2"'}):
                await http.get("/x", headers=fields)
        counted = cache.stats().routes[""]
        assert (counted.fresh.l1, counted.stale.l1, counted.missing.load) == (2, 4, 1)


def test_names_beyond_the_limit_are_counted_as_other():
    counts = Counts()
    for number in range(MOST_NAMES + 50):
        counts.of(f"{ROUTE}/{number}").loads += 1
        counts.add_loader(f"digest{number}", f"loader{number}")
        counts.of(f"digest{number}").loads += 1
    counts.of("a digest of nobody").loads += 1
    # A loader may be called what the rest is called.
    counts.add_loader("x", "other")
    counts.of("x").loads += 1
    counts.of(ROUTE + "/" + "x" * 300).loads += 1
    assert len(counts.tallies) == 2 * MOST_NAMES + 2
    names = [(tally.is_route, tally.name) for tally in counts.tallies.values()]
    assert len(set(names)) == len(names)
    assert {tally.is_route: tally.loads for tally in counts.tallies.values() if tally.name == "other"} == {
        False: 52,
        True: 51,
    }


def test_reasons_are_bounded_and_contain_no_name_chosen_by_a_client():
    details = Details()
    assert {details.add(f"field x-{number}") for number in range(100)} == {"field"}
    assert {details.add(f"parameter {number}") for number in range(100)} == {"parameter"}
    for number in range(100):
        details.add(f"status {number}")
    assert len(details.counts) == 65
    assert sum(details.counts.values()) == 300


class _Silent(Exception):
    def __str__(self):
        raise RuntimeError("it has no text")


def test_exception_whose_str_raises_is_counted_with_an_empty_text():
    tally = Counts().of("")
    tally.end_load("k", 0.1, _Silent(), 1.0)
    assert (tally.error.type, tally.error.text) == ("_Silent", "")


def test_only_active_backoffs_after_failures_are_counted():
    now = [0.0]
    backoffs = Backoffs(lambda: now[0])
    assert backoffs.origins() == []
    backoffs.begin("held elsewhere", 100, None, "a")
    backoffs.begin("failed", 100, ValueError(), "b")
    backoffs.begin("failed long ago", 1, ValueError(), "c")
    now[0] = 2.0
    assert backoffs.origins() == ["b"]
    assert backoffs.soonest() == {"b": 98.0}


def test_difference_of_two_distributions_holds_the_values_in_between():
    earlier, later = Distribution((0.1, 1.0), (5, 0, 0), 0.2), Distribution((0.1, 1.0), (5, 10, 0), 6.2)
    between = later.since(earlier)
    assert (between.count, between.sum) == (10, 6.0)
    assert between.quantile(0.5) == pytest.approx(0.55)
    assert later.quantile(0.1) == pytest.approx(0.03)
    assert Distribution((0.1, 1.0), (0, 0, 3), 30.0).quantile(0.99) == 1.0
    assert earlier.since(earlier).quantile(0.5) is None


@pytest.mark.uncounted
@pytest.mark.parametrize("seed", range(20))
def test_bytes_of_all_loaders_add_up_to_the_size_of_the_local_cache(seed):
    draw, local = random.Random(seed), LocalCache(20_000, 12)
    for number in range(10):
        local.counts.add_loader(f"d{number}", f"loader{number}")
    for _ in range(400):
        key = f"k{draw.randrange(20)}"
        what = draw.choice(["put", "put", "put", "drop", "get", "clear", "resize"] if draw.random() < 0.1 else ["put"])
        if what == "put":
            value = "x" * draw.choice([1, 500, 5000, 30_000])
            local.put(key, stamp(value, Policy(60), 0.0, loader=f"d{draw.randrange(12)}"))
        elif what == "drop":
            local.drop(key)
        elif what == "get":
            local.get(key)
        elif what == "clear":
            local.clear()
        else:
            local.configure(draw.choice([10_000, 20_000]))
        assert sum(tally.bytes for tally in local.counts.tallies.values()) == local.slots.currsize
    assert local.counts.evictions > 0


def test_stats_can_be_encoded_as_json():
    stats = Cache().stats()
    assert json.loads(json.dumps(stats.as_dict())) == json.loads(msgspec.json.encode(stats))
    assert (stats.loaders, stats.routes, stats.local.entries, stats.store.seconds) == ({}, {}, 0, None)


async def test_absent_item_counts_as_a_fresh_read_of_the_layer_that_knows_it(cache, place_url, caplog):
    async def load(numbers: list[int]) -> dict[int, int]:
        return {number: number for number in numbers if number != 2}

    rows = cache.cached_many("row:{n}", fresh_for=60, absent_for=60)(load)
    for _ in range(3):
        assert await rows([1, 2]) == {1: 1}
    counted = cache.stats().loaders["row:{n}"]
    assert (counted.fresh.l1, counted.missing.load, counted.missing.total) == (4, 2, 2)
    if place_url is not None:
        async with Cache(place_url, namespace="shop", timeout=5) as other:
            caplog.set_level("DEBUG", "swr")
            assert await other.cached_many("row:{n}", fresh_for=60, absent_for=60)(load)([2]) == {}
            counted = other.stats().loaders["row:{n}"]
            assert (counted.fresh.redis, counted.missing.total) == (1, 0)
            assert "row:2" in caplog.text


async def test_absent_item_of_a_failed_call_counts_as_missing(cache):
    async def load(numbers: list[int]) -> dict[int, int]:
        if 3 in numbers:
            raise KeyError(3)
        return {}

    rows = cache.cached_many("row:{n}", fresh_for=60, absent_for=60)(load)
    assert await rows([2]) == {}
    with pytest.raises(KeyError):
        await rows([2, 3])
    counted = cache.stats().loaders["row:{n}"]
    assert (counted.fresh.total, counted.missing.total) == (0, 3)


def test_other_thread_can_read_stats_while_loads_are_superseded():
    """As the thread of an exporter does."""
    cache = Cache()
    is_over = threading.Event()

    def read_until_the_end() -> int:
        reads = 0
        while not is_over.is_set():
            reads += 1
            cache.stats()
        return reads

    async def supersede() -> None:
        @cache.cached("key:{number}", fresh_for=60)
        async def load(number: int) -> int:
            for _ in range(5):
                await asyncio.sleep(0)
            return number

        async with cache:
            for _ in range(300):
                await asyncio.gather(*(load.refresh(number % 10) for number in range(30)))

    interval = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        with ThreadPoolExecutor(1) as thread:
            reads = thread.submit(read_until_the_end)
            try:
                asyncio.run(supersede())
            finally:
                is_over.set()
            assert reads.result() > 0
    finally:
        sys.setswitchinterval(interval)

"""What is served instead of a failed load, where this process holds no copy, whatever happens during the load."""

import asyncio
import contextlib
import time

import pytest

from swr import Cache, Policy, State
from swr.core.arguments import NO_ARGUMENTS
from swr.core.codec import Codec
from swr.events import LeaseHeld
from swr.loaders.call import Call, Loader
from swr.middleware import Rule, SWRMiddleware
from tests.proxy import Proxy
from tests.servers import Server
from tests.test_redis import until
from tests.web import App, client

POLICY = Policy(0.001, 0, 600, tags=("t",))


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio


class Failing:
    """A loader whose first load succeeds, and whose later ones wait and fail."""

    def __init__(self) -> None:
        self.runs = 0
        self.begun = asyncio.Event()
        self.gate = asyncio.Event()

    async def __call__(self) -> int:
        self.runs += 1
        if self.runs == 1:
            return 1
        self.begun.set()
        await self.gate.wait()
        raise ValueError("mine")


async def nothing(one: Cache, other: Cache, proxy: Proxy) -> None:
    pass


async def an_unrelated_tag(one: Cache, other: Cache, proxy: Proxy) -> None:
    newest = one.engine.store.tag_versions.newest
    await other.invalidate_tag("unrelated")
    await until(lambda: one.engine.store.tag_versions.newest > newest)


async def an_unrelated_tag_here(one: Cache, other: Cache, proxy: Proxy) -> None:
    await one.invalidate_tag("unrelated")


async def an_unrelated_key(one: Cache, other: Cache, proxy: Proxy) -> None:
    await one.invalidate("unrelated")


async def a_gap(one: Cache, other: Cache, proxy: Proxy) -> None:
    epoch = one.engine.store._epoch
    proxy.cut()
    await until(lambda: one.engine.store._epoch > epoch)


async def an_eviction(one: Cache, other: Cache, proxy: Proxy) -> None:
    one.local.clear()
    await one.invalidate_tag("unrelated")


async def its_key(one: Cache, other: Cache, proxy: Proxy) -> None:
    await one.invalidate("k")


async def its_tag(one: Cache, other: Cache, proxy: Proxy) -> None:
    await one.invalidate_tag("t")


async def everything(one: Cache, other: Cache, proxy: Proxy) -> None:
    await one.clear()


async def its_key_in_a_gap(one: Cache, other: Cache, proxy: Proxy) -> None:
    epoch = one.engine.store._epoch
    proxy.refuse = True
    proxy.cut()
    await other.invalidate("k")
    proxy.refuse = False
    await until(lambda: one.engine.store._epoch > epoch)


async def its_tag_that_redis_refuses(one: Cache, other: Cache, proxy: Proxy) -> None:
    proxy.refuse = True
    proxy.cut()
    await until(lambda: not one.engine.store.is_reachable)
    await one.invalidate_tag("t")


@contextlib.asynccontextmanager
async def loading(server: Server, l1: int):
    async with (
        Proxy(server.port) as proxy,
        Cache(proxy.url, l1_max_bytes=l1, timeout=2) as one,
        Cache(server.url, timeout=2) as other,
    ):
        load = Failing()
        await one.get_or_load("k", load, POLICY)
        await asyncio.sleep(0.01)
        reading = asyncio.ensure_future(one.get_or_load("k", load, POLICY))
        await load.begun.wait()
        yield one, other, proxy, load, reading


@pytest.mark.parametrize("l1", [0, 2**20], ids=["no copy", "a copy"])
@pytest.mark.parametrize(
    "meanwhile", [nothing, an_unrelated_tag, an_unrelated_tag_here, an_unrelated_key, a_gap, an_eviction]
)
async def test_failed_load_falls_back_on_an_entry_that_was_not_invalidated(server: Server, meanwhile, l1: int):
    async with loading(server, l1) as (one, other, proxy, load, reading):
        await meanwhile(one, other, proxy)
        load.gate.set()
        outcome = await reading
        assert (outcome.state, outcome.value) == (State.STALE, 1)
        assert isinstance(outcome.error, ValueError)


@pytest.mark.parametrize("l1", [0, 2**20], ids=["no copy", "a copy"])
@pytest.mark.parametrize("meanwhile", [its_key, its_tag, everything, its_key_in_a_gap, its_tag_that_redis_refuses])
async def test_failed_load_raises_when_its_fallback_was_invalidated_during_the_load(server: Server, meanwhile, l1: int):
    async with loading(server, l1) as (one, other, proxy, load, reading):
        await meanwhile(one, other, proxy)
        load.gate.set()
        with pytest.raises(ValueError, match="mine"):
            await reading


@pytest.mark.parametrize("is_invalidated", [False, True])
async def test_failed_load_overtaken_by_a_refresh_falls_back_unless_invalidated(server: Server, is_invalidated: bool):
    async with loading(server, 0) as (one, _, _, load, reading):

        async def newer() -> int:
            raise ValueError("another's")

        job = Call(Loader(one.engine, newer, False, False), NO_ARGUMENTS, POLICY, Codec(int))
        refreshing = asyncio.ensure_future(one.engine.refresh("k", job))
        await until(lambda: len(one.engine.flights) == 2)
        if is_invalidated:
            await one.invalidate("k")
        load.gate.set()
        if is_invalidated:
            with pytest.raises(ValueError, match="mine"):
                await reading
        else:
            assert (await reading).value == 1
        with pytest.raises(ValueError, match="another's"):
            await refreshing


def outdate_at_the_next_refusal(cache: Cache) -> list[LeaseHeld]:
    """Outdate what has the tag "t" at the moment at which a lease is refused; return the refusals."""
    refusals: list[LeaseHeld] = []

    def outdate(refusal: LeaseHeld) -> None:
        refusals.append(refusal)
        versions = cache.engine.store.tag_versions
        versions.raise_to("t", max(versions.newest, time.time_ns() // 1000) + 1)

    cache.subscribe(outdate, LeaseHeld)
    return refusals


async def test_reader_loads_when_its_fallback_is_outdated_during_backoff(server: Server):
    async with Cache(server.url) as one, Cache(server.url) as other:
        failing = Failing()
        failing.gate.set()
        assert (await one.get_or_load("k", failing, POLICY)).value == 1
        await asyncio.sleep(0.002)
        # The last load failed, in another process, which falls back on the entry.
        assert (await other.get_or_load("k", failing, POLICY)).error is not None
        refusals = outdate_at_the_next_refusal(one)

        async def load() -> int:
            return 3

        outcome = await one.get_or_load("k", load, POLICY)
        assert ([refusal.failures for refusal in refusals], outcome.value) == ([1], 3)


async def test_request_runs_the_app_when_its_fallback_is_outdated_during_backoff(server: Server):
    rules = [Rule("/top", fresh_for=0.001, stale_if_error=600, tags=("t",))]
    app, failing = App(), App(status=500)
    async with (
        Cache(server.url) as one,
        Cache(server.url) as other,
        client(SWRMiddleware(app, one, rules=rules)) as here,
        client(SWRMiddleware(failing, other, rules=rules)) as there,
    ):
        assert (await here.get("/top")).text == "1"
        await asyncio.sleep(0.002)
        assert (await there.get("/top")).headers["swr-state"] == "stale"
        # It tries once more, without the client.
        await until(lambda: failing.runs == 2 and not len(other.engine.flights))
        refusals = outdate_at_the_next_refusal(one)
        answer = await here.get("/top")
        assert ([refusal.failures for refusal in refusals], answer.text) == ([2], "2")

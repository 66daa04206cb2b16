"""What is invalidated before its transaction is committed is invalidated once more afterwards."""

import contextvars
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI

from swr import Cache, Policy, State
from swr.events import Invalidated
from swr.middleware import SWRMiddleware
from tests.fleet import settle
from tests.servers import Server

pytestmark = pytest.mark.anyio


class Shop:
    """One price, a loader of it, and a transaction that is committed when its block ends."""

    def __init__(self, cache):
        self.cache = cache
        self.price = 1

        @cache.cached("price", fresh_for=60, tags=("prices",))
        async def read() -> int:
            return self.price

        self.read = read

    async def commit(self, price):
        # A reader comes between the invalidation and the commit.
        self.between = await self.read()
        self.price = price


INVALIDATIONS = {
    "tag": lambda shop: shop.cache.invalidate_tag("prices"),
    "key": lambda shop: shop.cache.invalidate("price"),
    "loader": lambda shop: shop.read.invalidate(),
    "clear": lambda shop: shop.cache.clear(),
}


@pytest.mark.parametrize("invalidate", INVALIDATIONS.values(), ids=INVALIDATIONS)
@pytest.mark.parametrize("task", ["same", "another"])
async def test_value_read_before_the_commit_is_invalidated_again_after_it(cache, invalidate, task):
    shop = Shop(cache)
    assert await shop.read() == 1
    async with cache.until_committed():
        if task == "same":
            await invalidate(shop)
        else:
            async with anyio.create_task_group() as group:
                group.start_soon(invalidate, shop)
        await shop.commit(2)
    assert shop.between == 1
    assert await shop.read() == 2


async def test_until_committed_covers_a_dependency_that_commits_after_the_response(cache):
    shop, app = Shop(cache), FastAPI()

    async def transaction():
        async with cache.until_committed():
            yield
            await shop.commit(2)

    @app.post("/price")
    async def change(_: Annotated[None, Depends(transaction)]) -> str:
        await cache.invalidate_tag("prices")
        return "done"

    await read_post_and_read_again(shop, app)


async def test_until_committed_in_an_outer_dependency_covers_plain_def_functions(cache):
    shop, app = Shop(cache), FastAPI()

    async def until_committed():
        async with cache.until_committed():
            yield

    def transaction(_: Annotated[None, Depends(until_committed)]):
        yield
        anyio.from_thread.run(shop.commit, 2)

    @app.post("/price")
    def change(_: Annotated[None, Depends(transaction)]) -> str:
        anyio.from_thread.run(cache.invalidate_tag, "prices")
        return "done"

    await read_post_and_read_again(shop, app)


async def test_middleware_repeats_invalidations_of_an_unsafe_request_by_itself(cache):
    shop, app = Shop(cache), FastAPI()

    async def transaction():
        yield
        await shop.commit(2)

    @app.post("/price")
    async def change(_: Annotated[None, Depends(transaction)]) -> str:
        await cache.invalidate_tag("prices")
        return "done"

    app.add_middleware(SWRMiddleware, cache=cache)
    await read_post_and_read_again(shop, app)


async def read_post_and_read_again(shop, app):
    assert await shop.read() == 1
    async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://test") as client:
        assert (await client.post("/price")).status_code == 200
    assert shop.between == 1
    assert await shop.read() == 2


async def test_block_that_fails_or_is_cancelled_still_repeats_its_invalidations(cache):
    shop = Shop(cache)
    for price, end in ((2, "fail"), (3, "cancel")):
        await shop.read()
        with anyio.CancelScope() as scope:
            try:
                async with cache.until_committed():
                    await shop.read.invalidate()
                    await shop.commit(price)
                    if end == "fail":
                        raise ValueError
                    scope.cancel()
                    await anyio.sleep_forever()
            except ValueError:
                assert end == "fail"
        assert await shop.read() == price


async def test_invalidation_outside_the_block_or_of_another_cache_is_not_repeated(cache):
    events = []
    cache.subscribe(events.append, Invalidated)
    async with Cache() as other:
        other.subscribe(events.append, Invalidated)
        async with other.until_committed():
            await cache.invalidate("k")
        await cache.invalidate("k")
    assert len(events) == 2


async def test_nested_blocks_repeat_an_invalidation_once_at_each_end(cache):
    events = []
    async with Cache() as other:
        other.subscribe(events.append, Invalidated)
        async with other.until_committed():
            async with cache.until_committed(), other.until_committed():
                await other.invalidate("k")
                await other.invalidate("k")
            assert len(events) == 3
        assert len(events) == 4


async def test_block_ended_by_another_task_repeats_no_later_invalidation(cache):
    """As when a generator is closed by somebody else."""
    events, block = [], cache.until_committed()
    cache.subscribe(events.append, Invalidated)
    await block.__aenter__()
    await cache.invalidate("k")

    async def end():
        await block.__aexit__(None, None, None)

    context = contextvars.Context()
    async with anyio.create_task_group() as group:
        context.run(group.start_soon, end)
    assert len(events) == 2
    await cache.invalidate("k")
    assert len(events) == 3


class TestRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_other_process_that_reads_before_the_commit_loads_again_after_it(self, server: Server):
        price = [1]

        async def load() -> int:
            return price[0]

        policy = Policy(60, tags=("prices",))
        async with Cache(server.url) as cache, Cache(server.url) as other:
            await cache.get_or_load("price", load, policy)
            async with cache.until_committed():
                await cache.invalidate_tag("prices")
                with anyio.fail_after(30):
                    while (await other.get_or_load("price", load, policy)).state is not State.MISSING:
                        await anyio.sleep(0.005)
                price[0] = 2
            with anyio.fail_after(30):
                while (await other.get_or_load("price", load, policy)).value != 2:
                    await settle()

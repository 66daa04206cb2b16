"""The caller of an invalidation is cancelled, by `asyncio.timeout` say: the invalidation is made anyway."""

import asyncio
from collections.abc import Iterator

import pytest

from swr import Cache, Policy, State
from tests.fleet import define
from tests.servers import Server, kinds
from tests.test_redis import until

pytestmark = pytest.mark.anyio
LONG = Policy(fresh_for=1000, stale_for=1000)


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def one_server() -> Iterator[Server]:
    with Server(kinds()[0]) as server:
        yield server


async def load(value):
    return value


async def of_url(cache):
    await cache.engine.invalidate_announced("t")


OPERATIONS = {
    "invalidate": lambda cache: cache.invalidate("k"),
    "invalidate_tags": lambda cache: cache.invalidate_tags("t", "u"),
    "invalidate_announced": of_url,
    "mark_stale": lambda cache: cache.mark_stale("k"),
    "mark_stale_tags": lambda cache: cache.mark_stale_tags("t"),
    "clear": lambda cache: cache.clear(),
    "set": lambda cache: cache.set("k", 2, Policy(fresh_for=1000, tags=("t",))),
}


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_a_cancelled_caller_leaves_no_older_value_fresh_in_its_process(one_server, operation, request):
    namespace = request.node.callspec.id
    async with Cache(one_server.url, namespace=namespace) as cache:
        policy = Policy(fresh_for=1000, stale_for=1000, tags=("t",))
        assert (await cache.get_or_load("k", lambda: load(1), policy)).value == 1
        one_server.pause()
        task = asyncio.create_task(operation(cache))
        # The command is on its way, and its reply never comes to the caller.
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        one_server.resume()
        with pytest.raises(asyncio.CancelledError):
            await task
        outcome = await cache.get_or_load("k", lambda: load(2), policy)
        assert outcome.value == 2 or outcome.state is State.STALE


async def test_what_a_cancelled_caller_invalidates_reaches_all_processes(one_server):
    async with Cache(one_server.url, namespace="all") as one, Cache(one_server.url, namespace="all") as other:
        rank, elsewhere = define(one), define(other)
        assert await rank("ATL") == await elsewhere("ATL") == [1]
        task = asyncio.create_task(rank.invalidate("ATL"))
        await asyncio.sleep(0)
        # Before anything was sent.
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await until(lambda: other.engine.store.peek("rank:ATL") is None)
        assert one.engine.store.peek("rank:ATL") is None


async def test_a_block_whose_end_is_cancelled_repeats_everything(one_server):
    async with Cache(one_server.url, namespace="block") as cache:
        policies = {"a": Policy(fresh_for=1000), "b": Policy(fresh_for=1000), "c": Policy(fresh_for=1000, tags=("t",))}
        block = cache.until_committed()
        await block.__aenter__()
        await cache.invalidate("a")
        await cache.invalidate("b")
        await cache.invalidate_tag("t")
        for key, policy in policies.items():
            await cache.get_or_load(key, lambda: load(1), policy)
        one_server.pause()
        task = asyncio.create_task(block.__aexit__(None, None, None))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        one_server.resume()
        with pytest.raises(asyncio.CancelledError):
            await task
        for key, policy in policies.items():
            assert (await cache.get_or_load(key, lambda: load(2), policy)).value == 2


async def test_a_block_repeats_the_marks_of_several_keys():
    async with Cache() as cache:
        async with cache.until_committed():
            await cache.mark_stale("a")
            await cache.mark_stale("b")
            for key in ("a", "b"):
                await cache.get_or_load(key, lambda: load(1), LONG)
        for key in ("a", "b"):
            assert (await cache.get_or_load(key, lambda: load(2), LONG)).state is State.STALE


async def test_many_tags_and_urls_are_invalidated_in_turns_of_the_event_loop():
    async with Cache() as cache:
        turns = 0

        async def count():
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        counting = asyncio.create_task(count())
        for operation in (cache.invalidate_tags, cache.mark_stale_tags, cache.invalidate_urls, cache.mark_stale_urls):
            before = turns
            await operation(*(f"/rank/{number}" for number in range(10_000)))
            assert turns - before >= 10
        counting.cancel()

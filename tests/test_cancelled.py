"""The caller of an invalidation is cancelled, by `asyncio.timeout` say: the invalidation is made anyway."""

import asyncio
from collections.abc import Iterator

import pytest

from swr import Cache, Policy, State
from tests.fleet import define
from tests.proxy import Proxy
from tests.servers import Server, kinds
from tests.test_redis import until

pytestmark = pytest.mark.anyio
LONG = Policy(fresh_for=1000, stale_for=1000)
# A tag that loads announce.
OF_URL = "host:example.org/"
TAGGED = Policy(fresh_for=1000, stale_for=1000, tags=("t", OF_URL))


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
    await cache.engine.invalidate_announced(OF_URL)


async def gather(tasks):
    return await asyncio.gather(*tasks, return_exceptions=True)


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
async def test_cancelled_change_leaves_no_older_value_fresh_in_its_process(one_server, operation, request):
    namespace = request.node.callspec.id
    async with Cache(one_server.url, namespace=namespace) as cache:
        assert (await cache.get_or_load("k", lambda: load(1), TAGGED)).value == 1
        one_server.pause()
        task = asyncio.create_task(operation(cache))
        # The command is on its way, and its reply never comes to the caller.
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        one_server.resume()
        with pytest.raises(asyncio.CancelledError):
            await task
        outcome = await cache.get_or_load("k", lambda: load(2), TAGGED)
        assert outcome.value == 2 or outcome.state is State.STALE


@pytest.mark.parametrize("operation", OPERATIONS.values(), ids=OPERATIONS)
async def test_change_cancelled_while_cache_opens_leaves_no_older_value_fresh_anywhere(one_server, operation, request):
    namespace = f"opening-{request.node.callspec.id}"
    async with Proxy(one_server.port) as proxy, Cache(one_server.url, namespace=namespace) as other:
        assert (await other.get_or_load("k", lambda: load(1), TAGGED)).value == 1
        cache = Cache(proxy.url, namespace=namespace, connect_timeout=60)
        proxy.holds_replies = True
        # The first one opens the cache, and the second one waits for that.
        tasks = [asyncio.create_task(operation(cache)) for _ in range(2)]
        await until(lambda: proxy.connections)
        for task in tasks:
            task.cancel()
        await asyncio.sleep(0)
        proxy.holds_replies = False
        assert all(isinstance(answer, asyncio.CancelledError) for answer in await gather(tasks))
        await cache.aclose()

        async def is_outdated():
            found = await other.peek("k")
            return found is None or found.value == 2 or found.state is State.STALE

        async with asyncio.timeout(60):
            while not await is_outdated():
                await asyncio.sleep(0.01)


@pytest.mark.parametrize("change", ["invalidate", "mark_stale", "set"])
@pytest.mark.parametrize("turns", [1, 20, 60])
async def test_cancelled_change_of_many_items_leaves_no_older_value_fresh(change, turns):
    items = list(range(2500))
    async with Cache() as cache:

        @cache.cached_many("item:{number}", fresh_for=1000, stale_for=1000)
        async def many(numbers: list[int]) -> dict[int, int]:
            return dict.fromkeys(numbers, 1)

        await many(items)
        call = many.set(dict.fromkeys(items, 2), items) if change == "set" else getattr(many, change)(items)
        task = asyncio.create_task(call)
        for _ in range(turns):
            await asyncio.sleep(0)
        task.cancel()
        await gather([task])
        left = (await many.peek(items)).values()
        assert not [outcome for outcome in left if outcome.value == 1 and outcome.state is State.FRESH]


async def test_invalidation_cancelled_before_sending_still_reaches_all_processes(one_server):
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


async def test_until_committed_cancelled_at_its_end_repeats_all_invalidations(one_server):
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


async def test_until_committed_cancelled_while_reading_set_values_repeats_invalidations(one_server):
    async with Cache(one_server.url, namespace="values", l1_max_bytes=0) as cache:
        block = cache.until_committed()
        await block.__aenter__()
        await cache.invalidate("a")
        await cache.set("b", 1, LONG)
        await cache.get_or_load("a", lambda: load(1), LONG)
        one_server.pause()
        task = asyncio.create_task(block.__aexit__(None, None, None))
        for _ in range(20):
            await asyncio.sleep(0)
        task.cancel()
        one_server.resume()
        assert isinstance((await gather([task]))[0], asyncio.CancelledError)
        assert (await cache.get_or_load("a", lambda: load(2), LONG)).value == 2


async def test_until_committed_repeats_mark_stale_of_several_keys():
    async with Cache() as cache:
        async with cache.until_committed():
            await cache.mark_stale("a")
            await cache.mark_stale("b")
            for key in ("a", "b"):
                await cache.get_or_load(key, lambda: load(1), LONG)
        for key in ("a", "b"):
            assert (await cache.get_or_load(key, lambda: load(2), LONG)).state is State.STALE


async def test_invalidating_many_tags_or_urls_lets_other_tasks_run():
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

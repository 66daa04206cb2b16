"""Every store, and every store behind a local cache, does what `tests.store_conformance` says."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import anyio
import pytest
from redis.asyncio import Redis

from swr.core.codec import ANY
from swr.entry import stamp
from swr.errors import LeaseLost
from swr.policy import Policy
from swr.stores.base import Kind, Lease, LeasingStore
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.redis.store import RedisStore
from swr.stores.redis.topology import Single
from swr.stores.tiered import TieredStore
from tests.servers import Server
from tests.store_conformance import StoreConformance

pytestmark = pytest.mark.anyio


@asynccontextmanager
async def opened(store: LeasingStore) -> AsyncIterator[LeasingStore]:
    """The store, open, with a task group that runs what it starts."""
    messages = []
    async with anyio.create_task_group() as group:
        await store.open(group.start_soon, messages.append)
        yield store
        group.cancel_scope.cancel()
    await store.aclose(messages.append)


def redis_store(server: Server, namespace: str = "swr") -> RedisStore:
    return RedisStore(Single(lambda: Redis.from_url(server.url), 2.0), namespace, timeout=2.0)


async def test_lease_lost_to_a_tag_invalidation_is_announced_as_released():
    store, messages = MemoryStore(), []
    async with anyio.create_task_group() as group:
        await store.open(group.start_soon, messages.append)
        lease = await store.acquire("k", "token", 30, 0, ANY)
        await store.invalidate_tag("t")
        messages.clear()
        with pytest.raises(LeaseLost, match="a tag of 'k'"):
            await store.commit(lease, stamp(1, Policy(60).tagged(["t"]), 0.0, lease.version), ANY)
        assert [message[:2] for message in messages] == [(Kind.RELEASED, "k")]
        assert isinstance(await store.acquire("k", "another", 30, 0, ANY), Lease)


class _Jumps:
    """A clock that jumps a minute ahead at one of its readings."""

    def __init__(self, at: int) -> None:
        self.left = at

    def __call__(self) -> float:
        self.left -= 1
        return 1000.0 if self.left >= 0 else 1060.0


async def test_lease_that_expires_during_a_command_is_either_lost_or_held():
    ends = set()
    for at in range(4, 16):
        store = MemoryStore(clock=(clock := _Jumps(10**6)))
        async with opened(store):
            lease = await store.acquire("k", "token", 30, 0, ANY, tags=("t",))
            clock.left = at
            await store.invalidate_announced(("other",))
            clock.left = at - 4
            try:
                await store.renew(lease, 30)
            except LeaseLost:
                ends.add("lost")
            else:
                ends.add("held")
    assert ends == {"lost", "held"}


class TestMemory(StoreConformance):
    @pytest.fixture
    async def store(self) -> AsyncIterator[LeasingStore]:
        async with opened(MemoryStore()) as store:
            yield store


class TestLocalCacheBeforeMemory(StoreConformance):
    @pytest.fixture
    async def store(self) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(LocalCache(2**20, 1000), MemoryStore())) as store:
            yield store


class TestNoLocalCacheBeforeMemory(StoreConformance):
    @pytest.fixture
    async def store(self) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(LocalCache(0, 1000), MemoryStore())) as store:
            yield store


class TestRedis(StoreConformance):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def store(self, server: Server) -> AsyncIterator[LeasingStore]:
        async with opened(redis_store(server)) as store:
            yield store


class TestLocalCacheBeforeRedis(StoreConformance):
    @pytest.fixture
    def anyio_backend(self) -> str:
        return "asyncio"

    @pytest.fixture
    async def store(self, server: Server) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(LocalCache(2**20, 1000), redis_store(server))) as store:
            yield store

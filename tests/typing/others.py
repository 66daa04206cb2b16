# pyright: strict, reportUnnecessaryTypeIgnoreComment=true
"""The types of the cache, events, metrics, refreshers and fakes as users see them, checked by mypy and pyright; never run."""

from collections.abc import AsyncIterator, Callable, Iterator
from typing import assert_type

from prometheus_client import CollectorRegistry
from redis.asyncio import Redis

import swr.otel
import swr.prometheus
from swr import Cache, LoadContext, Policy, Refresher
from swr.events import Event, Hit, Stale
from swr.refreshers import QueueStatus
from swr.testing import FakeClock

cache = Cache("redis://127.0.0.1:6379/0", namespace="shop", l1_max_bytes=2**20, timeout="500ms", secret=b"x")
memory = Cache(clock=FakeClock())


async def life() -> None:
    async with cache as opened:
        assert_type(opened, Cache)
    await cache.aclose()
    client: Redis = Redis()
    Cache(redis=client)
    Cache(redis="redis://127.0.0.1")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await cache.invalidate("k")
    await cache.invalidate_tag("group:ATL")
    await cache.invalidate_url("/rankings/ATL")
    await cache.clear()
    async with cache.until_committed():
        pass
    assert_type(Policy(60, "10m", tags=["a"]).fresh_for, float)


# -- events and metrics --------------------------------------------------------------------------------------------


def hears(event: Hit) -> None: ...


def hears_two(event: Hit | Stale) -> None: ...


def events() -> None:
    heard: list[Event] = []
    cache.subscribe(heard.append)
    cache.subscribe(hears, Hit)
    assert_type(cache.subscribe(hears_two, Hit, Stale), Callable[[], None])
    cache.subscribe(hears, Stale)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    cache.subscribe(hears)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    assert_type(swr.prometheus.export(cache, CollectorRegistry()), Callable[[], None])
    assert_type(swr.otel.export(cache), Callable[[], None])


# -- refreshers ----------------------------------------------------------------------------------------------------


@cache.cached("a:{group}", fresh_for=60)
async def one(group: str) -> int:
    return 1


@cache.cached("b:{group}:{limit}", fresh_for=60)
def two(group: str, limit: int = 5) -> int:
    return 1


@cache.cached("c:{group}", fresh_for=60)
async def asks(context: LoadContext[int], group: str) -> int:
    return 1


@cache.cached_many("d:{group}", fresh_for=60)
async def many(groups: list[str]) -> dict[str, int]:
    return {}


class Service:
    @cache.cached("e:{group}", fresh_for=60, ignore=("self",))
    async def method(self, group: str) -> int:
        return 1

    @cache.cached_many("f:{group}", fresh_for=60, ignore=("self",))
    async def several(self, groups: list[str]) -> dict[str, int]:
        return {}

    @cache.cached("g:{group}", fresh_for=60, ignore=("cls",))
    @classmethod
    async def of_class(cls, group: str) -> int:
        return 1

    @cache.cached("h:{group}", fresh_for=60)
    @staticmethod
    async def static(group: str) -> int:
        return 1


def groups() -> Iterator[str]:
    yield "ATL"


async def groups_async() -> AsyncIterator[tuple[str, int]]:
    yield "ATL", 5


async def changed(since: float) -> list[str]:
    return []


async def uncached(group: str) -> int:
    return 1


async def refreshers() -> None:
    Refresher(one, ["ATL"], 60)
    Refresher(one, keys=groups, every="1m", strategy="queue", dirty_only=True, changed_since=changed)
    Refresher(two, groups_async, 60, "locks", at_once=2)
    Refresher(asks, ["ATL"], 60)
    Refresher(many, ["ATL"], 60)
    Refresher(Service().method, ["ATL"], 60)
    Refresher(Service().several, ["ATL"], 60)
    Refresher(Service.of_class, ["ATL"], 60)
    Refresher(Service.static, ["ATL"], 60)
    Refresher(uncached, ["ATL"], 60)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    Refresher(one, ["ATL"], 60, "no")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    async with Refresher(one, ["ATL"], 60) as refresher:
        assert_type(refresher, Refresher)
        await refresher.mark_dirty("ATL", ("ORD",))
        assert_type(await refresher.status(), QueueStatus)


# -- fakes ---------------------------------------------------------------------------------------------------------


def fakes() -> None:
    clock = FakeClock()
    assert_type(clock(), float)
    clock.advance(5)

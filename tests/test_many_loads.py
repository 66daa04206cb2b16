"""Thousands of loads at once: what is done for all of them grows in proportion to them. Calls are counted, not time."""

import sys

import anyio
import pytest

from swr import Cache
from swr.testing import FakeClock
from tests.fleet import gather

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Calls:
    """Counts the calls of Python functions within a `with` block."""

    number = 0

    def __enter__(self):
        self._before = sys.getprofile()
        sys.setprofile(self._count)
        return self

    def __exit__(self, *_):
        sys.setprofile(self._before)

    def _count(self, frame, event, argument):
        self.number += event == "call"


async def one_call(cache, tags):
    await cache.invalidate_tags(*tags)


async def marks(cache, tags):
    await cache.mark_stale_tags(*tags)


async def a_call_each(cache, tags):
    await gather(*(cache.invalidate_tag(tag) for tag in tags))


async def calls_to(invalidate, number, *, is_stored):
    """Return how many functions are called to invalidate the tags of `number` loads under way."""
    clock, gate, begun = FakeClock(), anyio.Event(), 0
    gate.set()
    async with Cache(clock=clock, drain_for=0) as cache:

        @cache.cached("r:{group}", fresh_for=60, stale_for=600, tags=["t:{group}"])
        async def ranking(group: int) -> int:
            nonlocal begun
            begun += 1
            await gate.wait()
            return group

        groups = range(number)
        if is_stored:
            await gather(*map(ranking, groups))
            clock.advance(61)
        gate, begun = anyio.Event(), 0
        async with anyio.create_task_group() as group:
            for each in groups:
                group.start_soon(ranking, each)
            while begun < number:
                await anyio.lowlevel.checkpoint()
            with Calls() as calls:
                await invalidate(cache, [f"t:{group}" for group in groups])
            gate.set()
    return calls.number


@pytest.mark.parametrize("is_stored", [False, True], ids=["cold", "stale"])
@pytest.mark.parametrize("invalidate", [one_call, marks, a_call_each])
async def test_calls_to_invalidate_tags_grow_in_proportion_to_running_loads(invalidate, is_stored):
    """Who: an import that invalidates the tag of each row, while a deploy's cold processes load the rows."""
    few = await calls_to(invalidate, 50, is_stored=is_stored)
    many = await calls_to(invalidate, 200, is_stored=is_stored)
    assert many < 8 * few


async def calls_of_parts(number):
    """Return how many functions are called by a batch loader that asks another loader for each of `number` items."""
    async with Cache() as cache:
        released, asked = anyio.Event(), 0

        @cache.cached("team:{player}", fresh_for=60)
        async def team(player: int) -> int:
            nonlocal asked
            asked += 1
            await released.wait()
            return player

        @cache.cached_many("player:{item}", fresh_for=60)
        async def players(numbers: list[int]) -> dict[int, int]:
            return dict(zip(numbers, await gather(*map(team, numbers)), strict=True))

        async with anyio.create_task_group() as group:
            with Calls() as calls:
                group.start_soon(players, range(number))
                while asked < number:
                    await anyio.lowlevel.checkpoint()
                released.set()
                while cache.engine.flights:
                    await anyio.lowlevel.checkpoint()
        return calls.number


async def test_calls_of_a_batch_with_nested_loads_grow_in_proportion_to_its_items():
    """Who: a page of hundreds of players whose loader asks for the team of each."""
    assert await calls_of_parts(200) < 8 * await calls_of_parts(50)

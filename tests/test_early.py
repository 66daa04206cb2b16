"""Refreshed before their time (XFetch), and times that are spread (jitter)."""

import math

import anyio
import pytest

from swr import Cache, ConfigurationError, Fresh, Policy, State
from swr.core.decision import is_due_early
from swr.entry import stamp
from swr.loaders.cached import Cached
from swr.testing import FakeClock
from tests.fleet import Job, fleet, settle
from tests.servers import Server

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("name", ["early", "jitter"])
def test_invalid_early_or_jitter_is_refused(name):
    assert getattr(Policy(1, **{name: 1}), name) == 1.0
    for wrong in (-1, math.inf, math.nan, "1", True, None):
        with pytest.raises(ConfigurationError, match=name):
            Policy(1, **{name: wrong})
        with pytest.raises(ConfigurationError, match=name):
            Cache().cached(fresh_for=1, **{name: wrong})
    with pytest.raises(ConfigurationError, match=r"jitter=1\.5"):
        Policy(1, jitter=1.5)


def test_entry_is_due_early_as_the_xfetch_formula_says():
    entry = stamp(1, Policy(60), 1000.0, took=2.0)
    # -2 * 3 * ln(draw) = 6 s before the end
    draw = math.exp(-1)
    assert not is_due_early(entry, 1053.9, 3, draw)
    assert is_due_early(entry, 1054.1, 3, draw)
    assert not is_due_early(entry, 1059.9, 3, 1.0)
    assert is_due_early(entry, 1000.0, 3, 0.0)
    assert not is_due_early(stamp(1, Policy(60), 1000.0), 1059.9, 3, 0.0)


class TestEarly:
    @pytest.fixture
    async def cache(self, clock):
        async with Cache(clock=clock) as cache:
            cache.engine.runtime.uniform = lambda low, high: math.exp(-2)
            yield cache

    async def test_early_refresh_returns_fresh_value_and_runs_one_background_load(self, cache, clock):
        runs, gate = [], anyio.Event()
        gate.set()

        @cache.cached("k", fresh_for=60, early=1.0)
        async def load() -> int:
            runs.append(1)
            if len(runs) == 1:
                clock.advance(10)
            await gate.wait()
            return len(runs)

        assert await load() == 1
        clock.advance(29)
        assert await load() == 1
        await settle()
        assert len(runs) == 1
        clock.advance(2)
        gate = anyio.Event()
        for _ in range(5):
            assert await load() == 1
        await settle()
        assert len(runs) == 2
        outcome = await load.outcome()
        assert (outcome.value, outcome.state) == (1, State.FRESH)
        await settle()
        assert len(runs) == 2
        gate.set()
        await settle()
        assert await load() == 2

    async def test_early_refresh_runs_for_get_or_load_and_for_methods(self, cache, clock):
        runs = []

        class Service:
            @cache.cached("k", fresh_for=60, ignore=("self",), early=1, copy=True)
            async def load(self) -> list[int]:
                runs.append(1)
                clock.advance(10)
                return [len(runs)]

        async def plain() -> int:
            runs.append(1)
            clock.advance(10)
            return len(runs)

        first = await Service().load()
        policy = Policy(60, early=1)
        await cache.get_or_load("g", plain, policy)
        clock.advance(35)
        assert (await cache.get_or_load("g", plain, policy)).state is State.FRESH
        assert await Service().load() == first
        await settle()
        assert len(runs) == 4

    async def test_loader_without_early_is_a_plain_cached_object(self, cache):
        @cache.cached("k", fresh_for=60)
        async def load() -> int:
            return 1

        assert type(load) is Cached

    async def test_failed_early_refresh_backs_off_and_keeps_the_fresh_value(self, cache, clock):
        runs = []

        @cache.cached("k", fresh_for=60, early=1)
        async def load() -> int:
            runs.append(1)
            clock.advance(10)
            if len(runs) > 1:
                raise ValueError("down")
            return 1

        await load()
        clock.advance(35)
        for _ in range(3):
            assert (await load.outcome()).state is State.FRESH
            await settle()
        assert len(runs) == 2

    async def test_early_refresh_runs_in_one_process_only(self, clock):
        async with fleet(2, clock) as (one, other):

            class Slow(Job):
                async def run(self, load):
                    clock.advance(10)
                    await super().run(load)

            job = Slow()
            for process in (one, other):
                process.engine.runtime.uniform = lambda low, high: math.exp(-2)
                await process.engine.fetch("k", job)
            clock.advance(31)
            job.gate = anyio.Event()
            for process in (one, other):
                assert (await process.engine.fetch("k", job, early=1)).state is State.FRESH
            await settle()
            assert job.runs == 2
            job.gate.set()
            await settle()
            for process in (one, other):
                assert (await process.engine.fetch("k", job)).value == 2

    async def test_early_refresh_opens_a_closed_engine(self, clock):
        job = Job()

        async def slow():
            clock.advance(10)

        job.before_store = slow
        async with fleet(1, clock) as (process,):
            memory = process.link.store
            engine = type(process.engine)(memory, clock=clock, uniform=lambda low, high: math.exp(-2))
            await engine.fetch("k", job)
            await engine.aclose()
            clock.advance(45)
            assert (await engine.fetch("k", job, early=1)).state is State.FRESH
            await settle()
            assert job.runs == 2
            await engine.aclose()


class TestJitter:
    async def test_jitter_shortens_fresh_for_by_a_random_share(self, clock):
        drawn = []

        def uniform(low, high):
            drawn.append((low, high))
            return high

        async with Cache(clock=clock) as cache:
            cache.engine.runtime.uniform = uniform

            answers = [1, Fresh(1, fresh_for=10), 1]
            windows = []
            for policy in (Policy(60, 600, jitter=0.1), Policy(1, jitter=0.5), Policy(60)):
                await cache.get_or_load("k", lambda: answers.pop(0), policy)
                entry = cache.engine.store.peek("k")
                windows.append((entry.fresh_until - clock(), entry.stale_until - entry.fresh_until))
                await cache.invalidate("k")
        assert windows == [(54, 600), (5, 0), (60, 0)]
        assert drawn == [(0.0, 0.1), (0.0, 0.5)]

    async def test_jitter_spreads_the_ends_of_fresh_for(self):
        async with Cache() as cache:

            @cache.cached("k:{n}", fresh_for=1000, jitter=0.5)
            async def load(n: int) -> int:
                return n

            left = []
            for n in range(50):
                await load(n)
                entry = cache.engine.store.peek(f"k:{n}")
                left.append(round(entry.fresh_until - entry.created_at))
        assert 500 <= min(left) < max(left) <= 1000


class TestThroughRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    async def test_early_refresh_in_another_process_uses_the_stored_load_time(self, server: Server):
        clock = FakeClock()
        one, other = (Cache(server.url, timeout=2, clock=clock) for _ in range(2))
        runs = []

        async def load() -> int:
            runs.append(1)
            clock.advance(10)
            return len(runs)

        async with one, other:
            other.engine.runtime.uniform = lambda low, high: math.exp(-2)
            await one.get_or_load("k", load, Policy(60))
            clock.advance(45)
            outcome = await other.get_or_load("k", load, Policy(60, early=1))
            assert (outcome.value, outcome.state) == (1, State.FRESH)
            while other.engine.flights:
                await anyio.sleep(0.01)
        assert len(runs) == 2

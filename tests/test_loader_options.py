"""What decorators say of one loader: which values are stored, and the policy of the cache for what they leave open."""

import asyncio
import contextlib

import anyio
import pytest
from fastapi import FastAPI

from swr import (
    NOT_MODIFIED,
    Cache,
    ConfigurationError,
    Fresh,
    LoadContext,
    LoadTimeout,
    Policy,
    Refresher,
    State,
    SWRError,
)
from swr.core.keys import CallKeys
from swr.lifecycle.default_policy import DecoratorPolicy, DefaultPolicy
from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany, ManyKeys
from swr.loaders.terms import LoaderTerms, seats_of
from swr.middleware import SWRMiddleware
from tests.fleet import fleet, in_time, settle, until
from tests.web import client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend(request):
    """That of a place, for tests of what is the same everywhere."""
    if "place" not in request.fixturenames:
        return "asyncio"
    return request.getfixturevalue("place").rpartition(" ")[2]


@pytest.fixture
async def cache(place_url, clock):
    async with Cache(place_url, clock=clock) as cache:
        yield cache


@pytest.fixture
def memory():
    return Cache()


class Table:
    """What is loaded, by group; counts the loads."""

    def __init__(self, **rows: object) -> None:
        self.rows = rows
        self.loads = 0
        self.gate: anyio.Event | None = None

    async def __call__(self, group: str) -> object:
        self.loads += 1
        if self.gate is not None:
            await self.gate.wait()
        row = self.rows.get(group)
        if isinstance(row, Exception):
            raise row
        return row


def define(cache, table, **options):
    @cache.cached("row:{group}", **{"fresh_for": 60, "stale_for": 600, "stale_if_error": 3600, **options})
    async def row(group: str) -> str | None:
        return await table(group)

    return row


def exists(value):
    return value is not None


def loader_of(process, function, policy, **terms):
    """A cached loader in one process of a fleet."""
    policies = DecoratorPolicy(DefaultPolicy(policy), {}, "a test")
    return Cached(process.engine, process.local, function, CallKeys(function), LoaderTerms(policies, **terms))


class TestStoreIf:
    async def test_readers_of_one_flight_share_a_value_that_is_not_stored(self, cache):
        table = Table()
        row = define(cache, table, store_if=exists)
        table.gate = anyio.Event()
        outcomes = []

        async def ask():
            outcomes.append(await row.outcome("a"))

        async with anyio.create_task_group() as group:
            for _ in range(5):
                group.start_soon(ask)
            await until(lambda: table.loads)
            await settle()
            table.gate.set()
        assert [(outcome.value, outcome.state) for outcome in outcomes] == [(None, State.MISSING)] * 5
        assert table.loads == 1
        assert await row.peek("a") is None

    async def test_next_call_loads_again_after_a_value_was_not_stored(self, cache):
        table = Table()
        row = define(cache, table, store_if=exists)
        assert [await row("a"), await row("a")] == [None, None]
        table.rows["a"] = "1"
        assert [await row("a"), await row("a")] == ["1", "1"]
        assert table.loads == 3

    async def test_refresh_with_a_rejected_value_removes_the_old_one_in_every_process(self, cache, place_url, clock):
        """If a user is deleted, no process serves the old value, although swr does not store the new one."""
        table = Table(a="1")
        row = define(cache, table, store_if=exists)
        async with Cache(place_url, clock=clock) as elsewhere:
            other = define(elsewhere, table, store_if=exists)
            assert [await row("a"), await other("a")] == ["1", "1"]
            del table.rows["a"]
            clock.advance(61)
            assert (await row.outcome("a")).state is State.STALE
            await until(lambda: table.loads == (2 if place_url else 3))
            with anyio.fail_after(30):
                while await row.peek("a") is not None:
                    await anyio.sleep(0.005)
            if place_url:
                with anyio.fail_after(30):
                    while await other.peek("a") is not None:
                        await anyio.sleep(0.005)
                assert await other("a") is None

    async def test_refresh_and_set_obey_store_if(self, cache):
        table = Table(a="1")
        row = define(cache, table, store_if=exists)
        await row("a")
        table.rows["a"] = None
        assert await row.refresh("a") is None
        assert await row.peek("a") is None
        assert await row.set("2", "a")
        assert not await row.set(None, "a")
        assert await row.peek("a") is None

    async def test_batch_loader_stores_only_items_that_store_if_accepts(self, cache):
        asked = []
        rows = {"a": 1, "b": 0}

        @cache.cached_many("n:{item}", fresh_for=60, stale_for=600, store_if=bool)
        async def numbers(items: list[str]) -> dict[str, int]:
            asked.append(items)
            return {item: rows[item] for item in items}

        assert await numbers(["a", "b"]) == {"a": 1, "b": 0}
        assert await numbers(["a", "b"]) == {"a": 1, "b": 0}
        assert asked == [["a", "b"], ["b"]]
        rows["a"] = 0
        assert await numbers.refresh(["a"]) == {"a": 0}
        assert await numbers.peek(["a", "b"]) == {}
        assert not await numbers.set({"a": 5, "b": 0}, ["a", "b"])
        assert list(await numbers.peek(["a", "b"])) == ["a"]

    async def test_store_if_gets_the_value_of_fresh_and_is_not_asked_for_not_modified(self, cache):
        answers = [Fresh(0), Fresh(1), NOT_MODIFIED]

        @cache.cached("n", fresh_for=60, store_if=lambda value: value != 0)
        async def number(context: LoadContext[int]) -> int:
            return answers.pop(0)

        assert [await number(), await number(), await number.refresh(), await number()] == [0, 1, 1, 1]

    async def test_store_if_that_raises_fails_the_load_and_keeps_the_stored_value(self, cache, clock):
        table = Table(a="1")
        row = define(cache, table, store_if=lambda value: value[0])
        await row("a")
        table.rows["a"] = None
        clock.advance(700)
        outcome = await row.outcome("a")
        assert (outcome.value, type(outcome.error)) == ("1", TypeError)

    async def test_async_store_if_is_refused(self, memory):
        async def later(value: object) -> bool:
            return True

        for store_if, reason in ((later, "is async"), (5, "=5: give a function")):
            with pytest.raises(ConfigurationError, match=reason):
                memory.cached("row", fresh_for=1, store_if=store_if)
            with pytest.raises(ConfigurationError, match=reason):
                memory.cached_many("row:{item}", fresh_for=1, store_if=store_if)
        for store_if in (lambda value: later(value), lambda value: Awaitable()):
            row = define(Cache(), Table(), store_if=store_if)
            with pytest.raises(ConfigurationError, match="returned an awaitable"):
                await row("a")

    async def test_rejected_value_removes_the_old_one_here_while_redis_is_unreachable(self, clock):
        async with fleet(2, clock) as (one, _):
            rows = ["1", None, "2"]

            async def load() -> str | None:
                return rows.pop(0)

            row = loader_of(one, load, Policy(60, 600, 3600), store_if=exists)
            assert await row() == "1"
            one.link.set_down(True)
            clock.advance(61)
            assert await row() == "1"
            await settle()
            assert rows == ["2"]
            assert await row.peek() is None
            assert await row() == "2"

            async def nothing() -> None:
                return None

            none = loader_of(one, nothing, Policy(60), store_if=exists)
            assert await none() is None

    async def test_rejected_value_removes_the_old_one_everywhere_after_a_gap_during_the_load(self, clock):
        async with fleet(2, clock) as (one, other):
            table = Table(a="1")

            async def load(group: str) -> object:
                return await table(group)

            row = loader_of(one, load, Policy(60, 600, 3600), store_if=exists)
            elsewhere = loader_of(other, load, Policy(60, 600, 3600), store_if=exists)
            assert [await row("a"), await elsewhere("a")] == ["1", "1"]
            table.gate = anyio.Event()
            table.rows["a"] = None
            clock.advance(61)
            assert await row("a") == "1"
            await until(lambda: table.loads == 2)
            one.link.set_down(True)
            one.link.set_down(False)
            await settle()
            table.gate.set()
            await until(lambda: not len(one.engine.flights))
            await settle()
            assert [await row.peek("a"), await elsewhere.peek("a")] == [None, None]

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_refresher_treats_a_rejected_value_as_loaded(self, any_server, clock):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as cache:
            table = Table(a=None)
            row = define(cache, table, store_if=exists)
            (flight,) = row.begin([(("a",), 0)])
            await flight.done.wait()
            assert flight.error is None
            refresher = Refresher(row, ["a"], every=3600)
            async with refresher:
                await until(lambda: table.loads == 2)


class Awaitable:
    def __await__(self):
        yield


class Opaque:
    """What Redis cannot hold."""

    def __init__(self, number: int) -> None:
        self.number = number


class TestShared:
    """`shared=False`: each process has its own."""

    @staticmethod
    def define(cache, **options):
        loads = []

        @cache.cached("opaque:{group}", **{"fresh_for": 60, "shared": False, "tags": ("group:{group}",), **options})
        async def opaque(group: str) -> Opaque:
            loads.append(group)
            return Opaque(len(loads))

        opaque.loads = loads
        return opaque

    async def test_each_process_loads_and_holds_any_object_once(self, cache, place_url):
        opaque = self.define(cache)
        assert await opaque("a") is await opaque("a")
        assert (await opaque.outcome("a")).state is State.FRESH
        async with Cache(place_url) as elsewhere:
            other = self.define(elsewhere)
            assert (await other("a")).number == 1
            assert await other("a") is not await opaque("a")

    async def test_invalidations_reach_the_copies_of_every_process(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as one, Cache(any_server.url) as other:
            mine, theirs = self.define(one, stale_for=600), self.define(other, stale_for=600)
            for invalidate in (
                lambda: mine.invalidate("a"),
                lambda: one.invalidate_tag("group:a"),
                lambda: mine.invalidate_all(),
                lambda: one.clear(),
                lambda: mine.set(Opaque(0), "a"),
            ):
                await mine("a"), await theirs("a")
                loads = len(theirs.loads)
                await invalidate()
                with anyio.fail_after(30):
                    while await theirs.peek("a") is not None:
                        await anyio.sleep(0.005)
                await theirs("a")
                assert len(theirs.loads) == loads + 1
            assert (await mine("a")).number == 0
            await mine.mark_stale("a")
            with anyio.fail_after(30):
                while (await theirs.peek("a")).state is not State.STALE:
                    await anyio.sleep(0.005)

    async def test_values_are_never_written_to_redis(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as cache:
            opaque = self.define(cache)
            await opaque("a")
            assert not await opaque.set(Opaque(5), "b")
            assert (await opaque("b")).number == 5
            assert await opaque.refresh("a") is await opaque("a")
            keys = any_server.command("KEYS", "*opaque:a*")
            assert keys == b"*0\r\n"

    async def test_batch_loader_may_hold_any_object(self, cache):
        asked = []

        @cache.cached_many("opaque:{item}", fresh_for=60, shared=False)
        async def many(items: list[str]) -> dict[str, Opaque]:
            asked.append(items)
            return {item: Opaque(len(asked)) for item in items}

        first = await many(["a", "b"])
        assert await many(["b", "a"]) == {"b": first["b"], "a": first["a"]}
        await many.invalidate(["a"])
        assert list(await many.peek(["a", "b"])) == ["b"]
        await many(["a", "b"])
        assert asked == [["a", "b"], ["a"]]

    async def test_value_invalidated_during_its_load_is_loaded_again(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as cache:
            runs = []

            @cache.cached("n", fresh_for=60, shared=False, tags=lambda value: (f"tag:{value}",))
            async def number() -> int:
                runs.append(None)
                if len(runs) == 1:
                    await cache.invalidate_tag("tag:1")
                return len(runs)

            assert [await number(), await number()] == [2, 2]

    async def test_value_is_served_while_redis_is_unreachable_and_loaded_again_afterwards(self, clock):
        async with fleet(1, clock) as (one,):
            runs = []

            async def load() -> Opaque:
                runs.append(None)
                return Opaque(len(runs))

            opaque = loader_of(one, load, Policy(60, 600), stays_here=True)
            await opaque()
            one.link.set_down(True)
            assert [(await opaque()).number, (await opaque()).number] == [1, 1]
            await opaque.refresh()
            one.link.set_down(False)
            await settle()
            # Another process may have invalidated it meanwhile.
            assert [(await opaque()).number, (await opaque()).number] == [3, 3]

    async def test_failures_back_off_longer_each_time(self, clock, caplog):
        async with fleet(1, clock) as (one,):
            fails = []

            async def load() -> Opaque:
                if fails:
                    fails.append(None)
                    raise LookupError("away")
                return Opaque(1)

            opaque = loader_of(one, load, Policy(60, 600), stays_here=True)
            await opaque()
            fails.append(None)
            clock.advance(61)
            for pause in (1, 2, 4):
                await opaque()
                await until(lambda: one.engine.backoffs.failures(opaque.key()) > 0)
                await settle()
                assert 0.7 * pause < one.engine.backoffs.left(opaque.key()) <= 1.25 * pause
                key, backoffs = opaque.key(), one.engine.backoffs._backoffs
                backoffs[key] = backoffs[key]._replace(until=0.0)

    def test_refresher_refuses_a_loader_with_shared_false(self, memory):
        with pytest.raises(ConfigurationError, match="has shared=False"):
            Refresher(self.define(memory), ["a"], every=60)

        class Service:
            @memory.cached(fresh_for=60, shared=False, ignore=("self",))
            async def opaque(self, group: str) -> Opaque:
                return Opaque(1)

        with pytest.raises(ConfigurationError, match="has shared=False"):
            Refresher(Service().opaque, ["a"], every=60)

    @pytest.mark.parametrize(
        ("options", "reason"),
        [
            ({"local": False, "shared": False}, "stored nowhere"),
            ({"local": 0}, "give True or False"),
            ({"shared": None}, "give True or False"),
        ],
    )
    def test_invalid_local_and_shared_options_are_refused(self, memory, options, reason):
        with pytest.raises(ConfigurationError, match=reason):
            memory.cached("a", fresh_for=1, **options)
        with pytest.raises(ConfigurationError, match=reason):
            memory.cached_many("a:{item}", fresh_for=1, **options)


class TestLocal:
    """`local=False`: Redis alone holds the values."""

    async def test_each_read_asks_redis_and_no_copy_is_held_locally(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as one, Cache(any_server.url) as other:
            mine, theirs = (define(cache, Table(a="1"), local=False) for cache in (one, other))
            assert [await mine("a"), await theirs("a"), await theirs("a")] == ["1"] * 3
            assert one.engine.store.peek("row:a") is None
            assert other.engine.store.peek("row:a") is None
            assert await mine.set("2", "a")
            # No message has to arrive first.
            assert await theirs("a") == "2"
            await mine.invalidate("a")
            assert await theirs.peek("a") is None

    async def test_batch_loader_reads_all_items_from_redis(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as cache:
            asked = []

            @cache.cached_many("n:{item}", fresh_for=60, local=False)
            async def numbers(items: list[str]) -> dict[str, int]:
                asked.append(items)
                return dict.fromkeys(items, 1)

            for _ in range(2):
                assert await numbers(["a", "b"]) == {"a": 1, "b": 1}
            assert asked == [["a", "b"]]
            assert not len(cache.local.slots)

    async def test_each_call_loads_while_redis_is_unreachable(self, own_server):
        async with Cache(own_server.url) as cache:
            table = Table(a="1")
            row = define(cache, table, local=False)
            await row("a")
            own_server.kill()
            await until(lambda: not cache.engine.is_store_up)
            assert [await row("a"), await row("a")] == ["1", "1"]
            assert table.loads == 3

    async def test_local_false_has_no_effect_without_redis(self, memory):
        async with memory:
            table = Table(a="1")
            row = define(memory, table, local=False)
            assert [await row("a"), await row("a"), table.loads] == ["1", "1", 1]


class TestDefaultPolicy:
    async def test_loaders_and_calls_without_times_follow_the_policy_of_the_cache(self, place_url, clock):
        async with Cache(place_url, clock=clock, policy=Policy(60, 600, keep_for=5)) as cache:

            @cache.cached("a:{n}")
            async def one(n: int) -> int:
                return n

            @cache.cached("b:{n}", fresh_for=5, tags=("b",))
            async def two(n: int) -> int:
                return n

            @cache.cached_many("c:{item}", stale_for=0)
            async def many(items: list[int]) -> dict[int, int]:
                return {item: item for item in items}

            await one(1), await two(1), await many([1]), await cache.get_or_load("k", lambda: 1)
            assert await cache.set("s", 1)
            clock.advance(10)
            states = [(await loader.outcome(1)).state for loader in (one, two)]
            assert states == [State.FRESH, State.STALE]
            assert (await many.outcome([1]))[1].state is State.FRESH
            clock.advance(55)
            assert (await one.outcome(1)).state is State.STALE
            assert await many.peek([1]) == {}
            assert (await cache.peek("k")).state is State.STALE
            assert (await cache.peek("s")).state is State.STALE

    async def test_policy_configured_later_applies_to_loaders_decorated_before(self, clock):
        cache = Cache(clock=clock, policy=Policy(60))

        @cache.cached("a")
        async def one() -> int:
            return 1

        async with cache:
            await one()
            await one()
        cache.configure(policy=Policy(5, early=1.0))
        async with cache:
            await one()
            clock.advance(4.9)
            # It took no time, and is not refreshed early.
            assert (await one.outcome()).state is State.FRESH
            clock.advance(1)
            assert await one.peek() is None

    async def test_endpoint_without_times_follows_the_policy_of_the_cache(self, clock):
        cache = Cache(clock=clock, policy=Policy(60, 600, soft_timeout=5))
        app = FastAPI()

        @app.get("/a")
        @cache.response(tags=("a",))
        async def answer() -> str:
            return "a"

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            states = []
            for seconds in (0, 59, 2):
                clock.advance(seconds)
                states.append((await http.get("/a")).headers["swr-state"])
            assert states == ["missing", "fresh", "stale"]
        with pytest.raises(ConfigurationError, match=r"@cache\.response does not say how long"):
            Cache().response(stale_for=5)

    @pytest.mark.parametrize(
        ("policy", "reason"), [(60, "is not a Policy"), (Policy(60, tags=("a",)), "give them to loaders")]
    )
    def test_invalid_default_policy_is_refused(self, policy, reason):
        with pytest.raises(ConfigurationError, match=reason):
            Cache(policy=policy)
        with pytest.raises(ConfigurationError, match=reason):
            Cache.from_env(policy=policy)

    async def test_loader_or_call_without_times_is_refused_if_the_cache_has_no_policy(self, memory):
        for decorate in (lambda: memory.cached("a"), lambda: memory.cached_many("a:{item}", stale_for=5)):
            with pytest.raises(ConfigurationError, match="give it fresh_for=60, or a policy to the cache"):
                decorate()
        with pytest.raises(ConfigurationError, match="a call without a policy"):
            await memory.get_or_load("k", lambda: 1)
        with pytest.raises(ConfigurationError, match="is not a Policy"):
            await memory.get_or_load("k", lambda: 1, 60)
        with pytest.raises(ConfigurationError, match="a call without a policy"):
            await memory.set("k", 1)

    def test_default_policy_cannot_be_removed_once_a_loader_uses_it(self):
        cache = Cache(policy=Policy(60))
        cache.configure(policy=None)
        cache.configure(policy=Policy(60))
        cache.cached("a")
        with pytest.raises(ConfigurationError, match="needs the policy of the cache"):
            cache.configure(policy=None, namespace="other")
        assert cache.namespace == "swr"


class Guarded:
    """A loader whose calls end when told to; notes how many run at once."""

    def __init__(self) -> None:
        self.running: list[object] = []
        self.begun: list[object] = []
        self.most = 0
        self.gates: dict[object, anyio.Event] = {}

    async def __call__(self, name: object) -> object:
        self.running.append(name)
        self.begun.append(name)
        self.most = max(self.most, len(self.running))
        try:
            await self.gate(name).wait()
        finally:
            self.running.remove(name)
        return name

    def gate(self, name: object) -> anyio.Event:
        return self.gates.setdefault(name, anyio.Event())


def limited(cache, guarded, most, **options):
    @cache.cached("g:{name}", **{"fresh_for": 60, "stale_for": 600, "max_concurrent_loads": most, **options})
    async def load(name: str) -> str:
        return await guarded(name)

    return load


class TestMaxConcurrentLoads:
    async def test_loads_beyond_the_limit_wait_and_all_readers_are_answered(self, cache):
        guarded = Guarded()
        load = limited(cache, guarded, 2)
        answers = []

        async def ask(name):
            answers.append(await load(name))

        async with anyio.create_task_group() as group:
            for name in "abcde":
                group.start_soon(ask, name)
            for number in range(5):
                await until(lambda number=number: len(guarded.begun) > number)
                await settle()
                assert guarded.most <= 2
                guarded.gate(guarded.begun[number]).set()
        assert sorted(answers) == list("abcde")
        assert guarded.most == 2

    async def test_closing_the_cache_fails_a_load_that_waits_for_a_slot(self, place_url, clock):
        guarded, failures = Guarded(), []
        cache = Cache(place_url, clock=clock, drain_for=0)
        load = limited(cache, guarded, 1)

        async def ask(name):
            try:
                await load(name)
            except SWRError as error:
                failures.append(str(error))

        async with anyio.create_task_group() as group, cache:
            group.start_soon(ask, "a")
            await until(lambda: guarded.begun)
            group.start_soon(ask, "b")
            await settle()
        assert sorted(failures) == [f"the cache was closed while 'g:{name}' was loaded" for name in "ab"]
        assert guarded.begun == ["a"]

    async def test_load_that_waits_for_a_slot_holds_no_lease(self, any_server):
        """Another process has a free slot, and can load the key meanwhile."""
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as one, Cache(any_server.url) as other:
            here, there = Guarded(), Guarded()
            there.gate("b").set()
            mine, theirs = limited(one, here, 1), limited(other, there, 1)
            answers = []

            async def ask(name):
                answers.append(await mine(name))

            async with anyio.create_task_group() as group:
                group.start_soon(ask, "a")
                await until(lambda: here.begun)
                group.start_soon(ask, "b")
                await settle()
                assert await theirs("b") == "b"
                here.gate("a").set()
            assert (answers, here.begun) == (["a", "b"], ["a"])

    async def test_limit_holds_while_redis_is_unreachable(self, own_server):
        guarded = Guarded()
        async with Cache(own_server.url) as cache:
            load = limited(cache, guarded, 2)
            own_server.kill()
            await until(lambda: not cache.engine.is_store_up)
            async with anyio.create_task_group() as group:
                for name in "abc":
                    group.start_soon(load, name)
                for number in range(3):
                    await until(lambda number=number: len(guarded.begun) > number)
                    await settle()
                    guarded.gate(guarded.begun[number]).set()
        assert (sorted(guarded.begun), guarded.most) == (["a", "b", "c"], 2)

    async def test_load_that_waits_for_another_process_takes_no_slot(self, any_server):
        any_server.command("FLUSHALL")
        async with Cache(any_server.url) as one, Cache(any_server.url) as other:
            here, there = Guarded(), Guarded()
            here.gate("b").set()
            mine, theirs = limited(one, here, 1), limited(other, there, 1)
            async with anyio.create_task_group() as group:
                group.start_soon(theirs, "a")
                await until(lambda: there.begun)
                group.start_soon(mine, "a")
                await settle()
                with anyio.fail_after(30):
                    assert await mine("b") == "b"
                there.gate("a").set()

    async def test_stale_hits_do_not_wait_for_slots_and_waiting_readers_load_before_refreshes(self, cache, clock):
        guarded = Guarded()
        load = limited(cache, guarded, 1)
        for name in ("old", "older"):
            guarded.gate(name).set()
            await load(name)
        clock.advance(61)
        guarded.begun.clear()
        async with anyio.create_task_group() as group:
            group.start_soon(load, "a")
            await until(lambda: guarded.begun == ["a"])
            states = [(await load.outcome(name)).state for name in ("old", "older")]
            assert states == [State.STALE] * 2
            group.start_soon(load, "b")
            await until(lambda: cache.engine.is_loading(load.key("b")))
            # A reader who waits makes a refresh his own.
            group.start_soon(load.refresh, "c")
            await until(lambda: cache.engine.is_loading(load.key("c")))
            guarded.gate("a").set()
            for name in "bc":
                await until(lambda name=name: name in guarded.begun)
                guarded.gate(name).set()
        await until(lambda: len(guarded.begun) == 5)
        assert guarded.begun[:3] == ["a", "b", "c"]

    async def test_loader_that_calls_itself_does_not_deadlock(self, cache):
        @cache.cached("tree:{depth}:{branch}", fresh_for=60, max_concurrent_loads=1)
        async def tree(depth: int, branch: int) -> int:
            if not depth:
                return 1
            totals = []

            async def add(number):
                totals.append(await tree(depth - 1, 2 * branch + number))

            async with anyio.create_task_group() as group:
                group.start_soon(add, 0)
                group.start_soon(add, 1)
            return sum(totals)

        with anyio.fail_after(60):
            assert await tree(4, 0) == 16

    async def test_two_loaders_that_need_each_others_slots_do_not_deadlock(self, cache):
        """a1 waits for b1, which b2 keeps from its slot; b2 waits for a2, which a1 keeps from its own."""
        begun = {"a1": anyio.Event(), "b2": anyio.Event()}

        @cache.cached("a:{n}", fresh_for=60, max_concurrent_loads=1)
        async def a(n: int) -> str:
            if n == 1:
                begun["a1"].set()
                await begun["b2"].wait()
                return await b(1)
            return "a"

        @cache.cached("b:{n}", fresh_for=60, max_concurrent_loads=1)
        async def b(n: int) -> str:
            if n == 2:
                begun["b2"].set()
                await begun["a1"].wait()
                return await a(2)
            return "b"

        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(a, 1)
                group.start_soon(b, 2)
        assert [await a(1), await b(2)] == ["b", "a"]

    async def test_plain_def_loader_that_calls_itself_does_not_deadlock(self, cache):
        @cache.cached("s:{n}", fresh_for=60, max_concurrent_loads=1)
        def count(n: int) -> int:
            return 1 + count.sync(n - 1) if n else 0

        with anyio.fail_after(60):
            assert await count(3) == 3

    async def test_limit_counts_calls_of_a_batch_loader_and_not_its_items(self, cache):
        guarded = Guarded()

        @cache.cached_many("m:{item}", fresh_for=60, max_concurrent_loads=1)
        async def many(items: list[str]) -> dict[str, str]:
            await guarded(tuple(items))
            return {item: item for item in items}

        async with anyio.create_task_group() as group:
            group.start_soon(many, ["a", "b"])
            await until(lambda: guarded.begun)
            group.start_soon(many, ["b", "c", "d"])
            await settle()
            assert guarded.begun == [("a", "b")]
            guarded.gate(("a", "b")).set()
            await until(lambda: len(guarded.begun) == 2)
            guarded.gate(("c", "d")).set()
        assert guarded.begun == [("a", "b"), ("c", "d")]
        assert guarded.most == 1

    async def test_batch_loader_that_calls_itself_does_not_deadlock(self, cache):
        @cache.cached_many("m:{item}", fresh_for=60, max_concurrent_loads=1)
        async def many(items: list[int]) -> dict[int, int]:
            smaller = [item - 1 for item in items if item]
            below = await many(smaller) if smaller else {}
            return {item: 1 + below.get(item - 1, 0) for item in items}

        with anyio.fail_after(60):
            assert await many([7]) == {7: 8}

    async def test_second_call_for_one_batch_waits_for_a_slot_of_its_own(self, clock):
        """The lease of one item comes late, because another process had it and failed."""
        async with fleet(2, clock) as (one, other):
            guarded = Guarded()

            async def load(items: list[str]) -> dict[str, str]:
                await guarded(tuple(items))
                return {item: item for item in items}

            policies = DecoratorPolicy(DefaultPolicy(Policy(60)), {}, "a test")
            many = CachedMany(
                one.engine, load, ManyKeys(load, "m:{item}"), LoaderTerms(policies, new_seat=seats_of(1)), 0
            )
            await other.engine.ready()
            lease = await other.store.acquire("m:b", "t", 30, 0, many.codec)
            answers = []

            async def ask():
                answers.append(await many(["a", "b"]))

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                await until(lambda: guarded.begun)
                await other.store.release(lease)
                await until(lambda: one.link.calls.count("acquire") >= 3)
                # Longer than leases are gathered for.
                await anyio.sleep(0.05)
                assert guarded.begun == [("a",)]
                guarded.gate(("a",)).set()
                await until(lambda: len(guarded.begun) == 2)
                guarded.gate(("b",)).set()
            assert (answers, guarded.most) == ([{"a": "a", "b": "b"}], 1)

    async def test_failed_or_timed_out_load_gives_its_slot_back(self, cache):
        calls = []

        @cache.cached("f:{n}", fresh_for=60, max_concurrent_loads=1, hard_timeout=0.2)
        async def fails(n: int) -> int:
            calls.append(n)
            if n == 1:
                raise LookupError("gone")
            if n == 2:
                await anyio.sleep_forever()
            return n

        with pytest.raises(LookupError):
            await in_time(lambda: fails(1))
        with pytest.raises(LoadTimeout):
            await fails(2)
        with anyio.fail_after(30):
            assert await in_time(lambda: fails(3)) == 3

    async def test_load_that_cancels_its_wait_for_another_load_resumes_only_with_a_slot(self, cache):
        guarded, scopes = Guarded(), []

        @cache.cached("inner", fresh_for=60)
        async def inner() -> object:
            return await guarded("inner")

        @cache.cached("outer:{name}", fresh_for=60, max_concurrent_loads=1)
        async def outer(name: str) -> object:
            if name == "a":
                with anyio.CancelScope() as scope:
                    scopes.append(scope)
                    await inner()
            return await guarded(name)

        async with anyio.create_task_group() as group:
            group.start_soon(outer, "a")
            await until(lambda: guarded.begun == ["inner"])
            group.start_soon(outer, "b")
            await until(lambda: "b" in guarded.begun)
            scopes[0].cancel()
            await settle()
            assert "a" not in guarded.begun
            for name in ("b", "inner", "a"):
                guarded.gate(name).set()
        assert guarded.begun == ["inner", "b", "a"]

    async def test_load_that_asyncio_times_out_while_regaining_its_slot_resumes_only_with_a_slot(self):
        guarded, timeouts = Guarded(), []
        async with Cache() as cache:

            @cache.cached("inner", fresh_for=60)
            async def inner() -> object:
                return await guarded("inner")

            @cache.cached("outer:{name}", fresh_for=60, max_concurrent_loads=1)
            async def outer(name: str) -> object:
                if name == "a":
                    with contextlib.suppress(TimeoutError):
                        async with asyncio.timeout(None) as timeout:
                            timeouts.append(timeout)
                            await inner()
                return await guarded(name)

            async with anyio.create_task_group() as group:
                group.start_soon(outer, "a")
                await until(lambda: guarded.begun == ["inner"])
                group.start_soon(outer, "b")
                await until(lambda: "b" in guarded.begun)
                guarded.gate("inner").set()
                await settle()
                timeouts[0].reschedule(asyncio.get_running_loop().time())
                await settle()
                await settle()
                assert "a" not in guarded.begun
                guarded.gate("a").set()
                guarded.gate("b").set()
            assert timeouts[0].expired()

    async def test_load_that_hits_hard_timeout_while_regaining_its_slot_ends_without_one(self, cache):
        guarded, ended = Guarded(), anyio.Event()

        @cache.cached("inner", fresh_for=60)
        async def inner() -> object:
            return await guarded("inner")

        @cache.cached("outer:{name}", fresh_for=60, max_concurrent_loads=1, hard_timeout=1)
        async def outer(name: str) -> object:
            if name == "b":
                # It disregards its own time-out.
                with anyio.CancelScope(shield=True):
                    return await guarded("b")
            try:
                return await inner()
            finally:
                ended.set()

        async def ask(name):
            with contextlib.suppress(LoadTimeout):
                await outer(name)

        async with anyio.create_task_group() as group:
            group.start_soon(ask, "a")
            await until(lambda: guarded.begun == ["inner"])
            group.start_soon(ask, "b")
            await until(lambda: "b" in guarded.begun)
            guarded.gate("inner").set()
            await until(ended.is_set)
            assert "b" in guarded.running
            guarded.gate("b").set()

    async def test_reopened_cache_has_free_slots_after_closing_with_waiting_loads(self, place_url):
        guarded = Guarded()
        cache = Cache(place_url, drain_for=0)
        load = limited(cache, guarded, 1)
        errors = []

        async def ask(name):
            try:
                await load(name)
            except SWRError as error:
                errors.append(error)

        async with anyio.create_task_group() as group, cache:
            group.start_soon(ask, "a")
            await until(lambda: guarded.begun)
            group.start_soon(ask, "b")
            await settle()
        assert len(errors) == 2
        async with cache:
            guarded.gate("c").set()
            assert await load("c") == "c"

    def test_new_event_loop_starts_with_all_slots_free(self):
        cache = Cache()
        guarded = Guarded()
        load = limited(cache, guarded, 1)

        async def leave() -> None:
            async with anyio.create_task_group() as group:
                group.start_soon(load, "a")
                await until(lambda: guarded.begun)
                group.cancel_scope.cancel()

        asyncio.run(leave())
        guarded.gate("b").set()
        assert asyncio.run(load("b")) == "b"

    @pytest.mark.parametrize("number", [0, -1, True, 1.5, "2"])
    def test_invalid_max_concurrent_loads_is_refused(self, memory, number):
        with pytest.raises(ConfigurationError, match="give a whole number"):
            memory.cached("a", fresh_for=1, max_concurrent_loads=number)
        with pytest.raises(ConfigurationError, match="give a whole number"):
            memory.cached_many("a:{item}", fresh_for=1, max_concurrent_loads=number)

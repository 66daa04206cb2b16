"""Batch loaders: one call for what is missing, one entry for each item, one load per key whoever asks for it."""

import asyncio
import dataclasses
import threading

import anyio
import anyio.lowlevel
import pytest

from swr import NOT_MODIFIED, Cache, ConfigurationError, Fresh, LoadContext, LoadTimeout, Policy, State, SWRError
from swr.events import Hit, Miss, Stale
from swr.lifecycle.default_policy import DecoratorPolicy, DefaultPolicy
from swr.loaders.annotations import codec_for
from swr.loaders.cached_many import CachedMany, ManyKeys
from swr.loaders.terms import LoaderTerms
from tests.fleet import fleet, gather, open_gate, settle, until
from tests.servers import Server

pytestmark = pytest.mark.anyio


class Table:
    """A batch loader that notes what it is asked for, waits for its gate, and answers as it is told."""

    def __init__(self):
        self.asked = []
        self.gate = None
        self.begun = anyio.Event()
        self.error = None
        self.missing = set()

    async def __call__(self, groups):
        self.asked.append(list(groups))
        run = len(self.asked)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        return {group: f"{group}{run}" for group in groups if group not in self.missing}

    def answer(self, group):
        """What it has answered for `group`, last."""
        return f"{group}{max(run for run, groups in enumerate(self.asked, 1) if group in groups)}"


@pytest.fixture
def table():
    return Table()


def define(cache, table, **options):
    options = {"fresh_for": 60, "stale_for": 600, "stale_if_error": 3600, "tags": ("group:{group}",), **options}

    @cache.cached_many("top:{group}", **options)
    async def top(groups: list[str]) -> dict[str, str]:
        return await table(groups)

    return top


def states(outcomes):
    return {item: (outcome.value, outcome.state.value) for item, outcome in outcomes.items()}


async def once(event, call):
    await event.wait()
    return await call()


async def let_go(gate):
    await settle()
    gate.set()


async def loaded(engine):
    while engine.flights:
        await anyio.sleep(0.001)


def test_invalidation_through_a_blocked_event_loop_raises_one_error(monkeypatch):
    """A single loader raises the same error."""
    monkeypatch.setattr("swr.engine.crossing._LOOKED_AFTER", 0.001)
    cache = Cache()
    top = define(cache, Table())

    async def elsewhere():
        with pytest.raises(SWRError, match="held up for"):
            await top.invalidate(["a", "b"])

    async def main():
        async with cache:
            thread = threading.Thread(target=lambda: done.append(asyncio.run(elsewhere())))
            thread.start()
            thread.join()

    done = []

    asyncio.run(main())
    assert done


class TestCalls:
    async def test_missing_items_are_loaded_in_one_call_and_fresh_items_in_none(self, cache, table):
        top = define(cache, table)
        assert await top(["a", "b"]) == {"a": "a1", "b": "b1"}
        assert list((await top(["c", "b", "d", "a"])).items()) == [("c", "c2"), ("b", "b1"), ("d", "d2"), ("a", "a1")]
        assert await top(groups=("a", "a", "b", "a")) == {"a": "a1", "b": "b1"}
        assert await top(group for group in "ab") == {"a": "a1", "b": "b1"}
        assert await top([]) == {}
        assert table.asked == [["a", "b"], ["c", "d"]]
        assert top.__name__ == "top"

    async def test_hit_invalidated_while_other_items_load_is_loaded_again(self, cache, table):
        """Promise 4: no answer after an invalidation has returned is older than the invalidation."""
        top = define(cache, table)
        await top(["a"])
        table.gate, table.begun = anyio.Event(), anyio.Event()

        async def invalidate():
            await table.begun.wait()
            await cache.invalidate("top:a")
            table.gate.set()

        async def ask(found):
            found.update(await top(["a", "b"]))

        found = {}
        async with anyio.create_task_group() as group:
            group.start_soon(invalidate)
            group.start_soon(ask, found)
        assert found == {"a": table.answer("a"), "b": "b2"}
        assert table.asked == [["a"], ["b"], ["a"]]

    async def test_batch_whose_items_are_invalidated_repeatedly_is_answered_in_the_end(self, cache, table):
        top = define(cache, table)
        await top(["a", "c", "d"])

        async def load(groups):
            # Whatever is loaded, another is invalidated.
            for group in groups:
                await cache.invalidate(f"top:{ {'b': 'a', 'a': 'c', 'c': 'd'}[group] }")
            return {group: group for group in groups}

        again = define(cache, load, fresh_for=60)
        with anyio.fail_after(60):
            assert await again(["a", "b", "c", "d"]) == {"a": "a", "b": "b", "c": "c", "d": "d1"}

    async def test_loader_may_modify_the_list_that_it_gets(self, cache):
        @cache.cached_many("n:{name}", fresh_for=60)
        async def load(names: list[str]) -> dict[str, str]:
            found = {}
            while names:
                name = names.pop()
                found[name] = name.upper()
            return found

        assert await load(["a", "b"]) == {"a": "A", "b": "B"}

    async def test_single_loader_that_joins_a_batch_without_its_item_loads_it_itself(self, cache, table, clock):
        top = define(cache, table)

        @cache.cached("top:{group}", fresh_for=60, stale_if_error=3600)
        async def one(group: str) -> str:
            return f"{group} alone"

        await one("a")
        clock.advance(500)
        table.gate, table.missing = anyio.Event(), {"a"}

        async def later():
            await table.begun.wait()
            return await one.outcome("a")

        with anyio.fail_after(60):
            batch, outcome, _ = await gather(top(["a"]), later(), open_gate(table))
        assert batch == {}
        assert (outcome.value, outcome.state, outcome.age, outcome.error) == ("a alone", State.MISSING, 0, None)

    async def test_deadlock_of_two_batch_loaders_raises_an_error(self, cache):
        """No key waits for itself, but each call of the loader waits for the other call."""
        needs = {"a": "d", "c": "b"}

        @cache.cached_many("n:{name}", fresh_for=60)
        async def nodes(names: list[str]) -> dict[str, str]:
            await anyio.sleep(0.01)
            return {name: (await nodes([needs[name]]))[needs[name]] if name in needs else name for name in names}

        with anyio.fail_after(60):
            answers = await gather(nodes(["a", "b"]), nodes(["c", "d"]))
        assert any("loaders wait for each other, and would do so forever: n:" in str(answer) for answer in answers)

    async def test_each_read_item_emits_one_event_of_its_state(self, cache, table, clock):
        told = []
        cache.subscribe(told.append, Hit, Stale, Miss)
        top = define(cache, table, absent_for=600)
        table.missing = {"none"}
        await top(["a", "none"])
        clock.advance(50)
        await top(["b"])
        clock.advance(15)
        await top(["a", "b", "none"])
        await loaded(cache.engine)
        await top(["c"])
        clock.advance(700)
        table.error = ValueError("away")
        await top(["a", "b"])
        with pytest.raises(ValueError, match="away"):
            await top(["a", "d"])
        assert [(type(event).__name__, event.key) for event in told] == [
            *(("Miss", "top:a"), ("Miss", "top:none"), ("Miss", "top:b")),
            *(("Stale", "top:a"), ("Hit", "top:b"), ("Hit", "top:none"), ("Miss", "top:c")),
            *(("Stale", "top:a"), ("Stale", "top:b")),
            *(("Miss", "top:a"), ("Miss", "top:d")),
        ]
        error = repr(table.error)
        assert [(event.staleness, repr(event.error)) for event in told[-4:-2]] == [(640, error), (655, error)]

    async def test_stale_items_are_answered_at_once_and_refreshed_in_one_call(self, cache, table, clock):
        top = define(cache, table)
        await top(["a", "b", "c"])
        clock.advance(50)
        await top.refresh(["c"])
        clock.advance(11)
        table.gate = anyio.Event()
        for _ in range(3):
            with anyio.fail_after(60):
                assert states(await top.outcome(["a", "b", "c"])) == {
                    "a": ("a1", "stale"),
                    "b": ("b1", "stale"),
                    "c": ("c2", "fresh"),
                }
        table.gate.set()
        await settle()
        assert table.asked == [["a", "b", "c"], ["c"], ["a", "b"]]
        assert states(await top.outcome(["a"])) == {"a": ("a3", "fresh")}

    async def test_stale_and_missing_items_of_one_call_are_loaded_in_two_calls(self, cache, table, clock):
        top = define(cache, table)
        await top(["a", "b"])
        clock.advance(61)
        outcomes = states(await top.outcome(["a", "x", "b", "y"]))
        assert list(outcomes) == ["a", "x", "b", "y"]
        # What came behind the reader's back while it waited for the others is given to it, too.
        for item in "ab":
            assert outcomes[item] in ((f"{item}1", "stale"), (table.answer(item), "fresh"))
        for item in "xy":
            assert outcomes[item] == (table.answer(item), "missing")
        await settle()
        assert sorted(table.asked[1:]) == [["a", "b"], ["x", "y"]]

    async def test_stale_hit_after_closing_reopens_the_cache_for_its_refresh(self, cache, table, clock):
        top = define(cache, table)
        await top(["a"])
        await cache.aclose()
        clock.advance(61)
        assert states(await top.outcome(["a"])) == {"a": ("a1", "stale")}
        await settle()
        assert states(await top.outcome(["a"])) == {"a": ("a2", "fresh")}

    async def test_refresh_loads_its_items_and_invalidate_removes_its_items(self, cache, table):
        top = define(cache, table)
        await top(["a", "b", "c"])
        assert await top.refresh(["b", "a"]) == {"b": "b2", "a": "a2"}
        await top.invalidate(["a", "c", "z"])
        assert await top(["a", "b", "c"]) == {"a": "a3", "b": "b2", "c": "c3"}
        await cache.invalidate_tag("group:b")
        await cache.invalidate("top:c")
        assert await top(["a", "b", "c"]) == {"a": "a3", "b": "b4", "c": "c4"}
        assert await top.refresh([]) == {}

    async def test_batch_loader_and_single_loader_of_one_template_share_entries(self, cache, table):
        @cache.cached("top:{group}:{limit}", fresh_for=60)
        async def one(group: str, limit: int = 3) -> str:
            return f"{group} alone"

        @cache.cached_many("top:{group}:{limit}", fresh_for=60)
        async def many(groups: list[str], limit: int = 3) -> dict[str, str]:
            return await table(groups)

        odd = ["a:b", "5", "", "%"]
        assert await one("x") == "x alone"
        assert await many([*odd, "x"]) == {**{group: f"{group}1" for group in odd}, "x": "x alone"}
        assert [await one(group) for group in odd] == [f"{group}1" for group in odd]
        assert await many(odd, 4) == {group: f"{group}2" for group in odd}
        await one.invalidate("5")
        assert (await many(odd))["5"] == "53"

    async def test_plain_method_as_batch_loader_runs_in_a_thread_and_returns_copies(self, cache):
        @dataclasses.dataclass(frozen=True)
        class User:
            id: int

        class Service:
            def __init__(self, region):
                self.region = region

            @cache.cached_many("of:{self.region}:{user.id}", fresh_for=60, copy=True)
            def several(self, users: list[User]) -> dict[User, list[object]]:
                return {user: [self.region, threading.get_ident()] for user in users}

        eu, us = Service("eu"), Service("us")
        found = await eu.several([User(1), User(2)])
        assert {values[0] for values in found.values()} == {"eu"}
        assert {values[1] for values in found.values()} != {threading.get_ident()}
        found[User(1)].append("mine")
        assert len((await eu.several([User(1)]))[User(1)]) == 2
        assert (await us.several(users=[User(1)]))[User(1)][0] == "us"
        assert isinstance(Service.several, CachedMany)
        assert len(await Service.several(eu, [User(3)])) == 1

    async def test_fresh_sets_duration_and_validator_of_a_single_item(self, cache, clock):
        answers = {"a": Fresh(1, fresh_for=5, validator="v"), "b": 2}

        @cache.cached_many("k:{item}", fresh_for=60, jitter=0.5)
        async def load(items: list[str]) -> dict[str, int | Fresh[int]]:
            return {item: answers[item] for item in items}

        cache.engine.runtime.uniform = lambda low, high: 0.0
        assert await load(["a", "b"]) == {"a": 1, "b": 2}
        entries = [cache.engine.store.peek(key) for key in ("k:a", "k:b")]
        assert [(entry.fresh_until - clock(), entry.validator) for entry in entries] == [(5, "v"), (60, None)]
        answers["a"] = NOT_MODIFIED
        assert await load.refresh(["a"]) == {"a": 1}
        assert cache.engine.store.peek("k:a").validator == "v"

    async def test_early_refresh_loads_fresh_items_in_one_call(self, cache, table, clock):
        top = define(cache, table, early=1.0)
        cache.engine.runtime.uniform = lambda low, high: 0.0
        begun = table.__class__.__call__

        async def slow(self, groups):
            clock.advance(1)
            return await begun(self, groups)

        table.__class__ = type("Slow", (Table,), {"__call__": slow})
        await top(["a", "b"])
        assert states(await top.outcome(["a", "b"])) == {"a": ("a1", "fresh"), "b": ("b1", "fresh")}
        await settle()
        assert table.asked == [["a", "b"]] * 2


class TestLongLists:
    """The event loop turns while a long list is answered; counted in turns, not in seconds."""

    ITEMS = list(range(2500))

    @pytest.fixture
    def items(self, monkeypatch):
        """A shorter list, of two parts and a half as well."""
        for module in ("cached_many", "items"):
            monkeypatch.setattr(f"swr.loaders.{module}.MOST_AT_ONCE", 400)
        return self.ITEMS[:1000]

    def define(self, cache, **options):
        self.asked = []
        self.loaded = anyio.Event()

        @cache.cached_many("k:{item}", fresh_for=60, tags=("all", "item:{item}"), **options)
        async def many(items: list[int]) -> dict[int, list[int]]:
            self.asked.append(items)
            return {item: [item, len(self.asked)] for item in items if item != 7}

        return many

    async def turns_of(self, call):
        """Return what `call` answers, and how often the event loop has turned meanwhile."""
        turned = [0]

        async def turn():
            while True:
                await anyio.lowlevel.checkpoint()
                turned[0] += 1

        async with anyio.create_task_group() as group:
            group.start_soon(turn)
            answer = await call
            group.cancel_scope.cancel()
        return answer, turned[0]

    @pytest.mark.parametrize("copies", [False, True])
    async def test_long_list_is_loaded_in_parts_and_lets_the_event_loop_turn(self, cache, copies):
        many = self.define(cache, copy=copies)
        values, turned = await self.turns_of(many(self.ITEMS))
        assert list(values) == [item for item in self.ITEMS if item != 7]
        assert [len(items) for items in self.asked] == [1000, 1000, 500]
        assert [item for items in self.asked for item in items] == self.ITEMS
        # At least one for each hundred loads that begin, and for each hundred that end.
        assert turned >= 2 * len(self.ITEMS) / 100
        outcomes, turned = await self.turns_of(many.outcome(self.ITEMS))
        assert {item: outcome.value for item, outcome in outcomes.items()} == values
        assert turned >= len(self.ITEMS) / 100
        assert (outcomes[8].value is values[8]) is not copies
        assert len(self.asked) == 4
        assert self.asked[3] == [7]

    async def test_refresh_and_invalidation_of_a_long_list_run_in_parts(self, cache, items):
        many = self.define(cache)
        values, turned = await self.turns_of(many.refresh(items))
        assert (len(values), len(self.asked)) == (999, 3)
        assert turned >= len(items) / 100
        await many.invalidate(items)
        assert not cache.local.slots
        await many(items)
        assert len(self.asked) == 6

    @pytest.mark.parametrize("how", ["key", "tag", "other"])
    async def test_item_invalidated_while_later_parts_load_is_loaded_again(self, cache, items, how):
        many = self.define(cache)

        async def invalidate():
            while len(self.asked) < 2:
                await anyio.lowlevel.checkpoint()
            if how == "key":
                await many.invalidate([5])
            else:
                await cache.invalidate_tag("item:5" if how == "tag" else "nothing")

        async with anyio.create_task_group() as group:
            group.start_soon(invalidate)
            values = await many(items)
        assert len(values) == 999
        again = [] if how == "other" else [[5]]
        assert self.asked[3:] == again
        assert values[5] == [5, 4 if again else 1]

    async def test_long_list_is_answered_although_an_item_is_invalidated_repeatedly(self, cache, items):
        many = self.define(cache)
        ended = []

        async def invalidate():
            while not ended:
                await cache.invalidate("k:5")
                await anyio.lowlevel.checkpoint()

        async with anyio.create_task_group() as group:
            group.start_soon(invalidate)
            with anyio.fail_after(60):
                assert len(await many(items)) == 999
            ended.append(True)

    async def test_load_continues_when_its_reader_leaves_before_all_flights_have_begun(self, cache, items):
        many = self.define(cache)
        with anyio.CancelScope() as scope:

            async def leave():
                while len(cache.engine.flights) < 150:
                    await anyio.lowlevel.checkpoint()
                scope.cancel()

            async with anyio.create_task_group() as group:
                group.start_soon(leave)
                await many(items)
        await loaded(cache.engine)
        (asked,) = self.asked
        assert 150 <= len(asked) < 400
        assert len(await many(items[:150])) == 149

    async def test_items_before_an_item_that_cannot_be_a_key_are_loaded(self, cache, table):
        top = define(cache, table)
        await cache.engine.ready()
        with pytest.raises(ConfigurationError):
            top.begin([(("a",), 0), ((object(),), 0)])
        await settle()
        assert table.asked == [["a"]]
        assert await top(["a"]) == {"a": "a1"}


class TestOneLoad:
    async def test_overlapping_calls_load_each_key_once(self, cache, table):
        top = define(cache, table)
        table.gate = anyio.Event()
        results = await gather(
            top(["a", "b"]),
            once(table.begun, lambda: top(["b", "c"])),
            once(table.begun, lambda: top(["c", "a"])),
            once(table.begun, lambda: let_go(table.gate)),
        )
        assert results[:3] == [{"a": "a1", "b": "b1"}, {"b": "b1", "c": "c2"}, {"c": "c2", "a": "a1"}]
        assert table.asked == [["a", "b"], ["c"]]

    async def test_single_loader_and_batch_loader_share_the_load_of_a_key(self, cache, table):
        begun, alone = anyio.Event(), []

        @cache.cached("top:{group}", fresh_for=60)
        async def one(group: str) -> str:
            alone.append(group)
            begun.set()
            await table.gate.wait()
            return f"{group} alone"

        top = define(cache, table)
        table.gate = anyio.Event()
        first, both, second, _ = await gather(
            one("a"),
            once(begun, lambda: top(["a", "b"])),
            once(table.begun, lambda: one("b")),
            once(table.begun, lambda: let_go(table.gate)),
        )
        assert (first, both, second) == ("a alone", {"a": "a alone", "b": "b1"}, "b1")
        assert (alone, table.asked) == (["a"], [["b"]])

    async def test_load_continues_when_its_reader_leaves(self, cache, table):
        top = define(cache, table)
        table.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(top, ["a", "b"])
            await table.begun.wait()
            group.cancel_scope.cancel()
        table.gate.set()
        await loaded(cache.engine)
        assert await top(["a", "b"]) == {"a": "a1", "b": "b1"}

    async def test_items_invalidated_during_a_load_are_loaded_again_without_the_others(self, cache, table):
        top = define(cache, table)
        table.gate = anyio.Event()

        async def invalidate():
            await table.begun.wait()
            await cache.invalidate_tag("group:a")
            await top.invalidate(["b"])
            table.gate.set()

        found, _ = await gather(top(["a", "b", "c"]), invalidate())
        assert found == {"a": "a2", "b": "b2", "c": "c1"}
        assert table.asked == [["a", "b", "c"], ["a", "b"]]

    async def test_load_overtaken_by_invalidations_is_repeated_twice_at_most(self, cache, table):
        top = define(cache, table)
        begun = table.__class__.__call__

        async def overtaken(self, groups):
            await cache.invalidate("top:a")
            return await begun(self, groups)

        table.__class__ = type("Overtaken", (Table,), {"__call__": overtaken})
        assert await top(["a"]) == {"a": "a3"}

    async def test_loader_that_waits_for_its_own_key_raises_an_error(self, cache):
        @cache.cached("k:{item}", fresh_for=60)
        async def one(item: str) -> str:
            return (await many([item, "other"]))[item]

        @cache.cached_many("k:{item}", fresh_for=60)
        async def many(items: list[str]) -> dict[str, str]:
            return {item: await one(items[-1]) for item in items}

        with anyio.fail_after(60), pytest.raises(ConfigurationError, match="would wait forever"):
            await many(["a", "b"])
        with anyio.fail_after(60), pytest.raises(ConfigurationError, match="would wait forever"):
            await one("x")


class TestFailures:
    async def test_failed_call_serves_stored_items_as_fallback_and_backs_off(self, cache, table, clock):
        top = define(cache, table)
        await top(["a", "b"])
        clock.advance(700)
        table.error = ValueError("down")
        outcomes = await top.outcome(["a", "b"])
        assert states(outcomes) == {"a": ("a1", "stale"), "b": ("b1", "stale")}
        assert repr(outcomes["a"].error) == repr(table.error)
        # All keep off for a while; what nothing stands in for is tried.
        with pytest.raises(ValueError, match="down"):
            await top(["a", "x"])
        assert states(await top.outcome(["a", "b"])) == {"a": ("a1", "stale"), "b": ("b1", "stale")}
        assert table.asked[1:] == [["a", "b"], ["x"]]
        with pytest.raises(ValueError, match="down"):
            await top.refresh(["a", "b"])
        table.error = None
        assert await top.refresh(["a", "b"]) == {"a": "a5", "b": "b5"}

    async def test_answer_that_is_no_dict_of_requested_items_is_an_error(self, cache):
        answers = [["a"], {"a": 1, "z": 2}, None]

        @cache.cached_many("k:{item}", fresh_for=60)
        async def load(items: list[str]) -> dict[str, int]:
            return answers.pop(0)

        for complaint in ("returned list: a batch loader returns a dict", "returned 'z' too", "returned NoneType"):
            with pytest.raises(ConfigurationError, match=complaint):
                await load(["a", "b"])
        assert not cache.engine.flights

    async def test_hard_timeout_fails_the_load_for_all_items(self, cache, table, clock):
        top = define(cache, table, hard_timeout=0.02)
        table.gate = anyio.Event()
        with pytest.raises(LoadTimeout, match="'top:a'"):
            await top(["a", "b"])
        await loaded(cache.engine)
        table.gate = None
        # With more time: a slow machine needs it.
        found = await define(cache, table)(["a", "b"])
        assert found == {group: table.answer(group) for group in "ab"}
        clock.advance(700)
        table.gate = anyio.Event()
        outcomes = await top.outcome(["b", "a"])
        assert [(item, type(outcome.error)) for item, outcome in outcomes.items()] == [
            ("b", LoadTimeout),
            ("a", LoadTimeout),
        ]

    async def test_soft_timeout_gives_a_fallback_to_items_that_have_one(self, cache, table, clock):
        top = define(cache, table, soft_timeout=0.01)
        await top(["a"])
        clock.advance(700)
        table.gate = anyio.Event()

        async def later():
            await anyio.sleep(0.05)
            table.gate.set()

        assert states(await top.outcome(["a"])) == {"a": ("a1", "stale")}
        await until(lambda: table.asked == [["a"], ["a"]])
        outcomes, _ = await gather(top.outcome(["a", "x"]), later())
        assert states(outcomes) == {"a": ("a1", "stale"), "x": ("x3", "missing")}

    async def test_item_that_cannot_be_stored_fails_and_the_others_are_stored(self, cache, table):
        @cache.cached_many("k:{item}", fresh_for=60)
        async def load(items: list[str]) -> dict[str, object]:
            return {item: NOT_MODIFIED if item == "bad" else 1 for item in items}

        with pytest.raises(SWRError, match="'k:bad' answered NOT_MODIFIED"):
            await load(["good", "bad"])
        await loaded(cache.engine)
        assert (await load.outcome(["good"]))["good"].state is State.FRESH

    @pytest.mark.parametrize("error", [SystemExit(3), BaseException("own")])
    async def test_base_exception_of_a_loader_reaches_the_caller(self, cache, table, error):
        top = define(cache, table)
        table.error = error
        with pytest.raises(type(error)):
            await top(["a", "b"])
        table.error = None
        assert await top(["a"]) == {"a": "a2"}

    async def test_loader_that_raises_cancelled_error_fails_for_all_readers(self, cache):
        if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
            pytest.skip("trio has no such exception to raise")

        @cache.cached_many("k:{item}", fresh_for=60)
        async def load(items: list[str]) -> dict[str, int]:
            raise asyncio.CancelledError

        with anyio.fail_after(60):
            results = await gather(load(["a", "b"]), load(["b"]))
        assert [type(result) for result in results] == [SWRError, SWRError]

    async def test_closing_during_a_load_fails_its_reader_with_an_error(self, clock, table):
        cache = Cache(clock=clock, drain_for=0.01)
        top = define(cache, table)
        table.gate = anyio.Event()

        async def close():
            await table.begun.wait()
            await cache.aclose()

        with anyio.fail_after(60):
            result, _ = await gather(top(["a", "b"]), close())
        assert isinstance(result, SWRError)
        assert "closed" in str(result)


class TestAbsence:
    async def test_item_without_value_is_left_out_and_loaded_again_on_each_read(self, cache, table):
        top = define(cache, table)
        table.missing = {"b"}
        for _ in range(2):
            assert await top(["a", "b"]) == {"a": "a1"}
        assert table.asked == [["a", "b"], ["b"]]
        assert cache.engine.store.peek("top:b") is None

    async def test_absence_is_remembered_for_the_time_in_absent_for(self, cache, table, clock):
        top = define(cache, table, absent_for="10s")
        table.missing = {"b"}
        for _ in range(3):
            assert await top(["a", "b"]) == {"a": "a1"}
            clock.advance(3)
        assert table.asked == [["a", "b"]]
        clock.advance(2)
        table.missing = set()
        assert await top(["a", "b"]) == {"a": "a1", "b": "b2"}

    @pytest.mark.parametrize("how", ["key", "tag", "own", "clear"])
    async def test_invalidation_removes_a_remembered_absence(self, cache, table, how):
        top = define(cache, table, absent_for=10)
        table.missing = {"b"}
        await top(["b"])
        table.missing = set()
        forget = {
            "key": lambda: cache.invalidate("top:b"),
            "tag": lambda: cache.invalidate_tag("group:b"),
            "own": lambda: top.invalidate(["b"]),
            "clear": cache.clear,
        }
        await forget[how]()
        assert await top(["b"]) == {"b": "b2"}

    async def test_refresh_loads_an_item_remembered_as_absent(self, cache, table):
        top = define(cache, table, absent_for=10)
        table.missing = {"b"}
        await top(["b"])
        table.missing = set()
        assert await top.refresh(["b"]) == {"b": "b2"}

    @pytest.mark.parametrize("absent_for", [0, 100])
    async def test_stored_value_is_removed_when_a_load_no_longer_finds_its_item(self, cache, table, clock, absent_for):
        top = define(cache, table, absent_for=absent_for)
        await top(["a", "b"])
        table.missing = {"a", "b"}
        assert await top.refresh(["a"]) == {}
        clock.advance(61)
        assert states(await top.outcome(["b"])) == {"b": ("b1", "stale")}
        await settle()
        table.error = ValueError("nothing may be the fallback")
        if absent_for:
            assert await top(["a", "b"]) == {}
        else:
            with pytest.raises(ValueError, match="nothing may be the fallback"):
                await top(["b"])

    @pytest.mark.parametrize("absent_for", [0, 10])
    async def test_single_loader_loads_an_item_that_a_batch_found_absent(self, cache, table, clock, absent_for):
        top = define(cache, table, absent_for=absent_for)
        table.missing, table.gate = {"a"}, anyio.Event()

        @cache.cached("top:{group}", fresh_for=60, stale_if_error=60)
        async def one(group: str, context: LoadContext[str]) -> str:
            assert not context.has_value
            return f"{group} alone"

        # One that joined the batch's load, one that comes later, and one whose clock was put back.
        several, joined, _ = await gather(
            top(["a"]), once(table.begun, lambda: one("a")), once(table.begun, lambda: let_go(table.gate))
        )
        assert (several, joined) == ({}, "a alone")
        await one.invalidate("a")
        await top(["a"])
        clock.advance(-5)
        outcome = await one.outcome("a")
        assert (outcome.value, outcome.state) == ("a alone", State.MISSING)

    async def test_item_in_backoff_that_is_invalidated_during_a_read_is_loaded(self, cache, table, clock):
        top = define(cache, table)
        await top(["a"])
        clock.advance(700)
        table.error = ValueError("broken")
        assert (await top.outcome(["a"]))["a"].state == State.STALE
        table.error, table.gate, table.begun = None, anyio.Event(), anyio.Event()

        async def invalidate():
            await cache.invalidate_tag("group:a")
            table.gate.set()

        # While the batch waits for "b", there is something to serve for "a", and then there is not.
        values, _ = await gather(top(["a", "b"]), once(table.begun, invalidate))
        assert values == {"a": table.answer("a"), "b": table.answer("b")}


def terms(policy):
    return LoaderTerms(DecoratorPolicy(DefaultPolicy(policy), {}, "a test"))


def many_of(process, table, **options):
    """The same batch loader in a process of a fleet."""

    async def top(groups):
        return await table(groups)

    policy = Policy(60, 600, 3600)
    absent_for = options.pop("absent_for", 0)
    return CachedMany(process.engine, top, ManyKeys(top, "top:{group}"), terms(policy), absent_for)


class TestFleet:
    @pytest.fixture
    async def two(self, clock):
        async with fleet(2, clock) as processes:
            yield processes

    async def test_batch_waits_for_keys_that_another_process_loads(self, two):
        tables = [Table(), Table()]
        one, other = (many_of(process, table) for process, table in zip(two, tables, strict=True))
        tables[0].gate = anyio.Event()

        first, found, _ = await gather(
            one(["a", "b", "c"]),
            once(tables[0].begun, lambda: other(["b", "c", "d"])),
            # The other one calls its loader without waiting for what it does not load.
            once(tables[1].begun, lambda: let_go(tables[0].gate)),
        )
        assert (first, found) == ({"a": "a1", "b": "b1", "c": "c1"}, {"b": "b1", "c": "c1", "d": "d1"})
        assert (tables[0].asked, tables[1].asked) == ([["a", "b", "c"]], [["d"]])

    async def test_keys_that_another_process_fails_to_load_are_loaded_in_one_more_call(self, two, monkeypatch):
        monkeypatch.setattr("swr.loaders.batch._GATHERED_FOR", 0.3)
        tables = [Table(), Table()]
        one, other = (many_of(process, table) for process, table in zip(two, tables, strict=True))
        tables[0].gate, tables[0].error = anyio.Event(), ValueError("down")

        first, found, _ = await gather(
            one(["a", "b", "c"]),
            once(tables[0].begun, lambda: other(["b", "c", "d"])),
            once(tables[1].begun, lambda: let_go(tables[0].gate)),
        )
        assert isinstance(first, ValueError)
        assert found == {"b": "b2", "c": "c2", "d": "d1"}
        assert tables[1].asked == [["d"], ["b", "c"]]

    async def test_item_found_absent_by_another_process_is_not_loaded(self, two):
        tables = [Table(), Table()]
        one, other = (many_of(process, table, absent_for=10) for process, table in zip(two, tables, strict=True))
        tables[0].gate, tables[0].missing = anyio.Event(), {"a"}

        begun, gate = tables[0].begun, tables[0].gate
        found = await gather(one(["a"]), once(begun, lambda: other(["a"])), once(begun, lambda: let_go(gate)))
        assert found[:2] == [{}, {}]
        two[1].link.calls.clear()
        assert await other(["a"]) == {}
        assert (tables[1].asked, two[1].link.calls) == ([], [])

    async def test_item_that_a_refresh_does_not_find_is_removed_from_the_store(self, clock, table):
        async with fleet(1, clock, l1_max_bytes=0) as (process,):
            top = many_of(process, table)
            await top(["a"])
            table.missing = {"a"}
            assert await top.refresh(["a"]) == {}
            table.error = ValueError("it is loaded again")
            with pytest.raises(ValueError, match="again"):
                await top(["a"])

    async def test_item_that_a_refresh_does_not_find_is_removed_after_a_notification_gap(self, two, table, clock):
        one, other = (many_of(process, table) for process in two)
        assert [await one(["a"]), await other(["a"])] == [{"a": "a1"}, {"a": "a1"}]
        table.gate, table.missing = anyio.Event(), {"a"}
        clock.advance(61)
        assert await one(["a"]) == {"a": "a1"}
        await settle()
        two[0].link.set_down(True)
        two[0].link.set_down(False)
        await settle()
        table.gate.set()
        await settle()
        await settle()
        assert [await one.peek(["a"]), await other.peek(["a"])] == [{}, {}]

    async def test_hard_timeout_of_the_first_key_leaves_later_keys_to_load_alone(self, two, table):
        """The store grants the second lease only after the hard timeout of the first key."""

        async def top(groups):
            return await table(groups)

        many = CachedMany(
            two[0].engine,
            top,
            ManyKeys(top, "top:{group}"),
            terms(Policy(60, hard_timeout=0.05)),
            0,
        )
        late = anyio.Event()

        async def hold():
            if two[0].link.calls.count("acquire") == 2:
                await late.wait()

        async def answer():
            while "release" not in two[0].link.calls:
                await anyio.sleep(0.01)
            late.set()

        two[0].link.after["acquire"] = hold
        with anyio.fail_after(60):
            result, _ = await gather(many(["a", "b"]), answer())
        assert isinstance(result, LoadTimeout)
        # By itself, or, on a machine that is busy, not before its own time was up.
        assert all(len(asked) == 1 for asked in table.asked)

    async def test_all_items_load_in_one_call_while_the_store_is_unreachable(self, two, table):
        top = many_of(two[0], table)
        await two[0].engine.ready()
        two[0].link.set_down(True)
        assert await top(["a", "b"]) == {"a": "a1", "b": "b1"}
        assert table.asked == [["a", "b"]]
        assert await top(["a", "b"]) == {"a": "a1", "b": "b1"}

    async def test_batch_waits_for_late_lease_replies_to_load_all_items_in_one_call(self, two, table):
        """The replies to the lease requests arrive in different turns of the event loop."""
        top = many_of(two[0], table)
        turns = iter(range(10))

        async def spread():
            for _ in range(20 * next(turns)):
                await anyio.lowlevel.checkpoint()

        two[0].link.after["acquire"] = spread
        await top(["a", "b", "c"])
        assert table.asked == [["a", "b", "c"]]


class TestArguments:
    async def test_argument_that_is_no_list_of_items_is_a_type_error(self, cache, table):
        top = define(cache, table)
        for wrong, complaint in (
            ("ATL", r"groups='ATL' of .* is not a list of items: give \['ATL'\]"),
            (b"ATL", "is not a list"),
            (5, "is not a list"),
            ([["a"]], r"holds \['a'\], which cannot be a key"),
            (["a", ["b"]], r"holds \['b'\], which cannot be a key"),
        ):
            with pytest.raises(TypeError, match=complaint):
                await top(wrong)
        for call in (lambda: top(), lambda: top(["a"], 5), lambda: top(items=["a"])):
            with pytest.raises(TypeError):
                await call()
        with pytest.raises(ConfigurationError, match="'group'"):
            await top([object()])
        assert table.asked == []

    @pytest.mark.parametrize(
        ("template", "options", "complaint"),
        [
            (None, {}, "template=None"),
            ("k", {}, "names no item"),
            ("k:{a}:{b}", {}, "names a, b"),
            ("k:{items}", {}, "leaves out limit"),
            ("k:{item}", {}, "leaves out items, limit"),
            ("k:{items}:{limit}:{item}", {}, "leaves out nothing"),
            ("k:{item}", {"ignore": "limit"}, "ignore='limit'"),
            ("k:{item}", {"ignore": ("limit", "z")}, "no parameter 'z'"),
            ("k:{item}", {"ignore": ("limit", "item")}, "no parameter 'item'"),
            ("k:{item}", {"ignore": ("limit",), "tags": ("{z}",)}, "no parameter 'z'"),
            ("k:{item}", {"ignore": ("limit",), "absent_for": -1}, "absent_for=-1"),
            ("k:{item}", {"ignore": ("limit",), "stale_for": "x"}, "stale_for='x'"),
        ],
    )
    def test_options_that_cannot_work_are_refused_at_definition(self, template, options, complaint):
        with pytest.raises(ConfigurationError, match=complaint):

            @Cache().cached_many(template, fresh_for=1, **options)
            async def load(items, limit): ...

    def test_function_that_cannot_be_a_batch_loader_is_refused(self):
        async def spread(*items): ...
        async def asks(items, context: LoadContext[int]): ...
        def generator(items):
            yield

        for function, options, complaint in (
            (spread, {}, r"takes its items as \*items"),
            (asks, {"ignore": ("context",)}, "asks for a LoadContext"),
            (generator, {}, "generator"),
        ):
            with pytest.raises(ConfigurationError, match=complaint):
                Cache().cached_many("k:{item}", fresh_for=1, **options)(function)

    def test_second_batch_loader_of_the_same_template_is_refused(self):
        cache = Cache()

        @cache.cached_many("k:{item}", fresh_for=1)
        async def one(items): ...

        with pytest.raises(ConfigurationError, match=r"is that of .*one already"):

            @cache.cached_many("k:{item}", fresh_for=1)
            async def other(items): ...

    def test_batch_loader_may_share_entries_only_under_the_same_template(self):
        """`top:{group}:{limit}` and `top:{limit}:{group}` look alike, and mean different things."""
        cache = Cache()

        @cache.cached("top:{group}:{limit}", fresh_for=1)
        async def one(group, limit): ...

        @cache.cached_many("top:{group}:{limit}", fresh_for=1)
        async def many(groups, limit): ...

        with pytest.raises(ConfigurationError, match=r"can make a key of .*, which is that of .*one already"):

            @cache.cached_many("top:{limit}:{group}", fresh_for=1)
            async def other(groups, limit): ...

    def test_codec_of_a_batch_loader_is_made_for_the_values_of_its_dict(self):
        def kind(annotation):
            def function(): ...

            if annotation is not None:
                function.__annotations__ = {"return": annotation}
            return codec_for(function, many=True).kind

        assert kind(dict[str, Row]) == kind(dict[str, Row | Fresh[Row]]) == Row
        assert kind(dict[str, Row]) is Row
        assert kind(None) is kind(dict[str, object]) or kind(None)
        for wrong in (list[Row], dict, Row, int | None):
            with pytest.raises(
                ConfigurationError, match=r"a batch loader returns a dict, so annotate it with the types"
            ):
                kind(wrong)


@dataclasses.dataclass
class Row:
    rank: int


class TestThroughRedis:
    @pytest.fixture
    def anyio_backend(self):
        return "asyncio"

    def make(self, server, asked, **options):
        cache = Cache(server.url, timeout=2, **options)

        @cache.cached_many("row:{n}", fresh_for=60, stale_for=600, absent_for=10, tags=("row:{n}",))
        async def rows(numbers: list[int]) -> dict[int, Row]:
            asked.append(sorted(numbers))
            return {n: Row(n) for n in numbers if n < 100}

        return cache, rows

    @pytest.mark.parametrize("l1", [0, 2**20], ids=["no L1", "L1"])
    async def test_values_and_absence_are_shared_between_processes(self, server: Server, l1):
        asked = []
        one, rows = self.make(server, asked, l1_max_bytes=l1)
        other, others_rows = self.make(server, asked, l1_max_bytes=l1)

        @other.cached("row:{n}", fresh_for=60, tags=("row:{n}",))
        async def row(n: int) -> Row:
            return Row(-n)

        async with one, other:
            for load in (rows, others_rows, rows):
                assert await load([1, 100, 2]) == {1: Row(1), 2: Row(2)}
            assert asked == [[1, 2, 100]]
            assert await row(1) == Row(1)
            assert await row(100) == Row(-100)
            # Until the message has come, it is not there.
            await until(lambda: one.engine.store.peek("row:100") is None)
            assert await rows([100]) == {100: Row(-100)}
            await one.invalidate_tag("row:2")
            known = one.engine.store.tag_versions.newest
            await until(lambda: other.engine.store.tag_versions.newest == known)
            assert await others_rows([1, 2]) == {1: Row(1), 2: Row(2)}
            assert asked == [[1, 2, 100], [2]]

    async def test_batch_of_eighty_items_is_read_in_one_write_and_loaded_in_at_most_six(
        self, server: Server, no_heartbeats
    ):
        asked = []
        one, rows = self.make(server, asked)
        other, others_rows = self.make(server, asked)
        numbers = list(range(80))
        async with one, other:
            for cache in (one, other):
                await cache.engine.ready()
            writes = [count_writes(cache) for cache in (one, other)]
            assert len(await rows(numbers)) == 80
            loading = len(writes[0])
            assert len(await others_rows(numbers)) == 80
            assert len(await others_rows(numbers)) == 80
            assert asked == [numbers]
            # Reading is one; leases and commits are two at most, for their second command starts in a task.
            assert loading <= 6
            (reading,) = writes[1]
            # Each command asks for sixteen, and for the newest tag version.
            assert reading.startswith(b"*18\r\n$4\r\nMGET\r\n")
            assert reading.count(b"MGET") == 5

    @pytest.mark.uncounted
    async def test_two_processes_load_each_key_once(self, server: Server):
        asked = []
        one, rows = self.make(server, asked)
        other, others_rows = self.make(server, asked)
        async with one, other:
            for cache in (one, other):
                await cache.engine.ready()
            found = await gather(*(load(range(n, n + 20)) for n in range(0, 60, 5) for load in (rows, others_rows)))
        assert all(len(values) == 20 for values in found)
        assert sorted(n for numbers in asked for n in numbers) == list(range(75))


def count_writes(cache):
    """Note what is written to the cache's connection for commands, one item for each write."""
    writes = []
    transport = cache.engine.store.store._servers._link.connection._transport
    write = transport.write

    def counted(data):
        if data.count(b"MGET") != 1 or b":{!}" not in data or b"EVAL" in data or data.count(b"row:"):
            # All but the heart-beat.
            writes.append(data)
        write(data)

    transport.write = counted
    return writes

"""Refreshers over memory, on asyncio and trio: what is due is loaded, once; by locks, and what all strategies share."""

import math
import sqlite3
from collections import Counter

import anyio
import anyio.lowlevel
import pytest

from swr import NOT_MODIFIED, Cache, ConfigurationError, LoadContext, NotModified, Refresher, StoreUnavailable, SWRError
from swr.core.codec import ANY, Codec
from swr.events import LoadBegun, RoundEnded
from swr.loaders.batch import Batch
from swr.refreshers.rounds.groups import groups_of
from swr.refreshers.rounds.load_limiter import LoadLimiter, Result, Task
from swr.refreshers.rounds.schedule import Rounds
from swr.stores.base import Kind, Notification
from tests.fleet import POLICY, Job, fleet, settle, until
from tests.refreshing import FOR_GOOD

pytestmark = pytest.mark.anyio


class Groups:
    """A loader of a job for each key, over one engine."""

    template = "job:{key}"
    stays_here = False
    codec = ANY
    loader = ""

    def __init__(self, engine):
        self.engine = engine
        self.jobs = {}

    def key(self, name):
        return name

    def begin(self, calls):
        return [
            self.engine.begin(name, self.jobs.setdefault(name, Job()), self.engine.store.peek(name), newer_than=since)
            for (name,), since in calls
        ]


@pytest.fixture
async def two(clock):
    async with fleet(2, clock) as processes:
        for process in processes:
            process.groups = Groups(process.engine)
            process.limiter = LoadLimiter(process.groups, 4)
            await process.engine.ready()
        yield processes


async def loading(process, answer=None) -> Job:
    """Have a process load "k", and return its job, whose gate it waits for."""
    process.groups.jobs["k"] = job = Job(answer)
    job.gate = anyio.Event()
    process.limiter.begin([Task("k", ("k",), 0)], lambda task, end: None)
    await job.begun.wait()
    return job


async def ended(process, key, since):
    """Run one task to its end."""
    ends = []
    process.limiter.begin([Task(key, (key,), since)], lambda task, end: ends.append(end))
    await until(lambda: ends)
    return ends[0]


class TestSince:
    """A load that is asked for since a version."""

    async def test_what_is_older_is_loaded_and_what_is_newer_is_not(self, two, clock):
        process = two[0]
        assert (await ended(process, "k", await process.store.now())).result is Result.LOADED
        clock.advance(1)
        since = await process.store.now()
        assert (await ended(process, "k", since)).result is Result.LOADED
        assert (await ended(process, "k", since)).result is Result.CURRENT
        assert process.groups.jobs["k"].runs == 2

    async def test_what_another_process_has_loaded_since_is_not_loaded_again(self, two, clock):
        since = await two[0].store.now()
        clock.advance(1)
        await ended(two[0], "k", since)
        assert (await ended(two[1], "k", since)).result is Result.CURRENT
        assert two[1].groups.jobs["k"].runs == 0

    async def test_what_is_new_enough_is_not_loaded_even_where_it_is_stale(self, two, clock):
        since = await two[0].store.now()
        clock.advance(1)
        await ended(two[0], "k", since)
        clock.advance(100)
        assert (await ended(two[1], "k", since)).result is Result.CURRENT

    async def test_a_load_that_began_before_does_not_count(self, two, clock):
        process = two[0]
        process.groups.jobs["k"] = job = Job()
        job.gate = anyio.Event()
        ends = []
        process.limiter.begin([Task("k", ("k",), 0)], lambda task, end: ends.append(end))
        await job.begun.wait()
        clock.advance(1)
        since = await process.store.now()
        clock.advance(1)
        process.limiter.begin([Task("k", ("k",), since)], lambda task, end: ends.append(end))
        job.gate.set()
        await until(lambda: len(ends) == 2)
        assert [end.result for end in ends] == [Result.LOADED] * 2
        assert job.runs == 2

    async def test_nobody_waits_behind_anothers_lease(self, two):
        job = await loading(two[0])
        end = await ended(two[1], "k", 0)
        assert end.result is Result.HELD
        assert 0 < end.again_in <= 30
        job.gate.set()

    async def test_but_a_reader_who_has_joined_is_given_what_the_other_loads(self, two):
        theirs = await loading(two[0], lambda run: "theirs")
        gate = anyio.Event()
        two[1].link.before["acquire"] = gate.wait
        ends, values = [], []
        two[1].limiter.begin([Task("k", ("k",), 0)], lambda task, end: ends.append(end))
        await settle()

        async def read():
            values.append((await two[1].engine.fetch("k", Job())).value)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await settle()
            gate.set()
            await settle()
            assert not ends
            theirs.gate.set()
        await until(lambda: ends)
        assert (values, ends[0].result) == (["theirs"], Result.CURRENT)

    async def test_a_reader_who_has_joined_is_not_given_what_is_stale(self, two, clock):
        """What is new enough for the refresher may be too old for the reader."""
        process, since = two[0], await two[0].store.now()
        clock.advance(1)
        await ended(two[1], "k", since)
        clock.advance(700)
        gate = anyio.Event()
        process.link.before["acquire"] = gate.wait
        process.groups.jobs["k"] = Job(lambda run: "new")
        ends, values = [], []
        process.limiter.begin([Task("k", ("k",), since)], lambda task, end: ends.append(end))
        await settle()

        async def read():
            values.append((await process.engine.fetch("k", Job())).value)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await settle()
            gate.set()
        assert values == ["new"]

    async def test_after_a_failure_all_refreshers_back_off_and_readers_do_not(self, two, caplog):
        two[0].groups.jobs["k"] = Job(lambda run: ValueError("broken"))
        end = await ended(two[0], "k", 0)
        assert (end.result, str(end.error)) == (Result.FAILED, "broken")
        assert end.again_in > 0
        other = await ended(two[1], "k", 0)
        assert (other.result, two[1].groups.jobs["k"].runs) == (Result.HELD, 0)
        assert "failed in another process" in str(other.error)
        assert (await two[1].engine.fetch("k", Job(lambda run: "read"))).value == "read"
        assert "the load of 'k' failed (ValueError: broken); the next try comes in" in caplog.text
        assert "serves the stored value" not in caplog.text

    async def test_unreachable_store_ends_a_task_without_a_load(self, two):
        process = two[0]
        process.link.set_down(True)
        end = await ended(process, "k", 0)
        assert end.result is Result.UNREACHABLE
        assert isinstance(end.error, StoreUnavailable)
        assert process.groups.jobs["k"].runs == 0

    async def test_a_load_whose_commit_did_not_arrive_is_not_done(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()

        async def go():
            process.link.set_down(True)

        job.before_store = go
        assert (await ended(process, "k", 0)).result is Result.UNREACHABLE

    async def test_what_an_invalidation_overtakes_is_loaded_again(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()

        async def invalidate():
            if job.runs == 1:
                await two[1].engine.invalidate("k")

        job.before_store = invalidate
        assert (await ended(process, "k", 0)).result is Result.LOADED
        assert job.runs == 2

    async def test_what_is_overtaken_again_and_again_is_left_for_later(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()
        job.before_store = lambda: two[1].engine.invalidate("k")
        end = await ended(process, "k", 0)
        assert (end.result, end.again_in, job.runs) == (Result.HELD, 1.0, 3)


class TestLoadLimiter:
    async def test_no_more_at_once_than_it_is_told(self, two):
        process = two[0]
        gate = anyio.Event()
        for name in "abcd":
            process.groups.jobs[name] = Job()
            process.groups.jobs[name].gate = gate
        limiter = process.limiter
        assert limiter.free_slots == 2
        limiter.begin([Task(name, (name,), 0) for name in "abc"], lambda task, end: None)
        assert (limiter.free_slots, limiter.running) == (0, 3)
        gate.set()
        await limiter.drained(10)
        assert (limiter.free_slots, limiter.running, limiter.counts[Result.LOADED]) == (2, 0, 3)

    async def test_a_change_that_came_before_the_wait_is_not_slept_through(self, two):
        limiter = two[0].limiter
        changes = limiter.changes
        limiter.change()
        with anyio.fail_after(60):
            await limiter.wait(None, changes)

    async def test_what_cannot_begin_again_is_left(self, two, monkeypatch):
        """The cache was closed, for one, while it was invalidated."""
        process = two[0]
        process.groups.jobs["k"] = job = Job()

        async def invalidate():
            await two[1].engine.invalidate("k")
            monkeypatch.setattr(process.groups, "begin", refuse)

        def refuse(calls):
            raise SWRError("the cache was closed")

        job.before_store = invalidate
        end = await ended(process, "k", 0)
        assert (end.result, str(end.error)) == (Result.HELD, "the cache was closed")

    async def test_draining_ends_in_time(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()
        job.gate = anyio.Event()
        process.limiter.begin([Task("k", ("k",), 0)], lambda task, end: None)
        await process.limiter.drained(0.01)
        assert process.limiter.running == 1
        job.gate.set()


class TestRounds:
    async def test_rounds_are_multiples_by_the_stores_clock(self, two, clock):
        rounds = Rounds(two[0].engine, 60)
        now = await two[0].store.now()
        this = await rounds.next()
        assert this.number == now // 60_000_000
        assert this.begins_at == this.number * 60_000_000
        assert this.missed == 0
        assert 0 < this.left <= 60

    async def test_rounds_that_were_left_out_are_one(self, two, clock):
        rounds = Rounds(two[0].engine, 60)
        first = await rounds.next()
        clock.advance(600)
        later = await rounds.next()
        assert (later.number - first.number, later.missed) == (10, 9)

    async def test_a_round_is_not_begun_twice_and_waits_for_the_store(self, two, clock):
        rounds = Rounds(two[0].engine, 60)
        first = await rounds.next()
        clock.advance(-600)
        begun = []

        async def wait():
            begun.append(await rounds.next())

        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settle()
            assert not begun
            group.cancel_scope.cancel()
        clock.advance(660)
        two[0].link.set_down(True)
        async with anyio.create_task_group() as group:
            group.start_soon(wait)
            await settle()
            two[0].link.set_down(False)
        assert [(this.number - first.number, this.missed) for this in begun] == [(1, 0)]


def make(every=FOR_GOOD, keys=("ATL", "ORD", "LAX"), **options):
    """A cache, a loader that counts, and its refresher by locks."""
    cache = Cache()
    loads = Counter()

    @cache.cached("ranking:{group}", fresh_for=60, stale_for=600)
    async def ranking(group: str) -> str:
        loads[group] += 1
        return group

    return cache, loads, Refresher(ranking, keys, every, **options)


class TestLocks:
    async def test_every_group_is_loaded_once_a_round(self):
        cache, loads, refresher = make(every=0.2)
        rounds = []
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, refresher:
            await until(lambda: len(rounds) >= 3)
        # One round may have been under way. On a machine that stands still the loads of one may count for the next.
        loaded = sum(ended.loaded for ended in rounds) // 3
        for group in ("ATL", "ORD", "LAX"):
            assert loaded <= loads[group] <= loaded + 1
        assert {ended.name for ended in rounds} == {"ranking:group"}
        assert [ended.loaded + ended.current for ended in rounds] == [3] * len(rounds)
        assert all((ended.groups, ended.held, ended.failed, ended.commands) == (3, 0, 0, 0) for ended in rounds)

    async def test_what_was_read_in_this_round_is_not_loaded_again(self):
        cache, loads, refresher = make()
        rounds = []
        cache.subscribe(rounds.append, RoundEnded)
        async with cache:
            await refresher.loader("ATL")
            async with refresher:
                await until(lambda: rounds)
        assert loads == Counter(ATL=1, ORD=1, LAX=1)
        assert (rounds[0].loaded, rounds[0].current) == (2, 1)

    async def test_several_workers_of_one_process_load_each_once(self):
        cache, loads, one = make(keys=[f"g{number}" for number in range(200)])
        other = Refresher(one.loader, one._keys, FOR_GOOD)
        rounds = []
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, one, other:
            await until(lambda: len(rounds) == 2)
        assert set(loads.values()) == {1}
        assert sum(ended.loaded for ended in rounds) >= 200

    async def test_a_failure_is_tried_again_in_the_same_round(self, monkeypatch, caplog):
        cache, rounds, fails = Cache(), [], [ValueError("first")]
        cache.engine.runtime.uniform = lambda low, high: 0.01

        @cache.cached("ranking:{group}", fresh_for=60)
        async def ranking(group: str) -> str:
            if fails:
                raise fails.pop()
            return group

        cache.subscribe(rounds.append, RoundEnded)
        async with cache, Refresher(ranking, ["ATL"], FOR_GOOD):
            await until(lambda: rounds)
            assert (await ranking.outcome("ATL")).state == "fresh"
        assert (rounds[0].failed, rounds[0].loaded) == (1, 1)

    async def test_keys_that_fail_are_asked_again_in_the_same_round(self, monkeypatch, caplog):
        """The next round may be a day away."""
        monkeypatch.setattr("swr.refreshers.locks._AGAIN_IN", 0.01)
        asked, rounds = [], []

        def keys():
            asked.append(1)
            if len(asked) < 3:
                raise OSError("the database is away")
            return ["ATL"]

        cache, loads, refresher = make(keys=keys)
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, refresher:
            await until(lambda: rounds)
        assert (len(asked), loads["ATL"], rounds[0].missed) == (3, 1, 0)
        assert caplog.text.count("of the refresher 'ranking:group' failed") == 2

    async def test_keys_that_fail_are_asked_again_in_the_next_round_at_the_latest(self, caplog):
        asked = []

        def keys():
            asked.append(1)
            if len(asked) == 1:
                raise OSError("the database is away")
            return ["ATL"]

        cache, loads, refresher = make(every=0.1, keys=keys)
        async with cache, refresher:
            await until(lambda: loads)
        assert "of the refresher 'ranking:group' failed" in caplog.text
        assert "the database is away" in caplog.text

    async def test_a_round_that_takes_longer_overlaps_nothing_and_is_reported(self, caplog):
        cache, under_way, most = Cache(), [], []

        @cache.cached("ranking:{group}", fresh_for=60)
        async def ranking(group: str) -> str:
            under_way.append(group)
            most.append(len(under_way))
            await anyio.sleep(0.05)
            under_way.remove(group)
            return group

        async with cache, Refresher(ranking, ["a", "b", "c", "d"], 0.06, at_once=1):
            await until(lambda: "which is more than every=0.06" in caplog.text)
        assert max(most) == 1

    async def test_rounds_that_nobody_did_are_told(self, caplog):
        cache, loads, refresher = make(every=0.05, keys=["a"])
        gate, rounds = anyio.Event(), []
        now = cache.engine.store.now

        async def slow():
            if loads:
                await gate.wait()
            return await now()

        cache.engine.store.now = slow
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, refresher:
            await until(lambda: rounds)
            await anyio.sleep(0.2)
            gate.set()
            await until(lambda: len(rounds) >= 2)
        assert max(ended.missed for ended in rounds) >= 1
        assert "were left out; this one makes up for all" in caplog.text

    async def test_what_others_commit_and_release_is_heard(self):
        """Over a store that tells of it, as Redis does: nobody asks for what is done."""
        cache, begun, fingerprint = Cache(), [], Codec(str).fingerprint
        keys = [f"g{number}" for number in range(40)]

        @cache.cached("r:{group}", fresh_for=60)
        async def ranking(group: str) -> str:
            if len(begun) == 1:
                # Others are faster; one has given its lease back, and one has what nobody asks for here.
                for key in keys[:30]:
                    if f"r:{key}" not in begun:
                        engine.notifications.handle(
                            Notification(Kind.COMMITTED, f"r:{key}", 10**16 - 2, True, fingerprint)
                        )
                        # Another version of the application has its own.
                        engine.notifications.handle(Notification(Kind.COMMITTED, "r:g38", 10**16 - 2, True, "another"))
                engine.notifications.handle(Notification(Kind.RELEASED, "r:g39", 0, True))
                engine.notifications.handle(Notification(Kind.COMMITTED, "other", 10**16 - 2, True, fingerprint))
            return group

        engine, rounds = cache.engine, []
        cache.subscribe(lambda event: begun.append(event.key), LoadBegun)
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, Refresher(ranking, keys, FOR_GOOD, at_once=1):
            await until(lambda: rounds)
        assert 10 <= len(begun) <= 11

    async def test_what_another_holds_is_done_when_he_says_so(self, two):
        """His lease would last 30 s; his message comes at once."""
        theirs = await loading(two[0])
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            assert not rounds
            theirs.gate.set()
            await until(lambda: rounds)
        assert (rounds[0].held, two[1].groups.jobs["k"].runs) == (1, 0)

    async def test_a_commit_that_is_heard_of_before_the_refusal_of_the_lease(self, two):
        theirs = await loading(two[0])

        async def commit():
            theirs.gate.set()
            await two[0].limiter.drained(10)

        two[1].link.after["acquire"] = commit
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await until(lambda: rounds)
        # Asked once more, and what was committed is found; nothing is loaded again.
        assert (two[1].link.calls.count("acquire"), two[1].groups.jobs["k"].runs) == (2, 0)

    async def test_what_another_gives_back_is_loaded(self, two):
        two[0].engine.runtime.uniform = lambda low, high: 0.0
        theirs = await loading(two[0], lambda run: ValueError("broken"))
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            theirs.gate.set()
            await until(lambda: rounds)
        assert two[1].groups.jobs["k"].runs == 1

    async def test_a_dead_workers_groups_are_taken_over_in_the_same_round(self, two, clock):
        await two[0].store.acquire("k", "dead", 0.3, 0, Job.codec)
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            clock.advance(0.31)
            await until(lambda: rounds)
        # A machine that stands still has asked once more before the clock was advanced.
        assert (rounds[0].loaded, rounds[0].held >= 1) == (1, True)

    async def test_what_is_held_beyond_the_round_is_the_next_ones(self, two, clock):
        await two[0].store.acquire("k", "other", 3600, 0, Job.codec)
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        clock.now = math.ceil(clock.now / 60) * 60 - 0.1
        async with Refresher(two[1].groups, ["k", "free"], 60):
            await until(lambda: rounds)
        assert (rounds[0].loaded, rounds[0].held) == (1, 1)

    async def test_unreachable_store_delays_the_round(self, two):
        two[0].link.set_down(True)
        rounds = []
        two[0].engine.events.subscribe(rounds.append, [RoundEnded])
        now = two[0].store.store.store.now
        two[0].link.now = now
        async with Refresher(two[0].groups, ["k"], FOR_GOOD):
            await settle()
            assert not two[0].groups.jobs
            two[0].link.set_down(False)
            await until(lambda: rounds)
        assert two[0].groups.jobs["k"].runs == 1

    async def test_closing_waits_for_what_is_under_way(self):
        cache, loads, gate = Cache(), [], anyio.Event()

        @cache.cached("ranking:{group}", fresh_for=60)
        async def ranking(group: str) -> str:
            await gate.wait()
            loads.append(group)
            return group

        async with cache:
            refresher = Refresher(ranking, ["ATL", "ORD"], FOR_GOOD, at_once=1)
            async with anyio.create_task_group() as group, refresher:
                await settle()
                group.start_soon(refresher.aclose)
                await settle()
                assert not loads
                gate.set()
            assert len(loads) == 1


@pytest.mark.parametrize("strategy", ["locks", "read"])
async def test_status_without_a_queue_names_the_strategy_that_has_one(strategy):
    cache, _, refresher = make(strategy=strategy)
    async with cache:
        with pytest.raises(ConfigurationError, match=f"its strategy is '{strategy}', and only strategy=\"queue\""):
            await refresher.status()


class TestReading:
    async def test_read_does_nothing(self):
        cache, loads, refresher = make(strategy="read")
        async with cache, refresher:
            await refresher.mark_dirty("ATL")
            await settle()
        assert not loads

    async def test_a_refresher_runs_once_at_a_time_and_again(self):
        cache, loads, refresher = make()
        async with cache:
            async with refresher:
                with pytest.raises(ConfigurationError, match="'ranking:group' is running already"):
                    await refresher.__aenter__()
                await until(lambda: len(loads) == 3)
            await refresher.aclose()
            async with refresher:
                await settle()


class TestGroups:
    async def test_listing_many_keeps_nobody_waiting(self):
        """A leader's lease, for one, is to be renewed meanwhile."""
        cache, _, refresher = make(FOR_GOOD, [f"g{number}" for number in range(5000)])
        turns = 0

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await anyio.lowlevel.checkpoint()

        async with cache, anyio.create_task_group() as group:
            group.start_soon(others)
            await anyio.lowlevel.checkpoint()
            before = turns
            assert len(await refresher.groups()) == 5000
            group.cancel_scope.cancel()
        assert turns - before > 20

    async def test_keys_are_a_list_or_a_function_of_any_kind(self):
        def plain():
            return ["ATL", ("ORD", 10)]

        def generator():
            yield from plain()

        async def coroutine():
            return plain()

        async def stream():
            for group in plain():
                yield group

        expected = [("ATL",), ("ORD", 10)]
        for keys in (plain(), plain, generator, coroutine, stream, lambda: coroutine(), lambda: stream()):
            assert await groups_of(keys) == expected

    async def test_a_cursor_that_keys_return_is_read_in_the_thread_of_keys(self):
        """A driver may read from the network meanwhile, or refuse other threads as this one does."""

        def keys():
            return sqlite3.connect(":memory:").execute("VALUES ('ATL', 1), ('ORD', 10)")

        assert await groups_of(keys) == [("ATL", 1), ("ORD", 10)]

    async def test_a_batch_loader_is_called_for_many(self):
        cache, calls, rounds = Cache(), [], []

        @cache.cached_many("ranking:{group}:{limit}", fresh_for=60)
        async def rankings(groups: list[str], limit: int = 100) -> dict[str, int]:
            calls.append((sorted(groups), limit))
            return {group: limit for group in groups if group != "NONE"}

        cache.subscribe(rounds.append, RoundEnded)
        async with cache:
            keys = ["ATL", "ORD", ("LAX", 10), ("SFO", 10), "NONE"]
            async with Refresher(rankings, keys, FOR_GOOD) as refresher:
                await until(lambda: rounds)
            assert sorted(calls) == [(["ATL", "NONE", "ORD"], 100), (["LAX", "SFO"], 10)]
            assert await rankings(["ATL"]) == {"ATL": 100}
            assert rankings.key("ATL") == "ranking:ATL:100"
        assert (rounds[0].loaded, refresher.name) == (5, "ranking:group:limit")

    async def test_a_batch_loader_that_finds_none_again(self):
        """That there is none is as good as an entry."""
        cache, calls = Cache(), []

        @cache.cached_many("ranking:{group}", fresh_for=60, absent_for=60)
        async def rankings(groups: list[str]) -> dict[str, int]:
            calls.append(groups)
            return {}

        async with cache:
            await rankings(["NONE"])
            rounds = []
            cache.subscribe(rounds.append, RoundEnded)
            async with Refresher(rankings, ["NONE"], FOR_GOOD):
                await until(lambda: rounds)
        assert calls == [["NONE"]]

    async def test_items_that_are_none_are_left_out(self, caplog):
        cache, calls = Cache(), []

        @cache.cached_many("ranking:{group}", fresh_for=60)
        async def rankings(groups: list[str]) -> dict[str, int]:
            calls.append(groups)
            return dict.fromkeys(groups, 1)

        async with cache, Refresher(rankings, [["x"], "d"], FOR_GOOD):
            await until(lambda: calls)
        assert calls == [["d"]]
        assert "leaves out 1 of 2 groups; the first is (['x'],): " in caplog.text
        # From Python 3.14 on more words come before it.
        assert "unhashable type: 'list'" in caplog.text

    async def test_what_is_not_there_is_found_out_once_a_round(self, two):
        """Though it is not remembered for readers."""
        since = await two[0].store.now()
        calls = []

        async def none(items):
            calls.append(items)
            return {}

        for process in two:
            batch = Batch(process.engine, none, ANY, 0.0, "", lambda item: None)
            flight = batch.begin("k", "k", POLICY, None, newer_than=since)
            batch.filled()
            await flight.done.wait()
            assert flight.has_no_value
        assert calls == [["k"]]

    async def test_what_was_stored_last_is_told_to_a_loader_who_asks(self, two):
        cache, seen = Cache(), []

        @cache.cached("ranking:{group}", fresh_for=60)
        async def ranking(context: LoadContext[int], group: str) -> int | NotModified:
            seen.append(context.has_value)
            return NOT_MODIFIED if context.has_value else 1

        async with cache, Refresher(ranking, ["a"], 0.1):
            await until(lambda: len(seen) >= 3)
        assert seen[:3] == [False, True, True]

    async def test_a_batch_loader_that_found_none_before_is_asked_again(self):
        """In the next round, however long it is remembered for readers that there is none."""
        cache, there, calls = Cache(), [], []

        @cache.cached_many("ranking:{group}", fresh_for=60, absent_for=3600)
        async def rankings(groups: list[str]) -> dict[str, int]:
            calls.append(groups)
            return dict.fromkeys(there, 1)

        async with cache:
            assert await rankings(["LATE"]) == {}
            there.append("LATE")
            async with Refresher(rankings, ["LATE"], 0.2):
                await until(lambda: len(calls) >= 2)
            assert await rankings(["LATE"]) == {"LATE": 1}

    async def test_methods(self):
        cache, rounds = Cache(), []

        class Rankings:
            def __init__(self):
                self.loads = []

            @cache.cached("ranking:{group}", fresh_for=60, ignore=("self",))
            async def one(self, group: str) -> str:
                self.loads.append(group)
                return group

            @cache.cached_many("many:{group}", fresh_for=60, ignore=("self",))
            async def many(self, groups: list[str]) -> dict[str, str]:
                self.loads += groups
                return {group: group for group in groups}

        rankings = Rankings()
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, Refresher(rankings.one, ["ATL"], FOR_GOOD), Refresher(rankings.many, ["ORD"], FOR_GOOD):
            await until(lambda: len(rounds) == 2)
        assert sorted(rankings.loads) == ["ATL", "ORD"]


class TestBadInput:
    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({"strategy": "lock"}, "strategy='lock' is none of read, locks, queue"),
            ({"every": 0}, "every=0 is not between 0.01"),
            ({"every": -1}, "every"),
            ({"every": "soon"}, "soon"),
            ({"at_once": 0}, "at_once=0 is not a whole number, 1 or more"),
            ({"at_once": True}, "at_once=True"),
            ({"shards": 1.5}, "shards=1.5"),
            ({"replicas": -1}, "replicas=-1 is not a whole number, 0 or more"),
            ({"keys": "ATL"}, "keys='ATL' is neither a list"),
            ({"keys": 5}, "keys=5 is neither"),
            ({"keys": (number for number in range(3))}, "used up by one round"),
            ({"keys": map(str, [1])}, "used up by one round"),
            ({"changed_since": 5}, "changed_since=5 is not a function"),
            ({"name": 5}, "name=5 is not a name"),
            ({"name": "\ud800"}, "is not a name"),
            ({"name": ""}, "name='' is not a name"),
        ],
    )
    def test_options_that_cannot_work(self, options, message):
        with pytest.raises(ConfigurationError, match=message):
            make(**options)

    def test_a_loader_that_is_not_cached(self):
        with pytest.raises(ConfigurationError, match=r"loader=.*print.* is not cached"):
            Refresher(print, [], 60)

    async def test_a_function_that_returns_one_group_and_no_list(self, caplog):
        cache, loads, refresher = make(every=0.1, keys=lambda: "ATL")
        async with cache, refresher:
            await until(lambda: "returned 'ATL', which is not a list of groups" in caplog.text)
        assert not loads

    async def test_what_failed_to_begin_can_begin_again(self, monkeypatch):
        cache, loads, refresher = make()
        with monkeypatch.context() as patch:
            patch.setattr(cache.engine, "ready", lambda: anyio.sleep_forever())
            with anyio.move_on_after(0.01):
                await refresher.__aenter__()
        async with cache, refresher:
            await until(lambda: len(loads) == 3)

    async def test_groups_that_are_no_arguments_are_left_out_and_told(self, caplog):
        cache, loads, refresher = make(every=0.1, keys=[("ATL", 5), "ORD", object(), 10**5000])
        async with cache, refresher:
            await until(lambda: loads)
        assert set(loads) == {"ORD"}
        assert "the refresher 'ranking:group' leaves out 3 of 4 groups; the first is ('ATL', 5): " in caplog.text
        assert "ranking() too many positional arguments" in caplog.text

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
    """A task asks for an entry that is newer than a version."""

    async def test_older_entry_is_loaded_and_newer_entry_is_current(self, two, clock):
        process = two[0]
        assert (await ended(process, "k", await process.store.now())).result is Result.LOADED
        clock.advance(1)
        since = await process.store.now()
        assert (await ended(process, "k", since)).result is Result.LOADED
        assert (await ended(process, "k", since)).result is Result.CURRENT
        assert process.groups.jobs["k"].runs == 2

    async def test_entry_loaded_by_another_process_since_then_is_current(self, two, clock):
        since = await two[0].store.now()
        clock.advance(1)
        await ended(two[0], "k", since)
        assert (await ended(two[1], "k", since)).result is Result.CURRENT
        assert two[1].groups.jobs["k"].runs == 0

    async def test_stale_entry_that_is_new_enough_is_current(self, two, clock):
        since = await two[0].store.now()
        clock.advance(1)
        await ended(two[0], "k", since)
        clock.advance(100)
        assert (await ended(two[1], "k", since)).result is Result.CURRENT

    async def test_load_that_began_too_early_is_followed_by_another(self, two, clock):
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

    async def test_task_ends_as_held_while_another_process_has_the_lease(self, two):
        job = await loading(two[0])
        end = await ended(two[1], "k", 0)
        assert end.result is Result.HELD
        assert 0 < end.again_in <= 30
        job.gate.set()

    async def test_reader_who_joins_a_refused_task_receives_the_value_of_the_holder(self, two):
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

    async def test_reader_who_joins_a_task_receives_a_new_value_if_the_entry_is_too_old(self, two, clock):
        """An entry that is new enough for the refresher may be too old for the reader."""
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

    async def test_refreshers_of_all_processes_back_off_after_a_failure_but_readers_do_not(self, two, caplog):
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

    async def test_load_whose_commit_fails_ends_its_task_as_unreachable(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()

        async def go():
            process.link.set_down(True)

        job.before_store = go
        assert (await ended(process, "k", 0)).result is Result.UNREACHABLE

    async def test_load_superseded_by_an_invalidation_is_repeated(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()

        async def invalidate():
            if job.runs == 1:
                await two[1].engine.invalidate("k")

        job.before_store = invalidate
        assert (await ended(process, "k", 0)).result is Result.LOADED
        assert job.runs == 2

    async def test_task_superseded_three_times_is_postponed_by_one_second(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()
        job.before_store = lambda: two[1].engine.invalidate("k")
        end = await ended(process, "k", 0)
        assert (end.result, end.again_in, job.runs) == (Result.HELD, 1.0, 3)


class TestLoadLimiter:
    async def test_limiter_has_no_free_slot_while_three_loads_run(self, two):
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

    async def test_wait_returns_at_once_after_an_earlier_change(self, two):
        limiter = two[0].limiter
        changes = limiter.changes
        limiter.change()
        with anyio.fail_after(60):
            await limiter.wait(None, changes)

    async def test_superseded_task_is_postponed_if_its_load_cannot_begin_again(self, two, monkeypatch):
        """The cache may have been closed during the invalidation."""
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

    async def test_draining_ends_at_its_timeout_while_a_load_runs(self, two):
        process = two[0]
        process.groups.jobs["k"] = job = Job()
        job.gate = anyio.Event()
        process.limiter.begin([Task("k", ("k",), 0)], lambda task, end: None)
        await process.limiter.drained(0.01)
        assert process.limiter.running == 1
        job.gate.set()


class TestRounds:
    async def test_rounds_are_numbered_by_the_stores_clock(self, two, clock):
        rounds = Rounds(two[0].engine, 60)
        now = await two[0].store.now()
        this = await rounds.next()
        assert this.number == now // 60_000_000
        assert this.begins_at == this.number * 60_000_000
        assert this.missed == 0
        assert 0 < this.left <= 60

    async def test_next_round_counts_the_missed_rounds(self, two, clock):
        rounds = Rounds(two[0].engine, 60)
        first = await rounds.next()
        clock.advance(600)
        later = await rounds.next()
        assert (later.number - first.number, later.missed) == (10, 9)

    async def test_next_round_waits_for_a_later_number_and_a_reachable_store(self, two, clock):
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
    async def test_every_group_is_loaded_once_in_each_round(self):
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

    async def test_group_read_during_the_round_is_not_loaded_again(self):
        cache, loads, refresher = make()
        rounds = []
        cache.subscribe(rounds.append, RoundEnded)
        async with cache:
            await refresher.loader("ATL")
            async with refresher:
                await until(lambda: rounds)
        assert loads == Counter(ATL=1, ORD=1, LAX=1)
        assert (rounds[0].loaded, rounds[0].current) == (2, 1)

    async def test_two_refreshers_of_one_process_load_each_group_once(self):
        cache, loads, one = make(keys=[f"g{number}" for number in range(200)])
        other = Refresher(one.loader, one._keys, FOR_GOOD)
        rounds = []
        cache.subscribe(rounds.append, RoundEnded)
        async with cache, one, other:
            await until(lambda: len(rounds) == 2)
        assert set(loads.values()) == {1}
        assert sum(ended.loaded for ended in rounds) >= 200

    async def test_failed_load_is_tried_again_in_the_same_round(self, monkeypatch, caplog):
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

    async def test_failing_keys_function_is_called_again_in_the_same_round(self, monkeypatch, caplog):
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

    async def test_failing_keys_function_is_called_again_by_the_next_round(self, caplog):
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

    async def test_round_longer_than_every_does_not_overlap_and_is_logged(self, caplog):
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

    async def test_missed_rounds_are_counted_and_logged(self, caplog):
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

    async def test_group_committed_by_others_is_skipped_without_a_lease_request(self):
        """The store sends notifications, as Redis does. Another version of the application may share it."""
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

    async def test_held_group_is_done_as_soon_as_its_holder_commits(self, two):
        """The lease would last 30 s, but the notification of the commit arrives at once."""
        theirs = await loading(two[0])
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            assert not rounds
            theirs.gate.set()
            await until(lambda: rounds)
        assert (rounds[0].held, two[1].groups.jobs["k"].runs) == (1, 0)

    async def test_commit_notified_before_a_lease_refusal_is_found_by_a_second_request(self, two):
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

    async def test_group_released_by_another_process_is_loaded_here(self, two):
        two[0].engine.runtime.uniform = lambda low, high: 0.0
        theirs = await loading(two[0], lambda run: ValueError("broken"))
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            theirs.gate.set()
            await until(lambda: rounds)
        assert two[1].groups.jobs["k"].runs == 1

    async def test_group_of_a_dead_worker_is_loaded_in_the_same_round(self, two, clock):
        await two[0].store.acquire("k", "dead", 0.3, 0, Job.codec)
        rounds = []
        two[1].engine.events.subscribe(rounds.append, [RoundEnded])
        async with Refresher(two[1].groups, ["k"], FOR_GOOD):
            await settle()
            clock.advance(0.31)
            await until(lambda: rounds)
        # A machine that stands still has asked once more before the clock was advanced.
        assert (rounds[0].loaded, rounds[0].held >= 1) == (1, True)

    async def test_group_held_beyond_the_end_of_the_round_is_left_to_the_next(self, two, clock):
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

    async def test_close_waits_for_the_load_that_is_under_way(self):
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
    async def test_strategy_read_loads_nothing_in_the_background(self):
        cache, loads, refresher = make(strategy="read")
        async with cache, refresher:
            await refresher.mark_dirty("ATL")
            await settle()
        assert not loads

    async def test_running_refresher_cannot_be_started_again_until_it_is_closed(self):
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
    async def test_listing_5000_groups_lets_other_tasks_run(self):
        """A leader has to renew its lease meanwhile."""
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

    async def test_keys_can_be_a_list_or_a_function_of_any_kind(self):
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

    async def test_cursor_returned_by_keys_is_read_in_the_thread_that_made_it(self):
        """A driver may read from the network, or refuse other threads, as sqlite3 does."""

        def keys():
            return sqlite3.connect(":memory:").execute("VALUES ('ATL', 1), ('ORD', 10)")

        assert await groups_of(keys) == [("ATL", 1), ("ORD", 10)]

    async def test_batch_loader_is_called_once_for_groups_with_equal_options(self):
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

    async def test_batch_loader_is_not_called_again_in_the_round_for_an_absent_item(self):
        """The stored absence of the item counts like an entry."""
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

    async def test_unhashable_item_is_left_out_and_logged(self, caplog):
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

    async def test_item_found_absent_by_one_process_is_not_loaded_again_by_another(self, two):
        """This holds although the absence is not stored for readers."""
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

    async def test_loader_with_context_knows_whether_there_is_a_stored_value(self, two):
        cache, seen = Cache(), []

        @cache.cached("ranking:{group}", fresh_for=60)
        async def ranking(context: LoadContext[int], group: str) -> int | NotModified:
            seen.append(context.has_value)
            return NOT_MODIFIED if context.has_value else 1

        async with cache, Refresher(ranking, ["a"], 0.1):
            await until(lambda: len(seen) >= 3)
        assert seen[:3] == [False, True, True]

    async def test_batch_loader_is_called_again_for_an_absent_item_in_the_next_round(self):
        """`absent_for` limits only the loads of readers."""
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

    async def test_cached_methods_can_be_refreshed(self):
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
            ({"strategy": "lock"}, "strategy='lock': give one of read, locks, queue"),
            ({"every": 0}, "every=0 is not between 0.01"),
            ({"every": -1}, "every"),
            ({"every": "soon"}, "soon"),
            ({"at_once": 0}, "at_once=0: give a whole number, 1 or more"),
            ({"at_once": True}, "at_once=True"),
            ({"shards": 1.5}, "shards=1.5"),
            ({"replicas": -1}, "replicas=-1: give a whole number, 0 or more"),
            ({"keys": "ATL"}, "keys='ATL': give a list"),
            ({"keys": 5}, "keys=5: give a list"),
            ({"keys": (number for number in range(3))}, "used up by one round"),
            ({"keys": map(str, [1])}, "used up by one round"),
            ({"changed_since": 5}, "changed_since=5: give a function"),
            ({"name": 5}, "name=5 is not a name"),
            ({"name": "\ud800"}, "is not a name"),
            ({"name": ""}, "name='' is not a name"),
        ],
    )
    def test_invalid_options_are_rejected(self, options, message):
        with pytest.raises(ConfigurationError, match=message):
            make(**options)

    def test_loader_that_is_not_cached_is_rejected(self):
        with pytest.raises(ConfigurationError, match=r"loader=.*print.* is not cached"):
            Refresher(print, [], 60)

    async def test_keys_function_that_returns_one_string_is_logged_and_loads_nothing(self, caplog):
        cache, loads, refresher = make(every=0.1, keys=lambda: "ATL")
        async with cache, refresher:
            await until(lambda: "returned 'ATL', which is not a list of groups" in caplog.text)
        assert not loads

    async def test_refresher_whose_start_was_cancelled_can_be_started_again(self, monkeypatch):
        cache, loads, refresher = make()
        with monkeypatch.context() as patch:
            patch.setattr(cache.engine, "ready", lambda: anyio.sleep_forever())
            with anyio.move_on_after(0.01):
                await refresher.__aenter__()
        async with cache, refresher:
            await until(lambda: len(loads) == 3)

    async def test_groups_that_do_not_fit_the_loader_are_left_out_and_logged(self, caplog):
        cache, loads, refresher = make(every=0.1, keys=[("ATL", 5), "ORD", object(), 10**5000])
        async with cache, refresher:
            await until(lambda: loads)
        assert set(loads) == {"ORD"}
        assert "the refresher 'ranking:group' leaves out 3 of 4 groups; the first is ('ATL', 5): " in caplog.text
        assert "ranking() too many positional arguments" in caplog.text

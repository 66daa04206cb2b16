"""The refresh path, on asyncio and trio, by events: one load, whoever asks, whatever fails."""

import asyncio
import contextlib
import logging

import anyio
import anyio.lowlevel
import pytest

from swr import Cache, ConfigurationError, LoadTimeout, Policy, State, StoreUnavailable, SWRError
from swr.core.codec import ANY, Codec
from swr.engine.deadlocks import Code, loading, refuse_circles, waiting_for
from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.engine.lease import LIVES
from swr.events import LoadFailed, RenewalRejected
from swr.policy import Limits
from swr.stores.memory import MemoryStore
from swr.stores.tag_versions import ALL
from swr.testing import FakeClock
from tests.flaky_store import FlakyStore
from tests.fleet import GROWING, POLICY, Job, Process, fleet, gather, open_gate, settle, until

pytestmark = pytest.mark.anyio


@pytest.fixture
async def process(clock):
    async with fleet(1, clock) as processes:
        yield processes[0]


@pytest.fixture
async def two(clock):
    async with fleet(2, clock) as processes:
        yield processes


async def let_go(job):
    """Hold the job until everyone has asked."""
    job.gate = anyio.Event()
    await settle()
    job.gate.set()


async def raises(function, *args):
    """Call a function that ends with an error of swr."""
    with pytest.raises(SWRError):
        await function(*args)


class TestOneProcess:
    async def test_missing_then_fresh_then_stale_then_fresh(self, process, clock):
        engine, job = process.engine, Job()
        states = []
        for seconds in (0, 59, 1, 0):
            clock.advance(seconds)
            outcome = await engine.fetch("k", job)
            states.append((outcome.state, outcome.value, outcome.age))
            await settle()
        assert states == [
            (State.MISSING, 1, 0),
            (State.FRESH, 1, 59),
            (State.STALE, 1, 60),
            (State.FRESH, 2, 0),
        ]

    @pytest.mark.uncounted
    async def test_a_thousand_readers_of_a_cold_key_are_one_load(self, process):
        job = Job()
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(1000)))
        assert job.runs == 1
        assert {(outcome.value, outcome.state) for outcome in outcomes[1:]} == {(1, State.MISSING)}

    async def test_a_thousand_readers_of_a_stale_key_wait_for_nothing(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        clock.advance(61)
        job.gate = anyio.Event()
        process.link.calls.clear()
        outcomes = await gather(*(process.engine.fetch("k", job) for _ in range(1000)))
        assert {(outcome.value, outcome.state) for outcome in outcomes} == {(1, State.STALE)}
        job.gate.set()
        await settle()
        assert job.runs == 2
        assert process.link.calls == ["acquire", "commit"]

    async def test_a_stale_reader_is_answered_before_the_store_is_asked(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        clock.advance(61)
        hung = anyio.Event()
        process.link.before = dict.fromkeys(("read", "acquire"), hung.wait)
        with anyio.fail_after(60):
            assert (await process.engine.fetch("k", job)).state is State.STALE
        hung.set()
        await settle()

    async def test_past_every_deadline_a_reader_waits(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        clock.advance(3660)
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.MISSING)

    async def test_none_and_empty_values_are_values(self, process):
        for key, value in (("none", None), ("list", []), ("zero", 0)):
            job = Job(lambda run, value=value: value)
            for state in (State.MISSING, State.FRESH):
                outcome = await process.engine.fetch(key, job)
                assert (outcome.value, outcome.state) == (value, state)
            assert job.runs == 1

    async def test_waiters_get_a_value_that_is_too_old_when_it_comes(self, process, clock):
        job = Job(policy=Policy(5))

        async def sleep():
            clock.advance(10)

        job.before_store = sleep
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(3)))
        assert [outcome.value for outcome in outcomes[1:]] == [1, 1, 1]
        assert outcomes[1].age == 10

    async def test_limits_make_a_reader_wait_or_not(self, process):
        job = Job()
        await process.engine.fetch("k", job)
        outcome = await process.engine.fetch("k", job, Limits(no_cache=True))
        assert (outcome.value, outcome.state) == (2, State.MISSING)

    async def test_an_engine_belongs_to_one_running_loop(self, clock):
        engine = Engine(MemoryStore(clock=clock), clock=clock)
        await engine.fetch("k", Job())

        def elsewhere():
            with pytest.raises(ConfigurationError, match="another event loop"):
                anyio.run(engine.ready)

        job = Job()
        job.gate = anyio.Event()

        async def refused():
            await job.begun.wait()
            await anyio.to_thread.run_sync(elsewhere)
            job.gate.set()

        # The load that is under way here is none the worse for it.
        outcome, _ = await gather(engine.fetch("other", job), refused())
        assert (outcome.value, engine.is_open) == (1, True)
        await engine.aclose()
        await engine.aclose()

    async def test_a_job_that_ends_without_a_value_is_an_error(self, process):
        class Idle(Job):
            async def run(self, load):
                pass

        with pytest.raises(SWRError, match="without a value"):
            await process.engine.fetch("k", Idle())

    async def test_a_failure_after_landing_is_logged_and_changes_nothing(self, process, caplog):
        class Late(Job):
            async def run(self, load):
                await super().run(load)
                raise RuntimeError("late")

        assert (await process.engine.fetch("k", Late())).value == 1
        await settle()
        assert "late" in caplog.text


class TestFailures:
    async def test_a_cold_readers_error_is_the_loaders_own(self, process):
        error = ZeroDivisionError("x")
        job = Job(lambda run: error)
        results = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(5)))
        assert {repr(result) for result in results[1:]} == {repr(error)}
        # Each has one of its own, and the last of them the loader's.
        assert len({id(result) for result in results[1:]}) == 5
        assert error in results
        assert job.runs == 1

    async def test_errors_are_cached_nowhere(self, process):
        job = Job(lambda run: ValueError("first") if run == 1 else run)
        with pytest.raises(ValueError, match="first"):
            await process.engine.fetch("k", job)
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_a_failed_refresh_evicts_nothing_and_is_not_tried_again_at_once(self, process, clock, caplog):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(61)
        for _ in range(10):
            outcome = await process.engine.fetch("k", job)
            assert (outcome.value, outcome.state, outcome.error) == (1, State.STALE, None)
            await settle()
        assert job.runs == 2
        assert "down" in caplog.text

    async def test_in_the_error_window_a_failure_falls_back_and_says_why(self, process, clock):
        error = ValueError("down")
        job = Job(lambda run: run if run == 1 else error)
        await process.engine.fetch("k", job)
        clock.advance(660)
        for _ in range(3):
            outcome = await process.engine.fetch("k", job)
            assert (outcome.value, outcome.state, repr(outcome.error)) == (1, State.STALE, repr(error))
            assert outcome.age == 660
        assert job.runs == 2

    async def test_after_the_pause_it_is_tried_again(self, process, clock, monkeypatch):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(660)
        assert (await process.engine.fetch("k", job)).value == 1
        process.engine.backoffs.clear()
        clock.advance(2)
        assert (await process.engine.fetch("k", job)).value == 3

    async def test_past_every_deadline_a_failure_is_the_loaders_own_and_pauses_nothing(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError(str(run)))
        await process.engine.fetch("k", job)
        clock.advance(3660)
        for run in (2, 3):
            with pytest.raises(ValueError, match=str(run)):
                await process.engine.fetch("k", job)

    async def test_the_pause_is_the_fleets(self, two, clock, caplog):
        one, other = two
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        clock.advance(660)
        assert (await one.engine.fetch("k", job)).error is not None
        outcome = await other.engine.fetch("k", job)
        assert outcome.value == 1
        assert isinstance(outcome.error, SWRError)
        assert "in another process" in str(outcome.error)
        assert job.runs == 2

    async def test_pauses_double_to_a_minute(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError("down"), Policy(1, 0, "1d"))
        await process.engine.fetch("k", job)
        pauses, release = [], process.link.release

        async def noting(lease, pause=0.0):
            pauses.append(pause)
            await release(lease, pause)

        process.link.release = noting
        for _ in range(8):
            clock.advance(70)
            process.engine.backoffs.clear()
            await process.engine.fetch("k", job)
        # The count outlives a pause by a minute; after 70 s the first ones are forgotten.
        assert pauses[0] == 1
        clock.advance(1)
        for _ in range(8):
            clock.advance(pauses[-1])
            process.engine.backoffs.clear()
            await process.engine.fetch("k", job)
        assert len(pauses) == 16
        assert pauses[-8:] == sorted(pauses[-8:])
        assert pauses[-1] == 60


def test_code_that_waits_twice_for_one_load_waits_until_both_waits_are_over():
    outer, inner = (Flight(None, key, Job(), None, 0) for key in ("outer", "inner"))
    with loading(outer):
        with waiting_for((inner,)):
            with waiting_for((inner,)):
                assert inner.waiters == 2
            assert outer.waits_for == {inner: 1}
        assert outer.waits_for == {}


class TestFleet:
    async def test_one_load_cold(self, clock):
        async with fleet(8, clock) as processes:
            job = Job()
            readers = (process.engine.fetch("k", job) for process in processes for _ in range(50))
            outcomes = await gather(let_go(job), *readers)
            assert job.runs == 1
            assert {(outcome.value, outcome.state) for outcome in outcomes[1:]} == {(1, State.MISSING)}

    @pytest.mark.uncounted
    async def test_one_load_stale_again_and_again(self, clock):
        async with fleet(8, clock) as processes:
            job = Job()
            await gather(*(process.engine.fetch("k", job) for process in processes))
            for round_ in range(2, 6):
                clock.advance(61)
                outcomes = await gather(*(process.engine.fetch("k", job) for process in processes for _ in range(50)))
                await settle()
                assert job.runs == round_
                assert {outcome.state for outcome in outcomes} <= {State.STALE, State.FRESH}
                outcomes = await gather(*(process.engine.fetch("k", job) for process in processes))
                await settle()
                outcomes = await gather(*(process.engine.fetch("k", job) for process in processes))
                assert {(outcome.value, outcome.state) for outcome in outcomes} == {(round_, State.FRESH)}
                assert job.runs == round_

    async def test_a_cold_loser_takes_over_when_the_winner_fails(self, two):
        one, other = two
        failing, job = Job(lambda run: ValueError("mine")), Job()
        failing.gate = anyio.Event()

        async def second():
            await failing.begun.wait()
            return await other.engine.fetch("k", job)

        first, outcome, _ = await gather(one.engine.fetch("k", failing), second(), open_gate(failing))
        assert isinstance(first, ValueError)
        assert (outcome.value, outcome.state) == (1, State.MISSING)

    async def test_a_cold_loser_takes_what_came_though_it_is_too_old(self, two, clock):
        one, other = two
        job = Job(policy=Policy(1))
        job.gate = anyio.Event()

        async def late():
            await job.begun.wait()
            clock.advance(5)
            await settle()
            job.gate.set()

        outcomes = await gather(one.engine.fetch("k", job), other.engine.fetch("k", job), late())
        assert [outcome.value for outcome in outcomes[:2]] == [1, 1]

    async def test_a_denied_refresh_is_not_asked_for_again_until_news_comes(self, two, clock):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        clock.advance(61)
        job.gate, job.begun = anyio.Event(), anyio.Event()
        await one.engine.fetch("k", job)
        await job.begun.wait()
        other.link.calls.clear()
        for _ in range(5):
            await other.engine.fetch("k", job)
            await settle()
        assert other.link.calls == ["acquire"]
        job.gate.set()
        await settle()
        assert (await other.engine.fetch("k", job)).value == 1
        await settle()
        assert (await other.engine.fetch("k", job)).value == 2
        assert job.runs == 2

    async def test_a_reader_who_joins_a_refresh_that_was_denied_starts_another(self, two, clock):
        one, other = two
        job = Job(policy=Policy(60, 10))
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        clock.advance(61)
        job.gate, job.begun = anyio.Event(), anyio.Event()
        await one.engine.fetch("k", job)
        await job.begun.wait()
        answering = anyio.Event()
        other.link.after["acquire"] = answering.wait
        await other.engine.fetch("k", job)
        clock.advance(10)

        async def let_go():
            await settle()
            other.link.after.clear()
            answering.set()
            await settle()
            job.gate.set()

        outcome, _ = await gather(other.engine.fetch("k", job), let_go())
        assert (outcome.value, outcome.state) == (2, State.MISSING)
        assert job.runs == 2

    async def test_what_one_refreshed_is_read_by_the_others_at_once(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        await one.engine.refresh("k", job)
        outcome = await other.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.FRESH)

    async def test_an_l1_copy_keeps_its_first_timestamps(self, two, clock):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        clock.advance(50)
        assert (await other.engine.fetch("k", job)).age == 50
        clock.advance(10)
        assert (await other.engine.fetch("k", job)).state is State.STALE


class TestRefresh:
    async def test_it_loads_though_the_entry_is_fresh(self, process):
        job = Job()
        await process.engine.fetch("k", job)
        outcome = await process.engine.refresh("k", job)
        assert (outcome.value, outcome.state) == (2, State.MISSING)
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_it_joins_no_load_that_began_before_it(self, process):
        job = Job()
        job.gate = anyio.Event()

        async def refresh():
            await job.begun.wait()
            return await process.engine.refresh("k", job)

        first, second, _ = await gather(process.engine.fetch("k", job), refresh(), open_gate(job))
        assert (first.value, second.value) == (1, 2)

    async def test_many_at_once_are_two_loads_at_most(self, clock):
        async with fleet(4, clock) as processes:
            job = Job()
            job.gate = anyio.Event()

            outcomes = await gather(*(p.engine.refresh("k", job) for p in processes for _ in range(10)), open_gate(job))
            assert job.runs == 2
            assert {outcome.value for outcome in outcomes[:-1]} == {1, 2}

    async def test_its_error_reaches_the_caller_and_what_is_stored_stays(self, process):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        with pytest.raises(ValueError, match="down"):
            await process.engine.refresh("k", job)
        assert (await process.engine.fetch("k", job)).value == 1

    async def test_it_does_not_keep_off_after_failures(self, process, clock):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(61)
        await process.engine.fetch("k", job)
        await settle()
        assert (await process.engine.refresh("k", job)).value == 3


class TestInvalidation:
    @pytest.mark.parametrize("by", ["tag", "everything", "another process"])
    async def test_a_reader_after_an_invalidation_does_not_wait_for_the_load_before_it(self, two, by):
        process, other = two
        old, new = Job(policy=POLICY.tagged(("t",))), Job(lambda run: "new", POLICY.tagged(("t",)))
        old.gate = anyio.Event()
        outcomes = []

        async def read_before():
            outcomes.append(await process.engine.fetch("k", old))

        async with anyio.create_task_group() as group:
            group.start_soon(read_before)
            await old.begun.wait()
            await settle()
            await (other if by == "another process" else process).engine.invalidate_tag(
                ALL if by == "everything" else "t"
            )
            await settle()
            with anyio.fail_after(30):
                assert (await process.engine.fetch("k", new)).value == "new"
                # In the other process, too, the old load keeps nobody waiting.
                assert (await other.engine.fetch("k", new)).value == "new"
            old.gate.set()
        # Who asked before gets the newer value, without a third load.
        assert [outcome.value for outcome in outcomes] == ["new"]
        assert (old.runs, new.runs) == (1, 1)

    async def test_an_invalidation_of_another_tag_leaves_a_load_alone(self, process):
        job = Job(policy=POLICY.tagged(("t",)))
        job.gate = anyio.Event()

        async def invalidate():
            await job.begun.wait()
            await process.engine.invalidate_tag("u")
            await settle()
            job.gate.set()
            return await process.engine.fetch("k", job)

        results = await gather(process.engine.fetch("k", job), invalidate())
        assert [outcome.value for outcome in results] == [1, 1]
        assert job.runs == 1

    @pytest.mark.parametrize("how", ["key", "tag", "all"])
    @pytest.mark.parametrize("where", ["here", "elsewhere"])
    async def test_it_beats_what_is_stored_and_what_is_loading(self, two, how, where):
        one, other = two
        caller = one if where == "here" else other

        async def invalidate():
            if how == "key":
                await caller.engine.invalidate("k")
            else:
                await caller.engine.invalidate_tag("t" if how == "tag" else ALL)

        truth = ["old"]
        job = Job(lambda run: truth[0], Policy(60, 600, 3600, tags=("t",)))
        assert (await one.engine.fetch("k", job)).value == "old"
        assert (await other.engine.fetch("k", job)).value == "old"
        await invalidate()
        # A load under way has read what was true; that changes, and is invalidated, before the load ends.
        job.gate, job.begun = anyio.Event(), anyio.Event()

        async def change():
            await job.begun.wait()
            truth[0] = "new"
            await invalidate()
            later = await gather(one_later(), open_gate(job))
            return later[0]

        async def one_later():
            return await one.engine.fetch("k", job)

        first, later = await gather(one.engine.fetch("k", job), change())
        assert (first.value, later.value) == ("new", "new")
        assert (await other.engine.fetch("k", job)).value == "new"
        assert (await one.engine.fetch("k", job)).state is State.FRESH

    async def test_a_load_that_is_overtaken_again_and_again_is_answered_but_not_stored(self, process):
        job = Job()

        async def invalidate():
            await process.engine.invalidate("k")

        job.before_store = invalidate
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, job.runs) == (3, 3)
        assert await process.store.read("k", job.codec) is None
        outcome = await process.engine.refresh("k", job)
        assert (outcome.value, job.runs) == (6, 6)

    async def test_a_fallback_that_was_invalidated_meanwhile_is_no_fallback(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError("down"), Policy(60, 0, 3600, tags=("t",)))
        await process.engine.fetch("k", job)
        for invalidate in (process.engine.invalidate("k"), process.engine.invalidate_tag("t")):
            job.runs = 0
            await process.engine.invalidate("k")
            await process.engine.fetch("k", job)
            clock.advance(61)
            job.gate, job.begun = anyio.Event(), anyio.Event()

            async def change(invalidate=invalidate):
                await job.begun.wait()
                await invalidate
                job.gate.set()

            error, _ = await gather(process.engine.fetch("k", job), change())
            assert isinstance(error, ValueError)
            job.gate = None

    async def test_the_version_of_another_tag_disturbs_no_flight(self, process):
        job = Job(policy=Policy(60, tags=("t",)))
        job.gate = anyio.Event()

        async def later():
            await job.begun.wait()
            await process.engine.invalidate_tag("unrelated")
            results = await gather(process.engine.fetch("k", job), open_gate(job))
            return results[0]

        first, second = await gather(process.engine.fetch("k", job), later())
        assert (first.value, second.value, job.runs) == (1, 1, 1)
        assert process.link.calls.count("acquire") == 1

    async def test_news_from_elsewhere_drops_the_copy_here(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        await other.engine.invalidate("k")
        assert one.store.peek("k") is None
        assert (await one.engine.fetch("k", job)).value == 2


class TestCancellation:
    async def test_a_cancelled_reader_cancels_nobody_else(self, process):
        job = Job()
        job.gate = anyio.Event()
        outcomes = []

        async def patient():
            outcomes.append(await process.engine.fetch("k", job))

        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as scope:
                group.start_soon(patient)

                async def leave():
                    await job.begun.wait()
                    scope.cancel()

                group.start_soon(leave)
                await process.engine.fetch("k", job)
            assert scope.cancelled_caught
            job.gate.set()
        assert (outcomes[0].value, job.runs) == (1, 1)

    async def test_what_the_only_reader_left_behind_is_stored(self, process):
        job = Job()
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(process.engine.fetch, "k", job)
            await job.begun.wait()
            group.cancel_scope.cancel()
        job.gate.set()
        await settle()
        assert (await process.engine.fetch("k", job)).state is State.FRESH

    async def test_closing_waits_for_loads_that_end_in_time(self, clock):
        async with fleet(1, clock) as (process,):
            job = Job()
            job.gate = anyio.Event()
            results = []

            async def read():
                results.append(await process.engine.fetch("k", job))

            async with anyio.create_task_group() as group:
                group.start_soon(read)
                await job.begun.wait()
                group.start_soon(process.engine.aclose)
                await settle()
                job.gate.set()
            assert results[0].value == 1

    async def test_closing_says_which_loads_it_cancels(self, process, caplog):
        """In one line, for whoever asks why a deploy takes so long."""
        process.engine._tasks._drain_for = 0.01
        for number, ended in ((12, False), (0, True)):
            caplog.clear()
            async with anyio.create_task_group() as group:
                for key in range(number):
                    job = Job()
                    job.gate = anyio.Event()
                    group.start_soon(raises, process.engine.fetch, f"k{key}", job)
                    await job.begun.wait()
                await process.engine.fetch("quick", Job())
                await process.engine.aclose()
            lines = [record.getMessage() for record in caplog.records if "closing cancels" in record.getMessage()]
            assert len(lines) == (not ended)
            for line in lines:
                assert line.startswith("closing cancels 12 loads that have not ended within drain_for=2 s: 'k0', 'k1'")
                assert line.endswith("'k9', ...")

    async def test_closing_cancels_the_rest_and_gives_back_their_leases(self, clock):
        shared = MemoryStore(clock=clock)
        one, other = Process(shared, clock), Process(shared, clock)
        one.engine._tasks._drain_for = 0.01
        job = Job()
        job.gate = anyio.Event()

        async def read():
            with pytest.raises(SWRError, match="closed"):
                await one.engine.fetch("k", job)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await job.begun.wait()
            await one.engine.aclose()
        job.gate.set()
        assert (await other.engine.fetch("k", Job())).value == 1
        await other.engine.aclose()

    async def test_closing_gives_back_a_lease_whose_grant_is_on_its_way(self, clock):
        shared = MemoryStore(clock=clock)
        one, other = Process(shared, clock), Process(shared, clock)
        one.engine._tasks._drain_for = 0.01
        answering = anyio.Event()
        one.link.after["acquire"] = answering.wait

        async def read():
            with pytest.raises(SWRError, match="closed"):
                await one.engine.fetch("k", Job())

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await settle()
            await one.engine.aclose()
        assert (await other.engine.fetch("k", Job())).value == 1
        await other.engine.aclose()

    async def test_it_opens_again_after_closing(self, clock):
        engine = Engine(MemoryStore(clock=clock), clock=clock)
        for value in (1, 1):
            assert (await engine.fetch("k", Job())).value == value
            await engine.aclose()


class TestTheStoreAway:
    async def test_readers_without_a_copy_are_loaded_for_once_in_this_process(self, process):
        process.link.is_down = True
        job = Job()
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(100)))
        assert {outcome.value for outcome in outcomes[1:]} == {1}
        assert job.runs == 1

    async def test_what_is_loaded_meanwhile_is_served_until_the_store_is_back_and_then_dropped(self, process):
        job = Job()
        await process.engine.fetch("other", job)
        process.link.set_down(True)
        assert (await process.engine.fetch("k", job)).value == 2
        assert (await process.engine.fetch("k", job)).state is State.FRESH
        process.link.set_down(False)
        assert (await process.engine.fetch("k", job)).value == 3

    @pytest.mark.parametrize(("codec", "is_given"), [(ANY, "theirs"), (Codec(str), "ours")], ids=["type", "other type"])
    async def test_what_is_loaded_without_a_lease_gives_way_to_what_another_stores_meanwhile(
        self, two, codec, is_given
    ):
        one, other = two
        ours, theirs, given = Job(lambda run: "ours"), Job(lambda run: "theirs"), []
        ours.gate, theirs.codec = anyio.Event(), codec

        async def refuse():
            raise StoreUnavailable("out of memory")

        async def read():
            given.append((await other.engine.fetch("k", ours)).value)

        other.link.before["acquire"] = refuse
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await ours.begun.wait()
            other.link.before.clear()
            await one.engine.fetch("k", theirs)
            ours.gate.set()
        assert given == [is_given]
        assert (await other.engine.fetch("k", ours)).value == is_given

    async def test_what_was_here_is_served_within_its_deadlines(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        process.link.set_down(True)
        assert (await process.engine.fetch("k", job)).state is State.FRESH
        clock.advance(61)
        assert (await process.engine.fetch("k", job)).state is State.STALE
        await settle()
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_a_loader_that_fails_meanwhile_is_not_asked_again_at_once(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        process.link.set_down(True)
        clock.advance(660)
        for _ in range(3):
            assert (await process.engine.fetch("k", job)).value == 1
        assert job.runs == 2

    async def test_after_a_gap_an_entry_is_checked_before_it_is_served(self, two, clock):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        for age in (0, 61):
            one.link.set_down(True)
            await other.engine.refresh("k", job)
            latest = job.runs
            clock.advance(age)
            one.link.set_down(False)
            assert (await one.engine.fetch("k", job)).value == latest

    async def test_invalidations_made_meanwhile_count_here_at_once_and_everywhere_afterwards(self, two):
        one, other = two
        plain, tagged = Job(), Job(policy=Policy(60, 600, tags=("t",)))
        for process in two:
            await process.engine.fetch("k", plain)
            await process.engine.fetch("tagged", tagged)
        one.link.set_down(True)
        await one.engine.invalidate("k")
        await one.engine.invalidate_tag("t")
        assert (await one.engine.fetch("k", plain)).value == 2
        assert (await one.engine.fetch("tagged", tagged)).value == 2
        assert (await other.engine.fetch("k", plain)).value == 1
        # Before the store has been told, what it has is not believed.
        telling = anyio.Event()
        one.link.before = {"invalidate": telling.wait, "invalidate_tag": telling.wait}
        one.link.set_down(False)
        assert await one.store.read("k", plain.codec) is None
        assert await one.store.read("tagged", tagged.codec) is None
        telling.set()
        await settle()
        assert (await one.engine.fetch("k", plain)).value == 3
        assert (await one.engine.fetch("tagged", tagged)).value == 3
        assert (await other.engine.fetch("k", plain)).value > 1
        assert (await other.engine.fetch("tagged", tagged)).value > 1

    async def test_clear_made_meanwhile_counts_too(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        one.link.set_down(True)
        await one.engine.invalidate_tag(ALL)
        assert (await one.engine.fetch("k", job)).value == 2
        one.link.set_down(False)
        await settle()
        assert (await other.engine.fetch("k", job)).value == 3

    async def test_too_many_debts_become_one_to_clear(self, two, monkeypatch):
        monkeypatch.setattr("swr.stores.pending._MOST", 3)
        one, other = two
        job = Job()
        for key in "abcdef":
            await one.engine.fetch(key, job)
            await other.engine.fetch(key, job)
        one.link.set_down(True)
        for key in "abcde":
            await one.engine.invalidate(key)
        runs = job.runs
        one.link.set_down(False)
        await settle()
        for key in "abcdef":
            await other.engine.fetch(key, job)
        assert job.runs == runs + 6

    async def test_a_load_that_an_invalidation_overtook_is_not_kept(self, process):
        await process.engine.ready()
        process.link.set_down(True)
        for invalidate in (lambda: process.engine.invalidate("k"), lambda: process.engine.invalidate_tag("t")):
            job = Job(policy=Policy(60, tags=("t",)))
            job.before_store = invalidate
            assert (await process.engine.fetch("k", job)).value == 3
            assert process.store.peek("k") is None

    async def test_a_load_without_a_lease_that_a_refresh_has_replaced_is_not_kept(self, process):
        """An invalidation after the refresh knows of no flight that it would have to doom."""
        await process.engine.ready()
        process.link.set_down(True)
        slow, quick = Job(lambda run: "old" if run == 1 else "new"), Job(lambda run: "new")
        slow.gate = anyio.Event()

        async def overtake():
            await slow.begun.wait()
            await process.engine.refresh("k", quick)
            await process.engine.invalidate("k")
            slow.gate.set()

        outcome, _ = await gather(process.engine.fetch("k", slow), overtake())
        assert outcome.value == "new"
        assert (await process.engine.fetch("k", quick)).value == "new"

    async def test_an_older_load_without_a_lease_does_not_replace_a_newer_one(self, process, clock):
        await process.engine.ready()
        process.link.set_down(True)
        slow, quick = Job(lambda run: "old" if run == 1 else "new"), Job(lambda run: "new")
        slow.gate = anyio.Event()

        async def overtake():
            await slow.begun.wait()
            clock.advance(1)
            await process.engine.refresh("k", quick)
            slow.gate.set()

        await gather(process.engine.fetch("k", slow), overtake())
        assert (await process.engine.fetch("k", slow)).value == "new"

    @pytest.mark.parametrize("operation", ["read", "acquire", "commit", "release", "renew"])
    async def test_a_lost_reply_hurts_nobody_and_leaves_no_lease_behind(self, two, operation, caplog):
        one, other = two
        caplog.set_level(logging.CRITICAL, "swr")
        await one.engine.ready()
        one.link.lost = {operation}
        job = Job(lambda run: ValueError("x") if operation == "release" and run == 1 else run)
        if operation == "release":
            with pytest.raises(ValueError, match="x"):
                await one.engine.fetch("k", job)
        else:
            assert (await one.engine.fetch("k", job)).value == 1
        one.link.set_down(True)
        one.link.set_down(False)
        await settle()
        with anyio.fail_after(60):
            await other.engine.fetch("k", job)

    async def test_a_store_that_refuses_one_command_is_asked_the_next(self, process):
        calls = []

        async def refuse():
            calls.append(1)
            process.link.is_down = True

        process.link.before["commit"] = refuse
        job = Job()
        assert (await process.engine.fetch("k", job)).value == 1
        assert calls == [1]


class TestLeases:
    async def test_a_long_load_keeps_its_lease(self, two, clock):
        one, other = two
        one.engine.runtime.lease_for = other.engine.runtime.lease_for = 0.06
        job = Job()
        job.gate = anyio.Event()

        def renewed():
            return (one.link.calls + other.link.calls).count("renew")

        async def watch():
            await job.begun.wait()
            for _ in range(5):
                before = renewed()
                await until(lambda before=before: renewed() > before)
                clock.advance(0.03)
            job.gate.set()

        first, second, _ = await gather(one.engine.fetch("k", job), other.engine.fetch("k", job), watch())
        assert (first.value, second.value, job.runs) == (1, 1, 1)

    @pytest.mark.parametrize("ends", ["committed", "failed"])
    async def test_news_that_overtakes_a_refusal_keeps_nobody_off(self, two, clock, ends):
        """The lease is given back while the answer that it is held is on its way to a background refresh."""
        one, other = two
        job, arrives = Job(), anyio.Event()
        for process in two:
            await process.engine.fetch("k", job)
        # A backoff that lasts longer than the machine stands still.
        one.engine.runtime.uniform = lambda low, high: 10.0
        clock.advance(61)
        job.gate, job.begun = anyio.Event(), anyio.Event()
        if ends == "failed":
            job.answer = lambda run: RuntimeError("no") if run == 2 else run
        await one.engine.fetch("k", job)
        await job.begun.wait()
        other.link.after["acquire"] = arrives.wait
        await other.engine.fetch("k", job)
        await settle()
        job.gate.set()
        await settle()
        other.link.after.clear()
        arrives.set()
        await settle()
        # Until all may try again, as the failure says; not until a lease ends that nobody has any more.
        left = other.engine.backoffs.left("k")
        assert left == 0 if ends == "committed" else 0 < left <= 10
        if ends == "committed":
            assert (await other.engine.fetch("k", job)).value == 2

    async def test_a_holder_that_was_silent_too_long_overwrites_nothing(self, two, clock):
        one, other = two
        paused, job = Job(lambda run: "old"), Job(lambda run: "new")
        paused.gate = anyio.Event()
        waiting = anyio.Event()

        async def hang():
            await waiting.wait()

        one.link.before["renew"] = hang

        async def overtake():
            await paused.begun.wait()
            clock.advance(31)
            outcome = await other.engine.fetch("k", job)
            paused.gate.set()
            return outcome

        first, second = await gather(one.engine.fetch("k", paused), overtake())
        # Its commit is rejected: it looks again, and finds what the other has stored.
        assert (first.value, second.value) == ("new", "new")
        waiting.set()
        assert (await one.engine.fetch("k", job)).value == "new"
        assert (await other.engine.fetch("k", job)).value == "new"

    async def test_renewal_survives_an_unreachable_store_and_ends_with_the_lease(self, process, clock):
        process.engine.runtime.lease_for = 0.03
        job = Job()
        job.gate = anyio.Event()

        async def watch():
            await job.begun.wait()
            process.link.is_down = True
            await anyio.sleep(0.05)
            process.link.is_down = False
            await process.engine.invalidate("k")
            await anyio.sleep(0.05)
            job.gate.set()

        outcome, _ = await gather(process.engine.fetch("k", job), watch())
        assert (outcome.value, job.runs) == (2, 2)


async def test_flaky_store_hides_messages_while_unreachable(clock):
    link = FlakyStore(MemoryStore(clock=clock))
    heard = []
    await link.open(lambda *args: None, heard.append)
    link.is_down = True
    await link.store.invalidate("k")
    link.is_down = False
    await link.store.invalidate("k")
    assert len(heard) == 2
    link.forget()
    link.keep("k", None, ANY)
    assert link.peek("k") is None
    await link.aclose(heard.append)


class TestRaces:
    """Interleavings that take a stage manager: each holds one operation and lets something happen meanwhile."""

    async def test_a_commit_whose_reply_is_lost_replaces_no_later_one_that_was_served(self, two):
        """Kept as if the store had refused it, it would take this process's readers back to an older value."""
        one, other = two
        served = []

        async def serve_a_later_commit():
            del one.link.after["commit"]
            await other.engine.refresh("k", Job(lambda run: "later"))
            served.append((await one.store.read("k", ANY)).value)

        one.link.after["commit"] = serve_a_later_commit
        one.link.lost.add("commit")
        await one.engine.fetch("k", Job(lambda run: "earlier"))
        assert served == ["later"]
        assert (await one.engine.fetch("k", Job(lambda run: "loaded again"))).value == "later"

    async def test_an_answer_that_was_on_its_way_is_compared_with_the_news(self, two):
        """A GET that was sent before an invalidation does not fill the local cache with what it answers."""
        one, other = two
        job = Job()
        await other.engine.fetch("k", job)

        async def invalidate():
            one.link.after.clear()
            await other.engine.invalidate("k")

        one.link.after["read"] = invalidate
        assert (await one.engine.fetch("k", job)).value == 2
        assert (await one.engine.fetch("k", job)).state is State.FRESH

    async def test_a_found_entry_that_was_on_its_way_is_compared_too(self, two):
        one, other = two
        job = Job()
        await one.engine.ready()

        async def commit_elsewhere():
            one.link.before.clear()
            await other.engine.fetch("k", job)

        async def invalidate():
            one.link.after.clear()
            await other.engine.invalidate("k")

        one.link.before["acquire"] = commit_elsewhere
        one.link.after["acquire"] = invalidate
        assert (await one.engine.fetch("k", job)).value == 2

    async def test_a_commit_that_was_overtaken_on_its_way_back_is_not_kept(self, two):
        one, other = two
        job = Job()

        async def invalidate():
            one.link.after.clear()
            await other.engine.invalidate("k")

        one.link.after["commit"] = invalidate
        assert (await one.engine.fetch("k", job)).value == 2

    async def test_a_commit_that_lands_while_a_read_is_on_its_way_is_what_the_reader_gets(self, process):
        job = Job()
        await process.engine.ready()

        async def refresh():
            process.link.after.clear()
            await process.engine.refresh("k", job)

        process.link.after["read"] = refresh
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, outcome.state, job.runs) == (1, State.FRESH, 1)

    async def test_an_entry_that_somebody_loaded_long_ago_is_no_second_look(self, two, clock):
        """What is in the store and is too old already is a reason to load, not to stop."""
        one, other = two
        job = Job(policy=Policy(5, 600))
        await one.engine.ready()

        async def long_ago():
            one.link.before.clear()
            await other.engine.fetch("k", job)
            clock.advance(6)

        one.link.before["acquire"] = long_ago
        outcome = await one.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.MISSING)

    async def test_an_invalidation_that_the_store_has_not_heard_of_fences_the_load_all_the_same(self, process):
        job = Job()

        async def in_vain():
            job.before_store = None
            process.link.is_down = True
            await process.engine.store.invalidate("k")
            process.link.is_down = False

        job.before_store = in_vain
        assert (await process.engine.fetch("k", job)).value == 2
        assert process.store._pending._keys == {}

    async def test_a_tag_that_the_store_has_not_heard_of_fences_the_commit(self, process):
        job = Job(policy=Policy(60, tags=("t", "u")))
        await process.engine.fetch("untagged", Job(policy=Policy(60)))

        async def in_vain():
            process.link.before.clear()
            process.store._pending.add_tag("u")

        job.before_store = in_vain
        assert (await process.engine.fetch("k", job)).value == 3
        process.link.set_down(True)
        await process.engine.invalidate_tag("u")
        assert (await process.engine.fetch("untagged", job)).state is State.FRESH

    async def test_a_debt_made_anew_while_it_is_paid_is_still_owed(self, process):
        await process.engine.ready()
        await settle()
        process.link.set_down(True)
        await process.engine.invalidate("k")

        async def again():
            process.store._pending.add_key("k")
            process.link.after.clear()

        told = []

        async def tell():
            told.append(1)

        process.link.before["invalidate"] = tell
        process.link.after["invalidate"] = again
        process.link.set_down(False)
        await settle()
        assert told == [1, 1]
        assert not process.store._pending._keys

    async def test_a_debt_that_cannot_be_paid_at_once_is_paid_later(self, process, monkeypatch):
        monkeypatch.setattr("swr.stores.invalidations._AGAIN_AFTER", 1.0)
        await process.engine.ready()
        await settle()
        process.link.set_down(True)
        await process.engine.invalidate("k")
        process.link.lost = {"invalidate"}
        process.link.set_down(False)
        await settle()
        assert list(process.store._pending._keys) == ["k"]
        await until(lambda: not process.store._pending._keys)
        # A store that is there and refuses is told again too.
        process.link.lost = {"invalidate", "release"}
        await process.engine.invalidate("k")
        await until(lambda: not process.store._pending._keys)
        assert process.link.calls.count("invalidate") == 5

    async def test_leases_that_cannot_be_given_back_are_remembered_up_to_a_number(self, process, monkeypatch):
        monkeypatch.setattr("swr.stores.pending._MOST", 2)
        await process.engine.ready()
        process.link.is_down = True
        for number in range(5):
            await process.engine.fetch(str(number), Job())
        assert len(process.store._pending._releases) == 2

    async def test_a_reader_whose_fallback_ended_while_all_keep_off_gets_the_loaders_own_answer(self, process, clock):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(660)
        assert (await process.engine.fetch("k", job)).error is not None
        clock.advance(3600)
        assert (await process.engine.fetch("k", job)).value == 3

    async def test_a_reader_whose_fallback_was_invalidated_while_all_keep_off_gets_a_load(self, two, clock):
        one, other = two
        await one.engine.fetch("k", Job())
        clock.advance(700)
        await other.engine.fetch("k", Job(lambda run: ValueError("down")))

        async def invalidate():
            del one.link.after["acquire"]
            await other.engine.invalidate("k")

        one.link.after["acquire"] = invalidate
        outcome = await one.engine.fetch("k", Job(lambda run: "new"))
        assert (outcome.value, outcome.state) == ("new", State.MISSING)

    async def test_what_a_reader_found_stands_in_though_the_load_it_joined_began_without_it(self, two, clock):
        one, other = two
        await one.engine.fetch("k", Job())
        clock.advance(700)
        job = Job(lambda run: ValueError("down"))

        async def read_and_let_go():
            await job.begun.wait()
            outcomes = await gather(other.engine.fetch("k", job), open_gate(job))
            return outcomes[0]

        job.gate = anyio.Event()
        error, outcome = await gather(other.engine.refresh("k", job), read_and_let_go())
        assert isinstance(error, ValueError)
        assert (outcome.value, outcome.state, repr(outcome.error)) == (1, State.STALE, repr(error))

    async def test_news_that_is_older_than_a_load_still_ends_what_stands_in_for_it(self, two, clock):
        one, other = two
        await one.engine.fetch("k", Job())
        clock.advance(61)
        hear, late = one.link._subscriber, []
        one.link._subscriber = late.append

        async def invalidate():
            await other.engine.invalidate("k")

        one.link.before["acquire"] = invalidate
        job = Job(lambda run: ValueError("down"))
        job.gate = anyio.Event()
        assert (await one.engine.fetch("k", job)).state is State.STALE
        await job.begun.wait()
        for message in late:
            hear(message)
        error, _ = await gather(one.engine.fetch("k", job), open_gate(job))
        assert job.runs == 1
        assert isinstance(error, ValueError)

    async def test_news_ends_what_stands_in_for_a_load_that_a_refresh_has_overtaken_too(self, two, clock):
        one, other = two
        await one.engine.fetch("k", Job())
        clock.advance(700)
        job = Job(lambda run: ValueError("down"))
        job.gate = anyio.Event()

        async def refresh():
            await job.begun.wait()
            return await one.engine.refresh("k", Job(lambda run: "new"))

        async def invalidate():
            await job.begun.wait()
            await settle()
            await other.engine.invalidate("k")
            await open_gate(job)

        outcome, refreshed, _ = await gather(one.engine.fetch("k", job), refresh(), invalidate())
        assert refreshed.value == "new"
        assert (outcome.value, outcome.state) == ("new", State.STALE)
        assert isinstance(outcome.error, ValueError)

    async def test_closing_while_a_load_without_a_lease_runs(self, clock):
        shared = MemoryStore(clock=clock)
        process = Process(shared, clock)
        process.engine._tasks._drain_for = 0.01
        await process.engine.ready()
        process.link.is_down = True
        job = Job()
        job.gate = anyio.Event()

        async def read():
            with pytest.raises(SWRError, match="closed"):
                await process.engine.fetch("k", job)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await job.begun.wait()
            await process.engine.aclose()

    async def test_a_load_without_a_limit_of_its_own_is_given_up_after_ten_lives_of_its_lease(self, process):
        process.engine.runtime.lease_for = 0.03
        job = Job()
        job.gate = anyio.Event()
        with anyio.fail_after(30), pytest.raises(LoadTimeout, match=r"'k' was given up after 0.3 s"):
            await process.engine.fetch("k", job)
        assert process.link.calls.count("renew") == 29

    async def test_a_load_that_may_run_as_long_as_it_likes_is_stored_after_twenty_lives_of_its_lease(self, two):
        one, other = two

        class Patient(Job):
            async def run(self, load):
                load.limit(None)
                await super().run(load)

        job = Patient()
        job.gate = anyio.Event()
        one.engine.runtime.lease_for = other.engine.runtime.lease_for = 0.03

        async def read_elsewhere():
            await job.begun.wait()
            return await other.engine.fetch("k", job)

        async def end():
            with anyio.move_on_after(60):
                while one.link.calls.count("renew") < 60:
                    await anyio.sleep(0.005)
            job.gate.set()

        results = await gather(one.engine.fetch("k", job), read_elsewhere(), end())
        assert one.link.calls.count("renew") >= 60
        assert [outcome.value for outcome in results[:2]] == [1, 1]
        assert job.runs == 1

    async def test_a_load_that_has_lost_its_lease_is_given_up_all_the_same(self, process):
        process.engine.runtime.lease_for = 0.03
        job = Job()
        job.gate = anyio.Event()

        async def lose():
            await job.begun.wait()
            process.link.store._holds.clear()

        errors = await gather(process.engine.fetch("k", job), lose())
        assert isinstance(errors[0], LoadTimeout)

    async def test_a_loader_that_failed_in_time_is_not_given_up_while_its_lease_is_given_back(self, process):
        failed = []
        process.engine.events.subscribe(failed.append, (LoadFailed,))

        class Limited(Job):
            async def run(self, load):
                load.limit(limit)
                await super().run(load)

        async def late():
            await anyio.sleep(5 * limit)

        process.link.before["release"] = late
        for limit in GROWING:  # noqa: B007  # the job and what is late read it
            failed.clear()
            with pytest.raises((ValueError, LoadTimeout)):
                await process.engine.fetch("k", Limited(lambda run: ValueError("mine")))
            # On a machine that stands still, it may be given up before it has failed.
            if type(failed[0].error) is ValueError:
                break
        assert [type(event.error) for event in failed] == [ValueError]

    async def test_whoever_asks_in_the_last_steps_of_closing_opens_again(self, process):
        """What began there would be nobody's to wait for. Whoever closes, too, waits until it is over."""
        settling, gate, ended = anyio.Event(), anyio.Event(), []

        async def settle_slowly():
            settling.set()
            await gate.wait()

        async def close(name):
            await process.engine.aclose()
            ended.append(name)

        async def read():
            ended.append((await process.engine.fetch("k", Job())).value)

        await process.engine.ready()
        process.engine._tasks._settle = settle_slowly
        async with anyio.create_task_group() as group:
            group.start_soon(close, "one")
            await settling.wait()
            group.start_soon(close, "other")
            group.start_soon(read)
            await anyio.wait_all_tasks_blocked()
            assert ended == []
            gate.set()
        assert sorted(map(str, ended)) == ["1", "one", "other"]
        await process.engine.aclose()

    async def test_a_job_that_goes_on_after_its_value_has_lost_no_lease(self, process):
        process.engine.runtime.lease_for = 0.03
        gone, ended, is_stored = [], anyio.Event(), anyio.Event()
        process.engine.events.subscribe(gone.append, (RenewalRejected,))
        process.link.before["renew"] = is_stored.wait

        class GoesOn(Job):
            async def run(self, load):
                while "renew" not in process.link.calls:
                    await anyio.sleep(0.005)
                await super().run(load)
                is_stored.set()
                # The next look at this load would be now, and after that.
                await anyio.sleep(0.05)
                await settle()
                ended.set()

        assert (await process.engine.fetch("k", GoesOn())).value == 1
        with anyio.fail_after(60):
            await ended.wait()
        assert not gone


class TestOddLoaders:
    async def test_one_that_swallows_its_cancellation_keeps_closing_no_longer_than_a_moment(
        self, two, anyio_backend_name, monkeypatch, caplog
    ):
        if anyio_backend_name == "trio":
            pytest.skip("trio leaves no task behind")
        monkeypatch.setattr("swr.engine.tasks._PATIENCE", 0.2)
        one, other = two
        one.engine._tasks.drain_for = 0.05
        is_over = anyio.Event()

        class Stubborn(Job):
            async def run(self, load):
                self.begun.set()
                while not is_over.is_set():
                    with contextlib.suppress(asyncio.CancelledError):
                        await asyncio.sleep(0.01)

        job, errors = Stubborn(), []

        async def read():
            with pytest.raises(SWRError, match="was closed"):
                await one.engine.fetch("k", job)
            errors.append(1)

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await job.begun.wait()
            with anyio.fail_after(30):
                await one.engine.aclose()
        assert errors == [1]
        assert "disregard their cancellation" in caplog.text
        # The lease is free: another process loads at once.
        with anyio.fail_after(10):
            assert (await other.engine.fetch("k", Job())).value == 1
        is_over.set()
        await settle()

    async def test_one_that_asks_for_its_own_key_is_told_so(self, process):
        """It would wait for itself; and so would everybody else."""
        engine = process.engine

        class Asks(Job):
            def __init__(self, key):
                super().__init__()
                self.key = key

            async def run(self, load):
                await load.store((await engine.fetch(self.key, others[self.key])).value, POLICY)

        others = {"b": Asks("a"), "a": Asks("b")}
        with anyio.fail_after(60), pytest.raises(ConfigurationError, match="'a' -> 'b' -> 'a'"):
            await engine.fetch("a", others["a"])

        class Refreshes(Job):
            async def run(self, load):
                await engine.refresh("r", self)

        with anyio.fail_after(60), pytest.raises(ConfigurationError, match="would wait forever"):
            await engine.fetch("r", Refreshes())

    async def test_one_that_asks_for_another_key_or_another_cache_is_answered(self, process):

        class Asks(Job):
            async def run(self, load):
                inner = await process.engine.fetch("inner", Job())
                elsewhere = await Engine(MemoryStore()).fetch("k", Job())
                await load.store((inner.value, elsewhere.value), POLICY)

        assert (await process.engine.fetch("k", Asks())).value == (1, 1)

    async def test_what_it_started_may_ask_for_the_key_once_the_load_is_over(self, process):
        results = []

        class Starts(Job):
            async def run(self, load):
                group.start_soon(later)
                await super().run(load)

        async def later():
            await settle()
            results.append(await process.engine.fetch("k", Job()))

        async with anyio.create_task_group() as group:
            await process.engine.fetch("k", Starts())
        assert results[0].state is State.FRESH


async def test_a_loader_that_was_cancelled_from_within_fails_alone():
    """asyncio lets anything raise CancelledError; it must not take the cache down with it."""
    import asyncio

    if anyio.get_cancelled_exc_class() is not asyncio.CancelledError:
        pytest.skip("trio has no such exception to raise")
    engine = Engine(MemoryStore())
    slow = Job()
    slow.gate = anyio.Event()

    class Cancelled(Job):
        async def run(self, load):
            task = asyncio.ensure_future(asyncio.sleep(60))
            asyncio.get_running_loop().call_soon(task.cancel)
            await task

    async def let_slow_go():
        await slow.begun.wait()
        await settle()
        slow.gate.set()

    class LateCancelled(Job):
        async def run(self, load):
            await super().run(load)
            raise asyncio.CancelledError

    bad, good, _ = await gather(engine.fetch("bad", Cancelled()), engine.fetch("good", slow), let_slow_go())
    assert isinstance(bad, SWRError)
    assert "cancelled from within" in str(bad)
    assert good.value == 1
    await engine.aclose()


@pytest.mark.parametrize("error", [SystemExit(3), KeyboardInterrupt(), BaseException("own")])
async def test_what_is_no_exception_reaches_the_caller_and_no_other_load(process, error):
    slow = Job()

    class Raises(Job):
        async def run(self, load):
            raise error

    class Late(Job):
        async def run(self, load):
            await super().run(load)
            raise error

    good, _ = await gather(process.engine.fetch("good", slow), let_go(slow))
    with pytest.raises(type(error)):
        await process.engine.fetch("bad", Raises())
    assert (await process.engine.fetch("late", Late())).value == 1
    await settle()
    assert good.value == 1
    assert (await process.engine.fetch("after", Job())).value == 1


async def test_a_fallback_that_a_tag_outdated_is_none_for_the_next_flight_either(process, clock):
    """A flight that was overtaken must not hand what it knew to the one that comes after it."""
    job = Job(lambda run: run if run <= 2 else ValueError("down"), Policy(60, 0, 3600, tags=("t",)))
    await process.engine.fetch("k", job)
    clock.advance(61)

    async def invalidate():
        await process.engine.invalidate_tag("t")

    job.before_store = invalidate
    with pytest.raises(ValueError, match="down"):
        await process.engine.fetch("k", job)


async def test_closing_twice_at_once(clock):
    async with fleet(1, clock) as (process,):
        await process.engine.fetch("k", Job())
        assert await gather(process.engine.aclose(), process.engine.aclose()) == [None, None]


def test_a_loop_that_ended_without_a_word_leaves_nothing_to_wait_for():
    import asyncio

    # The lease of the load that was left behind ends by itself, as that of a process that died.
    engine = Engine(MemoryStore(), lease_for=0.05)

    async def forever():
        job = Job()
        job.gate = anyio.Event()
        with anyio.move_on_after(0.01):
            await engine.fetch("k", job)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(forever())
    tasks = asyncio.all_tasks(loop)

    async def again():
        with anyio.fail_after(60):
            return (await engine.fetch("k", Job())).value

    assert asyncio.run(again()) == 1
    for task in tasks:
        task.cancel()
    loop.run_until_complete(asyncio.gather(*tasks, return_exceptions=True))
    loop.close()


async def test_a_task_of_the_cache_that_fails_is_logged_and_ends_no_other(process, caplog):
    async def boom():
        raise RuntimeError("boom")

    await process.engine.ready()
    process.engine._tasks.start(boom)
    await settle()
    assert "a background task failed" in caplog.text
    assert (await process.engine.fetch("k", Job())).value == 1


def test_a_loop_that_ends_late_ends_nothing_of_its_successors():
    cache = Cache()
    runs = []

    async def load():
        runs.append(1)
        await anyio.sleep(0.05)
        return len(runs)

    with asyncio.Runner() as second:
        with asyncio.Runner() as first:
            assert first.run(cache.get_or_load("one", load, Policy(60))).value == 1

            async def begin():
                return asyncio.create_task(cache.get_or_load("two", load, Policy(60)))

            task = second.run(begin())

        async def end():
            joined = await cache.get_or_load("two", load, Policy(60))
            return (await task).value, joined.value

        assert second.run(end()) == (2, 2)
    assert len(runs) == 2


async def test_what_was_invalidated_in_vain_is_told_before_leases_are_given_back():
    """There may be many leases, and until it is told others answer what it outdates."""
    async with fleet(1, FakeClock()) as (process,):
        await process.engine.ready()
        process.link.set_down(True)
        await process.engine.fetch("a", Job())
        await process.engine.invalidate("k")
        await process.engine.invalidate_tag("t")
        process.link.calls.clear()
        process.link.set_down(False)
        await settle()
        assert process.link.calls == ["invalidate_tag", "invalidate", "release"]


async def test_loaders_that_wait_for_one_and_the_same_are_no_circle(process):
    """Found on two ways, it is looked at once."""
    process_job = Job()
    flights = [Flight(process.engine, key, process_job, None, 0) for key in "abcd"]
    here, one, other, both = flights
    one.waits_for, other.waits_for = {both: 1}, {both: 1}
    refuse_circles([Code(here)], [one, other])
    both.waits_for = {here: 1}
    with pytest.raises(ConfigurationError, match=r"[bc] -> d -> a"):
        refuse_circles([Code(here)], [one, other])
    here.done.set()
    refuse_circles([Code(here)], [one, other])


@pytest.mark.parametrize("stale", [True, False])
async def test_a_read_that_outlasts_the_cache(clock, monkeypatch, stale):
    """What was found is an answer anyway; what would have to be loaded is nobody's to load any more."""
    async with fleet(1, clock) as (process,):
        job, asked, answered = Job(), anyio.Event(), anyio.Event()
        if stale:
            await process.engine.fetch("k", job)
            clock.advance(61)
        store, read, results = process.engine.store, process.engine.store.read, []

        async def late(key, codec):
            found = await read(key, codec)
            asked.set()
            await answered.wait()
            return found

        async def reader():
            try:
                results.append((await process.engine.fetch("k", job)).value)
            except SWRError as error:
                results.append(str(error))

        monkeypatch.setattr(store, "peek", lambda key: None)
        monkeypatch.setattr(store, "read", late)
        async with anyio.create_task_group() as group:
            group.start_soon(reader)
            await asked.wait()
            await process.engine.aclose()
            answered.set()
        assert results == [1 if stale else "the cache was closed while 'k' was asked for"]
        assert job.runs == int(stale)


async def test_a_loader_that_closes_the_cache_it_is_loaded_for(clock):
    async with fleet(1, clock) as (process,):
        job = Job()
        job.before_store = process.engine.aclose
        with pytest.raises(ConfigurationError, match="the loader of 'k' closes the cache that waits for it"):
            await process.engine.fetch("k", job)
        job.before_store = None
        assert (await process.engine.fetch("k", job)).value == 2


async def test_a_loader_that_closes_another_cache(clock):
    async with fleet(2, clock) as (one, other):
        assert (await other.engine.fetch("k", Job())).value == 1
        job = Job()
        job.before_store = other.engine.aclose
        assert (await one.engine.fetch("mine", job)).value == 1


def test_a_closing_that_another_event_loop_overtakes_takes_nothing_from_it():
    cache = Cache()
    gate: list[asyncio.Event] = []
    first, second = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def begin() -> asyncio.Task[None]:
        gate.append(asyncio.Event())
        begun = asyncio.Event()

        async def load() -> int:
            begun.set()
            await gate[0].wait()
            return 1

        reading = asyncio.ensure_future(cache.get_or_load("a", load, Policy(60)))
        await begun.wait()
        closing = asyncio.ensure_future(cache.aclose())
        # It waits for the load.
        await settle()
        assert not closing.done()
        reading.add_done_callback(lambda done: done.exception())
        return closing

    async def load_here() -> int:
        return 2

    async def end(closing: "asyncio.Task[None]") -> None:
        gate[0].set()
        await closing

    async def read() -> int:
        return (await cache.get_or_load("b", load_here, Policy(60))).value

    try:
        closing = first.run_until_complete(begin())
        assert second.run_until_complete(read()) == 2
        first.run_until_complete(end(closing))
        assert second.run_until_complete(read()) == 2
        second.run_until_complete(cache.aclose())
    finally:
        first.close()
        second.close()


async def test_a_flight_that_was_notified_before_it_waits_goes_on_at_once(cache):
    flight = Flight(cache.engine.runtime, "k", Job(), None, 0)
    flight.notify()
    with anyio.fail_after(60):
        await flight.notification()


async def test_a_loaded_value_is_not_given_up_however_long_its_commit_takes(clock):
    store = FlakyStore(MemoryStore(clock=clock))
    engine = Engine(store, lease_for=0.03, clock=clock)

    async def until_the_load_would_be_given_up():
        await until(lambda: store.calls.count("renew") > 4 * LIVES)

    store.before["commit"] = until_the_load_would_be_given_up
    with anyio.fail_after(60):
        assert (await engine.fetch("k", Job())).value == 1
    await engine.aclose()

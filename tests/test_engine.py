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
    async def test_key_is_missing_then_fresh_then_stale_then_fresh_again(self, process, clock):
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
    async def test_thousand_readers_of_a_missing_key_share_one_load(self, process):
        job = Job()
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(1000)))
        assert job.runs == 1
        assert {(outcome.value, outcome.state) for outcome in outcomes[1:]} == {(1, State.MISSING)}

    async def test_thousand_readers_of_a_stale_key_are_answered_before_its_only_refresh(self, process, clock):
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

    async def test_stale_hit_returns_before_the_store_answers(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        clock.advance(61)
        hung = anyio.Event()
        process.link.before = dict.fromkeys(("read", "acquire"), hung.wait)
        with anyio.fail_after(60):
            assert (await process.engine.fetch("k", job)).state is State.STALE
        hung.set()
        await settle()

    async def test_reader_waits_for_a_load_when_all_deadlines_have_passed(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        clock.advance(3660)
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.MISSING)

    async def test_none_and_empty_values_are_stored_and_hit(self, process):
        for key, value in (("none", None), ("list", []), ("zero", 0)):
            job = Job(lambda run, value=value: value)
            for state in (State.MISSING, State.FRESH):
                outcome = await process.engine.fetch(key, job)
                assert (outcome.value, outcome.state) == (value, state)
            assert job.runs == 1

    async def test_waiting_readers_receive_value_that_expired_during_its_load(self, process, clock):
        job = Job(policy=Policy(5))

        async def sleep():
            clock.advance(10)

        job.before_store = sleep
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(3)))
        assert [outcome.value for outcome in outcomes[1:]] == [1, 1, 1]
        assert outcomes[1].age == 10

    async def test_no_cache_limit_makes_the_reader_wait_for_a_load(self, process):
        job = Job()
        await process.engine.fetch("k", job)
        outcome = await process.engine.fetch("k", job, Limits(no_cache=True))
        assert (outcome.value, outcome.state) == (2, State.MISSING)

    async def test_open_engine_rejects_a_second_event_loop(self, clock):
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

    async def test_job_that_ends_without_a_value_raises_error(self, process):
        class Idle(Job):
            async def run(self, load):
                pass

        with pytest.raises(SWRError, match="without a value"):
            await process.engine.fetch("k", Idle())

    async def test_failure_after_storing_is_logged_and_the_value_is_returned(self, process, caplog):
        class Late(Job):
            async def run(self, load):
                await super().run(load)
                raise RuntimeError("late")

        assert (await process.engine.fetch("k", Late())).value == 1
        await settle()
        assert "late" in caplog.text


class TestFailures:
    async def test_each_reader_of_a_missing_key_receives_its_own_copy_of_the_error(self, process):
        error = ZeroDivisionError("x")
        job = Job(lambda run: error)
        results = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(5)))
        assert {repr(result) for result in results[1:]} == {repr(error)}
        # Each has one of its own, and the last of them the loader's.
        assert len({id(result) for result in results[1:]}) == 5
        assert error in results
        assert job.runs == 1

    async def test_error_of_a_load_is_not_cached(self, process):
        job = Job(lambda run: ValueError("first") if run == 1 else run)
        with pytest.raises(ValueError, match="first"):
            await process.engine.fetch("k", job)
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_failed_refresh_keeps_the_stale_entry_and_backs_off(self, process, clock, caplog):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(61)
        for _ in range(10):
            outcome = await process.engine.fetch("k", job)
            assert (outcome.value, outcome.state, outcome.error) == (1, State.STALE, None)
            await settle()
        assert job.runs == 2
        assert "down" in caplog.text

    async def test_failure_within_stale_if_error_falls_back_and_returns_the_error(self, process, clock):
        error = ValueError("down")
        job = Job(lambda run: run if run == 1 else error)
        await process.engine.fetch("k", job)
        clock.advance(660)
        for _ in range(3):
            outcome = await process.engine.fetch("k", job)
            assert (outcome.value, outcome.state, repr(outcome.error)) == (1, State.STALE, repr(error))
            assert outcome.age == 660
        assert job.runs == 2

    async def test_load_is_tried_again_after_backoff(self, process, clock, monkeypatch):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(660)
        assert (await process.engine.fetch("k", job)).value == 1
        process.engine.backoffs.clear()
        clock.advance(2)
        assert (await process.engine.fetch("k", job)).value == 3

    async def test_failure_after_all_deadlines_reaches_the_reader_without_backoff(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError(str(run)))
        await process.engine.fetch("k", job)
        clock.advance(3660)
        for run in (2, 3):
            with pytest.raises(ValueError, match=str(run)):
                await process.engine.fetch("k", job)

    async def test_backoff_after_a_failure_holds_for_all_processes(self, two, clock, caplog):
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

    async def test_backoff_grows_from_one_second_to_sixty(self, process, clock):
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


def test_wait_for_a_flight_is_recorded_until_both_nested_waits_end():
    outer, inner = (Flight(None, key, Job(), None, 0) for key in ("outer", "inner"))
    with loading(outer):
        with waiting_for((inner,)):
            with waiting_for((inner,)):
                assert inner.waiters == 2
            assert outer.waits_for == {inner: 1}
        assert outer.waits_for == {}


class TestFleet:
    async def test_readers_in_eight_processes_share_one_load_of_a_missing_key(self, clock):
        async with fleet(8, clock) as processes:
            job = Job()
            readers = (process.engine.fetch("k", job) for process in processes for _ in range(50))
            outcomes = await gather(let_go(job), *readers)
            assert job.runs == 1
            assert {(outcome.value, outcome.state) for outcome in outcomes[1:]} == {(1, State.MISSING)}

    @pytest.mark.uncounted
    async def test_eight_processes_refresh_a_stale_key_once_each_time(self, clock):
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

    async def test_process_waiting_for_the_lease_loads_when_the_holder_fails(self, two):
        one, other = two
        failing, job = Job(lambda run: ValueError("mine")), Job()
        failing.gate = anyio.Event()

        async def second():
            await failing.begun.wait()
            return await other.engine.fetch("k", job)

        first, outcome, _ = await gather(one.engine.fetch("k", failing), second(), open_gate(failing))
        assert isinstance(first, ValueError)
        assert (outcome.value, outcome.state) == (1, State.MISSING)

    async def test_process_waiting_for_the_lease_takes_value_that_expired_meanwhile(self, two, clock):
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

    async def test_refused_refresh_is_not_requested_again_before_a_notification(self, two, clock):
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

    async def test_reader_who_joins_a_refused_refresh_receives_the_value_of_the_holder(self, two, clock):
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

    async def test_value_refreshed_by_one_process_is_read_by_others_at_once(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        await one.engine.refresh("k", job)
        outcome = await other.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.FRESH)

    async def test_entry_in_l1_keeps_its_original_creation_time(self, two, clock):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        clock.advance(50)
        assert (await other.engine.fetch("k", job)).age == 50
        clock.advance(10)
        assert (await other.engine.fetch("k", job)).state is State.STALE


class TestRefresh:
    async def test_refresh_loads_although_the_entry_is_fresh(self, process):
        job = Job()
        await process.engine.fetch("k", job)
        outcome = await process.engine.refresh("k", job)
        assert (outcome.value, outcome.state) == (2, State.MISSING)
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_refresh_does_not_join_a_load_that_began_earlier(self, process):
        job = Job()
        job.gate = anyio.Event()

        async def refresh():
            await job.begun.wait()
            return await process.engine.refresh("k", job)

        first, second, _ = await gather(process.engine.fetch("k", job), refresh(), open_gate(job))
        assert (first.value, second.value) == (1, 2)

    async def test_forty_refreshes_at_once_cause_two_loads(self, clock):
        async with fleet(4, clock) as processes:
            job = Job()
            job.gate = anyio.Event()

            outcomes = await gather(*(p.engine.refresh("k", job) for p in processes for _ in range(10)), open_gate(job))
            assert job.runs == 2
            assert {outcome.value for outcome in outcomes[:-1]} == {1, 2}

    async def test_failed_refresh_raises_its_error_and_keeps_the_entry(self, process):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        with pytest.raises(ValueError, match="down"):
            await process.engine.refresh("k", job)
        assert (await process.engine.fetch("k", job)).value == 1

    async def test_refresh_ignores_backoff_after_a_failure(self, process, clock):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(61)
        await process.engine.fetch("k", job)
        await settle()
        assert (await process.engine.refresh("k", job)).value == 3


class TestInvalidation:
    @pytest.mark.parametrize("by", ["tag", "everything", "another process"])
    async def test_reader_after_an_invalidation_does_not_wait_for_an_earlier_load(self, two, by):
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

    async def test_invalidation_of_another_tag_lets_readers_join_the_running_load(self, process):
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
    async def test_invalidation_outdates_stored_entries_and_running_loads(self, two, how, where):
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

    async def test_load_invalidated_three_times_is_returned_but_not_stored(self, process):
        job = Job()

        async def invalidate():
            await process.engine.invalidate("k")

        job.before_store = invalidate
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, job.runs) == (3, 3)
        assert await process.store.read("k", job.codec) is None
        outcome = await process.engine.refresh("k", job)
        assert (outcome.value, job.runs) == (6, 6)

    async def test_failed_load_does_not_fall_back_to_an_entry_invalidated_meanwhile(self, process, clock):
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

    async def test_invalidation_of_unrelated_tag_causes_no_second_lease_request(self, process):
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

    async def test_invalidation_by_another_process_drops_the_entry_from_l1(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        await other.engine.fetch("k", job)
        await other.engine.invalidate("k")
        assert one.store.peek("k") is None
        assert (await one.engine.fetch("k", job)).value == 2


class TestCancellation:
    async def test_cancelled_reader_does_not_cancel_the_load_for_others(self, process):
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

    async def test_load_left_by_its_only_reader_is_stored(self, process):
        job = Job()
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(process.engine.fetch, "k", job)
            await job.begun.wait()
            group.cancel_scope.cancel()
        job.gate.set()
        await settle()
        assert (await process.engine.fetch("k", job)).state is State.FRESH

    async def test_close_waits_for_loads_that_end_in_time(self, clock):
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

    async def test_close_logs_the_loads_that_it_cancels_in_one_line(self, process, caplog):
        """The line explains to an operator why a deploy takes long."""
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

    async def test_close_cancels_late_loads_and_releases_their_leases(self, clock):
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

    async def test_close_releases_a_lease_whose_grant_has_not_arrived_yet(self, clock):
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

    async def test_engine_opens_again_after_close(self, clock):
        engine = Engine(MemoryStore(clock=clock), clock=clock)
        for value in (1, 1):
            assert (await engine.fetch("k", Job())).value == value
            await engine.aclose()


class TestUnreachableStore:
    async def test_readers_in_one_process_share_a_load_while_the_store_is_unreachable(self, process):
        process.link.is_down = True
        job = Job()
        outcomes = await gather(let_go(job), *(process.engine.fetch("k", job) for _ in range(100)))
        assert {outcome.value for outcome in outcomes[1:]} == {1}
        assert job.runs == 1

    async def test_value_loaded_during_an_outage_is_dropped_when_the_store_is_reachable(self, process):
        job = Job()
        await process.engine.fetch("other", job)
        process.link.set_down(True)
        assert (await process.engine.fetch("k", job)).value == 2
        assert (await process.engine.fetch("k", job)).state is State.FRESH
        process.link.set_down(False)
        assert (await process.engine.fetch("k", job)).value == 3

    @pytest.mark.parametrize(
        ("codec", "is_given"), [(ANY, "theirs"), (Codec(str), "ours")], ids=["same type", "other type"]
    )
    async def test_load_without_lease_yields_to_a_value_of_its_type_stored_meanwhile(self, two, codec, is_given):
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

    async def test_entry_in_l1_is_served_within_its_deadlines_during_an_outage(self, process, clock):
        job = Job()
        await process.engine.fetch("k", job)
        process.link.set_down(True)
        assert (await process.engine.fetch("k", job)).state is State.FRESH
        clock.advance(61)
        assert (await process.engine.fetch("k", job)).state is State.STALE
        await settle()
        assert (await process.engine.fetch("k", job)).value == 2

    async def test_failing_loader_backs_off_during_an_outage(self, process, clock):
        job = Job(lambda run: run if run == 1 else ValueError("down"))
        await process.engine.fetch("k", job)
        process.link.set_down(True)
        clock.advance(660)
        for _ in range(3):
            assert (await process.engine.fetch("k", job)).value == 1
        assert job.runs == 2

    async def test_entry_in_l1_is_rechecked_after_an_outage_before_it_is_served(self, two, clock):
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

    async def test_invalidation_during_an_outage_holds_here_at_once_and_elsewhere_after_it(self, two):
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

    async def test_clear_during_an_outage_holds_here_at_once_and_elsewhere_after_it(self, two):
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

    async def test_too_many_pending_invalidations_are_replayed_as_one_clear(self, two, monkeypatch):
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

    async def test_load_invalidated_during_an_outage_is_not_kept_in_l1(self, process):
        await process.engine.ready()
        process.link.set_down(True)
        for invalidate in (lambda: process.engine.invalidate("k"), lambda: process.engine.invalidate_tag("t")):
            job = Job(policy=Policy(60, tags=("t",)))
            job.before_store = invalidate
            assert (await process.engine.fetch("k", job)).value == 3
            assert process.store.peek("k") is None

    async def test_load_without_lease_is_not_kept_after_a_refresh_and_an_invalidation(self, process):
        """The invalidation cannot mark the flight as superseded, because the refresh has replaced it."""
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

    async def test_older_load_without_lease_does_not_replace_a_newer_one(self, process, clock):
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
    async def test_lost_reply_neither_fails_the_read_nor_leaves_a_lease(self, two, operation, caplog):
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

    async def test_read_returns_its_value_if_the_store_fails_at_commit(self, process):
        calls = []

        async def refuse():
            calls.append(1)
            process.link.is_down = True

        process.link.before["commit"] = refuse
        job = Job()
        assert (await process.engine.fetch("k", job)).value == 1
        assert calls == [1]


class TestLeases:
    async def test_long_load_keeps_its_lease_by_renewal(self, two, clock):
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
    async def test_notification_before_a_lease_refusal_shortens_its_backoff(self, two, clock, ends):
        """The holder releases the lease while the refusal is on its way to a background refresh."""
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

    async def test_commit_is_rejected_after_the_lease_has_expired(self, two, clock):
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

    async def test_load_is_repeated_after_failed_renewals_and_an_invalidation(self, process, clock):
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
    """Each test holds one operation and lets something happen meanwhile."""

    async def test_commit_whose_reply_is_lost_does_not_replace_a_later_served_value(self, two):
        """If the process kept its own value, its readers would return to an older value."""
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

    async def test_entry_read_before_an_invalidation_is_not_served(self, two):
        """The reply to a GET sent before an invalidation does not fill the local cache."""
        one, other = two
        job = Job()
        await other.engine.fetch("k", job)

        async def invalidate():
            one.link.after.clear()
            await other.engine.invalidate("k")

        one.link.after["read"] = invalidate
        assert (await one.engine.fetch("k", job)).value == 2
        assert (await one.engine.fetch("k", job)).state is State.FRESH

    async def test_entry_found_by_a_lease_request_before_an_invalidation_is_not_served(self, two):
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

    async def test_load_is_repeated_if_an_invalidation_arrives_before_the_commit_reply(self, two):
        one, other = two
        job = Job()

        async def invalidate():
            one.link.after.clear()
            await other.engine.invalidate("k")

        one.link.after["commit"] = invalidate
        assert (await one.engine.fetch("k", job)).value == 2

    async def test_reader_receives_value_committed_while_its_read_was_under_way(self, process):
        job = Job()
        await process.engine.ready()

        async def refresh():
            process.link.after.clear()
            await process.engine.refresh("k", job)

        process.link.after["read"] = refresh
        outcome = await process.engine.fetch("k", job)
        assert (outcome.value, outcome.state, job.runs) == (1, State.FRESH, 1)

    async def test_stale_entry_found_by_a_lease_request_is_loaded_again(self, two, clock):
        """An entry that is already stale is a reason to load."""
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

    async def test_pending_invalidation_of_a_key_fences_a_running_load(self, process):
        job = Job()

        async def in_vain():
            job.before_store = None
            process.link.is_down = True
            await process.engine.store.invalidate("k")
            process.link.is_down = False

        job.before_store = in_vain
        assert (await process.engine.fetch("k", job)).value == 2
        assert process.store._pending._keys == {}

    async def test_pending_invalidation_of_a_tag_fences_the_commit(self, process):
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

    async def test_invalidation_repeated_during_its_replay_is_replayed_again(self, process):
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

    async def test_failed_replay_of_an_invalidation_is_tried_again(self, process, monkeypatch):
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

    async def test_number_of_remembered_unreleased_leases_is_bounded(self, process, monkeypatch):
        monkeypatch.setattr("swr.stores.pending._MOST", 2)
        await process.engine.ready()
        process.link.is_down = True
        for number in range(5):
            await process.engine.fetch(str(number), Job())
        assert len(process.store._pending._releases) == 2

    async def test_reader_loads_in_spite_of_backoff_after_its_fallback_has_expired(self, process, clock):
        job = Job(lambda run: run if run != 2 else ValueError("down"))
        await process.engine.fetch("k", job)
        clock.advance(660)
        assert (await process.engine.fetch("k", job)).error is not None
        clock.advance(3600)
        assert (await process.engine.fetch("k", job)).value == 3

    async def test_reader_loads_in_spite_of_backoff_after_its_fallback_is_invalidated(self, two, clock):
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

    async def test_reader_who_joins_a_failing_refresh_falls_back_to_the_entry_it_found(self, two, clock):
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

    async def test_late_notification_of_an_invalidation_ends_the_fallback_of_a_newer_load(self, two, clock):
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

    async def test_load_superseded_by_a_refresh_does_not_fall_back_to_an_invalidated_entry(self, two, clock):
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

    async def test_close_ends_a_load_without_lease_with_an_error(self, clock):
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

    async def test_load_without_its_own_limit_is_given_up_after_ten_lease_periods(self, process):
        process.engine.runtime.lease_for = 0.03
        job = Job()
        job.gate = anyio.Event()
        with anyio.fail_after(30), pytest.raises(LoadTimeout, match=r"'k' was given up after 0.3 s"):
            await process.engine.fetch("k", job)
        assert process.link.calls.count("renew") == 29

    async def test_load_without_any_limit_is_stored_after_twenty_lease_periods(self, two):
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

    async def test_load_whose_lease_is_lost_is_given_up_at_its_limit(self, process):
        process.engine.runtime.lease_for = 0.03
        job = Job()
        job.gate = anyio.Event()

        async def lose():
            await job.begun.wait()
            process.link.store._holds.clear()

        errors = await gather(process.engine.fetch("k", job), lose())
        assert isinstance(errors[0], LoadTimeout)

    async def test_failed_load_is_not_given_up_while_its_lease_is_released(self, process):
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

    async def test_read_during_the_last_steps_of_close_opens_the_engine_again(self, process):
        """The read waits for the end of the close, and so does a second close."""
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

    async def test_job_that_runs_on_after_storing_reports_no_rejected_renewal(self, process):
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

    async def test_load_goes_on_while_renewals_find_the_store_unreachable(self, process, caplog):
        process.engine.runtime.lease_for = 0.03
        gone = []
        process.engine.events.subscribe(gone.append, (RenewalRejected,))

        async def fail():
            raise StoreUnavailable("away")

        process.link.before["renew"] = fail

        class Long(Job):
            async def run(self, load):
                while process.link.calls.count("renew") < 3:
                    await anyio.sleep(0.005)
                await super().run(load)

        with anyio.fail_after(60):
            assert (await process.engine.fetch("k", Long())).value == 1
        assert not gone
        assert "a background task failed" not in caplog.text


class TestOddLoaders:
    async def test_close_gives_up_a_loader_that_ignores_cancellation(
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

    async def test_loader_that_waits_for_its_own_key_raises_configuration_error(self, process):
        """The load would wait for itself, and all readers with it."""
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

    async def test_loader_can_read_another_key_and_another_cache(self, process):

        class Asks(Job):
            async def run(self, load):
                inner = await process.engine.fetch("inner", Job())
                elsewhere = await Engine(MemoryStore()).fetch("k", Job())
                await load.store((inner.value, elsewhere.value), POLICY)

        assert (await process.engine.fetch("k", Asks())).value == (1, 1)

    async def test_task_started_by_a_loader_can_read_its_key_after_the_load(self, process):
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


async def test_loader_cancelled_from_within_fails_without_affecting_other_loads():
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
async def test_base_exception_reaches_its_caller_and_no_other_load(process, error):
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


async def test_flight_after_a_superseded_one_does_not_fall_back_to_an_outdated_entry(process, clock):
    """A superseded flight must not pass its fallback to the next flight."""
    job = Job(lambda run: run if run <= 2 else ValueError("down"), Policy(60, 0, 3600, tags=("t",)))
    await process.engine.fetch("k", job)
    clock.advance(61)

    async def invalidate():
        await process.engine.invalidate_tag("t")

    job.before_store = invalidate
    with pytest.raises(ValueError, match="down"):
        await process.engine.fetch("k", job)


async def test_two_closes_at_once_both_succeed(clock):
    async with fleet(1, clock) as (process,):
        await process.engine.fetch("k", Job())
        assert await gather(process.engine.aclose(), process.engine.aclose()) == [None, None]


def test_load_of_an_ended_event_loop_does_not_block_the_next_loop():
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


async def test_failed_background_task_is_logged_and_the_engine_still_loads(process, caplog):
    async def boom():
        raise RuntimeError("boom")

    await process.engine.ready()
    process.engine._tasks.start(boom)
    await settle()
    assert "a background task failed" in caplog.text
    assert (await process.engine.fetch("k", Job())).value == 1


def test_event_loop_that_ends_late_does_not_end_loads_of_its_successor():
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


async def test_pending_invalidations_are_replayed_before_leases_are_released():
    """There may be many leases, and other processes serve invalidated values until the replay."""
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


async def test_two_loads_waiting_for_the_same_flight_are_not_a_deadlock(process):
    """The search reaches the flight on two ways and visits it once."""
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
async def test_read_during_close_returns_a_stored_value_or_raises_an_error(clock, monkeypatch, stale):
    """An entry that was found is served; a missing value cannot be loaded any more."""
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


async def test_loader_that_closes_its_own_cache_raises_configuration_error(clock):
    async with fleet(1, clock) as (process,):
        job = Job()
        job.before_store = process.engine.aclose
        with pytest.raises(ConfigurationError, match="the loader of 'k' closes the cache that waits for it"):
            await process.engine.fetch("k", job)
        job.before_store = None
        assert (await process.engine.fetch("k", job)).value == 2


async def test_loader_can_close_another_cache(clock):
    async with fleet(2, clock) as (one, other):
        assert (await other.engine.fetch("k", Job())).value == 1
        job = Job()
        job.before_store = other.engine.aclose
        assert (await one.engine.fetch("mine", job)).value == 1


def test_unfinished_close_in_one_event_loop_leaves_a_second_loop_usable():
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


async def test_flight_notified_before_it_waits_continues_at_once(cache):
    flight = Flight(cache.engine.runtime, "k", Job(), None, 0)
    flight.notify()
    with anyio.fail_after(60):
        await flight.notification()


async def test_load_is_not_given_up_during_a_long_commit(clock):
    store = FlakyStore(MemoryStore(clock=clock))
    engine = Engine(store, lease_for=0.03, clock=clock)

    async def until_the_load_would_be_given_up():
        await until(lambda: store.calls.count("renew") > 4 * LIVES)

    store.before["commit"] = until_the_load_would_be_given_up
    with anyio.fail_after(60):
        assert (await engine.fetch("k", Job())).value == 1
    await engine.aclose()

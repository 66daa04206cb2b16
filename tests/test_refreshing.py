"""Refreshers over real servers: a fleet's rounds, its queue, its leader, and what is left when workers die."""

import asyncio
import contextlib
import itertools
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter, defaultdict
from contextlib import asynccontextmanager

import pytest

from swr import Cache, ConfigurationError, Refresher, StoreUnavailable
from swr.events import RoundEnded, RoundQueued
from swr.refreshers import QueueStatus
from swr.refreshers.queue import scripts, wakes
from swr.refreshers.queue.queue import Queue
from swr.refreshers.queue.wakes import tag_of
from swr.stores.base import Kind, Notification
from tests.refreshing import FOR_GOOD
from tests.servers import Server, kinds
from tests.test_redis import until

pytestmark = pytest.mark.anyio
FULL = os.environ.get("SWR_FULL") == "1"
# Every command is in the server's file before it is answered: what was acknowledged outlives the server.
AOF = ("--appendonly", "yes", "--appendfsync", "always")
# Seconds after which a test gives up what it waits for: many, for a busy machine is not a failure.
PATIENCE = 120


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=["streams", "list"])
def backend(request):
    return request.param


class Worker:
    """What represents one process: a cache, a loader that counts, and a refresher."""

    def __init__(self, server: Server, loads: Counter, every=FOR_GOOD, strategy="queue", groups=12, **options):
        self.cache = Cache(server.url, timeout=options.pop("timeout", 2))
        self.loads = loads
        self.answer = lambda group: group
        self.gate = None
        self.told = []

        @self.cache.cached("ranking:{group}", fresh_for=3600)
        async def ranking(group: str) -> str:
            loads[group] += 1
            if self.gate is not None:
                await self.gate.wait()
            answer = self.answer(group)
            if isinstance(answer, Exception):
                raise answer
            return answer

        self.ranking = ranking
        self.cache.subscribe(self.told.append, RoundQueued, RoundEnded)
        self.refresher = Refresher(
            ranking, options.pop("keys", [f"g{n}" for n in range(groups)]), every, strategy, **options
        )

    @property
    def queued(self) -> list[RoundQueued]:
        return [event for event in self.told if isinstance(event, RoundQueued)]


@asynccontextmanager
async def working(*workers: Worker):
    for worker in workers:
        await worker.cache.__aenter__()
        await worker.refresher.__aenter__()
    try:
        yield
    finally:
        for worker in workers:
            await worker.refresher.aclose()
            await worker.cache.aclose()


def _reached(loads: Counter, number: int):
    return lambda: loads["g"] == number


def _queued(worker: Worker, number: int):
    return lambda: len(worker.queued) >= number


def _done(worker: Worker) -> list[int]:
    return [event.loaded for event in worker.told if isinstance(event, RoundEnded)]


async def status(worker: Worker) -> QueueStatus:
    return await worker.refresher.status()


async def idle(worker: Worker) -> None:
    """Wait until nothing is to be done."""
    async with asyncio.timeout(PATIENCE):
        while True:
            now = await status(worker)
            if now.round is not None and (now.queued, now.running, now.waiting) == (0, 0, 0):
                return
            await asyncio.sleep(0.01)


class TestLocks:
    async def test_fleet_loads_each_group_once_per_round_with_at_most_two_commands_each(self, server: Server):
        loads = Counter()
        workers = [Worker(server, loads, strategy="locks", groups=400) for _ in range(4)]
        async with working(*workers):
            await until(lambda: all(worker.told for worker in workers))
        assert set(loads.values()) == {1}
        assert len(loads) == 400
        rounds = [worker.told[0] for worker in workers]
        assert sum(ended.loaded for ended in rounds) == 400
        # One commit a group, and the walks of all four; each asking for itself would be 5 a group.
        assert sum(ended.commands for ended in rounds) <= 2 * 400


class TestWakes:
    """While one of these tests runs, no worker looks at the queue without a message, except once at its start."""

    # Of a worker that does nothing besides: it says once that it lives, and asks once who leads.
    QUIET = {"reclaim_after": 1e6, "lead_for": 1e6, "keys": []}

    @pytest.fixture(autouse=True)
    def _no_looks_without_a_message(self, monkeypatch, no_heartbeats):
        monkeypatch.setattr("swr.refreshers.queue.looks._EVERY", 1e9)

    @staticmethod
    async def idle_ones(queue: Queue) -> list[int]:
        return [await queue.store.commands.ask(keys[7], "ZCARD", keys[7]) for keys in queue._keys]

    async def until_idle(self, queue: Queue, *numbers: int) -> None:
        async with asyncio.timeout(PATIENCE):
            while await self.idle_ones(queue) != list(numbers):
                await asyncio.sleep(0.01)

    @staticmethod
    async def enqueue(queue: Queue, *groups: str) -> None:
        # After the beginning of the round that the leader has enqueued.
        newer_than, epoch = await queue.store.now(), (await queue.status()).epoch
        tasks = [(f"ranking:{group}", newer_than, (group,)) for group in groups]
        assert (await queue.enqueue(f"{epoch:016d}", tasks))[0] == len(groups)

    @pytest.mark.uncounted
    async def test_one_task_wakes_only_one_of_many_idle_workers(self, server: Server, backend):
        loads = Counter()
        workers = [Worker(server, loads, backend=backend, **self.QUIET) for _ in range(20)]
        watcher = Worker(server, loads, backend=backend, **self.QUIET)
        async with watcher.cache, working(*workers):
            await watcher.cache.engine.ready()
            queue = watcher.refresher._queue()
            await idle(watcher)
            await self.until_idle(queue, 20)
            sent = sum(worker.cache.engine.store.sent for worker in workers)
            for number in range(10):
                await self.enqueue(queue, f"g{number}")
                await until(_loaded(loads, f"g{number}", 1), PATIENCE)
                await idle(watcher)
                await self.until_idle(queue, 20)
            for worker in workers:
                worker.answer = _failing_once(loads)
            # Nor do all look when a task may be tried again.
            await self.enqueue(queue, "failing")
            await until(_loaded(loads, "failing", 2), PATIENCE)
            await idle(watcher)
            await self.until_idle(queue, 20)
            sent = sum(worker.cache.engine.store.sent for worker in workers) - sent
        # The look, the lease, the commit, and what came of the task.
        assert sent <= 12 * 5

    async def test_task_whose_wake_notification_is_lost_is_loaded_at_the_next_look(
        self, server: Server, backend, monkeypatch
    ):
        monkeypatch.setattr("swr.refreshers.queue.looks._EVERY", 0.3)
        loads = Counter()
        worker = Worker(server, loads, backend=backend, **self.QUIET)
        queue = worker.refresher._queue()
        # Whoever is idle is forgotten at once: nobody is woken for anything.
        monkeypatch.setattr("swr.refreshers.queue.wakes.FUNCTIONS", wakes.FUNCTIONS + "note = function() end\n")
        async with working(worker):
            await idle(worker)
            await self.enqueue(queue, "g")
            await until(_loaded(loads, "g", 1), PATIENCE)

    async def test_worker_without_free_slots_has_another_worker_woken(self, server: Server):
        loads, gate = Counter(), asyncio.Event()
        full, other = (Worker(server, loads, at_once=2, shards=2, **self.QUIET) for _ in range(2))
        full.gate = other.gate = gate
        queue = full.refresher._queue()
        groups = [[f"g{n}" for n in range(50) if queue._shard(f"ranking:g{n}") == shard] for shard in queue.shards]
        async with working(full):
            await self.until_idle(queue, 1, 1)
            await idle(full)
            for number, group in enumerate(groups[0][:2], start=1):
                await self.enqueue(queue, group)
                await until(lambda number=number: len(loads) == number, PATIENCE)
            await self.until_idle(queue, 0, 1)
            async with working(other):
                await self.until_idle(queue, 1, 2)
                await self.enqueue(queue, groups[1][0])
                await until(lambda: len(loads) == 3, PATIENCE)
                # What is for another refresher, or for a shard that there was, concerns nobody here.
                consumer = other.refresher._running._consumer
                consumer._on_message(Notification(Kind.QUEUED, "another:0", 1, True, tag_of(consumer._name)))
                assert consumer._looks.due() == []
                # After messages were missed it looks at all.
                consumer._on_message(Notification(Kind.GAP))
                assert sorted(consumer._looks.due()) == [0, 1]
                gate.set()
                await idle(other)


def _loaded(loads: Counter, group: str, times: int):
    return lambda: loads[group] >= times


def _failing_once(loads: Counter):
    return lambda group: ValueError("no") if loads[group] == 1 else group


class TestQueue:
    @pytest.mark.uncounted
    async def test_three_workers_load_each_group_once_per_round(self, server: Server, backend):
        loads = Counter()
        workers = [Worker(server, loads, groups=200, backend=backend, at_once=8) for _ in range(3)]
        async with working(*workers):
            await until(lambda: any(worker.queued for worker in workers))
            await idle(workers[0])
            assert (await status(workers[0])).counts["done"] == 200
        rounds = [event for worker in workers for event in worker.queued]
        assert Counter(loads.values()) == {1: 200}
        assert [(event.new, event.merged, event.missed) for event in rounds] == [(200, 0, 0)]

    async def test_only_the_leader_enqueues_rounds_and_each_worker_reports_its_loads(self, server: Server):
        loads = Counter()
        workers = [Worker(server, loads, every=0.5, groups=60, at_once=4) for _ in range(3)]
        async with working(*workers):
            await until(lambda: all(any(_done(worker)) for worker in workers))
            # Before the leader leaves, and another one may begin.
            assert sorted(bool(worker.queued) for worker in workers) == [False, False, True]
        assert sum(sum(_done(worker)) for worker in workers) <= sum(loads.values())

    async def test_dirty_only_loads_just_the_marked_groups_after_the_first_round(self, server: Server, backend):
        loads = Counter()
        worker = Worker(server, loads, every=0.5, backend=backend, dirty_only=True)
        async with working(worker):
            await until(lambda: worker.queued)
            await idle(worker)
            assert set(loads.values()) == {1}
            for _ in range(1000):
                await worker.refresher.mark_dirty("g1", ("g2",))
            await until(lambda: loads["g2"] >= 2 and loads["g1"] >= 2)
            rounds = len(worker.queued)
            await until(lambda: len(worker.queued) >= rounds + 2)
        assert sum(loads[f"g{number}"] for number in range(3, 12)) == 9
        # As many as there were rounds while it was marked, at most.
        assert loads["g1"] <= len(worker.queued)

    async def test_later_rounds_load_only_changed_groups_and_ask_a_failed_changed_since_again(self, server: Server):
        loads, asked = Counter(), []

        def changed_since(moment):
            asked.append(moment)
            if len(asked) == 1:
                raise OSError("the database is away")
            yield from (["g3"] if len(asked) == 2 else [])

        worker = Worker(server, loads, every=0.4, changed_since=changed_since)
        async with working(worker):
            await until(lambda: len(asked) >= 4)
            await idle(worker)
        assert (loads["g3"], sum(loads.values())) == (2, 13)
        assert abs(asked[-1] - time.time()) < 60
        assert asked == sorted(asked)
        # The one that failed was asked again, since the same moment.
        assert asked[0] == asked[1]

    async def test_group_marked_dirty_during_its_load_is_loaded_again(self, server: Server, backend):
        loads = Counter()
        worker = Worker(server, loads, every=0.1, backend=backend, dirty_only=True, keys=["g"])
        async with working(worker):
            await until(lambda: loads["g"])
            await idle(worker)
            for before in range(1, 11, 2):
                worker.gate = asyncio.Event()
                await worker.refresher.mark_dirty("g")
                await until(_reached(loads, before + 1))
                await worker.refresher.mark_dirty("g")
                await until(_queued(worker, len(worker.queued) + 2))
                worker.gate.set()
                await until(_reached(loads, before + 2))
                await idle(worker)

    async def test_task_whose_entry_is_already_current_is_not_loaded(self, server: Server, backend):
        loads = Counter()
        worker = Worker(server, loads, backend=backend, keys=["g"])
        async with worker.cache:
            await worker.ranking("g")
        async with working(worker):
            await idle(worker)
            assert (await status(worker)).counts["current"] == 1
        assert loads["g"] == 1

    async def test_failing_group_becomes_a_dead_letter_while_others_are_loaded(self, server: Server, backend, caplog):
        loads = Counter()
        worker = Worker(server, loads, backend=backend, deliveries=2, groups=5)
        worker.cache.engine.runtime.uniform = lambda low, high: 0.01
        worker.answer = lambda group: ValueError("broken") if group == "g3" else group
        async with working(worker):
            await until(lambda: loads["g3"] == 2)
            await idle(worker)
            (letter,) = await worker.refresher._queue().dead()
            assert (letter.key, letter.why, letter.tries) == ("ranking:g3", "ValueError: broken", 2)
            worker.answer = lambda group: group
            assert await worker.refresher._queue().retry() == 1
            await until(lambda: loads["g3"] == 3)
            await idle(worker)
        assert sum(loads.values()) == 7

    async def test_task_waits_for_another_load_of_its_key_without_counting_a_failure(self, server: Server, backend):
        loads = Counter()
        reader, worker = Worker(server, loads, strategy="read"), Worker(server, loads, backend=backend, keys=["g"])
        reader.gate = asyncio.Event()
        async with reader.cache:
            reading = asyncio.ensure_future(reader.ranking("g"))
            await until(lambda: loads["g"] == 1)
            async with working(worker):
                async with asyncio.timeout(PATIENCE):
                    while not (await status(worker)).waiting:
                        await asyncio.sleep(0.01)
                reader.gate.set()
                await reading
                await idle(worker)
                counts = (await status(worker)).counts
                assert (counts["current"], counts.get("failed")) == (1, None)
        assert loads["g"] == 1

    async def test_task_with_too_many_arguments_becomes_a_dead_letter(self, server: Server, backend):
        """Another version's, perhaps."""
        loads = Counter()
        worker = Worker(server, loads, backend=backend, deliveries=1, keys=["g"])
        async with worker.cache:
            queue = worker.refresher._queue()
            await queue.enqueue("0", [("ranking:old", 0, ("a", "b")), ("ranking:more", 0, ("more",))])
            async with working(worker):
                async with asyncio.timeout(PATIENCE):
                    while not await queue.dead():
                        await asyncio.sleep(0.01)
                await idle(worker)
                assert "too many positional arguments" in (await queue.dead())[0].why
        assert loads == Counter(g=1, more=1)

    async def test_marking_5000_groups_dirty_does_not_block_the_event_loop(self, server: Server):
        worker = Worker(server, Counter())
        turns, seen = 0, []

        async def others() -> None:
            nonlocal turns
            while True:
                turns += 1
                await asyncio.sleep(0)

        async def mark(groups) -> None:
            seen.append((len(groups), turns))

        async with worker.cache:
            worker.refresher._queue().mark = mark
            other = asyncio.create_task(others())
            await worker.refresher.mark_dirty("g")
            await worker.refresher.mark_dirty(*map(str, range(5000)))
            other.cancel()
        (_, before), (count, after) = seen
        assert count == 5000
        assert after - before > 20

    async def test_status_counts_dirty_marks_in_a_process_without_a_running_refresher(self, server: Server, backend):
        """The cache of such a process may not be open yet."""
        worker = Worker(server, Counter(), backend=backend)
        await worker.refresher.mark_dirty("a", "b")
        other = Worker(server, Counter(), backend=backend)
        async with contextlib.AsyncExitStack() as stack:
            for each in (worker, other):
                stack.push_async_callback(each.cache.aclose)
            held = await other.refresher.status()
        assert (held.name, held.backend, held.dirty, held.consumers) == ("ranking:group", backend, 2, {})

    async def test_batch_loader_loads_96_groups_in_at_most_six_calls(self, server: Server, backend):
        calls = []
        async with Cache(server.url, timeout=2) as cache:

            @cache.cached_many("many:{group}", fresh_for=3600)
            async def many(groups: list[str]) -> dict[str, int]:
                calls.append(len(groups))
                return dict.fromkeys(groups, 1)

            async with Refresher(many, [f"g{n}" for n in range(96)], FOR_GOOD, "queue", backend=backend, at_once=32):
                await until(lambda: sum(calls) == 96)
        assert len(calls) <= 6

    async def test_closing_hands_back_tasks_that_take_longer_than_drain_for(self, server: Server, backend):
        loads = Counter()
        one = Worker(server, loads, backend=backend, keys=["a", "b"], drain_for=0.05)
        other = Worker(server, loads, backend=backend, keys=["a", "b"])
        one.gate = asyncio.Event()
        async with one.cache:
            async with one.refresher:
                await until(lambda: len(loads) == 2)
            now = await status(one)
            assert (now.queued, now.running, now.consumers, now.leads_for) == (2, 0, {}, 0.0)
            one.gate.set()
            async with working(other):
                await idle(other)
                assert (await status(other)).counts["current"] == 2
        assert loads == Counter(a=1, b=1)

    async def test_closing_waits_for_running_loads_and_leaves_no_task(self, server: Server, backend):
        loads = Counter()
        worker = Worker(server, loads, backend=backend, groups=5)
        worker.gate = asyncio.Event()
        async with worker.cache:
            async with asyncio.TaskGroup() as group, worker.refresher:
                await until(lambda: len(loads) == 5)
                # Tasks may be taken before the leader has noted that the round is enqueued.
                while (await status(worker)).round is None:
                    await asyncio.sleep(0.01)
                closing = group.create_task(worker.refresher.aclose())
                await asyncio.sleep(0.05)
                assert not closing.done()
                worker.gate.set()
            await idle(worker)

    async def test_closing_hands_back_a_task_delivered_after_closing_began(self, server: Server, backend):
        """Tasks whose delivery arrives after closing has begun are no loads to be waited for."""
        worker = Worker(server, Counter(), backend=backend, keys=["a", "b"], at_once=2, drain_for=600)
        worker.gate = asyncio.Event()
        queue = worker.refresher._queue()
        take, answers, taken, gate = queue.take, [], asyncio.Event(), asyncio.Event()

        async def late(*args):
            answer = await take(*args)
            answers.extend(answer[1])
            if len(answers) == 2:
                taken.set()
                await gate.wait()
            return answer

        queue.take = late
        async with worker.cache, asyncio.timeout(60):
            await worker.refresher.__aenter__()
            await taken.wait()
            await until(lambda: worker.loads)
            closing = asyncio.ensure_future(worker.refresher.aclose())
            await asyncio.sleep(0.05)
            gate.set()
            await asyncio.sleep(0.05)
            worker.gate.set()
            await closing
            now = await status(worker)
        assert (now.queued, now.running, now.counts["done"], sum(worker.loads.values())) == (1, 0, 1, 1)

    async def test_closing_without_tasks_does_not_wait_for_a_dead_server(
        self, own_server: Server, backend, monkeypatch
    ):
        monkeypatch.setattr("swr.refreshers.queue.consumer._LEAVING", 0.3)
        worker = Worker(own_server, Counter(), backend=backend, keys=["g"], drain_for=600)
        async with worker.cache, asyncio.timeout(60), worker.refresher:
            await until(lambda: worker.queued)
            await idle(worker)
            own_server.kill()
            await until(lambda: not worker.cache.engine.store.is_reachable)

    async def test_task_stays_waiting_while_no_replica_has_the_write(self, server: Server, backend):
        loads = Counter()
        # Replicas are given half of the time-out to answer.
        worker = Worker(server, loads, backend=backend, keys=["g"], timeout=1)
        async with working(worker):
            await idle(worker)
            queue = worker.refresher._queue()
            queue._replicas = 1
            worker.gate = asyncio.Event()
            epoch = str((await status(worker)).epoch)
            now = await queue.store.now()
            with contextlib.suppress(StoreUnavailable):
                await queue.enqueue(epoch, [("ranking:g", now, ("g",))])
            worker.gate.set()
            async with asyncio.timeout(PATIENCE):
                while not (await status(worker)).waiting:
                    await asyncio.sleep(0.01)
            assert (await status(worker)).counts["done"] == 1
            queue._replicas = 0
            await idle(worker)
            assert (await status(worker)).counts["current"] == 1
        assert loads["g"] == 2

    async def test_rounds_missed_during_an_outage_are_made_up_by_one_round(self, own_server: Server, caplog):
        loads, every, began = Counter(), 0.3, time.time()
        worker = Worker(own_server, loads, every=every, keys=["g"], lead_for=0.2, timeout=0.5)
        async with working(worker):
            await until(lambda: loads["g"] >= 2)
            own_server.pause()
            await until(lambda: not worker.cache.engine.store.is_reachable)
            before = loads["g"]
            # Three rounds, at least two of them whole.
            await asyncio.sleep(0.9)
            assert loads["g"] <= before + 1
            own_server.resume()
            await until(lambda: any(event.missed for event in worker.queued))
            await idle(worker)
        missed = [event for event in worker.queued if event.missed]
        assert missed[0].new + missed[0].merged == 1
        # Redis may have enqueued a round whose reply came too late to be told.
        rounds = (time.time() - began) // every + 2
        assert loads["g"] <= rounds - sum(event.missed for event in missed) + 1
        assert "were left out; this one makes up for all" in caplog.text

    async def test_groups_still_queued_at_the_next_round_are_logged(self, server: Server, caplog):
        loads = Counter()
        worker = Worker(server, loads, every=0.2, groups=3, at_once=1)
        worker.gate = asyncio.Event()
        async with working(worker):
            await until(lambda: "of 3 groups are still in the queue since the last one" in caplog.text)
            assert sum(loads.values()) == 1
            worker.gate.set()
            await until(lambda: len(loads) == 3)

    async def test_closing_during_a_long_outage_logs_that_others_get_its_tasks_later(self, own_server: Server, caplog):
        loads = Counter()
        worker = Worker(own_server, loads, keys=["g"], drain_for=0.3)
        worker.cache.engine._tasks._drain_for = 0.1
        worker.gate = asyncio.Event()
        async with working(worker):
            await until(lambda: loads["g"])
            own_server.kill()
            await until(lambda: not worker.cache.engine.store.is_reachable)
            worker.gate.set()
            await asyncio.sleep(0.1)
            await worker.refresher.aclose()
        assert "a refresher closed while Redis is unreachable: other processes get its tasks later" in caplog.text

    async def test_closing_during_a_short_outage_waits_for_redis(self, own_server: Server):
        """The refresher leaves the queue as soon as Redis is reachable, within the time that closing has."""
        loads = Counter()
        worker = Worker(own_server, loads, keys=["g"], timeout=0.2)

        async def leave_once_the_outage_is_over(*args):
            try:
                await leave(*args)
            except StoreUnavailable:
                own_server.resume()
                raise

        async with worker.cache:
            async with worker.refresher:
                queue = worker.refresher._queue()
                leave, queue.leave = queue.leave, leave_once_the_outage_is_over
                await until(lambda: loads["g"])
                await idle(worker)
                own_server.pause()
            await until(lambda: worker.cache.engine.store.is_reachable)
            assert (await status(worker)).consumers == {}

    async def test_task_that_ends_during_an_outage_is_settled_later_and_not_loaded_twice(self, own_server: Server):
        """If another worker takes the task, that worker does not load the group again either."""
        loads = Counter()
        worker = Worker(own_server, loads, keys=["g"], timeout=0.2)
        async with working(worker):
            settle = worker.refresher._queue().settle
            own = []

            async def late(consumer, some):
                own.append(len(some))
                if len(own) == 1:
                    own_server.pause()
                    asyncio.get_running_loop().call_later(1.5, own_server.resume)
                return await settle(consumer, some)

            worker.refresher._queue().settle = late
            await until(lambda: len(own) >= 2)
            await until(lambda: worker.cache.engine.store.is_reachable)
            await idle(worker)
        assert loads["g"] == 1

    def test_invalid_queue_options_are_refused(self, server: Server):
        for options, message in (
            ({"backend": "stream"}, "backend='stream': give one of streams, list"),
            ({"deliveries": 0}, "deliveries=0"),
        ):
            with pytest.raises(ConfigurationError, match=message):
                Worker(server, Counter(), **options)


def hanging_after(queue, times: int, enqueued: list) -> asyncio.Event:
    """Have a leader hang when it has enqueued so many times."""
    enqueue, hangs = queue.enqueue, asyncio.Event()
    until_then = itertools.count()

    async def counting(epoch, tasks):
        tasks = list(tasks)
        if tasks:
            if next(until_then) == times:
                hangs.set()
                await asyncio.Event().wait()
            enqueued.append([key for key, *_ in tasks])
        return await enqueue(epoch, tasks)

    queue.enqueue = counting
    return hangs


@pytest.mark.parametrize("strategy", ["locks", "queue"])
async def test_refresher_survives_a_cancellation_inside_keys(server: Server, strategy, caplog):
    asked = []

    async def keys():
        asked.append(1)
        if len(asked) == 1:
            gone = asyncio.ensure_future(asyncio.sleep(60))
            gone.cancel()
            await gone
        return ["g"]

    loads = Counter()
    async with working(Worker(server, loads, every=0.2, strategy=strategy, keys=keys)):
        await until(lambda: loads["g"] >= 2)
    assert "was cancelled from within" in caplog.text


class TestLeader:
    async def test_leader_that_loses_its_lease_asks_keys_again_and_enqueues_one_round(self, server: Server, caplog):
        """Another worker holds the lease for a moment while the leader asks `keys` for its groups."""
        loads, asked = Counter(), []

        async def keys():
            asked.append(1)
            if len(asked) == 1:
                # As if it had been paused for longer than its lease lasts.
                server.command("DEL", "swr:{ranking:group:0}L")
                await other.refresher._queue().lead("other", 0.5)
                await asyncio.sleep(0.4)
            return ["g"]

        other = Worker(server, loads)
        worker = Worker(server, loads, keys=keys, lead_for=0.3)
        async with other.cache, working(worker):
            await until(lambda: worker.queued)
            await idle(worker)
        # On a slow machine the worker loses its own short lease once more, and asks again.
        assert (len(asked) >= 2, len(worker.queued), loads["g"]) == (True, 1, 1)

    async def test_leader_that_loses_its_lease_after_enqueuing_loads_no_group_twice(self, server: Server):
        loads = Counter()
        worker, other = Worker(server, loads, keys=["g"], lead_for=0.3), Worker(server, loads)
        async with other.cache, worker.cache:
            queue = worker.refresher._queue()
            drain = queue.drain

            async def late(epoch, began):
                counts = await drain(epoch, began)
                if loads is not None and not hasattr(queue, "late"):
                    queue.late = True
                    server.command("DEL", "swr:{ranking:group:0}L")
                    await other.refresher._queue().lead("other", 0.3)
                return counts

            queue.drain = late
            async with worker.refresher:
                await until(lambda: worker.queued)
                await idle(worker)
        assert len(worker.queued) == 1
        # What it had enqueued was a task anyway, and is not loaded twice.
        assert loads["g"] == 1

    async def test_successor_resumes_the_round_where_the_leader_was_interrupted(self, server: Server, backend):
        """A round of many groups may take longer than any leader lives."""
        loads, enqueued = Counter(), []
        for lives_for in (2, 1, 9):
            worker = Worker(server, loads, backend=backend, groups=4500, at_once=100)
            hangs = hanging_after(worker.refresher._queue(), lives_for, enqueued)
            async with working(worker):
                await until(lambda: hangs.is_set() or worker.queued)  # noqa: B023  # called before the next turn
                if worker.queued:
                    await idle(worker)
        assert [len(some) for some in enqueued] == [1000, 1000, 1000, 1000, 500]
        assert len({key for some in enqueued for key in some}) == 4500
        assert set(loads.values()) == {1}
        assert len(loads) == 4500

    async def test_successor_restarts_the_round_if_its_groups_differ(self, server: Server, backend):
        loads = Counter()
        worker = Worker(server, loads, backend=backend, keys=["a", "b"])
        async with worker.cache:
            await worker.cache.engine.ready()
            await worker.refresher._queue().lead("x", 60, "0:other:1000")
            await worker.refresher._queue().abdicate("x")
            async with worker.refresher:
                await until(lambda: worker.queued)
                await idle(worker)
        assert loads == Counter(a=1, b=1)

    async def test_leader_that_closes_while_asking_keys_enqueues_nothing_and_stops_leading(self, server: Server):
        """The next worker can lead at once."""
        loads, gate, asked = Counter(), asyncio.Event(), asyncio.Event()

        async def keys():
            asked.set()
            await gate.wait()
            return ["g"]

        worker = Worker(server, loads, keys=keys)
        async with worker.cache:
            async with worker.refresher:
                await asked.wait()
            gate.set()
            await asyncio.sleep(0.05)
            now = await status(worker)
        assert (now.leads_for, now.round, now.counts.get("enqueued", 0)) == (0.0, None, 0)

    async def test_too_few_replicas_are_logged_once_and_other_shards_still_load(self, server: Server, caplog):
        loads = Counter()
        worker = Worker(server, loads, every=0.2, groups=6, shards=2, replicas=1, dirty_only=True)
        async with worker.cache:
            queue = worker.refresher._queue()
            replicated = queue.store.commands.replicated

            async def on_one(replicas, script, keys, *args):
                return await replicated(replicas if keys == queue._keys[0] else 0, script, keys, *args)

            queue.store.commands.replicated = on_one
            queue.store.has_replicas = lambda *_: asyncio.sleep(0, True)
            async with worker.refresher:
                await until(lambda: len(loads) == 6 and "could not enqueue a round" in caplog.text)
                assert not worker.queued
        assert (
            caplog.text.count("could not enqueue a round: StoreUnavailable: only 0 of 1 replicas have the write") == 1
        )

    async def test_unreachable_shard_does_not_delay_other_shards(self, server: Server, backend):
        """As in a cluster without a replica of one master. The results and marks of the other shards go on, too."""
        loads, before, enqueued = Counter(), Counter(), []
        worker = Worker(
            server, loads, every=0.3, groups=24, shards=3, backend=backend, deliveries=2, reclaim_after=0.5,
            lead_for=0.3, drain_for=0.1,
        )  # fmt: skip
        async with worker.cache:
            queue, is_down = worker.refresher._queue(), False
            shard_of = {group: queue._shard(worker.ranking.key(group)) for group in [f"g{n}" for n in range(24)]}
            assert set(shard_of.values()) == {0, 1, 2}
            replicated, enqueue = queue.store.commands.replicated, queue.enqueue

            async def on_others(replicas, script, keys, *args):
                if is_down and keys == queue._keys[1]:
                    raise StoreUnavailable("its master is down")
                return await replicated(replicas, script, keys, *args)

            async def counted(epoch, tasks):
                tasks = list(tasks)
                enqueued.extend({newer_than for _, newer_than, _ in tasks})
                return await enqueue(epoch, tasks)

            queue.store.commands.replicated, queue.enqueue = on_others, counted
            async with worker.refresher:
                await until(lambda: len(loads) == 24)
                is_down, before = True, Counter(loads)
                # A consumer looks at an idle shard every five seconds only.
                consumer = worker.refresher._running._consumer
                consumer._looks.wake_all()
                consumer._limiter.change()
                # Each of the others twice and more: all that the first time has left is settled.
                others = [group for group, shard in shard_of.items() if shard != 1]
                await until(lambda: all(loads[group] >= before[group] + 3 for group in others))
                # The groups that can be reached are not enqueued again with each try of the round.
                assert max(Counter(enqueued).values()) == 1
                is_down = False
                await until(lambda: all(loads[group] >= before[group] + 4 for group in shard_of))
                is_down = True
            is_down = False
            now = await status(worker)
            consumers = [(await queue._run(shard, scripts.STATUS))[5] for shard in queue.shards]
        assert (now.dead, now.counts.get("buried", 0)) == (0, 0)
        # Closing has left the others, and handed their tasks back.
        assert [bool(names) for names in consumers] == [False, True, False]

    async def test_failure_of_keys_right_after_an_outage_is_logged_once(self, own_server: Server, caplog):
        """Redis and the database of `keys` may be gone at once, and Redis comes back first."""
        is_gone, tries = False, 0

        async def keys():
            nonlocal tries
            tries += is_gone
            if is_gone:
                raise ValueError("the database is gone")
            return ["g"]

        worker = Worker(own_server, Counter(), every=0.2, keys=keys, timeout=0.5)
        async with working(worker):
            await until(lambda: worker.queued)
            own_server.pause()
            leader = worker.refresher._running._leader
            await until(lambda: leader._failures and not worker.cache.engine.store.is_reachable)
            is_gone = True
            own_server.resume()
            await until(lambda: tries >= 2)
        assert caplog.text.count("could not enqueue a round: ValueError: the database is gone") == 1

    async def test_leader_keeps_its_lease_while_keys_takes_longer_than_lead_for(self, server: Server):
        loads = Counter()

        async def keys():
            await asyncio.sleep(2.2)
            return ["g"]

        worker, other = Worker(server, loads, keys=keys, lead_for=1), Worker(server, loads, keys=["g"], lead_for=1)
        async with working(worker):
            await asyncio.sleep(0.1)
            async with working(other):
                await until(lambda: worker.queued)
                assert not other.queued


class Process:
    """A real one."""

    def __init__(self, server: Server, file, **options):
        self.popen = subprocess.Popen(
            [sys.executable, "-m", "tests.refreshing", server.url, str(file), json.dumps(options)],
            stdout=subprocess.PIPE,
            text=True,
        )

    def ready(self):
        assert self.popen.stdout.readline() == "ready\n"

    def end(self, number=signal.SIGTERM) -> int:
        self.popen.send_signal(number)
        code = self.popen.wait(PATIENCE)
        self.popen.stdout.close()
        return code


@pytest.fixture
def processes(own_server: Server, tmp_path):
    """Starts processes, and ends those that are left."""
    started = []

    def start(number: int, **options) -> list[Process]:
        begun = [Process(own_server, tmp_path / "loads", **options) for _ in range(number)]
        started.extend(begun)
        for process in begun:
            process.ready()
        return begun

    yield start
    for process in started:
        if process.popen.poll() is None:
            process.end(signal.SIGKILL)
        process.popen.stdout.close()


def loaded(tmp_path) -> int:
    """Return how many loads have begun."""
    try:
        return (tmp_path / "loads").read_bytes().count(b"\n")
    except FileNotFoundError:
        return 0


def read(tmp_path) -> list[tuple[float, int, str]]:
    try:
        lines = (tmp_path / "loads").read_text().splitlines()
    except FileNotFoundError:
        return []
    return [(float(at), int(pid), group) for at, pid, group in (line.split() for line in lines)]


def hold(tmp_path, most: int) -> None:
    """Let no load of the processes end once this many have begun."""
    new = tmp_path / "loads.new"
    new.write_text(str(most))
    new.replace(tmp_path / "loads.held")


def let_go(tmp_path) -> None:
    """Let the loads end that were held."""
    (tmp_path / "loads.held").unlink()


def by_round(tmp_path, every: float) -> dict[int, Counter]:
    rounds = defaultdict(Counter)
    for at, _, group in read(tmp_path):
        rounds[int(at // every)][group] += 1
    return rounds


class TestProcesses:
    async def test_other_processes_load_the_groups_of_a_killed_process(self, processes, tmp_path):
        """In the same round, once its leases have run out: no load ends before the kill, so others load every group."""
        options = {"strategy": "locks", "every": FOR_GOOD, "groups": 60, "takes": 0.1, "lease_for": 1, "at_once": 4}
        hold(tmp_path, 0)
        first, *_ = processes(3, **options)
        await until(lambda: first.popen.pid in {pid for _, pid, _ in read(tmp_path)}, PATIENCE)
        first.popen.kill()
        let_go(tmp_path)
        killed = first.popen.pid
        await until(lambda: len({group for _, pid, group in read(tmp_path) if pid != killed}) == 60, PATIENCE)

    @pytest.mark.uncounted
    async def test_killed_leader_is_replaced_and_no_round_is_skipped(self, processes, own_server: Server, tmp_path):
        workers = {}
        every = 4
        for process in processes(4, strategy="queue", every=every, groups=20, lead_for=1, reclaim_after=2):
            workers[process.popen.pid] = process
        async with Cache(own_server.url, timeout=2) as cache:
            queue = Worker(own_server, Counter()).refresher._queue()
            queue.store = cache.engine.store.store
            async with asyncio.timeout(PATIENCE):
                # A round has just begun when each of them is killed: its successor has all the time until the next one.
                led = (await queue.status()).round
                while (await queue.status()).round == led:
                    await asyncio.sleep(0.02)
                for _ in range(2):
                    before = await queue.status()
                    token = own_server.says("GET", "swr:{ranking:group:0}L")[16:]
                    workers.pop(int(token.split(":")[1])).end(signal.SIGKILL)
                    killed = time.monotonic()
                    while (await queue.status()).epoch == before.epoch:
                        await asyncio.sleep(0.02)
                    took = time.monotonic() - killed
                    led = (await queue.status()).round
                    while (await queue.status()).round == led:
                        await asyncio.sleep(0.02)
                    # How long it takes on a busy machine is not promised; that its successor comes in time for the next
                    # round is, and is seen below.
                    assert took <= 2 or not FULL
        rounds = by_round(tmp_path, every)
        # The first may be under way at the beginning, and the last at the end.
        numbers = sorted(rounds)[1:-1]
        assert numbers == list(range(numbers[0], numbers[-1] + 1))
        # A busy machine may take over what the killed one had begun no sooner than in the next round.
        assert all(len({*rounds[one], *rounds[other]}) == 20 for one, other in itertools.pairwise(numbers))

    @pytest.mark.promise
    # The storm kills, too.
    @pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGKILL] if FULL else [signal.SIGTERM])
    async def test_rolling_restarts_lose_no_task(self, processes, own_server: Server, tmp_path, backend, number):
        """After SIGTERM no task is left pending; other processes take back the tasks of a killed one."""
        restarts, groups, takes = (100, 16_000, 0.1) if FULL else (2, 150, 0.1)
        options = {
            "strategy": "queue",
            "backend": backend,
            "every": FOR_GOOD,
            "groups": groups,
            "takes": takes,
            "at_once": 4,
            "lead_for": 1,
            # Who is slow on a busy machine is not to be taken for dead where nobody dies.
            "lease_for": 6 if number == signal.SIGKILL else 30,
            "reclaim_after": 6 if number == signal.SIGKILL else 60,
            "deliveries": 50,
        }
        fleet = []
        for restart in range(restarts):
            # However fast those are who stay, they do not finish without the others.
            hold(tmp_path, 16 * (restart + 1))
            fleet += processes(1 if fleet else 3, **options)
            await until(lambda restart=restart: loaded(tmp_path) >= 16 * (restart + 1), PATIENCE)
            code = fleet.pop(0).end(number)
            assert code == (0 if number == signal.SIGTERM else -signal.SIGKILL)
        # All restarts were under load.
        assert loaded(tmp_path) < groups
        let_go(tmp_path)
        async with Cache(own_server.url, timeout=2) as cache:
            worker = Worker(own_server, Counter(), backend=backend)
            queue = worker.refresher._queue()
            queue.store = cache.engine.store.store
            # What is left is nobody's concern, but takes time.
            fleet += processes(4 if FULL else 1, **options)
            async with asyncio.timeout(600):
                while True:
                    now = await queue.status()
                    if (now.queued, now.running, now.waiting) == (0, 0, 0):
                        break
                    await asyncio.sleep(0.05)
            for process in fleet:
                assert process.end() == 0
            now = await queue.status()
        loads = Counter(group for _, _, group in read(tmp_path))
        assert len(loads) == groups
        assert now.counts["done"] + now.counts.get("current", 0) == groups
        assert (now.dead, now.counts.get("buried", 0)) == (0, 0)
        if number == signal.SIGTERM:
            assert now.counts.get("reclaimed", 0) == 0
            assert now.consumers == {}
            assert set(loads.values()) == {1}
        else:
            # Loaded twice is only what was under way in one that was killed.
            assert sum(loads.values()) - groups <= restarts * 4

    @pytest.mark.uncounted
    @pytest.mark.promise
    async def test_repeated_kills_of_workers_and_redis_lose_no_task(self, tmp_path, backend):
        """A consumer is killed every so many loads, and the server now and then; nothing is lost, and hardly anything
        loaded twice.
        """
        groups, consumers, kills, restarts = (100_000, 8, 100, 3) if FULL else (1_500, 3, 4, 2)
        # Each fault comes after a number of loads: a fast machine drains the queue before any timer fires.
        faults = [(groups * number // (kills + 1), "consumer") for number in range(1, kills + 1)]
        faults += [(groups * number // (restarts + 1), "server") for number in range(1, restarts + 1)]
        faults.sort()
        options = {
            "strategy": "queue",
            "backend": backend,
            "every": FOR_GOOD,
            "groups": groups,
            "lead_for": 1,
            "lease_for": 1,
            "reclaim_after": 2,
            "deliveries": 1000,
        }
        with Server(kinds()[0], *AOF) as server:
            fleet = [Process(server, tmp_path / "loads", **options) for _ in range(consumers)]
            worker = Worker(server, Counter(), backend=backend)
            try:
                async with asyncio.timeout(1200), worker.cache:
                    queue = worker.refresher._queue()
                    while True:
                        await asyncio.sleep(0.01)
                        while faults and faults[0][0] <= loaded(tmp_path):
                            if faults[0][1] == "server":
                                server.kill()
                                server.start()
                            else:
                                working = {pid for _, pid, _ in read(tmp_path)}
                                victim = next((each for each in fleet if each.popen.pid in working), None)
                                if victim is None:
                                    break
                                fleet.remove(victim)
                                victim.end(signal.SIGKILL)
                                fleet.append(Process(server, tmp_path / "loads", **options))
                            del faults[0]
                        with contextlib.suppress(StoreUnavailable):
                            now = await queue.status()
                            if now.round is not None and (now.queued, now.running, now.waiting) == (0, 0, 0):
                                break
                    now = await queue.status()
            finally:
                for process in fleet:
                    process.end(signal.SIGKILL)
        loads = Counter(group for _, _, group in read(tmp_path))
        assert len(loads) == groups
        assert now.counts["done"] + now.counts.get("current", 0) >= groups
        assert now.dead == 0
        twice = sum(loads.values()) - groups
        print(f"{backend}: {kills} kills, {restarts} restarts, {twice} of {groups} loaded twice, {now.counts}")
        # What was under way in one that was killed, or in all when the server was.
        assert twice <= (0.01 * groups if FULL else (kills + consumers * restarts) * 32)
        assert not faults

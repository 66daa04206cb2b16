"""A read of the store takes the lease request along where the store has probably nothing."""

import anyio
import anyio.lowlevel
import pytest

from swr import Cache, State
from swr.stats.counts import Tally
from tests.fleet import Job, gather, open_gate, settle, until
from tests.proxy import Proxy

pytestmark = pytest.mark.anyio


async def miss_often(process):
    """Have a process read what the store does not have."""
    for number in range(12):
        await process.engine.fetch(f"other:{number}", Job())
    process.link.calls.clear()


def hold_reads(process):
    """Hold the replies to reads; return what lets them go."""
    gate = anyio.Event()
    process.link.after["read"] = gate.wait
    return gate


class TestLeaseRequestSentWithRead:
    async def test_lease_request_is_sent_with_the_read_after_many_misses(self, two):
        process, job = two[0], Job()
        await miss_often(process)
        gate = hold_reads(process)
        with anyio.fail_after(60):
            async with anyio.create_task_group() as group:
                group.start_soon(process.engine.fetch, "k", job)
                # The load has begun before the read is answered.
                await job.begun.wait()
                gate.set()
        assert process.link.calls == ["read", "acquire", "commit"]
        assert job.runs == 1

    @pytest.mark.parametrize("hits", [0, 4])
    async def test_lease_request_waits_for_the_read_unless_most_reads_have_missed(self, two, hits):
        first, second = two
        if hits:
            await miss_often(second)
        for number in range(hits):
            await first.engine.fetch(f"hit:{number}", Job())
            await second.engine.fetch(f"hit:{number}", Job())
        second.link.calls.clear()
        calls = []
        second.link.before["acquire"] = lambda: calls.append([*second.link.calls]) or anyio.lowlevel.checkpoint()
        gate = hold_reads(second)
        async with anyio.create_task_group() as group:
            group.start_soon(second.engine.fetch, "k", Job())
            await settle()
            assert calls == []
            gate.set()
        assert calls == [["read", "acquire"]]

    async def test_readers_of_a_loading_key_send_no_second_lease_request(self, two):
        process, job = two[0], Job()
        await miss_often(process)
        job.gate = anyio.Event()
        await gather(open_gate(job), *(process.engine.fetch("k", job) for _ in range(100)))
        assert process.link.calls.count("acquire") == job.runs == 1

    async def test_no_lease_request_is_sent_with_the_read_during_backoff(self, two):
        process = two[0]
        await miss_often(process)
        process.engine.backoffs.begin("k", 3600, None)
        gate = hold_reads(process)
        async with anyio.create_task_group() as group:
            group.start_soon(process.engine.fetch, "k", Job())
            await settle()
            assert process.link.calls == ["read"]
            gate.set()

    async def test_no_lease_request_is_sent_with_the_read_of_an_expired_local_entry(self, two, clock):
        process, job = two[0], Job()
        await process.engine.fetch("k", job)
        await miss_often(process)
        clock.advance(700)
        gate = hold_reads(process)
        async with anyio.create_task_group() as group:
            group.start_soon(process.engine.fetch, "k", job)
            await settle()
            assert process.link.calls == ["read"]
            gate.set()
        assert job.runs == 2

    async def test_no_lease_request_is_sent_while_the_store_is_unreachable(self, two, monkeypatch):
        process, job = two[0], Job()
        await process.engine.fetch("k", job)
        await miss_often(process)
        monkeypatch.setattr(process.link, "is_unreachable", lambda key: True)
        process.link.set_down(True)
        # The event loop has stood still, so that a message may have been missed.
        process.store._hearing.lose()
        assert (await process.engine.fetch("k", job)).value == 1
        await settle()
        assert (job.runs, process.link.calls) == (1, [])
        process.link.set_down(False)

    async def test_nested_load_sends_no_lease_request_with_its_read(self, two):
        process = two[0]
        await miss_often(process)
        gate, inner, loaded = hold_reads(process), Job(), []

        class Outer(Job):
            async def run(self, load):
                loaded.append((await process.engine.fetch("inner", inner)).value)
                await super().run(load)

        async with anyio.create_task_group() as group:
            group.start_soon(process.engine.fetch, "outer", Outer())
            await settle()
            assert process.link.calls == ["read", "acquire", "read"]
            gate.set()
        assert loaded == [1]


class TestReadThatFindsAnEntry:
    async def test_fresh_entry_is_returned_without_a_load_despite_the_lease_request(self, two):
        first, second = two
        await miss_often(second)
        await first.engine.fetch("k", Job())
        job = Job()
        outcome = await second.engine.fetch("k", job)
        await settle()
        assert (outcome.value, outcome.state, job.runs) == (1, State.FRESH, 0)
        assert second.link.calls == ["read", "acquire"]

    async def test_stale_entry_is_returned_at_once_and_refreshed_once(self, two, clock):
        first, second = two
        await miss_often(second)
        await first.engine.fetch("k", Job())
        clock.advance(61)
        job = Job(lambda run: "new")
        job.gate = anyio.Event()
        with anyio.fail_after(60):
            outcomes = await gather(*(second.engine.fetch("k", job) for _ in range(100)))
        assert {(outcome.value, outcome.state) for outcome in outcomes} == {(1, State.STALE)}
        job.gate.set()
        await settle()
        assert job.runs == 1
        assert (await second.engine.fetch("k", job)).value == "new"

    async def test_expired_entry_is_the_fallback_when_the_load_fails(self, two, clock):
        first, second = two
        await miss_often(second)
        await first.engine.fetch("k", Job())
        clock.advance(700)
        job = Job(lambda run: ValueError(run))
        outcome = await second.engine.fetch("k", job)
        assert (outcome.value, outcome.state, str(outcome.error)) == (1, State.STALE, "1")

    async def test_reader_waits_for_the_load_of_another_process_and_runs_none(self, two):
        first, second = two
        await miss_often(second)
        theirs, ours = Job(lambda run: "theirs"), Job()
        theirs.gate = anyio.Event()
        gate, values = hold_reads(second), []

        async def read(process, job):
            values.append((await process.engine.fetch("k", job)).value)

        async with anyio.create_task_group() as group:
            group.start_soon(read, first, theirs)
            await theirs.begun.wait()
            group.start_soon(read, second, ours)
            await settle()
            assert second.link.calls == ["read", "acquire"]
            gate.set()
            await settle()
            theirs.gate.set()
        assert (values, ours.runs) == (["theirs", "theirs"], 0)
        assert second.link.calls == ["read", "acquire", "acquire"]


async def test_load_goes_on_and_leaves_no_lease_when_its_reader_leaves(two):
    process, job = two[0], Job()
    await miss_often(process)
    gate = hold_reads(process)
    async with anyio.create_task_group() as group:
        group.start_soon(process.engine.fetch, "k", job)
        await settle()
        group.cancel_scope.cancel()
    gate.set()
    await settle()
    assert (await process.engine.fetch("k", Job())).value == 1
    assert job.runs == 1


async def test_reader_gets_a_newer_load_when_an_invalidation_supersedes_its_flight(two):
    process, job = two[0], Job()
    await miss_often(process)
    gate, job.gate = hold_reads(process), anyio.Event()
    results = []

    async def read():
        results.append((await process.engine.fetch("k", job)).value)

    with anyio.fail_after(60):
        async with anyio.create_task_group() as group:
            group.start_soon(read)
            await job.begun.wait()
            await two[1].engine.invalidate("k")
            job.gate.set()
            gate.set()
    assert results == [2]


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_redis_grants_the_lease_before_the_reply_to_the_read_arrives(any_server, no_heartbeats, anyio_backend):
    any_server.command("FLUSHALL")
    async with Proxy(any_server.port) as proxy, Cache(proxy.url, timeout=60.0) as cache:

        @cache.cached("rank:{n}", fresh_for=60)
        async def rank(n: int) -> int:
            return n

        for n in range(12):
            await rank(n)
        proxy.holds_replies = True
        async with anyio.create_task_group() as group:
            group.start_soon(rank, 12)
            await until(lambda: b"rank:12" in any_server.command("KEYS", "*rank:12*"))
            proxy.holds_replies = False


def test_tally_stays_mostly_absent_after_one_hit_but_not_after_four():
    tally = Tally("rank:{n}", is_route=False)
    assert not tally.is_mostly_absent
    for _ in range(20):
        tally.note_read(found=False)
    tally.note_read(found=True)
    assert tally.is_mostly_absent
    for _ in range(3):
        tally.note_read(found=True)
    assert not tally.is_mostly_absent

"""The queue of refreshers on Redis and Valkey, as streams and as lists: one conformance suite."""

import asyncio
import contextlib
import os

import pytest

from swr import ConfigurationError, Policy, StoreUnavailable
from swr.core.codec import ANY
from swr.entry import stamp
from swr.refreshers.queue.queue import Queue, known
from swr.refreshers.queue.tasks import Delivery, Settlement, Superseded
from swr.refreshers.queue.wakes import tag_of
from swr.stores.base import Kind, Lease
from tests.proxy import Proxy
from tests.servers import Server
from tests.test_redis import until
from tests.test_stores import opened, redis_store

pytestmark = pytest.mark.anyio

FULL = os.environ.get("SWR_FULL") == "1"
EPOCH = f"{1:016d}"
GROUPS = {"r:ATL": ("ATL",), "r:ORD": ("ORD", 10), "r:일\ud800": ("일", None, 1.5, True, ["x"])}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
async def store(server: Server):
    async with opened(redis_store(server)) as store:
        yield store


@pytest.fixture(params=["streams", "list"])
def backend(request):
    return request.param


@pytest.fixture(params=[1, 3], ids=["one shard", "three shards"])
def shards(request):
    return request.param


@pytest.fixture
def queue(store, backend, shards):
    return Queue(store, "r:group", backend, shards, deliveries=3)


def tasks(groups=GROUPS, newer_than=5):
    return [(key, newer_than, args) for key, args in groups.items()]


async def taken(queue: Queue, consumer: str = "one", most: int = 100) -> list[Delivery]:
    """Take from every shard."""
    deliveries = []
    for shard in queue.shards:
        deliveries += (await queue.take(shard, consumer, most))[1]
    return sorted(deliveries)


async def tended(queue: Queue, consumer: str, silent_for: float, deliveries=()) -> int:
    return sum([await queue.tend(shard, consumer, silent_for, deliveries) for shard in queue.shards])


async def settled(queue: Queue, deliveries, what: str, delay: float = 0.0, why: str = "", consumer="one") -> int:
    return await queue.settle(consumer, [Settlement(delivery, what, delay, why) for delivery in deliveries])


async def put(queue: Queue, command: str, key: str, *args: bytes | str) -> object:
    return await queue.store.commands.ask(key, command, key, *args)


async def is_empty(queue: Queue) -> bool:
    """Whether nothing is left of any task, pending entries and records included."""
    status = await queue.status()
    left = 0
    for keys in queue._keys:
        left += await queue.store.commands.ask(keys[0], "HLEN", keys[0])
        if queue._backend == "streams":
            left += await queue.store.commands.ask(keys[1], "XLEN", keys[1])
    return (status.queued, status.running, status.waiting, left) == (0, 0, 0, 0)


class TestTasks:
    async def test_enqueued_tasks_are_taken_once_and_leave_nothing_when_done(self, queue: Queue):
        assert await queue.enqueue(EPOCH, tasks()) == (3, 0)
        deliveries = await taken(queue)
        assert {delivery.key: delivery.args for delivery in deliveries} == GROUPS
        assert {(delivery.newer_than, delivery.tries) for delivery in deliveries} == {(5, 1)}
        assert await taken(queue, "other") == []
        assert (await queue.status()).running == 3
        assert await settled(queue, deliveries, "done") == 0
        assert await is_empty(queue)
        assert (await queue.status()).counts == {"enqueued": 3, "merged": 0, "done": 3}

    async def test_key_enqueued_a_thousand_times_is_one_task(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}, newer_than=1))
        for newer_than in range(2, 1002, 100):
            again = [("r:ATL", newer_than + number, ("ATL",)) for number in range(100)]
            assert await queue.enqueue(EPOCH, again) == (0, 100)
        (delivery,) = await taken(queue)
        # Whoever enqueued last is served, too.
        assert delivery.newer_than == 1001
        await settled(queue, [delivery], "done")
        assert await is_empty(queue)
        assert (await queue.status()).counts["merged"] == 1000

    async def test_take_returns_at_most_the_requested_number_in_one_command(self, no_heartbeats, store, backend):
        queue = Queue(store, "r", backend)
        await queue.enqueue(EPOCH, [(f"k{number}", 0, (number,)) for number in range(1200)])
        sent = store.sent
        first = (await queue.take(0, "one", 500))[1]
        assert len(first) == 500
        assert store.sent - sent == 1
        rest = [*(await queue.take(0, "other", 500))[1], *(await queue.take(0, "other", 500))[1]]
        assert sorted(delivery.args[0] for delivery in first + rest) == list(range(1200))

    async def test_tasks_are_taken_in_the_order_of_enqueueing(self, store, backend):
        queue = Queue(store, "r", backend)
        for number in range(5):
            await queue.enqueue(EPOCH, [(f"k{number}", 0, (number,))])
        assert [d.args[0] for d in (await queue.take(0, "one", 5))[1]] == [0, 1, 2, 3, 4]

    async def test_task_enqueued_while_running_runs_again_only_if_newer(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks(newer_than=5))
        deliveries = await taken(queue)
        assert await queue.enqueue(EPOCH, tasks(newer_than=5)) == (0, 3)
        assert await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}, newer_than=6)) == (0, 1)
        assert await taken(queue) == []
        await settled(queue, deliveries, "done")
        (again,) = await taken(queue)
        assert (again.key, again.newer_than, again.tries) == ("r:ATL", 6, 1)
        await settled(queue, [again], "current")
        assert await is_empty(queue)

    async def test_task_enqueued_while_it_fails_runs_again_at_once(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}))
        for newer_than in range(10, 15):
            (delivery,) = await taken(queue)
            await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}, newer_than=newer_than))
            await settled(queue, [delivery], "failed", 60.0, "no")
        (last,) = await taken(queue)
        assert (last.newer_than, last.tries) == (14, 3)
        await settled(queue, [last], "failed", 60.0, "no")
        assert (await queue.status()).dead == 1

    async def test_heal_requeues_tasks_whose_queue_keys_were_deleted(self, queue: Queue):
        many = {f"k{number}": (number,) for number in range(1500)}
        await queue.enqueue(EPOCH, tasks(many))
        running = await taken(queue, most=30)
        await settled(queue, running[:20], "back", 60.0)
        await queue.heal()
        assert (await queue.status()).queued == 1500 - len(running)
        for keys in queue._keys:
            for part in (keys[1], keys[1] + b":one", keys[2]):
                await queue.store.commands.ask(part, "DEL", part)
        assert await taken(queue) == []
        await queue.heal()
        found = set()
        while deliveries := await taken(queue):
            assert found.isdisjoint(delivery.key for delivery in deliveries)
            found |= {delivery.key for delivery in deliveries}
            await settled(queue, deliveries, "done")
        assert found == set(many)
        # Of those that ran when it was deleted nothing counts that comes later.
        assert await settled(queue, running[20:], "done") == len(running) - 20
        assert await is_empty(queue)

    async def test_entry_keys_never_collide_with_queue_keys(self, store, backend):
        """This holds for every refresher name and every entry key."""
        queue = Queue(store, "ranking", backend)
        await queue.enqueue((await queue.lead("a", 60))[0], ())
        entry = stamp(1, Policy(60), 0.0, 5)
        for key in ("ranking:0", "ranking", "!", "{ranking:0}L"):
            lease = await store.acquire(key, "t", 60, 0, ANY)
            assert isinstance(lease, Lease), key
            await store.commit(lease, entry, ANY)
            await store.invalidate(key)
        assert (await queue.lead("a", 60))[0]


class TestTries:
    async def test_failed_task_is_retried_after_its_delay(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}))
        await settled(queue, await taken(queue), "failed", 600.0, "ValueError: no")
        assert (await queue.status()).waiting == 1
        await queue.enqueue(EPOCH, tasks({"r:ORD": ("ORD",)}))
        await settled(queue, await taken(queue), "failed", 0.05, "ValueError: no")
        async with asyncio.timeout(120):
            while not (again := await taken(queue)):
                await asyncio.sleep(0.01)
        assert [(delivery.key, delivery.tries) for delivery in again] == [("r:ORD", 2)]
        assert (await queue.status()).waiting == 1

    async def test_task_that_fails_three_times_becomes_a_dead_letter(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks())
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "ValueError: é")
        assert await taken(queue) == []
        letters = await queue.dead()
        assert {letter.key: tuple(letter.args) for letter in letters} == GROUPS
        assert {(letter.why, letter.tries) for letter in letters} == {("ValueError: é", 3)}
        assert abs(letters[0].at - await queue.store.now() / 1e6) < 60
        status = await queue.status()
        assert (status.dead, status.counts["buried"], status.counts["failed"]) == (3, 3, 9)

    async def test_task_whose_consumers_all_die_becomes_a_dead_letter(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}))
        for _ in range(3):
            assert len(await taken(queue)) == 1
            assert await tended(queue, "other", 0.0) == 1
        assert await taken(queue) == []
        (letter,) = await queue.dead()
        assert letter.why == "delivered 3 times, and no worker that took it settled it"

    async def test_dead_letters_are_retried_and_purged(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks())
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "no")
        assert await queue.retry(["r:ATL", "r:unknown"]) == 1
        (again,) = await taken(queue)
        assert (again.key, again.tries, again.args) == ("r:ATL", 1, ("ATL",))
        await settled(queue, [again], "done")
        assert await queue.purge(["r:ORD"]) == 1
        assert [letter.key for letter in await queue.dead()] == ["r:일\ud800"]
        assert await queue.retry() == 1
        await settled(queue, await taken(queue), "done")
        assert await queue.purge() == 0
        assert await queue.retry() == 0
        assert await is_empty(queue)

    async def test_dead_letter_is_delivered_once_per_round_until_it_succeeds(self, queue: Queue):
        group = tasks({"r:ATL": ("ATL",)})
        await queue.enqueue(EPOCH, group)
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "no")
        await queue.enqueue(EPOCH, group)
        await settled(queue, await taken(queue), "failed", 0.0, "still no")
        assert await taken(queue) == []
        assert [letter.why for letter in await queue.dead()] == ["still no"]
        await queue.enqueue(EPOCH, group)
        assert await queue.retry() == 0
        await queue.enqueue(EPOCH, group)
        await settled(queue, await taken(queue), "done")
        assert await queue.dead() == []

    async def test_drain_of_dirty_keys_also_retries_each_dead_letter_once_per_round(self, queue: Queue):
        await queue.mark(GROUPS)
        await queue.drain(EPOCH)
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "no")
        for _ in range(3):
            assert await queue.drain(EPOCH) == (3, 0)
            again = await taken(queue)
            assert {delivery.key: delivery.args for delivery in again} == GROUPS
            await settled(queue, again, "failed", 0.0, "no")
        await queue.drain(EPOCH)
        await settled(queue, await taken(queue), "done")
        assert await queue.drain(EPOCH) == (0, 0)
        assert await queue.dead() == []

    async def test_dead_letter_of_this_round_is_not_retried_before_the_next_round(self, queue: Queue, store):
        began = await store.now()
        await queue.enqueue(EPOCH, tasks())
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "no")
        assert await queue.drain(EPOCH, began) == (0, 0)
        assert await queue.drain(EPOCH, await store.now() + 1) == (3, 0)

    async def test_each_of_two_thousand_dead_letters_is_retried_in_every_later_round(self, queue: Queue):
        groups = {f"r:{number}": (number,) for number in range(2000)}
        await queue.mark(groups)
        await queue.drain(EPOCH)

        async def fail_all():
            failed = []
            while deliveries := await taken(queue, most=500):
                await settled(queue, deliveries, "failed", 0.0, "no")
                failed += deliveries
            return failed

        assert len(await fail_all()) == 3 * 2000
        for _ in range(2):
            await queue.drain(EPOCH)
            assert {delivery.key for delivery in await fail_all()} == set(groups)

    @pytest.mark.parametrize(
        "record",
        [
            b"", b"x", b"q" + b"0" * 35, b"q" + b"z" * 32 + b"0000[]", b"z" + b"0" * 36 + b"[]", b"q" + b"0" * 36 + b"{}",
            b"q" + b"0" * 36 + b"[1", b"q" + b"0" * 36 + b"[nonsense]", b"q" + b"0" * 36 + b"[\xff]",
        ],
    )  # fmt: skip
    async def test_unreadable_task_record_is_dropped_and_the_other_tasks_are_taken(self, queue: Queue, record):
        await queue.enqueue(EPOCH, tasks())
        shard = queue._shard("r:ATL")
        await put(queue, "HSET", queue._keys[shard][0], "r:ATL", record)
        deliveries = await taken(queue)
        assert [delivery.key for delivery in deliveries] == [key for key in sorted(GROUPS) if key != "r:ATL"]
        await settled(queue, deliveries, "done")
        assert await taken(queue) == []
        assert await is_empty(queue)
        # The next round has the group again.
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}))
        assert [delivery.args for delivery in await taken(queue)] == [("ATL",)]

    @pytest.mark.parametrize("letter", [b"", b"[]", b'{"record": 5}', b'{"record": "x", "why": "no", "at": "1"}', b"{"])
    async def test_unreadable_dead_letter_is_dropped_and_the_others_are_retried(self, queue: Queue, letter):
        await queue.mark(GROUPS)
        await queue.drain(EPOCH)
        for _ in range(3):
            await settled(queue, await taken(queue), "failed", 0.0, "no")
        dead = queue._keys[queue._shard("r:ATL")][4]
        await put(queue, "HSET", dead, "r:ATL", letter)
        assert {letter.key for letter in await queue.dead()} == set(GROUPS) - {"r:ATL"}
        assert await queue.retry(["r:ATL"]) == 0
        await put(queue, "HSET", dead, "r:ATL", letter)
        assert await queue.drain(EPOCH) == (2, 0)
        assert await put(queue, "HEXISTS", dead, "r:ATL") == 0

    async def test_queue_entry_without_a_task_is_dropped(self, queue: Queue, backend):
        await queue.enqueue(EPOCH, tasks())
        ready = queue._keys[0][1]
        if backend == "streams":
            await put(queue, "XADD", ready, "*", "k", "")
            await put(queue, "XADD", ready, "*", "k", b"\xff")
        else:
            await put(queue, "RPUSH", ready, "", b"\xff")
        assert {delivery.key for delivery in await taken(queue)} == set(GROUPS)

    async def test_task_handed_back_does_not_count_as_a_try(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks({"r:ATL": ("ATL",)}))
        for _ in range(10):
            (delivery,) = await taken(queue)
            assert delivery.tries == 1
            await settled(queue, [delivery], "back")
        (delivery,) = await taken(queue)
        await settled(queue, [delivery], "back", 60.0)
        assert (await queue.status()).waiting == 1


class TestDeadConsumers:
    async def test_tasks_of_a_silent_consumer_are_given_to_others(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks())
        lost = await taken(queue, "dead")
        assert await tended(queue, "one", 60.0) == 0
        assert await taken(queue) == []
        await asyncio.sleep(0.06)
        assert await tended(queue, "one", 0.05) == 3
        again = await taken(queue)
        assert [d.key for d in again] == [d.key for d in lost]
        assert all(later.number > first.number for first, later in zip(lost, again, strict=True))
        # It was not dead, but paused: what it settles counts no more.
        assert await settled(queue, lost, "failed", consumer="dead") == 3
        assert await settled(queue, again, "done") == 0
        assert await is_empty(queue)
        status = await queue.status()
        assert (status.counts["late"], status.counts["reclaimed"]) == (3, 3)

    async def test_all_tasks_of_long_dead_consumers_are_requeued_in_pieces(self, store, backend):
        queue, many = Queue(store, "r", backend), 700
        for consumer in ("first", "second", "third"):
            await queue.enqueue(EPOCH, tasks({f"{consumer}:{number}": (number,) for number in range(many)}))
            for _ in range(2):
                await queue.take(0, consumer, 500)
        assert (await queue.status()).running == 3 * many
        # So long ago that consumers without tasks are forgotten.
        await asyncio.sleep(0.1)
        back = []
        while not back or back[-1]:
            back.append(await queue.tend(0, "one", 0.001, ()))
        assert sum(back) == 3 * many
        assert max(back) < 2 * many
        status = await queue.status()
        assert (status.running, status.queued, set(status.consumers)) == (0, 3 * many, {"one"})

    async def test_slow_consumer_that_reports_alive_keeps_its_tasks(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks())
        mine = await taken(queue, "slow")
        for _ in range(5):
            await asyncio.sleep(0.25)
            await tended(queue, "slow", 1.0, mine)
            assert await tended(queue, "one", 1.0) == 0
        assert await settled(queue, mine, "done", consumer="slow") == 0
        assert await is_empty(queue)

    async def test_lost_reply_loses_no_task(self, server: Server, backend, monkeypatch):
        """The command ran and is sent again, so no consumer knows of the tasks that the first one took."""
        # However long a busy machine takes to connect again.
        monkeypatch.setattr("swr.stores.redis.server_link._SHARE_AFTER_SILENCE", 20.0)
        async with Proxy(server.port) as proxy, opened(redis_store(server)) as other:
            store = redis_store(server)
            store._servers._connect = lambda: __import__("redis.asyncio").asyncio.Redis.from_url(proxy.url)
            async with opened(store):
                queue, observer = Queue(store, "r", backend), Queue(other, "r", backend)
                await observer.enqueue(EPOCH, [("k", 0, ("k",))])
                proxy.lose = b"ZRANGEBYSCORE', delayed"
                _, deliveries = await queue.take(0, "one", 10)
                assert proxy.lose is None
                assert deliveries == []
                await asyncio.sleep(0.06)
                assert await queue.tend(0, "one", 0.05, deliveries) == 1
                assert len((await queue.take(0, "one", 10))[1]) == 1

    async def test_late_settlement_of_a_done_task_does_not_settle_the_next_one(self, queue: Queue):
        """The paused consumer holds a delivery of an older task of the same key."""
        group = {"r:ATL": ("ATL",)}
        await queue.enqueue(EPOCH, tasks(group))
        lost = await taken(queue, "paused")
        await tended(queue, "one", 0.0)
        await settled(queue, await taken(queue), "done")
        await queue.enqueue(EPOCH, tasks(group, newer_than=9))
        (running,) = await taken(queue)
        assert await settled(queue, lost, "done", consumer="paused") == 1
        assert await settled(queue, [running], "failed", 0.0, "no") == 0
        assert len(await taken(queue)) == 1

    async def test_tasks_of_a_leaving_consumer_are_taken_by_others(self, store, backend):
        """This includes tasks whose delivery the consumer never received."""
        queue = Queue(store, "r", backend)
        await queue.enqueue(EPOCH, [("k", 0, ("k",))])
        await queue.take(0, "one", 10)
        await queue.leave("one")
        if backend == "streams":
            await queue.tend(0, "other", 0.0, [])
        assert len((await queue.take(0, "other", 10))[1]) == 1

    async def test_consumer_without_tasks_is_forgotten_when_it_leaves_or_is_silent(self, queue: Queue):
        await queue.enqueue(EPOCH, tasks())
        await settled(queue, await taken(queue), "done")
        assert set((await queue.status()).consumers) == {"one"}
        await queue.leave("one")
        assert (await queue.status()).consumers == {}
        await taken(queue, "silent")
        await asyncio.sleep(0.03)
        await tended(queue, "other", 0.0004)
        assert set((await queue.status()).consumers) == {"other"}


class TestMarks:
    @pytest.mark.uncounted
    async def test_repeated_marks_of_a_key_become_one_task_when_drained(self, queue: Queue):
        for _ in range(100):
            await queue.mark(GROUPS)
        assert (await queue.status()).dirty == 3
        assert await taken(queue) == []
        assert await queue.drain(EPOCH) == (3, 0)
        assert (await queue.status()).dirty == 0
        assert await queue.drain(EPOCH) == (0, 0)
        deliveries = await taken(queue)
        assert {delivery.key: delivery.args for delivery in deliveries} == GROUPS
        now = await queue.store.now()
        assert all(0 < delivery.newer_than <= now for delivery in deliveries)

    async def test_mark_asks_for_a_version_newer_than_stored_and_loading_despite_clock_skew(self, store, backend):
        """A new master's clock may be behind the clock of the old one."""
        queue, ahead = Queue(store, "r", backend), await store.now() + 3_600_000_000
        await store.commands.ask(b"k", "SET", "swr:{stored}", f"{ahead:016d}t")
        lease = f"l{ahead:016d}{ahead + 1:016d}token"
        await store.commands.ask(b"k", "HSET", "swr:{loading}:l", ANY.fingerprint, lease)
        await queue.mark({"stored": (1,), "loading": (2,), "other": (3,)})
        await queue.drain(EPOCH)
        newer_than = {delivery.key: delivery.newer_than for delivery in await taken(queue)}
        assert (newer_than["stored"], newer_than["loading"]) == (ahead, ahead + 1)
        assert newer_than["other"] < ahead

    @pytest.mark.uncounted
    @pytest.mark.promise
    async def test_key_marked_while_its_task_runs_runs_again(self, queue: Queue):
        for _ in range(10_000 // len(GROUPS) + 1 if FULL else 50):
            await queue.mark(GROUPS)
            await queue.drain(EPOCH)
            running = await taken(queue)
            await queue.mark(GROUPS)
            await queue.drain(EPOCH)
            await settled(queue, running, "done")
            again = await taken(queue)
            assert [d.key for d in again] == [d.key for d in running]
            assert all(later.newer_than > first.newer_than for first, later in zip(running, again, strict=True))
            await settled(queue, again, "done")
        assert await is_empty(queue)

    async def test_three_thousand_marks_are_all_drained(self, store, backend):
        queue = Queue(store, "r", backend, shards=2)
        await queue.mark({f"k{number}": (number,) for number in range(3000)})
        assert await queue.drain(EPOCH) == (3000, 0)
        assert (await queue.status()).queued == 3000

    async def test_mark_that_no_replica_confirms_raises_store_unavailable(self, store, backend):
        queue = Queue(store, "r", backend, replicas=1)
        with pytest.raises(StoreUnavailable, match="0 of 1 replicas have the write"):
            await queue.mark(GROUPS)

    async def test_mark_that_a_replica_confirms_is_acknowledged(self, store, server: Server, backend):
        queue = Queue(store, "r", backend, replicas=1)
        with Server(server.kind) as replica:
            # Its first copy would wait 5 s for more replicas to come.
            server.command("CONFIG", "SET", "repl-diskless-sync-delay", "0")
            replica.command("REPLICAOF", "127.0.0.1", str(server.port))
            async with asyncio.timeout(60):
                while b"state=online" not in server.command("INFO", "replication"):
                    await asyncio.sleep(0.05)
                while b"master_link_status:up" not in replica.command("INFO", "replication"):
                    await asyncio.sleep(0.05)
            await queue.mark(GROUPS)
            assert int(replica.command("HLEN", queue._keys[0][3].decode())[1:-2]) == len(GROUPS)

    @pytest.mark.parametrize("is_back", [False, True])
    async def test_mark_raises_when_its_connection_breaks_before_replicas_confirm(
        self, store, backend, monkeypatch, is_back
    ):
        queue = Queue(store, "r", backend, replicas=1)
        link = store._servers._link
        script = store.commands.script

        async def breaking(*args):
            answer = await script(*args)
            before = link.connection
            before.abandon("cut")
            # It may be back before this looks.
            await until(lambda: link.connection is not before)
            if is_back:
                await until(lambda: link.connection is not None)
            return answer

        monkeypatch.setattr(store.commands, "script", breaking)
        # On a busy machine another connection may break before the script.
        with pytest.raises(
            StoreUnavailable, match=r"the connection broke before the replicas had confirmed|cannot reach"
        ):
            await queue.mark(GROUPS)

    @pytest.mark.parametrize("args", [(object(),), (b"x",), ((1, 2),), (float("nan"),), ({1: 2},), ("\ud800",)])
    async def test_mark_with_arguments_that_cannot_travel_unchanged_is_refused(self, store, args):
        queue = Queue(store, "r")
        with pytest.raises(ConfigurationError, match="cannot travel through a queue"):
            await queue.mark({"k": args})


class TestLeaders:
    async def test_leader_keeps_its_lease_until_it_ends_and_then_another_leads(self, queue: Queue):
        epoch, held_for, last, now, _ = await queue.lead("a", 600)
        assert (len(epoch), held_for, last) == (16, 0.0, None)
        assert abs(now - await queue.store.now()) < 5_000_000
        other = await queue.lead("b", 600)
        assert other[0] == ""
        assert 0 < other[1] <= 600
        assert (await queue.lead("a", 0.05))[0] == epoch
        await asyncio.sleep(0.06)
        assert (await queue.lead("b", 60))[0] > epoch
        assert (await queue.lead("a", 0.2))[0] == ""

    async def test_superseded_leader_cannot_enqueue_or_drain(self, queue: Queue):
        old = (await queue.lead("a", 60))[0]
        await queue.enqueue(old, tasks())
        await queue.abdicate("b")
        assert (await queue.lead("b", 60))[0] == ""
        await queue.abdicate("a")
        new = (await queue.lead("b", 60))[0]
        await queue.enqueue(new, ())
        for group, args in GROUPS.items():
            with pytest.raises(Superseded):
                await queue.enqueue(old, [(group, 9, args)])
        with pytest.raises(Superseded):
            await queue.drain(old)
        assert await queue.enqueued("a", 5) is False
        assert await queue.enqueued("b", 6) is True
        assert (await queue.lead("b", 60))[2] == 6
        assert all(delivery.newer_than == 5 for delivery in await taken(queue))

    async def test_status_shows_backend_queued_tasks_round_and_epoch(self, queue: Queue):
        await queue.register()
        epoch = (await queue.lead("a", 60))[0]
        await queue.enqueue(epoch, tasks())
        await queue.enqueued("a", 7_500_000)
        status = await queue.status()
        assert (status.name, status.backend, status.queued, status.round) == ("r:group", queue._backend, 3, 7.5)
        assert status.epoch == int(epoch)
        assert 0 < status.leads_for <= 60
        found = await known(queue.store)
        assert list(found) == ["r:group"]
        assert (found["r:group"]._backend, len(found["r:group"].shards)) == (queue._backend, len(queue.shards))

    async def test_status_of_an_unused_queue_is_empty(self, queue: Queue):
        status = await queue.status()
        assert (status.queued, status.running, status.round, status.epoch, status.leads_for) == (0, 0, None, 0, 0.0)
        assert await tended(queue, "one", 1.0) == 0
        await queue.leave("nobody")
        with contextlib.suppress(Superseded):
            await queue.drain("")


async def test_queues_of_one_name_in_two_namespaces_share_no_tasks(server: Server, backend):
    async with opened(redis_store(server, "other")) as one, opened(redis_store(server)) as two:
        await Queue(one, "r", backend).enqueue(EPOCH, tasks())
        assert (await Queue(two, "r", backend).status()).queued == 0


async def test_queue_works_after_its_backend_is_changed(store):
    """No key is lost, because the next round enqueues all."""
    for backend in ("streams", "list", "streams"):
        queue = Queue(store, "r", backend)
        await queue.heal()
        await queue.enqueue(EPOCH, [("k", 0, ("k",))])
        await queue.take(0, "one", 1)


async def test_take_of_too_many_tasks_marks_only_the_returned_ones_as_running(store, backend):
    queue = Queue(store, "r", backend)
    await queue.enqueue(EPOCH, [(f"k{number}", 0, (number,)) for number in range(9000)])
    taken_at_once = (await queue.take(0, "one", 100_000))[1]
    assert 0 < len(taken_at_once) <= 9000
    assert (await queue.status()).running == len(taken_at_once)


class TestWakes:
    """A queue wakes as many idle consumers as there are tasks for."""

    @pytest.fixture
    async def messages(self, store, monkeypatch):
        heard = []
        monkeypatch.setattr(store._notifications, "_subscriber", heard.append)
        return heard

    @pytest.fixture
    def queue(self, store, backend):
        return Queue(store, "r:일", backend, deliveries=3)

    @staticmethod
    async def woken(messages: list, *names: str) -> bool:
        """Wait until these consumers, and no others, have been woken."""
        await until(lambda: any(message.kind is Kind.QUEUED for message in messages), 60)
        (message,) = [message for message in messages if message.kind is Kind.QUEUED]
        messages.clear()
        return (message.name, message.fingerprint) == ("r:일:0", "".join(tag_of(name) for name in names))

    async def test_enqueue_wakes_only_as_many_idle_consumers_as_the_tasks_need(self, queue: Queue, messages):
        names = [f"host:1:{number:08x}" for number in range(50)]
        for name in names:
            assert (await queue.take(0, name, 4, 4))[0]
        await queue.enqueue(EPOCH, tasks({f"k{number}": (number,) for number in range(10)}))
        assert await self.woken(messages, *names[:3])
        # Who has been woken takes, and is not woken again before it has looked in vain.
        for name in names[:2]:
            assert not (await queue.take(0, name, 4, 4))[0]
        is_idle, deliveries = await queue.take(0, names[2], 4, 4)
        assert is_idle
        await queue.enqueue(EPOCH, tasks({"last": (1,)}))
        assert await self.woken(messages, names[3])
        # What comes back is a task, too.
        await settled(queue, deliveries[:1], "back", consumer=names[2])
        assert await self.woken(messages, names[4])

    async def test_consumer_left_without_free_slots_for_a_full_take_is_not_woken(self, queue: Queue, messages):
        await queue.enqueue(EPOCH, tasks())
        assert not (await queue.take(0, "busy", 4, 2))[0]
        assert (await queue.take(0, "other", 4, 2))[0]
        await queue.enqueue(EPOCH, tasks({"more": (1,)}))
        assert await self.woken(messages, "other")

    async def test_consumer_without_free_slots_passes_its_wake_on_to_another(self, queue: Queue, messages):
        for name in ("one", "other", "leaving"):
            await queue.take(0, name, 4, 4)
        await queue.pass_on(0, "one", 4)
        assert await self.woken(messages, "other")
        await queue.leave("leaving", 4)
        await queue.enqueue(EPOCH, tasks())
        await queue.pass_on(0, "one", 4)
        assert await put(queue, "ZCARD", queue._keys[0][7]) == 0
        assert messages == []

    async def test_delayed_reclaimed_retried_and_healed_tasks_wake_idle_consumers(self, queue: Queue, messages):
        async def idle(consumer: str) -> None:
            assert (await queue.take(0, consumer, 1, 1))[0]

        await queue.enqueue(EPOCH, tasks({f"k{number}": (number,) for number in range(3)}))
        await settled(queue, await taken(queue, most=3), "failed", 60.0)
        await idle("a")
        await put(queue, "ZADD", queue._keys[0][2], "1", "k0", "1", "k1", "1", "k2")
        # One is taken by who looks; two may be taken by others.
        assert len((await queue.take(0, "one", 1, 0))[1]) == 1
        assert await self.woken(messages, "a")
        assert len((await queue.take(0, "one", 5, 0))[1]) == 2
        await idle("b")
        assert await tended(queue, "other", 0.0) == 3
        assert await self.woken(messages, "b")
        await settled(queue, await taken(queue, most=3), "failed", 0.0)
        await idle("c")
        assert await queue.retry() == 3
        assert await self.woken(messages, "c")
        while (await queue.take(0, "one", 10))[1]:
            pass
        await queue.leave("one", 10)
        await put(queue, "DEL", queue._keys[0][1])
        await idle("d")
        await queue.heal()
        assert await self.woken(messages, "d")

    async def test_only_the_live_consumer_is_woken_despite_gone_and_foreign_idle_records(self, queue: Queue, messages):
        for name in ("gone", "here"):
            await queue.take(0, name, 4, 4)
        long_ago = await queue.store.now() - 13_000_000
        await put(queue, "ZADD", queue._keys[0][7], str(long_ago), "004" + tag_of("gone"))
        for member in ("x", "x" * 11, b"\xff"):
            await put(queue, "ZADD", queue._keys[0][7], str(long_ago + 5_000_000), member)
        await queue.enqueue(EPOCH, tasks())
        assert await self.woken(messages, "here")


class TestForeignData:
    """Another program writes into the queue's keys, or an operator restores another backup under them."""

    async def test_unreadable_record_does_not_stop_heal_for_the_other_tasks(self, queue):
        await queue.enqueue(EPOCH, tasks())
        for keys in queue._keys:
            await put(queue, "DEL", keys[1])
            await put(queue, "HSET", keys[0], "r:bad", "x", "r:worse", b"\xff", "", "")
        await queue.heal()
        assert {delivery.key for delivery in await taken(queue)} == set(GROUPS)
        assert (await queue.status()).counts["malformed"] == 3 * len(queue.shards)

    @pytest.mark.parametrize("options", [(), ("PX", "60000")], ids=["no expiry", "expiry"])
    async def test_invalid_leader_lease_does_not_prevent_a_new_leader(self, queue, options):
        await put(queue, "SET", queue._lease, b"\xff\xfe", *options)
        led = await queue.lead("one", 10)
        assert led.epoch
        assert not (await queue.lead("other", 10)).epoch
        await put(queue, "PERSIST", queue._lease)
        assert (await queue.lead("other", 10)).epoch > led.epoch

    async def test_invalid_epoch_or_round_does_not_prevent_a_new_leader(self, queue):
        await put(queue, "HSET", queue._rounds, "round", "soon", "part", b"\xff")
        for keys in queue._keys:
            await put(queue, "HSET", keys[5], "epoch", "x")
        led = await queue.lead("one", 10)
        assert (led.last, (await queue.status()).round) == (None, None)
        for keys in queue._keys:
            await put(queue, "HSET", keys[5], "epoch", "x")
        assert (await queue.enqueue(led.epoch, tasks()))[0] == len(GROUPS)
        assert (await queue.status()).epoch == int(led.epoch)

    async def test_invalid_counters_and_consumers_are_ignored(self, queue):
        for keys in queue._keys:
            await put(queue, "HSET", keys[5], "enqueued", "many", b"\xff", "x")
            await put(queue, "ZADD", keys[6], "inf", b"\xff")
        await queue.enqueue(EPOCH, tasks())
        status = await queue.status()
        assert status.counts["enqueued"] == len(GROUPS)
        assert len(await taken(queue)) == len(GROUPS)

    async def test_unreadable_mark_leaves_its_task_unchanged(self, queue):
        await queue.enqueue(EPOCH, tasks())
        for shard, key in ((queue._shard(key), key) for key in GROUPS):
            await put(queue, "HSET", queue._keys[shard][3], key.encode("utf-8", "surrogatepass"), "x" * 40)
        await queue.mark({"r:JFK": ("JFK",)})
        await put(queue, "HSET", queue._keys[queue._shard("r:LAX")][3], "r:LAX", "x" * 40)
        await queue.mark({"r:LAX": ("LAX",)})
        assert (await queue.drain(EPOCH))[0] == 2
        assert {delivery.key for delivery in await taken(queue)} == {*GROUPS, "r:JFK", "r:LAX"}

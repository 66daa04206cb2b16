"""A server that refuses writes, or messages: no invalidation is lost in silence."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry
from redis.asyncio import Redis
from redis.exceptions import OutOfMemoryError

from swr import Cache, Policy, State, StoreUnavailable
from swr.core.codec import ANY
from swr.entry import stamp
from swr.errors import LeaseLost
from swr.events import CommandRefused
from swr.prometheus import export
from swr.stores.base import Kind, Lease, Notification
from swr.stores.redis.refusals import Refusals
from tests.servers import Server
from tests.test_losses import refresh
from tests.test_redis import Counter, until

TAGGED = Policy(60, 600, tags=("t",))


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio

INVALIDATIONS = {
    "key": lambda cache: cache.invalidate("k"),
    "tag": lambda cache: cache.invalidate_tag("t"),
    "clear": lambda cache: cache.clear(),
}


@contextlib.contextmanager
def without_memory(server: Server) -> Iterator[None]:
    server.command("CONFIG", "SET", "maxmemory", "1")
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "maxmemory", "0")


@contextlib.contextmanager
def without_replicas(server: Server) -> Iterator[None]:
    server.command("CONFIG", "SET", "min-replicas-to-write", "1")
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "min-replicas-to-write", "0")


@contextlib.contextmanager
def without_a_disk(server: Server) -> Iterator[None]:
    """A server that cannot save, and is told to take no writes then."""
    # A folder where the file should be.
    file = Path(server._folder) / "dump.rdb"
    os.makedirs(file / "x", exist_ok=True)
    server.command("CONFIG", "SET", "save", "1 1")
    server.command("SET", "x", "1")
    end = time.monotonic() + 60
    while b"MISCONF" not in server.command("SET", "x", "1"):
        assert time.monotonic() < end
        server.command("BGSAVE")
        time.sleep(0.1)
    try:
        yield
    finally:
        server.command("CONFIG", "SET", "save", "")
        server.command("CONFIG", "SET", "stop-writes-on-bgsave-error", "no")


async def both_have(one: Cache, other: Cache, load: Counter) -> None:
    for cache in (one, other):
        await cache.get_or_load("k", load, TAGGED)
    assert load.runs == 1


async def value_of(cache: Cache, load: Counter) -> int:
    return (await cache.get_or_load("k", load, TAGGED)).value


@pytest.mark.parametrize("what", INVALIDATIONS)
async def test_invalidation_reaches_all_processes_while_the_server_has_no_memory(own_server: Server, what: str):
    """A new process does not serve the value that Redis held before."""
    load = Counter()
    async with Cache(own_server.url, timeout=2) as one, Cache(own_server.url, timeout=2) as other:
        await both_have(one, other, load)
        with without_memory(own_server):
            await INVALIDATIONS[what](one)
            await until(lambda: other.engine.store.peek("k") is None)
            assert await value_of(other, load) == 2
            assert one.engine.is_store_up
            async with Cache(own_server.url, timeout=2) as new:
                assert await value_of(new, load) == 3


@pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
async def test_process_that_loaded_without_redis_memory_does_not_return_to_the_old_value(
    own_server: Server, l1_max_bytes
):
    """Redis still holds the previous value, whose deadlines say that it is fresh."""
    load = Counter()
    async with Cache(own_server.url, l1_max_bytes=l1_max_bytes) as one, Cache(own_server.url) as other:
        assert await value_of(one, load) == 1
        with without_memory(own_server):
            await refresh(one, "k", load)
            assert await value_of(one, load) == (2 if l1_max_bytes else 3)
            if l1_max_bytes:
                # Notifications may lie unread, so that the copy is compared with what Redis holds.
                one.engine.store._on_notification(Notification(Kind.GAP))
                assert await value_of(one, load) == 2
                one.local.drop("k")
                assert await value_of(one, load) == 3
            assert await value_of(other, Counter()) == 1
        # What another process stores from now on is newer.
        await refresh(other, "k", load)
        assert load.runs == 4
        await until(lambda: one.engine.store.peek("k") is None)
        assert await value_of(one, load) == 4


@contextlib.contextmanager
def without_a_right(server: Server, right: str = "eval") -> Iterator[None]:
    server.command("ACL", "SETUSER", "default", f"-{right}")
    try:
        yield
    finally:
        server.command("ACL", "SETUSER", "default", f"+{right}")


def without_a_right_of_a_script(server: Server) -> contextlib.AbstractContextManager[None]:
    return without_a_right(server, "set")


@pytest.mark.parametrize(
    ("refusing", "remedy"),
    [
        (without_memory, "raise maxmemory, or set maxmemory-policy to volatile-lru"),
        (without_a_right, "give its user the rights that docs/redis.md lists"),
        (without_a_right_of_a_script, "give its user the rights that docs/redis.md lists"),
        (without_replicas, "from memory and from the loaders"),
    ],
)
async def test_refused_command_is_logged_with_its_remedy(own_server: Server, caplog, refusing, remedy: str):
    async with Cache(own_server.url, timeout=2) as cache:
        load = Counter()
        await value_of(cache, load)
        await cache.invalidate("k")
        with refusing(own_server):
            assert await value_of(cache, load) == 2
    lines = [record.getMessage() for record in caplog.records if "refused a command" in record.getMessage()]
    assert lines
    assert all(line.endswith(remedy) for line in lines)


async def test_missing_right_that_prevents_connecting_is_logged_with_its_remedy(own_server: Server, caplog):
    with without_a_right(own_server):
        async with Cache(own_server.url):
            await until(lambda: "cannot reach Redis" in caplog.text)
    [line] = [text for text in caplog.messages if "cannot reach Redis" in text]
    assert ": give its user the rights that docs/redis.md lists); serving from memory" in line


async def test_demoted_master_is_logged_as_a_replica_from_the_first_line_on(own_server: Server, caplog):
    async with Cache(own_server.url, timeout=5) as cache:
        await cache.invalidate("k")
        own_server.command("REPLICAOF", "127.0.0.1", "1")
        try:
            await cache.invalidate("k")
            await until(lambda: "the server is a replica" in caplog.text)
        finally:
            own_server.command("REPLICAOF", "NO", "ONE")
    assert "(You can't write" not in caplog.text


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    texts = ("Redis refused a command", "Redis stores values again")
    return [text for record in caplog.records for text in texts if record.getMessage().startswith(text)]


async def test_begin_and_end_of_refusals_are_logged_and_each_refusal_is_an_event(own_server: Server, caplog):
    async with Cache(own_server.url, timeout=5) as cache:
        events: list[CommandRefused] = []
        cache.subscribe(events.append, CommandRefused)
        registry = CollectorRegistry()
        export(cache, registry)
        for turn in (1, 2):
            with without_memory(own_server):
                told = len(events)
                for number in range(3):
                    await cache.get_or_load(f"refused {turn} {number}", Counter(), TAGGED)
                assert len(events) >= told + 3
                assert "maxmemory" in events[-1].reason
            await cache.get_or_load(f"stored {turn}", Counter(), TAGGED)
            assert said(caplog) == ["Redis refused a command", "Redis stores values again"] * turn
        assert registry.get_sample_value("swr_store_refusals_total", {"cache": "swr"}) == len(events)


async def test_commit_with_a_lost_lease_does_not_end_the_logged_refusal(own_server: Server, caplog):
    async with Cache(own_server.url, timeout=5) as cache:
        with without_memory(own_server):
            await cache.get_or_load("refused", Counter(), TAGGED)
            lost = Lease("lost", "token", 1, cache.engine.store.tag_versions.newest)
            with pytest.raises(LeaseLost):
                await cache.engine.store.commit(lost, stamp(1, TAGGED, 0.0, 1), ANY)
            assert said(caplog) == ["Redis refused a command"]


def test_refusals_that_alternate_with_successes_log_at_most_ten_lines(caplog, monkeypatch):
    now = 0.0
    monkeypatch.setattr("swr.stores.redis.refusals.time.monotonic", lambda: now)
    refusals, told = Refusals(), []
    refusals.open(told.append)
    for _ in range(100):
        refusals.refused(OutOfMemoryError("full"))
        refusals.stored()
    assert len(said(caplog)) == 10
    assert len(told) == 100
    now = 4000.0
    # The last line said that values are stored.
    refusals.stored()
    refusals.refused(OutOfMemoryError("full"))
    assert len(said(caplog)) == 11


def test_continuous_refusals_date_from_the_first_and_end_after_the_last(monkeypatch):
    now = 1000.0
    monkeypatch.setattr("swr.stores.redis.refusals.time.time", lambda: now)
    monkeypatch.setattr("swr.stores.redis.refusals.time.monotonic", lambda: now)
    refusals = Refusals()
    refusals.open(lambda notification: None)
    assert refusals.lately() is None
    for moment in (1000.0, 1014.0, 1028.0):
        now = moment
        refusals.refused(OutOfMemoryError("full."))
    text = "full: raise maxmemory, or set maxmemory-policy to volatile-lru"
    assert refusals.lately() == (text, 1000.0)
    now = 1044.0
    assert refusals.lately() is None
    refusals.refused(OutOfMemoryError("full."))
    assert refusals.lately() == (text, 1044.0)


MARKS = {
    "key": lambda cache, loader: loader.mark_stale("x"),
    "tag": lambda cache, loader: cache.mark_stale_tags("t"),
    "loader": lambda cache, loader: loader.mark_stale_all(),
    "all": lambda cache, loader: cache.mark_stale_all(),
}


@pytest.mark.parametrize("what", MARKS)
async def test_refused_stale_mark_holds_in_running_processes_and_is_replayed(own_server: Server, what: str):
    """A process that reads the entry from Redis meanwhile gets it as stale, too."""
    load = Counter()

    def decorated(cache: Cache):
        @cache.cached("k:{n}", fresh_for=600, stale_for=600, tags=("t",))
        async def loader(n: str) -> int:
            return await load()

        return loader

    async with Cache(own_server.url, timeout=2) as one, Cache(own_server.url, timeout=2) as other:
        loaders = [decorated(cache) for cache in (one, other)]
        for loader in loaders:
            await loader("x")
        with without_replicas(own_server):
            await MARKS[what](one, loaders[0])
            await until(lambda: not other.engine.is_store_up)
            other.local.clear()
            assert [(await loader.outcome("x")).state for loader in loaders] == [State.STALE, State.STALE]
            assert not one.engine.is_store_up
        await until(lambda: one.engine.is_store_up and other.engine.is_store_up, 60)
        async with Cache(own_server.url, timeout=2) as new:
            await until(lambda: load.runs > 1)
            assert await decorated(new)("x") > 1


@pytest.mark.parametrize("refusing", [without_replicas, without_a_disk])
@pytest.mark.parametrize("what", INVALIDATIONS)
async def test_refused_invalidation_holds_in_running_processes_and_is_replayed(
    own_server: Server, caplog: pytest.LogCaptureFixture, what: str, refusing
):
    load = Counter()
    async with Cache(own_server.url, timeout=2) as one, Cache(own_server.url, timeout=2) as other:
        await both_have(one, other, load)
        with refusing(own_server):
            for round_ in range(2):
                before = load.runs
                await INVALIDATIONS[what](one)
                await until(lambda: other.engine.store.peek("k") is None)
                assert await value_of(one, load) > before
                assert await value_of(other, load) > before
                assert not one.engine.is_store_up
                assert not other.engine.is_store_up
                # What Redis holds is older, and no answer.
                one.local.clear()
                assert await value_of(one, load) > before + round_
            assert one.engine.store.is_reachable
        await until(lambda: one.engine.is_store_up and other.engine.is_store_up, 60)
        last = load.runs
        async with Cache(own_server.url, timeout=2) as new:
            assert await value_of(new, load) == last + 1
    refused = [record.message for record in caplog.records if "refuses invalidations" in record.message]
    assert len(refused) == 1
    assert sum("takes invalidations again" in record.message for record in caplog.records) == 1


async def test_refused_invalidation_is_replayed_by_another_process_that_received_it(own_server: Server):
    load = Counter()
    async with Cache(own_server.url, timeout=2) as other:
        with without_replicas(own_server):
            async with Cache(own_server.url, timeout=2) as one:
                await other.get_or_load("k", load, TAGGED)
        async with Cache(own_server.url, timeout=2) as one:
            await one.invalidate("k")
            await both_have(one, other, Counter())
            with without_replicas(own_server):
                await one.invalidate_tag("t")
                await until(lambda: other.engine.store.has_pending)
                # It is killed: nobody replays what it alone knows.
                one.engine.store._pending._tags.clear()
        await until(lambda: other.engine.is_store_up, 60)
        async with Cache(own_server.url, timeout=2) as new:
            load = Counter()
            assert await value_of(new, load) == 1
            assert load.runs == 1


@pytest.mark.parametrize("what", INVALIDATIONS)
async def test_invalidation_by_a_user_who_may_not_publish_reaches_other_processes(
    own_server: Server, caplog: pytest.LogCaptureFixture, what: str
):
    own_server.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
    mute = Redis(port=own_server.port, username="mute", password="secret")
    load = Counter()
    async with Cache(redis=mute, timeout=2) as one, Cache(own_server.url, timeout=2) as other:
        await both_have(one, other, load)
        await INVALIDATIONS[what](one)
        await until(lambda: other.engine.store.peek("k") is None)
        assert await value_of(other, load) == 2
        assert await value_of(one, load) == 2
        await until(lambda: "refuses to publish" in caplog.text)
        # The subscription works anyway: what others say is heard.
        await other.invalidate("k")
        await until(lambda: one.engine.store.peek("k") is None)
        assert one.engine.is_store_up
    assert sum("refuses to publish" in record.message for record in caplog.records) == 1
    await mute.aclose()


async def test_user_who_may_not_publish_releases_leases_and_stores_values(own_server: Server):
    own_server.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
    mute = Redis(port=own_server.port, username="mute", password="secret")
    async with Cache(redis=mute, timeout=2) as one:

        async def fails() -> int:
            raise ValueError("mine")

        with pytest.raises(ValueError, match="mine"):
            await one.get_or_load("k", fails, TAGGED)
        assert own_server.command("EXISTS", "swr:{k}:l") == b":0\r\n"
        assert await value_of(one, Counter()) == 1
        assert own_server.command("EXISTS", "swr:{k}") == b":1\r\n"
    await mute.aclose()


async def test_replicated_write_fails_with_the_reason_of_redis_without_the_right_to_wait(own_server: Server):
    own_server.command("ACL", "SETUSER", "hasty", "on", ">secret", "~*", "&*", "+@all", "-wait")
    hasty = Redis(port=own_server.port, username="hasty", password="secret")
    async with Cache(redis=hasty, timeout=2) as one:
        await one.get_or_load("k", Counter(), TAGGED)
        store = one.engine.store.store
        with pytest.raises(StoreUnavailable, match="wait"):
            await store.commands.replicated(1, "return 1", (store.names.entry("k"),))
        assert not await store.has_replicas("k", ANY.fingerprint, 0, 1)
    await hasty.aclose()


async def test_invalidation_without_message_is_noticed_although_newer_messages_arrive(own_server: Server):
    own_server.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
    mute = Redis(port=own_server.port, username="mute", password="secret")
    load = Counter()
    async with (
        Cache(redis=mute, timeout=2) as one,
        Cache(own_server.url, timeout=2) as loud,
        Cache(own_server.url, timeout=2) as reader,
    ):
        await both_have(loud, reader, load)
        # Between two heartbeats, sooner or later: the message about the second says nothing of the first.
        for number in range(5):
            await one.invalidate_tag("t")
            await loud.invalidate_tag("other")
            assert await value_of(one, load) == number + 2
            await until(lambda: reader.engine.store.peek("k") is None)
            assert await value_of(reader, load) == number + 2
    await mute.aclose()

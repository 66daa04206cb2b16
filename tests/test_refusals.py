"""A server that refuses writes, or messages: no invalidation is lost in silence."""

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from redis.asyncio import Redis

from swr import Cache, Policy
from tests.servers import Server
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
async def test_a_server_without_memory_takes_every_invalidation(own_server: Server, what: str):
    """A new process learns of it, too: what Redis holds does not count any more."""
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


@contextlib.contextmanager
def without_a_right(server: Server) -> Iterator[None]:
    server.command("ACL", "SETUSER", "default", "-eval")
    try:
        yield
    finally:
        server.command("ACL", "SETUSER", "default", "+eval")


@pytest.mark.parametrize(
    ("refusing", "remedy"),
    [
        (without_memory, "raise maxmemory, or set maxmemory-policy to volatile-lru"),
        (without_a_right, "give its user the rights that docs/redis.md lists"),
        (without_replicas, "from memory and from the loaders"),
    ],
)
async def test_a_refused_command_is_logged_with_what_follows_and_the_remedy(
    own_server: Server, caplog, refusing, remedy: str
):
    async with Cache(own_server.url, timeout=2) as cache:
        load = Counter()
        await value_of(cache, load)
        await cache.invalidate("k")
        with refusing(own_server):
            assert await value_of(cache, load) == 2
    lines = [record.getMessage() for record in caplog.records if "refused a command" in record.getMessage()]
    assert lines
    assert all(line.endswith(remedy) for line in lines)


@pytest.mark.parametrize("refusing", [without_replicas, without_a_disk])
@pytest.mark.parametrize("what", INVALIDATIONS)
async def test_what_a_server_refuses_is_told_to_all_who_run_and_replayed(
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


async def test_the_last_process_that_has_heard_of_a_refused_invalidation_replays_it(own_server: Server):
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
                one.engine.store._pending_tags.clear()
        await until(lambda: other.engine.is_store_up, 60)
        async with Cache(own_server.url, timeout=2) as new:
            load = Counter()
            assert await value_of(new, load) == 1
            assert load.runs == 1


@pytest.mark.parametrize("what", INVALIDATIONS)
async def test_a_user_who_may_not_publish_invalidates_everything_and_others_learn_of_it(
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
        # The subscription works all the same: what others say is heard.
        await other.invalidate("k")
        await until(lambda: one.engine.store.peek("k") is None)
        assert one.engine.is_store_up
    assert sum("refuses to publish" in record.message for record in caplog.records) == 1
    await mute.aclose()


async def test_a_user_who_may_not_publish_gives_leases_back_and_stores_what_it_loads(own_server: Server):
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


async def test_what_a_user_who_may_not_publish_invalidates_is_learned_though_newer_messages_come(own_server: Server):
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

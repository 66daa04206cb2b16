"""What an idle process asks of Redis."""

import asyncio

import pytest
from redis.exceptions import AskError, MovedError, ReadOnlyError

from swr import Cache, Policy, StoreUnavailable
from swr.stores.redis.digests import REPORT
from swr.stores.redis.failover import Failover
from swr.stores.redis.heartbeat import Heartbeat, OtherHistory, Part, Report
from tests.fleet import until
from tests.servers import Server
from tests.test_redis import Counter

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture
def beats(monkeypatch):
    """Have heartbeats come fast, and count them."""
    counted, heartbeat = [], Failover.heartbeat

    async def counting(self, *args):
        counted.append(args)
        return await heartbeat(self, *args)

    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 0.01)
    monkeypatch.setattr("swr.stores.redis.digests._EVERY", 0.0)
    monkeypatch.setattr(Failover, "heartbeat", counting)
    return counted


@pytest.mark.parametrize("reports", [False, True])
async def test_heartbeat_is_one_command_that_includes_the_dashboard_digest(server: Server, beats, reports):
    async with Cache(server.url, reports=reports) as cache:
        store = cache.engine.store
        await until(lambda: len(beats) > 2)
        sent, before = store.sent, len(beats)
        await until(lambda: len(beats) >= before + 20)
        # The last one may not have been sent yet.
        assert len(beats) - before - 1 <= store.sent - sent <= len(beats) - before + 1
        assert store.is_reachable
        if reports:
            await until(lambda: server.command("HEXISTS", "swr:{!}d", cache.reporter.id) == b":1\r\n")


@pytest.fixture
async def link(server: Server, no_heartbeats):
    async with Cache(server.url) as cache:
        yield cache.engine.store.store._servers.link_to(b"k")


@pytest.fixture
def connection(link):
    return link.connection


LESSON = Part("return {KEYS[1], ARGV[1], #KEYS, #ARGV}", (b"k",), (b"a",))


def report(script, *keys):
    replies = []
    return Report(Part(script, keys, (b"id", b"digest", 60, 20)), replies.append), replies


async def test_heartbeat_gives_each_of_its_parts_its_own_keys_and_arguments(link, connection):
    told, replies = report("return {KEYS[1], KEYS[2], ARGV[1], ARGV[4], #KEYS, #ARGV}", b"x", b"y")
    heartbeat = Heartbeat(connection, (b"probe", 1), link.history, told)
    assert await heartbeat.ask("EVAL", LESSON.script, 1, *LESSON.keys, *LESSON.arguments) == [b"k", b"a", 1, 1]
    assert replies == [[b"x", b"y", b"id", b"20", 2, 4]]
    assert b"role:master" in heartbeat.info
    assert heartbeat.refused is None
    assert await heartbeat.ask("ECHO", b"as it is") == b"as it is"


async def test_failed_report_does_not_stop_the_other_parts_of_a_heartbeat(link, connection, server: Server):
    server.command("SET", "digests", "foreign")
    told, replies = report(REPORT, b"digests", b"times", b"open", b"faults")
    assert await Heartbeat(connection, (b"probe", 1), link.history, told).send(LESSON) == [b"k", b"a", 1, 1]
    assert "WRONGTYPE" in str(replies[0])


async def test_heartbeat_to_a_server_with_another_history_raises_other_history(connection):
    heartbeat = Heartbeat(connection, (b"probe", 1), b"another", None)
    with pytest.raises(OtherHistory):
        await heartbeat.ask("EVAL", LESSON.script, 1, *LESSON.keys, *LESSON.arguments)
    assert heartbeat.info


class Moved:
    """A connection to a server that the keys are not with any more."""

    def __init__(self, connection):
        self.connection, self.sent = connection, []

    def ask(self, *command):
        self.sent.append(command)
        if command[2]:
            answer = asyncio.get_running_loop().create_future()
            answer.set_exception(MovedError("5 127.0.0.1:7000"))
            return answer
        return self.connection.ask(*command)


async def test_heartbeat_sends_only_the_probe_after_the_keys_have_moved(connection):
    moved = Moved(connection)
    told, replies = report(REPORT, b"digests", b"times", b"open", b"faults")
    heartbeat = Heartbeat(moved, (b"probe", 1), None, told)
    with pytest.raises(AskError):
        await heartbeat.ask("EVAL", LESSON.script, 1, *LESSON.keys, *LESSON.arguments)
    assert heartbeat.info is None
    assert await heartbeat.send() is None
    assert heartbeat.info
    assert replies == []
    assert len(moved.sent) == 2


async def test_heartbeat_repeats_invalidations_on_a_server_that_was_a_replica_meanwhile(
    own_server: Server, no_heartbeats, monkeypatch
):
    monkeypatch.setattr("swr.stores.redis.failover._MARGIN", 3_600_000_000)
    async with Cache(own_server.url, timeout=30) as cache:
        await cache.get_or_load("k", Counter(), Policy(60, 600))
        store = cache.engine.store.store
        entry = store.names.entry("k").decode()
        own_server.command("COPY", entry, "before")
        await cache.invalidate("k")
        own_server.command("COPY", "before", entry, "REPLACE")
        link = store._servers.link_to(b"k")
        own_server.command("REPLICAOF", "127.0.0.1", "1")
        own_server.command("REPLICAOF", "NO", "ONE")
        assert await store._failover.heartbeat(link, link.connection, (b"probe", 1), None) is None
        assert own_server.command("GET", entry) != own_server.command("GET", "before")


async def test_probe_with_a_skipped_number_raises_store_unavailable(link):
    with pytest.raises(StoreUnavailable, match="messages were lost"):
        link._on_probe(b"%d" % (link._returned + 2))


class Demoted:
    """A connection to a server that has become a replica."""

    def __init__(self, connection):
        self.connection = connection

    async def ask(self, *command):
        raise ReadOnlyError("You can't write against a read only replica.")

    def abandon(self, reason):
        self.connection.abandon(reason)


async def test_command_refused_by_a_replica_is_sent_again_over_the_next_connection(server: Server, no_heartbeats):
    async with Cache(server.url, timeout=30) as cache:
        await cache.engine.ready()
        link = cache.engine.store.store._servers.link_to(b"k")
        link.connection = Demoted(link.connection)
        assert await link.ask("ECHO", "again") == b"again"

"""Redis and Valkey for real: outages, lost replies, foreign data, messages, and what the link does about them."""

import asyncio
import contextlib
import gc
import logging
import math
import time

import anyio
import pytest
from redis.asyncio import Redis
from redis.exceptions import ResponseError

from swr import Cache, ConfigurationError, LeaseLost, Policy, State, StoreUnavailable
from swr.core.arguments import NO_ARGUMENTS
from swr.core.codec import ANY
from swr.entry import Entry, stamp
from swr.events import Invalidated
from swr.loaders.annotations import codec_for
from swr.loaders.call import Call, Loader
from swr.middleware import Rule, SWRMiddleware
from swr.stores.base import Kind, Lease, StoreRefused
from swr.stores.redis import shared_tag_versions
from swr.stores.redis.batching import Room
from swr.stores.redis.connection import Connection
from swr.stores.redis.reading import Reading
from swr.stores.redis.releases import connection_of
from swr.stores.redis.scripts import ACQUIRE, COMMIT, RELEASE
from swr.stores.redis.store import RedisStore
from swr.stores.redis.topology import Single
from tests.fleet import settle
from tests.proxy import Proxy
from tests.servers import Server
from tests.test_stores import opened, redis_store
from tests.web import MAX_AGE, App, client

POLICY = Policy(60, 600, 3600)


@pytest.fixture
def anyio_backend():
    return "asyncio"


pytestmark = pytest.mark.anyio


class Counter:
    """A loader that counts."""

    def __init__(self, seconds: float = 0.0) -> None:
        self.runs = 0
        self.seconds = seconds

    async def __call__(self) -> int:
        self.runs += 1
        run = self.runs
        await asyncio.sleep(self.seconds)
        return run


def job_of(cache: Cache, load: Counter) -> Call:
    return Call(Loader(cache.engine, load, False, False), NO_ARGUMENTS, POLICY, codec_for(load))


async def until(condition, seconds: float = 120.0) -> None:
    """Wait for something to become true."""
    async with asyncio.timeout(seconds):
        while not condition():
            await asyncio.sleep(0.005)


def at_once(call):
    """Return the result of a call that waits for nothing: not for Redis, and not for a turn of the event loop."""
    try:
        call.send(None)
    except StopIteration as end:
        return end.value
    call.close()
    raise AssertionError("it waits")


class TestSharing:
    async def test_one_load_serves_two_caches(self, server: Server):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            assert (await one.get_or_load("k", load, POLICY)).state is State.MISSING
            assert (await other.get_or_load("k", load, POLICY)).state is State.FRESH
        assert load.runs == 1

    async def test_readers_that_lost_the_lease_continue_on_the_notification_not_a_poll(
        self, server: Server, monkeypatch
    ):
        monkeypatch.setattr("swr.engine.refresh_path._LONGEST_WAIT", 30.0)
        load = Counter(0.2)
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            outcomes = await asyncio.gather(
                *(c.get_or_load("k", load, POLICY) for c in (one, other) for _ in range(50))
            )
        assert {(outcome.value, outcome.state) for outcome in outcomes} == {(1, State.MISSING)}

    @pytest.mark.parametrize("local", [0, 2**20])
    async def test_invalidation_by_key_tag_or_clear_reaches_the_other_caches(self, server: Server, local):
        load = Counter()
        tagged = Policy(60, 600, tags=("t", "\ud800"))
        async with Cache(server.url, l1_max_bytes=local, timeout=2) as one, Cache(server.url, timeout=2) as other:
            for invalidate in (
                lambda: one.invalidate("k"),
                lambda: one.invalidate_tag("t"),
                lambda: one.invalidate_tag("\ud800"),
                lambda: one.clear(),
            ):
                for cache in (one, other):
                    await cache.get_or_load("k", load, tagged)
                runs = load.runs
                await invalidate()
                assert (await one.get_or_load("k", load, tagged)).value == runs + 1
                await until(lambda: other.local.get("k") is None or other.engine.store.peek("k") is None)
                assert (await other.get_or_load("k", load, tagged)).value == runs + 1

    async def test_prepared_response_is_dropped_when_another_cache_invalidates_it(self, server: Server):
        app = App(MAX_AGE)
        async with (
            Cache(server.url, timeout=2) as one,
            Cache(server.url, timeout=2) as other,
            client(SWRMiddleware(app, one, rules=[Rule("/x", tags=["t"])])) as http,
        ):
            for invalidate in (lambda: other.invalidate_url("/x"), lambda: other.invalidate_tag("t"), other.clear):
                for _ in range(3):
                    before = (await http.get("/x")).text
                # The prepared response stays ready; only the notification may end that.
                one.local.get("GET http://test\n/x?").fresh_until = math.inf
                await invalidate()
                async with asyncio.timeout(60):
                    while (await http.get("/x")).text == before:
                        await asyncio.sleep(0.005)

    async def test_reader_after_an_invalidation_does_not_join_an_earlier_get(self, server: Server):
        load = Counter()
        async with (
            Proxy(server.port) as proxy,
            Cache(proxy.url, timeout=60) as one,
            Cache(server.url, timeout=2) as other,
        ):
            await other.get_or_load("k", load, POLICY)
            await one.engine.ready()
            store, notifications = one.engine.store.store, []
            one.engine.notifications.subscribe(notifications.append)
            proxy.holds_replies, sent = True, store.sent
            before = asyncio.ensure_future(one.get_or_load("k", load, POLICY))
            await until(lambda: store.sent > sent)
            await other.invalidate("k")
            await until(lambda: notifications)
            assert store._readings == {}
            proxy.holds_replies = False
            after = await one.get_or_load("k", load, POLICY)
            assert (after.value, (await before).value) == (2, 2)

    async def test_own_messages_from_redis_cause_no_second_notification(self, server: Server):
        async with Cache(server.url, timeout=2) as cache:
            notifications = []
            await cache.engine.ready()
            cache.engine.notifications.subscribe(notifications.append)
            await cache.get_or_load("k", Counter(), POLICY)
            await cache.invalidate("k")
            await asyncio.sleep(0.1)
            assert [notification.kind.name for notification in notifications] == ["HELD", "INVALIDATED"]

    async def test_namespaces_share_nothing(self, server: Server):
        load = Counter()
        async with (
            Cache(server.url, namespace="a", timeout=2) as one,
            Cache(server.url, namespace="b", timeout=2) as other,
        ):
            await one.get_or_load("k", load, POLICY)
            await other.get_or_load("k", load, POLICY)
            await one.clear()
            assert (await other.get_or_load("k", load, POLICY)).value == 2

    async def test_passed_redis_client_is_used_and_left_open(self, server: Server):
        client = Redis.from_url(server.url)
        async with Cache(redis=client, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), POLICY)
        assert await client.ping()
        assert await client.exists("swr:{k}")
        await client.aclose()

    async def test_entry_and_lease_of_a_key_share_a_cluster_slot(self, server: Server):
        from redis.crc import key_slot

        store = RedisStore(Single(Redis))
        for key in ("k", "}x", "{a}b", "a:b", "x" * 999, ""):
            entry, lease = store.names.entry_and_lease(key)
            assert key_slot(entry) == key_slot(lease)
        assert len({key_slot(name) for name in (store.names.tag_versions, store.names.newest_tag_version)}) == 1

    async def test_stored_entry_expires_in_redis_after_its_last_deadline(self, server: Server):
        client = Redis.from_url(server.url)
        async with Cache(server.url, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), Policy(10, 20, 30))
            await cache.get_or_load("short", Counter(), Policy(0.001))
            assert 38_000 < await client.pttl("swr:{k}") <= 40_000
            # Too old for readers at once, but not for those who are waiting for it.
            assert 3_000 < await client.pttl("swr:{short}") <= 5_000
        await client.aclose()


class TestForeignData:
    @pytest.mark.parametrize(
        "data", [b"", b"x", b"\x80" * 100, b"0" * 17, b"0000000000000001e", b"0" * 16 + b"t" + b"x"]
    )
    async def test_foreign_value_is_a_miss_and_logged_once(self, server: Server, caplog, data):
        client = Redis.from_url(server.url)
        async with Cache(server.url, l1_max_bytes=0, timeout=2) as cache:
            await client.set("swr:{k}", data)
            for _ in range(3):
                assert await cache.engine.store.read("k", codec_for(Counter())) is None
            assert len(caplog.records) == (1 if data else 0)
            assert (await cache.get_or_load("k", Counter(), POLICY)).state is State.MISSING
            assert (await cache.get_or_load("k", Counter(), POLICY)).state is State.FRESH
        await client.aclose()

    async def test_corrupted_entry_is_a_miss(self, server: Server, caplog):
        client = Redis.from_url(server.url)
        load = Counter()
        async with Cache(server.url, l1_max_bytes=0, timeout=2) as cache:
            for position in (20, 40, -1):
                await cache.invalidate("k")
                await cache.get_or_load("k", load, POLICY)
                runs = load.runs
                frame = bytearray(await client.get("swr:{k}"))
                frame[position] ^= 1
                await client.set("swr:{k}", bytes(frame))
                assert (await cache.get_or_load("k", load, POLICY)).value == runs + 1
        assert sum("passed over" in record.message for record in caplog.records) == 1
        await client.aclose()

    async def test_entry_or_lease_key_of_another_redis_type_is_a_miss(self, server: Server):
        client = Redis.from_url(server.url)
        async with Cache(server.url, timeout=2) as cache:
            for key in ("swr:{k}", "swr:{k}:l"):
                await client.delete("swr:{k}", "swr:{k}:l")
                await client.rpush(key, "x")
                await cache.invalidate("k")
                assert (await cache.get_or_load("k", Counter(), POLICY)).state is State.MISSING
        await client.aclose()

    async def test_foreign_messages_are_ignored_and_logged_once(self, server: Server, caplog):
        client = Redis.from_url(server.url)
        async with Cache(server.url, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), POLICY)
            for data in (b"", b"hello", b"z" + b"0" * 32 + b"k", b"\xff" * 50, b"mxx", b"m00000001", b"m00000003abc0"):
                await client.publish("swr:0:messages", data)
            notifications = []
            cache.engine.notifications.subscribe(notifications.append)
            async with Cache(server.url, timeout=2) as other:
                await other.invalidate("after them")
            await until(lambda: notifications)
            assert (await cache.get_or_load("k", Counter(), POLICY)).state is State.FRESH
        assert sum("ignored" in record.message for record in caplog.records) == 1
        # Nor is the connection broken on which they came.
        assert "cannot reach Redis" not in caplog.text
        await client.aclose()

    async def test_refused_command_is_logged_once_and_is_no_outage(self, server: Server, caplog):
        client = Redis.from_url(server.url)
        async with Cache(server.url, timeout=2) as cache:
            # No memory left: reads go on, commits are refused.
            await client.config_set("maxmemory", "1")
            try:
                load = Counter()
                for state in (State.MISSING, State.FRESH):
                    outcome = await cache.get_or_load("k", load, POLICY)
                    assert (outcome.value, outcome.state) == (1, state)
                await cache.invalidate("k")
                assert (await cache.get_or_load("k", load, POLICY)).value == 2
            finally:
                await client.config_set("maxmemory", "0")
            assert cache.engine.store.is_reachable
            # What was refused is told again, though the link was never lost.
            await until(lambda: not cache.engine.store._pending._keys)
        assert sum("refused a command" in record.message for record in caplog.records) == 1
        await client.aclose()


class TestTagVersions:
    async def test_missed_tag_version_is_learned_with_the_next_read(self, server: Server):
        load = Counter()
        policy = Policy(60, tags=("t",))
        async with Cache(server.url, timeout=2) as one, Cache(server.url, l1_max_bytes=0, timeout=2) as other:
            await one.get_or_load("k", load, policy)
            store = other.engine.store.store
            store.on_message = lambda link, data: None
            for number in range(3):
                await one.invalidate_tag("t")
                await one.invalidate_tag(f"other{number}")
                assert (await other.get_or_load("k", load, policy)).value == number + 2
            await one.clear()
            assert store.tag_versions.newest < one.engine.store.tag_versions.newest
            assert (await other.get_or_load("k", load, policy)).value == 5
            assert store.tag_versions.newest == one.engine.store.tag_versions.newest

    async def test_missed_tag_version_is_learned_with_the_lease(self, server: Server):
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            await other.engine.ready()
            store = other.engine.store.store
            on_message, received = store.on_message, []
            store.on_message = lambda *message: received.append(message)
            await one.invalidate_tag("t")
            await until(lambda: received)
            lease = await store.acquire("k", "t", 30, 0, codec_for(Counter()))
            assert lease.tag_version == store.tag_versions.newest == one.engine.store.tag_versions.newest
            # A notification of what is known already changes nothing.
            fence = other.engine.flights.fence
            on_message(*received[0])
            assert other.engine.flights.fence == fence

    async def test_tag_version_missed_in_a_gap_is_learned_although_a_newer_one_is_known(self, server: Server):
        """The process's own tag version is newer than the missed one and must not hide it."""
        policy = Policy(60, 600, tags=("t",))
        for own in (True, False):
            load = Counter()
            async with Proxy(server.port) as proxy, Cache(proxy.url) as one, Cache(server.url, timeout=2) as other:
                await one.clear()
                await one.get_or_load("k", load, policy)
                proxy.hang_subscriptions = True
                await other.invalidate_tag("t")
                if own:
                    await one.invalidate_tag("mine")
                await until(lambda: not one.engine.store.is_reachable)
                proxy.hang_subscriptions = False

                async def flood(other=other):
                    while True:
                        await other.invalidate_tag("flood")
                        await asyncio.sleep(0)

                flooding = asyncio.ensure_future(flood())
                await until(lambda: one.engine.store.is_reachable)
                flooding.cancel()
                assert (await one.get_or_load("k", load, policy)).value == 2

    async def test_databases_of_one_server_share_nothing(self, server: Server):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url[:-1] + "1", timeout=2) as other:
            await other.get_or_load("k", load, POLICY)
            await one.clear()
            await asyncio.sleep(0.1)
            assert (await other.get_or_load("k", load, POLICY)).state is State.FRESH

    async def test_too_many_invalidated_tags_raise_the_minimum_tag_version(self, server: Server, monkeypatch):
        monkeypatch.setattr(shared_tag_versions, "_MOST_TAGS", 10)
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("tagged", load, Policy(60, tags=("t",)))
            await one.get_or_load("plain", load, Policy(60))
            await one.clear()
            await one.get_or_load("tagged", load, Policy(60, tags=("t",)))
            await one.get_or_load("plain", load, Policy(60))
            for number in range(25):
                await one.invalidate_tag(str(number))
            count = int(server.command("ZCARD", "swr:{!}b").strip()[1:])
            assert count <= 12
            async with Cache(server.url, timeout=2) as other:
                assert (await other.get_or_load("tagged", load, Policy(60, tags=("t",)))).state is State.MISSING
                assert (await other.get_or_load("plain", load, Policy(60))).state is State.FRESH


class TestOutage:
    """Promise 5: no error reaches a caller, and nobody waits long."""

    async def test_connection_refused_from_the_start_causes_no_error(self, caplog):
        async with Cache("redis://127.0.0.1:1/0") as cache:
            load = Counter()
            outcome = await cache.get_or_load("k", load, POLICY)
            assert (outcome.value, outcome.state) == (1, State.MISSING)
            assert (await cache.get_or_load("k", load, POLICY)).state is State.FRESH
            await cache.invalidate("k")
            assert (await cache.get_or_load("k", load, POLICY)).value == 2
        assert sum("cannot reach Redis" in record.message for record in caplog.records) == 1

    async def test_loads_during_an_outage_leave_no_pending_release(self, own_server: Server):
        """Thousands of loads during an outage must not cause thousands of commands afterwards."""
        load = Counter()
        async with Cache(own_server.url) as cache:
            await cache.get_or_load("k", load, POLICY)
            own_server.kill()
            await until(lambda: cache.engine.store.is_unreachable("k"))
            for number in range(100):
                assert (await cache.get_or_load(f"k{number}", load, POLICY)).state is State.MISSING
            assert not cache.engine.store._pending._releases
            own_server.start()
            await until(lambda: cache.engine.store.is_reachable)
            assert not cache.engine.store.is_unreachable("k")

    async def test_entry_confirmed_once_in_an_outage_is_trusted_until_its_end(self, own_server: Server):
        """A second hit during the outage skips the check."""
        load = Counter()
        async with Cache(own_server.url) as cache:
            await cache.get_or_load("k", load, POLICY)
            slot, local = cache.engine.store.local.get("k"), cache.engine.store.local
            own_server.kill()
            await until(lambda: not cache.engine.store.is_reachable)
            assert slot.trust is not local.trust
            assert (await cache.get_or_load("k", load, POLICY)).state is State.FRESH
            assert slot.trust is local.trust
            own_server.start()
            await until(lambda: cache.engine.store.is_reachable)
            assert slot.trust is not local.trust

    async def test_two_thousand_pending_tags_are_replayed_in_under_200_commands(self, server: Server):
        """A busy process may invalidate thousands of tags during an outage."""
        policy = Policy(60, tags=("t",))
        async with Proxy(server.port) as proxy, Cache(proxy.url, timeout=30) as cache:
            await cache.get_or_load("k", Counter(), policy)
            proxy.tell(refuse=True)
            proxy.cut()
            await until(lambda: not cache.engine.store.is_reachable)
            await cache.invalidate_tags("t", *map(str, range(2_000)))
            for key in ("k", "other", ""):
                await cache.mark_stale(key)
            before = cache.engine.store.sent
            proxy.tell()
            await until(lambda: cache.engine.store.is_reachable)
            loads = [cache.get_or_load(f"new{number}", Counter(), policy) for number in range(20)]
            assert [outcome.value for outcome in await asyncio.gather(*loads)] == [1] * 20
            await until(lambda: not cache.engine.store.has_pending)
            assert cache.engine.store.sent - before < 200
        async with Cache(server.url, timeout=30) as other:
            assert (await other.get_or_load("k", Counter(), policy)).state is State.MISSING

    async def test_pending_keys_are_replayed_concurrently_and_a_refused_one_blocks_no_other(
        self, server: Server, monkeypatch
    ):
        async with Proxy(server.port) as proxy, Cache(proxy.url, timeout=30) as cache:
            store, most, running = cache.engine.store.store, 0, set()
            invalidate = store.invalidate
            await cache.engine.ready()
            proxy.tell(refuse=True)
            proxy.cut()
            await until(lambda: not cache.engine.store.is_reachable)
            await asyncio.gather(*(cache.invalidate(f"k{number}") for number in range(1_000)))
            refused = ["k0"]

            async def counted(key: str) -> None:
                nonlocal most
                running.add(key)
                most = max(most, len(running))
                try:
                    if key in refused:
                        raise StoreRefused("no memory")
                    await invalidate(key)
                finally:
                    running.discard(key)

            monkeypatch.setattr(store, "invalidate", counted)
            pending = cache.engine.store._pending
            proxy.tell()
            await until(lambda: pending.invalidations <= 801)
            assert "k0" in pending._keys
            assert most >= 100
            refused.clear()
            await until(lambda: not cache.engine.store.has_pending)

    async def test_key_without_a_master_is_unreachable_during_an_outage(self, server: Server):
        async with opened(redis_store(server)) as store:

            def nobody(name: bytes) -> None:
                raise StoreUnavailable("no master has the slot")

            store._servers.link_to = nobody
            assert not store.is_unreachable("k")
            store._reachability.is_reachable = False
            assert store.is_unreachable("k")
            store._reachability.is_reachable = True
            del store._servers.link_to

    @pytest.mark.parametrize("how", ["hung", "refused", "killed"])
    async def test_outage_causes_no_error_and_its_invalidations_reach_all_caches_afterwards(
        self, own_server: Server, caplog, how
    ):
        caplog.set_level(logging.WARNING, "swr")
        load = Counter()
        async with (
            Proxy(own_server.port) as proxy,
            Cache(proxy.url) as cache,
            Cache(own_server.url, timeout=2) as other,
        ):
            await cache.get_or_load("held", load, POLICY)
            await cache.get_or_load("invalidated", load, POLICY)
            await other.get_or_load("invalidated", load, POLICY)
            if how == "hung":
                proxy.hang = True
            elif how == "refused":
                proxy.refuse = True
                proxy.cut()
            else:
                own_server.kill()
            assert at_once(cache.get_or_load("held", load, POLICY)).state is State.FRESH
            assert (await cache.get_or_load("cold", load, POLICY)).state is State.MISSING
            for _ in range(20):
                await cache.get_or_load("cold", load, POLICY)
            runs = load.runs
            await cache.invalidate("invalidated")
            assert (await cache.get_or_load("invalidated", load, POLICY)).value == runs + 1
            if how == "killed":
                own_server.start()
            proxy.hang = proxy.refuse = False
            await until(lambda: cache.engine.store.is_reachable and not cache.engine.store._pending._keys)
            # What was invalidated during the outage is invalid everywhere afterwards.
            await until(lambda: other.engine.store.is_reachable and other.engine.store.peek("invalidated") is None)
            assert (await other.get_or_load("invalidated", load, POLICY)).state is State.MISSING
            assert (await cache.get_or_load("new", load, POLICY)).state is State.MISSING
            assert (await other.get_or_load("new", load, POLICY)).state is State.FRESH
        mine = [record.message for record in caplog.records]
        lost, regained = (
            sum(text in message for message in mine) for text in ("cannot reach Redis", "is reachable again")
        )
        # One line each, and one each for the other cache where the server itself was killed.
        assert (lost, regained) == ((2, 2) if how == "killed" else (1, 1))

    async def test_no_reader_waits_while_redis_is_known_to_be_unreachable(self, own_server: Server):
        async with Cache(own_server.url) as cache:
            await cache.get_or_load("k", Counter(), POLICY)
            own_server.pause()
            await cache.get_or_load("first", Counter(), POLICY)
            assert not cache.engine.store.is_reachable
            store, asked = cache.engine.store.store, []
            for number in range(100):
                outcome = await cache.get_or_load(f"k{number}", Counter(), POLICY)
                asked.append(store._servers.link_to(b"").connection)
                assert outcome.value == 1
            assert asked == [None] * 100

    async def test_stale_hit_does_not_wait_for_a_hung_server(self, own_server: Server):
        async with Cache(own_server.url, timeout=5) as cache:
            load = Counter()
            await cache.get_or_load("k", load, Policy(0.05, 600))
            await asyncio.sleep(0.06)
            own_server.pause()
            for _ in range(10):
                assert at_once(cache.get_or_load("k", load, POLICY)).state is State.STALE
            own_server.resume()

    @pytest.mark.parametrize("hangs", ["hang", "hang_subscriptions"])
    async def test_silently_dead_subscription_is_noticed_and_no_invalidation_is_missed(
        self, server: Server, caplog, hangs
    ):
        """The subscription dies together with the other connections, or alone."""
        async with Proxy(server.port) as proxy, Cache(proxy.url) as cache, Cache(server.url, timeout=2) as other:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            setattr(proxy, hangs, True)
            await other.invalidate("k")
            await until(lambda: not cache.engine.store.is_reachable)
            setattr(proxy, hangs, False)
            await until(lambda: cache.engine.store.is_reachable)
            assert (await cache.get_or_load("k", load, POLICY)).value == 2
        assert hangs == "hang" or "the subscription does not answer" in caplog.text

    @pytest.mark.parametrize("what", ["invalidate", "commit"])
    async def test_messages_lost_while_the_connection_answers_count_as_a_gap(self, server: Server, caplog, what):
        async with Proxy(server.port) as proxy, Cache(proxy.url) as cache, Cache(server.url, timeout=2) as other:
            load, newer = Counter(), Counter()
            newer.runs = 10
            await cache.get_or_load("k", load, POLICY)
            proxy.swallow = True
            if what == "invalidate":
                await other.invalidate("k")
            else:
                await other.engine.refresh("k", job_of(other, newer))
            await until(lambda: not cache.engine.store.is_reachable, 60)
            proxy.swallow = False
            await until(lambda: cache.engine.store.is_reachable, 60)
            assert (await cache.get_or_load("k", load, POLICY)).value == (2 if what == "invalidate" else 11)
        assert "the subscription does not answer" in caplog.text

    @pytest.mark.uncounted
    async def test_short_loss_of_messages_counts_as_a_gap(self, server: Server, caplog):
        """The loss is too short for the subscription to time out."""
        async with Proxy(server.port) as proxy, Cache(proxy.url) as cache, Cache(server.url, timeout=2) as other:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            proxy.swallowed, proxy.swallow = 0, True
            await other.invalidate("k")
            await until(lambda: proxy.swallowed >= 2, 60)
            proxy.swallow = False
            reasons = ("messages were lost on the way", "the subscription does not answer")
            await until(lambda: any(reason in caplog.text for reason in reasons), 60)
            await until(lambda: cache.engine.store.is_reachable, 60)
            assert (await cache.get_or_load("k", load, POLICY)).value == 2

    async def test_subscription_renewed_by_redis_py_counts_as_a_gap(self, server: Server, caplog):
        """redis-py subscribes again when a connection is lost, but the messages in between are lost."""
        client = Redis(port=server.port)
        async with Cache(redis=client, timeout=2) as cache:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            epoch = cache.engine.store._epoch
            server.command("CLIENT", "KILL", "TYPE", "pubsub")
            await until(lambda: cache.engine.store._epoch > epoch)
            assert (await cache.get_or_load("k", load, POLICY)).state is State.FRESH
        await client.aclose()
        # Before 6 it does not, and the link sees the loss itself.
        assert "made again" in caplog.text or "the server closed the connection" in caplog.text

    async def test_server_hung_from_the_start_causes_no_error(self, own_server: Server):
        own_server.pause()
        async with Cache(own_server.url, timeout=0.1) as cache:
            load = Counter()
            outcome = await cache.get_or_load("k", load, POLICY)
            assert (outcome.value, outcome.state) == (1, State.MISSING)
            await asyncio.sleep(0.6)
            own_server.resume()
            await until(lambda: cache.engine.store.is_reachable)

    async def test_entry_invalidated_elsewhere_during_a_cut_is_not_served_afterwards(self, server: Server):
        async with Proxy(server.port) as proxy, Cache(proxy.url) as cache, Cache(server.url, timeout=2) as other:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            proxy.refuse = True
            proxy.cut()
            await until(lambda: not cache.engine.store.is_reachable)
            await other.invalidate("k")
            assert (await cache.get_or_load("k", load, POLICY)).value == 1
            proxy.refuse = False
            await until(lambda: cache.engine.store.is_reachable)
            assert (await cache.get_or_load("k", load, POLICY)).value == 2


@pytest.mark.usefixtures("no_heartbeats")
class TestLeaseRequests:
    """Lease requests of one turn of the event loop are one command."""

    async def test_hundred_lease_requests_are_sent_in_one_command(self, server: Server):
        async with opened(redis_store(server)) as store:
            sent = store.sent
            asked = [store.acquire(f"k{number}", "t", 30, 0, ANY) for number in range(100)]
            leases = await asyncio.gather(*asked)
            assert store.sent - sent == 1
            assert [lease.key for lease in leases] == [f"k{number}" for number in range(100)]

    async def test_thousand_lease_requests_are_sent_in_three_commands(self, server: Server):
        async with opened(redis_store(server)) as store:
            sent = store.sent
            leases = await asyncio.gather(*(store.acquire(f"k{number}", "t", 30, 0, ANY) for number in range(1001)))
            assert store.sent - sent == 3
            assert len({lease.key for lease in leases}) == 1001

    async def test_lease_of_a_cancelled_request_is_released_although_its_reply_was_lost(self, server: Server):
        """The request is sent again on another connection for the readers that stay."""
        async with Proxy(server.port) as proxy:
            store = RedisStore(Single(lambda: Redis.from_url(proxy.url), 60.0), timeout=60.0)
            async with opened(store):
                await store.read("k", ANY)
                proxy.lose = ACQUIRE[-60:].encode()
                leaving = asyncio.ensure_future(store.acquire("k", "left", 30, 0, ANY))
                staying = asyncio.ensure_future(store.acquire("other", "stays", 30, 0, ANY))
                await asyncio.sleep(0)
                await asyncio.sleep(0)
                leaving.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await leaving
                await until(lambda: server.command("EXISTS", "swr:{k}:l") == b":1\r\n")
                # The reply is lost with the connection.
                proxy.cut()
                await store.release(Lease("k", "left", 0, 0))
                assert (await staying).token == "stays"
                assert server.command("EXISTS", "swr:{k}:l") == b":0\r\n"
                assert server.command("EXISTS", "swr:{other}:l") == b":1\r\n"


def committed(lease: Lease, value: object = 1) -> Entry:
    return stamp(value, POLICY, time.time(), lease.version, lease.tag_version)


@pytest.mark.usefixtures("no_heartbeats")
class TestCommits:
    """Entries that are stored in one turn of the event loop are one command, and one message notifies every process."""

    async def test_hundred_commits_are_one_command_and_each_is_notified(self, server: Server):
        async with opened(redis_store(server)) as store, Cache(server.url, timeout=2) as other:
            received = []
            await other.engine.ready()
            end = other.engine.notifications.subscribe(received.append)
            leases = await asyncio.gather(
                *(store.acquire(f"k{number}\udc80", "t", 30, 0, ANY) for number in range(100))
            )
            sent = store.sent
            await asyncio.gather(*(store.commit(lease, committed(lease, lease.key[:2]), ANY) for lease in leases))
            assert store.sent - sent == 1
            await until(lambda: len(received) >= 100)
            end()
            assert {(each.kind, each.name, each.version) for each in received} == {
                (Kind.COMMITTED, lease.key, lease.version) for lease in leases
            }
            assert (await store.read("k7\udc80", ANY)).value == "k7"

    async def test_only_commits_whose_lease_is_lost_are_rejected_in_a_batch(self, server: Server):
        async with opened(redis_store(server)) as store, Cache(server.url, timeout=2) as other:
            received = []
            await other.engine.ready()
            leases = await asyncio.gather(*(store.acquire(f"k{number}", "t", 30, 0, ANY) for number in range(4)))
            await store.invalidate("k1")
            await store.invalidate("k2")
            end = other.engine.notifications.subscribe(lambda message: received.append((message.kind, message.name)))
            ends = await asyncio.gather(
                *(store.commit(lease, committed(lease), ANY) for lease in leases), return_exceptions=True
            )
            assert [type(end) for end in ends] == [type(None), LeaseLost, LeaseLost, type(None)]
            await until(lambda: (Kind.COMMITTED, "k3") in received)
            end()
            assert [name for kind, name in received if kind is Kind.COMMITTED] == ["k0", "k3"]
            assert [(await store.read(f"k{number}", ANY)) is None for number in range(4)] == [False, True, True, False]

    async def test_large_commits_are_sent_in_separate_commands(self, server: Server):
        """During one huge command no reply arrives, and the server would seem to hang."""
        async with opened(redis_store(server)) as store:
            leases = await asyncio.gather(*(store.acquire(f"k{number}", "t", 30, 0, ANY) for number in range(6)))
            sizes = [30_000, 30_000, 30_000, 10, 1_000_000, 10]
            sent = store.sent
            await asyncio.gather(
                *(
                    store.commit(lease, committed(lease, b"x" * size), ANY)
                    for lease, size in zip(leases, sizes, strict=True)
                )
            )
            assert store.sent - sent == 4
            assert [len((await store.read(f"k{number}", ANY)).value) for number in range(6)] == sizes

    async def test_commit_cancelled_before_it_is_sent_is_not_sent(self, server: Server):
        async with opened(redis_store(server)) as store:
            lease = await store.acquire("k", "t", 30, 0, ANY)
            sent = store.sent
            leaving = asyncio.ensure_future(store.commit(lease, committed(lease), ANY))
            # As a load that ends in the turn in which it is cancelled.
            asyncio.get_running_loop().call_soon(leaving.cancel)
            with pytest.raises(asyncio.CancelledError):
                await leaving
            await asyncio.sleep(0.01)
            assert store.sent == sent
            await store.release(lease)
            assert await store.read("k", ANY) is None


async def test_command_under_way_is_answered_although_the_subscription_breaks(server: Server):
    async with Cache(server.url, timeout=5) as cache:
        link = cache.engine.store.store.commands._servers.link_to(b"k")
        answer = asyncio.create_task(link.ask("BLPOP", "nothing", "0.5"))
        await until(lambda: "blpop" in str(server.command("CLIENT", "LIST")).lower())
        server.command("CLIENT", "KILL", "TYPE", "pubsub")
        assert await answer is None


class TestLostReplies:
    """Promise 7: no phantom lease, no double work, whichever command's reply is lost."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        ("command", "marker"),
        [
            ("read", b"MGET"),
            ("acquire", ACQUIRE[-60:].encode()),
            ("commit", COMMIT[-60:].encode()),
            ("release", RELEASE[-60:].encode()),
            ("invalidate", b"leased + 1"),
            ("tag", b"ZADD"),
        ],
    )
    async def test_lost_reply_leaves_no_phantom_lease_and_loses_no_load_or_invalidation(
        self, server: Server, command, marker, monkeypatch
    ):
        # However long a busy machine takes to connect again.
        monkeypatch.setattr("swr.stores.redis.server_link._SHARE_AFTER_SILENCE", 20.0)
        async with (
            Proxy(server.port) as proxy,
            Cache(proxy.url, timeout=1.5, lease_for=60) as cache,
            Cache(server.url, timeout=2) as other,
        ):
            load = Counter()
            tagged = Policy(60, 600, tags=("t",))

            async def fail() -> int:
                raise ValueError("mine")

            await cache.get_or_load("before", load, tagged)
            await asyncio.sleep(0.05)
            runs = load.runs
            proxy.lose = marker
            if command == "release":
                with pytest.raises(ValueError, match="mine"):
                    await cache.get_or_load("k", fail, tagged)
            elif command == "invalidate":
                await cache.invalidate("before")
            elif command == "tag":
                await cache.invalidate_tag("t")
            else:
                assert (await cache.get_or_load("k", load, tagged)).value == runs + 1
            assert proxy.lose is None
            await until(lambda: cache.engine.store.is_reachable)
            await until(lambda: not cache.engine.store._pending._releases)
            # Nobody waits for a lease that represents nobody, and nothing is loaded twice.
            async with asyncio.timeout(60):
                outcome = await other.get_or_load("k", load, tagged)
            if command in ("read", "acquire", "commit"):
                assert (outcome.value, outcome.state) == (runs + 1, State.FRESH)
            if command in ("invalidate", "tag"):
                outcome = await other.get_or_load("before", load, tagged)
                assert outcome.state is State.MISSING


@contextlib.asynccontextmanager
async def connected(url, timeout=2.0, **options):
    """A connection, and the task that runs it."""
    client = Redis.from_url(url, **options)
    connection = Connection(await connection_of(client.connection_pool), timeout)
    running = asyncio.ensure_future(connection.run())
    try:
        yield connection, running
    finally:
        running.cancel()
        await asyncio.wait((running,), timeout=60)
        assert running.done()
        # Waits until redis-py knows that its connection is closed.
        async with asyncio.timeout(60):
            await client.aclose()


class TestConnection:
    async def test_hung_connection_fails_every_command(self, server: Server):
        async with connected(server.url, 0.2) as (connection, running):
            assert await connection.ask("PING") == b"PONG"
            left = connection.ask("BLPOP", "nothing", 60)
            waiting = connection.ask("PING")
            await asyncio.sleep(0)
            left.cancel()
            with pytest.raises(StoreUnavailable, match="not answered for"):
                await waiting
            with pytest.raises(StoreUnavailable, match="not answered"):
                await running
            with pytest.raises(StoreUnavailable, match="not answered"):
                await connection.ask("PING")

    @pytest.mark.parametrize("turns", range(8))
    async def test_command_is_answered_or_fails_when_its_connection_is_closed(self, server: Server, turns):
        async with connected(server.url) as (connection, running):
            assert await connection.ask("PING") == b"PONG"
            pending = connection.ask("PING")
            for _ in range(turns):
                await asyncio.sleep(0)
            running.cancel()
            with contextlib.suppress(StoreUnavailable):
                assert await pending == b"PONG"
            await asyncio.wait((running,), timeout=60)
            with pytest.raises(StoreUnavailable, match="was closed"):
                await connection.ask("PING")

    async def test_connection_closed_by_the_server_fails_every_command(self, server: Server):
        async with connected(server.url) as (connection, running):
            number = await connection.ask("CLIENT", "ID")
            waiting = connection.ask("BLPOP", "nothing", 0)
            await asyncio.sleep(0.01)
            server.command("CLIENT", "KILL", "ID", str(number))
            with pytest.raises(StoreUnavailable, match=r"closed the connection|reset by peer"):
                await waiting
            with pytest.raises(StoreUnavailable):
                await running

    async def test_hung_connection_is_closed_without_being_flushed(self, server: Server):
        """A normal close would wait until the server has read the buffered data."""
        async with Proxy(server.port) as proxy, connected(proxy.url, 0.2) as (connection, running):
            socket = connection._transport.get_extra_info("socket")
            proxy.hang = True
            for _ in range(20):
                connection.send(("ECHO", b"x" * 1_000_000), lambda reply: None)
            with pytest.raises(StoreUnavailable, match="not answered"):
                await running
            await until(lambda: socket.fileno() == -1)

    async def test_reader_on_a_connection_that_has_just_broken_is_answered(self, server: Server):
        async with Cache(server.url, l1_max_bytes=0) as cache:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            for _ in range(10):
                await until(lambda: cache.engine.store.is_reachable)
                server.command("CLIENT", "KILL", "TYPE", "normal")
                async with asyncio.timeout(60):
                    for _ in range(100):
                        await asyncio.gather(*(cache.get_or_load("k", load, POLICY) for _ in range(3)))

    async def test_reply_of_a_cancelled_command_is_discarded(self, server: Server):
        async with connected(server.url) as (connection, _):
            connection.ask("PING").cancel()
            assert await connection.ask("ECHO", "x") == b"x"
            with pytest.raises(ResponseError):
                await connection.ask("NONSENSE")
            assert await connection.ask("ECHO", "y") == b"y"

    async def test_push_messages_of_the_server_are_not_taken_as_replies(self, server: Server):
        async with connected(server.url, protocol=3) as (connection, _):
            await connection.ask("CLIENT", "TRACKING", "ON", "BCAST")
            for number in range(10):
                server.command("SET", "noticed", str(number))
                assert await connection.ask("ECHO", str(number)) == b"%d" % number

    async def test_reply_without_a_command_ends_the_connection(self, server: Server):
        """Each later reply would be taken for the reply to another command."""
        async with connected(server.url) as (connection, running):
            await connection.ask("MONITOR")
            server.command("PING")
            with pytest.raises(StoreUnavailable, match="no command has asked for"):
                await running

    async def test_invalid_reply_data_ends_the_connection(self, server: Server):
        async with Proxy(server.port) as proxy, connected(proxy.url) as (connection, running):
            assert await connection.ask("PING") == b"PONG"
            for writer in proxy._writers:
                writer.write(b"?\r\n")
            with pytest.raises(StoreUnavailable, match="Protocol error"):
                await running

    async def test_unparsable_error_reply_ends_the_connection(self, server: Server, caplog):
        """redis-py expects a slot in an error that begins with MOVED."""
        async with connected(server.url) as (connection, running):
            with pytest.raises(StoreUnavailable):
                await connection.ask("EVAL", "return redis.error_reply('MOVED x')", 0)
            with pytest.raises(StoreUnavailable):
                await running
        assert caplog.text == ""

    async def test_reply_of_an_unexpected_shape_becomes_an_error_of_its_command(self, server: Server, caplog):
        async with connected(server.url) as (connection, _):
            told: list[object] = []

            def on_reply(reply):
                told.append(reply)
                reply[0]

            connection.send(("STRLEN", "nothing"), lambda reply: on_reply(reply) if reply == 0 else told.append(reply))
            assert await connection.ask("PING") == b"PONG"
            assert told[0] == 0
            assert "does not fit the command (TypeError" in str(told[1])
        assert caplog.text == ""

    async def test_connection_ends_when_the_server_demands_authentication_again(self, server: Server):
        async with Redis.from_url(server.url) as other, connected(server.url) as (connection, running):
            # Who is connected already stays so.
            await other.config_set("requirepass", "secret")
            try:
                assert await connection.ask("RESET") == b"RESET"
                with pytest.raises(StoreUnavailable, match="Authentication required"):
                    await connection.ask("PING")
                with pytest.raises(StoreUnavailable, match="Authentication required"):
                    await running
            finally:
                await other.config_set("requirepass", "")

    @pytest.mark.parametrize("turns", range(5))
    async def test_closing_during_a_read_is_not_logged_as_an_outage(self, server: Server, turns, caplog):
        async with Cache(server.url, l1_max_bytes=0, timeout=2) as cache:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            reading = asyncio.ensure_future(cache.get_or_load("k", load, POLICY))
            for _ in range(turns):
                await asyncio.sleep(0)
        await asyncio.gather(reading, return_exceptions=True)
        await cache.aclose()
        assert cache.engine.is_store_up
        assert caplog.text == ""


class TestCancellation:
    async def test_cancelled_readers_leak_no_connection_and_no_task(self, server: Server):
        """Promise 8, in small: no connection is lost, no task is left, no answer is wrong."""
        async with Proxy(server.port) as proxy, Cache(proxy.url, l1_max_bytes=0, timeout=2) as cache:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            connections, tasks = proxy.connections, len(asyncio.all_tasks())
            for number in range(2000):
                reader = asyncio.ensure_future(cache.get_or_load("k" if number % 2 else f"cold{number}", load, POLICY))
                for _ in range(number % 5):
                    await asyncio.sleep(0)
                reader.cancel()
                await asyncio.gather(reader, return_exceptions=True)
            await until(lambda: len(asyncio.all_tasks()) <= tasks)
            assert proxy.connections == connections
            outcome = await cache.get_or_load("k", load, POLICY)
            assert (outcome.value, outcome.state) == (1, State.FRESH)

    async def test_cancelling_one_reader_does_not_affect_another(self, server: Server):
        async with Cache(server.url, l1_max_bytes=0, timeout=2) as cache:
            load = Counter()
            await cache.get_or_load("k", load, POLICY)
            for _ in range(50):
                first = asyncio.ensure_future(cache.get_or_load("k", load, POLICY))
                second = asyncio.ensure_future(cache.get_or_load("k", load, POLICY))
                await asyncio.sleep(0)
                first.cancel()
                assert (await second).value == 1
                await asyncio.gather(first, return_exceptions=True)


def test_redis_cache_under_trio_raises_an_error_that_names_asyncio():
    import trio

    cache = Cache("redis://127.0.0.1:1/0")
    with pytest.raises(ConfigurationError, match="asyncio"):
        trio.run(cache.get_or_load, "k", Counter(), POLICY)


def test_event_loop_may_end_without_closing_the_cache(server: Server):
    async def main() -> None:
        await Cache(server.url).get_or_load("k", Counter(), POLICY)

    asyncio.run(main())
    gc.collect()


async def test_closing_releases_the_lease_of_a_load_that_is_still_cleaning_up(server: Server):
    """The server link closes after the loads that need it."""
    cache = Cache(server.url, drain_for=0.05, lease_for=60, timeout=2)

    async def load() -> int:
        try:
            await asyncio.sleep(60)
        finally:
            with anyio.CancelScope(shield=True):
                await asyncio.sleep(0.05)
        return 1

    async with cache:
        reader = asyncio.create_task(cache.get_or_load("cleaned", load, POLICY))
        await asyncio.sleep(0.05)
    await asyncio.gather(reader, return_exceptions=True)
    async with asyncio.timeout(60), Cache(server.url, timeout=2) as other:
        assert (await other.get_or_load("cleaned", Counter(), POLICY)).value == 1


async def test_log_names_the_error_that_broke_the_server_link(server: Server, caplog, monkeypatch):
    def on_message(link: object, data: bytes) -> None:
        raise ValueError("very strange")

    async with Cache(server.url, timeout=2) as cache:
        await cache.engine.ready()
        monkeypatch.setattr(cache.engine.store.store, "on_message", on_message)
        await cache.invalidate("k")
        await until(lambda: "(very strange); serving from memory" in caplog.text)
        monkeypatch.undo()
        await until(lambda: "is reachable again (it was unreachable: very strange)" in caplog.text)


async def test_closing_waits_for_pending_invalidations(server: Server, monkeypatch):
    """A short program far from its Redis invalidates a key and ends."""
    monkeypatch.setattr("swr.engine.background._SETTLED_WITHIN", 20)
    load = Counter()
    async with Proxy(server.port) as proxy, Cache(server.url, timeout=2) as near:
        await near.get_or_load("far", load, POLICY)
        proxy.delay = 0.3
        async with Cache(proxy.url, timeout=0.7) as far:
            await far.invalidate("far")
        await until(lambda: near.engine.store.peek("far") is None)


async def test_closing_logs_how_many_invalidations_are_still_pending(caplog, monkeypatch):
    monkeypatch.setattr("swr.engine.background._SETTLED_WITHIN", 0.05)
    async with Cache("redis://127.0.0.1:1/0") as cache:
        await cache.invalidate("k")
        await cache.invalidate_tag("t")
    assert "closed before Redis had taken 2 invalidations" in caplog.text
    assert "run `swr invalidate --all` once Redis can be reached" in caplog.text


@pytest.mark.uncounted
async def test_tag_invalidation_learned_before_its_message_is_one_event(server: Server):
    told = []
    async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
        one.subscribe(told.append, Invalidated)

        async def read() -> None:
            for number in range(300):
                await one.get_or_load(f"told{number}", Counter(), POLICY)

        reading = asyncio.create_task(read())
        for number in range(100):
            await other.invalidate_tag(f"t{number}")
        await reading
        await until(lambda: len(told) == 100)
    assert {event.tag for event in told} == {f"t{number}" for number in range(100)}


async def test_cancelling_the_caller_that_opens_the_cache_leaves_no_task_behind():
    """A first request that is cancelled at once leaves no task that runs beside the next opening."""
    before = asyncio.all_tasks()
    for turns in range(4):
        cache = Cache()
        load = Counter()
        first = asyncio.ensure_future(cache.get_or_load("k", load, POLICY))
        for _ in range(turns):
            await asyncio.sleep(0)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        assert (await cache.get_or_load("other", load, POLICY)).value > 0
        await cache.aclose()
        assert asyncio.all_tasks() == before


async def test_opening_cancelled_before_it_runs_is_started_again_by_the_next_read():
    """The program cancels all tasks before the opening has run."""
    cache, load, before = Cache(), Counter(), asyncio.all_tasks()
    first = asyncio.ensure_future(cache.get_or_load("k", load, POLICY))
    await asyncio.sleep(0)
    for task in asyncio.all_tasks() - before:
        task.cancel()
    await asyncio.gather(first, return_exceptions=True)
    async with asyncio.timeout(60):
        assert (await cache.get_or_load("k", load, POLICY)).value == 1
    await cache.aclose()
    assert asyncio.all_tasks() == before


def test_first_readers_on_a_new_event_loop_use_a_link_of_that_loop(server: Server):
    """The previous loop stopped without closing the cache."""
    cache = Cache(server.url, timeout=60)
    load = Counter()
    left = asyncio.new_event_loop()
    left.run_until_complete(cache.get_or_load("first", load, POLICY))

    async def again() -> None:
        async with cache, asyncio.timeout(60):
            found = await asyncio.gather(*(cache.get_or_load(f"k{number}", load, POLICY) for number in range(3)))
        assert sorted(outcome.value for outcome in found) == [2, 3, 4]

    asyncio.run(again())
    end(left)


def test_abandoned_event_loop_does_not_keep_the_next_loop_busy(monkeypatch):
    """Closing neither waits for collected tasks of the old loop nor cancels them in an endless loop."""
    cache = Cache()
    policy = Policy(0.001, 600)
    left = asyncio.new_event_loop()

    async def slow() -> int:
        await asyncio.sleep(3600)
        return 1

    async def begin() -> None:
        await cache.get_or_load("k", Counter(), policy)
        await asyncio.sleep(0.01)
        await cache.get_or_load("k", slow, policy)
        await asyncio.sleep(0.01)

    left.run_until_complete(begin())

    async def again() -> None:
        await cache.get_or_load("other", Counter(), policy)
        gc.collect()
        turns = 0
        select = asyncio.get_running_loop()._selector.select

        def counted(timeout):
            nonlocal turns
            turns += 1
            return select(timeout)

        monkeypatch.setattr(asyncio.get_running_loop()._selector, "select", counted)
        await asyncio.sleep(0.2)
        assert turns < 50
        await cache.aclose()

    asyncio.run(again())
    end(left)


def test_closing_waits_for_loads_of_this_loop_after_another_loop_was_abandoned():
    """A load that ends in the old loop must not count as a load of this loop."""
    cache = Cache()
    policy = Policy(60)
    left, here = asyncio.new_event_loop(), asyncio.new_event_loop()
    takes = [3600.0]

    async def slow() -> int:
        await asyncio.sleep(takes[0])
        return 1

    async def begin() -> None:
        asyncio.get_running_loop().create_task(cache.get_or_load("k", slow, policy))
        await asyncio.sleep(0.01)

    async def close() -> None:
        # Another key: whoever had the lease of the first is gone, and keeps it for a while.
        reader = asyncio.create_task(cache.get_or_load("another", slow, policy))
        await asyncio.sleep(0.01)
        await cache.aclose()
        assert (await reader).value == 1

    left.run_until_complete(begin())
    here.run_until_complete(cache.get_or_load("other", Counter(), policy))
    end(left)
    takes[0] = 0.1
    here.run_until_complete(close())
    here.close()


def test_loop_abandoned_while_closing_does_not_close_the_cache_of_the_next_loop():
    cache = Cache()
    policy = Policy(60)
    left, here = asyncio.new_event_loop(), asyncio.new_event_loop()

    async def slow() -> int:
        await asyncio.sleep(0.05)
        return 1

    async def begin() -> None:
        for doing in (cache.get_or_load("k", slow, policy), cache.aclose()):
            asyncio.get_running_loop().create_task(doing)
            await asyncio.sleep(0.01)

    async def read() -> None:
        await cache.get_or_load("other", Counter(), policy)

    left.run_until_complete(begin())
    here.run_until_complete(read())
    left.run_until_complete(asyncio.sleep(0.2))
    local = cache.engine.store.local
    assert local.get("other") is not None
    assert cache.engine._tasks._group is not None
    assert not cache.engine._tasks.is_closing
    end(left)
    here.run_until_complete(cache.aclose())
    here.close()


def end(loop: asyncio.AbstractEventLoop) -> None:
    """Have nothing left of a loop that was left."""
    for task in asyncio.all_tasks(loop):
        task.cancel()
    loop.run_until_complete(asyncio.sleep(0.05))
    loop.run_until_complete(loop.shutdown_asyncgens())
    loop.close()


@pytest.mark.parametrize("replaced", [True, False])
async def test_finished_reading_removes_itself_but_not_its_replacement(replaced):
    """After a notification, another reading may begin before the first reply arrives."""
    for end in (lambda reading: reading.settle(b"", 1), lambda reading: reading.fail(StoreUnavailable("gone"))):
        future = asyncio.get_running_loop().create_future()
        readings: dict[str, Reading] = {}
        reading = readings["k"] = Reading(readings, "k", b"k", future)
        other = Reading(readings, "k", b"k", future)
        if replaced:
            readings["k"] = other
        end(reading)
        assert readings == ({"k": other} if replaced else {})
        assert future.done()
        future.exception()


async def test_process_that_learns_many_tags_at_once_lets_the_event_loop_turn(server, monkeypatch):
    monkeypatch.setattr("swr.stores.redis.shared_tag_versions._LEARNED_IN_ONE_TURN", 10)
    loop, turn, learned = asyncio.get_running_loop(), 0, []

    def next_turn():
        nonlocal turn
        turn += 1
        loop.call_soon(next_turn)

    next_turn()
    second = Cache(server.url, timeout=30)
    second.engine.notifications.subscribe(lambda notification: learned.append((notification.name, turn)))
    async with Cache(server.url, timeout=30) as first:
        for number in range(95):
            await first.invalidate_tag(f"t{number}")
        async with second:
            assert (await second.get_or_load("k", lambda: 1, Policy(60, tags=("t3",)))).value == 1
    turns = [when for name, when in learned if name.startswith("t")]
    assert len(turns) == 95
    assert max(map(turns.count, turns)) <= 10


async def test_wait_for_room_ends_once_enough_room_is_given_back():
    room = Room(10)
    room.take(12)
    waiting = asyncio.ensure_future(room.wait())
    await settle()
    room.give_back(1)
    await settle()
    assert not waiting.done()
    room.give_back(2)
    await waiting

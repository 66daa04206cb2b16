"""Connecting: a slow server is waited for, a hung one once, a refused one never, and the log says what is wrong."""

import asyncio
import contextlib
import inspect
import re
import socket
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
from redis.asyncio import Connection as ClientConnection
from redis.asyncio import ConnectionPool, Redis

from swr import Cache, ConfigurationError, Policy, State, StoreUnavailable
from swr.engine import refresh_path
from swr.stores.redis import leases, shared_tag_versions
from swr.stores.redis.patience import patience
from swr.stores.redis.reasons import check_kind
from swr.stores.redis.store import RedisStore
from tests.proxy import Proxy
from tests.servers import Server, free_port, kinds
from tests.test_redis import Counter, until

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600, 3600)
LONG = 60.0


@pytest.fixture
def anyio_backend():
    return "asyncio"


def test_default_timeouts_match_the_documentation():
    text = (Path(__file__).parents[1] / "docs/failures.md").read_text()
    for name in ("timeout", "connect_timeout"):
        assert f"`{name}` ({inspect.signature(Cache).parameters[name].default} s)" in text


class TestPatience:
    async def test_block_that_takes_too_long_raises_timeout_error(self):
        with pytest.raises(TimeoutError, match=r"^no answer within 0\.05 s$"), patience(0.05, "no answer"):
            await asyncio.sleep(LONG)

    async def test_time_while_the_event_loop_is_blocked_does_not_count(self):
        with patience(0.2, "no answer"):
            time.sleep(0.5)  # noqa: ASYNC251  # holds the event loop on purpose
            await asyncio.sleep(0.001)

    async def test_timeout_error_is_raised_in_a_task_that_survived_a_cancellation(self):
        """Before Python 3.11.3, every task in which a task group has failed is in this state."""
        task = asyncio.current_task()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await asyncio.sleep(0)
        with pytest.raises(TimeoutError, match="no answer"), patience(0.05, "no answer"):
            await asyncio.sleep(LONG)
        task.uncancel()

    async def test_timeout_error_raised_inside_the_block_is_passed_on(self):
        with pytest.raises(TimeoutError, match="another"), patience(LONG, "no answer"):
            raise TimeoutError("another")


@pytest.mark.uncounted
def test_server_takes_another_port_if_its_own_is_in_use():
    """The tests run side by side, and each draws its ports by chance."""
    with Server(kinds()[0]) as first, Server(kinds()[0]) as second:
        third = Server(kinds()[0])
        third.port = first.port
        with third:
            assert len({first.port, second.port, third.port}) == 3
            assert third.command("PING") == b"+PONG\r\n"


class TestReconnecting:
    @pytest.mark.parametrize("outages", [1, 3])
    async def test_server_link_recovers_after_reconnection_attempts_time_out(self, server: Server, outages):
        """A switch is replaced at night: connections break, new ones hang, and then all is well again."""
        async with Proxy(server.port) as proxy, Cache(proxy.url, timeout=0.2, connect_timeout=0.2) as cache:
            link = cache.engine.store.store.links[0]
            for _ in range(outages):
                proxy.hang = True
                proxy.cut()
                accepted = proxy.connections
                # Each try makes two. So three have timed out.
                await until(lambda accepted=accepted: proxy.connections >= accepted + 8)
                proxy.hang = False
                await until(lambda: link.connection is not None)
                await cache.invalidate("k")


class TestOpening:
    async def test_opening_waits_for_a_server_that_is_slow_to_answer(self, server: Server):
        """At a deploy many processes start at once, and Redis answers more slowly than `timeout` allows."""
        async with Proxy(server.port) as proxy, Cache(server.url, timeout=LONG) as other:
            proxy.hang = True
            asyncio.get_running_loop().call_later(1.5, setattr, proxy, "hang", False)
            async with Cache(proxy.url, timeout=1, connect_timeout=LONG) as cache:
                assert cache.engine.is_store_up
                assert (await cache.get_or_load("slow", Counter(), POLICY)).value == 1
                assert (await other.get_or_load("slow", Counter(), POLICY)).state is State.FRESH

    async def test_opening_waits_for_a_server_that_is_slow_in_the_first_handshake(self, server: Server, monkeypatch):
        """The server forks, or many processes start together: it answers more slowly than `timeout` allows."""
        handshake = RedisStore.handshake

        async def slow(store, link, connection):
            proxy.hang = True
            asyncio.get_running_loop().call_later(0.5, setattr, proxy, "hang", False)
            await handshake(store, link, connection)

        monkeypatch.setattr(RedisStore, "handshake", slow)
        async with (
            Proxy(server.port) as proxy,
            Cache(proxy.url, timeout=0.2, connect_timeout=LONG) as cache,
        ):
            assert cache.engine.is_store_up

    async def test_readers_without_a_copy_wait_for_an_opening_in_progress(self, server: Server):
        async with Proxy(server.port) as proxy:
            proxy.hang = True
            cache, load = Cache(proxy.url, timeout=LONG, connect_timeout=LONG), Counter()
            readers = [asyncio.create_task(cache.get_or_load("k", load, POLICY)) for _ in range(10)]
            await asyncio.sleep(0.5)
            assert load.runs == 0
            proxy.hang = False
            await asyncio.gather(*readers)
            assert load.runs == 1
            await cache.aclose()

    async def test_opening_does_not_wait_when_the_connection_is_refused(self):
        async with asyncio.timeout(LONG):
            async with Cache(f"redis://127.0.0.1:{free_port()}", connect_timeout=10 * LONG) as cache:
                assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
            async with Cache(f"redis+cluster://127.0.0.1:{free_port()}", connect_timeout=10 * LONG) as cache:
                assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1

    async def test_no_reader_waits_for_a_hung_server_once_connect_timeout_is_over(self, own_server: Server, caplog):
        own_server.pause()
        async with asyncio.timeout(LONG), Cache(own_server.url, timeout=10 * LONG, connect_timeout=0.2) as cache:
            for number in range(20):
                assert (await cache.get_or_load(f"k{number}", Counter(), POLICY)).value == 1
            assert "no connection within 0.2 s" in caplog.text
            own_server.resume()
            await until(lambda: cache.engine.store.is_reachable)

    async def test_distant_server_is_reached_and_shares_the_loaded_value(self, server: Server):
        async with Proxy(server.port) as proxy, Cache(server.url, timeout=LONG) as other:
            proxy.latency = 0.1
            async with Cache(proxy.url, timeout=LONG, connect_timeout=LONG) as cache:
                assert (await cache.get_or_load("far", Counter(), POLICY)).value == 1
                assert (await other.get_or_load("far", Counter(), POLICY)).state is State.FRESH

    async def test_opening_waits_for_a_slow_look_up_of_the_server_name(self, server: Server, monkeypatch):
        loop = asyncio.get_running_loop()
        look_up = loop.getaddrinfo

        async def slowly(*args, **kwargs):
            await asyncio.sleep(0.5)
            return await look_up(*args, **kwargs)

        monkeypatch.setattr(loop, "getaddrinfo", slowly)
        async with Cache(server.url.replace("127.0.0.1", "localhost"), timeout=LONG, connect_timeout=LONG) as cache:
            assert cache.engine.is_store_up

    async def test_both_connections_look_up_the_server_name_concurrently(self, server: Server, monkeypatch):
        """In a pod whose first name server is down, each look-up takes two of the three seconds."""
        loop = asyncio.get_running_loop()
        look_up, both = loop.getaddrinfo, asyncio.Barrier(2)

        async def slowly(*args, **kwargs):
            await both.wait()
            return await look_up(*args, **kwargs)

        monkeypatch.setattr(loop, "getaddrinfo", slowly)
        async with Cache(server.url.replace("127.0.0.1", "localhost"), timeout=LONG, connect_timeout=LONG) as cache:
            assert cache.engine.is_store_up

    @pytest.mark.parametrize("how", ["closes", "is silent"])
    async def test_reader_waits_for_reconnection_after_a_close_but_not_after_silence(self, server: Server, how):
        """A connection to a distant server takes several round trips. A reader does not wait again after silence."""
        timeout = LONG if how == "closes" else 0.3
        async with Proxy(server.port) as proxy, Cache(proxy.url, timeout=timeout, connect_timeout=LONG) as cache:
            proxy.latency, proxy.hang = 0.1, how == "is silent"
            if how == "closes":
                proxy.cut()
                await until(lambda: not cache.engine.is_store_up)
            assert (await cache.get_or_load("cut", Counter(), POLICY)).value == 1
            assert cache.engine.is_store_up == (how == "closes")
            proxy.hang = False


class TestStalls:
    async def test_stall_shorter_than_the_timeout_causes_no_extra_load(self, own_server: Server):
        """A slow script, a fork, a large key: Redis is silent for a moment."""
        async with (
            Cache(own_server.url, l1_max_bytes=0, timeout=LONG) as one,
            Cache(own_server.url, l1_max_bytes=0, timeout=LONG) as other,
        ):
            load = Counter()
            own_server.pause()
            readers = [
                asyncio.create_task(cache.get_or_load(f"k{number}", load, POLICY))
                for number in range(20)
                for cache in (one, other)
            ]
            await asyncio.sleep(0.5)
            assert load.runs == 0
            own_server.resume()
            await asyncio.gather(*readers)
            assert load.runs == 20

    async def test_reader_waiting_for_another_process_loads_once_redis_is_unreachable(
        self, own_server: Server, monkeypatch
    ):
        """The notification that the reader waits for will not come."""
        monkeypatch.setattr(refresh_path, "_LONGEST_WAIT", 10 * LONG)
        holds = Counter(10 * LONG)
        async with (
            asyncio.timeout(LONG),
            Cache(own_server.url, timeout=0.5, drain_for=0) as other,
            Cache(own_server.url, timeout=0.5) as cache,
        ):
            holding = asyncio.create_task(other.get_or_load("k", holds, POLICY))
            await until(lambda: holds.runs)
            reader = asyncio.create_task(cache.get_or_load("k", Counter(), POLICY))
            await asyncio.sleep(0.3)
            assert not reader.done()
            own_server.pause()
            assert (await reader).value == 1
            own_server.resume()
            holding.cancel()


def add_tags(server: Server, numbers: list[int]) -> None:
    """Have the server hold tags of these versions, as after as many invalidations."""
    pairs = [part for number in numbers for part in (str(number), f"t{number}")]
    for first in range(0, len(pairs), 2000):
        server.command("ZADD", "swr:{!}b", *pairs[first : first + 2000])
    held = server.says("GET", "swr:{!}h").strip()
    server.command("SET", "swr:{!}h", f"{max(numbers):016d}{held[16:]}")


class TestTagVersions:
    async def clear_of(self, server: Server) -> int:
        """Return the version that a namespace begins with."""
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            return cache.engine.store.tag_versions.newest

    @pytest.mark.parametrize("at_once", [2, 5, 11, 100])
    async def test_opening_learns_all_tag_versions(self, server: Server, monkeypatch, at_once):
        monkeypatch.setattr(shared_tag_versions, "_LEARNED_AT_ONCE", at_once)
        monkeypatch.setattr(shared_tag_versions, "_LEARNED_IN_ONE_TURN", 2)
        first = await self.clear_of(server) + 1
        numbers = list(range(first, first + 10))
        add_tags(server, numbers)
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            known = dict(cache.engine.store.tag_versions.since(0))
        assert known == {"": first - 1, **{str(number): number for number in numbers}}

    async def test_learning_tag_versions_resumes_where_a_lost_connection_interrupted_it(
        self, server: Server, monkeypatch
    ):
        """A slow server that has 100,000 tags would never be learned from if each connection began again."""
        monkeypatch.setattr(shared_tag_versions, "_LEARNED_AT_ONCE", 4)
        first = await self.clear_of(server) + 1
        add_tags(server, numbers := list(range(first, first + 10)))
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            shared = cache.engine.store.store._shared
            ask, asked = shared._ask, []

            async def breaks(*command):
                asked.append(int(command[-3]))
                if len(asked) % 2 == 0:
                    raise StoreUnavailable("the connection broke")
                return await ask(*command)

            shared.open(lambda notification: None)
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await shared.learn(breaks)
            # The third part is short, and the last one.
            await shared.learn(breaks)
            assert asked == [0, first + 2, first + 2, first + 6, first + 6]
            assert {str(number): number for number in numbers}.items() <= dict(shared.known.since(0)).items()
            # A foreign number hides nothing that is raised later.
            server.command("ZADD", "swr:{!}b", "9999999999999998", "foreign")
            await cache.invalidate_tag("last")
            await shared.learn(ask)
            assert shared._learned_to <= int(shared.learned[:16])

    async def test_old_tag_versions_are_replaced_by_the_minimum_tag_version(self, server: Server, monkeypatch):
        """Every process learns the tags when it starts. Who invalidates by user or order makes new ones every day."""
        tagged = Policy(60, tags=("t",))
        first = await self.clear_of(server) + 1
        add_tags(server, list(range(first, first + 30)))
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            await cache.get_or_load("before", Counter(), tagged)
            await cache.invalidate_tag("young")
            assert server.command("ZCARD", "swr:{!}b") == b":33\r\n"
            monkeypatch.setattr(shared_tag_versions, "_KEPT_FOR", 0.0)
            for number in range(5):
                await cache.invalidate_tag(str(number))
            monkeypatch.undo()
            await cache.get_or_load("after", Counter(), tagged)
        # The clear, the minimum, the stamp, and what was invalidated just now.
        assert int(server.command("ZCARD", "swr:{!}b").strip()[1:]) <= 5
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as other:
            assert (await other.get_or_load("after", Counter(), tagged)).state is State.FRESH
            assert (await other.get_or_load("before", Counter(), tagged)).state is State.MISSING

    @pytest.mark.uncounted
    async def test_server_with_30000_tags_is_reachable_and_all_are_learned(self, server: Server):
        first = await self.clear_of(server) + 1
        add_tags(server, list(range(first, first + 30_000)))
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            assert cache.engine.is_store_up
            assert len(cache.engine.store.tag_versions.since(0)) == 30_001


class TestHits:
    @pytest.mark.parametrize("in_redis", [False, True])
    async def test_invalidating_an_unused_tag_keeps_hits_on_the_fast_path(self, server: Server, in_redis):
        """Every unsafe request invalidates its URL, which most often was never cached."""
        tagged, load = Policy(60, tags=("t", "u")), Counter()
        async with Cache(server.url, timeout=LONG) if in_redis else Cache() as cache:
            for key in ("k", "l"):
                await cache.get_or_load(key, load, tagged)
                await cache.get_or_load(key, load, tagged)
            slot, local = cache.local.get("k"), cache.local
            assert slot.trust is local.trust
            await cache.invalidate_tag("another")
            assert slot.trust is local.trust
            await cache.invalidate("l")
            await cache.invalidate_tag("u")
            assert slot.trust is not local.trust
            assert (await cache.get_or_load("k", load, tagged)).value == 3
            await cache.invalidate("k")
            assert local.slots.tags == {}
            await cache.get_or_load("k", load, tagged)
            await cache.clear()
            assert (await cache.get_or_load("k", load, tagged)).value == 5


def socket_of(cache: Cache) -> socket.socket:
    """Return the socket of the connection for commands."""
    return cache.engine.store.store._servers.link_to(b"").connection._transport.get_extra_info("socket")


class TestSlowConnections:
    async def test_value_that_takes_longer_to_send_than_the_timeout_is_stored(self, server: Server):
        async with (
            Proxy(server.port, rate=1_000_000) as proxy,
            Cache(server.url, timeout=LONG) as other,
            Cache(proxy.url, timeout=1, connect_timeout=LONG, compress_above=None) as cache,
        ):
            # What the kernel has taken the server seems to have taken, too.
            socket_of(cache).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            value = "x" * 4_000_000

            async def load() -> str:
                return value

            assert (await cache.get_or_load("large", load, POLICY)).value == value
            assert cache.engine.is_store_up
            assert (await other.get_or_load("large", load, POLICY)).state is State.FRESH

    async def test_values_for_a_slow_server_are_stored_within_bounded_memory(self, server: Server, monkeypatch):
        monkeypatch.setattr(leases, "_MOST_ON_THEIR_WAY", 1_000_000)
        async with (
            Proxy(server.port, rate=4_000_000) as proxy,
            Cache(server.url, timeout=LONG) as other,
            Cache(proxy.url, timeout=LONG, connect_timeout=LONG, compress_above=None) as cache,
        ):
            socket_of(cache).setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 65536)
            connection = cache.engine.store.store._servers.link_to(b"").connection
            most = 0

            async def load() -> str:
                return "x" * 300_000

            async def watch() -> None:
                nonlocal most
                while True:
                    waiting = connection._transport.get_write_buffer_size() + sum(map(len, connection._outbox))
                    most = max(most, waiting)
                    await asyncio.sleep(0)

            watching = asyncio.create_task(watch())
            await asyncio.gather(*(cache.get_or_load(f"large{number}", load, POLICY) for number in range(20)))
            watching.cancel()
            assert most < 1_500_000
            for number in range(20):
                assert (await other.get_or_load(f"large{number}", load, POLICY)).state is State.FRESH


class TestReasons:
    """The log says why swr cannot reach its server and what to do, and says it again when the reason changes."""

    async def test_rotated_password_is_logged_although_the_server_only_closed_the_connection(
        self, own_server: Server, caplog
    ):
        own_server.command("ACL", "SETUSER", "app", "on", ">old", "~*", "&*", "+@all")
        async with Cache(own_server.url.replace("//", "//app:old@"), connect_timeout=LONG) as cache:
            assert cache.engine.is_store_up
            own_server.command("ACL", "SETUSER", "app", ">new", "<old")
            # Whoever was connected with the old password is cut off by that, or goes on until it is closed.
            own_server.command("CLIENT", "KILL", "USER", "app")
            await until(lambda: "refuses this user name or password" in caplog.text)
            own_server.command("ACL", "SETUSER", "app", ">old")
            await until(lambda: cache.engine.is_store_up)
        assert caplog.text.count("cannot reach Redis") == 1
        assert caplog.text.count("is still unreachable, now for another reason") == 1
        assert "old@" not in caplog.text

    async def test_alternating_reasons_are_logged_once_each(self, server: Server, caplog):
        async with Cache(server.url, timeout=LONG, connect_timeout=LONG) as cache:
            link = cache.engine.store.store._servers.link_to(b"")
            connection = link.connection
            for _ in range(10):
                for reason in ("one", "another"):
                    link.lose(StoreUnavailable(reason), connection)
        assert len(caplog.records) == 2

    async def test_missing_password_is_logged_as_the_reason(self, own_server: Server, caplog):
        own_server.command("CONFIG", "SET", "requirepass", "secret")
        async with Cache(own_server.url, connect_timeout=LONG):
            # Before 7 redis-py does not keep the server's code, NOAUTH.
            assert re.search("refuses this user name or password: (NOAUTH )?Authentication required", caplog.text)

    async def test_server_without_the_hello_command_is_used_without_a_warning(self, caplog):
        with Server(kinds()[0], "--rename-command", "HELLO", "") as server:
            async with Cache(server.url, connect_timeout=LONG) as cache:
                assert cache.engine.is_store_up
        assert caplog.text == ""

    async def test_resp3_client_of_a_server_without_hello_logs_the_remedy(self, caplog):
        with Server(kinds()[0], "--rename-command", "HELLO", "") as server:
            async with Redis.from_url(server.url, protocol=3) as client, Cache(redis=client, connect_timeout=LONG):
                assert "the server refuses HELLO" in caplog.text
                assert "give the client protocol=2" in caplog.text
            async with (
                Redis.from_url(server.url, protocol=2) as client,
                Cache(redis=client, connect_timeout=LONG) as cache,
            ):
                assert cache.engine.is_store_up

    @pytest.mark.parametrize("looks_like_one", [False, True])
    async def test_client_without_a_real_server_is_refused_at_opening(self, looks_like_one):
        """For example fakeredis, which has no server behind it."""

        class Imitation(ClientConnection):
            async def connect(self) -> None:
                self._writer = SimpleNamespace(transport=object() if looks_like_one else None)

            async def can_read(self, timeout: float = 0) -> bool:
                return False

            # Until 6 its pools ask this.
            can_read_destructive = can_read

            async def send_packed_command(self, *args: object, **options: object) -> None:
                pass

            async def read_response(self, *args: object, **options: object) -> list[object]:
                return [b"subscribe", b"channel", 1]

            async def disconnect(self, *args: object, **options: object) -> None:
                self._writer = None

        client = Redis(connection_pool=ConnectionPool(Imitation))
        cache = Cache(redis=client, connect_timeout=LONG)
        for _ in range(2):
            with pytest.raises(ConfigurationError, match="Imitation, which leads to no server"):
                async with cache:
                    pass
            with pytest.raises(ConfigurationError, match="Imitation, which leads to no server"):
                await cache.get_or_load("k", Counter(), POLICY)

    async def test_plain_url_of_a_cluster_node_logs_the_remedy_even_if_it_holds_the_tag_versions(self, caplog):
        with Server(kinds()[0], "--cluster-enabled", "yes", "--cluster-port", str(free_port())) as node:
            node.command("CLUSTER", "ADDSLOTSRANGE", "0", "16383")
            async with Cache(node.url, connect_timeout=LONG) as cache:
                assert not cache.engine.is_store_up
                assert "is a node of a cluster: give a URL redis+cluster://" in caplog.text

    async def test_cluster_url_of_a_single_server_logs_the_remedy(self, server: Server, caplog):
        async with Cache(server.url.replace("redis:", "redis+cluster:"), connect_timeout=LONG):
            assert "is not a node of a cluster" in caplog.text
            assert "give a URL redis://" in caplog.text

    async def test_plain_url_of_a_sentinel_logs_the_remedy(self, server: Server, caplog):
        with Server(kinds()[0]) as sentinel:
            sentinel.kill()
            sentinel.watch(server.port, 60)
            async with Cache(sentinel.url, connect_timeout=LONG):
                assert "the server is a sentinel: give a URL redis+sentinel://" in caplog.text

    async def test_plain_url_of_a_replica_logs_the_remedy(self, server: Server, own_server: Server, caplog):
        own_server.command("REPLICAOF", "127.0.0.1", str(server.port))
        async with Cache(own_server.url, connect_timeout=LONG):
            assert "the server is a replica: give the URL of its master" in caplog.text

    @pytest.mark.parametrize(
        ("info", "is_single", "words"),
        [
            ({b"redis_version": b"5.0.14"}, True, "Redis 5.0 is too old"),
            ({b"redis_version": b"6.0.16"}, True, "Redis 6.0 is too old"),
            ({b"redis_mode": b"sentinel"}, False, "give a URL redis\\+sentinel"),
            ({b"redis_version": b"6.2.0"}, True, None),
            ({b"redis_version": b"255.255.255", b"redis_mode": b"cluster"}, False, None),
            ({b"redis_version": b"dragon"}, True, None),
            ({}, True, None),
        ],
    )
    def test_check_kind_raises_only_for_unsupported_servers(self, info, is_single, words):
        if words is None:
            check_kind(info, is_single=is_single)
        else:
            with pytest.raises(StoreUnavailable, match=words):
                check_kind(info, is_single=is_single)

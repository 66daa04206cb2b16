"""Redis Cluster and Sentinel for real: what is promised of one server holds of many, through their failovers."""

import asyncio
import secrets
import socket
from collections import Counter as Counted
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
from redis import CredentialProvider
from redis.asyncio import RedisCluster
from redis.crc import key_slot
from redis.exceptions import AskError, ClusterDownError

from swr import Cache, Policy, Refresher, StoreUnavailable
from swr.core.codec import ANY
from swr.events import StoreUnreachable
from swr.middleware import SWRMiddleware
from swr.refreshers.queue.queue import Queue
from swr.stores.base import Kind, LeasingStore
from swr.stores.local import LocalCache
from swr.stores.redis.store import RedisStore
from swr.stores.redis.urls import servers_of
from swr.stores.tiered import TieredStore
from tests.servers import ClusterOfSix, Sentinels, free_port, kinds
from tests.store_conformance import StoreConformance
from tests.test_announcements import Rows
from tests.test_redis import Counter, committed, until
from tests.test_stores import opened
from tests.web import client

pytestmark = pytest.mark.anyio

POLICY = Policy(60, 600, 3600, tags=("t",))


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module", params=kinds())
def cluster(request) -> Iterator[ClusterOfSix]:
    with ClusterOfSix(request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=kinds())
def sentinels(request) -> Iterator[Sentinels]:
    with Sentinels(request.param) as group:
        yield group


def fresh() -> str:
    """Return a namespace that nobody uses: after a flush, messages from before it would still arrive."""
    return secrets.token_hex(4)


def slots_with(most: int, entry: Callable[[int], bytes]) -> list[list[int]]:
    """Return, for some slots of a cluster, so many numbers whose entries lie in them."""
    numbers: dict[int, list[int]] = {}
    for number in range(8_000):
        numbers.setdefault(key_slot(entry(number)), []).append(number)
    return [some[:most] for some in numbers.values() if len(some) >= most]


def store_of(url: str) -> RedisStore:
    return RedisStore(servers_of(url, None, 2.0), fresh(), 2.0)


class TestOnACluster(StoreConformance):
    @pytest.fixture
    async def store(self, cluster: ClusterOfSix) -> AsyncIterator[LeasingStore]:
        async with opened(store_of(cluster.url)) as store:
            yield store


class TestLocalCacheBeforeACluster(StoreConformance):
    @pytest.fixture
    async def store(self, cluster: ClusterOfSix) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(LocalCache(2**20, 1000), store_of(cluster.url))) as store:
            yield store


class TestBehindSentinels(StoreConformance):
    @pytest.fixture
    async def store(self, sentinels: Sentinels) -> AsyncIterator[LeasingStore]:
        async with opened(store_of(sentinels.url)) as store:
            yield store


class TestCluster:
    async def test_one_load_serves_all_processes_whichever_master_has_the_key(self, cluster: ClusterOfSix):
        load = Counter()
        async with Cache(cluster.url, timeout=2) as one, Cache(cluster.url, timeout=2) as other:
            for number in range(30):
                for cache in (one, other):
                    assert (await cache.get_or_load(f"k{number}", load, POLICY)).value == number + 1

    async def test_loader_options_work_on_a_cluster(self, cluster: ClusterOfSix):
        rows: dict[int, int] = {number: number for number in range(10)}
        async with Cache(cluster.url, timeout=2) as one, Cache(cluster.url, timeout=2) as other:
            keyed, unshared, remote = [], [], []
            for cache in (one, other):

                @cache.cached(key=lambda n: "}{" * n + str(n), fresh_for=60, store_if=bool, max_concurrent_loads=1)
                async def of_key(n: int) -> int:
                    return rows[n]

                @cache.cached("here:{n}", fresh_for=60, shared=False, tags=("here",))
                async def here(n: int) -> object:
                    return object()

                @cache.cached_many("there:{n}", fresh_for=60, local=False, max_concurrent_loads=1)
                async def there(numbers: list[int]) -> dict[int, int]:
                    return {number: rows[number] for number in numbers}

                keyed.append(of_key), unshared.append(here), remote.append(there)
            for number in range(1, 10):
                assert await keyed[0](number) == await keyed[1](number) == number
                assert await unshared[0](number) is await unshared[0](number)
                assert await unshared[1](number) is not await unshared[0](number)
            assert await remote[0](list(rows)) == await remote[1](list(rows)) == rows
            before = dict(rows)
            rows.update(dict.fromkeys(rows, 0))
            assert await remote[1](list(rows)) == before
            assert [await keyed[0].refresh(number) for number in range(10)] == [0] * 10
            await one.invalidate_tag("here")
            await until(lambda: not any(other.engine.store.peek(f"here:{number}") for number in rows))
            await until(lambda: not any(other.engine.store.peek(keyed[1].key(number)) for number in rows))
            assert [await keyed[1](number) for number in range(10)] == [0] * 10

    async def test_invalidations_of_keys_tags_and_everything_reach_other_processes(self, cluster: ClusterOfSix):
        keys = [f"k{number}" for number in range(10)]
        load = Counter()
        async with Cache(cluster.url, timeout=2) as one, Cache(cluster.url, timeout=2) as other:
            for invalidate in (
                lambda: asyncio.gather(*(one.invalidate(key) for key in keys)),
                lambda: one.invalidate_tag("t"),
                lambda: one.clear(),
            ):
                for cache in (one, other):
                    for key in keys:
                        await cache.get_or_load(key, load, POLICY)
                runs = load.runs
                await invalidate()
                await until(lambda: not any(other.engine.store.peek(key) for key in keys))
                for cache in (one, other):
                    for key in keys:
                        assert (await cache.get_or_load(key, load, POLICY)).value > runs

    async def test_post_invalidates_cached_urls_and_raises_no_tag_for_uncached_ones(self, cluster: ClusterOfSix):
        """Whichever master has the entries: that of the tag versions knows which URLs are loaded."""
        rows, namespace = Rows(), fresh()
        async with (
            Cache(cluster.url, namespace=namespace, timeout=10) as one,
            Cache(cluster.url, namespace=namespace, timeout=10) as other,
        ):
            clients = [client(SWRMiddleware(rows, cache)) for cache in (one, other)]
            paths = [f"/{number}" for number in range(6)]
            for turn in range(1, 4):
                for http in clients:
                    for path in paths:
                        assert (await http.get(path)).text == str(turn)
                rows.row += 1
                newest = one.engine.store.tag_versions.newest
                await clients[0].post("/never")
                assert one.engine.store.tag_versions.newest == newest
                for path in paths:
                    await clients[turn % 2].post(path)
                versions = [cache.engine.store.tag_versions for cache in (one, other)]
                await until(lambda versions=versions: versions[0].newest == versions[1].newest)
            for http in clients:
                await http.aclose()

    async def test_message_passed_on_by_every_master_notifies_once(
        self, cluster: ClusterOfSix, monkeypatch, no_heartbeats
    ):
        """Though every master passes it on, and the process subscribes to each."""
        namespace, received, copies = fresh(), [], Counted()
        on_message = RedisStore.on_message

        def count(store, link, data):
            on_message(store, link, data)
            if store is other.engine.store.store:
                copies[data] += 1

        monkeypatch.setattr(RedisStore, "on_message", count)
        # A command that swr repeats notifies again: it has to wait for a slow machine.
        one, other = (Cache(cluster.url, namespace=namespace, timeout=60) for _ in range(2))
        async with one, other:
            other.engine.notifications.subscribe(
                lambda notification: received.append((notification.kind, notification.name))
            )
            for number in range(20):
                await one.invalidate(f"k{number}")
            await one.invalidate_tag("t")
            await until(lambda: len(copies) >= 21 and set(copies.values()) == {3})
        assert sorted(received, key=str) == sorted(
            [(Kind.TAG_VERSION, "t"), *((Kind.INVALIDATED, f"k{number}") for number in range(20))], key=str
        )

    async def test_batched_commits_notify_once_each(self, cluster: ClusterOfSix):
        received = []
        async with Cache(cluster.url, namespace=fresh(), timeout=2) as cache:
            cache.engine.notifications.subscribe(received.append)
            store = cache.engine.store.store
            version = await store.now()
            commits = [b"c%016d%b%b%b" % (version, b"0" * 16, b"f" * 8, name) for name in (b"one", b"two")]
            together = b"m" + b"".join(b"%08d%b" % (len(commit), commit) for commit in commits)
            for link in store._servers._links.values():
                store.on_message(link, together)
            names = [notification.name for notification in received if notification.kind is Kind.COMMITTED]
        assert names == ["one", "two"]

    async def test_leases_and_commits_of_one_slot_share_a_command(self, cluster: ClusterOfSix, no_heartbeats):
        """Of another slot no key can be in it. The newest tag version, in a slot of its own, is read once for all."""
        async with opened(store_of(cluster.url)) as store:
            slots = slots_with(3, lambda number: store.names.entry(f"k{number}"))
            keys = [f"k{number}" for numbers in slots[:2] for number in numbers]
            await store.read("known", ANY)
            sent = store.sent
            leases = await asyncio.gather(*(store.acquire(key, "t", 30, 0, ANY) for key in keys))
            assert store.sent - sent == 3
            sent = store.sent
            ends = [store.commit(lease, committed(lease, lease.key), ANY) for lease in leases]
            assert await asyncio.gather(*ends) == [None] * 6
            assert store.sent - sent == 2
            assert [(await store.read(key, ANY)).value for key in keys] == keys

    async def test_queue_hands_out_groups_of_one_slot_together(self, cluster: ClusterOfSix):
        """So that those who load them can ask for their leases together."""
        loaded: list[int] = []
        async with Cache(cluster.url, namespace=fresh(), timeout=2) as cache:

            @cache.cached("k{number}", fresh_for=3600)
            async def load(number: int) -> int:
                loaded.append(number)
                return number

            await cache.engine.ready()

            def entry(number: int) -> bytes:
                return cache.engine.store.store.names.entry(load.key(number))

            slots = slots_with(2, entry)[:5]
            # Of each slot one, and then the others.
            groups = [number for place in range(2) for number in (numbers[place] for numbers in slots)]
            async with Refresher(load, groups, 3600, "queue", name="slots", at_once=1):
                await until(lambda: len(loaded) == len(groups))
        assert [key_slot(entry(number)) for number in loaded] == sorted(key_slot(entry(number)) for number in groups)

    async def test_tag_version_from_another_master_does_not_count_as_learned(self, cluster: ClusterOfSix):
        """Only where they are made do they come in the order of their numbers."""
        namespace = fresh()
        async with Cache(cluster.url, namespace=namespace, timeout=2) as cache:
            await cache.invalidate_tag("one")
            store = cache.engine.store.store
            owner = store._servers.link_to(store.names.newest_tag_version)
            another = next(link for link in store._servers._links.values() if link is not owner)
            await until(lambda: store._shared.learned[:16] == b"%d" % store.tag_versions.newest)
            before = store.tag_versions.newest

            def learned() -> int:
                return int(store._shared.learned[:16])

            def message(name: str, ahead: int) -> bytes:
                version = before + 10**6 + ahead
                return b"%b%016d%016d%016dt%b" % (Kind.TAG_VERSION.value.encode(), version, 0, learned(), name.encode())

            store.on_message(another, message("two", 0))
            assert (store.tag_versions.newest, learned()) == (before + 10**6, before)
            store.on_message(owner, message("three", 1))
            assert learned() == before + 10**6 + 1
            # Where they cannot be asked for, what is known has to do.
            assert await store._shared.learn_from(None) == store.tag_versions.newest
            # While nobody is known to make them, nobody's will do.
            store._servers._by_slot[key_slot(store.names.newest_tag_version)] = None
            store.on_message(owner, message("four", 2))
            assert learned() == before + 10**6 + 1

    async def test_cache_with_own_client_shares_entries_with_one_made_from_url(self, cluster: ClusterOfSix):
        client = RedisCluster.from_url(cluster.url.replace("+cluster", "").partition(",")[0])
        load = Counter()
        async with Cache(redis=client, timeout=2) as one, Cache(cluster.url, timeout=2) as other:
            await one.get_or_load("k", load, POLICY)
            await other.get_or_load("k", load, POLICY)
        assert load.runs == 1
        await client.aclose()

    async def test_failing_credential_provider_is_an_outage_until_it_recovers(self, cluster: ClusterOfSix, caplog):
        """A provider asks a cloud for a token, and may raise whatever its library raises."""

        class Provider(CredentialProvider):
            tries = 0

            def get_credentials(self):
                self.tries += 1
                if self.tries <= 3:
                    raise LookupError("no token today")
                return "default", "any"

        port = cluster.nodes[0].port
        client = RedisCluster("127.0.0.1", port, credential_provider=Provider())
        async with Cache(redis=client, namespace=fresh(), timeout=2) as cache:
            with anyio.fail_after(60):
                assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
            await until(lambda: cache.engine.store.is_reachable)
        await client.aclose()
        assert "no token today" in caplog.text

    @pytest.mark.parametrize("may_ask", [True, False])
    async def test_url_of_a_single_cluster_node_is_refused_in_the_log(self, cluster: ClusterOfSix, caplog, may_ask):
        """The node says so itself, or it redirects a client that may not ask it."""
        for node in cluster.masters():
            caplog.clear()
            node.command("ACL", "SETUSER", "default", "+info" if may_ask else "-info")
            try:
                async with Cache(node.url, namespace=fresh(), timeout=2) as cache:
                    for number in range(10):
                        assert (await cache.get_or_load(f"k{number}", Counter(), POLICY)).value == 1
            finally:
                node.command("ACL", "SETUSER", "default", "+info")
            assert "the server is a node of a cluster" in caplog.text
            assert "give a URL redis+cluster://" in caplog.text

    async def test_error_of_an_earlier_connection_does_not_break_the_link(self, cluster: ClusterOfSix, caplog):
        async with Cache(cluster.url, namespace=fresh(), timeout=2) as cache:
            servers = cache.engine.store.store._servers
            servers.link_to(b"any").lose(StoreUnavailable("of old"), object())
            assert servers.is_reachable
            assert cache.engine.store.is_reachable
        assert caplog.text == ""

    async def test_master_that_hangs_while_cache_opens_is_used_once_it_answers(self, cluster: ClusterOfSix, caplog):
        hung = cluster.masters()[0]
        hung.pause()
        try:
            async with Cache(cluster.url, namespace=fresh(), connect_timeout=0.2) as cache:
                hung.resume()
                await until(lambda: cache.engine.store.is_reachable)
        finally:
            hung.resume()
        assert "no connection within 0.2 s" in caplog.text

    async def test_cluster_map_with_fewer_masters_causes_no_outage(self, cluster: ClusterOfSix, caplog):
        """What nodes know of each other spreads by gossip: whichever is asked for the map may lag behind."""
        async with Cache(cluster.url, namespace=fresh(), timeout=2) as cache:
            servers = cache.engine.store.store._servers
            host, rows = await servers._ask_for_map()
            servers._draw((host, rows[1:]))
            servers._owner.on_link_changed()
            assert servers.is_reachable
            for number in range(12):
                assert (await cache.get_or_load(f"k{number}", Counter(), POLICY)).value == 1
        assert "cannot reach Redis" not in caplog.text

    async def test_queue_with_shards_hands_out_all_marked_groups(self, cluster: ClusterOfSix):
        """The clocks of masters differ: by another's a load could seem newer than the mark that it has not seen."""
        async with Cache(cluster.url, namespace=fresh(), timeout=2) as cache:
            store = cache.engine.store.store
            queue = Queue(store, "r", shards=3)
            await queue.mark({f"k{number}": (number,) for number in range(12)})
            assert await queue.drain(f"{1:016d}") == (12, 0)
            taken = [await queue.take(shard, "one", 100) for shard in queue.shards]
            assert sorted(delivery.args[0] for _, some in taken for delivery in some) == list(range(12))

    async def test_read_of_a_slot_without_a_master_raises_store_unavailable(self, cluster: ClusterOfSix):
        async with opened(store_of(cluster.url)) as store:
            store._servers._by_slot[key_slot(store.names.entry("k"))] = None
            with pytest.raises(StoreUnavailable, match="no master is known"):
                await store.read("k", ANY)

    async def test_unreachable_cluster_causes_no_error_and_is_logged_once(self, caplog):
        load = Counter()
        async with Cache(f"redis+cluster://127.0.0.1:{free_port()}") as cache:
            for _ in range(2):
                assert (await cache.get_or_load("k", load, POLICY)).value == 1
            await cache.invalidate_tag("t")
            assert (await cache.get_or_load("k", load, POLICY)).value == 2
        assert caplog.text.count("cannot reach Redis") == 1

    async def test_silent_server_is_given_up_after_connect_timeout(self, caplog):
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with Cache(f"redis+cluster://127.0.0.1:{silent.getsockname()[1]}", connect_timeout=0.2) as cache:
                assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
        assert "no connection within 0.2 s" in caplog.text

    async def test_links_stay_when_no_node_gives_a_cluster_map(self, cluster: ClusterOfSix, monkeypatch):
        asked = []

        async def unanswered():
            asked.append(1)
            raise StoreUnavailable("no node answers")

        async with Cache(cluster.url, namespace=fresh(), timeout=30) as cache:
            await cache.engine.ready()
            servers = cache.engine.store.store._servers
            links = dict(servers._links)
            monkeypatch.setattr(servers, "_ask_for_map", unanswered)
            # By the second time the first is dealt with.
            await until(lambda: servers.refresh_map() or len(asked) >= 2)
            assert servers._links == links
            assert servers.is_reachable

    async def test_cluster_down_error_raises_store_unavailable_and_outdates_the_map(
        self, cluster: ClusterOfSix, monkeypatch
    ):
        async def down(*command):
            raise ClusterDownError("Hash slot not served")

        async with Cache(cluster.url, namespace=fresh(), timeout=30) as cache:
            await cache.engine.ready()
            servers = cache.engine.store.store._servers
            monkeypatch.setattr(servers.link_to(b"k"), "ask", down)
            with pytest.raises(StoreUnavailable, match="Hash slot not served"):
                await servers.ask(b"k", "GET", "k")
            assert servers._map_outdated.is_set()

    async def test_migrating_tag_versions_at_a_heartbeat_break_no_link(self, cluster: ClusterOfSix):
        async def moving(*command):
            raise AskError("5 127.0.0.1:7000")

        async with Cache(cluster.url, namespace=fresh(), timeout=30) as cache:
            await cache.engine.ready()
            store = cache.engine.store.store
            link = store._servers.link_to(store.names.newest_tag_version)
            await store._failover._learn_at(link, moving, link.run_id)
            assert store._servers._map_outdated.is_set()
            assert store._servers.is_reachable

    async def test_migrating_slot_causes_no_error(self, cluster: ClusterOfSix):
        """Reads follow it; what needs two keys at once has to wait, and nobody gets an error."""
        namespace = fresh()
        name = f"{namespace}:{{k}}".encode()
        slot = key_slot(name)
        # Another key of the same slot, which is not there.
        absent = next(f"a{n}" for n in range(10**6) if key_slot(f"{namespace}:{{a{n}}}".encode()) == slot)
        source = cluster.master_of(name)
        target = next(node for node in cluster.masters() if node is not source)
        load = Counter()
        async with Cache(cluster.url, namespace=namespace, timeout=2, l1_max_bytes=0) as cache:
            assert (await cache.get_or_load("k", load, POLICY)).value == 1
            # The target does not know of it yet: each names the other.
            source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", target.says("CLUSTER", "MYID").strip())
            assert (await cache.get_or_load(absent, Counter(), POLICY)).value == 1
            target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", source.says("CLUSTER", "MYID").strip())
            assert (await cache.get_or_load("k", load, POLICY)).value == 1
            assert (await cache.get_or_load(absent, Counter(), POLICY)).value == 1
            # Half-way: the entry is there, a lease is nowhere.
            keys = ("127.0.0.1", str(target.port), "", "0", "5000", "KEYS", name.decode())
            assert source.command("MIGRATE", *keys) == b"+OK\r\n"
            assert (await cache.get_or_load("k", load, POLICY)).value == 1
            for node in (target, source, *cluster.masters()):
                node.command("CLUSTER", "SETSLOT", str(slot), "NODE", target.says("CLUSTER", "MYID").strip())
            assert (await cache.get_or_load("k", load, POLICY)).value == 1
            await cache.invalidate("k")
            assert (await cache.get_or_load("k", load, POLICY)).value == 2
            servers = cache.engine.store.store._servers
            await until(lambda: servers.link_to(name).name.endswith(str(target.port)))

    @pytest.mark.parametrize("arrived", [False, True])
    async def test_migrating_slot_of_tag_versions_breaks_no_link(self, cluster: ClusterOfSix, arrived):
        """Nobody gets an error, no link is lost, and tags are invalidated anyway."""
        namespace = fresh()
        slot = key_slot(f"{namespace}:{{!}}h".encode())
        source = cluster.master_of(f"{namespace}:{{!}}h".encode())
        target = next(node for node in cluster.masters() if node is not source)
        ids = [node.says("CLUSTER", "MYID").strip() for node in (source, target)]
        down = []
        async with (
            Cache(cluster.url, namespace=namespace, timeout=2) as one,
            Cache(cluster.url, namespace=namespace, timeout=2) as other,
        ):
            one.subscribe(down.append, StoreUnreachable)
            load = Counter()
            await one.get_or_load("k", load, POLICY)
            await other.invalidate_tag("t")
            await one.get_or_load("k", load, POLICY)
            target.command("CLUSTER", "SETSLOT", str(slot), "IMPORTING", ids[0])
            source.command("CLUSTER", "SETSLOT", str(slot), "MIGRATING", ids[1])
            keys = [f"{namespace}:{{!}}{name}" for name in "bhap"]
            source.command("MIGRATE", "127.0.0.1", str(target.port), "", "0", "5000", "KEYS", *keys)
            try:
                if arrived:
                    settle_slot(cluster, slot, ids[1])
                for number in range(40):
                    assert (await one.get_or_load(f"n{number}", Counter(), POLICY)).value == 1
                    if number % 10 == 5:
                        await other.invalidate_tag("t")
                        await until(lambda: one.engine.store.peek("n0") is None)
                    await asyncio.sleep(0.02)
                assert down == []
            finally:
                settle_slot(cluster, slot, ids[1])


def settle_slot(cluster: ClusterOfSix, slot: int, owner: str) -> None:
    """Give a slot to a master, for good."""
    for node in cluster.masters():
        node.command("CLUSTER", "SETSLOT", str(slot), "NODE", owner)


class TestSentinel:
    async def test_url_of_a_replica_is_refused_in_the_log(self, sentinels: Sentinels, caplog):
        replica = next(server for server in sentinels.servers if server is not sentinels.master())
        async with Cache(replica.url, namespace=fresh()) as cache:
            assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
            assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
        assert "the server is a replica: give the URL of its master" in caplog.text

    async def test_unknown_master_is_named_in_the_log(self, sentinels: Sentinels, caplog):
        async with Cache(sentinels.url.replace("mymaster", "another"), timeout=2) as cache:
            assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
        assert "No master found for 'another'" in caplog.text

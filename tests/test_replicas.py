"""Values from replicas that lag, are cut off, killed, promoted or reassigned: nothing older than what was heard of."""

import asyncio
import contextlib
import functools
import math
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator

import anyio
import pytest
from redis.asyncio import Redis
from redis.crc import key_slot

from swr import Cache, Policy, StoreUnavailable
from swr.codec import ANY
from swr.entry import Entry, stamp
from swr.stores import replicas
from swr.stores.base import Kind, Lease, LeasingStore, Message
from swr.stores.connect import servers_of
from swr.stores.link import Link
from swr.stores.redis import RedisStore
from swr.stores.replicas import Floors, Replica
from swr.stores.servers import Single
from swr.stores.shelf import Shelf
from swr.stores.tiered import TieredStore
from swr.testing import StoreConformance
from tests.proxy import Proxy
from tests.servers import ClusterOfSix, Sentinels, Server, kinds
from tests.servers import until as until_soon
from tests.test_failover import Readers, mastered, shared, survives
from tests.test_redis import Counter, until
from tests.test_stores import opened
from tests.test_topologies import fresh

pytestmark = pytest.mark.anyio

# Each kind of server has its say in the other tests of clusters and sentinels.
KINDS = kinds() if os.environ.get("SWR_FULL") else kinds()[:1]
LONG = Policy(600, tags=("t",))
KEYS = [f"k{number}" for number in range(20)]


@pytest.fixture
def anyio_backend():
    return "asyncio"


@contextlib.contextmanager
def six(kind: str, *options: str) -> Iterator[ClusterOfSix]:
    """A cluster whose map has its replicas: Redis leaves out those to which nothing was ever written."""
    with ClusterOfSix(kind, *options) as cluster:
        until_soon(lambda: not [master for master in cluster.nodes[:3] if not mapped(master)])
        yield cluster


def mapped(master: Server) -> bool:
    """Write something; return whether the map has two servers for every slot."""
    assert any(master.command("SET", f"k{number}", "") == b"+OK\r\n" for number in range(100))
    return master.says("CLUSTER", "SLOTS").count("127.0.0.1") == 6


@pytest.fixture(scope="module", params=KINDS)
def cluster(request) -> Iterator[ClusterOfSix]:
    with six(request.param) as cluster:
        yield cluster


@pytest.fixture(scope="module", params=KINDS)
def sentinels(request) -> Iterator[Sentinels]:
    with Sentinels(request.param) as group:
        yield group


@pytest.fixture(scope="module", params=[(start, kind) for start in (six, Sentinels) for kind in KINDS])
def either(request) -> Iterator[ClusterOfSix | Sentinels]:
    start, kind = request.param
    with start(kind) as group:
        yield group


@pytest.fixture
def group(either) -> Iterator[ClusterOfSix | Sentinels]:
    """A cluster, or what sentinels watch, its replicas in sync before and afterwards."""
    yield either
    for server in servers_in(either):
        server.resume()
        heal(server)
    for replica in replicas_in(either):
        until_soon(lambda replica=replica: "master_link_status:up" in replica.says("INFO", "replication"))


def servers_in(group: ClusterOfSix | Sentinels) -> list[Server]:
    return group.nodes if isinstance(group, ClusterOfSix) else group.servers


def replicas_in(group: ClusterOfSix | Sentinels) -> list[Server]:
    return [server for server in servers_in(group) if "role:slave" in server.says("INFO", "replication")]


def masters_in(group: ClusterOfSix | Sentinels) -> list[Server]:
    return group.masters() if isinstance(group, ClusterOfSix) else [group.master()]


def calls(servers: list[Server], command: str) -> int:
    """Return how often some servers have been given a command."""
    counts = re.findall(
        f"^cmdstat_{command}:calls=(\\d+)", "".join(server.says("INFO", "commandstats") for server in servers), re.M
    )
    return sum(map(int, counts))


def cut_off(master: Server) -> None:
    """Let no replica hear of anything any more; each goes on answering from what it has."""
    master.command("ACL", "SETUSER", "default", "-psync", "-sync")
    master.command("CLIENT", "KILL", "TYPE", "replica")


def heal(server: Server) -> None:
    """Let replicas hear again; of SYNC, without an offset, they would never know how far they have come."""
    server.command("ACL", "SETUSER", "default", "+@all", "-sync")


def in_sync(group: ClusterOfSix | Sentinels) -> None:
    for master in masters_in(group):
        master.command("WAIT", str(len(replicas_in(group)) // len(masters_in(group))), "5000")


def links_of(cache: Cache) -> list[Link]:
    servers = cache.engine.store.store._servers
    return [servers._link] if isinstance(servers, Single) else list(servers._links.values())


def trusted(cache: Cache) -> bool:
    """Whether every master has a replica that is asked."""
    store = cache.engine.store.store
    return all(link.replica.wire is not None and store._trusts(link.replica) for link in links_of(cache))


def store_of(url: str) -> RedisStore:
    return RedisStore(servers_of(url, None, 2.0, True), fresh(), 2.0)


reading = functools.partial(Cache, read_from_replicas=True, timeout=2)


class TestInACluster(StoreConformance):
    @pytest.fixture
    async def store(self, cluster: ClusterOfSix) -> AsyncIterator[LeasingStore]:
        async with opened(store_of(cluster.url)) as store:
            await until(lambda: all(store._trusts(link.replica) for link in store._servers._links.values()))
            yield store


class TestBehindAShelf(StoreConformance):
    @pytest.fixture
    async def store(self, cluster: ClusterOfSix) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(Shelf(2**20, 1000), store_of(cluster.url))) as store:
            await until(lambda: all(store.store._trusts(link.replica) for link in store.store._servers._links.values()))
            yield store


class TestBehindSentinels(StoreConformance):
    @pytest.fixture
    async def store(self, sentinels: Sentinels) -> AsyncIterator[LeasingStore]:
        async with opened(store_of(sentinels.url)) as store:
            await until(lambda: store._trusts(store._servers._link.replica))
            yield store


class TestWhoIsAsked:
    async def test_values_come_from_replicas_and_leases_from_masters(self, group):
        load = Counter()
        async with reading(group.url, namespace=fresh(), l1_max_bytes=0) as cache:
            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            in_sync(group)
            await until(lambda: trusted(cache))
            copies = replicas_in(group)
            evals = calls(copies, "eval")
            before = calls(copies, "mget")
            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            assert load.runs == len(KEYS)
            assert calls(copies, "mget") == before + len(KEYS)
            # Misses, tags and leases.
            await cache.invalidate_tag("t")
            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            assert load.runs == 2 * len(KEYS)
            assert calls(copies, "mget") >= before + 2 * len(KEYS)
            # What masters did is done again by replicas as its effects.
            assert calls(copies, "eval") == evals

    async def test_nobody_else_reads_from_replicas(self, group):
        async with Cache(group.url, namespace=fresh(), timeout=2, l1_max_bytes=0) as cache:
            before = calls(replicas_in(group), "mget")
            for key in KEYS:
                await cache.get_or_load(key, Counter(), LONG)
            assert calls(replicas_in(group), "mget") == before

    async def test_who_has_no_master_has_no_replica(self, cluster: ClusterOfSix):
        async with opened(store_of(cluster.url)) as store:
            store._servers._by_slot[key_slot(store._entry_key("k"))] = None
            with pytest.raises(StoreUnavailable, match="no master is known"):
                await store.read("k", ANY)
            with pytest.raises(StoreUnavailable, match="none is known"):
                store._servers._connect_to_replica(("127.0.0.1", 1))


class TestLag:
    @pytest.mark.parametrize("shelf", [0, 2**20])
    async def test_nothing_is_older_than_what_was_done_here(self, group, shelf):
        namespace, load = fresh(), Counter()
        async with reading(group.url, namespace=namespace, l1_max_bytes=shelf) as cache:

            @cache.cached("rank", fresh_for=600)
            async def rank() -> int:
                return await load()

            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            await rank()
            in_sync(group)
            await until(lambda: trusted(cache))
            for master in masters_in(group):
                cut_off(master)
            # One's own messages may come later than the replies.
            cache.engine.store.store.hear = lambda link, data: None
            asked = calls(replicas_in(group), "mget")
            for key in KEYS:
                before = load.runs
                await cache.invalidate(key)
                for _ in range(2):
                    assert (await cache.get_or_load(key, load, LONG)).value == before + 1
            await rank.refresh()
            before = load.runs
            assert await rank() == before
            # And they were asked.
            assert calls(replicas_in(group), "mget") > asked

    @pytest.mark.parametrize("shelf", [0, 2**20])
    async def test_nothing_is_older_than_what_was_heard_of(self, group, shelf):
        namespace, load = fresh(), Counter()
        async with (
            reading(group.url, namespace=namespace, l1_max_bytes=shelf) as one,
            Cache(group.url, namespace=namespace, timeout=2, l1_max_bytes=0) as other,
        ):
            for key in KEYS:
                await one.get_or_load(key, load, LONG)
            in_sync(group)
            heard = listened(one)
            await until(lambda: trusted(one))
            for master in masters_in(group):
                cut_off(master)
            asked = calls(replicas_in(group), "mget")
            for key in KEYS:
                await other.invalidate(key)
                await until(lambda key=key: (Kind.INVALIDATED, key) in heard)
                # Invalidated, and another process's commit.
                reader, before = (one, load.runs) if key < "k5" else (other, load.runs)
                assert (await reader.get_or_load(key, load, LONG)).value == before + 1
                if reader is other:
                    await until(lambda key=key: (Kind.COMMITTED, key) in heard)
                assert (await one.get_or_load(key, load, LONG)).value == before + 1
            assert calls(replicas_in(group), "mget") > asked

    async def test_nothing_is_older_than_what_was_found_with_a_lease(self, sentinels: Sentinels):
        namespace = fresh()
        async with (
            opened(RedisStore(servers_of(sentinels.url, None, 2.0, True), namespace, 2.0)) as store,
            opened(RedisStore(servers_of(sentinels.url, None, 2.0), namespace, 2.0)) as other,
        ):
            first = await put(other, "k", 1)
            heard: list[int] = []
            observe(store, lambda message: heard.append(message.version))
            in_sync(sentinels)
            await until(lambda: store._trusts(store._servers._link.replica))
            cut_off(sentinels.master())
            try:
                second = await put(other, "k", 2)
                await until(lambda: second.version in heard)
                # As if no message had come.
                store._floors.forget()
                store._floors.since = -math.inf
                assert await store.read("k", ANY) == first
                # A gap while the answer is on its way.
                answer = asyncio.ensure_future(store.read("k", ANY))
                while not store._servers._link.replica.wire._pending:
                    await asyncio.sleep(0)
                store._floors.forget()
                assert await answer == second
                store._floors.since = -math.inf
                assert await store.acquire("k", "b", 30, first.version, ANY) == second
                assert await store.read("k", ANY) == second
            finally:
                heal(sentinels.master())

    async def test_what_was_missed_is_not_taken_from_a_replica_that_missed_it_too(self, group):
        """An entry on the shelf, a gap in the link, and a replica that has what is on the shelf."""
        namespace, load = fresh(), Counter()
        async with reading(group.url, namespace=namespace) as cache:
            await cache.get_or_load("k", load, LONG)
            in_sync(group)
            await until(lambda: trusted(cache))
            store = cache.engine.store
            master = next(m for m in masters_in(group) if m.port == port_of(store.store, "k"))
            for each in masters_in(group):
                cut_off(each)
            lose_a_message(master, namespace, "k", store.peek("k"))
            gaps = watched_gaps(store.store)
            for each in masters_in(group):
                each.command("CLIENT", "KILL", "TYPE", "normal")
            await until(lambda: gaps and store.up)
            # Two beats and more: it is measured meanwhile, and found behind.
            await asyncio.sleep(3 * replicas._BEAT)
            assert (await cache.get_or_load("k", load, LONG)).value == 2

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_replica_that_believes_that_it_is_in_order(self, kind, monkeypatch, caplog):
        """Its link to its master is up, and nothing comes through."""
        with Server(kind, "--repl-diskless-sync-delay", "0") as master, Server(kind) as copy:
            async with Proxy(master.port) as between:
                await asyncio.to_thread(copy.command, "REPLICAOF", "127.0.0.1", str(between.port))
                async with opened(single(master, copy)) as store:
                    replica = store._servers._link.replica
                    entry = await put(store, "k", 1)
                    await until(lambda: store._trusts(replica))
                    between.hang = True
                    lose_a_message(master, "swr", "k", entry)
                    store._floors.forget()
                    await asyncio.sleep(3 * replicas._BEAT)
                    assert "master_link_status:up" in await asyncio.to_thread(copy.says, "INFO", "replication")
                    assert not store._trusts(replica)
                    assert await store.read("k", ANY) is None
                    # It is given up at last, and taken again when it has caught up.
                    monkeypatch.setattr(replicas, "_MOST_BEHIND", 1.0)
                    await until(lambda: replica.wire is None)
                    await until(lambda: "the replica is more than 1 s behind" in caplog.text)
                    between.hang = False
                    await until(lambda: store._trusts(replica))
                    assert await store.read("k", ANY) is None

    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_cut_off_is_given_up(self, kind, monkeypatch):
        monkeypatch.setattr(replicas, "_MOST_BEHIND", 1.0)
        with Sentinels(kind) as group:
            async with reading(group.url, namespace=fresh()) as cache:
                await until(lambda: trusted(cache))
                cut_off(group.master())
                await cache.invalidate("k")
                await until(lambda: links_of(cache)[0].replica.since == -math.inf)
                heal(group.master())
                await until(lambda: trusted(cache))


class TestFailure:
    async def test_one_that_is_silent(self, group):
        """The masters answer at once, and nobody loads anew."""
        load = Counter()
        async with reading(group.url, namespace=fresh(), l1_max_bytes=0, timeout=1) as cache:
            await cache.get_or_load("k", load, LONG)
            await until(lambda: trusted(cache))
            for replica in replicas_in(group):
                replica.pause()
            for _ in range(3):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            assert cache.engine.store.up
            for server in servers_in(group):
                server.resume()
            await until(lambda: trusted(cache))

    async def test_one_that_refuses(self, group, monkeypatch, caplog):
        load = Counter()
        async with reading(group.url, namespace=fresh(), l1_max_bytes=0) as cache:
            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            await until(lambda: trusted(cache))
            # One more beat, and no other.
            monkeypatch.setattr(replicas, "_BEAT", 60.0)
            copies = [link.replica for link in links_of(cache)]
            before = [copy.since for copy in copies]
            await until(lambda: all(copy.since > since for copy, since in zip(copies, before, strict=True)))
            for replica in replicas_in(group):
                replica.command("ACL", "SETUSER", "default", "-mget")
            for key in KEYS:
                await cache.get_or_load(key, load, LONG)
            assert load.runs == len(KEYS)
            # It is not asked again at once.
            assert not trusted(cache)
        assert caplog.text == ""

    @pytest.mark.parametrize("kind", KINDS)
    async def test_replicas_that_are_killed(self, kind, caplog):
        with Sentinels(kind) as group:
            async with reading(group.url, namespace=fresh(), l1_max_bytes=0) as cache:
                readers = Readers([cache], KEYS)
                async with anyio.create_task_group() as tasks:
                    tasks.start_soon(readers.run)
                    await until(lambda: trusted(cache))
                    for replica in replicas_in(group):
                        await until(lambda: trusted(cache))
                        replica.kill()
                        answers = readers.answers
                        await until(lambda answers=answers: readers.answers > answers + 200)
                    assert not trusted(cache)
                    replica.start()
                    replica.command("REPLICAOF", "127.0.0.1", str(group.master().port))
                    await until(lambda: trusted(cache), 60)
                    tasks.cancel_scope.cancel()
        assert "Redis is away" not in caplog.text

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_master_of_a_cluster_that_is_killed(self, kind):
        """Its replica takes its place, and it the replica's."""
        with six(kind, "--cluster-require-full-coverage", "no") as cluster:
            namespace = fresh()
            async with (
                reading(cluster.url, namespace=namespace) as one,
                Cache(cluster.url, namespace=namespace) as other,
            ):
                await until(lambda: trusted(one))
                victim = cluster.master_of(f"{namespace}:{{k0}}".encode())
                readers = Readers([one, other], KEYS)
                await survives(readers, victim.kill, lambda: mastered(cluster, namespace, victim), [one, other])
                await shared(one, other, [f"new{number}" for number in range(12)])
                victim.start()
                await until(lambda: trusted(one), 60)
                await shared(one, other, [f"newer{number}" for number in range(12)])

    @pytest.mark.parametrize("kind", KINDS)
    async def test_a_master_behind_sentinels_that_is_killed(self, kind):
        with Sentinels(kind) as group:
            namespace = fresh()
            async with reading(group.url, namespace=namespace) as one, Cache(group.url, namespace=namespace) as other:
                await until(lambda: trusted(one))
                victim = group.master()
                readers = Readers([one, other], KEYS)
                await survives(readers, victim.kill, lambda: group.master() is not victim, [one, other])
                await shared(one, other, [f"new{number}" for number in range(12)])
                await until(lambda: trusted(one), 60)
                await shared(one, other, [f"newer{number}" for number in range(12)])

    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_given_to_another_master(self, kind, monkeypatch, caplog):
        """It redirects; its master answers until there is another."""
        monkeypatch.setattr(replicas, "_MOST_BEHIND", 1.0)
        with six(kind) as cluster:
            load = Counter()
            async with reading(cluster.url, namespace=fresh(), l1_max_bytes=0) as cache:
                for key in KEYS:
                    await cache.get_or_load(key, load, LONG)
                await until(lambda: trusted(cache))
                another = cluster.nodes[1].says("CLUSTER", "MYID").strip()
                assert cluster.nodes[3].command("CLUSTER", "REPLICATE", another) == b"+OK\r\n"
                for key in KEYS:
                    await cache.get_or_load(key, load, LONG)
                assert load.runs == len(KEYS)
                name = f"Redis 127.0.0.1:{cluster.nodes[0].port}"
                link = next(link for link in links_of(cache) if link.name == name)
                await until(lambda: link.replica.since == -math.inf)
                servers = cache.engine.store.store._servers
                servers._unsure.set()
                await until(lambda: f"no replica of {name} can be read from" in caplog.text)
                for key in KEYS:
                    await cache.get_or_load(key, load, LONG)
                assert load.runs == len(KEYS)


class TestOneReplica:
    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_none(self, kind, caplog):
        """As when the sentinels know of no other server than the master."""
        with Server(kind) as server:
            async with opened(single(server, server)) as store:
                entry = await put(store, "k", 1)
                await until(lambda: "the server is no replica" in caplog.text)
                assert await store.read("k", ANY) == entry
                assert not store._trusts(store._servers._link.replica)
        assert caplog.text.count("no replica of Redis can be read from") == 1

    @pytest.mark.parametrize("kind", KINDS)
    async def test_one_that_is_another_masters_by_now(self, kind):
        """However far it has come in that one's stream."""
        with (
            Server(kind, "--repl-diskless-sync-delay", "0") as master,
            Server(kind, "--repl-diskless-sync-delay", "0") as another,
            Server(kind) as copy,
        ):
            copy.command("REPLICAOF", "127.0.0.1", str(master.port))
            async with opened(single(master, copy)) as store:
                entry = await put(store, "k", 1)
                await until(lambda: store._trusts(store._servers._link.replica))
                copy.command("REPLICAOF", "127.0.0.1", str(another.port))
                await until(lambda: not store._trusts(store._servers._link.replica))
                until_soon(lambda: "master_link_status:up" in copy.says("INFO", "replication"))
                another.command("SET", "much", "x" * 10000)
                another.command("WAIT", "1", "5000")
                await asyncio.sleep(3 * replicas._BEAT)
                assert not store._trusts(store._servers._link.replica)
                assert await store.read("k", ANY) == entry

    async def test_it_ends_with_its_masters_link(self, sentinels: Sentinels):
        async with opened(store_of(sentinels.url)) as store:
            link = store._servers._link
            replica = Replica(link, link.replica._connect, 2.0)
            task = asyncio.create_task(replica.run())
            await until(lambda: store._trusts(replica))
            link.retire()
            async with asyncio.timeout(20):
                await task
            assert (replica.wire, replica.since) == (None, -math.inf)

    async def test_without_a_master_it_is_not_measured(self, sentinels: Sentinels, monkeypatch):
        monkeypatch.setattr(replicas, "_BEAT", 0.01)
        copy = replicas_in(sentinels)[0]
        link = Link(Redis(), 2.0, store_of(sentinels.url))
        replica = Replica(link, lambda: Redis.from_url(copy.url), 2.0)
        task = asyncio.create_task(replica.run())
        await until(lambda: replica.wire is not None)
        await asyncio.sleep(0.1)
        assert (replica.wire.broken, replica.since) == (None, -math.inf)
        task.cancel()
        await asyncio.wait([task])


class TestFloors:
    def test_what_is_older_is_not_admitted(self):
        floors = Floors()
        assert floors.admit("k", None)
        floors.raise_to("k", 7)
        floors.raise_to("k", 5)
        answers = (None, b"", frame(6), frame(7), frame(10**15))
        assert [floors.admit("k", answer) for answer in answers] == [False, False, False, True, True]
        assert floors.admit("another", None)

    @pytest.mark.parametrize(("name", "limit"), [("_MOST_REMEMBERED", 3), ("_REMEMBERED", -1.0)])
    def test_what_is_forgotten_is_older_than_what_it_is_true_of(self, monkeypatch, name, limit):
        monkeypatch.setattr(replicas, name, limit)
        now = 0.0

        def tick() -> float:
            nonlocal now
            now += 1
            return now

        monkeypatch.setattr(replicas.time, "monotonic", tick)
        floors, heard = Floors(), {}
        for number in range(20):
            floors.raise_to(f"k{number}", 1)
            heard[f"k{number}"] = now
            for key, at in heard.items():
                assert at <= floors.since or not floors.admit(key, None), (key, floors.since)
        assert len(floors._recent) + len(floors._older) <= 6
        assert floors.since > 5

    def test_what_was_heard_of_long_ago_stands_until_it_is_forgotten(self, monkeypatch):
        monkeypatch.setattr(replicas, "_MOST_REMEMBERED", 1)
        floors = Floors()
        floors.raise_to("k", 7)
        floors.raise_to("another", 1)
        assert not floors.admit("k", frame(6))
        floors.raise_to("k", 5)
        assert not floors.admit("k", frame(6))


def frame(version: int) -> bytes:
    return b"%016dt" % version


def single(master: Server, copy: Server) -> RedisStore:
    return RedisStore(
        Single(lambda: Redis.from_url(master.url), 2.0, replica_of=lambda client: Redis.from_url(copy.url)), timeout=2.0
    )


async def put(store: LeasingStore, key: str, value: object) -> Entry[object]:
    """Load and commit."""
    lease = await store.acquire(key, "a", 30, 10**16 - 1, ANY)
    assert isinstance(lease, Lease)
    entry = stamp(value, Policy(600), 1_800_000_000.0, lease.version, lease.head)
    await store.commit(lease, entry, ANY)
    return entry


def lose_a_message(master: Server, namespace: str, key: str, entry: Entry[object]) -> None:
    """Invalidate, and tell nobody."""
    assert master.command("SET", f"{namespace}:{{{key}}}", f"{entry.version + 1:016d}t") == b"+OK\r\n"


def port_of(store: RedisStore, key: str) -> int:
    transport = store._servers.link_to(store._entry_key(key)).wire._transport
    return int(transport.get_extra_info("peername")[1])


def listened(cache: Cache) -> set[tuple[Kind, str]]:
    """Return what will hold every kind of message and what it is about."""
    heard: set[tuple[Kind, str]] = set()
    observe(cache.engine.store.store, lambda message: heard.add((message.kind, message.name)))
    return heard


def watched_gaps(store: RedisStore) -> list[str]:
    gaps: list[str] = []
    observe(store, lambda message: gaps.append(message.name) if message.kind is Kind.DOWN else None)
    return gaps


def observe(store: RedisStore, see: Callable[[Message], object]) -> None:
    tell = store._listener

    def listen(message: Message) -> None:
        see(message)
        tell(message)

    store._listener = listen

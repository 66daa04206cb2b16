"""Masters that are killed: nobody gets an error, refreshes resume with the successor, nothing outdated comes back."""

import asyncio
import os
from collections.abc import Iterator

import anyio
import pytest
from redis.asyncio import Connection, ConnectionPool, Redis

from swr import Cache, Policy
from swr.loaders.annotations import codec_for
from swr.stores.base import Kind, Lease, Notification
from swr.stores.redis.server_link import ServerLink
from tests.servers import ClusterOfSix, Sentinels, Server, free_port, kinds
from tests.servers import until as wait_until
from tests.test_redis import Counter, until
from tests.test_topologies import fresh

pytestmark = pytest.mark.anyio

# Fresh for a moment, so that somebody refreshes all the time; stale for long.
BRIEF = Policy(0.2, 600, 3600)
LONG = Policy(600, tags=("t",))
# A server waits otherwise for more who would follow it.
FAILOVERS = 30 if os.environ.get("SWR_FULL") == "1" else 4
FOLLOWED_AT_ONCE = ("--repl-diskless-sync-delay", "0")


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(params=kinds())
def cluster(request) -> Iterator[ClusterOfSix]:
    with ClusterOfSix(request.param) as cluster:
        yield cluster


@pytest.fixture(params=kinds())
def sentinels(request) -> Iterator[Sentinels]:
    with Sentinels(request.param) as group:
        yield group


class Readers:
    """Ask several caches for several keys without end; any error ends the test.

    Parameters:
        caches: which.
        keys: which.
    """

    def __init__(self, caches: list[Cache], keys: list[str]) -> None:
        self._caches = caches
        self._keys = keys
        self.loads = 0
        self.answers = 0

    async def _load(self) -> int:
        self.loads += 1
        return self.loads

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for cache in self._caches:
                for key in self._keys:
                    await cache.get_or_load(key, self._load, BRIEF)
                    self.answers += 1
            await asyncio.sleep(0.01)


async def survives(readers: Readers, kill, recovered, caches: list[Cache]) -> None:
    """Kill while they read; wait for the election of a successor, and until every cache is in order again."""
    whole = [watched(cache) for cache in caches]
    async with anyio.create_task_group() as group:
        group.start_soon(readers.run)
        await asyncio.sleep(0.5)
        kill()
        await until(lambda: not any(cache.engine.store.is_reachable for cache in caches))
        await until(recovered, 60)
        await until(lambda: all(cache.engine.store.is_reachable for cache in caches))
        answers = readers.answers
        await until(lambda: readers.answers > answers + 100)
        group.cancel_scope.cancel()
    assert whole == [[True]] * len(caches)


def watched(cache: Cache) -> list[bool]:
    """Return what will say of every time that the store is said to be up whether every key could be reached."""
    whole: list[bool] = []

    def on_notification(notification: Notification) -> None:
        if notification.kind is Kind.REACHABLE:
            whole.append(cache.engine.store.store._servers.is_reachable)

    cache.engine.notifications.subscribe(on_notification)
    return whole


async def shared(one: Cache, other: Cache, keys: list[str]) -> None:
    """What one has loaded the other has without a load, and an invalidation of one reaches the other."""
    for key in keys:
        load = Counter()
        for cache in (one, other):
            assert (await cache.get_or_load(key, load, LONG)).value == 1
        await one.invalidate(key)
        await until(lambda key=key: other.engine.store.peek(key) is None)
        assert (await other.get_or_load(key, load, LONG)).value == 2


@pytest.mark.parametrize("kind", kinds())
async def test_killed_cluster_master_causes_no_error(kind, caplog):
    with ClusterOfSix(kind, "--cluster-require-full-coverage", "no") as cluster:
        await a_master_is_killed(cluster)
    assert caplog.text.count("cannot reach Redis") == caplog.text.count("is reachable again") >= 2


async def a_master_is_killed(cluster: ClusterOfSix) -> None:
    namespace, keys = fresh(), [f"k{number}" for number in range(12)]
    async with Cache(cluster.url, namespace=namespace) as one, Cache(cluster.url, namespace=namespace) as other:
        victim = cluster.master_of(f"{namespace}:{{k0}}".encode())
        await survives(
            Readers([one, other], keys), victim.kill, lambda: mastered(cluster, namespace, victim), [one, other]
        )
        # What comes back on the old address is a replica, and nobody's master any more.
        victim.start()
        before = connections(victim)
        await asyncio.sleep(1.5)
        assert connections(victim) == before + 1
        await shared(one, other, [f"new{number}" for number in range(12)])


def connections(server: Server) -> int:
    """Return how many connections a server has taken, this one included."""
    return int(server.says("INFO", "stats").partition("total_connections_received:")[2].split()[0])


def mastered(cluster: ClusterOfSix, namespace: str, victim: Server) -> bool:
    try:
        return cluster.master_of(f"{namespace}:{{k0}}".encode()) is not victim
    except LookupError:
        return False


@pytest.mark.uncounted
async def test_killed_master_behind_sentinels_causes_no_error(sentinels: Sentinels, caplog):
    namespace, keys = fresh(), [f"k{number}" for number in range(12)]
    async with Cache(sentinels.url, namespace=namespace) as one, Cache(sentinels.url, namespace=namespace) as other:
        victim = sentinels.master()
        await survives(Readers([one, other], keys), victim.kill, lambda: sentinels.master() is not victim, [one, other])
        await shared(one, other, [f"new{number}" for number in range(12)])


@pytest.mark.uncounted
async def test_invalidation_lost_in_a_failover_is_replayed(sentinels: Sentinels):
    """Replication is behind when the master dies, so the processes send the invalidations to its successor again."""
    namespace = fresh()
    load, tagged = Counter(), Counter()
    async with Cache(sentinels.url, namespace=namespace) as one, Cache(sentinels.url, namespace=namespace) as other:
        victim = sentinels.master()
        for cache in (one, other):
            await cache.get_or_load("k", load, Policy(600))
            await cache.get_or_load("tagged", tagged, LONG)
        replicas = [server for server in sentinels.servers if server is not victim]
        assert victim.command("WAIT", "2", "5000") == b":2\r\n"
        # The replicas do not get it any more.
        for replica in replicas:
            replica.pause()
        victim.command("CLIENT", "KILL", "TYPE", "replica")
        await one.invalidate("k")
        await one.invalidate_tag("t")
        victim.kill()
        for replica in replicas:
            replica.resume()
        await until(lambda: sentinels.master() is not victim, 60)
        await until(lambda: one.engine.store.is_reachable and other.engine.store.is_reachable)
        for cache in (other, one):
            assert (await cache.get_or_load("k", load, Policy(600))).value == 2
            assert (await cache.get_or_load("tagged", tagged, LONG)).value == 2


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
async def test_process_never_accepts_an_entry_older_than_a_known_invalidation(kind, l1_max_bytes):
    """The invalidation is its own or another's, and Redis gets it again at once."""
    with Server(kind) as server:
        load = Counter()
        options = {"namespace": fresh(), "timeout": 2}
        async with (
            Cache(server.url, **options) as one,
            Cache(server.url, l1_max_bytes=l1_max_bytes, **options) as other,
        ):
            redis = Redis.from_url(server.url)
            for number, how in enumerate((one, other, one, other)):
                key = f"k{number}"
                await one.get_or_load(key, load, LONG)
                entry = one.engine.store.store.names.entry(key).decode()
                frame = await redis.get(entry)
                await how.invalidate(key)
                await until(
                    lambda key=key: all(cache.engine.store.store._invalidations.version(key) for cache in (one, other))
                )
                # As a successor has it that lacks the last writes.
                await redis.set(entry, frame)
                before = load.runs
                assert (await other.get_or_load(key, load, LONG)).value == before + 1
                assert (await one.get_or_load(key, load, LONG)).value == before + 1
                await redis.set(entry, frame)
                assert isinstance(await other.engine.store.store.acquire(key, "token", 30, 0, codec_for(load)), Lease)
                assert (await redis.get(entry)).endswith(b"t")
            await redis.aclose()


@pytest.mark.parametrize("how", ["FORCE", "TAKEOVER"])
async def test_reads_during_switch_of_a_live_master_never_return_invalidated_values(cluster: ClusterOfSix, how):
    namespace = fresh()
    rows = {f"k{number}": 0 for number in range(6)}
    older = []

    async def turn(cache: Cache, key: str) -> None:
        async def load() -> int:
            return rows[key]

        rows[key] += 1
        invalidated = rows[key]
        await cache.invalidate(key)
        for _ in range(10):
            value = (await cache.get_or_load(key, load, Policy(600))).value
            if value < invalidated:
                older.append((key, value, invalidated))
            await asyncio.sleep(0.002)

    async def work(cache: Cache, key: str) -> None:
        while True:
            await turn(cache, key)

    async with Cache(cluster.url, namespace=namespace, l1_max_bytes=0) as cache, anyio.create_task_group() as group:
        for key in rows:
            group.start_soon(work, cache, key)
        for number in range(FAILOVERS):
            await asyncio.sleep(0.3)
            master = await asyncio.to_thread(cluster.master_of, f"{namespace}:{{k{number % 6}}}".encode())
            replica = await asyncio.to_thread(cluster.replica_of, master)
            replica.command("CLUSTER", "FAILOVER", how)
            await until(lambda replica=replica: "role:master" in replica.says("INFO", "replication"), 60)
            await until(lambda: cache.engine.store.is_reachable, 60)
            await until(lambda master=master: "master_link_status:up" in master.says("INFO", "replication"), 60)
        group.cancel_scope.cancel()
    assert older == []


async def test_readers_are_answered_when_a_whole_cluster_is_killed(cluster: ClusterOfSix):
    async with Cache(cluster.url, namespace=fresh()) as cache:
        readers = Readers([cache], [f"k{number}" for number in range(12)])
        async with anyio.create_task_group() as group:
            group.start_soon(readers.run)
            await until(lambda: readers.answers > 100)
            for node in cluster.nodes:
                node.kill()
            await until(lambda: not cache.engine.store.is_reachable)
            answers = readers.answers
            await until(lambda: readers.answers > answers + 500)
            group.cancel_scope.cancel()


async def test_more_invalidations_than_can_be_replayed_outdate_everything(cluster: ClusterOfSix, monkeypatch, caplog):
    """This holds for whichever master was replaced."""
    monkeypatch.setattr("swr.stores.redis.invalidations._MOST", 3)
    namespace, load = fresh(), Counter()
    async with Cache(cluster.url, namespace=namespace, timeout=1) as cache:
        owner = cluster.master_of(f"{namespace}:{{!}}h".encode())
        for master in (owner, next(node for node in cluster.masters() if node is not owner)):
            for number in range(8):
                await cache.invalidate(f"k{number}")
            await cache.get_or_load("other", load, LONG)
            before = load.runs
            restart(master)
            caplog.clear()
            await until(lambda: "is reachable again" in caplog.text)
            assert (await cache.get_or_load("other", load, LONG)).value == before + 1


def restart(server: Server) -> None:
    """Kill and start a server; a node of a cluster is back before the others miss it."""
    server.kill()
    server.start()


@pytest.mark.parametrize("kind", kinds())
async def test_demoted_master_is_unreachable_until_it_is_promoted(kind, caplog):
    with Server(kind) as server:
        async with Cache(server.url, namespace=fresh()) as cache:
            await cache.get_or_load("k", Counter(), LONG)
            server.command("REPLICAOF", "127.0.0.1", str(free_port()))
            for number in range(5):
                assert (await cache.get_or_load(f"new{number}", Counter(), LONG)).value == 1
            await until(lambda: not cache.engine.store.is_reachable)
            server.command("REPLICAOF", "NO", "ONE")
            await until(lambda: cache.engine.store.is_reachable)
            assert (await cache.get_or_load("k", Counter(), LONG)).value == 1
    assert caplog.text.count("cannot reach Redis") == caplog.text.count("is reachable again") == 1


@pytest.fixture(params=kinds())
def pair(request) -> Iterator[tuple[Server, Server]]:
    """Two masters, either of which can follow the other."""
    with Server(request.param, *FOLLOWED_AT_ONCE) as one, Server(request.param, *FOLLOWED_AT_ONCE) as other:
        yield one, other


def follow(server: Server, port: int) -> None:
    """Have `server` hold what the one on `port` holds, and be a master again."""
    server.command("REPLICAOF", "127.0.0.1", str(port))
    wait_until(lambda: "master_link_status:up" in server.says("INFO", "replication"))
    server.command("REPLICAOF", "NO", "ONE")


async def test_master_that_was_a_replica_between_two_heartbeats_gets_the_replay(pair, monkeypatch):
    """Its server links are unbroken, but it has lost the last invalidation."""
    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 3.0)
    server, successor = pair
    load = Counter()
    async with Cache(server.url, namespace=fresh()) as cache:
        await cache.get_or_load("k", load, LONG)
        entry = cache.engine.store.store.names.entry("k").decode()
        await asyncio.to_thread(follow, successor, server.port)
        held = server.command("GET", entry)
        await cache.invalidate("k")
        assert server.command("GET", entry) != held
        await asyncio.to_thread(follow, server, successor.port)
        assert server.command("GET", entry) == held
        # From now on it is looked at.
        await until(lambda: server.command("GET", entry) != held)
        assert cache.engine.store.is_reachable
        assert (await cache.get_or_load("k", load, LONG)).value == 2


async def test_master_that_gets_its_first_replica_gets_no_replay(pair, monkeypatch):
    """Its replication id changes, but it has lost no write. A replay here would outdate everything."""
    monkeypatch.setattr("swr.stores.redis.invalidations._MOST", 3)
    server, replica = pair
    load = Counter()
    async with Cache(server.url, namespace=fresh()) as cache:
        for number in range(5):
            await cache.invalidate(f"other{number}")
        await cache.get_or_load("k", load, LONG)
        link = cache.engine.store.store._servers.link_to(b"")
        history = link.history
        await asyncio.to_thread(follow, replica, server.port)
        await until(lambda: link.history != history)
        assert cache.engine.store.is_reachable
        assert (await cache.get_or_load("k", load, LONG)).value == 1


@pytest.mark.parametrize("kind", kinds())
async def test_server_link_to_two_different_masters_is_refused(kind, caplog):
    """With commands to one master and messages from the other, the link would miss messages."""

    class Wavering(Connection):
        async def _connect(self):
            self.port = ports.pop(0) if len(ports) > 1 else ports[0]
            await super()._connect()

    with Server(kind) as one, Server(kind) as other:
        ports = [one.port, other.port, other.port]
        client = Redis(connection_pool=ConnectionPool(Wavering, host="127.0.0.1"))
        async with Cache(redis=client, namespace=fresh()) as cache:
            await until(lambda: cache.engine.store.is_reachable)
        await client.aclose()
    assert "the master changed while swr connected to it" in caplog.text


@pytest.mark.parametrize("process", ["new", "opened again"])
@pytest.mark.parametrize("kind", kinds())
async def test_process_that_cannot_read_tag_versions_takes_no_entry_from_other_masters(kind, process):
    """The process starts while the master of the tag versions is down."""
    with ClusterOfSix(kind, "--cluster-require-full-coverage", "no", node_timeout=60) as cluster:
        owner = cluster.master_of(b"swr:{!}h")
        key = next(f"k{n}" for n in range(100) if cluster.master_of(f"swr:{{k{n}}}".encode()) is not owner)
        late, load = Cache(cluster.url, timeout=1), Counter()
        async with Cache(cluster.url, timeout=1) as one, Cache(cluster.url, timeout=1) as other:
            if process == "opened again":
                async with late:
                    assert (await late.get_or_load(key, load, LONG)).value == 1
            assert (await one.get_or_load(key, load, LONG)).value == 1
            await one.invalidate_tag("t")
            # Everybody has the message, and nobody gets it later.
            await until(lambda: other.engine.store.tag_versions.newest == one.engine.store.tag_versions.newest)
        owner.pause()
        async with late:
            assert (await late.get_or_load(key, load, LONG)).value == 2
            owner.resume()
            await until(lambda: late.engine.store.is_reachable)
            value = (await late.get_or_load(key, load, LONG)).value
        async with Cache(cluster.url, timeout=1) as last:
            assert (await last.get_or_load(key, load, LONG)).value == value > 1


@pytest.mark.parametrize("kind", kinds())
async def test_load_whose_url_cannot_be_announced_leaves_no_lease_at_another_master(kind):
    """The master of the tag versions is down. A process that has announced the URL before needs the lease."""
    policy = Policy(600, tags=("host:h\nurl:/x",))
    with ClusterOfSix(kind, "--cluster-require-full-coverage", "no", node_timeout=60) as cluster:
        owner, load = cluster.master_of(b"swr:{!}h"), Counter()
        key = next(f"k{n}" for n in range(100) if cluster.master_of(f"swr:{{k{n}}}".encode()) is not owner)
        async with Cache(cluster.url, timeout=1) as one, Cache(cluster.url, timeout=1) as other:
            await other.get_or_load(key, load, policy)
            await other.invalidate(key)
            owner.pause()
            await until(lambda: not (one.engine.store.is_reachable or other.engine.store.is_reachable))
            assert (await one.get_or_load(key, load, policy)).value == 2
            with anyio.fail_after(20):
                assert (await other.get_or_load(key, load, policy)).value == 3
            owner.resume()


@pytest.mark.parametrize("kind", kinds())
@pytest.mark.parametrize("how", ["restart", "late promotion"])
async def test_invalidation_lost_by_a_node_is_replayed_even_long_afterwards(kind, how, monkeypatch):
    """A node without the tag versions comes back with older data, or its replica takes over long after its end."""
    monkeypatch.setattr("swr.stores.redis.failover._MARGIN", 1_000_000)
    with ClusterOfSix(kind, "--cluster-require-full-coverage", "no", node_timeout=60) as cluster:
        owner, load = cluster.master_of(b"swr:{!}h"), Counter()
        key = next(f"k{n}" for n in range(100) if cluster.master_of(f"swr:{{k{n}}}".encode()) is not owner)
        master = cluster.master_of(f"swr:{{{key}}}".encode())
        await until(lambda: b"slave" in master.command("CLUSTER", "REPLICAS", master.says("CLUSTER", "MYID").strip()))
        replica = cluster.replica_of(master)
        async with Cache(cluster.url, timeout=1) as one:
            await one.get_or_load(key, load, LONG)
            await until(lambda: replica.command("DBSIZE") == b":1\r\n")
            if how == "restart":
                master.command("SAVE")
            else:
                # It gets no writes from now on.
                replica.pause()
                master.command("CLIENT", "KILL", "TYPE", "replica")
            await one.invalidate(key)
            if how == "restart":
                await asyncio.sleep(2)
                await asyncio.to_thread(restart, master)
                # It refuses for a while to answer.
                await until(lambda: b"CLUSTERDOWN" not in master.command("EXISTS", f"swr:{{{key}}}"), 60)
            else:
                master.kill()
                replica.resume()
                await asyncio.sleep(3)
                await until(lambda: replica.command("CLUSTER", "FAILOVER", "TAKEOVER") == b"+OK\r\n")
                await until(lambda: not one.engine.store.is_reachable)
            await until(lambda: one.engine.store.is_reachable, 60)
            async with Cache(cluster.url, timeout=1) as late:
                assert (await late.get_or_load(key, load, LONG)).value == 2


async def test_slots_without_a_master_cause_no_error(cluster: ClusterOfSix, caplog):
    """The other masters refuse commands until every slot has a master, so memory and loaders answer."""
    namespace = fresh()
    async with Cache(cluster.url, namespace=namespace) as cache:
        readers = Readers([cache], [f"k{number}" for number in range(12)])
        async with anyio.create_task_group() as group:
            group.start_soon(readers.run)
            await asyncio.sleep(0.3)
            # Those of the tag_versions among them.
            master = cluster.master_of(f"{namespace}:{{!}}h".encode())
            slots = " ".join(master.says("CLUSTER", "NODES").split("myself,master")[1].splitlines()[0].split()[5:])
            low, _, high = slots.partition("-")
            for node in cluster.nodes:
                node.command("CLUSTER", "DELSLOTSRANGE", low, high)
            await until(lambda: not cache.engine.store.is_reachable)
            answers = readers.answers
            await until(lambda: readers.answers > answers + 200)
            await cache.get_or_load("never asked for", readers._load, BRIEF)
            master.command("CLUSTER", "ADDSLOTSRANGE", low, high)
            await until(lambda: cache.engine.store.is_reachable)
            group.cancel_scope.cancel()
    assert caplog.text.count("cannot reach Redis") == caplog.text.count("is reachable again") == 1


class Cut:
    """Some links of one process are cut, and stay so until they are mended."""

    def __init__(self, links: list[ServerLink]) -> None:
        self._pools = [link.client.connection_pool for link in links]
        self._connect = [pool.get_connection for pool in self._pools]
        for link, pool in zip(links, self._pools, strict=True):
            pool.get_connection = self._refuse
            link.connection.abandon("it was cut")

    async def _refuse(self, *_: object, **__: object) -> None:
        raise ConnectionError("it is cut")

    def mend(self) -> None:
        for pool, connect in zip(self._pools, self._connect, strict=True):
            pool.get_connection = connect


HOW = {
    "key": lambda cache, keys: asyncio.gather(*map(cache.invalidate, keys)),
    "tag": lambda cache, keys: cache.invalidate_tag("t"),
    "clear": lambda cache, keys: cache.clear(),
}


@pytest.mark.parametrize("how", HOW)
@pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
async def test_process_without_any_cluster_link_gets_nothing_outdated_as_links_return(
    cluster: ClusterOfSix, how, l1_max_bytes
):
    """The links return one by one, the link to the master of the tag versions last."""
    namespace, load = fresh(), Counter()
    keys = [f"k{number}" for number in range(24)]
    async with (
        Cache(cluster.url, namespace=namespace, timeout=2) as one,
        Cache(cluster.url, namespace=namespace, timeout=2, l1_max_bytes=l1_max_bytes) as other,
    ):
        for key in keys:
            for cache in (one, other):
                await cache.get_or_load(key, load, LONG)
        assert load.runs == len(keys)
        store = other.engine.store.store
        links = list(store._servers._links.values())
        maker = store._servers.link_to(store.names.newest_tag_version)
        cuts = {link: Cut([link]) for link in links}
        await until(lambda: not any(link.connection for link in links))
        await HOW[how](one, keys)
        # The master of the tag versions is the last: until then nobody can know what was invalidated by tag.
        links.sort(key=lambda link: link is maker)
        for link in links:
            cuts[link].mend()
            await until(lambda link=link: link.connection is not None)
            if how == "key" or link is maker:
                back = [key for key in keys if store._servers.link_to(store.names.entry(key)).connection is not None]
                assert back
                before = len(keys)
                assert [key for key in back if (await other.get_or_load(key, load, LONG)).value <= before] == []
        await until(lambda: other.engine.store.is_reachable)
        assert [key for key in keys if (await other.get_or_load(key, load, LONG)).value <= len(keys)] == []
        assert [key for key in keys if (await one.get_or_load(key, load, LONG)).value <= len(keys)] == []

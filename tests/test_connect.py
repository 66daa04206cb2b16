"""From a URL to servers: what it may say, TLS, and the least rights that do."""

import asyncio
import re
import ssl
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest
import trustme
from redis.asyncio import Redis, RedisCluster, Sentinel
from redis.asyncio.connection import SSLConnection

from swr import Cache, ConfigurationError, Policy, Refresher, StoreUnavailable
from swr.core.codec import ANY
from swr.events import RoundQueued
from swr.refreshers.queue.queue import Queue, known
from swr.stores.base import LeasingStore
from swr.stores.local import LocalCache
from swr.stores.redis.cluster import Cluster
from swr.stores.redis.store import RedisStore
from swr.stores.redis.topology import Single
from swr.stores.redis.urls import redacted, servers_of
from swr.stores.tiered import TieredStore
from tests.proxy import Proxy
from tests.servers import ClusterOfSix, Server, kinds
from tests.store_conformance import StoreConformance
from tests.test_redis import Counter, until
from tests.test_reports import ACT, page_of, state_when
from tests.test_stores import opened

pytestmark = pytest.mark.anyio

POLICY = Policy(60, tags=("t",))
QUEUE_ACL = re.search(
    r"need more: `([^`]*)`, for streams `([^`]*)`, for lists `([^`]*)`",
    Path("docs/redis.md").read_text().replace("\n", " "),
)
DASHBOARD_ACL = re.search(r"`swr top` need `([^`]*)`", Path("docs/redis.md").read_text())
ACL = re.search(r"^ACL SETUSER swr (.*)$", Path("docs/redis.md").read_text(), re.MULTILINE)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class TestUrls:
    @pytest.mark.parametrize(
        ("url", "problem"),
        [
            ("localhost:6379", "does not begin with redis://, rediss://, unix://, redis+sentinel://"),
            ("redis+sentinel://h1:1,h2:2", "give the master's name and the database"),
            ("redis+sentinel://h1:1/mymaster/x", "give the master's name and the database"),
            ("redis+sentinel://h1:1,/mymaster", "'' must be a host"),
            ("redis+sentinel://h1:abc/mymaster", "a port is not a number"),
            ("redis+cluster://", "'' must be a host"),
            ("redis+cluster://h1/3", "a cluster has only database 0"),
            ("redis+cluster://h1?unknown=1", "unknown"),
            ("redis://h1?unknown=1", "unknown"),
            ("redis+cluster://h1?read_from_replicas=true", "'read_from_replicas'"),
            ("redis://h1:abc", "a port is not a number"),
            ("redis://h1/x", "'x' is not the number of a database"),
            ("rediss://h1/0/1", "'0/1' is not the number of a database"),
            ("redis://h1?decode_responses=true", "'redis://h1?…' has decode_responses=true; entries are bytes"),
            ("redis+sentinel://h1/m?decode_responses=1", "has decode_responses=1; entries are bytes"),
            ("redis+cluster://h1?decode_responses=no", "has decode_responses=no; entries are bytes"),
            ("rediss://h1?ssl_cert_reqs=CERT_NONE", "'rediss://h1?…': Invalid SSL Certificate Requirements Flag"),
            ("rediss+cluster://h1?ssl_cert_reqs=CERT_NONE", "'rediss+cluster://h1?…': Invalid SSL"),
            ("rediss+sentinel://h1/m?ssl_cert_reqs=CERT_NONE", "'rediss+sentinel://h1/m?…': Invalid SSL"),
            ("redis://h1?protocol=4", "'redis://h1?…': protocol must be"),
            ("redis://h1?retry=3", "'redis://h1?…': 'str' object has no attribute"),
        ],
    )
    def test_invalid_url_is_rejected_with_the_problem(self, url, problem):
        with pytest.raises(ConfigurationError, match=re.escape(problem)):
            Cache(url)

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "redis+cluster", "redis+sentinel"])
    @pytest.mark.parametrize("user", ["", "me"])
    @pytest.mark.parametrize("mark", "/?#")
    @pytest.mark.parametrize("rest", ["@h1:1/0", "@h1/mymaster/0", "@h1"])
    def test_error_hides_a_password_with_unencoded_characters(self, scheme, user, mark, rest):
        """A password in base64, for instance, may hold a slash."""
        with pytest.raises(ConfigurationError, match=r"%2F|must be a host") as caught:
            Cache(f"{scheme}://{user}:hunter{mark}secret{rest}")
        assert "hunter" not in str(caught.value)
        assert "secret" not in str(caught.value)

    @pytest.mark.parametrize("scheme", ["redis", "rediss", "unix", "redis+cluster", "redis+sentinel"])
    @pytest.mark.parametrize("password", ["hunter[secret]x", "hunter]secret[x"])
    def test_error_hides_a_password_with_brackets(self, scheme, password):
        """Newer releases of Python read an address in brackets; older ones accept such a URL."""
        told = ""
        try:
            Cache(f"{scheme}://me:{password}@h1/mymaster")
        except ConfigurationError as error:
            told = str(error)
        assert not re.search("hunter|secret|x@", told)

    @pytest.mark.parametrize("scheme", ["redis", "redis+cluster", "redis+sentinel"])
    def test_error_about_a_url_hides_the_password(self, scheme):
        with pytest.raises(ConfigurationError) as caught:
            Cache(f"{scheme}://me:secret@h1?unknown=1")
        assert "secret" not in str(caught.value)
        assert redacted(f"{scheme}://me:sec@ret@h1?password=sec") == f"'{scheme}://…@h1?…'"
        assert redacted(f"{scheme}://me:sec?ret@h1") == f"'{scheme}://…'"
        for url in (f"{scheme}://me:sec?ret@h1", f"{scheme}://h1:0?password=secret&unknown=1"):
            with pytest.raises(ConfigurationError) as caught:
                Cache(url)
            assert "sec" not in str(caught.value).replace("password", "")

    def test_url_together_with_a_client_is_rejected(self):
        with pytest.raises(ConfigurationError, match="both a URL"):
            Cache("redis://h1", redis=Redis())

    @pytest.mark.parametrize("client", ["redis://h1", object()])
    def test_object_that_is_not_a_redis_client_is_rejected(self, client):
        with pytest.raises(
            ConfigurationError, match=r"redis= is a builtins\.\w+, not a redis\.asyncio\.Redis or RedisCluster"
        ):
            Cache(redis=client)

    @pytest.mark.parametrize("client", [Redis, lambda **options: RedisCluster("h1", **options)])
    def test_client_that_decodes_responses_is_rejected(self, client):
        with pytest.raises(ConfigurationError, match="decode_responses=True"):
            Cache(redis=client(decode_responses=True))

    async def test_sentinel_url_sets_accounts_and_the_database(self):
        servers = servers_of("redis+sentinel://me:p%40ss@h1,h2:5/mymaster/3?sentinel_password=other", None, 0.5)
        assert isinstance(servers, Single)
        client = servers._connect()
        known = client.connection_pool.connection_kwargs
        assert (known["username"], known["password"], known["db"]) == ("me", "p@ss", 3)
        sentinels = client.connection_pool.sentinel_manager.sentinels
        spoken_to = [sentinel.connection_pool.connection_kwargs for sentinel in sentinels]
        assert [(each["host"], each["port"]) for each in spoken_to] == [("h1", 26379), ("h2", 5)]
        assert all((each["password"], each.get("username")) == ("other", None) for each in spoken_to)

    async def test_tls_url_verifies_certificates_of_sentinels_and_cluster_nodes(self):
        for verify in ("", "?ssl_ca_certs=/ca.pem"):
            servers = servers_of(f"rediss+sentinel://h1/mymaster{verify}", None, 0.5)
            assert isinstance(servers, Single)
            pool = servers._connect().connection_pool
            for each in (pool, *(sentinel.connection_pool for sentinel in pool.sentinel_manager.sentinels)):
                connection = each.make_connection()
                assert isinstance(connection, SSLConnection)
                assert (connection.cert_reqs, connection.ca_certs) == (ssl.CERT_REQUIRED, "/ca.pem" if verify else None)
            cluster = servers_of(f"rediss+cluster://h1{verify}", None, 0.5)
            assert isinstance(cluster, Cluster)
            connection = cluster._connect("h2", 7).connection_pool.make_connection()
            assert isinstance(connection, SSLConnection)
            assert (connection.host, connection.port, connection.cert_reqs) == ("h2", 7, ssl.CERT_REQUIRED)

    async def test_client_made_by_sentinel_is_used_unchanged(self):
        client = Sentinel([("h1", 1)]).master_for("mymaster")
        servers = servers_of(None, client, 0.5)
        assert isinstance(servers, Single)
        assert servers._connect() is client


class TestTls:
    @pytest.fixture(params=kinds())
    async def proxy(self, request) -> AsyncIterator[Proxy]:
        self.authority = trustme.CA()
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        self.authority.issue_cert("127.0.0.1").configure_cert(context)
        with Server(request.param) as server:
            async with Proxy(server.port, context) as proxy:
                yield proxy

    async def test_caches_share_entries_over_tls_with_a_valid_certificate(self, proxy: Proxy, tmp_path):
        self.authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        url = f"rediss://127.0.0.1:{proxy.port}/0?ssl_ca_certs={tmp_path / 'ca.pem'}"
        load = Counter()
        async with Cache(url, timeout=10) as one, Cache(url, timeout=10) as other:
            assert [(await cache.get_or_load("k", load, POLICY)).value for cache in (one, other)] == [1, 1]

    async def test_unknown_certificate_is_rejected_and_the_loader_answers(self, proxy: Proxy, caplog):
        """swr sends nothing to such a server; memory and loaders answer."""
        async with Cache(f"rediss://127.0.0.1:{proxy.port}/0", timeout=10) as cache:
            assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
        assert "certificate verify failed" in caplog.text

    async def test_certificates_renewed_on_disk_are_used_by_the_next_connection(self, server: Server, tmp_path):
        """For instance by cert-manager or Vault, which renew the files of a pod every day; the process runs for weeks."""
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.verify_mode = ssl.CERT_REQUIRED

        def renew():
            authority = trustme.CA()
            authority.configure_trust(context)
            authority.issue_cert("127.0.0.1").configure_cert(context)
            authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
            authority.issue_cert("client").private_key_and_cert_chain_pem.write_to_path(str(tmp_path / "own.pem"))

        renew()
        files = (
            f"ssl_ca_certs={tmp_path / 'ca.pem'}&ssl_certfile={tmp_path / 'own.pem'}&ssl_keyfile={tmp_path / 'own.pem'}"
        )
        async with (
            Proxy(server.port, context) as proxy,
            Cache(f"rediss://127.0.0.1:{proxy.port}/0?{files}", timeout=10) as cache,
        ):
            (link,) = cache.engine.store.store._servers.links
            first = link.connection
            renew()
            proxy.cut()
            await until(lambda: link.connection not in (None, first))

    @pytest.mark.parametrize("is_checked", [True, False])
    async def test_certificate_of_another_host_is_rejected_unless_the_url_disables_checks(
        self, server: Server, tmp_path, caplog, is_checked
    ):
        """redis-py compares the names by itself only since 6."""
        authority = trustme.CA()
        authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("another.example").configure_cert(context)
        query = f"ssl_ca_certs={tmp_path / 'ca.pem'}" if is_checked else "ssl_cert_reqs=none"
        async with (
            Proxy(server.port, context) as proxy,
            Cache(f"rediss://127.0.0.1:{proxy.port}/0?{query}", timeout=10) as cache,
        ):
            assert (await cache.get_or_load("k", Counter(), POLICY)).value == 1
        assert ("cannot reach Redis" in caplog.text) is is_checked

    async def test_host_name_of_a_certificate_is_checked_by_default(self):
        for url in ("rediss://a/0", "rediss+cluster://a:1,b:2", "rediss+sentinel://a:1,b:2/master"):
            servers = servers_of(url, None, 1.0)
            pool = (servers._connect("a", 1) if "cluster" in url else servers._connect()).connection_pool
            assert pool.connection_kwargs["ssl_check_hostname"] is True
            for sentinel in pool.sentinel_manager.sentinels if "sentinel" in url else ():
                assert sentinel.connection_pool.connection_kwargs["ssl_check_hostname"] is True
        for url in ("rediss://a/0?ssl_check_hostname=false", "rediss://a/0?ssl_cert_reqs=none"):
            assert not servers_of(url, None, 1.0)._connect().connection_pool.connection_kwargs.get("ssl_check_hostname")


class TestUnix:
    @pytest.mark.parametrize("kind", kinds())
    async def test_caches_share_entries_over_a_unix_socket(self, kind, tmp_path):
        with Server(kind, "--unixsocket", str(tmp_path / "s")):
            load = Counter()
            url = f"unix://{tmp_path / 's'}?db=1"
            async with Cache(url, timeout=10) as one, Cache(url, timeout=10) as other:
                assert [(await cache.get_or_load("k", load, POLICY)).value for cache in (one, other)] == [1, 1]


def allow(server: Server, *more: str) -> None:
    """Make the documented user, and nobody else."""
    assert ACL is not None
    assert server.command("ACL", "SETUSER", "swr", *ACL[1].split(), *more) == b"+OK\r\n"
    assert (
        server.command("ACL", "SETUSER", "default", "-@all", "+acl", "+cluster", "+ping", "+psync", "+replconf")
        == b"+OK\r\n"
    )


@pytest.fixture(scope="module", params=kinds())
def guarded(request) -> Iterator[Server]:
    with Server(request.param) as server:
        allow(server)
        yield server


@pytest.fixture(scope="module", params=kinds())
def guarded_cluster(request) -> Iterator[ClusterOfSix]:
    with ClusterOfSix(request.param) as cluster:
        for node in cluster.nodes:
            allow(node, "+cluster|slots", "+asking")
        yield cluster


_numbers = iter(range(10**6))


def guarded_store(url: str) -> RedisStore:
    """Return a store of the documented user, in a namespace of its own."""
    url = url.replace("://", "://swr:password@")
    return RedisStore(servers_of(url, None, 2.0), f"swr:{next(_numbers)}", 2.0)


class TestLeastRights(StoreConformance):
    @pytest.fixture
    async def store(self, guarded: Server) -> AsyncIterator[LeasingStore]:
        async with opened(guarded_store(guarded.url)) as store:
            yield store


class TestLeastRightsInACluster(StoreConformance):
    @pytest.fixture
    async def store(self, guarded_cluster: ClusterOfSix) -> AsyncIterator[LeasingStore]:
        async with opened(TieredStore(LocalCache(2**20, 1000), guarded_store(guarded_cluster.url))) as store:
            yield store


async def has_done(queue: Queue, tasks: int) -> None:
    async with asyncio.timeout(60):
        while True:
            counts = (await queue.status()).counts
            # Another test may have loaded it in this very round.
            if counts.get("done", 0) + counts.get("current", 0) >= tasks:
                return
            await asyncio.sleep(0.02)


class TestRights:
    async def test_documented_rights_suffice_for_a_cache(self, guarded: Server, caplog):
        url = guarded.url.replace("://", "://swr:password@")
        load = Counter()
        async with Cache(url, timeout=10) as one, Cache(url, timeout=10) as other:
            for _ in range(3):
                for cache in (one, other):
                    await cache.get_or_load("k", load, POLICY)
                await one.invalidate_tag("t")
                await one.invalidate("k")
                await one.clear()
            await asyncio.sleep(1)
        assert caplog.text == ""

    @pytest.mark.parametrize(("backend", "rights"), [("streams", 2), ("list", 3)])
    async def test_documented_rights_suffice_for_a_queue(self, guarded: Server, backend, rights, caplog):
        assert QUEUE_ACL is not None
        more = QUEUE_ACL[1].split() + QUEUE_ACL[rights].split()
        guarded.command("ACL", "SETUSER", "swr", *more)
        try:
            async with Cache(guarded.url.replace("//", "//swr:password@"), namespace="swr", timeout=10) as cache:

                @cache.cached("r:{group}", fresh_for=60)
                async def ranking(group: str) -> str:
                    if group == "bad":
                        raise ValueError("bad")
                    return group

                told = []
                cache.subscribe(told.append, RoundQueued)
                options = {
                    "backend": backend,
                    "deliveries": 1,
                    "reclaim_after": 0.1,
                    "dirty_only": True,
                    "name": backend,
                }
                async with Refresher(ranking, ["a", "bad"], 0.3, "queue", **options) as refresher:
                    queue = refresher._queue()
                    # A mark that comes before its task has begun is that task's.
                    await has_done(queue, 1)
                    await refresher.mark_dirty("a")
                    await has_done(queue, 2)
                    await until(lambda: len(told) >= 3)
                    await queue.heal()
                    assert {letter.why for letter in await queue.dead()} <= {"ValueError: bad"}
                    # It may be a task again already: each round tries it once.
                    assert await queue.retry() in (0, 1)
                    assert await queue.purge(["r:bad"]) in (0, 1)
                    assert backend in await known(cache.engine.store.store)
        finally:
            guarded.command("ACL", "DELUSER", "swr")
            allow(guarded)
        assert "refused" not in caplog.text

    async def test_documented_rights_suffice_for_a_dashboard(self, guarded: Server, caplog):
        assert DASHBOARD_ACL is not None
        guarded.command("ACL", "SETUSER", "swr", *DASHBOARD_ACL[1].split())
        url = guarded.url.replace("//", "//swr:password@")
        try:
            async with (
                Cache(url, namespace="swr:page", reports=True) as other,
                Cache(url, namespace="swr:page") as cache,
            ):
                async with page_of(cache, actions=True, simulate=True) as http:
                    state = await state_when(http, lambda state: len(state["processes"]) == 2)
                    assert (state["fleet"], state["problems"]) == (True, [])
                    for name, target in (("fail-next", {"row": "x"}), ("invalidate", {"tag": "x"})):
                        assert (await http.post(f"/actions/{name}", json=target, headers=ACT)).status_code == 200
                    assert (await http.get("/key?key=x")).json()["note"] == ""
                assert other.engine.is_store_up
        finally:
            guarded.command("ACL", "DELUSER", "swr")
            allow(guarded)
        assert "refused" not in caplog.text

    async def test_no_lease_is_granted_without_the_right_to_read_tag_versions(self, guarded: Server, caplog):
        """A lease needs the newest tag version."""
        async with opened(guarded_store(guarded.url)) as store:
            try:
                guarded.command("ACL", "SETUSER", "swr", "-mget")
                with pytest.raises(StoreUnavailable):
                    await store.acquire("k", "token", 10, 0, ANY)
                with pytest.raises(StoreUnavailable):
                    await store._shared.learn_from(None)
                with pytest.raises(StoreUnavailable):
                    await store.read("k", ANY)
            finally:
                allow(guarded)
        assert "Redis refused a command" in caplog.text

    async def test_cache_works_without_the_right_to_run_info(self, guarded: Server, caplog):
        """swr cannot tell such a server from another one, and replays what it may have missed."""
        guarded.command("ACL", "SETUSER", "swr", "-info")
        try:
            await self.test_documented_rights_suffice_for_a_cache(guarded, caplog)
        finally:
            allow(guarded)

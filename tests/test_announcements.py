"""Requests that change something cost nothing for URLs that are not cached, and outdate everything of those that are."""

import asyncio
import itertools

import anyio
import httpx
import pytest
from redis.asyncio import Redis

from swr import Cache, Policy
from swr.core.codec import ANY
from swr.middleware import SWRMiddleware
from swr.stores.memory import MemoryStore
from swr.stores.pending import Pending
from swr.stores.redis import announcements, shared_tag_versions
from swr.stores.tag_versions import TagVersions, is_announced
from swr.testing import FakeClock
from tests.flaky_store import FlakyStore
from tests.fleet import fleet, until
from tests.servers import Server
from tests.test_losses import restart
from tests.web import Origin, brief, cache_on, client

pytestmark = pytest.mark.anyio

TAGGED = Policy(600, tags=("t",))
KEYS = ("swr:{!}a", "swr:{!}p", "swr:{!}b", "swr:{!}h")
LOSSES = [lost for number in (1, 2, 4) for lost in itertools.combinations(KEYS, number)]


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Rows:
    """An app in front of a row that changes: GET shows it, and any other method says that it has changed."""

    def __init__(self, fields=None):
        self.row = 1
        self.fields = {"cache-control": "max-age=60", **(fields or {})}
        self.loads = 0
        self.gate = None
        self.begun = anyio.Event()

    async def __call__(self, scope, receive, send):
        row = self.row
        if scope["method"] == "GET":
            self.loads += 1
            self.begun.set()
            if self.gate is not None:
                await self.gate.wait()
        headers = [(name.encode(), value.encode()) for name, value in self.fields.items()]
        if scope["method"] != "GET":
            headers = []
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(row).encode()})


async def load() -> int:
    return 1


def raised(cache: Cache) -> set[str]:
    return {tag for tag, _ in cache.engine.store.tag_versions.since(0)}


class TestUncachedURLs:
    async def test_write_request_sends_two_commands_and_publishes_nothing(self, server: Server, no_heartbeats):
        redis = Redis.from_url(server.url)
        async with (
            Cache(server.url, timeout=30) as cache,
            Cache(server.url, timeout=30) as other,
            redis.pubsub() as heard,
        ):
            for one in (cache, other):
                await one.get_or_load("k", load, TAGGED)
                await one.get_or_load("k", load, TAGGED)
            slot = other.local.get("k")
            await heard.subscribe(other.engine.store.store.channel)
            assert await heard.get_message(timeout=30)
            fields = {"location": "/x/1", "content-location": "/x/2"}
            async with client(SWRMiddleware(Origin((201, fields, "")), cache)) as http:
                before, known = cache.engine.store.sent, raised(cache)
                for method in ("POST", "PUT", "PATCH", "DELETE"):
                    await http.request(method, "/x")
                assert cache.engine.store.sent - before == 8
            assert raised(cache) == known
            await redis.publish(other.engine.store.store.channel, "the last")
            assert (await heard.get_message(ignore_subscribe_messages=True, timeout=30))["data"] == b"the last"
            assert slot.trust is other.local.trust
        await redis.aclose()

    @pytest.mark.uncounted
    @pytest.mark.parametrize("in_redis", [False, True])
    async def test_posts_to_more_urls_than_remembered_tags_leave_cached_entries_fresh(
        self, server: Server, monkeypatch, in_redis
    ):
        monkeypatch.setattr(shared_tag_versions, "_MOST_TAGS", 20)
        async with Cache(server.url, timeout=30) if in_redis else Cache(clock=FakeClock()) as cache:
            store = cache.engine.store
            if not in_redis:
                store.tag_versions = TagVersions(20)
            await cache.get_or_load("k", load, TAGGED)
            app = SWRMiddleware(Rows(), cache)
            async with client(app) as http:
                await http.get("/cached")
                for number in range(200):
                    await http.post(f"/rows/{number}")
                assert brief(await http.get("/cached"))[2] == "fresh"
            assert len(raised(cache)) <= 1
            assert cache.engine.store.peek("k") is not None

    async def test_memory_store_raises_tag_of_unloaded_url_when_too_many_loads_run(self, monkeypatch):
        monkeypatch.setattr("swr.stores.memory._MOST_SEARCHED", 0)
        rows = Rows()
        rows.gate = anyio.Event()
        async with Cache(clock=FakeClock()) as cache, client(SWRMiddleware(rows, cache)) as http:
            async with anyio.create_task_group() as group:
                group.start_soon(http.get, "/x")
                await rows.begun.wait()
                await http.post("/y")
                rows.gate.set()
            assert any(tag.endswith("url:/y") for tag in raised(cache))


async def answers(http: httpx.AsyncClient, fields=None) -> str:
    return (await http.get("/x", headers=fields)).text


class Fleet:
    """Two processes over one server, an app, and a client of each."""

    def __init__(self, server: Server, rows: Rows):
        self.rows = rows
        self.one = Cache(server.url, timeout=30)
        self.other = Cache(server.url, timeout=30)

    async def __aenter__(self):
        self.clients = []
        for cache in (self.one, self.other):
            await cache.__aenter__()
            self.clients.append(client(SWRMiddleware(self.rows, cache)))
        return self, *self.clients

    async def __aexit__(self, *error):
        for http in self.clients:
            await http.aclose()
        for cache in (self.other, self.one):
            await cache.__aexit__(*error)


FIELDS = [{"accept-language": "de"}, {"accept-language": "en"}, {}]


class TestCachedURLs:
    @pytest.mark.uncounted
    async def test_write_invalidates_all_variants_in_all_processes(self, server: Server):
        rows = Rows({"vary": "accept-language"})
        async with Fleet(server, rows) as (fleet, one, other):
            for turn in range(1, 4):
                for http in (one, other):
                    for fields in FIELDS:
                        assert await answers(http, fields) == str(turn)
                rows.row += 1
                await (one if turn % 2 else other).post("/x")
                await until(
                    lambda: fleet.other.engine.store.tag_versions.newest == fleet.one.engine.store.tag_versions.newest
                )
                loads = rows.loads
                for fields in FIELDS:
                    assert await answers(one, fields) == str(turn + 1)
                assert rows.loads == loads + len(FIELDS)

    async def test_write_supersedes_load_under_way_in_another_process(self, server: Server):
        rows = Rows()
        async with Fleet(server, rows) as (_, one, other):
            rows.gate = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(one.get, "/x")
                await rows.begun.wait()
                rows.row = 2
                await other.post("/x")
                rows.gate.set()
            assert await answers(other) == "2"
            assert await answers(one) == "2"

    async def test_write_supersedes_load_under_way_in_same_process(self):
        rows = Rows()
        rows.gate = anyio.Event()
        async with Cache(clock=FakeClock()) as cache, client(SWRMiddleware(rows, cache)) as http:
            async with anyio.create_task_group() as group:
                group.start_soon(http.get, "/x")
                await rows.begun.wait()
                rows.row = 2
                await http.post("/x")
                rows.gate.set()
            assert await answers(http) == "2"

    @pytest.mark.uncounted
    @pytest.mark.parametrize("lost", LOSSES, ids=" ".join)
    @pytest.mark.parametrize("since", ["nothing", "another load"])
    async def test_write_invalidates_url_although_redis_has_lost_keys(self, server: Server, lost, since):
        rows = Rows()
        async with Fleet(server, rows) as (_, one, other):
            assert await answers(one) == "1"
            assert await answers(other) == "1"
            server.command("DEL", *lost)
            if since != "nothing":
                await other.get("/y")
            rows.row = 2
            await other.post("/x")
            assert await answers(other) == "2"

            with anyio.fail_after(60):
                while await answers(one) != "2":
                    await anyio.sleep(0.01)

    @pytest.mark.uncounted
    @pytest.mark.parametrize("key", KEYS[:2])
    @pytest.mark.parametrize("kind", ["a text", "a list"])
    async def test_write_invalidates_url_although_foreign_value_replaced_a_key(self, server: Server, key, kind):
        rows = Rows()
        async with Fleet(server, rows) as (_, one, _):
            assert await answers(one) == "1"
            server.command("DEL", key)
            server.command(*(("SET", key, "9" * 40) if kind == "a text" else ("RPUSH", key, "x")))
            await one.post("/never")
            rows.row = 2
            await one.post("/x")
            assert await answers(one) == "2"

    @pytest.mark.parametrize("key", KEYS[:2])
    async def test_write_invalidates_url_although_older_copy_of_a_key_was_restored(self, server: Server, key):
        rows = Rows()
        async with Fleet(server, rows) as (_, one, other):
            await one.get("/warm")
            server.command("COPY", key, "older")
            assert await answers(one) == "1"
            server.command("RENAME", "older", key)
            rows.row = 2
            await other.post("/x")
            assert await answers(other) == "2"

    async def test_loads_announce_their_urls_again_after_clear(self, server: Server):
        rows = Rows()
        async with Fleet(server, rows) as (fleet, one, other):
            assert await answers(one) == "1"
            await fleet.other.clear()
            await until(
                lambda: fleet.one.engine.store.tag_versions.cleared == fleet.other.engine.store.tag_versions.cleared
            )
            assert await answers(one) == "1"
            rows.row = 2
            await other.post("/x")
            await until(
                lambda: fleet.one.engine.store.tag_versions.newest == fleet.other.engine.store.tag_versions.newest
            )
            assert await answers(one) == "2"

    async def test_url_is_announced_again_when_clear_comes_during_lease_request(self, server: Server):
        tags = ("host:x\nurl:/x",)
        async with Cache(server.url, timeout=30) as one, Cache(server.url, timeout=30) as other:
            await other.engine.ready()
            await one.engine.ready()
            shared = one.engine.store.store._shared
            announce = shared.announce

            async def announce_and_clear(tags):
                await announce(tags)
                shared.announce, cleared = announce, shared.known.cleared
                await other.clear()
                await until(lambda: shared.known.cleared > cleared)

            shared.announce = announce_and_clear
            await one.engine.store.store.acquire("k", "token", 30, 0, ANY, tags=tags)
            assert shared.unannounced(tags) == ()
            before = raised(other)
            await other.engine.invalidate_announced(*tags)
            assert raised(other) - before == set(tags)


class TestOlderData:
    @pytest.mark.parametrize("remembered", [10_000, 1])
    async def test_server_restarted_with_older_data_gets_announcements_again_or_is_cleared(
        self, own_server: Server, monkeypatch, remembered
    ):
        monkeypatch.setattr("swr.stores.redis.invalidations._MOST", remembered)
        monkeypatch.setattr("swr.stores.redis.failover._MARGIN", 0)
        rows = Rows()
        async with Cache(own_server.url) as cache, client(SWRMiddleware(rows, cache)) as http:
            await cache.engine.ready()
            own_server.command("SAVE")
            for path in ("/x", "/y", "/z"):
                await http.get(path)
            tags = list(cache.local.slots.tags)
            cleared = cache.engine.store.tag_versions.cleared
            await asyncio.to_thread(restart, own_server)
            await until(lambda: cache.engine.store.is_reachable)
            if remembered == 1:
                assert cache.engine.store.tag_versions.cleared > cleared
                return
            bits = [bit for tag in tags if is_announced(tag) for bit in announcements.bits_of(tag.encode()).split()]
            assert bits
            assert {own_server.command("GETBIT", KEYS[0], bit) for bit in bits} == {b":1\r\n"}
            assert cache.engine.store.tag_versions.cleared == cleared

    async def test_invalidation_skipped_for_a_lost_announcement_applies_after_reconnect(self, server: Server):
        """The server of the tag versions has lost its last writes; that of the entries, another master, has not."""
        rows = Rows()
        async with Fleet(server, rows) as (fleet, one, other):
            await one.get("/warm")
            for key in KEYS:
                server.command("COPY", key, f"older {key}")
            assert await answers(one) == "1"
            for key in KEYS:
                server.command("RENAME", f"older {key}", key)
            rows.row = 2
            await other.post("/x")
            assert await answers(one) == "1"
            # It finds another run of the server, as after a failover.
            fleet.one.engine.store.store._servers._link.run_id = b"another"
            server.command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
            with anyio.fail_after(60):
                while await answers(one) != "2" or await answers(other) != "2":
                    await anyio.sleep(0.01)


class TestUnannouncedLoads:
    async def test_url_loaded_while_redis_refuses_writes_is_invalidated_by_any_process(self, server: Server):
        rows = Rows()
        async with Fleet(server, rows) as (fleet, one, other):
            await fleet.one.engine.ready()
            await fleet.other.engine.ready()
            server.command("CONFIG", "SET", "min-replicas-to-write", "1")
            try:
                assert await answers(one) == "1"
                # It is kept, and a change by the process itself counts at once.
                assert await answers(one) == "1"
                assert rows.loads == 1
                rows.row = 2
                await one.post("/x")
                assert await answers(one) == "2"
                await fleet.one.engine.store.invalidate_announced(("host:test\nurl:/never",))
            finally:
                server.command("CONFIG", "SET", "min-replicas-to-write", "0")
            rows.row = 3
            await other.post("/x")
            await until(lambda: fleet.one.engine.store._pending.is_empty)
            assert await answers(one) == "3"

    async def test_load_begun_while_redis_refused_writes_is_superseded_by_a_later_write(self, server: Server):
        rows = Rows()
        async with Fleet(server, rows) as (fleet, one, other):
            await fleet.one.engine.ready()
            rows.gate = anyio.Event()
            server.command("CONFIG", "SET", "min-replicas-to-write", "1")
            async with anyio.create_task_group() as group:
                group.start_soon(one.get, "/x")
                await rows.begun.wait()
                server.command("CONFIG", "SET", "min-replicas-to-write", "0")
                rows.row = 2
                await other.post("/x")
                await until(lambda: fleet.one.engine.store._pending.is_empty)
                rows.gate.set()
            assert await answers(one) == "2"

    async def test_own_write_invalidates_entry_whose_load_was_not_announced(self):
        clock = FakeClock()
        async with fleet(1, clock) as (process,):
            cache, rows = cache_on(process, clock), Rows()
            async with client(SWRMiddleware(rows, cache)) as http:
                await http.get("/other")
                process.link.set_down(True)
                assert await answers(http) == "1"
                process.link.is_down = False
                rows.row = 2
                await http.post("/x")
                assert await answers(http) == "2"

    async def test_all_unannounced_urls_are_invalidated_when_too_many_to_remember(self, server: Server, monkeypatch):
        monkeypatch.setattr("swr.stores.pending._MOST", 1)
        rows = Rows()
        async with Fleet(server, rows) as (fleet, one, other):
            await fleet.one.engine.ready()
            server.command("CONFIG", "SET", "min-replicas-to-write", "1")
            try:
                for path in ("/x", "/y", "/z"):
                    await one.get(path)
            finally:
                server.command("CONFIG", "SET", "min-replicas-to-write", "0")
            rows.row = 2
            for path in ("/x", "/y", "/z"):
                await other.post(path)
            await until(lambda: fleet.one.engine.store._pending.is_empty)
            for path in ("/x", "/y", "/z"):
                assert (await one.get(path)).text == "2"

    async def test_load_during_replay_is_announced_by_the_next_replay(self):
        link = FlakyStore(MemoryStore())
        pending = Pending(link)
        pending.open()

        async def load_more():
            link.before.clear()
            load("k", "host:b")

        def load(key, tag):
            link.is_down = True
            pending.add_unannounced(key, (tag,))
            link.is_down = False

        load("k", "host:a")
        link.before["announce"] = load_more
        assert await pending.replay() == ["k"]
        assert pending.unannounced == {"k": ("host:b",)}
        assert await pending.replay() == ["k"]
        assert pending.is_empty


class Post:
    """An app whose answer to POST represents a GET; something may come between its look at the row and its answer."""

    def __init__(self):
        self.row = 1
        self.between = None

    async def __call__(self, scope, receive, send):
        row, between, self.between = self.row, self.between, None
        if scope["method"] == "POST" and between is not None:
            await between()
        fields = {"cache-control": "max-age=60", "content-location": "/x"} if scope["method"] != "PUT" else {}
        headers = [(name.encode(), value.encode()) for name, value in fields.items()]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": str(row).encode()})


class TestPost:
    @pytest.mark.parametrize("known", [False, True])
    @pytest.mark.parametrize("before", [False, True])
    async def test_post_answer_with_content_location_is_stored_for_get(self, server: Server, known, before):
        app = Post()
        async with Fleet(server, app) as (_, one, other):
            if known:
                await one.get("/x")
            if before:
                await one.put("/x")
            await one.post("/x")
            assert brief(await one.get("/x")) == (200, "1", "fresh")
            assert brief(await other.get("/x"))[1:] == ("1", "fresh")

    @pytest.mark.parametrize("lost", [False, True])
    async def test_post_answer_is_not_served_after_concurrent_put_by_another_process(self, server: Server, lost):
        app = Post()
        async with Fleet(server, app) as (_, one, other):
            await one.get("/warm")

            async def change():
                app.row = 2
                await other.put("/x")
                if lost:
                    server.command("DEL", KEYS[1])

            app.between = change
            await one.post("/x")
            assert await answers(one) == "2"

    async def test_post_answer_is_not_served_after_concurrent_put_in_a_cache_without_redis(self):
        app = Post()
        async with Cache(clock=FakeClock()) as cache, client(SWRMiddleware(app, cache)) as http:

            async def change():
                app.row = 2
                await http.put("/x")

            app.between = change
            await http.post("/x")
            assert await answers(http) == "2"

    async def test_post_answer_is_not_stored_when_redis_cannot_report_changes(self):
        clock = FakeClock()
        async with fleet(1, clock) as (process,):
            cache, app = cache_on(process, clock), Post()
            async with client(SWRMiddleware(app, cache)) as http:
                process.link.lost.add("was_passed_over")
                await http.post("/x")
                assert brief(await http.get("/x"))[2] == "missing"

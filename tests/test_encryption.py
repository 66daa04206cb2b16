"""Encryption and compression: what is in Redis shows nothing, and what cannot be read is a miss that repairs itself."""

import asyncio
import base64
import json
import os
import socket
import sys
import threading
import zlib
from contextlib import AsyncExitStack

import pytest
from fastapi import FastAPI, Response
from redis.asyncio import Redis, RedisCluster

from swr import Cache, CodecError, ConfigurationError, Fresh, Policy, Refresher, State
from swr.cli.main import main
from swr.core import frames
from swr.core.codec import ANY
from swr.core.packing import Packing, decompressed
from swr.encryption import Encryption
from swr.entry import stamp
from swr.errors import StoreUnavailable
from swr.middleware import SWRMiddleware
from swr.refreshers.queue.queue import Queue
from swr.stores.redis.announcements import bits_of
from swr.stores.redis.names import ForeignName, Names
from tests.servers import ClusterOfSix, Server, kinds
from tests.test_redis import Counter, until
from tests.web import client

pytestmark = pytest.mark.anyio

SECRET = "the secret of these tests"
OLD, NEW = os.urandom(32), os.urandom(16)
LONG = Policy(600, 600)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def encryption(*names: str, secret: str = SECRET) -> Encryption:
    return Encryption({name: {"old": OLD, "new": NEW}[name] for name in names or ("old",)}, secret)


# -- nothing is seen --------------------------------------------------------------------------------------------------

# Stands in every key, tag, value, URL, field, argument and error of the session.
WORD = "zinnia"


class Monitor:
    """Everything that a server carries out, and every message, as bytes."""

    def __init__(self, server: Server) -> None:
        self.seen = bytearray()
        self._server = server
        self._sockets = []
        for command in ("MONITOR\r\n", "PSUBSCRIBE *\r\n"):
            connection = socket.create_connection(("127.0.0.1", server.port))
            connection.sendall(command.encode())
            threading.Thread(target=self._read, args=(connection,), daemon=True).start()
            self._sockets.append(connection)

    def _read(self, connection: socket.socket) -> None:
        try:
            while data := connection.recv(65536):
                self.seen += data
        except OSError:
            pass

    async def end(self) -> None:
        mark = os.urandom(8).hex()
        self._server.command("ECHO", mark)
        await until(lambda: mark.encode() in self.seen)
        for connection in self._sockets:
            connection.close()


async def stored(server: Server) -> list[bytes]:
    """Return every key of a server and what is there, raw and as DUMP has it."""
    found: list[bytes] = []
    commands = {
        b"string": ("GET",),
        b"hash": ("HGETALL",),
        b"zset": ("ZRANGE", 0, -1, "WITHSCORES"),
        b"list": ("LRANGE", 0, -1),
        b"stream": ("XRANGE", "-", "+"),
    }
    async with Redis.from_url(server.url, protocol=2) as redis:
        async for key in redis.scan_iter():
            name, *rest = commands[await redis.type(key)]
            found += [key, repr(await redis.execute_command(name, key, *rest)).encode(), await redis.dump(key) or b""]
            found.append(await redis.get(key) if name == "GET" else b"")
    return [part or b"" for part in found]


async def busy_session(url: str, codec, backend: str, compress_above: int | None) -> None:
    """Do everything that a fleet of two processes does with Redis."""
    options = {"codec": codec, "secret": SECRET, "timeout": 10, "compress_above": compress_above, "reports": True}
    async with Cache(url, **options) as one, Cache(url, **options) as other:

        @one.cached("zinnia:{group}:{limit}", fresh_for=600, stale_for=600, tags=["zinnia-{group}"])
        async def top(group: str, limit: int = 100) -> Fresh[list[str]] | list[str]:
            return Fresh([f"zinnia {group}"] * limit, validator="zinnia-v1", tags=["zinnia-more"])

        top_elsewhere = other.cached("zinnia:{group}:{limit}", fresh_for=600, tags=["zinnia-{group}"])(top.__wrapped__)

        @one.cached_many("zinnia-item:{item}", fresh_for=600, tags=["zinnia-item-{item}"], absent_for=60)
        async def items(names: list[str]) -> dict[str, str]:
            return {name: f"zinnia {name}" for name in names if name != "zinnia-none"}

        @one.cached("zinnia-broken:{group}", fresh_for=600, hard_timeout=5)
        async def broken(group: str) -> int:
            raise RuntimeError(f"zinnia failed for {group}")

        app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=one)

        @app.get("/zinnia/{name}")
        async def page(name: str, response: Response) -> dict[str, str]:
            response.headers.update({"Vary": "Accept-Language", "Cache-Control": "max-age=600", "X-Name": WORD})
            return {"zinnia": name}

        @app.post("/zinnia/{name}")
        async def change(name: str) -> str:
            return "zinnia"

        for group in ("zinnia-ATL", "JFK"):
            await top(group)
            await top.set([WORD], group, 7)
        assert await top_elsewhere.peek("JFK", 7)
        await items(["zinnia-1", "zinnia-2", "zinnia-none"])
        with pytest.raises(RuntimeError):
            await broken(WORD)
        async with client(app) as http:
            for language in (WORD, "de"):
                await http.get("/zinnia/zinnia?zinnia=1", headers={"accept-language": language})
            await http.post("/zinnia/zinnia?zinnia=1", content=b"zinnia")
            await http.post("/zinnia/never-cached")
            await one.invalidate_url("/zinnia/zinnia?zinnia=1")
            await http.get("/zinnia/zinnia?zinnia=2", headers={"accept-language": WORD})
        await one.mark_stale("zinnia:JFK:7")
        await top.mark_stale_all()
        await one.mark_stale_tags("zinnia-JFK")
        await top("JFK")
        await top.refresh("JFK")
        await one.invalidate_tags("zinnia-1", "zinnia-2")
        await items.invalidate_all()
        await one.invalidate("zinnia:zinnia-ATL:100")
        await one.set("zinnia-set", {WORD: WORD}, LONG)
        kinds_of_queue = {"strategy": "queue", "every": 3600, "backend": backend, "deliveries": 1}
        async with (
            Refresher(top, ["zinnia-ATL", ("JFK", 10)], name="zinnia good", **kinds_of_queue) as good,
            Refresher(broken, ["zinnia-SFO"], name="zinnia bad", shards=2, **kinds_of_queue) as bad,
        ):
            await good.mark_dirty("zinnia-ORD")
            async with asyncio.timeout(60):
                while not ((await bad.status()).dead and (await good.status()).counts.get("done", 0) >= 2):
                    await asyncio.sleep(0.05)
            letters = await bad._queue().dead()
            assert [(letter.key, letter.args) for letter in letters] == [("zinnia-broken:zinnia-SFO", ["zinnia-SFO"])]
            assert "zinnia failed for zinnia-SFO" in letters[0].why
            assert [queue for queue in await found_queues(one) if WORD in queue] == ["zinnia bad", "zinnia good"]
            await good.mark_dirty("zinnia-LAX")
            digests = one.engine.store.store.digests
            await digests.watch(60)
            await digests.simulate(WORD.encode(), 60)
            assert await other.engine.store.store.digests.faults() == WORD.encode()
            assert await digests.secret(WORD.encode()) == await digests.secret(b"other") == WORD.encode()
            async with asyncio.timeout(60):
                while not any(
                    WORD.encode() in data for data in (await other.engine.store.store.digests.read()).values()
                ):
                    await asyncio.sleep(0.05)


async def found_queues(cache: Cache) -> list[str]:
    from swr.refreshers.queue.queue import known

    return sorted(await known(cache.engine.store.store))


@pytest.fixture(scope="module")
def cluster():
    with ClusterOfSix(kinds()[0]) as cluster:
        yield cluster


@pytest.mark.parametrize("place", ["valkey", "redis", "cluster"])
async def test_encrypted_cache_shows_redis_no_value_key_tag_url_argument_or_error(place, request):
    if place == "cluster":
        group = request.getfixturevalue("cluster")
        url, servers = group.url, group.masters()
    else:
        if place not in kinds():
            pytest.skip("there is no such server here")
        server = Server(place)
        server.__enter__()
        request.addfinalizer(lambda: server.__exit__(None, None, None))
        url, servers = server.url, [server]
    for codec, backend, above in (
        (encryption(), "streams", None),
        (encryption("new", "old"), "list", 0),
        (None, "list", None),
    ):
        for server in servers:
            server.command("FLUSHALL")
        monitors = [Monitor(server) for server in servers]
        await busy_session(url, codec, backend, above)
        parts = [part for server in servers for part in await stored(server)]
        for monitor in monitors:
            await monitor.end()
        seen = b"\n".join([*parts, *(bytes(monitor.seen) for monitor in monitors)])
        texts = [WORD, SECRET, base64.b64encode(WORD.encode() + b"--").decode()[:8], WORD.encode().hex()]
        found = [text for text in texts if text.lower().encode() in seen.lower()]
        if codec is None:
            assert WORD in found, "the session shows nothing to look for"
        else:
            assert found == []
            # Nor can a tag be guessed by its bits.
            places = bits_of(b"host:http://test\n/zinnia/zinnia?zinnia=1").split()
            async with (
                RedisCluster.from_url(f"redis://127.0.0.1:{servers[0].port}")
                if place == "cluster"
                else Redis.from_url(url) as redis
            ):
                assert not all([await redis.getbit("swr:{!}a", int(bit)) for bit in places])


# -- what cannot be read ----------------------------------------------------------------------------------------------


async def read_by(url: str, load: Counter, codec=None, key: str = "k", **options) -> tuple[int, State]:
    async with Cache(url, codec=codec, timeout=5, **options) as cache:
        outcome = await cache.get_or_load(key, load, LONG)
        # What it has stored it reads again, too.
        assert (await cache.get_or_load(key, load, LONG)).value == outcome.value
    return outcome.value, outcome.state


class ShowsNames:
    """A codec of a user that hides no names: bytes backwards, and where they belong."""

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        return zlib.adler32(context).to_bytes(4, "big") + data[::-1]

    def decode(self, data: bytes, context: bytes, /) -> bytes:
        if data[:4] != zlib.adler32(context).to_bytes(4, "big"):
            raise CodecError("it belongs elsewhere")
        return data[:3:-1]


class Fails(ShowsNames):
    """One whose service is away."""

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        raise TimeoutError("no key server")

    decode = encode


class HidesNothing(ShowsNames):
    """One that cannot hide names now."""

    def encode_name(self, name: bytes, context: bytes, /) -> bytes:
        raise TimeoutError("no key server")

    decode_name = encode_name


class MakesText(ShowsNames):
    """One that keeps to no protocol."""

    def encode(self, data: bytes, context: bytes, /) -> str:
        return "text"


@pytest.mark.parametrize("where", ["server", "cluster"])
class TestReading:
    @pytest.fixture
    def url(self, where, request):
        if where == "server":
            server = request.getfixturevalue("any_server")
            server.command("FLUSHALL")
            return server.url
        cluster = request.getfixturevalue("cluster")
        for server in cluster.masters():
            server.command("FLUSHALL")
        return cluster.url

    async def test_rotated_encryption_key_still_reads_and_first_key_writes(self, url):
        load = Counter()
        assert await read_by(url, load, encryption("old")) == (1, State.MISSING)
        assert await read_by(url, load, encryption("new", "old")) == (1, State.FRESH)
        assert await read_by(url, load, encryption("new", "old"), "other") == (2, State.MISSING)
        assert await read_by(url, load, encryption("new"), "other") == (2, State.FRESH)

    async def test_entry_whose_encryption_key_is_lost_is_a_miss_logged_once_and_repaired(self, url, caplog):
        load = Counter()
        for key in ("a", "b"):
            await read_by(url, load, encryption("old"), key)
        async with Cache(url, codec=encryption("new"), timeout=5) as cache:
            for key in ("a", "b", "a"):
                await cache.get_or_load(key, load, LONG)
        assert load.runs == 4
        assert caplog.text.count("is encrypted with the key 'old', which this cache does not have") == 1
        assert await read_by(url, load, encryption("new"), "a") == (3, State.FRESH)

    @pytest.mark.parametrize(
        ("writer", "reader", "says"),
        [
            (ShowsNames(), None, "a codec has written it, and this cache has none"),
            (None, ShowsNames(), "it was written without a codec, and this cache has one"),
            (ShowsNames(), Fails(), "the codec could not read it (TimeoutError: no key server)"),
        ],
    )
    async def test_processes_with_and_without_codec_miss_each_others_entries(self, url, writer, reader, says, caplog):
        load = Counter()
        await read_by(url, load, writer)
        assert (await read_by(url, load, reader))[0] == 2
        assert caplog.text.count(says) == 1
        if not isinstance(reader, Fails):
            assert await read_by(url, load, reader) == (2, State.FRESH)

    async def test_entry_moved_to_another_key_is_a_miss_logged_once(self, url, caplog):
        codec, load = encryption(), Counter()
        names = Names("swr", Packing("swr", None, codec))
        await read_by(url, load, codec, "{mine}"[1:-1])
        await read_by(url, load, codec, "yours")
        client_of = RedisCluster.from_url if "cluster" in url else Redis.from_url
        async with client_of(url.replace("redis+cluster", "redis").partition(",")[0]) as redis:
            mine = await redis.get(names.entry("mine"))
            await redis.set(names.entry("yours"), mine)
        assert (await read_by(url, load, codec, "yours"))[0] == 3
        assert caplog.text.count("it was changed or moved") == 1

    async def test_invalidations_reach_processes_with_the_same_secret(self, url):
        load = Counter()
        tagged = Policy(600, tags=("t",))
        async with (
            Cache(url, codec=encryption("old"), timeout=5) as one,
            Cache(url, codec=encryption("new", "old"), timeout=5) as other,
        ):
            for invalidate in (
                lambda: one.invalidate("k"), lambda: one.invalidate_tag("t"), lambda: one.clear(), lambda: one.mark_stale("k")
            ):  # fmt: skip
                await other.get_or_load("k", load, tagged)
                runs = load.runs
                await invalidate()
                await until(lambda: other.engine.store.peek("k") is None or other.engine.store.peek("k").is_marked)
                await other.get_or_load("k", load, tagged)
                await until(lambda runs=runs: load.runs == runs + 1)

    @pytest.mark.parametrize("hides", ["the one", "the other", "both"])
    async def test_invalidation_with_unreadable_name_invalidates_everything_in_other_process(self, url, hides, caplog):
        """In a deploy that turns encryption on, processes of both kinds run side by side."""
        codecs = {
            "the one": (encryption(), None),
            "the other": (None, encryption()),
            "both": (encryption(), encryption(secret="another secret of 16 bytes")),
        }[hides]
        load = Counter()
        tagged = Policy(600, tags=("t",))
        async with Cache(url, codec=codecs[0], timeout=5) as one, Cache(url, codec=codecs[1], timeout=5) as other:
            for invalidate in (
                lambda: one.invalidate("k"), lambda: one.invalidate_tag("t"), lambda: one.mark_stale("k"), lambda: one.mark_stale_tags("t")
            ):  # fmt: skip
                await other.get_or_load("k", load, tagged)
                runs = load.runs
                await invalidate()
                await until(lambda: other.engine.store.peek("k") is None)
                await other.get_or_load("k", load, tagged)
                assert load.runs == runs + 1
            await one.get_or_load("k", load, LONG)
        assert "has another secret or codec" in caplog.text
        # Nor does one that starts later, and has heard of nothing.
        async with Cache(url, codec=codecs[1], timeout=5) as other:
            await other.get_or_load("k", load, tagged)
        async with Cache(url, codec=codecs[0], timeout=5) as one:
            await one.invalidate_tag("t")
        runs = load.runs
        async with Cache(url, codec=codecs[1], timeout=5) as late:
            await late.get_or_load("k", load, tagged)
            assert load.runs == runs + 1

    @pytest.mark.parametrize(
        ("codec", "says"),
        [
            (Fails(), "the codec could not encode (TimeoutError: no key server)"),
            (HidesNothing(), "the codec could not hide a name (TimeoutError: no key server)"),
            (MakesText(), "the codec could not encode (TypeError: it made a str instead of bytes)"),
        ],
    )
    async def test_failing_codec_is_logged_once_and_readers_still_get_values(self, url, caplog, codec, says):
        load = Counter()
        async with Cache(url, codec=codec, timeout=5) as cache:
            for _ in range(2):
                assert (await cache.get_or_load("k", load, LONG)).value >= 1
            await cache.invalidate("k")
            runs = load.runs
            assert (await cache.get_or_load("k", load, LONG)).value == runs + 1
        assert caplog.text.count(says) == 1


async def test_unreadable_invalidation_clears_everything_once_redis_is_reachable_again(own_server: Server):
    load = Counter()
    async with Cache(own_server.url, timeout=1) as cache:
        await cache.get_or_load("k", load, LONG)
        shared = cache.engine.store.store._shared
        version = shared.known.newest + 1
        own_server.pause()
        await until(lambda: not cache.engine.store.is_reachable)
        await shared.clear_after(version)
        own_server.resume()
        await until(lambda: cache.engine.store.is_reachable and shared.known.cleared > version)
        assert (await cache.get_or_load("k", load, LONG)).value == 2
        # Once is enough.
        cleared = shared.known.cleared
        await shared.clear_after(version)
        assert shared.known.cleared == cleared


# -- the queue --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("writer", ["one", "other"])
async def test_queue_drops_tasks_of_another_codec_and_logs_them(server: Server, caplog, writer):
    async with Cache(server.url, codec=ShowsNames(), timeout=5) as one, Cache(server.url, timeout=5) as other:
        caches = (one, other) if writer == "one" else (other, one)
        queue, theirs = (Queue(cache.engine.store.store, "q") for cache in caches)
        await queue.register()
        await queue.enqueue(f"{1:016d}", [("k", 5, ("ATL",))])
        assert (await theirs.take(0, "one", 10))[1] == []
        assert "held a task for b'k' that cannot be read" in caplog.text
        assert (await theirs.status()).queued == 0


async def test_queues_with_unreadable_names_are_not_listed(server: Server):
    async with Cache(server.url, codec=encryption(), timeout=5) as one, Cache(server.url, timeout=5) as other:
        for cache in (one, other):
            await Queue(cache.engine.store.store, f"queue of {cache is one}").register()
        assert await found_queues(one) == ["queue of True"]
        assert await found_queues(other) == ["queue of False"]


async def test_digest_of_another_codec_is_hidden_and_counted_as_unreadable(server: Server, caplog):
    async with (
        Cache(server.url, codec=encryption(), timeout=5, reports=True) as one,
        Cache(server.url, timeout=5, reports=True) as other,
        Cache(server.url, codec=Fails(), timeout=5, reports=True) as failing,
    ):
        stores = [cache.engine.store.store.digests for cache in (one, other, failing)]
        await one.engine.ready()
        async with asyncio.timeout(60):
            while not (own := await stores[0].read()) or "no dashboard shows this process" not in caplog.text:
                await asyncio.sleep(0.05)
        assert len(own) == 1
        assert own.keys().isdisjoint(await stores[2].read())
        async with asyncio.timeout(60):
            # The page says that one more process reports.
            while stores[0].unreadable != 1:
                await stores[0].read()
                await asyncio.sleep(0.01)


# -- commands ---------------------------------------------------------------------------------------------------------


def test_commands_find_encrypted_entries_with_keys_and_secret_from_environment(server: Server, capsys, monkeypatch):
    codec = encryption()

    async def fill() -> None:
        async with Cache(server.url, codec=codec, secret=SECRET) as cache:
            await cache.set("top:ATL", [1, 2], LONG.tagged(["group:ATL"]))

    def inspected() -> dict:
        capsys.readouterr()
        code = main(["inspect", "top:ATL", "--redis", server.url, "--json"])
        return {"code": code, **json.loads(capsys.readouterr().out)}

    asyncio.run(fill())
    assert (inspected()["code"], inspected()["created_at"]) == (1, None)
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", f"old={base64.urlsafe_b64encode(OLD).decode()}")
    assert main(["inspect", "top:ATL", "--redis", server.url]) == 2
    assert "SWR_SECRET is not" in capsys.readouterr().err
    monkeypatch.setenv("SWR_SECRET", SECRET)
    found = inspected()
    assert (found["code"], found["state"], found["tags"], found["bytes"]) == (0, "fresh", ["group:ATL"], 3)
    for what in (["--tag", "group:ATL"], ["top:ATL"]):
        assert main(["invalidate", *what, "--redis", server.url]) == 0
        assert inspected()["state"] == "missing"
        asyncio.run(fill())
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", f"new={base64.b64encode(NEW).decode()}")
    capsys.readouterr()
    assert "which this cache does not have" in inspected()["why"]


def test_from_env_reads_secret_and_encryption_keys(server: Server, monkeypatch):
    monkeypatch.setenv("SWR_REDIS_URL", server.url)
    monkeypatch.setenv("SWR_SECRET", SECRET)
    assert Cache.from_env().digest(b"x") == Cache(secret=SECRET).digest(b"x")
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", f"old={base64.b64encode(OLD).decode()}, ")

    async def run() -> None:
        async with Cache.from_env() as one, Cache(server.url, codec=encryption()) as other:
            await one.set("k", 5, LONG, returns=int)
            found = await other.peek("k", returns=int)
            assert found is not None
            assert found.value == 5

    asyncio.run(run())
    for keys in ("old", "old=xy", "a=b=c", f"old={base64.b64encode(OLD).decode()},old=x"):
        monkeypatch.setenv("SWR_ENCRYPTION_KEYS", keys)
        with pytest.raises(ConfigurationError, match="SWR_ENCRYPTION_KEYS") as error:
            Cache.from_env()
        assert "xy" not in str(error.value)


@pytest.mark.parametrize("written", ["{}", "old:{}", "old {}", "old={};new:{}", "{}=old", "{},{}", "old" * 30 + ":{}"])
@pytest.mark.parametrize("length", [16, 24, 32])
def test_error_about_malformed_encryption_keys_hides_the_key(written, length, monkeypatch):
    key = base64.b64encode(b"\xa7" * length).decode()
    monkeypatch.setenv("SWR_SECRET", SECRET)
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", written.replace("{}", key))
    with pytest.raises(ConfigurationError, match="SWR_ENCRYPTION_KEYS") as error:
        Cache.from_env("redis://127.0.0.1:6379/0")
    assert key.rstrip("=") not in str(error.value)
    with pytest.raises(ConfigurationError, match="key 1 ") as error:
        Encryption({key: "2026-11"}, SECRET)
    assert key.rstrip("=") not in str(error.value)


def test_missing_cryptography_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cryptography.exceptions", None)
    for name in ("swr.encryption.aes", "swr.encryption"):
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setenv("SWR_ENCRYPTION_KEYS", "a=b")
    monkeypatch.setenv("SWR_SECRET", SECRET)
    with pytest.raises(
        ConfigurationError, match=r"SWR_ENCRYPTION_KEYS: swr.encryption needs cryptography .*pip install 'swr"
    ):
        Cache.from_env()


# -- the parts --------------------------------------------------------------------------------------------------------


class TestEncryption:
    @pytest.mark.parametrize("length", [0, 1, 5000])
    def test_decode_restores_data_and_each_encode_differs(self, length):
        codec, data = encryption(), os.urandom(length)
        first, second = codec.encode(data, b"place"), codec.encode(data, b"place")
        assert first != second
        assert codec.decode(first, b"place") == codec.decode(second, b"place") == data

    def test_decode_refuses_changed_cut_or_moved_data(self):
        codec = encryption()
        whole = codec.encode(b"value", b"place")
        for changed in (*(whole[:end] for end in range(len(whole))), *flipped(whole)):
            with pytest.raises(CodecError):
                codec.decode(changed, b"place")
        with pytest.raises(CodecError, match="changed or moved"):
            codec.decode(whole, b"another place")

    def test_decode_refuses_another_key_with_the_same_id(self):
        with pytest.raises(CodecError, match="the key is another one"):
            Encryption({"old": NEW}, SECRET).decode(encryption("old").encode(b"", b""), b"")

    def test_encoded_name_depends_on_name_and_namespace_but_not_on_keys(self):
        codec = encryption()
        name = codec.encode_name(b"", b"swr")
        assert name == encryption("new").encode_name(b"", b"swr")
        assert name not in (codec.encode_name(b"", b"other"), codec.encode_name(b"x", b"swr"))
        assert codec.decode_name(name, b"swr") == b""
        for wrong in (b"", name[:-1], name + b"x", *flipped(name)):
            with pytest.raises(CodecError, match="not a name"):
                codec.decode_name(wrong, b"swr")

    @pytest.mark.parametrize(
        ("keys", "secret"),
        [
            ({}, SECRET), ([], SECRET), ({"": OLD}, SECRET), ({"ä": OLD}, SECRET), ({"x" * 65: OLD}, SECRET), ({1: OLD}, SECRET),
            ({"a": b"hidden"}, SECRET), ({"a": "hidden"}, SECRET), ({"a": None}, SECRET), ({"a": "hidden!"}, SECRET),
            ({"a": OLD}, "hidden"), ({"a": OLD}, None),
        ],
    )  # fmt: skip
    def test_unusable_keys_or_secret_are_refused_without_showing_them(self, keys, secret):
        with pytest.raises(ConfigurationError) as error:
            Encryption(keys, secret)
        assert "hidden" not in str(error.value)

    def test_repr_shows_only_key_ids(self):
        assert repr(encryption("new", "old")) == "Encryption(keys=new, old)"


def flipped(data: bytes):
    return [data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :] for at in range(len(data))]


class TestNames:
    def test_hidden_key_keeps_entry_and_lease_in_one_slot_and_can_be_shown_again(self):
        names = Names("swr", Packing("swr", None, encryption()))
        for key in ("k", "}x{", "", "일\ud800", "x" * 5000):
            entry, lease = names.entry_and_lease(key)
            assert lease == entry + b":l"
            assert (entry.count(b"{"), entry.count(b"}"), entry[-1:]) == (1, 1, b"}")
            assert len(entry) < 210
            assert names.shown(names.hidden(key)) == key
        with pytest.raises(ForeignName):
            names.shown(b"k")
        with pytest.raises(ForeignName):
            Names("swr").shown(names.hidden("k"))


TEXT = b"a leaderboard of aircraft " * 4000


class TestCompression:
    def test_long_values_are_compressed_only_if_they_shrink(self):
        packing = Packing("swr", 1000)
        noise = os.urandom(100_000)
        for value, is_shorter in (
            (TEXT, True), (TEXT[:1000], True), (TEXT[:990], False), (noise, False), (noise[:2000], False), (noise + TEXT[:9000], False)
        ):  # fmt: skip
            entry = stamp(value, LONG, 0.0, 5)
            frame = frames.encode("k", entry, ANY, packing)
            assert (len(frame) < len(value)) is is_shorter
            assert frames.decode("k", frame, ANY, packing) == frames.decode("k", frame, ANY) == entry
            assert frames.decode("k", frame, None).value in (len(value), len(value) + 2, len(value) + 3, len(value) + 5)

    def test_response_with_content_encoding_is_not_compressed(self):
        from swr.http.stored_response import RESPONSES, StoredResponse, Varies

        packing = Packing("swr", 1000)
        for headers, is_shorter in (
            ([], True),
            ([(b"Content-Encoding", b"identity")], True),
            ([(b"content-encoding", b"br")], False),
        ):
            entry = stamp(StoredResponse(200, headers, TEXT), LONG, 0.0, 5)
            frame = frames.encode("k", entry, RESPONSES, packing)
            assert (len(frame) < len(TEXT)) is is_shorter
            assert frames.decode("k", frame, RESPONSES).value.body == TEXT
        varies = stamp(Varies(("accept",), ("x" * 5000,)), LONG, 0.0, 5)
        assert len(frames.encode("k", varies, RESPONSES, packing)) < 1000

    def test_decompression_refuses_data_that_exceeds_the_length_in_the_frame(self):
        bomb = zlib.compress(bytes(100 * 2**20), 9)
        for length in (1, 5000, 64 * 2**20, 2**32 - 1):
            with pytest.raises(CodecError):
                decompressed(bomb, length)
        for wrong in (b"", b"x", b"no zlib", zlib.compress(TEXT)[:-1], zlib.compress(TEXT) + b"x"):
            with pytest.raises(CodecError):
                decompressed(wrong, len(TEXT))
        assert decompressed(zlib.compress(TEXT), len(TEXT)) == TEXT

    @pytest.mark.parametrize("above", [-1, True, "yes", 1.5])
    def test_invalid_compress_above_or_codec_is_refused(self, above):
        with pytest.raises(ConfigurationError, match="compress_above"):
            Cache(compress_above=above)
        with pytest.raises(ConfigurationError, match="codec="):
            Cache(codec=object())

    def test_encrypted_values_are_compressed_only_with_explicit_compress_above(self):
        assert Packing().compress_above == 16_384
        assert Packing(codec=encryption()).compress_above is None
        assert Packing(codec=encryption(), compress_above=0).compress_above == 0

    @pytest.mark.parametrize("change", [lambda bits: bits | 4, lambda bits: bits ^ 1, lambda bits: bits ^ 2])
    def test_decode_refuses_frame_whose_flags_do_not_match_its_content(self, change):
        frame = bytearray(frames.encode("k", stamp(TEXT, LONG, 0.0, 5), ANY, Packing("swr", 1000)))
        at = frames._CHECKED + 1
        frame[at] = change(frame[at])
        seed = 5 ^ int(frame[35:51])
        frame[51:59] = frames._checksum(bytes(frame[frames._CHECKED :]), seed).to_bytes(8, "big")
        with pytest.raises(CodecError):
            frames.decode("k", bytes(frame), ANY)


class Watching(ShowsNames):
    """Notes in which thread it is called with much."""

    def __init__(self) -> None:
        self.threads: set[str] = set()

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        self.note(data)
        return super().encode(data, context)

    def decode(self, data: bytes, context: bytes, /) -> bytes:
        self.note(data)
        return super().decode(data, context)

    def note(self, data: bytes) -> None:
        if len(data) > 1000:
            self.threads.add("loop" if threading.current_thread() is threading.main_thread() else "thread")


@pytest.mark.uncounted
@pytest.mark.parametrize("above", [None, 1000])
@pytest.mark.parametrize(
    "value",
    [os.urandom(300_000), [os.urandom(16).hex()] * 30_000, [{"n": n} for n in range(100_000)]],
    ids=["bytes", "texts", "rows"],
)
async def test_large_values_are_encoded_and_decoded_in_threads(server: Server, value, above):
    codec = Watching()
    async with Cache(server.url, codec=codec, compress_above=above, l1_max_bytes=0, timeout=10) as cache:
        await cache.set("k", value, LONG, returns=type(value))
        found = await cache.peek("k", returns=type(value))
        assert found is not None
        assert found.value == value
    assert codec.threads == {"thread"}


async def test_small_frame_with_large_value_is_decompressed_in_a_thread(server: Server, monkeypatch):
    threads = []
    monkeypatch.setattr(
        "swr.core.frames.decompressed", lambda *args: threads.append(threading.current_thread()) or decompressed(*args)
    )
    async with Cache(server.url, l1_max_bytes=0, timeout=10) as cache:
        await cache.set("k", bytes(1_000_000), LONG, returns=bytes)
        assert len(server.command("GET", "swr:{k}")) < 10_000
        assert (await cache.peek("k", returns=bytes)).value == bytes(1_000_000)
    assert threads
    assert threading.main_thread() not in threads


async def test_local_cache_holds_unencrypted_values(server: Server):
    async with AsyncExitStack() as stack:
        cache = await stack.enter_async_context(Cache(server.url, codec=encryption(), timeout=5))
        value = {"rows": [1, 2, 3]}
        assert (await cache.get_or_load("k", lambda: value, LONG)).value is value
        assert cache.engine.store.peek("k").value is value


def test_encode_error_contains_the_message_of_the_failing_codec():
    with pytest.raises(StoreUnavailable, match="no key server"):
        frames.encode("k", stamp(1, LONG, 0.0, 5), ANY, Packing("swr", None, Fails()))

"""Data in Redis that swr has not written, or never would: a miss, logged once, repaired."""

import asyncio

import pytest
from redis.asyncio import Redis

from swr import Cache, ConfigurationError, Policy, State
from swr.cli.main import main
from swr.middleware import Rule, SWRMiddleware
from swr.stores.base import Kind
from tests.servers import Server
from tests.test_redis import Counter, until
from tests.web import App, client

pytestmark = pytest.mark.anyio

LONG = Policy(600)
TAGGED = Policy(600, tags=("t",))
CHANNEL = "swr:0:messages"
STRANGER = "0123456789abcdef"


@pytest.fixture
def anyio_backend():
    return "asyncio"


def versions(server: Server) -> tuple[int, int]:
    """Return the newest tag version and the last clear, as they are in Redis."""
    text = server.command("GET", "swr:{!}h").split(b"\r\n")[1]
    assert len(text) == 32
    return int(text[:16]), int(text[16:])


class TestLeases:
    FOREIGN = (
        "l" + "0" * 15 + "1stranger",
        "l" + "9" * 16 + "stranger",
        "l" + "9" * 17,
        "l",
        "lease",
        "p" + "9" * 16 + "1",
        "p" + "0" * 16 + "9" * 400,
        "p" + "1" * 16,
        "p" + "1" * 16 + "1e9",
        "x",
        "",
    )

    @pytest.mark.parametrize("seconds", [None, 10**8, 60])
    @pytest.mark.parametrize("text", FOREIGN, ids=lambda text: text[:24])
    async def test_foreign_lease_value_is_replaced_without_blocking_readers(
        self, server: Server, caplog, text, seconds
    ):
        if seconds == 60 and text == self.FOREIGN[0]:
            pytest.skip("nothing tells it from a lease")
        async with Cache(server.url, timeout=2) as cache:
            for key in ("k", "k", "another"):
                server.command("SET", f"swr:{{{key}}}:l", text, *(("EX", str(seconds)) if seconds else ()))
                async with asyncio.timeout(30):
                    assert (await cache.get_or_load(key, Counter(), Policy(0.001))).value == 1
                    # It is not fresh any more.
                    await asyncio.sleep(0.01)
                assert server.command("EXISTS", f"swr:{{{key}}}:l") == b":0\r\n"
        assert caplog.text.count("swr replaced a lease of 'k'") == 1

    async def test_list_in_place_of_a_lease_is_replaced_without_blocking_readers(self, server: Server, caplog):
        async with Cache(server.url, timeout=2) as cache:
            server.command("RPUSH", "swr:{k}:l", "x")
            assert (await cache.get_or_load("k", Counter(), LONG)).value == 1
        assert caplog.text.count("swr replaced a lease of 'k'") == 1

    async def test_foreign_lease_without_expiry_never_brings_back_an_invalidated_value(self, server: Server):
        """If the version in the foreign lease is far too high, later versions still have their usual length."""
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            for text in self.FOREIGN:
                server.command("SET", "swr:{k}:l", text)
                await one.invalidate("k")
                assert len(server.command("GET", "swr:{k}").split(b"\r\n")[1]) == 17
                assert await one.engine.store.store.newest(["k"]) != {"k": 9999999999999999}
                value = (await one.get_or_load("k", load, LONG)).value
                assert value == load.runs
                assert (await other.get_or_load("k", load, LONG)).value == value
                await until(lambda: other.engine.store.peek("k") is not None)

    def test_lease_for_of_more_than_a_day_is_refused(self):
        with pytest.raises(ConfigurationError, match="more than a day"):
            Cache("redis://127.0.0.1:1", lease_for="2d")

    @pytest.mark.parametrize("text", FOREIGN)
    def test_inspect_exits_1_for_a_key_with_only_a_foreign_lease(self, server: Server, capsys, text):
        server.command("SET", "swr:{k}:l", text)
        assert main(["inspect", "k", "--redis", server.url]) == 1


class TestEntries:
    @pytest.mark.parametrize("version", ["9" * 16, "0" * 15 + "1", "1" + "0" * 15])
    async def test_entry_with_a_changed_version_is_a_miss(self, server: Server, caplog, version):
        redis = Redis.from_url(server.url)
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, LONG)
            frame = await redis.get("swr:{k}")
            await redis.set("swr:{k}", version.encode() + frame[16:])
            async with Cache(server.url, timeout=2) as other:
                for _ in range(2):
                    assert (await other.get_or_load("k", load, LONG)).value == 2
                await other.invalidate("k")
                assert len(await redis.get("swr:{k}")) == 17
                assert (await other.get_or_load("k", load, LONG)).value == 3
            await until(lambda: one.engine.store.peek("k") is None)
            assert (await one.get_or_load("k", load, LONG)).value == 3
        assert caplog.text.count("was passed over") == 1
        await redis.aclose()

    @pytest.mark.parametrize("tombstone", ["9" * 16 + "t", "9" * 17 + "t"])
    async def test_invalidation_marker_from_the_far_future_blocks_no_load(self, server: Server, tombstone):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            server.command("SET", "swr:{k}", tombstone)
            for cache in (one, other):
                assert (await cache.get_or_load("k", load, LONG)).value == 1
            server.command("SET", "swr:{k}", tombstone)
            await one.invalidate("k")
            assert (await one.get_or_load("k", load, LONG)).value == 2


SUMMARIES = (
    "",
    "garbage",
    "-1",
    "9" * 15,
    "9" * 16,
    "9" * 32,
    "0" * 32,
    "9" * 5000,
    "1" * 16 + "x" * 16,
    "1" * 31,
)


class TestTagVersions:
    @pytest.mark.uncounted
    @pytest.mark.parametrize("text", SUMMARIES, ids=lambda text: text[:20] + str(len(text)))
    async def test_foreign_newest_tag_version_outdates_everything_and_invalidations_still_work(
        self, server: Server, caplog, text
    ):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, l1_max_bytes=0, timeout=2) as other:
            await one.get_or_load("k", load, TAGGED)
            await one.invalidate_tag("t")
            server.command("SET", "swr:{!}h", text)
            before = load.runs
            assert (await other.get_or_load("k", load, TAGGED)).value == before + 1
            newest, cleared = versions(server)
            assert newest == cleared < 9 * 10**15
            for turn in range(3):
                await one.invalidate_tag("t")
                for cache in (one, other):
                    assert (await cache.get_or_load("k", load, TAGGED)).value == before + turn + 2
            async with Cache(server.url, timeout=2) as late:
                assert (await late.get_or_load("k", load, TAGGED)).value == before + 4
                await one.invalidate_tag("t")
                await until(lambda: late.engine.store.peek("k") is None)
        assert caplog.text.count("has lost tag versions") <= 2

    @pytest.mark.uncounted
    @pytest.mark.parametrize("text", SUMMARIES, ids=lambda text: text[:20] + str(len(text)))
    async def test_invalidation_outdates_everything_if_the_newest_tag_version_is_foreign(self, server: Server, text):
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, TAGGED)
            await one.invalidate_tag("t")
            server.command("SET", "swr:{!}h", text)
            await one.invalidate_tag("other")
        async with Cache(server.url, timeout=2) as late:
            assert (await late.get_or_load("k", load, TAGGED)).value == 2

    @pytest.mark.parametrize(
        "command",
        [
            ("ZADD", "swr:{!}b", "9999999999999999", "tt"),
            ("ZADD", "swr:{!}b", "+inf", "tother"),
            ("ZADD", "swr:{!}b", "9999999999999999", "*"),
            ("ZADD", "swr:{!}b", "1", "*"),
            ("ZREM", "swr:{!}b", "*"),
            ("SET", "swr:{!}b", "x"),
            ("LPUSH", "swr:{!}h", "x"),
            ("RPUSH", "swr:{!}b", "x"),
        ],
        ids=" ".join,
    )
    async def test_foreign_tag_versions_outdate_everything(self, server: Server, command):
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, TAGGED)
            await one.invalidate_tag("t")
        if command[0] in ("SET", "LPUSH", "RPUSH"):
            server.command("DEL", command[1])
        server.command(*command)
        async with Cache(server.url, timeout=2) as late, Cache(server.url, timeout=2) as last:
            for cache in (late, last):
                assert (await cache.get_or_load("k", load, TAGGED)).value == 2
            for value in (3, 4):
                await late.invalidate_tag("t")
                await until(lambda: last.engine.store.peek("k") is None)
                assert [(await cache.get_or_load("k", load, TAGGED)).value for cache in (late, last)] == [value] * 2

    async def test_foreign_members_among_tag_versions_are_ignored(self, server: Server):
        redis = Redis.from_url(server.url)
        load = Counter()
        async with Cache(server.url, timeout=2) as one:
            await one.get_or_load("k", load, TAGGED)
            await one.invalidate_tag("t")
            _, cleared = versions(server)
            await redis.zadd("swr:{!}b", {b"\xff\xfe": cleared + 1, b"": cleared + 1, b"t": cleared + 1, b"t\xff": 3})
            async with Cache(server.url, timeout=2) as late:
                assert (await late.get_or_load("k", load, TAGGED)).value == 2
                assert late.engine.store.is_reachable
        await redis.aclose()


class TestNotifications:
    async def test_forged_notification_cannot_report_redis_unreachable_or_reachable(self, server: Server, caplog):
        told = []
        async with Cache(server.url, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), LONG)
            cache.engine.notifications.subscribe(told.append)
            for kind in Kind:
                if kind.name in ("REACHABLE", "UNREACHABLE", "REPEATED"):
                    server.command("PUBLISH", CHANNEL, f"{kind.value}{'0' * 16}{STRANGER}forged")
            server.command("PUBLISH", CHANNEL, f"{Kind.QUEUED.value}{'0' * 16}{STRANGER}many")
            server.command("PUBLISH", CHANNEL, f"i{'0' * 16}{STRANGER}last")
            await until(lambda: told)
            assert [(each.kind, each.name) for each in told] == [(Kind.INVALIDATED, "last")]
            assert cache.engine.is_store_up
            assert cache.engine.store.is_reachable
            assert (await cache.get_or_load("k", Counter(), LONG)).state is State.FRESH
        assert caplog.text.count("that is not swr's was ignored") == 1

    @pytest.mark.parametrize("name", ["*", "tt"])
    @pytest.mark.parametrize("version", ["9" * 16, "2" + "0" * 15])
    async def test_forged_tag_version_from_the_far_future_is_ignored(self, server: Server, caplog, name, version):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            for cache in (one, other):
                await cache.get_or_load("k", load, TAGGED)
            server.command("PUBLISH", CHANNEL, f"b{version}{STRANGER}{0:016d}{name}")
            await until(lambda: "was ignored" in caplog.text)
            for value in (2, 3):
                await one.invalidate_tag("t")
                await until(lambda: other.engine.store.peek("k") is None)
                assert [(await cache.get_or_load("k", load, TAGGED)).value for cache in (one, other)] == [value] * 2
        assert max(versions(server)) < 19 * 10**14

    @pytest.mark.parametrize("name", ["", "x", "!", "t", "t\udcff"])
    async def test_notification_with_an_invalid_tag_name_is_ignored(self, server: Server, caplog, name):
        async with Cache(server.url, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), TAGGED)
            now = cache.engine.store.tag_versions.newest + 1
            redis = Redis.from_url(server.url)
            await redis.publish(CHANNEL, f"b{now:016d}{STRANGER}{0:016d}{name}".encode("utf-8", "surrogateescape"))
            await redis.aclose()
            await until(lambda: "was ignored" in caplog.text)
            assert (await cache.get_or_load("k", Counter(), TAGGED)).state is State.FRESH

    async def test_forged_tag_version_less_than_a_day_ahead_only_causes_new_loads(self, server: Server):
        load = Counter()
        async with Cache(server.url, timeout=2) as one, Cache(server.url, timeout=2) as other:
            for cache in (one, other):
                await cache.get_or_load("k", load, TAGGED)
            ahead = one.engine.store.tag_versions.newest + 10**9
            server.command("PUBLISH", CHANNEL, f"b{ahead:016d}{STRANGER}{0:016d}tt")
            await until(lambda: versions(server)[1] > ahead)
            for _ in range(2):
                await one.invalidate_tag("t")
                await until(lambda: other.engine.store.peek("k") is None)
                value = (await one.get_or_load("k", load, TAGGED)).value
                assert value == load.runs
                assert (await other.get_or_load("k", load, TAGGED)).value == value


INTERNAL = ("*", "!", "t", "b", "h", "t*", "\0")


class TestReservedTagNames:
    """Names that swr uses internally are ordinary names for tags of users."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize("tag", INTERNAL)
    async def test_tag_with_a_reserved_name_invalidates_only_its_own_entries(
        self, place_url: str | None, tag, server: Server
    ):
        load = Counter()

        async with Cache(place_url and server.url) as one, Cache(place_url and server.url) as other:
            other = other if place_url else one

            @one.cached("group:{group}", fresh_for=600, tags=("{group}",))
            async def group(group: str) -> int:
                return await load()

            for name in ("a", tag):
                await group(name)
            await other.get_or_load("untagged", load, LONG)
            await other.invalidate_tag(tag)
            await until(lambda: one.engine.store.peek(group.key(tag)) is None)
            assert await group("a") == 1
            assert (await one.get_or_load("untagged", load, LONG)).value == 3
            assert await group(tag) == 4

    @pytest.mark.parametrize("tag", INTERNAL)
    async def test_tag_with_a_reserved_name_works_the_same_while_redis_is_unreachable(self, tag):
        load = Counter()
        async with Cache("redis://127.0.0.1:1/0") as cache:
            await cache.get_or_load("a", load, TAGGED)
            await cache.get_or_load("b", load, Policy(600, tags=(tag,)))
            await cache.invalidate_tag(tag)
            assert (await cache.get_or_load("a", load, TAGGED)).value == (3 if tag == "t" else 1)
            assert (await cache.get_or_load("b", load, Policy(600, tags=(tag,)))).value > 2

    @pytest.mark.parametrize("tag", ["*", "!"])
    def test_invalidate_command_treats_a_reserved_name_as_a_tag(self, server: Server, capsys, tag):
        load = Counter()

        async def read() -> int:
            async with Cache(server.url, timeout=5) as cache:
                return (await cache.get_or_load("k", load, TAGGED)).value

        assert asyncio.run(read()) == 1
        assert main(["invalidate", "--tag", tag, "--redis", server.url]) == 0
        assert asyncio.run(read()) == 1

    async def test_post_to_a_rule_whose_tag_is_an_asterisk_does_not_clear_the_cache(self, server: Server):
        app = App()
        async with Cache(server.url, timeout=2) as cache:
            await cache.get_or_load("k", Counter(), LONG)
            wrapped = SWRMiddleware(app, cache=cache, rules=[Rule("/{group}", fresh_for=600, tags=("{group}",))])
            async with client(wrapped) as http:
                await http.get("/*")
                await http.post("/*")
            assert (await cache.get_or_load("k", Counter(), LONG)).state is State.FRESH

"""What clients and apps make swr hold and store has bounds: bodies in many pieces, joined parts, and variants."""

import random

import anyio
import pytest
from redis.asyncio import Redis

from swr import Cache
from swr.errors import ConfigurationError
from swr.http.stored_response import RESPONSES
from swr.middleware import SWRMiddleware
from swr.middleware.pieces import LONGEST, add_piece
from swr.middleware.variants import Variants
from tests.fleet import gather
from tests.web import MAX_AGE, App, Client, client, http_scope

pytestmark = pytest.mark.anyio

# Nothing of it can be compressed: what is written is as long.
WHOLE = random.Random(0).randbytes(2**22)
KEY = "GET http://test\n/x?"
FRESH = [(b"cache-control", b"max-age=60"), (b"vary", b"accept-language")]


@pytest.fixture
def anyio_backend():
    return "asyncio"


async def parts(scope, receive, send):
    """Answers each range of a resource of 4 MiB."""
    asked = dict(scope["headers"])[b"range"].removeprefix(b"bytes=").split(b"-")
    first, last = int(asked[0]), int(asked[1])
    fields = [
        (b"cache-control", b"max-age=60"),
        (b"etag", b'"a"'),
        (b"content-range", b"bytes %d-%d/%d" % (first, last, len(WHOLE))),
    ]
    await send({"type": "http.response.start", "status": 206, "headers": fields})
    await send({"type": "http.response.body", "body": WHOLE[first : last + 1]})


class Written:
    """How many bytes a server has received."""

    def __init__(self, server):
        self._redis = Redis.from_url(server.url)

    async def so_far(self):
        return (await self._redis.info("stats"))["total_net_input_bytes"]

    async def largest(self):
        sizes = [await self._redis.strlen(key) for key in await self._redis.keys("*{GET*}")]
        return max(sizes, default=0)

    async def aclose(self):
        await self._redis.aclose()


@pytest.fixture
async def written(server):
    written = Written(server)
    yield written
    await written.aclose()


async def whole_entries(server):
    """Return how many keys of responses hold more than a tombstone."""
    redis = Redis.from_url(server.url)
    sizes = [await redis.strlen(key) for key in await redis.keys("swr:{GET*}")]
    await redis.aclose()
    return sum(size > 17 for size in sizes)


async def ranged(http, first, last):
    answer = await http.get("/x", headers={"range": f"bytes={first}-{last}"})
    assert (answer.status_code, answer.content) == (206, WHOLE[first : last + 1])
    return answer.headers["cache-status"].partition("; ttl")[0]


class TestJoinedParts:
    """A video player seeks in a file behind the cache, and a client requests it byte by byte."""

    async def test_joined_parts_never_exceed_the_size_limit_of_a_response(self, server, written, clock):
        async with Cache(server.url, timeout=5, clock=clock) as cache, client(SWRMiddleware(parts, cache)) as http:
            for first in range(0, 3_000_000, 300_000):
                await ranged(http, first, first + 299_999)
                assert await written.largest() < 2**20 + 1000

    async def test_part_of_one_byte_does_not_rewrite_large_stored_part(self, server, written, clock):
        async with Cache(server.url, timeout=5, clock=clock) as cache, client(SWRMiddleware(parts, cache)) as http:
            await ranged(http, 0, 899_999)
            before = await written.so_far()
            for first in range(900_000, 900_010):
                await ranged(http, first, first)
            assert await written.so_far() - before < 300_000
            # The stored part is still there.
            assert await ranged(http, 5, 899_000) == "swr; hit"
            # As much again is worth it.
            await ranged(http, 900_000, 1_040_000)
            assert await ranged(http, 5, 1_039_000) == "swr; hit"

    async def test_small_part_replaces_expired_large_part(self, server, written, clock):
        async with Cache(server.url, timeout=5, clock=clock) as cache, client(SWRMiddleware(parts, cache)) as http:
            await ranged(http, 0, 899_999)
            clock.advance(61)
            before = await written.so_far()
            await ranged(http, 7, 7)
            assert await written.so_far() - before < 300_000
            assert await ranged(http, 7, 7) == "swr; hit"

    async def test_small_parts_are_joined_and_answer_their_whole_range(self, clock):
        async with Cache(clock=clock) as cache, client(SWRMiddleware(parts, cache)) as http:
            for first in range(30):
                await ranged(http, first, first)
            assert await ranged(http, 0, 29) == "swr; hit"

    async def test_readers_waiting_for_a_part_that_is_not_stored_are_answered(self, clock):
        gate, begun = anyio.Event(), anyio.Event()

        async def app(scope, receive, send):
            begun.set()
            await gate.wait()
            await parts(scope, receive, send)

        async with Cache(clock=clock) as cache:
            async with client(SWRMiddleware(parts, cache)) as http:
                await ranged(http, 0, 899_999)
            async with client(SWRMiddleware(app, cache)) as http:

                async def open_gate():
                    await begun.wait()
                    gate.set()

                answers = await gather(*(ranged(http, 900_000, 900_000) for _ in range(5)), open_gate())
        assert all(str(answer).startswith("swr; fwd=") for answer in answers[:5])


class TestVariants:
    """A page varies by language, and a crawler sends a new language each time."""

    async def ask(self, http, language):
        answer = await http.get("/x", headers={"accept-language": language})
        return answer.headers["cache-status"].partition("; ttl")[0]

    async def test_variants_in_memory_never_exceed_max_variants(self, clock):
        async with Cache(clock=clock) as cache, client(SWRMiddleware(App(FRESH), cache, max_variants=5)) as http:
            for number in range(40):
                await self.ask(http, f"x-{number}")
            assert sum("vary:" in key for key in cache.local.slots) == 5

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**26])
    async def test_variants_in_redis_never_exceed_max_variants(self, server, clock, l1_max_bytes):
        cache = Cache(server.url, timeout=5, clock=clock, l1_max_bytes=l1_max_bytes)
        async with cache, client(SWRMiddleware(App(FRESH), cache, max_variants=5)) as http:
            for number in range(20):
                await self.ask(http, f"x-{number}")
            await gather(*(self.ask(http, f"y-{number}") for number in range(20)))
            listed = (await cache.engine.store.read(KEY, RESPONSES)).value.variants
            stored = [await cache.engine.store.read(KEY + variant, RESPONSES) for variant in listed]
        assert len(listed) == 5
        assert None not in stored
        assert await whole_entries(server) == 6

    @pytest.mark.uncounted
    @pytest.mark.parametrize("is_used", [True, False])
    @pytest.mark.parametrize("times", [1, 3])
    async def test_hundred_other_values_do_not_evict_the_first_variant(self, clock, is_used, times):
        async with Cache(clock=clock) as cache, client(SWRMiddleware(App(FRESH), cache, max_variants=8)) as http:
            for _ in range(2 if is_used else 1):
                await self.ask(http, "en")
            for number in range(100):
                for _ in range(times if is_used else 1):
                    await self.ask(http, f"x-{number}")
                if times == 3 and number % 3 == 0:
                    assert await self.ask(http, "en") == "swr; hit"
            assert await self.ask(http, "en") == "swr; hit"

    @pytest.mark.uncounted
    async def test_variants_used_twice_are_kept_among_many_unused_ones(self, clock):
        async with Cache(clock=clock) as cache, client(SWRMiddleware(App(FRESH), cache, max_variants=8)) as http:
            for number in range(100):
                await self.ask(http, f"x-{number}")
            for language in ("de", "fr", "es"):
                assert [await self.ask(http, language) for _ in range(2)] == ["swr; fwd=vary-miss; stored", "swr; hit"]
            for number in range(100):
                await self.ask(http, f"y-{number}")
            assert [await self.ask(http, language) for language in ("de", "fr", "es")] == ["swr; hit"] * 3

    @pytest.mark.uncounted
    async def test_new_variant_of_4_kb_sends_less_than_40_kb_to_redis(self, server, written, clock):
        app = App(FRESH, body=b"x" * 4096)
        async with Cache(server.url, timeout=5, clock=clock) as cache, client(SWRMiddleware(app, cache)) as http:
            for number in range(64):
                await self.ask(http, f"{number}{'x' * 4000}")
            sent = []
            for letter in "abcde":
                before = await written.so_far()
                await self.ask(http, letter * 4000)
                sent.append(await written.so_far() - before)
            # With the scripts, which are sent each time. A heartbeat may come between.
            assert min(sent) < 40_000

    async def test_variants_by_sixty_fields_have_keys_below_100_characters(self, clock):
        names = b",".join(b"x-field-number-%d" % number for number in range(60))
        app = App([(b"cache-control", b"max-age=60"), (b"vary", names)])
        async with Cache(clock=clock) as cache, client(SWRMiddleware(app, cache)) as http:
            for value in ("a", "b", "a", "b"):
                await http.get("/x", headers={"x-field-number-7": value})
            assert app.runs == 2
            assert max(map(len, cache.local.slots)) < 100

    @pytest.mark.parametrize(
        ("one", "other"),
        [
            ({"a": "1", "b": ""}, {"a": "1"}),
            ({"a": "1\nb: 2"}, {"a": "1", "b": "2"}),
            ({"a": "1", "b": "%0A"}, {"a": "1", "b": "\n"}),
            ({"a": "1"}, {"b": "1"}),
        ],
    )
    async def test_requests_with_similar_fields_get_different_variants(self, clock, one, other):
        app = App([(b"cache-control", b"max-age=60"), (b"vary", b"a, b")])
        async with Cache(clock=clock) as cache:
            middleware = SWRMiddleware(app, cache)

            async def ask(fields):
                sent = []

                async def send(message):
                    sent.append(message)

                async def receive():
                    return {"type": "http.request", "body": b"", "more_body": False}

                headers = [(b"host", b"test"), *((name.encode(), value.encode()) for name, value in fields.items())]
                scope = {"type": "http", "method": "GET", "path": "/x", "query_string": b"", "headers": headers}
                await middleware(scope, receive, send)
                return sent[1]["body"]

            assert [await ask(fields) for fields in (one, other, one, other)] == [b"1", b"2", b"1", b"2"]

    async def test_variants_stored_by_two_processes_at_once_are_all_listed(self, server, clock):
        async with Cache(server.url, timeout=5, clock=clock) as one, Cache(server.url, timeout=5, clock=clock) as other:
            apps = [client(SWRMiddleware(App(FRESH), cache, max_variants=100)) for cache in (one, other)]
            async with apps[0] as left, apps[1] as right:
                await self.ask(left, "first")
                calls = [self.ask(http, f"{name}-{number}") for number in range(20) for name, http in
                         (("l", left), ("r", right))]  # fmt: skip
                await gather(*calls)
                listed = await one.engine.store.read(KEY, RESPONSES)
        # What is stored is listed: the rest was dropped again.
        assert await whole_entries(server) == len(listed.value.variants) + 1

    def test_oldest_use_is_forgotten_after_ten_thousand_uses(self):
        variants = Variants(2)
        for number in range(10_001):
            variants.use(f"u{number}")
        # The first one is forgotten, and counts as unused.
        assert variants.make_room("u", ("0", "1")) == (("1",), ("0",))
        assert variants.make_room("u", ("2", "1")) == (("2",), ("1",))
        assert variants.make_room("u", ("x", "y", "z")) == (("x",), ("y", "z"))
        assert variants.make_room("u", ("x",)) == (("x",), ())

    @pytest.mark.parametrize("number", [0, 10_001, "4"])
    def test_invalid_max_variants_is_rejected(self, number):
        with pytest.raises(ConfigurationError, match="max_variants"):
            SWRMiddleware(App(), Cache(), max_variants=number)


class SlowClient(Client):
    """A client that takes nothing until an event is set."""

    def __init__(self, taking):
        super().__init__()
        self.taking = taking

    async def send(self, message):
        await self.taking.wait()
        await super().send(message)


class TestBodyInManyPieces:
    """An endpoint streams a CSV file row by row, or text character by character."""

    async def test_body_in_30_000_pieces_is_held_in_few_messages_for_slow_client(self):
        rows = [b"%d,\n" % number for number in range(30_000)]
        taking, ended = anyio.Event(), anyio.Event()

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            for row in rows:
                await send({"type": "http.response.body", "body": row, "more_body": True})
            await send({"type": "http.response.body", "body": b""})
            ended.set()

        one = SlowClient(taking)
        async with Cache() as cache:
            middleware = SWRMiddleware(app, cache)
            async with anyio.create_task_group() as group:
                group.start_soon(middleware, http_scope("/x"), one.receive, one.send)
                await ended.wait()
                taking.set()
            pieces = [message["body"] for message in one.sent[1:]]
            assert b"".join(pieces) == b"".join(rows)
            assert len(pieces) < 30
            assert {type(piece) for piece in pieces} == {bytes}
            assert [message["more_body"] for message in one.sent[1:-1]] == [True] * (len(pieces) - 1)
            assert not one.sent[-1].get("more_body", False)
            async with client(middleware) as http:
                assert (await http.get("/x")).content == b"".join(rows)

    async def test_empty_pieces_of_body_are_held_in_one_message(self):
        taking, ended = anyio.Event(), anyio.Event()

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            for _ in range(1_000):
                await send({"type": "http.response.body", "body": b"", "more_body": True})
            await send({"type": "http.response.body", "body": b"the end"})
            ended.set()

        one = SlowClient(taking)
        async with Cache() as cache, anyio.create_task_group() as group:
            group.start_soon(SWRMiddleware(app, cache), http_scope("/x"), one.receive, one.send)
            await ended.wait()
            taking.set()
        assert [message["body"] for message in one.sent[1:]] == [b"the end"]

    def test_small_pieces_are_joined_into_pieces_of_maximum_length(self):
        pieces = []
        for _ in range(LONGEST):
            add_piece(pieces, b"ab")
        assert [len(piece) for piece in pieces] == [LONGEST, LONGEST]
        add_piece(pieces, b"c" * LONGEST)
        add_piece(pieces, b"d")
        assert [len(piece) for piece in pieces] == [LONGEST, LONGEST, LONGEST, 1]

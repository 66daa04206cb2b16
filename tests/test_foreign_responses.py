"""What somebody else has written to Redis is a miss, logged once, and the next load repairs it."""

import math

import msgspec
import pytest
from redis.asyncio import Redis

from swr import Cache, Policy
from swr.core import frames
from swr.core.codec import Codec
from swr.entry import stamp
from swr.errors import CodecError
from swr.http.caching import Verdict
from swr.http.stored_response import RESPONSES, StoredResponse, Varies, as_stored, check
from swr.middleware import SWRMiddleware
from swr.stores.redis.names import Names
from tests.web import MAX_AGE, App, Client, client, http_scope

pytestmark = pytest.mark.anyio

KEY = "GET http://test\n/x?"
# Writes what swr would not store.
UNCHECKED = Codec(StoredResponse | Varies)
GOOD = StoredResponse(200, [(b"cache-control", b"max-age=60"), (b"content-length", b"7")], b"foreign", own_terms=True)


@pytest.fixture
def anyio_backend():
    return "asyncio"


def response(**changes):
    return msgspec.structs.replace(GOOD, **changes)


FOREIGN = {
    "status 99999": response(status=99999),
    "status 100": response(status=100),
    "status 304": response(status=304),
    "negative status": response(status=-200),
    "a line break in a value": response(headers=[(b"x", b"a\r\nset-cookie: a=1")]),
    "a line feed in a value": response(headers=[(b"x", b"a\nb")]),
    "NUL in a value": response(headers=[(b"x", b"a\0b")]),
    "a line break in a name": response(headers=[(b"x\r\ny", b"a")]),
    "a space in a name": response(headers=[(b"x y", b"a")]),
    "empty name": response(headers=[(b"", b"a")]),
    "a name that is not ASCII": response(headers=[(b"\xe4", b"a")]),
    "many fields": response(headers=[(b"a", b"b")] * 1001),
    "another length": response(headers=[(b"content-length", b"8")]),
    "unreadable length": response(headers=[(b"content-length", b"x")]),
    "two lengths": response(headers=[(b"content-length", b"7"), (b"content-length", b"8")]),
    "a transfer coding": response(headers=[(b"Transfer-Encoding", b"chunked")]),
    "negative age": response(initial_age=-1),
    "great age": response(initial_age=2**62),
    "NaN": response(stale_if_error=math.nan),
    "infinity": response(stale_if_error=math.inf),
    "negative overdue": response(overdue=-1),
    "negative first": response(first=-1, complete=100),
    "past the end": response(first=94, complete=100),
    "first without complete": response(first=1),
    "negative complete": response(complete=-1),
    "invalid names": response(names=("a\nb",)),
    "non-ASCII names": response(names=("\u1234",)),
    "invalid ignored names": response(ignores=("\x7f",)),
    "many names": response(names=tuple(f"x-{number}" for number in range(65))),
    "varying by a non-ASCII name": Varies(("\u1234",), ()),
    "varying by a line break": Varies(("a\r\nb",), ()),
    "varying by 10,000 names": Varies(tuple(f"x{number}" for number in range(10_000)), ()),
    "a million variants": Varies(("accept",), ("\nvary: x",) * 1_000_000),
}
TIMES = ("created_at", "fresh_until", "stale_until", "error_until", "keep_until", "took")


async def stored_as(server, clock, caplog, frame):
    """Put a frame where the response to GET /x lies, and return what three requests of each of two processes get."""
    redis = Redis.from_url(server.url)
    await redis.set(Names("swr").entry(KEY), frame)
    texts = []
    for _ in range(2):
        async with (
            Cache(server.url, timeout=5, clock=clock) as cache,
            Cache(server.url, timeout=5, clock=clock, l1_max_bytes=0) as bare,
        ):
            for one in (cache, bare):
                async with client(SWRMiddleware(App(MAX_AGE, body=b"ours"), one)) as http:
                    texts += [(await http.get("/x")).text for _ in range(3)]
    await redis.aclose()
    return texts, [record.message for record in caplog.records if "passed over" in record.message]


def frame_of(value, clock, **changes):
    entry = msgspec.structs.replace(stamp(value, Policy(3600, 3600), clock.now, 17, 10**16), **changes)
    return frames.encode(KEY, entry, UNCHECKED)


async def test_valid_stored_response_is_served_without_log(server, clock, caplog):
    async with Cache(server.url, timeout=5, clock=clock) as cache:
        await cache.engine.ready()
        newest = cache.engine.store.tag_versions.newest
    texts, logged = await stored_as(server, clock, caplog, frame_of(GOOD, clock, tag_version=newest))
    assert (texts, logged) == (["foreign"] * 12, [])


@pytest.mark.parametrize("value", FOREIGN.values(), ids=FOREIGN)
async def test_invalid_stored_response_is_a_miss_and_logged_once(server, clock, caplog, value):
    texts, logged = await stored_as(server, clock, caplog, frame_of(value, clock))
    assert texts == ["ours"] * 12
    assert len(logged) == 1
    assert "it is not a response that swr has stored" in logged[0]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf, 1e300, -1e13])
@pytest.mark.parametrize("time", TIMES)
async def test_entry_with_invalid_time_is_a_miss_and_logged_once(server, clock, caplog, time, value):
    texts, logged = await stored_as(server, clock, caplog, frame_of(GOOD, clock, **{time: value}))
    assert texts == ["ours"] * 12
    assert len(logged) == 1
    assert "Expected `float`" in logged[0]


@pytest.mark.parametrize("version", [b"+000000000000017", b" 00000000000017 ", b"00000000000_0017"])
async def test_entry_with_malformed_version_is_a_miss_and_logged_once(server, clock, caplog, version):
    texts, logged = await stored_as(server, clock, caplog, version + frame_of(GOOD, clock)[16:])
    assert texts == ["ours"] * 12
    assert len(logged) == 1
    assert "its version is" in logged[0]


async def test_entry_with_version_near_the_maximum_is_a_miss_and_logged_once(server, clock, caplog):
    texts, logged = await stored_as(server, clock, caplog, frame_of(GOOD, clock, version=9_999_999_999_999_998))
    assert texts == ["ours"] * 12
    assert len(logged) == 1


async def test_missing_variants_named_by_a_stored_varies_are_loaded(server, clock, caplog):
    value = Varies(("accept", "x-%y {z}"), ("\nvary: x", "", "\r\n"))
    texts, _ = await stored_as(server, clock, caplog, frame_of(value, clock))
    assert texts == ["ours"] * 12


@pytest.mark.parametrize("headers", [[(b"x", b"a\r\nb")], [(b"x y", b"a")], [(b"x", b"\x01")], [(b"", b"")]])
async def test_app_response_with_malformed_field_is_not_stored(headers):
    app = App([*MAX_AGE, *headers])
    async with Cache() as cache:
        middleware = SWRMiddleware(app, cache)
        for run in (1, 2):
            # Clients refuse to read some of these.
            one = Client()
            await middleware(http_scope("/x"), one.receive, one.send)
            assert b'detail="malformed field"' in dict(one.sent[0]["headers"])[b"cache-status"]
            assert app.runs == run


def test_responses_that_swr_stores_pass_the_check():
    headers = [(b"X-Y", b"\xe4 \t,"), (b"content-length", b"3"), (b"content-length", b"3")]
    check(as_stored(200, headers, b"abc", Verdict(Policy(1), vary=("accept",), ignores=("x",))))
    check(response(status=206, first=93, complete=100))
    check(Varies(("accept",), ("a",) * 10_000))
    assert RESPONSES.fingerprint == UNCHECKED.fingerprint


def test_codec_check_runs_on_decode_only():
    def refuse(value):
        raise CodecError(f"{value} was read")

    codec = Codec(int, refuse)
    with pytest.raises(CodecError, match="1 was read"):
        codec.decode_value(codec.encode_value(1))

"""Clients choose URLs and fields, up to what the server takes: what swr remembers of them stays small."""

import gc
import tracemalloc

import pytest

from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from tests.web import App, client

pytestmark = pytest.mark.anyio

LONG = 60_000
REQUESTS = 24
FRESH = [(b"cache-control", b"max-age=60")]


@pytest.fixture
def anyio_backend():
    return "asyncio"


def scope_of(method, query=b"", fields=()):
    return {
        "type": "http",
        "http_version": "1.1",
        "method": method,
        "scheme": "http",
        "path": "/x",
        "raw_path": b"/x",
        "root_path": "",
        "query_string": query,
        "headers": [(b"host", b"test"), *fields],
    }


async def receive():
    return {"type": "http.request", "body": b"", "more_body": False}


async def send(message):
    pass


@pytest.mark.parametrize(
    ("method", "fields"),
    [
        ("GET", [(b"cache-control", b"no-store")]),
        ("GET", [*FRESH, (b"vary", b"accept")]),
        ("GET", FRESH),
        ("POST", []),
    ],
)
@pytest.mark.parametrize("place", ["query", "host", "origin"])
async def test_long_urls_and_fields_do_not_stay_in_memory(method, fields, place):
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": fields})
        await send({"type": "http.response.body", "body": b"x"})

    async with Cache() as cache:
        middleware = SWRMiddleware(app, cache)
        await middleware(scope_of(method), receive, send)
        tracemalloc.start()
        try:
            for number in range(REQUESTS):
                text = b"%d=" % number + b"q" * LONG
                query = text if place == "query" else b""
                # The third finds the answer that the second has made ready.
                for _ in range(3):
                    scope = scope_of(method, query)
                    if place == "host":
                        scope["headers"] = [(b"host", text)]
                    elif place == "origin":
                        scope["headers"].append((b"origin", text))
                    await middleware(scope, receive, send)
            del scope, text, query
            gc.collect()
            used = tracemalloc.get_traced_memory()[0]
        finally:
            tracemalloc.stop()
    assert used < REQUESTS * LONG / 4


async def test_long_urls_that_differ_at_the_end_have_their_own_responses():
    app = App(FRESH)
    urls = [f"/x?{'q' * LONG}{end}" for end in "ab"]
    async with Cache() as cache, client(SWRMiddleware(app, cache)) as http:
        first = [(await http.get(url)).text for url in urls]
        assert [(await http.get(url)).text for url in urls] == first
        assert len(set(first)) == app.runs == 2


@pytest.mark.uncounted
@pytest.mark.parametrize("how", ["invalidate_url", "POST"])
async def test_invalidating_a_long_url_keeps_another_that_differs_at_the_end(how):
    app = App(FRESH)
    url, other = (f"/x?{'q' * LONG}{end}" for end in "ab")
    async with Cache() as cache, client(SWRMiddleware(app, cache)) as http:
        before, kept = (await http.get(url)).text, (await http.get(other)).text
        if how == "POST":
            await http.post(url)
        else:
            await cache.invalidate_url(url)
        assert (await http.get(url)).text != before
        assert (await http.get(other)).text == kept


async def test_range_field_of_many_kilobytes_gets_a_200():
    app = App(FRESH)
    async with Cache() as cache, client(SWRMiddleware(app, cache)) as http:
        answer = await http.get("/x", headers={"Range": "bytes=0-1," + "2-3," * 5000 + "4-5"})
        assert answer.status_code == 200


async def test_response_with_thousands_of_locations_invalidates_only_the_first_ones():
    async def app(scope, receive, send):
        fields = [(b"location", b"/y%d" % number) for number in range(5000)] if scope["method"] == "POST" else FRESH
        await send({"type": "http.response.start", "status": 201, "headers": fields})
        await send({"type": "http.response.body", "body": b""})

    async with Cache() as cache, client(SWRMiddleware(app, cache)) as http:
        await http.get("/y0")
        await http.post("/x")
        assert (await http.get("/y0")).headers["swr-state"] == "missing"
        assert len(cache.engine.store.tag_versions.since(0)) < 20


@pytest.mark.parametrize("piece", ["&", "utm_a=&", "a&"])
async def test_long_query_of_an_unsafe_request_is_not_parsed_and_invalidates_its_path(piece, monkeypatch):
    app = App(FRESH)
    rule = Rule("/x", drop_params=("utm_*",))
    read = []

    def keyed_query(query):
        read.append(len(query))
        return Rule.keyed_query(rule, query)

    monkeypatch.setattr(rule, "keyed_query", keyed_query)
    async with Cache() as cache, client(SWRMiddleware(app, cache, [rule])) as http:
        before, kept = (await http.get("/x?b=1")).text, (await http.get("/y?b=1")).text
        assert (await http.get("/x?b=1&utm_a=2")).text == before
        # Such a request is too long for httpx.
        scope = scope_of("POST", (piece * 2**18).encode() + b"b=1")
        await SWRMiddleware(app, cache, [rule])(scope, receive, send)
        assert (await http.get("/x?b=1")).text != before
        assert (await http.get("/y?b=1")).text == kept
    assert max(read) < 2**18


async def test_unsafe_request_with_many_fields_invalidates_only_the_url_of_its_query():
    app = App(FRESH)
    rule = Rule("/x", drop_params=("utm_*",))
    async with Cache() as cache, client(SWRMiddleware(app, cache, [rule])) as http:
        before, kept = (await http.get("/x?b=1")).text, (await http.get("/x?b=2")).text
        await http.post("/x?utm_a=1&b=1", headers={f"x-{number}": "a" for number in range(1100)})
        assert (await http.get("/x?b=1")).text != before
        assert (await http.get("/x?b=2")).text == kept

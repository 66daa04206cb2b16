"""The fast path of hits: which requests take it, also for URLs that vary, and that it answers as the slow path does."""

import random
from contextlib import AsyncExitStack
from dataclasses import fields
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
from fastapi import FastAPI, Header, Request
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swr import Cache
from swr.events import KINDS, Answered, Hit, Stale
from swr.http.request_fields import ALL_CREDENTIALS
from swr.http.selecting import fields_of
from swr.http.stored_response import Varies
from swr.middleware import Rule, SWRMiddleware
from swr.stores.memory import MemoryStore
from swr.stores.memory_size import memory_size
from swr.stores.tiered import TieredStore
from swr.testing import FakeClock
from tests.flaky_store import FlakyStore
from tests.fleet import settle
from tests.web import MAX_AGE, App, Client, brief, client, http_scope

pytestmark = pytest.mark.anyio

VARYING = [*MAX_AGE, (b"vary", b"Accept-Language, Origin")]
ENGLISH, GERMAN = {"accept-language": "en"}, {"accept-language": "de"}


class Watched(SWRMiddleware):
    """The middleware, which counts the requests that take the slow path."""

    slow = 0

    async def _handle(self, scope, receive, send):
        self.slow += 1
        await super()._handle(scope, receive, send)


async def ask(http, headers, url="/x"):
    """Return the answer, and whether it took the slow path."""
    # Ready messages are made again at each full second.
    http.clock.advance(0.001)
    before = http.middleware.slow
    response = await http.get(url, headers=headers)
    return (*brief(response), http.middleware.slow > before)


async def ask_fast(http, headers):
    """Return the answer of the fast path, which opens once a hit on the slow path has looked at what is stored."""
    for _ in range(2):
        await ask(http, headers)
    status, text, state, is_slow = await ask(http, headers)
    assert not is_slow
    return status, text, state


def watched(app, cache, **options):
    middleware = Watched(app, cache, **options)
    http = client(middleware)
    http.middleware, http.clock = middleware, cache.engine.runtime.clock
    return http


async def test_hit_of_a_varying_url_takes_the_fast_path(cache, clock):
    async with watched(App(VARYING), cache) as http:
        assert await ask(http, ENGLISH) == (200, "1", "missing", True)
        assert await ask(http, GERMAN) == (200, "2", "missing", True)
        for _ in range(3):
            assert await ask_fast(http, ENGLISH) == (200, "1", "fresh")
            assert await ask_fast(http, GERMAN) == (200, "2", "fresh")
            clock.advance(0.6)
        assert await ask(http, {}) == (200, "3", "missing", True)
        assert await ask(http, {**ENGLISH, "origin": "https://a"}) == (200, "4", "missing", True)
        assert await ask_fast(http, ENGLISH) == (200, "1", "fresh")


async def test_request_with_credentials_or_unknown_fields_takes_the_slow_path(cache):
    async with watched(App([*VARYING, (b"vary", b"authorization, cookie")]), cache) as http:
        await ask(http, ENGLISH)
        for field, state in (("authorization", "missing"), ("cookie", "missing"), ("x-unknown", "fresh")):
            assert (await ask(http, {**ENGLISH, field: "a"}))[2:] == (state, True)
        assert await ask_fast(http, ENGLISH) == (200, "1", "fresh")


async def test_conditional_hit_of_a_varying_url_gets_a_304_on_the_fast_path(cache):
    async with watched(App([*VARYING, (b"etag", b'"a"')]), cache) as http:
        await ask_fast(http, ENGLISH)
        assert await ask(http, {**ENGLISH, "if-none-match": '"a"'}) == (304, "", "fresh", False)
        # Of German, nothing is stored: its etag must not matter.
        assert await ask(http, {**GERMAN, "if-none-match": '"a"'}) == (304, "", "missing", True)


async def test_stored_variants_are_not_found_once_the_app_names_one_more_field(cache):
    app = App(VARYING)
    async with watched(app, cache) as http:
        assert await ask_fast(http, ENGLISH) == (200, "1", "fresh")
        app.headers[-1] = (b"vary", b"Accept-Language, Origin, Save-Data")
        assert await ask(http, GERMAN) == (200, "2", "missing", True)
        assert await ask_fast(http, GERMAN) == (200, "2", "fresh")
        assert await ask(http, ENGLISH) == (200, "3", "missing", True)
        assert await ask(http, {**GERMAN, "save-data": "on"}) == (200, "4", "missing", True)


@pytest.mark.parametrize(
    ("outdate", "state"),
    [
        (lambda cache, http: cache.invalidate_url("/x"), "missing"),
        (lambda cache, http: cache.invalidate_tag("t"), "missing"),
        (lambda cache, http: cache.clear(), "missing"),
        (lambda cache, http: http.post("/x"), "missing"),
        (lambda cache, http: cache.mark_stale_urls("/x"), "stale"),
        (lambda cache, http: cache.mark_stale_tags("t"), "stale"),
        (lambda cache, http: mark_keys(cache), "stale"),
    ],
    ids=["url", "tag", "all", "POST", "mark of the url", "mark of the tag", "marks of the keys"],
)
async def test_outdated_variants_are_not_served_as_fresh(cache, outdate, state):
    async with watched(App(VARYING), cache, rules=[Rule("/x", tags=["t"])]) as http:
        for _ in range(3):
            for headers in (ENGLISH, GERMAN):
                await ask(http, headers)
                await settle()
                assert (await ask_fast(http, headers))[2] == "fresh"
            await outdate(cache, http)
            assert [(await ask(http, headers))[2] for headers in (ENGLISH, GERMAN)] == [state, state]
            await settle()


async def mark_keys(cache):
    for key in list(cache.local.slots):
        await cache.mark_stale(key)


async def test_stale_variant_is_served_while_its_refresh_is_under_way_and_is_fresh_afterwards(cache, clock):
    app = App(VARYING)
    async with watched(app, cache) as http:
        await ask_fast(http, ENGLISH)
        clock.advance(61)
        app.gate = anyio.Event()
        assert await ask(http, ENGLISH) == (200, "1", "stale", True)
        await settle()
        for _ in range(3):
            assert await ask(http, ENGLISH) == (200, "1", "stale", False)
            clock.advance(0.7)
        app.gate.set()
        await settle()
        assert await ask_fast(http, ENGLISH) == (200, "2", "fresh")


async def test_variant_that_is_hit_on_the_fast_path_is_not_displaced_by_new_values(cache, clock):
    async with watched(App(VARYING), cache, max_variants=3) as http:
        for headers in (ENGLISH, GERMAN):
            await ask(http, headers)
        for number in range(6):
            clock.advance(1)
            assert await ask_fast(http, ENGLISH) == (200, "1", "fresh")
            assert await ask_fast(http, GERMAN) == (200, "2", "fresh")
            for _ in range(2):
                await ask(http, {"accept-language": f"x-{number}"})
        assert (await ask(http, {"accept-language": "x-0"}))[2] == "missing"


@pytest.mark.parametrize("seconds", [0, 1])
async def test_entries_of_a_varying_url_that_is_read_all_the_time_are_not_evicted(clock, seconds):
    async with Cache(clock=clock, l1_max_bytes=8_000) as cache, watched(App(VARYING), cache) as http:
        await ask_fast(http, ENGLISH)
        for number in range(50):
            clock.advance(seconds)
            assert await ask(http, ENGLISH) == (200, "1", "fresh", False)
            await ask(http, ENGLISH, f"/{number}")
        assert len(cache.local.slots) < 20


async def test_age_of_a_fast_hit_of_a_varying_url_counts_seconds(cache, clock):
    async with watched(App(VARYING), cache) as http:
        await ask_fast(http, ENGLISH)
        for seconds in range(1, 4):
            clock.advance(0.4)
            clock.advance(0.6)
            for _ in range(2):
                assert (await http.get("/x", headers=ENGLISH)).headers["age"] == str(seconds)


@pytest.mark.parametrize("is_list", [True, False], ids=["the fields that the URL varies by", "the variant"])
async def test_superseded_entry_of_a_varying_url_is_checked_on_the_slow_path(cache, is_list):
    async with watched(App(VARYING), cache) as http:
        await ask_fast(http, ENGLISH)
        (slot,) = [slot for slot in cache.local.slots.values() if (type(slot.value) is Varies) == is_list]
        slot.supersede()
        assert await ask(http, ENGLISH) == (200, "1", "fresh", True)
        assert await ask(http, ENGLISH) == (200, "1", "fresh", False)


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("other", ["invalidation", "list of fields"])
async def test_varying_url_follows_other_processes_as_soon_as_a_plain_url_does(server, other):
    apps = [App(VARYING), App(MAX_AGE)]

    async def app(scope, receive, send):
        await apps[scope["path"] == "/plain"](scope, receive, send)

    async with (
        Cache(server.url) as cache,
        Cache(server.url) as second,
        watched(app, cache) as http,
        watched(app, second) as another,
    ):
        for name in (b"DNT", b"Save-Data", b"Sec-GPC"):
            known = [await fast_in_time(http, url) for url in ("/x", "/plain", "/x", "/plain")]
            if other == "invalidation":
                await second.invalidate_url("/x")
            else:
                apps[0].headers[-1] = (b"vary", apps[0].headers[-1][1] + b", " + name)
                assert (await another.get("/x", headers={"accept-language": name.decode()})).text not in known
            # This ends the trust in no other entry.
            await second.invalidate(next(key for key in cache.local.slots if "/plain" in key))
            with anyio.fail_after(60):
                while (await http.get("/plain")).text == known[1]:
                    await anyio.lowlevel.checkpoint()
            # This process has heard of the last change, so it has heard of the one before.
            response = await http.get("/x", headers=ENGLISH)
            assert (response.headers["swr-state"], response.text != known[0]) == ("missing", True)


async def fast_in_time(http, url):
    """Return the answer of the fast path, which is closed for a moment at each second of age."""
    slow = -1
    with anyio.fail_after(60):
        while http.middleware.slow != slow:
            slow = http.middleware.slow
            answer = (await http.get(url, headers=ENGLISH)).text
    return answer


async def test_fast_hit_of_a_varying_url_is_told_and_counted_as_a_slow_one(cache):
    told = []
    async with watched(App(VARYING), cache) as http:
        await ask(http, ENGLISH)
        end = cache.subscribe(told.append, Hit)
        for is_slow in (True, False, False):
            assert await ask(http, ENGLISH) == (200, "1", "fresh", is_slow)
        end()
        assert [(hit.key, hit.layer) for hit in told] == [(told[0].key, "l1")] * 3
        assert "vary:" in told[0].key
        assert await ask(http, ENGLISH) == (200, "1", "fresh", False)
        assert [counted.fresh.l1 for counted in cache.stats().routes.values()] == [4]


async def test_stale_hit_with_the_tag_of_another_response_is_told_once(cache):
    app = App([*VARYING, (b"etag", b'"a"')])
    told = []
    async with watched(app, cache) as http:
        await ask_fast(http, ENGLISH)
        await cache.mark_stale_urls("/x")
        app.status = 503
        await ask(http, ENGLISH)
        await settle()
        cache.subscribe(told.append, Stale)
        for tag, slow in (('"b"', 1), ('"a"', 0)):
            before = http.middleware.slow
            assert (await http.get("/x", headers={**ENGLISH, "if-none-match": tag})).headers["swr-state"] == "stale"
            assert http.middleware.slow - before == slow
        assert len(told) == 2


async def test_request_with_a_long_selecting_field_leaves_no_alias(cache):
    async with watched(App(VARYING), cache) as http:
        for _ in range(3):
            answer = await ask(http, {"accept-language": "e" * 1300})
        assert answer == (200, "1", "fresh", False)
        assert not http.middleware._slots


async def test_request_with_many_fields_takes_the_slow_path(cache):
    headers = [("accept-language", "en")] * 100
    async with watched(App(VARYING), cache) as http:
        for _ in range(5):
            answer = await ask(http, headers)
        assert (answer[1], answer[3]) == ("1", True)


async def test_long_varying_url_leaves_no_alias(cache):
    async with watched(App(VARYING), cache) as http:
        url = "/" + "x" * 700
        owners = cache.local.slots.aliases
        assert [(await ask(http, ENGLISH, url))[1:] for _ in range(3)] == [
            ("1", "missing", True),
            ("1", "fresh", True),
            ("1", "fresh", False),
        ]
        assert not any(owners.values())


async def test_url_that_varies_by_the_names_of_fields_takes_the_slow_path(cache):
    def endpoint(request):
        return PlainTextResponse(str(any(name == b"sec-fetch-mode" for name, _ in request.scope["headers"])))

    async with watched(Starlette(routes=[Route("/x", endpoint)]), cache, rules=[Rule("/x", fresh_for=60)]) as http:
        for headers, text in (({}, "False"), ({"sec-fetch-mode": "cors"}, "True"), ({}, "False")):
            for _ in range(3):
                answer = await ask(http, headers)
                assert (answer[1], answer[3]) == (text, True)
            assert answer[2] == "fresh"


@pytest.mark.parametrize("name", ["sec-ch-prefers-color-scheme", "x-datadog-trace-id", "x-b3-traceid", "x-app-version"])
async def test_request_with_fields_that_no_response_depends_on_takes_the_fast_path(cache, name):
    async with watched(App(MAX_AGE), cache, ignore_fields=["X-App-Version"]) as http:
        for value in ("1", "2"):
            assert await ask_fast(http, {name: value}) == (200, "1", "fresh")


@pytest.mark.parametrize("name", ["authorization", "x-api-key", "x-other", "cookie", "hx-own", "x_forwarded_host"])
async def test_option_to_ignore_fields_opens_the_fast_path_for_no_other_class_of_fields(cache, name):
    async with watched(App(MAX_AGE), cache, ignore_fields=["X-API-Key", "Cookie", "HX-Own", "Authorization"]) as http:
        assert await ask_fast(http, {}) == (200, "1", "fresh")
        for _ in range(3):
            assert (await ask(http, {name: "1"}))[3]


@pytest.mark.parametrize(
    ("options", "answer"),
    [
        ({"cookies": "rfc9111"}, ("1", "fresh", False)),
        ({"cookies": "rfc9111", "rules": [Rule("/y", cookies=())]}, ("1", "fresh", True)),
        ({}, ("4", "missing", True)),
    ],
    ids=["no effect", "a rule names them", "private"],
)
async def test_request_with_cookies_takes_the_fast_path_only_if_cookies_have_no_effect(cache, options, answer):
    async with watched(App(MAX_AGE), cache, **options) as http:
        for number in range(3):
            await ask(http, {"cookie": f"a={number}"})
        assert (await ask(http, {"cookie": "a=4"}))[1:] == answer


async def test_names_of_ignored_fields_that_clients_invent_take_bounded_memory(cache):
    async with watched(App(MAX_AGE), cache) as http:
        await ask_fast(http, {})
        for number in range(1200):
            assert await ask(http, {f"sec-{number}": "1"}) == (200, "1", "fresh", False)
        assert len(http.middleware._usual.ignored) == 1000


async def test_if_modified_since_is_ignored_beside_if_none_match_alone(cache):
    dated = [(b"etag", b'"a"'), (b"last-modified", b"Mon, 30 Nov 2020 00:00:00 GMT")]
    async with watched(App([*MAX_AGE, *dated]), cache) as http:
        await ask_fast(http, {})
        since = {"if-modified-since": "Mon, 30 Nov 2020 00:00:00 GMT"}
        for headers in ({**since, "if-none-match": '"a"'}, {"if-none-match": '"a"', **since}):
            assert await ask(http, headers) == (304, "", "fresh", False)
        assert await ask(http, {"if-none-match": '"b"', **since}) == (200, "1", "fresh", True)
        assert await ask(http, since) == (304, "", "fresh", True)


@pytest.mark.parametrize("options", [{"drop_params": ["utm_*"]}, {"keep_params": ["page"]}], ids=["drop", "keep"])
async def test_queries_that_a_rule_reads_as_equal_take_the_fast_path(cache, options):
    async with watched(App(), cache, rules=[Rule("/x", fresh_for=60, **options)]) as http:
        for query in ("?page=1&utm_id=1", "?utm_id=2&page=1", "?page=1"):
            for _ in range(3):
                answer = await ask(http, {}, f"/x{query}")
            assert answer == (200, "1", "fresh", False)
        assert (await ask(http, {}, "/x?page=2"))[1:] == ("2", "missing", True)
        assert (await ask(http, {}, "/y?page=1"))[1:] == ("3", "missing", True)


async def test_query_that_is_too_long_takes_the_slow_path_though_a_rule_shortens_it(cache):
    async with watched(App(), cache, rules=[Rule("/x", fresh_for=60, keep_params=["page"])]) as http:
        for _ in range(3):
            assert (await ask(http, {}, "/x?page=1"))[1] == "1"
        for run in ("2", "3"):
            assert (await ask(http, {}, f"/x?page=1{'&a' * 30_000}"))[1::2] == (run, True)


async def test_request_whose_fields_are_longer_than_swr_reads_takes_the_slow_path(cache):
    async with watched(App(VARYING), cache) as http:
        await ask_fast(http, ENGLISH)
        http.clock.advance(1)
        for _ in range(2):
            response = await http.get("/x", headers={"accept-language": "en" + " " * 70_000})
            assert response.headers["cache-status"] == 'swr; fwd=bypass; detail="header too long"'


async def test_variant_that_is_only_a_fallback_does_not_count_as_used(cache, clock):
    app = App([(b"cache-control", b"max-age=60, stale-if-error=3600"), VARYING[-1]])
    async with watched(app, cache, max_variants=2) as http:
        await ask(http, ENGLISH)
        await ask(http, GERMAN)
        clock.advance(61)
        app.status = 503
        for _ in range(3):
            assert await ask(http, GERMAN) == (200, "2", "stale", True)
        app.status = 200
        # A new variant displaces one that swr has answered no request with, the newest of them first.
        assert (await ask(http, {"accept-language": "fr"}))[2] == "missing"
        app.status = 503
        assert await ask(http, ENGLISH) == (200, "1", "stale", True)


@pytest.mark.parametrize("headers", [VARYING, MAX_AGE], ids=["varying", "plain"])
async def test_alias_is_the_usual_way_to_write_a_request_a_second_after_an_unusual_one(cache, clock, headers):
    async with watched(App(headers), cache) as http:
        await ask_fast(http, {"accept-language": "EN", "host": "TEST"})
        clock.advance(1)
        for _ in range(2):
            assert (await ask(http, ENGLISH))[2:] == ("fresh", False)
        aliases = [alias for owned in cache.local.slots.aliases.values() for alias in owned]
        assert aliases
        assert not any("TEST" in str(alias) or "EN" in str(alias) for alias in aliases)


@pytest.mark.parametrize("varies", [False, True])
@pytest.mark.parametrize("name", [b"origin", b"dnt"])
async def test_alias_takes_little_memory_however_many_fields_clients_send(cache, varies, name):
    app = App([*MAX_AGE, (b"vary", b"dnt, accept")] if varies else MAX_AGE)
    async with watched(app, cache) as http:
        for number in range(0, 63, 3):
            for _ in range(4):
                # Servers make new objects of each request's fields.
                fields = [(bytes(bytearray(name)), b"%d" % each) for each in range(10, number + 10)]
                http.clock.advance(0.001)
                client = Client()
                scope = http_scope(f"/{number}", headers=[(b"host", b"test"), *fields])
                await http.middleware(scope, client.receive, client.send)
        aliases = [alias for owned in cache.local.slots.aliases.values() for alias in owned]
        assert len(aliases) > 3
        assert max(map(memory_size, aliases)) < 2_500


def test_fields_of_selecting_names_are_those_that_the_key_of_a_variant_reads():
    assert fields_of(["accept", "=x_app_version", ALL_CREDENTIALS]) == {b"accept", b"x-app-version"}


LAST_MODIFIED = "Mon, 30 Nov 2020 00:00:00 GMT"
# Values of request fields. Some differ only in how they are written, and some keep a request from the fast path.
VALUES = {
    "accept-language": ["en", "de", "EN", "en, de", "en,de", ""],
    "accept-encoding": ["gzip", "identity"],
    "user-agent": ["a", "b"],
    "dnt": ["1"],
    "origin": ["https://a", "https://b"],
    "save-data": ["on"],
    "sec-fetch-mode": ["cors"],
    "sec-ch-width": ["1", "2"],
    "x-app": ["1", "2"],
    "if-modified-since": [LAST_MODIFIED, "Sun, 29 Nov 2020 00:00:00 GMT"],
    "if-none-match": ['"a"', 'W/"a"', '"b"'],
}
RARE = {
    "x-unknown": ["1"],
    "authorization": ["a", "b"],
    "cookie": ["a=1"],
    "cache-control": ["no-cache", "max-stale", "only-if-cached", "no-store"],
    "accept_language": ["en"],
    "range": ["bytes=0-3"],
}
USUAL = "max-age=30, stale-while-revalidate=60, stale-if-error=200"


class Choices(random.Random):
    """Random choices."""

    def some(self, items, most):
        items = list(items)
        return self.sample(items, self.randrange(min(most, len(items)) + 1))

    def happens(self, chance):
        return self.random() < chance


class World:
    """A store and the processes on it, whose middlewares all take the fast path, or all take the slow path only.

    Parameters:
        options: what is the same in the world to compare with.
    """

    def __init__(self, clock, options, *, is_fast):
        self.runs, self.is_failing = 0, False
        self.vary, self.control = options["vary"], options["control"]
        self.caches, self.links, self.middlewares, self.told = [], [], [], []
        shared = MemoryStore(clock=clock)
        app = self.app_of(options["kind"])
        if options["cors"]:
            app = CORSMiddleware(app, allow_origins=["https://a"])
        for _ in range(options["processes"] or 1):
            cache = Cache(clock=clock, l1_max_bytes=options["l1_max_bytes"])
            if options["processes"]:
                self.links.append(FlakyStore(shared))
                cache.engine.configure(TieredStore(cache.local, self.links[-1], clock), 30, 10, clock)
            if options["listens"]:
                cache.engine.events.subscribe(self.told.append, (*KINDS, Answered))
            rules = [Rule("/{path:path}", tags=["t"], **options["rule"])]
            middleware = SWRMiddleware(app, cache, rules=rules, **options["middleware"])
            middleware._plain = middleware._plain and is_fast
            self.caches.append(cache)
            self.middlewares.append(middleware)

    def app_of(self, kind):
        async def raw(scope, receive, send):
            asked = [(name, value) for name, value in scope["headers"] if name.decode() in self.vary]
            await self.answer(str(asked))(scope, receive, send)

        if kind == "raw":
            return raw
        app = FastAPI()

        @app.get("/{path:path}")
        async def endpoint(
            request: Request,
            accept_language: Annotated[str, Header()] = "",
            dnt: Annotated[list[str] | None, Header()] = None,
        ):
            read = [request.headers.get(name) for name in self.vary] if kind == "reads" else []
            read += (
                [name for name, _ in request.scope["headers"] if name in (b"dnt", b"origin")] if kind == "names" else []
            )
            return self.answer(f"{accept_language} {dnt} {read}")

        return app

    def answer(self, text):
        self.runs += 1
        if self.is_failing:
            return PlainTextResponse("failed", 500)
        headers = {"cache-control": self.control} if self.control else {}
        if self.vary:
            headers["vary"] = ", ".join(self.vary)
        if self.runs % 2:
            headers["etag"] = '"a"'
        if self.runs % 3:
            headers["last-modified"] = LAST_MODIFIED
        return PlainTextResponse(f"{self.runs}: {text}", headers=headers)

    async def ask(self, at, scope):
        one = Client()
        try:
            await self.middlewares[at](scope, one.receive, one.send)
        except Exception as error:
            return repr(error)
        await settle()
        return one.sent

    def go_on(self):
        """Let the event loop go on in the processes while the clock does."""
        for cache in self.caches if self.links else ():
            cache.engine.store._hearing._turn()

    def seen(self):
        """Return what must not depend on the path that hits took: events, counters, and what is held."""
        found = []
        for event in self.told:
            left_out = {
                "seconds",
                "waited",
                "unreachable_for",
                "error",
                *(("layer", "cache_status") if type(event) is Answered else ()),
            }
            values = [(each.name, getattr(event, each.name)) for each in fields(event) if each.name not in left_out]
            found.append((type(event).__name__, values))
        self.told.clear()
        for cache in self.caches:
            # This drops outdated entries, which the fast path looks up, too, while the cache is disabled.
            held = {key: slot.is_used for key in list(cache.local.slots) if (slot := cache.local.get(key))}
            stats = cache.stats()
            for name, counted in stats.routes.items():
                counts = counted.fresh, counted.stale, counted.missing, counted.loads, counted.failed, counted.bytes
                found.append((name, counts))
            found += [stats.bypasses, stats.not_stored, stats.invalidations, stats.local, held]
        return found


def draw_options(draw):
    rule = {"vary": draw.some(["accept-language", "user-agent"], 2), "drop_params": draw.some(["utm"], 1)}
    if draw.happens(0.5):
        rule.update(fresh_for=40, stale_for=100, override=draw.happens(0.3), client_max_age=draw.choice([0, 30]))
    return {
        "kind": draw.choice(["raw", "raw", "raw", "declares", "reads", "names"]),
        "vary": draw.some([*VALUES][:-2], 3),
        "control": draw.choice([USUAL] * 5 + ["max-age=2", "no-cache", ""]),
        "cors": draw.happens(0.2),
        "processes": draw.choice([0, 0, 1, 2]),
        "l1_max_bytes": draw.choice([2**20, 2**20, 2**20, 12_000]),
        "listens": draw.happens(0.5),
        "rule": rule,
        "middleware": {
            "max_variants": draw.choice([64, 64, 64, 2]),
            "ignore_fields": draw.some(["x-app"], 1),
            "cookies": draw.choice(["private", "private", "rfc9111"]),
        },
    }


def draw_requests(draw, names):
    """Return requests that differ in few fields, above all in those with these names."""
    base = {name: [draw.choice(VALUES[name])] for name in draw.some(VALUES, 3)}
    return [draw_request(draw, base, [*names, *names, *VALUES]) for _ in range(4)]


def draw_request(draw, base, names):
    fields = dict(base)
    for name in draw.some(names, 2):
        value = draw.choice(VALUES[name])
        fields[name] = draw.choice([[], [value], [value], [*fields.get(name, []), value]])
    if draw.happens(0.1):
        name = draw.choice([*RARE])
        fields[name] = [draw.choice(RARE[name])]
    headers = [(name.encode(), value.encode()) for name, values in fields.items() for value in values]
    host = b"test" if draw.happens(0.95) else b"TEST"
    return http_scope(
        "/x" if draw.happens(0.9) else "/y",
        headers=[(b"host", host), *headers],
        method="GET" if draw.happens(0.97) else "HEAD",
        query_string=draw.choice([b""] * 9 + [b"a=1", b"utm=1", b"utm=2&a=1"]),
        http_version="1.1" if draw.happens(0.97) else "2",
    )


@settings(max_examples=60)
@given(seed=st.integers(0, 2**64))
def test_fast_path_answers_counts_and_tells_as_the_slow_path_in_any_order_of_operations(seed):
    anyio.run(run_both, seed)


async def run_both(seed):
    draw, clock = Choices(seed), FakeClock()
    options = draw_options(draw)
    worlds = [World(clock, options, is_fast=is_fast) for is_fast in (True, False)]
    caches = list(zip(*(world.caches for world in worlds), strict=True))
    requests = draw_requests(draw, [*options["vary"], *options["rule"]["vary"]])
    # The fast path notes the use of a variant once a second.
    pauses = [1.001] if options["middleware"]["max_variants"] == 2 else [0, 0.001, 0.001, 0.001, 0.3]
    async with AsyncExitStack() as stack:
        for cache in (cache for pair in caches for cache in pair):
            await stack.enter_async_context(cache)
            cache.engine.runtime.time, cache.engine.runtime.uniform = clock, lambda low, high: 1.0
        for _ in range(12):
            await operate(draw, clock, worlds, draw.randrange(len(caches)), options)
            for world in worlds:
                world.go_on()
            asked, at = draw.choices(requests, k=2), draw.randrange(len(caches))
            for request in asked * draw.choice([1, 3, 4]):
                clock.advance(draw.choice(pauses))
                await ask_both(worlds, at, request)
            seen = [world.seen() for world in worlds]
            assert seen[0] == seen[1], options
        for link in (link for world in worlds for link in world.links if link.is_down):
            link.set_down(False)


async def ask_both(worlds, at, request):
    answers = [await world.ask(at, {**request}) for world in worlds]
    assert answers[0] == answers[1], request


async def operate(draw, clock, worlds, at, options):
    """Do the same in both worlds."""
    what = draw.choice(["pass", "pass", "outdate", "outdate", "app", "link", "disable", "fill", ""])
    if what == "pass":
        clock.advance(draw.choice([0.5, 1, 2, 10, 31, 45, 100, 1000]))
    elif what == "outdate":
        how = draw.choice(["url", "tag", "all", "POST", "mark url", "mark tag", "key", "mark key"])
        for world in worlds:
            await outdate(world, world.caches[at], at, how)
    elif what == "app":
        changed, others = draw.choice(["vary", "vary", "failing", "control"]), draw_options(draw)
        for world in worlds:
            world.vary = others["vary"] if changed == "vary" else world.vary
            world.control = others["control"] if changed == "control" else world.control
            world.is_failing = (changed == "failing") > world.is_failing
    elif what == "link" and options["processes"]:
        for world in worlds:
            world.links[at].set_down(not world.links[at].is_down)
    elif what == "disable":
        with worlds[0].caches[at].disabled(), worlds[1].caches[at].disabled():
            await ask_both(worlds, at, http_scope("/x"))
    elif what == "fill":
        for number in range(draw.randrange(10)):
            await ask_both(worlds, at, http_scope(f"/{number}"))
    await settle()


async def outdate(world, cache, at, how):
    if how == "url":
        await cache.invalidate_url("/x")
    elif how == "tag":
        await cache.invalidate_tag("t")
    elif how == "all":
        await cache.clear()
    elif how == "mark url":
        await cache.mark_stale_urls("/x")
    elif how == "mark tag":
        await cache.mark_stale_tags("t")
    elif how == "key":
        for key in list(cache.local.slots)[-1:]:
            await cache.invalidate(key)
    elif how == "mark key":
        for key in list(cache.local.slots)[:1]:
            await cache.mark_stale(key)
    else:
        await world.ask(at, http_scope("/x", method="POST"))

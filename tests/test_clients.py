"""What clients are told about a response of which its app says nothing to them, and how long they wait for one."""

from typing import Annotated

import anyio
import anyio.lowlevel
import msgspec
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Response

from swr import Cache, ConfigurationError
from swr.endpoints.turns import turns_of
from swr.errors import CodecError
from swr.http.clients import tag_of
from swr.http.stored_response import StoredResponse, check
from swr.middleware import Rule, SWRMiddleware
from swr.stores.local import UNTRUSTED
from swr.stores.memory import MemoryStore
from tests.fleet import GROWING, gather, settle, until
from tests.servers import Server
from tests.web import App, client

pytestmark = pytest.mark.anyio
TEXT = [(b"content-type", b"text/plain")]


def ruled(cache, app, selects=None, **terms):
    """Put the middleware with one rule around an app."""
    rules = [Rule("/{rest:path}", **{"fresh_for": 60, "stale_for": 600, **terms})]
    return SWRMiddleware(app, cache, rules, key=selects)


def told(response):
    return response.headers.get("cache-control"), response.headers.get("etag")


# -- under a rule --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("chunks", [None, (b"a", b"b")])
async def test_response_without_client_fields_gets_a_no_cache_directive_and_an_etag(cache, clock, chunks):
    async with client(ruled(cache, App(TEXT, body=b"c", chunks=chunks))) as http:
        first, hit = await http.get("/x"), await http.get("/x")
        assert first.headers["cache-control"] == hit.headers["cache-control"] == "no-cache"
        assert hit.headers["etag"].startswith('W/"')
        # What comes in pieces is sent before swr has seen it all.
        assert first.headers.get("etag") == (None if chunks else hit.headers["etag"])
        clock.advance(61)
        stale = await http.get("/x")
        assert (stale.headers["swr-state"], told(stale)) == ("stale", told(hit))
        await settle()
        assert told(await http.get("/x")) == told(hit)
        assert told(await http.head("/x")) == told(hit)


async def test_client_with_the_current_etag_gets_a_304_at_every_age(cache, clock):
    app = App(TEXT, body=b"c")
    async with client(ruled(cache, app)) as http:
        first = await http.get("/x")
        asked = {"If-None-Match": first.headers["etag"]}
        for method, after in (("GET", 0), ("HEAD", 0), ("GET", 61), ("GET", 0), ("GET", 10_000)):
            await settle()
            clock.advance(after)
            short = await http.request(method, "/x", headers=asked)
            assert (short.status_code, short.content) == (304, b"")
            assert told(short) == told(first)
            assert "content-type" not in short.headers
        assert (await http.get("/x", headers={"If-None-Match": '"another"'})).status_code == 200
        # The last one above was missing: the app ran for it, and sent what the client had already.
        assert app.runs == 3


async def test_changed_response_has_another_etag(cache, clock):
    async with client(ruled(cache, App(TEXT))) as http:
        first = await http.get("/x")
        await cache.clear()
        again = await http.get("/x", headers={"If-None-Match": first.headers["etag"]})
        assert (again.status_code, again.text) == (200, "2")
        assert again.headers["etag"] != first.headers["etag"]


def test_etag_depends_on_the_response_and_not_on_date_or_request_id():
    tag = tag_of(200, [(b"Content-Type", b"text/plain"), (b"x-total", b"5"), (b"date", b"now")], b"a")
    assert tag == tag_of(200, [(b"x-total", b"5"), (b"content-type", b"text/plain"), (b"X-Request-ID", b"1")], b"a")
    others = [
        tag_of(200, [(b"content-type", b"text/plain"), (b"x-total", b"6")], b"a"),
        tag_of(200, [(b"content-type", b"text/html"), (b"x-total", b"5")], b"a"),
        tag_of(200, [(b"content-type", b"text/plain"), (b"x-total", b"5")], b"b"),
        tag_of(203, [(b"content-type", b"text/plain"), (b"x-total", b"5")], b"a"),
    ]
    assert len({tag, *others}) == 5


@pytest.mark.parametrize(
    ("said", "expected"),
    [
        ([(b"cache-control", b"max-age=5")], "max-age=5"),
        ([(b"cache-control", b"public, s-maxage=5, max-age=0")], "public, s-maxage=5, max-age=0"),
        ([(b"expires", b"Thu, 01 Jan 2099 00:00:00 GMT")], None),
        ([(b"pragma", b"no-cache")], None),
        ([(b"swr-cache-control", b"max-age=5")], "no-cache"),
        ([(b"etag", b'"own"')], "no-cache"),
    ],
)
async def test_fields_that_the_app_sends_to_clients_are_not_overridden(cache, said, expected):
    async with client(ruled(cache, App([*TEXT, *said], body=b"c"))) as http:
        for state in ("missing", "fresh"):
            response = await http.get("/x")
            assert (response.headers["swr-state"], response.headers.get("cache-control")) == (state, expected)
            assert len(response.headers.get_list("etag")) == 1
        own = dict(said).get(b"etag", b"").decode()
        assert response.headers["etag"] == own or (not own and response.headers["etag"].startswith("W/"))


@pytest.mark.parametrize(
    ("headers", "status", "sent"),
    [
        ([(b"cache-control", b"private")], 200, {}),
        ([(b"set-cookie", b"a=b")], 200, {}),
        ([(b"vary", b"*")], 200, {}),
        ([], 404, {}),
        ([], 500, {}),
        ([], 200, {"Cookie": "a=b"}),
        ([], 200, {"Authorization": "Bearer a"}),
        ([], 200, {"X-Unknown": "a"}),
    ],
)
async def test_unshared_response_gets_no_cache_control_and_no_etag(cache, headers, status, sent):
    async with client(ruled(cache, App([*TEXT, *headers], status, b"c"))) as http:
        for _ in range(2):
            response = await http.get("/x", headers=sent)
            assert response.headers["swr-state"] == "missing"
            assert told(response) == (dict(headers).get(b"cache-control", b"").decode() or None, None)


async def test_response_without_rule_or_decorator_gets_no_added_fields(cache):
    said = [(b"swr-cache-control", b"max-age=60"), (b"last-modified", b"Thu, 01 Jan 2015 00:00:00 GMT")]
    for rules in ([], [Rule("/y", fresh_for=60)], [Rule("/x", tags=("a",))]):
        async with client(SWRMiddleware(App(said, body=b"c"), cache, rules, heuristic=0.1)) as http:
            for state in ("missing", "fresh"):
                response = await http.get("/x")
                assert (response.headers["swr-state"], told(response)) == (state, (None, None))
        await cache.clear()


async def test_client_max_age_counts_from_when_the_client_gets_the_response(cache, clock):
    """Clients subtract `Age` from `max-age`; swr adds it, so that a response is not stale on arrival."""
    async with client(ruled(cache, App(TEXT, body=b"c"), client_max_age="30s")) as http:
        for age in (0, 0, 20, 20):
            clock.advance(age)
            response = await http.get("/x")
            lasts = int(response.headers["cache-control"].removeprefix("max-age="))
            assert lasts - int(response.headers.get("age", 0)) == 30
            short = await http.get("/x", headers={"If-None-Match": response.headers["etag"]})
            assert (short.status_code, short.headers["cache-control"]) == (304, response.headers["cache-control"])
        clock.advance(60)
        stale = await http.get("/x")
        assert (stale.headers["swr-state"], stale.headers["cache-control"]) == ("stale", "no-cache")


async def test_range_response_has_the_same_fields_and_weak_if_range_gets_the_whole(cache):
    async with client(ruled(cache, App(TEXT, body=b"0123456789"), client_max_age=30)) as http:
        whole = await http.get("/x")
        part = await http.get("/x", headers={"Range": "bytes=2-3"})
        assert (part.status_code, part.text) == (206, "23")
        assert told(part) == told(whole)
        asked = {"Range": "bytes=2-3", "If-Range": whole.headers["etag"]}
        assert (await http.get("/x", headers=asked)).status_code == 200
        assert (await http.get("/x", headers={"Range": "bytes=99-"})).headers.get("cache-control") is None


async def test_part_stored_without_its_whole_gets_no_etag(cache):
    headers = [*TEXT, (b"content-range", b"bytes 2-3/10"), (b"swr-cache-control", b"max-age=60")]
    async with client(ruled(cache, App(headers, 206, b"23"))) as http:
        for state in ("missing", "fresh"):
            part = await http.get("/x", headers={"Range": "bytes=2-3"})
            assert (part.status_code, part.headers["swr-state"], told(part)) == (206, state, ("no-cache", None))


async def test_variants_have_their_own_etags_and_name_the_selecting_fields_in_vary(cache):
    async def app(scope, receive, send):
        units = dict(scope["headers"]).get(b"x-units", b"none")
        headers = [*TEXT, (b"vary", b"Accept-Encoding")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": units})

    async with client(ruled(cache, app, vary=("X-Units",), client_max_age=30)) as http:
        tags = set()
        for units in ("metric", "imperial", "metric"):
            response = await http.get("/x", headers={"X-Units": units})
            assert response.text == units
            named = {name.strip().lower() for name in response.headers["vary"].split(",")}
            assert named == {"accept-encoding", "x-units"}
            tags.add(response.headers["etag"])
            short = await http.get("/x", headers={"X-Units": units, "If-None-Match": response.headers["etag"]})
            assert (short.status_code, short.headers["vary"]) == (304, response.headers["vary"])
        assert len(tags) == 2
        crossed = await http.get("/x", headers={"X-Units": "imperial", "If-None-Match": response.headers["etag"]})
        assert crossed.text == "imperial"


@pytest.mark.parametrize("option", ["cookies", "key", "credentials", "middleware"])
@pytest.mark.parametrize("lasts", [0, 30])
async def test_response_selected_by_cookie_key_or_credential_is_private_to_clients(cache, option, lasts):
    terms = {"cookies": {"cookies": ("a",)}, "key": {"key": lambda scope: "k"}, "credentials": {"credentials": "vary"}}
    key = (lambda scope: "k") if option == "middleware" else None
    async with client(
        ruled(cache, App(TEXT, body=b"c"), selects=key, client_max_age=lasts, **terms.get(option, {}))
    ) as http:
        sent = {"cookies": {"Cookie": "a=1"}, "credentials": {"Authorization": "Bearer a"}}.get(option, {})
        for state in ("missing", "fresh"):
            response = await http.get("/x", headers=sent)
            assert response.headers["swr-state"] == state
            words = "private, max-age=30" if lasts else "private, no-cache"
            assert response.headers["cache-control"] == words


async def test_client_max_age_does_not_apply_to_a_response_marked_no_cache(cache):
    headers = [*TEXT, (b"swr-cache-control", b"no-cache"), (b"etag", b'"1"')]
    async with client(ruled(cache, App(headers, body=b"c"), client_max_age=30)) as http:
        for _ in range(2):
            assert (await http.get("/x")).headers["cache-control"] == "no-cache"


async def test_client_max_age_does_not_apply_to_a_stored_404(cache):
    headers = [*TEXT, (b"swr-cache-control", b"max-age=60")]
    async with client(ruled(cache, App(headers, 404, b"c"), client_max_age=30)) as http:
        for state in ("missing", "fresh"):
            response = await http.get("/x")
            assert (response.headers["swr-state"], response.headers["cache-control"]) == (state, "no-cache")


async def test_waiters_of_one_load_get_the_same_fields_as_later_hits(cache):
    app = App(TEXT, body=b"c")
    app.gate = anyio.Event()
    async with client(ruled(cache, app)) as http:

        async def release():
            await app.begun.wait()
            await settle()
            app.gate.set()

        *responses, _ = await gather(http.get("/x"), http.get("/x"), release())
        assert {told(response) for response in responses} == {told(await http.get("/x"))}
        assert app.runs == 1


async def test_response_confirmed_by_a_304_keeps_its_etag_and_cache_control(cache, clock):
    async def app(scope, receive, send):
        known = dict(scope["headers"]).get(b"if-modified-since")
        headers = [*TEXT, (b"last-modified", b"Thu, 01 Jan 2015 00:00:00 GMT")]
        await send({"type": "http.response.start", "status": 304 if known else 200, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if known else b"c"})

    async with client(ruled(cache, app, stale_for=0)) as http:
        first = await http.get("/x")
        clock.advance(100)
        confirmed = await http.get("/x")
        assert "fwd-status=304" in confirmed.headers["cache-status"]
        assert (confirmed.text, told(confirmed)) == ("c", told(first))


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_added_fields_are_not_stored_and_a_changed_rule_applies_at_once(server: Server):
    async with Cache(server.url) as one, Cache(server.url) as other:
        async with client(ruled(one, App(TEXT, body=b"c"))) as http:
            assert (await http.get("/x")).headers["cache-control"] == "no-cache"
        async with client(ruled(other, App(TEXT, body=b"c"), client_max_age=30)) as http:
            response = await http.get("/x")
            assert response.headers["swr-state"] == "fresh"
            assert response.headers["cache-control"].startswith("max-age=")
        stored = [slot.value for slot in other.local.slots.values() if isinstance(slot.value, StoredResponse)]
        assert [headers for one in stored for headers in one.headers] == TEXT


async def test_body_with_a_wrong_content_length_gets_no_etag(cache):
    app = App([*TEXT, (b"content-length", b"5")], body=b"c")
    async with client(ruled(cache, app), raises=False) as http:
        assert "etag" not in (await http.get("/x")).headers


@pytest.mark.parametrize("option", [{"client_max_age": -1}, {"client_max_age": "soon"}, {"soft_timeout": 0}])
def test_invalid_client_max_age_or_soft_timeout_is_rejected(option):
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        Rule("/x", fresh_for=1, **option)
    with pytest.raises(ConfigurationError, match=next(iter(option))):
        Cache().response(fresh_for=1, **option)


def test_client_max_age_without_fresh_for_is_rejected():
    with pytest.raises(ConfigurationError, match="client_max_age needs fresh_for"):
        Rule("/x", tags=("a",), client_max_age=5)


@pytest.mark.parametrize("change", [{"client_max_age": -1.0}, {"soft_timeout": -1.0}, {"client_max_age": 1e300}])
def test_stored_response_with_invalid_times_raises_codec_error(change):
    stored = msgspec.structs.replace(StoredResponse(200, [], b""), **change)
    with pytest.raises(CodecError):
        check(stored)


# -- under a decorator ---------------------------------------------------------------------------------------------


def decorated(cache, rules=(), **terms):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules)

    @app.get("/x")
    @cache.response(**{"fresh_for": 60, "stale_for": 600, **terms})
    async def endpoint(units: Annotated[str, Header()] = "metric") -> str:
        return units

    return app


@pytest.mark.parametrize(("lasts", "words"), [(0, "no-cache"), (30, "max-age=30")])
async def test_decorator_adds_the_same_fields_as_a_rule(cache, lasts, words):
    async with client(decorated(cache, client_max_age=lasts)) as http:
        first, hit = await http.get("/x"), await http.get("/x")
        assert told(first) == told(hit) == (words, first.headers["etag"])
        assert (await http.get("/x", headers={"If-None-Match": first.headers["etag"]})).status_code == 304
        assert hit.headers.get("vary") == ("units" if lasts else None)


async def test_client_max_age_of_a_decorator_wins_over_a_rule(cache):
    app = decorated(cache, [Rule("/x", fresh_for=60, client_max_age=5)], client_max_age=30)
    async with client(app) as http:
        for _ in range(2):
            assert (await http.get("/x")).headers["cache-control"] == "max-age=30"


async def test_hit_on_an_untrusted_slot_keeps_client_max_age_of_the_decorator(cache):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    @app.get("/x")
    @cache.response(fresh_for=60, client_max_age=30)
    async def endpoint(response: Response) -> str:
        response.headers["ETag"] = '"1"'
        return "c"

    async with client(app) as http:
        await http.get("/x")
        slot = next(iter(cache.local.slots.values()))
        slot.trust = UNTRUSTED
        assert (await http.get("/x")).headers["cache-control"] == "max-age=30"


# -- behind a login ------------------------------------------------------------------------------------------------


def guarded(cache, seen=None, own=(), **terms):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    def user(response: Response, authorization: Annotated[str, Header()] = "") -> str:
        if not authorization:
            raise HTTPException(401)
        for name, value in own:
            response.headers[name] = value
        return authorization

    @app.get("/x", dependencies=[Depends(user)])
    @cache.response(**{"fresh_for": 60, "stale_for": 600, **terms})
    async def endpoint() -> dict[str, str]:
        if seen is not None:
            await seen()
        return {"a": "b"}

    return app


@pytest.mark.parametrize(("lasts", "words"), [(0, "private, no-cache"), (30, "private, max-age=30")])
async def test_guarded_response_is_private_to_clients_and_gets_a_304(cache, clock, lasts, words):
    async with client(guarded(cache, client_max_age=lasts)) as http:
        first = await http.get("/x", headers={"Authorization": "a"})
        hit = await http.get("/x", headers={"Authorization": "b"})
        assert (first.headers["swr-state"], hit.headers["swr-state"]) == ("missing", "fresh")
        assert told(first) == told(hit) == (words, first.headers["etag"])
        asked = {"Authorization": "a", "If-None-Match": first.headers["etag"]}
        short = await http.get("/x", headers=asked)
        assert (short.status_code, short.content, told(short)) == (304, b"", told(first))
        assert (short.headers["swr-state"], short.headers["age"]) == ("fresh", "0")
        refused = await http.get("/x", headers={"If-None-Match": first.headers["etag"]})
        assert (refused.status_code, told(refused)) == (401, (None, None))
        clock.advance(61)
        stale = await http.get("/x", headers={"Authorization": "a"})
        assert (stale.headers["swr-state"], stale.headers["cache-control"]) == ("stale", "private, no-cache")


async def test_guarded_miss_with_the_current_etag_gets_a_304(cache):
    async with client(guarded(cache)) as http:
        first = await http.get("/x", headers={"Authorization": "a"})
        await cache.clear()
        asked = {"Authorization": "a", "If-None-Match": first.headers["etag"]}
        short = await http.get("/x", headers=asked)
        assert (short.status_code, short.headers["swr-state"]) == (304, "missing")


async def test_fields_set_by_dependencies_win_over_added_fields(cache):
    own = (("Cache-Control", "no-store"), ("X-User", "a"), ("ETag", '"of-a-dependency"'))
    async with client(guarded(cache, own=own)) as http:
        for _ in range(2):
            response = await http.get("/x", headers={"Authorization": "a", "If-None-Match": '"of-a-dependency"'})
            assert response.headers.get_list("cache-control") == ["no-store"]
            assert response.headers.get_list("etag") == ['"of-a-dependency"']
            assert response.headers.get_list("x-user") == ["a"]


# -- patience ------------------------------------------------------------------------------------------------------


class Slow:
    """Lets the first run through, and holds up the others."""

    def __init__(self):
        self.runs = 0
        self.gate = anyio.Event()

    async def __call__(self):
        self.runs += 1
        if self.runs > 1:
            await self.gate.wait()


def slow_app(slow):
    async def app(scope, receive, send):
        await slow()
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        await send({"type": "http.response.body", "body": str(slow.runs).encode()})

    return app


def slow_endpoint(cache, slow, **terms):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    @app.get("/x")
    @cache.response(**terms)
    async def endpoint() -> int:
        await slow()
        return slow.runs

    return app


TIMES = {"fresh_for": 60, "stale_for": 0, "stale_if_error": 3600}


@pytest.mark.parametrize("form", ["rule", "decorator"])
async def test_client_gets_the_stale_response_after_soft_timeout_while_the_load_runs(cache, clock, form):
    slow = Slow()
    terms = {**TIMES, "soft_timeout": "10ms", "client_max_age": 30}
    app = ruled(cache, slow_app(slow), **terms) if form == "rule" else slow_endpoint(cache, slow, **terms)
    async with client(app) as http:
        assert (await http.get("/x")).text == "1"
        clock.advance(61)
        for _ in range(2):
            late = await http.get("/x")
            assert (late.text, late.headers["swr-state"], late.headers["cache-control"]) == ("1", "stale", "no-cache")
            assert late.headers["cache-status"] == 'swr; fwd=stale; detail="soft timeout"'
        assert slow.runs == 2
        slow.gate.set()
        await settle()
        fresh = await http.get("/x")
        assert (fresh.text, fresh.headers["swr-state"]) == ("2", "fresh")


async def test_client_waits_past_soft_timeout_without_a_fallback(cache, clock):
    slow = Slow()
    slow.runs = 1
    async with client(ruled(cache, slow_app(slow), **TIMES, soft_timeout="1ms")) as http:
        responses = []

        async def ask():
            responses.append(await http.get("/x"))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            await anyio.sleep(0.02)
            await settle()
            assert not responses
            slow.gate.set()
        assert responses[0].text == "2"


async def test_response_that_has_begun_is_awaited_past_soft_timeout(cache, clock):
    patience, began = 0.3, 0.0

    async def app(scope, receive, send):
        nonlocal began
        began = anyio.current_time()
        await send({"type": "http.response.start", "status": 200, "headers": TEXT})
        await send({"type": "http.response.body", "body": b"a", "more_body": True})
        await slow()
        await send({"type": "http.response.body", "body": b"b"})

    async with client(ruled(cache, app, **TIMES, soft_timeout=patience)) as http:
        is_in_time = False
        # On a machine that is busy it may begin too late.
        while not is_in_time:
            slow = Slow()
            assert (await http.get("/x")).text == "ab"
            clock.advance(61)
            responses = []

            async def ask(responses=responses):
                responses.append(await http.get("/x"))

            async with anyio.create_task_group() as group:
                asked = anyio.current_time()
                group.start_soon(ask)
                while slow.runs < 2:
                    await anyio.lowlevel.checkpoint()
                is_in_time = began - asked < patience / 3
                await anyio.sleep(2 * patience)
                slow.gate.set()
            clock.advance(61)
        assert (responses[0].text, responses[0].headers["swr-state"]) == ("ab", "missing")


async def test_response_invalidated_during_the_load_is_not_served(cache, clock):
    slow = Slow()
    async with client(ruled(cache, slow_app(slow), **TIMES, soft_timeout="60s")) as http:
        await http.get("/x")
        clock.advance(61)
        responses = []

        async def ask():
            responses.append(await http.get("/x"))

        async with anyio.create_task_group() as group:
            group.start_soon(ask)
            while slow.runs < 2:
                await anyio.lowlevel.checkpoint()
            await cache.clear()
            slow.gate.set()
        assert responses[0].text != "1"


async def test_guarded_reader_that_waits_for_another_gets_stale_after_soft_timeout(cache, clock):
    async def first_state(soft_timeout):
        slow, first = Slow(), []
        await cache.clear()
        async with client(guarded(cache, slow, **TIMES, soft_timeout=soft_timeout)) as http:
            await http.get("/x", headers={"Authorization": "a"})
            clock.advance(61)

            async def ask():
                first.append(await http.get("/x", headers={"Authorization": "a"}))

            async with anyio.create_task_group() as group:
                group.start_soon(ask)
                while slow.runs < 2:
                    await anyio.lowlevel.checkpoint()
                late = await http.get("/x", headers={"Authorization": "b"})
                assert (late.status_code, late.headers["swr-state"]) == (200, "stale")
                assert late.headers["cache-status"] == 'swr; fwd=stale; detail="soft timeout, after dependencies"'
                slow.gate.set()
        return first[0].headers["swr-state"]

    for soft_timeout in GROWING:
        # On a machine that stands still, patience may end before the endpoint runs.
        if (state := await first_state(soft_timeout)) != "stale":
            break
    assert state == "missing"


async def test_guarded_readers_wait_past_soft_timeout_without_a_fallback(cache):
    slow = Slow()
    async with client(guarded(cache, slow, **TIMES, soft_timeout="1ms")) as http:
        # Now it is known that the endpoint is behind a guard.
        await http.get("/x", headers={"Authorization": "a"})
        await cache.clear()

        async def release():
            while slow.runs < 2:
                await anyio.lowlevel.checkpoint()
            await anyio.sleep(0.02)
            slow.gate.set()

        ask = [http.get("/x", headers={"Authorization": user}) for user in "ab"]
        *responses, _ = await gather(*ask, release())
        assert [response.status_code for response in responses] == [200, 200]
        assert slow.runs == 2


def hold_back_leases(monkeypatch):
    """Return the event until which requests for leases take, as they do of a Redis that is busy."""
    acquire, gate = MemoryStore.acquire, anyio.Event()

    async def acquire_late(*args, **kwargs):
        await gate.wait()
        return await acquire(*args, **kwargs)

    monkeypatch.setattr(MemoryStore, "acquire", acquire_late)
    return gate


async def test_guarded_readers_past_soft_timeout_share_one_endpoint_run(cache, monkeypatch):
    slow = Slow()
    slow.gate.set()
    async with client(guarded(cache, slow, **TIMES, soft_timeout="1ms")) as http:
        await http.get("/x", headers={"Authorization": "a"})
        await cache.clear()
        gate = hold_back_leases(monkeypatch)

        def readers():
            return sum(len(turns_of(flight)._seats) for flight in cache.engine.flights.all())

        async def release():
            await until(lambda: readers() == 2)
            await anyio.sleep(0.05)
            gate.set()

        ask = [http.get("/x", headers={"Authorization": user}) for user in "ab"]
        *responses, _ = await gather(*ask, release())
        assert [response.status_code for response in responses] == [200, 200]
        assert slow.runs == 2
        again = await http.get("/x", headers={"Authorization": "c"})
        assert (again.headers["swr-state"], slow.runs) == ("fresh", 2)


async def test_guarded_readers_share_one_run_after_a_reader_left_before_its_load_began(cache, monkeypatch):
    slow = Slow()
    slow.gate.set()
    release, releasing, may_release = MemoryStore.release, anyio.Event(), anyio.Event()

    async def release_late(*args, **kwargs):
        releasing.set()
        await may_release.wait()
        await release(*args, **kwargs)

    async with client(guarded(cache, slow, **TIMES)) as http:
        await http.get("/x", headers={"Authorization": "a"})
        await cache.clear()
        gate = hold_back_leases(monkeypatch)
        monkeypatch.setattr(MemoryStore, "release", release_late)
        async with anyio.create_task_group() as group:
            group.start_soon(lambda: http.get("/x", headers={"Authorization": "a"}))
            await until(lambda: gate.statistics().tasks_waiting)
            group.cancel_scope.cancel()
        gate.set()
        await releasing.wait()

        async def let_release():
            await settle()
            may_release.set()

        ask = [http.get("/x", headers={"Authorization": user}) for user in "bc"]
        *responses, _ = await gather(*ask, let_release())
        assert [response.status_code for response in responses] == [200, 200]
        assert slow.runs == 2


async def test_guarded_reader_that_stops_waiting_for_a_lease_still_causes_a_refresh(cache, clock, monkeypatch):
    slow = Slow()
    slow.gate.set()
    async with client(guarded(cache, slow, **TIMES, soft_timeout="1ms")) as http:
        await http.get("/x", headers={"Authorization": "a"})
        clock.advance(61)
        gate = hold_back_leases(monkeypatch)
        late = await http.get("/x", headers={"Authorization": "b"})
        assert (late.headers["swr-state"], slow.runs) == ("stale", 1)
        gate.set()
        await until(lambda: slow.runs == 2)
        await until(lambda: not cache.engine.flights.all())
        again = await http.get("/x", headers={"Authorization": "b"})
        assert (again.headers["swr-state"], slow.runs) == ("fresh", 2)

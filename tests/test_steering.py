"""No client steers the cache: what one client sends neither drops, replaces nor turns off what others get."""

from typing import Annotated
from urllib.parse import unquote

import anyio
import pytest
from fastapi import FastAPI, Header, HTTPException, Request, Response
from fastapi.responses import PlainTextResponse as Plain

from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import gather, settle
from tests.web import MAX_AGE, App, Client, brief, client, open_later

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


KEPT = {"cache-control": "max-age=60, stale-if-error=3600"}


class Pages:
    """A FastAPI app with one page, that refuses some requests for what they alone say, and may be down."""

    def __init__(self, cache, refusal=None):
        self.runs = 0
        self.is_down = False
        self.app = app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache)

        @app.get("/page")
        async def page(
            response: Response,
            x_page: Annotated[int, Header()] = 1,
            range: Annotated[str, Header()] = "",
            referer: Annotated[str, Header()] = "",
        ):
            self.runs += 1
            run = self.runs
            await anyio.lowlevel.checkpoint()
            if self.is_down:
                raise HTTPException(503)
            if range and not range.startswith("bytes=0"):
                raise HTTPException(400, headers=refusal)
            if referer.isdigit():
                raise HTTPException(int(referer), headers=refusal)
            response.headers.update(KEPT)
            return run


BAD = [
    {"x-page": "abc"},
    {"range": "bytes=abc"},
    {"range": "lines=1-2", "if-range": '"1"'},
    *({"referer": str(status)} for status in (400, 402, 405, 406, 409, 411, 414, 418, 421, 422, 423, 424, 426, 451)),
    {"referer": "404", "range": "bytes=0-"},
    {"referer": "410", "if-none-match": '"1"'},
    {"referer": "404", "if-modified-since": "Mon, 01 Jan 2024 00:00:00 GMT"},
    {"referer": "501"},
]


@pytest.mark.parametrize("refusal", [None, {"cache-control": "max-age=600"}], ids=["plain", "with a lifetime"])
@pytest.mark.parametrize("bad", BAD, ids=str)
class TestBadRequest:
    async def test_bad_request_keeps_the_stored_response_as_fallback(self, cache, clock, bad, refusal):
        pages = Pages(cache, refusal)
        async with client(pages.app) as http:
            await http.get("/page")
            clock.advance(100)
            refused = await http.get("/page", headers=bad)
            if bad.get("referer") in ("404", "410", "501") and "range" not in bad and refusal is not None:
                # The app says for how long; the cache asked it for the whole, without the client's conditions.
                return
            assert refused.status_code >= 400
            pages.is_down = True
            assert brief(await http.get("/page")) == (200, "1", "stale")

    @pytest.mark.uncounted
    async def test_bad_request_disables_neither_caching_nor_collapsing(self, cache, bad, refusal):
        pages = Pages(cache)
        async with client(pages.app) as http:
            assert (await http.get("/page", headers=bad)).status_code >= 400
            before = pages.runs
            answers = await gather(*(http.get("/page") for _ in range(10)))
            assert {answer.status_code for answer in answers} == {200}
            assert pages.runs == before + 1
            assert (await http.get("/page")).headers["swr-state"] == "fresh"


@pytest.mark.parametrize("status", [400, 404, 410, 413, 416, 422, 500])
async def test_error_for_a_range_request_is_not_stored_as_the_whole(cache, status):
    app = App([(b"cache-control", b"max-age=60")], status=status)
    async with client(SWRMiddleware(app, cache, [Rule("/x", fresh_for=60)])) as http:
        answer = await http.get("/x", headers={"range": "bytes=x"})
        assert answer.status_code == status
        app.status = 200
        assert brief(await http.get("/x")) == (200, "2", "missing")
        assert brief(await http.get("/x")) == (200, "2", "fresh")


@pytest.mark.parametrize("status", [400, 422])
async def test_400_or_422_with_max_age_does_not_replace_a_stored_fallback(cache, clock, status):
    app = App([(b"cache-control", b"max-age=60, stale-if-error=3600")])
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(100)
        app.status = status
        answer = await http.get("/x")
        assert answer.status_code == status
        assert f'detail="status {status}"' in answer.headers["cache-status"]
        app.status = 503
        assert brief(await http.get("/x")) == (200, "1", "stale")


@pytest.mark.parametrize("status", [404, 410])
async def test_404_or_410_to_a_plain_request_removes_the_fallback(cache, clock, status):
    app = App([(b"cache-control", b"max-age=60, stale-if-error=3600")])
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(100)
        app.status, app.headers = status, []
        assert (await http.get("/x")).status_code == status
        app.status = 503
        assert (await http.get("/x")).status_code == 503


@pytest.mark.parametrize("method", ["PUT", "POST", "DELETE"])
async def test_url_that_was_404_is_cached_at_once_after_a_write(cache, method):
    app = App(status=404)
    async with client(SWRMiddleware(app, cache)) as http:
        assert (await http.get("/x?a=1")).headers["cache-status"] == 'swr; fwd=uri-miss; detail="no freshness"'
        app.status, app.headers = 200, MAX_AGE
        assert brief(await http.get("/x?a=1"))[2] == brief(await http.get("/x?a=1"))[2] == "missing"
        await http.request(method, "/x?a=1")
        assert [brief(await http.get("/x?a=1"))[2] for _ in range(2)] == ["missing", "fresh"]


@pytest.mark.parametrize("outdate", ["url", "all", "elsewhere"])
async def test_invalidation_lets_an_uncacheable_url_be_cached_again(cache, outdate):
    app = App(status=404)
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        app.status, app.headers = 200, MAX_AGE
        if outdate == "url":
            await cache.invalidate_url("/x")
        elif outdate == "all":
            await cache.clear()
        else:
            await cache.invalidate_url("/y")
        assert [brief(await http.get("/x"))[2] for _ in range(2)] == [
            "missing",
            "missing" if outdate == "elsewhere" else "fresh",
        ]


@pytest.mark.parametrize("status", [400, 405, 422, 451, 501])
async def test_refused_background_refresh_keeps_the_stale_entry_and_backs_off(cache, clock, status):
    app = App(MAX_AGE)
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(61)
        app.status, app.headers = status, []
        for _ in range(5):
            assert brief(await http.get("/x")) == (200, "1", "stale")
            await settle()
        assert app.runs == 2


class Choosy:
    """A FastAPI app that fails for one client, and holds its first run until others wait."""

    def __init__(self, cache, failure=500, **options):
        self.users = []
        self.gate = anyio.Event()
        self.is_down = False
        self.headers = MAX_AGE[0][1].decode()
        self.app = app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache, **options)

        @app.get("/page")
        async def page(request: Request):
            referer = request.headers.get("referer", "")
            self.users.append(referer)
            run = len(self.users)
            await self.gate.wait()
            if self.is_down or referer == "bad":
                if isinstance(failure, Exception):
                    raise failure
                raise HTTPException(failure, f"run {run}")
            return Plain(str(run), headers={"cache-control": self.headers})

    async def crowd(self, http, size=10):
        """Let a client that makes the app fail lead, and `size` others wait; return their answers."""

        async def later(number):
            while not self.users:
                await anyio.lowlevel.checkpoint()
            return await http.get("/page", headers={"referer": f"good {number}"})

        async def open_gate():
            while not self.users:
                await anyio.lowlevel.checkpoint()
            for _ in range(5):
                await settle()
            self.gate.set()

        bad = http.get("/page", headers={"referer": "bad"})
        answers = await gather(bad, *(later(number) for number in range(size)), open_gate())
        return answers[:-1]


@pytest.mark.parametrize("failure", [500, 502, 503, 504, 501, 400, 422, 431, RuntimeError("boom")], ids=str)
class TestFailingLeader:
    @pytest.mark.uncounted
    async def test_one_waiting_request_runs_the_app_again_and_answers_the_rest(self, cache, failure):
        choosy = Choosy(cache, failure)
        async with client(choosy.app) as http:
            bad, *others = await choosy.crowd(http)
            assert isinstance(bad, RuntimeError) or bad.status_code == failure
            assert {(answer.status_code, answer.text) for answer in others} == {(200, "2")}
            assert brief(await http.get("/page"))[2] == "fresh"
        assert [user == "bad" for user in choosy.users] == [True, False]

    @pytest.mark.uncounted
    async def test_app_runs_twice_when_it_fails_for_every_client_unless_it_refuses_them(self, cache, failure):
        choosy = Choosy(cache, failure)
        choosy.is_down = True
        async with client(choosy.app) as http:
            answers = await choosy.crowd(http)
            assert not [
                answer for answer in answers if not isinstance(answer, RuntimeError) and answer.status_code < 400
            ]
        if isinstance(failure, int) and failure not in (500, 502, 503, 504):
            # It is for one client each; a refusal may say something about that client.
            assert len(choosy.users) == len(answers)
        else:
            assert len(choosy.users) == 2


class Hanging:
    """An app whose first run hangs, or all of its runs; before its answer begins, or in the middle of it."""

    def __init__(self, cache, *, always=False, begins=False, hard_timeout=1):
        self.runs = 0
        self.always = always
        self.begins = begins
        self.begun = anyio.Event()
        self.middleware = SWRMiddleware(self.answer, cache, hard_timeout=hard_timeout)

    async def answer(self, scope, receive, send):
        self.runs += 1
        run = self.runs
        self.begun.set()
        if run == 1 or self.always:
            if self.begins:
                await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
                await send({"type": "http.response.body", "body": b"1", "more_body": True})
            await anyio.sleep_forever()
        await Plain(str(run), headers={"cache-control": "max-age=60"})(scope, receive, send)

    async def crowd(self, leader, others):
        """Let `leader` begin, and `others` wait for its run; return the answers, the leader's first.

        Each is a pair of fields and address.
        """

        async def ask(headers, address):
            fields = [(name.encode(), value.encode()) for name, value in headers.items()]
            http = Client()
            await self.middleware(scope_of("/page", headers=fields, client=(address, 1)), http.receive, http.send)
            return http.sent[0]["status"], b"".join(message.get("body", b"") for message in http.sent)

        async def later(headers, address):
            await self.begun.wait()
            return await ask(headers, address)

        return await gather(ask(*leader), *(later(*other) for other in others))


class TestHangingLeader:
    @pytest.mark.parametrize(
        ("leader", "others"),
        [
            (({"referer": "bad"}, "a"), ({"referer": "good"}, "a")),
            (({"user-agent": "bad"}, "a"), ({}, "a")),
            (({}, "tar pit"), ({}, "b")),
            (({"accept": "x", "accept-language": "y"}, "a"), ({"accept": "x", "accept-language": "z"}, "a")),
        ],
        ids=str,
    )
    async def test_one_waiting_request_that_differs_runs_the_app_and_answers_the_rest(self, cache, leader, others):
        hanging = Hanging(cache)
        first, *rest = await hanging.crowd(leader, [others] * 10)
        # By the time that it is told, the other one may have stored an answer.
        assert first[0] == 504 or first == (200, b"2")
        assert set(rest) == {(200, b"2")}
        assert hanging.runs == 2

    async def test_waiting_requests_are_answered_when_the_leader_hangs_within_its_body(self, cache):
        hanging = Hanging(cache, begins=True)
        first, *rest = await hanging.crowd(({"referer": "bad"}, "a"), [({}, "a")] * 10)
        assert isinstance(first, Exception)
        assert set(rest) == {(200, b"2")}

    async def test_hanging_leader_is_given_up_without_a_hard_timeout(self, clock):
        async with Cache(clock=clock, lease_for=0.1) as cache:
            hanging = Hanging(cache, hard_timeout=None)
            first, *rest = await hanging.crowd(({"referer": "bad"}, "a"), [({}, "a")] * 10)
        assert first[0] == 504 or first == (200, b"2")
        assert set(rest) == {(200, b"2")}

    async def test_identical_waiting_requests_get_504_without_another_run(self, cache):
        hanging = Hanging(cache)
        answers = await hanging.crowd(({"referer": "x"}, "a"), [({"referer": "x"}, "a")] * 10)
        assert {status for status, _ in answers} == {504}
        assert hanging.runs == 1

    async def test_app_runs_only_twice_when_it_hangs_for_every_client(self, cache):
        hanging = Hanging(cache, always=True)
        answers = await hanging.crowd(({"referer": "bad"}, "a"), [({"referer": str(n)}, "a") for n in range(10)])
        assert {status for status, _ in answers} == {504}
        assert hanging.runs == 2

    async def test_hanging_background_refresh_is_not_tried_again(self, cache, clock):
        app = App([(b"cache-control", b"max-age=1, stale-while-revalidate=10")])
        async with client(SWRMiddleware(app, cache, hard_timeout=1, stale_if_unreachable=0)) as http:
            await http.get("/x")
            clock.advance(5)
            app.gate = anyio.Event()
            assert (await http.get("/x")).headers["swr-state"] == "stale"
            clock.advance(100)
            answer = await http.get("/x", headers={"referer": "other"})
        assert (answer.status_code, app.runs) == (504, 2)


@pytest.mark.parametrize("failure", [500, 502, 503, RuntimeError("boom")], ids=str)
class TestFieldThatMakesTheAppFail:
    @pytest.mark.uncounted
    async def test_failing_field_does_not_prevent_the_refresh_for_others(self, cache, clock, failure):
        choosy = Choosy(cache, failure)
        choosy.gate.set()
        async with client(choosy.app) as http:
            await http.get("/page")
            for round_ in range(3):
                clock.advance(1000)
                stale = await http.get("/page", headers={"referer": "bad"})
                assert stale.headers["swr-state"] == "stale"
                await settle()
                assert brief(await http.get("/page")) == (200, str(2 * round_ + 3), "fresh")

    @pytest.mark.uncounted
    async def test_refresh_backs_off_when_the_app_fails_without_the_field_too(self, cache, clock, failure):
        choosy = Choosy(cache, failure)
        choosy.gate.set()
        async with client(choosy.app) as http:
            await http.get("/page")
            clock.advance(1000)
            choosy.is_down = True
            for _ in range(10):
                assert (await http.get("/page", headers={"referer": "bad"})).headers["swr-state"] == "stale"
                await settle()
        assert len(choosy.users) == 3


@pytest.mark.parametrize("name", ["X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X_Method_Override"])
@pytest.mark.parametrize("method", ["GET", "QUERY"])
async def test_request_with_a_method_override_field_bypasses_the_cache(cache, method, name):
    async def overridden(scope, receive, send):
        """Takes the field for the method, as Werkzeug's recipe does for every request."""
        is_head = any(field == name.lower().encode() for field, _ in scope["headers"])
        await Plain("" if is_head else "page", headers={"cache-control": "max-age=60"})(scope, receive, send)

    async with client(SWRMiddleware(overridden, cache)) as http:
        answer = await http.request(method, "/x", headers={name: "HEAD"})
        assert (answer.text, answer.headers["cache-status"]) == ("", 'swr; fwd=bypass; detail="method override"')
        for state in ("missing", "fresh"):
            answer = await http.request(method, "/x")
            assert (answer.text, answer.headers["swr-state"]) == ("page", state)
        assert (await http.request(method, "/x", headers={name: "HEAD"})).text == ""


async def test_error_with_targeted_no_store_is_not_shared_with_waiting_requests(cache):
    app = App([(b"cdn-cache-control", b"no-store")], status=500)
    async with client(SWRMiddleware(app, cache)) as http:
        answers = await gather(*(http.get("/x") for _ in range(3)), open_later(app))
    assert sorted(answer.text for answer in answers[:-1]) == ["1", "2", "3"]


class Sometimes(App):
    """An app whose runs name these fields in `Vary` in turn, and answer with their number."""

    def __init__(self, *varies, headers=MAX_AGE):
        super().__init__()
        self.varies, self.plain = varies, headers

    async def __call__(self, scope, receive, send):
        vary = self.varies[self.runs % len(self.varies)]
        self.headers = self.plain if vary is None else [*self.plain, (b"vary", vary.encode())]
        await super().__call__(scope, receive, send)


ROUND = [{"foo": foo, "bar": bar} for foo in "12" for bar in "12"]


@pytest.mark.parametrize(
    "varies",
    [
        ("foo", None),
        (None, "foo"),
        ("foo", "bar"),
        ("foo", "foo, bar", None),
        ("foo", None, None, None),
        ("a", "b", "foo", None),
    ],
    ids=str,
)
class TestUrlThatVariesSometimes:
    @pytest.mark.uncounted
    async def test_url_that_varies_sometimes_is_cached(self, cache, clock, varies):
        app = Sometimes(*varies)
        async with client(SWRMiddleware(app, cache)) as http:
            # Until swr has seen all that the responses name, each may bring a variant of its own.
            for _ in range(len(varies)):
                for headers in ROUND:
                    await http.get("/x", headers=headers)
            runs = app.runs
            assert runs <= len(varies) * len(ROUND)
            for _ in range(5):
                answers = [await http.get("/x", headers=headers) for headers in ROUND]
                assert {answer.headers["swr-state"] for answer in answers} == {"fresh"}
            assert app.runs == runs

    @pytest.mark.uncounted
    async def test_url_that_varies_sometimes_stays_cached_while_its_responses_expire(self, cache, clock, varies):
        app = Sometimes(*varies, headers=[(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            for number in range(200):
                await http.get("/x", headers=ROUND[number % len(ROUND)])
                clock.advance(5)
        # 1,000 seconds are 17 lives of a response, of which there are 4 at most.
        assert app.runs < 100


async def test_response_without_vary_is_served_only_to_requests_with_equal_fields(cache):
    """The app compresses the page only for clients that accept it, and sends `Vary` only then."""

    async def app(scope, receive, send):
        accepts = dict(scope["headers"]).get(b"accept-encoding")
        headers = {"cache-control": "max-age=60", **({"vary": "accept-encoding"} if accepts == b"gzip" else {})}
        await Plain(str(accepts), headers=headers)(scope, receive, send)

    async with client(SWRMiddleware(app, cache)) as http:
        for _ in range(3):
            for coding in ("gzip", "identity", "br"):
                answer = await http.get("/x", headers={"accept-encoding": coding})
                assert answer.text == str(coding.encode())
        assert answer.headers["swr-state"] == "fresh"


@pytest.mark.parametrize("vary", ["foo", "bar", "foo, bar", None, "baz", "*"])
async def test_head_renews_the_response_unless_it_varies_by_an_unseen_field(cache, clock, vary):
    app = Sometimes("foo", "bar", None, headers=[(b"cache-control", b"max-age=60"), (b"etag", b'"1"')])
    async with client(SWRMiddleware(app, cache)) as http:
        for _ in range(3):
            for headers in ROUND:
                await http.get("/x", headers=headers)
        clock.advance(61)
        app.varies = (vary,)
        await http.head("/x", headers=ROUND[0])
        state = (await http.get("/x", headers=ROUND[0])).headers["swr-state"]
    assert state == ("missing" if vary in ("baz", "*") else "fresh")


async def test_unknown_vary_field_of_some_responses_selects_under_a_rule(cache):
    app = Sometimes("x-foo", None, headers=[])
    async with client(SWRMiddleware(app, cache, [Rule("/x", fresh_for=60)])) as http:
        for _ in range(2):
            answers = [await http.get("/x", headers={"x-foo": foo}) for foo in "1234"]
        assert {answer.headers["swr-state"] for answer in answers} == {"fresh"}


async def test_url_that_stopped_varying_is_shared_after_its_variants_expire(cache, clock):
    app = Sometimes("foo")
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x", headers={"foo": "1"})
        app.varies = (None,)
        assert (await http.get("/x", headers={"foo": "2"})).text == "2"
        clock.advance(4000)
        answers = await gather(*(http.get("/x", headers={"foo": "3"}) for _ in range(3)), open_later(app))
        assert {answer.text for answer in answers[:-1]} == {"3"}
        assert {brief(await http.get("/x", headers={"foo": foo})) for foo in "12345"} == {(200, "3", "fresh")}


async def test_revalidated_variants_stay_stored_when_only_some_responses_vary(cache):
    runs = []

    async def app(scope, receive, send):
        fields = dict(scope["headers"])
        runs.append(etag := b'"%b"' % fields.get(b"foo", b""))
        headers = {"cache-control": "no-cache", "etag": etag.decode()}
        is_known = fields.get(b"if-none-match") == etag
        response = Plain(etag, headers=headers if len(runs) % 2 else {**headers, "vary": "foo"})
        response.status_code = 304 if is_known else 200
        await response(scope, receive, send)

    async with client(SWRMiddleware(app, cache)) as http:
        states = [(await http.get("/x", headers={"foo": foo})).headers["cache-status"] for foo in "121323132"]
    assert [state for state in states[4:] if "fwd-status=304" not in state] == []


@pytest.mark.uncounted
async def test_url_varies_by_at_most_32_fields(cache):
    app = Sometimes(*(f"h{number}" for number in range(100)))
    async with client(SWRMiddleware(app, cache)) as http:
        for number in range(100):
            await http.get("/x", headers={f"h{number}": "1"})
    assert max(len(slot.value.names) for slot in cache.local.slots.values() if hasattr(slot.value, "variants")) == 32


class TestUnstoredVaryingResponse:
    """Who: a crawler that is sent elsewhere, or a client that asks for the stream of a page's changes."""

    CRAWLER, READER = {"user-agent": "crawler"}, {"user-agent": "reader"}

    @pytest.fixture
    def page(self):
        async def page(scope, receive, send):
            is_crawler = dict(scope["headers"])[b"user-agent"] == b"crawler"
            page.runs += 1
            page.under_way += 1
            page.most = max(page.most, page.under_way)
            if page.gate is not None:
                await page.gate.wait()
            page.under_way -= 1
            vary = [(b"vary", b"user-agent")] if is_crawler or page.is_open else []
            if is_crawler:
                app = App([*vary, (b"cache-control", b"no-store")], status=302, body=b"elsewhere")
            else:
                app = App([*vary, *MAX_AGE], body=b"page")
            await app(scope, receive, send)

        page.runs = page.under_way = page.most = 0
        page.gate, page.is_open = None, True
        return page

    @pytest.mark.parametrize("is_open", [True, False])
    async def test_url_stays_cacheable_for_other_fields_after_a_varying_no_store_response(self, cache, page, is_open):
        page.is_open = is_open
        async with client(SWRMiddleware(page, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x", headers=self.CRAWLER)).status_code == 302
            found = [brief(await http.get("/x", headers=self.READER)) for _ in range(2)]
            assert found == [(200, "page", "missing"), (200, "page", "fresh")]
            # With the same fields it is known not to be stored.
            again = await http.get("/x", headers=self.CRAWLER)
            assert again.status_code == (302 if is_open else 200)

    async def test_varying_no_store_response_keeps_the_stored_fallback(self, cache, page, clock):
        page.is_open = False
        async with client(SWRMiddleware(page, cache), raises=False) as http:
            await http.get("/x", headers=self.READER)
            clock.advance(61 + 600)
            assert (await http.get("/x", headers=self.CRAWLER)).status_code == 302
            entry = cache.engine.store.peek("GET http://test\n/x?")
            assert entry is not None
            assert entry.value.body == b"page"

    async def test_requests_waiting_with_other_fields_share_one_more_run(self, cache, page):
        page.gate = anyio.Event()
        async with client(SWRMiddleware(page, cache)) as http:

            async def open_gate():
                while not page.under_way:
                    await anyio.lowlevel.checkpoint()
                await settle()
                page.gate.set()

            asked = [http.get("/x", headers=headers) for headers in (self.CRAWLER, *[self.READER] * 5)]
            *found, _ = await gather(*asked, open_gate())
            assert [response.status_code for response in found] == [302, *[200] * 5]
            assert page.runs == 2
            assert (await http.get("/x", headers=self.READER)).headers["swr-state"] == "fresh"

    async def test_requests_that_repeat_an_unstored_variant_run_in_parallel(self, cache, page):
        async with client(SWRMiddleware(page, cache)) as http:
            await http.get("/x", headers=self.CRAWLER)
            page.gate = anyio.Event()

            async def open_gate():
                while page.under_way < 3:
                    await anyio.lowlevel.checkpoint()
                page.gate.set()

            await gather(*[http.get("/x", headers=self.CRAWLER) for _ in range(3)], open_gate())
        assert page.most == 3


class TestRequestDirectives:
    @pytest.mark.parametrize("value", ["min-fresh=2147483648", "min-fresh=59", "Min-Fresh=600, no-store", "min-fresh"])
    async def test_min_fresh_does_not_force_a_load_of_a_fresh_response(self, cache, clock, value):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(30)
            for _ in range(3):
                assert brief(await http.get("/x", headers={"cache-control": value})) == (200, "1", "fresh")
        assert app.runs == 1

    @pytest.mark.parametrize("value", ["no-store", "No-Store, max-age=0", "no-cache, no-store", "no-store;"])
    async def test_no_store_request_is_answered_from_the_cache(self, cache, clock, value):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            said = {"cache-control": value}
            assert brief(await http.get("/x", headers=said)) == (200, "1", "fresh")
            assert (await http.head("/x", headers=said)).headers["swr-state"] == "fresh"
            clock.advance(61)
            assert brief(await http.get("/x", headers=said)) == (200, "1", "stale")
            await settle()
            assert brief(await http.get("/x", headers=said)) == (200, "2", "fresh")

    @pytest.mark.parametrize("method", ["GET", "HEAD"])
    async def test_response_to_a_no_store_request_is_not_stored(self, cache, clock, method):
        app = App([*MAX_AGE, (b"etag", b'"1"')])
        async with client(SWRMiddleware(app, cache)) as http:
            said = {"cache-control": "no-store"}
            for _ in range(2):
                answer = await http.request(method, "/x", headers=said)
                assert answer.headers["cache-status"] == 'swr; fwd=request; detail="no-store"'
            assert brief(await http.get("/x")) == (200, "3", "missing")
            clock.advance(10_000)
            assert (await http.request(method, "/x", headers=said)).headers["swr-state"] == "missing"
            assert brief(await http.get("/x")) == (200, "5", "missing")

    async def test_no_store_request_joins_a_running_load(self, cache):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:

            async def later(headers):
                await app.begun.wait()
                return await http.get("/x", headers=headers)

            said = {"cache-control": "no-store"}
            answers = await gather(http.get("/x"), *(later(said) for _ in range(10)), open_later(app))
            assert {answer.text for answer in answers[:-1]} == {"1"}
        assert app.runs == 1

    async def test_response_to_a_no_store_request_is_not_shared_with_waiting_requests(self, cache):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:

            async def later():
                await app.begun.wait()
                return await http.get("/x")

            said = {"cache-control": "no-store"}
            first, *others, _ = await gather(
                http.get("/x", headers=said), *(later() for _ in range(5)), open_later(app)
            )
            assert first.headers["cache-status"] == 'swr; fwd=request; detail="no-store"'
            assert sorted(answer.headers["cache-status"] for answer in others) == [
                *["swr; fwd=uri-miss; collapsed"] * 4,
                "swr; fwd=uri-miss; stored",
            ]
        assert app.runs == 2

    async def test_range_response_to_a_no_store_request_is_not_stored(self, cache):
        headers = [(b"cache-control", b"max-age=60"), (b"content-range", b"bytes 0-0/10"), (b"etag", b'"1"')]
        app = App(headers, status=206)
        async with client(SWRMiddleware(app, cache)) as http:
            for _ in range(2):
                answer = await http.get("/x", headers={"cache-control": "no-store", "range": "bytes=0-0"})
                assert answer.headers["swr-state"] == "missing"
        assert app.runs == 2


class TestUnsafeMethods:
    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        ("status", "outdates"),
        [
            *((status, True) for status in (200, 201, 202, 204, 206, 301, 302, 303)),
            *((status, False) for status in (300, 304, 307, 308, 400, 409, 500)),
        ],
    )
    async def test_write_invalidates_url_and_location_only_after_2xx_or_301_302_303(self, cache, status, outdates):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache), follow_redirects=False) as http:
            await http.get("/x")
            await http.get("/y")
            app.status = status
            app.headers = [(b"location", b"/y")]
            await http.post("/x")
            app.status, app.headers = 200, MAX_AGE
            states = [(await http.get(path)).headers["swr-state"] for path in ("/x", "/y")]
        assert states == ["missing" if outdates else "fresh"] * 2

    async def test_fastapi_slash_redirect_or_failure_of_a_post_invalidates_nothing(self, cache):
        app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/items/{item}", fresh_for=60)])

        @app.get("/items/{item}")
        async def read(item: str):
            return item

        @app.post("/items/{item}")
        async def write(item: str):
            raise HTTPException(409)

        async with client(app) as http:
            await http.get("/items/5")
            for path in ("/items/5/", "/items/5"):
                await http.post(path)
                assert (await http.get("/items/5")).headers["swr-state"] == "fresh"

    @pytest.mark.uncounted
    @pytest.mark.parametrize("method", ["POST", "PUT", "DELETE"])
    async def test_write_invalidates_its_url_on_its_own_host_for_every_scheme(self, cache, method):
        app = App(MAX_AGE)
        hosts = [
            "http://a",
            "https://a",
            "http://A",
            "https://a:443",
            "http://b",
            "https://b",
            "http://a.b",
            "http://a:8080",
        ]
        async with client(SWRMiddleware(app, cache)) as http:
            for host in hosts:
                await http.get(f"{host}/x?q=1")
            await http.request(method, "http://a/x?q=1")
            states = {host: (await http.get(f"{host}/x?q=1")).headers["swr-state"] for host in hosts}
            missing = [host for host, state in states.items() if state == "missing"]
            # "http://A" is "http://a", which is loaded again by then; httpx drops the port that a scheme implies.
            assert missing == ["http://a", "https://a"]
            await cache.invalidate_url("/x?q=1")
            states = {host: (await http.get(f"{host}/x?q=1")).headers["swr-state"] for host in hosts}
            assert [host for host, state in states.items() if state == "missing"] == [
                "http://a", "https://a", "http://b", "https://b", "http://a.b", "http://a:8080",
            ]  # fmt: skip

    @pytest.mark.parametrize("reference", ["/y", "http://a/y"])
    async def test_write_invalidates_its_location_on_its_own_host_only(self, cache, reference):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            for host in ("a", "b"):
                await http.get(f"http://{host}/y")
            app.status, app.headers = 201, [(b"location", reference.encode())]
            await http.post("http://a/x")
            app.status, app.headers = 200, MAX_AGE
            states = [(await http.get(f"http://{host}/y")).headers["swr-state"] for host in ("a", "b")]
        assert states == ["missing", "fresh"]

    async def test_write_invalidates_variants_on_its_own_host_only(self, cache):
        app = App([*MAX_AGE, (b"vary", b"foo")])
        async with client(SWRMiddleware(app, cache)) as http:
            for host in ("a", "b"):
                await http.get(f"http://{host}/x", headers={"foo": "1"})
            await http.post("http://a/x")
            states = [
                (await http.get(f"http://{host}/x", headers={"foo": "1"})).headers["swr-state"] for host in ("a", "b")
            ]
        assert states == ["missing", "fresh"]


AMBIGUOUS = [
    "/static/..%2faccount",
    "/static/..%2Faccount",
    "/static/%2e%2e/account",
    "/static/%2e%2e%2faccount",
    "/static/.%2e/account",
    "/static/../account",
    "/static/./x",
    "/static/x/..",
    "/static//../account",
    "/static//account",
    "//static/x",
    "/static/account;x.css",
    "/static/account%3bx.css",
    "/static/account%23x.css",
    "/static/account%3Fx.css",
    "/static/..%5caccount",
    "/static/..\\account",
    "/static/%252e%252e/account",
    "/static/..%252faccount",
    "/static/%25252e%25252e/account",
    "/static/account%00.css",
    "/static/account%0a.css",
    "/static/..%20/account",
    "/static/..%c0%afaccount",
    "/static/a%2fb",
]
PLAIN = ["/static/x.css", "/static/a/b.css", "/static/.well-known", "/static/...", "/static/a..b", "/static/100%25", "/static/%C3%A9", "/static/a%20b"]  # fmt: skip


def scope_of(url, **more):
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http",
        "path": unquote(url), "raw_path": url.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test"), *more.pop("headers", ())], **more,
    }  # fmt: skip


class TestAmbiguousPaths:
    RULES = [
        Rule("/static/{p:path}", fresh_for=60, override=True, cookies=(), drop_params=("x",)),
        Rule("/{p:path}", fresh_for=60, cookies=()),
    ]

    async def answers(self, cache, url, app, **more):
        middleware = SWRMiddleware(app, cache, self.RULES)
        found = []
        for _ in range(2):
            http = Client()
            await middleware(scope_of(url, **more), http.receive, http.send)
            found.append(dict(http.sent[0]["headers"])[b"swr-state"].decode())
        return found

    @pytest.mark.uncounted
    @pytest.mark.parametrize("has_raw_path", [True, False])
    @pytest.mark.parametrize("url", AMBIGUOUS)
    async def test_no_rule_applies_to_an_ambiguous_path(self, cache, url, has_raw_path):
        more = {} if has_raw_path else {"raw_path": None}
        if not has_raw_path and url == "/static/a%2fb":
            # Without the path as it was sent, this is a slash.
            return
        app = App()
        assert await self.answers(cache, url, app, **more) == ["missing", "missing"]
        more["headers"] = [(b"cookie", b"session=1")]
        assert await self.answers(cache, url, app, **more) == ["missing", "missing"]
        # The app has had the cookies: swr was not in the way.
        assert all((b"cookie", b"session=1") in scope["headers"] for scope in app.scopes[2:])

    @pytest.mark.parametrize("url", PLAIN)
    async def test_rules_apply_to_a_plain_path(self, cache, url):
        assert await self.answers(cache, url, App(), headers=[(b"cookie", b"session=1")]) == ["missing", "fresh"]

    async def test_drop_params_do_not_apply_to_an_ambiguous_path(self, cache):
        middleware = SWRMiddleware(App(MAX_AGE), cache, self.RULES)
        states = []
        for url in ("/static/..%2faccount", "/static/x.css"):
            for query in (b"x=1", b"x=2"):
                http = Client()
                await middleware(scope_of(url, query_string=query), http.receive, http.send)
                states.append(dict(http.sent[0]["headers"])[b"swr-state"])
        assert states == [b"missing", b"missing", b"missing", b"fresh"]

    async def test_page_of_a_user_behind_an_ambiguous_path_is_not_served_to_others(self, cache):
        """The static file server resolves the path, and so serves the page that the session selects."""

        async def app(scope, receive, send):
            user = dict(scope["headers"]).get(b"cookie", b"nobody").decode()
            await Plain(f"account of {user}")(scope, receive, send)

        middleware = SWRMiddleware(app, cache, self.RULES)
        for url in AMBIGUOUS:
            bodies = []
            for headers in ([(b"cookie", b"victim")], []):
                http = Client()
                await middleware(scope_of(url, headers=headers), http.receive, http.send)
                bodies.append(http.sent[-1]["body"])
            assert bodies == [b"account of victim", b"account of nobody"]


class TestCookiesOutsideTheRule:
    @pytest.mark.parametrize(
        ("named", "sent", "seen"),
        [
            ((), "session=1", None),
            (("lang",), "session=1; lang=de", "lang=de"),
            (("lang",), "session=1", None),
            (("lang", "b"), "b=2; session=1;lang=de; lang=en", "b=2; lang=de; lang=en"),
            (("lang",), "lang=de", "lang=de"),
        ],
    )
    async def test_run_that_is_stored_sees_only_the_cookies_that_the_rule_names(self, cache, named, sent, seen):
        app = FastAPI()
        app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/{p:path}", fresh_for=60, cookies=named)])

        @app.get("/page")
        async def page(cookie: Annotated[str | None, Header()] = None):
            return cookie

        async with client(app) as http:
            for _ in range(2):
                answer = await http.get("/page", headers={"cookie": sent})
                assert answer.json() == seen
            assert answer.headers["swr-state"] == "fresh"

    async def test_outer_middleware_finds_the_hidden_cookies_in_the_scope_again(self, cache):
        inside = SWRMiddleware(App(), cache, [Rule("/x", fresh_for=60, cookies=())])
        scope, http = scope_of("/x", headers=[(b"cookie", b"session=1")]), Client()
        await inside(scope, http.receive, http.send)
        assert (b"cookie", b"session=1") in scope["headers"]

    @pytest.mark.parametrize(
        ("cookie", "renews"), [("session=me", False), ("lang=de; session=me", False), (None, True)]
    )
    async def test_head_with_other_cookies_does_not_renew_the_stored_response(self, cache, clock, cookie, renews):
        app = App([(b"cache-control", b"max-age=60"), (b"etag", b'"1"')])
        headers = {} if cookie is None else {"cookie": cookie}
        async with client(SWRMiddleware(app, cache, [Rule("/x", cookies=())])) as http:
            await http.get("/x")
            clock.advance(61)
            app.headers.append((b"x-user", b"me"))
            await http.head("/x", headers=headers)
            app.headers.pop()
            answer = await http.get("/x")
            assert ("x-user" in answer.headers, answer.headers["swr-state"] == "fresh") == (renews, renews)

    async def test_post_response_is_not_stored_for_get_if_other_cookies_were_sent(self, cache):
        app = App([(b"cache-control", b"max-age=60"), (b"content-location", b"/x")])
        async with client(SWRMiddleware(app, cache, [Rule("/x", cookies=("lang",))])) as http:
            await http.post("/x", headers={"cookie": "session=1; lang=de"})
            assert (await http.get("/x", headers={"cookie": "lang=de"})).headers["swr-state"] == "missing"
            await http.post("/x", headers={"cookie": "lang=de"})
            assert (await http.get("/x", headers={"cookie": "lang=de"})).headers["swr-state"] == "fresh"


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "varies", [("foo", None), (None, "foo"), ("foo", "bar", None), ("foo, bar", None, "foo"), ("foo", "bar")], ids=str
)
@pytest.mark.parametrize("cache_control", ["max-age=60", "max-age=0, stale-while-revalidate=60", "no-cache"])
def test_varying_url_is_answered_when_each_request_has_its_own_event_loop(varies, cache_control):
    """Starlette's test client works like this unless it is used as a context manager."""
    cache, runs = Cache(), []
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)

    @app.get("/page")
    async def page():
        headers = {"cache-control": cache_control, "etag": '"1"'}
        vary = varies[len(runs) % len(varies)]
        runs.append(vary)
        return Plain(str(len(runs)), headers=headers if vary is None else {**headers, "vary": vary})

    async def ask(method, headers):
        async with client(app) as http:
            return (await http.request(method, "/page", headers=headers)).status_code

    for number in range(3 * len(varies)):
        for method, status in (("GET", 200), ("HEAD", 405), ("POST", 405)):
            headers = {"foo": str(number), "bar": "1"}
            # HEAD is answered from what GET has stored, if that is fresh.
            assert anyio.run(ask, method, headers) in (200, status)

"""A rule's `cookies=` hides all other cookies only in runs of the app whose response swr stores."""

import base64
import json
from typing import Annotated

import anyio
import itsdangerous
import pytest
from fastapi import Cookie, Depends, FastAPI, HTTPException, Request, Security
from fastapi.responses import JSONResponse, PlainTextResponse, RedirectResponse, Response, StreamingResponse
from fastapi.security import APIKeyCookie
from starlette.middleware.sessions import SessionMiddleware

from swr.middleware import Rule, SWRMiddleware, is_graphql_query
from tests.fleet import gather, settle
from tests.web import LEFT_OPEN, client

pytestmark = [pytest.mark.anyio, LEFT_OPEN]

RULES = [Rule("/{path:path}", fresh_for=60, cookies=("lang",))]


def session_of(**values):
    signed = itsdangerous.TimestampSigner("k").sign(base64.b64encode(json.dumps(values).encode()))
    return f"session={signed.decode()}"


ALICE = {"cookie": f"lang=de; {session_of(user='alice', visits=5)}"}
BOB = {"cookie": f"lang=de; {session_of(user='bob')}"}
# A visitor with a cookie that no app reads.
VISITOR = {"cookie": "_ga=1; lang=de"}


def name_of(request: Request) -> str:
    return request.session.get("user", "please log in")


class Pieces:
    """A body in pieces that needs no closing, because swr cancels the run in the middle."""

    def __init__(self, pieces):
        self._pieces = iter(pieces)

    def __aiter__(self):
        return self

    async def __anext__(self):
        await anyio.lowlevel.checkpoint()
        for piece in self._pieces:
            return piece
        raise StopAsyncIteration


class Site:
    """An app whose pages use the cookies of their visitor in different ways, and count their runs."""

    def __init__(self):
        self.runs = []
        self.seen = []
        app = self.app = FastAPI()

        @app.middleware("http")
        async def count(request, call_next):
            self.runs.append(request.url.path)
            self.seen.append(request.headers.get("cookie"))
            return await call_next(request)

        @app.get("/account")
        async def account(request: Request) -> list[str | int]:
            request.session["visits"] = request.session.get("visits", 0) + 1
            return [name_of(request), request.session["visits"]]

        @app.get("/who")
        async def who(request: Request) -> str:
            return name_of(request)

        @app.get("/late")
        async def late(request: Request) -> StreamingResponse:
            async def content():
                yield "you are "
                yield name_of(request)

            return StreamingResponse(content())

        @app.get("/redirect")
        async def redirect(request: Request) -> Response:
            return RedirectResponse("/login") if "user" not in request.session else PlainTextResponse(name_of(request))

        @app.get("/refused")
        async def refused(session: Annotated[str, Cookie()] = "") -> str:
            if not session:
                raise HTTPException(401)
            return session

        @app.get("/missing")
        async def missing(request: Request) -> str:
            if "session" not in request.cookies:
                raise HTTPException(404)
            return "here"

        @app.get("/fails")
        async def fails(request: Request) -> str:
            return request.cookies["session"]

        @app.get("/unavailable")
        async def unavailable(request: Request) -> Response:
            return PlainTextResponse("here", 200 if "session" in request.cookies else 500)

        @app.get("/private")
        async def private(request: Request) -> Response:
            return PlainTextResponse(request.cookies.get("session", "none"), headers={"cache-control": "private"})

        @app.get("/varies")
        async def varies(request: Request) -> Response:
            return PlainTextResponse(request.cookies.get("session", "none"), headers={"vary": "*"})

        @app.get("/large")
        async def large(request: Request) -> StreamingResponse:
            return StreamingResponse(Pieces(["x" * 2**16] * 20 + [request.cookies.get("session", "none")]))

        @app.get("/language")
        async def language(request: Request) -> str:
            return request.cookies.get("lang", "none")


PAGES = [
    "/account", "/who", "/late", "/redirect", "/refused", "/missing", "/fails", "/unavailable", "/private", "/varies", "/large",
]  # fmt: skip


def both(cache, place="inside", rules=RULES, **options):
    """Return a site behind swr and a bare one, each with its client, and with sessions inside swr or around it."""
    site, bare = Site(), Site()
    for one in (site, bare):
        if one is site and place == "around":
            one.app.add_middleware(SWRMiddleware, cache=cache, rules=rules, **options)
        one.app.add_middleware(SessionMiddleware, secret_key="k")
        if one is site and place == "inside":
            one.app.add_middleware(SWRMiddleware, cache=cache, rules=rules, **options)
    return site, client(site.app, raises=False), client(bare.app, raises=False)


def told(response):
    return response.status_code, response.text, response.headers.get("location"), "set-cookie" in response.headers


@pytest.mark.parametrize("place", ["inside", "around"])
@pytest.mark.parametrize("page", PAGES)
async def test_page_that_uses_other_cookies_answers_as_without_swr(cache, clock, page, place):
    _, http, bare = both(cache, place)
    async with http, bare:
        for headers in (ALICE, ALICE, VISITOR, BOB, {}, ALICE):
            assert told(await http.get(page, headers=headers)) == told(await bare.get(page, headers=headers))
        clock.advance(121)
        for headers in (VISITOR, BOB):
            assert told(await http.get(page, headers=headers)) == told(await bare.get(page, headers=headers))


@pytest.mark.parametrize("page", ["/refused", "/fails", "/unavailable"])
async def test_page_that_refuses_or_fails_without_a_cookie_runs_twice(cache, page):
    site, http, _ = both(cache)
    async with http:
        assert (await http.get(page, headers=ALICE)).status_code == 200
    assert site.seen == ["lang=de", ALICE["cookie"]]


@pytest.mark.parametrize("place", ["inside", "around"])
async def test_session_that_a_page_begins_begins_once(cache, place):
    _, http, bare = both(cache, place)
    async with http, bare:
        for _ in range(3):
            found = [(await one.get("/account", headers=VISITOR)).json() for one in (http, bare)]
            assert found == [["please log in", 1]] * 2


async def test_page_that_uses_only_the_cookies_of_the_rule_is_stored_in_one_run(cache):
    site, http, _ = both(cache)
    async with http:
        found = [await http.get("/language", headers=headers) for headers in (ALICE, BOB, VISITOR, {})]
        assert [(answer.json(), answer.headers["swr-state"]) for answer in found] == [
            ("de", "missing"),
            ("de", "fresh"),
            ("de", "fresh"),
            ("none", "missing"),
        ]
        assert site.seen == ["lang=de", None]


@pytest.mark.parametrize("page", ["/account", "/who", "/redirect", "/private", "/varies"])
async def test_page_that_cannot_be_stored_runs_twice_only_the_first_time(cache, page):
    site, http, _ = both(cache)
    async with http:
        for headers in (ALICE, BOB, VISITOR):
            await http.get(page, headers=headers)
    assert site.seen == ["lang=de", *(headers["cookie"] for headers in (ALICE, BOB, VISITOR))]


@pytest.mark.parametrize("page", ["/account", "/who", "/late"])
async def test_page_of_a_session_around_swr_runs_once_with_all_cookies(cache, page):
    site, http, _ = both(cache, "around")
    async with http:
        for headers in (ALICE, BOB):
            await http.get(page, headers=headers)
    assert site.seen == [ALICE["cookie"], BOB["cookie"]]


async def test_reason_of_the_run_without_cookies_is_the_detail(cache):
    _, http, _ = both(cache)
    async with http:
        for page, detail in (("/account", "set-cookie"), ("/who", "session"), ("/refused", "status 401")):
            found = await http.get(page, headers=ALICE)
            assert f'detail="{detail}"' in found.headers["cache-status"]
    assert cache.stats().not_stored == {"set-cookie": 1, "session": 1, "status 401": 1}


async def test_unknown_field_is_named_after_a_run_without_cookies(cache):
    _, http, _ = both(cache)
    async with http:
        found = await http.get("/language", headers={**ALICE, "x-unknown": "1"})
        assert found.headers["cache-status"] == 'swr; fwd=bypass; detail="field x-unknown"'


async def test_response_for_all_is_stored_although_its_first_client_has_a_session(cache):
    """Only the second run hides the cookies, because the first one has shown that the response is for everybody."""
    app, seen = FastAPI(), []

    @app.get("/x")
    async def answer(request: Request) -> Response:
        seen.append(request.headers.get("cookie"))
        return PlainTextResponse("same", headers={"cache-control": "public, max-age=60"})

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    app.add_middleware(SessionMiddleware, secret_key="k")
    async with client(app) as http:
        found = [await http.get("/x", headers=headers) for headers in (ALICE, BOB, ALICE)]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "missing", "fresh"]
    assert 'detail="cookie"' in found[0].headers["cache-status"]
    assert seen == [ALICE["cookie"], "lang=de"]


async def test_confirmation_of_a_run_with_all_cookies_is_not_stored(cache, clock):
    app, seen = FastAPI(), []

    @app.get("/x")
    async def answer(request: Request) -> Response:
        seen.append((request.headers.get("cookie"), request.headers.get("if-none-match")))
        headers = {"cache-control": "public, max-age=60", "etag": '"1"', "x-user": request.headers.get("cookie", "")}
        return Response("same", 304 if seen[-1][1] else 200, headers)

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    app.add_middleware(SessionMiddleware, secret_key="k")
    async with client(app) as http:
        await http.get("/x")
        clock.advance(61)
        assert (await http.get("/x", headers=ALICE)).status_code == 200
        assert ALICE["cookie"] not in str((await http.get("/x", headers={"cookie": "lang=de"})).headers)


async def test_waiting_requests_get_their_own_answers_after_a_run_without_cookies(cache):
    gate, begun = anyio.Event(), anyio.Event()
    app = FastAPI()

    @app.get("/x")
    async def who(request: Request) -> Response:
        begun.set()
        await gate.wait()
        user = request.cookies.get("user", "nobody")
        return PlainTextResponse(user, headers={"set-cookie": f"user={user}"})

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    found = {}

    async def ask(http, user):
        found[user] = (await http.get("/x", headers={"cookie": f"user={user}"} if user != "nobody" else {})).text

    async def open_it():
        await begun.wait()
        await settle()
        gate.set()

    async with client(app) as http:
        await gather(*(ask(http, user) for user in ("alice", "bob", "nobody")), open_it())
    assert found == {user: user for user in ("alice", "bob", "nobody")}


async def test_guard_that_reads_a_cookie_admits_under_a_rule_that_does_not_name_it(cache):
    app, runs = FastAPI(), []

    def guard(key: Annotated[str, Security(APIKeyCookie(name="key"))]) -> None:
        if key not in ("a", "b"):
            raise HTTPException(403)

    @app.get("/x", dependencies=[Depends(guard)])
    @cache.response(fresh_for=60)
    async def answer() -> int:
        runs.append(1)
        return len(runs)

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    async with client(app) as http:
        found = [await http.get("/x", headers={"cookie": f"lang=de; key={key}"}) for key in ("a", "b", "wrong", "a")]
        assert [answer.status_code for answer in found] == [200, 200, 403, 200]
        assert [answer.text for answer in found if answer.status_code == 200] == ["1"] * 3
        assert (await http.get("/x")).status_code in (401, 403)


@pytest.mark.parametrize("pieces", [1, 3])
@pytest.mark.parametrize("has_condition", [False, True])
async def test_stored_response_reaches_the_client_whole_after_a_run_without_cookies(cache, pieces, has_condition):
    app = FastAPI()

    @app.get("/x")
    async def answer() -> StreamingResponse:
        async def content():
            for number in range(pieces):
                yield str(number) * 400

        return StreamingResponse(content(), headers={"etag": '"1"'})

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    async with client(app) as http:
        condition = {"if-none-match": '"1"'} if has_condition else {}
        first = await http.get("/x", headers={**VISITOR, **condition})
        again = await http.get("/x", headers={"cookie": "lang=de"})
    body = "".join(str(number) * 400 for number in range(pieces))
    assert (first.status_code, first.text) == ((304, "") if has_condition else (200, body))
    assert (again.text, again.headers["swr-state"]) == (body, "fresh")


async def test_event_stream_is_begun_again_with_all_cookies(cache):
    app, ended = FastAPI(), []

    @app.get("/events")
    async def events(request: Request) -> StreamingResponse:
        user = request.cookies.get("user", "nobody")

        async def content():
            try:
                yield f"data: {user}\n\n"
                if user == "nobody":
                    await anyio.sleep_forever()
            finally:
                ended.append(user)

        return StreamingResponse(content(), media_type="text/event-stream")

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    async with client(app) as http:
        with anyio.fail_after(10):
            assert (await http.get("/events", headers={"cookie": "user=alice"})).text == "data: alice\n\n"
    assert ended == ["nobody", "alice"] or ended == ["alice"]


async def test_resource_of_the_first_run_is_closed_before_the_second_begins(cache):
    app, events = FastAPI(), []

    async def session(user: Annotated[str, Cookie()] = "nobody"):
        events.append(f"open {user}")
        try:
            yield user
        finally:
            events.append(f"close {user}")

    @app.get("/x")
    async def answer(user: Annotated[str, Depends(session)]) -> Response:
        return JSONResponse(user, headers={"cache-control": "no-store"})

    app.add_middleware(SWRMiddleware, cache=cache, rules=RULES)
    async with client(app) as http:
        assert (await http.get("/x", headers={"cookie": "user=alice"})).json() == "alice"
    assert events == ["open nobody", "close nobody", "open alice", "close alice"]


async def test_content_of_a_safe_post_reaches_both_runs(cache):
    app = FastAPI()

    @app.post("/graphql")
    async def graphql(request: Request) -> Response:
        user = request.cookies.get("user", "nobody")
        return PlainTextResponse(f"{user}: {(await request.json())['query']}", headers={"cache-control": "private"})

    rule = Rule("/graphql", ["POST"], fresh_for=60, safe=is_graphql_query, cookies=())
    app.add_middleware(SWRMiddleware, cache=cache, rules=[rule])
    async with client(app) as http:
        found = await http.post("/graphql", json={"query": "{ me }"}, headers={"cookie": "user=alice"})
        assert found.text == "alice: { me }"


async def test_stored_response_answers_for_a_failure_without_cookies(cache, clock):
    app, is_down = FastAPI(), []

    @app.get("/x")
    async def answer() -> str:
        if is_down:
            raise OSError("down")
        return "up"

    rules = [Rule("/x", fresh_for=60, stale_if_error=600, cookies=())]
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules)
    async with client(app, raises=False) as http:
        await http.get("/x", headers=VISITOR)
        is_down.append(True)
        clock.advance(61)
        assert (await http.get("/x", headers=VISITOR)).json() == "up"


async def test_run_without_cookies_that_hangs_ends_with_504(cache):
    app = FastAPI()

    @app.get("/x")
    async def answer() -> None:
        await anyio.sleep_forever()

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, cookies=(), hard_timeout=0.05)])
    async with client(app) as http:
        with anyio.fail_after(10):
            assert (await http.get("/x", headers=VISITOR)).status_code == 504


@pytest.mark.parametrize("status", [401, 403, 422, 500, 503])
async def test_failing_page_runs_twice_only_the_first_time_and_is_stored_again_once_it_works(cache, status):
    app, seen, works = FastAPI(), [], []

    @app.get("/x")
    async def page(request: Request) -> PlainTextResponse:
        seen.append(request.headers["cookie"])
        return PlainTextResponse("page", 200 if works else status)

    async with client(SWRMiddleware(app, cache, RULES)) as http:
        for _ in range(3):
            assert (await http.get("/x", headers=VISITOR)).status_code == status
        hidden, whole = "lang=de", VISITOR["cookie"]
        assert seen == [hidden, whole, whole, whole]
        works.append(True)
        states = [(await http.get("/x", headers=VISITOR)).headers["swr-state"] for _ in range(3)]
    assert states == ["missing", "missing", "fresh"]
    assert seen[4:] == [whole, hidden]


async def test_hidden_cookies_are_shown_for_two_minutes_after_a_run_that_failed_without_them(cache, clock):
    site = Site()
    async with client(SWRMiddleware(site.app, cache, RULES)) as http:
        for _ in range(2):
            assert (await http.get("/refused", headers=VISITOR)).status_code == 401
        clock.advance(121)
        await http.get("/refused", headers=VISITOR)
    hidden, whole = "lang=de", VISITOR["cookie"]
    assert site.seen == [hidden, whole, whole, hidden, whole]

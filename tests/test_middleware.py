"""The middleware on bare ASGI apps and on Starlette and FastAPI: what is stored, what goes out, who waits for whom."""

import asyncio
import contextvars
import gzip
import logging
import os
from typing import Annotated

import anyio
import anyio.lowlevel
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header, HTTPException, Security
from fastapi import Response as FastAPIResponse
from fastapi.security import APIKeyHeader
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route

from swr import Cache, ConfigurationError
from swr.http.stored_response import RESPONSES
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import fleet, gather, settle, until
from tests.web import LEFT_OPEN, MAX_AGE, App, Client, brief, cache_on, client, http_scope, open_later

pytestmark = pytest.mark.anyio


class TestServing:
    async def test_headers_report_missing_then_fresh_then_stale_with_age_and_ttl(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            answers = []
            for seconds in (0, 10, 55, 0):
                clock.advance(seconds)
                response = await http.get("/x")
                answers.append((*brief(response), response.headers.get("age"), response.headers["cache-status"]))
                await settle()
        assert answers == [
            (200, "1", "missing", None, "swr; fwd=uri-miss; stored"),
            (200, "1", "fresh", "10", "swr; hit; ttl=50"),
            (200, "1", "stale", "65", "swr; hit; ttl=-5"),
            (200, "2", "fresh", "0", "swr; hit; ttl=60"),
        ]
        assert "date" not in response.headers

    async def test_age_and_ttl_of_repeated_hits_advance_each_second(self, cache, clock):
        async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
            await http.get("/x")
            ages = []
            for _ in range(5):
                response = await http.get("/x")
                ages.append((response.headers["age"], response.headers["cache-status"]))
                clock.advance(0.375)
        assert [age for age, _ in ages] == ["0", "0", "0", "1", "1"]
        assert [status.rpartition("=")[2] for _, status in ages] == ["60", "59", "59", "58", "58"]

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        "outdate",
        [
            lambda cache, http: cache.invalidate_url("/x"),
            lambda cache, http: cache.invalidate_tag("t"),
            lambda cache, http: cache.clear(),
            lambda cache, http: http.post("/x"),
        ],
        ids=["url", "tag", "all", "POST"],
    )
    async def test_prepared_hit_is_not_sent_after_an_invalidation(self, cache, outdate):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache, rules=[Rule("/x", tags=["t"])])) as http:
            for _ in range(2):
                before = [brief(await http.get("/x")) for _ in range(3)]
                await outdate(cache, http)
                after = brief(await http.get("/x"))
                assert {state for _, _, state in before[1:]} == {"fresh"}
                assert after[2] == "missing"
                assert after[1] != before[0][1]

    @pytest.mark.uncounted
    async def test_entry_that_is_read_all_the_time_is_not_evicted(self, clock):
        async with Cache(clock=clock, l1_max_bytes=20_000) as cache:
            app = App(MAX_AGE)
            async with client(SWRMiddleware(app, cache)) as http:
                await http.get("/hot")
                for number in range(40):
                    clock.advance(1)
                    await http.get("/hot")
                    assert (await http.get("/hot")).text == "1"
                    await http.get(f"/{number}")
                assert len(cache.local.slots) < 20

    async def test_ttl_is_negative_within_the_first_second_of_staleness(self, cache, clock):
        """RFC 9211 2.5: ttl is negative once it is stale."""
        async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
            await http.get("/x")
            clock.advance(60.25)
            assert (await http.get("/x")).headers["cache-status"] == "swr; hit; ttl=-1"

    async def test_outer_swr_appends_to_cache_status_and_replaces_swr_state(self, cache):
        async with client(SWRMiddleware(SWRMiddleware(App(MAX_AGE), cache), Cache(clock=cache.engine.clock))) as http:
            for state, status in (("missing", "swr; fwd=uri-miss; stored"), ("fresh", "swr; hit; ttl=60")):
                response = await http.get("/x")
                assert response.headers.get_list("swr-state") == [state]
                assert response.headers.get_list("cache-status") == ["swr; fwd=uri-miss; stored", status]

    async def test_expired_local_entry_does_not_hide_a_fresh_one_in_the_store(self, clock):
        async with fleet(2, clock) as processes:
            middlewares = []
            app = App([(b"cache-control", b"max-age=10, stale-while-revalidate=10")])
            for process in processes:
                middleware = SWRMiddleware(app, cache_on(process, clock))
                middlewares.append(middleware)
            async with client(middlewares[0]) as one, client(middlewares[1]) as other:
                await one.get("/x")
                clock.advance(15)
                await other.get("/x")
                await settle()
                clock.advance(6)
                assert brief(await one.get("/x")) == (200, "2", "fresh")
                clock.advance(6)
                await other.get("/x")
                await settle()
                clock.advance(9)
                assert (await one.head("/x")).headers["swr-state"] == "fresh"

    async def test_hit_repeats_status_headers_and_body_byte_for_byte(self, cache):
        headers = [
            (b"cache-control", b"max-age=60"),
            (b"X-Twice", b"1"),
            (b"X-Twice", b"2"),
            (b"content-type", b"application/octet-stream"),
            (b"content-length", b"4000"),
            (b"x-latin", b"\xe9"),
            (b"date", b"Mon, 01 Jan 2024 00:00:00 GMT"),
        ]
        body = os.urandom(4000)
        app = App(headers, status=203, body=body)
        async with client(SWRMiddleware(app, cache)) as http:
            first, second = await http.get("/x"), await http.get("/x")
        for response in (first, second):
            assert (response.status_code, response.content) == (203, body)
            assert response.headers.raw[: len(headers)] == headers
        assert app.runs == 1

    @pytest.mark.uncounted
    @pytest.mark.parametrize("chunks", [[b"a", b"", b"b"], [b""], [b"x"] * 100])
    @pytest.mark.parametrize("last", [b"", b"end"])
    async def test_body_sent_in_many_messages_is_cached_whole(self, cache, chunks, last):
        app = App(MAX_AGE, body=last, chunks=chunks)
        async with client(SWRMiddleware(app, cache)) as http:
            for state in ("missing", "fresh"):
                assert brief(await http.get("/x")) == (200, b"".join([*chunks, last]).decode(), state)

    async def test_stale_hits_return_at_once_and_cause_one_refresh(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(61)
            app.gate = anyio.Event()
            with anyio.fail_after(60):
                for _ in range(20):
                    assert brief(await http.get("/x")) == (200, "1", "stale")
                    await settle()
            assert app.runs == 2
            app.gate.set()
            await settle()
            assert brief(await http.get("/x")) == (200, "2", "fresh")

    async def test_age_and_ttl_of_stale_hits_advance_during_the_refresh(self, cache, clock):
        """Age, state and ttl are right in each, whole and as 304, though swr prepares the response once."""
        app = App([*MAX_AGE, (b"etag", b'"1"')])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(59.5)
            assert (await http.get("/x")).headers["cache-status"] == "swr; hit; ttl=0"
            app.gate = anyio.Event()
            clock.advance(1)
            seen = []
            for condition in ("", "", '"1"', '"1"', '"2"'):
                answer = await http.get("/x", headers={"if-none-match": condition} if condition else {})
                seen.append(
                    (answer.status_code, *(answer.headers[name] for name in ("age", "swr-state", "cache-status")))
                )
                clock.advance(0.3)
            assert seen == [
                (200, "60", "stale", "swr; hit; ttl=-1"),
                (200, "60", "stale", "swr; hit; ttl=-1"),
                (304, "61", "stale", "swr; hit; ttl=-2"),
                (304, "61", "stale", "swr; hit; ttl=-2"),
                (200, "61", "stale", "swr; hit; ttl=-2"),
            ]
            clock.advance(600)
            app.gate.set()
            assert brief(await http.get("/x")) == (200, "2", "missing")
        assert app.runs == 2

    async def test_many_cold_readers_cause_one_run_of_the_app(self, cache):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(50)), open_later(app))
        assert app.runs == 1
        assert {brief(answer) for answer in answers[:-1]} == {(200, "1", "missing")}
        marks = [answer.headers["cache-status"] for answer in answers[:-1]]
        assert sorted(set(marks)) == ["swr; fwd=uri-miss; collapsed", "swr; fwd=uri-miss; stored"]
        assert marks.count("swr; fwd=uri-miss; stored") == 1

    async def test_path_query_host_and_scheme_each_select_another_entry(self, cache):
        app = App(MAX_AGE)
        urls = [
            "/a",
            "/a?",
            "/a?x=1",
            "/a?x=2",
            "/A",
            "/a/",
            "/a%2Fb",
            "/a/b",
            "http://other/a",
            "https://test/a",
            "/%C3%A9",
        ]
        async with client(SWRMiddleware(app, cache)) as http:
            answers = [(await http.get(url)).text for url in urls]
            for _ in range(3):
                assert [(await http.get(url)).text for url in urls] == answers
            assert (await http.get("http://TEST/a")).text == answers[0]
        # "/a" and "/a?" are told apart by nobody: the query is empty in both.
        assert len(set(answers)) == len(urls) - 1

    async def test_head_is_answered_from_a_stored_get(self, cache):
        app = App([*MAX_AGE, (b"content-length", b"1")])
        async with client(SWRMiddleware(app, cache)) as http:
            response = await http.head("/x")
            assert (response.headers["swr-state"], app.scopes[-1]["method"]) == ("missing", "HEAD")
            await http.get("/x")
            response = await http.head("/x")
            assert (response.content, response.headers["content-length"], response.headers["swr-state"]) == (
                b"",
                "1",
                "fresh",
            )
        assert app.runs == 2

    async def test_options_and_websocket_pass_through_untouched(self, cache):
        seen = []

        async def app(scope, receive, send):
            seen.append((scope["type"], receive, send))

        middleware = SWRMiddleware(app, cache)
        receive, send = object(), object()
        for scope in ({"type": "http", "method": "OPTIONS"}, {"type": "websocket"}):
            await middleware(scope, receive, send)
        assert seen == [("http", receive, send), ("websocket", receive, send)]

    async def test_foreground_run_gets_the_headers_and_body_of_the_request(self, cache):
        async def app(scope, receive, send):
            header, body, more = dict(scope["headers"])[b"x-custom"], b"", True
            while more:
                message = await receive()
                body, more = body + message.get("body", b""), message.get("more_body", False)
            await PlainTextResponse(header + body, headers={"cache-control": "max-age=1"})(scope, receive, send)

        async with client(SWRMiddleware(app, cache)) as http:
            request = http.build_request("GET", "/x", headers={"x-custom": "a"}, content=b"body")
            assert (await http.send(request)).text == "abody"


class TestConditions:
    async def test_matching_if_none_match_on_a_hit_gets_a_304(self, cache):
        app = App([*MAX_AGE, (b"etag", b'"v1"'), (b"content-type", b"text/plain"), (b"content-length", b"1")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            response = await http.get("/x", headers={"if-none-match": 'W/"v0", "v1"'})
            assert (response.status_code, response.content) == (304, b"")
            assert (response.headers["etag"], response.headers["swr-state"]) == ('"v1"', "fresh")
            assert "content-type" not in response.headers
            assert (await http.get("/x", headers={"if-none-match": '"v2"'})).status_code == 200
            for _ in range(2):
                response = await http.get("/x", headers={"if-none-match": '"v1"'})
                assert (response.status_code, response.content, response.headers["etag"]) == (304, b"", '"v1"')
        assert app.runs == 1

    async def test_matching_if_none_match_on_a_miss_gets_a_304_and_stores_the_whole(self, cache):
        """RFC 9110 13.1.2: the app is asked for the whole, so that everybody's next request is a hit."""
        seen = []

        async def app(scope, receive, send):
            seen.append(dict(scope["headers"]).get(b"if-none-match"))
            await PlainTextResponse("x", 200, {"cache-control": "max-age=60", "etag": '"v1"'})(scope, receive, send)

        async with client(SWRMiddleware(app, cache)) as http:
            response = await http.get("/x", headers={"if-none-match": '"v1"'})
            assert (brief(response), response.headers["etag"]) == ((304, "", "missing"), '"v1"')
            assert response.headers["cache-status"] == "swr; fwd=uri-miss; fwd-status=200; stored"
            assert brief(await http.get("/x")) == (200, "x", "fresh")
        assert seen == [None]

    async def test_only_if_cached_gets_a_504_on_a_miss_and_no_cache_still_gets_hits(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:

            async def get(cache_control):
                response = await http.get("/x", headers={"cache-control": cache_control})
                return *brief(response), response.headers["cache-status"]

            assert (await get("only-if-cached")) == (
                504,
                "",
                "missing",
                'swr; fwd=request; detail="only-if-cached"',
            )
            assert (await get("no-store")) == (
                200,
                "1",
                "missing",
                'swr; fwd=request; detail="no-store"',
            )
            assert (await get("max-age=0, no-cache"))[:3] == (200, "2", "missing")
            assert (await get("no-cache"))[:3] == (200, "2", "fresh")
            assert (await get("no-store"))[:3] == (200, "2", "fresh")
            clock.advance(40)
            assert (await get("min-fresh=30"))[:3] == (200, "2", "fresh")


class TestNeverShared:
    """Promise 9."""

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        "headers",
        [
            [(b"cache-control", b"private, max-age=60")],
            [(b"Cache-Control", b"NO-STORE")],
            [(b"cache-control", b"max-age=60"), (b"Set-Cookie", b"session=1")],
            [(b"cache-control", b"max-age=60"), (b"vary", b"*")],
            [],
        ],
    )
    @pytest.mark.parametrize("rule", [None, Rule("/x", fresh_for=60, stale_for=600, override=True)])
    async def test_response_with_private_no_store_set_cookie_or_vary_star_is_not_stored(self, cache, headers, rule):
        app = App(headers)
        async with client(SWRMiddleware(app, cache, rules=[rule] if rule else [])) as http:
            answers = []
            for _ in range(3):
                http.cookies.clear()
                answers.append(brief(await http.get("/x")))
        if headers or not rule:
            assert answers == [(200, "1", "missing"), (200, "2", "missing"), (200, "3", "missing")]
        else:
            assert answers[2] == (200, "1", "fresh")

    @pytest.mark.uncounted
    @pytest.mark.parametrize("header", ["authorization", "x-api-key"])
    async def test_response_to_a_request_with_credentials_is_shared_only_if_public(self, cache, header):
        app = App([(b"cache-control", b"max-age=60")])
        rules = [Rule("/ruled", fresh_for=60, override=True)]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            for path in ("/x", "/ruled"):
                texts = {(await http.get(path, headers={header: f"user {n}"})).text for n in range(3)}
                texts |= {(await http.get(path)).text, (await http.get(path)).text}
                texts |= {(await http.get(path, headers={header: "user 9"})).text}
                # Nobody's own answer went to anybody else; the one stored is of the request without credentials.
                assert len(texts) == 5
            app.headers = [(b"cache-control", b"public, max-age=60")]
            assert brief(await http.get("/public", headers={header: "a"}))[2] == "missing"
            assert brief(await http.get("/public", headers={header: "b"}))[2] == "fresh"
            assert brief(await http.get("/public"))[2] == "fresh"

    async def test_request_with_credentials_gets_its_own_response_during_another_load(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:

            async def second():
                await app.begun.wait()
                return await http.get("/x", headers={"authorization": "a"})

            first, other, _ = await gather(http.get("/x"), second(), open_later(app))
        assert (first.text, other.text) == ("1", "2")

    async def test_request_with_a_cookie_bypasses_the_cache(self, cache):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            response = await http.get("/x", headers={"cookie": "session=1"})
            assert (response.text, response.headers["cache-status"]) == ("2", 'swr; fwd=bypass; detail="cookie"')
            assert (await http.get("/x")).text == "1"

    async def test_cookies_of_a_rule_select_the_response_and_other_cookies_do_not(self, cache, clock):
        app = App()
        rules = [
            Rule("/none", fresh_for=60, stale_for=60, cookies=()),
            Rule("/x", fresh_for=60, stale_for=60, cookies=("lang",)),
        ]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:

            async def get(path, cookie):
                return (await http.get(path, headers={"cookie": cookie} if cookie else {})).text

            assert [await get("/x", cookie) for cookie in ("lang=de; session=1", "session=2;lang=de", "lang=en", "", "session=3")] == [
                "1", "1", "2", "3", "3",
            ]  # fmt: skip
            assert {await get("/none", cookie) for cookie in ("a=1", "b=2", "")} == {"4"}
            clock.advance(61)
            await get("/x", "session=4; lang=de")
            await settle()
            assert (dict(app.scopes[-1]["headers"])[b"cookie"], await get("/x", "lang=de")) == (b"lang=de", "5")

    async def test_option_cookies_rfc9111_shares_responses_despite_cookies_and_set_cookie(self, cache):
        app = App([*MAX_AGE, (b"set-cookie", b"a=b")])
        async with client(SWRMiddleware(app, cache, cookies="rfc9111")) as http:
            await http.get("/x", headers={"cookie": "session=1"})
            response = await http.get("/x", headers={"cookie": "session=2"})
            assert (*brief(response), response.headers["set-cookie"]) == (200, "1", "fresh", "a=b")

    async def test_readers_of_an_uncacheable_url_do_not_wait_for_each_other(self, cache):
        app = App([(b"cache-control", b"private")])
        middleware = SWRMiddleware(app, cache)
        async with client(middleware) as http:
            answers = await gather(*(http.get("/x") for _ in range(10)), open_later(app))
            assert sorted(int(answer.text) for answer in answers[:-1]) == list(range(1, 11))
            # From now on nobody waits for anybody, nor asks the store.
            app.gate, app.begun = anyio.Event(), anyio.Event()

            async def all_at_once():
                while app.runs < 20:
                    await anyio.lowlevel.checkpoint()
                app.gate.set()

            with anyio.fail_after(60):
                await gather(*(http.get("/x") for _ in range(10)), all_at_once())

    async def test_uncacheable_url_is_remembered_for_a_limited_time(self, cache, clock):
        app = App([(b"cache-control", b"no-store")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            app.headers = MAX_AGE
            assert brief(await http.get("/x")) == (200, "2", "missing")
            assert brief(await http.get("/x")) == (200, "3", "missing")
            clock.advance(121)
            assert brief(await http.get("/x")) == (200, "4", "missing")
            assert brief(await http.get("/x")) == (200, "4", "fresh")

    async def test_background_run_gets_only_the_parts_of_the_request_in_its_key(self, cache, clock):
        app = App([*MAX_AGE, (b"vary", b"Accept-Language")])
        variable, seen = contextvars.ContextVar("variable", default=None), []

        async def look(scope, receive, send):
            seen.append(variable.get())
            await app(scope, receive, send)

        middleware = SWRMiddleware(look, cache)
        variable.set("the client's")
        async with client(middleware) as http:
            await http.get("/x?q=1", headers={"accept-language": "de"})
            clock.advance(61)
            await http.get(
                "/x?q=1", headers={"accept-language": "de", "x-secret": "1", "user-agent": "me", "referer": "r"}
            )
            await settle()
        assert seen == ["the client's", None]
        scope = app.scopes[-1]
        assert (app.runs, scope["method"], scope["path"], scope["query_string"]) == (2, "GET", "/x", b"q=1")
        assert sorted(scope["headers"]) == [(b"accept-language", b"de"), (b"host", b"test")]
        assert (scope["client"], scope["extensions"], scope["state"]) == (None, {}, {})

    async def test_headers_declared_in_fastapi_select_the_response(self, cache, clock):
        """An endpoint that asks for a request field answers by it, whether `Vary` says so or not."""
        app = FastAPI()

        async def locale(accept_language: Annotated[str, Header()] = "en") -> str:
            return accept_language

        async def current_user(
            token: Annotated[str, Security(APIKeyHeader(name="X-Token"))], language: Annotated[str, Depends(locale)]
        ) -> str:
            if token == "bad":
                raise HTTPException(401)
            return f"{token} {language}"

        @app.get("/secret")
        @cache.response(fresh_for=60, stale_for=600, vary=("X-Read-From-The-Request",), credentials="vary")
        async def secret(user: Annotated[str, Depends(current_user)], x_odd: str = Header("", alias="X_Odd")) -> str:
            return f"{user}{x_odd}"

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:

            async def get(**headers):
                response = await http.get(
                    "/secret", headers={name.replace("_", "-"): value for name, value in headers.items()}
                )
                return response.status_code, response.text, response.headers["swr-state"]

            assert await get(x_token="alice") == (200, '"alice en"', "missing")
            assert await get(x_token="bob") == (200, '"bob en"', "missing")
            assert await get(x_token="alice", accept_language="de") == (200, '"alice de"', "missing")
            assert (await get(x_token="bad"))[0] == 401
            assert (await get())[0] in (401, 403)
            assert await get(x_token="alice") == (200, '"alice en"', "fresh")
            assert (await get(x_token="alice", x_read_from_the_request="1"))[2] == "missing"
            clock.advance(61)
            assert (await get(x_token="bob"))[2] == "stale"
            with anyio.fail_after(120):
                while (answer := await get(x_token="bob"))[2] == "stale":
                    await anyio.sleep(0.005)
            assert answer == (200, '"bob en"', "fresh")

    async def test_vary_of_a_rule_selects_the_response(self, cache):
        app = App()
        async with client(SWRMiddleware(app, cache, rules=[Rule("/x", fresh_for=60, vary=("X-User",))])) as http:
            texts = [(await http.get("/x", headers={"x-user": user})).text for user in ("a", "b", "a")]
        assert texts == ["1", "2", "1"]

    async def test_request_with_credentials_keeps_the_entry_that_others_share(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            response = await http.get("/x", headers={"authorization": "a"})
            assert response.headers["cache-status"] == 'swr; fwd=bypass; detail="authorization"'
            assert brief(await http.get("/x")) == (200, "1", "fresh")

    @pytest.mark.parametrize("status", [401, 412, 429])
    async def test_refusal_of_one_client_does_not_replace_the_stored_response(self, cache, clock, status):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(50)
            app.status, app.headers = status, []
            assert (await http.get("/x", headers={"if-match": "z"})).status_code == status
            assert brief(await http.get("/x")) == (200, "1", "fresh")
            clock.advance(11)
            assert brief(await http.get("/x")) == (200, "1", "stale")
            await settle()
            assert brief(await http.get("/x")) == (200, "1", "stale")

    async def test_slow_client_does_not_delay_other_readers(self, cache):
        app = App(MAX_AGE, chunks=[b"x" * 1000] * 5)
        middleware = SWRMiddleware(app, cache)
        reading = anyio.Event()

        class Slow(Client):
            async def send(self, message):
                await reading.wait()
                await super().send(message)

        slow = Slow()
        async with anyio.create_task_group() as group:
            group.start_soon(middleware, http_scope("/x"), slow.receive, slow.send)
            await settle()
            with anyio.fail_after(60):
                async with client(middleware) as http:
                    assert brief(await http.get("/x"))[2] == "fresh"
            reading.set()
        assert len(b"".join(message.get("body", b"") for message in slow.sent)) == 5001

    async def test_send_error_of_the_first_client_does_not_reach_waiters(self, cache):
        app = App(MAX_AGE)
        middleware = SWRMiddleware(app, cache)

        async def failing(message):
            raise RuntimeError("its own")

        async with client(middleware) as http:
            first, second, _ = await gather(
                middleware(http_scope("/x"), Client().receive, failing), http.get("/x"), open_later(app)
            )
        assert isinstance(first, RuntimeError)
        assert second.text == "1"

    async def test_repeated_host_or_host_with_a_path_has_its_own_entry(self, cache):
        app = App(MAX_AGE)
        middleware = SWRMiddleware(app, cache)
        seen = set()
        for host, path in ((b"a", "/b/c"), (b"a/b", "/c")):
            for hosts in ([host], [host, b"evil"], [b"evil", host]):
                http = Client()
                await middleware(http_scope(path, headers=[(b"host", name) for name in hosts]), http.receive, http.send)
                seen.add(http.sent[-1]["body"])
        assert len(seen) == 6

    async def test_order_of_repeated_cookies_selects_the_response(self, cache):
        app = App()
        rules = [Rule("/x", fresh_for=60, cookies=("a",))]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            texts = {(await http.get("/x", headers=[("cookie", line) for line in lines])).text for lines in (
                ["a=1; a=2"], ["a=2; a=1"], ["a =1"], ["a=1", "a=2; b=3"], ["b=1"],
            )}  # fmt: skip
        # The first and the fourth are the same cookies in the same order.
        assert len(texts) == 4

    async def test_scope_changes_by_the_app_do_not_change_the_key(self, cache):
        inner = App([*MAX_AGE, (b"vary", b"accept-language")])

        async def rewriting(scope, receive, send):
            scope["path"] = "/rewritten"
            scope["headers"][:] = [(b"accept-language", b"rewritten")]
            await inner(scope, receive, send)

        async with client(SWRMiddleware(rewriting, cache)) as http:
            for language in ("de", "en"):
                await http.get("/x", headers={"accept-language": language})
            assert [
                (await http.get("/x", headers={"accept-language": language})).text for language in ("de", "en")
            ] == ["1", "2"]
            await cache.invalidate_url("/x")
            assert brief(await http.get("/x", headers={"accept-language": "de"}))[2] == "missing"

    async def test_response_headers_may_be_any_iterable(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": iter(MAX_AGE)})
            await send({"type": "http.response.body", "body": b"x"})

        async with client(SWRMiddleware(app, cache)) as http:
            for state in ("missing", "fresh"):
                response = await http.get("/x")
                assert (response.headers["cache-control"], response.headers["swr-state"]) == (
                    MAX_AGE[0][1].decode(),
                    state,
                )


class TestVary:
    async def test_variants_are_selected_by_normalised_field_values(self, cache):
        app = App([*MAX_AGE, (b"vary", b"Accept-Language , X-Other")])
        async with client(SWRMiddleware(app, cache)) as http:

            async def get(*values):
                return (await http.get("/x", headers=[("accept-language", value) for value in values])).text

            assert [await get(), await get("de"), await get("en, fr"), await get("")] == ["1", "2", "3", "4"]
            assert [await get(), await get("de"), await get("en,fr"), await get("en", " fr"), await get("")] == [
                "1",
                "2",
                "3",
                "3",
                "4",
            ]

    async def test_stale_variant_is_refreshed_without_the_others(self, cache, clock):
        app = App([*MAX_AGE, (b"vary", b"accept-language")])
        async with client(SWRMiddleware(app, cache)) as http:
            for language in ("de", "en"):
                await http.get("/x", headers={"accept-language": language})
            clock.advance(61)
            assert brief(await http.get("/x", headers={"accept-language": "de"})) == (200, "1", "stale")
            await settle()
            assert brief(await http.get("/x", headers={"accept-language": "de"})) == (200, "3", "fresh")
            assert brief(await http.get("/x", headers={"accept-language": "en"})) == (200, "2", "stale")

    async def test_cold_readers_of_two_variants_cause_one_run_for_each(self, cache):
        app = App([*MAX_AGE, (b"vary", b"accept-language")])

        async def echo(scope, receive, send):
            app.body = dict(scope["headers"])[b"accept-language"]
            await app(scope, receive, send)

        async with client(SWRMiddleware(echo, cache)) as http:
            languages = ["de", "en"] * 10
            answers = await gather(
                *(http.get("/x", headers={"accept-language": language}) for language in languages), open_later(app)
            )
        assert [answer.text for answer in answers[:-1]] == languages
        assert app.runs == 2

    async def test_changed_vary_of_a_url_selects_by_the_new_fields(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x", headers={"a": "1", "b": "1"})
            for vary in (b"a", b"b", b"a, b"):
                app.headers = [*MAX_AGE, (b"vary", vary)]
                clock.advance(4000)
                texts = [(await http.get("/x", headers={"a": a, "b": b})).text for a in "12" for b in "12"]
                again = [(await http.get("/x", headers={"a": a, "b": b})).text for a in "12" for b in "12"]
                assert texts == again
                assert len(set(texts)) == (4 if b"," in vary else 2)

    @pytest.mark.parametrize("turns", [1, 4])
    async def test_url_with_another_vary_each_time_still_answers_every_reader(self, cache, monkeypatch, turns):
        monkeypatch.setattr("swr.middleware.handler._MOST_LOOKUPS", turns)

        class Restless(App):
            async def __call__(self, scope, receive, send):
                self.headers = [*MAX_AGE, (b"vary", b"h%d" % self.runs)]
                await super().__call__(scope, receive, send)

        app = Restless()
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(5)), open_later(app))
        assert {answer.status_code for answer in answers[:-1]} == {200}

    async def test_invalidating_a_url_invalidates_all_its_variants(self, cache):
        app = App([*MAX_AGE, (b"vary", b"accept-language")])
        async with client(SWRMiddleware(app, cache)) as http:
            for url in ("/x?q=1", "http://other/x?q=1"):
                for language in ("de", "en"):
                    await http.get(url, headers={"accept-language": language})
            await http.get("/x")
            await cache.invalidate_url("/x?q=1")
            for url in ("/x?q=1", "http://other/x?q=1"):
                for language in ("de", "en"):
                    assert brief(await http.get(url, headers={"accept-language": language}))[2] == "missing"
            assert brief(await http.get("/x"))[2] == "fresh"
            await cache.invalidate_url("http://whatever/x")
            assert brief(await http.get("/x"))[2] == "missing"

    async def test_variants_are_cached_while_the_store_is_unreachable(self, clock):
        async with fleet(1, clock) as (process,):
            app = App([*MAX_AGE, (b"vary", b"accept-language")])
            middleware = SWRMiddleware(app, cache_on(process, clock))
            await process.engine.ready()
            process.link.set_down(True)
            async with client(middleware) as http:
                for language, text, state in (("de", "1", "missing"), ("en", "2", "missing"), ("de", "1", "fresh")):
                    assert brief(await http.get("/x", headers={"accept-language": language})) == (200, text, state)
                # What cannot be stored is left without a lease to give back.
                app.headers = []
                assert brief(await http.get("/y")) == (200, "3", "missing")

    async def test_variant_overtaken_by_an_invalidation_is_not_kept_without_a_lease(self, clock):
        async with fleet(1, clock) as (process,):
            app = App([*MAX_AGE, (b"vary", b"accept-language")])
            middleware = SWRMiddleware(app, cache_on(process, clock))
            await process.engine.ready()
            process.link.set_down(True)

            async def overtake():
                await app.begun.wait()
                await process.engine.invalidate_tag("url:/x")
                app.gate.set()

            app.gate = anyio.Event()
            async with client(middleware) as http:
                await gather(http.get("/x"), overtake())
                assert brief(await http.get("/x")) == (200, "2", "missing")

    @pytest.mark.parametrize("trouble", ["away", "held"])
    async def test_variant_is_answered_if_its_own_lease_is_held_or_unavailable(self, clock, trouble):
        async with fleet(2, clock) as (process, other):
            app = App([*MAX_AGE, (b"vary", b"accept-language")])
            middleware = SWRMiddleware(app, cache_on(process, clock))
            await other.engine.ready()
            acquired = []

            async def second():
                acquired.append(1)
                if len(acquired) == 2 and trouble == "away":
                    process.link.is_down = True
                elif len(acquired) == 2:
                    await other.store.acquire("GET http://test\n/x?\nvary: accept-language=de", "t", 30, 0, RESPONSES)

            process.link.before["acquire"] = second
            async with client(middleware) as http:
                with anyio.fail_after(60):
                    response = await http.get("/x", headers={"accept-language": "de"})
            assert brief(response) == (200, "1", "missing")


class TestErrors:
    async def test_failed_background_refresh_keeps_the_stale_response(self, cache, clock, caplog):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(61)
            app.status = 503
            for _ in range(3):
                assert brief(await http.get("/x")) == (200, "1", "stale")
                await settle()
        assert app.runs == 2
        assert "the app answered 503" in caplog.text

    @pytest.mark.parametrize(("status", "chunks"), [(500, None), (502, [b"x"] * 3), (503, [b"x" * 2000]), (504, None)])
    async def test_error_status_gets_the_stale_if_error_fallback(self, cache, clock, status, chunks):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache, max_body_bytes=1000)) as http:
            await http.get("/x")
            clock.advance(661)
            app.status, app.chunks = status, chunks
            for _ in range(2):
                response = await http.get("/x")
                assert brief(response) == (200, "1", "stale")
                assert response.headers["cache-status"] == f"swr; fwd=stale; fwd-status={status}"
                assert response.headers["age"] == "661"

    async def test_exception_gets_the_stale_if_error_fallback(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(661)
            app.error = RuntimeError("x")
            response = await http.get("/x")
            assert (*brief(response), response.headers["cache-status"]) == (
                200,
                "1",
                "stale",
                "swr; fwd=stale; fwd-status=500",
            )

    async def test_error_without_fallback_goes_to_all_waiters_after_one_retry(self, cache):
        app = App(status=503, body=b"down")
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(10)), open_later(app))
            assert {brief(answer) for answer in answers[:-1]} == {(503, "down", "missing")}
            # One of those who waited has tried again.
            assert app.runs == 2
            app.status, app.headers = 200, MAX_AGE
            assert brief(await http.get("/x")) == (200, "down", "missing")
            assert brief(await http.get("/x")) == (200, "down", "fresh")

    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        "headers", [[(b"set-cookie", b"a=b")], [(b"cache-control", b"private")], [(b"cache-control", b"no-store")]]
    )
    async def test_error_that_may_not_be_shared_makes_the_app_run_for_each_waiter(self, cache, headers):
        app = App(headers, status=500)
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(3)), open_later(app))
        assert sorted(answer.text for answer in answers[:-1]) == ["1", "2", "3"]

    async def test_error_above_max_body_bytes_makes_the_app_run_for_each_waiter(self, cache):
        app = App(status=500, chunks=[b"x" * 600, b"y" * 600])
        async with client(SWRMiddleware(app, cache, max_body_bytes=1000)) as http:
            answers = await gather(*(http.get("/x") for _ in range(2)), open_later(app))
        assert app.runs == 2
        assert [len(answer.content) for answer in answers[:-1]] == [1201, 1201]

    async def test_large_error_response_waits_for_a_client_that_does_not_read(self, cache):
        taken = []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 500, "headers": []})
            for number in range(100):
                await send({"type": "http.response.body", "body": b"x" * 500, "more_body": True})
                taken.append(number)
            await send({"type": "http.response.body"})

        reading = anyio.Event()

        class Slow(Client):
            async def send(self, message):
                await reading.wait()
                await super().send(message)

        http = Slow()
        async with anyio.create_task_group() as group:
            group.start_soon(SWRMiddleware(app, cache, max_body_bytes=1000), http_scope("/x"), http.receive, http.send)
            await settle()
            await settle()
            assert len(taken) <= 3
            reading.set()
        assert len(http.sent) == 102

    async def test_exception_of_the_app_reaches_every_waiter_after_one_retry(self, cache):
        app = App()
        app.error = RuntimeError("x")
        async with client(SWRMiddleware(app, cache)) as http:
            answers = await gather(*(http.get("/x") for _ in range(3)), open_later(app))
        assert answers[:-1] == [app.error] * 3
        assert app.runs == 2

    async def test_stale_response_is_not_served_after_a_background_refresh_gets_a_404(self, cache, clock):
        app = App(MAX_AGE)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x")
            clock.advance(61)
            app.status, app.headers = 404, []
            assert brief(await http.get("/x")) == (200, "1", "stale")
            await settle()
            assert brief(await http.get("/x")) == (404, "3", "missing")

    async def test_response_without_an_end_raises_and_is_not_stored(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})

        middleware = SWRMiddleware(app, cache)
        sent = []

        async def send(message):
            sent.append(message)

        for _ in range(2):
            with pytest.raises(Exception, match="ended before"):
                await middleware(http_scope("/x"), Client().receive, send)
        assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"] * 2

    async def test_exception_after_the_response_reaches_one_reader_and_the_entry_is_stored(self, cache):
        app = App(MAX_AGE)

        async def failing(scope, receive, send):
            await app(scope, receive, send)
            raise RuntimeError("late")

        async with client(SWRMiddleware(failing, cache)) as http:
            answers = await gather(http.get("/x"), http.get("/x"), open_later(app))
            assert sum(isinstance(answer, RuntimeError) for answer in answers) == 1
            assert brief(await http.get("/x")) == (200, "1", "fresh")

    async def test_exception_after_a_background_response_is_logged_and_the_entry_stored(self, cache, clock, caplog):
        app = App(MAX_AGE)

        async def failing(scope, receive, send):
            await app(scope, receive, send)
            if app.runs > 1:
                raise RuntimeError("late")

        async with client(SWRMiddleware(failing, cache)) as http:
            await http.get("/x")
            clock.advance(61)
            await http.get("/x")
            await settle()
            assert brief(await http.get("/x")) == (200, "2", "fresh")
        assert "late" in caplog.text


class TestStreams:
    async def test_response_above_max_body_bytes_passes_through_unbuffered(self, cache):
        sent_before_the_end = []

        class Big(App):
            async def __call__(self, scope, receive, send):
                await send({"type": "http.response.start", "status": 200, "headers": self.headers})
                for _ in range(5):
                    await send({"type": "http.response.body", "body": b"x" * 400, "more_body": True})
                    sent_before_the_end.append(len(http.sent))
                await send({"type": "http.response.body"})
                self.runs += 1

        app = Big(MAX_AGE)
        middleware = SWRMiddleware(app, cache, max_body_bytes=1000)
        for _ in range(2):
            http = Client()
            await middleware(http_scope("/x"), http.receive, http.send)
        # As long as it may be stored it is held here; from then on the client sets the pace.
        assert sent_before_the_end[2:5] == [4, 5, 6]
        assert sent_before_the_end[5:] == [2, 3, 4, 5, 6]
        assert app.runs == 2

    async def test_content_length_above_max_body_bytes_is_reported_as_too_large(self, cache):
        app = App([*MAX_AGE, (b"content-length", b"2000")], body=b"x" * 2000)
        async with client(SWRMiddleware(app, cache, max_body_bytes=1000)) as http:
            answers = await gather(*(http.get("/x") for _ in range(3)), open_later(app))
        assert [answer.headers["cache-status"] for answer in answers[:-1]] == [
            'swr; fwd=uri-miss; detail="too large"'
        ] * 3

    async def test_server_sent_events_reach_every_client_at_the_same_time(self, cache):
        ended = []

        class Events:  # not a generator: Starlette closes none, and trio warns of one that is left at its yield
            def __aiter__(self):
                return self

            async def __anext__(self):
                await anyio.sleep(0.001)
                return "data: 1\n\n"

        async def app(scope, receive, send):
            try:
                await StreamingResponse(Events(), media_type="text/event-stream")(scope, receive, send)
            finally:
                ended.append(1)

        middleware = SWRMiddleware(app, cache, rules=[Rule("/events", fresh_for=60)])
        clients = [Client(fails=False) for _ in range(3)]
        async with anyio.create_task_group() as group:
            for http in clients:
                group.start_soon(middleware, http_scope("/events"), http.receive, http.send)
            with anyio.fail_after(60):
                while not all(len(http.sent) > 3 for http in clients):
                    await anyio.sleep(0.005)
                for http in clients:
                    http.gone.set()
        assert len(ended) == 3

    async def test_response_is_stored_whole_after_its_client_leaves_half_way(self, cache):
        half_way, go_on = anyio.Event(), anyio.Event()

        async def endpoint(request):
            async def stream():
                yield "a"
                half_way.set()
                await go_on.wait()
                yield "b"

            return StreamingResponse(stream(), headers={"cache-control": "max-age=60"})

        app = Starlette(routes=[Route("/x", endpoint)])
        middleware = SWRMiddleware(app, cache)
        for how in ("disconnect", "cancel"):
            half_way, go_on = anyio.Event(), anyio.Event()
            http = Client()
            async with anyio.create_task_group() as group:
                scope = http_scope("/x", query_string=how.encode())
                group.start_soon(middleware, scope, http.receive, http.send)
                await half_way.wait()
                http.gone.set()
                if how == "cancel":
                    group.cancel_scope.cancel()
                with anyio.CancelScope(shield=True):
                    await settle()
                go_on.set()
            await settle()
            async with client(middleware) as later:
                assert brief(await later.get(f"/x?{how}")) == (200, "ab", "fresh")

    async def test_uncacheable_response_is_cancelled_when_its_client_leaves(self, cache):
        began, ended = anyio.Event(), []

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            began.set()
            try:
                await anyio.sleep_forever()
            finally:
                ended.append(1)

        http = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(SWRMiddleware(app, cache), http_scope("/x"), http.receive, http.send)
            await began.wait()
            group.cancel_scope.cancel()
        await settle()
        assert ended == [1]

    async def test_client_that_left_is_not_asked_for_more_messages(self, cache):
        gone = anyio.Event()

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            await gone.wait()
            with anyio.move_on_after(0.01):
                await receive()
            await send({"type": "http.response.body", "body": b"x"})

        http = Client()
        middleware = SWRMiddleware(app, cache)
        async with anyio.create_task_group() as group:
            group.start_soon(middleware, http_scope("/x"), http.receive, http.send)
            await settle()
            group.cancel_scope.cancel()
        gone.set()
        await until(lambda: not cache.engine.flights)
        assert http.asked == 1
        async with client(middleware) as later:
            assert brief(await later.get("/x")) == (200, "x", "fresh")

    async def test_write_error_of_an_uncacheable_response_is_raised_in_the_app(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": []})
            http.gone.set()
            with pytest.raises(OSError, match="gone"):
                await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await send({"type": "http.response.body"})

        http = Client()
        await SWRMiddleware(app, cache)(http_scope("/x"), http.receive, http.send)
        assert len(http.sent) == 1

    async def test_endless_response_in_a_background_run_is_ended(self, cache, clock):
        ended = []
        app = App(MAX_AGE)

        async def endless(scope, receive, send):
            if app.runs:
                app.runs += 1
                await send({"type": "http.response.start", "status": 200, "headers": []})
                try:
                    await receive()
                    await receive()
                finally:
                    ended.append(1)
            await app(scope, receive, send)

        async with client(SWRMiddleware(endless, cache)) as http:
            await http.get("/x")
            clock.advance(61)
            await http.get("/x")
            await settle()
        assert (app.runs, ended) == (2, [1])

    async def test_background_run_receives_one_empty_request_and_no_more(self, cache, clock):
        heard = []

        async def app(scope, receive, send):
            heard.append(await receive())
            with anyio.move_on_after(0.01) as scope_:
                await receive()
            heard.append(scope_.cancelled_caught)
            await PlainTextResponse("x", headers={"cache-control": "max-age=1, stale-while-revalidate=9"})(
                scope, receive, send
            )

        middleware = SWRMiddleware(app, cache)
        for _ in range(2):
            http = Client()
            http.gone.set()
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(http, "send", lambda message: anyio.lowlevel.checkpoint())
                await middleware(http_scope("/x"), http.receive, http.send)
            clock.advance(2)
        await until(lambda: len(heard) == 4)
        assert heard[2:] == [{"type": "http.request", "body": b"", "more_body": False}, True]

    async def test_extension_messages_pass_and_unseen_bodies_are_not_stored(self, cache):
        for kind in ("http.response.pathsend", "http.response.zerocopysend"):

            async def app(scope, receive, send, kind=kind):
                await send({"type": "http.response.debug", "info": {}})
                headers = MAX_AGE if scope["path"].endswith("pathsend") else []
                await send({"type": "http.response.start", "status": 200, "headers": headers})
                await send({"type": kind, "path": "/x"})

            middleware = SWRMiddleware(app, cache)
            for _ in range(2):
                http = Client()
                await middleware(http_scope("/" + kind), http.receive, http.send)
                assert [message["type"] for message in http.sent] == [
                    "http.response.debug",
                    "http.response.start",
                    kind,
                ]

    async def test_response_with_trailers_passes_and_is_not_stored(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE, "trailers": True})
            await send({"type": "http.response.body", "body": b"x"})
            await send({"type": "http.response.trailers", "headers": []})

        middleware = SWRMiddleware(app, cache)
        for _ in range(2):
            http = Client()
            await middleware(http_scope("/x"), http.receive, http.send)
            assert [message["type"].rpartition(".")[2] for message in http.sent] == ["start", "body", "trailers"]

    async def test_early_hint_is_sent_before_the_fallback_for_an_error(self, cache, clock):
        """RFC 8297: it is not the answer."""
        app = App(MAX_AGE)

        async def hinting(scope, receive, send):
            await send({"type": "http.response.early_hint", "links": [b"</a>; rel=preload"]})
            await app(scope, receive, send)

        middleware = SWRMiddleware(hinting, cache)
        async with client(middleware) as http:
            await http.get("/x")
        clock.advance(700)
        app.status = 503
        http = Client()
        await middleware(http_scope("/x"), http.receive, http.send)
        assert [message.get("status", message["type"]) for message in http.sent[:2]] == [
            "http.response.early_hint",
            200,
        ]
        assert http.sent[2]["body"] == b"1"

    async def test_app_may_reuse_its_message_and_its_buffer(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            buffer = bytearray(1)
            message = {"type": "http.response.body", "body": memoryview(buffer), "more_body": True}
            for buffer[0] in b"abc":
                await send(message)
            message.update(body=b"d", more_body=False)
            await send(message)
            message.clear()

        async with client(SWRMiddleware(app, cache)) as http:
            assert [brief(await http.get("/x"))[1:] for _ in range(2)] == [("abcd", "missing"), ("abcd", "fresh")]

    @LEFT_OPEN
    @pytest.mark.parametrize("ending", ["cancelled", "exit", "closed"])
    async def test_response_that_breaks_off_raises_instead_of_looking_complete(self, ending):
        """Middleware of Starlette's around the cache ends a response by itself when the app returns."""
        cache = Cache(drain_for=0)

        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            await send({"type": "http.response.body", "body": b"half", "more_body": True})
            if ending == "cancelled":
                raise asyncio.CancelledError
            if ending == "exit":
                raise SystemExit(1)
            begun.set()
            await anyio.sleep_forever()

        async def pass_on(request, call_next):
            return await call_next(request)

        async def close():
            if ending == "closed":
                await begun.wait()
                await cache.aclose()

        begun = anyio.Event()
        async with cache:
            outside = BaseHTTPMiddleware(SWRMiddleware(app, cache), dispatch=pass_on)
            async with client(outside) as http:
                answer, _ = await gather(http.get("/x"), close())
        assert "broke off" in str(answer)

    async def test_endpoint_that_requests_itself_raises_configuration_error(self, cache):
        async def app(scope, receive, send):
            async with client(middleware) as http:
                await http.get("/x")

        middleware = SWRMiddleware(app, cache)
        with anyio.fail_after(60):
            async with client(middleware) as http:
                with pytest.raises(ConfigurationError, match="while it answers the same request"):
                    await http.get("/x")

    async def test_entry_is_stored_before_the_last_byte_is_sent(self, cache):
        app = App(MAX_AGE)
        middleware = SWRMiddleware(app, cache)
        states = []

        class Eager(Client):
            async def send(self, message):
                await super().send(message)
                if message["type"] == "http.response.body":
                    async with client(middleware) as http:
                        states.append((await http.get("/x")).headers["swr-state"])

        http = Eager()
        await middleware(http_scope("/x"), http.receive, http.send)
        assert states == ["fresh"]


class TestFrameworks:
    async def test_rules_match_starlette_paths_and_set_tags(self, cache):
        app = App()
        rules = [
            Rule("/r/{group:int}/{rest:path}", fresh_for=60, tags=("group:{group}", "all")),
            Rule("/never", methods="GET", tags=("x",)),
        ]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            for url in ("/r/7/a/b", "/r/8/a"):
                await http.get(url)
            await cache.invalidate_tag("group:7")
            assert [brief(await http.get(url))[2] for url in ("/r/7/a/b", "/r/8/a", "/r/x/a", "/never", "/never")] == [
                "missing", "fresh", "missing", "missing", "missing",
            ]  # fmt: skip
            await cache.invalidate_tag("all")
            assert brief(await http.get("/r/8/a"))[2] == "missing"

    @pytest.mark.parametrize("kind", ["async", "def"])
    async def test_decorated_fastapi_endpoint_is_cached_refreshed_and_invalidated_by_tag(self, cache, clock, kind):
        closed, runs = [], []

        async def session():
            runs.append(1)
            yield len(runs)
            closed.append(len(runs))

        app = FastAPI()

        def answer(group: str, db: int) -> dict[str, object]:
            return {"group": group, "run": db}

        async def answer_async(group: str, db: int) -> dict[str, object]:
            return answer(group, db)

        endpoint = answer_async if kind == "async" else answer
        endpoint.__annotations__ = {"group": str, "db": int, "return": dict[str, object]}
        endpoint.__defaults__ = (Depends(session),)
        app.get("/rankings/{group}")(cache.response(fresh_for=60, stale_for="10m", tags=("group:{group}",))(endpoint))
        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            assert brief(await http.get("/rankings/ATL")) == (200, '{"group":"ATL","run":1}', "missing")
            assert brief(await http.get("/rankings/ATL"))[2] == "fresh"
            clock.advance(61)
            assert brief(await http.get("/rankings/ATL"))[2] == "stale"
            await until(lambda: len(closed) == 2 and not cache.engine.flights)
            # The refresh in the background had a session of its own, opened and closed.
            assert brief(await http.get("/rankings/ATL")) == (200, '{"group":"ATL","run":2}', "fresh")
            assert closed == [1, 2]
            await cache.invalidate_tag("group:ATL")
            assert brief(await http.get("/rankings/ATL"))[2] == "missing"

    async def test_decorated_starlette_endpoint_fills_path_parameters_into_its_tags(self, cache):
        class Endpoints:
            @cache.response(fresh_for=60, tags=("group:{group}",))
            async def method(self, request: Request):
                return JSONResponse({})

        @cache.response(fresh_for=60, tags=("group:{group}",))
        def function(request):
            return JSONResponse({})

        app = Starlette(
            routes=[Route("/f/{group}", function), Mount("/sub", routes=[Route("/m/{group}", Endpoints().method)])],
            middleware=[Middleware(SWRMiddleware, cache=cache)],
        )
        async with client(app) as http:
            for url in ("/f/a", "/sub/m/a"):
                await http.get(url)
                assert brief(await http.get(url))[2] == "fresh"
            await cache.invalidate_tag("group:a")
            for url in ("/f/a", "/sub/m/a"):
                assert brief(await http.get(url))[2] == "missing"

    async def test_post_to_a_decorated_endpoint_logs_no_warning(self, cache, caplog):
        app = FastAPI()

        @app.post("/x")
        @cache.response(fresh_for=60)
        async def endpoint() -> int:
            return 1

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            assert (await http.post("/x")).text == "1"
        assert not caplog.records

    async def test_outermost_decorated_endpoint_decides(self, cache, clock):
        app = FastAPI()

        @cache.response(fresh_for=1)
        async def inner() -> int:
            return 1

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def outer() -> int:
            return await inner()

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            await http.get("/x")
            clock.advance(30)
            assert brief(await http.get("/x"))[2] == "fresh"

    async def test_decorator_without_its_middleware_warns_once_for_each_endpoint(self, cache, caplog):
        app = FastAPI()

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def endpoint() -> int:
            return 1

        async with client(app) as http:
            for _ in range(3):
                assert (await http.get("/x")).text == "1"
        assert sum("SWRMiddleware is not in place" in record.message for record in caplog.records) == 1
        other = FastAPI()
        other.get("/y")(cache.response(fresh_for=60)(endpoint))
        other.add_middleware(SWRMiddleware, cache=Cache())
        async with client(other) as http:
            await http.get("/y")
        assert sum("SWRMiddleware is not in place" in record.message for record in caplog.records) == 2

    async def test_bypassed_request_to_a_decorated_endpoint_logs_no_warning(self, cache, caplog):
        app = FastAPI()

        @app.get("/x")
        @cache.response(fresh_for=60)
        def endpoint() -> int:
            return 1

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            await http.get("/x", headers={"cookie": "a=b"})
            assert brief(await http.get("/x"))[2] == "missing"
        assert not caplog.records

    async def test_background_tasks_run_after_the_entry_is_stored(self, cache):
        app, order = FastAPI(), []

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def endpoint(tasks: BackgroundTasks) -> int:
            async def task():
                order.append(cache.engine.store.peek("GET http://test\n/x?") is not None)

            tasks.add_task(task)
            return 1

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            await http.get("/x")
        assert order == [True]

    async def test_gzip_and_cors_work_inside_and_outside_of_swr(self, cache):
        def make(*middleware):
            async def endpoint(request):
                return PlainTextResponse("x" * 2000, headers={"cache-control": "max-age=60"})

            return Starlette(routes=[Route("/x", endpoint)], middleware=list(middleware))

        swr = Middleware(SWRMiddleware, cache=cache)
        cors = Middleware(CORSMiddleware, allow_origins=["http://a", "http://b"])
        for order in ((swr, Middleware(GZipMiddleware)), (Middleware(GZipMiddleware), swr), (swr, cors), (cors, swr)):
            await cache.clear()
            async with client(make(*order)) as http:
                for encoding in ("gzip", "identity", "gzip", "identity"):
                    response = await http.get("/x", headers={"accept-encoding": encoding, "origin": "http://a"})
                    assert response.text == "x" * 2000
                    # GZip alone changes its mind about the coding; what the client cannot read it is not given.
                    assert response.headers.get("content-encoding") in (
                        (None, "gzip") if encoding == "gzip" else (None,)
                    )
                for origin in ("http://a", "http://b"):
                    response = await http.get("/x", headers={"origin": origin, "accept-encoding": "identity"})
                    if cors in order:
                        assert response.headers["access-control-allow-origin"] == origin

    async def test_compressed_body_of_the_app_is_served_unchanged(self, cache):
        body = gzip.compress(b"x" * 5000)
        app = App([*MAX_AGE, (b"content-encoding", b"gzip"), (b"vary", b"accept-encoding")], body=body)
        async with client(SWRMiddleware(app, cache)) as http:
            for _ in range(2):
                assert (await http.get("/x")).text == "x" * 5000


class TestLifespan:
    @pytest.fixture
    def cache(self, clock):
        return Cache(clock=clock)

    async def run_lifespan(self, app, *, shutdown=True):
        to_app, from_app = anyio.create_memory_object_stream(5), []

        async def send(message):
            from_app.append(message)

        await to_app[0].send({"type": "lifespan.startup"})
        if shutdown:
            await to_app[0].send({"type": "lifespan.shutdown"})
        state = {}
        try:
            await app({"type": "lifespan", "asgi": {}, "state": state}, to_app[1].receive, send)
        finally:
            to_app[0].close()
            to_app[1].close()
        return [message["type"] for message in from_app]

    async def test_cache_is_open_during_the_lifespan_of_the_app(self, cache):
        seen = []

        async def lifespan_app(scope, receive, send):
            await receive()
            seen.append(cache._opened)
            scope["state"]["pool"] = "p"
            await send({"type": "lifespan.startup.complete"})
            await receive()
            seen.append(cache._opened)
            await send({"type": "lifespan.shutdown.complete"})
            seen.append(cache._opened)

        middleware = SWRMiddleware(lifespan_app, cache)
        assert await self.run_lifespan(middleware) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]
        assert seen == [1, 1, 0]
        assert middleware.config.app_state() == {"pool": "p"}

    async def test_app_that_fails_at_startup_leaves_the_cache_closed(self, cache):
        async def failing(scope, receive, send):
            await receive()
            raise RuntimeError("no lifespan")

        with pytest.raises(RuntimeError, match="no lifespan"):
            await self.run_lifespan(SWRMiddleware(failing, cache))
        assert cache._opened == 0

    async def test_app_without_lifespan_leaves_the_cache_closed(self, cache):
        async def ignorant(scope, receive, send):
            assert scope["type"] == "http"

        with pytest.raises(AssertionError):
            await self.run_lifespan(SWRMiddleware(ignorant, cache))
        assert cache._opened == 0

    async def test_lifespan_of_a_fastapi_app_starts_up_and_shuts_down(self, cache):
        from contextlib import asynccontextmanager

        @asynccontextmanager
        async def lifespan(app):
            yield {"pool": "p"}

        app = FastAPI(lifespan=lifespan)
        app.add_middleware(SWRMiddleware, cache=cache)
        assert await self.run_lifespan(app) == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


class TestConstruction:
    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            ({"cache": "redis://x"}, "cache='redis://x'"),
            ({"cookies": "none"}, "cookies='none'"),
            ({"rules": ["/x"]}, "rules holds '/x'"),
            ({"max_body_bytes": -1}, "max_body_bytes=-1"),
            ({"max_variants": 0}, "max_variants=0"),
            ({"request_directives": "no-cache"}, "request_directives='no-cache'"),
            ({"request_directives": ["max_age"]}, "give a collection of: max-age"),
            ({"targeted": "CDN-Cache-Control"}, "targeted='CDN-Cache-Control'"),
            ({"targeted": ["a b"]}, "targeted"),
            ({"heuristic": 2}, "heuristic=2"),
            ({"stale_if_unreachable": "long"}, "stale_if_unreachable='long'"),
        ],
    )
    def test_invalid_middleware_argument_is_rejected(self, arguments, complaint):
        with pytest.raises(ConfigurationError, match=complaint):
            SWRMiddleware(App(), **{"cache": Cache(), **arguments})

    @pytest.mark.parametrize(
        ("arguments", "complaint"),
        [
            (("x",), "begins with '/'"),
            (("/{a:nothing}",), "nothing"),
            (("/{a}/{a}",), "a"),
            (("/x", "POST"), "POST"),
            (("/x", "HEAD"), "HEAD"),
            (("/x", "GET", 1, 0, 0, (), False, "x-user"), "x-user"),
            (("/x", "GET", 1, 0, 0, (), False, ("a b",)), "a b"),
            (("/x", []), "methods"),
            (("/x", "GET", None, 5), "fresh_for"),
            (("/x", "GET", "soon"), "soon"),
            (("/x", "GET", 1, 0, 0, ("{a}",)), r"\{a\}"),
            (("/x", "GET", 1, 0, 0, (), False, (), "session"), "session"),
        ],
    )
    def test_invalid_rule_is_rejected(self, arguments, complaint):
        with pytest.raises(ConfigurationError, match=complaint):
            Rule(*arguments)

    @pytest.mark.parametrize("name", ["Authorization", "X-Auth-Token", "X_API_Key", "Cf-Access-Jwt-Assertion"])
    def test_vary_by_a_credential_is_rejected_with_the_remedy(self, name):
        for make in (lambda: Rule("/x", vary=("Accept", name)), lambda: Cache().response(fresh_for=1, vary=(name,))):
            with pytest.raises(ConfigurationError, match=rf"no answer to a request with {name}.*credentials=\"vary\""):
                make()

    @pytest.mark.parametrize("name", ["keep_params", "drop_params"])
    @pytest.mark.parametrize("value", ["utm_*", ("",), (1,)])
    def test_keep_and_drop_params_that_are_not_names_are_rejected(self, name, value):
        with pytest.raises(ConfigurationError, match=name):
            Rule("/x", **{name: value})

    def test_invalid_response_decorator_is_rejected(self):
        cache = Cache()
        with pytest.raises(ConfigurationError, match=r"\{z\}"):
            cache.response(fresh_for=1, tags=("{z}",))(lambda group: None)
        with pytest.raises(ConfigurationError, match="endpoint function"):
            cache.response(fresh_for=1)(App)
        with pytest.raises(ConfigurationError, match="fresh_for"):
            cache.response(fresh_for=-1)


async def test_http_exception_with_max_age_is_stored(cache):
    app = FastAPI()
    runs = []

    @app.get("/{status}")
    async def endpoint(status: int, response: FastAPIResponse) -> int:
        runs.append(status)
        response.headers["cache-control"] = "max-age=60"
        if status >= 400:
            raise HTTPException(status, headers={"cache-control": "max-age=60"})
        return status

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app, raises=False) as http:
        for status in (200, 404, 500):
            for _ in range(2):
                await http.get(f"/{status}")
    # An error is stored if its author says for how long (RFC 9111 3).
    assert runs == [200, 404, 500]


async def test_fresh_hit_logs_nothing(cache, caplog):
    async with client(SWRMiddleware(App(MAX_AGE), cache)) as http:
        await http.get("/x")
        caplog.set_level(logging.DEBUG, "swr")
        await http.get("/x")
    assert not [record for record in caplog.records if record.name == "swr"]

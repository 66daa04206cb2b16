"""The middleware among others, in the order that docs/http.md gives, and in what frameworks do around an endpoint."""

import gzip
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import BackgroundTasks, Depends, FastAPI, Header
from starlette.applications import Starlette
from starlette.middleware import Middleware
from starlette.middleware.cors import CORSMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Host, Mount, Route

from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from swr.testing import FakeClock
from tests.fleet import settle
from tests.web import brief, client

pytestmark = pytest.mark.anyio

BODY = "x" * 2000
REFRESHED = "max-age=60, stale-while-revalidate=600"


class Site:
    """A Starlette app with one endpoint, `/x`, behind middleware, outermost first."""

    def __init__(self, *middleware, headers=None):
        self.runs = 0
        self.headers = headers or {"cache-control": "max-age=60, stale-while-revalidate=60"}
        self.app = Starlette(routes=[Route("/x", self.endpoint)], middleware=list(middleware))

    async def endpoint(self, request):
        self.runs += 1
        return PlainTextResponse(BODY, headers=self.headers)


class TestGZip:
    async def test_gzip_outside_swr_serves_every_coding_from_one_stored_body(self, cache):
        site = Site(Middleware(GZipMiddleware), Middleware(SWRMiddleware, cache=cache))
        async with client(site.app) as http:
            for coding, expected in (("gzip", "gzip"), ("identity", None), ("gzip", "gzip")):
                answer = await http.get("/x", headers={"accept-encoding": coding})
                assert (answer.text, answer.headers.get("content-encoding")) == (BODY, expected)
        assert site.runs == 1

    async def test_gzip_inside_swr_runs_once_for_each_coding(self, cache):
        site = Site(Middleware(SWRMiddleware, cache=cache), Middleware(GZipMiddleware))
        async with client(site.app) as http:
            for _ in range(2):
                for coding, expected in (("gzip", "gzip"), ("identity", None)):
                    answer = await http.get("/x", headers={"accept-encoding": coding})
                    assert (answer.text, answer.headers.get("content-encoding")) == (BODY, expected)
        assert site.runs == 2

    async def test_range_selects_bytes_of_the_stored_coding(self, cache):
        """RFC 9110 14.1: of the selected representation, and its coding is part of that."""
        site = Site(Middleware(SWRMiddleware, cache=cache), Middleware(GZipMiddleware))
        async with client(site.app) as http:
            raw = b""
            for place in ("0-9", "10-"):
                async with http.stream("GET", "/x", headers={"range": f"bytes={place}"}) as answer:
                    part = b"".join([chunk async for chunk in answer.aiter_raw()])
                    raw = part if answer.status_code == 200 else raw[: int(place[:2].strip("-"))] + part
            assert gzip.decompress(raw).decode() == BODY
        assert site.runs == 1


class TestCORS:
    CORS = Middleware(CORSMiddleware, allow_origins=["http://a", "http://b"])

    async def test_cors_outside_swr_sends_each_client_its_own_allowed_origin(self, cache):
        site = Site(self.CORS, Middleware(SWRMiddleware, cache=cache))
        async with client(site.app) as http:
            for origin in (None, "http://a", "http://b", "http://a", "http://c"):
                answer = await http.get("/x", headers={} if origin is None else {"origin": origin})
                allowed = origin if origin in ("http://a", "http://b") else None
                assert answer.headers.get("access-control-allow-origin") == allowed
            preflight = {"origin": "http://a", "access-control-request-method": "GET"}
            assert (await http.options("/x", headers=preflight)).status_code == 200
        # Each origin has a response of its own, also where the app does not look at it.
        assert site.runs == 4

    async def test_cors_inside_swr_gives_no_origin_the_response_for_another(self, cache):
        site = Site(Middleware(SWRMiddleware, cache=cache), self.CORS)
        async with client(site.app) as http:
            for origin in ("http://a", "http://b", "http://a"):
                answer = await http.get("/x", headers={"origin": origin})
                assert answer.headers["access-control-allow-origin"] == origin
        assert site.runs == 2


class TestSessions:
    async def test_session_outside_swr_bypasses_the_cache_only_for_its_owner(self, cache):
        site = Site(Middleware(SessionMiddleware, secret_key="s"), Middleware(SWRMiddleware, cache=cache))
        async with client(site.app) as http:
            await http.get("/x")
            assert (await http.get("/x")).headers["swr-state"] == "fresh"
            answer = await http.get("/x", headers={"cookie": "session=mine"})
            assert answer.headers["cache-status"] == 'swr; fwd=bypass; detail="cookie"'
        assert site.runs == 2

    async def test_response_with_a_session_cookie_set_inside_swr_is_not_stored(self, cache):
        async def endpoint(request):
            request.session["seen"] = True
            return PlainTextResponse("mine", headers={"cache-control": "max-age=60"})

        session = Middleware(SessionMiddleware, secret_key="s")
        app = Starlette(routes=[Route("/x", endpoint)], middleware=[Middleware(SWRMiddleware, cache=cache), session])
        async with client(app) as http:
            for _ in range(2):
                answer = await http.get("/x")
                http.cookies.clear()
                assert brief(answer) == (200, "mine", "missing")
                assert "set-cookie" in answer.headers


class TestFastAPI:
    async def test_dependencies_with_yield_are_opened_and_closed_in_each_run(self, cache, clock):
        app, order = FastAPI(), []

        async def session():
            order.append("open")
            yield len(order)
            order.append("close")

        @app.get("/x")
        @cache.response(fresh_for=10, stale_for=60)
        async def endpoint(number: int = Depends(session)) -> int:
            order.append("run")
            return number

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            assert brief(await http.get("/x")) == (200, "1", "missing")
            clock.advance(20)
            assert brief(await http.get("/x")) == (200, "1", "stale")
            await settle()
            assert brief(await http.get("/x")) == (200, "4", "fresh")
        assert order == ["open", "run", "close"] * 2

    async def test_put_invalidates_again_after_its_transaction_is_committed(self, cache):
        """A write is committed by a dependency's exit code, which FastAPI runs after the response is sent."""
        app, rows = FastAPI(), {"value": 1}
        reads = []

        async def transaction():
            pending = {}
            yield pending
            # Somebody reads, and caches, between the response and the commit.
            reads.append((await http.get("/x")).text)
            rows.update(pending)

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def read() -> int:
            return rows["value"]

        @app.put("/x")
        async def write(pending: dict = Depends(transaction)) -> None:
            pending["value"] = 2

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            await http.get("/x")
            await http.put("/x")
            assert (reads, (await http.get("/x")).text) == (["1"], "2")

    async def test_background_task_runs_once_for_each_run_of_the_app_and_not_for_hits(self, cache):
        app, ran = FastAPI(), []

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def endpoint(tasks: BackgroundTasks) -> int:
            tasks.add_task(ran.append, 1)
            return 1

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            for _ in range(3):
                await http.get("/x")
        assert ran == [1]


class TestMounts:
    async def test_same_path_in_two_mounts_has_two_entries(self, cache):
        site, other = Site(), Site()
        app = Starlette(routes=[Mount("/a", site.app), Mount("/b", other.app)])
        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            for path in ("/a/x", "/b/x", "/a/x", "/b/x"):
                assert (await http.get(path)).text == BODY
        assert (site.runs, other.runs) == (1, 1)

    async def test_rules_and_keys_in_a_mounted_app_use_whole_paths(self, cache, clock):
        """A background run, too, finds its route through `root_path`."""
        rules = [Rule("/a/x", fresh_for=10, stale_for=60, tags=("mine",))]
        site = Site(Middleware(SWRMiddleware, cache=cache, rules=rules), headers={"x": "y"})
        app = Starlette(routes=[Mount("/a", site.app)])
        async with client(app) as http:
            await http.get("/a/x")
            clock.advance(20)
            assert (await http.get("/a/x")).headers["swr-state"] == "stale"
            await settle()
            assert (await http.get("/a/x")).headers["swr-state"] == "fresh"
            await cache.invalidate_url("/a/x")
            assert (await http.get("/a/x")).headers["swr-state"] == "missing"
        assert site.runs == 3

    async def test_response_behind_a_prefix_is_cached_and_invalidated_by_its_whole_path(self, cache):
        app = FastAPI()

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def endpoint() -> int:
            return 1

        app.add_middleware(SWRMiddleware, cache=cache)
        # The server is told of the prefix (`--root-path`), and hands over whole paths.
        transport = httpx.ASGITransport(app, root_path="/api")
        async with httpx.AsyncClient(transport=transport, base_url="http://test/api") as http:
            assert [brief(await http.get("/x")) for _ in range(2)] == [(200, "1", "missing"), (200, "1", "fresh")]
            await cache.invalidate_url("/api/x")
            assert (await http.get("/x")).headers["swr-state"] == "missing"


class TestMiddlewareInsideRoutes:
    """Background refreshes get the parameters that the routes around the middleware found in path and host."""

    @staticmethod
    async def page(request):
        path = request.url_for("outer", tenant="x").path
        return PlainTextResponse(f"{request.path_params['tenant']} {path}", headers={"cache-control": REFRESHED})

    def wrapped(self, cache, kind):
        inner = Starlette(routes=[Route("/page", self.page)])
        outer = Route("/outer/{tenant}", self.page, name="outer")
        inside = SWRMiddleware(inner, cache)
        if kind == "mount":
            return [Mount("/t/{tenant}", app=inside), outer], "http://test/t/a/page"
        if kind == "mount in a mount":
            return [Mount("/t/{tenant}", routes=[Mount("/u/{user}", app=inside)]), outer], "http://test/t/a/u/1/page"
        if kind == "host":
            return [Host("{tenant}.example", app=inside), outer], "http://a.example/page"
        if kind == "mount with middleware":
            mount = Mount("/t/{tenant}", routes=inner.routes, middleware=[Middleware(SWRMiddleware, cache=cache)])
            return [mount, outer], "http://test/t/a/page"
        route = Route("/r/{tenant}", self.page, middleware=[Middleware(SWRMiddleware, cache=cache)])
        return [route, outer], "http://test/r/a"

    @pytest.mark.parametrize("kind", ["mount", "mount in a mount", "host", "mount with middleware", "route"])
    async def test_refresh_keeps_the_parameters_of_path_and_host(self, caplog, kind):
        clock = FakeClock()
        async with Cache(clock=clock) as cache:
            routes, url = self.wrapped(cache, kind)
            async with client(Starlette(routes=routes)) as http:
                await http.get(url)
                clock.advance(61)
                assert (await http.get(url)).headers["swr-state"] == "stale"
                await settle()
                await settle()
                assert brief(await http.get(url)) == (200, "a /outer/x", "fresh")
        assert not caplog.records


class TestSecondRuns:
    """A second run of the app for one request gets the same as the first one."""

    async def test_304_with_another_etag_makes_a_mounted_app_run_again(self, cache, clock):
        fields = {"cache-control": "max-age=10", "etag": '"1"'}

        async def page(request):
            if "if-none-match" in request.headers:
                return PlainTextResponse(status_code=304, headers=fields | {"etag": '"other"'})
            return PlainTextResponse("page", headers=fields)

        app = Starlette(routes=[Mount("/below", routes=[Route("/x", page)])])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/below/x")
            clock.advance(20)
            assert brief(await http.get("/below/x")) == (200, "page", "missing")
            assert brief(await http.get("/below/x")) == (200, "page", "fresh")

    async def test_error_of_a_mounted_app_is_sent_if_its_fallback_was_invalidated(self, cache, clock):
        status, below = 200, FastAPI()

        async def failing():
            yield b"fail"
            await cache.invalidate_url("/below/x")
            yield b"ed"

        @below.get("/x")
        async def page(x_units: Annotated[str, Header()] = ""):
            headers = {"cache-control": "max-age=10, stale-if-error=600"}
            return PlainTextResponse("page", headers=headers) if status == 200 else StreamingResponse(failing(), status)

        app = FastAPI()
        app.mount("/below", below)
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/below/x")
            clock.advance(20)
            status = 500
            assert brief(await http.get("/below/x")) == (500, "failed", "missing")

    @pytest.mark.parametrize("method", ["GET", "QUERY"])
    async def test_error_after_reading_content_is_sent_if_its_fallback_was_invalidated(self, cache, clock, method):
        status = 200

        async def failing(content):
            yield content
            await cache.invalidate_url("/x")
            yield b"failed"

        async def page(request):
            content = await request.body()
            if status == 500 and request.client:
                return StreamingResponse(failing(content), status)
            return PlainTextResponse("page", headers={"cache-control": "max-age=10, stale-if-error=600"})

        app = Starlette(routes=[Route("/x", page, methods=["GET", "QUERY"])])
        content = b"asked " if method == "QUERY" else None
        async with client(SWRMiddleware(app, cache)) as http:
            await http.request(method, "/x", content=content)
            clock.advance(20)
            status = 500
            with anyio.fail_after(10):
                answer = await http.request(method, "/x", content=content)
        assert brief(answer) == (500, "asked failed" if content else "failed", "missing")

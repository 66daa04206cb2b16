"""A loader that the app calls runs too long: that is an exception of the app, whatever the cache does around it."""

import anyio
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.security import HTTPBearer

from swr import LoadTimeout
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import gather, in_time
from tests.web import client

pytestmark = pytest.mark.anyio


class Site:
    """An app whose endpoints call a loader that hangs when it is told to."""

    def __init__(self, cache, handler):
        self.hangs, self.handled = True, []
        self.app = app = FastAPI()

        @cache.cached("slow:{path}", fresh_for=1, hard_timeout=0.01)
        async def load(path: str) -> str:
            if self.hangs:
                await anyio.sleep_forever()
            return "value"

        async def endpoint(path: str = "x") -> str:
            return await load(path)

        bearer = [Depends(HTTPBearer())]
        decorated = cache.response(fresh_for=10, stale_if_error=1000)(endpoint)
        app.api_route("/rule", methods=["GET", "POST"])(endpoint)
        app.get("/decorated")(decorated)
        app.get("/guarded", dependencies=bearer)(decorated)
        if handler is not None:

            @app.exception_handler(handler)
            async def answer(request: Request, error: Exception) -> JSONResponse:
                self.handled.append(error)
                return JSONResponse("handled", 503)

        rules = [Rule("/rule", fresh_for=10, stale_if_error=1000)]
        app.add_middleware(SWRMiddleware, cache=cache, rules=rules)


WAYS = {
    "rule": ("GET", "/rule", {}),
    "post": ("POST", "/rule", {}),
    "cookie": ("GET", "/rule", {"cookie": "a=1"}),
    "unknown field": ("GET", "/decorated", {"x-other": "1"}),
    "decorator": ("GET", "/decorated", {}),
    "behind a guard": ("GET", "/guarded", {"authorization": "Bearer a"}),
}


@pytest.mark.parametrize("handler", [None, Exception, LoadTimeout])
@pytest.mark.parametrize("way", WAYS)
async def test_load_timeout_inside_an_endpoint_reaches_the_apps_exception_handlers(cache, way, handler):
    readers = 3
    site = Site(cache, handler)
    method, path, headers = WAYS[way]
    async with client(site.app, raises=False) as http:
        for _ in range(2):
            found = await gather(*(http.request(method, path, headers=headers) for _ in range(readers)))
            if handler is None:
                assert [(each.status_code, each.text) for each in found] == [(500, "Internal Server Error")] * readers
            else:
                assert [(each.status_code, each.json()) for each in found] == [(503, "handled")] * readers
    assert all(type(error) is LoadTimeout and error.key == "slow:x" for error in site.handled)
    assert bool(site.handled) is (handler is not None)


@pytest.mark.parametrize("way", ["rule", "decorator", "behind a guard"])
async def test_stale_fallback_answers_when_a_loader_inside_the_endpoint_times_out(cache, clock, way, caplog):
    site = Site(cache, None)
    method, path, headers = WAYS[way]
    async with client(site.app) as http:
        site.hangs = False
        await in_time(lambda: http.request(method, path, headers=headers))
        assert (await http.request(method, path, headers=headers)).headers["swr-state"] == "fresh"
        site.hangs = True
        await cache.invalidate("slow:x")
        clock.advance(11)
        found = await http.request(method, path, headers=headers)
    assert (found.json(), found.headers["swr-state"]) == ("value", "stale")
    assert "fwd=stale; fwd-status=500" in found.headers["cache-status"]


@pytest.mark.parametrize("way", ["rule", "decorator", "behind a guard"])
async def test_endpoint_that_exceeds_its_own_hard_timeout_answers_504(cache, way):
    app = FastAPI()

    async def endpoint() -> str:
        await anyio.sleep_forever()

    decorated = cache.response(fresh_for=10, hard_timeout=0.01)(endpoint)
    app.get("/rule")(endpoint)
    app.get("/decorated")(decorated)
    app.get("/guarded", dependencies=[Depends(HTTPBearer())])(decorated)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/rule", fresh_for=10, hard_timeout=0.01)])
    method, path, headers = WAYS[way]
    async with client(app) as http:
        found = await http.request(method, path, headers=headers)
    assert found.status_code == 504
    assert 'detail="timeout' in found.headers["cache-status"]

"""Guards that may look at anything run on every request, also where the cache cannot answer behind them."""

import functools
import threading
from contextvars import ContextVar
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import APIRouter, BackgroundTasks, Depends, FastAPI, Header, HTTPException, Request
from fastapi.requests import HTTPConnection
from fastapi.responses import JSONResponse
from fastapi.routing import APIRoute
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint

from swr.middleware import Rule, SWRMiddleware
from swr.middleware.admission import AskedByClient
from tests.fleet import settle
from tests.test_guarded import TOKENS, app_with, state, states, wrapped

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


@pytest.fixture(autouse=True)
def tokens():
    """The tokens that are valid, and whose they are."""
    TOKENS.clear()
    TOKENS.update(a="alice", b="bob")


def _unchanged(endpoint):
    @functools.wraps(endpoint)
    async def wrapper(*args, **kwargs):
        return await endpoint(*args, **kwargs)

    return wrapper


async def _session() -> object:
    return object()


async def _takes_the_request(request: Request) -> str:
    return f"secret of {request.method}"


async def _takes_tasks(tasks: BackgroundTasks) -> str:
    return "secret"


async def _shares_a_session(session: Annotated[object, Depends(_session)]) -> str:
    return "secret"


async def _secret() -> str:
    return "secret"


async def _secrets():
    yield "secret"


class _OwnRoute(APIRoute):
    pass


class _OwnResponse(JSONResponse):
    pass


async def _sets_a_variable() -> None:
    _sets_a_variable.variable.set("some")


_sets_a_variable.variable = ContextVar("tenant")


def _in_the_office(address: str) -> None:
    if address != "10.0.0.1":
        raise HTTPException(403)


def by_request(request: Request) -> None:
    _in_the_office(request.client.host)


def by_connection(connection: HTTPConnection) -> None:
    _in_the_office(connection.client.host)


class _TokenOrOffice(HTTPBearer):
    async def __call__(self, request: Request) -> HTTPAuthorizationCredentials | None:
        found = await super().__call__(request)
        if found is None:
            _in_the_office(request.client.host)
        return found


def at(app, address):
    transport = httpx.ASGITransport(app, client=(address, 1))
    return httpx.AsyncClient(transport=transport, base_url="http://test")


# Endpoints that the cache cannot answer after their dependencies, each for a reason of its own.
OUT_OF_REACH = {
    "request": (_takes_the_request, {}),
    "tasks": (_takes_tasks, {}),
    "session": (_shares_a_session, {"dependencies": [Depends(_session)]}),
    "decorator": (_unchanged(_secret), {}),
    "generator": (_secrets, {}),
    "response class": (_secret, {"response_class": _OwnResponse}),
    "route class": (_secret, {"route_class_override": _OwnRoute}),
    "context variable": (_secret, {"dependencies": [Depends(_sets_a_variable)]}),
}


@pytest.mark.uncounted
@pytest.mark.parametrize("guard", [by_request, by_connection, _TokenOrOffice(auto_error=False)])
@pytest.mark.parametrize("place", ["below", "above", "rule", *OUT_OF_REACH])
async def test_guard_that_takes_the_request_runs_on_every_request_to_any_endpoint(cache, place, guard):
    endpoint, route = OUT_OF_REACH.get(place, (_secret, {}))
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(guard)])
    decorated = endpoint if place == "rule" else cache.response(fresh_for=60)(endpoint)
    router.add_api_route("/x", _unchanged(decorated) if place == "above" else decorated, **route)
    app.include_router(router)
    rules = [Rule("/x", fresh_for=60)] if place == "rule" else []
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules)
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        for _ in range(2):
            found = await inside.get("/x")
            assert found.status_code == 200
            assert "secret" in found.text
            assert (await outside.get("/x")).status_code == 403
        assert state(await inside.get("/x")) == (200, "fresh" if place == "below" else "missing")


async def test_middleware_key_allows_hits_behind_a_guard_that_takes_the_request(cache):
    app = FastAPI(dependencies=[Depends(by_request)])
    app.get("/x")(_secret)
    rules = [Rule("/x", fresh_for=60)]
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules, key=lambda scope: scope["client"][0])
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        assert [state(await inside.get("/x"))[1] for _ in range(2)] == ["missing", "fresh"]
        assert (await outside.get("/x")).status_code == 403


async def test_credentials_vary_allows_hits_behind_a_guard_that_takes_the_request(cache):
    app = FastAPI(dependencies=[Depends(by_request)])
    app.get("/x")(_secret)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, credentials="vary")])
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        assert await states(inside) == ["missing", "fresh"]
        assert await states(inside, token="b") == ["missing", "fresh"]
        assert state(await inside.get("/x")) == (200, "missing")
        assert (await outside.get("/x")).status_code == 403


async def test_failure_behind_a_guard_is_not_shared_with_waiting_requests(cache):
    app, begun, gate = FastAPI(dependencies=[Depends(by_request)]), anyio.Event(), anyio.Event()

    @app.get("/x")
    async def fails() -> JSONResponse:
        begun.set()
        await gate.wait()
        return JSONResponse("secret", 503)

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60)])
    found = {}

    async def ask(address):
        async with at(app, address) as http:
            found[address] = (await http.get("/x")).status_code

    async with anyio.create_task_group() as group:
        group.start_soon(ask, "10.0.0.1")
        await begun.wait()
        group.start_soon(ask, "10.9.9.9")
        await settle()
        gate.set()
    assert found == {"10.0.0.1": 503, "10.9.9.9": 403}


async def test_revoked_token_in_a_header_is_refused_where_the_endpoint_takes_the_request(cache):
    valid = {"t"}

    def guard(x_token: Annotated[str, Header()]) -> None:
        if x_token not in valid:
            raise HTTPException(403)

    app = app_with(cache, _takes_the_request, dependencies=[Depends(guard)])
    async with wrapped(cache, app) as http:
        fields = {"x-token": "t"}
        assert [state(await http.get("/x", headers=fields)) for _ in range(2)] == [(200, "missing")] * 2
        valid.clear()
        assert (await http.get("/x", headers=fields)).status_code == 403


async def test_middleware_records_admission_by_a_guard_in_the_event_loop_thread(cache, monkeypatch):
    threads, admit = set(), AskedByClient.admit

    def noting(asked):
        threads.add(threading.get_ident())
        admit(asked)

    def plain() -> str:
        return "secret"

    monkeypatch.setattr(AskedByClient, "admit", noting)
    async with wrapped(cache, app_with(cache, plain)) as http:
        assert await states(http) == ["missing", "fresh"]
    assert threads == {threading.get_ident()}


# -- a decorator above `@cache.response` ----------------------------------------------------------------------------


def in_the_office(endpoint):
    """A guard as a decorator, as many libraries have it."""

    @functools.wraps(endpoint)
    async def guarded(*args, **kwargs):
        request = kwargs.get("request") or args[-1]
        _in_the_office(request.client.host)
        guarded.runs += 1
        return await endpoint(*args, **kwargs)

    guarded.runs = 0
    return guarded


async def _of_request(request: Request):
    return JSONResponse("secret")


async def _of_method(self, request: Request):
    return JSONResponse("secret")


@pytest.mark.parametrize("framework", ["fastapi", "starlette", "class"])
@pytest.mark.parametrize("word", [{}, {"shared": True}, {"key": lambda request: 1}])
async def test_decorator_above_cache_response_runs_on_every_request(cache, framework, word):
    endpoint = _of_method if framework == "class" else _of_request
    guarded = in_the_office(cache.response(fresh_for=60, **word)(endpoint))
    app = FastAPI() if framework == "fastapi" else Starlette()
    if framework == "fastapi":
        app.get("/x")(guarded)
    else:
        app.add_route("/x", type("Page", (HTTPEndpoint,), {"get": guarded}) if framework == "class" else guarded)
    app.add_middleware(SWRMiddleware, cache=cache)
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        found = [await inside.get("/x") for _ in range(3)]
        assert [each.json() for each in found] == ["secret"] * 3
        assert (await outside.get("/x")).status_code == 403
    assert guarded.runs == 3
    # What FastAPI's route gets from the decorator may be about who asks.
    is_shared = word and framework != "fastapi"
    assert found[2].headers["swr-state"] == ("fresh" if is_shared else "missing")
    assert is_shared or 'route"' in found[2].headers["cache-status"] or framework != "fastapi"


async def test_middleware_key_allows_hits_behind_a_decorator_above_cache_response(cache):
    app = FastAPI()
    app.get("/x")(in_the_office(cache.response(fresh_for=60)(_of_request)))
    app.add_middleware(SWRMiddleware, cache=cache, key=lambda scope: scope["client"][0])
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        assert [state(await inside.get("/x"))[1] for _ in range(2)] == ["missing", "fresh"]
        assert (await outside.get("/x")).status_code == 403


async def test_decorator_that_hides_the_request_from_the_endpoint_runs_on_every_request(cache):
    inner = cache.response(fresh_for=60)(_secret)

    @functools.wraps(inner)
    async def between(**kwargs):
        _in_the_office(kwargs["swr_request"].client.host)
        return await inner()

    app = FastAPI()
    app.get("/x")(between)
    app.add_middleware(SWRMiddleware, cache=cache)
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        assert [state(await inside.get("/x")) for _ in range(2)] == [(200, "missing")] * 2
        assert (await outside.get("/x")).status_code == 403


@pytest.mark.parametrize("has_guard", [False, True])
async def test_method_of_each_object_is_called_and_cached_by_its_own_route(cache, has_guard):
    class Rankings:
        def __init__(self, name):
            self.name = name

        @cache.response(fresh_for=60)
        async def ranking(self, group: str = "") -> str:
            return f"{self.name} {group}"

    app = FastAPI(dependencies=[Depends(HTTPBearer())] if has_guard else [])
    for name in ("a", "b"):
        app.get(f"/{name}")(Rankings(name).ranking)
    async with wrapped(cache, app) as http:
        for expected in ("missing", "fresh"):
            for name in ("a", "b"):
                found = await http.get(f"/{name}?group=x", headers={"authorization": "Bearer a"} if has_guard else {})
                assert (found.json(), found.headers["swr-state"]) == (f"{name} x", expected)


# -- a class of routes ----------------------------------------------------------------------------------------------


class _InTheOffice(APIRoute):
    """As the documentation of FastAPI has it, for what has to happen around all dependencies."""

    def get_route_handler(self):
        handle = super().get_route_handler()

        async def guarded(request: Request):
            _in_the_office(request.client.host)
            return await handle(request)

        return guarded


@pytest.mark.parametrize("terms", ["rule", "decorator"])
@pytest.mark.parametrize("place", ["router", "included", "override"])
async def test_route_class_of_the_app_runs_on_every_request(cache, terms, place):
    app = FastAPI()
    endpoint = cache.response(fresh_for=60)(_secret) if terms == "decorator" else _secret
    if place == "router":
        app.router.route_class = _InTheOffice
        app.get("/x")(endpoint)
    else:
        router = APIRouter(route_class=_InTheOffice if place == "included" else APIRoute)
        override = {"route_class_override": _InTheOffice} if place == "override" else {}
        router.add_api_route("/x", endpoint, **override)
        app.include_router(router)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60)] if terms == "rule" else ())
    async with at(app, "10.0.0.1") as inside, at(app, "10.9.9.9") as outside:
        for _ in range(2):
            found = await inside.get("/x")
            assert (found.status_code, found.headers["cache-status"]) == (
                200,
                'swr; fwd=uri-miss; detail="route class"',
            )
            assert (await outside.get("/x")).status_code == 403

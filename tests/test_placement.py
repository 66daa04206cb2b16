"""Where `@cache.response` stands, and on what."""

import contextlib
import functools
import logging
from typing import Annotated

import pytest
from celery import Celery
from django.http import HttpRequest
from fastapi import APIRouter, BackgroundTasks, FastAPI
from flask import Flask
from flask import Request as FlaskRequest
from litestar import Request as LitestarRequest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse
from starlette.routing import Route
from starlette.websockets import WebSocket

from swr import Cache, ConfigurationError
from swr.middleware import Rule, SWRMiddleware
from tests.web import brief, client

pytestmark = pytest.mark.anyio


class Endpoint:
    """An object that can be called as an endpoint."""

    async def __call__(self, group: str, limit: int = 3) -> str:
        return f"{group} {limit} 1"


class Plain(Endpoint):
    def __call__(self, group: str, limit: int = 3) -> str:
        return f"{group} {limit} 1"


class Unhashable(Endpoint):
    __hash__ = None


async def ranking(greeting: str, group: str, limit: int = 3) -> str:
    return f"{group} {limit} 1"


def plain_ranking(greeting: str, group: str, limit: int = 3) -> str:
    return f"{group} {limit} 1"


class Controller:
    async def ranking(self, group: str, limit: int = 3) -> str:
        return f"{group} {limit} 1"


@pytest.mark.parametrize(
    "endpoint",
    [
        Endpoint(),
        Plain(),
        Unhashable(),
        functools.partial(ranking, "hello"),
        functools.partial(plain_ranking, "hello"),
        functools.partial(functools.partial(ranking, "hello")),
        functools.partial(Endpoint()),
        Controller().ranking,
    ],
    ids=lambda value: type(value).__name__,
)
async def test_partials_methods_and_callable_objects_are_cached_as_endpoints(cache, endpoint):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)
    app.get("/rankings/{group}")(cache.response(fresh_for=60, tags=("group:{group}",))(endpoint))
    async with client(app) as http:
        for state in ("missing", "fresh"):
            assert brief(await http.get("/rankings/ATL?limit=5")) == (200, '"ATL 5 1"', state)
        assert (await http.get("/rankings/ATL?limit=x")).status_code == 422
        await cache.invalidate_tag("group:ATL")
        assert (await http.get("/rankings/ATL?limit=5")).headers["swr-state"] == "missing"
        operation = app.openapi()["paths"]["/rankings/{group}"]["get"]
    assert "partial" not in operation["operationId"]
    assert "wrapper" not in operation["operationId"]


async def test_callable_object_is_cached_as_starlette_endpoint(cache):
    class Page:
        async def __call__(self, request):
            return PlainTextResponse(request.path_params["name"])

    endpoint = cache.response(fresh_for=60, tags=("page:{name}",))(Page())
    app = Starlette(routes=[Route("/{name}", endpoint)])
    async with client(SWRMiddleware(app, cache)) as http:
        assert [brief(await http.get("/x")) for _ in range(2)] == [(200, "x", "missing"), (200, "x", "fresh")]


class ASGIApp:
    async def __call__(self, scope, receive, send): ...


async def asgi_app(scope, receive, send): ...


@pytest.mark.parametrize(
    "endpoint", [ASGIApp(), ASGIApp, asgi_app, functools.partial(ASGIApp), functools.partial(asgi_app), 5, FastAPI()]
)
def test_asgi_apps_and_non_callables_are_refused_as_endpoints(endpoint):
    with pytest.raises(ConfigurationError, match="Rule of its path"):
        Cache().response(fresh_for=60)(endpoint)


@pytest.mark.parametrize("kind", ["app", "router", "def", "object"])
async def test_response_decorator_above_the_route_logs_one_warning(cache, caplog, kind):
    app, router = FastAPI(), APIRouter()
    app.add_middleware(SWRMiddleware, cache=cache)
    where = router if kind == "router" else app

    if kind == "def":

        @cache.response(fresh_for=60)
        @app.get("/page")
        def page():
            return 1

    elif kind == "object":
        cache.response(fresh_for=60)(app.get("/page")(functools.partial(ranking, "hello", "x")))
    else:

        @cache.response(fresh_for=60)
        @where.get("/page")
        async def page(request: Request):
            return 1

    app.include_router(router)
    async with client(app) as http:
        for _ in range(3):
            assert (await http.get("/page")).headers["swr-state"] == "missing"
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert "above the decorator of the route" in line


async def test_response_decorator_below_the_route_logs_nothing(cache, caplog):
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/other", fresh_for=60)])

    @app.get("/page")
    @cache.response(fresh_for=60)
    async def page():
        return 1

    app.get("/other")(page.__wrapped__)
    async with client(app) as http:
        for path in ("/page", "/other", "/nowhere"):
            await http.get(path)
    assert not caplog.records


@pytest.mark.parametrize("name", ["Authorization", "authorization", "X-API-Key", "Proxy-Authorization"])
def test_vary_by_credentials_is_refused_with_what_to_do(name):
    for make in (
        lambda: Cache().response(fresh_for=60, vary=("Accept-Language", name)),
        lambda: Rule("/x", fresh_for=60, vary=(name,)),
    ):
        with pytest.raises(ConfigurationError, match="Cache-Control: public"):
            make()


@pytest.mark.parametrize("name", ["cached", "cached_many", "response"])
@pytest.mark.parametrize("given", [ranking, plain_ranking, Endpoint(), Controller, functools.partial(ranking, "hello")])
def test_decorator_without_parentheses_is_refused_with_what_to_write(name, given):
    with pytest.raises(
        ConfigurationError, match=rf"@cache\.{name} decorates .* without options: write @cache\.{name}\("
    ):
        getattr(Cache(), name)(given)


@pytest.mark.parametrize(
    ("name", "given"), [("cached", 60), ("cached_many", ["a"]), ("response", 60), ("response", "/x")]
)
def test_positional_option_is_refused_with_what_to_write(name, given):
    with pytest.raises(
        ConfigurationError, match=rf"@cache\.{name} got the positional argument .*: write @cache\.{name}\(.*fresh_for="
    ):
        getattr(Cache(), name)(given)


def test_decorator_without_lifetime_is_refused():
    for make in (Cache().cached, Cache().response):
        with pytest.raises(ConfigurationError, match="fresh_for"):
            make()


@pytest.mark.parametrize("annotation", [WebSocket, "WebSocket", Annotated[WebSocket, "doc"]])
def test_endpoint_for_a_websocket_is_refused(annotation):
    async def chat(websocket): ...

    chat.__annotations__["websocket"] = annotation
    with pytest.raises(ConfigurationError, match="takes a WebSocket"):
        Cache().response(fresh_for=60)(chat)


def of_fastapi():
    app = FastAPI()
    return app, app.get("/")


def of_a_router():
    router = APIRouter()
    return router, router.get("/")


def of_flask():
    app = Flask("placed")
    return app, app.get("/")


@pytest.mark.parametrize("make", [of_fastapi, of_a_router, of_flask])
@pytest.mark.parametrize("name", ["cached", "cached_many"])
def test_loader_decorator_above_the_route_is_refused(make, name):
    app, route = make()
    cached = getattr(Cache(), name)
    with pytest.raises(ConfigurationError, match=rf"^@cache\.{name} on .*\.one does nothing there: .* below @app\.get"):

        @cached("one:{item}", fresh_for=60)
        @route
        def one(items: list[str]) -> dict[str, int]:
            return {}

    # In the right order it is a loader whose value the framework makes a response of.
    @route
    @Cache().cached(fresh_for=60)
    def other() -> dict[str, int]:
        return {}

    assert app is not None


def kept() -> int:
    return 1


@functools.wraps(functools.lru_cache(kept))
def around() -> int:
    return kept()


@contextlib.contextmanager
def opened():
    yield 1


@contextlib.asynccontextmanager
async def opened_async():
    yield 1


@pytest.mark.parametrize(
    ("given", "complaint"),
    [
        (functools.lru_cache(kept), r"^tests\.test_placement\.kept has a cache already, .* below @cache\.cached$"),
        (around, "kept has a cache already"),
        (Cache().cached(fresh_for=60)(kept), "kept has a cache already"),
        (opened, "opened is a context manager, which can be entered once"),
        (opened_async, "opened_async is a context manager, which can be entered once"),
        (property(kept), r"^@cache\.cached decorates .* not <property .*: put it directly above the def, below other"),
        (Celery("placed").task(kept), r"^@cache\.cached decorates .* not <@task: .*: put it directly above the def"),
        (Controller, r"^@cache\.cached decorates .* not <class"),
    ],
)
def test_cached_on_the_result_of_another_decorator_is_refused_with_what_to_do(given, complaint):
    with pytest.raises(ConfigurationError, match=complaint):
        Cache().cached(fresh_for=60)(given)


@pytest.mark.parametrize(
    "kind", [HttpRequest, BackgroundTasks, LitestarRequest, FlaskRequest, Request, WebSocket, "HttpRequest"]
)
def test_request_objects_are_refused_as_loader_parameters(kind):
    def view(given): ...

    view.__annotations__ = {"given": kind}
    with pytest.raises(
        ConfigurationError, match=r"takes 'given', which belongs to one request; .* Pass what matters of it"
    ):
        Cache().cached(fresh_for=60)(view)

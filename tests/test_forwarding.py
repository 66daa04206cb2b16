"""An endpoint that asks another app, and an argument that looks at the request: nothing stored in front of either."""

import functools
from typing import Annotated

import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request, Response
from fastapi.requests import HTTPConnection
from fastapi.security import HTTPBearer
from starlette.applications import Starlette
from starlette.endpoints import HTTPEndpoint
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Mount, Route

from swr.endpoints.looking import looks_at_request, reads_address
from swr.middleware import Rule, SWRMiddleware
from tests.web import client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


RULE = Rule("/{path:path}", fresh_for=60, stale_for=600)
OWN = {"cache-control": "max-age=60"}


# -- an endpoint that asks another app ------------------------------------------------------------------------------


def guard(x_real_ip: Annotated[str, Header()] = "") -> None:
    if x_real_ip != "right":
        raise HTTPException(403)


def guarded(terms, cache=None):
    app = FastAPI(dependencies=[Depends(guard)])

    async def page(response: Response) -> str:
        if terms == "max-age":
            response.headers.update(OWN)
        return "secret"

    app.get("/{path:path}")(cache.response(fresh_for=60)(page) if terms == "inner decorator" else page)
    return app


class HandsOn(Response):
    """Hands a copy of the scope to another app."""

    def __init__(self, app, copy):
        super().__init__()
        self._copied, self._made_by = app, copy

    async def __call__(self, scope, receive, send):
        await self._copied(self._made_by(scope), receive, send)


COPIES = {
    "dict": dict,
    "unpacked": lambda scope: {**scope, "path": "/y"},
    "copy": lambda scope: scope.copy(),
    "union": lambda scope: scope | {"path": "/y"},
    "items": lambda scope: dict(scope.items()),
    "names": lambda scope: {name: scope[name] for name in scope},
    "keys": lambda scope: {name: scope[name] for name in scope.keys()},  # noqa: SIM118  # `keys()` is what is tested
    "values": lambda scope: dict(zip(list(scope), scope.values(), strict=True)),
}


async def collected(app, scope, receive):
    """Return the response of an app as one of this app's own."""
    found: dict[str, object] = {"body": b""}

    async def send(message):
        found.update({name: value for name, value in message.items() if name != "body"})
        found["body"] += message.get("body", b"")

    await app(scope, receive, send)
    response = Response(found["body"], found["status"])
    response.raw_headers = list(found["headers"])
    return response


async def codes(app, *values, path="/x"):
    async with client(app) as http:
        return [(await http.get(path, headers={"x-real-ip": value})).status_code for value in values]


@pytest.mark.parametrize(
    ("copy", "terms"),
    [*((copy, "max-age") for copy in COPIES), *(("dict", terms) for terms in ("rule", "decorator", "inner decorator"))],
)
@pytest.mark.parametrize("way", ["response", "collected"])
@pytest.mark.parametrize("is_fastapi", [True, False])
async def test_guard_still_decides_when_an_endpoint_gives_its_app_a_copy_of_the_scope(
    cache, way, copy, terms, is_fastapi
):
    inner, made_by = guarded(terms, cache), COPIES[copy]

    async def forward(request: Request):
        if way == "response":
            return HandsOn(inner, made_by)
        return await collected(inner, made_by(request.scope), request.receive)

    endpoint = cache.response(fresh_for=60)(forward) if terms == "decorator" else forward
    app = FastAPI() if is_fastapi else Starlette()
    app.router.add_api_route("/x", endpoint) if is_fastapi else app.add_route("/x", endpoint)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    assert await codes(app, "right", "", "wrong", "right") == [200, 403, 403, 200]


class Holder:
    """An ASGI app that says nothing of the one that it holds."""

    def __init__(self, app):
        self._held = app

    async def __call__(self, scope, receive, send):
        await self._held(dict(scope), receive, send)


@pytest.mark.uncounted
@pytest.mark.parametrize("terms", ["rule", "max-age"])
@pytest.mark.parametrize("place", ["app", "route", "mount", "inner mount"])
async def test_guard_still_decides_when_an_object_hides_its_app_and_copies_the_scope(cache, terms, place):
    holder = Holder(guarded(terms))
    app = FastAPI()
    if place == "app":
        app = holder
    elif place == "route":
        app.router.routes.append(Route("/x", holder))
    elif place == "mount":
        app.mount("/", holder)
    else:
        app.mount("/", Starlette(routes=[Mount("/", app=holder)]))
    app = SWRMiddleware(app, cache, [RULE] if terms == "rule" else ())
    assert await codes(app, "right", "", "right") == [200, 403, 200]


@pytest.mark.parametrize("copies", [False, True])
async def test_endpoint_with_links_is_cached_unless_middleware_copies_the_scope(cache, copies):
    app = FastAPI()

    @app.get("/x", name="page")
    async def page(request: Request) -> str:
        return str(request.url_for("page")) + str(request.base_url)

    class Logs:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            # What it makes of the copy, swr cannot see.
            assert {**scope} if copies else scope
            await self.app(scope, receive, send)

    app.add_middleware(Logs)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    async with client(app) as http:
        states = [(await http.get("/x")).headers["swr-state"] for _ in range(2)]
    assert states == ["missing", "missing" if copies else "fresh"]


# -- an argument whose dependency looks at the request --------------------------------------------------------------


def by_address(request: Request) -> str:
    return request.client.host


def by_connection(connection: HTTPConnection) -> str:
    return connection.client.host


def by_proxy(request: Request) -> str:
    return request.headers.get("x-forwarded-for", "")


def by_state(request: Request) -> str:
    return request.state.user


def by_host(request: Request) -> str:
    return f"{request.url.hostname} {request.headers.get('x-real-ip')}"


def by_cookie(request: Request) -> str:
    return request.cookies.get("user", "")


def by_agent(request: Request) -> str:
    return request.headers["user-agent"]


async def by_await(request: Request) -> str:
    return request.client.host


def by_yield(request: Request):
    yield request.client.host


class ByClass:
    def __init__(self, request: Request) -> None:
        self.text = request.client.host

    def __str__(self):
        return self.text


class ByCall:
    def __call__(self, request: Request) -> str:
        return request.client.host


class ByScheme(HTTPBearer):
    async def __call__(self, request: Request) -> str:
        return request.client.host


def by_another(who: Annotated[str, Depends(by_address)]) -> str:
    return who


LOOKING = [
    by_address, by_connection, by_proxy, by_state, by_host, by_cookie, by_agent, by_await, by_yield, ByClass, ByCall(),
    ByScheme(), by_another,
]  # fmt: skip


class Users:
    """Middleware that notes who asks, in the app or around swr."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            scope.setdefault("state", {})["user"] = scope["client"][0]
        await self.app(scope, receive, send)


def arguments(app, dependency, cache=None, **terms):
    async def page(who: Annotated[object, Depends(dependency)]) -> str:
        return f"for {who}"

    app.get("/x")(page if cache is None else cache.response(fresh_for=60, **terms)(page))


async def seen_by(app, address):
    transport = httpx.ASGITransport(app, client=(address, 1))
    headers = {"x-forwarded-for": address, "x-real-ip": address, "user-agent": address, "cookie": f"user={address}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        return await http.get("/x", headers=headers)


@pytest.mark.uncounted
@pytest.mark.parametrize("terms", ["rule", "decorator"])
@pytest.mark.parametrize("dependency", LOOKING, ids=lambda each: getattr(each, "__name__", type(each).__name__))
@pytest.mark.parametrize("outside", [True, False])
async def test_response_is_not_shared_if_an_argument_reads_the_request(cache, dependency, terms, outside):
    app, bare = FastAPI(), FastAPI()
    arguments(bare, dependency)
    arguments(app, dependency, cache if terms == "decorator" else None)
    rules = [Rule("/x", fresh_for=60, cookies=("user",))] if terms == "rule" else [Rule("/x", cookies=("user",))]
    if not outside:
        app.add_middleware(Users)
    app.add_middleware(SWRMiddleware, cache=cache, rules=rules)
    bare.add_middleware(Users)
    for address in ("10.0.0.1", "10.0.0.2", "10.0.0.1"):
        found = await seen_by(Users(app) if outside else app, address)
        assert found.text == (await seen_by(bare, address)).text
        # Within, the middleware that keeps the address is reason enough.
        assert ("argument who" if outside else 'detail="address') in found.headers["cache-status"]


async def test_key_or_shared_true_allows_caching_if_an_argument_reads_the_request(cache):
    keyed, shared = FastAPI(), FastAPI()
    arguments(keyed, by_address)
    keyed.add_middleware(
        SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, cookies=())], key=lambda scope: scope["client"][0]
    )
    # A string would select.
    arguments(shared, ByClass, cache, shared=True)
    shared.add_middleware(SWRMiddleware, cache=cache)
    for state in ("missing", "fresh"):
        for address in ("a", "b"):
            found = await seen_by(keyed, address)
            assert (found.json(), found.headers["swr-state"]) == (f"for {address}", state)
    found = [(await seen_by(shared, address)).json() for address in ("a", "b")]
    assert found == ["for a", "for a"]


async def test_error_is_not_shared_if_an_argument_reads_the_request(cache):
    app = FastAPI()

    @app.get("/x")
    async def page(who: Annotated[str, Depends(by_address)]) -> Response:
        return PlainTextResponse(f"sorry {who}", 503)

    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    assert [(await seen_by(app, address)).text for address in ("a", "b")] == ["sorry a", "sorry b"]


def pool(request: Request) -> str:
    return request.app.state.pool


async def pool_of_a_connection(connection: HTTPConnection):
    for each in (connection.app.state.pool,):
        yield each


def nothing(request: Request) -> str:
    return "pool"


@pytest.mark.uncounted
@pytest.mark.parametrize("dependency", [pool, pool_of_a_connection, nothing])
@pytest.mark.parametrize("way", ["rule", "decorator", "guard", "behind"])
async def test_response_is_shared_if_a_dependency_reads_only_the_app_of_the_request(cache, dependency, way):
    app = FastAPI()
    app.state.pool = "pool"
    guards = [Depends(dependency)] if way == "guard" else [Depends(HTTPBearer())] if way == "behind" else []

    async def page(db: Annotated[str, Depends(dependency)]) -> str:
        return f"from {db}"

    async def plain() -> str:
        return "from pool"

    endpoint = plain if way == "guard" else page
    app.get("/x", dependencies=guards)(cache.response(fresh_for=60)(endpoint) if way != "rule" else endpoint)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if way == "rule" else ())
    async with client(app, headers={"authorization": "Bearer a"} if way == "behind" else {}) as http:
        found = [await http.get("/x") for _ in range(2)]
    assert [(answer.json(), answer.headers["swr-state"]) for answer in found] == [
        ("from pool", "missing"),
        ("from pool", "fresh"),
    ]


async def test_guarded_response_is_shared_if_the_endpoint_reads_only_the_app(cache):
    app = FastAPI(dependencies=[Depends(HTTPBearer())])
    app.state.pool = "pool"

    @app.get("/x")
    @cache.response(fresh_for=60)
    async def page(request: Request, page: int = 1) -> str:
        return f"from {request.app.state.pool}"

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        states = [(await http.get("/x", headers={"authorization": f"Bearer {n}"})).headers["swr-state"] for n in "ab"]
    assert states == ["missing", "fresh"]


def _in_a_closure(request):
    return lambda: request.client


def _by_its_variables(request):
    return locals()["request"]


def _replaced(request, other):
    request = other
    return request.app


def _written(request):
    request.app = 1


def _handed_on(request):
    return print(request)


def _two_names(request):
    again = request
    return again.client


def _under_a_signature_of_its_own(**arguments):
    return arguments


def _scope_of_the_app_and_more(request):
    return request.app, request.client


@pytest.mark.parametrize(
    "function",
    [
        _in_a_closure, _by_its_variables, _replaced, _written, _handed_on, _two_names, _scope_of_the_app_and_more,
        _under_a_signature_of_its_own, functools.partial(pool), functools.wraps(pool)(lambda *args: args), ByCall(), Request,
    ],
)  # fmt: skip
def test_function_that_may_read_more_than_the_app_counts_as_reading_the_request(function):
    assert looks_at_request(function, "request")


def _both(request, other):
    return other.app, request.app, other.app


@pytest.mark.parametrize("name", ["request", "other"])
def test_function_that_reads_only_the_app_does_not_count_as_reading_the_request(name):
    assert not looks_at_request(_both, name)
    assert not looks_at_request(lambda request, other: "request", name)


# -- an endpoint that takes the client's address --------------------------------------------------------------------


async def of_client(request: Request):
    return PlainTextResponse(request.client.host)


def of_connection(connection: HTTPConnection, page: int = 1):
    return PlainTextResponse(connection.client.host)


async def of_a_closure(where: "Request"):
    return PlainTextResponse((lambda: where)().client.host + where.client.host)


async def of_the_scope(request: Request):
    return PlainTextResponse(request.scope["client"][0])


async def of_what_the_scope_holds(request: Request):
    return PlainTextResponse(request.scope.get("client")[0])


def of_the_request_as_a_mapping(request: Request):
    return PlainTextResponse(request["client"][0])


async def of_a_function_within(request: Request):
    def address():
        return request.client.host

    return PlainTextResponse(address())


async def of_the_scope_in_a_function_within(request: Request):
    return PlainTextResponse("".join(request.scope["client"][at] for at in (0,)))


async def of_the_pool(request: Request):
    address = "client", request.app.state.client
    return PlainTextResponse(f"{address} {request.url_for('x')} {[request.method for client in address]}")


class OfClass(HTTPEndpoint):
    async def get(self, request):
        return PlainTextResponse(request.client.host)


class OfObject:
    async def __call__(self, request: Request):
        return PlainTextResponse(request.client.host)


OF_OTHER_FORMS = [
    of_the_scope,
    of_what_the_scope_holds,
    of_the_request_as_a_mapping,
    of_a_function_within,
    of_the_scope_in_a_function_within,
]


@pytest.mark.parametrize("terms", ["rule", "decorator", "shared"])
@pytest.mark.parametrize(
    ("endpoint", "is_fastapi"),
    [
        *((of_any, True) for of_any in (of_client, of_connection, of_a_closure, *OF_OTHER_FORMS)),
        *((of_any, False) for of_any in (of_client, OfClass, *OF_OTHER_FORMS)),
    ],
)
async def test_endpoint_that_reads_the_client_address_is_cached_only_with_shared_true(
    cache, endpoint, is_fastapi, terms
):
    app = FastAPI() if is_fastapi else Starlette()
    if terms != "rule":
        decorate = cache.response(fresh_for=60, shared=terms == "shared")
        endpoint = (
            type("Page", (HTTPEndpoint,), {"get": decorate(OfClass.get)}) if endpoint is OfClass else decorate(endpoint)
        )
    app.get("/x")(endpoint) if is_fastapi else app.add_route("/x", endpoint)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    found = []
    for address in ("a", "b", "a"):
        async with httpx.AsyncClient(
            transport=httpx.ASGITransport(app, client=(address, 1)), base_url="http://test"
        ) as http:
            found.append(await http.get("/x"))
    if terms == "shared":
        assert [each.text[0] for each in found] == ["a"] * 3
        assert found[2].headers["swr-state"] == "fresh"
    else:
        assert [each.text[0] for each in found] == ["a", "b", "a"]
        assert 'detail="argument ' in found[2].headers["cache-status"]


@pytest.mark.parametrize("is_fastapi", [True, False])
async def test_endpoint_that_reads_no_client_address_is_cached(cache, is_fastapi):
    app = FastAPI() if is_fastapi else Starlette()
    app.state.client = "a client of a database"
    app.get("/x", name="x")(of_the_pool) if is_fastapi else app.add_route("/x", of_the_pool, name="x")
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    async with client(app) as http:
        assert [(await http.get("/x")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]


def test_callable_counts_as_reading_the_address_only_if_its_code_shows_it():
    assert not reads_address(len)
    assert not reads_address(None)
    assert reads_address(OfObject())
    assert reads_address(OfObject().__call__)


async def test_default_page_of_a_mounted_router_is_cached(cache):
    """A router copies the scope to look for a path with another slash."""
    site = Starlette(routes=[Route("/other", lambda request: PlainTextResponse("other"))])
    site.router.default = PlainTextResponse("page")
    app = FastAPI()
    app.mount("/", site)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    async with client(app) as http:
        found = [await http.get("/some/path") for _ in range(2)]
    assert [(each.text, each.headers["swr-state"]) for each in found] == [("page", "missing"), ("page", "fresh")]


@pytest.mark.parametrize("said", [None, "stale-while-revalidate=30"])
async def test_shared_endpoint_that_reads_the_address_is_stored_after_dependencies(cache, said):
    """`shared=True` is about clients that the dependencies of the route admit; swr stores nothing in front of them."""
    app = FastAPI()

    @app.get("/x")
    @cache.response(fresh_for=60, shared=True)
    async def page(request: Request) -> JSONResponse:
        headers = {} if said is None else {"cache-control": said}
        return JSONResponse("v4" if request.client and "." in request.client.host else "v6", headers=headers)

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        found = [(await http.get("/x")).headers["cache-status"] for _ in range(2)]
    assert found == [
        'swr; fwd=uri-miss; stored; detail="after dependencies"', 'swr; hit; ttl=60; detail="after dependencies"',
    ]  # fmt: skip

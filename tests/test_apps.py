"""Apps and routes that are not plain routes of FastAPI: swr sees what they ask for, or it does not share."""

import copy
import functools
import sys
from dataclasses import dataclass
from typing import Annotated, Any

import litestar
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException
from fastapi.dependencies.utils import get_dependant, get_parameterless_sub_dependant
from fastapi.routing import get_request_handler, request_response
from litestar import Litestar
from starlette.applications import Starlette
from starlette.responses import PlainTextResponse
from starlette.routing import BaseRoute, Host, Match, Mount, Route, Router
from starlette.staticfiles import StaticFiles

from swr.middleware import Rule, SWRMiddleware
from tests.fleet import settle
from tests.test_reads import answers, api, are_shared, asgi, ask, helped, host_of, plain
from tests.web import client

pytestmark = pytest.mark.anyio

RULE = Rule("/{path:path}", fresh_for=60, stale_for=600)
HAS_FRONTEND = pytest.mark.skipif(not hasattr(APIRouter, "frontend"), reason="this FastAPI serves no frontends")


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop."""
    return "asyncio"


def no_bots(user_agent: Annotated[str, Header()] = "") -> None:
    if "bot" in user_agent:
        raise HTTPException(403)


GUARDS = [Depends(no_bots)]


@litestar.get("/")
async def litestar_page() -> str:
    return "x"


class Holding:
    """Middleware that keeps its app in an attribute of another name than `app`."""

    def __init__(self, app):
        self.inner = app

    async def __call__(self, scope, receive, send):
        await self.inner(scope, receive, send)


class Everywhere(BaseRoute):
    """A route of the app's own, which hands all requests to an app."""

    def __init__(self, app):
        self.inner = app

    def matches(self, scope):
        return Match.FULL, {}

    async def handle(self, scope, receive, send):
        await self.inner(scope, receive, send)


@pytest.fixture
def files(tmp_path):
    (tmp_path / "index.html").write_text("page")
    (tmp_path / "app.js").write_text("script")
    return tmp_path


def fastapi_with(app):
    outer = FastAPI()
    outer.mount("/ui", app)
    return outer


def included(app):
    outer, router = FastAPI(), APIRouter()
    router.mount("/ui", app)
    outer.include_router(router)
    return outer


def included_itself(router):
    outer = FastAPI()
    outer.include_router(router, prefix="/ui")
    return outer


AROUND = [
    fastapi_with,
    included,
    included_itself,
    lambda app: fastapi_with(Holding(app)),
    lambda app: Starlette(routes=[Mount("/ui", app)]),
    lambda app: Starlette(routes=[Mount("/ui", Holding(app))]),
    lambda app: Starlette(routes=[Host("test", Router([Mount("/ui", app)]))]),
]


@HAS_FRONTEND
@pytest.mark.parametrize("around", AROUND)
@pytest.mark.parametrize("key", [None, lambda scope: "all"])
async def test_frontend_in_a_router_is_not_shared_wherever_the_router_is(cache, files, around, key):
    router = APIRouter(dependencies=GUARDS)
    router.frontend("/", directory=files)
    bare = around(router)
    asked = [("/ui/", "Mozilla", "text/html"), ("/ui/", "bot", "text/html")]
    asked += [("/ui/page", "Mozilla", accept) for accept in ("text/html", "application/json", "text/html")]
    async with client(SWRMiddleware(bare, cache, [RULE], key=key)) as http, client(bare) as plain:
        for path, agent, accept in asked:
            fields = {"user-agent": agent, "accept": accept}
            found, right = await http.get(path, headers=fields), await plain.get(path, headers=fields)
            assert (found.status_code, found.text) == (right.status_code, right.text)
            assert found.headers["cache-status"].endswith('detail="route not seen"')


@HAS_FRONTEND
@pytest.mark.parametrize("has_key", [False, True])
async def test_page_of_a_frontend_stays_available_after_its_lifetime(cache, clock, files, has_key):
    """A background refresh would send no `Accept`, to which FastAPI answers 404."""
    app = FastAPI()
    app.frontend("/", directory=files)
    key = (lambda scope: "all") if has_key else None
    async with client(SWRMiddleware(app, cache, [RULE], key=key)) as http:
        for _ in range(3):
            assert (await http.get("/page", headers={"accept": "text/html"})).text == "page"
            clock.advance(61)
            await settle()


# Older FastAPI leaves out what an included router mounts.
@pytest.mark.parametrize("around", [AROUND[0], pytest.param(included, marks=HAS_FRONTEND), *AROUND[2:4]])
async def test_guard_of_a_mounted_router_decides_although_its_response_is_stored(cache, around):
    router = APIRouter(dependencies=GUARDS)
    router.get("/x")(lambda: "x")
    async with client(SWRMiddleware(around(router), cache, [RULE])) as http:
        found = [await http.get("/ui/x", headers={"user-agent": agent}) for agent in ("Mozilla", "bot", "Mozilla")]
    assert [answer.status_code for answer in found] == [200, 403, 200]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "missing", "fresh"]


@pytest.mark.parametrize("around", [Holding, lambda app: app])
async def test_mounted_files_are_cached(cache, files, around):
    app = fastapi_with(around(StaticFiles(directory=files)))
    async with client(SWRMiddleware(app, cache, [RULE])) as http:
        found = [await http.get("/ui/app.js", headers={"user-agent": agent}) for agent in ("Mozilla", "bot")]
    assert [(answer.text, answer.headers["swr-state"]) for answer in found] == [
        ("script", "missing"),
        ("script", "fresh"),
    ]


def handler_with_guard():
    """Return an app as libraries make it that solve dependencies without a route."""
    dependant = get_dependant(path="/ui/x", call=lambda: "x")
    dependant.dependencies.append(get_parameterless_sub_dependant(depends=GUARDS[0], path="/ui/x"))
    return request_response(get_request_handler(dependant))


@pytest.mark.parametrize(
    "route",
    [
        lambda app: Mount("/ui", app),
        lambda app: Route("/ui/x", Holding(app)),
        lambda app: Mount("/ui", Router([Everywhere(app)])),
        Everywhere,
    ],
)
async def test_guard_that_fastapi_solves_without_a_route_prevents_sharing(cache, route):
    app = FastAPI()
    app.router.routes.append(route(handler_with_guard()))
    async with client(SWRMiddleware(app, cache, [RULE])) as http:
        for agent, status in (("Mozilla", 200), ("bot", 403), ("Mozilla", 200)):
            found = await http.get("/ui/x", headers={"user-agent": agent})
            assert (found.status_code, found.headers["swr-state"]) == (status, "missing")


class Slotted:
    """An app to which no weak references are possible, as Litestar."""

    __slots__ = ("inner",)

    def __init__(self, app):
        self.inner = app

    async def __call__(self, scope, receive, send):
        await self.inner(scope, receive, send)


@dataclass(frozen=True)
class Frozen:
    """An app with a hash that fails, because one of its parts has none."""

    inner: Any
    hosts: list[str]

    async def __call__(self, scope, receive, send):
        await self.inner(scope, receive, send)


@pytest.mark.parametrize(
    "make", [Slotted, lambda app: Frozen(app, ["test"]), lambda app: Litestar([litestar_page], logging_config=None)]
)
async def test_mounted_app_that_cannot_be_the_key_of_a_dict_is_cached(cache, make):
    app = fastapi_with(make(PlainTextResponse("x")))
    async with client(SWRMiddleware(app, cache, [RULE])) as http:
        found = [await http.get("/ui/") for _ in range(2)]
    assert [(answer.text, answer.headers["swr-state"]) for answer in found] == [("x", "missing"), ("x", "fresh")]


@pytest.mark.parametrize("has_state", [False, True])
async def test_app_that_deep_copies_its_scope_answers_unshared(cache, has_state):
    """Hypercorn's `ProxyFixMiddleware` does so."""

    async def copied(scope, receive, send):
        await app(copy.deepcopy(scope), receive, send)

    async def page(request):
        return PlainTextResponse(request.client.host + getattr(request.state, "tenant", ""))

    app = Starlette(routes=[Route("/x", page)])
    inner = SWRMiddleware(copied, cache, [RULE])

    async def outer(scope, receive, send):
        await inner({**scope, "state": {"tenant": " a"}} if has_state else scope, receive, send)

    async with client(outer) as http:
        for _ in range(2):
            found = await http.get("/x")
            assert (found.text, found.headers["swr-state"]) == ("127.0.0.1 a" if has_state else "127.0.0.1", "missing")


ROUTER = Router([Route("/x", lambda request: PlainTextResponse(host_of(request)))])


class Keeping:
    """Middleware as libraries write it: each keeps the app in another place."""

    __slots__ = ("__dict__", "inner")

    def __init__(self, app, place):
        if place == "attribute":
            self.other_asgi_app = app
        elif place == "slot":
            self.inner = app
        else:
            self.mounts = [("/a", plain), ("/x", {"app": app})]

    async def __call__(self, scope, receive, send):
        app = getattr(self, "other_asgi_app", None) or getattr(self, "inner", None) or self.mounts[1][1]["app"]
        await app(scope, receive, send)

    async def served(self, scope, receive, send):
        await self(scope, receive, send)


def in_closure(app):
    async def wrapped(scope, receive, send):
        await app(scope, receive, send)

    return wrapped


async def in_default(scope, receive, send, app=ROUTER):
    await app(scope, receive, send)


async def in_global(scope, receive, send):
    await ROUTER(scope, receive, send)


WRAPPED = [
    *(Keeping(ROUTER, place) for place in ("attribute", "slot", "mounts")),
    *(Keeping(in_closure(Keeping(ROUTER, place)), "mounts") for place in ("attribute", "slot", "mounts")),
    Keeping(ROUTER, "mounts").served,
    in_closure(ROUTER),
    functools.partial(in_closure(ROUTER)),
    in_default,
    in_global,
    ROUTER,
]


@pytest.mark.parametrize("app", WRAPPED)
@pytest.mark.parametrize("has_starlette", [True, False])
async def test_address_that_a_router_reads_is_noticed_wherever_an_app_keeps_the_router(
    cache, monkeypatch, app, has_starlette
):
    monkeypatch.delitem(sys.modules, "fastapi")
    if not has_starlette:
        monkeypatch.delitem(sys.modules, "starlette.applications")
    found = await answers(SWRMiddleware(app, cache, [RULE]))
    assert [answer.text for answer in found] == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    assert ('detail="address"' in found[0].headers["cache-status"]) is (has_starlette or app is ROUTER)


async def test_app_that_imports_starlette_only_with_its_first_request_shares_no_address(cache, monkeypatch):
    names = ("fastapi", "starlette.applications")
    imported = {name: sys.modules[name] for name in names}
    for name in names:
        monkeypatch.delitem(sys.modules, name)

    async def lazy(scope, receive, send):
        sys.modules.update(imported)
        await app(scope, receive, send)

    app = api(helped)
    found = await answers(SWRMiddleware(lazy, cache, [RULE]))
    assert [answer.json() for answer in found] == ["192.0.2.1", "192.0.2.2", "192.0.2.1"]
    assert 'detail="route not seen"' in found[0].headers["cache-status"]


async def test_wrapped_router_that_reads_nothing_of_the_client_is_cached(cache, monkeypatch):
    monkeypatch.delitem(sys.modules, "fastapi")
    router = Router([Route("/x", lambda request: PlainTextResponse("x"))])
    assert await are_shared(SWRMiddleware(Keeping(router, "mounts"), cache, [RULE]))


@litestar.get("/x")
async def tenant_of_state(request: litestar.Request) -> str:
    return str(request.state.get("tenant"))


@litestar.get("/x")
async def no_tenant() -> str:
    return "none"


@pytest.mark.parametrize(
    ("handler", "states"), [(tenant_of_state, ["missing"] * 3), (no_tenant, ["missing", "fresh", "fresh"])]
)
@pytest.mark.parametrize("has_fastapi", [True, False])
async def test_outer_value_reaches_apps_of_another_framework_unshared(cache, monkeypatch, handler, states, has_fastapi):
    """Such a framework copies the state into its own request, where swr cannot see who reads it."""
    if not has_fastapi:
        monkeypatch.delitem(sys.modules, "fastapi")
    inner = SWRMiddleware(Litestar([handler], logging_config=None), cache, [RULE])
    found = []
    for tenant in "aba":
        outer = asgi(inner, lambda scope, tenant=tenant: {**scope, "state": {"tenant": tenant}})
        found.append(await ask(outer, 1))
    assert [answer.text for answer in found] == (list("aba") if handler is tenant_of_state else ["none"] * 3)
    assert [answer.headers["swr-state"] for answer in found] == states

"""Ways in which one user could have been given another's answer; each is closed."""

import asyncio
import contextlib
import functools
import sys
from collections import ChainMap
from contextvars import Context, ContextVar
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Query, Request, Response, Security
from fastapi.responses import JSONResponse, PlainTextResponse, StreamingResponse
from fastapi.security import APIKeyHeader, APIKeyQuery
from pydantic import AliasChoices, BaseModel, ConfigDict, model_validator
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.datastructures import Headers
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Host, Mount, Route

from swr import Cache, ConfigurationError
from swr.http.request_fields import FieldClass, field_class, selecting_value
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import settle
from tests.web import MAX_AGE, App, brief, client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


RULE = Rule("/{path:path}", fresh_for=60, stale_for=600)
OWN = {"cache-control": "max-age=60"}
CREDENTIAL = FieldClass.CREDENTIAL


def check(token: str) -> None:
    if token != "right":
        raise HTTPException(403)


class Everything(BaseModel):
    model_config = ConfigDict(extra="allow")


class Before(BaseModel):
    token: str = ""

    @model_validator(mode="before")
    @classmethod
    def read(cls, data: Any) -> Any:
        return {"token": dict(data).get("x-token", "")}


class Choices(BaseModel):
    token: Annotated[str, Header(validation_alias=AliasChoices("x-token", "x-other"))] = ""


scheme = APIKeyHeader(name="X-Token", auto_error=False)


def by_choices(token: Annotated[str, Header(validation_alias=AliasChoices("x-token", "x-other"))] = "") -> None:
    check(token)


def by_everything(headers: Annotated[Everything, Header()]) -> None:
    check((headers.model_extra or {}).get("x_token") or (headers.model_extra or {}).get("x-token", ""))


def by_before(headers: Annotated[Before, Header()]) -> None:
    check(headers.token)


def by_partial(token: Annotated[str, Security(functools.partial(scheme))] = "") -> None:
    check(token or "")


def by_call(token: Annotated[str, Depends(scheme.__call__)] = "") -> None:
    check(token or "")


async def tokens(app, *values, path="/x"):
    async with client(app) as http:
        return [
            (await http.get(path, headers={"x-token": value} if value else {})).status_code == 200 for value in values
        ]


@pytest.mark.parametrize("dependency", [by_choices, by_everything, by_before, by_partial, by_call])
async def test_guard_decides_for_each_client_however_it_declares_its_header(cache, dependency):
    app = FastAPI()

    @app.get("/x", dependencies=[Depends(dependency)])
    async def answer(response: Response) -> str:
        response.headers.update(OWN)
        return "secret"

    alone = await tokens(app, "right", "", "wrong", "right")
    # Before 0.151 FastAPI reads no header of `AliasChoices`, and this guard admits nobody.
    assert alone == [alone[0], False, False, alone[0]]
    assert alone[0] or dependency is by_choices
    assert await tokens(SWRMiddleware(app, cache=cache), "right", "", "wrong", "right") == alone


async def test_header_model_that_forbids_extra_fields_decides_for_each_request(cache):
    class OnlyHost(BaseModel):
        model_config = ConfigDict(extra="forbid")
        host: str

    app = FastAPI()

    @app.get("/x")
    async def endpoint(fields: Annotated[OnlyHost, Header()]) -> str:
        return fields.host

    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    async with client(app) as http:
        http.headers.clear()
        for fields, status in (({}, 200), ({"dnt": "1"}, 422), ({}, 200)):
            assert (await http.get("/x", headers=fields)).status_code == status


async def test_dependency_overrides_of_another_app_do_not_replace_a_guard(cache):
    inner = FastAPI()

    def guard(x_token: Annotated[str, Header()] = "") -> None:
        check(x_token)

    @inner.get("/x", dependencies=[Depends(guard)])
    async def answer(response: Response) -> str:
        response.headers.update(OWN)
        return "secret"

    outer = FastAPI()
    outer.router.routes.extend(inner.router.routes)
    outer.dependency_overrides[guard] = lambda: None
    outer.add_middleware(SWRMiddleware, cache=cache)
    assert await tokens(outer, "right", "") == [True, False]


@pytest.mark.uncounted
@pytest.mark.parametrize("mounted", [False, True])
@pytest.mark.parametrize("terms", ["rule", "decorator", "max-age"])
async def test_guard_still_decides_when_middleware_copies_the_scope(cache, mounted, terms):
    app = FastAPI()

    class Copies:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(dict(scope), receive, send)

    def guard(x_real_ip: Annotated[str, Header()] = "") -> None:
        check(x_real_ip)

    async def answer(response: Response) -> str:
        if terms == "max-age":
            response.headers.update(OWN)
        return "secret"

    app.get("/x", dependencies=[Depends(guard)])(
        cache.response(fresh_for=60)(answer) if terms == "decorator" else answer
    )
    app.add_middleware(Copies)
    outer = app
    if mounted:
        outer = FastAPI()
        outer.mount("/m", app)
    outer.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    async with client(outer) as http:
        found = [
            (await http.get("/m/x" if mounted else "/x", headers={"x-real-ip": value} if value else {})).status_code
            for value in ("right", "", "right")
        ]
    assert found == [200, 403, 200]


class Forward(Response):
    """Hands the request on to another app, as it is or as a copy."""

    def __init__(self, app, *, copies):
        super().__init__()
        self.app, self.copies = app, copies

    async def __call__(self, scope, receive, send):
        await self.app(dict(scope) if self.copies else scope, receive, send)


def by_token(x_token: Annotated[str, Header()] = "") -> None:
    check(x_token)


def by_address(x_real_ip: Annotated[str, Header()] = "") -> None:
    check(x_real_ip)


def fastapi_page(where=None, guard=None):
    """Return a FastAPI app with a page, on the app or on a router that it includes."""
    app = FastAPI()
    router = APIRouter() if where == "included" else app

    @router.get("/{path:path}", dependencies=[] if guard is None else [Depends(guard)])
    async def page(response: Response) -> str:
        response.headers.update(OWN)
        return "secret"

    if where == "included":
        app.include_router(router)
    return app


def starlette_page():
    return Starlette(routes=[Route("/{path:path}", lambda request: PlainTextResponse("secret", headers=OWN))])


async def codes(app, field, *values):
    async with client(app) as http:
        return [(await http.get("/x", headers={field: value} if value else {})).status_code for value in values]


@pytest.mark.uncounted
@pytest.mark.parametrize("terms", ["rule", "max-age"])
@pytest.mark.parametrize("inner", [fastapi_page(), fastapi_page("included"), starlette_page()])
@pytest.mark.parametrize("included", [False, True])
@pytest.mark.parametrize("copies", [False, True])
@pytest.mark.parametrize(("guard", "field"), [(by_token, "x-token"), (by_address, "x-real-ip")])
async def test_guard_still_decides_when_its_route_forwards_to_another_app(
    cache, guard, field, copies, included, inner, terms
):
    app = FastAPI()
    router = APIRouter(dependencies=[Depends(guard)]) if included else app

    @router.get("/x", dependencies=[] if included else [Depends(guard)])
    async def forward():
        return Forward(inner, copies=copies)

    if included:
        app.include_router(router)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    assert await codes(app, field, "right", "", "wrong", "right") == [200, 403, 403, 200]


@pytest.mark.parametrize("depth", [1, 2, 3])
async def test_guard_still_decides_behind_several_apps_that_forward(cache, depth):
    app = fastapi_page(guard=by_token)
    for _ in range(depth):
        app = forwards_to(app)
    app.add_middleware(SWRMiddleware, cache=cache)
    assert await codes(app, "x-token", "right", "", "right") == [200, 403, 200]


def forwards_to(inner):
    app = FastAPI()

    @app.get("/x")
    async def forward():
        return Forward(inner, copies=False)

    return app


@pytest.mark.uncounted
@pytest.mark.parametrize("place", ["whole", "object", "mount", "host"])
@pytest.mark.parametrize("terms", ["rule", "max-age"])
async def test_guard_still_decides_behind_an_app_that_forwards_a_copy_of_the_scope(cache, place, terms):
    guarded = fastapi_page(guard=by_address)

    async def copying(scope, receive, send):
        await guarded({**scope}, receive, send)

    app = copying
    if place == "object":
        app = Forward(guarded, copies=True)
    elif place != "whole":
        app = Starlette(routes=[Mount("/", app=copying) if place == "mount" else Host("test", app=copying)])
    app = SWRMiddleware(app, cache, [RULE] if terms == "rule" else ())
    assert await codes(app, "x-real-ip", "right", "", "right") == [200, 403, 200]


async def test_endpoint_that_calls_url_for_is_cached(cache):
    """Starlette copies the scope for the base URL."""

    async def page(request: Request) -> PlainTextResponse:
        return PlainTextResponse(str(request.url_for("page")))

    fastapi = FastAPI()
    fastapi.get("/x", name="page")(page)
    for number, app in enumerate((Starlette(routes=[Route("/x", page, name="page")]), fastapi)):
        async with client(SWRMiddleware(app, cache, [RULE])) as http:
            answers = [await http.get(f"http://{number}/x") for _ in range(2)]
        assert [answer.headers["swr-state"] for answer in answers] == ["missing", "fresh"]


async def test_middleware_around_swr_sees_scope_changes_by_the_app(cache):
    seen = []

    async def app(scope, receive, send):
        scope["left"] = scope.setdefault("here", 1)
        scope |= {"also": 2}
        del scope["client"]
        assert scope.pop("app", None) is None
        assert {**(scope | {"x": 1})}.keys() - scope.copy().keys() == {"x"}
        await PlainTextResponse("x")(scope, receive, send)

    inside = SWRMiddleware(app, cache, [RULE])

    async def outside(scope, receive, send):
        await inside(scope, receive, send)
        seen.append(scope)

    async with client(outside) as http:
        await http.get("/x")
    assert {name: seen[0].get(name) for name in ("left", "here", "also", "client")} == {
        "left": 1,
        "here": 1,
        "also": 2,
        "client": None,
    }


async def test_app_gets_a_plain_dict_as_scope_if_starlette_is_not_imported(cache, monkeypatch):
    """Frameworks with compiled parts may insist on it."""
    for name in ("fastapi", "starlette.applications"):
        monkeypatch.delitem(sys.modules, name)
    app = App([(b"cache-control", b"max-age=60")])
    async with client(SWRMiddleware(app, cache, [RULE])) as http:
        await http.get("/x")
    assert type(app.scopes[0]) is dict


query_key = APIKeyQuery(name="api_key", auto_error=False)


class Params(BaseModel):
    token: str = ""
    page: int = 0


class AnyParams(BaseModel):
    model_config = ConfigDict(extra="allow")


def by_query_key(api_key: Annotated[str | None, Security(query_key)] = None) -> None:
    check(api_key or "")


def by_query(api_key: str = "") -> None:
    check(api_key)


def by_query_alias(token: Annotated[str, Query(alias="api_key")] = "") -> None:
    check(token)


def by_query_model(params: Annotated[Params, Query()]) -> None:
    check(params.token)


def by_any_query(params: Annotated[AnyParams, Query()]) -> None:
    check((params.model_extra or {}).get("api_key", ""))


GUARDS = [(by_query_key, "api_key"), (by_query, "api_key"), (by_query_alias, "api_key"), (by_query_model, "token"), (by_any_query, "api_key")]  # fmt: skip
LEAVING = [{"keep_params": ("page",)}, {"keep_params": ()}, {"keep_params": ("page",), "sort_query": True}]


@pytest.mark.parametrize("terms", ["rule", "max-age", "public", "decorator", "post"])
@pytest.mark.parametrize(
    ("guard", "name", "options"),
    [
        *((guard, name, options) for guard, name in GUARDS for options in LEAVING),
        *((by_query_key, "api_key", {"drop_params": (name,)}) for name in ("api_key", "api*", "*")),
        (by_query_key, "api_key", {"keep_params": ("api_key",), "drop_params": ("*_key",)}),
    ],
)
async def test_response_is_not_shared_if_a_rule_leaves_out_a_parameter_its_guard_reads(
    cache, caplog, guard, name, options, terms
):
    app = FastAPI()
    control = {"max-age": "max-age=60", "public": "public, max-age=60", "post": "max-age=60"}.get(terms)

    async def answer(response: Response) -> str:
        if control:
            response.headers["cache-control"] = control
        response.headers["content-location"] = "/x"
        return "secret"

    endpoint = cache.response(fresh_for=60)(answer) if terms == "decorator" else answer
    app.api_route("/x", methods=["GET", "POST"], dependencies=[Depends(guard)])(endpoint)
    rule = Rule("/x", fresh_for=60 if terms == "rule" else None, **options)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[rule])
    async with client(app) as http:
        if terms == "post":
            await http.post("/x", params={name: "right"})
        found = [await http.get("/x", params={name: value} if value else {}) for value in ("right", "", "wrong")]
        await http.get("http://elsewhere/x", params={name: "right"})
    assert [answer.status_code for answer in found] == [200, 403, 403]
    # Under the decorator a guard that reads the query runs on every request.
    detail = 'detail="guard' if terms == "decorator" else 'detail="parameter '
    assert terms == "post" or detail in found[0].headers["cache-status"]
    warned = [record for record in caplog.records if "query parameter" in record.message]
    assert len(warned) == 1


@pytest.mark.parametrize(
    ("guard", "options"),
    [
        *((guard, {"keep_params": ("page", "api_key", "token")}) for guard, _ in GUARDS[:4]),
        (by_query, {"keep_params": ("page",), "drop_params": ("api_key",)}),
        (by_query, {"drop_params": ("api_*",)}),
        (by_any_query, {"drop_params": ("utm_*",)}),
        (by_query_key, {"drop_params": ("utm_*",)}),
        (by_query_key, {"sort_query": True}),
    ],
)
async def test_response_is_shared_if_a_rule_keeps_or_names_the_parameters_of_its_guard(cache, guard, options):
    app = FastAPI()

    @app.get("/x", dependencies=[Depends(guard)])
    async def answer() -> str:
        return "secret"

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, **options)])
    async with client(app) as http:
        asked = {"api_key": "right", "token": "right"}
        states = [(await http.get("/x", params=asked)).headers["swr-state"] for _ in range(2)]
    assert states == ["missing", "fresh"]


@pytest.mark.uncounted
@pytest.mark.parametrize("options", [{"drop_params": ("utm_*",)}, {"keep_params": ("page",)}, {"keep_params": ()}])
@pytest.mark.parametrize("query", ["utm_a=1;page=2", "utm_a;page=2", "utm_a=&amp;page=2", "utm_;page=2&utm_b=1"])
async def test_query_parameter_after_a_semicolon_is_part_of_the_key(cache, options, query):
    """Some apps, for instance behind the proxy, split parameters there, too."""

    async def app(scope, receive, send):
        await App(body=scope["query_string"])(scope, receive, send)

    async with client(SWRMiddleware(app, cache, rules=[Rule("/x", fresh_for=60, **options)])) as http:
        assert (await http.get(f"/x?{query}")).text == query
        assert (await http.get("/x")).text == ""


async def test_endpoint_that_calls_a_decorated_function_does_not_inherit_its_terms(cache):
    app = FastAPI()

    @app.get("/part")
    @cache.response(fresh_for=60)
    async def part() -> str:
        return "part"

    @app.get("/dash")
    async def dash(request: Request) -> str:
        return f"{await part()} of {request.headers['x-real-ip']}"

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        for user in ("a", "b"):
            assert (await http.get("/dash", headers={"x-real-ip": user})).json() == f"part of {user}"


async def test_vary_of_a_rule_applies_to_a_decorated_endpoint(cache):
    app = FastAPI()

    @app.get("/x")
    @cache.response(fresh_for=60)
    async def answer(request: Request) -> str:
        return request.headers.get("x-tenant", "")

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", vary=("X-Tenant",))])
    async with client(app) as http:
        for state in ("missing", "fresh"):
            for tenant in ("a", "b", ""):
                found = await http.get("/x", headers={"x-tenant": tenant} if tenant else {})
                assert (found.json(), found.headers["swr-state"]) == (tenant, state)


async def test_cookies_of_a_rule_select_the_response_even_with_cookies_rfc9111(cache):
    async def app(scope, receive, send):
        await App(body=dict(scope["headers"]).get(b"cookie", b"none"))(scope, receive, send)

    rules = [Rule("/x", fresh_for=60, cookies=("session",))]
    async with client(SWRMiddleware(app, cache, rules=rules, cookies="rfc9111")) as http:
        for _ in range(2):
            for user in ("alice", "bob"):
                found = await http.get("/x", headers={"cookie": f"session={user}; other=1"})
                assert found.text == f"session={user}"


@pytest.mark.parametrize("path", ["/x", "/a;b", "/a//b", "/x%2Fy", "/status", "/metrics"])
@pytest.mark.parametrize("way", ["key", "vary"])
async def test_key_or_vary_of_a_rule_separates_responses_on_every_path(cache, path, way):
    async def app(scope, receive, send):
        tenant = dict(scope["headers"]).get(b"x-tenant", b"")
        await App([(b"cache-control", b"max-age=60")], body=tenant)(scope, receive, send)

    def tenant_of(scope):
        return dict(scope["headers"]).get(b"x-tenant", b"").decode()

    rule = Rule("/{path:path}", **({"key": tenant_of} if way == "key" else {"vary": ("X-Tenant",)}))
    async with client(SWRMiddleware(app, cache, rules=[rule])) as http:
        for _ in range(2):
            for tenant in ("a", "b"):
                assert (await http.get(path, headers={"x-tenant": tenant})).text == tenant


LINES = [[("x-name", "Doe, John")], [("x-name", "Doe"), ("x-name", "John")], [("x-name", "Doe,John")], [("x-name", "Doe")], [("x-name", "")], []]  # fmt: skip


@pytest.mark.parametrize("terms", ["rule", "decorator", "max-age", "vary of a rule", "vary of the decorator", "behind a guard"])  # fmt: skip
async def test_declared_field_on_two_lines_and_one_with_a_comma_have_separate_responses(cache, terms):
    """An app may read the first line only. A client that sends two would then choose the answer for a comma."""
    app = FastAPI()
    runs = []

    def guard(authorization: Annotated[str, Header()] = "") -> None: ...

    async def by_declaration(response: Response, x_name: Annotated[str | None, Header()] = None) -> str | None:
        if terms == "max-age":
            response.headers.update(OWN)
        return x_name

    async def by_vary(request: Request) -> str | None:
        runs.append(1)
        return request.headers.get("x-name")

    vary = {"vary": ("X-Name",)} if terms in ("vary of the decorator", "behind a guard") else {}
    endpoint = by_vary if "vary" in terms or terms == "behind a guard" else by_declaration
    if "decorator" in terms or terms == "behind a guard":
        endpoint = cache.response(fresh_for=60, shared=terms == "behind a guard", **vary)(endpoint)
    app.get("/x", dependencies=[Depends(guard)])(endpoint)
    rule = Rule("/x", fresh_for=60 if "rule" in terms else None, vary=("X-Name",) if terms == "vary of a rule" else ())
    app.add_middleware(SWRMiddleware, cache=cache, rules=[rule])
    credentials = {"authorization": "a"} if terms == "behind a guard" else {}
    async with client(app) as http:
        for _ in range(2):
            for lines in LINES:
                answer = await http.get("/x", headers=[*lines, *credentials.items()])
                assert answer.json() == (lines[0][1] if lines else None)
        assert answer.headers["swr-state"] == "fresh"


class Tenant:
    def __init__(self, name):
        self.name = name


@pytest.mark.parametrize("place", ["rule", "middleware"])
@pytest.mark.parametrize("selected", [Tenant, lambda name: [Tenant(name)], lambda name: 10**5000])
async def test_key_that_is_not_a_plain_value_is_rejected(cache, selected, place):
    """The text of an object holds its address in memory, which the next tenant's object may get."""

    def key(scope):
        return selected(dict(scope["headers"])[b"user-agent"].decode())

    app = App(MAX_AGE)
    options = {"rules": [Rule("/x", key=key)]} if place == "rule" else {"key": key}
    async with client(SWRMiddleware(app, cache, **options)) as http:
        for tenant in ("a", "b"):
            with pytest.raises(ConfigurationError, match="return a string, a number"):
                await http.get("/x", headers={"user-agent": tenant})
    assert app.runs == 0


async def test_plain_keys_of_different_types_have_separate_responses(cache):
    app = App(MAX_AGE)
    values = {"a": None, "b": "None", "c": 1, "d": "1", "e": ("a", 1), "f": ("a", "1")}
    middleware = SWRMiddleware(app, cache, key=lambda scope: values[dict(scope["headers"])[b"user-agent"].decode()])
    async with client(middleware) as http:
        found = [(await http.get("/x", headers={"user-agent": name})).text for name in [*values] * 2]
    assert found == ["1", "2", "3", "4", "5", "6"] * 2


class ByCredential:
    """An app whose answer shows all credentials that it got."""

    def __init__(self):
        self.runs = 0

    async def __call__(self, scope, receive, send):
        self.runs += 1
        sent = [(name.decode(), value.decode()) for name, value in scope["headers"] if field_class(name) is CREDENTIAL]
        await App(body=str(sorted(sent)).encode())(scope, receive, send)


class TestCredentialsVary:
    @pytest.mark.parametrize("own", [True, False])
    async def test_user_known_only_from_the_scope_gets_no_shared_response(self, cache, own):
        async def app(scope, receive, send):
            headers = [(b"cache-control", b"max-age=60")] if own else []
            await App(headers, body=scope["user"]["name"].encode())(scope, receive, send)

        inner = SWRMiddleware(app, cache, rules=[Rule("/x", fresh_for=60, credentials="vary")])

        async def outer(scope, receive, send):
            if scope["type"] == "http":
                scope["user"] = {"name": dict(scope["headers"])[b"user-agent"].decode()}
            await inner(scope, receive, send)

        async with client(outer) as http:
            for user in ("alice", "bob", "alice"):
                assert (await http.get("/x", headers={"user-agent": user})).text == user

    @pytest.mark.parametrize("method", ["POST", "GET"])
    async def test_response_for_a_credential_is_not_served_without_it(self, cache, method):
        async def app(scope, receive, send):
            who = dict(scope["headers"]).get(b"authorization", b"nobody")
            headers = [(b"cache-control", b"max-age=60"), (b"content-location", b"/x")]
            await App(headers, body=who)(scope, receive, send)

        rules = [Rule("/x", fresh_for=60, credentials="vary")]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            await http.request(method, "/x", headers={"authorization": "Bearer a"})
            assert (await http.get("/x")).text == "nobody"
            assert (await http.get("/x", headers={"authorization": "Bearer b"})).text == "Bearer b"

    async def test_each_credential_has_its_own_response_and_its_own_refresh(self, cache, clock):
        app = ByCredential()
        rules = [Rule("/x", fresh_for=60, stale_for=600, credentials="vary")]
        asked = [{}, {"x-api-key": "a"}, {"authorization": "a"}, {"x-auth-token": "a"}, {"x-api-key": "b"}, {"x-api-key": "a", "authorization": "a"}]  # fmt: skip
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:

            async def ask():
                return [brief(await http.get("/x", headers=headers)) for headers in asked]

            bodies = [str(sorted(headers.items())) for headers in asked]
            assert await ask() == [(200, body, "missing") for body in bodies]
            assert await ask() == [(200, body, "fresh") for body in bodies]
            assert app.runs == len(asked)
            # Each refresh has the credentials of the response that it is for.
            clock.advance(61)
            assert await ask() == [(200, body, "stale") for body in bodies]
            await settle()
            assert await ask() == [(200, body, "fresh") for body in bodies]

    async def test_client_with_many_kinds_of_credentials_displaces_no_response(self, cache):
        app = ByCredential()
        rules = [Rule("/x", fresh_for=60, credentials="vary")]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            await http.get("/x", headers={"authorization": "a"})
            for name in ("x-api-key", "x-auth-token", "remote-user", "x-auth-request-one", "x-auth-request-two"):
                await http.get("/x", headers={name: "evil"})
            assert (await http.get("/x", headers={"authorization": "a"})).headers["swr-state"] == "fresh"


@pytest.mark.parametrize(
    ("control", "override"),
    [("must-revalidate", False), ("max-age=0, must-revalidate", True), ("s-maxage=0", True), ("s-maxage=9", True)],
)
async def test_response_to_credentials_under_a_rule_is_not_shared_without_public(cache, control, override):
    async def app(scope, receive, send):
        who = dict(scope["headers"]).get(b"authorization", b"nobody")
        await App([(b"cache-control", control.encode())], body=who)(scope, receive, send)

    rules = [Rule("/x", fresh_for=60, override=override)]
    async with client(SWRMiddleware(app, cache, rules=rules)) as http:
        for who in ("a", "b", "a"):
            assert (await http.get("/x", headers={"authorization": who})).text == who


async def test_guarded_post_response_is_not_stored_for_get(cache):
    app = FastAPI()

    def guard(x_token: Annotated[str, Header()] = "") -> None:
        check(x_token)

    @app.api_route("/x", methods=["GET", "POST"], dependencies=[Depends(guard)])
    async def answer(response: Response) -> str:
        response.headers.update({**OWN, "content-location": "/x"})
        return "secret"

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        assert (await http.post("/x", headers={"x-token": "right"})).status_code == 200
    assert await tokens(app, "", "right") == [False, True]


async def test_post_response_that_depends_on_a_declared_field_is_not_stored_for_get(cache):
    app = FastAPI()

    @app.api_route("/x", methods=["GET", "POST"])
    async def answer(response: Response, x_real_ip: Annotated[str, Header()] = "") -> str:
        response.headers.update({**OWN, "content-location": "/x"})
        return x_real_ip

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        assert (await http.post("/x", headers={"x-real-ip": "a"})).json() == "a"
        assert (await http.get("/x", headers={"x-real-ip": "b"})).json() == "b"


@pytest.mark.parametrize("override", [True, False])
async def test_post_response_is_stored_for_get_only_under_terms_of_its_own(cache, override):
    """swr does not notice what an app looks at while it answers a POST."""
    app = FastAPI()

    @app.api_route("/x", methods=["GET", "POST"])
    async def answer(request: Request, response: Response) -> str:
        response.headers.update({"cache-control": "max-age=10", "content-location": "/x"})
        return f"{request.method} from {request.client.host}"

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, override=override)])
    found = []
    for number, method in (("1", "POST"), ("2", "GET")):
        transport = httpx.ASGITransport(app, client=(f"192.0.2.{number}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            found.append((await http.request(method, "/x")).json())
    assert found == ["POST from 192.0.2.1", "GET from 192.0.2.2" if override else "POST from 192.0.2.1"]


async def test_refusal_with_a_lifetime_does_not_replace_a_stored_fallback(cache, clock):
    app = App([(b"cache-control", b"max-age=60, stale-if-error=600"), (b"etag", b'"1"')])
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        clock.advance(61)
        app.status, app.headers = 429, [(b"cache-control", b"max-age=60")]
        refused = await http.get("/x")
        assert (refused.status_code, refused.headers["cache-status"]) == (429, 'swr; fwd=stale; detail="status 429"')
        app.status = 500
        assert (await http.get("/x")).status_code == 200


@pytest.mark.parametrize("status", [401, 402, 403, 407, 429, 451])
@pytest.mark.parametrize("how", ["returned", "raised", "by middleware"])
async def test_refusal_with_a_lifetime_is_not_shared(cache, status, how):
    """For instance of an address that is not allowed. The field is one of those that select nothing."""
    app, lasts = FastAPI(), {"cache-control": "max-age=60"}

    def refuses(request: Request) -> bool:
        return request.headers.get("x-forwarded-for") == "203.0.113.9"

    @app.get("/x")
    async def answer(request: Request, response: Response) -> Any:
        response.headers.update(lasts)
        if how == "raised" and refuses(request):
            raise HTTPException(status, "no", lasts)
        return JSONResponse("no", status, lasts) if how == "returned" and refuses(request) else "yes"

    if how == "by middleware":

        @app.middleware("http")
        async def guard(request: Request, go_on: Any) -> Any:
            return JSONResponse("no", status, lasts) if refuses(request) else await go_on(request)

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        found = await http.get("/x", headers={"x-forwarded-for": "203.0.113.9"})
        assert (found.status_code, found.headers["cache-status"]) == (
            status,
            f'swr; fwd=uri-miss; detail="status {status}"',
        )
        assert [(await http.get("/x")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]


async def test_error_caused_by_a_field_of_one_client_is_not_shared(cache):
    """Where everything has a lifetime, an error that one client causes would be everybody's."""
    app = FastAPI()

    @app.middleware("http")
    async def lasts(request: Request, go_on: Any) -> Any:
        answer = await go_on(request)
        answer.headers["cache-control"] = "max-age=60"
        return answer

    @app.get("/x")
    async def answer(request: Request) -> int:
        try:
            return int(request.headers.get("x-page", "1"))
        except ValueError:
            raise HTTPException(400, "no number") from None

    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        found = await http.get("/x", headers={"x-page": "abc"})
        assert (found.status_code, found.headers["cache-status"]) == (400, 'swr; fwd=bypass; detail="field x-page"')
        assert [(await http.get("/x")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]


@pytest.mark.parametrize("control", [OWN, {}])
async def test_error_is_not_shared_with_waiters_that_sent_another_field_value(cache, clock, control):
    app, gate, waiting = FastAPI(), anyio.Event(), []

    @app.get("/x")
    async def answer(request: Request) -> PlainTextResponse:
        user = request.headers.get("accept-language", "")
        waiting.append(user)
        await gate.wait()
        return PlainTextResponse(f"sorry {user}", 503, headers={**control, "vary": "accept-language"})

    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    found = {}
    async with client(app) as http, anyio.create_task_group() as group:

        async def ask(user):
            found[user] = (await http.get("/x", headers={"accept-language": user})).text

        for user in "abcde":
            group.start_soon(ask, user)
        while not waiting:
            await anyio.sleep(0.01)
        await anyio.sleep(0.05)
        gate.set()
    assert found == {user: f"sorry {user}" for user in "abcde"}


class Flags:
    """A user of an app's own kind, which does not say whether somebody has logged in."""

    def __init__(self, name):
        self.name = name


@pytest.mark.uncounted
@pytest.mark.parametrize("terms", ["rule", "max-age"])
@pytest.mark.parametrize("kind", ["dict", "object", "scopes", "certificate"])
async def test_response_for_any_kind_of_scope_user_is_not_shared(cache, kind, terms):
    async def app(scope, receive, send):
        headers = [(b"cache-control", b"max-age=60")] if terms == "max-age" else []
        await App(headers, body=dict(scope["headers"])[b"user-agent"])(scope, receive, send)

    inner = SWRMiddleware(app, cache, rules=[RULE] if terms == "rule" else ())

    async def outer(scope, receive, send):
        if scope["type"] == "http":
            name = dict(scope["headers"])[b"user-agent"].decode()
            if kind == "dict":
                scope["user"] = {"name": name}
            elif kind == "object":
                scope["user"] = Flags(name)
            elif kind == "scopes":
                scope["user"], scope["auth"] = UnauthenticatedUser(), AuthCredentials(["authenticated"])
            else:
                scope["extensions"] = {"tls": {"client_cert_name": name}}
        await inner(scope, receive, send)

    async with client(outer) as http:
        for user in ("alice", "bob"):
            assert (await http.get("/x", headers={"user-agent": user})).text == user


@pytest.mark.parametrize("tls", [{"client_cert_name": "CN=alice"}, {"client_cert_chain": ["alice"]}])
async def test_client_with_a_certificate_gets_its_own_response_after_hits_of_others(cache, tls):
    async def app(scope, receive, send):
        user = scope["extensions"]["tls"]
        await App(body=str(user).encode())(scope, receive, send)

    inner = SWRMiddleware(app, cache, rules=[RULE])
    users = [{}, {}, {}, tls]

    async def outer(scope, receive, send):
        scope["extensions"] = {"tls": users.pop(0)}
        await inner(scope, receive, send)

    async with client(outer) as http:
        answers = [await http.get("/x") for _ in range(4)]
    assert [answer.text for answer in answers] == ["{}", "{}", "{}", str(tls)]
    assert [answer.headers["swr-state"] for answer in answers] == ["missing", "fresh", "fresh", "missing"]


@pytest.mark.parametrize("field", ["x-forwarded-host", "x_forwarded_host", "x-forwarded_host", "X_API_Key", "api_key"])
async def test_host_or_credential_field_with_underscores_separates_responses(cache, field):
    async def app(scope, receive, send):
        environ = {name.decode().upper().replace("-", "_"): value for name, value in scope["headers"]}
        taken = [value for name, value in environ.items() if name in ("X_FORWARDED_HOST", "X_API_KEY", "API_KEY")]
        await App([(b"cache-control", b"max-age=60")], body=b"".join(taken) or b"nobody")(scope, receive, send)

    async with client(SWRMiddleware(app, cache)) as http:
        for sent in ("mallory", "alice", "", "mallory"):
            assert (await http.get("/x", headers={field: sent} if sent else {})).text == (sent or "nobody")


async def test_field_with_underscores_selects_if_vary_names_it_with_hyphens(cache, clock):
    async def app(scope, receive, send):
        environ = {name.decode().upper().replace("-", "_"): value for name, value in scope["headers"]}
        headers = [
            (b"cache-control", b"max-age=60, stale-while-revalidate=60"),
            (b"vary", b"Accept-Language"),
        ]
        await App(headers, body=environ.get("ACCEPT_LANGUAGE", b"none"))(scope, receive, send)

    async with client(SWRMiddleware(app, cache)) as http:
        for state in ("missing", "fresh", "stale", "fresh"):
            for sent in ("de", ""):
                answer = await http.get("/x", headers={"accept_language": sent} if sent else {})
                assert (answer.text, answer.headers["swr-state"]) == (sent or "none", state)
            await settle()
            if state == "fresh":
                clock.advance(61)


async def test_request_without_extensions_in_its_scope_is_cached(cache):
    async def outer(scope, receive, send):
        scope["extensions"] = None
        await inner(scope, receive, send)

    inner = SWRMiddleware(App(), cache, rules=[RULE])
    async with client(outer) as http:
        assert [(await http.get("/x")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]


@pytest.mark.parametrize("way", ["directly", "late"])
async def test_response_that_reads_the_session_directly_or_late_is_not_shared(cache, way):
    app = FastAPI()

    @app.get("/login/{name}")
    async def login(request: Request, name: str) -> str:
        request.session["name"] = name
        return name

    @app.get("/x")
    async def page(request: Request) -> StreamingResponse:
        async def body():
            session = request.scope["session"] if way == "directly" else request.session
            yield str(session.get("name"))

        return StreamingResponse(body())

    app.add_middleware(SWRMiddleware, cache=cache, rules=[Rule("/x", fresh_for=60, cookies=())])
    app.add_middleware(SessionMiddleware, secret_key="s")
    for name in ("alice", "bob"):
        async with client(app) as http:
            await http.get(f"/login/{name}")
            assert (await http.get("/x")).text == name
    async with client(app) as http:
        assert (await http.get("/x")).text == "None"


@pytest.mark.parametrize(
    ("value", "selects"),
    [
        (b"for=1.1.1.1;host=good", b"host=good"),
        (b'for="[2001:db8::1]:4711";proto=https', b"proto=https"),
        (b"for=unknown, for=_hidden;host=a", b"host=a"),
        (b"for=1.1.1.1 host=evil;host=good", b"for=1.1.1.1 host=evil;host=good"),
        (b'for="host=evil";host=good', b'for="host=evil";host=good'),
    ],
)
async def test_only_a_well_formed_client_address_is_left_out_of_forwarded(value, selects):
    assert selecting_value(b"forwarded", value) == selects


async def test_two_lines_of_forwarded_host_and_one_with_a_comma_have_separate_responses(cache):
    async def app(scope, receive, send):
        host = next((value for name, value in scope["headers"] if name == b"x-forwarded-host"), b"")
        await App(body=host)(scope, receive, send)

    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        await http.get("/x", headers=[("x-forwarded-host", "evil"), ("x-forwarded-host", "good")])
        assert (await http.get("/x", headers={"x-forwarded-host": "evil, good"})).text == "evil, good"


async def test_keys_with_surrogate_characters_have_separate_responses(cache):
    async def app(scope, receive, send):
        await App(body=scope["state"]["tenant"].encode("utf-8", "surrogatepass"))(scope, receive, send)

    inner = SWRMiddleware(app, cache, rules=[RULE], key=lambda scope: scope["state"]["tenant"])
    names = iter(["J\udce8", "J\udce9", "J?"])

    async def outer(scope, receive, send):
        if scope["type"] == "http":
            scope["state"] = {"tenant": next(names)}
        await inner(scope, receive, send)

    async with client(outer) as http:
        assert len({(await http.get("/x")).content for _ in range(3)}) == 3


class Wrapper:
    """A scope over another one, by hand: it reads through, and keeps what is written."""

    def __init__(self, scope: Any) -> None:
        self._scope, self._own = scope, {}

    def __getitem__(self, name: str) -> Any:
        return self._own[name] if name in self._own else self._scope[name]

    def get(self, name: str, default: Any = None) -> Any:
        with contextlib.suppress(KeyError):
            return self[name]
        return default

    def __contains__(self, name: str) -> bool:
        return name in self._own or name in self._scope

    def __setitem__(self, name: str, value: Any) -> None:
        self._own[name] = value

    def setdefault(self, name: str, default: Any = None) -> Any:
        return self._own.setdefault(name, self.get(name, default))

    def update(self, others: dict[str, Any]) -> None:
        self._own.update(others)


class Reader(Wrapper):
    """One that asks the other scope by its `get`."""

    def __getitem__(self, name: str) -> Any:
        found = self._own.get(name, self._scope.get(name, self))
        if found is self:
            raise KeyError(name)
        return found


@pytest.mark.parametrize(
    "wrap", [lambda scope: ChainMap({}, scope), Wrapper, Reader], ids=["ChainMap", "Wrapper", "Reader"]
)
@pytest.mark.parametrize("control", ["", "max-age=60"])
async def test_response_is_not_shared_if_a_wrapped_scope_hides_the_route(cache, wrap, control):
    api = FastAPI()

    @api.get("/x")
    async def endpoint(user_agent: Annotated[str, Header()]) -> Response:
        return PlainTextResponse(user_agent, headers={"cache-control": control} if control else {})

    async def app(scope, receive, send):
        await api(wrap(scope), receive, send)

    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        for agent in ("a", "b"):
            answer = await http.get("/x", headers={"user-agent": agent})
            assert (answer.text, "route not seen" in answer.headers["cache-status"]) == (agent, True)


async def test_endpoint_that_uses_its_request_as_a_mapping_is_cached(cache):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        return request["path"]

    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        assert [(await http.get("/x")).headers["swr-state"] for _ in range(2)] == ["missing", "fresh"]


@pytest.mark.parametrize("place", ["state", "scope", "nowhere", "key", "log"])
async def test_middleware_inside_swr_that_uses_the_address_prevents_sharing_without_key(cache, place):
    app = FastAPI()

    @app.middleware("http")
    async def locate(request: Request, call_next: Any) -> Any:
        if place == "log":
            answer = await call_next(request)
            assert request.client.host.startswith("192.0.2")
            return answer
        # It may refuse some.
        host = request.client.host
        if place in ("state", "key"):
            request.state.country = f"country of {host}"
        elif place == "scope":
            request.scope["country"] = f"country of {host}"
        return await call_next(request)

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        return str(request.scope.get("country", getattr(request.state, "country", "none")))

    def key(scope):
        return scope["client"][0]

    async with contextlib.AsyncExitStack() as stack:
        middleware = SWRMiddleware(app, cache, rules=[RULE], key=key if place == "key" else None)
        for host in ("192.0.2.1", "192.0.2.2", "192.0.2.1"):
            transport = httpx.ASGITransport(middleware, client=(host, 1))
            http = await stack.enter_async_context(httpx.AsyncClient(transport=transport, base_url="http://test"))
            answer = await http.get("/x")
            assert answer.json() == ("none" if place in ("nowhere", "log") else f"country of {host}")
        # The last one asks for the second time.
        status = answer.headers["cache-status"]
        assert (
            status == 'swr; fwd=uri-miss; detail="address"'
            if place in ("state", "scope", "nowhere")
            else "hit" in status
        )


LOCALE: ContextVar[str] = ContextVar("locale", default="en")


@pytest.mark.parametrize("place", ["state", "scope", "variable", "mapping", "unset"])
@pytest.mark.parametrize("is_keyed", [False, True])
async def test_value_set_by_middleware_around_swr_prevents_sharing_unless_key_names_it(cache, clock, place, is_keyed):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        if place == "mapping":
            return dict(request.scope["state"].items())["locale"]
        return str(request.scope.get("locale") or getattr(request.state, "locale", None) or LOCALE.get())

    def key(scope):
        return scope.get("locale", scope.get("state", {}).get("locale", LOCALE.get()))

    inner = SWRMiddleware(app, cache, rules=[RULE], key=key if is_keyed else None)

    async def localise(scope, receive, send):
        language = Headers(scope=scope).get("accept-language", "en")
        if place == "scope":
            scope["locale"] = language
        elif place == "variable":
            LOCALE.set(language)
        elif place in ("state", "mapping") or language != "en":
            scope["state"] = {"locale": language, "request_id": "1"}
        await inner(scope, receive, send)

    async def ask(http, language):
        # A server gives each request a context of its own.
        return await asyncio.create_task(http.get("/x", headers={"accept-language": language}), context=Context())

    async with client(localise) as http:
        for language in ("de", "en", "fr", "de", "en"):
            answer = await ask(http, language)
            assert answer.json() == language
        detail = {"variable": "context variable locale", "scope": "scope locale"}.get(place, "state locale")
        is_shared = is_keyed or place == "unset"
        assert ("hit" if is_shared else f'detail="{detail}"') in answer.headers["cache-status"]
        clock.advance(61)
        # Background refreshes run in between.
        for language in ("de", "en", "de", "en"):
            assert (await ask(http, language)).json() == language
            await settle()


async def test_decorated_endpoint_has_one_response_for_each_context_variable_value(cache):
    app, runs = FastAPI(), []

    @app.get("/x")
    @cache.response(fresh_for=60)
    async def endpoint() -> str:
        runs.append(LOCALE.get())
        return LOCALE.get()

    inner = SWRMiddleware(app, cache)

    async def localise(scope, receive, send):
        LOCALE.set(Headers(scope=scope)["accept-language"])
        await inner(scope, receive, send)

    async with client(localise) as http:
        for language in ("de", "en", "de", "en"):
            asked = http.get("/x", headers={"accept-language": language})
            assert (await asyncio.create_task(asked, context=Context())).json() == language
    assert runs == ["de", "en"]


async def test_state_set_around_swr_does_not_prevent_sharing_if_the_app_does_not_read_it():
    left: list[Any] = []

    @contextlib.asynccontextmanager
    async def lifespan(app):
        yield {"pool": "pool"}

    app = FastAPI(lifespan=lifespan)

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        request.state.user = "nobody"
        del request.state.user
        request.state.user = "its own"
        request.scope["note"] = "its own"
        return f"{request.state.user} {request.scope['note']} {request.state.pool} {request.state.request_id}"

    inner = SWRMiddleware(app, Cache(), rules=[RULE])

    async def outer(scope, receive, send):
        scope["state"] = {**shared, "user": object(), "locale": "de", "request_id": "1"}
        scope["note"] = object()
        await inner(scope, receive, send)
        left.append((scope["state"]["user"], scope["state"]["locale"], scope["note"]))

    shared: dict[str, Any] = {}
    answers: list[httpx.Response] = []

    async def receive():
        if shared:
            async with client(outer) as http:
                answers.extend([await http.get("/x") for _ in range(2)])
        return {"type": "lifespan.shutdown" if shared else "lifespan.startup"}

    async def send(message):
        pass

    await inner({"type": "lifespan", "asgi": {"version": "3.0"}, "state": shared}, receive, send)
    assert [answer.headers["swr-state"] for answer in answers] == ["missing", "fresh"]
    assert left[0] == ("its own", "de", "its own")
    assert answers[1].json() == "its own its own pool 1"


@pytest.mark.parametrize(
    "take",
    [
        dict,
        list,
        lambda state: state.copy(),
        lambda state: list(state.values()),
        lambda state: state.get("locale"),
        lambda state: "locale" in state,
    ],
)
async def test_every_way_to_read_state_set_around_swr_prevents_sharing(cache, take):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        return str(take(request.scope["state"]))

    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def localise(scope, receive, send):
        scope["state"], scope["note"] = {"locale": "de"}, object()
        await inner(scope, receive, send)

    async with client(localise) as http:
        assert "state locale" in (await http.get("/x")).headers["cache-status"]


async def test_auth_scopes_of_an_unauthenticated_user_prevent_sharing(cache):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> list[str]:
        return list(request.auth.scopes)

    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def authenticate(scope, receive, send):
        scope["user"] = UnauthenticatedUser()
        scope["auth"] = AuthCredentials(["beta"] if scope["path"] == "/x" and scopes.pop() else [])
        await inner(scope, receive, send)

    async with client(authenticate) as http:
        for is_beta in (True, False, True, False):
            scopes = [is_beta]
            assert (await http.get("/x")).json() == (["beta"] if is_beta else [])


@pytest.mark.parametrize(
    ("control", "is_believed"),
    [
        ("max-age=0", False),
        ("max-age=x", False),
        ("s-maxage=0, stale-if-error=60", False),
        ("max-age=0, stale-while-revalidate=60, stale-if-error=60", True),
        ("max-age=60", True),
    ],
)
async def test_field_not_in_vary_separates_responses_only_if_the_rule_sets_the_time(cache, control, is_believed):
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.headers["x-tenant"], headers={"cache-control": control})

    app = Starlette(routes=[Route("/x", endpoint)])
    middleware = SWRMiddleware(app, cache, [Rule("/x", fresh_for=60, stale_for=60, stale_if_error=60)])
    async with client(middleware) as http:
        found = [(await http.get("/x", headers={"x-tenant": tenant})).text for tenant in ("a", "b")]
    assert found == (["a", "a"] if is_believed else ["a", "b"])

"""Behind a login: the dependencies run on every request, the endpoint does not. Who gets whose answer?"""

import contextvars
import decimal
import functools
import gc
import inspect
import logging
import os
import re
import sys
import uuid
import weakref
from contextvars import ContextVar
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any, Generic, TypeVar

import anyio
import pydantic
import pytest
from fastapi import (
    APIRouter,
    BackgroundTasks,
    Body,
    Cookie,
    Depends,
    FastAPI,
    Header,
    HTTPException,
    Query,
    Request,
    Response,
    Security,
)
from fastapi.requests import HTTPConnection
from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, RedirectResponse, StreamingResponse
from fastapi.routing import APIRoute
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    APIKeyQuery,
    HTTPAuthorizationCredentials,
    HTTPBasic,
    HTTPBearer,
    HTTPDigest,
    OAuth2AuthorizationCodeBearer,
    OAuth2PasswordBearer,
    OpenIdConnect,
    SecurityScopes,
)
from opentelemetry import baggage, context, trace
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser, requires
from starlette.convertors import Convertor, register_url_convertor
from starlette.endpoints import HTTPEndpoint
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Route, Router

from swr import Cache, ConfigurationError
from swr.endpoints.variables import Unknown, text_of_variables
from swr.middleware import Rule, SWRMiddleware
from tests.web import LEFT_OPEN, client

pytestmark = pytest.mark.anyio

DETAIL = 'detail="after dependencies"'
TOKENS: dict[str, str] = {}


@pytest.fixture(autouse=True)
def tokens():
    """The tokens that are valid, and whose they are."""
    TOKENS.clear()
    TOKENS.update(a="alice", b="bob")
    return TOKENS


def current_user(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer(auto_error=False))]) -> str:
    if token is None or token.credentials not in TOKENS:
        raise HTTPException(401, "who?")
    return TOKENS[token.credentials]


User = Annotated[str, Depends(current_user)]
GUARD = [Depends(current_user)]


def bearer(token):
    return {"authorization": f"Bearer {token}"}


def wrapped(cache, app, **options):
    app.add_middleware(SWRMiddleware, cache=cache, **options)
    return client(app)


def app_with(cache, endpoint, path="/x", dependencies=GUARD, route=None, **terms):
    app = FastAPI()
    decorated = cache.response(**{"fresh_for": 60, "stale_for": 600, **terms})(endpoint)
    app.get(path, dependencies=dependencies, **(route or {}))(decorated)
    return app


class Counted:
    """An endpoint that counts its runs."""

    def __init__(self, plain=False):
        self.runs = 0

        async def endpoint(group: str = "") -> dict[str, Any]:
            return self.answer(group)

        def plain_endpoint(group: str = "") -> dict[str, Any]:
            return self.answer(group)

        self.endpoint = plain_endpoint if plain else endpoint

    def answer(self, group):
        self.runs += 1
        return {"group": group, "run": self.runs}


def state(response):
    return response.status_code, response.headers.get("swr-state")


async def get(http, token="a", path="/x", **headers):
    return await http.get(path, headers={**bearer(token), **{k.replace("_", "-"): v for k, v in headers.items()}})


async def states(http, path="/x", times=2, token="a", **headers):
    return [(await get(http, token, path, **headers)).headers["swr-state"] for _ in range(times)]


async def why(http, path="/x", token="a", **headers):
    """Return the detail of the second answer: why it is not from the cache."""
    await get(http, token, path, **headers)
    found = await get(http, token, path, **headers)
    assert found.headers["swr-state"] == "missing"
    return found.headers["cache-status"].partition('detail="')[2].rstrip('"')


# -- where guards stand ---------------------------------------------------------------------------------------------


def on_the_route(app, answer, guard):
    app.get("/x", dependencies=guard)(answer)


def on_the_router(app, answer, guard):
    router = APIRouter(dependencies=guard)
    router.get("/x")(answer)
    app.include_router(router)


def on_the_include(app, answer, guard):
    router = APIRouter()
    router.get("/x")(answer)
    app.include_router(router, dependencies=guard)


def on_nested_routers(app, answer, guard):
    inner, outer = APIRouter(), APIRouter(dependencies=guard)
    inner.get("/x")(answer)
    outer.include_router(inner)
    app.include_router(outer)


def on_the_app(app, answer, guard):
    app.router.dependencies.extend(guard)
    app.get("/x")(answer)


def on_a_mounted_app(app, answer, guard):
    inner = FastAPI(dependencies=guard)
    inner.get("/x")(answer)
    app.mount("/", inner)


def by_an_override(app, answer, guard):
    def nothing() -> None: ...

    app.get("/x", dependencies=[Depends(nothing)])(answer)
    app.dependency_overrides[nothing] = guard[0].dependency


PLACES = [
    on_the_route,
    on_the_router,
    on_the_include,
    on_nested_routers,
    on_the_app,
    on_a_mounted_app,
    by_an_override,
]


@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
@pytest.mark.parametrize("place", PLACES)
async def test_guard_runs_on_every_request_and_endpoint_only_once(cache, tokens, place, plain):
    app, counted = FastAPI(), Counted(plain)
    place(app, cache.response(fresh_for=60)(counted.endpoint), GUARD)
    async with wrapped(cache, app) as http:
        assert state(await get(http)) == (200, "missing")
        for token in ("b", "a", "b"):
            found = await get(http, token)
            assert (state(found), found.json()) == ((200, "fresh"), {"group": "", "run": 1})
            assert found.headers["cache-status"].endswith(DETAIL)
        assert (await get(http, "wrong")).status_code == 401
        assert (await http.get("/x")).status_code == 401
        del tokens["b"]
        assert (await get(http, "b")).status_code == 401
        assert state(await get(http)) == (200, "fresh")
    assert counted.runs == 1


def basic(name):
    return {"authorization": "Basic " + {"a": "YTph", "b": "Yjpi"}[name]}


SCHEMES = [
    (HTTPBearer(), bearer),
    (HTTPBasic(), basic),
    (HTTPDigest(), lambda name: {"authorization": f"Digest {name}"}),
    (OAuth2PasswordBearer("/token"), bearer),
    (OAuth2AuthorizationCodeBearer("/auth", "/token"), bearer),
    (OpenIdConnect(openIdConnectUrl="/openid"), lambda name: {"authorization": name}),
    (APIKeyHeader(name="X-API-Key"), lambda name: {"x-api-key": name}),
    (APIKeyHeader(name="X-Odd-Name"), lambda name: {"x-odd-name": name}),
    (APIKeyCookie(name="session"), lambda name: {"cookie": f"session={name}"}),
    (APIKeyQuery(name="api_key"), lambda name: {}),
]


@pytest.mark.uncounted
@pytest.mark.parametrize(("scheme", "fields"), SCHEMES, ids=lambda value: type(value).__name__)
async def test_every_fastapi_security_scheme_can_guard_a_cached_endpoint(cache, tokens, scheme, fields):
    by_query = isinstance(scheme, APIKeyQuery)

    def guard(found: Annotated[Any, Security(scheme)]) -> None:
        # Some give the text as it came, others its parts.
        name = getattr(found, "username", None) or getattr(found, "credentials", found)
        if name.removeprefix("Bearer ") not in TOKENS:
            raise HTTPException(403)

    counted = Counted()
    path = "/x?api_key={}" if by_query else "/x"
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:

        async def ask(name):
            return await http.get(path.format(name), headers=fields(name))

        assert state(await ask("a")) == (200, "missing")
        assert state(await ask("a")) == (200, "fresh")
        # A key in the query is a part of the URL.
        assert state(await ask("b")) == (200, "missing" if by_query else "fresh")
        del tokens["a"]
        assert (await ask("a")).status_code in (401, 403)
        assert (await http.get("/x")).status_code in (401, 403, 422)
    assert counted.runs == 1 + by_query


class KeyParams(BaseModel):
    token: str = ""


def by_parameter(token: str = "") -> str:
    return token


def by_alias(key: Annotated[str, Query(alias="token")] = "") -> str:
    return key


def by_model(params: Annotated[KeyParams, Query()]) -> str:
    return params.token


def by_inner_dependency(token: Annotated[str, Depends(by_alias)]) -> str:
    return token


@pytest.mark.parametrize("find", [by_parameter, by_alias, by_model, by_inner_dependency])
async def test_guard_that_reads_the_query_runs_on_every_request_with_a_query(cache, tokens, find):
    def guard(token: Annotated[str, Depends(find)]) -> None:
        if token and token not in tokens:
            raise HTTPException(403)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        assert [state(await http.get("/x?token=a")) for _ in range(2)] == [(200, "missing"), (200, "fresh")]
        del tokens["a"]
        assert (await http.get("/x?token=a")).status_code == 403
        # Without a query there is nothing that could be revoked.
        found = [await http.get("/x") for _ in range(2)]
    assert [response.headers["cache-status"] for response in found] == ["swr; fwd=uri-miss; stored", "swr; hit; ttl=60"]
    assert counted.runs == 2


@pytest.mark.parametrize(
    "headers", [{"authorization": "Basic YTph"}, {"x-api-key": "a"}, {"x-odd": "a"}, {"cookie": "a=b"}]
)
async def test_request_with_credentials_or_an_unknown_field_hits_behind_its_guard(cache, headers):
    def guard(request: Request) -> None:
        if not any(name in request.headers for name in headers):
            raise HTTPException(401)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        found = [(await http.get("/x", headers=headers)).headers["swr-state"] for _ in range(3)]
        assert found == ["missing", "fresh", "fresh"]
        assert (await http.get("/x")).status_code == 401
    assert counted.runs == 1


async def test_header_read_only_by_a_guard_admits_but_is_not_part_of_the_key(cache, tokens):
    def guard(x_token: Annotated[str, Header()], accept_language: Annotated[str, Header()] = "") -> None:
        if x_token not in tokens:
            raise HTTPException(403)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        for token, expected in (("a", (200, "missing")), ("b", (200, "fresh")), ("a", (200, "fresh"))):
            assert state(await http.get("/x", headers={"x-token": token})) == expected
        del tokens["a"]
        assert (await http.get("/x", headers={"x-token": "a"})).status_code == 403
        assert (await http.get("/x")).status_code == 422
    assert counted.runs == 1


async def test_guard_that_reads_arbitrary_headers_runs_on_every_request(cache, tokens):
    class Fields(BaseModel, extra="allow"):
        pass

    def guard(fields: Annotated[Fields, Header()]) -> None:
        if fields.model_extra.get("accept-language") == "xx":
            raise HTTPException(403)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        assert state(await http.get("/x")) == (200, "missing")
        assert state(await http.get("/x")) == (200, "fresh")
        assert (await http.get("/x", headers={"accept-language": "xx"})).status_code == 403


@pytest.mark.parametrize("kind", [Request, HTTPConnection])
async def test_guard_that_takes_the_request_runs_on_every_request(cache, kind):
    allowed = {"127.0.0.1"}

    def guard(connection) -> None:
        if connection.client.host not in allowed:
            raise HTTPException(403)

    guard.__annotations__["connection"] = kind
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        assert state(await http.get("/x")) == (200, "missing")
        assert state(await http.get("/x")) == (200, "fresh")
        allowed.clear()
        assert (await http.get("/x")).status_code == 403
    assert counted.runs == 1


async def test_request_directives_are_obeyed_behind_dependencies_too(cache, clock):
    counted = Counted()
    app = app_with(cache, counted.endpoint)
    async with wrapped(cache, app, request_directives=("no-cache", "max-age")) as http:
        assert await states(http) == ["missing", "fresh"]
        assert await states(http, cache_control="no-cache") == ["missing", "missing"]
        clock.advance(10)
        assert await states(http, cache_control="max-age=5") == ["missing", "fresh"]
    assert counted.runs == 4


async def test_cookie_read_only_by_a_guard_admits_but_is_not_part_of_the_key(cache, tokens):
    def guard(session: Annotated[str, Cookie()]) -> None:
        if session not in tokens:
            raise HTTPException(403)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(guard)])) as http:
        for token, expected in (("a", "missing"), ("b", "fresh")):
            assert state(await http.get("/x", headers={"cookie": f"session={token}"})) == (200, expected)
        del tokens["b"]
        assert (await http.get("/x", headers={"cookie": "session=b"})).status_code == 403
    assert counted.runs == 1


async def test_entries_in_front_of_and_behind_dependencies_are_separate(cache):
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[])) as http:
        assert [(await get(http)).json()["run"] for _ in range(2)] == [1, 1]
        assert [(await http.get("/x")).json()["run"] for _ in range(2)] == [2, 2]
        found = await http.get("/x")
        assert "after dependencies" not in found.headers["cache-status"]
        assert (await get(http)).json()["run"] == 1


async def test_public_response_is_also_stored_in_front_of_dependencies(cache):
    runs = []

    async def answer() -> Response:
        runs.append(1)
        return PlainTextResponse("x", headers={"cache-control": "public, max-age=60"})

    async with wrapped(cache, app_with(cache, answer, dependencies=[])) as http:
        await get(http)
        found = await get(http, "b")
        assert found.headers["cache-status"].startswith("swr; hit; ttl=60")
        assert "after" not in found.headers["cache-status"]
        assert state(await http.get("/x")) == (200, "fresh")
    assert len(runs) == 1


async def test_cache_status_says_that_the_answer_came_after_dependencies(cache, clock):
    async with wrapped(cache, app_with(cache, Counted().endpoint)) as http:
        found = await get(http)
        assert found.headers["cache-status"] == f"swr; fwd=uri-miss; stored; {DETAIL}"
        assert "age" not in found.headers
        clock.advance(8.5)
        found = await get(http, "b")
        assert found.headers["cache-status"] == f"swr; hit; ttl=51; {DETAIL}"
        assert found.headers["age"] == "8"
        clock.advance(60)
        found = await get(http)
        assert found.headers["cache-status"] == f"swr; hit; ttl=-9; {DETAIL}"
        assert state(found) == (200, "stale")


async def test_path_and_query_are_part_of_the_key(cache):
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, path="/x/{group}")) as http:
        for expected in ("missing", "fresh"):
            for path in ("/x/a", "/x/b", "/x/a?q=1"):
                assert state(await get(http, path=path)) == (200, expected)
    assert counted.runs == 3


async def test_query_parameters_that_a_rule_drops_are_not_part_of_the_key(cache):
    counted = Counted()
    app = app_with(cache, counted.endpoint)
    async with wrapped(cache, app, rules=[Rule("/x", drop_params=("utm_*",))]) as http:
        assert await states(http, "/x?utm_source=a", 1) == ["missing"]
        assert await states(http, "/x?utm_source=b", 1) == ["fresh"]


@pytest.mark.parametrize("headers", [{"if_match": '"a"'}, {"content_length": "1"}])
async def test_request_with_if_match_or_content_runs_the_endpoint(cache, headers):
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint)) as http:
        for _ in range(2):
            await http.request(
                "GET",
                "/x",
                headers={**bearer("a"), "if-match": '"a"'} if "if_match" in headers else bearer("a"),
                content=None if "if_match" in headers else b"x",
            )
    assert counted.runs == 2


async def test_request_with_no_store_may_hit_but_stores_nothing(cache):
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint)) as http:
        assert await states(http, cache_control="no-store") == ["missing", "missing"]
        assert await states(http) == ["missing", "fresh"]
        assert await states(http, cache_control="no-store") == ["fresh", "fresh"]


async def test_head_request_misses_behind_dependencies(cache):
    app = FastAPI()
    app.api_route("/x", methods=["GET", "HEAD"], dependencies=GUARD)(cache.response(fresh_for=60)(Counted().endpoint))
    async with wrapped(cache, app) as http:
        await get(http)
        assert (await http.head("/x", headers=bearer("a"))).headers["swr-state"] == "missing"


async def test_post_at_a_cached_url_runs_the_endpoint(cache):
    counted = Counted()
    app = FastAPI()
    app.api_route("/x", methods=["GET", "POST"], dependencies=GUARD)(cache.response(fresh_for=60)(counted.endpoint))
    async with wrapped(cache, app) as http:
        await get(http)
        for _ in range(2):
            await http.post("/x", headers=bearer("a"))
    assert counted.runs == 3


async def test_credentials_vary_answers_in_front_of_dependencies(cache):
    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, credentials="vary")) as http:
        for token in "abab":
            assert "after" not in (await get(http, token)).headers["cache-status"]
    assert counted.runs == 2


@pytest.mark.parametrize("how", ["tag", "url", "clear", "post", "group"])
async def test_entry_is_outdated_by_tag_url_clear_post_or_cache_group(cache, how):
    counted = Counted()

    async def answer(group: str) -> Response:
        return JSONResponse(counted.answer(group), headers={"cache-groups": '"flights"'})

    app = app_with(cache, answer, path="/x/{group}", tags=("group:{group}",))

    @app.post("/x/{group}")
    async def change(group: str) -> None: ...

    @app.post("/change")
    async def change_all() -> Response:
        return PlainTextResponse("", headers={"cache-group-invalidation": '"flights"'})

    async with wrapped(cache, app) as http:
        assert await states(http, "/x/a") == ["missing", "fresh"]
        await {
            "tag": lambda: cache.invalidate_tag("group:a"),
            "url": lambda: cache.invalidate_url("/x/a"),
            "clear": cache.clear,
            "post": lambda: http.post("/x/a"),
            "group": lambda: http.post("/change"),
        }[how]()
        assert await states(http, "/x/a") == ["missing", "fresh"]
    assert counted.runs == 2


# -- what reaches the endpoint --------------------------------------------------------------------------------------


class Filters(BaseModel):
    page: int = 1


class Paging:
    def __init__(self, page: int = 1) -> None:
        self.page = page


def session():
    return object()


def yielded_session():
    yield object()


def session_of_a_user(user: User):
    return f"a session of {user}"


async def by_user(user: User) -> str:
    return user


async def by_request(request: Request) -> str:
    return request.headers["authorization"]


async def by_connection(connection: HTTPConnection, page: int = 1) -> str:
    return connection.headers["authorization"]


async def by_header(authorization: Annotated[str, Header()]) -> str:
    return authorization


async def by_cookie(session: Annotated[str, Cookie()] = "") -> str:
    return session


async def by_session(session: Annotated[str, Depends(session_of_a_user)]) -> str:
    return session


async def by_request_of_two(request: Request, page: int = 1) -> str:
    return request.headers["authorization"]


async def test_endpoint_whose_dependencies_do_not_read_the_user_is_cached(cache):
    async def answer(
        filters: Annotated[Filters, Query()],
        db: Annotated[object, Depends(session)],
        other: Annotated[object, Depends(yielded_session)],
        paging: Annotated[Paging, Depends()],
    ) -> str:
        return f"{filters.page} {paging.page}"

    async with wrapped(cache, app_with(cache, answer)) as http:
        for expected in ("missing", "fresh"):
            for page in ("1", "2"):
                found = await get(http, path=f"/x?page={page}")
                assert (found.json(), found.headers["swr-state"]) == (f"{page} {page}", expected)


@pytest.mark.parametrize(
    ("endpoint", "reason"),
    [
        (by_user, "argument user"),
        (by_request, "argument request"),
        (by_request_of_two, "argument request"),
        (by_connection, "argument connection"),
        (by_header, "argument authorization"),
        (by_cookie, "argument session"),
        (by_session, "argument session"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
async def test_endpoint_with_an_argument_about_the_user_runs_each_time_and_warns(cache, endpoint, reason, caplog):
    async with wrapped(cache, app_with(cache, endpoint)) as http:
        texts = [(await get(http, token, cookie=f"session={token}")).json() for token in ("a", "b", "a", "b")]
        assert texts[:2] == texts[2:]
        assert texts[0] != texts[1]
        assert (await why(http, cookie="session=a")).endswith(f", {reason}")
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    parameter = reason.removeprefix("argument ")
    assert line == (
        f"GET /x: the endpoint runs for each request that its dependencies admit ({reason}): write shared=True in "
        f"@cache.response on tests.test_guarded.{endpoint.__name__} if all of them get the same response, "
        f"key=lambda {parameter}: ... if that selects it"
    )


async def test_injected_scopes_body_tasks_or_response_prevent_sharing(cache):
    def scopes(scopes: SecurityScopes): ...
    def body(text: Annotated[str, Body()] = ""): ...
    def tasks(tasks: BackgroundTasks): ...
    def response(response: Response): ...

    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache)
    for dependency in (scopes, body, tasks, response):

        async def answer(given: Annotated[None, Depends(dependency)]) -> None: ...

        app.get(f"/{dependency.__name__}", dependencies=GUARD)(cache.response(fresh_for=60)(answer))
    async with client(app) as http:
        for dependency in (scopes, body, tasks, response):
            assert (await why(http, f"/{dependency.__name__}")).endswith("argument given")


async def test_dependency_that_a_guard_needs_too_prevents_sharing(cache):
    def database():
        return {}

    def sets_the_user(db: Annotated[dict, Depends(database)], user: User) -> None:
        db["user"] = user

    async def answer(db: Annotated[dict, Depends(database)]) -> str:
        return db["user"]

    async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(sets_the_user)])) as http:
        assert [(await get(http, token)).json() for token in ("a", "b", "a")] == ["alice", "bob", "alice"]
        assert (await why(http)).endswith("argument db, which a guard needs too")


async def test_database_session_that_a_guard_needs_too_requires_shared_true_and_warns(cache, caplog, tokens):
    """The most usual app with a database."""

    async def get_session():
        yield {"a": "alice", "b": "bob"}

    async def current(
        db: Annotated[dict, Depends(get_session)], token: Annotated[object, Depends(HTTPBearer())]
    ) -> str:
        if token.credentials not in tokens:
            raise HTTPException(401)
        return db[token.credentials]

    async def ranking(group: str, db: Annotated[dict, Depends(get_session)]) -> str:
        return f"{group} of {len(db)}"

    app = FastAPI()
    router = APIRouter(dependencies=[Depends(current)])
    router.get("/{group}")(cache.response(fresh_for=60)(ranking))
    router.get("/shared/{group}")(cache.response(fresh_for=60, shared=True)(ranking))
    app.include_router(router, prefix="/rankings")
    async with wrapped(cache, app) as http:
        assert await states(http, "/rankings/ATL", times=3) == ["missing"] * 3
        assert await states(http, "/rankings/shared/ATL", times=3) == ["missing", "fresh", "fresh"]
        tokens.clear()
        assert (await get(http, path="/rankings/shared/ATL")).status_code == 401
    [line] = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
    assert line == (
        "GET /rankings/{group}: the endpoint runs for each request that its dependencies admit (argument db, which a "
        f"guard needs too): write shared=True in @cache.response on {__name__}.{ranking.__qualname__} if all of them get "
        "the same response, or give it another db, from a function of its own"
    )


async def test_equal_dependencies_of_guard_and_endpoint_prevent_sharing(cache):
    class Database:
        def __init__(self, name):
            self.name = name

        def __eq__(self, other):
            return isinstance(other, Database) and other.name == self.name

        def __hash__(self):
            return hash(self.name)

        def __call__(self):
            return {}

    def sets_the_user(db: Annotated[dict, Depends(Database("a"))], user: User) -> None:
        db["user"] = user

    async def answer(db: Annotated[dict, Depends(Database("a"))]) -> str:
        return db["user"]

    async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(sets_the_user)])) as http:
        assert [(await get(http, token)).json() for token in ("a", "b")] == ["alice", "bob"]


@pytest.mark.parametrize("is_override", [False, True], ids=["the guard itself", "its override"])
async def test_guard_that_writes_into_a_dependency_of_the_endpoint_prevents_sharing(cache, is_override):
    class Database:
        user = ""

    def database():
        return Database()

    def admit() -> None:
        """Admit everybody, unless a test overrides it."""

    def writing(db: Annotated[Database, Depends(database)], user: User) -> None:
        db.user = user

    async def answer(db: Annotated[Database, Depends(database)]) -> str:
        return db.user

    app = app_with(cache, answer, dependencies=[Depends(admit if is_override else writing)])
    app.dependency_overrides[admit] = writing
    async with wrapped(cache, app) as http:
        assert [(await get(http, token)).json() for token in ("a", "b")] == ["alice", "bob"]


async def test_overridden_dependency_of_the_endpoint_prevents_sharing(cache):
    def other_session(user: User):
        return user

    async def answer(db: Annotated[str, Depends(session)]) -> str:
        return str(db)

    app = app_with(cache, answer)
    async with wrapped(cache, app) as http:
        assert await states(http) == ["missing", "fresh"]
        app.dependency_overrides[session] = other_session
        assert [(await get(http, token)).json() for token in ("a", "b")] == ["alice", "bob"]
        assert (await why(http)).endswith("argument db, which is overridden")


async def test_headers_and_cookies_set_by_a_guard_differ_for_each_reader(cache):
    def greets(user: User, response: Response) -> None:
        response.headers["x-user"] = user
        response.set_cookie("user", user)

    counted = Counted()
    async with wrapped(cache, app_with(cache, counted.endpoint, dependencies=[Depends(greets)])) as http:
        for token, user in (("a", "alice"), ("b", "bob"), ("a", "alice")):
            found = await get(http, token)
            assert (found.headers["x-user"], found.headers["set-cookie"].partition(";")[0]) == (user, f"user={user}")
            http.cookies.clear()
    assert counted.runs == 1


async def test_headers_set_by_a_guard_are_not_added_to_a_response_object_of_the_endpoint(cache):
    def greets(user: User, response: Response) -> None:
        response.headers["x-user"] = user

    async def answer() -> Response:
        return PlainTextResponse("x")

    async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(greets)])) as http:
        for token in "ab":
            assert "x-user" not in (await get(http, token)).headers


async def test_status_set_by_a_guard_prevents_a_hit(cache):
    def sets(user: User, response: Response) -> None:
        if user == "bob":
            response.status_code = 203

    async with wrapped(cache, app_with(cache, Counted().endpoint, dependencies=[Depends(sets)])) as http:
        assert [(await get(http, token)).status_code for token in "abab"] == [200, 203, 200, 203]
        assert (await why(http, token="b")).endswith("status of a dependency")


async def test_no_store_set_by_a_guard_prevents_storing(cache):
    def sets(response: Response) -> None:
        response.headers["cache-control"] = "no-store"

    async with wrapped(cache, app_with(cache, Counted().endpoint, dependencies=[Depends(sets)])) as http:
        assert (await why(http)).endswith("no-store")


async def test_headers_set_by_a_guard_reach_readers_of_an_endpoint_that_takes_the_request(cache):
    def greets(user: User, response: Response) -> None:
        response.headers["x-user"] = user

    async with wrapped(cache, app_with(cache, by_request, dependencies=[Depends(greets)], shared=True)) as http:
        assert [(await get(http, token)).headers["x-user"] for token in "ab"] == ["alice", "bob"]
        assert (await why(http)).endswith("response of a dependency")


@pytest.mark.parametrize("kind", ["async", "def"])
@pytest.mark.parametrize("where", ["guard", "middleware"])
async def test_context_variable_set_by_a_guard_or_inner_middleware_prevents_sharing(cache, where, kind):
    tenant: ContextVar[str] = ContextVar("tenant")

    async def sets_the_tenant(user: User) -> None:
        if where == "guard":
            tenant.set(user)

    async def answer() -> str:
        return tenant.get()

    def plain() -> str:
        return tenant.get()

    class SetsTheTenant:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            tenant.set(TOKENS.get(dict(scope["headers"])[b"authorization"].decode()[-1], ""))
            await self.app(scope, receive, send)

    app = app_with(cache, plain if kind == "def" else answer, dependencies=[Depends(sets_the_tenant)])
    if where == "middleware":
        app.add_middleware(SetsTheTenant)
    async with wrapped(cache, app) as http:
        assert [(await get(http, token)).json() for token in "abab"] == ["alice", "bob", "alice", "bob"]
        assert (await why(http)).endswith("context variable tenant")


async def test_mutable_context_variable_changed_by_a_guard_prevents_sharing(cache):
    current: ContextVar[dict] = ContextVar("current")

    async def sets_the_user(user: User) -> None:
        current.get()["user"] = user

    async def answer() -> str:
        return current.get()["user"]

    token = current.set({})
    try:
        async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(sets_the_user)])) as http:
            assert [(await get(http, token)).json() for token in "abab"] == ["alice", "bob", "alice", "bob"]
    finally:
        current.reset(token)


async def test_context_variable_of_outer_middleware_is_part_of_the_key(cache):
    tenant: ContextVar[tuple] = ContextVar("tenant", default=())

    class SetsTheTenant:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            tenant.set((dict(scope["headers"])[b"authorization"].decode(), 1))
            await self.app(scope, receive, send)

    async def answer() -> str:
        return tenant.get()[0]

    app = app_with(cache, answer)
    app.add_middleware(SWRMiddleware, cache=cache)
    app.add_middleware(SetsTheTenant)
    async with client(app) as http:
        assert [(await get(http, token)).json() for token in "abab"] == ["Bearer a", "Bearer b"] * 2
        assert state(await get(http)) == (200, "fresh")


@pytest.mark.parametrize("inside", [False, True], ids=["around", "inside"])
@pytest.mark.parametrize("name", ["request_id", "correlation_id", "structlog_trace_id"])
async def test_request_id_context_variable_is_not_part_of_the_key(cache, name, inside):
    identifier: ContextVar[str] = ContextVar(name)

    class Identifies:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            identifier.set(str(uuid.uuid4()))
            await self.app(scope, receive, send)

    app = app_with(cache, Counted().endpoint)
    for middleware in ((Identifies, {}), (SWRMiddleware, {"cache": cache}))[:: 1 if inside else -1]:
        app.add_middleware(middleware[0], **middleware[1])
    async with client(app) as http:
        assert await states(http) == ["missing", "fresh"]


def text_with(variable, value, before):
    """Return the text of the variables after the app has set one, in a context of its own."""

    def text():
        variable.set(value)
        return text_of_variables(before)

    return contextvars.copy_context().run(text)


def test_mutable_value_of_a_request_id_variable_raises_unknown():
    with pytest.raises(Unknown, match="request_id"):
        text_with(ContextVar("request_id"), {"user": "alice"}, contextvars.copy_context())


def test_sentry_context_variables_are_ignored_but_namesakes_raise_unknown(monkeypatch):
    scope = ContextVar("isolation_scope")
    monkeypatch.setitem(sys.modules, "sentry_sdk.scope", SimpleNamespace(_isolation_scope=scope))
    before = contextvars.copy_context()
    assert text_with(scope, object(), before) == text_of_variables(before)
    with pytest.raises(Unknown, match="isolation_scope"):
        text_with(ContextVar("isolation_scope"), object(), before)


def test_context_variable_of_a_new_generic_model_type_is_ignored():
    """Up to pydantic 2.11, making such a type leaves a context variable behind in the calling context."""

    row = TypeVar("row")

    class Page(pydantic.BaseModel, Generic[row]):
        rows: list[row]

    def text():
        Page[int](rows=[1])
        return text_of_variables(before)

    before = contextvars.Context()
    assert contextvars.Context().run(text) == "[]"


def test_context_variable_that_is_no_longer_set_raises_unknown():
    mode: ContextVar[str] = ContextVar("mode")
    token = mode.set("some")
    before = contextvars.copy_context()
    assert "mode=some" in text_of_variables(before)
    mode.reset(token)
    with pytest.raises(Unknown, match="mode"):
        text_of_variables(before)


def test_opentelemetry_span_is_ignored_but_baggage_raises_unknown():
    before = contextvars.copy_context()
    span = trace.set_span_in_context(trace.NonRecordingSpan(trace.INVALID_SPAN_CONTEXT))
    token = context.attach(span)
    try:
        text_of_variables(before)
    finally:
        context.detach(token)
    token = context.attach(baggage.set_baggage("user", "alice", span))
    try:
        with pytest.raises(Unknown, match="current_context"):
            text_of_variables(before)
    finally:
        context.detach(token)


async def test_decimal_arithmetic_in_a_guard_keeps_hits_but_a_new_decimal_context_does_not(cache):
    async def guard(user: User) -> None:
        decimal.Decimal(1) / 3

    async def strict(user: User) -> None:
        decimal.setcontext(decimal.Context(prec=5))

    for dependency, expected in ((guard, "fresh"), (strict, "missing")):
        # In a context of its own, for the variable stays.
        async def ask(dependency=dependency):
            await cache.clear()
            async with wrapped(cache, app_with(cache, Counted().endpoint, dependencies=[Depends(dependency)])) as http:
                return await states(http)

        found: list[str] = []

        async def run(ask=ask, found=found):
            found.extend(await ask())

        async with anyio.create_task_group() as group:
            contextvars.copy_context().run(group.start_soon, run)
        assert found == ["missing", expected]


async def test_path_parameter_rewritten_by_a_guard_is_part_of_the_key(cache):
    def rewrites(request: Request, user: User) -> None:
        request.scope["path_params"]["group"] = user
        request.scope["query_string"] = b"q=" + user.encode()

    async def answer(group: str) -> str:
        return group

    async with wrapped(cache, app_with(cache, answer, "/x/{group}", dependencies=[Depends(rewrites)])) as http:
        found = [(await get(http, token, "/x/me")).json() for token in "abab"]
        assert found == ["alice", "bob", "alice", "bob"]
        assert state(await get(http, path="/x/me")) == (200, "fresh")


class Group:
    def __init__(self, name):
        self.name = name


class GroupConvertor(Convertor):
    regex = "[a-z]+"

    def convert(self, value):
        return Group(value)

    def to_string(self, value):
        return value.name


async def test_path_parameter_that_cannot_be_part_of_a_key_prevents_sharing(cache):
    register_url_convertor("swr_group", GroupConvertor())

    async def answer(group: Any) -> str:
        return group.name

    async with wrapped(cache, app_with(cache, answer, "/x/{group:swr_group}")) as http:
        assert (await why(http, "/x/abc")).endswith(", path")


async def test_path_rewritten_by_inner_middleware_is_part_of_the_key(cache):
    counted = Counted()
    app = app_with(cache, counted.endpoint, path="/{group}/x")

    class ByTenant:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            scope["path"] = f"/{dict(scope['headers'])[b'authorization'].decode()[-1]}/x"
            await self.app(scope, receive, send)

    app.add_middleware(ByTenant)
    async with wrapped(cache, app) as http:
        assert [(await get(http, token)).json()["group"] for token in "abab"] == ["a", "b", "a", "b"]


async def test_two_apps_behind_one_middleware_do_not_share_entries(cache):
    async def answer(request: Request) -> str:
        return request.app.state.name

    decorated = cache.response(fresh_for=60, shared=True)(answer)
    apps = {}
    for name in "ab":
        apps[name] = FastAPI()
        apps[name].state.name = name
        apps[name].get("/x", dependencies=GUARD)(decorated)

    async def choose(scope, receive, send):
        await apps[dict(scope["headers"])[b"authorization"].decode()[-1]](scope, receive, send)

    async with client(SWRMiddleware(choose, cache=cache)) as http:
        assert [(await get(http, token)).json() for token in "ababab"] == ["a", "b"] * 3
        assert state(await get(http)) == (200, "fresh")
        assert (await why(http, token="b")).endswith("another app")


async def test_endpoints_made_by_one_factory_do_not_share_entries(cache):
    def make(name):
        @cache.response(fresh_for=60)
        async def answer() -> str:
            return name

        app = FastAPI()
        app.get("/x", dependencies=GUARD)(answer)
        return app

    apps = {name: make(name) for name in "ab"}

    async def choose(scope, receive, send):
        await apps[dict(scope["headers"])[b"authorization"].decode()[-1]](scope, receive, send)

    async with client(SWRMiddleware(choose, cache=cache)) as http:
        assert [(await get(http, token)).json() for token in "abab"] == ["a", "b"] * 2
        assert (await why(http, token="b")).endswith("another app")


@pytest.mark.uncounted
async def test_entry_of_a_garbage_collected_app_serves_the_next_app_with_its_endpoint():
    async with Cache(lease_for=0.1) as cache:
        decorated = cache.response(fresh_for=600)(Counted().endpoint)
        for expected in ("missing", "fresh"):
            app = FastAPI()
            app.get("/x", dependencies=GUARD)(decorated)
            async with wrapped(cache, app) as http:
                assert state(await get(http)) == (200, expected)
            gone = weakref.ref(app)
            del app, http
            with anyio.fail_after(30):
                while gone() is not None:
                    await anyio.sleep(0.05)
                    gc.collect()


@pytest.mark.parametrize("is_factory", [True, False])
async def test_app_made_after_configure_gets_hits_while_earlier_apps_still_live(is_factory):
    """`create_app(settings)` in a fixture, with one router, or with an endpoint of its own in each app."""
    cache, counted, apps = Cache(), Counted(), []
    decorated = cache.response(fresh_for=600)(counted.endpoint)
    for number in range(3):
        cache.configure(namespace="shop")
        apps.append(app := FastAPI())
        app.get("/x", dependencies=GUARD)(
            cache.response(fresh_for=600)(Counted().endpoint) if is_factory else decorated
        )
        async with wrapped(cache, app) as http:
            assert [state(await get(http)) for _ in range(2)] == [(200, "missing"), (200, "fresh")], number
        await cache.aclose()


async def test_keys_are_the_same_in_every_process():
    """Keys depend neither on the seed of hashes nor on the addresses of objects."""
    script = """
import asyncio, sys
from typing import Annotated, Any
from fastapi import Depends, FastAPI
from pydantic import AfterValidator, BaseModel
from swr import Cache
from swr.middleware import SWRMiddleware
from tests.fleet import settle
from tests.web import client

class Item(BaseModel):
    name: Annotated[str, AfterValidator(lambda text: text)]
    size: int = 1

async def main():
    cache, app = Cache(), FastAPI()
    model = Annotated[Item, AfterValidator(lambda item: item)]
    options = {"response_model": model, "response_model_exclude": {"size": True, "weight": {"a", "b", "c"}}}
    app.get("/x", dependencies=[Depends(lambda: None)], **options)(cache.response(fresh_for=60)(endpoint))
    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app) as http:
        found = await http.get("/x", headers={"authorization": "a"})
    print(found.headers["cache-status"], sorted(cache.local.slots))

async def endpoint(page: int = 1) -> Any:
    return {"name": "a"}

asyncio.run(main())
"""
    root = Path(__file__).parent.parent
    printed = set()
    for seed in ("1", "2"):
        done = await anyio.run_process(
            [sys.executable, "-c", script], cwd=root, env={**os.environ, "PYTHONHASHSEED": seed}, stderr=None
        )
        printed.add(done.stdout)
    assert len(printed) == 1
    assert b"stored" in printed.pop()


async def test_apps_with_different_titles_do_not_share_entries(cache):
    async def answer(request: Request) -> str:
        return request.app.title

    decorated = cache.response(fresh_for=60, shared=True)(answer)
    apps = {name: FastAPI(title=name) for name in "ab"}
    for app in apps.values():
        app.get("/x", dependencies=GUARD)(decorated)

    async def choose(scope, receive, send):
        await apps[dict(scope["headers"])[b"authorization"].decode()[-1]](scope, receive, send)

    async with client(SWRMiddleware(choose, cache=cache)) as http:
        assert [(await get(http, token)).json() for token in "abab"] == ["a", "b"] * 2
        assert state(await get(http)) == (200, "fresh")


class Item(BaseModel):
    name: str


class FullItem(Item):
    secret: str = ""


async def test_one_endpoint_with_two_response_models_has_separate_entries(cache):
    async def answer(request: Request) -> Any:
        return {"name": "n", "secret": "s"}

    decorated = cache.response(fresh_for=60, shared=True)(answer)
    app, full = FastAPI(), FastAPI()
    app.get("/x", response_model=Item, dependencies=GUARD)(decorated)
    full.get("/x", response_model=FullItem, dependencies=GUARD)(decorated)

    async def choose(scope, receive, send):
        chosen = full if dict(scope["headers"])[b"authorization"] == b"Bearer a" else app
        await chosen(scope, receive, send)

    async with client(SWRMiddleware(choose, cache=cache)) as http:
        for _ in range(2):
            assert (await get(http, "a")).json() == {"name": "n", "secret": "s"}
            assert (await get(http, "b")).json() == {"name": "n"}


async def test_custom_route_class_prevents_sharing_and_still_runs(cache):
    class Greeting(APIRoute):
        def get_route_handler(self):
            handler = super().get_route_handler()

            async def greet(request):
                response = await handler(request)
                assert type(response) is not Response or self.response_field is not None
                response.headers["x-token"] = request.headers["authorization"]
                return response

            return greet

    app, router = FastAPI(), APIRouter(route_class=Greeting, dependencies=GUARD)
    router.get("/x")(cache.response(fresh_for=60, shared=True)(Counted().endpoint))
    app.include_router(router)
    async with wrapped(cache, app) as http:
        assert [(await get(http, token)).headers["x-token"] for token in "ab"] == ["Bearer a", "Bearer b"]
        assert (await why(http)).endswith("route class")


async def test_custom_response_class_prevents_sharing_and_renders_each_value(cache):
    seen = []

    class Own(JSONResponse):
        def render(self, content):
            seen.append(content)
            return super().render(content)

    async def answer() -> Any:
        return {"a": 1}

    async def direct() -> Any:
        return Own({"a": 2})

    app = app_with(cache, answer, route={"response_class": Own}, shared=True)
    app.get("/direct", dependencies=GUARD)(cache.response(fresh_for=60)(direct))
    async with wrapped(cache, app) as http:
        assert (await why(http)).endswith("response class")
        assert (await why(http, "/direct")).endswith("response class")
    assert seen == [{"a": 1}] * 2 + [{"a": 2}] * 2


@pytest.mark.parametrize("shared", [False, True])
async def test_decorator_above_cache_response_prevents_sharing(cache, shared):
    decorated = cache.response(fresh_for=60, shared=shared)(Counted().endpoint)

    @functools.wraps(decorated)
    async def between(*args, **kwargs):
        return await decorated(*args, **kwargs)

    app = FastAPI()
    app.get("/x", dependencies=GUARD)(between)
    async with wrapped(cache, app) as http:
        assert (await why(http)).endswith("route")


async def test_decorator_below_cache_response_prevents_sharing_unless_shared_is_true(cache):
    counted = Counted()

    @functools.wraps(counted.endpoint)
    async def limited(*args, **kwargs):
        return await counted.endpoint(*args, **kwargs)

    async with wrapped(cache, app_with(cache, limited)) as http:
        assert (await why(http)).endswith("decorator")
    async with wrapped(cache, app_with(cache, limited, shared=True, path="/y")) as http:
        assert await states(http, "/y") == ["missing", "fresh"]


async def test_requires_below_cache_response_with_shared_or_key_is_refused(cache):
    async def answer(request: Request) -> str:
        return "x"

    guarded = requires("authenticated")(answer)
    with pytest.raises(ConfigurationError, match="put it below @requires"):
        cache.response(fresh_for=60, shared=True)(guarded)
    with pytest.raises(ConfigurationError, match="put it below @requires"):
        cache.response(fresh_for=60, key=lambda request: request.user)(guarded)
    async with wrapped(cache, app_with(cache, guarded)) as http:
        with pytest.raises(AssertionError, match="AuthenticationMiddleware"):
            await get(http)


async def test_cached_endpoint_used_as_a_dependency_runs_each_time(cache):
    inner = cache.response(fresh_for=60, shared=True)(Counted().endpoint)

    async def answer(found: Annotated[dict, Depends(inner)]) -> int:
        return found["run"]

    app = FastAPI()
    app.get("/x", dependencies=GUARD)(answer)
    async with wrapped(cache, app) as http:
        assert [(await get(http)).json() for _ in range(2)] == [1, 2]


async def test_cached_endpoint_called_by_another_endpoint_runs_each_time(cache):
    inner = cache.response(fresh_for=60, shared=True)(Counted().endpoint)
    plain = cache.response(fresh_for=60, shared=True)(Counted(plain=True).endpoint)

    async def answer(page: int = 1) -> list[int]:
        return [(await inner(group="a"))["run"], (await inner("a"))["run"], plain("a")["run"]]

    async with wrapped(cache, app_with(cache, answer)) as http:
        assert [(await get(http)).json() for _ in range(2)] == [[1, 2, 1]] * 2
        assert [(await get(http, path="/x?page=2")).json() for _ in range(2)] == [[3, 4, 2]] * 2


async def test_cached_endpoint_of_another_app_requested_within_a_request_runs_each_time(cache):
    inner, outer, counted = FastAPI(), FastAPI(), Counted()
    inner.get("/inner", dependencies=GUARD)(cache.response(fresh_for=60, shared=True)(counted.endpoint))

    @outer.get("/x")
    async def forward(request: Request) -> Any:
        async with client(inner) as http:
            return (await http.get("/inner", headers={"authorization": request.headers["authorization"]})).json()

    async with wrapped(cache, outer) as http:
        assert [(await get(http)).json()["run"] for _ in range(3)] == [1, 2, 3]


async def test_generator_endpoint_is_never_stored(cache):
    async def answer():
        yield {"a": 1}

    def plain():
        yield {"a": 1}

    async def raw(request: Request):
        yield b"one"

    app = app_with(cache, answer, shared=True)
    app.get("/plain", dependencies=GUARD)(cache.response(fresh_for=60)(plain))
    app.get("/raw", dependencies=GUARD, response_class=StreamingResponse)(
        cache.response(fresh_for=60, shared=True)(raw)
    )
    async with wrapped(cache, app) as http:
        for path in ("/x", "/plain", "/raw"):
            assert await states(http, path) == ["missing", "missing"]


# -- the word -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("plain", [False, True], ids=["async", "def"])
async def test_key_gives_each_user_one_entry_that_is_loaded_once(cache, plain, tokens):
    runs = []

    async def answer(user: User, page: int = 1) -> str:
        runs.append(user)
        return user

    def plain_answer(user: User, page: int = 1) -> str:
        runs.append(user)
        return user

    endpoint = plain_answer if plain else answer
    app = app_with(cache, endpoint, dependencies=[], key=lambda user: user)
    async with wrapped(cache, app) as http:
        for expected in ("missing", "fresh"):
            for token, user in (("a", "alice"), ("b", "bob")):
                found = await get(http, token)
                assert (found.json(), found.headers["swr-state"]) == (user, expected)
        tokens["a2"] = "alice"
        assert state(await get(http, "a2")) == (200, "fresh")
        del tokens["a"]
        assert (await get(http)).status_code == 401
    assert len(runs) == 2
    assert not any("alice" in key for key in cache.local.slots)


class Account(BaseModel):
    id: int | None


ACCOUNTS = {"a": Account(id=1), "b": Account(id=2), "c": Account(id=None)}


def account(token: Annotated[HTTPAuthorizationCredentials, Depends(HTTPBearer())]) -> Account:
    return ACCOUNTS[token.credentials]


async def by_account(user: Annotated[Account, Depends(account)]) -> int | None:
    return user.id


async def test_key_may_read_an_attribute_and_returning_none_prevents_storing(cache, caplog):
    async with wrapped(cache, app_with(cache, by_account, dependencies=[], key=lambda user: user.id)) as http:
        for expected in ("missing", "fresh"):
            for token in "ab":
                found = await get(http, token)
                assert (found.json(), found.headers["swr-state"]) == (ACCOUNTS[token].id, expected)
        for _ in range(2):
            found = await get(http, "c")
            assert (found.json(), found.headers["swr-state"]) == (None, "missing")
            assert found.headers["cache-status"].endswith('key"')
    assert [record.message for record in caplog.records if "key= of" in record.message] == [
        f"key= of {__name__}.by_account returned None: the endpoint runs for such requests; return a string, a number, "
        f"a date, a UUID or a tuple of these"
    ]


@pytest.mark.parametrize("key", [lambda user: user, lambda user: user.name])
async def test_key_that_raises_or_returns_an_object_prevents_storing_and_warns_once(cache, key, caplog):
    async with wrapped(cache, app_with(cache, by_account, dependencies=[], key=key)) as http:
        assert [(await get(http, token)).json() for token in "abab"] == [1, 2, 1, 2]
        assert (await why(http)).endswith("key")
    assert caplog.text.count("key= of") == 1


async def test_key_makes_even_public_responses_answer_behind_dependencies(cache):
    runs = []

    async def answer(request: Request) -> Response:
        runs.append(1)
        return PlainTextResponse(
            request.headers.get("accept-language", ""), headers={"cache-control": "public, max-age=60"}
        )

    app = app_with(cache, answer, dependencies=[], key=lambda request: request.headers.get("accept-language"))
    async with wrapped(cache, app) as http:
        for expected in ("missing", "fresh"):
            for language in ("de", "fr"):
                found = await http.get("/x", headers={"accept-language": language})
                assert (found.text, found.headers["swr-state"]) == (language, expected)
                assert DETAIL in found.headers["cache-status"]
    assert len(runs) == 2


async def test_key_may_read_the_scope_and_have_default_arguments(cache):
    async def answer(page: int = 1) -> str:
        return "x"

    def key(scope, page, other=1):
        return scope["client"][0], page, other

    async with wrapped(cache, app_with(cache, answer, key=key)) as http:
        assert await states(http) == ["missing", "fresh"]


@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("endpoint", "key"),
    [
        (by_request, lambda request: request.headers["authorization"]),
        (by_request_of_two, lambda request: request.headers["authorization"]),
        (by_connection, lambda scope: dict(scope["headers"])[b"authorization"]),
        (by_header, lambda: "all"),
        (by_cookie, lambda: "all"),
        (by_session, lambda session: session),
    ],
)
async def test_key_makes_endpoints_cacheable_whose_arguments_are_about_the_user(cache, endpoint, key):
    async with wrapped(cache, app_with(cache, endpoint, key=key)) as http:
        texts = []
        for expected in ("missing", "fresh"):
            for token in "ab":
                found = await get(http, token, cookie=f"session={token}")
                assert found.headers["swr-state"] == expected
                texts.append(found.json())
    assert texts[:2] == texts[2:]
    assert texts[0] != texts[1]


async def test_key_may_read_a_context_variable(cache):
    tenant: ContextVar[str] = ContextVar("tenant")
    runs = []

    async def sets_the_tenant(user: User) -> None:
        tenant.set(user)

    async def answer() -> str:
        runs.append(1)
        return tenant.get()

    app = app_with(cache, answer, dependencies=[Depends(sets_the_tenant)], key=lambda: tenant.get())
    async with wrapped(cache, app) as http:
        assert [(await get(http, token)).json() for token in "abab"] == ["alice", "bob", "alice", "bob"]
    assert len(runs) == 2


async def test_shared_serves_one_response_to_all_unless_an_argument_is_part_of_the_key(cache):
    async with wrapped(cache, app_with(cache, by_account, dependencies=[], shared=True)) as http:
        assert [(await get(http, token)).json() for token in "abab"] == [1] * 4
        assert (await http.get("/x")).status_code in (401, 403)
    async with wrapped(cache, app_with(cache, by_user, shared=True, path="/y")) as http:
        # What can be part of the key is.
        assert [(await get(http, token, "/y")).json() for token in "abab"] == ["alice", "bob"] * 2


async def test_vary_fields_are_part_of_the_key_behind_dependencies(cache):
    async def answer(request: Request) -> str:
        return request.headers["x-region"]

    async with wrapped(cache, app_with(cache, answer, shared=True, vary=("X-Region",))) as http:
        for expected in ("missing", "fresh"):
            for region in ("eu", "us"):
                found = await get(http, x_region=region)
                assert (found.json(), found.headers["swr-state"]) == (region, expected)


async def test_invalid_key_and_shared_options_are_refused(cache):
    async def asynchronous(user):
        return user

    with pytest.raises(ConfigurationError, match="takes 'nobody', which is neither a parameter of the endpoint"):
        cache.response(fresh_for=60, key=lambda nobody: nobody)(by_user)
    for key in (asynchronous, "user"):
        with pytest.raises(ConfigurationError, match="not a plain function"):
            cache.response(fresh_for=60, key=key)
    with pytest.raises(ConfigurationError, match="contradict each other"):
        cache.response(fresh_for=60, key=lambda user: user, shared=True)
    with pytest.raises(ConfigurationError, match="contradict each other"):
        cache.response(fresh_for=60, credentials="vary", shared=True)
    with pytest.raises(ConfigurationError, match="shared=1"):
        cache.response(fresh_for=60, shared=1)


# -- what FastAPI and users of the function see ---------------------------------------------------------------------


async def test_decorated_endpoint_has_two_extra_parameters_hidden_from_openapi(cache):
    async def answer(group: str, limit: int = 3) -> str:
        return f"{group} {limit}"

    decorated = cache.response(fresh_for=60)(answer)
    assert list(inspect.signature(decorated).parameters) == ["group", "limit", "swr_request", "swr_response"]
    app, plain = FastAPI(), FastAPI()
    app.get("/x/{group}")(decorated)
    plain.get("/x/{group}")(answer)
    assert app.openapi() == plain.openapi()
    assert await decorated("ATL") == "ATL 3"
    assert await decorated("ATL", limit=4) == "ATL 4"


async def test_decorated_starlette_endpoint_keeps_its_signature(cache):
    async def page(request): ...
    async def annotated(request: Request): ...

    class Page(HTTPEndpoint):
        async def get(self, request): ...

    for function in (page, annotated, Page.get):
        assert inspect.signature(cache.response(fresh_for=60)(function)) == inspect.signature(function)


async def test_request_and_response_parameters_of_the_endpoint_are_reused(cache):
    async def answer(mine: Request, his: Annotated[Response, "a mark"], **more: Any) -> str:
        his.headers["x-mine"] = "1"
        return mine.headers["authorization"]

    decorated = cache.response(fresh_for=60, shared=True)(answer)
    assert list(inspect.signature(decorated).parameters) == ["mine", "his", "more"]

    async def strings(mine: "Request", response: "Unknown.Response", other: "Unknown" = None) -> str:
        return ""

    decorated = cache.response(fresh_for=60)(strings)
    assert list(inspect.signature(decorated).parameters) == ["mine", "response", "other"]

    async def depends(found: Annotated[Response, Depends(session)], **more: Any) -> str:
        return ""

    decorated = cache.response(fresh_for=60)(depends)
    assert list(inspect.signature(decorated).parameters) == ["found", "swr_request", "swr_response", "more"]


async def test_headers_and_status_set_by_the_endpoint_are_stored(cache):
    def greets(user: User, response: Response) -> None:
        response.headers["x-user"] = user

    async def answer(response: Response) -> str:
        response.headers["x-mine"] = "1"
        response.status_code = 203
        return "x"

    async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(greets)], shared=True)) as http:
        for token, user, expected in (("a", "alice", "missing"), ("b", "bob", "fresh")):
            found = await get(http, token)
            assert (state(found), found.headers["x-mine"], found.headers["x-user"]) == ((203, expected), "1", user)


@pytest.mark.parametrize("how", ["overwrites", "cookie"])
async def test_overwriting_a_header_of_a_guard_or_setting_a_cookie_prevents_storing(cache, how):
    def greets(user: User, response: Response) -> None:
        response.headers["x-user"] = user

    async def answer(response: Response) -> str:
        if how == "overwrites":
            response.headers["x-user"] = "somebody"
        else:
            response.set_cookie("a", "b")
        return "x"

    async with wrapped(cache, app_with(cache, answer, dependencies=[Depends(greets)], shared=True)) as http:
        for _ in range(2):
            found = await get(http)
            assert state(found) == (200, "missing")
            assert found.headers["x-user"] == ("somebody" if how == "overwrites" else "alice")
        assert "set-cookie" not in (await get(http)).headers or how == "cookie"


# -- what is stored -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"response_model": FullItem},
        {"response_model": FullItem, "response_model_include": {"name"}},
        {"response_model": FullItem, "response_model_exclude": {"name"}, "status_code": 203},
        {"response_model": FullItem, "response_model_exclude_unset": True},
        {"response_model": FullItem, "response_model_exclude_defaults": True, "response_model_by_alias": False},
        {"response_model": None},
        {"response_model": None, "response_model_exclude_none": True},
        {"response_class": JSONResponse, "response_model": Item},
        {"response_class": PlainTextResponse, "response_model": None},
        {"response_class": HTMLResponse, "response_model": None},
        {"status_code": 204, "response_model": None},
    ],
    ids=str,
)
async def test_stored_response_equals_that_of_plain_fastapi_byte_for_byte(cache, options):
    is_text = options.get("response_class") in (PlainTextResponse, HTMLResponse)

    async def answer() -> Any:
        return "é" if is_text else {"name": "é", "weight": 1.50, "none": None}

    plain = FastAPI()
    plain.get("/x", **options)(answer)
    async with client(plain) as http:
        wanted = await http.get("/x")
    async with wrapped(cache, app_with(cache, answer, route=options)) as http:
        for expected in ("missing", "fresh"):
            found = await get(http)
            assert (state(found), found.content) == ((wanted.status_code, expected), wanted.content)
            assert {name: found.headers[name] for name in wanted.headers} == dict(wanted.headers)


async def test_value_that_violates_the_response_model_answers_500_each_time(cache):
    async def answer() -> Any:
        return {"nothing": 1}

    app = app_with(cache, answer, route={"response_model": Item})
    app.add_middleware(SWRMiddleware, cache=cache)
    async with client(app, raises=False) as http:
        assert [(await get(http)).status_code for _ in range(2)] == [500, 500]


@pytest.mark.parametrize(
    ("headers", "status", "reason"),
    [
        ({"set-cookie": "a=b"}, 200, "set-cookie"),
        ({"cache-control": "no-store"}, 200, "no-store"),
        ({"cache-control": "private"}, 200, "private"),
        ({"cache-control": "private; max-age=9"}, 200, "private"),
        ({"cache-control": "no-cache", "etag": '"a"'}, 200, "no-cache"),
        ({"vary": "x-tenant"}, 200, "vary"),
        ({"vary": "*"}, 200, "vary"),
        ({}, 206, "status 206"),
        ({}, 404, "status 404"),
        ({}, 403, "status 403"),
        ({}, 500, ""),
    ],
)
async def test_response_that_must_not_be_shared_runs_the_endpoint_each_time(cache, headers, status, reason):
    runs = []

    async def answer() -> Response:
        runs.append(1)
        return PlainTextResponse(str(len(runs)), status, headers)

    async with wrapped(cache, app_with(cache, answer, override=True)) as http:
        for number in ("1", "2", "3"):
            found = await get(http)
            assert (found.status_code, found.text, found.headers["swr-state"]) == (status, number, "missing")
            assert {name: found.headers[name] for name in headers} == headers
            if number == "1" and reason:
                assert reason in found.headers["cache-status"]
    assert len(runs) == 3


@pytest.mark.parametrize("kind", ["stream", "redirect", "background", "large", "memoryview"])
async def test_stream_redirect_background_task_or_large_body_is_not_stored(cache, kind):
    done = []

    async def answer(tasks: BackgroundTasks) -> Response:
        tasks.add_task(done.append, 1)
        return {
            "stream": lambda: StreamingResponse(iter([b"one", b"two"])),
            "redirect": lambda: RedirectResponse("/y"),
            "background": lambda: PlainTextResponse("x", background=tasks),
            "large": lambda: PlainTextResponse("x" * 100),
            "memoryview": lambda: Response(memoryview(b"x")),
        }[kind]()

    async with wrapped(cache, app_with(cache, answer, shared=True), max_body_bytes=50) as http:
        for number in (1, 2):
            found = await get(http)
            assert found.headers["swr-state"] == "missing"
            if kind == "background":
                assert len(done) == number


async def test_cache_control_beats_fresh_for_unless_override_is_set(cache, clock):
    async def answer() -> Response:
        return PlainTextResponse("x", headers={"cache-control": "max-age=10"})

    app = app_with(cache, answer, stale_for=0)
    app.get("/y", dependencies=GUARD)(cache.response(fresh_for=60, override=True)(answer))
    async with wrapped(cache, app) as http:
        for path, ttl in (("/x", 10), ("/y", 60)):
            await get(http, path=path)
            assert f"ttl={ttl}" in (await get(http, path=path)).headers["cache-status"]
        clock.advance(11)
        assert await states(http, "/x", 1) == ["missing"]
        assert await states(http, "/y", 1) == ["fresh"]


async def test_inner_middleware_sees_every_request_even_on_hits(cache):
    counted = Counted()
    app = app_with(cache, counted.endpoint)

    @app.middleware("http")
    async def greet(request: Request, call_next):
        response = await call_next(request)
        response.headers["x-user"] = request.headers["authorization"]
        return response

    async with wrapped(cache, app) as http:
        for token in ("a", "b", "a"):
            found = await get(http, token)
            assert found.headers["x-user"] == f"Bearer {token}"
            assert found.json()["run"] == 1
    assert counted.runs == 1


async def test_response_replaced_by_inner_middleware_is_not_marked_as_a_hit(cache):
    app = app_with(cache, Counted().endpoint)

    @app.middleware("http")
    async def refuse(request: Request, call_next):
        await call_next(request)
        return PlainTextResponse("no", 418)

    async with wrapped(cache, app) as http:
        for _ in range(2):
            found = await get(http)
            assert state(found) == (418, "missing")
            assert "hit" not in found.headers["cache-status"]


async def test_session_middleware_inside_keeps_hits_and_sets_its_cookie(cache):
    counted = Counted()

    async def logs_in(request: Request) -> None:
        request.session["user"] = request.headers["x-user"]

    app = app_with(cache, counted.endpoint, dependencies=[Depends(logs_in)])
    app.add_middleware(SessionMiddleware, secret_key="secret")
    async with wrapped(cache, app, ignore_fields=("X-User",)) as http:
        for user, expected in (("a", "missing"), ("b", "fresh")):
            found = await http.get("/x", headers={"x-user": user})
            assert state(found) == (200, expected)
            assert "session=" in found.headers["set-cookie"]
            http.cookies.clear()
    assert counted.runs == 1


# -- Starlette ------------------------------------------------------------------------------------------------------


class Backend(AuthenticationBackend):
    async def authenticate(self, conn):
        user = TOKENS.get(conn.headers.get("authorization", "")[7:])
        return (AuthCredentials(["authenticated"]), SimpleUser(user)) if user else None


@pytest.mark.parametrize("inside", [True, False])
@pytest.mark.parametrize("kind", ["async", "def", "class"])
class TestStarlette:
    def app(self, cache, kind, inside, runs, **terms):
        decorate = cache.response(fresh_for=60, **terms)

        async def answer(request):
            runs.append(request.user.display_name)
            return PlainTextResponse(request.user.display_name)

        def plain(request):
            runs.append(request.user.display_name)
            return PlainTextResponse(request.user.display_name)

        class Page(HTTPEndpoint):
            @requires("authenticated", status_code=401)
            @decorate
            async def get(self, request):
                return await answer(request)

        endpoint = (
            Page
            if kind == "class"
            else requires("authenticated", status_code=401)(decorate(answer if kind == "async" else plain))
        )
        app = Starlette(routes=[Route("/x", endpoint)])
        layers = [(SWRMiddleware, {"cache": cache}), (AuthenticationMiddleware, {"backend": Backend()})]
        for layer, options in layers if not inside else reversed(layers):
            app.add_middleware(layer, **options)
        return client(app)

    @pytest.mark.uncounted
    async def test_endpoint_without_shared_or_key_runs_each_time(self, cache, kind, inside):
        async with self.app(cache, kind, inside, []) as http:
            assert [(await get(http, token)).text for token in "abab"] == ["alice", "bob", "alice", "bob"]
            assert (await why(http)).endswith("argument request")

    @pytest.mark.uncounted
    async def test_shared_serves_one_response_to_all_admitted_users(self, cache, kind, inside):
        runs = []
        async with self.app(cache, kind, inside, runs, shared=True) as http:
            assert [(await get(http, token)).text for token in "abab"] == ["alice"] * 4
            assert (await get(http, "wrong")).status_code == 401
        assert runs == ["alice"]

    @pytest.mark.uncounted
    async def test_key_stores_one_response_per_user(self, cache, kind, inside):
        runs = []
        async with self.app(cache, kind, inside, runs, key=lambda request: request.user.display_name) as http:
            assert [(await get(http, token)).text for token in "abab"] == ["alice", "bob", "alice", "bob"]
            del TOKENS["a"]
            assert (await get(http)).status_code == 401
        assert runs == ["alice", "bob"]


async def test_starlette_endpoint_called_by_another_endpoint_is_a_miss(cache):
    inner = cache.response(fresh_for=60, shared=True)

    @inner
    async def answer(request):
        return PlainTextResponse("x")

    async def outer(request):
        return await answer(request)

    async with wrapped(cache, Starlette(routes=[Route("/x", outer)])) as http:
        assert (await why(http)).endswith("route")


async def test_starlette_endpoint_that_returns_no_response_raises_type_error(cache):
    async def answer(request):
        return "no response"

    app = Starlette(routes=[Route("/x", cache.response(fresh_for=60, shared=True)(answer))])
    async with wrapped(cache, app) as http:
        for _ in range(2):
            with pytest.raises(TypeError):
                await get(http)


async def test_bare_router_without_an_app_gets_hits(cache):
    async def answer(request):
        return PlainTextResponse("x")

    decorated = cache.response(fresh_for=60, shared=True)(answer)
    async with client(SWRMiddleware(Router([Route("/x", decorated)]), cache=cache)) as http:
        assert await states(http) == ["missing", "fresh"]


@LEFT_OPEN
async def test_base_http_middleware_around_and_inside_keeps_hits(cache):
    class Passes(BaseHTTPMiddleware):
        async def dispatch(self, request, call_next):
            return await call_next(request)

    app = app_with(cache, Counted().endpoint)
    app.add_middleware(Passes)
    app.add_middleware(SWRMiddleware, cache=cache)
    app.add_middleware(Passes)
    async with client(app) as http:
        assert await states(http, times=3) == ["missing", "fresh", "fresh"]


async def test_routes_beyond_the_remembered_number_still_get_hits(cache, monkeypatch):
    monkeypatch.setattr("swr.endpoints.admitting._MOST_ROUTES", 10)
    app = FastAPI(dependencies=GUARD)
    decorated = cache.response(fresh_for=60)(Counted().endpoint)
    for number in range(14):
        app.get(f"/x/{number}")(decorated)
    async with wrapped(cache, app) as http:
        for number in range(14):
            await get(http, path=f"/x/{number}")
        for number in range(0, 14, 3):
            assert state(await get(http, path=f"/x/{number}")) == (200, "fresh")


async def test_first_example_of_the_login_page_behaves_as_described():
    text = (Path(__file__).parent.parent / "docs" / "login.md").read_text()
    names: dict[str, Any] = {"__name__": "snippet"}
    exec(re.findall(r"^```python\n(.*?)^```", text, re.S | re.M)[0], names)
    async with names["cache"], client(names["api"]) as http:
        for expected in ("missing", "fresh"):
            assert state(await get(http, "a-token", "/rankings/ATL")) == (200, expected)
        assert state(await get(http, "b-token", "/rankings/ATL")) == (200, "fresh")
        assert (await get(http, "wrong", "/rankings/ATL")).status_code == 401
        for expected in ("missing", "fresh"):
            for token, user in (("a-token", "alice"), ("b-token", "bob")):
                found = await get(http, token, "/basket")
                assert (found.json(), found.headers["swr-state"]) == ({"of": user}, expected)

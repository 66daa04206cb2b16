"""Random apps as teams write them: users known in many ways, and the page one way or another about them."""

from contextvars import ContextVar
from typing import Annotated, Any

import anyio
import httpx
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response, Security
from fastapi.security import APIKeyCookie, APIKeyHeader, HTTPAuthorizationCredentials, HTTPBearer, SecurityScopes
from hypothesis import given, settings
from hypothesis import strategies as st
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.routing import Mount

from swr import Cache
from swr.middleware import Rule, SWRMiddleware
from swr.testing import FakeClock

current: ContextVar[Any] = ContextVar("user_of_a_team", default=None)
USERS = {"a": "alice", "b": "bob"}


def admitted(token: str | None) -> str:
    if token not in USERS:
        raise HTTPException(401)
    return USERS[token]


# -- who asks: a function that FastAPI resolves to the name of the user ---------------------------------------------


def by_bearer(found: Annotated[HTTPAuthorizationCredentials | None, Depends(HTTPBearer(auto_error=False))]) -> str:
    return admitted(found.credentials if found else None)


def by_key(key: Annotated[str | None, Security(APIKeyHeader(name="X-Team-Key", auto_error=False))]) -> str:
    return admitted(key)


def by_cookie(key: Annotated[str | None, Security(APIKeyCookie(name="team", auto_error=False))]) -> str:
    return admitted(key)


def by_field(x_real_ip: Annotated[str, Header()] = "") -> str:
    return admitted(x_real_ip)


def by_hand(request: Request) -> str:
    return admitted(request.headers.get("x-real-ip"))


def by_address(request: Request) -> str:
    return admitted(request.client.host)


def by_scopes(scopes: SecurityScopes, found: Annotated[str, Depends(by_bearer)]) -> str:
    return found + "".join(scopes.scopes)


def by_session(request: Request) -> str:
    return admitted(request.session.get("token"))


def by_middleware(request: Request) -> str:
    return admitted(request.state.token)


def by_authentication(request: Request) -> str:
    return admitted(request.user.display_name)


class ByObject:
    def __init__(self, role: str) -> None:
        self.role = role

    def __call__(self, user: Annotated[str, Depends(by_bearer)]) -> str:
        return user + self.role


class ByClass:
    def __init__(self, user: Annotated[str, Depends(by_bearer)]) -> None:
        self.user = user

    def __str__(self) -> str:
        return self.user


WAYS: dict[str, Any] = {
    "bearer": by_bearer, "key": by_key, "cookie": by_cookie, "field": by_field, "hand": by_hand, "address": by_address,
    "scopes": by_scopes, "session": by_session, "middleware": by_middleware, "authentication": by_authentication,
    "object": ByObject("!"), "class": ByClass,
}  # fmt: skip


# -- how the page comes to know of it -------------------------------------------------------------------------------


def endpoint_for(reach: str, way: Any) -> tuple[Any, list[Any]]:
    """Return an endpoint, and the guards of its route."""

    async def sets(request: Request, response: Response, user: Annotated[Any, Depends(way)]) -> None:
        current.set(str(user))
        request.state.user = str(user)
        response.headers["x-for"] = str(user)
        if reach == "path":
            request.scope["path_params"]["name"] = str(user)

    async def argument(name: str, user: Annotated[Any, Depends(way)]) -> str:
        return f"{name} for {user}"

    async def state(name: str, request: Request) -> str:
        return f"{name} for {request.state.user}"

    async def variable(name: str) -> str:
        return f"{name} for {current.get()}"

    async def path(name: str) -> str:
        return name

    async def nothing(name: str) -> str:
        return f"{name} for all"

    def plain(name: str) -> str:
        return f"{name} for all"

    endpoints = {
        "argument": argument,
        "state": state,
        "variable": variable,
        "path": path,
        "guard": nothing,
        "def": plain,
    }
    return endpoints[reach], [] if reach == "argument" else [Depends(way if reach in ("guard", "def") else sets)]


class Backend(AuthenticationBackend):
    async def authenticate(self, conn: Any) -> Any:
        token = conn.cookies.get("team")
        return (AuthCredentials(["authenticated"]), SimpleUser(token)) if token in USERS else None


async def reads_token(request: Request, call_next: Any) -> Any:
    request.state.token = request.headers.get("authorization", "")[7:] or request.cookies.get("team")
    if "session" in request.scope:
        request.session["token"] = request.cookies.get("team")
    return await call_next(request)


class Copies(Response):
    """Hands the request to another app."""

    def __init__(self, app: Any) -> None:
        super().__init__()
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.app({**scope}, receive, send)


def make(way: str, reach: str, place: str, terms: str, outside: bool, cache: Cache | None) -> Any:
    dependency = WAYS[way]
    endpoint, guards = endpoint_for(reach, dependency)
    if terms == "max-age" and way not in ("hand", "address", "session", "middleware", "authentication"):
        # What is read by hand needs `Vary` there.
        guards = [*guards, Depends(lives)]
    if cache is not None and terms in ("decorator", "shared"):
        word = {"shared": True} if terms == "shared" and reach in ("guard", "def") else {}
        endpoint = cache.response(fresh_for=60, stale_for=60, **word)(endpoint)
    app = FastAPI()
    if place in ("route", "forwarded"):
        app.get("/x/{name}", dependencies=guards)(endpoint)
    elif place == "router":
        router = APIRouter(dependencies=guards)
        router.get("/{name}")(endpoint)
        app.include_router(router, prefix="/x")
    elif place == "inclusion":
        router = APIRouter()
        router.get("/x/{name}")(endpoint)
        app.include_router(router, dependencies=guards)
    else:
        inner = FastAPI(dependencies=guards)
        inner.get("/{name}")(endpoint)
        app.mount("/x", inner if place == "mounted" else Starlette(routes=[Mount("/", inner)]))
    if place == "forwarded":
        front, behind = FastAPI(), app

        @front.get("/x/{name}")
        async def forward() -> Any:
            return Copies(behind)

        app = front
    rules = [Rule("/x/{name}", fresh_for=60, stale_for=60)] if terms == "rule" else []
    layers: list[Any] = []
    if way in ("session", "middleware"):
        layers.append((BaseHTTPMiddleware, {"dispatch": reads_token}))
    if way == "session":
        layers.append((SessionMiddleware, {"secret_key": "s"}))
    if way == "authentication":
        layers.append((AuthenticationMiddleware, {"backend": Backend()}))
    if cache is not None:
        layers.insert(0 if outside else len(layers), (SWRMiddleware, {"cache": cache, "rules": rules}))
    for layer, options in layers:
        app.add_middleware(layer, **options)
    return app


def lives(response: Response) -> None:
    response.headers["cache-control"] = "max-age=60"


requests = st.lists(st.tuples(st.sampled_from("aabbc"), st.booleans()), min_size=4, max_size=8)


@settings(max_examples=40, deadline=None)
@given(
    way=st.sampled_from([*WAYS]),
    reach=st.sampled_from(["argument", "state", "variable", "path", "guard", "def"]),
    place=st.sampled_from(["route", "router", "inclusion", "mounted", "deeper", "forwarded"]),
    terms=st.sampled_from(["rule", "decorator", "shared", "max-age"]),
    outside=st.booleans(),
    requests=requests,
)
def test_random_app_answers_each_user_as_it_would_without_cache(way, reach, place, terms, outside, requests):
    async def main() -> None:
        clock = FakeClock()
        async with Cache(clock=clock) as cache:
            apps = [make(way, reach, place, terms, outside, each) for each in (cache, None)]
            for token, waits in requests:
                fields = {}
                if way in ("bearer", "scopes", "object", "class", "middleware"):
                    fields["authorization"] = f"Bearer {token}"
                elif way == "key":
                    fields["x-team-key"] = token
                elif way in ("field", "hand"):
                    fields["x-real-ip"] = token
                elif way != "address":
                    fields["cookie"] = f"team={token}"
                found = []
                for app in apps:
                    transport = httpx.ASGITransport(app, client=(token, 1))
                    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
                        found.append(await http.get("/x/me", headers=fields))
                answer, expected = found
                assert (answer.status_code, answer.text) == (expected.status_code, expected.text)
                assert answer.headers.get("x-for") == expected.headers.get("x-for")
                if waits:
                    clock.advance(61)

    anyio.run(main)

"""Who gets whose answer: under swr's own terms a stored response goes only to requests with the same selecting input."""

import logging
import os
import subprocess
import sys
import time
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import APIRouter, Depends, FastAPI, Header, HTTPException, Request, Response, Security
from fastapi.security import (
    APIKeyCookie,
    APIKeyHeader,
    HTTPBasic,
    HTTPBearer,
    OAuth2PasswordBearer,
)
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, AuthenticationBackend, SimpleUser
from starlette.datastructures import Headers
from starlette.middleware import Middleware
from starlette.middleware.authentication import AuthenticationMiddleware
from starlette.middleware.sessions import SessionMiddleware

from swr import Cache, ConfigurationError
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import settle
from tests.web import App, client

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop; test_http and test_guarded run on both."""
    return "asyncio"


RULE = Rule("/{path:path}", fresh_for=60, stale_for=600)
TOKEN = "right"


def guard(x_token: Annotated[str, Header()]) -> None:
    if x_token != TOKEN:
        raise HTTPException(403)


def guard_by_string(x_token: "Annotated[str, Header()]") -> None:
    guard(x_token)


def language_of(scope):
    """Return the language that a client prefers, for `key=`."""
    return Headers(scope=scope).get("accept-language", "")[:2]


def language_and_address(scope):
    return language_of(scope), scope["client"][0]


class TokenHeaders(BaseModel):
    x_token: str


def guard_by_model(headers: Annotated[TokenHeaders, Header()]) -> None:
    guard(headers.x_token)


def guard_by_alias(token: Annotated[str, Header(alias="X-Token")]) -> None:
    guard(token)


def guard_by_validation_alias(token: Annotated[str, Header(validation_alias="X-Token")]) -> None:
    guard(token)


def guard_by_key(token: Annotated[str, Security(APIKeyHeader(name="X-Token"))]) -> None:
    guard(token)


def guard_by_request(request: Request) -> None:
    guard(request.headers.get("x-token", ""))


def on_the_route(app: FastAPI, dependency, answer) -> None:
    app.get("/x", dependencies=[Depends(dependency)])(answer)


def on_the_router(app: FastAPI, dependency, answer) -> None:
    router = APIRouter(dependencies=[Depends(dependency)])
    router.get("/x")(answer)
    app.include_router(router)


def on_the_include(app: FastAPI, dependency, answer) -> None:
    router = APIRouter()
    router.get("/x")(answer)
    app.include_router(router, dependencies=[Depends(dependency)])


def on_the_app(app: FastAPI, dependency, answer) -> None:
    app.router.dependencies.append(Depends(dependency))
    app.get("/x")(answer)


def on_a_mounted_app(app: FastAPI, dependency, answer) -> None:
    inner = FastAPI(dependencies=[Depends(dependency)])
    inner.get("/x")(answer)
    app.mount("/", inner)


def by_an_override(app: FastAPI, dependency, answer) -> None:
    def nothing() -> None: ...

    app.get("/x", dependencies=[Depends(nothing)])(answer)
    app.dependency_overrides[nothing] = dependency


PLACES = [on_the_route, on_the_router, on_the_include, on_the_app, on_a_mounted_app, by_an_override]
GUARDS = [
    guard,
    guard_by_string,
    guard_by_model,
    guard_by_alias,
    guard_by_validation_alias,
    guard_by_key,
    guard_by_request,
]


async def statuses(app, *tokens):
    async with client(app) as http:
        return [
            (await http.get("/x", headers={} if token is None else {"x-token": token})).status_code for token in tokens
        ]


# What is read from the request itself under the app's own terms needs `Vary` (RFC 9111 4.1).
@pytest.mark.uncounted
@pytest.mark.parametrize(
    ("dependency", "terms"),
    [
        (dependency, terms)
        for dependency in GUARDS
        for terms in ("rule", "decorator", "max-age")
        if terms != "max-age" or dependency is not guard_by_request
    ],
)
@pytest.mark.parametrize("place", PLACES)
async def test_guard_refuses_requests_without_the_right_token_after_a_stored_answer(cache, place, dependency, terms):
    app = FastAPI()

    async def answer(response: Response) -> str:
        if terms == "max-age":
            response.headers["cache-control"] = "max-age=60"
        return "secret"

    place(app, dependency, cache.response(fresh_for=60)(answer) if terms == "decorator" else answer)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    found = await statuses(app, TOKEN, TOKEN, None, "wrong", TOKEN)
    assert [status == 200 for status in found] == [True, True, False, False, True]


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "scheme",
    [
        APIKeyHeader(name="X-Key", auto_error=False),
        HTTPBearer(auto_error=False),
        HTTPBasic(auto_error=False),
        OAuth2PasswordBearer("token", auto_error=False),
        APIKeyCookie(name="key", auto_error=False),
    ],
    ids=lambda scheme: type(scheme).__name__,
)
@pytest.mark.parametrize("terms", ["rule", "decorator", "max-age"])
async def test_requests_with_different_credentials_of_a_scheme_get_different_answers(cache, scheme, terms):
    app = FastAPI()

    async def answer(response: Response, key: Annotated[object, Security(scheme)]) -> str:
        if terms == "max-age":
            response.headers["cache-control"] = "max-age=60"
        return f"for {key}"

    app.get("/x")(cache.response(fresh_for=60)(answer) if terms == "decorator" else answer)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE] if terms == "rule" else ())
    alice = {"x-key": "a", "authorization": "Bearer a", "cookie": "key=a"}
    bob = {"x-key": "b", "authorization": "Bearer b", "cookie": "key=b"}
    if isinstance(scheme, HTTPBasic):
        alice["authorization"], bob["authorization"] = "Basic YTph", "Basic Yjpi"
    name = {"APIKeyHeader": "x-key", "APIKeyCookie": "cookie"}.get(type(scheme).__name__, "authorization")
    async with client(app) as http:
        texts = [
            (await http.get("/x", headers=headers)).text
            for headers in ({name: alice[name]}, {name: bob[name]}, {}, {name: alice[name]}, {})
        ]
    assert texts[0] == texts[3]
    assert texts[2] == texts[4]
    assert len(set(texts)) == 3


class TestUnknownFields:
    async def test_request_with_an_unknown_field_bypasses_the_cache(self, cache):
        app = App()
        async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
            for _ in range(2):
                kept_out = await http.get("/x", headers={"x-app-version": "1"})
                assert kept_out.headers["cache-status"] == 'swr; fwd=bypass; detail="field x-app-version"'
            assert (await http.get("/x")).headers["swr-state"] == "missing"
            assert (await http.get("/x")).headers["swr-state"] == "fresh"
            kept_out = await http.get("/x", headers={"x-app-version": "1"})
            assert kept_out.headers["cache-status"] == 'swr; fwd=bypass; detail="field x-app-version"'
        assert app.runs == 4

    async def test_request_with_an_unknown_field_hits_a_response_with_max_age(self, cache):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            await http.get("/x", headers={"x-app-version": "1"})
            assert (await http.get("/x")).headers["swr-state"] == "fresh"
            assert (await http.get("/x", headers={"x-app-version": "2"})).headers["swr-state"] == "fresh"
        assert app.runs == 1

    @pytest.mark.parametrize("where", ["middleware", "rule"])
    async def test_requests_that_differ_in_an_ignored_field_share_a_response(self, cache, where):
        app, fields = App(), ("X-App-Version",)
        rule = Rule("/{path:path}", fresh_for=60, ignore_fields=fields if where == "rule" else ())
        middleware = SWRMiddleware(app, cache, rules=[rule], ignore_fields=fields if where == "middleware" else ())
        async with client(middleware) as http:
            await http.get("/x", headers={"x-app-version": "1"})
            assert (await http.get("/x", headers={"x-app-version": "2"})).headers["swr-state"] == "fresh"
            assert (await http.get("/x")).headers["swr-state"] == "fresh"
        assert app.runs == 1

    async def test_requests_that_differ_in_a_field_ignored_by_the_decorator_share_a_response(self, cache):
        app, runs = FastAPI(), []

        @app.get("/x")
        @cache.response(fresh_for=60, ignore_fields=("X-App-Version",))
        async def answer() -> int:
            runs.append(1)
            return len(runs)

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            for version in ("1", "2", "3"):
                assert (await http.get("/x", headers={"x-app-version": version})).text == "1"

    async def test_field_declared_by_the_route_selects_the_response(self, cache):
        app = FastAPI()

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def answer(x_page: Annotated[str, Header()] = "") -> str:
            return x_page

        app.add_middleware(SWRMiddleware, cache=cache)
        async with client(app) as http:
            for state in ("missing", "fresh"):
                for page in ("a", "b", ""):
                    found = await http.get("/x", headers={"x-page": page} if page else {})
                    assert (found.json(), found.headers["swr-state"]) == (page, state)

    @pytest.mark.uncounted
    async def test_unknown_field_is_logged_once_with_its_remedy(self, cache, caplog):
        async with client(SWRMiddleware(App(), cache, rules=[RULE])) as http:
            for number in range(120):
                await http.get("/x", headers={f"x-odd-{number // 2}": "1"})
        lines = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert len(lines) == 50
        assert "'x-odd-0'" in lines[0]
        assert "ignore_fields=" in lines[0]

    async def test_equal_requests_share_a_run_and_different_ones_do_not(self, cache):
        app = FastAPI()
        runs, gate = [], anyio.Event()

        @app.get("/x")
        @cache.response(fresh_for=60)
        async def answer(x_page: Annotated[str, Header()] = "") -> str:
            runs.append(x_page)
            await gate.wait()
            return x_page

        app.add_middleware(SWRMiddleware, cache=cache)
        texts = []
        async with client(app) as http, anyio.create_task_group() as group:

            async def ask(page):
                texts.append((page, (await http.get("/x", headers={"x-page": page})).json()))

            for page in ("a", "a", "b", "b"):
                group.start_soon(ask, page)
            while len(runs) < 2:
                await anyio.sleep(0.01)
            gate.set()
        assert all(page == text for page, text in texts)
        assert sorted(runs) == ["a", "b"]


class TestSelectingFields:
    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        "name", ["origin", "x-forwarded-host", "x-forwarded-proto", "x-forwarded-prefix", "hx-request", "save-data"]
    )
    async def test_each_value_of_a_selecting_field_has_its_own_response(self, cache, name):
        async def app(scope, receive, send):
            value = dict(scope["headers"]).get(name.encode(), b"none")
            await App(body=value)(scope, receive, send)

        async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
            for state in ("missing", "fresh"):
                for value in ("a", "b", "none"):
                    found = await http.get("/x", headers={} if value == "none" else {name: value})
                    assert (found.text, found.headers["swr-state"]) == (value, state)

    @pytest.mark.uncounted
    async def test_hundred_values_of_a_selecting_field_do_not_evict_another_response(self, cache):
        app = App()
        async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
            await http.get("/x")
            for number in range(100):
                await http.get("/x", headers={"origin": f"http://{number}"})
            assert (await http.get("/x")).headers["swr-state"] == "fresh"

    async def test_client_address_in_forwarded_does_not_select_a_response(self, cache):
        app = App()
        async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
            await http.get("/x", headers={"forwarded": "for=1.1.1.1;proto=https, for=10.0.0.1"})
            found = await http.get("/x", headers={"forwarded": "For=2.2.2.2;proto=https"})
            assert found.headers["swr-state"] == "fresh"
            assert (await http.get("/x", headers={"forwarded": "proto=http"})).headers["swr-state"] == "missing"

    async def test_background_refresh_has_the_selecting_fields(self, cache, clock):
        async def app(scope, receive, send):
            await App(body=dict(scope["headers"]).get(b"origin", b"none"))(scope, receive, send)

        async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
            for advance in (0, 61, 0):
                clock.advance(advance)
                for origin in ("http://a", "http://b"):
                    assert (await http.get("/x", headers={"origin": origin})).text == origin
                await anyio.sleep(0.02)


class TestCredentials:
    @pytest.mark.uncounted
    @pytest.mark.parametrize(
        "name",
        [
            "authorization", "x-api-key", "api-key", "x-auth-token", "x-access-token", "private-token",
            "proxy-authorization", "x-forwarded-user", "x-auth-request-email", "x-amzn-oidc-identity",
            "cf-access-jwt-assertion", "x-goog-iap-jwt-assertion", "x-ms-client-principal-id", "x-client-cert",
        ],
    )  # fmt: skip
    async def test_request_with_credentials_hits_only_public_responses(self, cache, name):
        for control, states in (
            (b"", ["missing", "missing", "missing", "fresh", "missing"]),
            (b"max-age=60", ["missing", "missing", "missing", "fresh", "missing"]),
            (b"public, max-age=60", ["missing", "fresh", "fresh", "fresh", "fresh"]),
        ):
            app = App([(b"cache-control", control)])
            path = f"/{len(control)}"
            async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
                found = [
                    (await http.get(path, headers={name: value} if value else {})).headers["swr-state"]
                    for value in ("a", "b", "", "", "a")
                ]
            assert found == states

    @pytest.mark.parametrize("where", ["rule", "decorator"])
    async def test_each_user_has_a_separate_response_with_credentials_vary(self, cache, where):
        app, runs = FastAPI(), []

        async def answer(request: Request) -> str:
            runs.append(1)
            return request.headers.get("authorization", "nobody")

        if where == "decorator":
            app.get("/x")(cache.response(fresh_for=60, credentials="vary")(answer))
            rules = []
        else:
            app.get("/x")(answer)
            rules = [Rule("/x", fresh_for=60, credentials="vary")]
        app.add_middleware(SWRMiddleware, cache=cache, rules=rules)
        async with client(app) as http:
            for state in ("missing", "fresh"):
                for user in ("Bearer a", "Bearer b", "nobody"):
                    found = await http.get("/x", headers={} if user == "nobody" else {"authorization": user})
                    assert (found.json(), found.headers["swr-state"]) == (user, state)
        assert len(runs) == 3

    @pytest.mark.parametrize("options", [{"key": language_and_address}, {"credentials": "vary"}])
    async def test_refresh_has_the_fields_covered_by_key_or_credentials(self, cache, clock, options):
        seen = []

        async def app(scope, receive, send):
            fields = Headers(scope=scope)
            seen.append(fields.get("authorization"))
            told = [(scope["client"] or ["none"])[0], *map(fields.get, ("accept-language", "x-app", "x-release"))]
            await App(body=" ".join(map(str, told)).encode())(scope, receive, send)

        rule = Rule("/x", fresh_for=60, stale_for=600, ignore_fields=("X-App",), **options)
        middleware = SWRMiddleware(app, cache, [rule], ignore_fields=("X-Release",))
        fields = {"accept-language": "de-AT", "x-app": "7", "x-release": "8"}
        if "credentials" in options:
            fields["authorization"] = "Bearer a"
        async with client(middleware) as http:
            for state in ("missing", "stale", "fresh"):
                answer = await http.get("/x", headers=fields)
                assert (answer.text, answer.headers["swr-state"]) == ("127.0.0.1 de-AT 7 8", state)
                await settle()
                clock.advance(61 if state == "missing" else 1)
        assert seen == [fields.get("authorization")] * 2

    @pytest.mark.parametrize("options", [{"key": language_of}, {"credentials": "vary"}])
    async def test_refresh_lacks_fields_of_the_client_that_no_option_covers(self, cache, clock, options):
        app = App([(b"cache-control", b"public, max-age=60, stale-while-revalidate=600")])
        middleware = SWRMiddleware(app, cache, [Rule("/x", **options)])
        known = {"authorization": "Bearer a"}
        others = {"x-unknown": "1", "range": "bytes=0-0", "cache-control": "max-stale"}
        async with client(middleware) as http:
            await http.get("/x", headers=known)
            clock.advance(61)
            await http.get("/x", headers=known | others)
            await settle()
        assert len(app.scopes) == 2
        refreshed = Headers(scope=app.scopes[1])
        assert not any(name in refreshed for name in others)
        assert ("authorization" in refreshed) == ("credentials" in options)

    @pytest.mark.parametrize("make", [lambda: Rule("/x", credentials="all"), lambda: Rule("/x", key="tenant")])
    async def test_invalid_options_of_a_rule_are_rejected(self, make):
        with pytest.raises(ConfigurationError):
            make()

    async def test_invalid_options_of_decorator_middleware_and_cache_are_rejected(self, cache):
        with pytest.raises(ConfigurationError, match="credentials"):
            cache.response(fresh_for=60, credentials="all")
        with pytest.raises(ConfigurationError, match="ignore_fields"):
            cache.response(fresh_for=60, ignore_fields="x-a")
        with pytest.raises(ConfigurationError, match="key="):
            SWRMiddleware(App(), cache, key="tenant")
        with pytest.raises(ConfigurationError, match="secret"):
            Cache(secret=b"x" * 65)


class Backend(AuthenticationBackend):
    async def authenticate(self, conn):
        user = conn.headers.get("user-agent")
        return (AuthCredentials(["authenticated"]), SimpleUser(user)) if user != "nobody" else None


class TestSessionsAndUsers:
    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("control", ["", "max-age=60"])
    async def test_page_that_uses_the_session_is_not_shared(self, cache, inside, control):
        app, tokens = FastAPI(), []

        @app.get("/x")
        async def page(request: Request, response: Response) -> str:
            if control:
                response.headers["cache-control"] = control
            tokens.append(str(len(tokens)))
            return request.session.setdefault("csrf", tokens[-1])

        layers = [
            Middleware(SWRMiddleware, cache=cache, rules=[RULE]),
            Middleware(SessionMiddleware, secret_key="s"),
        ]
        for layer in layers if not inside else reversed(layers):
            app.add_middleware(layer.cls, **layer.kwargs)
        texts = []
        for _ in range(2):
            async with client(app) as http:
                response = await http.get("/x")
            texts.append(response.json())
            # The request has no credentials that its sender could look for.
            reason = "set-cookie" if inside else "session"
            assert response.headers["cache-status"] == f'swr; fwd=uri-miss; detail="{reason}"'
        assert texts == ["0", "1"]

    @pytest.mark.parametrize("inside", [True, False])
    @pytest.mark.parametrize("control", ["", "max-age=60"])
    async def test_page_with_the_name_of_the_user_is_not_shared(self, cache, inside, control):
        app = FastAPI()

        @app.get("/x")
        async def page(request: Request, response: Response) -> str:
            if control:
                response.headers["cache-control"] = control
            return request.user.display_name

        layers = [
            Middleware(SWRMiddleware, cache=cache, rules=[RULE]),
            Middleware(AuthenticationMiddleware, backend=Backend()),
        ]
        for layer in layers if not inside else reversed(layers):
            app.add_middleware(layer.cls, **layer.kwargs)
        async with client(app) as http:
            texts = [(await http.get("/x", headers={"user-agent": user})).json() for user in ("alice", "bob")]
        assert texts == ["alice", "bob"]

    async def test_authenticated_user_does_not_get_the_page_of_an_anonymous_one(self, cache):
        app = FastAPI()

        @app.get("/x")
        async def page(request: Request) -> str:
            return request.user.display_name

        app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
        app.add_middleware(AuthenticationMiddleware, backend=Backend())
        async with client(app) as http:
            texts = [
                (await http.get("/x", headers={"user-agent": user})).json() for user in ("nobody", "bob", "nobody")
            ]
        assert texts == ["", "bob", ""]


class TestAddress:
    @pytest.mark.parametrize("change", ["path", "root_path"])
    async def test_path_or_root_path_changed_by_an_outer_middleware_selects_the_response(self, cache, change):
        async def app(scope, receive, send):
            await App(body=f"{scope['root_path']} {scope['path']}".encode())(scope, receive, send)

        inner = SWRMiddleware(app, cache, rules=[RULE])

        async def outer(scope, receive, send):
            if scope["type"] == "http":
                tenant = dict(scope["headers"])[b"user-agent"].decode()
                scope = {**scope, change: f"/{tenant}{scope['path']}" if change == "path" else f"/{tenant}"}
            await inner(scope, receive, send)

        async with client(outer) as http:
            for state in ("missing", "fresh", "fresh"):
                for tenant in ("a", "b"):
                    found = await http.get("/x", headers={"user-agent": tenant})
                    assert f"/{tenant}" in found.text
                    assert found.headers["swr-state"] == state

    @pytest.mark.parametrize("path", ["/caf%C3%A9", "/a%2Fb", "/%FF", "/a%20b", "/a+b;c=1"])
    async def test_encoded_path_hits_its_stored_response(self, cache, path):
        app = App([(b"cache-control", b"max-age=60")])
        async with client(SWRMiddleware(app, cache)) as http:
            for state in ("missing", "fresh"):
                assert (await http.get(path)).headers["swr-state"] == state

    @pytest.mark.parametrize("where", ["middleware", "rule"])
    async def test_key_function_selects_the_response_and_refreshes_keep_its_scope(self, cache, clock, where):
        async def app(scope, receive, send):
            await App(body=scope["state"]["tenant"].encode())(scope, receive, send)

        def tenant_of(scope):
            return scope["state"]["tenant"]

        rule = Rule("/x", fresh_for=60, stale_for=600, key=tenant_of if where == "rule" else None)
        inner = SWRMiddleware(app, cache, rules=[rule], key=tenant_of if where == "middleware" else None)

        async def outer(scope, receive, send):
            if scope["type"] == "http":
                scope["state"] = {"tenant": dict(scope["headers"])[b"user-agent"].decode()}
            await inner(scope, receive, send)

        async with client(outer) as http:
            for state, advance in (("missing", 0), ("fresh", 0), ("stale", 61), ("fresh", 0)):
                clock.advance(advance)
                for tenant in ("a", "b"):
                    found = await http.get("/x", headers={"user-agent": tenant})
                    assert (found.text, found.headers["swr-state"]) == (tenant, state)
                await anyio.sleep(0.02)


class TestSecrets:
    async def test_values_of_selecting_fields_do_not_appear_in_keys(self, cache):
        app = App([(b"vary", b"x-token"), (b"cache-control", b"max-age=60")])
        rules = [Rule("/x", fresh_for=60, cookies=("session",))]
        async with client(SWRMiddleware(app, cache, rules=rules)) as http:
            await http.get(
                "/x", headers={"x-token": "hidden1", "cookie": "session=hidden2", "origin": "http://hidden3"}
            )
        assert len(cache.local.slots) == 2
        assert not any("hidden" in key for key in cache.local.slots)

    async def test_keys_differ_for_different_secrets(self):
        keys = []
        for secret in ("", "one", b"two"):
            async with Cache(secret=secret) as cache, client(SWRMiddleware(App(), cache, rules=[RULE])) as http:
                await http.get("/x", headers={"origin": "http://a"})
                keys += list(cache.local.slots)
        assert len(set(keys)) == 3


@pytest.mark.parametrize(("workers", "warns"), [("", False), ("1", False), ("4", True), ("many", False)])
async def test_memory_cache_warns_if_web_concurrency_exceeds_one(caplog, monkeypatch, workers, warns):
    monkeypatch.setenv("WEB_CONCURRENCY", workers)
    app = Starlette()
    app.add_middleware(SWRMiddleware, cache=Cache())
    messages = [{"type": "lifespan.startup"}, {"type": "lifespan.shutdown"}]

    async def receive():
        return messages.pop(0)

    async def send(message):
        assert message["type"].endswith(".complete")

    await app({"type": "lifespan", "asgi": {"version": "3.0"}, "state": {}}, receive, send)
    assert ("invalidations do not reach the others" in caplog.text) is warns


ALONE = """
from starlette.applications import Starlette
from swr import Cache
from swr.middleware import SWRMiddleware

app = Starlette()
app.add_middleware(SWRMiddleware, cache=Cache())
"""


@pytest.mark.parametrize(("workers", "warns"), [(1, False), (3, True)])
def test_memory_cache_warns_in_all_but_the_first_of_several_gunicorn_workers(tmp_path, workers, warns):
    pytest.importorskip("gunicorn")
    (tmp_path / "alone.py").write_text(ALONE)
    log = tmp_path / "log"
    environment = {name: value for name, value in os.environ.items() if name != "WEB_CONCURRENCY"}
    environment["PYTHONPATH"] = os.pathsep.join([os.getcwd(), *sys.path])
    command = [sys.executable, "-m", "gunicorn", "--chdir", str(tmp_path), "--bind", "127.0.0.1:0", "alone:app"]
    command += ["--workers", str(workers), "--worker-class", "uvicorn.workers.UvicornWorker"]
    with log.open("w") as output:
        server = subprocess.Popen(command, stdout=output, stderr=output, env=environment)
    try:
        deadline = time.monotonic() + 60
        while log.read_text().count("Application startup complete") < workers:
            assert server.poll() is None, log.read_text()
            assert time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
    finally:
        server.terminate()
        server.wait()
    # The first worker cannot know of the others.
    assert log.read_text().count("invalidations do not reach the others") == (workers - 1 if warns else 0)


async def test_catch_all_rule_does_not_store_health_unless_another_rule_names_it(cache):
    for rules, state in (([RULE], "missing"), ([Rule("/health", fresh_for=60), RULE], "fresh")):
        async with client(SWRMiddleware(App(), cache, rules=rules)) as http:
            await http.get("/health")
            assert (await http.get("/health")).headers["swr-state"] == state
            await http.get("/other")
            assert (await http.get("/other")).headers["swr-state"] == "fresh"


async def test_decorator_without_visible_route_shares_only_after_the_guard_admits(cache):
    app, runs = FastAPI(), []

    @app.get("/x", dependencies=[Depends(guard)])
    @cache.response(fresh_for=60)
    async def answer() -> str:
        runs.append(1)
        return "secret"

    class Copies:
        def __init__(self, app):
            self.app = app

        async def __call__(self, scope, receive, send):
            await self.app(dict(scope), receive, send)

    app.add_middleware(Copies)
    app.add_middleware(SWRMiddleware, cache=cache, ignore_fields=("X-Token",))
    found = await statuses(app, TOKEN, None, TOKEN)
    assert [status == 200 for status in found] == [True, False, True]
    # The dependencies have refused the one without a token.
    assert len(runs) == 1


@pytest.mark.uncounted
async def test_request_with_60_000_fields_is_answered_in_time(cache):
    app = App()
    lines = [("x-odd", "1")] * 20_000 + [("origin", "a")] * 20_000 + [("if-none-match", '"a"')] * 20_000
    async with client(SWRMiddleware(app, cache, rules=[RULE])) as http:
        with anyio.fail_after(60):
            await http.send(httpx.Request("GET", "http://test/x", headers=lines))

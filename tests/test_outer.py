"""What middleware around swr sets for some requests selects: those have no part in what is stored for the others."""

import asyncio
from contextvars import Context, ContextVar, copy_context
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials
from starlette.routing import Route

from swr.http.request import plain_url
from swr.middleware import Rule, SWRMiddleware
from swr.middleware.usual import Usual
from tests.fleet import settle
from tests.web import http_scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop."""
    return "asyncio"


RULE = Rule("/x", fresh_for=60, stale_for=600)
TENANT: ContextVar[str] = ContextVar("tenant", default="none")
PLACES = ("state", "scope", "variable")


class Unlike:
    """Cannot be compared, as an array cannot."""

    def __eq__(self, other: object) -> bool:
        raise ValueError("an array has no truth")

    __hash__ = None


class User:
    """Of another kind than Starlette's."""


async def plain_answer(request):
    """Return which of some names in the scope holds something."""
    names = [name for name in ("preview", "auth", "user") if request.scope.get(name)]
    return JSONResponse(" ".join(names) if not isinstance(request.scope.get("auth"), AuthCredentials) else "")


def app_with(cache, place, *, takes=True, own="", **options):
    """Return an app, its runs, and how to ask it: with what middleware around swr sets, or None."""
    app, runs = FastAPI(), []

    @app.get("/x")
    async def endpoint(request: Request) -> Any:
        scope, tenant = request.scope, "none"
        if takes:
            taken = {"state": getattr(request.state, "tenant", "none"), "scope": scope.get("tenant", "none")}
            tenant = taken.get(place, TENANT.get())
        runs.append(tenant)
        text = str(tenant)
        return JSONResponse(text, headers={"cache-control": own}) if own else text

    inner = SWRMiddleware(app, cache, rules=[] if own else [RULE], **options)

    async def ask(tenant=None):
        async def outer(scope, receive, send):
            if tenant is not None and place == "state":
                scope["state"] = {"tenant": tenant}
            elif tenant is not None and place == "scope":
                scope["tenant"] = tenant
            elif tenant is not None:
                TENANT.set(tenant)
            await inner(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
            # A server gives each request a context of its own.
            found = await asyncio.create_task(http.get("/x"), context=Context())
        return found.json(), found.headers["swr-state"]

    return runs, ask


@pytest.mark.parametrize("place", PLACES)
async def test_a_tenant_of_some_requests_gets_nothing_that_is_stored_for_those_without(cache, clock, place):
    _, ask = app_with(cache, place)
    assert [await ask() for _ in range(3)] == [("none", "missing"), ("none", "fresh"), ("none", "fresh")]
    for tenant in ("a", "b", "a"):
        assert await ask(tenant) == (tenant, "missing")
    # Nor do they keep the others from what is stored.
    assert await ask() == ("none", "fresh")
    clock.advance(61)
    assert await ask() == ("none", "stale")
    await settle()
    assert await ask("a") == ("a", "missing")
    assert await ask() == ("none", "fresh")


@pytest.mark.parametrize("place", ["state", "scope"])
async def test_the_app_shares_with_all_who_have_what_it_does_not_take(cache, clock, place):
    runs, ask = app_with(cache, place, takes=False)
    asked = [await ask(object()) for _ in range(3)]
    assert [state for _, state in asked] == ["missing", "fresh", "fresh"]
    clock.advance(61)
    assert (await ask(object()))[1] == "stale"
    await settle()
    assert (await ask(object()))[1] == "fresh"
    assert len(runs) == 2


@pytest.mark.parametrize("place", PLACES)
async def test_a_response_with_a_lifetime_of_its_own_is_kept_apart_and_stored(cache, place):
    _, ask = app_with(cache, place, own="max-age=60")
    assert [await ask(tenant) for tenant in (None, "a", None, "a")] == [
        ("none", "missing"),
        ("a", "missing"),
        ("none", "fresh"),
        ("a", "fresh"),
    ]


async def test_a_request_with_a_value_that_cannot_be_compared_is_not_plain():
    usual, scope = Usual(lambda scope: (), Context()), http_scope("/x")
    scope["state"], usual.state, usual.size = {"model": Unlike()}, {"model": Unlike()}, len(scope) + 1
    assert plain_url(scope, usual) == (None, None)
    usual.state = {**scope["state"]}
    assert plain_url(scope, usual)[0] is not None


@pytest.mark.parametrize("more", [{}, {"state": {}}], ids=["no state", "state"])
async def test_the_look_of_a_usual_request_is_learned_once(more):
    looks = []
    usual = Usual(lambda scope: looks.append(scope) or (), copy_context())
    for _ in range(3):
        assert plain_url(http_scope("/x", **more), usual)[0] is not None
    assert len(looks) == 1


@pytest.mark.parametrize(("others", "is_plain"), [(62, True), (63, False)])
async def test_a_request_with_many_fields_of_which_one_selects_is_not_plain(others, is_plain):
    scope = http_scope("/x")
    scope["headers"] = [*scope["headers"], (b"origin", b"http://a"), *[(b"accept", b"*/*")] * others]
    assert (plain_url(scope, Usual(lambda scope: (), Context()))[0] is not None) is is_plain


async def test_an_identifier_in_the_scope_does_not_pass_for_nothing(cache):
    """Both scopes are of one size."""
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> Any:
        return request.scope.get("tenant", "none")

    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(**beside):
        async def outer(scope, receive, send):
            scope.update(beside)
            await inner(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
            return (await http.get("/x")).json()

    assert [await ask(request_id="1") for _ in range(3)] == ["none"] * 3
    assert await ask(tenant="a") == "a"


async def test_a_call_from_within_the_process_does_not_pass_for_a_servers_request(cache):
    """`ASGITransport` gives no state, so its scope with a name of middleware is as large as a server's without one."""
    app = Starlette(routes=[Route("/x", plain_answer)])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(**beside):
        async def outer(scope, receive, send):
            scope.update(beside)
            await inner(scope, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
            # The variables of the cache's own context are set for all requests.
            return (await http.get("/x")).json()

    ambient = inner.config.ambient
    for beside, right in [({"preview": 1}, "preview"), ({"auth": {"sub": "ann"}}, "auth"), ({"user": User()}, "user")]:
        for _ in range(2):
            assert await asyncio.create_task(ask(state={}), context=ambient.copy()) == ""
        assert await asyncio.create_task(ask(**beside), context=ambient.copy()) == right


async def test_claims_that_middleware_leaves_in_the_scope_are_those_of_one_user(cache):
    app = Starlette(routes=[Route("/x", plain_answer)])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(auth):
        async def outer(scope, receive, send):
            await inner({**scope, "auth": auth}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
            found = await http.get("/x")
        return found.json(), found.headers["swr-state"]

    assert [await ask({"sub": name}) for name in ("ann", "bob", "ann")] == [("auth", "missing")] * 3
    assert [await ask(nobody) for nobody in (None, {}, AuthCredentials())] == [
        ("", "missing"),
        ("", "fresh"),
        ("", "fresh"),
    ]

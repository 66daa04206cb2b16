"""What middleware around swr sets for some requests selects: those have no part in what is stored for the others."""

import asyncio
import copy
import operator
import sys
import threading
import time
from collections import ChainMap
from contextvars import Context, ContextVar, copy_context
from typing import Any

import httpx
import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.responses import PlainTextResponse
from starlette.routing import Route

from swr import Cache
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


# Ways to take what middleware around swr has left, from the scope or its state.
TAKING = {
    "get": lambda items: items.get("tenant"),
    "in": lambda items: "tenant" in items,
    "copy": lambda items: items.copy().get("tenant"),
    "copied by `copy`": lambda items: copy.copy(items).get("tenant"),
    "dict": lambda items: dict(items).get("tenant"),
    "unpacked": lambda items: {**items}.get("tenant"),
    "united": lambda items: (items | {"x": 1}).get("tenant"),
    "united with it": lambda items: ({"x": 1} | items).get("tenant"),
    "text": lambda items: str("'a'" in str(items)),
    "compared": lambda items: items == {**items, "tenant": "a"},
    "compared otherwise": lambda items: items != {**items, "tenant": "a"},
    "names": lambda items: [items[name] for name in items if name == "tenant"],
    "reversed": lambda items: [items[name] for name in reversed(items) if name == "tenant"],
    "popped": lambda items: items.pop("tenant", None),
    "values": lambda items: "a" in [value for value in items.values() if isinstance(value, str)],
    "items": lambda items: [value for name, value in items.items() if name == "tenant"],
    "mapping": lambda items: ChainMap({}, items).get("tenant"),
    "by name": operator.itemgetter("tenant"),
}


def around(app, **beside):
    """Return an app around another one that puts something into the scope; into its state: `state`."""

    async def outer(scope, receive, send):
        await app({**scope, "state": {}, **beside}, receive, send)

    return outer


async def ask_as(app, **beside):
    """Return an answer, and its state of swr, to a request with what middleware around swr has put into the scope."""
    async with httpx.AsyncClient(transport=httpx.ASGITransport(around(app, **beside)), base_url="http://test") as http:
        found = await asyncio.create_task(http.get("/x"), context=Context())
    return found.text, found.headers.get("swr-state")


def app_that_takes(look):
    """Return an app with middleware that answers by what it takes."""
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> Any:
        return request.state.found

    async def middleware(scope, receive, send):
        try:
            text = str(look(scope))
        except KeyError:
            text = "none"
        scope["state"]["found"] = text
        await app(scope, receive, send)

    return middleware


@pytest.mark.parametrize("place", ["state", "scope"])
@pytest.mark.parametrize("name", TAKING)
async def test_however_the_app_takes_it_what_middleware_around_swr_has_set_is_not_shared(cache, name, place):
    app = app_that_takes(lambda scope: TAKING[name](scope["state"] if place == "state" else scope))
    inner = SWRMiddleware(app, cache, rules=[RULE])
    for tenant in ("a", "b", "a", ""):
        beside = {"tenant": tenant} if tenant else {}
        beside = {"state": beside} if place == "state" else beside
        # It may change what it gets.
        right, _ = await ask_as(app, **copy.deepcopy(beside))
        assert await ask_as(inner, **beside) == (right, "missing")


@pytest.mark.parametrize("name", ["_user", "fastapi_user", "django_user", "http.user"])
async def test_a_name_of_middleware_is_not_taken_for_one_of_a_framework(cache, name):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope.get(name)), cache, rules=[RULE])
    assert [(await ask_as(inner, **{name: value}))[0] for value in "aba"] == ['"a"', '"b"', '"a"']


@pytest.mark.parametrize("place", ["scope", "state"])
async def test_what_the_app_has_put_in_its_place_is_the_apps_own(cache, place):
    def take(scope):
        own = scope if place == "scope" else scope["state"]
        own["tenant"] = "all"
        return own["tenant"]

    inner = SWRMiddleware(app_that_takes(take), cache, rules=[RULE])
    besides = [{"tenant": tenant} if place == "scope" else {"state": {"tenant": tenant}} for tenant in "ab"]
    assert [await ask_as(inner, **beside) for beside in besides] == [('"all"', "missing"), ('"all"', "fresh")]


async def test_an_app_of_another_framework_may_take_whatever_middleware_around_swr_has_set(cache, monkeypatch):
    """swr does not see where such an app looks."""
    for name in ("fastapi", "starlette.applications"):
        monkeypatch.delitem(sys.modules, name)

    async def app(scope, receive, send):
        await PlainTextResponse(scope["state"].get("tenant", "none"))(scope, receive, send)

    inner = SWRMiddleware(app, cache, rules=[RULE])
    asked = [("a", "missing"), ("b", "missing"), ("a", "missing"), ("none", "missing"), ("none", "fresh")]
    for tenant, state in asked:
        beside = {} if tenant == "none" else {"state": {"tenant": tenant}}
        assert await ask_as(inner, **beside) == (tenant, state)


async def test_what_the_app_changes_in_its_scope_and_state_middleware_around_swr_finds_changed(cache):
    def change(scope):
        for items in (scope, scope["state"]):
            items |= {"mine": 1}
            items.update(other=2)
            assert items.pop("none", "nothing") == "nothing"
            with pytest.raises(KeyError):
                items.pop("none")
            assert (items.pop("tenant"), items.setdefault("third", 3), "tenant" in items) == ("a", 3, False)
            del items["other"]
        return scope["state"]["mine"]

    state = {"tenant": "a"}

    async def outer(scope, receive, send):
        scope.update(tenant="a", state=state)
        await SWRMiddleware(app_that_takes(change), cache, rules=[RULE])(scope, receive, send)
        found.extend(
            {name: items.get(name) for name in ("mine", "other", "tenant", "third")} for items in (scope, state)
        )

    found: list[dict[str, Any]] = []
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        assert (await http.get("/x")).json() == "1"
    assert found == [{"mine": 1, "other": None, "tenant": None, "third": 3}] * 2


@pytest.mark.parametrize("takes", [True, False])
async def test_the_event_of_a_function_in_the_scope_is_shared_with_nobody(cache, takes):
    """As Mangum leaves it, with who asks in it, for AWS Lambda."""

    def look(scope):
        return scope["aws.event"]["sub"] if takes else scope["path"]

    inner = SWRMiddleware(app_that_takes(look), cache, rules=[RULE])

    async def function(scope, receive, send):
        headers = [[name, value] for name, value in scope["headers"]]
        beside = {"aws.event": {"sub": next(users)}, "aws.context": object()}
        await inner({**scope, "headers": headers, "raw_path": None, **beside}, receive, send)

    users = iter("aba")
    found = [await ask_as(function) for _ in range(3)]
    if takes:
        assert found == [('"a"', "missing"), ('"b"', "missing"), ('"a"', "missing")]
    else:
        assert found == [('"/x"', "missing"), ('"/x"', "fresh"), ('"/x"', "fresh")]


async def test_the_number_of_names_in_a_state_is_what_middleware_around_swr_has_made_it(cache, clock):
    inner = SWRMiddleware(app_that_takes(lambda scope: len(scope["state"])), cache, rules=[RULE])
    assert [await ask_as(inner, state={"tenant": "a"}) for _ in range(2)] == [('"1"', "missing")] * 2
    # A background run gets no tenant.
    assert [await ask_as(inner) for _ in range(2)] == [('"0"', "missing"), ('"0"', "fresh")]


class Guest:
    """Has not logged in, and is somebody anyway: a cart has his number."""

    is_authenticated = False

    def __init__(self, number: str) -> None:
        self.number = number


class Slotted:
    __slots__ = ("number",)
    is_authenticated = False

    def __init__(self, number: str) -> None:
        self.number = number


class LazySession:
    """Holds nothing until somebody asks."""

    def __init__(self, number: str) -> None:
        self.number = number

    def __len__(self) -> int:
        return 0


@pytest.mark.parametrize("kind", [Guest, Slotted, LazySession])
async def test_a_guest_with_a_number_and_a_session_that_loads_late_are_those_of_one_client(cache, kind):
    place = "session" if kind is LazySession else "user"
    inner = SWRMiddleware(app_that_takes(lambda scope: scope[place].number), cache, rules=[RULE])
    assert [(await ask_as(inner, **{place: kind(number)}))[0] for number in "121"] == ['"1"', '"2"', '"1"']


async def test_guests_who_cannot_be_told_apart_share(cache):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope["user"].is_authenticated), cache, rules=[RULE])
    users = [UnauthenticatedUser(), Guest(""), UnauthenticatedUser()]
    assert [(await ask_as(inner, user=user))[1] for user in users] == ["missing", "fresh", "fresh"]


async def test_guests_who_are_not_looked_at_share(cache):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope["path"]), cache, rules=[RULE])
    assert [(await ask_as(inner, user=Guest(number)))[1] for number in "12"] == ["missing", "fresh"]


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


async def ask_behind(inner, **beside):
    """Return what a client is answered if middleware around swr leaves these parts in the scope."""

    async def outer(scope, receive, send):
        scope.update(beside)
        await inner(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        return (await http.get("/x")).json()


async def test_an_identifier_in_the_scope_does_not_pass_for_nothing(cache):
    """Both scopes are of one size."""
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> Any:
        return request.scope.get("tenant", "none")

    inner = SWRMiddleware(app, cache, rules=[RULE])

    assert [await ask_behind(inner, request_id="1") for _ in range(3)] == ["none"] * 3
    assert await ask_behind(inner, tenant="a") == "a"


async def test_a_call_from_within_the_process_does_not_pass_for_a_servers_request(cache):
    """`ASGITransport` gives no state, so its scope with a name of middleware is as large as a server's without one."""
    app = Starlette(routes=[Route("/x", plain_answer)])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    # The variables of the cache's own context are set for all requests.
    ambient = inner.config.ambient()
    for beside, right in [({"preview": 1}, "preview"), ({"auth": {"sub": "ann"}}, "auth"), ({"user": User()}, "user")]:
        for _ in range(2):
            assert await asyncio.create_task(ask_behind(inner, state={}), context=ambient.copy()) == ""
        assert await asyncio.create_task(ask_behind(inner, **beside), context=ambient.copy()) == right


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


async def test_a_variable_that_was_set_when_the_first_request_made_swr_is_not_set_for_all(cache):
    """As in an app below another one, where no lifespan makes the middleware."""
    app = FastAPI()
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    app.get("/x")(tenant_of_all)

    async def outer(scope, receive, send):
        if tenant := scope["query_string"].decode():
            # The same object each time.
            TENANT.set(sys.intern(tenant))
        await app({**scope, "query_string": b""}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        for tenant in ("a", "", "b", "a", ""):
            found = await asyncio.create_task(http.get(f"/x?{tenant}"), context=Context())
            assert found.json() == (tenant or "none")


async def tenant_of_all() -> str:
    return TENANT.get()


async def test_a_background_refresh_sees_the_variables_that_are_set_for_all_requests(cache, clock):
    app = FastAPI()
    app.get("/x")(tenant_of_all)
    TENANT.set("of all")
    middleware = SWRMiddleware(app, cache, [RULE])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://test") as http:
        assert (await http.get("/x")).json() == "of all"
        clock.advance(61)
        assert (await http.get("/x")).headers["swr-state"] == "stale"
        await settle()
        found = await http.get("/x")
    assert (found.json(), found.headers["swr-state"]) == ("of all", "fresh")


def answers_of_a_server_in_a_thread(app, lifespan):
    """Return `SWR-State` of two answers. A thread begins without the context variables of the one that starts it."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, lifespan=lifespan, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        port = server.servers[0].sockets[0].getsockname()[1]
        return [httpx.get(f"http://127.0.0.1:{port}/x").headers["swr-state"] for _ in range(2)]
    finally:
        server.should_exit = True
        thread.join()


@pytest.mark.parametrize(("lifespan", "second"), [("on", "fresh"), ("off", "missing")])
def test_a_variable_that_a_module_sets_is_not_of_a_server_in_a_thread(caplog, lifespan, second):
    app = FastAPI()
    app.get("/x")(tenant_of_all)
    setting = copy_context()
    setting.run(TENANT.set, "of the module")
    # Not by `add_middleware`, which makes it when the server starts.
    middleware = setting.run(SWRMiddleware, app, Cache(), [RULE])
    assert answers_of_a_server_in_a_thread(middleware, lifespan) == ["missing", second]
    said = [text for text in caplog.messages if "context variable tenant" in text]
    assert said == [] if lifespan == "on" else said[0].startswith("the context variable tenant is not the same for all")


@pytest.mark.parametrize("place", PLACES)
async def test_a_credential_that_selects_does_not_say_what_middleware_around_swr_has_set(cache, place):
    rule = Rule("/x", fresh_for=60, credentials="vary")

    async def answer(request):
        found = {"state": request.scope["state"], "scope": request.scope, "variable": {"tenant": TENANT.get()}}[place]
        return PlainTextResponse(found.get("tenant", "none"))

    inner = SWRMiddleware(Starlette(routes=[Route("/x", answer)]), cache, [rule])

    async def outer(scope, receive, send):
        tenant = scope["query_string"].decode()
        scope = {**scope, "query_string": b"", "state": {}}
        if place == "variable":
            TENANT.set(tenant)
        else:
            (scope if place == "scope" else scope["state"])["tenant"] = tenant
        await inner(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        for tenant in ("a", "b"):
            ask = http.get(f"/x?{tenant}", headers={"authorization": "Bearer 1"})
            assert (await asyncio.create_task(ask, context=Context())).text == tenant


async def test_a_background_refresh_for_a_request_without_a_variable_of_all_others_does_not_see_it(cache, clock):
    """The first request may have made swr, and have been that of an administrator."""
    app = FastAPI()

    @app.get("/x")
    async def endpoint(response: Response) -> str:
        response.headers["cache-control"] = "max-age=60, stale-while-revalidate=60"
        return TENANT.get()

    TENANT.set("admin")
    middleware = SWRMiddleware(app, cache)
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://test") as http:
        for seconds in (61, 0):
            found = await asyncio.create_task(http.get("/x"), context=Context())
            assert found.json() == "none"
            clock.advance(seconds)
        await settle()
        found = await asyncio.create_task(http.get("/x"), context=Context())
    assert (found.json(), found.headers["swr-state"]) == ("none", "fresh")

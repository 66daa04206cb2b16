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
from asgiref.local import Local
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.applications import Starlette
from starlette.authentication import AuthCredentials, UnauthenticatedUser
from starlette.middleware import sessions
from starlette.responses import PlainTextResponse
from starlette.routing import Host, Mount, Route

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


# Older versions of Starlette give a dict.
Session = getattr(sessions, "Session", dict)
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
async def test_tenant_set_by_outer_middleware_does_not_share_the_stored_response(cache, clock, place):
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
async def test_requests_share_a_response_that_does_not_read_the_outer_value(cache, clock, place):
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
async def test_outer_value_is_not_shared_however_the_app_reads_it(cache, name, place):
    app = app_that_takes(lambda scope: TAKING[name](scope["state"] if place == "state" else scope))
    inner = SWRMiddleware(app, cache, rules=[RULE])
    for tenant in ("a", "b", "a", ""):
        beside = {"tenant": tenant} if tenant else {}
        beside = {"state": beside} if place == "state" else beside
        # It may change what it gets.
        right, _ = await ask_as(app, **copy.deepcopy(beside))
        assert await ask_as(inner, **beside) == (right, "missing")


@pytest.mark.parametrize("name", ["_user", "fastapi_user", "django_user", "http.user"])
async def test_outer_value_named_like_a_value_of_a_framework_is_not_shared(cache, name):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope.get(name)), cache, rules=[RULE])
    assert [(await ask_as(inner, **{name: value}))[0] for value in "aba"] == ['"a"', '"b"', '"a"']


@pytest.mark.parametrize("place", ["scope", "state"])
async def test_value_that_the_app_sets_itself_is_shared(cache, place):
    def take(scope):
        own = scope if place == "scope" else scope["state"]
        own["tenant"] = "all"
        return own["tenant"]

    inner = SWRMiddleware(app_that_takes(take), cache, rules=[RULE])
    besides = [{"tenant": tenant} if place == "scope" else {"state": {"tenant": tenant}} for tenant in "ab"]
    assert [await ask_as(inner, **beside) for beside in besides] == [('"all"', "missing"), ('"all"', "fresh")]


async def test_app_of_another_framework_shares_no_response_with_an_outer_value(cache, monkeypatch):
    """swr cannot see what such an app reads."""
    for name in ("fastapi", "starlette.applications"):
        monkeypatch.delitem(sys.modules, name)

    async def app(scope, receive, send):
        await PlainTextResponse(scope["state"].get("tenant", "none"))(scope, receive, send)

    inner = SWRMiddleware(app, cache, rules=[RULE])
    asked = [("a", "missing"), ("b", "missing"), ("a", "missing"), ("none", "missing"), ("none", "fresh")]
    for tenant, state in asked:
        beside = {} if tenant == "none" else {"state": {"tenant": tenant}}
        assert await ask_as(inner, **beside) == (tenant, state)


async def test_outer_middleware_sees_changes_that_the_app_makes_to_scope_and_state(cache):
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
async def test_response_is_shared_unless_the_app_reads_the_aws_event(cache, takes):
    """Mangum puts the event of AWS Lambda into the scope, and the event says who asks."""

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


async def test_response_that_reads_the_size_of_an_outer_state_is_not_shared(cache, clock):
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


class NumberedGuest(UnauthenticatedUser):
    """Holds a number in a slot, beside the dict of its class."""

    __slots__ = ("number",)

    def __init__(self, number: str) -> None:
        self.number = number


class TupleGuest(tuple):
    is_authenticated = False
    number = property(lambda self: "".join(self))


class NumberedSession(dict):
    """Of a new visitor: empty, but it has a number."""

    def __init__(self, number: str) -> None:
        self.number = number


class Claims(AuthCredentials):
    """Without scopes."""

    def __init__(self, number: str) -> None:
        super().__init__()
        self.number = number


def starlette_guest(number):
    guest = UnauthenticatedUser()
    guest.number = number
    return guest


def guest_of_a_class_of_its_own(number):
    return type("Guest", (UnauthenticatedUser,), {"number": number})()


def guest_that_lies_about_its_class(number):
    """Its class has the name of another one."""
    return type("Visitor", (UnauthenticatedUser,), {"number": number, "__module__": __name__})()


def session_of_starlette(number):
    session = Session()
    session.number = number
    return session


SOMEBODY = {
    "user": [
        Guest,
        Slotted,
        NumberedGuest,
        TupleGuest,
        starlette_guest,
        guest_of_a_class_of_its_own,
        guest_that_lies_about_its_class,
    ],
    "auth": [Claims],
    "session": [LazySession, NumberedSession, *([] if Session is dict else [session_of_starlette])],
}


@pytest.mark.parametrize(
    ("place", "kind"),
    [pytest.param(place, kind, id=kind.__name__) for place, kinds in SOMEBODY.items() for kind in kinds],
)
async def test_guest_or_empty_session_with_a_number_gets_its_own_response(cache, place, kind):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope[place].number), cache, rules=[RULE])
    assert [(await ask_as(inner, **{place: kind(number)}))[0] for number in "121"] == ['"1"', '"2"', '"1"']


@pytest.mark.parametrize("place", SOMEBODY)
async def test_response_that_does_not_read_the_number_of_a_guest_is_shared(cache, place):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope["path"]), cache, rules=[RULE])
    found = [(await ask_as(inner, **{place: SOMEBODY[place][-1](number)}))[1] for number in "12"]
    assert found == ["missing", "fresh"]


class Visitor(UnauthenticatedUser):
    region = "EU"


class OtherVisitor(UnauthenticatedUser):
    region = "US"


class Region(AuthCredentials):
    region = "EU"


class OtherRegion(AuthCredentials):
    region = "US"


@pytest.mark.parametrize(
    ("place", "look", "values"),
    [
        ("user", lambda user: user.is_authenticated, [UnauthenticatedUser(), UnauthenticatedUser()]),
        ("user", lambda user: user.region, [Visitor(), Visitor(), OtherVisitor(), OtherVisitor(), Visitor()]),
        ("user", lambda user: repr(user.number), [Guest(number) for number in ("", None, False, "", None, False)]),
        ("auth", lambda auth: auth.region, [Region(), OtherRegion(), Region(), OtherRegion()]),
        ("auth", lambda auth: len(auth.scopes), [AuthCredentials(), AuthCredentials()]),
        ("session", len, [{}, Session(), {}]),
    ],
    ids=["usual users", "user classes", "empty attributes", "auth classes", "usual auth", "usual sessions"],
)
async def test_guests_of_one_kind_share_a_response_even_if_it_reads_them(cache, clock, place, look, values):
    app = app_that_takes(lambda scope: look(scope[place]))
    inner = SWRMiddleware(app, cache, rules=[RULE])
    kinds = {(await ask_as(app, **{place: value}))[0] for value in values}
    found = [await ask_as(inner, **{place: value}) for value in values]
    assert [text for text, _ in found] == [(await ask_as(app, **{place: value}))[0] for value in values]
    assert [state for _, state in found].count("missing") == len(kinds)
    if place != "session":
        # A background refresh gets the same guest.
        clock.advance(61)
        assert (await ask_as(inner, **{place: values[0]})) == (found[0][0], "stale")
        await settle()
        assert (await ask_as(inner, **{place: values[0]})) == (found[0][0], "fresh")


async def test_guests_share_a_response_that_does_not_read_the_user(cache):
    inner = SWRMiddleware(app_that_takes(lambda scope: scope["path"]), cache, rules=[RULE])
    assert [(await ask_as(inner, user=Guest(number)))[1] for number in "12"] == ["missing", "fresh"]


@pytest.mark.parametrize("place", PLACES)
async def test_response_with_its_own_max_age_is_stored_for_each_tenant_separately(cache, place):
    _, ask = app_with(cache, place, own="max-age=60")
    assert [await ask(tenant) for tenant in (None, "a", None, "a")] == [
        ("none", "missing"),
        ("a", "missing"),
        ("none", "fresh"),
        ("a", "fresh"),
    ]


async def test_request_with_a_value_that_cannot_be_compared_is_not_plain():
    usual, scope = Usual(lambda scope: (), Context()), http_scope("/x")
    scope["state"], usual.state, usual.size = {"model": Unlike()}, {"model": Unlike()}, len(scope) + 1
    assert plain_url(scope, usual) == (None, None)
    usual.state = {**scope["state"]}
    assert plain_url(scope, usual)[0] is not None


@pytest.mark.parametrize(
    "more",
    [{}, {"state": {}}, {"app": 1}, {"app": 1, "router": 1, "state": {}}],
    ids=["no state", "state", "in an app", "below a router"],
)
async def test_shape_of_usual_requests_is_learned_once(more):
    looks = []
    usual = Usual(lambda scope: looks.append(scope) or (), copy_context())
    for _ in range(3):
        assert plain_url(http_scope("/x", **more), usual)[0] is not None
    assert len(looks) == 1
    # Only below routers all names are compared.
    assert bool(usual.routed) is ("router" in more)


@pytest.mark.parametrize(("others", "is_plain"), [(62, True), (63, False)])
async def test_request_with_a_selecting_field_and_more_than_64_fields_is_not_plain(others, is_plain):
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


async def test_tenant_is_not_confused_with_another_name_in_a_scope_of_equal_size(cache):
    """Both scopes have the same number of names."""
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> Any:
        return request.scope.get("tenant", "none")

    inner = SWRMiddleware(app, cache, rules=[RULE])

    assert [await ask_behind(inner, request_id="1") for _ in range(3)] == ["none"] * 3
    assert await ask_behind(inner, tenant="a") == "a"


async def test_name_in_the_scope_is_not_confused_with_the_state_of_a_server_request(cache):
    """`ASGITransport` gives no state, so its scope with a name of middleware is as large as a server's without one."""
    app = Starlette(routes=[Route("/x", plain_answer)])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    # The variables of the cache's own context are set for all requests.
    ambient = inner.config.ambient()
    for beside, right in [({"preview": 1}, "preview"), ({"auth": {"sub": "ann"}}, "auth"), ({"user": User()}, "user")]:
        for _ in range(2):
            assert await asyncio.create_task(ask_behind(inner, state={}), context=ambient.copy()) == ""
        assert await asyncio.create_task(ask_behind(inner, **beside), context=ambient.copy()) == right


@pytest.mark.parametrize("takes", [True, False])
async def test_response_is_shared_unless_the_app_takes_an_extension_that_outer_middleware_has_set(cache, takes):
    def look(scope):
        return scope["extensions"]["acme.version"] if takes else scope["path"]

    inner = SWRMiddleware(app_that_takes(look), cache, rules=[RULE])
    for version in ("1", "2"):
        extensions = {"acme.version": version, "http.response.push": {}, "tls": {}}
        found = await ask_as(inner, extensions=extensions)
        assert found == ((f'"{version}"', "missing") if takes else ('"/x"', "missing" if version == "1" else "fresh"))


async def test_extension_of_outer_middleware_keeps_what_is_stored_for_others_away(cache):
    app = app_that_takes(lambda scope: scope["extensions"].get("acme.preview", "none"))
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(**extensions):
        return await asyncio.create_task(
            ask_behind(inner, state={}, extensions=extensions), context=inner.config.ambient().copy()
        )

    offers = {"http.response.push": {}}
    assert [await ask(**offers) for _ in range(3)] == ["none"] * 3
    assert await ask(**offers, **{"acme.preview": "on"}) == "on"
    assert await ask(**offers) == "none"


async def version_of(request):
    return PlainTextResponse(str(request.path_params.get("version", "none")))


async def test_path_parameters_that_outer_middleware_sets_select_the_response(cache, clock):
    # The inner router keeps them beside its own.
    app = Starlette(routes=[Mount("/", routes=[Route("/x", version_of)])])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(number, **beside):
        beside |= {"path_params": {"version": number}} if number else {}
        return await asyncio.create_task(ask_as(inner, **beside), context=inner.config.ambient().copy())

    numbers = ("", "1", "2")
    for state in ("missing", "fresh", "fresh", "stale", "fresh"):
        if state == "stale":
            clock.advance(61)
        assert [await ask(number) for number in numbers] == [(number or "none", state) for number in numbers]
        await settle()
    # No two objects are equal.
    odd = [type("Version", (), {"__str__": lambda self, number=number: number})() for number in "ab"]
    assert [await ask(version) for version in odd * 2] == [(number, "missing") for number in "abab"]


async def preview_or_user(request):
    return PlainTextResponse(str([request.scope.get(name) for name in ("preview", "user")]))


@pytest.mark.parametrize("beside", [{"preview": True}, {"user": "ann"}], ids=str)
@pytest.mark.parametrize("more", [{}, {"state": {}}], ids=["no state", "state"])
async def test_name_in_the_scope_below_one_router_is_not_confused_with_names_of_another(cache, beside, more):
    """`Host` adds fewer names to the scope than `Mount`."""
    inner = SWRMiddleware(Starlette(routes=[Route("/x", preview_or_user)]), cache, rules=[RULE])
    extra = {}

    async def set_some(scope, receive, send):
        await inner({**scope, **extra}, receive, send)

    async def serve(scope, receive, send):
        await both({**scope, **more}, receive, send)

    both = Starlette(routes=[Host("b.test", app=set_some), Mount("/", app=inner)])

    async def ask(host):
        async with httpx.AsyncClient(transport=httpx.ASGITransport(serve), base_url=f"http://{host}") as http:
            # The context of the cache is the one that all requests have.
            found = await asyncio.create_task(http.get("/x"), context=inner.config.ambient().copy())
        return found.text, found.headers["swr-state"]

    nothing, something = "[None, None]", str([beside.get("preview"), beside.get("user")])
    for _ in range(2):
        for host in ("b.test", "a.test"):
            await ask(host)
            assert await ask(host) == (nothing, "fresh")
        extra.update(beside)
        assert await ask("b.test") == (something, "missing")
        assert await ask("a.test") == (nothing, "fresh")
        extra.clear()


async def test_shapes_that_the_fast_path_remembers_are_limited():
    usual, looks = Usual(lambda scope: looks.append(scope) or (), copy_context()), []
    for number in [*range(70), 0, 69, 69]:
        plain_url(http_scope("/x", **{f"fastapi_inner_{number}": 1}), usual)
    assert len(looks) == 70 + 2


async def test_swr_below_a_mount_does_not_keep_an_outer_swr_from_storing_a_response(cache):
    inner = SWRMiddleware(Starlette(routes=[Route("/x", plain_answer)]), Cache(), rules=[])
    outer = SWRMiddleware(Starlette(routes=[Mount("/", app=inner)]), cache, rules=[RULE])
    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        found = [(await http.get(f"/x?{page}")).headers["cache-status"] for page in "1122"]
    assert ["hit" in status.rpartition("swr; ")[2] for status in found] == [False, True, False, True]


async def test_response_for_a_user_with_claims_in_the_scope_is_not_shared(cache):
    app = Starlette(routes=[Route("/x", plain_answer)])
    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(auth):
        async def outer(scope, receive, send):
            await inner({**scope, "auth": auth}, receive, send)

        async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
            found = await http.get("/x")
        return found.json(), found.headers["swr-state"]

    assert [await ask({"sub": name}) for name in ("ann", "bob", "ann")] == [("auth", "missing")] * 3
    found = [await ask(nobody) for nobody in (None, {}, AuthCredentials(), {})]
    assert found == [("", "missing"), ("", "missing"), ("", "fresh"), ("", "fresh")]


async def test_variable_set_during_the_first_request_is_not_taken_as_set_for_all(cache):
    """In an app mounted below another one, no lifespan creates the middleware: the first request does."""
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


async def test_value_that_outer_middleware_sets_in_a_local_of_asgiref_is_not_shared(cache):
    """Django keeps the language in such a `Local`, and its contents in a context variable."""
    current, unset, app = Local(), Local(), FastAPI()
    unset.tenant = "of all"

    @app.get("/x")
    async def endpoint() -> str:
        return getattr(current, "tenant", "none") + unset.tenant

    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def ask(tenant):
        if tenant:
            current.tenant = tenant
        return await ask_behind(inner)

    asked = [asyncio.create_task(ask(tenant), context=copy_context()) for tenant in ("a", "b", "", "")]
    assert [await task for task in asked] == ["aof all", "bof all", "noneof all", "noneof all"]
    async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://test") as http:
        # What is the same for all requests selects nothing.
        assert (await http.get("/x")).headers["swr-state"] == "fresh"


async def test_prefix_of_urls_and_cache_connections_of_django_do_not_prevent_sharing(cache):
    from django.core.cache import caches
    from django.urls import set_script_prefix

    app = FastAPI()

    @app.get("/x")
    async def endpoint() -> str:
        return "same"

    inner = SWRMiddleware(app, cache, rules=[RULE])

    async def outer(scope, receive, send):
        set_script_prefix("/")
        caches._connections.default = object()
        await inner(scope, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        found = [await asyncio.create_task(http.get("/x"), context=Context()) for _ in range(2)]
    assert [each.headers["swr-state"] for each in found] == ["missing", "fresh"]


async def tenant_of_all() -> str:
    return TENANT.get()


async def test_background_refresh_sees_variables_that_are_set_for_all_requests(cache, clock):
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
def test_variable_set_by_a_module_prevents_sharing_in_a_thread_without_lifespan(caplog, lifespan, second):
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
async def test_tenants_with_equal_credentials_get_their_own_responses(cache, place):
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


async def test_background_refresh_does_not_see_a_variable_set_only_when_swr_was_made(cache, clock):
    """The first request may have created the middleware, and may have come from an administrator."""
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

"""`key=` selects by what it has read. What it has not read counts as without `key=`."""

import asyncio
import functools
import inspect
from contextvars import Context, ContextVar

import httpx
import pytest
from asgiref.local import Local
from fastapi import Depends, FastAPI, HTTPException, Request
from starlette.authentication import UnauthenticatedUser
from starlette.datastructures import Headers
from starlette.requests import HTTPConnection

from swr.middleware import Rule, SWRMiddleware
from tests.fleet import settle

pytestmark = pytest.mark.anyio

RULE = Rule("/x", fresh_for=60, stale_for=600)
LANGUAGE: ContextVar[str] = ContextVar("language", default="en")
# Two variables may have the same name.
TWIN: ContextVar[str] = ContextVar("language", default="en")
CURRENT, OTHER = Local(), Local()


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop."""
    return "asyncio"


class Guest(UnauthenticatedUser):
    def __init__(self, number: str) -> None:
        self.number = number
        self.cart = f"cart of {number}"


class Visit(dict):
    """An empty session with a number."""

    def __init__(self, number: str) -> None:
        self.number = number


def field(scope, name="accept-language"):
    return Headers(scope=scope).get(name, "none")


def loop(scope):
    return next((value.decode() for name, value in scope["headers"] if name == b"accept-language"), "none")


def by_dict(scope):
    return dict(scope["headers"]).get(b"accept-language", b"none").decode()


def by_text(scope):
    return {name.decode().lower(): value.decode() for name, value in scope["headers"]}.get("accept-language", "none")


def local(scope):
    return getattr(CURRENT, "tenant", "none")


# Ways to read what differs between two clients. Each works in `key=` and in the app.
READS = {
    "address": lambda scope: (scope.get("client") or ["none"])[0],
    "item of the request": lambda scope: HTTPConnection(scope)["client"][0],
    "address of the request": lambda scope: HTTPConnection(scope).client.host,
    "field": field,
    "field of the request": lambda scope: HTTPConnection(scope).headers.get("accept-language", "none"),
    "field in a loop": loop,
    "field in a dict": by_dict,
    "field in a dict of text": by_text,
    "agent": lambda scope: field(scope, "user-agent"),
    "forwarded": lambda scope: field(scope, "x-forwarded-for"),
    "server": lambda scope: scope["server"][0],
    "state": lambda scope: scope["state"].get("tenant", "none"),
    "state of the request": lambda scope: HTTPConnection(scope).state.tenant,
    "scope": lambda scope: scope["preview"],
    "user": lambda scope: scope["user"].number,
    "session": lambda scope: HTTPConnection(scope).session.number,
    "variable": lambda scope: LANGUAGE.get(),
    "local": local,
}
# The parts that several ways read.
KINDS = {
    "address of the request": "address", "item of the request": "address", "field of the request": "field", "field in a loop": "field",
    "field in a dict": "field", "field in a dict of text": "field", "state of the request": "state",
}  # fmt: skip
OF_VARIABLES = ("variable", "local")


def app_that_reads(read):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        return read(request.scope) + request.state.shown

    async def inside(scope, receive, send):
        # Middleware inside swr reads, too.
        scope["state"]["shown"] = read(scope) if scope["type"] == "http" else ""
        await app(scope, receive, send)

    return inside


async def ask(app, number, *, has_field=True):
    """Ask as one of two clients who differ in everything but the tenant that `key=` names."""

    async def outer(scope, receive, send):
        LANGUAGE.set(f"language {number}")
        TWIN.set(f"language {number}")
        CURRENT.tenant = f"tenant {number}"
        OTHER.tenant = f"tenant {number}"
        beside = {"preview": f"preview {number}", "user": Guest(number), "session": Visit(number)}
        state = {"tenant": f"tenant {number}", "other": f"other {number}", "same": "one"}
        await app({**scope, **beside, "server": (f"10.0.0.{number}", 80), "state": state}, receive, send)

    transport = httpx.ASGITransport(outer, client=(f"192.0.2.{number}", 1))
    headers = [("user-agent", f"agent {number}"), ("x-forwarded-for", f"198.51.100.{number}")]
    headers += [("accept-language", f"language {number}")] if has_field else []
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
        http.headers = httpx.Headers()
        return await asyncio.create_task(http.get("/x", headers=headers), context=Context())


def keyed_by(name):
    """Return a `key=` that reads a part, and all context variables, because these count even if the app reads none."""
    return lambda scope: (READS[name](scope), LANGUAGE.get(), TWIN.get(), CURRENT.tenant, OTHER.tenant)


def same_after(name):
    """Return a `key=` that has read a part, but is the same for both clients."""

    def key(scope):
        if name in OF_VARIABLES:
            return READS[name](scope)[:1]
        keyed_by(name)(scope)
        # A use of each, for a look alone does not count.
        return all(f"{each}" for each in keyed_by(name)(scope)) and "one"

    return key


@pytest.mark.parametrize("where", ["middleware", "rule"])
@pytest.mark.parametrize("name", [name for name in READS if name not in OF_VARIABLES])
async def test_clients_share_what_the_app_reads_if_key_has_read_it(cache, clock, name, where):
    # An app that makes text of all values has read all of them.
    app, key = app_that_reads(READS[KINDS.get(name, name)]), keyed_by(name)
    rule = Rule("/x", fresh_for=60, stale_for=600, key=key if where == "rule" else None)
    inner = SWRMiddleware(app, cache, [rule], key=key if where == "middleware" else None)
    right = {number: (await ask(app, number)).text for number in "12"}
    assert right["1"] != right["2"]
    for state in ("missing", "fresh", "stale"):
        for number in "12":
            found = await ask(inner, number)
            assert (found.text, found.headers["swr-state"]) == (right[number], state)
        if state == "fresh":
            clock.advance(61)
    await settle()
    assert (await ask(inner, "1")).headers["swr-state"] == "fresh"


def is_covered(name, reads):
    """Return whether `same_after(name)` covers what an app reads: it reads all context variables, or one of them."""
    if name in OF_VARIABLES:
        return False
    return reads in OF_VARIABLES or KINDS.get(name, name) == KINDS.get(reads, reads)


@pytest.mark.parametrize(
    ("name", "reads"), [(name, reads) for name in READS for reads in READS if not is_covered(name, reads)]
)
async def test_clients_do_not_share_what_the_app_reads_and_key_has_not(cache, name, reads):
    """The key is the same for both clients, as if they had the same tenant."""
    app = app_that_reads(READS[reads])
    inner = SWRMiddleware(app, cache, [RULE], key=same_after(name))
    for number in "121":
        found = await ask(inner, number)
        assert found.text == (await ask(app, number)).text


async def status_of(inner, number="2", **options):
    return (await ask(inner, number, **options)).headers["cache-status"]


def all_variables():
    return LANGUAGE.get(), TWIN.get(), CURRENT.tenant, OTHER.tenant


@pytest.mark.parametrize("read", [field, loop, by_dict, by_text])
async def test_client_that_lacks_the_field_that_key_reads_gets_its_own_stored_response(cache, read):
    app = app_that_reads(field)
    inner = SWRMiddleware(app, cache, [RULE], key=lambda scope: (read(scope), *all_variables()))
    for state in ("missing", "fresh"):
        for has_field in (False, True):
            found = await ask(inner, "1", has_field=has_field)
            assert (found.json(), found.headers["swr-state"]) == (("language 1" if has_field else "none") * 2, state)


def dict_of_agents(scope):
    return dict(scope["headers"])[b"user-agent"].decode()


def text_of_all_values(scope):
    return {name.decode(): str(value, "latin-1") for name, value in scope["headers"]}["user-agent"]


def address_in_the_request(scope):
    # The URL contains the address of the server only without `Host`.
    return HTTPConnection(scope).url.path + HTTPConnection(scope).base_url.path


def one_of_the_fields(scope):
    return next(value for name, value in scope["headers"] if name.startswith(b"user-")).decode()


def sometimes_the_address(scope):
    return scope["client"][0] if scope["path"] == "/other" else "all"


def fails_first(scope):
    try:
        return scope["nothing"]
    except KeyError:
        return "one"


def state_as_a_whole(scope):
    return len(scope["state"])


@pytest.mark.parametrize("key", [dict_of_agents, text_of_all_values, address_in_the_request, one_of_the_fields,
                                 sometimes_the_address, fails_first, state_as_a_whole])  # fmt: skip
@pytest.mark.parametrize("reads", ["address", "field", "server", "forwarded", "user", "session", "scope"])
async def test_key_that_reads_a_part_covers_no_other_part(cache, key, reads):
    inner = SWRMiddleware(app_that_reads(READS[reads]), cache, [RULE], key=lambda scope: (key(scope), *all_variables()))
    assert "detail" in await status_of(inner, "1")
    assert "detail" in await status_of(inner, "1")


@pytest.mark.parametrize("take", [dict, lambda scope: {**scope}, lambda scope: scope.copy(), lambda scope: str(scope)])
@pytest.mark.parametrize("reads", ["address", "field", "server", "state", "user", "session"])
async def test_key_that_copies_the_scope_covers_all_of_it_but_no_variable(cache, take, reads):
    app = app_that_reads(READS[reads])
    inner = SWRMiddleware(app, cache, [RULE], key=lambda scope: str(bool(take(scope)) and all_variables()))
    assert await status_of(inner) == "swr; fwd=uri-miss; stored"
    none = SWRMiddleware(app, cache, [RULE], key=lambda scope: str(bool(take(scope))))
    assert 'detail="context variable' in await status_of(none)


async def test_key_that_takes_all_fields_covers_all_fields_and_nothing_else(cache):
    def key(scope):
        return len(dict(Headers(scope=scope))), *all_variables()

    for reads, is_stored in (("field", True), ("agent", True), ("address", False), ("server", False), ("state", False)):
        inner = SWRMiddleware(app_that_reads(READS[reads]), cache, [RULE], key=key, version=reads)
        assert ("stored" in await status_of(inner)) is is_stored


USES = {
    "returned": lambda value: value,
    "in a tuple": lambda value: (1, value),
    "in text": lambda value: f"{value}",
    "as text": str,
    "shown": repr,
    "asked": lambda value: "some" if value else "none",
    "compared": lambda value: value == "en",
    "found": lambda value: value in {"en", "de"},
    "cut": lambda value: value[:2],
    "changed": lambda value: value.upper(),
    "checked": lambda value: isinstance(value, int),
    "caught": lambda value: caught(value),
}


def caught(value):
    try:
        return value.upper()
    except Exception:
        return "none"


@pytest.mark.parametrize("name", USES)
async def test_key_covers_a_context_variable_however_it_uses_it(cache, name):
    def key(scope):
        return (USES[name](LANGUAGE.get()), TWIN.get(), CURRENT.tenant, OTHER.tenant)

    inner = SWRMiddleware(app_that_reads(lambda scope: "x"), cache, [RULE], key=key)
    assert "stored" in await status_of(inner)


@pytest.mark.parametrize("left_out", range(4))
async def test_key_that_reads_one_of_two_variables_with_the_same_name_does_not_cover_both(cache, left_out):
    def key(scope):
        looks = [LANGUAGE.get, TWIN.get, lambda: CURRENT.tenant, lambda: OTHER.tenant]
        return tuple(look() for number, look in enumerate(looks) if number != left_out)

    inner = SWRMiddleware(app_that_reads(lambda scope: "x"), cache, [RULE], key=key)
    assert 'detail="context variable' in await status_of(inner)


async def test_key_of_middleware_and_key_of_a_rule_cover_parts_together(cache):
    def key(scope):
        return LANGUAGE.get(), CURRENT.tenant, scope["client"][0]

    rule = Rule("/x", fresh_for=60, key=lambda scope: (TWIN.get(), OTHER.tenant, field(scope)))
    app = app_that_reads(lambda scope: READS["address"](scope) + field(scope))
    assert "stored" in await status_of(SWRMiddleware(app, cache, [rule], key=key))


async def test_key_that_changes_the_scope_changes_nothing_for_the_app_when_swr_looks_what_it_reads(cache):
    calls = []

    def key(scope):
        calls.append(scope.pop("mark", None))
        scope.setdefault("count", []).append(1)
        scope["state"]["count"] = scope["state"].get("count", 0) + 1
        return scope["client"][0], *all_variables()

    app = app_that_reads(lambda scope: f"{scope['client'][0]} {len(scope['count'])} {scope['state']['count']}")
    found = await ask(SWRMiddleware(app, cache, [RULE], key=key), "1")
    assert found.json() == "192.0.2.1 1 1" * 2
    assert len(calls) > 2


@pytest.mark.parametrize("place", ["dependency", "argument", "decorator"])
async def test_guard_refuses_an_address_although_key_names_a_tenant(cache, place):
    app = FastAPI()

    def in_the_office(request: Request) -> str:
        if request.client.host != "192.0.2.1":
            raise HTTPException(403)
        return "in"

    def decorated(function):
        @functools.wraps(function)
        async def guarded(*args, request: Request, **kwargs):
            in_the_office(request)
            return await function(*args, **kwargs)

        parameters = [inspect.Parameter("request", inspect.Parameter.KEYWORD_ONLY, annotation=Request)]
        guarded.__signature__ = inspect.signature(function).replace(parameters=parameters)
        return guarded

    async def reports() -> str:
        return "internal"

    async def told(where: str = Depends(in_the_office)) -> str:
        return where

    if place == "argument":
        app.get("/x")(told)
    elif place == "decorator":
        app.get("/x")(decorated(reports))
    else:
        app.get("/x", dependencies=[Depends(in_the_office)])(reports)
    inner = SWRMiddleware(app, cache, [RULE], key=lambda scope: scope["state"]["same"])

    async def outer(scope, receive, send):
        await inner({**scope, "state": {"same": "one"}}, receive, send)

    for number, status in (("1", 200), ("2", 403), ("1", 200)):
        transport = httpx.ASGITransport(outer, client=(f"192.0.2.{number}", 1))
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as http:
            found = await http.get("/x")
            assert (found.status_code, found.headers["swr-state"]) == (status, "missing")


async def test_guard_that_takes_the_request_runs_on_every_request_if_the_rule_leaves_parameters_out(cache):
    app = FastAPI()

    def with_token(request: Request) -> None:
        if request.query_params.get("token") not in (None, "right"):
            raise HTTPException(403)

    @app.get("/x", dependencies=[Depends(with_token)])
    async def reports() -> str:
        return "internal"

    inner = SWRMiddleware(app, cache, [Rule("/x", fresh_for=60, keep_params=("page",))], key=lambda scope: "one")
    async with httpx.AsyncClient(transport=httpx.ASGITransport(inner), base_url="http://test") as http:
        for query, status in (("page=1", 200), ("page=1&token=right", 200), ("page=1&token=wrong", 403)):
            assert (await http.get(f"/x?{query}")).status_code == status


async def test_tenants_share_nothing_and_clients_of_a_tenant_share_if_key_names_the_tenant(cache):
    app = FastAPI()

    @app.get("/x")
    async def endpoint(request: Request) -> str:
        return request.state.tenant

    inner = SWRMiddleware(app, cache, [RULE], key=lambda scope: scope["state"]["tenant"])

    async def outer(scope, receive, send):
        tenant = dict(scope["headers"])[b"user-agent"].decode()
        await inner({**scope, "state": {"tenant": tenant, "request_id": "1"}}, receive, send)

    async with httpx.AsyncClient(transport=httpx.ASGITransport(outer), base_url="http://test") as http:
        for state in ("missing", "fresh"):
            for tenant in "ab":
                found = await http.get("/x", headers={"user-agent": tenant})
                assert (found.json(), found.headers["swr-state"]) == (tenant, state)

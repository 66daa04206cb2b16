"""An answer at whose making the app has looked at an address or a language is shared with nobody."""

import base64
import contextvars
import copy
import functools
import inspect
import itertools
import json
import operator
import sys
from contextlib import AsyncExitStack
from typing import Annotated, Any

import anyio
import httpx
import itsdangerous
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from fastapi.dependencies.utils import get_dependant, solve_dependencies
from pydantic import BaseModel
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.middleware.gzip import GZipMiddleware
from starlette.middleware.sessions import SessionMiddleware
from starlette.responses import FileResponse, PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
from starlette.staticfiles import StaticFiles
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware

from swr import Cache
from swr.endpoints.looking import reads_unseen
from swr.endpoints.routed_scope import RoutedScope, routed
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import gather, settle
from tests.web import App, http_scope

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    """What decides here is the same on every event loop."""
    return "asyncio"


RULE = Rule("/{path:path}", fresh_for=60)
FIELD = "x-forwarded-for"
HERE: contextvars.ContextVar[str] = contextvars.ContextVar("here", default="none")


def field_of(scope) -> str:
    return Headers(scope=scope).get(FIELD, "none")


def host_of(request) -> str:
    return request.client.host


def api(endpoint, **options):
    app = FastAPI(**options)
    app.get("/x")(endpoint)
    return app


def asgi(app, change):
    """Return middleware that changes the scope, or gives another one to the app."""

    async def middleware(scope, receive, send):
        await app(change(scope) or scope, receive, send)

    return middleware


def http(app, dispatch):
    app.add_middleware(BaseHTTPMiddleware, dispatch=dispatch)
    return app


async def from_state(request: Request) -> str:
    return getattr(request.state, "here", "none")


async def from_variable() -> str:
    return HERE.get()


async def from_header(x_country: Annotated[str, Header()] = "none") -> str:
    return x_country


async def from_query(country: str = "none") -> str:
    return country


async def helped(request: Request) -> str:
    return host_of(request)


def helped_in_a_thread(request: Request) -> str:
    return host_of(request)


TEMPLATE = "{request.client.host}"


async def templated(request: Request) -> str:
    return TEMPLATE.format(request=request)


async def direct(request: Request) -> str:
    return request.headers.get(FIELD, "none")


async def streamed(request: Request) -> StreamingResponse:
    async def content():
        yield host_of(request)

    return StreamingResponse(content())


async def addresses(request):
    yield dict(request.scope)["client"][0]


async def streamed_from_a_copy(request: Request) -> StreamingResponse:
    return StreamingResponse(addresses(request))


def shouted(scope):
    return {name.decode().upper(): value.decode() for name, value in scope["headers"]}.get(FIELD.upper(), "none")


async def environ(request: Request) -> PlainTextResponse:
    names = {name.decode().replace("-", "_"): value for name, value in request.scope["headers"]}
    return PlainTextResponse(names.get(FIELD.replace("-", "_"), b"none"))


async def beginning(request: Request) -> PlainTextResponse:
    found = [value.decode() for name, value in request.headers.raw if name.startswith(b"x-forwarded")]
    return PlainTextResponse(found[0] if found else "none")


def decorated(endpoint):
    @functools.wraps(endpoint)
    async def wrapper(*args: Any, **kwargs: Any) -> str:
        return host_of(kwargs["request"])

    return wrapper


def nothing(request: Request) -> PlainTextResponse:
    return PlainTextResponse("")


class Inherited(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(request.client.host)


class Class(Inherited):
    pass


class OfScope(HTTPEndpoint):
    async def get(self, request: Request) -> PlainTextResponse:
        return PlainTextResponse(self.scope["client"][0])


async def plain(scope, receive, send):
    await PlainTextResponse(scope["client"][0])(scope, receive, send)


def into_state(look):
    async def dispatch(request, go_on):
        request.state.here = look(request)
        return await go_on(request)

    return dispatch


def into_variable(look):
    def change(scope):
        HERE.set(look(scope))

    return change


async def gate(request, go_on):
    return await go_on(request) if host_of(request).endswith("1") else PlainTextResponse("not you")


def in_a_loop(scope):
    for name, value in scope["headers"]:
        if name.lower() == FIELD.encode():
            HERE.set(value.decode())


def other_path(scope):
    if field_of(scope).endswith("2"):
        scope["path"], scope["raw_path"] = "/", b"/"


def appended(scope):
    value = field_of(scope)
    MutableHeaders(scope=scope).append("x-country", value)


def other_query(scope):
    scope["query_string"] = b"country=" + field_of(scope).encode()


def failing(status: int = 200):
    app = FastAPI()

    @app.exception_handler(KeyError)
    async def handle(request: Request, error: KeyError) -> PlainTextResponse:
        return PlainTextResponse(host_of(request), status)

    @app.get("/x")
    async def endpoint() -> str:
        raise KeyError

    return app


def in_state_of_field(request):
    return request.headers.get(FIELD, "none")


def in_dict(scope):
    return dict(scope["headers"]).get(FIELD.encode(), b"none").decode()


def in_text(scope):
    return {name.decode().title(): value.decode() for name, value in scope["headers"]}.get(FIELD.title(), "none")


async def all_fields(request: Request):
    return request.headers


def all_but_one(request):
    return str([pair for pair in request.headers.items() if pair[0] != "host"])


def copied(scope):
    return str(dict(copy.deepcopy(scope["headers"])).get(FIELD.encode()))


def gated_below():
    below = http(http(api(from_variable), gate), into_state(lambda request: ""))
    app = FastAPI()
    app.mount("/", below)
    return app


async def let_through(request, go_on):
    return await go_on(request)


def layers(*dispatches):
    return [Middleware(BaseHTTPMiddleware, dispatch=dispatch) for dispatch in dispatches]


def gated_route(*outer):
    return Starlette(routes=[Route("/x", nothing, middleware=layers(*outer, gate))])


def forwarded():
    """Return an app whose endpoint lets another app answer."""
    other = Starlette(routes=[Route("/x", nothing)], middleware=layers(let_through, gate))
    return Starlette(routes=[Route("/x", lambda request: other)])


# Each with the reason that `Cache-Status` gives.
LOOKING = {
    "address into a variable": (lambda: asgi(api(from_variable), into_variable(lambda s: s["client"][0])), "address"),
    "address into the state": (lambda: http(api(from_state), into_state(host_of)), "address"),
    "address by a gate": (lambda: http(api(from_variable), gate), "address"),
    "address by a gate of an app below": (gated_below, "address"),
    "address by a gate of a route": (gated_route, "address"),
    "address by the second gate of a route": (lambda: gated_route(let_through), "address"),
    "address by a gate of an app behind an endpoint": (forwarded, "address"),
    "field into a variable": (lambda: asgi(api(from_variable), into_variable(field_of)), "field"),
    "field into the state": (lambda: http(api(from_state), into_state(in_state_of_field)), "field"),
    "field in a loop": (lambda: asgi(api(from_variable), in_a_loop), "field"),
    "field of a dict": (lambda: asgi(api(from_variable), into_variable(in_dict)), "field"),
    "field of a dict of text": (lambda: asgi(api(from_variable), into_variable(in_text)), "field"),
    "field of a copy": (lambda: asgi(api(from_variable), into_variable(copied)), "field"),
    "all fields": (lambda: api(all_fields), "all fields"),
    "all fields into the state": (lambda: http(api(from_state), into_state(all_but_one)), "all fields"),
    "field into another field": (lambda: asgi(api(from_header), appended), "field"),
    "field into the path": (lambda: asgi(api(from_variable), other_path), "field"),
    "field into the query": (lambda: asgi(api(from_query), other_query), "field"),
    "field in the endpoint": (lambda: api(direct), "field"),
    "address in what the endpoint calls": (lambda: api(helped), "address"),
    "address in a thread": (lambda: api(helped_in_a_thread), "address"),
    "address in a template": (lambda: api(templated), "address"),
    "address in the body": (lambda: api(streamed), "address"),
    "address of a copy in the body": (lambda: api(streamed_from_a_copy), "field names"),
    "field in capitals": (lambda: asgi(api(from_variable), into_variable(shouted)), "all fields"),
    "field by another name": (lambda: api(environ), "all fields"),
    "field by its beginning": (lambda: api(beginning), "field x-forwarded-for"),
    "address in a decorator": (lambda: api(decorated(helped)), "address"),
    "address in a handler": (failing, "address"),
    "address by a proxy's field": (lambda: ProxyHeadersMiddleware(api(helped), trusted_hosts="*"), "address"),
    "Starlette": (lambda: Starlette(routes=[Route("/x", lambda request: PlainTextResponse(host_of(request)))]), ""),
    "class": (lambda: Starlette(routes=[Route("/x", OfScope)]), "address"),
    "class that inherits": (lambda: Starlette(routes=[Route("/x", Class)]), "argument request"),
    "app below": (lambda: Starlette(routes=[Mount("/", plain)]), "address"),
    "app": (lambda: plain, "address"),
    "copied scope": (lambda: asgi(Starlette(routes=[Route("/x", Class)]), dict), "route not seen"),
    "swr within": (lambda: SWRMiddleware(api(helped), Cache(), [RULE]), "address"),
}


async def ask(middleware, number, fields=None):
    transport = httpx.ASGITransport(middleware, client=(f"192.0.2.{number}", 1))
    async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
        return await client.get("/x", headers=fields or {FIELD: f"192.0.2.{number}"})


async def answers(middleware):
    """Return what two clients get, the first one once more."""
    return [await ask(middleware, number) for number in (1, 2, 1)]


async def are_shared(middleware):
    return [found.headers["swr-state"] for found in await answers(middleware)] == ["missing", "fresh", "fresh"]


@pytest.mark.parametrize("has_fastapi", [True, False])
@pytest.mark.parametrize("name", LOOKING)
async def test_response_is_not_shared_when_the_app_reads_an_address_or_field(cache, monkeypatch, name, has_fastapi):
    make, reason = LOOKING[name]
    app = make()
    if not has_fastapi:
        # Where nothing has imported it.
        monkeypatch.delitem(sys.modules, "fastapi")
    found = await answers(SWRMiddleware(app, cache, [RULE]))
    assert {answer.headers["swr-state"] for answer in found} == {"missing"}
    assert f'detail="{reason}' in found[-1].headers["cache-status"]
    texts = [answer.text for answer in found]
    assert texts[0] == texts[2]
    assert texts[0] != texts[1] or name == "field into another field"


async def test_warning_about_an_address_read_in_middleware_is_logged_once(cache, caplog):
    middleware = SWRMiddleware(asgi(api(from_variable), into_variable(lambda scope: scope["client"][0])), cache, [RULE])
    await answers(middleware)
    [said] = [record.getMessage() for record in caplog.records if "address" in record.getMessage()]
    assert said.startswith("the app's own code looks at the client's address before it answers '/x', so swr shares")
    assert "around swr" in said


async def test_response_is_not_shared_when_a_dependency_reads_the_address(cache):
    def here(request: Request) -> str:
        return host_of(request)

    async def endpoint(who: Annotated[str, Depends(here, use_cache=False)]) -> str:
        return who

    assert not await are_shared(SWRMiddleware(api(endpoint), cache, [RULE]))


async def test_response_is_not_shared_when_the_app_reads_the_forwarded_field(cache):
    async def endpoint(request: Request) -> str:
        return request.headers["forwarded"]

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for number in (1, 2):
        found = await ask(middleware, number, {"forwarded": f"for=192.0.2.{number};host=a"})
        assert found.json() == f"for=192.0.2.{number};host=a"
    assert 'detail="field forwarded"' in found.headers["cache-status"]


async def test_read_of_an_absent_field_keeps_its_answer_from_clients_that_send_it(cache):
    middleware = SWRMiddleware(http(api(from_state), into_state(in_state_of_field)), cache, [RULE])
    assert (await ask(middleware, 1, {"x-request-id": "1"})).json() == "none"
    assert (await ask(middleware, 2)).json() == "192.0.2.2"


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "take",
    [
        in_state_of_field,
        lambda request: dict(request.headers).get(FIELD, "none"),
        lambda request: {**request.headers}.get(FIELD, "none"),
        lambda request: {name.lower(): value for name, value in request.headers.items()}.get(FIELD, "none"),
        lambda request: json.dumps(list(request.headers.items())),
        lambda request: f"{request.headers}",
        lambda request: Headers(raw=[(k.encode(), v.encode()) for k, v in request.headers.items()]).get(FIELD, "none"),
    ],
)
@pytest.mark.parametrize("place", ["middleware", "endpoint"])
async def test_response_is_not_shared_when_the_app_copies_or_lists_all_fields(cache, place, take):
    async def endpoint(request: Request) -> str:
        return take(request)

    app = api(endpoint) if place == "endpoint" else http(api(from_state), into_state(take))
    middleware = SWRMiddleware(app, cache, [RULE])
    await ask(middleware, 1, {"x-request-id": "1"})
    alone = await ask(app, 2)
    found = await ask(middleware, 2)
    assert (found.json(), found.headers["swr-state"]) == (alone.json(), "missing")


NAME = FIELD.encode()
# They look for a field with none of the methods by which a name or `Headers` knows which.
AMONG = {
    "dict": lambda scope: dict(scope["headers"]).get(NAME, b"none").decode(),
    "dict of text": lambda scope: {str(k, "latin-1"): str(v, "latin-1") for k, v in scope["headers"]}.get(
        FIELD, "none"
    ),
    "dict of decoded": lambda scope: {k.decode(): v for k, v in scope["headers"]}.get(FIELD, b"none").decode(),
    "set": lambda scope: next((str(v) for k, v in scope["headers"] if k in {NAME, b"x-real-ip"}), "none"),
    "beginning": lambda scope: next((bytes(v).decode() for k, v in scope["headers"] if k.startswith(b"x-fo")), "none"),
    "raw": lambda scope: dict(Request(scope).headers.raw).get(NAME, b"none").decode(),
    "beginning of raw": lambda s: next(
        (v for k, v in Request(s).headers.raw if k.startswith(b"x-fo")), b"none"
    ).decode(),
    "raw, decoded": lambda s: {k.decode(): v for k, v in Request(s).headers.raw}.get(FIELD, b"none").decode(),
    "raw, copied": lambda s: [copy.copy(k) for k, _ in Request(s).headers.raw].count(NAME),
    "request": lambda scope: dict(Request(scope)["headers"]).get(NAME, b"none").decode(),
    "text of all": lambda scope: str(scope["headers"]),
    "values": lambda scope: b" ".join(bytes(v) for _, v in scope["headers"]),
    "values of raw": lambda scope: [v + b"" for _, v in Request(scope).headers.raw],
    "values of raw, cut": lambda scope: [v[:9] + bytes([*v][9:]) for _, v in Request(scope).headers.raw if v],
    "decoded values in text": lambda scope: [f"{v.decode()}" for _, v in scope["headers"]],
    "decoded values as text": lambda scope: [str(v.decode()) for _, v in scope["headers"]],
    "decoded values shown": lambda scope: str([v.decode() for _, v in scope["headers"]]),
    "decoded values added": lambda scope: ["x" + v.decode() for _, v in scope["headers"]],
    "decoded values split": lambda scope: [v.decode().split(".") for _, v in scope["headers"]],
    "decoded values compared": lambda scope: [v.decode() != "192.0.2.2" for _, v in scope["headers"]],
    "values multiplied": lambda scope: [2 * v for _, v in scope["headers"]],
    "values, at least": lambda scope: [v >= b"192.0.2.2" for _, v in scope["headers"]],
    "values formatted": lambda scope: [b"%s" % v for _, v in scope["headers"]],
    "decoded values, at most": lambda scope: [v.decode() <= "192.0.2.1" for _, v in scope["headers"]],
    "other names": lambda scope: [
        str(v, "latin-1") for k, v in scope["headers"] if k.replace(b"-", b"") == b"xforwardedfor"
    ],
    "other text": lambda s: {f"HTTP_{k.decode()}": str(v, "latin-1") for k, v in s["headers"]}.get(f"HTTP_{FIELD}"),
    "bytes of text": lambda s: {k.decode().encode(): str(v, "latin-1") for k, v in s["headers"]}.get(NAME),
    "a cut": lambda scope: [str(v, "latin-1") for k, v in scope["headers"] if k[:4] == b"x-fo"],
    "values added": lambda scope: [b"x" + v for _, v in scope["headers"]],
    "values, equal": lambda scope: [v == b"192.0.2.2" for _, v in scope["headers"]],
    "values, compared": lambda scope: {b"192.0.2.2"} & {v for _, v in scope["headers"]},
    "values, searched": lambda scope: [b"2.2" in v for _, v in Request(scope).headers.raw],
    "values, listed": lambda scope: [copy.deepcopy(v) for _, v in Request(scope).headers.raw] == [b"192.0.2.2"],
    "copied scope": lambda scope: dict(scope)["client"][0],
    "unpacked scope": lambda scope: dict({**scope}["headers"]).get(NAME, b"none").decode(),
    "united scope": lambda scope: (scope | {})["client"][0],
    "united with a scope": lambda scope: ({} | scope)["client"][0],
    "scope copied by `copy`": lambda scope: copy.copy(scope)["client"][0],
    "scope as text": lambda scope: str(scope).count("192.0.2.2"),
    "scope by its names": lambda scope: {name: scope[name] for name in reversed(scope)}["client"][0],
    "scope by its values": lambda scope: [value for value in scope.values() if isinstance(value, tuple)],
    "scope compared": lambda scope: str(scope == {**scope, "client": ("192.0.2.2", 1)}),
    "taken out of the scope": lambda scope: scope.setdefault("copy", scope.pop("client"))[0],
}


@pytest.mark.parametrize("name", AMONG)
async def test_response_is_not_shared_when_the_app_searches_among_all_fields(cache, name):
    def change(scope):
        scope.setdefault("state", {})["here"] = str(AMONG[name](scope))

    app = asgi(api(from_state), change)
    middleware = SWRMiddleware(app, cache, [RULE])
    await ask(middleware, 1, {"x-request-id": "1"})
    for number in (2, 2, 1):
        assert (await ask(middleware, number)).json() == (await ask(app, number)).json()


# What these do with bytes asks none of them, and names no field.
UNASKED = {
    "values": lambda request: " ".join(request.headers.values()),
    "list of values": lambda request: list(request.headers.values()),
    "text": lambda request: [str(value, "latin-1") for _, value in request.scope["headers"]],
    "text by keyword": lambda request: [str(value, encoding="ascii") for _, value in request.scope["headers"]],
    "text of one or the other": lambda request: [
        str(value if len(name) > 4 else name, "latin-1") for name, value in request["headers"]
    ],
    "text of many": lambda request: [str(*pair) for pair in [(value, "ascii") for _, value in request["headers"]]],
    "text in a function": lambda request: (lambda values: [str(value, "ascii") for value in values])(
        [value for _, value in request.scope["headers"]]
    ),
    "joined": lambda request: b",".join([value for _, value in request.scope["headers"]]).decode(),
    "array": lambda request: [bytearray(value).hex() for _, value in request.scope["headers"]],
    "view": lambda request: [memoryview(value).hex() for _, value in request.scope["headers"]],
}


def made_by(middleware):
    async def endpoint(request: Request) -> Any:
        return UNASKED[middleware](request)

    return api(endpoint)


async def asked_with(app, fields, path="/x"):
    """Return the body and `SWR-State` for a request with `Host` and these fields, as a client that sends few."""
    return await get(app, [(b"host", b"test"), *fields], path)


async def get(app, fields, path="/x"):
    """Return the body and `SWR-State` for a request with these fields alone."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(http_scope(path, headers=fields, client=("192.0.2.1", 1)), receive, send)
    return sent[1]["body"], dict(sent[0]["headers"]).get(b"swr-state")


@pytest.mark.parametrize("name", UNASKED)
async def test_reading_values_without_naming_a_field_counts_as_reading_all_fields(cache, name):
    app = made_by(name)
    middleware = SWRMiddleware(app, cache, [RULE])
    for language in (b"", b"de", b"en", b""):
        fields = [(b"accept-language", language)] if language else []
        alone, _ = await asked_with(app, fields)
        assert await asked_with(middleware, fields) == (alone, b"missing")


async def test_response_is_shared_when_the_app_reads_only_the_request_id(cache):
    """Middleware that makes an identifier or counts requests does this."""

    async def endpoint(request: Request) -> str:
        found = dict(request.scope["headers"]).get(b"x-request-id", b"")
        number = str(len(found) if found else 0) + "".join(map(str, [1])) + ",".join(["a", "b"])
        return str(number)

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    fields = [(b"accept-language", b"de")]
    assert [(await asked_with(middleware, fields))[1] for _ in range(2)] == [b"missing", b"fresh"]


async def test_reading_all_values_counts_as_all_fields_even_if_the_first_one_selects(cache):
    async def endpoint(request: Request) -> Any:
        return list(request.headers.values())

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for fields in ([(b"content-type", b"a"), (b"host", b"test")], [(b"content-type", b"a"), (b"from", b"b")]):
        assert await asked_with(asgi(middleware, lambda scope: {**scope, "headers": fields}), []) == (  # noqa: B023
            json.dumps([value.decode() for _, value in fields], separators=(",", ":")).encode(),
            b"missing",
        )


async def test_copy_of_a_field_value_is_plain_bytes(cache):
    async def endpoint(request: Request) -> str:
        (_, value), *_ = request.headers.raw
        return f"{copy.copy(value)!r} {copy.deepcopy(value) is value} {type(copy.copy(value)) is bytes}"

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    assert await asked_with(middleware, []) == (b"\"b'test' True True\"", b"missing")


async def test_response_that_repeats_all_fields_is_never_shared(cache):
    async def endpoint(request: Request) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in request.scope["headers"]}

    app = api(endpoint)
    middleware = SWRMiddleware(app, cache, [RULE])
    for number in (1, 2, 1):
        assert (await ask(middleware, number)).json() == (await ask(app, number)).json()


async def test_field_names_select_the_entry_when_the_app_has_read_them(cache, clock):
    """A background refresh sends the same field names as the client did."""

    def change(scope):
        HERE.set(str(any(name.startswith(b"x-fo") for name, _ in scope["headers"])))

    middleware = SWRMiddleware(asgi(api(from_variable), change), cache, [Rule("/x", fresh_for=60, stale_for=600)])
    plain = {"x-request-id": "1"}
    for fields, right in [(plain, "False"), ({FIELD: "1"}, "True")]:
        found = [await ask(middleware, number, fields) for number in (1, 2)]
        assert [(answer.json(), answer.headers["swr-state"]) for answer in found] == [
            (right, "missing"),
            (right, "fresh"),
        ]
    clock.advance(61)
    for fields, right in [({FIELD: "2"}, "True"), (plain, "False")]:
        found = await ask(middleware, 1, fields)
        assert (found.json(), found.headers["swr-state"]) == (right, "stale")
    await settle()
    for fields, right in [({FIELD: "3"}, "True"), (plain, "False")]:
        found = await ask(middleware, 1, fields)
        assert (found.json(), found.headers["swr-state"]) == (right, "fresh")


async def test_waiting_requests_get_the_answer_for_their_own_field_names(cache):
    gate, runs = anyio.Event(), []

    async def app(scope, receive, send):
        names = str(any(name.startswith(b"x-fo") for name, _ in scope["headers"]))
        runs.append(names)
        await gate.wait()
        await PlainTextResponse(names)(scope, receive, send)

    middleware = SWRMiddleware(app, cache, [RULE])
    found = {}

    async def one(number, fields):
        found[number] = (await ask(middleware, number, fields)).text

    async with anyio.create_task_group() as tasks:
        tasks.start_soon(one, 0, {"x-request-id": "1"})
        while not runs:
            await anyio.lowlevel.checkpoint()
        for number in range(1, 5):
            tasks.start_soon(one, number, {FIELD: "1"} if number % 2 else {"x-request-id": "1"})
        await anyio.wait_all_tasks_blocked()
        gate.set()
    assert found == {number: str(bool(number % 2)) for number in range(5)}
    assert sorted(runs) == ["False", "True"]


@pytest.mark.parametrize(
    ("name", "shared"),
    [
        ("sec-fetch-mode", True),
        ("content-type", True),
        ("purpose", True),
        ("sec-ch-prefers-color-scheme", False),
        ("baggage", False),
        ("uberctx-user", False),
    ],
)
@pytest.mark.parametrize("titled", [False, True])
async def test_ignored_field_is_respected_when_the_app_reads_it(cache, clock, name, shared, titled):
    """A field with few possible values selects the entry; any other field prevents sharing."""

    def look(request):
        if titled:
            wanted = name.title()
            return next((v for k, v in request.scope["headers"] if k.decode().title() == wanted), b"none").decode()
        return request.headers.get(name, "none")

    rule = Rule("/x", fresh_for=60, stale_for=600)
    middleware = SWRMiddleware(http(api(from_state), into_state(look)), cache, [rule])
    for value in ("a", "b", "none", "a"):
        fields = {} if value == "none" else {name: value}
        for state in ("missing", "fresh" if shared else "missing"):
            found = await ask(middleware, 1, {**fields, "x-request-id": "1"})
            assert found.json() == value
            assert found.headers["swr-state"] in (state, "fresh")
    clock.advance(61)
    for _ in range(2):
        assert (await ask(middleware, 1, {name: "b"})).json() == "b"
        await settle()


async def test_purpose_field_in_ignore_fields_selects_nothing_even_if_the_app_reads_it(cache):
    app = http(api(from_variable), into_state(lambda request: request.headers.get("purpose")))
    middleware = SWRMiddleware(app, cache, [RULE], ignore_fields=("Purpose",))
    found = [await ask(middleware, 1, {"purpose": value}) for value in "ab"]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "fresh"]


async def test_response_is_not_shared_when_the_app_reads_the_server_address(cache, caplog):
    """One port is public, the other one is for the operator."""

    async def endpoint(request: Request) -> str:
        return "operator" if request.scope["server"][1] == 9 else request.url.hostname

    def reached(port):
        async def served(scope, receive, send):
            await middleware({**scope, "server": ("10.0.0.1", port)}, receive, send)

        return served

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    assert [(await ask(reached(port), 1)).json() for port in (9, 80, 9)] == ["operator", "test", "operator"]
    assert 'detail="server"' in (await ask(reached(80), 1)).headers["cache-status"]
    [said] = [record.getMessage() for record in caplog.records if "address of the server" in record.getMessage()]
    assert "'/x'" in said


async def test_response_selected_by_field_names_is_private_for_caches_in_between(cache):
    app = asgi(api(from_variable), lambda scope: len(scope["headers"]) and None)
    middleware = SWRMiddleware(app, cache, [Rule("/x", fresh_for=60, client_max_age=9)])
    for _ in range(2):
        assert (await ask(middleware, 1)).headers["cache-control"].startswith("private, ")


async def test_streamed_body_that_reads_the_field_names_is_not_stored(cache, caplog):
    async def endpoint(request: Request) -> StreamingResponse:
        async def content():
            yield str(len(request.scope["headers"]))

        return StreamingResponse(content())

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    found = await answers(middleware)
    assert [answer.headers["swr-state"] for answer in found] == ["missing"] * 3
    assert 'detail="field names"' in found[-1].headers["cache-status"]
    [said] = [record.getMessage() for record in caplog.records if "which fields" in record.getMessage()]
    assert "'/x'" in said


async def test_response_is_shared_when_middleware_reads_fields_only_after_the_app(cache):
    seen = []

    async def log(request, go_on):
        answer = await go_on(request)
        seen.append((host_of(request), request.headers.get("user-agent"), dict(request.headers)))
        return answer

    app = http(http(http(api(from_variable), let_through), log), let_through)
    assert await are_shared(SWRMiddleware(app, cache, [RULE]))
    assert len(seen) == 1


async def missing(request):
    return PlainTextResponse("missing", 404)


async def localized(request):
    return PlainTextResponse(request.path_params["language"])


class AsksAgain:
    """Asks the app for the page in the client's language if it has no other."""

    def __init__(self, app):
        self.app = app

    async def __call__(self, scope, receive, send):
        found = []

        async def keep(message):
            found.append(message)

        await self.app(scope, receive, keep)
        if found[0]["status"] == 404:
            scope["path"] = "/" + Headers(scope=scope).get("accept-language", "en") + scope["path"]
            await self.app(scope, receive, send)
            return
        for message in found:
            await send(message)


@pytest.mark.parametrize("target", ["route", "mount"])
async def test_response_is_not_shared_when_middleware_asks_the_router_again_by_language(cache, target):
    second = Route("/{language}/x", localized)
    if target == "mount":
        second = Mount("/{language}", routes=[Route("/x", localized)])
    app = Starlette(routes=[Route("/x", missing), second], middleware=[Middleware(AsksAgain)])
    inner = SWRMiddleware(app, cache, [RULE])
    for language in ("de", "fr", "de"):
        found = await ask(inner, 1, {"accept-language": language})
        assert (found.text, found.headers["swr-state"]) == (language, "missing")


@pytest.mark.parametrize("place", ["inside, with Vary", "around swr"])
async def test_middleware_may_write_a_request_field_into_the_response_after_the_app(cache, place):
    app = api(from_query)

    async def named(request, call_next):
        response = await call_next(request)
        response.headers["content-language"] = request.headers.get("accept-language", "none")
        if place != "around swr":
            response.headers.append("vary", "accept-language")
        return response

    layers = [(BaseHTTPMiddleware, {"dispatch": named}), (SWRMiddleware, {"cache": cache, "rules": [RULE]})]
    for layer, options in layers if place != "around swr" else reversed(layers):
        app.add_middleware(layer, **options)
    for state in ("missing", "fresh"):
        for language in ("de", "en"):
            found = await ask(app, 1, {"accept-language": language})
            assert found.headers["content-language"] == language
            assert found.headers["swr-state"] == ("fresh" if place == "around swr" and language == "en" else state)


async def test_response_is_shared_when_middleware_stores_the_request_id(cache):
    def identify(request):
        assert [value for name, value in request.scope["headers"] if name.decode() == "x-request-id"] == []
        return request.headers.get("x-request-id", "none") + request.headers["host"]

    assert await are_shared(SWRMiddleware(http(api(from_variable), into_state(identify)), cache, [RULE]))


@pytest.mark.parametrize("options", [{"ignore_fields": (FIELD,)}, {"key": lambda scope: field_of(scope)[:0]}])
async def test_ignore_fields_or_key_lets_responses_be_shared_despite_field_reads(cache, options):
    middleware = SWRMiddleware(http(api(from_variable), into_state(in_state_of_field)), cache, [RULE], **options)
    assert await are_shared(middleware)


@pytest.mark.parametrize("where", ["rule", "Vary"])
async def test_field_named_by_rule_or_vary_selects_the_entry(cache, where):
    app = http(api(from_state), into_state(in_state_of_field))
    if where == "Vary":

        async def say(request, go_on):
            answer = await go_on(request)
            answer.headers["vary"] = FIELD
            return answer

        http(app, say)
    rule = Rule("/x", fresh_for=60, vary=(FIELD,) if where == "rule" else ())
    found = await answers(SWRMiddleware(app, cache, [rule]))
    assert [(answer.json(), answer.headers["swr-state"]) for answer in found] == [
        ("192.0.2.1", "missing"),
        ("192.0.2.2", "missing"),
        ("192.0.2.1", "fresh"),
    ]


async def test_response_with_its_own_max_age_is_shared_despite_an_address_read(cache):
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(host_of(request)[:5], headers={"cache-control": "max-age=60"})

    assert await are_shared(SWRMiddleware(api(endpoint), cache))


async def test_error_response_of_an_app_that_reads_the_address_is_not_shared(cache):
    """The app might answer 503 to one network only."""

    async def endpoint(request: Request) -> str:
        if host_of(request).endswith("1"):
            raise HTTPException(503)
        return "yes"

    found = await answers(SWRMiddleware(api(endpoint), cache, [RULE]))
    assert [answer.status_code for answer in found] == [503, 200, 503]


async def from_middleware(request: Request) -> str:
    return request.state.here


async def declared_address(x_forwarded_for: Annotated[str, Header()]) -> str:
    return x_forwarded_for


@pytest.mark.parametrize("look", [helped, direct, declared_address, from_middleware, from_query])
async def test_waiting_requests_do_not_get_the_exception_of_an_app_that_reads_the_client(cache, look):
    looked: list[str] = []

    @functools.wraps(look)
    async def failing(**arguments: Any) -> str:
        found = await look(**arguments)
        looked.append(found)
        await settle()
        raise RuntimeError(found)

    async def outer(scope, receive, send):
        scope["state"] = {"here": scope["client"][0]}
        await app(scope, receive, send)

    app = api(failing)
    app.add_middleware(SWRMiddleware, cache=cache, rules=[RULE])
    said = [str(error) for error in await gather(*(ask(outer, number) for number in range(1, 5)))]
    if look is from_query:
        # Nothing tells these clients apart.
        assert (said, len(looked)) == (["none"] * 4, 2)
    else:
        assert said == [f"192.0.2.{number}" for number in range(1, 5)]


async def test_response_is_shared_when_the_app_reads_only_host_from_a_dict_of_fields(cache):
    seen = []

    async def app(scope, receive, send):
        fields = {name.decode().lower(): value for name, value in scope["headers"]}
        seen.append(fields)
        assert fields["host"] == dict(scope["headers"])[b"host"] == b"test"
        assert b"host" in [name for name, _ in scope["headers"] if name != b"origin"]
        assert "host" in [name.decode() for name, _ in scope["headers"] if name.decode() != "origin"]
        await PlainTextResponse("x")(scope, receive, send)

    assert await are_shared(SWRMiddleware(app, cache, [RULE]))


def look_at_all_fields(scope):
    """Return the same for all clients, after a look at all fields."""
    return "one" if dict(Headers(scope=scope)) else "none"


async def test_warning_about_reading_all_fields_is_logged_once(cache, caplog):
    async def endpoint(request: Request) -> str:
        return request.headers.items()[0][0]

    assert not await are_shared(SWRMiddleware(api(endpoint), cache, [RULE]))
    [said] = [record.getMessage() for record in caplog.records if "all fields" in record.getMessage()]
    assert said.startswith("the app's own code takes all fields of the request before it answers '/x'")
    assert await are_shared(SWRMiddleware(api(endpoint), cache, [Rule("/x", fresh_for=60, key=look_at_all_fields)]))


class Before:
    """Middleware that calls a function with the scope of each request before the app gets it."""

    def __init__(self, app, change):
        self.app, self.change = app, change

    async def __call__(self, scope, receive, send):
        if scope["type"] == "http":
            self.change(scope)
        await self.app(scope, receive, send)


async def language(request: Request) -> str:
    return request.headers.get("accept-language", "none")


def host_replaced(scope):
    headers = MutableHeaders(scope=scope)
    headers["host"] = headers.get("x-forwarded-host", headers["host"])


def host_updated(scope):
    MutableHeaders(scope=scope).update({"host": "other"})


def host_removed(scope):
    del MutableHeaders(scope=scope)["host"]


def host_left_out(scope):
    scope["headers"] = [pair for pair in Headers(scope=scope).raw if pair[0] != b"host"]


def host_popped(scope):
    MutableHeaders(scope=scope).raw.pop(0)


def request_id_replaced(scope):
    MutableHeaders(scope=scope)["x-request-id"] = "mine"


def found_by_the_same_object(scope):
    headers = MutableHeaders(scope=scope)
    headers["host"] = "other"
    HERE.set(headers.get("accept-language", "none"))


DE = [(b"user-agent", b"x"), (b"accept", b"*/*"), (b"accept-language", b"de")]


@pytest.mark.parametrize(
    ("change", "first", "endpoint"),
    [
        (host_replaced, [], language),
        (host_updated, [], language),
        (host_removed, [], language),
        (host_left_out, [], language),
        (host_popped, [], language),
        (found_by_the_same_object, [], from_variable),
        (request_id_replaced, [(b"x-request-id", b"1")], language),
    ],
)
async def test_search_for_a_missing_field_is_noticed_after_the_app_has_replaced_the_first_field(
    cache, change, first, endpoint
):
    """The middleware that trusts `X-Forwarded-Host` does so, and a gateway that sets its own request identifier."""
    app = api(endpoint)
    app.add_middleware(Before, change=change)
    middleware = SWRMiddleware(app, cache, [RULE])
    assert await get(middleware, [*first, (b"host", b"test")]) == (b'"none"', b"missing")
    assert await asked_with(middleware, DE) == (b'"de"', b"missing")


async def test_response_is_shared_when_the_app_replaces_the_host(cache):
    app = api(lambda: "x")
    app.add_middleware(Before, change=host_replaced)
    middleware = SWRMiddleware(app, cache, [RULE])
    for state in (b"missing", b"fresh"):
        assert await asked_with(middleware, DE) == (b'"x"', state)


async def test_search_for_a_missing_field_is_noticed_in_a_request_without_any_field(cache):
    """HTTP/1.0 allows such requests."""
    middleware = SWRMiddleware(api(language), cache, [RULE])
    for fields, text in ([], b'"none"'), (DE, b'"de"'), ([], b'"none"'):
        assert (await get(middleware, fields))[0] == text


async def passed_on(request: Request) -> str:
    fields = [pair for pair in request.headers.raw if pair[0] not in (b"host", b"connection")]
    return httpx.Headers(fields).get("accept-language", "none")


async def passed_on_from_a_copy(request: Request) -> str:
    fields = request.headers.mutablecopy()
    del fields["host"]
    return httpx.Headers(fields.raw).get("accept-language", "none")


@pytest.mark.parametrize("endpoint", [passed_on, passed_on_from_a_copy])
async def test_gateway_that_passes_the_fields_on_without_the_host_shares_no_language(cache, endpoint):
    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    assert await asked_with(middleware, []) == (b'"none"', b"missing")
    for language in (b"de", b"fr"):
        assert await asked_with(middleware, [(b"accept-language", language)]) == (b'"%b"' % language, b"missing")


@pytest.mark.parametrize(
    "name", ["range", "cache-control", "pragma", "if-range", "accept-encoding", "connection", "via", "early-data"]
)
async def test_field_that_swr_interprets_selects_the_response_if_the_app_reads_it(cache, name):
    async def endpoint(request: Request) -> str:
        return request.headers.get(name, "none")

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for value in ("items=0-0", "none", "items=5-7", "items=0-0", "none"):
        fields = [] if value == "none" else [(name.encode(), value.encode())]
        for _ in range(2):
            text, state = await asked_with(middleware, fields)
            assert text == b'"%b"' % value.encode()
        assert state == b"fresh"


async def test_response_is_shared_when_only_compression_middleware_reads_accept_encoding(cache):
    app = api(lambda: "x")
    app.add_middleware(GZipMiddleware)
    middleware = SWRMiddleware(app, cache, [RULE])
    states = [(await asked_with(middleware, [(b"accept-encoding", coding)]))[1] for coding in (b"gzip", b"br")]
    assert states == [b"missing", b"fresh"]


@pytest.mark.parametrize("kind", ["endpoint", "mounted", "decorated"])
async def test_ranges_of_a_file_are_cut_out_of_the_stored_file(cache, tmp_path, kind):
    file = tmp_path / "x"
    file.write_bytes(b"0123456789")
    app = FastAPI()
    if kind == "mounted":
        app.mount("/", StaticFiles(directory=tmp_path))
    else:

        async def endpoint() -> FileResponse:
            return FileResponse(file)

        app.get("/x")(endpoint if kind == "endpoint" else cache.response(fresh_for=60)(endpoint))
    middleware = SWRMiddleware(app, cache, [RULE])
    asked = [({}, "0123456789", "missing"), ({"Range": "bytes=2-4"}, "234", "fresh")]
    for fields in ({"Range": "bytes=2-4", "If-Range": '"another"'}, {"Range": "items=0-1"}):
        asked.append((fields, "0123456789", "fresh"))
    async with httpx.AsyncClient(transport=httpx.ASGITransport(middleware), base_url="http://test") as client:
        for fields, text, state in asked:
            response = await client.get("/x", headers=fields)
            assert (response.text, response.headers["swr-state"]) == (text, state)


async def test_range_that_an_endpoint_puts_into_a_field_of_its_response_selects_the_response(cache):
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse("x", headers={"X-Asked": dict(request.scope["headers"]).get(b"range", b"").decode()})

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for state in (b"missing", b"fresh"):
        for asked in (b"items=0-0", b"items=5-7"):
            assert await asked_with(middleware, [(b"range", asked)]) == (b"x", state)


async def test_slice_of_items_does_not_answer_other_requests_whoever_says_how_long_it_is_fresh(cache):
    """The frontend react-admin asks for `items=0-9`, and some servers answer with a 200."""

    async def app(scope, receive, send):
        first, _, last = dict(scope["headers"]).get(b"range", b"items=0-3").removeprefix(b"items=").partition(b"-")
        headers = {"Cache-Control": "max-age=60", "Content-Range": f"items {int(first)}-{int(last)}/9"}
        await PlainTextResponse("012345678"[int(first) : int(last) + 1], headers=headers)(scope, receive, send)

    middleware = SWRMiddleware(app, cache)
    for state in (b"missing", b"fresh"):
        for asked, text in [(b"0-0", b"0"), (b"5-7", b"567"), (b"", b"0123")]:
            fields = [(b"range", b"items=" + asked)] if asked else []
            assert await asked_with(middleware, fields) == (text, state)


async def test_range_of_bytes_that_the_app_answers_with_a_200_is_answered_with_the_same_200(cache):
    async def endpoint(request: Request) -> PlainTextResponse:
        first = request.headers.get("range", "bytes=0-").removeprefix("bytes=").partition("-")[0]
        return PlainTextResponse("0123456789"[int(first) :])

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for state in (b"missing", b"fresh"):
        for first, text in [(b"7", b"789"), (b"0", b"0123456789")]:
            assert await asked_with(middleware, [(b"range", b"bytes=%b-" % first)]) == (text, state)


async def test_parts_stay_stored_when_the_app_itself_reads_the_range(cache):
    """An endpoint that serves videos does this."""

    async def endpoint(request: Request) -> PlainTextResponse:
        asked = request.headers.get("range")
        if asked is None:
            return PlainTextResponse("0123456789")
        first, last = map(int, asked.removeprefix("bytes=").split("-"))
        headers = {"Content-Range": f"bytes {first}-{last}/10", "Cache-Control": "max-age=60"}
        return PlainTextResponse("0123456789"[first : last + 1], 206, headers)

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for state in (b"missing", b"fresh"):
        for asked, text in [(b"", b"0123456789"), (b"2-4", b"234"), (b"5-6", b"56")]:
            fields = [(b"range", b"bytes=" + asked)] if asked else []
            assert await asked_with(middleware, fields) == (text, state)


def agent(user_agent: Annotated[str, Header()] = "none") -> str:
    return user_agent


async def test_field_of_a_dependency_that_the_app_resolves_itself_is_respected(cache):
    async def endpoint(request: Request) -> str:
        async with AsyncExitStack() as stack:
            request.scope["fastapi_inner_astack"] = request.scope["fastapi_function_astack"] = stack
            dependant = get_dependant(path="/", call=agent)
            solved = await solve_dependencies(
                request=request, dependant=dependant, async_exit_stack=stack, embed_body_fields=False
            )
        return agent(**solved.values)

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for name in (b"a", b"b"):
        assert await asked_with(middleware, [(b"user-agent", name)]) == (b'"%b"' % name, b"missing")


VALUES = functools.partial(map, operator.itemgetter(1))


class Compiled:
    """Middleware whose coroutine has no frame of its own, as if Cython had compiled it."""

    def __init__(self, app, read):
        self.app, self.read = app, read

    def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return self.app(scope, receive, send)
        keep = scope.setdefault("state", {}).__setitem__
        steps = map(keep, ["here"], self.read(scope))
        return Steps(itertools.chain(filter(None, steps), self.app(scope, receive, send).__await__()))


class Steps:
    def __init__(self, steps):
        self.steps = steps

    def __await__(self):
        return self.steps


@pytest.mark.parametrize(
    ("read", "reason"),
    [
        (lambda scope: map(Headers(scope=scope).get, ["accept-language"], ["none"]), "field accept-language"),
        (lambda scope: map(b" ".join, map(VALUES, map(scope.get, ["headers"]))), "all fields"),
        (lambda scope: map(scope.__getitem__, ["client"]), "address"),
    ],
)
async def test_read_by_compiled_middleware_is_noticed(cache, read, reason):
    app = Starlette(routes=[Route("/x", lambda request: PlainTextResponse(str(request.state.here)))])
    app.add_middleware(Compiled, read=read)
    middleware = SWRMiddleware(app, cache, [RULE])
    texts = [(await ask(middleware, number, {"accept-language": str(number)})).text for number in (1, 2)]
    assert texts[0] != texts[1]
    assert f'detail="{reason}"' in (await ask(middleware, 1)).headers["cache-status"]


def compiled(template, signed):
    """Return an endpoint without Python code that takes what another function does."""
    endpoint = functools.partial(template.format)
    endpoint.__signature__ = inspect.signature(signed)
    return endpoint


async def test_response_of_a_compiled_endpoint_that_takes_the_request_is_not_shared(cache):
    middleware = SWRMiddleware(api(compiled("{request.headers[accept-language]}", language)), cache, [RULE])
    for name in (b"de", b"fr"):
        assert await asked_with(middleware, [(b"accept-language", name)]) == (b'"%b"' % name, b"missing")


@pytest.mark.parametrize("endpoint", [compiled("{country}", from_query), functools.partial(from_state)])
async def test_response_of_other_endpoints_than_functions_is_shared(cache, endpoint):
    assert await are_shared(SWRMiddleware(api(endpoint), cache, [RULE]))


async def test_response_is_shared_when_compiled_middleware_reads_nothing_of_the_client(cache):
    app = api(lambda: "x")
    app.add_middleware(Compiled, read=lambda scope: map(Headers(scope=scope).get, ["host"]))
    assert await are_shared(SWRMiddleware(app, cache, [RULE]))


@pytest.mark.parametrize(
    ("app", "with_starlette", "without"),
    [
        (Router(), True, True),
        (SWRMiddleware(Starlette(), Cache()), True, True),
        (plain, True, False),
        (App(), True, False),
    ],
)
def test_only_possible_starlette_apps_get_a_scope_that_records_reads(monkeypatch, app, with_starlette, without):
    monkeypatch.delitem(sys.modules, "fastapi")
    assert isinstance(routed(http_scope("/x"), app), RoutedScope) is with_starlette
    assert isinstance(routed(http_scope("/x", app=app)), RoutedScope)
    monkeypatch.delitem(sys.modules, "starlette.applications")
    assert isinstance(routed(http_scope("/x"), app), RoutedScope) is without
    assert isinstance(routed(http_scope("/x", router=Router()), app), RoutedScope)


def _awaits(v):
    async def code():
        return str(await v), str(await v, "latin-1")

    return code


@pytest.mark.parametrize(
    ("code", "is_unseen"),
    [
        (lambda v: str(v), False),
        (lambda v: "" + str(v or None), False),
        (lambda v: str(any(name.startswith(b"x") for name, _ in v)), False),
        (lambda v: str(all(part for part in v) and [part + 1 for part in v]), False),
        (lambda v: str((v and v) or 3 if v else [1, *v]), False),
        (lambda v: {str(name): f"{str(value)!r}" for name, value in v}, False),
        (lambda v: str(tuple(part for part in v)), False),
        (lambda v: str(lambda: 1 if v else 2), False),
        (lambda v: list(map(str, v)), False),
        (lambda v: str((yield v)), False),
        (lambda v: str(v, "latin-1"), True),
        (lambda v: str(object=v, encoding="latin-1"), True),
        (lambda v: str(v if v else b"", "latin-1"), True),
        (lambda v: str(any(part for part in v), "latin-1"), True),
        (lambda v: [str(part, encoding="latin-1") for part in v], True),
        (lambda v: str(*v), True),
        (_awaits(b""), True),
        (lambda v: b", ".join(v), True),
        (lambda v: b"%b: %b" % v, True),
        (lambda v: v % 2, False),
        (lambda v: bytearray(v).decode(), True),
    ],
)
def test_code_that_reads_bytes_without_their_methods_is_recognized(code, is_unseen):
    """Compilers of different Python versions emit different instructions for the same code."""
    assert reads_unseen(code.__code__) is is_unseen


def test_scope_accepts_its_endpoint_without_an_event_loop():
    scope = RoutedScope(http_scope("/x"))
    scope.watch([], set())
    contextvars.copy_context().run(scope.__setitem__, "endpoint", plain)
    assert scope.reads.is_routed


class Fields(BaseModel):
    user_agent: str


def agent_of_model(fields: Annotated[Fields, Header()]) -> str:
    return fields.user_agent


@pytest.mark.parametrize("look", [agent, agent_of_model])
async def test_response_is_shared_by_value_when_a_dependency_declares_the_field(cache, look):
    """FastAPI awaits functions of its own that read the fields."""

    async def endpoint(who: Annotated[str, Depends(look)]) -> str:
        return who

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for state in (b"missing", b"fresh"):
        for name in (b"a", b"b"):
            assert await asked_with(middleware, [(b"user-agent", name)]) == (b'"%b"' % name, state)


# -- credentials that many clients share --------------------------------------------------------------------------


PER_CREDENTIAL = Rule("/x", fresh_for=60, stale_for=600, credentials="vary")
OF_THE_APP = {"x-api-key": "of-the-mobile-app"}


def language_of(request: Request) -> str:
    return request.headers.get("accept-language", "none")


async def by_function(request: Request) -> str:
    return language_of(request)


async def asked_for(request: Request) -> str:
    return language_of(request)


async def by_depends(language: Annotated[str, Depends(asked_for)]) -> str:
    return language


async def by_guard() -> str:
    return HERE.get()


async def remember_language(request: Request) -> None:
    HERE.set(language_of(request))


async def by_dict(request: Request) -> str:
    return dict(request.headers).get("accept-language", "none")


async def by_values(request: Request) -> str:
    return next((value for value in request.headers.values() if value in ("de", "fr")), "none")


async def by_text(request: Request) -> str:
    texts = [str(value, "latin-1") for _, value in request.scope["headers"]]
    return next((text for text in texts if text in ("de", "fr")), "none")


async def by_raw_list(request: Request) -> str:
    return next((v for k, v in request.scope["headers"] if k == b"accept-language"), b"none").decode()


def spoken(app):
    """Give the language to the endpoint by middleware inside swr."""
    return http(app, into_state(language_of))


SPEAKING = {
    "function": lambda: api(by_function),
    "dependency": lambda: api(by_depends),
    "guard": lambda: api(by_guard, dependencies=[Depends(remember_language)]),
    "raw list": lambda: api(by_raw_list),
    "all fields": lambda: api(by_dict),
    "all values": lambda: api(by_values),
    "all fields as text": lambda: api(by_text),
    "middleware": lambda: spoken(api(from_state)),
}


@pytest.mark.parametrize("place", SPEAKING)
async def test_language_that_the_app_reads_selects_among_the_responses_of_one_credential(cache, clock, place):
    middleware = SWRMiddleware(SPEAKING[place](), cache, [PER_CREDENTIAL])

    async def states(number=1):
        found = []
        for language in ("de", "fr", "none"):
            fields = {} if language == "none" else {"accept-language": language}
            answer = await ask(middleware, number, {**OF_THE_APP, **fields})
            assert answer.json() == language
            found.append(answer.headers["swr-state"])
        return found

    assert await states() == ["missing"] * 3
    assert await states(2) == ["fresh"] * 3
    clock.advance(61)
    assert await states() == ["stale"] * 3
    await settle()
    assert await states() == ["fresh"] * 3


@pytest.mark.parametrize(
    "name", ["user-agent", "referer", "baggage", "sec-ch-ua-mobile", "sec-ch-prefers-color-scheme"]
)
async def test_descriptive_field_that_the_app_reads_selects_among_the_responses_of_one_credential(cache, name):
    async def endpoint(request: Request) -> str:
        return request.headers.get(name, "none")

    middleware = SWRMiddleware(api(endpoint), cache, [PER_CREDENTIAL])
    for state in ("missing", "fresh"):
        for value in ("a", "b"):
            found = await ask(middleware, 1, {**OF_THE_APP, name: value})
            assert (found.json(), found.headers["swr-state"]) == (value, state)


async def test_language_that_the_app_does_not_read_selects_nothing_under_credentials_vary(cache):
    middleware = SWRMiddleware(api(from_query), cache, [PER_CREDENTIAL])
    found = [await ask(middleware, 1, {**OF_THE_APP, "accept-language": language}) for language in ("de", "fr")]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "fresh"]


@pytest.mark.parametrize("look", [helped, direct, by_values])
async def test_credential_covers_the_address_that_the_app_reads(cache, look):
    middleware = SWRMiddleware(api(look), cache, [PER_CREDENTIAL])
    found = [await ask(middleware, number, {**OF_THE_APP, FIELD: str(number)}) for number in (1, 2)]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "fresh"]


async def spoken_late(request: Request) -> StreamingResponse:
    async def content():
        yield language_of(request)

    return StreamingResponse(content())


async def listed_late(request: Request) -> StreamingResponse:
    async def content():
        yield dict(request.headers).get("accept-language", "none")

    return StreamingResponse(content())


async def served(request: Request) -> str:
    return str(request.scope["server"])


@pytest.mark.parametrize("endpoint", [spoken_late, listed_late, served])
async def test_read_that_cannot_select_prevents_storing_under_credentials_vary(cache, endpoint):
    """The stream looks when its response has begun, and the server's address is in no field."""
    middleware = SWRMiddleware(api(endpoint), cache, [PER_CREDENTIAL])
    for language in ("de", "fr", "de"):
        found = await ask(middleware, 1, {**OF_THE_APP, "accept-language": language})
        assert found.headers["swr-state"] == "missing"
        assert endpoint is served or found.text == language
    assert endpoint is not served or 'detail="server"' in found.headers["cache-status"]


async def test_session_that_a_stream_reads_prevents_storing_under_credentials_vary(cache):
    """The session and not the credential says who asks, also if the app uses it when its response has begun."""

    async def endpoint(request: Request) -> StreamingResponse:
        async def content():
            yield request.session.get("user", "nobody")

        return StreamingResponse(content())

    app = api(endpoint)
    app.add_middleware(SessionMiddleware, secret_key="s")
    middleware = SWRMiddleware(app, cache, [PER_CREDENTIAL], cookies="rfc9111")
    for user in ("nobody", "alice", "bob"):
        signed = itsdangerous.TimestampSigner("s").sign(base64.b64encode(json.dumps({"user": user}).encode())).decode()
        fields = {} if user == "nobody" else {"cookie": f"session={signed}"}
        assert (await ask(middleware, 1, {**OF_THE_APP, **fields})).text == user

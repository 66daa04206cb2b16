"""An answer at whose making the app has looked at an address or a language is shared with nobody."""

import contextvars
import copy
import functools
import json
import sys
from typing import Annotated, Any

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, Header, HTTPException, Request
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.endpoints import HTTPEndpoint
from starlette.middleware import Middleware
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.responses import PlainTextResponse, StreamingResponse
from starlette.routing import Mount, Route, Router
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
async def test_what_the_app_looks_at_is_not_shared(cache, monkeypatch, name, has_fastapi):
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


async def test_middleware_that_logs_an_address_first_is_told_once_where_to_stand(cache, caplog):
    middleware = SWRMiddleware(asgi(api(from_variable), into_variable(lambda scope: scope["client"][0])), cache, [RULE])
    await answers(middleware)
    [said] = [record.getMessage() for record in caplog.records if "address" in record.getMessage()]
    assert said.startswith("the app's own code looks at the client's address before it answers '/x', so swr shares")
    assert "around swr" in said


async def test_an_address_in_a_dependency_is_not_shared(cache):
    def here(request: Request) -> str:
        return host_of(request)

    async def endpoint(who: Annotated[str, Depends(here, use_cache=False)]) -> str:
        return who

    assert not await are_shared(SWRMiddleware(api(endpoint), cache, [RULE]))


async def test_the_address_in_forwarded_is_not_shared_with_clients_that_differ_by_it_alone(cache):
    async def endpoint(request: Request) -> str:
        return request.headers["forwarded"]

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for number in (1, 2):
        found = await ask(middleware, number, {"forwarded": f"for=192.0.2.{number};host=a"})
        assert found.json() == f"for=192.0.2.{number};host=a"
    assert 'detail="field forwarded"' in found.headers["cache-status"]


async def test_a_field_that_only_other_clients_send_counts(cache):
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
async def test_who_takes_all_fields_may_look_at_one_that_only_other_clients_send(cache, place, take):
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
async def test_who_looks_among_all_fields_may_find_one_that_only_other_clients_send(cache, name):
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
    """Return the body and `SWR-State` for a request with these fields alone, as a client that sends few."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    await app(http_scope(path, headers=[(b"host", b"test"), *fields], client=("192.0.2.1", 1)), receive, send)
    return sent[1]["body"], dict(sent[0]["headers"]).get(b"swr-state")


@pytest.mark.parametrize("name", UNASKED)
async def test_who_takes_the_values_without_asking_any_has_taken_all(cache, name):
    app = made_by(name)
    middleware = SWRMiddleware(app, cache, [RULE])
    for language in (b"", b"de", b"en", b""):
        fields = [(b"accept-language", language)] if language else []
        alone, _ = await asked_with(app, fields)
        assert await asked_with(middleware, fields) == (alone, b"missing")


async def test_who_takes_one_field_and_makes_other_text_is_shared(cache):
    """As middleware does that makes an identifier, or counts."""

    async def endpoint(request: Request) -> str:
        found = dict(request.scope["headers"]).get(b"x-request-id", b"")
        number = str(len(found) if found else 0) + "".join(map(str, [1])) + ",".join(["a", "b"])
        return str(number)

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    fields = [(b"accept-language", b"de")]
    assert [(await asked_with(middleware, fields))[1] for _ in range(2)] == [b"missing", b"fresh"]


async def test_who_takes_all_values_of_a_client_whose_first_field_selects_has_taken_all(cache):
    async def endpoint(request: Request) -> Any:
        return list(request.headers.values())

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    for fields in ([(b"content-type", b"a"), (b"host", b"test")], [(b"content-type", b"a"), (b"from", b"b")]):
        assert await asked_with(asgi(middleware, lambda scope: {**scope, "headers": fields}), []) == (  # noqa: B023
            json.dumps([value.decode() for _, value in fields], separators=(",", ":")).encode(),
            b"missing",
        )


async def test_copies_of_the_first_value_are_of_use(cache):
    async def endpoint(request: Request) -> str:
        (_, value), *_ = request.headers.raw
        return f"{copy.copy(value)!r} {copy.deepcopy(value) is value} {type(copy.copy(value)) is bytes}"

    middleware = SWRMiddleware(api(endpoint), cache, [RULE])
    assert await asked_with(middleware, []) == (b"\"b'test' True True\"", b"missing")


async def test_an_endpoint_that_answers_with_the_text_of_all_fields_is_shared_with_nobody(cache):
    async def endpoint(request: Request) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in request.scope["headers"]}

    app = api(endpoint)
    middleware = SWRMiddleware(app, cache, [RULE])
    for number in (1, 2, 1):
        assert (await ask(middleware, number)).json() == (await ask(app, number)).json()


async def test_which_fields_a_client_sends_selects_where_the_app_has_looked_at_that(cache, clock):
    """A background refresh asks as such a client."""

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


async def test_those_who_wait_for_one_load_get_what_is_theirs_by_the_names_of_their_fields(cache):
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
async def test_an_ignored_field_that_the_app_looks_at_is_not_ignored(cache, clock, name, shared, titled):
    """One of few values selects."""

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


async def test_a_field_of_few_values_that_the_operator_ignores_selects_nothing(cache):
    app = http(api(from_variable), into_state(lambda request: request.headers.get("purpose")))
    middleware = SWRMiddleware(app, cache, [RULE], ignore_fields=("Purpose",))
    found = [await ask(middleware, 1, {"purpose": value}) for value in "ab"]
    assert [answer.headers["swr-state"] for answer in found] == ["missing", "fresh"]


async def test_an_address_of_the_server_that_the_app_looks_at_is_not_shared(cache, caplog):
    """One port is open to all, the other one to the operator."""

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


async def test_caches_between_do_not_keep_what_the_names_of_fields_select(cache):
    app = asgi(api(from_variable), lambda scope: len(scope["headers"]) and None)
    middleware = SWRMiddleware(app, cache, [Rule("/x", fresh_for=60, client_max_age=9)])
    for _ in range(2):
        assert (await ask(middleware, 1)).headers["cache-control"].startswith("private, ")


async def test_a_body_that_is_made_of_the_names_of_fields_is_not_stored(cache, caplog):
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


async def test_a_log_on_the_way_back_may_look(cache):
    seen = []

    async def log(request, go_on):
        answer = await go_on(request)
        seen.append((host_of(request), request.headers.get("user-agent"), dict(request.headers)))
        return answer

    app = http(http(http(api(from_variable), let_through), log), let_through)
    assert await are_shared(SWRMiddleware(app, cache, [RULE]))
    assert len(seen) == 1


@pytest.mark.parametrize("place", ["inside, with Vary", "around swr"])
async def test_middleware_may_write_on_the_way_back_what_it_has_looked_at(cache, place):
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


async def test_what_identifies_a_request_may_be_kept(cache):
    def identify(request):
        assert [value for name, value in request.scope["headers"] if name.decode() == "x-request-id"] == []
        return request.headers.get("x-request-id", "none") + request.headers["host"]

    assert await are_shared(SWRMiddleware(http(api(from_variable), into_state(identify)), cache, [RULE]))


@pytest.mark.parametrize("options", [{"ignore_fields": (FIELD,)}, {"key": lambda scope: scope["path"]}])
async def test_the_operator_may_say_that_it_selects_nothing(cache, options):
    middleware = SWRMiddleware(http(api(from_variable), into_state(in_state_of_field)), cache, [RULE], **options)
    assert await are_shared(middleware)


@pytest.mark.parametrize("where", ["rule", "Vary"])
async def test_a_field_that_is_named_selects(cache, where):
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


async def test_the_apps_own_lifetime_is_believed(cache):
    async def endpoint(request: Request) -> PlainTextResponse:
        return PlainTextResponse(host_of(request)[:5], headers={"cache-control": "max-age=60"})

    assert await are_shared(SWRMiddleware(api(endpoint), cache))


async def test_a_failure_of_an_app_that_looks_is_for_nobody_who_waits(cache):
    """A 503 for one network, say."""

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
async def test_an_exception_of_an_app_that_looks_is_for_nobody_else_who_waits(cache, look):
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


async def test_an_app_that_makes_a_dict_of_the_scopes_fields_is_shared(cache):
    seen = []

    async def app(scope, receive, send):
        fields = {name.decode().lower(): value for name, value in scope["headers"]}
        seen.append(fields)
        assert fields["host"] == dict(scope["headers"])[b"host"] == b"test"
        assert b"host" in [name for name, _ in scope["headers"] if name != b"origin"]
        assert "host" in [name.decode() for name, _ in scope["headers"] if name.decode() != "origin"]
        await PlainTextResponse("x")(scope, receive, send)

    assert await are_shared(SWRMiddleware(app, cache, [RULE]))


async def test_an_app_that_takes_all_fields_is_told_once_what_to_do(cache, caplog):
    async def endpoint(request: Request) -> str:
        return request.headers.items()[0][0]

    assert not await are_shared(SWRMiddleware(api(endpoint), cache, [RULE]))
    [said] = [record.getMessage() for record in caplog.records if "all fields" in record.getMessage()]
    assert said.startswith("the app's own code takes all fields of the request before it answers '/x'")
    assert await are_shared(SWRMiddleware(api(endpoint), cache, [Rule("/x", fresh_for=60, key=lambda scope: "one")]))


@pytest.mark.parametrize(
    ("app", "notes"), [(Router(), True), (SWRMiddleware(Starlette(), Cache()), True), (plain, True), (App(), False)]
)
def test_only_what_may_be_an_app_of_starlette_gets_a_scope_that_notes(monkeypatch, app, notes):
    monkeypatch.delitem(sys.modules, "fastapi")
    assert isinstance(routed(http_scope("/x"), app), RoutedScope) == notes
    assert isinstance(routed(http_scope("/x", app=app)), RoutedScope)
    monkeypatch.delitem(sys.modules, "starlette.applications")
    assert isinstance(routed(http_scope("/x"), app), RoutedScope) == (notes and app is not plain)


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
        (lambda v: bytearray(v).decode(), True),
    ],
)
def test_code_that_reads_bytes_without_their_methods_is_told_from_other_code(code, is_unseen):
    """On each version of Python, whose compilers write different instructions."""
    assert reads_unseen(code.__code__) is is_unseen


def test_a_scope_takes_its_endpoint_in_a_thread_without_an_event_loop():
    scope = RoutedScope(http_scope("/x"))
    scope.watch([], set())
    contextvars.copy_context().run(scope.__setitem__, "endpoint", plain)
    assert scope.reads.is_routed

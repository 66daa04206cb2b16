"""A client that holds all of a response, while its app still announces more: the next request does not run the app."""

import asyncio
import contextlib
import socket

import anyio
import anyio.lowlevel
import httpx
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.background import BackgroundTask
from starlette.middleware.base import BaseHTTPMiddleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, StreamingResponse

from swr import Cache
from swr.middleware import SWRMiddleware
from swr.middleware.outbox import Outbox
from tests.fleet import settle, until
from tests.web import MAX_AGE, Client, brief, client, http_scope

PATIENCE = 60
SERVED = pytest.mark.parametrize("anyio_backend", ["asyncio"])
pytestmark = pytest.mark.anyio

LENGTH = [*MAX_AGE, (b"content-length", b"10")]


class Lingering:
    """An app that sends its whole body, announces more, and ends only when the gate opens.

    Parameters:
        headers, status, pieces: of its response.
        rest: sent after the gate.
        error: raised after that.
    """

    def __init__(self, headers, status=200, pieces=(b"01234", b"56789"), rest=(b"",), error=None):
        self.headers, self.status, self.pieces, self.rest, self.error = headers, status, pieces, rest, error
        self.gate = anyio.Event()
        self.runs = self.active = 0

    async def __call__(self, scope, receive, send):
        if scope["type"] != "http":
            return
        self.runs += 1
        self.active += 1
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            for piece in self.pieces:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await self.gate.wait()
            for piece in self.rest:
                await send({"type": "http.response.body", "body": piece, "more_body": bool(piece)})
            if self.error is not None:
                raise self.error
        finally:
            self.active -= 1


@contextlib.asynccontextmanager
async def served(app):
    """Serve an app on a real socket, and give a function that sends a request on a connection of its own."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="off", log_config=None, access_log=False))
    serving = asyncio.create_task(server.serve([listener]))
    async with contextlib.AsyncExitStack() as stack:

        async def ask(number, method="GET", **headers):
            # With a connection of its own: the server keeps the next request on a connection until the app has ended.
            http = await stack.enter_async_context(httpx.AsyncClient(timeout=PATIENCE, verify=False))
            headers = {name.replace("_", "-"): value for name, value in headers.items()}
            return await http.request(method, f"http://127.0.0.1:{listener.getsockname()[1]}/{number}", headers=headers)

        try:
            yield ask
        finally:
            server.should_exit = True
            await serving


class Streams:
    """A FastAPI app that streams a body of known length, and whose generator ends when the gate opens."""

    def __init__(self):
        self.gate = anyio.Event()
        self.runs = self.active = 0
        self.pieces = [b"0123456789"]
        self.inside = FastAPI()
        self.inside.get("/{number}")(self.stream)

    async def __call__(self, scope, receive, send):
        await self.inside(scope, receive, send)

    async def stream(self, number: str):
        async def pieces():
            self.runs, self.active = self.runs + 1, self.active + 1
            yield self.pieces[0]
            await self.gate.wait()
            self.active -= 1

        return StreamingResponse(pieces(), headers={name.decode(): value.decode() for name, value in LENGTH})


def wrapped(app):
    return BaseHTTPMiddleware(app, lambda request, call_next: call_next(request))


WHOLE = (200, "0123456789")
PARTS = [*MAX_AGE, (b"content-length", b"6"), (b"content-range", b"bytes 4-9/10")]
TAGGED = [*LENGTH, (b"etag", b'"1"')]
# The app, the fields of the first request, those of the second, and its answer.
CASES = [
    (Lingering(LENGTH), {}, {}, WHOLE),
    (Lingering(LENGTH), {}, {"method": "HEAD"}, (200, "")),
    (Lingering(LENGTH), {}, {"range": "bytes=2-4"}, (206, "234")),
    (Lingering(LENGTH), {}, {"cache_control": "only-if-cached"}, WHOLE),
    (Lingering([*LENGTH, (b"vary", b"foo")]), {"foo": "1,2"}, {"foo": "1, 2"}, WHOLE),
    (Lingering([*LENGTH, (b"vary", b"accept")]), {"accept": "a/b"}, {"accept": "a/b", "method": "HEAD"}, (200, "")),
    (Lingering(PARTS, 206, [b"456789"]), {"range": "bytes=-6"}, {"range": "bytes=6-8"}, (206, "678")),
    (Lingering(TAGGED), {"if_none_match": '"2"'}, {"if_none_match": '"1"', "range": "bytes=1-2"}, (304, "")),
    (Lingering([*MAX_AGE, (b"content-length", b"0")], pieces=[b""]), {}, {"method": "HEAD"}, (200, "")),
    (Lingering(MAX_AGE, 204, pieces=[b""]), {}, {"method": "HEAD"}, (204, "")),
    (Lingering([*LENGTH, (b"content-location", b"")]), {"method": "POST"}, {}, WHOLE),
    (wrapped(Lingering(LENGTH)), {}, {"range": "bytes=2-4"}, (206, "234")),
    (Streams(), {}, {"range": "bytes=2-4"}, (206, "234")),
    (wrapped(Streams()), {}, {"range": "bytes=2-4"}, (206, "234")),
]


@SERVED
@pytest.mark.parametrize("outer", [lambda app: app, wrapped], ids=["plain", "wrapped"])
async def test_next_request_hits_although_the_app_has_not_ended(outer):
    apps = [getattr(app, "app", app) for app, *_ in CASES]

    async def dispatch(scope, receive, send):
        await CASES[int(scope["path"][1:])][0](scope, receive, send)

    async with served(outer(SWRMiddleware(dispatch, Cache(), cookies="rfc9111"))) as ask:
        for number, (app, (_, first, second, answer)) in enumerate(zip(apps, CASES, strict=True)):
            app.gate, app.runs = anyio.Event(), 0
            try:
                response = await ask(number, **first)
                assert response.content == b"".join(app.pieces), number
                response = await ask(number, **second)
                assert (app.runs, app.active) == (1, 1), number
            finally:
                app.gate.set()
            assert (response.status_code, response.text, response.headers["swr-state"]) == (*answer, "fresh"), number
    assert not any(app.active for app in apps)


async def test_response_is_already_stored_when_the_304_is_sent(cache):
    """A 304 has no body, so the client holds all of its answer at once."""
    app = Lingering([*LENGTH, (b"etag", b'"1"')], pieces=[b"0123456789"])
    middleware = SWRMiddleware(app, cache)
    states = []

    async def send(message):
        if message["type"] == "http.response.start":
            async with client(middleware) as http:
                states.append((message["status"], (await http.head("/x")).headers["swr-state"]))

    app.gate.set()
    await middleware(http_scope("/x", headers=[(b"host", b"test"), (b"if-none-match", b'"1"')]), Client().receive, send)
    assert (states, app.runs) == ([(304, "fresh")], 1)


@pytest.mark.parametrize(
    ("rest", "error"),
    [([b"more", b""], None), ([b"more"], None), ([b""], None), ([], None), ([], RuntimeError("broken"))],
    ids=["more body", "more body, no end", "proper end", "no end", "failure"],
)
@pytest.mark.parametrize("method", ["GET", "POST"])
async def test_complete_response_is_withdrawn_unless_the_app_ends_it_properly(cache, rest, error, method):
    app = Lingering([*LENGTH, (b"content-location", b"/x"), (b"vary", b"")], rest=rest, error=error)
    app.gate.set()
    middleware = SWRMiddleware(app, cache)
    with contextlib.suppress(Exception):
        await middleware(http_scope("/x", method=method), Client().receive, Client().send)
    app.rest, app.error = [b""], None
    async with client(middleware) as http:
        state = "fresh" if rest == [b""] else "missing"
        assert brief(await http.get("/x")) == (*WHOLE, state)


async def test_refresh_that_fails_after_its_whole_body_keeps_the_stored_response(cache, clock):
    app = Lingering(LENGTH)
    app.gate.set()
    async with client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        app.pieces, app.rest, app.error = [b"9876543210"], [], RuntimeError("broken")
        clock.advance(61)
        for _ in range(2):
            assert brief(await http.get("/x")) == (*WHOLE, "stale")
            await settle()
    assert app.runs == 2


async def test_complete_error_response_frees_waiting_requests_before_the_app_ends(cache):
    app = Lingering([(b"content-length", b"10")], 503)
    middleware, first = SWRMiddleware(app, cache), Client()
    async with anyio.create_task_group() as group:
        group.start_soon(middleware, http_scope("/x"), first.receive, first.send)
        await until(lambda: sum(len(message.get("body", b"")) for message in first.sent) == 10)
        app.pieces, app.rest = [b"abcdefghij"], [b""]
        async with client(middleware) as http:
            app.gate.set()
            assert (await http.get("/x")).text == "abcdefghij"
    assert app.runs == 2


@SERVED
@pytest.mark.parametrize("is_stored", [True, False])
async def test_background_task_sees_the_client_disconnect_after_the_response(is_stored):
    """As it does without the cache: a task that asks in a loop would never end."""
    ended = anyio.Event()

    async def poll(request):
        while not await request.is_disconnected():
            await anyio.lowlevel.checkpoint()
        ended.set()

    async def answer(scope, receive, send):
        fields = {"cache-control": "max-age=60" if is_stored else "no-store"}
        response = PlainTextResponse("x", background=BackgroundTask(poll, Request(scope, receive)), headers=fields)
        await response(scope, receive, send)

    async with served(SWRMiddleware(answer, Cache())) as ask:
        assert (await ask(1)).text == "x"
        with anyio.fail_after(PATIENCE):
            await ended.wait()


async def test_background_refresh_receives_http_disconnect_after_its_response(cache, clock):
    heard = []

    async def answer(scope, receive, send):
        await PlainTextResponse("x", headers={"cache-control": "max-age=1, stale-while-revalidate=60"})(
            scope, receive, send
        )
        heard.append([(await receive())["type"] for _ in range(2)])

    async with client(SWRMiddleware(answer, cache)) as http:
        await http.get("/x")
        clock.advance(2)
        assert brief(await http.get("/x")) == (200, "x", "stale")
        await until(lambda: len(heard) == 2)
    assert heard == [["http.request", "http.disconnect"]] * 2


async def test_app_that_waits_for_its_client_to_leave_ends_and_its_response_is_stored(cache):
    ended = []

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": LENGTH})
        await send({"type": "http.response.body", "body": b"0123456789", "more_body": True})
        while (await receive())["type"] != "http.disconnect":
            pass
        ended.append(1)

    middleware, one = SWRMiddleware(app, cache), Client()
    async with anyio.create_task_group() as group:
        group.start_soon(middleware, http_scope("/x", headers=[(b"host", b"test")]), one.receive, one.send)
        await until(lambda: len(one.sent) > 1)
        assert not ended
        one.gone.set()
    await until(lambda: ended)
    async with client(middleware) as http:
        assert brief(await http.get("/x")) == (*WHOLE, "fresh")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
@pytest.mark.parametrize("length", [None, "10"])
@pytest.mark.parametrize("pieces", [[], ["01234"]])
async def test_stream_that_breaks_off_inside_base_http_middleware_is_not_stored(cache, length, pieces):
    """`BaseHTTPMiddleware` ends the response as if it were whole, and raises the failure of its app after that."""
    app, runs = FastAPI(), []
    app.middleware("http")(lambda request, call_next: call_next(request))

    @app.get("/x")
    async def stream():
        async def body():
            for piece in pieces:
                yield piece
            if len(runs) == 1:
                raise RuntimeError("broken")
            yield "0123456789"[sum(map(len, pieces)) :]

        runs.append(1)
        headers = {"cache-control": "max-age=60"}
        return StreamingResponse(body(), headers=headers if length is None else {**headers, "content-length": length})

    async with client(SWRMiddleware(app, cache), raises=False) as http:
        await http.get("/x")
        assert brief(await http.get("/x")) == (*WHOLE, "missing")
        assert brief(await http.get("/x")) == (*WHOLE, "fresh")


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_stored_response_stays_when_its_background_task_fails(cache):
    async def fail():
        raise RuntimeError("broken")

    response = PlainTextResponse(WHOLE[1], headers={"cache-control": "max-age=60"}, background=BackgroundTask(fail))
    async with client(SWRMiddleware(response, cache), raises=False) as http:
        await http.get("/x")
        assert brief(await http.get("/x")) == (*WHOLE, "fresh")


async def test_app_receives_http_disconnect_although_swr_already_waits_for_it():
    """Servers allow one call of `receive` at a time."""
    one, heard = Client(), []
    outbox = Outbox(one.receive)
    outbox.let_hear()
    one.asked = 1

    async def listen():
        heard.append(await outbox.receive())

    async with anyio.create_task_group() as group:
        group.start_soon(outbox.watch, anyio.CancelScope())
        await until(lambda: one.asked == 2)
        group.start_soon(listen)
        await settle()
        one.gone.set()
    await listen()
    assert (heard, one.asked) == ([{"type": "http.disconnect"}] * 2, 2)


async def test_body_sent_after_the_last_message_is_not_stored():
    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
        await send({"type": "http.response.body", "body": b"whole"})
        await send({"type": "http.response.body", "body": b", and more"})

    async with Cache() as cache, client(SWRMiddleware(app, cache)) as http:
        await http.get("/x")
        assert (await http.get("/x")).text == "whole"

"""Responses that do not end, runs that hang, and clients that leave: nobody waits for them, and nothing is left."""

import asyncio
import contextlib
import gc
import logging
import socket
import threading
import weakref

import anyio
import pytest
import uvicorn
from fastapi import FastAPI
from starlette.requests import ClientDisconnect
from starlette.responses import StreamingResponse

from swr import Cache
from swr.errors import ConfigurationError
from swr.middleware import Rule, SWRMiddleware
from tests.fleet import gather, settle, until
from tests.web import MAX_AGE, App, Client, client, http_scope

pytestmark = pytest.mark.anyio

PATIENCE = 60
RULES = [Rule("/{rest:path}", fresh_for=60, stale_for=600)]
STALE = [(b"cache-control", b"max-age=1, stale-while-revalidate=600, stale-if-error=600")]


@pytest.fixture
def no_collector():
    """Turn the garbage collector off: it frees no reference cycles."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Stream:
    """An app whose answers never end, unless they are told to.

    Parameters:
        status, headers: of the answer.
        chunk: sent again and again; None: nothing comes after the header.
    """

    def __init__(self, status=200, headers=(), chunk=b"{}\n", *, is_unending=True):
        self.status, self.headers, self.chunk = status, list(headers), chunk
        self.is_unending = is_unending
        self.runs = self.active = self.closed = 0

    async def __call__(self, scope, receive, send):
        self.runs += 1
        self.active += 1
        try:
            await send({"type": "http.response.start", "status": self.status, "headers": self.headers})
            while self.is_unending:
                if self.chunk is not None:
                    await send({"type": "http.response.body", "body": self.chunk, "more_body": True})
                await anyio.sleep(0.005)
            await send({"type": "http.response.body", "body": b"the end"})
        finally:
            self.active -= 1


def shielded(middleware):
    """A server that does not cancel what a client has left, and ends a request of whose client it cannot be rid."""

    async def ask(one, path="/x", **more):
        with contextlib.suppress(OSError):
            await middleware(http_scope(path, **more), one.receive, one.send)

    return ask


def status_of(one):
    return dict(one.sent[0]["headers"])[b"cache-status"]


def chunks(one):
    return [message["body"] for message in one.sent[1:]]


class TestEndlessBody:
    """Who: an endpoint under a catch-all rule that streams NDJSON, on the day the rule is deployed."""

    @pytest.mark.parametrize("chunk", [b"{}\n", b""], ids=["content", "empty"])
    async def test_endless_body_is_streamed_to_every_reader(self, cache, chunk):
        app = Stream(headers=[(b"content-type", b"application/x-ndjson")], chunk=chunk)
        ask = shielded(SWRMiddleware(app, cache, RULES, max_body_time=0.2))
        readers = [Client() for _ in range(5)]
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(ask, reader)
                await until(lambda: app.runs)
            await until(lambda: all(len(chunks(reader)) > 3 for reader in readers), PATIENCE)
            assert app.runs == 5
            late = Client()
            group.start_soon(ask, late)
            await until(lambda: len(chunks(late)) > 3, PATIENCE)
            assert status_of(late) == b'swr; fwd=uri-miss; detail="too slow"'
            for reader in (*readers, late):
                reader.gone.set()
        assert app.active == 0

    async def test_run_ends_when_its_only_client_leaves_before_max_body_time(self, cache):
        app = Stream()
        middleware = SWRMiddleware(app, cache, RULES, max_body_time=0.2)
        readers = [Client(fails=False) for _ in range(50)]
        async with anyio.create_task_group() as group:
            for number, reader in enumerate(readers):
                group.start_soon(shielded(middleware), reader, f"/{number}")
            await until(lambda: app.active == 50)
            for reader in readers:
                reader.gone.set()
            await until(lambda: app.active == 0, PATIENCE)
        assert not cache.engine.flights

    async def test_run_of_too_long_body_ends_when_its_client_leaves(self, cache):
        app = Stream(chunk=b"x" * 1000)
        reader = Client()
        middleware = SWRMiddleware(app, cache, RULES, max_body_bytes=5_000, max_body_time=None)
        async with anyio.create_task_group() as group:
            group.start_soon(shielded(middleware), reader)
            await until(lambda: len(reader.sent) > 20)
            reader.gone.set()
        assert app.active == 0

    async def test_background_refresh_with_endless_body_ends_and_keeps_the_stale_entry(self, cache, clock, caplog):
        app = Stream(headers=STALE, is_unending=False)
        async with client(SWRMiddleware(app, cache, max_body_time=0.2)) as http:
            await http.get("/x")
            clock.advance(2)
            app.is_unending = True
            with caplog.at_level(logging.WARNING, "swr"):
                assert (await http.get("/x")).headers["swr-state"] == "stale"
                await until(lambda: app.runs == 2 and not app.active, PATIENCE)
            assert (await http.get("/x")).headers["swr-state"] == "stale"
        assert "0.2 s, its max_body_time" in caplog.text
        assert app.runs == 2

    def test_endless_body_passes_through_on_a_second_event_loop(self):
        """Who: a script that calls `run_until_complete` on one event loop after another, each of which it closes."""
        cache = Cache()
        app = Stream()
        ask = shielded(SWRMiddleware(app, cache, RULES, max_body_time=0.2))

        async def read():
            reader = Client()
            async with anyio.create_task_group() as group:
                group.start_soon(ask, reader)
                await until(lambda: len(chunks(reader)) > 3, PATIENCE)
                await until(lambda: not cache.engine.flights, PATIENCE)
                reader.gone.set()

        for _ in range(2):
            loop = asyncio.new_event_loop()
            loop.run_until_complete(read())
            loop.close()
        assert app.runs == 2

    # trio warns of generators that are closed when they are freed.
    @pytest.mark.uncounted
    @pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
    @pytest.mark.parametrize("spec_version", ["2.3", "2.4"], ids=["the app listens", "sending fails"])
    async def test_generator_of_endless_body_is_closed_at_once_when_its_client_leaves(
        self, cache, spec_version, no_collector
    ):
        app = FastAPI()
        closed = []

        @app.get("/stream")
        @cache.response(fresh_for=60)
        async def stream():
            async def lines():
                try:
                    while True:
                        yield "{}\n"
                        await anyio.sleep(0.005)
                finally:
                    closed.append(1)

            return StreamingResponse(lines(), media_type="application/x-ndjson")

        app.add_middleware(SWRMiddleware, cache=cache, max_body_time=0.2)
        readers = [Client(fails=spec_version == "2.4") for _ in range(3)]

        async def ask(scope, reader):
            with contextlib.suppress(OSError, ClientDisconnect):
                await app(scope, reader.receive, reader.send)

        async with anyio.create_task_group() as group:
            for reader in readers:
                scope = http_scope("/stream", asgi={"version": "3.0", "spec_version": spec_version})
                group.start_soon(ask, scope, reader)
            await until(lambda: all(len(chunks(reader)) > 3 for reader in readers), PATIENCE)
            for reader in readers:
                reader.gone.set()
        await until(lambda: len(closed) == 3, PATIENCE)

    async def test_run_with_endless_body_ends_after_its_client_got_304(self, cache):
        app = Stream(headers=[*MAX_AGE, (b"etag", b'"a"')])
        reader = Client()
        ask = shielded(SWRMiddleware(app, cache, max_body_time=0.2))
        await ask(reader, headers=[(b"host", b"test"), (b"if-none-match", b'"a"')])
        assert reader.sent[0]["status"] == 304
        assert app.active == 0

    @pytest.mark.parametrize(
        ("chunk", "chunks_seen", "bound"),
        [(b"x", 3, {"max_body_time": 0.2}), (b"x" * 1000, 10, {"max_body_bytes": 5_000, "max_body_time": None})],
        ids=["too slow", "too long"],
    )
    async def test_endless_error_body_is_streamed_to_every_reader(self, cache, chunk, chunks_seen, bound):
        app = Stream(status=500, chunk=chunk)
        ask = shielded(SWRMiddleware(app, cache, RULES, **bound))
        readers = [Client() for _ in range(3)]
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(ask, reader)
            await until(lambda: all(len(chunks(reader)) > chunks_seen for reader in readers), PATIENCE)
            for reader in readers:
                reader.gone.set()
        assert app.active == 0

    async def test_endless_error_body_is_replaced_by_the_fallback(self, cache, clock):
        app = Stream(headers=[(b"cache-control", b"max-age=1, stale-if-error=600")], is_unending=False)
        async with client(SWRMiddleware(app, cache, max_body_time=0.2)) as http:
            await http.get("/x")
            clock.advance(2)
            app.is_unending, app.status, app.headers = True, 503, []
            answer = await http.get("/x")
        assert (answer.status_code, answer.text, answer.headers["swr-state"]) == (200, "the end", "stale")
        await until(lambda: not app.active, PATIENCE)

    @pytest.mark.parametrize("chunk", [None, b"x"], ids=["no body", "a body"])
    async def test_endless_304_is_answered_with_the_stored_response(self, cache, clock, chunk):
        fields = [(b"cache-control", b"max-age=1, stale-if-error=600"), (b"etag", b'"a"')]
        app = Stream(headers=fields, is_unending=False)
        async with client(SWRMiddleware(app, cache, max_body_time=0.2)) as http:
            await http.get("/x")
            clock.advance(2)
            app.is_unending, app.status, app.chunk = True, 304, chunk
            answer = await http.get("/x")
            assert (answer.status_code, answer.text) == (200, "the end")
            assert ("fwd-status=504" in answer.headers["cache-status"]) is (chunk is None)
            await until(lambda: not app.active, PATIENCE)

    async def test_slow_body_is_shared_when_max_body_time_is_none(self, cache):
        app = Stream()
        ask = shielded(SWRMiddleware(app, cache, RULES, max_body_time=None))
        first, second = Client(), Client()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, first)
            await until(lambda: len(chunks(first)) > 3)
            group.start_soon(ask, second)
            await anyio.sleep(0.3)
            assert (app.runs, second.sent) == (1, [])
            app.is_unending = False
        assert (app.runs, chunks(second)[0][-7:]) == (1, b"the end")

    async def test_response_that_ends_in_time_is_stored_while_app_runs_a_background_task(self, cache):
        app = App(MAX_AGE, body=b"x")
        done = anyio.Event()

        async def background(scope, receive, send):
            await app(scope, receive, send)
            await done.wait()

        middleware = SWRMiddleware(background, cache, max_body_time=3600)
        async with anyio.create_task_group() as group:
            one = Client()
            group.start_soon(shielded(middleware), one)
            await until(lambda: len(one.sent) == 2)
            # The time is up while the app goes on in the background.
            (capture,) = middleware.config.slow_bodies._table.due
            capture.on_due(3600.0)
            await settle()
            done.set()
        async with client(SWRMiddleware(background, cache)) as http:
            assert (await http.get("/x")).headers["swr-state"] == "fresh"

    @pytest.mark.parametrize("value", [0, -1, "soon"])
    def test_invalid_max_body_time_is_refused(self, value):
        with pytest.raises(ConfigurationError, match="max_body_time"):
            SWRMiddleware(App(), Cache(), max_body_time=value)


class TestHangingRun:
    """Who: an app whose database does not answer; its clients give up one by one."""

    @pytest.mark.uncounted
    async def test_requests_end_when_their_clients_leave_while_the_run_goes_on(self, cache):
        app = App(MAX_AGE)
        app.gate = anyio.Event()
        ask = shielded(SWRMiddleware(app, cache))
        async with anyio.create_task_group() as group:
            first, staying = Client(), Client()
            group.start_soon(ask, first)
            await app.begun.wait()
            group.start_soon(ask, staying)
            async with anyio.create_task_group() as leaving:
                waiters = [first, *(Client(fails=number % 2 == 0) for number in range(399))]
                for waiter in waiters[1:]:
                    leaving.start_soon(ask, waiter)
                await settle()
                for waiter in waiters:
                    waiter.gone.set()
            # All of them have ended, though the run goes on.
            assert app.runs == 1
            app.gate.set()
        assert staying.sent[1]["body"] == b"1"
        answered = [waiter for waiter in waiters if waiter.sent]
        assert {waiter.sent[0]["status"] for waiter in answered} <= {499, 200}

    @pytest.mark.parametrize("anyio_backend", ["asyncio"])
    async def test_clients_that_leave_a_hanging_run_leave_no_asyncio_tasks(self, cache):
        app = App(MAX_AGE)
        app.gate = anyio.Event()
        middleware = SWRMiddleware(app, cache)
        waiters = [Client() for _ in range(400)]
        tasks = []
        for waiter in waiters:
            call = middleware(http_scope("/x"), waiter.receive, waiter.send)
            tasks.append(asyncio.create_task(call))
        await app.begun.wait()
        await settle()
        for waiter in waiters:
            waiter.gone.set()
        await asyncio.wait_for(asyncio.gather(*tasks), PATIENCE)
        # This test, the run, and the cache's own.
        assert len(asyncio.all_tasks()) < 8
        app.gate.set()
        async with client(middleware) as http:
            await until(lambda: not cache.engine.flights)
            assert (await http.get("/x")).headers["swr-state"] == "fresh"

    async def test_client_that_stays_is_answered_after_swr_watched_it_for_disconnect(self, cache):
        app = App([])
        heard = []

        async def listening(scope, receive, send):
            heard.append(await receive())
            app.gate = app.gate or anyio.Event()
            await app(scope, receive, send)

        ask = shielded(SWRMiddleware(listening, cache))
        first, second = Client(), Client()
        async with anyio.create_task_group() as group:
            group.start_soon(ask, first)
            group.start_soon(ask, second)
            await app.begun.wait()
            # Both are watched now.
            await until(lambda: min(first.asked, second.asked) > 1, PATIENCE)
            app.gate.set()
        # It cannot be stored, so each had a run of its own; each heard all that its client sent.
        assert {one.sent[1]["body"] for one in (first, second)} == {b"1", b"2"}
        assert heard == [{"type": "http.request", "body": b"", "more_body": False}] * 2

    async def test_swr_does_not_poll_a_client_whose_app_listens_for_disconnect(self, cache):
        heard = []
        gate = anyio.Event()

        async def app(scope, receive, send):
            async def listen():
                while True:
                    heard.append((await receive())["type"])
                    if heard[-1] == "http.disconnect":
                        break

            async with anyio.create_task_group() as group:
                group.start_soon(listen)
                await gate.wait()
                await App(MAX_AGE)(scope, receive, send)
                group.cancel_scope.cancel()

        one = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(shielded(SWRMiddleware(app, cache)), one)
            await until(lambda: one.asked > 1, PATIENCE)
            await anyio.sleep(1.2)
            assert one.asked == 2
            one.gone.set()
        # The client has gone, and the run goes on without having heard of it.
        assert heard == ["http.request"]
        gate.set()
        async with client(SWRMiddleware(app, cache)) as http:
            assert (await http.get("/x")).text == "1"

    async def test_background_task_finishes_when_client_leaves_after_its_answer(self, cache):
        app, done = App([(b"set-cookie", b"a=1")]), []
        gate = anyio.Event()

        async def background(scope, receive, send):
            await app(scope, receive, send)
            await gate.wait()
            done.append(1)

        one = Client()
        async with anyio.create_task_group() as group:
            group.start_soon(shielded(SWRMiddleware(background, cache)), one)
            await until(lambda: len(one.sent) == 2)
            one.gone.set()
            await until(lambda: one.asked > 1, PATIENCE)
            await anyio.sleep(0.1)
            gate.set()
        assert done == [1]

    async def test_hanging_run_is_answered_with_504_after_hard_timeout(self, cache):
        app = App(MAX_AGE)
        app.gate = anyio.Event()
        readers = [Client() for _ in range(5)]
        ask = shielded(SWRMiddleware(app, cache, hard_timeout=0.2))
        async with anyio.create_task_group() as group:
            for reader in readers:
                group.start_soon(ask, reader)
        assert {reader.sent[0]["status"] for reader in readers} == {504}
        assert not cache.engine.flights

    async def test_app_that_listens_late_receives_the_request_body(self, cache):
        one, heard = Client(), []

        async def app(scope, receive, send):
            # Until the client is watched.
            await until(lambda: one.asked > 1, PATIENCE)
            heard.append(await receive())
            await App(MAX_AGE)(scope, receive, send)

        await shielded(SWRMiddleware(app, cache))(one)
        assert heard == [{"type": "http.request", "body": b"", "more_body": False}]
        assert one.sent[1]["body"] == b"1"

    async def test_two_runs_that_request_each_other_raise_configuration_error(self, cache):
        begun = []

        async def app(scope, receive, send):
            begun.append(scope["path"])
            await until(lambda: len(begun) > 1, PATIENCE)
            async with client(middleware) as http:
                await http.get("/b" if scope["path"] == "/a" else "/a")
            await App(MAX_AGE)(scope, receive, send)

        middleware = SWRMiddleware(app, cache)
        async with client(middleware) as http:
            answers = await gather(http.get("/a"), http.get("/b"))
        assert any(isinstance(answer, ConfigurationError) for answer in answers)


async def test_app_gets_one_error_when_a_slow_client_has_left(cache):
    """The part that was being sent when the response became too long does not reach the client."""
    heard, taken = [], anyio.Event()

    async def app(scope, receive, send):
        await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
        for _ in range(3):
            try:
                await send({"type": "http.response.body", "body": b"x" * 1000, "more_body": True})
                heard.append("")
            except OSError as error:
                heard.append(str(error))

    class Slow(Client):
        async def send(self, message):
            await taken.wait()
            raise OSError("gone")

    one = Slow()
    async with anyio.create_task_group() as group:
        group.start_soon(shielded(SWRMiddleware(app, cache, max_body_bytes=1500)), one)
        await until(lambda: heard == [""])
        await settle()
        taken.set()
    assert heard == ["", "gone", ""]


class TestMiss:
    """Who: an app that has many more URLs than clients request twice."""

    async def test_each_miss_starts_one_task(self, cache, monkeypatch):
        ask, started = shielded(SWRMiddleware(App(MAX_AGE), cache)), []
        await ask(Client(), "/first")
        start = cache.engine.runtime.tasks.start
        monkeypatch.setattr(
            cache.engine.runtime.tasks, "start", lambda *args, **more: started.append(args) or start(*args, **more)
        )
        for number in range(10):
            await ask(Client(), f"/{number}")
        assert len(started) == 10

    @pytest.mark.uncounted
    async def test_miss_frees_the_request_scope_without_garbage_collector(self, cache, no_collector):
        class Held:
            pass

        ask = shielded(SWRMiddleware(Stream(headers=MAX_AGE, is_unending=False), cache))
        held = Held()
        freed = weakref.ref(held)
        await ask(Client(), extensions={"held": held})
        del held
        await until(lambda: freed() is None, PATIENCE)

    async def test_request_ends_but_load_goes_on_when_a_stuck_client_leaves(self, cache):
        taking = anyio.Event()
        app = Stream(headers=MAX_AGE)

        class Stuck(Client):
            async def send(self, message):
                taking.set()
                await anyio.sleep_forever()

        one = Stuck()
        async with anyio.create_task_group() as group:
            group.start_soon(shielded(SWRMiddleware(app, cache, max_body_time=None)), one)
            await taking.wait()
            one.gone.set()
        # For others the load goes on.
        assert app.active == 1
        app.is_unending = False
        await until(lambda: not cache.engine.flights, PATIENCE)

    async def test_app_that_sends_after_its_run_has_ended_gets_a_connection_error(self, cache):
        sending = []

        async def app(scope, receive, send):
            sending.append(send)
            await App(MAX_AGE)(scope, receive, send)

        await shielded(SWRMiddleware(app, cache))(Client())
        with pytest.raises(ConnectionError, match="is over"):
            await sending[0]({"type": "http.response.body", "body": b"more"})


class TestFileSentByServer:
    """Who: `FileResponse` on granian, which sends the file itself, under a rule, on the first day."""

    async def test_file_sent_by_the_server_is_not_stored(self, cache):
        async def app(scope, receive, send):
            await send({"type": "http.response.start", "status": 200, "headers": MAX_AGE})
            kind = "http.response.pathsend"
            await send({"type": kind, "path": "/x"} if kind in scope["extensions"] else {"type": kind[:14] + "body"})

        ask = shielded(SWRMiddleware(app, cache))
        for kind in ("http.response.pathsend", "http.response.zerocopysend"):
            for _ in range(2):
                one = Client()
                await ask(one, f"/{kind}", extensions={kind: {}})
                if kind == "http.response.pathsend":
                    assert status_of(one) == b'swr; fwd=uri-miss; detail="not seen"'
                    assert [message["type"] for message in one.sent] == ["http.response.start", kind]
        assert status_of(one).startswith(b"swr; hit")

    async def test_body_is_stored_when_pathsend_is_offered_but_not_used(self, cache):
        ask = shielded(SWRMiddleware(App(MAX_AGE, body=b"b", chunks=[b"a"]), cache))
        for status in (b"swr; fwd=uri-miss; stored", b"swr; hit; ttl=60"):
            one = Client()
            await ask(one, extensions={"http.response.pathsend": {}})
            assert (status_of(one), b"".join(chunks(one))) == (status, b"ab")


@contextlib.contextmanager
def served(app):
    """The app behind a real server; its port."""
    listener = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, lifespan="on", log_config=None, access_log=False))
    thread = threading.Thread(target=server.run, args=([listener],))
    thread.start()
    try:
        yield listener.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


async def test_generators_behind_a_real_server_are_closed_after_clients_leave():
    """50 readers of one endless response on real sockets: each gets it as it comes, and all generators are closed."""
    app = FastAPI()
    active = set()

    async def lines(number):
        active.add(number)
        try:
            while True:
                yield "{}\n"
                await anyio.sleep(0.01)
        finally:
            active.discard(number)

    @app.get("/stream/{name}")
    async def stream(name: str):
        return StreamingResponse(lines(object()), media_type="application/x-ndjson")

    app.add_middleware(SWRMiddleware, cache=Cache(), rules=RULES, max_body_time=0.3)
    with served(app) as port:
        async with contextlib.AsyncExitStack() as stack:
            streams = []
            for number in range(50):
                reader = await stack.enter_async_context(await anyio.connect_tcp("127.0.0.1", port))
                await reader.send(b"GET /stream/%d HTTP/1.1\r\nHost: test\r\n\r\n" % (number % 5))
                streams.append(reader)
            with anyio.fail_after(PATIENCE):
                for reader in streams:
                    received = b""
                    while received.count(b"{}\n") < 3:
                        received += await reader.receive()
            assert active
        # A generator that is cancelled while its server sends is closed by the garbage collector.
        await until(lambda: not active or gc.collect() < 0, PATIENCE)

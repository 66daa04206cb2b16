"""Clients of the proxy's server that keep it waiting, on real connections: silent, slow, leaving, malformed, endless."""

import contextlib
import gc
import select
import socket
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from swr.proxy.parser import RequestParser
from swr.proxy.server import MOST_HEAD_BYTES, ClientProtocol
from tests.test_proxy import PATIENCE, body_of, talk

GET = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"
CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 1000000\r\n\r\n"
BIG = 2**24


class Site:
    """An app, and the server that it runs on.

    Attributes:
        server: of uvicorn.
        port: it listens to.
        scopes: of the requests that came.
        bodies: of the requests that were read to their end.
        running: how many calls of the app are under way.
        release: lets the requests to `/wait` go on.
    """

    def __init__(self) -> None:
        self.scopes: list[dict[str, Any]] = []
        self.bodies: list[bytes] = []
        self.running = 0
        self.release = threading.Event()

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] == "lifespan":
            return
        import anyio

        self.scopes.append(scope)
        self.running += 1
        try:
            if scope["method"] == "POST" and scope["path"] == "/":
                body = b""
                while (message := await receive())["type"] == "http.request":
                    body += message["body"]
                    if not message["more_body"]:
                        break
                if message["type"] == "http.disconnect":
                    return
                self.bodies.append(body)
            while scope["path"].startswith("/wait") and not self.release.is_set():
                await anyio.sleep(0.01)
            if scope["path"] == "/left":
                while (await receive())["type"] != "http.disconnect":
                    pass
                return
            body = b"x" * BIG if scope["path"] == "/big" else b"ok"
            headers = [] if "stream" in scope["path"] else [(b"content-length", b"%d" % len(body))]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
            for at in range(0, len(body), 2**16):
                await send({"type": "http.response.body", "body": body[at : at + 2**16], "more_body": True})
            if scope["path"] == "/broken-stream":
                return
            await send({"type": "http.response.body"})
        finally:
            self.running -= 1

    @property
    def connections(self) -> int:
        return len(self.server.server_state.connections)

    def wait_until_empty(self) -> None:
        """Wait until nothing is left of any client."""
        wait_until(lambda: not self.connections and not self.server.server_state.tasks and not self.running)


def wait_until(condition) -> None:
    until = time.monotonic() + PATIENCE
    while not condition():
        assert time.monotonic() < until, "it never came"
        time.sleep(0.01)


@contextlib.contextmanager
def site(loop: str = "asyncio", **times: float) -> Iterator[Site]:
    class Protocol(ClientProtocol):
        head_timeout = times.get("head_timeout", PATIENCE)
        client_timeout = times.get("client_timeout", PATIENCE)

    app = Site()
    listener = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(
        app, loop=loop, http=Protocol, ws="none", lifespan="off", log_config=None, access_log=False,
        timeout_keep_alive=times.get("keep_alive", PATIENCE),
    )  # fmt: skip
    app.server, app.port = uvicorn.Server(config), listener.getsockname()[1]
    thread = threading.Thread(target=app.server.run, args=([listener],))
    thread.start()
    try:
        yield app
    finally:
        app.release.set()
        app.server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


@contextlib.contextmanager
def client(site: Site, *sent: bytes, buffer: int | None = None) -> Iterator[socket.socket]:
    with socket.socket() as connection:
        connection.settimeout(PATIENCE)
        if buffer is not None:
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer)
        connection.connect(("127.0.0.1", site.port))
        for piece in sent:
            connection.sendall(piece)
        yield connection


def end_of(connection: socket.socket) -> bytes:
    """Return what comes until the server closes."""
    received = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            received += piece
    return received


def drip(connection: socket.socket, piece: bytes, every: float = 0.02) -> bytes:
    """Send a piece again and again until the server closes; return what it has said."""
    received = b""
    until = time.monotonic() + PATIENCE
    with contextlib.suppress(ConnectionError):
        while time.monotonic() < until:
            ready, _, _ = select.select([connection], [], [], every)
            if ready:
                if not (said := connection.recv(65536)):
                    return received
                received += said
            connection.sendall(piece)
    assert time.monotonic() < until, "the server does not close"
    return received


@pytest.fixture(params=["asyncio", "uvloop"])
def loop(request) -> str:
    return request.param


@pytest.mark.parametrize(
    ("sent", "said"),
    [
        (b"", b""),
        (b"\r\n", b""),
        (b"G", b"408"),
        (b"GET / HTTP/1.1\r\nHost: x\r\n", b"408"),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 1000, b"408"),
    ],
)
def test_a_client_that_does_not_finish_the_head_of_a_request_is_let_go(sent, said, loop):
    """RFC 9110 15.5.9; without a word if it has not begun one."""
    with site(loop, head_timeout=0.2, keep_alive=0.1) as app, client(app, sent) as connection:
        assert end_of(connection)[9:12] == said
        app.wait_until_empty()
        assert app.scopes == []


def test_a_client_that_sends_the_head_of_a_request_byte_by_byte_is_let_go(loop):
    """All of it has to come in the time that there is."""
    with site(loop, head_timeout=0.3) as app, client(app, b"GET / HTTP/1.1\r\nX: ") as connection:
        assert drip(connection, b"x")[9:12] in (b"408", b"")
        app.wait_until_empty()
        assert app.scopes == []


def test_a_client_that_sends_empty_lines_between_two_requests_is_let_go(loop):
    """RFC 9112 2.2: they are skipped. The server's own time-out begins again with each."""
    with site(loop, head_timeout=0.2, keep_alive=0.2) as app, client(app, GET) as connection:
        assert drip(connection, b"\r\n").endswith(b"ok")
        app.wait_until_empty()


def test_a_connection_may_be_idle_as_long_as_it_is_told_to_be_kept():
    with site(head_timeout=0.05, keep_alive=PATIENCE) as app, client(app, GET) as connection:
        connection.recv(65536)
        time.sleep(0.5)
        connection.sendall(CLOSING)
        assert body_of(end_of(connection)) == b"ok"


def test_a_client_that_stops_amid_its_body_is_let_go(loop):
    with site(loop, client_timeout=0.2) as app, client(app, POST, b"half") as connection:
        assert end_of(connection) == b""
        app.wait_until_empty()


@pytest.mark.parametrize("sent", [POST, POST.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked")])
def test_a_client_that_sends_its_body_byte_by_byte_is_let_go(sent, loop):
    piece = b"1\r\nx\r\n" if b"chunked" in sent else b"x"
    with site(loop, client_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, piece) == b""
        app.wait_until_empty()


def test_what_is_no_content_is_no_progress(loop):
    """RFC 9112 7.1.1: the extension of a chunk may be endless."""
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    with site(loop, client_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, b"x" * 1000) == b""
        app.wait_until_empty()


def test_a_body_that_has_been_answered_has_an_end(loop):
    sent = b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with site(loop, head_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, b"5\r\nxxxxx\r\n").endswith(b"ok")
        app.wait_until_empty()


@pytest.mark.parametrize("times", [1, 2])
def test_a_client_that_reads_nothing_is_let_go(times, loop):
    """Whether the app has said all or not: what the server has buffered, it frees."""
    with (
        site(loop, client_timeout=0.2) as app,
        client(app, GET.replace(b"/ ", b"/big ") * times, buffer=2048) as connection,
    ):
        app.wait_until_empty()
        assert len(end_of(connection)) < BIG


def test_a_client_that_reads_slowly_is_let_go(loop):
    with site(loop, client_timeout=0.5) as app, client(app, GET.replace(b"/ ", b"/big "), buffer=2048) as connection:
        wait_until(lambda: app.running)
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionResetError):
            while app.connections and time.monotonic() < until and connection.recv(1):
                time.sleep(0.02)
        app.wait_until_empty()
        # What the kernel holds is not offered any longer.
        assert len(end_of(connection)) < 2**16


def test_a_client_that_takes_its_time_and_goes_on_is_not_let_go(loop):
    """Pauses that together are longer than `client_timeout`; it counts what a client takes against them."""
    with site(loop, client_timeout=1.0) as app, client(app, CLOSING.replace(b"/ ", b"/big ")) as connection:
        received = b""
        while piece := connection.recv(2**20, socket.MSG_WAITALL):
            received += piece
            time.sleep(0.2)
        assert len(body_of(received)) == BIG


def test_the_time_that_the_app_takes_is_not_the_clients(loop):
    with (
        site(loop, head_timeout=0.05, client_timeout=0.05) as app,
        client(app, CLOSING.replace(b"/ ", b"/wait ")) as connection,
    ):
        wait_until(lambda: app.running)
        time.sleep(0.5)
        app.release.set()
        assert body_of(end_of(connection)) == b"ok"


def test_each_request_that_a_client_has_sent_before_it_leaves_is_told(loop):
    """uvicorn tells the last one alone; one that waits for that, such as an event stream, would go on for ever."""
    with site(loop) as app:
        with client(app, GET.replace(b"/ ", b"/left ") * 2):
            wait_until(lambda: app.running)
        app.wait_until_empty()
        # The second request is asked of nobody.
        assert len(app.scopes) == 1


HUGE = b"GET / HTTP/1.1\r\nHost: x\r\n"


@pytest.mark.parametrize(
    ("begin", "piece"),
    [
        (HUGE + b"X: ", b"x" * 50_000),
        (HUGE, b"X: x\r\n" * 8_000),
        (HUGE, b"X" * 50_000),
        (b"GET /", b"x" * 50_000),
        (HUGE, b"X: " + b"x" * 300_000 + b"\r\n"),
        (HUGE, b"X: " + b"x" * (MOST_HEAD_BYTES + 1) + b"\r\n\r\n"),
    ],
)
def test_a_head_without_an_end_is_refused(begin, piece, loop):
    """RFC 6585 5"""
    with site(loop) as app, client(app, begin) as connection:
        assert drip(connection, piece)[9:12] in (b"431", b"")
        app.wait_until_empty()
        assert app.scopes == []


def test_a_long_head_is_none_too_long(loop):
    head = HUGE + b"X: " + b"x" * 60_000 + b"\r\nConnection: close\r\n\r\n"
    with site(loop) as app:
        assert body_of(talk(app.port, head)) == b"ok"


def test_trailers_are_no_fields_of_the_request_and_have_an_end(loop):
    """RFC 9110 6.5.1"""
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with site(loop) as app:
        with client(app, sent + b"X-Late: 1\r\nAuthorization: x\r\n\r\n" + CLOSING) as connection:
            assert end_of(connection).count(b"\r\n\r\nok") == 2
        assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]
        with client(app, sent) as connection:
            assert drip(connection, b"X-Late: 1\r\n" * 1000) == b""
        app.wait_until_empty()


def test_requests_that_are_pipelined_have_an_end(loop):
    """RFC 9112 9.3.2: one after the other, some; what a client sends without limit is refused."""
    with site(loop) as app:
        with client(app, GET * 20 + CLOSING) as connection:
            assert end_of(connection).count(b"\r\n\r\nok") == 21
        with client(app, GET.replace(b"/ ", b"/wait ") * 2000) as connection:
            assert end_of(connection) == b""
        app.release.set()
        app.wait_until_empty()
        # The first of them alone was asked for.
        assert len(app.scopes) == 22


@pytest.mark.parametrize("sent", [b"\x16\x03\x01" + b"\x00" * 100, b"GET\r\n\r\n", b"GET / HTTP/9.9\r\n\r\n",
                                  b"GET / HTTP/1.1\r\nHo st: x\r\n\r\n", b"GET /\xff HTTP/1.1\r\nHost: x\r\n\r\n",
                                  b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n"])  # fmt: skip
def test_what_is_no_request_is_answered_with_400(sent, loop):
    with site(loop) as app, client(app, sent) as connection:
        assert end_of(connection).startswith(b"HTTP/1.1 400 ")
        app.wait_until_empty()


def test_what_is_no_request_never_looks_like_a_part_of_an_answer(loop):
    """RFC 9112 8: the answer before it would swallow the 400."""
    with site(loop) as app, client(app, GET.replace(b"/ ", b"/wait "), b"no request\r\n\r\n") as connection:
        assert end_of(connection) == b""
        app.release.set()
        app.wait_until_empty()


def test_the_host_of_an_absolute_target_goes_before_the_field(loop):
    """RFC 9112 3.2.2"""
    asked = [b"http://a:80/b?c", b"HTTP://a:80", b"http://a:80?c"]
    with site(loop) as app:
        for target in asked:
            assert body_of(talk(app.port, CLOSING.replace(b" / ", b" %b " % target))) == b"ok"
        found = [(s["raw_path"], s["query_string"], [v for n, v in s["headers"] if n == b"host"]) for s in app.scopes]
        assert found == [(b"/b", b"c", [b"a:80"]), (b"/", b"", [b"a:80"]), (b"/", b"c", [b"a:80"])]


@pytest.mark.parametrize(
    ("target", "version", "status"),
    [
        (b"/", b"", b"505"),
        (b"/", b" HTTP/0.9", b"505"),
        (b"/", b" HTTP/2.0", b"505"),
        (b"ftp://x/", b" HTTP/1.1", b"400"),
        (b"http://u@x/", b" HTTP/1.1", b"400"),
        (b"x", b" HTTP/1.1", b"400"),
    ],
)
def test_a_request_line_that_the_server_would_take_for_another_one_is_refused(target, version, status, loop):
    """RFC 9112 3: httptools hides what is before the path, and knows versions that have no such line."""
    with site(loop) as app:
        assert talk(app.port, b"GET %b%b\r\nHost: x\r\n\r\n" % (target, version))[9:12] == status
        assert app.scopes == []


def test_a_tunnel_is_not_implemented(loop):
    """RFC 9110 9.3.6"""
    with site(loop) as app:
        assert talk(app.port, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n")[9:12] == b"501"


@pytest.mark.parametrize(("hosts", "seen"), [([], []), ([b"x", b"y"], [b"a", b"a"]), ([b"a b"], [b"a"])])
def test_an_absolute_target_makes_no_two_hosts_one(hosts, seen, loop):
    """RFC 9112 3.2: the app refuses two of them, or none."""
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    with site(loop) as app:
        talk(app.port, b"GET http://a/ HTTP/1.1\r\n%bConnection: close\r\n\r\n" % lines)
        assert [value for name, value in app.scopes[0]["headers"] if name == b"host"] == seen


def test_the_space_around_a_value_is_no_part_of_it(loop):
    """RFC 9110 5.5: no client would take it for an invalid field."""
    sent = CLOSING.replace(b"Host: x", b"Host:\tx \t\r\nAccept:  \t a\tb\t \r\nX: \t")
    with site(loop) as app:
        assert body_of(talk(app.port, sent)) == b"ok"
        [scope] = app.scopes
        assert scope["headers"][:3] == [(b"host", b"x"), (b"accept", b"a\tb"), (b"x", b"")]


@pytest.mark.uncounted
def test_a_connection_that_is_lost_leaves_no_parser_to_the_garbage_collection(loop):
    """On a busy proxy a full collection holds up all clients at once."""
    with site(loop) as app:
        gc.collect()
        gc.disable()
        try:
            for _ in range(20):
                assert body_of(talk(app.port, CLOSING)) == b"ok"
            app.wait_until_empty()
            wait_until(lambda: not any(isinstance(thing, RequestParser) for thing in gc.get_objects()))
        finally:
            gc.enable()


UPGRADE = b"Host: x\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n"


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_a_request_that_asks_for_another_protocol_has_a_body_and_others_after_it(size, loop, caplog):
    """RFC 9110 7.8: Java's client asks for h2c with each. What is a body must never be taken for a request."""
    caplog.set_level("WARNING")
    trap = CLOSING.replace(b"/ ", b"/trap ")
    length = b"POST / HTTP/1.1\r\n%bContent-Length: %d\r\n\r\n%b" % (UPGRADE, len(trap), trap)
    empty = b"POST / HTTP/1.1\r\n%bContent-Length: 0\r\n\r\n" % UPGRADE
    none = b"GET / HTTP/1.1\r\n%b\r\n" % UPGRADE
    chunked = b"POST / HTTP/1.1\r\n%bTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nX-Late: 1\r\n\r\n" % UPGRADE
    sent = none + length + empty + chunked + none + CLOSING
    with site(loop) as app:
        with client(app, *(sent[at : at + size] for at in range(0, len(sent), size))) as connection:
            assert end_of(connection).count(b"HTTP/1.1 200 OK") == 6
        assert app.bodies == [trap, b"", b"abc"]
        assert {scope["path"] for scope in app.scopes} == {"/"}
        assert all(name != b"x-late" for scope in app.scopes for name, _ in scope["headers"])
    assert caplog.records == []


def test_a_request_that_asks_for_another_protocol_and_has_no_valid_body_is_answered_with_400(loop):
    for body in (b"Content-Length: x\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\nx\r\n"):
        with site(loop) as app:
            answer = talk(app.port, b"POST / HTTP/1.1\r\n%b%b" % (UPGRADE, body))
            assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""
            app.wait_until_empty()
            assert app.bodies == []


# -- HTTP/1.0 -------------------------------------------------------------------------------------------------

OLD = b"%b %b HTTP/1.0\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 1\r\n\r\nx"


@pytest.mark.parametrize(
    ("method", "path", "body", "length"),
    [
        (b"GET", b"/stream", b"ok", False),
        (b"POST", b"/stream", b"ok", False),
        (b"HEAD", b"/stream", b"", False),
        (b"GET", b"/", b"ok", True),
        (b"POST", b"/", b"ok", True),
    ],
)
def test_a_client_of_http_1_0_gets_no_chunks_and_no_interim_answer(loop, method, path, body, length):
    """RFC 9112 6.1, RFC 9110 10.1.1: such a client would take chunks, and a second head, for a part of the body."""
    with site(loop) as app:
        head, _, content = talk(app.port, OLD % (method, path)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"transfer-encoding" in head, b"content-length" in head, content) == (False, length, body)
        assert b"transfer-encoding: chunked" in talk(app.port, CLOSING.replace(b"/ ", b"/stream "))


def test_an_answer_without_a_length_that_breaks_off_does_not_look_whole_to_a_client_of_http_1_0(loop):
    with site(loop) as app, pytest.raises(ConnectionResetError):
        talk(app.port, OLD % (b"GET", b"/broken-stream"))


def test_a_client_of_http_1_0_that_leaves_before_an_answer_without_a_length_harms_nothing(loop, caplog):
    caplog.set_level("WARNING")
    with site(loop) as app:
        with client(app, OLD % (b"GET", b"/wait-stream")):
            wait_until(lambda: app.running)
        wait_until(lambda: not app.connections)
        app.release.set()
        app.wait_until_empty()
        assert talk(app.port, OLD % (b"GET", b"/stream")).endswith(b"\r\n\r\nok")
    assert caplog.records == []

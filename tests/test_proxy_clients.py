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
def test_client_that_does_not_finish_its_request_head_is_disconnected(sent, said, loop):
    """RFC 9110 15.5.9: with a 408, or without a response if it has not begun a request."""
    with site(loop, head_timeout=0.2, keep_alive=0.1) as app, client(app, sent) as connection:
        assert end_of(connection)[9:12] == said
        app.wait_until_empty()
        assert app.scopes == []


def test_client_that_sends_its_request_head_byte_by_byte_is_disconnected(loop):
    """The whole head has to arrive within `head_timeout`."""
    with site(loop, head_timeout=0.3) as app, client(app, b"GET / HTTP/1.1\r\nX: ") as connection:
        assert drip(connection, b"x")[9:12] in (b"408", b"")
        app.wait_until_empty()
        assert app.scopes == []


def test_client_that_sends_only_empty_lines_after_a_request_is_disconnected(loop):
    """RFC 9112 2.2: the server skips them. The time-out of uvicorn itself begins again with each."""
    with site(loop, head_timeout=0.2, keep_alive=0.2) as app, client(app, GET) as connection:
        assert drip(connection, b"\r\n").endswith(b"ok")
        app.wait_until_empty()


def test_idle_connection_is_kept_past_head_timeout_within_keep_alive():
    with site(head_timeout=0.05, keep_alive=PATIENCE) as app, client(app, GET) as connection:
        connection.recv(65536)
        time.sleep(0.5)
        connection.sendall(CLOSING)
        assert body_of(end_of(connection)) == b"ok"


def test_client_that_stops_amid_its_body_is_disconnected(loop):
    with site(loop, client_timeout=0.2) as app, client(app, POST, b"half") as connection:
        assert end_of(connection) == b""
        app.wait_until_empty()


@pytest.mark.parametrize("sent", [POST, POST.replace(b"Content-Length: 1000000", b"Transfer-Encoding: chunked")])
def test_client_that_sends_its_body_byte_by_byte_is_disconnected(sent, loop):
    piece = b"1\r\nx\r\n" if b"chunked" in sent else b"x"
    with site(loop, client_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, piece) == b""
        app.wait_until_empty()


def test_client_that_sends_an_endless_chunk_extension_is_disconnected(loop):
    """RFC 9112 7.1.1: the extension of a chunk may be endless."""
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1;"
    with site(loop, client_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, b"x" * 1000) == b""
        app.wait_until_empty()


def test_client_that_sends_an_endless_body_after_its_response_is_disconnected(loop):
    sent = b"POST /early HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n"
    with site(loop, head_timeout=0.3) as app, client(app, sent) as connection:
        assert drip(connection, b"5\r\nxxxxx\r\n").endswith(b"ok")
        app.wait_until_empty()


@pytest.mark.parametrize("times", [1, 2])
def test_client_that_reads_nothing_is_disconnected(times, loop):
    """The server frees its buffers, whether the app has sent the whole response or not."""
    with (
        site(loop, client_timeout=0.2) as app,
        client(app, GET.replace(b"/ ", b"/big ") * times, buffer=2048) as connection,
    ):
        app.wait_until_empty()
        assert len(end_of(connection)) < BIG


def test_client_that_reads_byte_by_byte_is_disconnected(loop):
    with site(loop, client_timeout=0.5) as app, client(app, GET.replace(b"/ ", b"/big "), buffer=2048) as connection:
        wait_until(lambda: app.running)
        until = time.monotonic() + PATIENCE
        with contextlib.suppress(ConnectionResetError):
            while app.connections and time.monotonic() < until and connection.recv(1):
                time.sleep(0.02)
        app.wait_until_empty()
        # What the kernel holds is not offered any longer.
        assert len(end_of(connection)) < 2**16


def test_client_that_pauses_between_large_reads_gets_the_whole_body(loop):
    """The pauses add up to more than `client_timeout`; the data that a client takes counts against them."""
    with site(loop, client_timeout=1.0) as app, client(app, CLOSING.replace(b"/ ", b"/big ")) as connection:
        received = b""
        while piece := connection.recv(2**20, socket.MSG_WAITALL):
            received += piece
            time.sleep(0.2)
        assert len(body_of(received)) == BIG


def test_slow_app_does_not_use_up_the_timeouts_of_its_client(loop):
    with (
        site(loop, head_timeout=0.05, client_timeout=0.05) as app,
        client(app, CLOSING.replace(b"/ ", b"/wait ")) as connection,
    ):
        wait_until(lambda: app.running)
        time.sleep(0.5)
        app.release.set()
        assert body_of(end_of(connection)) == b"ok"


def test_running_request_gets_a_disconnect_when_a_pipelining_client_leaves(loop):
    """uvicorn tells only the last request; an event stream that waits for the disconnect would run for ever."""
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
def test_endless_or_oversized_request_head_gets_a_431(begin, piece, loop):
    """RFC 6585 5"""
    with site(loop) as app, client(app, begin) as connection:
        assert drip(connection, piece)[9:12] in (b"431", b"")
        app.wait_until_empty()
        assert app.scopes == []


def test_request_head_of_60_kilobytes_is_accepted(loop):
    head = HUGE + b"X: " + b"x" * 60_000 + b"\r\nConnection: close\r\n\r\n"
    with site(loop) as app:
        assert body_of(talk(app.port, head)) == b"ok"


def test_trailers_are_dropped_and_endless_trailers_disconnect_the_client(loop):
    """RFC 9110 6.5.1"""
    sent = b"POST / HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n"
    with site(loop) as app:
        with client(app, sent + b"X-Late: 1\r\nAuthorization: x\r\n\r\n" + CLOSING) as connection:
            assert end_of(connection).count(b"\r\n\r\nok") == 2
        assert [name for name, _ in app.scopes[0]["headers"]] == [b"host", b"transfer-encoding"]
        with client(app, sent) as connection:
            assert drip(connection, b"X-Late: 1\r\n" * 1000) == b""
        app.wait_until_empty()


def test_pipelined_requests_are_answered_up_to_a_limit(loop):
    """RFC 9112 9.3.2: the server answers some in order, and disconnects a client that sends them without limit."""
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
def test_malformed_request_gets_a_400(sent, loop):
    with site(loop) as app, client(app, sent) as connection:
        assert end_of(connection).startswith(b"HTTP/1.1 400 ")
        app.wait_until_empty()


def test_malformed_request_behind_an_unanswered_one_closes_without_a_400(loop):
    """RFC 9112 8: the client would read the 400 as a part of the response before it."""
    with site(loop) as app, client(app, GET.replace(b"/ ", b"/wait "), b"no request\r\n\r\n") as connection:
        assert end_of(connection) == b""
        app.release.set()
        app.wait_until_empty()


def test_host_of_an_absolute_target_wins_over_the_host_field(loop):
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
def test_request_line_with_an_unsupported_target_or_version_is_rejected(target, version, status, loop):
    """RFC 9112 3: httptools hides what is before the path, and knows versions that have no such line."""
    with site(loop) as app:
        assert talk(app.port, b"GET %b%b\r\nHost: x\r\n\r\n" % (target, version))[9:12] == status
        assert app.scopes == []


def test_connect_request_gets_a_501(loop):
    """RFC 9110 9.3.6"""
    with site(loop) as app:
        assert talk(app.port, b"CONNECT x:443 HTTP/1.1\r\nHost: x:443\r\n\r\n")[9:12] == b"501"


@pytest.mark.parametrize(("hosts", "seen"), [([], []), ([b"x", b"y"], [b"a", b"a"]), ([b"a b"], [b"a"])])
def test_absolute_target_keeps_the_number_of_host_fields(hosts, seen, loop):
    """RFC 9112 3.2: the app refuses a request that has two of them, or none."""
    lines = b"".join(b"Host: %b\r\n" % host for host in hosts)
    with site(loop) as app:
        talk(app.port, b"GET http://a/ HTTP/1.1\r\n%bConnection: close\r\n\r\n" % lines)
        assert [value for name, value in app.scopes[0]["headers"] if name == b"host"] == seen


def test_white_space_around_a_field_value_is_removed(loop):
    """RFC 9110 5.5: white space around a value does not make the field invalid."""
    sent = CLOSING.replace(b"Host: x", b"Host:\tx \t\r\nAccept:  \t a\tb\t \r\nX: \t")
    with site(loop) as app:
        assert body_of(talk(app.port, sent)) == b"ok"
        [scope] = app.scopes
        assert scope["headers"][:3] == [(b"host", b"x"), (b"accept", b"a\tb"), (b"x", b"")]


@pytest.mark.uncounted
def test_closed_connection_frees_its_parser_without_garbage_collection(loop):
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
def test_upgrade_request_keeps_its_body_and_the_requests_after_it(size, loop, caplog):
    """RFC 9110 7.8: Java's client asks for h2c each time. The server must never take a body for a request."""
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


def test_upgrade_request_with_an_invalid_body_is_rejected(loop):
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
def test_http_1_0_client_gets_no_chunks_and_no_interim_response(loop, method, path, body, length):
    """RFC 9112 6.1, RFC 9110 10.1.1: such a client would take chunks, and a second head, for a part of the body."""
    with site(loop) as app:
        head, _, content = talk(app.port, OLD % (method, path)).partition(b"\r\n\r\n")
        assert head.startswith(b"HTTP/1.1 200 OK\r\n")
        assert (b"transfer-encoding" in head, b"content-length" in head, content) == (False, length, body)
        assert b"transfer-encoding: chunked" in talk(app.port, CLOSING.replace(b"/ ", b"/stream "))


def test_http_1_0_client_gets_a_reset_if_a_response_without_length_breaks_off(loop):
    with site(loop) as app, pytest.raises(ConnectionResetError):
        talk(app.port, OLD % (b"GET", b"/broken-stream"))


def test_server_still_answers_after_an_http_1_0_client_left_before_its_response(loop, caplog):
    caplog.set_level("WARNING")
    with site(loop) as app:
        with client(app, OLD % (b"GET", b"/wait-stream")):
            wait_until(lambda: app.running)
        wait_until(lambda: not app.connections)
        app.release.set()
        app.wait_until_empty()
        assert talk(app.port, OLD % (b"GET", b"/stream")).endswith(b"\r\n\r\nok")
    assert caplog.records == []

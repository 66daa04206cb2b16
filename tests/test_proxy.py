"""The proxy between a client and a service, both of them raw sockets where bytes count."""

import base64
import contextlib
import importlib
import inspect
import logging
import re
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.utils import parsedate_to_datetime
from types import TracebackType
from typing import Self
from unittest.mock import Mock

import anyio
import anyio.lowlevel

# In a process that has it, swr watches which fields an app takes.
import fastapi  # noqa: F401
import httpx
import pytest
import uvicorn

from swr import Cache, ConfigurationError
from swr.middleware import Rule, SWRMiddleware
from swr.proxy import Proxy, caching_proxy
from swr.proxy.service import _warn_if_blind
from swr.proxy.slots import Exchange, Slots

pytestmark = pytest.mark.anyio

# The longest that anything here is waited for.
PATIENCE = 60.0
CLOSING = b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"
OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nDate: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\nok"


# -- the service ----------------------------------------------------------------------------------------------


@dataclass
class Asked:
    """A request as the service got it."""

    head: bytes
    connection: int
    body: bytes = b""
    raw_body: bytes = b""

    @property
    def line(self) -> bytes:
        return self.head.partition(b"\r\n")[0]

    @property
    def target(self) -> bytes:
        return self.line.split(b" ")[1]

    def values(self, name: str) -> list[bytes]:
        lines = [line.partition(b": ") for line in self.head.split(b"\r\n")[1:]]
        return [value for key, _, value in lines if key.lower() == name.encode()]

    @property
    def names(self) -> set[str]:
        return {line.partition(b":")[0].decode().lower() for line in self.head.split(b"\r\n")[1:]}


class Upstream:
    """A service on raw sockets: it notes what it gets, and answers with bytes, or as a function does.

    Attributes:
        answers: one for each request, the last one for good.
        asked: what it got.
        opened: how many connections it accepted.
        left: set when a client closed a connection that an answer was waiting on.
    """

    def __init__(self, *answers: bytes | Callable[["Upstream", socket.socket], None]) -> None:
        self.answers = list(answers) or [OK]
        self.asked: list[Asked] = []
        self.opened = 0
        self.left = threading.Event()
        self.release = threading.Event()
        self.got = threading.Semaphore(0)
        self._connections: set[socket.socket] = set()
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> Self:
        self._subscriber = socket.create_server(("127.0.0.1", 0))
        self.port = self._subscriber.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self._start(self._accept)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.release.set()
        # A subscriber that is only closed goes on waiting in its thread.
        with contextlib.suppress(OSError):
            self._subscriber.shutdown(socket.SHUT_RDWR)
        self._subscriber.close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        for thread in self._threads:
            thread.join(PATIENCE)
            assert not thread.is_alive()

    def _start(self, run: Callable[..., None], *arguments: object) -> None:
        thread = threading.Thread(target=run, args=arguments)
        self._threads.append(thread)
        thread.start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                connection, _ = self._subscriber.accept()
                connection.settimeout(PATIENCE)
                self.opened += 1
                self._connections.add(connection)
                self._start(self._serve, connection, self.opened)

    def _serve(self, connection: socket.socket, number: int) -> None:
        with connection, contextlib.suppress(OSError), connection.makefile("rb") as stream:
            while asked := read_request(stream, number):
                self.asked.append(asked)
                answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
                self.got.release()
                if isinstance(answer, bytes):
                    connection.sendall(answer)
                else:
                    answer(self, connection)
        self._connections.discard(connection)

    def wait_left(self, connection: socket.socket) -> None:
        """Wait until the client has closed the connection."""
        with contextlib.suppress(ConnectionError):
            assert connection.recv(1) == b""
        self.left.set()
        raise ConnectionError

    @property
    def last(self) -> Asked:
        return self.asked[-1]


def read_request(stream, number: int) -> Asked | None:
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        line = stream.readline()
        if not line:
            return None
        head += line
    asked = Asked(head[:-4], number)
    if length := asked.values("content-length"):
        asked.body = asked.raw_body = stream.read(int(length[0]))
    elif asked.values("transfer-encoding"):
        size = None
        while size != 0:
            line = stream.readline()
            if not line:
                # Broken off.
                return asked
            size = int(line, 16)
            chunk = stream.read(size + 2)
            asked.raw_body += line + chunk
            asked.body += chunk[:-2]
    return asked


def then_close(answer: bytes) -> Callable[[Upstream, socket.socket], None]:
    """Answer, and close the connection."""

    def run(_: Upstream, connection: socket.socket) -> None:
        connection.sendall(answer)
        raise ConnectionError

    return run


def then_hang(answer: bytes = b"") -> Callable[[Upstream, socket.socket], None]:
    """Answer, and wait until the client has closed the connection."""

    def run(upstream: Upstream, connection: socket.socket) -> None:
        connection.sendall(answer)
        upstream.wait_left(connection)

    return run


def when_released(answer: bytes) -> Callable[[Upstream, socket.socket], None]:
    """Answer when the test says so."""

    def run(upstream: Upstream, connection: socket.socket) -> None:
        assert upstream.release.wait(PATIENCE)
        connection.sendall(answer)

    return run


def then_wait_for_three(answer: bytes) -> Callable[[Upstream, socket.socket], None]:
    """Answer in three parts with pauses before each."""

    def run(upstream: Upstream, connection: socket.socket) -> None:
        for part in (answer, b"4\r\nlast\r\n", b"0\r\n\r\n"):
            upstream.release.wait(0.8)
            connection.sendall(part)

    return run


# -- the client -----------------------------------------------------------------------------------------------


@dataclass
class Answer:
    status: int = 0
    headers: list[tuple[bytes, bytes]] = field(default_factory=list)
    chunks: list[bytes] = field(default_factory=list)
    ended: bool = False

    def values(self, name: str) -> list[bytes]:
        return [value for key, value in self.headers if key == name.encode()]

    @property
    def body(self) -> bytes:
        return b"".join(self.chunks)


def http_scope(method: str = "GET", path: str = "/", **more):
    return {
        "type": "http", "asgi": {"version": "3.0", "spec_version": "2.3"}, "http_version": "1.1", "method": method,
        "scheme": "http", "path": path, "raw_path": path.encode(), "query_string": b"", "root_path": "",
        "headers": [(b"host", b"test")], "client": ("192.0.2.7", 4711), **more,
    }  # fmt: skip


class Client:
    """A client: it sends pieces of a body, takes what comes, and stays until it is told to leave."""

    def __init__(self, *pieces: bytes) -> None:
        self.pieces = list(pieces)
        self.answer = Answer()
        self.gone = anyio.Event()
        self.started, self.got_body = anyio.Event(), anyio.Event()
        self.error: Exception | None = None

    async def receive(self):
        if self.pieces is not None:
            piece = self.pieces.pop(0) if self.pieces else b""
            more = bool(self.pieces)
            if not more:
                self.pieces = None
            return {"type": "http.request", "body": piece, "more_body": more}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message) -> None:
        if self.error is not None:
            raise self.error
        if message["type"] == "http.response.start":
            assert self.answer.status == 0
            self.answer.status, self.answer.headers = message["status"], message["headers"]
            assert all(name == name.lower() for name, _ in message["headers"])
            self.started.set()
        else:
            assert not self.answer.ended
            self.answer.chunks.append(message.get("body", b""))
            self.answer.ended = not message.get("more_body", False)
            self.got_body.set()


async def ask(app, *pieces: bytes, host: bytes | None = b"test", headers=(), **more) -> Answer:
    """Ask the app for something, and return a whole answer."""
    client = Client(*pieces)
    scope = http_scope(**more)
    scope["headers"] = [*([] if host is None else [(b"host", host)]), *headers]
    with anyio.fail_after(PATIENCE):
        await app(scope, client.receive, client.send)
    assert client.answer.ended
    return client.answer


@contextlib.asynccontextmanager
async def proxied(*answers, **options):
    """A service and a proxy in front of it."""
    with Upstream(*answers) as upstream:
        proxy = Proxy(upstream.url + options.pop("base", ""), **options)
        try:
            yield proxy, upstream
        finally:
            await proxy.aclose()


@contextlib.contextmanager
def served(app, http: str = "h11", listener: socket.socket | None = None) -> Iterator[int]:
    """The app behind a real server; its port."""
    subscriber = listener or socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, http=http, lifespan="on", log_config=None, access_log=False, ws="websockets-sansio",
                            date_header=False, server_header=False)  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([subscriber],))
    thread.start()
    try:
        yield subscriber.getsockname()[1]
    finally:
        server.should_exit = True
        thread.join(PATIENCE)
        assert not thread.is_alive()


def talk(port: int, request: bytes) -> bytes:
    """Send bytes, and return all that comes until the server closes."""
    with socket.create_connection(("127.0.0.1", port), PATIENCE) as connection:
        connection.sendall(request)
        return b"".join(iter(lambda: connection.recv(65536), b""))


def body_of(answer: bytes) -> bytes:
    return answer.partition(b"\r\n\r\n")[2]


# -- targets --------------------------------------------------------------------------------------------------

TARGETS = [b"/", b"/a%2Fb", b"//a//b", b"/a;b=c/d", b"/%e4%C3%A4%zz", b"/a/../b/./", b"/a?", b"/?q", b"/a?b=c%20d&b=%2f?/",
           b"/a?=&&;+", b"/~!$&'()*+,=:@-._|^`{}\"<>\\"]  # fmt: skip


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_paths_and_queries_pass_byte_for_byte(http):
    """RFC 9110 7.7: a proxy must not change path and query; a "?" with nothing after it is lost in the server."""
    with Upstream() as upstream, served(Proxy(upstream.url), http) as port:
        for target in TARGETS:
            talk(port, b"GET %b HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % target)
            assert upstream.last.line == b"GET %b HTTP/1.1" % (b"/a" if target == b"/a?" else target)


@pytest.mark.parametrize("base", ["/api", "/api/"])
async def test_path_of_upstream_url_precedes_every_path(base):
    async with proxied(base=base) as (proxy, upstream):
        await ask(proxy, path="/a", query_string=b"b=c")
        assert upstream.last.target == b"/api/a?b=c"
        await ask(proxy, path="//a/")
        assert upstream.last.target == b"/api//a/"


async def test_path_is_quoted_when_server_gives_no_raw_path():
    """RFC 3986 3.3: what a path may hold stays; RFC 3987 3.1: what is not ASCII is written as UTF-8."""
    async with proxied() as (proxy, upstream):
        await ask(proxy, path="/ä b%/c;d=@:!$&'()*+,~?#", raw_path=None)
        assert upstream.last.target == b"/%C3%A4%20b%25/c;d=@:!$&'()*+,~%3F%23"


async def test_options_asterisk_is_passed_on_without_the_upstream_path():
    """RFC 9112 3.2.4"""
    async with proxied(base="/api") as (proxy, upstream):
        await ask(proxy, method="OPTIONS", path="*")
        assert upstream.last.line == b"OPTIONS * HTTP/1.1"


@pytest.mark.parametrize(
    "scope",
    [{"path": "*"}, {"path": "ftp://other/a"}, {"path": "http:///a"}, {"path": "http://me@other/a"}, {"path": "a"},
     {"path": "/a b", "raw_path": b"/a b"}, {"path": "/ä", "raw_path": b"/\xe4"},
     {"headers": [(b"host", b"b")]}, {"headers": [(b"bad name", b"x")]}],
)  # fmt: skip
async def test_invalid_target_or_header_is_answered_with_400(scope):
    """RFC 9112 3.2: of two `Host` fields, or a target that is none, nothing is made."""
    async with proxied() as (proxy, upstream):
        assert (await ask(proxy, **scope)).status == 400
        assert upstream.asked == []


@pytest.mark.parametrize("method", ["CONNECT", "TRACE"])
async def test_connect_and_trace_are_answered_with_501(method):
    """RFC 9110 9.3.6 and 9.3.8, 15.6.2"""
    async with proxied() as (proxy, upstream):
        assert (await ask(proxy, method=method)).status == 501
        assert upstream.asked == []


@pytest.mark.parametrize(("sent", "passed"), [(b"1", b"0"), (b"17", b"16"), (b"x", b"x"), (b"9" * 5000, b"9" * 5000)])
async def test_max_forwards_is_decremented_for_options_only(sent, passed):
    """RFC 9110 7.6.2"""
    async with proxied() as (proxy, upstream):
        await ask(proxy, method="OPTIONS", headers=[(b"max-forwards", sent)])
        assert upstream.last.values("max-forwards") == [passed]
        await ask(proxy, headers=[(b"max-forwards", sent)])
        assert upstream.last.values("max-forwards") == [sent]


async def test_options_with_max_forwards_0_is_answered_by_the_proxy():
    """RFC 9110 7.6.2"""
    async with proxied() as (proxy, upstream):
        answer = await ask(proxy, method="OPTIONS", headers=[(b"max-forwards", b"0")])
        assert (answer.status, answer.values("content-length"), answer.body) == (200, [b"0"], b"")
        assert upstream.asked == []


HOSTS = [b"a", b"a.b:80", b"a:", b"127.0.0.1:8000", b"[::1]:80", b"[v1.a:b]", b"%41_-~!$&'()*+,;=", b"\xe4", b"", b":80", b"a b",
         b"a/b", b"me@a", b"a:b", b"a:1:2", b"[::1", b"::1", b'a"b', b"a?", b"a#", b"a\\b", b"%4", b"a:999999"]  # fmt: skip


@pytest.mark.uncounted
@pytest.mark.parametrize("host", HOSTS)
async def test_invalid_host_is_answered_with_400(host):
    """RFC 9112 3.2 and RFC 3986 3.2.2, not empty (RFC 9110 4.2.1); on what would be a hit, too."""
    valid = HOSTS.index(host) < 7
    with Upstream() as upstream:
        for app in (Proxy(upstream.url), caching_proxy(upstream.url, fresh_for=60)):
            async with running(app):
                statuses = [(await ask(app, host=host)).status for _ in range(2)]
                assert statuses == [200 if valid else 400] * 2
        assert len(upstream.asked) == (3 if valid else 0)


async def test_only_http_1_1_requests_need_exactly_one_host():
    """RFC 9112 3.2; in HTTP/2 the server makes the field of `:authority`."""
    with Upstream() as upstream:
        app = caching_proxy(upstream.url)
        async with running(app):
            asked = [{"host": None}, {"headers": [(b"host", b"test")]}, {"host": None, "http_version": "1.0"},
                     {"host": None, "http_version": "2"}]  # fmt: skip
            assert [(await ask(app, **how)).status for how in asked] == [400, 400, 200, 200]


async def test_proxy_in_a_loop_with_itself_answers_508():
    """RFC 5842 7.2, RFC 9110 7.6.3: at once, also where a cache in it has others wait for the first answer."""
    for chain in (1, 2):
        listeners = [socket.create_server(("127.0.0.1", 0)) for _ in range(chain)]
        urls = [f"http://127.0.0.1:{listener.getsockname()[1]}" for listener in listeners]
        with contextlib.ExitStack() as stack:
            for listener, url in zip(listeners, [*urls[1:], urls[0]], strict=True):
                stack.enter_context(served(caching_proxy(url, fresh_for=60), listener=listener))
            answer = await anyio.to_thread.run_sync(talk, listeners[0].getsockname()[1], CLOSING)
            assert answer.startswith(b"HTTP/1.1 508 ")


VIAS = [(b"1.1 edge", 508), (b"1.0 a, 1.1 edge", 508), (b"1.0 a (b), HTTP/1.1\tEDGE , 1.1 c", 508), (b"1.1 edge (%b)", 508),
        (b"1.1 edges", 200), (b"1.1 a-edge", 200), (b"1.1 a (edge)", 200), (b"edge", 200), (b"1.1 edge (another)", 200)]  # fmt: skip


@pytest.mark.uncounted
@pytest.mark.parametrize(("via", "status"), VIAS)
async def test_loop_is_detected_by_pseudonym_and_identity_in_via(via, status):
    """RFC 9110 7.6.3: two proxies of one name may stand one behind the other, if nobody has removed the comments."""
    async with proxied(pseudonym="edge") as (proxy, upstream):
        value = via % proxy.rules.identity if b"%" in via else via
        assert (await ask(proxy, headers=[(b"via", b"1.1 first"), (b"via", value)])).status == status
        assert len(upstream.asked) == (status == 200)


def test_chain_of_two_proxies_with_one_pseudonym_is_no_loop():
    with (
        Upstream() as upstream,
        served(caching_proxy(upstream.url)) as port,
        served(caching_proxy(f"http://127.0.0.1:{port}")) as front,
    ):
        assert body_of(talk(front, CLOSING)) == b"ok"


# -- fields ---------------------------------------------------------------------------------------------------


async def test_proxy_adds_no_header_but_via_when_forwarded_is_off():
    """No User-Agent, Accept, Accept-Encoding or Connection of the library's own."""
    async with proxied(forwarded=False) as (proxy, upstream):
        await ask(proxy)
        assert upstream.last.head.rpartition(b" (")[0] == b"GET / HTTP/1.1\r\nhost: test\r\nvia: 1.1 swr"


async def test_repeated_headers_pass_byte_for_byte_and_in_order():
    """RFC 9110 5.3 and 5.5: order matters, and obs-text is opaque."""
    sent = [(b"x-a", b"1"), (b"cookie", b"a=\xe4\xff"), (b"x-a", b""), (b"x-b", b'"  , \t"'), (b"x-a", b"1")]
    async with proxied(
        b"HTTP/1.1 200 OK\r\nX-A: 1\r\nSet-Cookie: a=\xe4\xff\r\nx-a:\r\nX-B: \"  , \t\"\r\nX-A: 1\r\nSet-Cookie: b\r\n"
        b"Content-Length: 0\r\n\r\n", forwarded=False
    ) as (proxy, upstream):  # fmt: skip
        answer = await ask(proxy, headers=sent)
        lines = upstream.last.head.split(b"\r\n")[2:-1]
        assert lines == [b"%b: %b" % pair for pair in sent]
        assert answer.headers[:6] == [
            (b"x-a", b"1"), (b"set-cookie", b"a=\xe4\xff"), (b"x-a", b""), (b"x-b", b'"  , \t"'), (b"x-a", b"1"),
            (b"set-cookie", b"b"),
        ]  # fmt: skip


@pytest.mark.parametrize(("preserve", "host"), [(True, b"test"), (False, None)])
async def test_service_sees_client_host_only_with_preserve_host(preserve, host):
    """RFC 9110 7.2"""
    async with proxied(preserve_host=preserve) as (proxy, upstream):
        own = upstream.url.removeprefix("http://").encode()
        await ask(proxy)
        assert upstream.last.values("host") == [host or own]
        assert upstream.last.values("x-forwarded-host") == [b"test"]
        # HTTP/1.0 may be without.
        await ask(proxy, host=None, http_version="1.0")
        assert upstream.last.values("host") == [own]
        assert upstream.last.values("x-forwarded-host") == []
        assert upstream.last.values("forwarded") == [b"for=192.0.2.7;proto=http"]
        assert upstream.last.values("via") == [b"1.0 swr (%b)" % proxy.rules.identity]


HOP = [(b"keep-alive", b"timeout=5"), (b"proxy-connection", b"close"), (b"proxy-authenticate", b"Basic"),
       (b"proxy-authorization", b"Basic eA=="), (b"proxy-authentication-info", b"x"), (b"te", b"trailers"),
       (b"trailer", b"x-t"), (b"upgrade", b"h2c"), (b"http2-settings", b"AAMA"), (b"x-hop", b"1"), (b"x-hop", b"2")]  # fmt: skip


async def test_hop_by_hop_request_headers_are_not_passed_on():
    """RFC 9110 7.6.1"""
    async with proxied(forwarded=False) as (proxy, upstream):
        named = [(b"connection", b"close, X-Hop ,upgrade"), (b"connection", b"\t x-other,,x-absent")]
        answer = await ask(proxy, headers=[*HOP, *named, (b"x-other", b"3"), (b"x-kept", b"4")])
        assert upstream.last.names == {"host", "x-kept", "via"}
        assert answer.status == 200


async def test_hop_by_hop_response_headers_are_not_passed_on():
    """RFC 9110 7.6.1"""
    lines = b"".join(b"%b: %b\r\n" % pair for pair in HOP)
    async with proxied(
        b"HTTP/1.1 200 OK\r\nConnection: x-hop, keep-alive\r\n" + lines + b"Content-Length: 2\r\nX-Kept: 4\r\n\r\nok"
    ) as (proxy, _):
        answer = await ask(proxy)
        assert {name for name, _ in answer.headers} == {b"content-length", b"x-kept", b"date", b"via"}
        assert answer.body == b"ok"


FOR_ALL = [b"age", b"cache-control", b"cache-groups", b"cdn-cache-control", b"content-type", b"content-range", b"date", b"etag",
           b"expires", b"last-modified", b"location", b"pragma", b"set-cookie", b"swr-cache-control", b"vary"]  # fmt: skip


async def test_connection_header_cannot_remove_end_to_end_headers():
    """RFC 9110 7.6.1: "Cache-Control is never appropriate as a connection option"; nor is what frames a message."""
    asked = [(b"accept-language", b"de"), (b"authorization", b"a"), (b"cache-control", b"no-cache"),
             (b"content-length", b"1"), (b"cookie", b"a=b"), (b"if-none-match", b'"a"'), (b"x-api-key", b"a")]  # fmt: skip
    names = b", ".join(name for name, _ in asked)
    async with proxied(
        b"HTTP/1.1 200 OK\r\n%bConnection: %b\r\nContent-Length: 2\r\n\r\nok"
        % (b"".join(b"%b: 1\r\n" % name for name in FOR_ALL), b", ".join([*FOR_ALL, b"Content-Length"]))
    ) as (proxy, upstream):
        answer = await ask(proxy, b"x", method="POST", headers=[(b"connection", names + b", host"), *asked])
        for name, value in asked:
            assert upstream.last.values(name.decode()) == [value]
        assert upstream.last.values("host") == [b"test"]
        assert upstream.last.body == b"x"
        for name in FOR_ALL:
            assert answer.values(name.decode()) == [b"1"]
        assert (answer.values("content-length"), answer.values("vary")) == ([b"2"], [b"1"])


async def test_via_is_appended_with_the_received_version():
    """RFC 9110 7.6.3: by the version in which a message was received."""
    async with proxied(
        b"HTTP/1.1 200 OK\r\nVia: 1.1 a\r\nVia: 1.0 b (c)\r\nContent-Length: 0\r\n\r\n",
        then_close(b"HTTP/1.0 200 OK\r\n\r\nold"),
        pseudonym="edge",
    ) as (proxy, upstream):
        answer = await ask(proxy, headers=[(b"via", b"1.0 x"), (b"via", b"2 y, 1.1 z")], http_version="2")
        assert upstream.last.values("via") == [b"1.0 x, 2 y, 1.1 z, 2 edge (%b)" % proxy.rules.identity]
        assert answer.values("via") == [b"1.1 a, 1.0 b (c), 1.1 edge"]
        answer = await ask(proxy)
        assert (answer.values("via"), answer.body) == ([b"1.0 edge"], b"old")


@pytest.mark.parametrize(
    ("client", "node"),
    [
        (("192.0.2.7", 4711), b"192.0.2.7"),
        (("2001:db8::1", 4711), b'"[2001:db8::1]"'),
        (("fe80::1%eth0", 4711), b'"[fe80::1]"'),
        (("testclient", 50000), b"unknown"),
        (("", 0), b"unknown"),
        (None, b"unknown"),
    ],
)
async def test_forwarded_headers_name_client_host_and_scheme(client, node):
    """RFC 7239 4 and 6: an IPv6 address in brackets and quotes, what is not an address `unknown`."""
    async with proxied() as (proxy, upstream):
        host = b"a'(b):80"
        await ask(proxy, host=host, client=client, scheme="https")
        assert upstream.last.values("forwarded") == [b'for=%b;host="a\'(b):80";proto=https' % node]
        assert upstream.last.values("x-forwarded-for") == ([] if node == b"unknown" else [node.strip(b'"[]')])
        assert upstream.last.values("x-forwarded-proto") == [b"https"]
        assert upstream.last.values("x-forwarded-host") == [host]


FORGED = [(b"forwarded", b"for=10.0.0.1"), (b"x-forwarded-for", b"10.0.0.1"), (b"x-forwarded-proto", b"https"),
          (b"x-forwarded-host", b"bank"), (b"x-forwarded-port", b"443"), (b"x_forwarded_for", b"10.0.0.1"),
          (b"x-real-ip", b"10.0.0.1")]  # fmt: skip


async def test_forged_forwarded_headers_are_dropped():
    """RFC 7239 8.1: anybody can write it; with underscores too, which CGI does not tell from hyphens."""
    async with proxied() as (proxy, upstream):
        await ask(proxy, headers=FORGED)
        assert upstream.last.values("forwarded") == [b'for=192.0.2.7;host="test";proto=http']
        assert upstream.last.values("x-forwarded-for") == [b"192.0.2.7"]
        assert upstream.last.values("x-forwarded-proto") == [b"http"]
        assert upstream.last.values("x-forwarded-host") == [b"test"]
        assert not upstream.last.names & {"x-forwarded-port", "x_forwarded_for", "x-real-ip"}


async def test_forwarded_headers_of_a_trusted_proxy_are_extended():
    """RFC 7239 4: each proxy adds itself at the end. The scheme and the host are those that the first one saw."""
    async with proxied(trust_forwarded=True) as (proxy, upstream):
        await ask(proxy, headers=[*FORGED, (b"x-forwarded-for", b"10.0.0.2")])
        assert upstream.last.values("forwarded") == [b'for=10.0.0.1, for=192.0.2.7;host="test";proto=https']
        assert upstream.last.values("x-forwarded-for") == [b"10.0.0.1, 10.0.0.2, 192.0.2.7"]
        for name, value in FORGED[2:]:
            assert upstream.last.values(name.decode()) == [value]


SCHEMES = [(b"forwarded", b'for=10.0.0.1;Proto="https", for=10.0.0.2;proto=http'), (b"x-forwarded-proto", b"https, http"),
           (b"x-forwarded-scheme", b"https"), (b"x-scheme", b"https"), (b"x-forwarded-protocol", b"HTTPS"),
           (b"x-url-scheme", b"https"), (b"cloudfront-forwarded-proto", b"https"),
           (b"x-forwarded-ssl", b"on"), (b"front-end-https", b"on")]  # fmt: skip


@pytest.mark.parametrize("said", SCHEMES, ids=lambda said: said[0].decode())
async def test_refreshes_tell_the_service_the_scheme_reported_by_a_trusted_proxy(said):
    """A redirect to where the client is already would be stored, and renew itself."""

    def run(upstream: Upstream, connection: socket.socket) -> None:
        [proto], forwarded = upstream.last.values("x-forwarded-proto"), upstream.last.values("forwarded")[0]
        if proto.lower().startswith(b"https") and forwarded.endswith(b"proto=https"):
            connection.sendall(OK)
        else:
            connection.sendall(b"HTTP/1.1 301 Moved\r\nLocation: https://test/\r\nContent-Length: 0\r\n\r\n")

    with Upstream(run) as upstream:
        app = caching_proxy(upstream.url, fresh_for=0, stale_for=600, trust_forwarded=True)
        async with running(app):
            with anyio.fail_after(PATIENCE):
                while len(upstream.asked) < 3:
                    assert (await ask(app, headers=[said])).status == 200
                    await anyio.sleep(0.001)
        # Whoever is not behind a proxy that says so has not asked by https, whatever they write.
        plain = caching_proxy(upstream.url, fresh_for=0, stale_for=600)
        async with running(plain):
            assert (await ask(plain, headers=[said])).status == 301


@pytest.mark.parametrize("method", ["GET", "HEAD"])
@pytest.mark.parametrize("version", ["2", "3"])
async def test_get_with_unannounced_content_bypasses_the_cache(method, version):
    """RFC 9113 8.1: HTTP/2 needs no field for it; RFC 9110 9.3.1: content of a GET may mean something to the service."""
    with Upstream(answer(b"1"), answer(b"2"), answer(b"3")) as upstream:
        app = caching_proxy(upstream.url)
        async with running(app):
            assert (await ask(app, http_version=version)).body == b"1"
            hit = await ask(app, http_version=version)
            assert (hit.body, hit.values("swr-state")) == (b"1", [b"fresh"])
            for pieces in ([b"x"], [b"", b"x"]):
                fat = await ask(app, *pieces, method=method, http_version=version)
                assert fat.values("cache-status")[-1].endswith(b'detail="content"')
                assert upstream.last.body == b"x"
            assert (await ask(app, http_version=version)).body == b"1"


@pytest.mark.parametrize("trust", [True, False])
async def test_forwarded_headers_of_client_pass_only_if_trusted_when_forwarded_is_off(trust):
    async with proxied(forwarded=False, trust_forwarded=trust) as (proxy, upstream):
        await ask(proxy, headers=FORGED)
        assert upstream.last.names == {"host", "via"} | ({name.decode() for name, _ in FORGED} if trust else set())


async def test_answer_keeps_the_service_date_or_gets_one():
    """RFC 9110 6.6.1: the service's own, or else the time of receipt."""
    async with proxied(OK, b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") as (proxy, _):
        assert (await ask(proxy)).values("date") == [b"Mon, 01 Jan 2024 00:00:00 GMT"]
        [date] = (await ask(proxy)).values("date")
        assert parsedate_to_datetime(date.decode()).year > 2024


async def test_answer_has_one_date_although_connection_names_it():
    """RFC 9110 6.6.1"""
    lines = b"HTTP/1.1 200 OK\r\nConnection: Date\r\nContent-Length: 0\r\n"
    async with proxied(lines + b"Date: Mon, 01 Jan 2024 00:00:00 GMT\r\n\r\n", lines + b"\r\n") as (proxy, _):
        assert (await ask(proxy)).values("date") == [b"Mon, 01 Jan 2024 00:00:00 GMT"]
        assert len((await ask(proxy)).values("date")) == 1


async def test_every_answer_of_a_caching_proxy_has_one_date():
    """RFC 9110 6.6.1: hits, confirmations, and what the cache and the proxy say themselves."""
    dateless = b'HTTP/1.1 200 OK\r\nCache-Control: max-age=60\r\nETag: "a"\r\nContent-Length: 2\r\n\r\nok'
    with Upstream(dateless) as upstream:
        app = caching_proxy(upstream.url)
        async with running(app):
            asked = [{}, {}, {"headers": [(b"if-none-match", b'"a"')]}, {"headers": [(b"range", b"bytes=9-")]}, {"host": b"a b"},
                     {"path": "/other", "headers": [(b"cache-control", b"only-if-cached")]}, {"method": "TRACE"}]  # fmt: skip
            answers = [await ask(app, **how) for how in asked]
            assert [answer.status for answer in answers] == [200, 200, 304, 416, 400, 504, 501]
            assert [len(answer.values("date")) for answer in answers] == [1] * 7
            assert answers[0].values("date") == answers[1].values("date")


async def test_no_cookie_of_one_client_reaches_another():
    """RFC 6265 5.3 is for user agents; a proxy keeps no jar."""
    async with proxied(b"HTTP/1.1 200 OK\r\nSet-Cookie: session=mine; Path=/\r\nContent-Length: 0\r\n\r\n") as (
        proxy,
        upstream,
    ):
        for _ in range(2):
            assert (await ask(proxy)).values("set-cookie") == [b"session=mine; Path=/"]
            assert upstream.last.values("cookie") == []


async def test_redirect_is_passed_on_and_not_followed():
    """RFC 9110 15.4"""
    async with proxied(b"HTTP/1.1 302 Found\r\nLocation: /there\r\nContent-Length: 0\r\n\r\n") as (proxy, upstream):
        answer = await ask(proxy)
        assert (answer.status, answer.values("location")) == (302, [b"/there"])
        assert len(upstream.asked) == 1


async def test_proxy_variables_and_netrc_of_the_environment_are_ignored(monkeypatch, tmp_path):
    """Neither proxies nor the credentials of whoever runs it."""
    with Upstream() as elsewhere:
        netrc = tmp_path / "netrc"
        netrc.write_text("machine 127.0.0.1 login me password secret\n")
        monkeypatch.setenv("NETRC", str(netrc))
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, elsewhere.url)
        async with proxied() as (proxy, upstream):
            assert (await ask(proxy)).body == b"ok"
            assert upstream.last.values("authorization") == []
        assert elsewhere.asked == []


# -- bodies ---------------------------------------------------------------------------------------------------


async def test_request_body_with_length_keeps_its_content_length():
    """RFC 9110 8.6"""
    async with proxied() as (proxy, upstream):
        await ask(proxy, b"ab", b"", b"cd", method="POST", headers=[(b"content-length", b"4")])
        assert (upstream.last.body, upstream.last.values("content-length")) == (b"abcd", [b"4"])
        assert "transfer-encoding" not in upstream.last.names
        await ask(proxy, method="POST", headers=[(b"content-length", b"0")])
        assert upstream.last.values("content-length") == [b"0"]


async def test_chunked_request_body_is_sent_in_chunks_without_length():
    """RFC 9112 7.1; what has both is read by its chunks, and its length is dropped (RFC 9112 6.3)."""
    async with proxied() as (proxy, upstream):
        for more in ([], [(b"content-length", b"9")]):
            await ask(proxy, b"ab", b"cd", method="PUT", headers=[(b"transfer-encoding", b"chunked"), *more])
            assert upstream.last.raw_body == b"2\r\nab\r\n2\r\ncd\r\n0\r\n\r\n"
            assert "content-length" not in upstream.last.names


async def test_http_2_body_without_length_or_coding_is_passed_on():
    """RFC 9113 8.1: HTTP/2 needs neither length nor coding."""
    async with proxied() as (proxy, upstream):
        await ask(proxy, b"ab", b"cd", method="POST", http_version="2")
        assert upstream.last.body == b"abcd"
        await ask(proxy, b"ab", method="POST", http_version="2")
        assert upstream.last.raw_body == b"2\r\nab\r\n0\r\n\r\n"


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
async def test_request_without_body_is_sent_without_length_and_coding(method):
    """RFC 9112 6.3: with neither length nor coding there is none."""
    async with proxied(then_close(b"HTTP/1.1 204 No Content\r\n\r\n")) as (proxy, upstream):
        await ask(proxy, method=method)
        assert not upstream.last.names & {"transfer-encoding", "content-length"}


async def test_unknown_transfer_coding_is_answered_with_501():
    """RFC 9112 6.1"""
    async with proxied() as (proxy, upstream):
        answer = await ask(proxy, b"x", method="POST", headers=[(b"transfer-encoding", b"gzip, chunked")])
        assert (answer.status, upstream.asked) == (501, [])


async def test_service_is_contacted_while_client_still_sends_its_body():
    async with proxied() as (proxy, upstream):
        seen = anyio.Event()
        client = Client()

        async def receive():
            if client.pieces is None:
                return await Client.receive(client)
            if not seen.is_set():
                seen.set()
                return {"type": "http.request", "body": b"ab", "more_body": True}
            # The service has the beginning: its connection was made for it.
            while not upstream.opened:
                await anyio.sleep(0.001)
            client.pieces = None
            return {"type": "http.request", "body": b"cd"}

        with anyio.fail_after(PATIENCE):
            scope = http_scope("POST", headers=[(b"host", b"test"), (b"transfer-encoding", b"chunked")])
            await proxy(scope, receive, client.send)
        assert (upstream.last.body, client.answer.body) == (b"abcd", b"ok")


async def test_answer_chunks_are_passed_on_as_they_arrive():
    """An event stream reaches the client event by event."""
    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nContent-Type: text/event-stream\r\n\r\n"

    def run(upstream: Upstream, connection: socket.socket) -> None:
        connection.sendall(head + b"5\r\nfirst\r\n")
        assert upstream.release.wait(PATIENCE)
        connection.sendall(b"4\r\nlast\r\n0\r\n\r\n")

    async with proxied(run) as (proxy, upstream):
        client = Client()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(proxy, http_scope(), client.receive, client.send)
                await client.got_body.wait()
                assert client.answer.body == b"first"
                upstream.release.set()
        assert client.answer.chunks == [b"first", b"last", b""]
        assert client.answer.values("transfer-encoding") == client.answer.values("content-length") == []


async def test_other_tasks_run_while_an_answer_arrives_in_many_pieces():
    """A service that streams rows sends a piece for each. Thousands of them may come at once."""
    turns = 0
    at_piece = []

    class Counting(Client):
        async def send(self, message):
            at_piece.append(turns)
            await super().send(message)

    async def take_turns():
        nonlocal turns
        while True:
            turns += 1
            await anyio.lowlevel.checkpoint()

    head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
    async with proxied(head + b"1\r\na\r\n" * 500 + b"0\r\n\r\n") as (proxy, _):
        client = Counting()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(take_turns)
                await proxy(http_scope(), client.receive, client.send)
                group.cancel_scope.cancel()
        assert client.answer.body == b"a" * 500
    # trio lets a task run twice in a row.
    assert len(set(at_piece)) > 200


async def test_gzip_body_is_passed_on_unchanged():
    """RFC 9110 8.4: the coding is the client's to take off."""
    import gzip

    body = gzip.compress(b"a" * 1000)
    async with proxied(
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\nContent-Length: %d\r\n\r\n" % len(body) + body
    ) as (proxy, _):
        answer = await ask(proxy)
        assert (answer.body, answer.values("content-encoding")) == (body, [b"gzip"])
        assert answer.values("content-length") == [b"%d" % len(body)]


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_answers_to_head_and_with_204_or_304_have_no_body(http):
    """RFC 9110 8.6, 15.3.5 and 15.4.5; RFC 9112 6.3: HEAD keeps the length, a 204 and a 304 are without one."""
    lines = {
        b"HEAD": b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n",
        b"GET": b"HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\nETag: \"a\"\r\n\r\n",
        b"DELETE": b"HTTP/1.1 204 No Content\r\nContent-Length: 0\r\n\r\n",
    }  # fmt: skip
    with Upstream(*lines.values(), OK) as upstream, served(Proxy(upstream.url), http) as port:
        for method in lines:
            answer = talk(port, b"%b / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n" % method)
            assert body_of(answer) == b""
            assert (b"content-length: 5" in answer) == (method == b"HEAD")
            assert b"content-length: 0" not in answer
        # Nothing was left over on the connection, which is still the first one.
        assert body_of(talk(port, b"GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")) == b"ok"
        assert upstream.opened == 1


async def test_answer_with_length_and_chunks_is_read_by_its_chunks():
    """RFC 9112 6.3: the length is removed before the message is passed on."""
    async with proxied(
        b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nok\r\n0\r\nX-T: 1\r\n\r\n"
    ) as (proxy, _):
        answer = await ask(proxy)
        assert (answer.body, answer.values("content-length"), answer.values("x-t")) == (b"ok", [], [])


async def test_interim_answers_are_skipped():
    """RFC 9110 15.2; ASGI has no way to pass them on."""
    hint = b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\nHTTP/1.1 100 Continue\r\n\r\n"
    async with proxied(hint + OK) as (proxy, _):
        answer = await ask(proxy)
        assert (answer.status, answer.values("link"), answer.body) == (200, [], b"ok")


def test_expect_100_continue_is_answered_and_passed_on():
    """RFC 9110 10.1.1"""
    with Upstream() as upstream, served(Proxy(upstream.url)) as port:
        answer = talk(
            port,
            b"POST / HTTP/1.1\r\nHost: x\r\nExpect: 100-continue\r\nContent-Length: 2\r\nConnection: close\r\n\r\nab",
        )
        assert answer.count(b"HTTP/1.1 ") == 2
        assert answer.startswith(b"HTTP/1.1 100 ")
        assert (upstream.last.body, upstream.last.values("expect")) == (b"ab", [b"100-continue"])


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_query_method_is_cached_by_its_content_and_refreshed_with_it(http):
    """RFC 10008 2.7; the expectation of a client is met where the cache reads the content."""
    stale = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0, stale-while-revalidate=600\r\nContent-Length: 1\r\n\r\n"
    with (
        Upstream(stale + b"1", stale + b"2", stale + b"3") as upstream,
        served(caching_proxy(upstream.url), http) as port,
    ):

        def query(content: bytes) -> bytes:
            fields = b"Host: x\r\nContent-Type: a/b\r\nContent-Length: 2\r\nConnection: close\r\n"
            got = talk(port, b"QUERY /x HTTP/1.1\r\n" + fields + b"Expect: 100-continue\r\n\r\n" + content)
            assert got.startswith(b"HTTP/1.1 100 ")
            return got[-1:]

        assert [query(b"ab"), query(b"cd"), query(b"ab")] == [b"1", b"2", b"1"]
        with_patience = time.monotonic() + PATIENCE
        while query(b"ab") != b"3":
            assert time.monotonic() < with_patience
        first, _, refresh = upstream.asked[:3]
        assert (refresh.line, refresh.body) == (first.line, first.body) == (b"QUERY /x HTTP/1.1", b"ab")
        assert refresh.values("content-type") == [b"a/b"]


# -- failures -------------------------------------------------------------------------------------------------


def closed_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class Broken(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """Connections that fail: before the answer, or amid it."""

    def __init__(self, error: Exception, amid: bool = False) -> None:
        self.error, self.amid, self.closed = error, amid, False

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if not self.amid:
            raise self.error
        return httpx.Response(200, stream=self, extensions={"http_version": b"HTTP/1.1"})

    async def __aiter__(self):
        yield b"half"
        raise self.error

    async def aclose(self) -> None:
        self.closed = True


@pytest.mark.parametrize(
    ("error", "status", "text"),
    [
        (httpx.ConnectError("10.1.2.3"), 502, b"The service could not be reached.\n"),
        (httpx.ReadError("10.1.2.3"), 502, b"The service gave no valid answer.\n"),
        (httpx.WriteError("10.1.2.3"), 502, b"The service gave no valid answer.\n"),
        (httpx.RemoteProtocolError("10.1.2.3"), 502, b"The service gave no valid answer.\n"),
        (httpx.ConnectTimeout("10.1.2.3"), 504, b"The service could not be reached in time.\n"),
        (httpx.ReadTimeout("10.1.2.3"), 504, b"The service did not answer in time.\n"),
        (httpx.WriteTimeout("10.1.2.3"), 504, b"The service did not answer in time.\n"),
        (httpx.PoolTimeout("10.1.2.3"), 504, b"The service is busy: no connection to it became free in time.\n"),
    ],
)
async def test_connection_errors_are_answered_with_502_or_504_and_logged(error, status, text, monkeypatch, caplog):
    """RFC 9110 15.6.3 and 15.6.5; what is behind it is in the log alone."""
    proxy = Proxy("http://127.0.0.1:1")
    monkeypatch.setattr(proxy._service, "_transport", Broken(error))
    with caplog.at_level(logging.WARNING, "swr"):
        answer = await ask(proxy, method="POST")
    assert (answer.status, answer.body) == (status, text)
    assert answer.values("content-type") == [b"text/plain; charset=utf-8"]
    assert answer.values("content-length") == [b"%d" % len(text)]
    assert len(answer.values("date")) == 1
    assert "10.1.2.3" in caplog.text
    answer = await ask(proxy, method="HEAD")
    assert (answer.status, answer.body, answer.values("content-length")) == (status, b"", [b"%d" % len(text)])


async def test_unreachable_service_is_answered_with_502():
    """RFC 9110 15.6.3"""
    proxy = Proxy(f"http://127.0.0.1:{closed_port()}")
    assert (await ask(proxy)).status == 502
    await proxy.aclose()


@pytest.mark.parametrize(
    "answer",
    [b"", b"HTTP/1.1 200 OK\r\nContent-Le", b"220 ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",
     b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\nab",
     b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n", b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
     b"HTTP/1.1 799 Odd\r\nContent-Length: 0\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: a\x01b\r\nContent-Length: 0\r\n\r\n"],
)  # fmt: skip
async def test_invalid_answer_of_the_service_is_replaced_by_502(answer):
    """RFC 9110 15 and 15.6.3, 7.8 (nobody asked for another protocol), 5.5; RFC 9112 6.3 and 8"""
    async with proxied(then_close(answer)) as (proxy, upstream):
        assert (await ask(proxy)).status == 502
        assert len(upstream.asked) == 1


async def test_silent_service_is_answered_with_504():
    """RFC 9110 15.6.5"""
    async with proxied(then_hang(), timeout=0.05) as (proxy, upstream):
        assert (await ask(proxy)).status == 504
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)


def drip(begin: bytes, piece: bytes) -> Callable[[Upstream, socket.socket], None]:
    """Send the head of an answer piece by piece, and come to no end."""

    def run(upstream: Upstream, connection: socket.socket) -> None:
        connection.sendall(begin)
        with contextlib.suppress(OSError):
            while not upstream.release.wait(0.01):
                connection.sendall(piece)
        upstream.left.set()
        raise ConnectionError

    return run


ENDLESS_HEADS = {
    "interim answers": drip(b"", b"HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n"),
    "bytes of a field": drip(b"HTTP/1.1 200 OK\r\nX: ", b"x"),
    "bytes of an interim answer": drip(b"HTTP/1.1 102 Processing\r\nX: ", b"x"),
}


@pytest.mark.parametrize("kind", ENDLESS_HEADS)
async def test_service_whose_answer_head_never_ends_is_answered_with_504(kind):
    """The service is never silent for long, so only the time limit of the whole head ends the request."""
    async with proxied(ENDLESS_HEADS[kind], timeout=0.3) as (proxy, upstream):
        answer = await ask(proxy)
        assert (answer.status, answer.body) == (504, b"The service did not answer in time.\n")
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
        assert free(proxy)


@pytest.mark.uncounted
@pytest.mark.parametrize("kind", ENDLESS_HEADS)
async def test_endless_answer_heads_free_their_connections_after_the_timeout(kind):
    """They bypass the cache, so `hard_timeout` does not end them; here they have all the connections."""
    headers = [(b"cookie", b"a=b")]
    answers = [*[ENDLESS_HEADS[kind]] * 3, OK]
    async with cached(*answers, max_connections=3, timeout=0.3, connect_timeout=PATIENCE) as (app, upstream):
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(lambda: ask(app, headers=headers))
                while len(upstream.asked) < 3:
                    await anyio.sleep(0.001)
                # On a slow machine the good answer itself may come too late.
                while (await ask(app)).body != b"ok":
                    pass


@pytest.mark.parametrize("kind", [*ENDLESS_HEADS, "silence"])
async def test_request_without_an_answer_gives_its_connection_to_a_waiting_one(kind, monkeypatch):
    """A few addresses of a service hang, each with a client that waits; the others go on being answered."""
    monkeypatch.setattr("swr.proxy.slots._OVERDUE", 0.05)
    answers = [ENDLESS_HEADS.get(kind, then_hang(b""))] * 3
    statuses = []
    async with proxied(*answers, OK, max_connections=3, timeout=600, connect_timeout=PATIENCE) as (proxy, upstream):

        async def hang() -> None:
            statuses.append((await ask(proxy)).status)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    group.start_soon(hang)
                while len(upstream.asked) < 3:
                    await anyio.sleep(0.001)
                assert (await ask(proxy)).body == b"ok"
                # One is enough for one.
                assert statuses == [504]
                group.cancel_scope.cancel()


async def test_only_the_longest_waiting_overdue_safe_request_is_given_up():
    slots = Slots(3, 1.0)
    usual, old, young, unsafe = (Exchange(60) for _ in range(4))
    scopes = [anyio.CancelScope() for _ in range(3)]
    for exchange in (old, young, unsafe):
        await slots.take(exchange)
    usual.ask(scopes[0])
    old.ask(scopes[1])
    young.ask(scopes[2])
    usual._asked_at -= 10
    slots.answered(usual)
    assert usual.unanswered(anyio.current_time()) == 0
    old._asked_at -= 25
    young._asked_at -= 24
    slots._queue[Exchange(60)] = anyio.Event()
    slots._make_room()
    # Three times as long as the longest answer of late has not passed.
    assert not old.is_given_up
    old._asked_at -= 10
    young._asked_at -= 10
    slots._next_search = 0.0
    slots._make_room()
    assert [scope.cancel_called for scope in scopes] == [False, True, False]
    # What has given way once makes room for one.
    slots._next_search = 0.0
    slots._make_room()
    assert [each.is_given_up for each in (old, young, unsafe)] == [True, False, False]


async def test_request_without_a_free_connection_is_answered_with_504():
    """RFC 9110 15.6.5: who finds no connection within `connect_timeout` is told so; the next one finds it free.

    The request that has the connection does not give way, because it may change something.
    """
    async with proxied(when_released(OK), OK, max_connections=1, connect_timeout=0.4) as (proxy, upstream):
        first = Client()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(proxy, http_scope("POST"), first.receive, first.send)
                assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
                busy = await ask(proxy)
                assert (busy.status, busy.body[:20]) == (504, b"The service is busy:")
                upstream.release.set()
        assert first.answer.body == b"ok"
        assert (await ask(proxy)).status == 200
        assert upstream.opened == 1


@pytest.mark.parametrize(
    ("error", "raised"), [(httpx.ReadTimeout("x"), TimeoutError), (httpx.ReadError("x"), ConnectionError)]
)
async def test_failure_in_the_middle_of_an_answer_is_raised(error, raised, monkeypatch):
    """RFC 9112 8: whoever serves this breaks the connection, and a cache takes it for no answer at all."""
    proxy = Proxy("http://127.0.0.1:1")
    transport = Broken(error, amid=True)
    monkeypatch.setattr(proxy._service, "_transport", transport)
    client = Client()
    with pytest.raises(raised, match=r"fell silent during|broke off"):
        await proxy(http_scope(), client.receive, client.send)
    assert (client.answer.body, client.answer.ended, transport.closed) == (b"half", False, True)


CUT = {
    "length": b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\nCache-Control: max-age=60\r\n\r\nhalf",
    "chunks": b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nCache-Control: max-age=60\r\n\r\n4\r\nhalf\r\n",
}


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("kind", CUT)
def test_truncated_answer_reaches_the_client_as_truncated(kind, http):
    """RFC 9112 8"""
    with Upstream(then_close(CUT[kind])) as upstream, served(Proxy(upstream.url), http) as port:
        answer = talk(port, b"GET / HTTP/1.1\r\nHost: x\r\n\r\n")
        assert b"half" in answer
        assert b"0\r\n\r\n" not in answer
        assert (b"content-length: 10" in answer) == (kind == "length")


@pytest.mark.parametrize("kind", CUT)
async def test_truncated_answer_is_not_stored(kind):
    """RFC 9111 3.3"""
    with Upstream(then_close(CUT[kind]), OK) as upstream:
        proxy, cache = Proxy(upstream.url), Cache()
        app = SWRMiddleware(proxy, cache)
        client = Client()
        with anyio.fail_after(PATIENCE), pytest.raises(ConnectionError):
            await app(http_scope(), client.receive, client.send)
        assert not client.answer.ended
        assert (await ask(app)).body == b"ok"
        await cache.aclose()
        await proxy.aclose()


async def test_get_is_sent_again_when_its_idle_connection_was_closed():
    """RFC 9112 9.3.1: a request that changes nothing, on a connection used before, is sent once more on a new one."""
    async with proxied(OK, then_close(b""), OK) as (proxy, upstream):
        assert (await ask(proxy)).status == 200
        assert (await ask(proxy)).status == 200
        assert [asked.connection for asked in upstream.asked] == [1, 1, 2]


async def test_get_tries_all_closed_idle_connections_and_then_a_new_one():
    """A busy service closes all that were idle: the request tries them until it gets a new one."""

    def answer(upstream: Upstream, connection: socket.socket) -> None:
        upstream.release.wait(PATIENCE)
        connection.sendall(OK)

    async with proxied(answer, answer, answer, then_close(b""), then_close(b""), then_close(b""), OK) as (
        proxy,
        upstream,
    ):
        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(ask, proxy)
            for _ in range(3):
                assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
            upstream.release.set()
        assert (await ask(proxy)).status == 200
        assert sorted(asked.connection for asked in upstream.asked) == [1, 1, 2, 2, 3, 3, 4]


async def test_post_and_get_with_content_are_not_sent_again():
    """RFC 9110 9.2.2"""
    for pieces, scope in (([], {"method": "POST"}), ([b"x"], {"headers": [(b"content-length", b"1")]})):
        async with proxied(OK, then_close(b"")) as (proxy, upstream):
            assert (await ask(proxy)).status == 200
            assert (await ask(proxy, *pieces, **scope)).status == 502
            assert len(upstream.asked) == 2


async def test_bytes_after_an_answer_are_not_taken_for_the_next_answer():
    """RFC 9112 9.2 and 11.2: a connection on which more came than the answer holds is not used again."""
    async with proxied(OK + OK.replace(b"ok", b"no"), OK) as (proxy, upstream):
        for _ in range(2):
            assert (await ask(proxy)).body == b"ok"
        assert upstream.opened == 2


@pytest.mark.parametrize("anyio_backend", ["asyncio"])
async def test_bytes_after_an_answer_are_ignored_when_sockets_cannot_be_duplicated(monkeypatch):
    """As on Windows."""
    monkeypatch.setattr("os.dup", Mock(side_effect=OSError))
    await test_bytes_after_an_answer_are_not_taken_for_the_next_answer()


class Renamed(httpx.AsyncByteStream):
    """The stream of an answer in a release of httpx that calls its insides otherwise."""

    def __init__(self, stream) -> None:
        self.renamed = stream

    async def __aiter__(self):
        async for piece in self.renamed:
            yield piece

    async def aclose(self) -> None:
        await self.renamed.aclose()


async def test_connections_are_not_reused_when_httpx_hides_bytes_after_an_answer(monkeypatch, caplog):
    """RFC 9112 9.2 and 11.2: what cannot be seen may be there."""
    monkeypatch.setattr("httpx._transports.default.AsyncResponseStream", Renamed)
    _warn_if_blind.cache_clear()
    async with proxied(OK + OK.replace(b"ok", b"no"), OK) as (proxy, upstream):
        for opened in (1, 2, 3):
            assert (await ask(proxy)).body == b"ok"
            assert upstream.opened == opened
        assert free(proxy)
    assert [record.getMessage()[:28] for record in caplog.records] == ["this release of httpcore doe"]
    _warn_if_blind.cache_clear()


async def test_waiting_request_does_not_get_bytes_after_an_earlier_answer():
    """RFC 9112 9.2 and 11.2: the connection is closed before another request may have it."""
    rest = when_released(OK + OK.replace(b"ok", b"no"))
    async with proxied(rest, OK, max_connections=1) as (proxy, upstream):
        bodies = []

        async def one() -> None:
            bodies.append((await ask(proxy)).body)

        async with anyio.create_task_group() as group:
            for _ in range(3):
                group.start_soon(one)
            assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
            upstream.release.set()
        assert bodies == [b"ok"] * 3


async def test_connections_are_reused_and_expire_after_4_seconds():
    """RFC 9112 9.3: 4 seconds, where many servers close after 5."""
    async with proxied() as (proxy, upstream):
        for _ in range(3):
            await ask(proxy)
        assert upstream.opened == 1
        pool = proxy._service._transport._pool
        assert (pool._keepalive_expiry, pool._max_connections, pool._max_keepalive_connections) == (4.0, 100, 100)


# -- clients that leave ---------------------------------------------------------------------------------------

ENDLESS = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nfirst\r\n"


def free(proxy: Proxy) -> bool:
    """Whether no request holds a connection."""
    slots, transport = proxy._service._slots, proxy._service._transport
    if slots._taken or slots._queue:
        return False
    if transport is None:
        return True
    pool = transport._pool
    return not pool._requests and all(connection.is_idle() for connection in pool.connections)


@pytest.mark.parametrize("answer", [b"", ENDLESS])
async def test_client_disconnect_ends_the_upstream_request(answer):
    """RFC 9112 9.5: before the answer and amid it, on servers that do not say so when they are written to."""
    async with proxied(then_hang(answer)) as (proxy, upstream):
        client = Client()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(proxy, http_scope(), client.receive, client.send)
                assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
                if answer:
                    await client.got_body.wait()
                client.gone.set()
        assert not client.answer.ended
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
        assert free(proxy)


async def test_disconnect_during_request_body_frees_the_connection():
    """RFC 9112 8: the service sees an unfinished request, and the connection is closed."""
    async with proxied() as (proxy, upstream):
        for headers in ([(b"content-length", b"9")], [(b"transfer-encoding", b"chunked")]):
            messages = [{"type": "http.request", "body": b"half", "more_body": True}, {"type": "http.disconnect"}]

            async def receive(messages=messages):
                return messages.pop(0)

            client = Client()
            with anyio.fail_after(PATIENCE):
                await proxy(http_scope("POST", headers=[(b"host", b"x"), *headers]), receive, client.send)
            assert client.answer.status == 0
            assert free(proxy)
        with anyio.fail_after(PATIENCE):
            # Of a short body that is announced the service sees nothing before it is whole.
            while upstream.opened != 1:
                await anyio.sleep(0.001)


async def test_client_gone_at_once_causes_no_upstream_request():
    async with proxied() as (proxy, upstream):
        client = Client()
        client.pieces = None
        client.gone.set()
        await proxy(http_scope(), client.receive, client.send)
        assert (upstream.opened, client.answer.status) == (0, 0)


async def test_failing_send_ends_the_upstream_request():
    """ASGI 2.4: writing to a client that is gone raises."""
    async with proxied(then_hang(ENDLESS)) as (proxy, upstream):
        client = Client()
        client.error = OSError("gone")
        with anyio.fail_after(PATIENCE), pytest.raises(OSError, match=r"^gone$"):
            await proxy(http_scope(), client.receive, client.send)
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
        assert free(proxy)


async def test_cancellation_ends_the_upstream_request():
    async with proxied(then_hang(ENDLESS)) as (proxy, upstream):
        client = Client()
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                group.start_soon(proxy, http_scope(), client.receive, client.send)
                await client.got_body.wait()
                group.cancel_scope.cancel()
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
        assert free(proxy)


class Hasty(httpx.AsyncBaseTransport, httpx.AsyncByteStream):
    """A service that answers before it has read the request's body, and does not end."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, stream=self, extensions={"http_version": b"HTTP/1.1"})

    async def __aiter__(self):
        yield b"first"
        await anyio.sleep_forever()

    async def aclose(self) -> None:
        pass


async def test_disconnect_is_noticed_although_the_request_body_was_not_all_read(monkeypatch):
    """RFC 9112 9.3: a service may answer what it has not read."""
    proxy = Proxy("http://127.0.0.1:1")
    monkeypatch.setattr(proxy._service, "_transport", Hasty())
    client = Client(b"never", b"read")
    with anyio.fail_after(PATIENCE):
        async with anyio.create_task_group() as group:
            scope = http_scope("POST", headers=[(b"host", b"test"), (b"content-length", b"9")])
            group.start_soon(proxy, scope, client.receive, client.send)
            await client.got_body.wait()
            client.gone.set()
    assert client.answer.body == b"first"


async def test_repeated_end_of_body_messages_are_ignored():
    async with proxied(then_hang()) as (proxy, _):
        messages = [*[{"type": "http.request"}] * 3, {"type": "http.disconnect"}]

        async def receive():
            return messages.pop(0)

        client = Client()
        with anyio.fail_after(PATIENCE):
            await proxy(http_scope(), receive, client.send)
        assert messages == []


# -- clients that keep the proxy waiting ------------------------------------------------------------------------


class Stalled(Client):
    """A client that sends these pieces of an endless body, a moment apart, and reads so many messages."""

    def __init__(self, *pieces: bytes, reads: int = 1000, pause: float = 0.0) -> None:
        super().__init__(*pieces)
        self.reads, self.pause = reads, pause

    async def receive(self):
        if not self.pieces:
            await self.gone.wait()
            return {"type": "http.disconnect"}
        await anyio.sleep(self.pause)
        return {"type": "http.request", "body": self.pieces.pop(0), "more_body": True}

    async def send(self, message) -> None:
        if not self.reads:
            await anyio.sleep_forever()
        self.reads -= 1
        await super().send(message)


class Reader(Client):
    """A client that has sent its request and reads so many messages of the answer, a moment apart."""

    def __init__(self, reads: int, pause: float = 0.0) -> None:
        super().__init__()
        self.reads, self.pause = reads, pause

    async def send(self, message) -> None:
        if not self.reads:
            await anyio.sleep_forever()
        self.reads -= 1
        await anyio.sleep(self.pause)
        await super().send(message)


CHUNKED = http_scope("POST", headers=[(b"host", b"test"), (b"transfer-encoding", b"chunked")])
ANNOUNCED = http_scope("POST", headers=[(b"host", b"test"), (b"content-length", b"60000")])
LONG = http_scope("POST", headers=[(b"host", b"test"), (b"content-length", b"70000")])
# A byte every 20 ms is a tenth of what counts as going on.
DRIPPING = [b"x"] * 10_000


@pytest.mark.parametrize(
    ("scope", "client", "opened"),
    [
        (CHUNKED, Stalled(), 0),
        (ANNOUNCED, Stalled(), 0),
        (ANNOUNCED, Stalled(b"half"), 0),
        (ANNOUNCED, Stalled(*DRIPPING, pause=0.02), 0),
        (LONG, Stalled(), 0),
        (LONG, Stalled(b"half"), 1),
        (CHUNKED, Stalled(b"half"), 1),
        (CHUNKED, Stalled(*DRIPPING, pause=0.02), 1),
    ],
)
async def test_client_that_stalls_in_its_body_is_answered_with_408(scope, client, opened):
    """RFC 9110 15.5.9. As long as nothing has come, and until all of a short body has, it takes up no connection."""
    client = Stalled(*client.pieces or (), pause=client.pause)
    async with proxied(client_timeout=0.3) as (proxy, upstream):
        with anyio.fail_after(PATIENCE):
            await proxy(dict(scope), client.receive, client.send)
            assert (client.answer.status, client.answer.values("connection")) == (408, [b"close"])
            assert free(proxy)
            while upstream.opened != opened:
                await anyio.sleep(0.001)


@pytest.mark.parametrize("reads", [1, 2])
async def test_client_that_does_not_read_its_answer_is_timed_out(reads):
    async with proxied(then_hang(ENDLESS + b"5\r\nfirst\r\n"), client_timeout=0.2) as (proxy, upstream):
        client = Reader(reads)
        with anyio.fail_after(PATIENCE), pytest.raises(TimeoutError, match="the client took too long"):
            await proxy(http_scope(), client.receive, client.send)
        assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
        assert free(proxy)


@pytest.mark.uncounted
async def test_less_than_a_megabyte_is_buffered_for_a_client_that_stops_reading():
    """The system would give each such client megabytes."""
    sent = 0

    def pour_all(upstream: Upstream, connection: socket.socket) -> None:
        nonlocal sent
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 2**16)
        connection.sendall(ENDLESS)
        with contextlib.suppress(OSError):
            while True:
                connection.sendall(b"10000\r\n%b\r\n" % (b"x" * 2**16))
                sent += 2**16

    async with proxied(pour_all, client_timeout=600) as (proxy, _), anyio.create_task_group() as group:
        # After so many megabytes the system has found out how much it can buffer.
        client = Reader(500)
        group.start_soon(proxy, http_scope(), client.receive, client.send)
        with anyio.fail_after(PATIENCE):
            while client.reads:
                await anyio.sleep(0.01)
            before = -1
            while before < sent:
                before = sent
                await anyio.sleep(0.3)
        group.cancel_scope.cancel()
    buffered = sent - len(client.answer.body)
    assert buffered < 2**20


def pour(upstream: Upstream, connection: socket.socket) -> None:
    """Answer without an end, a byte at a time."""
    connection.sendall(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n")
    with contextlib.suppress(OSError):
        while True:
            connection.sendall(b"1\r\nx\r\n")
            upstream.release.wait(0.001)
    upstream.left.set()
    raise ConnectionError


async def test_client_that_reads_its_answer_too_slowly_is_timed_out():
    async with proxied(pour, client_timeout=0.3) as (proxy, _):
        client = Reader(100_000, pause=0.05)
        with anyio.fail_after(PATIENCE), pytest.raises(TimeoutError, match="the client took too long"):
            await proxy(http_scope(), client.receive, client.send)
        assert free(proxy)


async def test_slow_service_does_not_count_against_the_client_timeout():
    """An event stream may be silent for long, and so may the service before its answer."""
    async with proxied(then_wait_for_three(ENDLESS), client_timeout=2) as (proxy, _):
        client = Client(b"body")
        scope = http_scope("POST", headers=[(b"host", b"test"), (b"content-length", b"4")])
        with anyio.fail_after(PATIENCE):
            await proxy(scope, client.receive, client.send)
        assert client.answer.body == b"firstlast"


async def test_slow_client_that_keeps_sending_is_not_timed_out():
    """A megabyte in pieces of 64 kB, each later than `client_timeout` allows for all of them together."""
    pieces = [b"x" * 2**16] * 16
    async with proxied(client_timeout=3) as (proxy, upstream):
        client = Stalled(*pieces, b"", pause=0.25)

        async def receive():
            message = await client.receive()
            message["more_body"] = bool(client.pieces)
            return message

        with anyio.fail_after(PATIENCE):
            await proxy(dict(CHUNKED), receive, client.send)
        assert (client.answer.status, len(upstream.last.body)) == (200, 2**20)


HOLDERS = {
    "sends nothing more": (CHUNKED, lambda: Stalled(b"half")),
    "drips": (CHUNKED, lambda: Stalled(*DRIPPING, pause=0.02)),
    "reads nothing": (http_scope(), lambda: Reader(1)),
}


@pytest.mark.parametrize("kind", HOLDERS)
async def test_stalled_client_gives_way_when_all_connections_are_taken(kind):
    """Clients that do nothing would keep everybody out for as long as `client_timeout` allows."""
    scope, make = HOLDERS[kind]
    answers = [then_hang(ENDLESS)] * 3 if kind == "reads nothing" else []
    async with proxied(*answers, OK, max_connections=3, connect_timeout=PATIENCE, client_timeout=600) as (
        proxy,
        upstream,
    ):
        clients = [make() for _ in range(3)]
        ends = []

        async def hold(client) -> None:
            try:
                await proxy(dict(scope), client.receive, client.send)
                ends.append(client.answer.status)
            except TimeoutError:
                ends.append(0)

        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for client in clients:
                    group.start_soon(hold, client)
                while upstream.opened < 3 or len(upstream.asked) < len(answers):
                    await anyio.sleep(0.001)
                assert (await ask(proxy)).body == b"ok"
                # One is enough for one.
                assert ends == [0 if answers else 408]
                group.cancel_scope.cancel()


async def test_each_waiting_request_makes_one_stalled_client_give_way(monkeypatch):
    """With no second search, whoever did not search would wait for the answer to the other."""
    monkeypatch.setattr("swr.proxy.slots._SEARCH_EVERY", 10 * PATIENCE)
    options = {"max_connections": 3, "connect_timeout": 20 * PATIENCE, "client_timeout": 600}
    async with proxied(when_released(OK), **options) as (proxy, upstream):
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                for _ in range(3):
                    client = Stalled(b"half")
                    group.start_soon(proxy, dict(CHUNKED), client.receive, client.send)
                while upstream.opened < 3 or len(proxy._service._slots._taken) < 3:
                    await anyio.sleep(0.001)
                while min(held.behind(anyio.current_time()) for held in proxy._service._slots._taken) < 1:
                    await anyio.sleep(0.01)
                async with anyio.create_task_group() as asking:
                    for _ in range(2):
                        asking.start_soon(ask, proxy)
                    while [asked.line[:3] for asked in upstream.asked].count(b"GET") < 2:
                        await anyio.sleep(0.001)
                    upstream.release.set()
                group.cancel_scope.cancel()


async def test_clients_that_announce_a_body_but_send_none_take_no_connection():
    async with proxied(max_connections=1) as (proxy, _), anyio.create_task_group() as group:
        for scope in (CHUNKED, ANNOUNCED, LONG) * 10:
            client = Stalled()
            group.start_soon(proxy, dict(scope), client.receive, client.send)
        await anyio.wait_all_tasks_blocked()
        assert (await ask(proxy)).status == 200
        group.cancel_scope.cancel()


async def test_waiting_requests_get_connections_in_order_without_disconnected_ones():
    async with proxied(when_released(OK), OK, max_connections=1, connect_timeout=PATIENCE) as (proxy, upstream):
        done = []

        async def one(number: int, client: Client) -> None:
            await proxy(http_scope(path=f"/{number}"), client.receive, client.send)
            done.append((number, client.answer.body))

        clients = [Client() for _ in range(6)]
        with anyio.fail_after(PATIENCE):
            async with anyio.create_task_group() as group:
                proxy._service.open()
                slots = proxy._service._slots
                for number, client in enumerate(clients):
                    group.start_soon(one, number, client)
                    while len(slots._queue) + len(slots._taken) <= number:
                        await anyio.sleep(0.001)
                for number in (2, 4):
                    clients[number].gone.set()
                while len(done) < 2:
                    await anyio.sleep(0.001)
                upstream.release.set()
        assert sorted(done[:2]) == [(2, b""), (4, b"")]
        assert sorted(done[2:]) == [(number, b"ok") for number in (0, 1, 3, 5)]
        assert [asked.target for asked in upstream.asked] == [b"/0", b"/1", b"/3", b"/5"]
        assert free(proxy)


# -- with the cache -------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def cached(*answers, rules=(), **options):
    """A service, and a caching proxy in front of it."""
    with Upstream(*answers) as upstream:
        proxy, cache = Proxy(upstream.url, **options), Cache()
        yield SWRMiddleware(proxy, cache, rules), upstream
        await cache.aclose()
        await proxy.aclose()


def answer(body: bytes, *fields: bytes) -> bytes:
    lines = b"".join(line + b"\r\n" for line in (b"Cache-Control: max-age=60", *fields))
    return b"HTTP/1.1 200 OK\r\n%bContent-Length: %d\r\n\r\n%b" % (lines, len(body), body)


async def test_proxy_behind_the_middleware_caches_and_post_invalidates():
    """RFC 9111"""
    async with cached(answer(b"1"), answer(b"2")) as (app, upstream):
        assert [(await ask(app)).values("swr-state") for _ in range(2)] == [[b"missing"], [b"fresh"]]
        assert len(upstream.asked) == 1
        await ask(app, b"x", method="POST", headers=[(b"content-length", b"1")])
        assert (await ask(app)).body == b"2"


@pytest.mark.parametrize("vary", [b"X-Forwarded-For", b"accept , Forwarded"])
async def test_answer_that_varies_by_client_address_is_not_shared(vary):
    """RFC 9110 12.5.5: the cache before the proxy does not see these fields, so that it cannot tell clients apart."""
    async with cached(answer(b"1", b"Vary: " + vary), answer(b"2")) as (app, _):
        first = await ask(app)
        assert first.values("vary") == [vary, b"*"]
        assert (await ask(app, client=("192.0.2.8", 1))).body == b"2"
    async with cached(answer(b"1", b"Vary: " + vary), forwarded=False) as (app, upstream):
        for _ in range(2):
            assert (await ask(app)).values("vary") == [vary]
        assert len(upstream.asked) == 1


async def test_answer_that_varies_by_scheme_and_host_is_shared():
    """They are part of the URL."""
    async with cached(answer(b"1", b"Vary: X-Forwarded-Proto, X-Forwarded-Host")) as (app, upstream):
        for _ in range(2):
            assert (await ask(app)).body == b"1"
        assert len(upstream.asked) == 1


async def test_answer_to_request_with_removed_header_is_not_stored_for_others():
    """RFC 9110 7.6.1: the answer to a request without a field is not stored as the answer to one with it."""
    rules = [Rule("/", vary=["x-language"])]
    async with cached(answer(b"en"), answer(b"de"), rules=rules) as (app, _):
        forged = await ask(app, headers=[(b"connection", b"X-Language"), (b"x-language", b"de")])
        assert (forged.body, forged.values("vary")) == (b"en", [b"*"])
        assert (await ask(app, headers=[(b"x-language", b"de")])).body == b"de"


async def test_request_with_removed_header_is_cached_as_one_without_it():
    """RFC 9110 7.6.1: neither the service nor the cache of the whole sees it, so it steers nothing."""
    first = answer(b"1", b"Vary: X-Language").replace(b"max-age=60", b"max-age=0, stale-if-error=600")
    with Upstream(first, answer(b"2", b"Vary: X-Language"), answer(b"3")) as upstream:
        app = caching_proxy(upstream.url)
        async with running(app):
            await ask(app)
            forged = await ask(app, headers=[(b"connection", b"X-Language"), (b"x-language", b"de")])
            assert (forged.body, forged.values("vary")) == (b"2", [b"X-Language"])
            # What came is stored for those who do not send the field.
            assert (await ask(app)).values("swr-state") == [b"fresh"]


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "field", [b"Set-Cookie: a=b", b"Cache-Control: private", b"Vary: *", b"CDN-Cache-Control: no-store"]
)
async def test_private_answer_is_not_shared_although_connection_names_its_header(field):
    """RFC 9110 7.6.1: the cache in front sees what forbids it to share."""
    name = field.partition(b":")[0]
    async with cached(answer(b"1", field, b"Connection: " + name), answer(b"2")) as (app, _):
        assert [(await ask(app)).body for _ in range(2)] == [b"1", b"2"]


@pytest.mark.parametrize("failing", [then_close(b""), then_hang()])
async def test_stale_answer_is_fallback_when_service_gives_none(failing):
    """RFC 9111 4.2.4"""
    first = b"HTTP/1.1 200 OK\r\nCache-Control: max-age=0\r\nETag: \"a\"\r\nContent-Length: 1\r\n\r\n1"  # fmt: skip
    async with cached(first, failing, timeout=0.5) as (app, _):
        assert (await ask(app)).body == b"1"
        second = await ask(app)
        assert (second.body, second.values("swr-state")) == (b"1", [b"stale"])


async def test_all_waiting_readers_get_504_from_one_silent_request():
    """RFC 9111 4: one request for all, which a `no-store` on the 504 would forbid."""
    async with cached(then_hang(), timeout=0.3) as (app, upstream):
        answers = []

        async def one() -> None:
            answers.append((await ask(app)).status)

        async with anyio.create_task_group() as group:
            for _ in range(20):
                group.start_soon(one)
        assert answers == [504] * 20
        assert len(upstream.asked) == 1


async def test_background_refresh_names_no_client():
    """RFC 7239 6.2"""
    rules = [Rule("/", fresh_for=0, stale_for=600)]
    async with cached(OK, rules=rules) as (app, upstream):
        await ask(app)
        assert (await ask(app)).values("swr-state") == [b"stale"]
        for _ in range(2):
            assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
        assert upstream.last.values("forwarded") == [b'for=unknown;host="test";proto=http']
        assert "x-forwarded-for" not in upstream.last.names


# -- construction and life ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"upstream": None}, r"upstream=None is not a URL: give one such as"),
        ({"upstream": "127.0.0.1:9000"}, "upstream='127.0.0.1:9000' is not a valid http:// or https:// URL"),
        ({"upstream": "ftp://x"}, "upstream='ftp://x' is not a valid http:// or https:// URL"),
        ({"upstream": "http://"}, "upstream='http://' is not a valid http:// or https:// URL"),
        ({"upstream": "http://x:99999"}, "upstream='http://x:99999' is not a valid http:// or https:// URL"),
        ({"upstream": "http://x:port"}, "upstream='http://x:port' is not a URL .*: give one"),
        ({"upstream": "http://x/?a"}, "has a query or a fragment"),
        ({"upstream": "http://x/#a"}, "has a query or a fragment"),
        ({"upstream": "http://me:secret@x"}, "^the upstream's URL holds a user or password(?!.*secret)"),
        ({"timeout": "soon"}, "timeout='soon' is not a duration"),
        ({"timeout": 0}, "timeout=0 and connect_timeout=5 must be more than 0"),
        ({"connect_timeout": "0s"}, "connect_timeout='0s' must be more than 0"),
        ({"client_timeout": 0}, "client_timeout=0 must be more than 0"),
        ({"client_timeout": "soon"}, "client_timeout='soon' is not a duration"),
        ({"max_connections": 0}, "max_connections=0: give a number, 1 or more"),
        ({"max_connections": True}, "max_connections=True"),
        ({"max_connections": 1.5}, "max_connections=1.5"),
        ({"pseudonym": "two words"}, "pseudonym='two words' goes into Via"),
        ({"pseudonym": None}, "pseudonym=None"),
    ],
)
def test_invalid_proxy_options_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        Proxy(**{"upstream": "http://127.0.0.1:9000", **options})


def test_missing_httpx_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "httpx", None)
    for module in [name for name in sys.modules if name.startswith("swr.proxy")]:
        monkeypatch.delitem(sys.modules, module)
    with pytest.raises(ImportError, match=re.escape("swr.proxy needs httpx: pip install 'swr[proxy]'")):
        importlib.import_module("swr.proxy")


async def test_shutdown_closes_transport_and_later_requests_still_work():
    async with proxied() as (proxy, _):
        assert proxy._service._transport is None
        async with running(proxy):
            assert (await ask(proxy)).status == 200
        assert proxy._service._transport is None
        # It opens again, for one request.
        assert (await ask(proxy)).status == 200


@pytest.mark.parametrize("make", [Proxy, caching_proxy])
async def test_websocket_is_closed_before_it_is_accepted(make):
    sent = []

    async def receive():
        return {"type": "websocket.connect"}

    async def send(message):
        sent.append(message)

    await make("http://127.0.0.1:1")({"type": "websocket"}, receive, send)
    assert sent == [{"type": "websocket.close"}]


def test_websocket_handshake_is_answered_with_403():
    """RFC 6455 4.2.2"""
    with served(Proxy("http://127.0.0.1:1")) as port:
        key = base64.b64encode(b"0" * 16)
        request = (
            b"GET / HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Version: 13\r\n"
        )
        assert talk(port, request + b"Sec-WebSocket-Key: %b\r\n\r\n" % key).startswith(b"HTTP/1.1 403 ")


@pytest.fixture(scope="session")
def certificate(tmp_path_factory):
    """A certificate for 127.0.0.1, signed by itself, and its key."""
    folder = tmp_path_factory.mktemp("tls")
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2",
         "-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1",
         "-keyout", folder / "key.pem", "-out", folder / "cert.pem"],
        check=True, capture_output=True,
    )  # fmt: skip
    return folder / "cert.pem", folder / "key.pem"


def test_tls_service_is_used_only_if_the_system_trusts_its_certificate(certificate, monkeypatch):
    """RFC 9110 4.3.4"""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"ok"})

    subscriber = socket.create_server(("127.0.0.1", 0))
    config = uvicorn.Config(app, lifespan="off", log_config=None, access_log=False, ssl_certfile=certificate[0],
                            ssl_keyfile=certificate[1])  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=([subscriber],))
    thread.start()

    async def through() -> Answer:
        proxy = Proxy(f"https://127.0.0.1:{subscriber.getsockname()[1]}")
        try:
            return await ask(proxy)
        finally:
            await proxy.aclose()

    try:
        assert anyio.run(through).status == 502
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate[0]))
        trusted = anyio.run(through)
        assert (trusted.status, trusted.body) == (200, b"ok")
    finally:
        server.should_exit = True
        thread.join(PATIENCE)


# -- the whole ------------------------------------------------------------------------------------------------


@contextlib.asynccontextmanager
async def running(app):
    """Run the app's lifespan."""
    heard, stop = [], anyio.Event()

    async def receive():
        if heard:
            await stop.wait()
            return {"type": "lifespan.shutdown"}
        return {"type": "lifespan.startup"}

    async def send(message):
        heard.append(message["type"])

    async with anyio.create_task_group() as group:
        group.start_soon(app, {"type": "lifespan"}, receive, send)
        yield
        stop.set()
    assert heard == ["lifespan.startup.complete", "lifespan.shutdown.complete"]


async def test_caching_proxy_accepts_durations_as_text():
    with Upstream() as upstream:
        app = caching_proxy(upstream.url + "/api", fresh_for="1m", stale_for=600, stale_if_error="1d")
        async with running(app):
            states = [(await ask(app, path="/a")).values("swr-state") for _ in range(2)]
        assert states == [[b"missing"], [b"fresh"]]
        assert upstream.last.target == b"/api/a"


async def test_refresh_under_way_at_shutdown_finishes_and_leaves_no_connection():
    """The cache drains after the app has ended."""
    with Upstream(OK, when_released(OK)) as upstream:
        proxy = Proxy(upstream.url)
        app = SWRMiddleware(proxy, Cache(), rules=[Rule("/", fresh_for=0, stale_for=600)])
        async with running(app):
            for _ in range(2):
                await ask(app)
                assert await anyio.to_thread.run_sync(upstream.got.acquire, True, PATIENCE)
            upstream.release.set()
        assert len(upstream.asked) == 2
        assert proxy._service._transport is None
        # One that begins later opens a connection and closes it.
        assert (await ask(proxy)).body == b"ok"
        assert proxy._service._transport is None


async def test_caching_proxy_without_fresh_for_stores_no_answer_without_lifetime():
    with Upstream() as upstream:
        app = caching_proxy(upstream.url)
        async with running(app):
            for _ in range(2):
                assert (await ask(app)).values("swr-state") == [b"missing"]
        assert len(upstream.asked) == 2


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"stale_for": 60}, "count from fresh_for"),
        ({"client_timeout": 0}, "client_timeout=0 must"),
        ({"hard_timeout": 0}, "hard_timeout=0 leaves no time"),
    ],
)
def test_invalid_caching_proxy_options_are_refused(options, said):
    with pytest.raises(ConfigurationError, match=said):
        caching_proxy("http://127.0.0.1:9000", **options)


@pytest.mark.uncounted
async def test_endless_answer_is_ended_by_hard_timeout():
    """It is never silent for long, so `timeout` does not end it; those who wait would wait for ever."""
    with Upstream(pour, pour, OK) as upstream:
        app = caching_proxy(upstream.url, fresh_for=60, hard_timeout=3)
        async with running(app):
            client = Client()
            with anyio.fail_after(PATIENCE):
                with pytest.raises(TimeoutError, match="hard_timeout"):
                    await app(http_scope(), client.receive, client.send)
                assert await anyio.to_thread.run_sync(upstream.left.wait, PATIENCE)
            assert (client.answer.status, client.answer.ended) == (200, False)


def test_caching_proxy_has_a_hard_timeout_of_60_seconds_by_default():
    app = caching_proxy("http://127.0.0.1:9000")
    [middleware] = [cell.cell_contents for cell in app.__closure__ if isinstance(cell.cell_contents, SWRMiddleware)]
    assert middleware.config.hard_timeout == 60
    assert inspect.signature(caching_proxy).parameters["hard_timeout"].default == 60


def test_absolute_target_selects_the_same_resource_and_replaces_host():
    """RFC 9112 3.2.2: it must be accepted, and its host goes before the field `Host`."""
    with Upstream() as upstream, served(caching_proxy(upstream.url, fresh_for=60)) as port:
        for target in (b"http://a:80", b"HTTP://a:80/", b"/"):
            answer = talk(port, b"GET %b HTTP/1.1\r\nHost: a:80\r\nConnection: close\r\n\r\n" % target)
            assert body_of(answer) == b"ok"
        assert len(upstream.asked) == 1
        talk(port, b"GET http://b/%41?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (upstream.last.line, upstream.last.values("host")) == (b"GET /%41?q HTTP/1.1", [b"b"])
    with Upstream() as upstream, served(Proxy(upstream.url)) as port:
        talk(port, b"GET http://b/%41?q HTTP/1.1\r\nHost: a\r\nConnection: close\r\n\r\n")
        assert (upstream.last.line, upstream.last.values("host")) == (b"GET /%41?q HTTP/1.1", [b"b"])


@pytest.mark.parametrize(
    ("version", "hosts", "seen"),
    [("1.1", [], None), ("1.1", [b"x", b"y"], None), ("1.1", [b"x"], b"a"), ("1.0", [], b"a"), ("2", [], b"a")],
)
async def test_absolute_target_with_invalid_host_headers_is_answered_with_400(version, hosts, seen):
    """RFC 9112 3.2: two of the field, or none in HTTP/1.1, are a bad request."""
    async with proxied() as (proxy, upstream):
        headers = [(b"host", host) for host in hosts]
        answer = await ask(proxy, host=None, headers=headers, raw_path=b"http://a/b", path="/b", http_version=version)
        assert answer.status == (400 if seen is None else 200)
        assert [asked.values("host") for asked in upstream.asked] == ([] if seen is None else [[seen]])


async def test_debug_log_has_a_line_for_each_passed_or_refused_request(caplog):
    caplog.set_level(logging.DEBUG, "swr")
    async with proxied() as (proxy, _):
        await ask(proxy, headers=[(b"x-token", b"secret")])
        await ask(proxy, method="TRACE")
    lines = [record.getMessage() for record in caplog.records if record.name == "swr"]
    assert lines == [
        "GET '/': passed on; the service answered 200",
        "TRACE '/': answered 501 here (TRACE is not supported.)",
    ]

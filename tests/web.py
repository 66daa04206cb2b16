"""Apps and clients for tests: a test sets how they behave."""

import importlib.metadata

import anyio
import httpx
import pytest

from swr import Cache
from tests.fleet import settle

# Starlette before 1 leaves this generator open on trio.
LEFT_OPEN = pytest.mark.filterwarnings(
    "ignore:Exception ignored in. <async_generator object Request.stream:pytest.PytestUnraisableExceptionWarning"
)
_STARLETTE = tuple(map(int, importlib.metadata.version("starlette").split(".")[:2]))
NAMES_ROUTES = pytest.mark.skipif(_STARLETTE < (1, 7), reason="Starlette tells the route of a request from 1.7 on")


class App:
    """An ASGI app that answers as a test sets, and counts its runs."""

    def __init__(self, headers=(), status=200, body=None, chunks=None):
        self.headers, self.status, self.chunks = list(headers), status, chunks
        self.body = body
        self.runs = 0
        self.scopes = []
        self.gate = None
        self.begun = anyio.Event()
        self.error = None

    async def __call__(self, scope, receive, send):
        self.runs += 1
        run = self.runs
        self.scopes.append(scope)
        self.begun.set()
        if self.gate is not None:
            await self.gate.wait()
        if self.error is not None:
            raise self.error
        body = self.body if self.body is not None else str(run).encode()
        await send({"type": "http.response.start", "status": self.status, "headers": list(self.headers)})
        for chunk in self.chunks or ():
            await send({"type": "http.response.body", "body": chunk, "more_body": True})
        await send({"type": "http.response.body", **({"body": body} if body else {})})


MAX_AGE = [(b"cache-control", b"max-age=60, stale-while-revalidate=600, stale-if-error=3600")]


def client(app, **options):
    transport = httpx.ASGITransport(app, raise_app_exceptions=options.pop("raises", True))
    return httpx.AsyncClient(transport=transport, base_url="http://test", **options)


def cache_on(process, clock):
    """Return a cache whose entries and leases are in the store of a process of a fleet."""
    cache = Cache(clock=clock)
    cache.engine = process.engine
    return cache


def brief(response):
    return response.status_code, response.text, response.headers["swr-state"]


async def open_later(app):
    app.gate = anyio.Event()
    await app.begun.wait()
    await settle()
    app.gate.set()


def http_scope(path, **more):
    return {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "GET", "scheme": "http", "path": path,
        "raw_path": path.encode(errors="replace"), "query_string": b"", "root_path": "", "headers": [(b"host", b"test")], **more,
    }  # fmt: skip


class Client:
    """A client that can leave half-way; writing to it then fails, or, as with uvicorn, does nothing."""

    def __init__(self, *, fails=True):
        self.fails = fails
        self.sent = []
        self.gone = anyio.Event()
        self.asked = 0

    async def receive(self):
        self.asked += 1
        if self.asked == 1:
            return {"type": "http.request", "body": b"", "more_body": False}
        await self.gone.wait()
        return {"type": "http.disconnect"}

    async def send(self, message):
        if self.gone.is_set() and self.fails:
            raise OSError("gone")
        self.sent.append(message)


class Origin:
    """An app that answers as an honest origin: each request gets the next response, and the last one repeats.

    A response is `(status, fields, body)`, with the fields as text. If the request names the validator of a response,
    the answer is a 304 with the same fields. If a response is an exception, the app raises it.
    """

    def __init__(self, *responses):
        self.responses = list(responses)
        self.seen = []

    @property
    def runs(self):
        return len(self.seen)

    def answers(self, *responses):
        self.responses = list(responses)

    async def __call__(self, scope, receive, send):
        asked = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.seen.append((scope["method"], asked))
        response = self.responses.pop(0) if len(self.responses) > 1 else self.responses[0]
        if isinstance(response, Exception):
            raise response
        status, fields, body = response
        fields = {"etag": fields.get("etag"), **fields}
        validators = (("if-none-match", "etag"), ("if-modified-since", "last-modified"))
        confirmed = [asked[name] == fields.get(field) for name, field in validators if name in asked]
        if status == 200 and confirmed[:1] == [True]:
            status, body = 304, ""
        headers = [
            (name.encode(), value.encode("latin-1"))
            for name, values in fields.items()
            for value in ([values] if isinstance(values, str) else values or ())
        ]
        await send({"type": "http.response.start", "status": status, "headers": headers})
        await send({"type": "http.response.body", "body": b"" if scope["method"] == "HEAD" else body.encode()})

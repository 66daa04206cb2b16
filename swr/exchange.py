"""One HTTP request as the middleware sees it, and one stored response as it goes out."""

import math
from typing import Any, Final
from urllib.parse import quote

import msgspec
from starlette.types import Message, Scope, Send

from swr.codec import Codec
from swr.entry import Entry, State
from swr.rules import Rule, url_tag
from swr.semantics import Headers, cache_status, headers_of_304, matches

# What of a request decides whether and how the cache may answer it.
_NOTED: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"cookie",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-unmodified-since",
        b"range",
        b"x-api-key",
    }
)
# What of a scope a background run is given: all that the key accounts for, and what belongs to the server.
_REPLAYED: Final = (
    "type",
    "asgi",
    "http_version",
    "scheme",
    "path",
    "raw_path",
    "query_string",
    "root_path",
    "app_root_path",
    "server",
    "app",
)


class StoredResponse(msgspec.Struct, tag="r", array_like=True):
    """A response as it is stored.

    Parameters:
        status, headers, body: byte for byte what the app sent, less what belongs to a connection.
        shared: whether requests that carry credentials may be answered with it.
        initial_age: seconds that it was old when it came.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    shared: bool = False
    initial_age: int = 0


class Varies(msgspec.Struct, tag="v", array_like=True):
    """What lies under a URL whose responses are selected by request fields: the names of these fields."""

    names: tuple[str, ...]


RESPONSES: Final = Codec(StoredResponse | Varies)


def key_of(scope: Scope, host: bytes) -> str:
    """Return the key of a URL: scheme, host, path and query as they were sent."""
    path = scope.get("raw_path") or quote(scope["path"], errors="surrogatepass").encode()
    # A line break stands in no field and no URL: no host can run into a path, no path into a variant.
    url = b"%b\n%b?%b" % (host.lower(), path, scope["query_string"])
    return f"GET {scope['scheme']}://{url.decode('latin-1')}"


def plain_key(scope: Scope) -> str | None:
    """Return the key of a request that has nothing in it but what selects a URL; None for any other."""
    host = None
    for name, value in scope["headers"]:
        if name in _NOTED:
            if name != b"host" or host is not None:
                return None
            host = value
    return key_of(scope, host or b"")


class Request:
    """A GET or HEAD request.

    Parameters:
        scope: of ASGI.
        rules: the rules of the middleware.
    """

    __slots__ = ("_asked", "_cookies", "_rules", "authorized", "fields", "key", "method", "rule", "scope")

    def __init__(self, scope: Scope, rules: list[Rule]) -> None:
        self.scope = scope
        # As it came: what the app makes of the scope afterwards is not what was asked.
        self._asked = {**scope, "headers": list(scope["headers"])}
        self._rules = rules
        self.method: str = scope["method"]
        self.fields: dict[bytes, bytes] = {}
        fields = self.fields
        for name, value in scope["headers"]:
            if name in _NOTED:
                # All of a field's lines count: which of two the app goes by is not for us to guess.
                fields[name] = (
                    fields[name] + (b"; " if name == b"cookie" else b", ") + value if name in fields else value
                )
        self.key = key_of(scope, fields.get(b"host", b""))
        self.authorized = b"authorization" in fields or b"x-api-key" in fields
        self._cookies = ""
        self.rule: tuple[Rule, dict[str, Any]] | None = None

    def find_rule(self) -> Rule | None:
        """Find the first rule that applies."""
        for rule in self._rules:
            parameters = rule.match(self._asked["path"])
            if parameters is not None:
                self.rule = rule, parameters
                return rule
        return None

    def key_cookies(self, names: frozenset[str]) -> None:
        """Make the named cookies part of the key; the others do not matter."""
        pairs = self.fields.get(b"cookie", b"").decode("latin-1").split(";")
        # In the order they came in: of two with one name, which counts is for the app to say.
        kept = [pair.strip() for pair in pairs if pair.partition("=")[0].strip() in names]
        if kept:
            self._cookies = "; ".join(kept)
            self.key = f"{self.key}\ncookie: {self._cookies}"

    def variant(self, names: tuple[str, ...]) -> str:
        """Return the key of the variant that this request selects among responses that vary by `names`."""
        if not names:
            return self.key
        return "\n".join([self.key, *(f"vary: {name}={self.selecting(name)}" for name in names)])

    def selecting(self, name: str) -> str:
        """Return a request field's normalised value: white space and repetition do not matter (RFC 9111 4.1)."""
        field = name.encode("latin-1")
        values = [value for key, value in self._asked["headers"] if key == field]
        text = ",".join(part.strip().decode("latin-1") for value in values for part in value.split(b","))
        # A missing field is not an empty one.
        return text if values else "\n"

    @property
    def tag(self) -> str:
        """The tag of its URL."""
        return url_tag(self._asked["path"], self._asked["query_string"].decode("latin-1"))

    def replay(self, names: tuple[str, ...], state: dict[str, Any]) -> Scope:
        """Return a scope for a run behind the reader's back: nothing in it that the key does not account for."""
        scope: Scope = {name: self._asked[name] for name in _REPLAYED if name in self._asked}
        wanted = {b"host", *(name.encode("latin-1") for name in names)}
        headers = [(name, value) for name, value in self._asked["headers"] if name in wanted]
        if self._cookies and b"cookie" not in wanted:
            headers.append((b"cookie", self._cookies.encode("latin-1")))
        scope.update(method="GET", headers=headers, client=None, state=dict(state), extensions={})
        return scope


def _marks(entry: Entry[StoredResponse], state: State, now: float, status: bytes | None = None) -> Headers:
    """Return the fields that say where an answer comes from."""
    age = entry.value.initial_age + max(0, math.floor(now - entry.created_at))
    status = status or cache_status(state, math.floor(entry.fresh_until - now))
    return [(b"age", b"%d" % age), (b"swr-state", state.value.encode()), (b"cache-status", status)]


def headers_of_hit(entry: Entry[StoredResponse], now: float) -> tuple[float, Headers]:
    """Return the header fields of a fresh hit, and until when they hold, for `Age` and `ttl` count seconds."""
    until = min(
        entry.created_at + math.floor(now - entry.created_at) + 1,
        entry.fresh_until - math.floor(entry.fresh_until - now),
    )
    return until, [*entry.value.headers, *_marks(entry, State.FRESH, now)]


async def send_stored(
    request: Request, send: Send, entry: Entry[StoredResponse], state: State, now: float, status: bytes | None = None
) -> None:
    """Answer with a stored response: whole, without its body to HEAD, or as 304 to `If-None-Match`.

    Parameters:
        now: wall clock, seconds.
        status: the member of `Cache-Status`; by default that of a hit.
    """
    stored = entry.value
    marks = _marks(entry, state, now, status)
    condition = request.fields.get(b"if-none-match")
    if condition is not None and stored.status == 200 and matches(condition, stored.headers):
        await send(
            {
                "type": "http.response.start",
                "status": 304,
                "headers": [*headers_of_304(stored.headers), *marks],
            }
        )
        await send({"type": "http.response.body", "body": b""})
        return
    await send({"type": "http.response.start", "status": stored.status, "headers": [*stored.headers, *marks]})
    await send({"type": "http.response.body", "body": b"" if request.method == "HEAD" else stored.body})


def marked(message: Message, status: bytes) -> Message:
    """Return a `http.response.start` with the fields that every answer carries."""
    # One state a response: that of an upstream swr is replaced, where Cache-Status is a list that grows.
    headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"swr-state"]
    return {**message, "headers": [*headers, (b"swr-state", b"missing"), (b"cache-status", status)]}

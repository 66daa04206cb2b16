"""One HTTP request as the middleware sees it: its key, the fields that matter, and how it is asked again."""

from typing import Any, Final
from urllib.parse import quote, unquote, urljoin, urlsplit

from starlette.types import Scope

from swr.fields import values_of
from swr.rules import Rule, url_tag
from swr.semantics import Terms, normalised

# What of a request decides whether and how the cache may answer it.
_NOTED: Final = frozenset(
    {
        b"authorization",
        b"cache-control",
        b"content-length",
        b"cookie",
        b"host",
        b"if-match",
        b"if-modified-since",
        b"if-none-match",
        b"if-range",
        b"if-unmodified-since",
        b"pragma",
        b"range",
        b"transfer-encoding",
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
    "root_path",
    "app_root_path",
    "server",
    "app",
)


# Scheme, host, path and query of a URL, as they were sent.
URL = tuple[str, bytes, bytes, bytes]


def url_key(url: URL) -> str:
    """Return the key of a URL."""
    scheme, host, path, query = url
    # A line break stands in no field and no URL: no host can run into a path, no path into a variant.
    return f"GET {scheme}://" + (b"%b\n%b?%b" % (host.lower(), path, query)).decode("latin-1")


def _path(scope: Scope) -> bytes:
    return scope.get("raw_path") or quote(scope["path"], errors="surrogatepass").encode()


def plain_url(scope: Scope) -> tuple[URL | None, bytes | None]:
    """Return the URL of a request that has nothing in it but what selects one, and its `If-None-Match`, if any.

    There is no URL for any other request.
    """
    host = condition = None
    for name, value in scope["headers"]:
        if name in _NOTED:
            if name == b"host" and host is None:
                host = value
            elif name == b"if-none-match" and condition is None:
                condition = value
            else:
                return None, None
    scheme, query = scope.get("scheme", "http"), scope.get("query_string", b"")
    return (scheme, host or b"", scope.get("raw_path") or _path(scope), query), condition


class Request:
    """A request, of any method, to a URL that GET may have stored something for.

    Parameters:
        scope: of ASGI.
        rules: the rules of the middleware.
    """

    __slots__ = (
        "_asked",
        "_cookies",
        "_parameters",
        "_query",
        "_rules",
        "answered",
        "authorized",
        "fields",
        "key",
        "method",
        "scope",
    )

    def __init__(self, scope: Scope, rules: list[Rule]) -> None:
        self.scope = scope
        # As it came: what the app makes of the scope afterwards is not what was asked.
        self._asked = {"scheme": "http", "query_string": b"", **scope, "headers": list(scope["headers"])}
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
        # The event of its answer has been told.
        self.answered = False
        self.authorized = b"authorization" in fields or b"x-api-key" in fields
        self._cookies = ""
        self._query = self._keyed(scope["path"], self._asked["query_string"])
        self.key = url_key((self._asked["scheme"], fields.get(b"host", b""), _path(scope), self._query))

    @property
    def has_content(self) -> bool:
        """Whether its fields say that a body comes with it (RFC 9112 6)."""
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0") != b"0"

    def find_rule(self) -> Rule | None:
        """Find the first rule that applies."""
        for rule in self._rules:
            parameters = rule.match(self._asked["path"])
            if parameters is not None:
                self._parameters = parameters
                return rule
        return None

    def _keyed(self, path: str, query: bytes) -> bytes:
        """Return the part of a query that selects the response, by the first rule that applies to the path."""
        if query and any(rule.reads_query for rule in self._rules):
            for rule in self._rules:
                if rule.match(path) is not None:
                    return rule.keyed_query(query)
        return query

    def terms(self) -> Terms | None:
        """Return what the first rule that applies says about the response."""
        rule = self.find_rule()
        return rule.terms(self._parameters) if rule is not None else None

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
        return "\n".join([self.key, *(f"vary: {name}={self._selecting(name)}" for name in names)])

    def _selecting(self, name: str) -> str:
        values = values_of(self._asked["headers"], name.encode("latin-1"))
        # A missing field is not an empty one.
        return normalised(name, values) if values else "\n"

    @property
    def tag(self) -> str:
        """The tag of its URL."""
        return url_tag(self._asked["path"], self._query.decode("latin-1"))

    @property
    def _origin(self) -> str:
        return f"{self._asked['scheme']}://{self.fields.get(b'host', b'').decode('latin-1').lower()}"

    @property
    def _base(self) -> str:
        return self._origin + _path(self._asked).decode("latin-1")

    def tag_of(self, reference: bytes) -> str | None:
        """Return the tag of what a `Location` or `Content-Location` refers to; None if it is of another origin."""
        try:
            base, target = urlsplit(self._base), urlsplit(urljoin(self._base, reference.decode("latin-1").strip()))
        except ValueError:
            return None
        if (target.scheme.lower(), target.netloc.lower()) != (base.scheme, base.netloc):
            return None
        path = unquote(target.path)
        return url_tag(path, self._keyed(path, target.query.encode("latin-1", "replace")).decode("latin-1"))

    def group_tag(self, group: str) -> str:
        """Return the tag of a cache group of this request's origin (RFC 9875 2: groups are of one origin)."""
        return f"group:{self._origin}\n{group}"

    def replay(self, names: tuple[str, ...], state: dict[str, Any]) -> Scope:
        """Return a scope for a run behind the reader's back: nothing in it that the key does not account for."""
        scope: Scope = {name: self._asked[name] for name in _REPLAYED if name in self._asked}
        wanted = {b"host", *(name.encode("latin-1") for name in names)}
        headers = [(name, value) for name, value in self._asked["headers"] if name in wanted]
        if self._cookies and b"cookie" not in wanted:
            headers.append((b"cookie", self._cookies.encode("latin-1")))
        scope.update(
            method="GET", query_string=self._query, headers=headers, client=None, state=dict(state), extensions={}
        )
        return scope

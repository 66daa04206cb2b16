"""One HTTP request as the middleware sees it: its key, the fields that matter, and how it is asked again."""

from typing import Any, Final
from urllib.parse import unquote, urljoin, urlsplit

from starlette.types import Scope

from swr.http.caching import REQUEST_DIRECTIVES, SharingRules, Terms, limits, normalised
from swr.http.classify import RequestFacts
from swr.http.fields import Directives, parse_directives, values_of
from swr.http.request import NOTED, path_of, url_key, url_tag
from swr.middleware.rules import Rule
from swr.policy import NO_LIMITS, Limits

# The parts of a scope that a background run gets: those that the key accounts for, and those of the server.
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
        "url_key",
    )

    def __init__(self, scope: Scope, rules: list[Rule]) -> None:
        self.scope = scope
        # A copy, because the app may change the scope afterwards.
        self._asked = {"scheme": "http", "query_string": b"", **scope, "headers": list(scope["headers"])}
        self._rules = rules
        self.method: str = scope["method"]
        self.fields: dict[bytes, bytes] = {}
        fields = self.fields
        for name, value in scope["headers"]:
            if name in NOTED:
                # All lines of a field count: swr cannot know by which of two the app goes.
                fields[name] = (
                    fields[name] + (b"; " if name == b"cookie" else b", ") + value if name in fields else value
                )
        # Whether the event of its answer has been published.
        self.answered = False
        self.authorized = b"authorization" in fields or b"x-api-key" in fields
        self._cookies = ""
        self._query = self._keyed(scope["path"], self._asked["query_string"])
        # The key grows by the cookies that a rule names; logs show the URL's alone.
        self.key = self.url_key = url_key(
            (self._asked["scheme"], fields.get(b"host", b""), path_of(scope), self._query)
        )

    @property
    def url(self) -> str:
        """The URL as the key has it, for logs and `Cache-Status`."""
        return self.url_key.removeprefix("GET ").replace("\n", "")

    @property
    def has_content(self) -> bool:
        """Whether its fields say that a body comes with it (RFC 9112 6)."""
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0") != b"0"

    def read_facts(self, sharing: SharingRules, honoured: frozenset[str]) -> tuple[RequestFacts, Limits]:
        """Return what decides how swr handles the request, and how old a stored response the client accepts.

        Cookies that a rule names become part of the key.

        Parameters:
            sharing: the operator's choices.
            honoured: the directives of requests that swr honours.
        """
        if self.method not in ("GET", "HEAD"):
            return RequestFacts(self.method), NO_LIMITS
        fields = self.fields
        directives: Directives = {}
        if b"cache-control" in fields:
            directives = parse_directives([fields[b"cache-control"]])
            accepted = limits(directives, honoured)
        elif b"pragma" in fields and "pragma" in honoured:
            # RFC 9111 5.4: without Cache-Control, Pragma means the same.
            directives = {"no-cache": None} if "no-cache" in parse_directives([fields[b"pragma"]]) else {}
            accepted = limits(directives, REQUEST_DIRECTIVES)
        else:
            accepted = NO_LIMITS
        has_cookie = sharing.cookies_private and b"cookie" in fields
        facts = RequestFacts(
            self.method,
            has_cookie,
            has_cookie and self.key_cookies(),
            b"if-match" in fields or b"if-unmodified-since" in fields,
            self.has_content,
            "no-store" in directives and "no-store" in honoured,
            "only-if-cached" in directives and "only-if-cached" in honoured,
        )
        return facts, accepted

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

    def key_cookies(self) -> bool:
        """Make the cookies that a rule names part of the key, once; False if no rule that applies names any."""
        rule = self.find_rule()
        if rule is None or rule.cookies is None:
            return False
        pairs = self.fields.get(b"cookie", b"").decode("latin-1").split(";")
        # In the order in which they came: the app decides which of two with one name counts.
        named = [pair.strip() for pair in pairs if pair.partition("=")[0].strip() in rule.cookies]
        if named:
            self._cookies = "; ".join(named)
            self.key = f"{self.key}\ncookie: {self._cookies}"
        return True

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
        return self._origin + path_of(self._asked).decode("latin-1")

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
        """Return a scope for a background run, with nothing in it that the key does not account for."""
        scope: Scope = {name: self._asked[name] for name in _REPLAYED if name in self._asked}
        wanted = {b"host", *(name.encode("latin-1") for name in names)}
        headers = [(name, value) for name, value in self._asked["headers"] if name in wanted]
        if self._cookies and b"cookie" not in wanted:
            headers.append((b"cookie", self._cookies.encode("latin-1")))
        scope.update(
            method="GET", query_string=self._query, headers=headers, client=None, state=dict(state), extensions={}
        )
        return scope

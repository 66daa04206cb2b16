"""One HTTP request as the middleware sees it: its key, its fields, and the scopes of background runs for it."""

from collections.abc import Collection, Sequence
from typing import Any, Final

from starlette.types import Message, Scope

from swr.endpoints.declared import QUERY
from swr.endpoints.outer import known_guest, names_left_in, selecting_values
from swr.endpoints.routed_scope import unnoticed
from swr.http.caching import REQUEST_DIRECTIVES, SharingRules, Terms, limits
from swr.http.classify import RequestFacts
from swr.http.content import Content, describes
from swr.http.fields import Directives, Headers, is_too_long, parse_directives
from swr.http.request import chained, shortened, url_key, with_outer
from swr.http.request_fields import (
    ALL_CREDENTIALS,
    INTERPRETED,
    FieldClass,
    field_class,
    names_method,
)
from swr.http.selecting import may_select, variant_key
from swr.middleware.own_keys import OwnKeys
from swr.middleware.result import Problem, Result
from swr.middleware.rules import Rule, first_match
from swr.middleware.selection import Selection, is_personal
from swr.middleware.tagged import Tagged
from swr.policy import NO_LIMITS, Limits

# Names that routing around the middleware sets: Litestar, for example, routes before it calls middleware.
_ROUTED: Final = ("path_params", "endpoint", "route", "router", "litestar_app", "route_handler", "path_template")
# The parts of the scope that a background run gets: those that the key covers, and those of routers and the server.
_OF_THE_KEY: Final = ("type", "asgi", "http_version", "scheme", "path", "raw_path", "root_path", "app_root_path")
_REPLAYED: Final = (*_OF_THE_KEY, *_ROUTED, "server", "app")
# Further parts of the scope that a background run for the same client gets.
_REPEATED: Final = ("method", "query_string", "client", "user", "auth")

_BY_DEFAULT: Final = Selection()


class Request(Tagged):
    """A request of any method to a URL for which swr may have stored responses.

    Parameters:
        scope: the ASGI scope.
        rules: the middleware's rules for the request's method.
        selection: what selects responses.
        by_content: whether the request is safe and its content selects the response.
        others: the rules for other methods, as `RuleSet.others` returns them. They may select by other parts of the
            query, and so give the URL further tags.
    """

    __slots__ = (
        "_cookies",
        "_matched",
        "_selecting_fields",
        "_selection",
        "_url_keys",
        "authorized",
        "by_content",
        "content",
        "content_problem",
        "credentials",
        "has_run",
        "hides_cookies",
        "is_too_long",
        "key",
        "method",
        "outer",
        "own_keys",
        "result",
        "scope",
        "shows_cookies",
        "unknown",
    )

    def __init__(
        self,
        scope: Scope,
        rules: list[Rule],
        selection: Selection = _BY_DEFAULT,
        *,
        by_content: bool = False,
        others: Sequence[list[Rule]] = (),
    ) -> None:
        self.scope = scope
        self.by_content = by_content
        # The content, once swr has all of it; and the problem if swr cannot have it.
        self.content: Content | None = None
        self.content_problem = Problem.NONE
        self._others = others
        # Copy the scope, because the app may change it later.
        self._asked = {"scheme": "http", "query_string": b"", **unnoticed(scope), "headers": list(scope["headers"])}
        self._rules = rules
        self._selection = selection
        self._matched: tuple[Rule | None, dict[str, Any]] | None = None
        self.method: str = scope["method"]
        self.result = Result()
        # Whether the app has begun to answer the client.
        self.has_run = False
        self._cookies = ""
        # Whether the request has cookies that its rule does not name, and a load hides them; or shows them.
        self.hides_cookies = self.shows_cookies = False
        self._selecting_fields: list[tuple[bytes, bytes]] = []
        # The values of the fields that swr does not know.
        self.unknown: dict[str, list[bytes]] = {}
        # The names of the fields that say who asks.
        self.credentials: set[str] = set()
        self._tags = None
        self._has_long_target = is_too_long([], self._asked["path"], self._asked["query_string"])
        self._read_fields()
        rule = self.find_rule() if any(rule.key is not None for rule in rules) else None
        functions = [key for key in (selection.key, None if rule is None else rule.key) if key is not None]
        self.own_keys = OwnKeys(functions, self._asked)
        # The names of what middleware around swr has set. They are part of the key, except those that `key=` covers.
        self.outer = self.own_keys.beyond(selection.outer(self._asked))
        query = self._asked["query_string"]
        rule = self.find_rule() if self._reads_query and query and not self._has_long_target else None
        self._query: bytes = query if rule is None else rule.keyed_query(query)
        url = (
            self._asked["scheme"],
            self.fields.get(b"host", b""),
            scope.get("raw_path") or b"",
            scope["path"],
            scope.get("root_path", ""),
            self._query,
        )
        fields = chained(self._selecting_fields)
        # `key_cookies` and `take_content` append to the key.
        names = (*self.outer, *selecting_values(self._asked))
        self.key = url_key((*url, with_outer(fields, names)), selection.digest, selection.version)
        without = url_key((*url, fields), selection.digest, selection.version) if names else self.key
        self._url_keys = self.key, without
        self.key += self.own_keys.text(scope, selection.digest)

    def _read_fields(self) -> None:
        """Sort the fields by their classes."""
        lines: dict[bytes, list[bytes]] = {}
        headers = self._asked["headers"]
        self.is_too_long = self._has_long_target or is_too_long(headers)
        if self.is_too_long:
            # The host is enough to invalidate the URL.
            headers = [(name, value) for name, value in headers if name == b"host"]
        for name, value in headers:
            if name in INTERPRETED:
                lines.setdefault(name, []).append(value)
                continue
            if self.by_content and describes(name):
                # `take_content` adds these fields to the key, with the content.
                continue
            kind = field_class(name)
            if kind is FieldClass.CREDENTIAL:
                self.credentials.add(name.decode("latin-1"))
            elif kind is FieldClass.SELECTING:
                self._selecting_fields.append((name, value))
            elif kind is FieldClass.UNKNOWN and name not in self._selection.ignored:
                self.unknown.setdefault(name.decode("latin-1"), []).append(value)
        self.authorized = bool(self.credentials) or is_personal(self._asked)
        # All lines of a field count, because swr cannot know which of two lines the app uses.
        self.fields = {name: (b"; " if name == b"cookie" else b", ").join(values) for name, values in lines.items()}

    def unknown_beyond(self, known: Collection[str]) -> str | None:
        """Return a request field that neither swr, nor a rule, nor `known` accounts for, or None."""
        return next((name for name in self.unknown if not self.knows(name, known)), None)

    def knows(self, name: str, known: Collection[str]) -> bool:
        """Return whether a field is among `known`, or the operator has said what it means."""
        if name in known or name.encode("latin-1") in self._selection.ignored:
            return True
        rule = self.find_rule()
        return rule is not None and rule.knows(name)

    @property
    def has_key(self) -> bool:
        """Return whether a `key=` of the middleware or of the rule adds to what selects a response."""
        return bool(self.own_keys.functions)

    @property
    def sender(self) -> tuple[Headers, str]:
        """The client as the app sees it: the request's fields, and the address without the port."""
        return self._asked["headers"], (self._asked.get("client") or ("",))[0]

    @property
    def private_key(self) -> str:
        """The key of a load that only requests with the same unknown fields share."""
        pairs = (f"{name}: {value!r}" for name, values in sorted(self.unknown.items()) for value in values)
        return f"{self.key}\nfields: {self._selection.digest(chr(10).join(pairs).encode())}"

    @property
    def key_behind(self) -> str:
        """The key that endpoints extend with their arguments, instead of values that outer middleware has set."""
        with_names, without = self._url_keys
        return without + self.key[len(with_names) :]

    def is_private(self, key: str) -> bool:
        """Return whether a key is the `private_key`."""
        return key != self.key and key == self.private_key

    def range_key(self, key: str) -> str:
        """Return the key of a load that only requests for the same range of the response to `key` share."""
        asked = (self.fields.get(name, b"").decode("latin-1") for name in (b"range", b"if-range"))
        return shortened("\n".join([key, "range", *asked]))

    def is_selected_by(self, names: Collection[str]) -> bool:
        """Return whether nothing but the fields `names` says who asks."""
        return not is_personal(self._asked) and self.credentials <= self.credentials_in(names)

    def credentials_in(self, names: Collection[str]) -> set[str]:
        """Return the credentials of the request that are among the fields `names`."""
        return self.credentials if ALL_CREDENTIALS in names else self.credentials & set(names)

    def has_any(self, names: Collection[str]) -> bool:
        """Return whether the request has any of these fields, or a query if `QUERY` is among them."""
        if QUERY in names and self._asked["query_string"]:
            return True
        return any(name.decode("latin-1") in names for name, _ in self._asked["headers"])

    def take_content(self, body: bytes, *, canonical: bool) -> None:
        """Make the content part of the key, with the fields that describe it.

        Parameters:
            canonical: whether two ways to write the same JSON value are equal. With `no-transform` from the client the
                bytes count (RFC 10008 2.7).
        """
        fields = [(name, value) for name, value in self._asked["headers"] if describes(name)]
        self.content = Content(body, fields, self._asked["query_string"])
        directives = parse_directives([self.fields.get(b"cache-control", b"")])
        text = self.content.text(canonical=canonical and "no-transform" not in directives)
        self.key = f"{self.key}\n{self.method} content: {self._selection.digest(text)}"

    @property
    def content_message(self) -> Message:
        """The message with the content of the request, for the app."""
        body = b"" if self.content is None else self.content.body
        return {"type": "http.request", "body": body, "more_body": False}

    @property
    def takes_conditions(self) -> bool:
        """Return whether the method uses conditions and ranges (RFC 9110 13 and 14.2, RFC 10008 2.6)."""
        return self.method != "POST"

    @property
    def has_range(self) -> bool:
        """Return whether the request asks for a range of the response."""
        return self.method in ("GET", "QUERY") and b"range" in self.fields

    @property
    def has_content(self) -> bool:
        """Return whether the fields of the request announce a body (RFC 9112 6)."""
        return b"transfer-encoding" in self.fields or self.fields.get(b"content-length", b"0") != b"0"

    def read_facts(self, sharing: SharingRules, honoured: frozenset[str]) -> tuple[RequestFacts, Limits]:
        """Return the facts by which swr classifies the request, and how old a response the client accepts.

        This makes the cookies that a rule names part of the key.

        Parameters:
            sharing: the operator's choices about sharing responses.
            honoured: the request directives that swr honours.
        """
        if not self.by_content and self.method not in ("GET", "HEAD"):
            return RequestFacts(self.method), NO_LIMITS
        if self.is_too_long:
            return RequestFacts(self.method, is_too_long=True, is_safe=True), NO_LIMITS
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
        # A rule that names cookies also counts under `cookies="rfc9111"`.
        keys_cookies = b"cookie" in fields and self.key_cookies()
        has_cookie = sharing.cookies_private and b"cookie" in fields
        facts = RequestFacts(
            self.method,
            False,
            has_cookie,
            has_cookie and keys_cookies,
            b"if-match" in fields or b"if-unmodified-since" in fields,
            not self.by_content and self.has_content,
            self.is_apart,
            "no-store" in directives and "no-store" in honoured,
            "only-if-cached" in directives and "only-if-cached" in honoured,
            is_safe=self.by_content,
            has_override=any(map(names_method, self.unknown)),
            has_long_content=self.content_problem is Problem.TOO_LARGE,
            has_part_of_content=self.content_problem is Problem.INCOMPLETE,
        )
        return facts, accepted

    def find_rule(self) -> Rule | None:
        """Find the first rule that applies; no rule applies to a path that an app may take for another path."""
        return self._match()[0]

    def _match(self) -> tuple[Rule | None, dict[str, Any]]:
        """Return the rule that applies, and the path's parameters; cached, because matching may take long."""
        if self._matched is None:
            self._matched = first_match(self._rules, self._asked["path"], self._asked.get("raw_path") or b"")
        return self._matched

    @property
    def is_apart(self) -> bool:
        """Return whether no rule applies although one that keeps responses apart has a matching path.

        Then swr must not share a response.
        """
        path = self._asked["path"]
        return self.find_rule() is None and any(rule.separates and rule.matches(path) for rule in self._rules)

    def terms(self) -> Terms | None:
        """Return the terms of the rule that applies, or None."""
        rule, parameters = self._match()
        return rule.terms(parameters) if rule is not None else None

    def key_cookies(self) -> bool:
        """Make the cookies that a rule names part of the key, once; False if no rule that applies names any."""
        rule = self.find_rule()
        if rule is None or rule.cookies is None:
            return False
        pairs = self.fields.get(b"cookie", b"").decode("latin-1").split(";")
        # Keep their order: which of two cookies with the same name counts depends on the app.
        named = [pair.strip() for pair in pairs if pair.partition("=")[0].strip() in rule.cookies]
        self.hides_cookies = len(named) < len(pairs)
        if named:
            self._cookies = "; ".join(named)
            self.key = f"{self.key}\ncookie: {self._selection.digest(self._cookies.encode('latin-1'))}"
        return True

    def withhold_cookies(self, headers: Headers) -> Headers:
        """Return the fields without the cookies that the rule does not name."""
        if not self.hides_cookies:
            return headers
        rest = [(name, value) for name, value in headers if name != b"cookie"]
        return [*rest, (b"cookie", self._cookies.encode("latin-1"))] if self._cookies else rest

    def variant(self, names: tuple[str, ...]) -> str:
        """Return the key of the response that this request selects if the URL varies by the fields `names`."""
        if not names:
            return self.key
        headers, selection = self._asked["headers"], self._selection
        return variant_key(self.key, names, headers, self.credentials, selection.ignored, selection.digest)

    def forget_run(self) -> None:
        """Replace the scope by a copy without anything that a run of the app has left in it."""
        self.scope = {name: self._asked[name] for name in self.scope if name in self._asked}

    def replay(self, names: tuple[str, ...], state: dict[str, Any]) -> Scope:
        """Return a scope for a background run, with only what the key covers.

        If `key=` or the client's credentials select the response, the key also covers the client's address and the
        fields that swr ignores.
        """
        left = (*names_left_in(self._asked), *self.own_keys.parts) if self.has_key else ()
        scope: Scope = {name: self._asked[name] for name in (*_REPLAYED, *left) if name in self._asked}
        credentials = self.credentials_in(names)
        covers_client = self.has_key or (ALL_CREDENTIALS in names and bool(credentials))
        asked = {name for name, _ in self._asked["headers"]}
        wanted = {name for name in asked if may_select(name, names, credentials)} | {b"host"}
        wanted |= set(filter(self._is_ignored, asked)) if covers_client else set()
        headers = [(name, value) for name, value in self._asked["headers"] if name in wanted]
        if self.content is not None:
            headers += [pair for pair in self.content.fields if pair[0] not in wanted]
            headers.append((b"content-length", b"%d" % len(self.content.body)))
        headers += [(name, value) for name, value in self._selecting_fields if name not in wanted]
        if self._cookies and b"cookie" not in wanted:
            headers.append((b"cookie", self._cookies.encode("latin-1")))
        client = self._asked.get("client") if covers_client else None
        state = state if self.own_keys.state is None else self.own_keys.state
        method = "GET" if self.content is None else self.method
        scope.update(method=method, query_string=self._query, headers=headers, client=client)
        return {**scope, **known_guest(self._asked), "state": dict(state), "extensions": {}}

    def _is_ignored(self, field: bytes) -> bool:
        """Return whether a field selects nothing unless `key=` reads it."""
        name = field.decode("latin-1")
        is_unknown = name in self.unknown and not self.knows(name, ())
        return not is_unknown and field not in INTERPRETED and name not in self.credentials

    def repeat(self, state: dict[str, Any], session: dict[str, Any] | None) -> Scope:
        """Return a scope for a background run as the same client, with its credentials.

        Of the values that middleware around swr has set, it contains only the user, `auth` and a copy of the session.

        Parameters:
            state: the state of the app's lifespan.
            session: the session as it was before the app ran.
        """
        scope: Scope = {name: self._asked[name] for name in (*_REPLAYED, *_REPEATED) if name in self._asked}
        if session is not None:
            scope["session"] = session
        extensions = {name: value for name, value in (self._asked.get("extensions") or {}).items() if name == "tls"}
        scope.update(headers=list(self._asked["headers"]), state=dict(state), extensions=extensions)
        return scope

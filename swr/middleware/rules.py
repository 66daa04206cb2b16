"""Rules: how an operator caches the responses of a path."""

import logging
import math
import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal
from urllib.parse import unquote_plus

from starlette.routing import compile_path
from starlette.types import Scope

from swr.core.canonical import canonical
from swr.core.template import Template
from swr.endpoints.declared import Declared
from swr.endpoints.response_tags import ResponseTags
from swr.errors import ConfigurationError
from swr.http.caching import Terms
from swr.http.clients import Told
from swr.http.content import Content
from swr.http.request import is_ambiguous
from swr.http.request_fields import ALL_CREDENTIALS, EXACTLY, field_names
from swr.loaders.calling import TagsOf, tags_or_function
from swr.policy import Duration, Policy, seconds, timeout, timeout_or_auto

log = logging.getLogger("swr")

# The most steps that matching a path may take: a rule with several parameters may try all ways to split the path.
_MOST_STEPS: Final = 10**6
_ANY_LENGTH: Final = 2**31
_METHODS: Final = frozenset({"GET", "HEAD", "QUERY", "POST"})
# Responses of these paths are out of date at once. A rule applies to them if it names the path; a catch-all does not.
_MOMENTARY: Final = frozenset(
    {
        "/health", "/healthz", "/healthcheck", "/health-check", "/health/live", "/health/ready", "/live", "/livez",
        "/liveness", "/ready", "/readyz", "/readiness", "/ping", "/heartbeat", "/status", "/up", "/metrics", "/_status",
        "/api/health", "/actuator/health", "/actuator/prometheus",
    }
)  # fmt: skip


class Rule:
    """The caching of a path, as far as the responses themselves do not say.

    Parameters:
        path: the path, as in Starlette's routes: "/rankings/{group}", "/files/{name:path}".
        methods: the methods of the requests: GET (which also answers HEAD), QUERY and POST. swr stores a response to
            QUERY or POST for the content of its request (RFC 10008).
        fresh_for: how long a response is fresh: seconds, or "90s", "10m", "1d".
            Without `fresh_for` the rule sets no times, only tags, cookies and the like.
        stale_for: how long after that swr serves it and refreshes it in the background.
        stale_if_error: how long after `fresh_for` it is a fallback if a load fails.
        tags: tags of the responses, which may contain the path's parameters: "group:{group}". Or a function that
            returns tags from the response's `Content` and the path's parameters that it names:
            `lambda content, group: ...`. If the function raises, swr does not store the response.
        override: whether the rule takes precedence over the response's own directives. `no-store`, `private`,
            `no-cache`, `Set-Cookie` and `Vary: *` always win.
        vary: request fields that the responses depend on, besides those that they name in `Vary`.
        sort_query: whether the order of the query's parameters does not matter; parameters with the same name always
            keep their order.
        keep_params: the query parameters that matter; `*` matches any text, as in "filter_*". None: all.
        drop_params: the query parameters that do not matter, such as "utm_*". The app still sees them when it answers a
            client, and its answer must not depend on them. swr drops nothing that contains `;`, because some apps
            separate parameters by it. If a FastAPI route declares a parameter that `keep_params` leaves out, swr stores
            its responses only if `drop_params` names the parameter. If either leaves out a key (`APIKeyQuery`), swr
            does not store them.
        cookies: the cookies that the response depends on. swr then answers a request with cookies from the cache as
            if it had only these. A run of the app whose response swr stores sees only these; if swr stores nothing, the
            client gets the answer of a second run, which sees all. Without this option, swr does not answer a request
            with cookies from the cache at all.
        hard_timeout: how long a load of these responses may run; instead of the middleware's.
        ignore_fields: request fields that no response depends on, besides those that swr knows as harmless.
        key: a function of the scope that returns what selects a response besides the request itself, such as a tenant
            in `scope["state"]`. It returns a string, a number, a date, a UUID or a tuple of these.
        credentials: "private": requests with credentials get only responses that say they are for everybody. "vary":
            each credential has responses of its own. A revoked credential still gets them until they expire.
        client_max_age: how long clients may keep a response without asking, if it has no `Cache-Control` of its own. 0,
            the default: they keep it but ask each time (`no-cache`), and with an `ETag` the answer is a short 304.
        soft_timeout: how long a client waits for a load if there is an entry to fall back on; see `Policy`. None: to
            the end of the load.
        safe: which POST requests change nothing, so that swr may answer them from the cache and invalidates nothing.
            True: all; or a function of the request's `Content`, such as `is_graphql_query`. If the function raises, the
            request counts as unsafe.
        canonical_json: whether JSON content of QUERY and POST selects by its value, so that white space and the order
            of members do not matter. Other content selects by its bytes.

    Raises:
        ConfigurationError: one of these options cannot work.
    """

    def __init__(
        self,
        path: str,
        methods: Iterable[str] = ("GET", "HEAD"),
        fresh_for: Duration | None = None,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] | TagsOf = (),
        override: bool = False,
        vary: Sequence[str] = (),
        cookies: Sequence[str] | None = None,
        sort_query: bool = False,
        keep_params: Sequence[str] | None = None,
        drop_params: Sequence[str] = (),
        hard_timeout: Duration | None = None,
        ignore_fields: Sequence[str] = (),
        key: Callable[[Scope], object] | None = None,
        credentials: Literal["private", "vary"] = "private",
        client_max_age: Duration = 0,
        soft_timeout: Duration | None = None,
        safe: bool | Callable[[Content], bool] = False,
        canonical_json: bool = False,
    ) -> None:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"Rule({path!r}): a path begins with '/'")
        if {"*", "**"} & {*path.split("/")}:
            raise ConfigurationError(
                f"Rule({path!r}): '*' is not a wildcard; write {{name}} for a part, {{name:path}} for all"
            )
        try:
            self._pattern, form, self._converters = compile_path(path)
        except (ValueError, AssertionError, re.error) as error:
            raise ConfigurationError(f"Rule({path!r}): {error}") from None
        self.path = path
        self.methods = _checked_methods(path, methods, safe)
        self._safe = safe
        self.canonical_json = canonical_json
        if fresh_for is None and (stale_for or stale_if_error):
            raise ConfigurationError(f"Rule({path!r}): stale_for and stale_if_error count from fresh_for; give it too")
        tags, tags_of = tags_or_function(tags)
        self._tags_of = None if tags_of is None else ResponseTags(tags_of, f"Rule({path!r})", self._converters)
        self._policy = Policy(fresh_for or 0, stale_for, stale_if_error, tags)
        self._timed = fresh_for is not None
        self.hard_timeout = timeout(hard_timeout, f"Rule({path!r}): hard_timeout")
        self.soft_timeout = timeout_or_auto(soft_timeout, f"Rule({path!r}): soft_timeout")
        max_age = seconds(client_max_age, f"Rule({path!r}): client_max_age")
        if fresh_for is None and max_age:
            raise ConfigurationError(f"Rule({path!r}): client_max_age needs fresh_for: give both")
        self._tags = [Template(tag, "tags", f"Rule({path!r})") for tag in self._policy.tags]
        for name in (name for tag in self._tags for name in tag.names):
            if name not in self._converters:
                raise ConfigurationError(
                    f"Rule({path!r}): the tags contain {{{name}}}, but the path has no such parameter"
                )
        if isinstance(cookies, str):
            raise ConfigurationError(f"Rule({path!r}): cookies={cookies!r} is one string: give ({cookies!r},)")
        self.cookies = None if cookies is None else frozenset(cookies)
        self._override = override
        self.vary = field_names(vary)
        self._known = frozenset({*self.vary, *field_names(ignore_fields, "ignore_fields")})
        if key is not None and not callable(key):
            raise ConfigurationError(f"Rule({path!r}): key={key!r}: give a function that takes the scope")
        self.key = key
        if credentials not in ("private", "vary"):
            raise ConfigurationError(f'Rule({path!r}): credentials={credentials!r}: give "private" or "vary"')
        self.is_per_credential = credentials == "vary"
        # The names that select a response behind the dependencies of an endpoint; see `selecting_text`.
        self.selecting = (
            *(EXACTLY + name for name in self.vary),
            *((ALL_CREDENTIALS,) if self.is_per_credential else ()),
        )
        # The caching fields for clients if the app sets none. A rule without times has none either.
        is_apart = key is not None or cookies is not None or self.is_per_credential
        self.told = Told(max_age, is_apart) if self._timed else None
        # A rule for a whole tree is not meant for health checks and the like; see `_MOMENTARY`.
        self._is_catch_all = any(type(converter).__name__ == "PathConvertor" for converter in self._converters.values())
        for name, params in (("keep_params", keep_params or ()), ("drop_params", drop_params)):
            if isinstance(params, str) or not all(isinstance(param, str) and param for param in params):
                raise ConfigurationError(f'Rule({path!r}): {name}={params!r}: give a tuple of names, ("utm_*",)')
        self._has_warned = False
        # swr does not match longer paths with the rule, which could take too long.
        self.longest_path = _longest_path(form, self._converters)
        self._sort_query = sort_query
        self._keep_params = None if keep_params is None else _Names(keep_params)
        self._drop_params = _Names(drop_params)
        # Whether a parameter of the query may be left out of the key.
        self.leaves_out = keep_params is not None or bool(drop_params)
        self.reads_query = sort_query or self.leaves_out

    def keyed_query(self, query: bytes) -> bytes:
        """Return the part of a query that selects the response, in the order that the key uses."""
        counted = []
        for part in query.split(b"&"):
            name = part.partition(b"=")[0].decode("latin-1")
            if "%" in name or "+" in name:
                name = unquote_plus(name)
            is_kept = self._keep_params is None or name in self._keep_params
            # Some apps also separate parameters by `;`, so a parameter that counts may follow it.
            if b";" in part or (is_kept and name not in self._drop_params):
                counted.append((name, part))
        if self._sort_query:
            counted.sort(key=lambda pair: pair[0])
        return b"&".join(part for _, part in counted)

    def left_out(self, asked: Declared) -> str | None:
        """Return a parameter that the route declares and the rule leaves out of the key, or None.

        A parameter in `drop_params` is the operator's choice, unless it is a key that says who asks.
        """
        for name in sorted(asked.parameters):
            is_dropped = name in self._drop_params
            is_kept = self._keep_params is None or name in self._keep_params
            if (is_dropped or not is_kept) if name in asked.keys else not (is_dropped or is_kept):
                return name
        # A guard that takes the request may read any parameter, and refuse some clients by it.
        has_names = asked.names_parameters and asked.guard_fields is not None and not asked.looking
        return None if has_names or self._keep_params is None else "*"

    def match(self, path: str) -> dict[str, Any] | None:
        """Return the path's parameters if the rule applies, else None."""
        found = self._pattern.match(path)
        if found is None or (self._is_catch_all and path.rstrip("/") in _MOMENTARY):
            return None
        return found.groupdict()

    @property
    def is_always_safe(self) -> bool:
        """Return whether POST requests to the path never change anything."""
        return self._safe is True

    def says_safe(self, content: Content) -> bool:
        """Return whether a POST with this content changes nothing."""
        if not callable(self._safe):
            return self._safe
        try:
            return self._safe(content) is True
        except Exception as error:
            # Only the first failure is a warning, because clients choose the content and could fill the log.
            level = logging.DEBUG if self._has_warned else logging.WARNING
            self._has_warned = True
            log.log(level, "safe= of Rule(%r) failed, so the request counts as unsafe: %r", self.path, error)
            return False

    @property
    def separates(self) -> bool:
        """Return whether the rule keeps responses to one URL apart."""
        return self.key is not None or bool(self.vary) or self.is_per_credential

    def matches(self, path: str) -> bool:
        """Return whether a path has the form of the rule's path, or is too long to find out."""
        return len(path) > self.longest_path or self._pattern.match(path) is not None

    def knows(self, field: str) -> bool:
        """Return whether the rule names a request field in `vary` or `ignore_fields`."""
        return field in self._known

    def terms(self, parameters: dict[str, Any]) -> Terms:
        """Return the terms for a response to a path with these parameters."""
        tags = tuple(tag.fill_plain(parameters) for tag in self._tags)
        policy = self._policy
        return Terms(
            policy.tagged(tags),
            self._timed,
            self._override,
            self.vary,
            per_credential=self.is_per_credential,
            tags_of=None if self._tags_of is None else self._tags_of.bound(parameters),
        )


def _checked_methods(path: str, methods: Iterable[str], safe: bool | Callable[[Content], bool]) -> frozenset[str]:
    """Return the methods of a rule.

    Raises:
        ConfigurationError: there is no method, or an unsupported one, or `safe` does not fit the methods.
    """
    names = frozenset([methods] if isinstance(methods, str) else methods)
    if not names or not names <= _METHODS or names & {"GET", "HEAD"} == {"HEAD"}:
        raise ConfigurationError(f"Rule({path!r}): methods={methods!r}: give some of GET, HEAD with GET, QUERY, POST")
    if ("POST" in names) != bool(safe) or not (isinstance(safe, bool) or callable(safe)):
        raise ConfigurationError(
            f"Rule({path!r}): methods={methods!r}, safe={safe!r}: a POST may change something. With POST give "
            f"safe=True if no request to this path does, or a function that says which are safe, such as "
            f"safe=is_graphql_query"
        )
    return names


class RuleSet:
    """The rules of a middleware, by request method.

    Parameters:
        rules: the rules in their order; the first rule that matches applies.
    """

    def __init__(self, rules: Sequence[Rule]) -> None:
        self.of_get = [rule for rule in rules if "GET" in rule.methods]
        self._by_content = {method: [rule for rule in rules if method in rule.methods] for method in ("QUERY", "POST")}
        # Whether a rule has more to say behind the dependencies of an endpoint than `Request.key` has.
        self.count_behind = any(rule.selecting or rule.leaves_out for rule in rules)
        # Whether the rules for other methods than GET may select other parts of the query than those for GET.
        lists = [self.of_get, *self._by_content.values()]
        self._differs = any(rule.reads_query for rules in lists[1:] for rule in rules)

    def by_content(self, method: str) -> list[Rule]:
        """Return the rules for requests of a method whose content selects the response."""
        return self._by_content[method]

    def others(self, mine: list[Rule]) -> list[list[Rule]]:
        """Return the rules for the other methods; empty for GET if no rule for another method reads the query."""
        if not self._differs and mine is self.of_get:
            return []
        return [rules for rules in (self.of_get, *self._by_content.values()) if rules is not mine]


def first_match(rules: Sequence[Rule], path: str, raw_path: bytes) -> tuple[Rule | None, dict[str, Any]]:
    """Return the first rule that applies to a path, and the path's parameters; None if no rule applies.

    No rule applies to a path that an app may take for another path. A rule for which the path is too long ends the
    search.

    Parameters:
        path: the decoded path.
        raw_path: the path as it was sent; empty: not known.
    """
    if not rules or is_ambiguous(path, raw_path):
        return None, {}
    for rule in rules:
        if len(path) > rule.longest_path:
            break
        parameters = rule.match(path)
        if parameters is not None:
            return rule, parameters
    return None, {}


def text_of_key(function: Callable[[Scope], object], scope: Scope) -> bytes:
    """Return the result of `key=` for a request as text; only equal results have the same text.

    Raises:
        ConfigurationError: the result has no such text. The `repr` of an object may contain its address in memory,
            which another object may get later.
    """
    selected = function(scope)
    try:
        return canonical(selected).encode("utf-8", "surrogatepass")
    except (TypeError, ValueError, RecursionError):
        raise ConfigurationError(
            f"key= returned a {type(selected).__name__}, whose text another object may share: return a string, a "
            f"number, a date, a UUID or a tuple of these"
        ) from None


class _Names:
    """Names in which `*` matches any text. The time to match grows only linearly with the length of the text."""

    def __init__(self, names: Sequence[str]) -> None:
        self._whole = frozenset(name for name in names if "*" not in name)
        self._parts = [name.split("*") for name in names if "*" in name]

    def __contains__(self, text: str) -> bool:
        return text in self._whole or any(_is_made_of(parts, text) for parts in self._parts)


def _is_made_of(parts: list[str], text: str) -> bool:
    """Return whether a text begins with the first part and ends with the last, with the others between them."""
    first, *between, last = parts
    at, end = len(first), len(text) - len(last)
    if at > end or not text.startswith(first) or not text.endswith(last):
        return False
    for part in between:
        # The first place where the part occurs leaves the most room for the next parts.
        at = text.find(part, at, end)
        if at < 0:
            return False
        at += len(part)
    return True


def _longest_path(form: str, converters: dict[str, Any]) -> int:
    """Return the length of the longest path that swr matches with a rule, in characters.

    Parameters:
        form: the rule's path without the converters of its parameters.
        converters: the converters of its parameters, by name.
    """
    whole = sum(type(converter).__name__ == "PathConvertor" for converter in converters.values())
    # Parameters that match several segments, and parameters in the same segment, compete for the same characters.
    competing = max(whole, 1) + sum(max(0, segment.count("{") - 1) for segment in form.split("/"))
    return int((_MOST_STEPS * math.factorial(competing)) ** (1 / competing)) if competing > 1 else _ANY_LENGTH

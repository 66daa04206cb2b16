"""Rules: how an operator caches the responses of a path."""

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Final, Literal
from urllib.parse import unquote_plus

from starlette.routing import compile_path
from starlette.types import Scope

from swr.core.keys import Template
from swr.errors import ConfigurationError
from swr.http.caching import Terms
from swr.http.fields import field_names
from swr.policy import Duration, Policy, timeout

_METHODS: Final = frozenset({"GET", "HEAD"})
# What these paths answer is true at the moment. A rule that names one of them applies to it, a catch-all does not.
_MOMENTARY: Final = frozenset(
    {
        "/health", "/healthz", "/healthcheck", "/health-check", "/health/live", "/health/ready", "/live", "/livez",
        "/liveness", "/ready", "/readyz", "/readiness", "/ping", "/heartbeat", "/status", "/up", "/metrics", "/_status",
        "/api/health", "/actuator/health", "/actuator/prometheus",
    }
)  # fmt: skip


class Rule:
    """Fills in what responses to a path leave open.

    Parameters:
        path: as in Starlette's routes: "/rankings/{group}", "/files/{name:path}".
        methods: GET, or GET and HEAD; nothing else is cached, and HEAD is answered with what GET has stored.
        fresh_for, stale_for, stale_if_error: see `Policy`. Without `fresh_for` the rule gives tags and cookies alone.
        tags: may name the path's parameters: "group:{group}".
        override: whether the rule goes before the response's own directives. `no-store`, `private`, `no-cache`,
            `Set-Cookie` and `Vary: *` win even so.
        vary: request fields that the responses depend on, beside those that they name in `Vary`.
        sort_query: whether the order of the query's parameters does not matter; those of one name keep theirs.
        keep_params: the query's parameters that matter, "utm_*" for several; None: all.
        drop_params: parameters that do not. What is dropped is still seen by the app that answers a client, and
            must not change what it answers.
        cookies: the cookies that the response depends on. A request with cookies is then answered from the cache
            as if it had these alone, and a run of the app that may be stored sees these alone; without this, it is not
            answered from the cache at all.
        hard_timeout: how long a load of these responses may run; in place of the middleware's.
        ignore_fields: request fields that no response depends on, beside those that swr knows as harmless.
        key: returns what selects a response beside the request itself (a tenant in `scope["state"]`, say), from the
            scope.
        credentials: "private": requests with credentials get responses that say they are for everybody. "vary":
            each credential has responses of its own, and a revoked one gets them until they end.

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        path: str,
        methods: Iterable[str] = ("GET", "HEAD"),
        fresh_for: Duration | None = None,
        stale_for: Duration = 0,
        stale_if_error: Duration = 0,
        tags: Sequence[str] = (),
        override: bool = False,
        vary: Sequence[str] = (),
        cookies: Sequence[str] | None = None,
        sort_query: bool = False,
        keep_params: Sequence[str] | None = None,
        drop_params: Sequence[str] = (),
        hard_timeout: Duration | None = None,
        ignore_fields: Sequence[str] = (),
        key: Callable[[Scope], str] | None = None,
        credentials: Literal["private", "vary"] = "private",
    ) -> None:
        if not isinstance(path, str) or not path.startswith("/"):
            raise ConfigurationError(f"Rule({path!r}): a path begins with '/'")
        try:
            self._pattern, _, self._converters = compile_path(path)
        except (ValueError, AssertionError, re.error) as error:
            raise ConfigurationError(f"Rule({path!r}): {error}") from None
        self.path = path
        self.methods = frozenset([methods] if isinstance(methods, str) else methods)
        if "GET" not in self.methods or not self.methods <= _METHODS:
            raise ConfigurationError(f"Rule({path!r}): methods={methods!r}: give GET, or GET and HEAD")
        if fresh_for is None and (stale_for or stale_if_error):
            raise ConfigurationError(f"Rule({path!r}): stale_for and stale_if_error count from fresh_for; give it too")
        self._policy = Policy(fresh_for or 0, stale_for, stale_if_error, tags)
        self._timed = fresh_for is not None
        self.hard_timeout = timeout(hard_timeout, f"Rule({path!r}): hard_timeout")
        self._tags = [Template(tag, "tags", f"Rule({path!r})") for tag in self._policy.tags]
        for name in (name for tag in self._tags for name in tag.names):
            if name not in self._converters:
                raise ConfigurationError(f"Rule({path!r}): the tags name {name!r}, which is no parameter of the path")
        if isinstance(cookies, str):
            raise ConfigurationError(f"Rule({path!r}): cookies={cookies!r} is one string: give ({cookies!r},)")
        self.cookies = None if cookies is None else frozenset(cookies)
        self._override = override
        self._vary = field_names(vary)
        self._known = frozenset({*self._vary, *field_names(ignore_fields, "ignore_fields")})
        if key is not None and not callable(key):
            raise ConfigurationError(f"Rule({path!r}): key={key!r} is not a function of the scope")
        self.key = key
        if credentials not in ("private", "vary"):
            raise ConfigurationError(f'Rule({path!r}): credentials={credentials!r}: give "private" or "vary"')
        self._per_credential = credentials == "vary"
        # A rule for whole trees is not meant for what says how the app is right now.
        self._is_catch_all = any(type(converter).__name__ == "PathConvertor" for converter in self._converters.values())
        for name, params in (("keep_params", keep_params or ()), ("drop_params", drop_params)):
            if isinstance(params, str) or not all(isinstance(param, str) and param for param in params):
                raise ConfigurationError(f'Rule({path!r}): {name}={params!r}: give a tuple of names, ("utm_*",)')
        self._sort_query = sort_query
        self._keep_params = None if keep_params is None else _pattern(keep_params)
        self._drop_params = _pattern(drop_params)
        self.reads_query = sort_query or keep_params is not None or bool(drop_params)

    def keyed_query(self, query: bytes) -> bytes:
        """Return the part of a query that selects the response, in the order that the key has it in."""
        counted = []
        for part in query.split(b"&"):
            name = unquote_plus(part.partition(b"=")[0].decode("latin-1"))
            if self._keep_params is not None and not self._keep_params.fullmatch(name):
                continue
            if not self._drop_params.fullmatch(name):
                counted.append((name, part))
        if self._sort_query:
            counted.sort(key=lambda pair: pair[0])
        return b"&".join(part for _, part in counted)

    def match(self, path: str) -> dict[str, Any] | None:
        """Return the path's parameters if the rule applies, else None."""
        found = self._pattern.match(path)
        if found is None or (self._is_catch_all and path.rstrip("/") in _MOMENTARY):
            return None
        return found.groupdict()

    @property
    def separates(self) -> bool:
        """Whether the rule keeps responses to one URL apart."""
        return self.key is not None or bool(self._vary) or self._per_credential

    def matches(self, path: str) -> bool:
        """Return whether the path is of this rule's form, whether the rule applies to it or not."""
        return self._pattern.match(path) is not None

    def knows(self, field: str) -> bool:
        """Return whether the rule says what a request field means: it selects, or it is to be ignored."""
        return field in self._known

    def terms(self, parameters: dict[str, Any]) -> Terms:
        """Return what the rule says about a response to a path with these parameters."""
        tags = tuple(tag.fill_plain(parameters) for tag in self._tags)
        policy = self._policy
        return Terms(policy.tagged(tags), self._timed, self._override, self._vary, per_credential=self._per_credential)


def _pattern(names: Sequence[str]) -> re.Pattern[str]:
    """Return one pattern for names in which `*` matches anything; without names, one that matches nothing."""
    parts = [".*".join(map(re.escape, name.split("*"))) for name in names]
    return re.compile("|".join(parts) if parts else r"(?!)", re.DOTALL)

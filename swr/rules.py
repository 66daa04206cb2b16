"""Rules: what an operator says about the responses of a path, for the middleware."""

import re
from collections.abc import Iterable, Sequence
from typing import Any, Final
from urllib.parse import unquote, urlsplit

from starlette.routing import compile_path

from swr.errors import ConfigurationError
from swr.keys import Template
from swr.policy import Duration, Policy
from swr.semantics import Terms

_METHODS: Final = frozenset({"GET", "HEAD"})


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
        cookies: the cookies that the response depends on. A request with cookies is then answered from the cache
            as if it had these alone; without this, it is not answered from the cache at all.

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
        self._tags = [Template(tag, "tags", f"Rule({path!r})") for tag in self._policy.tags]
        for name in (name for tag in self._tags for name in tag.names):
            if name not in self._converters:
                raise ConfigurationError(f"Rule({path!r}): the tags name {name!r}, which is no parameter of the path")
        if isinstance(cookies, str):
            raise ConfigurationError(f"Rule({path!r}): cookies={cookies!r} is one string: give ({cookies!r},)")
        self.cookies = None if cookies is None else frozenset(cookies)
        self._override = override
        self._vary = field_names(vary)

    def match(self, path: str) -> dict[str, Any] | None:
        """Return the path's parameters if the rule applies, else None."""
        found = self._pattern.match(path)
        return None if found is None else found.groupdict()

    def terms(self, parameters: dict[str, Any]) -> Terms:
        """Return what the rule says about a response to a path with these parameters."""
        tags = tuple(tag.fill_plain(parameters) for tag in self._tags)
        policy = self._policy
        return Terms(policy.tagged(tags), self._timed, self._override, self._vary)


def field_names(vary: Sequence[str]) -> tuple[str, ...]:
    """Return the names of request fields in lower case.

    Raises:
        ConfigurationError: one that is no name of a field.
    """
    if isinstance(vary, str):
        raise ConfigurationError(f"vary={vary!r} is one string: give ({vary!r},)")
    for name in vary:
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name) or name == "*":
            raise ConfigurationError(f"vary={vary!r} holds {name!r}, which is no name of a request field")
    return tuple(name.lower() for name in vary)


def url_tag(path: str, query: str) -> str:
    """Return the tag that every stored response to a URL carries, whatever its host, scheme and variant."""
    return f"url:{path}?{query}" if query else f"url:{path}"


def tag_of_url(url: str) -> str:
    """Return the tag of `url`, a path with its query, or a whole URL whose scheme and host are disregarded.

    Raises:
        ConfigurationError: it has no path.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not a URL: {error}") from None
    if not parts.path.startswith("/"):
        raise ConfigurationError(f"{url!r} has no path: give a path such as '/rankings/ATL?limit=10', or a whole URL")
    return url_tag(unquote(parts.path), parts.query)

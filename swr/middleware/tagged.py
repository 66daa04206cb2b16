"""The tags of a request's URL: its response has them, and a request with an unsafe method invalidates them."""

from collections.abc import Sequence
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from swr.http.request import host_tag, path_of, shortened, url_tag
from swr.middleware.rules import Rule, first_match


class Tagged:
    """A request, with the tags of its URL."""

    __slots__ = ("_asked", "_has_long_target", "_others", "_query", "_rules", "_tags", "fields")

    fields: dict[bytes, bytes]
    # The scope as it was when the request came.
    _asked: dict[str, Any]
    # The part of the query that selects a response by the rules for the request's method.
    _query: bytes
    # The rules for the request's method, and for each other method.
    _rules: list[Rule]
    _others: Sequence[list[Rule]]
    # Whether the path and query alone are longer than swr reads.
    _has_long_target: bool
    # The tags of the URL, once they are known.
    _tags: tuple[str, ...] | None

    @property
    def _reads_query(self) -> bool:
        """Return whether a rule for the request's method says which parts of a query select a response."""
        return _read_query(self._rules)

    @property
    def url(self) -> str:
        """The URL with the query that the key has, for logs and `Cache-Status`."""
        scheme, host, path = self._asked["scheme"], self.fields.get(b"host", b"").lower(), path_of(self._asked)
        return f"{scheme}://{(host + path + b'?' + self._query).decode('latin-1')}"

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the URL on all hosts and on the request's host; if rules read queries, also the tag of its path.

        swr stores nothing for a target that is too long. But a rule may shorten its query to that of a stored response.
        """
        if self._tags is None:
            host = self.fields.get(b"host", b"")
            tags = () if self._has_long_target else [t for query in self._queries for t in self._tags_of(host, query)]
            if not tags or self._reads_query or any(map(_read_query, self._others)):
                path = host_tag(host, f"path:{url_tag(self._asked['path'], '')}")
                tags = [*(tags or (path,)), path]
            self._tags = tuple(tags)
        return self._tags

    @property
    def url_tags(self) -> list[str]:
        """The tags of the URL on all hosts: one for each way in which the rules read the query."""
        return [self._tags_of(b"", query)[0] for query in self._queries]

    @property
    def host_tags(self) -> list[str]:
        """The tags of the URL on the request's host: one for each way in which the rules read the query."""
        host = self.fields.get(b"host", b"")
        return [self.tags[1]] if self._has_long_target else [self._tags_of(host, query)[1] for query in self._queries]

    def _tags_of(self, host: bytes, query: bytes) -> tuple[str, str]:
        tag = url_tag(self._asked["path"], query.decode("latin-1"))
        return tag, host_tag(host, tag)

    @property
    def _queries(self) -> list[bytes]:
        """The query as the rules for each method shorten it, the request's own method first, without repeats."""
        query, queries = self._asked["query_string"], [self._query]
        for rules in self._others if query else ():
            rule = first_match(rules, self._asked["path"], self._asked.get("raw_path") or b"")[0]
            queries.append(query if rule is None else rule.keyed_query(query))
        return list(dict.fromkeys(queries))

    @property
    def _origin(self) -> str:
        return f"{self._asked['scheme']}://{self.fields.get(b'host', b'').decode('latin-1').lower()}"

    @property
    def _base(self) -> str:
        return self._origin + path_of(self._asked).decode("latin-1")

    def tag_of(self, reference: bytes) -> str | None:
        """Return the tag of the URL in a `Location` or `Content-Location`; None if that is of another origin."""
        try:
            base, target = urlsplit(self._base), urlsplit(urljoin(self._base, reference.decode("latin-1").strip()))
        except ValueError:
            return None
        if (target.scheme.lower(), target.netloc.lower()) != (base.scheme, base.netloc):
            return None
        path = unquote(target.path)
        raw_path, query = (part.encode("latin-1", "replace") for part in (target.path, target.query))
        rule = first_match(self._rules, path, raw_path)[0] if self._reads_query and query else None
        tag = url_tag(path, (query if rule is None else rule.keyed_query(query)).decode("latin-1"))
        return host_tag(self.fields.get(b"host", b""), tag)

    def group_tag(self, group: str) -> str:
        """Return the tag of a cache group of this request's origin (RFC 9875 2: groups are of one origin)."""
        return shortened(f"group:{self._origin}\n{group}")


def _read_query(rules: list[Rule]) -> bool:
    return any(rule.reads_query for rule in rules)

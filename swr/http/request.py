"""The URL of a request: its key, its tag, and whether a request is a plain GET of it."""

import hashlib
import re
from collections.abc import Callable, Iterable, MutableMapping
from contextvars import Context, copy_context
from typing import Any, Final, Protocol
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from swr.core.keys import URL_ON_HOST
from swr.errors import ConfigurationError
from swr.http.request_fields import SELECTING, selecting_value

# A connection as ASGI describes it.
Scope = MutableMapping[str, Any]

# A request that has a selecting field, and more fields than this, is not plain.
MOST_FIELDS: Final = 64

# Among the selecting fields: the values that middleware around swr has set. No field has this name.
_OUTER: Final = b":outer"

# A longer key or tag ends with a digest: clients choose the URLs, and swr keeps thousands of keys and tags in memory.
_LONGEST_NAME: Final = 512

# The most bytes of a URL and of fields by which the local cache finds an entry. The weight of an entry allows for them.
_LONGEST_ALIAS: Final = 1280
# Bytes of the objects that hold one field.
_PER_FIELD: Final = 128

# Prefixes of the names of extensions that ASGI defines.
_OF_ASGI: Final = ("http.", "websocket.", "tls")
# The most usual ones by which a server offers something; they say nothing about the client.
_OFFERS: Final = frozenset(
    {
        "http.response.push", "http.response.trailers", "http.response.early_hint", "http.response.pathsend",
        "http.response.zerocopysend", "http.response.debug", "websocket.http.response",
    }
)  # fmt: skip

# Not `scope.keys()`: an outer swr would take it for code that copies the scope.
_NAMES_OF: Final[Any] = dict.keys

# Turns the value of a field that selects a response into text that does not show it.
Digest = Callable[[bytes], str]

# Selecting fields, as (the fields before the last one, its name, its value), or (). A hit makes no list for them.
Fields = tuple[()] | tuple["Fields", bytes, bytes]

# A URL as it was sent, and the fields that also select its response: scheme, host, raw path, path, root path, query,
# fields.
URL = tuple[str, bytes, bytes, str, str, bytes, Fields]

# Parts of a path that servers and apps read in different ways: dot segments, empty segments, separators other than
# slashes, and characters that can be decoded once more.
_AMBIGUOUS: Final = re.compile(r"(?:^|/)\.{1,2}\s*(?:/|$)|//|[;#?\\\x00-\x1f\x7f\ufffd]|%[0-9a-f]{2}", re.IGNORECASE)
_ENCODED_SEPARATOR: Final = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)


def digest_with(secret: bytes) -> Digest:
    """Return a function that digests a value with a secret, so that keys do not show what they were made of."""

    def digest(value: bytes) -> str:
        return hashlib.blake2b(value, digest_size=16, key=secret).hexdigest()

    return digest


def shortened(text: str) -> str:
    """Return a key or a tag, a long one as its beginning and a digest."""
    if len(text) <= _LONGEST_NAME:
        return text
    return f"{text[:_LONGEST_NAME]}... {hashlib.blake2b(text.encode('utf-8', 'surrogatepass')).hexdigest()}"


def url_key(url: URL, digest: Digest, version: str = "") -> str:
    """Return the key of a URL; a long one is shortened.

    Parameters:
        digest: turns the values of fields into text that does not show them.
        version: the version of the app whose responses these are.
    """
    scheme, host, raw_path, path, root_path, query, fields = url
    # Neither fields nor URLs contain a line break, so it separates host, path and variant unambiguously.
    key = f"GET {scheme}://" + (b"%b\n%b?%b" % (host.lower(), seen_path(raw_path, path), query)).decode("latin-1")
    parts = [key]
    if root_path:
        # An app behind a prefix writes the prefix into its links, so its responses depend on it.
        parts.append(f"root: {quote(root_path, errors='surrogatepass')}")
    if version:
        parts.append(f"version: {version}")
    if fields:
        # Some apps join several lines of a field, and others use only one of them, so all lines count, in order.
        values: dict[bytes, list[bytes]] = {}
        while fields:
            fields, name, value = fields
            values.setdefault(name, []).append(selecting_value(name, value))
        for name in sorted(values):
            joined = b"\n".join(reversed(values[name]))
            parts.append(f"{name.decode('latin-1')}: {digest(joined)}")
    return shortened("\n".join(parts))


def chained(pairs: Iterable[tuple[bytes, bytes]]) -> Fields:
    """Return names and values of fields in the form of `Fields`."""
    fields: Fields = ()
    for name, value in pairs:
        fields = fields, name, value
    return fields


def with_outer(fields: Fields, names: tuple[str, ...]) -> Fields:
    """Return selecting fields, extended by the names of the values that middleware around swr has set for a request."""
    return (fields, _OUTER, "\n".join(names).encode("utf-8", "surrogatepass")) if names else fields


def is_long(url: URL, more: Fields = ()) -> bool:
    """Return whether a URL may take far more memory than its key, which is shortened or contains digests.

    Parameters:
        more: further fields that are held with the URL.
    """
    _, host, raw_path, path, root_path, query, fields = url
    size = len(host) + len(raw_path) + len(path) + len(root_path) + len(query)
    for chain in (fields, more):
        while chain:
            chain, name, value = chain
            size += len(name) + len(value) + _PER_FIELD
    return size > _LONGEST_ALIAS


def shown(url: URL) -> str:
    """Return a URL for logs, without the fields that select its response."""
    scheme, host, raw_path, path, _, query, _ = url
    return f"{scheme}://{(host.lower() + seen_path(raw_path, path) + b'?' + query).decode('latin-1')}"


def seen_path(raw_path: bytes, path: str) -> bytes:
    """Return the path that the app sees, as bytes: an outer middleware may have changed it."""
    if raw_path:
        try:
            if unquote_to_bytes(raw_path.partition(b"?")[0]).decode() == path:
                return raw_path
        except UnicodeDecodeError:
            if unquote(raw_path.decode("latin-1")) == path:
                return raw_path
    return quote(path, errors="surrogatepass").encode()


def is_below(scope: Scope, prefixes: Iterable[str]) -> bool:
    """Return whether the path of a request is below one of `prefixes`."""
    return any(scope["path"].startswith(f"{prefix}/") for prefix in prefixes if prefix)


def path_of(scope: Scope) -> bytes:
    """Return the path of a request as the app sees it."""
    return seen_path(scope.get("raw_path") or b"", scope["path"])


def is_ambiguous(path: str, raw_path: bytes) -> bool:
    """Return whether an app and a rule may read a path in two ways, such as `/static/..%2faccount`.

    Parameters:
        path: decoded.
        raw_path: as it was sent; empty: unknown.
    """
    return _AMBIGUOUS.search(path) is not None or _ENCODED_SEPARATOR.search(raw_path.partition(b"?")[0]) is not None


class Usual(Protocol):
    """The properties of a request for which middleware around the cache has set nothing.

    Attributes:
        size: the number of names in a scope with a state, as the server makes it.
        size_without_state: the number of names in such a scope without a state.
        routed: the names of scopes to which routers around the cache have added theirs, in their order.
        state: the state of its scope.
        context: its context variables.
        ignored: the names of request fields that no response depends on, as far as known.
    """

    size: int
    size_without_state: int
    routed: set[tuple[str, ...]]
    state: dict[str, Any]
    context: Context
    ignored: set[bytes]

    def ignores(self, name: bytes) -> bool:
        """Return whether no response depends on a request field whose name is not in `ignored`."""

    def names_beside(self, scope: Scope) -> tuple[str, ...]:
        """Return the names of the values that middleware around the cache has set."""


def has_certificate(scope: Scope) -> bool:
    """Return whether the client has identified itself by a TLS certificate."""
    tls = (scope.get("extensions") or {}).get("tls") or {}
    return bool(tls.get("client_cert_name") or tls.get("client_cert_chain"))


def has_own_extension(scope: Scope) -> bool:
    """Return whether the scope has an extension that ASGI does not define, which middleware may have set."""
    return any(not name.startswith(_OF_ASGI) for name in scope.get("extensions") or ())


def plain_url(scope: Scope, usual: Usual) -> tuple[URL | None, bytes | None]:
    """Return the URL of a plain request, or None, and its `If-None-Match`, or None.

    A plain request has no other field that decides how the cache answers, no user who has logged in, and no client
    certificate.
    """
    host = condition = None
    is_dated = False
    fields: Fields = ()
    headers, ignored = scope["headers"], usual.ignored
    for name, value in headers:
        if name in ignored:
            continue
        if name == b"host" and host is None:
            host = value
        elif name in SELECTING:
            fields = fields, name, value
        elif name == b"if-none-match" and condition is None:
            condition = value
        elif name == b"if-modified-since":
            is_dated = True
        elif not usual.ignores(name):
            return None, None
    # `If-None-Match` takes precedence over `If-Modified-Since` (RFC 9110 13.1.3).
    if (fields and len(headers) > MOST_FIELDS) or (is_dated and condition is None):
        return None, None
    try:
        state = scope.get("state")
        if (
            # Scopes of a server with and without `state` differ in their size. Any other size means that a router or
            # middleware has added names. Different routers add different numbers of names, so all names count then.
            (len(scope) != usual.size_without_state and (*_NAMES_OF(scope),) not in usual.routed)
            if state is None
            else ((len(scope) != usual.size and (*_NAMES_OF(scope),) not in usual.routed) or state != usual.state)
        ) or copy_context() != usual.context:
            if "session" in scope or "user" in scope or "auth" in scope:
                return None, None
            fields = with_outer(fields, usual.names_beside(scope))
        # In HTTP/2 and 3, content may come without a field that announces it.
        if scope["http_version"] > "1.1" or (
            "extensions" in scope
            and not _OFFERS.issuperset(scope["extensions"] or ())
            and (has_certificate(scope) or has_own_extension(scope))
        ):
            return None, None
        return (
            scope["scheme"],
            host or b"",
            scope["raw_path"] or b"",
            scope["path"],
            scope["root_path"],
            scope["query_string"],
            fields,
        ), condition
    except Exception:
        # ASGI lets a server leave out some of these names. Comparing the values of a state may raise.
        return None, None


def url_tag(path: str, query: str) -> str:
    """Return the tag that every stored response to a URL carries, whatever its host, scheme and variant."""
    # A server may hand over lone surrogates, which a tag must not contain.
    path = path.encode("utf-8", "replace").decode()
    # A rule may make the order of parameters irrelevant, so the tag does not depend on it.
    query = "&".join(sorted(query.split("&")))
    return shortened(f"url:{path}?{query}" if query else f"url:{path}")


def host_tag(host: bytes, tag: str) -> str:
    """Return the tag that every stored response to a URL on one host carries, whatever its scheme and variant.

    Parameters:
        host: as the request names it.
        tag: the tag of the URL on all hosts; see `url_tag`.
    """
    name = host.decode("latin-1").strip().lower().removesuffix(":80").removesuffix(":443")
    return shortened(f"{URL_ON_HOST}{name}\n{tag}")


def tag_of_url(url: str) -> str:
    """Return the tag of `url`: a path with its query, or a whole URL, whose scheme and host do not count.

    Raises:
        ConfigurationError: `url` is not a URL, or has no path.
    """
    try:
        parts = urlsplit(url)
    except ValueError as error:
        raise ConfigurationError(f"{url!r} is not a URL: {error}") from None
    if not parts.path.startswith("/"):
        raise ConfigurationError(f"{url!r} has no path: give a path such as '/rankings/ATL?limit=10', or a whole URL")
    return url_tag(unquote(parts.path), parts.query)

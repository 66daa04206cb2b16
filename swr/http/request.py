"""The URL of a request: its key, its tag, and whether a request is a plain GET of it."""

import hashlib
import re
from collections.abc import Callable, MutableMapping
from typing import Any, Final
from urllib.parse import quote, unquote, unquote_to_bytes, urlsplit

from swr.errors import ConfigurationError
from swr.http.request_fields import IGNORED, SELECTING, selecting_value

# A connection as ASGI describes it.
Scope = MutableMapping[str, Any]

# A request with more selecting fields (names and values counted) is not plain.
_MOST_FIELDS: Final = 16

# Turns the value of a field that selects a response into text that does not show it.
Digest = Callable[[bytes], str]

# A URL as it was sent, and what selects its response beside it: scheme, host, raw path, path, root path, query, and
# names and values of fields in turn.
URL = tuple[str, bytes, bytes, str, str, bytes, tuple[bytes, ...]]

# What servers and apps disagree about in a path: dot segments, empty ones, separators that are not slashes, and
# characters that decode to something else once more.
_AMBIGUOUS: Final = re.compile(r"(?:^|/)\.{1,2}\s*(?:/|$)|//|[;#?\\\x00-\x1f\x7f\ufffd]|%[0-9a-f]{2}", re.IGNORECASE)
_ENCODED_SEPARATOR: Final = re.compile(rb"%(?:2f|5c)", re.IGNORECASE)


def digest_with(secret: bytes) -> Digest:
    """Return a function that digests a value with a secret, so that keys do not show what they were made of."""

    def digest(value: bytes) -> str:
        return hashlib.blake2b(value, digest_size=16, key=secret).hexdigest()

    return digest


def url_key(url: URL, digest: Digest) -> str:
    """Return the key of a URL."""
    scheme, host, raw_path, path, root_path, query, fields = url
    # No field and no URL holds a line break, so no host can run into a path, and no path into a variant.
    key = f"GET {scheme}://" + (b"%b\n%b?%b" % (host.lower(), seen_path(raw_path, path), query)).decode("latin-1")
    if root_path:
        # An app behind a prefix writes it into its links.
        key += f"\nroot: {quote(root_path, errors='surrogatepass')}"
    if fields:
        # Apps read several lines of a field as one value, or go by one of them.
        values: dict[bytes, list[bytes]] = {}
        for name, value in zip(fields[::2], fields[1::2], strict=True):
            values.setdefault(name, []).append(selecting_value(name, value))
        for name in sorted(values):
            joined = b"\n".join(values[name])
            key += f"\n{name.decode('latin-1')}: {digest(joined)}"
    return key


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


def path_of(scope: Scope) -> bytes:
    """Return the path of a request as the app sees it."""
    return seen_path(scope.get("raw_path") or b"", scope["path"])


def is_ambiguous(path: str, raw_path: bytes) -> bool:
    """Whether an app may take a path for another one than a rule does, as `/static/..%2faccount`.

    Parameters:
        path: decoded.
        raw_path: as it was sent; empty: not known.
    """
    return _AMBIGUOUS.search(path) is not None or _ENCODED_SEPARATOR.search(raw_path.partition(b"?")[0]) is not None


def plain_url(scope: Scope) -> tuple[URL | None, bytes | None]:
    """Return the URL of a plain request, and its `If-None-Match`; None for each that there is not.

    A plain request has no other field that decides how the cache answers, and nobody has logged in.
    """
    host = condition = None
    fields: tuple[bytes, ...] = ()
    for name, value in scope["headers"]:
        if name in IGNORED:
            continue
        if name == b"host" and host is None:
            host = value
        elif name in SELECTING and len(fields) < _MOST_FIELDS:
            fields += name, value
        elif name == b"if-none-match" and condition is None:
            condition = value
        else:
            return None, None
    if "session" in scope or "user" in scope:
        return None, None
    return (
        scope.get("scheme", "http"),
        host or b"",
        scope.get("raw_path") or b"",
        scope["path"],
        scope.get("root_path", ""),
        scope.get("query_string", b""),
        fields,
    ), condition


def url_tag(path: str, query: str) -> str:
    """Return the tag that every stored response to a URL carries, whatever its host, scheme and variant."""
    # A server may hand over what is no text; a tag is.
    path = path.encode("utf-8", "replace").decode()
    # A rule may make the order of parameters irrelevant, so the tag disregards it.
    query = "&".join(sorted(query.split("&")))
    return f"url:{path}?{query}" if query else f"url:{path}"


def host_tag(host: bytes, tag: str) -> str:
    """Return the tag that every stored response to a URL on one host carries, whatever its scheme and variant.

    Parameters:
        host: as the request names it.
        tag: of the URL on all hosts, see `url_tag`.
    """
    name = host.decode("latin-1").strip().lower().removesuffix(":80").removesuffix(":443")
    return f"host:{name}\n{tag}"


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

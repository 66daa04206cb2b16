"""The URL of a request: its key, its tag, and the fields that make a request more than a plain GET of it."""

from collections.abc import MutableMapping
from typing import Any, Final
from urllib.parse import quote, unquote, urlsplit

from swr.errors import ConfigurationError

# A connection as ASGI describes it.
Scope = MutableMapping[str, Any]

# The fields of a request that decide whether and how the cache may answer it.
NOTED: Final = frozenset(
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

# Scheme, host, path and query of a URL, as they were sent.
URL = tuple[str, bytes, bytes, bytes]


def url_key(url: URL) -> str:
    """Return the key of a URL."""
    scheme, host, path, query = url
    # No field and no URL holds a line break, so no host can run into a path, and no path into a variant.
    return f"GET {scheme}://" + (b"%b\n%b?%b" % (host.lower(), path, query)).decode("latin-1")


def path_of(scope: Scope) -> bytes:
    return scope.get("raw_path") or quote(scope["path"], errors="surrogatepass").encode()


def plain_url(scope: Scope) -> tuple[URL | None, bytes | None]:
    """Return the URL of a plain request, and its `If-None-Match`; None for each that there is not.

    A plain request has no other field that decides how the cache answers.
    """
    host = condition = None
    for name, value in scope["headers"]:
        if name in NOTED:
            if name == b"host" and host is None:
                host = value
            elif name == b"if-none-match" and condition is None:
                condition = value
            else:
                return None, None
    scheme, query = scope.get("scheme", "http"), scope.get("query_string", b"")
    return (scheme, host or b"", scope.get("raw_path") or path_of(scope), query), condition


def url_tag(path: str, query: str) -> str:
    """Return the tag that every stored response to a URL carries, whatever its host, scheme and variant."""
    # A server may hand over what is no text; a tag is.
    path = path.encode("utf-8", "replace").decode()
    # A rule may make the order of parameters irrelevant, so the tag disregards it.
    query = "&".join(sorted(query.split("&")))
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

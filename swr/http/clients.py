"""Fields that tell clients how long they may keep a response, if its app does not say. Pure.

Without these fields a browser keeps a response as long as it likes, whatever swr invalidates. A rule or an endpoint's
decorator sets the time. swr adds the fields when it sends a response, and never stores them.
"""

from collections.abc import Collection, Iterator
from typing import Final, NamedTuple, Protocol

import xxhash

from swr.entry import State
from swr.http.fields import Headers, etag_of, values_of
from swr.http.request_fields import EXACTLY

# Fields that may differ between runs of the app although the response is the same. Entity tags do not depend on them.
_OF_THE_RUN: Final = frozenset(
    {
        b"cache-control",
        b"cache-status",
        b"cdn-cache-control",
        b"content-length",
        b"date",
        b"expires",
        b"server",
        b"server-timing",
        b"swr-cache-control",
        b"traceparent",
        b"x-correlation-id",
        b"x-process-time",
        b"x-request-id",
        b"x-response-time",
        b"x-runtime",
    }
)
# The fields by which an app itself tells clients how long they may keep a response.
_SAID: Final = (b"cache-control", b"expires", b"pragma")


class Told(NamedTuple):
    """The terms for clients if the app itself gives none.

    Parameters:
        max_age: seconds during which they may reuse a fresh response without asking; 0: they ask each time.
        private: whether shared caches must not keep the response, because they do not see what selects it.
    """

    max_age: float
    private: bool = False


class Whole(Protocol):
    """A stored response, as far as this module reads it."""

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    complete: int | None
    validate: bool
    names: tuple[str, ...]


def own_etag(stored: Whole) -> bytes | None:
    """Return a weak entity tag of a stored response; None: the app gave one, or only a part of the body is stored."""
    if stored.complete is not None or etag_of(stored.headers) is not None:
        return None
    return tag_of(stored.status, stored.headers, stored.body)


def tag_of(status: int, headers: Headers, body: bytes) -> bytes:
    """Return a weak entity tag that depends on the response's status, on its body, and on the fields that matter."""
    fields = sorted((name.lower(), value) for name, value in headers if name.lower() not in _OF_THE_RUN)
    digest = xxhash.xxh3_128(b"%d\n%b\n\n" % (status, b"\n".join(b"%b: %b" % field for field in fields)))
    digest.update(body)
    return b'W/"%b"' % digest.hexdigest().encode()


def with_told(stored: Whole, told: Told, state: State, age: int, own_tag: bytes | None) -> Headers:
    """Return the fields of a stored response, with the added fields for clients.

    Parameters:
        age: the value of `Age`, in seconds; `max-age` counts from the same moment.
        own_tag: the entity tag that swr made for the response, or None.
    """
    lasts = told.max_age if state is not State.STALE and not stored.validate else 0
    return [
        *stored.headers,
        *told_fields(stored.status, stored.headers, told._replace(max_age=lasts), age, own_tag, stored.names),
    ]


def _fields_of(names: Collection[str]) -> Iterator[bytes]:
    """Yield those of `names` that are names of fields."""
    return (name.encode("latin-1") for name in names if not name.startswith((EXACTLY, ":")))


def told_fields(
    status: int, headers: Headers, told: Told, age: int, own_tag: bytes | None, names: Collection[str]
) -> Headers:
    """Return the fields that swr adds to a response for clients; see `with_told`.

    Parameters:
        names: the request fields that select it, lower case.
    """
    added = [] if own_tag is None else [(b"etag", own_tag)]
    if any(values_of(headers, name) for name in _SAID):
        return added
    lasts = int(told.max_age) if 200 <= status < 400 else 0
    words = b"max-age=%d" % (age + lasts) if lasts else b"no-cache"
    added.append((b"cache-control", b"private, " + words if told.private else words))
    if lasts:
        # A client that reuses a response without asking must know which request fields select it.
        said = {name.strip().lower() for value in values_of(headers, b"vary") for name in value.split(b",")}
        added += [(b"vary", name) for name in _fields_of(names) if name not in said]
    return added

"""Stored responses as a reader behind dependencies gets them."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from swr.entry import Entry, State
from swr.http.caching import control
from swr.http.clients import Told, own_etag, told_fields
from swr.http.fields import Headers, etag_of, values_of
from swr.http.statuses import REFUSALS
from swr.http.stored_response import StoredResponse, messages_of

# They answer conditions and ranges of one request.
_OF_ONE_REQUEST: Final = frozenset({206, 304, 412, 416})


def response_behind(
    entry: Entry[Any], own: Headers, asked: Mapping[bytes, bytes], max_age: float, state: State | None, age: int
) -> Response:
    """Return a stored response as a reader asks for it: whole, as a range, or that it has not been modified.

    Parameters:
        own: the fields that the reader's dependencies have set.
        asked: the request's fields, lower case.
        max_age: seconds that the client may keep a fresh response without asking.
        state: the client is told what it may do with a response in this state; None: it is told nothing.
        age: in seconds, as `Age` says it.
    """
    stored: StoredResponse = entry.value
    added = own if stored.takes_fields else []
    headers = stored.headers if state is None else _told(stored, own, max_age, state, age)
    start, content = messages_of("GET", asked, entry, headers, [])
    response = Response(content["body"], start["status"])
    response.raw_headers = [*start["headers"], *added]
    return response


def _told(stored: StoredResponse, own: Headers, max_age: float, state: State, age: int) -> Headers:
    """Return the fields with what the client is told where neither the app nor the dependencies say anything.

    Only this client may keep it: a cache between would give it to those whom the dependencies refuse.
    """
    tag = None if etag_of(own) is not None else own_etag(stored)
    lasts = Told(0 if state is State.STALE else max_age, private=True)
    return [*stored.headers, *told_fields(stored.status, [*stored.headers, *own], lasts, age, tag, stored.names)]


def without_cookies(fields: Headers) -> Headers:
    """Return fields without those that set cookies."""
    return [(name, value) for name, value in fields if name.lower() != b"set-cookie"]


def why_of_one(status: int, headers: Headers) -> str:
    """Return why an answer is for one reader alone, whatever its terms; or nothing."""
    if status in _OF_ONE_REQUEST or status in REFUSALS:
        return f"status {status}"
    for name in (b"set-cookie", b"vary"):
        if values_of(headers, name):
            return name.decode()
    directives, _ = control(headers, ())
    return next((word for word in ("private", "no-store") if word in directives), "")

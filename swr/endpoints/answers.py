"""Stored responses as clients get them after the endpoint's dependencies have run."""

from collections.abc import Mapping
from typing import Any, Final

from starlette.responses import Response

from swr.entry import Entry, State
from swr.http.caching import control
from swr.http.clients import Told, own_etag, told_fields
from swr.http.fields import Headers, etag_of, values_of
from swr.http.statuses import REFUSALS
from swr.http.stored_response import StoredResponse, messages_of

# Answers with these statuses are about the conditions and ranges of one request.
_OF_ONE_REQUEST: Final = frozenset({206, 304, 412, 416})


def response_behind(
    entry: Entry[Any], own: Headers, asked: Mapping[bytes, bytes], max_age: float, state: State | None, age: int
) -> Response:
    """Return a stored response for a request: whole, as a range, or as a 304.

    Parameters:
        own: the fields that the request's dependencies have set.
        asked: the request's fields, lower case.
        max_age: how long the client may keep a fresh response without asking, in seconds.
        state: the state of the response, for which swr adds caching fields; None: swr adds none.
        age: the value of `Age`, in seconds.
    """
    stored: StoredResponse = entry.value
    added = own if stored.takes_fields else []
    headers = stored.headers if state is None else _told(stored, own, max_age, state, age)
    start, content = messages_of("GET", asked, entry, headers, [])
    response = Response(content["body"], start["status"])
    response.raw_headers = [*start["headers"], *added]
    return response


def _told(stored: StoredResponse, own: Headers, max_age: float, state: State, age: int) -> Headers:
    """Return the fields, with caching fields added if neither the app nor the dependencies have set any.

    Only the client itself may keep the response: another cache would give it to clients that the dependencies refuse.
    """
    tag = None if etag_of(own) is not None else own_etag(stored)
    lasts = Told(0 if state is State.STALE else max_age, private=True)
    return [*stored.headers, *told_fields(stored.status, [*stored.headers, *own], lasts, age, tag, stored.names)]


def without_cookies(fields: Headers) -> Headers:
    """Return the fields without `Set-Cookie`."""
    return [(name, value) for name, value in fields if name.lower() != b"set-cookie"]


def why_of_one(status: int, headers: Headers) -> str:
    """Return why an answer is for one client alone, regardless of the endpoint's terms; empty: it is not."""
    if status in _OF_ONE_REQUEST or status in REFUSALS:
        return f"status {status}"
    for name in (b"set-cookie", b"vary"):
        if values_of(headers, name):
            return name.decode()
    directives, _ = control(headers, ())
    return next((word for word in ("private", "no-store") if word in directives), "")

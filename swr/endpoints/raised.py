"""Storing an `HTTPException` that an endpoint raises, such as a 404, and raising it again for other requests."""

import json
from typing import Any, Final

from starlette.exceptions import HTTPException

from swr.http.caching import Verdict
from swr.http.fields import Headers, values_of
from swr.http.stored_response import Raised, StoredResponse, as_stored

_KNOWS: Final = {"status_code", "detail", "headers"}


def copied(error: HTTPException) -> HTTPException:
    """Return a copy of an exception without its traceback."""
    copy = error.__class__.__new__(error.__class__, *error.args)
    copy.__dict__.update(error.__dict__)
    copy.headers = None if error.headers is None else dict(error.headers)
    return copy


def headers_of(error: HTTPException) -> Headers | None:
    """Return the response fields of an exception; None: no server could send them."""
    try:
        return [(name.encode("latin-1"), value.encode("latin-1")) for name, value in (error.headers or {}).items()]
    except (AttributeError, UnicodeEncodeError):
        return None


def stored_exception(error: HTTPException, headers: Headers, verdict: Verdict) -> StoredResponse | None:
    """Return an exception in its stored form; None: swr could not restore it exactly.

    Only the classes of Starlette and FastAPI can be restored, with a detail that JSON can represent.

    Parameters:
        headers: see `headers_of`.
        verdict: the verdict on a response with the exception's status and fields.
    """
    kind = _kind_of(type(error))
    if not kind or error.__dict__.keys() != _KNOWS or values_of(headers, b"content-length"):
        return None
    try:
        text = json.dumps(error.detail, allow_nan=False)
    except (TypeError, ValueError, RecursionError):
        return None
    # JSON changes tuples, keys that are not strings, and members of an Enum.
    if repr(json.loads(text)) != repr(error.detail):
        return None
    stored = as_stored(error.status_code, headers, text.encode(), verdict)
    stored.raised = kind
    return stored


def exception_of(stored: StoredResponse) -> HTTPException:
    """Return the exception that `stored_exception` has stored."""
    headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in stored.headers}
    kind: Any = HTTPException
    if stored.raised == "fastapi":
        from fastapi import HTTPException as kind
    error: HTTPException = kind(stored.status, json.loads(stored.body), headers)
    return error


def _kind_of(kind: type[HTTPException]) -> Raised:
    if kind is HTTPException:
        return "starlette"
    return "fastapi" if (kind.__module__, kind.__qualname__) == ("fastapi.exceptions", "HTTPException") else ""

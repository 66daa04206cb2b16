"""The caching fields that swr adds for clients if a response has none of its own."""

from starlette.types import Message

from swr.http.caching import Verdict, stored_headers
from swr.http.clients import Told, tag_of, told_fields
from swr.http.conditional import headers_of_304, not_modified
from swr.http.fields import content_length, etag_of
from swr.http.request_fields import FIELD_NAMES
from swr.http.stored_response import StoredResponse
from swr.middleware.request import Request
from swr.middleware.rules import Rule


def told_of(stored: StoredResponse, rule: Rule | None, *, has_key: bool) -> Told | None:
    """Return what swr tells clients about a stored response; None: neither a rule nor a decorator says anything.

    Parameters:
        rule: the rule that applies to its URL.
        has_key: whether a `key=` adds to what selects it.
    """
    told = None if rule is None else rule.told
    if stored.client_max_age is not None:
        told = Told(stored.client_max_age, told is not None and told.private)
    if told is None:
        return None
    return told._replace(private=told.private or has_key or stored.per_credential or FIELD_NAMES in stored.names)


def told_to(request: Request, stored: StoredResponse) -> Told | None:
    """Return what swr tells the client of a request about a stored response; see `told_of`."""
    # Nothing for POST, because another cache on the way would use the response for GET.
    return told_of(stored, request.find_rule(), has_key=request.has_key) if request.takes_conditions else None


def beginning(request: Request, start: Message, following: Message, verdict: Verdict, now: float) -> Message:
    """Return the beginning of a response that swr will store, as the client gets it: with more fields, or as a 304.

    Parameters:
        following: the next message. If it has the whole body, swr can add an entity tag.
    """
    told = _told_first(request, verdict)
    if told is not None:
        status, headers = start["status"], start["headers"]
        is_last = following["type"] == "http.response.body" and not following.get("more_body", False)
        body = bytes(following.get("body", b"")) if is_last else b""
        is_whole = is_last and content_length(headers) in (None, len(body))
        tag = None
        if is_whole and status != 206 and etag_of(headers) is None:
            tag = tag_of(status, stored_headers(headers, verdict.hidden), body)
        added = told_fields(status, headers, told, verdict.initial_age, tag, verdict.vary)
        start = {**start, "headers": [*headers, *added]}
    is_whole = start["status"] == 200 and b"range" not in request.fields and request.takes_conditions
    is_known = is_whole and not_modified(request.fields, start["headers"], now)
    return {**start, "status": 304, "headers": headers_of_304(start["headers"])} if is_known else start


def _told_first(request: Request, verdict: Verdict) -> Told | None:
    rule = request.find_rule()
    told = None if rule is None else rule.told
    if not request.takes_conditions:
        return None
    if verdict.client_max_age is not None:
        told = Told(verdict.client_max_age, told is not None and told.private)
    if told is None:
        return None
    max_age = 0 if verdict.validate else told.max_age
    return Told(max_age, told.private or request.has_key or verdict.per_credential or FIELD_NAMES in verdict.vary)

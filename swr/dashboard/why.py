"""Explains why a response was not cached: a sentence and a link to the documentation for details of `Cache-Status`."""

import re
from typing import Final

from swr.dashboard.pages import address_of
from swr.dashboard.parts import Why

# The beginning of a detail, its meaning, and the place in the documentation that says what to do. The first match
# counts.
_REASONS: Final = (
    (
        "no freshness",
        "Neither the response nor a rule says how long it may be kept.",
        "http#how-long-a-response-is-fresh",
    ),
    ("no-store", "The response or the request forbids storing it (no-store).", "http#how-long-a-response-is-fresh"),
    ("private", "The response is for one client (private).", "login#what-may-be-shared"),
    ("max-age=0", "The response is stale at once, and may not be served stale.", "http#how-long-a-response-is-fresh"),
    ("cookie", "The request has cookies, which swr treats as private.", "http#who-gets-whose-answer"),
    ("set-cookie", "The response sets a cookie.", "http#what-is-never-shared"),
    ("authorization", "The request has credentials, and the response is not for everybody.", "login"),
    ("session", "The app used the session, or knows who has logged in.", "http#who-gets-whose-answer"),
    ("field names", "The app checks which fields the request has.", "http#what-the-app-looks-at"),
    ("all fields", "The app takes all fields of the request before it answers.", "http#what-the-app-looks-at"),
    ("server", "The app looks at the address of the server that the client reached.", "http#what-the-app-looks-at"),
    ("fields of a dependency", "A dependency changed the response's fields.", "login#what-may-be-shared"),
    ("field", "The request has a field that swr does not know.", "http#who-gets-whose-answer"),
    ("parameter", "A rule leaves out a query parameter that the route reads.", "http#who-gets-whose-answer"),
    ("vary *", "The response depends on more than the request says (Vary: *).", "http#who-gets-whose-answer"),
    ("vary too long", "The response varies by too many fields.", "http#limits"),
    ("header too long", "The header is longer than swr reads.", "http#limits"),
    ("too large", "The response is longer than max_body_bytes.", "http#limits"),
    ("too slow", "The response took longer than max_body_time.", "http#limits"),
    ("precondition", "The request has a condition that only the app can answer.", "http#what-clients-and-cdns-do"),
    ("content too large", "The content of the request is longer than max_content_bytes.", "http#limits"),
    (
        "content incomplete",
        "The content of the request ended early, or took too long to come.",
        "http#limits",
    ),
    ("content", "The request has a body.", "http#what-is-never-shared"),
    ("state", "Middleware around swr has set what may select the answer.", "http#what-middleware-around-swr-has-set"),
    ("scope", "Middleware around swr has set what may select the answer.", "http#what-middleware-around-swr-has-set"),
    (
        "context variable",
        "Middleware around swr, or the app, has set a context variable that may select the response.",
        "http#what-middleware-around-swr-has-set",
    ),
    ("address", "The app reads the client's address before it answers.", "http#who-gets-whose-answer"),
    (
        "path",
        "The path is spelled ambiguously, or one of its parameters is of a class that swr cannot put into a key.",
        "http#what-is-never-shared",
    ),
    ("off", "The cache is switched off, or another event loop of the process has it.", "configuration"),
    ("route not seen", "swr could not see which route answered.", "login#what-swr-cannot-see"),
    ("not seen", "The server sent a file itself, and swr did not see it.", "http#response-headers"),
    ("no-cache", "swr would have to confirm the response, which has no validator.", "http#response-headers"),
    (
        "response class",
        "The response is of a class of the app's own, or has a background task.",
        "login#what-may-be-shared",
    ),
    ("status of a dependency", "A dependency has set the status of the response.", "login#what-may-be-shared"),
    ("partial", "The response is a part of another.", "http#limits"),
    ("trailers", "The response has trailers.", "http#limits"),
    ("status", "Responses with this status are not stored.", "http#how-long-a-response-is-fresh"),
    ("only-if-cached", "The request takes only a stored response.", "http#response-headers"),
    ("timeout", "The app took longer than hard_timeout.", "http#an-app-that-hangs"),
    (
        "soft timeout",
        "The load took longer than this reader waits; it got the stored response.",
        "http#an-app-that-hangs",
    ),
    ("client left", "The client left before its answer came.", "http#an-app-that-hangs"),
    ("guard", "A dependency of the route decides who may see the response.", "login#what-may-be-shared"),
    ("argument", "An argument of the endpoint may depend on who asks.", "login#what-may-be-shared"),
    ("key", "Something that selects the response cannot be part of a key.", "login#shared-and-key"),
    ("route class", "The route has a class of the app's own, whose behaviour swr does not know.", "http#endpoints"),
    ("route", "Another decorator stands between the route and @cache.response.", "http#endpoints"),
    ("malformed field", "A field of the response is malformed.", "http#response-headers"),
    (
        "must-understand",
        "The response asks for caches that understand its status (must-understand).",
        "http#how-long-a-response-is-fresh",
    ),
    ("event-stream", "The response is a stream of events.", "http#what-is-never-shared"),
    ("decorator", "swr cannot see what a decorator below @cache.response reads.", "login#what-may-be-shared"),
    ("exception handler", "The endpoint raised an exception that the app answers.", "login#how-it-loads"),
    (
        "another app",
        "Another app or endpoint of the process has the same name, path and title.",
        "login#what-may-be-shared",
    ),
    (
        "response of a dependency",
        "A dependency takes the Response, but the endpoint takes only its Request.",
        "login#what-may-be-shared",
    ),
    ("too many tags", "The response brings more tags than swr takes.", "http#limits"),
    ("tags", "The function of the response's tags has failed.", "http#tags-from-the-response"),
    ("method override", "A field of the request names another method.", "http#response-headers"),
    ("method", "The method may change something, so its answer is not stored.", "http#what-a-write-invalidates"),
)
_UNKNOWN: Final = ("The answer did not come from the cache.", "http#response-headers")
# Details that say where an answer comes from. They are not reasons why it was not stored.
_NO_REASON: Final = frozenset({"after dependencies"})
_LONGEST: Final = 100
# Match parts of swr's member of `Cache-Status` (RFC 9211).
_FORWARDED: Final = re.compile(r"fwd=([a-z-]+)")
_DETAIL: Final = re.compile(r'detail="([^"]*)"')


def explained(code: str) -> Why:
    """Return the explanation of a detail of `Cache-Status`."""
    code = code.encode("utf-8", "replace").decode()[:_LONGEST]
    for beginning, text, link in _REASONS:
        if code == beginning or code.startswith((f"{beginning} ", f"{beginning},")):
            return {"code": code, "text": text, "link": address_of(link)}
    text, link = _UNKNOWN
    return {"code": code, "text": text, "link": address_of(link)}


def why_of(cache_status: str) -> Why | None:
    """Return why an answer was not cached, from swr's member of `Cache-Status`, or None if that names no reason."""
    detail = _DETAIL.search(cache_status)
    if detail is not None:
        reasons = [reason for reason in detail[1].split(", ") if reason and reason not in _NO_REASON]
        if reasons:
            return explained(", ".join(reasons))
    forwarded = _FORWARDED.search(cache_status)
    if forwarded is not None and forwarded[1] == "method":
        return explained("method")
    return None

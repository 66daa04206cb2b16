"""Why something was not cached: the detail of `Cache-Status` as a sentence, with the paragraph that mends it."""

import re
from typing import Final

from swr.dashboard.pages import address_of
from swr.dashboard.parts import Why

# The beginning of a detail, what it means, and where the documentation says what to do. The first that fits counts.
_REASONS: Final = (
    (
        "no freshness",
        "The response says nothing of how long it may be kept, and no rule does.",
        "http#how-long-a-response-is-fresh",
    ),
    ("no-store", "The response or the request forbids storing it (no-store).", "http#how-long-a-response-is-fresh"),
    ("private", "The response is for one client (private).", "login#what-may-be-shared"),
    ("max-age=0", "The response is stale at once, and may not be served stale.", "http#how-long-a-response-is-fresh"),
    ("cookie", "The request has cookies, which swr takes for private.", "http#who-gets-whose-answer"),
    ("set-cookie", "The response sets a cookie.", "http#what-is-never-shared"),
    ("authorization", "The request has credentials, and the response is not for everybody.", "login"),
    ("session", "The app used the session, or knows who has logged in.", "http#who-gets-whose-answer"),
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
    ("state", "Middleware around swr has set what the app answers by.", "http#what-middleware-around-swr-has-set"),
    ("scope", "Middleware around swr has set what the app answers by.", "http#what-middleware-around-swr-has-set"),
    (
        "context variable",
        "Middleware around swr or the app has set what may select the response.",
        "http#what-middleware-around-swr-has-set",
    ),
    ("address", "Middleware in the app keeps something of the client's address.", "http#who-gets-whose-answer"),
    (
        "path",
        "The path is spelled so that a rule which keeps responses apart does not apply.",
        "http#what-is-never-shared",
    ),
    ("off", "The cache is switched off, or another event loop of the process has it.", "configuration"),
    ("route not seen", "swr could not see which route answered.", "login#what-swr-cannot-see"),
    ("partial", "The response is a part of another.", "http#limits"),
    ("trailers", "The response has trailers.", "http#limits"),
    ("status", "Responses with this status are not stored.", "http#how-long-a-response-is-fresh"),
    ("only-if-cached", "The request asked for what is stored alone.", "http#no-client-steers-the-cache"),
    ("timeout", "The app took longer than hard_timeout.", "http#an-app-that-hangs"),
    (
        "soft timeout",
        "The load took longer than this reader waits; it got the stored response.",
        "http#an-app-that-hangs",
    ),
    ("client left", "The client left before its answer came.", "http#an-app-that-hangs"),
    ("guard", "A dependency of the route decides who may see the response.", "login#what-may-be-shared"),
    ("argument", "An argument of the endpoint says who asks.", "login#what-may-be-shared"),
    ("key", "Something that selects the response cannot be part of a key.", "login#shared-and-key"),
    ("route class", "The route is of a class of the app's own, which swr does not see through.", "http#endpoints"),
    ("route", "The cache decorator is above the route, which then never calls it.", "http#endpoints"),
    ("malformed field", "A field of the response is malformed.", "http#what-is-never-shared"),
    (
        "must-understand",
        "The response asks for caches that understand its status (must-understand).",
        "http#how-long-a-response-is-fresh",
    ),
    ("event-stream", "The response is a stream of events.", "http#what-is-never-shared"),
    ("decorator", "A decorator is above the route, so that swr does not see the endpoint.", "http#endpoints"),
    ("exception handler", "The endpoint raised an exception that the app answers.", "login#how-it-loads"),
    ("another app", "Another app answers the route.", "login#what-swr-cannot-see"),
    ("response of a dependency", "A dependency answers instead of the endpoint.", "login#what-swr-cannot-see"),
    ("too many tags", "The response brings more tags than swr takes.", "http#limits"),
    ("tags", "The function of the response's tags has failed.", "http#tags-from-the-response"),
    ("method", "The method may change something, so its answer is not stored.", "http#what-a-write-invalidates"),
)
_UNKNOWN: Final = ("The answer did not come from the cache.", "http#response-headers")
# Details that say where an answer comes from, and not why it was not stored.
_NO_REASON: Final = frozenset({"after dependencies"})
_LONGEST: Final = 100
# The member of swr in `Cache-Status` (RFC 9211): what it did, and the detail.
_FORWARDED: Final = re.compile(r"fwd=([a-z-]+)")
_DETAIL: Final = re.compile(r'detail="([^"]*)"')


def explained(code: str) -> Why:
    """Return what a detail of `Cache-Status` means."""
    code = code.encode("utf-8", "replace").decode()[:_LONGEST]
    for beginning, text, link in _REASONS:
        if code == beginning or code.startswith((f"{beginning} ", f"{beginning},")):
            return {"code": code, "text": text, "link": address_of(link)}
    text, link = _UNKNOWN
    return {"code": code, "text": text, "link": address_of(link)}


def why_of(cache_status: str) -> Why | None:
    """Return why an answer was not cached, from swr's member of `Cache-Status`; None: it was, or may be now."""
    detail = _DETAIL.search(cache_status)
    if detail is not None:
        reasons = [reason for reason in detail[1].split(", ") if reason and reason not in _NO_REASON]
        if reasons:
            return explained(", ".join(reasons))
    forwarded = _FORWARDED.search(cache_status)
    if forwarded is not None and forwarded[1] == "method":
        return explained("method")
    return None

"""The decisions about a request: how the middleware handles it, and why. Pure: no I/O, no clock.

`classify` decides before the lookup, from the request alone. The first row that matches applies:

| the request                                                 | action         | reason           |
| ----------------------------------------------------------- | -------------- | ---------------- |
| its method may change something, and no rule says that the request does not | `INVALIDATE` | `UNSAFE_METHOD` |
| its method is safe, but none of GET, HEAD and QUERY         | `PASS_THROUGH` | `SAFE_METHOD`    |
| the cache is off                                            | `BYPASS`       | `OFF`            |
| its header is longer than swr reads                         | `BYPASS`       | `TOO_LONG`       |
| its content is part of its key, but longer than swr reads   | `BYPASS`       | `LONG_CONTENT`   |
| its content is part of its key, but did not come whole in time | `BYPASS`    | `PART_OF_CONTENT` |
| has a field that names another method                       | `BYPASS`       | `OVERRIDE`       |
| has cookies, cookies are private, no rule puts them in the key | `BYPASS`    | `COOKIE`         |
| has `If-Match` or `If-Unmodified-Since`                     | `BYPASS`       | `PRECONDITION`   |
| has content that is not part of its key                     | `BYPASS`       | `CONTENT`        |
| no rule applies, but one that separates responses may be meant | `BYPASS`    | `PATH`           |
| has `only-if-cached`, and swr honours it                    | `LOOK_UP_ONLY` | `ONLY_IF_CACHED` |
| anything else                                               | `LOOK_UP`      | `CACHEABLE`      |

`classify_miss` decides after a lookup whose entry may not answer the request (`swr.core.decision.decide` says which
entry may). Again the first row that matches applies:

| the lookup                                                  | action            | reason           |
| ----------------------------------------------------------- | ----------------- | ---------------- |
| local: nothing stored, and the URL is known as uncacheable  | `BYPASS`          | `UNCACHEABLE`    |
| local: no response by URL is for it, but dependencies may admit it | `BYPASS`   | `GUARDED`        |
| local: anything else                                        | `ASK_STORE`       | `NOT_LOCAL`      |
| store: the request has `only-if-cached`                     | `GATEWAY_TIMEOUT` | `ONLY_IF_CACHED` |
| store: the request has `no-store`, and can join no load     | `BYPASS`          | `NO_STORE`       |
| store: the method is HEAD                                   | `FORWARD_HEAD`    | `HEAD_MISS`      |
| store: no response by URL is for it, but dependencies may admit it | `BYPASS`   | `GUARDED`        |
| store: the URL varied by other fields at every lookup       | `BYPASS`          | `UNSETTLED`      |
| store: a field is unknown, and a response is stored         | `BYPASS`          | `UNKNOWN_FIELD`  |
| store: the request has credentials, the response is not shared | `BYPASS`       | `AUTHORIZATION`  |
| store: each request needs a confirmation, and one is under way | `BYPASS`       | `CONFIRMING`     |
| store: a field is unknown, and nothing is stored            | `LOAD_APART`      | `UNKNOWN_FIELD`  |
| store: anything else                                        | `LOAD`            | `MISS`           |
"""

import enum
from typing import Final, NamedTuple

from swr.http.caching import SAFE


class Action(enum.Enum):
    """The way in which the middleware handles a request."""

    # The app answers, and swr invalidates what the request may have changed.
    INVALIDATE = "invalidate"
    # The app answers, and swr leaves the answer alone.
    PASS_THROUGH = "pass through"
    # The app answers this client only, and `Cache-Status` says why.
    BYPASS = "bypass"
    # Answer from the cache; on a miss `classify_miss` decides.
    LOOK_UP = "look up"
    LOOK_UP_ONLY = "look up only"
    # The actions after a miss.
    ASK_STORE = "ask the store"
    GATEWAY_TIMEOUT = "gateway timeout"
    # The app answers HEAD, and its answer confirms or invalidates what GET has stored.
    FORWARD_HEAD = "forward HEAD"
    # The app answers, and only requests with the same fields wait for this answer.
    LOAD_APART = "load apart"
    LOAD = "load"


class Reason(enum.Enum):
    """A reason for a decision about a request; its value is the text in the log."""

    UNSAFE_METHOD = "the method may change something"
    SAFE_METHOD = "swr does not cache the method"
    OFF = "off"
    TOO_LONG = "header too long"
    LONG_CONTENT = "content too large"
    PART_OF_CONTENT = "content incomplete"
    OVERRIDE = "method override"
    COOKIE = "cookie"
    PRECONDITION = "precondition"
    CONTENT = "content"
    PATH = "path"
    NO_STORE = "no-store"
    ONLY_IF_CACHED = "only-if-cached"
    CACHEABLE = "cacheable"
    UNCACHEABLE = "uncacheable"
    GUARDED = "after dependencies"
    NOT_LOCAL = "not in the local cache"
    HEAD_MISS = "HEAD"
    UNSETTLED = "the URL varies by other fields each time"
    UNKNOWN_FIELD = "unknown field"
    AUTHORIZATION = "authorization"
    CONFIRMING = "another request is being confirmed"
    MISS = "miss"


# With these reasons, the middleware goes past the cache. The endpoint's decorator may still answer from the cache, once
# dependencies have admitted the request.
ADMITTING: Final = frozenset(
    {Reason.COOKIE, Reason.UNCACHEABLE, Reason.GUARDED, Reason.UNKNOWN_FIELD, Reason.AUTHORIZATION}
)


class Handling(NamedTuple):
    """The answer of `classify` and `classify_miss`.

    Parameters:
        action: how to handle the request.
        reason: why.
        cache_status: the member of `Cache-Status` (RFC 9211) for it; empty if that depends on the lookup.
    """

    action: Action
    reason: Reason
    cache_status: bytes = b""


class RequestFacts(NamedTuple):
    """Everything about a request that decides how swr handles it.

    Parameters:
        method: in capitals.
        is_too_long: whether its header is longer than swr reads.
        has_cookie: whether it has cookies, and the operator treats cookies as private.
        keys_cookies: whether the rule that applies makes the relevant cookies part of the key.
        has_precondition: whether it has a condition on the state of the resource itself.
        has_content: whether a body comes with it that is not part of its key.
        is_apart: whether no rule applies to its path, but one that separates responses may be meant for it.
        no_store, only_if_cached: whether it has the directive, and swr honours it.
        is_off: whether the cache is off.
        is_safe: whether a rule says that it changes nothing, whatever its method; then its content is part of its key.
        has_override: whether a field names another method, which an app may obey.
        has_long_content, has_part_of_content: whether its content would be part of its key, but is too long, or did
            not come whole in time.
    """

    method: str
    is_too_long: bool = False
    has_cookie: bool = False
    keys_cookies: bool = False
    has_precondition: bool = False
    has_content: bool = False
    is_apart: bool = False
    no_store: bool = False
    only_if_cached: bool = False
    is_off: bool = False
    is_safe: bool = False
    has_override: bool = False
    has_long_content: bool = False
    has_part_of_content: bool = False


class Miss(NamedTuple):
    """A lookup whose entry may not answer the request.

    Parameters:
        asked_store: whether swr has asked the store, and not just the local cache.
        is_uncacheable: whether nothing is stored, and recent responses could not be stored.
        is_guarded: whether no response that is stored by URL is for this request, and the cache has lately answered for
            the endpoint after its dependencies.
        is_unsettled: whether each load so far showed that the URL varies by other fields than before.
        has_unknown_field: whether the request has a field that swr does not know, and no response says what it means.
        has_response: whether a response is stored.
        is_unshared: whether the request has credentials, and the stored response is not for such requests.
        is_confirming: whether the stored response needs a confirmation for each request, and one is under way.
        is_joinable: whether a load of another request is under way that may answer this one.
    """

    asked_store: bool
    is_uncacheable: bool = False
    is_guarded: bool = False
    is_unsettled: bool = False
    has_unknown_field: bool = False
    has_response: bool = False
    is_unshared: bool = False
    is_confirming: bool = False
    is_joinable: bool = False


_INVALIDATE: Final = Handling(Action.INVALIDATE, Reason.UNSAFE_METHOD, b"swr; fwd=method")
_PASS_THROUGH: Final = Handling(Action.PASS_THROUGH, Reason.SAFE_METHOD)
OFF: Final = Handling(Action.BYPASS, Reason.OFF, b'swr; fwd=bypass; detail="off"')
_TOO_LONG: Final = Handling(Action.BYPASS, Reason.TOO_LONG, b'swr; fwd=bypass; detail="header too long"')
_LONG_CONTENT: Final = Handling(Action.BYPASS, Reason.LONG_CONTENT, b'swr; fwd=bypass; detail="content too large"')
_PART_OF_CONTENT: Final = Handling(
    Action.BYPASS, Reason.PART_OF_CONTENT, b'swr; fwd=bypass; detail="content incomplete"'
)
_OVERRIDE: Final = Handling(Action.BYPASS, Reason.OVERRIDE, b'swr; fwd=bypass; detail="method override"')
_COOKIE: Final = Handling(Action.BYPASS, Reason.COOKIE, b'swr; fwd=bypass; detail="cookie"')
_PRECONDITION: Final = Handling(Action.BYPASS, Reason.PRECONDITION, b'swr; fwd=bypass; detail="precondition"')
_PATH: Final = Handling(Action.BYPASS, Reason.PATH, b'swr; fwd=bypass; detail="path"')
# The middleware also uses this for content that comes although no field announced it.
CONTENT: Final = Handling(Action.BYPASS, Reason.CONTENT, b'swr; fwd=bypass; detail="content"')
_NO_STORE: Final = Handling(Action.BYPASS, Reason.NO_STORE, b'swr; fwd=request; detail="no-store"')
_LOOK_UP_ONLY: Final = Handling(Action.LOOK_UP_ONLY, Reason.ONLY_IF_CACHED)
_LOOK_UP: Final = Handling(Action.LOOK_UP, Reason.CACHEABLE)
_UNCACHEABLE: Final = Handling(Action.BYPASS, Reason.UNCACHEABLE)
_GUARDED: Final = Handling(Action.BYPASS, Reason.GUARDED)
_ASK_STORE: Final = Handling(Action.ASK_STORE, Reason.NOT_LOCAL)
_GATEWAY_TIMEOUT: Final = Handling(
    Action.GATEWAY_TIMEOUT, Reason.ONLY_IF_CACHED, b'swr; fwd=request; detail="only-if-cached"'
)
_FORWARD_HEAD: Final = Handling(Action.FORWARD_HEAD, Reason.HEAD_MISS)
_UNSETTLED: Final = Handling(Action.BYPASS, Reason.UNSETTLED, b"swr; fwd=vary-miss")
_UNKNOWN_FIELD: Final = Handling(Action.BYPASS, Reason.UNKNOWN_FIELD)
_LOAD_APART: Final = Handling(Action.LOAD_APART, Reason.UNKNOWN_FIELD)
_AUTHORIZATION: Final = Handling(Action.BYPASS, Reason.AUTHORIZATION, b'swr; fwd=bypass; detail="authorization"')
_CONFIRMING: Final = Handling(Action.BYPASS, Reason.CONFIRMING)
_LOAD: Final = Handling(Action.LOAD, Reason.MISS)


# The safe methods that swr caches.
_CACHED: Final = frozenset({"GET", "HEAD", "QUERY"})


def classify(request: RequestFacts) -> Handling:
    """Return how to handle a request, and why; see the first table of this module."""
    if not request.is_safe and request.method not in _CACHED:
        return _PASS_THROUGH if request.method in SAFE else _INVALIDATE
    if request.is_off:
        return OFF
    if request.is_too_long:
        return _TOO_LONG
    if request.has_long_content or request.has_part_of_content:
        return _LONG_CONTENT if request.has_long_content else _PART_OF_CONTENT
    if request.has_override:
        # The app may answer as if to HEAD or DELETE, even if the answer looks cacheable.
        return _OVERRIDE
    if request.has_cookie and not request.keys_cookies:
        return _COOKIE
    if request.has_precondition:
        # RFC 9110 13.1.1: only the origin knows the state of the resource itself.
        return _PRECONDITION
    if request.has_content:
        # The key of a GET does not include its content.
        return CONTENT
    if request.is_apart:
        return _PATH
    if request.only_if_cached:
        return _LOOK_UP_ONLY
    return _LOOK_UP


def classify_miss(request: RequestFacts, miss: Miss) -> Handling:
    """Return what to do after a lookup whose entry may not answer, and why; see the second table of this module."""
    if not miss.asked_store:
        if miss.is_uncacheable:
            return _UNCACHEABLE
        return _GUARDED if miss.is_guarded else _ASK_STORE
    if request.only_if_cached:
        return _GATEWAY_TIMEOUT
    if request.no_store and not miss.is_joinable:
        # The app's answer must not be stored. Other readers would wait for a load in vain, because it stores nothing.
        return _NO_STORE
    if request.method == "HEAD":
        return _FORWARD_HEAD
    if miss.is_guarded:
        return _GUARDED
    if miss.is_unsettled:
        return _UNSETTLED
    if miss.has_unknown_field and miss.has_response:
        # The answer is not for requests without this field.
        return _UNKNOWN_FIELD
    if miss.is_unshared:
        # The stored response is not for this request, and the answer to this request is not for other readers.
        return _AUTHORIZATION
    if miss.is_confirming:
        # The confirmation for another request does not count for this one, so waiting for it gains nothing.
        return _CONFIRMING
    return _LOAD_APART if miss.has_unknown_field else _LOAD

"""The rules of a shared cache: may a response be stored, for how long, and for whom? Pure: no I/O, no clock.

RFC 9111 with RFC 5861 (stale), RFC 9213 (targeted fields) and RFC 9211 (`Cache-Status`). `swr.http.conditional`
interprets a request's conditions and ranges, and `swr.http.fields` parses fields.
"""

import functools
import math
from collections.abc import Callable, Collection
from typing import Final, NamedTuple

from swr.entry import State
from swr.http.content import Content
from swr.http.fields import (
    Directives,
    Headers,
    are_well_formed,
    delta_seconds,
    etag_of,
    forbid,
    forbidding_words,
    is_too_long,
    parse_directives,
    parse_targeted_directives,
    values_of,
    vary_of,
)
from swr.http.lifetimes import age_of, date_of, guessed_lifetime, lifetime_of
from swr.http.statuses import BY_RULE, ERRORS, GUESSABLE, NEVER_STORED, REFUSALS, UNDERSTOOD
from swr.http.tag_fields import MOST_TAGS, tags_in
from swr.policy import NO_LIMITS, Limits, Policy, Timeout

# Methods that change nothing (RFC 9110 9.2.1 and the registry of methods). Any other method may change something.
SAFE: Final = frozenset({"GET", "HEAD", "OPTIONS", "PRI", "PROPFIND", "QUERY", "REPORT", "SEARCH", "TRACE"})
# Fields that belong to one connection or one moment, not to the response (RFC 9111 3.1 and RFC 9110 7.6.1).
_NOT_STORED: Final = frozenset(
    {
        b"age",
        b"connection",
        b"keep-alive",
        b"proxy-authenticate",
        b"proxy-authentication-info",
        b"proxy-authorization",
        b"proxy-connection",
        b"swr-state",
        b"te",
        b"trailer",
        b"transfer-encoding",
        b"upgrade",
    }
)
# The policy if no rule applies.
_NOTHING: Final = Policy(0)
# swr keeps the parsed form of directives of at most this many bytes.
_LONGEST_KEPT: Final = 200
_NO_NAMES: Final[frozenset[bytes]] = frozenset()
# The most request fields by which a response may vary, because a lookup compares each of them.
MOST_VARY: Final = 64

# The directives of a request's Cache-Control and Pragma that swr can honour.
REQUEST_DIRECTIVES: Final = frozenset(
    {"max-age", "max-stale", "min-fresh", "no-cache", "no-store", "only-if-cached", "pragma"}
)
# The directives that swr honours by default. None of them forces a load while a stored response may answer.
HONOURED: Final = frozenset({"max-stale", "no-store", "only-if-cached"})


# A function that returns the tags of a response with this content; None: the response must not be stored.
TagsOfContent = Callable[[Content], tuple[str, ...] | None]


class SharingRules(NamedTuple):
    """The operator's choices about sharing responses, where the RFCs leave a choice.

    Parameters:
        cookies_private: whether `Set-Cookie` prevents storing, and `Cookie` prevents answering from the cache.
        targeted: fields that take precedence over `Cache-Control`, in order of preference, lower case (RFC 9213).
        heuristic: the share of the time since `Last-Modified` that swr uses as the lifetime if nothing else gives one
            (RFC 9111 4.2.2); 0: none.
        unreachable_for: seconds past its lifetime during which a response is a fallback if the origin gives no answer,
            unless a directive forbids it (RFC 9111 4.2.4).
        tag_fields: fields that name the tags of a response, lower case.
        strips_tags: whether swr removes these fields before it sends a response.
    """

    cookies_private: bool = True
    targeted: tuple[bytes, ...] = (b"swr-cache-control", b"cdn-cache-control")
    heuristic: float = 0.0
    unreachable_for: float = 86400.0
    tag_fields: tuple[bytes, ...] = ()
    strips_tags: bool = False


class Verdict(NamedTuple):
    """The verdict on a response: whether it may be stored.

    Parameters:
        policy: how long the response may be served and stored; None: it must not be stored.
        reason: why it must not be stored.
        shared: whether it may answer requests with credentials (RFC 9111 3.5).
        initial_age: its age in seconds when its request was sent.
        vary: the request fields that select it, lower case, sorted.
        strict: whether it must never be served stale, whatever a client accepts.
        validate: whether the origin must confirm it for each request before swr answers with it.
        stale_if_error: seconds past its lifetime during which it is a fallback for any error, not just for no answer.
        overdue: seconds by which its initial age exceeds its lifetime.
        hidden: fields that must not be stored (`private="…"`, `no-cache="…"`), lower case.
        own_terms: whether the response itself says how long it may be served, and to whom; otherwise a rule, the
            decorator or a heuristic says so.
        ignores: request fields that the response does not depend on.
        per_credential: whether each credential has a response of its own.
        client_max_age: seconds during which clients may reuse it without asking, from the endpoint's decorator; None:
            no decorator sets them.
        soft_timeout: how long a reader waits for the next load of it, from the decorator.
        unnamed: the fields of `vary` that other responses to its URL name, and this one does not.
        tags_of: returns the tags for its content, once that is complete; see `Terms`.
    """

    policy: Policy | None
    reason: str = ""
    shared: bool = False
    initial_age: int = 0
    vary: tuple[str, ...] = ()
    strict: bool = False
    validate: bool = False
    stale_if_error: float = 0.0
    overdue: int = 0
    hidden: frozenset[bytes] = frozenset()
    own_terms: bool = False
    ignores: tuple[str, ...] = ()
    per_credential: bool = False
    unnamed: tuple[str, ...] = ()
    client_max_age: float | None = None
    soft_timeout: Timeout = None
    tags_of: TagsOfContent | None = None


class Terms(NamedTuple):
    """The terms of a rule or an endpoint's decorator for a response.

    Parameters:
        policy: the tags, and the lifetimes, which count only if `timed`.
        timed: whether the terms set lifetimes; False: they set only tags.
        override: whether the terms take precedence over the response's own directives.
        vary: request fields that the response depends on, besides those that it names itself; lower case.
        ignores: request fields that the response does not depend on; lower case.
        per_credential: whether each credential has a response of its own.
        client_max_age: seconds during which clients may reuse it without asking; None: a rule sets them at sending.
        tags_of: returns further tags for the response's content, or None if the response must not be stored.
    """

    policy: Policy
    timed: bool = True
    override: bool = False
    vary: tuple[str, ...] = ()
    ignores: tuple[str, ...] = ()
    per_credential: bool = False
    client_max_age: float | None = None
    tags_of: TagsOfContent | None = None


@functools.lru_cache(256)
def _parsed(*values: bytes) -> Directives:
    return parse_directives(values)


def control(headers: Headers, targeted: tuple[bytes, ...]) -> tuple[Directives, bool]:
    """Return the directives that say how a response is stored, and whether they come from a targeted field.

    RFC 9213 2.2: the first targeted field that is well-formed takes precedence over `Cache-Control` and `Expires`.
    A malformed one does not count, except for the words in it that forbid something: its author meant these.
    """
    words: Directives = {}
    for name in targeted:
        values = values_of(headers, name)
        directives = parse_targeted_directives(values) if values else None
        if directives is not None:
            forbid(directives, words)
            return directives, True
        words |= forbidding_words(b",".join(values).decode("latin-1"))
    values = values_of(headers, b"cache-control")
    # Most responses of an app have the same directives, so `_parsed` remembers them. `forbid` changes the copy.
    directives = dict(_parsed(*values)) if sum(map(len, values)) <= _LONGEST_KEPT else parse_directives(values)
    forbid(directives, words)
    return directives, False


def judge(
    status: int,
    headers: Headers,
    terms: Terms | None,
    sharing: SharingRules,
    *,
    began: float,
    authorized: bool,
    tags: tuple[str, ...],
    declared: tuple[str, ...] = (),
) -> Verdict:
    """Return whether and how long a shared cache may store a response to GET (RFC 9111 3).

    Parameters:
        status: its status code; 206 for partial content.
        headers: its header fields.
        terms: the terms for what the response leaves open; if they override, they replace its own directives, too.
        sharing: the operator's choices.
        began: when the request was sent; wall clock, seconds.
        authorized: whether the request had credentials.
        tags: tags of the response besides those of `terms`.
        declared: request fields that the app declares to read, lower case.
    """
    if is_too_long(headers):
        return Verdict(None, "header too long")
    directives, targeted = control(headers, sharing.targeted)
    hidden = _named(directives.get("private")) | _named(directives.get("no-cache"))
    forbidden = _why_forbidden(status, headers, directives, hidden, sharing)
    if forbidden:
        return Verdict(None, forbidden)
    vary = vary_of(headers)
    if vary is None:
        return Verdict(None, "vary *")
    shared = not {"public", "s-maxage", "must-revalidate"}.isdisjoint(directives)
    per_credential = terms is not None and terms.per_credential
    if authorized and not shared and not per_credential:
        return Verdict(None, "authorization")
    if status in REFUSALS and {"public", "s-maxage"}.isdisjoint(directives):
        return Verdict(None, f"status {status}")
    if declared or (terms is not None and terms.vary):
        vary = tuple(sorted({*vary, *declared, *(terms.vary if terms is not None else ())}))
    if len(vary) > MOST_VARY:
        return Verdict(None, "vary too long")
    keys = tags_in(headers, sharing.tag_fields)
    if keys is None or len(tags) > 2 * MOST_TAGS:
        return Verdict(None, "too many tags")
    if sharing.strips_tags:
        hidden |= {*sharing.tag_fields}
    # RFC 9111 4.2.3, at the time when the request was sent. Later ages count from then.
    date = date_of(headers, began)
    age = max(age_of(headers), math.floor(began - date))
    ignores = terms.ignores if terms is not None else ()
    tags_of = terms.tags_of if terms is not None else None
    verdict = Verdict(
        None,
        "no freshness",
        shared,
        age,
        vary,
        hidden=hidden,
        ignores=ignores,
        per_credential=per_credential,
        tags_of=tags_of,
    )
    if terms is not None and terms.client_max_age is not None:
        verdict = verdict._replace(client_max_age=terms.client_max_age, soft_timeout=terms.policy.soft_timeout)
    verdict = _timed(verdict, status, headers, directives, targeted, terms, sharing, date, (*tags, *keys))
    if verdict.policy is None or verdict.own_terms or "public" in directives:
        return verdict
    # RFC 9111 3.5 trusts `must-revalidate` and `s-maxage` because of the lifetime that the origin gives with them.
    if authorized and not per_credential:
        return Verdict(None, "authorization")
    return verdict._replace(shared=False)


def _why_forbidden(
    status: int, headers: Headers, directives: Directives, hidden: frozenset[bytes], sharing: SharingRules
) -> str:
    """Return why a response must not be stored, whatever its lifetime and client; empty: it may be stored."""
    if not 200 <= status <= 999 or status == 304 or status in NEVER_STORED:
        return f"status {status}"
    if not are_well_formed(headers):
        return "malformed field"
    if "must-understand" in directives:
        if status not in UNDERSTOOD:
            return "must-understand"
    elif "no-store" in directives:
        return "no-store"
    if "private" in directives and not _named(directives["private"]):
        return "private"
    if sharing.cookies_private and b"set-cookie" not in hidden and values_of(headers, b"set-cookie"):
        return "set-cookie"
    if any(value.strip().lower().startswith(b"text/event-stream") for value in values_of(headers, b"content-type")):
        return "event-stream"
    return ""


def _timed(
    verdict: Verdict,
    status: int,
    headers: Headers,
    directives: Directives,
    targeted: bool,
    terms: Terms | None,
    sharing: SharingRules,
    date: int | float,
    tags: tuple[str, ...],
) -> Verdict:
    """Return `verdict` with the times of RFC 9111 4.2 and RFC 5861, and how long a store keeps the response."""
    validate = "no-cache" in directives and not _named(directives["no-cache"])
    explicit = 0 if validate else lifetime_of(headers, directives, targeted, date)
    ruled = terms if terms is not None and terms.timed and status in BY_RULE and not validate else None
    overrides = ruled is not None and ruled.override
    overdue = 0
    if ruled is not None and (explicit is None or overrides):
        fresh_for: float = ruled.policy.fresh_for
    else:
        lifetime = explicit
        if lifetime is None and status not in ERRORS and (status in GUESSABLE or "public" in directives):
            lifetime = guessed_lifetime(headers, date, sharing.heuristic)
        if lifetime is None or (status in ERRORS and lifetime <= verdict.initial_age):
            left_out = terms is not None and terms.timed and status not in BY_RULE
            return verdict._replace(reason=f"status {status}") if left_out else verdict
        fresh_for = max(0, lifetime - verdict.initial_age)
        # A response that went stale on the way here has also used up a part of its stale times.
        overdue = max(0, verdict.initial_age - lifetime)
    by_rule = ruled.policy if ruled is not None else _NOTHING
    stale_for = max(0.0, _seconds(directives, "stale-while-revalidate", by_rule.stale_for, overrides) - overdue)
    stale_if_error = max(0.0, _seconds(directives, "stale-if-error", by_rule.stale_if_error, overrides) - overdue)
    # RFC 9111 4.2.4: these forbid stale answers. So does s-maxage (5.2.2.10), unless the same field also allows them:
    # an author who writes both means both.
    asked = "stale-while-revalidate" in directives or "stale-if-error" in directives
    strict = validate or (
        not overrides
        and (
            not {"must-revalidate", "proxy-revalidate"}.isdisjoint(directives)
            or ("s-maxage" in directives and not asked)
        )
    )
    if strict:
        stale_for = stale_if_error = 0.0
    # A response with a lifetime of 0 allows no unconfirmed answer. Stale times that a rule adds to it are the rule's
    # terms, not the response's.
    is_added = not explicit and (
        (stale_for > 0 and "stale-while-revalidate" not in directives)
        or (stale_if_error > 0 and "stale-if-error" not in directives)
    )
    unreachable_for = 0.0 if strict or status in ERRORS else max(0.0, sharing.unreachable_for - overdue)
    shown = [pair for pair in headers if pair[0].lower() not in verdict.hidden] if verdict.hidden else headers
    validated = etag_of(shown) is not None or bool(values_of(shown, b"last-modified"))
    if fresh_for == stale_for == stale_if_error == 0 and not validated:
        return verdict._replace(reason="no-cache") if validate else verdict
    return verdict._replace(
        reason="",
        policy=_NOTHING.replaced(
            fresh_for=float(fresh_for),
            stale_for=stale_for,
            stale_if_error=max(stale_if_error, unreachable_for),
            tags=tuple(dict.fromkeys((*tags, *(terms.policy.tags if terms is not None else ())))),
            keep_for=sharing.unreachable_for if validated or not strict else 0.0,
        ),
        strict=strict,
        validate=validate or fresh_for == stale_for == 0,
        own_terms=validate or (("public" in directives or (explicit is not None and not is_added)) and not overrides),
        stale_if_error=stale_if_error,
        overdue=overdue,
    )


def _named(argument: str | None) -> frozenset[bytes]:
    """Return the fields that the argument of `private` or `no-cache` names (RFC 9111 5.2.2.4 and 5.2.2.7)."""
    if not argument:
        return _NO_NAMES
    return frozenset(name.strip().lower().encode("latin-1") for name in argument.split(",")) - {b""}


def _seconds(directives: Directives, name: str, ruled: float, overrides: bool) -> float:
    if name in directives and not overrides:
        return float(delta_seconds(directives[name]) or 0)
    return ruled


def stored_headers(headers: Headers, hidden: Collection[bytes] = ()) -> Headers:
    """Return the fields of a response that may be stored (RFC 9111 3.1), without the `hidden` ones."""
    named = {name.strip().lower() for value in values_of(headers, b"connection") for name in value.split(b",")}
    return [
        (name, value)
        for name, value in headers
        if (lower := name.lower()) not in _NOT_STORED and lower not in named and lower not in hidden
    ]


def limits(directives: Directives, honoured: Collection[str]) -> Limits:
    """Return the limits that a request sets by those of its directives that swr honours (RFC 9111 5.2.1)."""
    if directives.keys().isdisjoint(("max-age", "max-stale", "min-fresh", "no-cache")):
        return NO_LIMITS
    max_age, max_stale, min_fresh = math.inf, None, None
    if "max-age" in directives and "max-age" in honoured:
        max_age = float(delta_seconds(directives["max-age"]) or 0)
    if "max-stale" in directives and "max-stale" in honoured:
        # Without an argument, the request accepts any staleness; with a malformed one, it accepts none.
        max_stale = math.inf if directives["max-stale"] is None else float(delta_seconds(directives["max-stale"]) or 0)
    if "min-fresh" in directives and "min-fresh" in honoured:
        min_fresh = float(delta_seconds(directives["min-fresh"]) or 0)
    no_cache = "no-cache" in directives and "no-cache" in honoured
    if max_age == math.inf and max_stale is None and min_fresh is None and not no_cache:
        return NO_LIMITS
    return Limits(max_age, min_fresh, max_stale, no_cache)


def cache_status(state: State, ttl: int) -> bytes:
    """Return a hit's member of `Cache-Status` (RFC 9211 2.1); the `ttl` of a stale response is not positive."""
    return b"swr; hit; ttl=%d" % (ttl if state is State.FRESH else min(ttl, 0))

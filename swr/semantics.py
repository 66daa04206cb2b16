"""HTTP headers into the vocabulary of swr and back. Pure: no I/O, no clock, and no header makes it raise."""

import re
from collections.abc import Iterable
from email.utils import parsedate_to_datetime
from typing import Final, NamedTuple

from swr.entry import State
from swr.policy import Limits, Policy

Headers = list[tuple[bytes, bytes]]

# What a rule is for: answers. That something is not there (404) is stored only if the response itself says so.
_BY_RULE: Final = frozenset({200, 203, 204, 300, 301, 308})
# RFC 5861 4: what counts as an error that something stale may stand in for.
ERRORS: Final = frozenset({500, 502, 503, 504})
# What says something about who asked, not about what is there: nothing for others follows from it.
ABOUT_THE_CLIENT: Final = frozenset({304, 401, 403, 407, 408, 412, 413, 415, 416, 417, 425, 428, 429, 431})
# RFC 9111 3.1 and RFC 9110 7.6.1: what belongs to one connection or one moment, not to the response.
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
# RFC 9110 15.4.5: what a 304 repeats of the response it stands for.
_IN_304: Final = frozenset({b"cache-control", b"content-location", b"date", b"etag", b"expires", b"vary"})
_LONGEST: Final = 2**31

# Both run in linear time on whatever a client sends: no two alternatives begin alike.
_MEMBER: Final = re.compile(r'(?:[^",]|"(?:[^"\\]|\\.)*"?)+', re.DOTALL)
_ETAG: Final = re.compile(rb'"[^"]*"')


def directives(values: Iterable[bytes]) -> dict[str, str | None]:
    """Return the directives of `Cache-Control` fields: lower-case names, arguments unquoted, the first of a name.

    RFC 9111 5.2. What cannot be read is passed over.
    """
    found: dict[str, str | None] = {}
    for member in _MEMBER.findall(b",".join(values).decode("latin-1")):
        name, equals, argument = member.partition("=")
        name, argument = name.strip().lower(), argument.strip()
        if argument.startswith('"'):
            argument = re.sub(r"\\(.)", r"\1", argument[1:].removesuffix('"'))
        if name:
            found.setdefault(name, argument if equals else None)
    return found


def delta_seconds(argument: str | None) -> int | None:
    """Return the seconds in a directive's argument; None where it is no number (RFC 9111 1.2.2)."""
    if argument is None or not argument.isascii() or not argument.isdigit():
        return None
    return min(int(argument[:11]), _LONGEST)


def values_of(headers: Headers, name: bytes) -> list[bytes]:
    """Return the values of all fields called `name` (lower case)."""
    return [value for field, value in headers if field.lower() == name]


class Verdict(NamedTuple):
    """Whether a response may be stored.

    Parameters:
        policy: how long it may be served; None: it must not be stored.
        reason: why not.
        shared: whether requests that carry credentials may be answered with it (RFC 9111 3.5).
        initial_age: seconds that it was old when it came.
        vary: the request fields that select it, lower case, sorted.
    """

    policy: Policy | None
    reason: str = ""
    shared: bool = False
    initial_age: int = 0
    vary: tuple[str, ...] = ()


class Terms(NamedTuple):
    """What a rule or an endpoint's decorator says about a response.

    Parameters:
        policy: how long; `fresh_for` counts only where `timed`.
        timed: whether it says how long at all, or gives tags alone.
        override: whether it goes before what the response says.
        vary: request fields that the response depends on, beside those that it names itself; lower case.
    """

    policy: Policy
    timed: bool = True
    override: bool = False
    vary: tuple[str, ...] = ()


def judge(
    status: int,
    headers: Headers,
    terms: Terms | None,
    *,
    authorized: bool,
    cookies_private: bool,
    tags: tuple[str, ...],
) -> Verdict:
    """Say whether and how long a shared cache may store a response to GET (RFC 9111 3).

    Parameters:
        status: its status code.
        headers: its header fields.
        terms: what applies where the response leaves it open, or in its place.
        authorized: whether the request carried credentials.
        cookies_private: whether `Set-Cookie` keeps a response from being stored.
        tags: tags that it gets beside those of `terms`.
    """
    said = directives(values_of(headers, b"cache-control"))
    if status < 200 or status in (206, 304) or status in ERRORS:
        return Verdict(None, f"status {status}")
    for forbidding in ("no-store", "private", "no-cache"):
        if forbidding in said:
            return Verdict(None, forbidding)
    if cookies_private and values_of(headers, b"set-cookie"):
        return Verdict(None, "set-cookie")
    if any(value.strip().lower().startswith(b"text/event-stream") for value in values_of(headers, b"content-type")):
        return Verdict(None, "event-stream")
    vary = vary_of(headers)
    if vary is None:
        return Verdict(None, "vary *")
    shared = not {"public", "s-maxage", "must-revalidate"}.isdisjoint(said)
    if authorized and not shared:
        return Verdict(None, "authorization")
    age = max(
        (delta_seconds(value.decode("latin-1").strip()) or 0 for value in values_of(headers, b"age")),
        default=0,
    )
    policy = _policy(status, headers, said, terms, age)
    if policy is None:
        return Verdict(None, "no freshness")
    policy = policy.tagged((*tags, *policy.tags))
    if terms is not None and terms.vary:
        vary = tuple(sorted({*vary, *terms.vary}))
    return Verdict(policy, "", shared, age, vary)


def _policy(status: int, headers: Headers, said: dict[str, str | None], terms: Terms | None, age: int) -> Policy | None:
    explicit = _lifetime(headers, said)
    applies = terms is not None and terms.timed and (status in _BY_RULE)
    if terms is not None and applies and (explicit is None or terms.override):
        fresh_for: float = terms.policy.fresh_for
    elif explicit is not None:
        fresh_for = max(0, explicit - age)
    else:
        return None
    ruled = terms.policy if terms is not None and applies else Policy(0)
    overrides = terms is not None and terms.override
    stale_for = _window(said, "stale-while-revalidate", ruled.stale_for, overrides)
    stale_if_error = _window(said, "stale-if-error", ruled.stale_if_error, overrides)
    # RFC 9111 4.2.4: these forbid serving stale; s-maxage does unless the field asks for stale itself.
    strict = "must-revalidate" in said or "proxy-revalidate" in said
    asked = "stale-while-revalidate" in said or "stale-if-error" in said
    if not overrides and (strict or ("s-maxage" in said and not asked)):
        stale_for = stale_if_error = 0.0
    tags = terms.policy.tags if terms is not None else ()
    if fresh_for == 0 and stale_for == 0 and stale_if_error == 0:
        return None
    return Policy(fresh_for, stale_for, stale_if_error, tags)


def _window(said: dict[str, str | None], name: str, ruled: float, overrides: bool) -> float:
    if name in said and not overrides:
        return float(delta_seconds(said[name]) or 0)
    return ruled


def _lifetime(headers: Headers, said: dict[str, str | None]) -> int | None:
    """The freshness lifetime in seconds that the response itself gives (RFC 9111 4.2.1)."""
    for name in ("s-maxage", "max-age"):
        if name in said:
            return delta_seconds(said[name]) or 0
    expires = values_of(headers, b"expires")
    if expires:
        date = values_of(headers, b"date")
        try:
            until = parsedate_to_datetime(expires[0].decode("latin-1")).timestamp()
            since = parsedate_to_datetime(date[0].decode("latin-1")).timestamp() if date else None
        except (ValueError, TypeError, OverflowError, IndexError):
            return 0
        if since is None:
            return 0
        return min(_LONGEST, max(0, int(until - since)))
    return None


def vary_of(headers: Headers) -> tuple[str, ...] | None:
    """Return the request fields that `Vary` names, lower case, sorted, each once; None for `*`."""
    names: set[str] = set()
    for value in values_of(headers, b"vary"):
        names.update(name.strip(" \t").lower() for name in value.decode("latin-1").split(","))
    names.discard("")
    return None if "*" in names else tuple(sorted(names))


def stored_headers(headers: Headers) -> Headers:
    """Return the fields of a response that may be stored (RFC 9111 3.1)."""
    named = {
        name.strip().lower() for value in values_of(headers, b"connection") for name in value.split(b",")
    } | _NOT_STORED
    return [(name, value) for name, value in headers if name.lower() not in named]


def headers_of_304(headers: Headers) -> Headers:
    """Return the stored fields that a 304 repeats."""
    return [(name, value) for name, value in headers if name.lower() in _IN_304]


def matches(if_none_match: bytes, headers: Headers) -> bool:
    """Whether `If-None-Match` names the stored response: weak comparison, lists, `*` (RFC 9110 13.1.2)."""
    if if_none_match.strip() == b"*":
        return True
    stored = [match[0] for value in values_of(headers, b"etag") if (match := _ETAG.search(value))]
    return bool(stored) and stored[0] in _ETAG.findall(if_none_match)


def limits(said: dict[str, str | None]) -> Limits:
    """Return what a request's `Cache-Control` accepts: `max-stale` and `min-fresh` (RFC 9111 5.2.1).

    `no-cache` and `max-age` are not honoured: with them any client could force a load.
    """
    return Limits(min_fresh=float(delta_seconds(said.get("min-fresh")) or 0))


def cache_status(state: State, ttl: int) -> bytes:
    """Return a hit's member of `Cache-Status` (RFC 9211 2.1): `ttl` is negative once it is stale."""
    return b"swr; hit; ttl=%d" % (ttl if state is State.FRESH else min(ttl, 0))

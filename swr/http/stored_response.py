"""Stored responses, and how swr sends them: whole, as a 304, as a range, or without a body."""

import json
import math
from collections.abc import Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal

import msgspec

from swr.core.codec import Codec
from swr.core.decision import is_fresh
from swr.entry import Entry, State
from swr.errors import CodecError
from swr.http.caching import MOST_VARY, Verdict, cache_status, stored_headers
from swr.http.clients import Told, own_etag, with_told
from swr.http.conditional import (
    CONDITIONS,
    headers_of_304,
    not_modified,
    strong_etag,
    updated,
    wanted_range,
)
from swr.http.fields import Headers, are_well_formed, content_length, content_range, etag_of, is_too_long, values_of
from swr.policy import Timeout

# A message of ASGI.
Message = MutableMapping[str, Any]
# The framework of the `HTTPException` that an endpoint raised; empty: it returned a response.
Raised = Literal["", "fastapi", "starlette"]

_NOTHING: Final = (0, -1)
# Methods whose conditions and ranges are about the response (RFC 9110 13.1, RFC 10008 2.6 and 2.8).
_SELECTING: Final = frozenset({"GET", "HEAD", "QUERY"})


class StoredResponse(msgspec.Struct, tag="r", array_like=True):
    """A response as it is stored.

    Parameters:
        status, headers, body: exactly as the app sent them, without the fields that must not be stored.
        shared, initial_age, strict, validate, stale_if_error, overdue, own_terms, ignores, per_credential: see
            `swr.http.caching.Verdict`.
        names: the request fields that selected it.
        takes_fields: whether swr adds the fields that the dependencies of a request set on its response.
        client_max_age, soft_timeout: from the endpoint's decorator; see `swr.http.caching.Verdict`.
        first: the place of the stored body in the whole body, in bytes.
        complete: the length of the whole body, in bytes, if only a part is stored; None: all of it is stored.
        raised: the framework whose `HTTPException` the endpoint raised; then `body` is the exception's detail, in JSON.
    """

    status: int
    headers: list[tuple[bytes, bytes]]
    body: bytes
    shared: bool = False
    initial_age: int = 0
    strict: bool = False
    validate: bool = False
    stale_if_error: float = 0.0
    overdue: int = 0
    first: int = 0
    complete: int | None = None
    own_terms: bool = False
    ignores: tuple[str, ...] = ()
    per_credential: bool = False
    names: tuple[str, ...] = ()
    takes_fields: bool = False
    client_max_age: float | None = None
    soft_timeout: Timeout = None
    raised: Raised = ""


def as_stored(status: int, headers: Headers, body: bytes, verdict: Verdict) -> StoredResponse:
    """Return a response in the form in which it is stored."""
    return StoredResponse(
        status,
        stored_headers(headers, verdict.hidden),
        body,
        verdict.shared,
        verdict.initial_age,
        verdict.strict,
        verdict.validate,
        verdict.stale_if_error,
        verdict.overdue,
        own_terms=verdict.own_terms,
        ignores=verdict.ignores,
        per_credential=verdict.per_credential,
        names=verdict.vary,
        client_max_age=verdict.client_max_age,
        soft_timeout=verdict.soft_timeout,
    )


class Varies(msgspec.Struct, tag="v", array_like=True):
    """The value stored for a URL whose responses vary by request fields.

    An app may name a field in one response and not in the next, for example in a page that it does not compress. So swr
    separates the responses to a URL by each field that one of them names, as long as that one may be served.

    Parameters:
        names: the names of these fields, lower case, sorted.
        variants: the texts that the keys of stored variants append to the key of the URL, oldest first.
        until: for each name, until when a stored response that names it may be served; wall clock, seconds.
    """

    names: tuple[str, ...]
    variants: tuple[str, ...] = ()
    until: tuple[float, ...] = ()

    def named(self, now: float) -> dict[str, float]:
        """Return the fields that a servable response names, each with the time until which one may be served."""
        return {name: until for name, until in zip(self.names, self.until, strict=False) if now < until}


# `add_names` adds names up to this number, beginning with the names of responses that may be served the longest.
_MOST_NAMES: Final = 32


def add_names(verdict: Verdict, others: Mapping[str, float]) -> Verdict:
    """Return `verdict` with more selecting fields: those that other responses to the URL name.

    Parameters:
        others: see `Varies.named`.
    """
    added = [name for name in sorted(others, key=others.__getitem__, reverse=True) if name not in verdict.vary]
    added = added[: max(0, _MOST_NAMES - len(verdict.vary))]
    return verdict._replace(vary=tuple(sorted((*verdict.vary, *added))), unnamed=tuple(added)) if added else verdict


# Greater than every age in seconds and every length in bytes.
_MOST: Final = 10**15
MOST_VARIANTS: Final = 10_000


def check(value: StoredResponse | Varies) -> None:
    """Refuse a value that another program must have written.

    Raises:
        CodecError: swr does not store such a value, or no server could send it.
    """
    names = value.names
    if isinstance(value, Varies):
        is_sound = len(value.variants) <= MOST_VARIANTS
    else:
        names += value.ignores
        is_sound = _is_sendable(value) and _has_numbers(value) and _has_detail(value)
    if not is_sound or len(value.names) > MOST_VARY or not all(name.isascii() and name.isprintable() for name in names):
        raise CodecError("it is not a response that swr has stored")


def _is_sendable(stored: StoredResponse) -> bool:
    headers = stored.headers
    if not 200 <= stored.status <= 999 or stored.status == 304 or is_too_long(headers) or not are_well_formed(headers):
        return False
    # Servers compare the body with these fields. If only a part is stored, swr sets the length when it sends it.
    has_length = stored.complete is None and bool(values_of(headers, b"content-length"))
    if has_length and content_length(headers) != len(stored.body):
        return False
    return not values_of(headers, b"transfer-encoding")


def _has_numbers(stored: StoredResponse) -> bool:
    soft = 0 if isinstance(stored.soft_timeout, str) else stored.soft_timeout or 0
    numbers = (
        stored.initial_age, stored.overdue, stored.stale_if_error, stored.first, stored.client_max_age or 0, soft
    )  # fmt: skip
    complete = len(stored.body) if stored.complete is None else stored.complete
    return all(0 <= number <= _MOST for number in numbers) and stored.first + len(stored.body) <= complete <= _MOST


def _has_detail(stored: StoredResponse) -> bool:
    try:
        json.loads(stored.body if stored.raised else b"0")
    except (ValueError, RecursionError):
        return False
    return True


def may_shrink(value: StoredResponse | Varies) -> bool:
    """Return whether compressing is worth a try: the body has no content coding."""
    return isinstance(value, Varies) or not set(values_of(value.headers, b"content-encoding")) - {b"identity"}


RESPONSES: Final = Codec(StoredResponse | Varies, check, may_shrink)


@dataclass(slots=True)
class Ready:
    """The prepared fields of a hit, made at most once a second.

    Parameters:
        until: when the fields must be made again, because `Age` and `ttl` count seconds.
        headers: the fields of the whole response.
        brief: the fields of a 304.
        etag: the value of `If-None-Match` that gets the 304; None: a comparison of bytes is not enough.
        stored: the response.
        own_tag: the entity tag that swr made for the response; None: the app made one, or swr makes none.
    """

    until: float
    headers: Headers
    brief: Headers
    etag: bytes | None
    stored: StoredResponse
    own_tag: bytes | None


def age_of(entry: Entry[StoredResponse], now: float) -> int:
    """Return the age of a response in seconds, for `Age`."""
    return int(entry.value.initial_age + max(0, math.floor(now - entry.created_at)))


def marks_of(entry: Entry[StoredResponse], state: State, now: float, status: bytes | None = None) -> Headers:
    """Return the fields that tell where an answer comes from."""
    age = age_of(entry, now)
    status = status or cache_status(state, math.floor(entry.fresh_until - now) - entry.value.overdue)
    return [(b"age", b"%d" % age), (b"swr-state", state.value.encode()), (b"cache-status", status)]


def make_ready(entry: Entry[StoredResponse], now: float, told: Told | None, before: Ready | None) -> Ready:
    """Return the prepared fields of a hit.

    Parameters:
        told: the terms for clients if the app gives none.
        before: the fields prepared before, for this response or an older one.
    """
    until = min(
        entry.created_at + math.floor(now - entry.created_at) + 1,
        entry.fresh_until - math.floor(entry.fresh_until - now),
    )
    state = State.FRESH if is_fresh(entry, now) else State.STALE
    stored, marks = entry.value, marks_of(entry, state, now)
    if told is None:
        own_tag, headers = None, stored.headers
    else:
        is_known = before is not None and before.stored is stored
        own_tag = before.own_tag if before is not None and is_known else own_etag(stored)
        headers = with_told(stored, told, state, age_of(entry, now), own_tag)
    return Ready(
        until,
        [*headers, *marks],
        [*headers_of_304(headers), *marks],
        etag_of(headers) if stored.status == 200 else None,
        stored,
        own_tag,
    )


def headers_for(entry: Entry[StoredResponse], told: Told | None, state: State, now: float) -> Headers:
    """Return the fields of a stored response, with the added fields for clients if the app gave none."""
    stored = entry.value
    return stored.headers if told is None else with_told(stored, told, state, age_of(entry, now), own_etag(stored))


def messages_of(
    method: str, fields: Mapping[bytes, bytes], entry: Entry[StoredResponse], headers: Headers, marks: Headers
) -> tuple[Message, Message]:
    """Return the answer to a request: the stored response, a range of it, or a 304.

    RFC 9110 13.2.2: `If-None-Match` or `If-Modified-Since` first, then `Range` with `If-Range`.

    Parameters:
        headers: of the response, as `headers_for` returns them.
    """
    stored = entry.value
    status, body = stored.status, stored.body
    received = entry.created_at
    if method not in _SELECTING:
        # With other methods, such as POST, conditions and ranges do not mean this (RFC 9110 13.1.2, 14.2).
        fields = {}
    if status in (200, 206) and not fields.keys().isdisjoint(CONDITIONS) and not_modified(fields, headers, received):
        status, headers, body = 304, headers_of_304(headers), b""
    elif method != "HEAD" and b"range" in fields and (status == 206 or (status == 200 and "range" not in stored.names)):
        # If the app itself has read `Range`, its 200 is the answer to that field.
        complete = len(body) if stored.complete is None else stored.complete
        wanted = wanted_range(fields, headers, complete, received)
        if wanted == _NOTHING:
            status, body = 416, b""
            headers = [(b"content-range", b"bytes */%d" % complete), (b"content-length", b"0")]
        elif wanted is not None:
            first, last = wanted
            status, body = 206, body[first - stored.first : last + 1 - stored.first]
            headers = _less_length(headers)
            headers.append((b"content-range", b"bytes %d-%d/%d" % (first, last, complete)))
            headers.append((b"content-length", b"%d" % len(body)))
    elif method == "HEAD":
        body = b""
    return (
        {"type": "http.response.start", "status": status, "headers": [*headers, *marks]},
        {"type": "http.response.body", "body": body},
    )


def _less_length(headers: Headers) -> Headers:
    return [(name, value) for name, value in headers if name.lower() not in (b"content-length", b"content-range")]


def answers_range(fields: Mapping[bytes, bytes], stored: StoredResponse, received: float) -> bool:
    """Return whether a stored part contains the whole range that a request asks for, or shows that there is none."""
    if stored.complete is None:
        return False
    wanted = wanted_range(fields, stored.headers, stored.complete, received)
    if wanted is None or wanted == _NOTHING:
        return wanted is not None
    return stored.first <= wanted[0] and wanted[1] < stored.first + len(stored.body)


def part_of(stored: StoredResponse) -> StoredResponse | None:
    """Return a 206 with its place in the whole body; None if the place is not clear (RFC 9111 3.3).

    If a body is shorter than its `Content-Range`, its end did not arrive.
    """
    place = content_range(stored.headers)
    if place is None or not 0 < len(stored.body) <= place[1] - place[0] + 1:
        return None
    return msgspec.structs.replace(stored, first=place[0], complete=place[2])


def span_of(one: StoredResponse, other: StoredResponse) -> int:
    """Return how many bytes lie between the beginning of the first of two parts and the end of the last."""
    return max(one.first + len(one.body), other.first + len(other.body)) - min(one.first, other.first)


def are_of_one(one: StoredResponse, other: StoredResponse) -> bool:
    """Return whether two parts certainly belong to the same body (RFC 9111 3.4)."""
    tag = strong_etag(one.headers)
    return tag is not None and tag == strong_etag(other.headers) and one.complete == other.complete


def combined(known: StoredResponse, new: StoredResponse) -> StoredResponse:
    """Return two parts as one if they may be combined, else the new part (RFC 9111 3.4)."""
    if not are_of_one(known, new) or span_of(known, new) > len(known.body) + len(new.body):
        return new
    first = min(known.first, new.first)
    body = bytearray(span_of(known, new))
    for part in (known, new):
        body[part.first - first : part.first - first + len(part.body)] = part.body
    headers = updated(known.headers, new.headers)
    if len(body) == new.complete:
        headers = [*_less_length(headers), (b"content-length", b"%d" % len(body))]
        return msgspec.structs.replace(new, status=200, headers=headers, body=bytes(body), first=0, complete=None)
    return msgspec.structs.replace(new, headers=headers, body=bytes(body), first=first)


def marked(message: Message, status: bytes) -> Message:
    """Return a `http.response.start` with the fields that every answer carries."""
    return with_marks(message, [(b"swr-state", b"missing"), (b"cache-status", status)])


def with_marks(message: Message, marks: Headers) -> Message:
    """Return a `http.response.start` with the fields that say where the answer comes from."""
    # A response has one state, so this one replaces the state of an upstream swr. Cache-Status is a list that grows.
    headers = [(name, value) for name, value in message.get("headers", ()) if name.lower() != b"swr-state"]
    return {**message, "headers": [*headers, *marks]}


def validated(entry: Entry[StoredResponse], now: float, status: bytes) -> Headers:
    """Return the marks of a stored response that the app has just confirmed."""
    return marks_of(entry, State.MISSING, now, status)


def is_response(entry: Entry[Any] | None) -> bool:
    """Return whether `entry` exists and contains a response, not the fields by which a URL varies."""
    return entry is not None and type(entry.value) is StoredResponse

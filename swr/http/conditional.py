"""A request's conditions and ranges against a stored response (RFC 9110 13 and 14; RFC 9111 3.4, 4.3). Pure."""

from collections.abc import Mapping
from typing import Final

from swr.http.caching import stored_headers
from swr.http.fields import Headers, byte_range, etag_of, etags, http_date, values_of

# RFC 9110 15.4.5: fields of the stored response that a 304 repeats; the targeted field is for caches further on.
_IN_304: Final = frozenset(
    {b"cache-control", b"cdn-cache-control", b"content-location", b"date", b"etag", b"expires", b"set-cookie", b"vary"}
)
# RFC 9111 3.2: fields that describe the stored body, which a 304 or an answer to HEAD does not replace.
_OF_THE_BODY: Final = frozenset({b"content-encoding", b"content-length", b"content-range"})
# RFC 9110 13.1: the conditions that a stored response answers.
CONDITIONS: Final = frozenset({b"if-none-match", b"if-modified-since"})


def headers_of_304(headers: Headers) -> Headers:
    """Return the stored fields that a 304 repeats."""
    brief = [(name, value) for name, value in headers if name.lower() in _IN_304]
    if etag_of(headers) is None:
        brief += [(b"last-modified", value) for value in values_of(headers, b"last-modified")]
    return brief


def not_modified(asked: Mapping[bytes, bytes], headers: Headers, received: float) -> bool:
    """Return whether a request's conditions make a stored 200 a 304 (RFC 9111 4.3.2).

    Parameters:
        asked: the request's fields, lower case.
        headers: of the stored response.
        received: when the response came; wall clock, seconds.
    """
    if b"if-none-match" in asked:
        # RFC 9110 13.1.2: weak comparison, lists and `*`. With this field, If-Modified-Since is ignored.
        tags = asked[b"if-none-match"]
        if tags.strip() == b"*":
            return True
        stored = etag_of(headers)
        return stored is not None and stored.removeprefix(b"W/") in etags(tags)
    if b"if-modified-since" in asked:
        since = http_date(asked[b"if-modified-since"].strip(), received)
        # A malformed date counts as missing.
        modified = received
        for name in (b"date", b"last-modified"):
            for value in values_of(headers, name)[:1]:
                date = http_date(value, received)
                modified = modified if date is None else date
        return since is not None and modified <= since
    return False


def validators(headers: Headers) -> Headers:
    """Return the request fields that ask whether a stored response still holds (RFC 9111 4.3.1)."""
    tag = etag_of(headers)
    fields = [] if tag is None else [(b"if-none-match", tag)]
    return fields + [(b"if-modified-since", value) for value in values_of(headers, b"last-modified")[:1]]


def selects(new: Headers, stored: Headers) -> bool:
    """Return whether a 304 with the fields `new` is about the stored response (RFC 9111 4.3.4)."""
    tag, known = etag_of(new), etag_of(stored)
    if tag is not None and known is not None:
        weak = tag.startswith(b"W/")
        return tag.removeprefix(b"W/") == known.removeprefix(b"W/") if weak else tag == known
    if tag is not None:
        return False
    # Many apps send a 304 without a validator, which can only be about the response that the request named.
    modified, dated = values_of(new, b"last-modified"), values_of(stored, b"last-modified")
    return not modified or modified == dated or (known is not None and not dated)


def describes(new: Headers, stored: Headers) -> bool | None:
    """Return whether the answer to a HEAD describes the stored response (RFC 9111 4.3.5); None: it does not say.

    A strong entity tag or the time of the last change says so. An answer without either says nothing.
    """
    tag, known = etag_of(new), etag_of(stored)
    modified, dated = values_of(new, b"last-modified"), values_of(stored, b"last-modified")
    is_tagged, is_dated = tag is not None and known is not None, bool(modified and dated)
    if is_tagged and etags(tag or b"") != etags(known or b""):
        return False
    if is_dated and modified != dated:
        return False
    length = values_of(new, b"content-length")
    if length and length != values_of(stored, b"content-length"):
        # Many answers to HEAD give the length of their own empty body, so another length says nothing.
        return None
    is_strong = is_tagged and strong_etag(new) is not None and strong_etag(stored) is not None
    return True if is_strong or is_dated else None


def updated(stored: Headers, new: Headers) -> Headers:
    """Return the stored fields, updated by a 304 or the answer to a HEAD (RFC 9111 3.2)."""
    changed = [(name, value) for name, value in stored_headers(new) if name.lower() not in _OF_THE_BODY]
    # The old `Date` is removed, too: a new answer without a `Date` dates from its arrival.
    names = {name.lower() for name, _ in changed} | {b"date"}
    return [(name, value) for name, value in stored if name.lower() not in names] + changed


def wanted_range(
    asked: Mapping[bytes, bytes], headers: Headers, complete: int, received: float
) -> tuple[int, int] | None:
    """Return the first and last position that a GET asks for; None: the whole body; (0, -1): a range beyond it.

    RFC 9110 14.2, with `If-Range` (13.1.5) by the strong comparison.

    Parameters:
        asked: the request's fields, lower case.
        headers: of the stored response.
        complete: the length of the whole body, in bytes.
        received: when the response came; wall clock, seconds.
    """
    wanted = byte_range(asked.get(b"range", b""), complete)
    condition = asked.get(b"if-range", b"").strip()
    if wanted is None or not condition:
        return wanted
    if b'"' in condition:
        return wanted if condition == strong_etag(headers) else None
    modified, dates = values_of(headers, b"last-modified"), values_of(headers, b"date")
    if modified[:1] != [condition] or not dates:
        return None
    # RFC 9110 8.8.2.2: two versions made within one second have the same date.
    changed, sent = http_date(condition, received), http_date(dates[0], received)
    return wanted if changed is not None and sent is not None and changed < sent else None


def strong_etag(headers: Headers) -> bytes | None:
    """Return the entity tag of a response if it is strong; else None."""
    tag = etag_of(headers)
    return None if tag is None or tag.startswith(b"W/") else tag

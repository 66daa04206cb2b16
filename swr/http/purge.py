"""The reading of `PURGE` requests, as CDNs define them. Pure: nothing is purged here.

| the request | the answer |
| --- | --- |
| names more tags than a response may have, or has a malformed `SWR-Soft-Purge` | 400 |
| `PURGE /path` | the responses to the URL are gone, on all hosts, whatever their method and variant |
| has `Surrogate-Key: a b`, or another tag field | the responses with one of these tags are gone, whatever the URL |
| has `SWR-Soft-Purge: 1` | the responses are stale instead of gone |
"""

from collections.abc import Collection
from typing import Final, NamedTuple

from swr.http.fields import Headers, values_of
from swr.http.tag_fields import MOST_TAGS, tags_in

# Programs written for Fastly send the second name.
_SOFT: Final = (b"swr-soft-purge", b"fastly-soft-purge")
_BEARER: Final = b"bearer "


class Purge(NamedTuple):
    """The target of a purge request.

    Parameters:
        tags: purge the responses with one of these tags; empty: purge the responses to the URL of the request.
        soft: whether the responses become stale instead of gone.
    """

    tags: tuple[str, ...]
    soft: bool


class Refused(NamedTuple):
    """The refusal of a request that purges nothing.

    Parameters:
        status: of the answer.
        error: a sentence that says what to do.
        challenge: the value of `WWW-Authenticate`; empty: none.
        retry_after: seconds after which to try again; 0: unknown.
    """

    status: int
    error: str
    challenge: bytes = b""
    retry_after: int = 0


def read_purge(headers: Headers, tag_fields: Collection[bytes]) -> Purge | Refused:
    """Return the target of a purge request, or a refusal if it is not clear.

    Parameters:
        headers: of the request.
        tag_fields: the fields that name tags, lower case.
    """
    soft = [value.strip() for name in _SOFT for value in values_of(headers, name)]
    if not {*soft} <= {b"0", b"1"} or len({*soft}) > 1:
        return Refused(400, "SWR-Soft-Purge is 1 or 0")
    tags = tags_in(headers, tag_fields)
    if tags is None:
        return Refused(400, f"name {MOST_TAGS} tags at most in one request")
    if not tags and any(values_of(headers, name) for name in tag_fields):
        # The client meant some tags, so it must not purge the URL instead.
        return Refused(400, "the tag field names no tag: name one, or leave out the field")
    return Purge(tags, soft[:1] == [b"1"])


def bearer_of(values: list[bytes]) -> bytes | None:
    """Return the token in the values of `Authorization`; None: there is none, or more than one value."""
    if len(values) != 1 or not values[0].lower().startswith(_BEARER):
        return None
    return values[0][len(_BEARER) :].strip()

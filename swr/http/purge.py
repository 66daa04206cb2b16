"""Read a `PURGE` request, as CDNs have it: what it asks for, and whether it may. Pure: it purges nothing.

| the request | the answer |
| --- | --- |
| has no `Authorization: Bearer`, or another token | 401 |
| names more tags than a response may have, or says `SWR-Soft-Purge` badly | 400 |
| `PURGE /path` | the responses to the URL are gone, on all hosts, whatever their method and variant |
| has `Surrogate-Key: a b`, or another field of tags | the responses with one of these tags are gone, whatever the URL |
| has `SWR-Soft-Purge: 1` | they are stale in place of gone |
"""

import secrets
from collections.abc import Collection
from typing import Final, NamedTuple

from swr.http.fields import Headers, values_of
from swr.http.tag_fields import MOST_TAGS, tags_in

# The second name is what programs send that were written for Fastly.
_SOFT: Final = (b"swr-soft-purge", b"fastly-soft-purge")
_BEARER: Final = b"bearer "
_REALM: Final = b'Bearer realm="swr"'


class Purge(NamedTuple):
    """The target of a purge request.

    Parameters:
        tags: the responses with one of these; none: those to the URL of the request.
        soft: whether they become stale in place of gone.
    """

    tags: tuple[str, ...]
    soft: bool


class Refused(NamedTuple):
    """Why a request purges nothing.

    Parameters:
        status: of the answer.
        error: a sentence that says what to do.
        challenge: the value of `WWW-Authenticate`; empty: none.
    """

    status: int
    error: str
    challenge: bytes = b""


def read_purge(headers: Headers, token: bytes, tag_fields: Collection[bytes]) -> Purge | Refused:
    """Return what a request wants purged, or why it may not.

    Parameters:
        headers: of the request.
        token: what it has to know.
        tag_fields: the fields that name tags, lower case.
    """
    refused = refuse_bearer(headers, token)
    if refused is not None:
        return refused
    soft = [value.strip() for name in _SOFT for value in values_of(headers, name)]
    if not {*soft} <= {b"0", b"1"} or len({*soft}) > 1:
        return Refused(400, "SWR-Soft-Purge is 1 or 0")
    tags = tags_in(headers, tag_fields)
    if tags is None:
        return Refused(400, f"name {MOST_TAGS} tags at most in one request")
    if not tags and any(values_of(headers, name) for name in tag_fields):
        # Who meant some tags must not purge the URL in their place.
        return Refused(400, "the field of the tags names none")
    return Purge(tags, soft[:1] == [b"1"])


def refuse_bearer(headers: Headers, token: bytes) -> Refused | None:
    """Return why a request does not know a token that it has to send as `Authorization: Bearer`; None: it does."""
    values = values_of(headers, b"authorization")
    if len(values) != 1 or not values[0].lower().startswith(_BEARER):
        return Refused(401, "send Authorization: Bearer with the token", _REALM)
    if not secrets.compare_digest(values[0][len(_BEARER) :].strip(), token):
        return Refused(401, "the token is wrong", _REALM + b', error="invalid_token"')
    return None

"""The text by which a request's fields select among the responses to one URL. Pure."""

from collections.abc import Collection, Sequence
from typing import Final
from urllib.parse import quote

from swr.http.fields import Headers
from swr.http.request import Digest
from swr.http.request_fields import (
    ADDRESSES,
    ALL_CREDENTIALS,
    EXACTLY,
    FIELD_NAMES,
    FIELD_VALUES,
    normalised,
    tells,
)

# Characters that a key contains without escapes.
_PLAIN: Final = "".join(map(chr, range(32, 127))).replace("%", "")


def selecting_text(name: str, headers: Headers, credentials: Collection[str], ignored: Collection[bytes]) -> str:
    """Return the text by which one selecting name distinguishes requests: the same text selects the same response.

    Parameters:
        name: of a field, in lower case; or `ALL_CREDENTIALS`, `FIELD_NAMES`, `FIELD_VALUES`, or a name after `EXACTLY`.
        headers: of the request.
        credentials: the names of the request's fields that are credentials.
        ignored: the names of fields that no response depends on.
    """
    if name.startswith(EXACTLY):
        return repr(_values_of(headers, name[1:]))
    if name == ALL_CREDENTIALS:
        return repr(sorted(pair for pair in headers if pair[0].decode("latin-1") in credentials))
    if name == FIELD_NAMES:
        return repr(sorted({field for field, _ in headers if tells(field) and field not in ignored}))
    if name == FIELD_VALUES:
        covered = {*ignored, *ADDRESSES, b"forwarded"}
        return repr(sorted(pair for pair in headers if tells(pair[0]) and pair[0] not in covered))
    values = _values_of(headers, name)
    # A missing field differs from an empty one. No quoted value is a line break.
    return quote(normalised(name, values), safe=_PLAIN) if values else "\n"


def variant_key(
    key: str,
    names: Sequence[str],
    headers: Headers,
    credentials: Collection[str],
    ignored: Collection[bytes],
    digest: Digest,
) -> str:
    """Return the key of the response that a request selects if its URL varies.

    Parameters:
        key: the key of the URL.
        names: the names by which the URL varies, sorted.
        headers, credentials, ignored: see `selecting_text`.
        digest: turns the selecting text into text that does not show it.
    """
    texts = (selecting_text(name, headers, credentials, ignored) for name in names)
    selecting = "\n".join(map("{}: {}".format, names, texts))
    return f"{key}\nvary: {digest(selecting.encode('latin-1'))}"


def fields_of(names: Collection[str]) -> frozenset[bytes]:
    """Return the names of the fields that `selecting_text` reads for these names, apart from credentials.

    Parameters:
        names: selecting names without `FIELD_NAMES` and `FIELD_VALUES`, which read all fields.
    """
    fields = (name.removeprefix(EXACTLY) for name in names if name != ALL_CREDENTIALS)
    return frozenset(_hyphened(name.encode("latin-1")) for name in fields)


def _values_of(headers: Headers, name: str) -> list[bytes]:
    """Return the values of all fields that are called `name`, or that an app on WSGI takes for it."""
    hyphened = _hyphened(name.encode("latin-1"))
    return [value for field, value in headers if _hyphened(field.lower()) == hyphened]


def _hyphened(name: bytes) -> bytes:
    return name.replace(b"_", b"-")


def may_select(field: bytes, names: Collection[str], credentials: Collection[str]) -> bool:
    """Return whether `selecting_text` reads a field of a request for one of `names`.

    Parameters:
        field: its name in lower case.
        names: the selecting names, see `name` of `selecting_text`.
        credentials: see `selecting_text`.
    """
    name, hyphened = field.decode("latin-1"), _hyphened(field).decode("latin-1")
    return name in names or hyphened in names or name in credentials or (FIELD_NAMES in names and tells(field))

"""The text by which a request's fields select among the responses to one URL. Pure."""

from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from swr.http.fields import Headers
from swr.http.request_fields import ALL_CREDENTIALS, EXACTLY, FIELD_NAMES, normalised, tells

# Characters that a key contains without escapes.
_PLAIN: Final = "".join(map(chr, range(32, 127))).replace("%", "")


def selecting_text(name: str, headers: Headers, credentials: Collection[str], ignored: Collection[bytes]) -> str:
    """Return the text by which one selecting name distinguishes requests: the same text selects the same response.

    Parameters:
        name: of a field, in lower case; or `ALL_CREDENTIALS`, `FIELD_NAMES`, or a name after `EXACTLY`.
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
    values = _values_of(headers, name)
    # A missing field differs from an empty one. No quoted value is a line break.
    return quote(normalised(name, values), safe=_PLAIN) if values else "\n"


def _values_of(headers: Headers, name: str) -> list[bytes]:
    """Return the values of all fields that are called `name`, or that an app on WSGI takes for it."""
    hyphened = _hyphened(name.encode("latin-1"))
    return [value for field, value in headers if _hyphened(field.lower()) == hyphened]


def _hyphened(name: bytes) -> bytes:
    return name.replace(b"_", b"-")


def may_select(field: bytes, names: Collection[str], credentials: Collection[str]) -> bool:
    """Return whether a field of a request may select a response by some names.

    Parameters:
        field: its name in lower case.
        names, credentials: see `selecting_text`.
    """
    name, hyphened = field.decode("latin-1"), _hyphened(field).decode("latin-1")
    return name in names or hyphened in names or name in credentials or (FIELD_NAMES in names and tells(field))

"""The parts of a request that its fields select by, among the responses to one URL. Pure."""

from collections.abc import Collection
from typing import Final
from urllib.parse import quote

from swr.http.fields import Headers, values_of
from swr.http.request_fields import ALL_CREDENTIALS, EXACTLY, FIELD_NAMES, normalised, tells

# These are in a key as they are.
_PLAIN: Final = "".join(map(chr, range(32, 127))).replace("%", "")


def selecting_text(name: str, headers: Headers, credentials: Collection[str], ignored: Collection[bytes]) -> str:
    """Return text that only requests have that select the same response by one name.

    Parameters:
        name: of a field, in lower case; or `ALL_CREDENTIALS`, `FIELD_NAMES`, or a name after `EXACTLY`.
        headers: of the request.
        credentials: the names of its fields that say who asks.
        ignored: the names of fields that no response depends on.
    """
    if name.startswith(EXACTLY):
        return repr(values_of(headers, name[1:].encode("latin-1")))
    if name == ALL_CREDENTIALS:
        return repr(sorted(pair for pair in headers if pair[0].decode("latin-1") in credentials))
    if name == FIELD_NAMES:
        return repr(sorted({field for field, _ in headers if tells(field) and field not in ignored}))
    values = values_of(headers, name.encode("latin-1"))
    # A missing field is not an empty one; and a line break parts fields.
    return quote(normalised(name, values), safe=_PLAIN) if values else "\n"


def may_select(field: bytes, names: Collection[str], credentials: Collection[str]) -> bool:
    """Return whether a field of a request may select a response by some names.

    Parameters:
        field: its name in lower case.
        names, credentials: see `selecting_text`.
    """
    name = field.decode("latin-1")
    return name in names or name in credentials or (FIELD_NAMES in names and tells(field))

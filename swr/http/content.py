"""The content of a request as a part of a key: its bytes, or the JSON value in them (RFC 10008 2.7). Pure.

If swr is not certain of the value, the bytes count.
"""

import json
from collections.abc import Callable
from typing import Any, Final, NoReturn

import msgspec

from swr.http.fields import Headers

# Fields with this prefix describe the content (RFC 9110 8). `Content-Length` is left out: it follows from the content.
DESCRIBES: Final = b"content-"
_LENGTH: Final = b"content-length"


def describes(name: bytes) -> bool:
    """Return whether a request field describes the content: its type, its coding, its language.

    Parameters:
        name: in lower case.
    """
    return name.startswith(DESCRIBES) and name != _LENGTH


class Content(msgspec.Struct, frozen=True):
    """The content of a request, and the fields that describe it.

    Attributes:
        body: the bytes as the client sent them.
        fields: the request fields `Content-*` except `Content-Length`, names in lower case.
        query: the query of the URL.
    """

    body: bytes
    fields: Headers = []
    query: bytes = b""

    @property
    def media_type(self) -> str:
        """The media type without parameters, lower case: "application/json"; "" if there is none or several."""
        types = [value for name, value in self.fields if name == b"content-type"]
        return types[0].partition(b";")[0].strip().lower().decode("latin-1") if len(types) == 1 else ""

    def json(self) -> Any:
        """Return the value of JSON content that every reader understands in the same way.

        Raises:
            ValueError: the content has another media type, a content coding or another charset than UTF-8. Or it is not
                JSON, is nested too deeply, has `NaN` or `Infinity`, or two members whose names differ only in case.
        """
        return self._parsed(lambda value: value, object_pairs_hook=_unique)

    def canonical_json(self) -> str:
        """Return text that only JSON with the same value has: white space and the order of members do not count.

        Numbers count as they are written, so `1`, `1.0` and a number too long for a float are all different.

        Raises:
            ValueError: see `json`.
        """
        text: str = self._parsed(repr, object_pairs_hook=_sorted, parse_int=_Number, parse_float=_Number)
        return text

    def _parsed(self, finish: Callable[[Any], Any], **hooks: Any) -> Any:
        if not self._is_plain_json:
            raise ValueError("not JSON in UTF-8 without a content coding")
        try:
            # This refuses a byte order mark, and bytes that are not UTF-8.
            return finish(json.loads(self.body.decode("utf-8"), parse_constant=_refuse, **hooks))
        except RecursionError:
            raise ValueError("JSON that is nested too deeply") from None

    @property
    def _is_plain_json(self) -> bool:
        kind = self.media_type
        if kind != "application/json" and not (kind.startswith("application/") and kind.endswith("+json")):
            return False
        values = [value for name, value in self.fields if name == b"content-type"]
        parameters = [part.strip().lower().replace(b'"', b"") for part in values[0].split(b";")[1:]]
        return all(part in (b"", b"charset=utf-8", b"charset=utf8") for part in parameters) and not any(
            name == b"content-encoding" for name, _ in self.fields
        )

    def text(self, *, canonical: bool) -> bytes:
        """Return text that only equal contents share, for the digest in a key.

        Parameters:
            canonical: whether two ways to write one JSON value are equal.
        """
        described = repr(sorted(self.fields, key=lambda pair: pair[0])).encode("latin-1")
        if canonical:
            try:
                return b"%b\njson %b" % (described, self.canonical_json().encode("utf-8", "surrogatepass"))
            except ValueError:
                pass
        return b"%b\nbytes %b" % (described, self.body)


class _Number(str):
    """A JSON number as it was written."""

    __slots__ = ()

    def __repr__(self) -> str:
        return f"number {self}"


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    # Some readers ignore the case of names, and use the last of two equal ones.
    if len({name.casefold() for name, _ in pairs}) < len(pairs):
        raise ValueError("two members have the same name")
    return dict(pairs)


def _sorted(pairs: list[tuple[str, Any]]) -> tuple[tuple[str, Any], ...]:
    _unique(pairs)
    # No two names are equal, so no values are compared.
    return tuple(sorted(pairs, key=lambda pair: pair[0]))


def _refuse(constant: str) -> NoReturn:
    raise ValueError(f"{constant} is not JSON")

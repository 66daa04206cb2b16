"""Presentable keys, which do not reveal the values of fields, cookies and queries."""

import base64
import hashlib
import re
import secrets
from typing import Final

from swr.dashboard.parts import Key
from swr.settings import without_passwords

# The most characters that are shown of a key, and of each of its parts.
_LONGEST: Final = 512
# Matches the first line of a response's key, with its host. The path and query follow in the next line.
_RESPONSE: Final = re.compile(r"GET [a-z][a-z0-9+.-]*://[^\n]*\n")
# Matches the digest of a value; see `swr.http.request`.
_DIGEST: Final = re.compile(r"[0-9a-f]{32,128}")
# Names of lines in a response's key that come from the app, not from a client.
_OPEN: Final = ("root", "version")
SECRET_BYTES: Final = 32
_TAG_BYTES: Final = 16
_PLAIN: Final = "="
_HIDDEN: Final = "~"

# Pieces of a text, each with a flag that says whether it is a hash.
Parts = list[tuple[str, bool]]


class Keys:
    """The conversion of keys to presentable ones, and back by their ids.

    The values of a query are hidden, because they may be secrets: a token in a link, or a name that a user searches
    for. The lines after the URL in a response's key are hidden, unless they are digests already. The key of a loader's
    call is shown unchanged.

    Parameters:
        shows_queries: whether to show the values of queries.

    Attributes:
        secret: encrypts the ids of keys that have hidden parts. The dashboards of a namespace share it, so that each
            can decrypt the ids of the others.
    """

    def __init__(self, *, shows_queries: bool = False) -> None:
        self._shows_queries = shows_queries
        # Without a secret, a viewer could guess short values and compare their hashes.
        self.secret = secrets.token_bytes(SECRET_BYTES)

    def shown(self, key: str) -> Key:
        """Return the presentable form of a key."""
        parts = self._parts(key)
        # A key that is not printable gets an encrypted id: JSON cannot carry lone surrogates, for example.
        is_open = key.isprintable() and not any(is_hash for _, is_hash in parts)
        name = _PLAIN + key if is_open else _HIDDEN + seal(key, self.secret)
        return {"id": name, "text": "".join(text for text, _ in parts), "parts": parts}

    def key_of(self, name: str) -> str | None:
        """Return the key of an id, or None if no dashboard of this namespace made the id."""
        if name.startswith(_PLAIN):
            return name[len(_PLAIN) :]
        return unseal(name[len(_HIDDEN) :], self.secret) if name.startswith(_HIDDEN) else None

    def url_text(self, path: str, query: str) -> str:
        """Return the presentable form of a path or URL with its query."""
        return _cut("".join(text for text, _ in [(without_passwords(path), False), *self._query(query)]))

    def _parts(self, key: str) -> Parts:
        match = _RESPONSE.match(key)
        if match is None:
            return [(_cut(key), False)]
        first, *rest = key[match.end() :].split("\n")
        path, mark, query = first.partition("?")
        parts: Parts = [(_cut(key[: match.end() - 1] + path), False)]
        if mark:
            parts += self._query(query)
        for line in rest:
            parts += self._line(line)
        return parts

    def _query(self, query: str) -> Parts:
        """Return a query with its question mark, in which a hash replaces each value."""
        if not query:
            return []
        if self._shows_queries:
            return [(_cut(f"?{query}"), False)]
        parts: Parts = []
        for number, pair in enumerate(query.split("&")[:_MOST_PARAMETERS]):
            name, equals, value = pair.partition("=")
            before = "&" if number else "?"
            if equals:
                parts += [(f"{before}{_cut(name)}=", False), (self._hash(value, 4), True)]
            else:
                # A parameter without a name may be a secret itself.
                parts += [(before, False), (self._hash(name, 4), True)]
        return parts

    def _line(self, line: str) -> Parts:
        """Return the presentable form of a line after the URL, which tells what else selects the response."""
        name, colon, value = line.partition(": ")
        if colon and name in _OPEN:
            return [(_cut(f" {line}"), False)]
        if colon and _DIGEST.fullmatch(value):
            return [(_cut(f" {name}: "), False), (value[:8], True)]
        return [(" ", False), (self._hash(line, 4), True)]

    def _hash(self, text: str, size: int) -> str:
        data = text.encode("utf-8", "surrogatepass")
        return hashlib.blake2b(data, digest_size=size, key=self.secret).hexdigest()


_MOST_PARAMETERS: Final = 50


def seal(text: str, secret: bytes) -> str:
    """Return a text encrypted and authenticated with a secret. The result is the same for the same text.

    The id of a key must contain the key. A table of shown keys would not do: another worker may answer the next
    request, and a link may be older than the process. Python has no cipher, and the dashboard should not need a
    further package.

    This is SIV (Rogaway and Shrimpton, 2006; RFC 5297): the tag is a keyed function of the text, and the key stream is
    a keyed function of the tag. Keyed BLAKE2b is such a function, and `person` separates the two uses. An id reveals
    the length of its key, and whether two keys are the same. A forged id is valid with a probability of 2**-128.
    """
    data = text.encode("utf-8", "surrogatepass")
    tag = hashlib.blake2b(data, digest_size=_TAG_BYTES, key=secret, person=b"tag").digest()
    return base64.urlsafe_b64encode(tag + _masked(data, tag, secret)).decode()


def unseal(sealed: str, secret: bytes) -> str | None:
    """Return the text of a result of `seal`, or None if it was not made with this secret."""
    try:
        data = base64.b64decode(sealed, b"-_", validate=True)
        tag, text = data[:_TAG_BYTES], _masked(data[_TAG_BYTES:], data[:_TAG_BYTES], secret)
        known = hashlib.blake2b(text, digest_size=_TAG_BYTES, key=secret, person=b"tag").digest()
        return text.decode("utf-8", "surrogatepass") if secrets.compare_digest(tag, known) else None
    except ValueError:
        return None


def _masked(data: bytes, tag: bytes, secret: bytes) -> bytes:
    """Return data XORed with the key stream of a tag. A second call gives the data back."""
    stream = b"".join(
        hashlib.blake2b(tag + number.to_bytes(4), key=secret, person=b"stream").digest()
        for number in range(-(-len(data) // 64))
    )
    return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def _cut(text: str) -> str:
    """Return the beginning of a text, without lone surrogates, which JSON cannot carry."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text.encode("utf-8", "replace").decode()

"""Keys as they may be shown: what a field, a cookie or a query said is not readable in them."""

import base64
import hashlib
import re
import secrets
from typing import Final

from swr.dashboard.parts import Key
from swr.settings import without_passwords

# Characters of a key that are shown.
_LONGEST: Final = 512
# The key of a response: its host, and its path and query in a line of their own.
_RESPONSE: Final = re.compile(r"GET [a-z][a-z0-9+.-]*://[^\n]*\n")
# What swr has made of a value: a digest, see `swr.http.request`.
_DIGEST: Final = re.compile(r"[0-9a-f]{32,128}")
# Lines of a response's key that the app has written, and no client.
_OPEN: Final = ("root", "version")
SECRET_BYTES: Final = 32
_TAG_BYTES: Final = 16
_PLAIN: Final = "="
_HIDDEN: Final = "~"

# Pieces of a text, each with whether it is a hash.
Parts = list[tuple[str, bool]]


class Keys:
    """Shows keys, and finds the key that a shown one represents.

    The values of a query are hidden, because they may be secrets: a token in a link, a name somebody searches for. What
    follows the URL in a response's key is hidden unless it is a digest already. The key of a loader's call is shown as
    its template makes it.

    Parameters:
        shows_queries: whether values of a query are shown.

    Attributes:
        secret: seals the ids of keys that have hidden parts. Dashboards of one namespace share it, so that each
            understands the ids of the others.
    """

    def __init__(self, *, shows_queries: bool = False) -> None:
        self._shows_queries = shows_queries
        # Without it somebody could guess short values, and compare.
        self.secret = secrets.token_bytes(SECRET_BYTES)

    def shown(self, key: str) -> Key:
        """Return a key as it may be shown."""
        parts = self._parts(key)
        # JSON carries no halves of characters, which a key may hold.
        is_open = key.isprintable() and not any(is_hash for _, is_hash in parts)
        name = _PLAIN + key if is_open else _HIDDEN + seal(key, self.secret)
        return {"id": name, "text": "".join(text for text, _ in parts), "parts": parts}

    def key_of(self, name: str) -> str | None:
        """Return the key with this id; None: it is not one of these dashboards'."""
        if name.startswith(_PLAIN):
            return name[len(_PLAIN) :]
        return unseal(name[len(_HIDDEN) :], self.secret) if name.startswith(_HIDDEN) else None

    def url_text(self, path: str, query: str) -> str:
        """Return a path, or a URL, and a query as they may be shown."""
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
        """Return a query with its mark: the names, with a substitute for each value."""
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
                # Without a name the whole may be the secret.
                parts += [(before, False), (self._hash(name, 4), True)]
        return parts

    def _line(self, line: str) -> Parts:
        """Return a line behind the URL, which says what else selects the response."""
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
    """Return a text that only the secret can open or make; the same text is always sealed in the same way.

    The id of a key has to hold the key. Another worker may answer the next request, and a link may be older than the
    process, so a table of what was shown would not find it. Python has no cipher, and a page that one mounts in the
    first hour should need no package that has one.

    This is SIV (Rogaway and Shrimpton, 2006; RFC 5297): the tag is a keyed function of the text, and the key stream one
    of the tag. BLAKE2b with a key is such a function, and `person` makes two independent ones of it. An id tells how
    long the key is, and whether two are the same. A guess is as good as one in 2**128.
    """
    data = text.encode("utf-8", "surrogatepass")
    tag = hashlib.blake2b(data, digest_size=_TAG_BYTES, key=secret, person=b"tag").digest()
    return base64.urlsafe_b64encode(tag + _masked(data, tag, secret)).decode()


def unseal(sealed: str, secret: bytes) -> str | None:
    """Return the text that was sealed; None: it was not, or with another secret."""
    try:
        data = base64.b64decode(sealed, b"-_", validate=True)
        tag, text = data[:_TAG_BYTES], _masked(data[_TAG_BYTES:], data[:_TAG_BYTES], secret)
        known = hashlib.blake2b(text, digest_size=_TAG_BYTES, key=secret, person=b"tag").digest()
        return text.decode("utf-8", "surrogatepass") if secrets.compare_digest(tag, known) else None
    except ValueError:
        return None


def _masked(data: bytes, tag: bytes, secret: bytes) -> bytes:
    """Return data with the key stream of a tag added, bit by bit. To add it twice gives the data back."""
    stream = b"".join(
        hashlib.blake2b(tag + number.to_bytes(4), key=secret, person=b"stream").digest()
        for number in range(-(-len(data) // 64))
    )
    return bytes(one ^ other for one, other in zip(data, stream, strict=False))


def _cut(text: str) -> str:
    """Return the beginning of a text, which JSON can carry."""
    text = text if len(text) <= _LONGEST else f"{text[:_LONGEST]}…"
    return text.encode("utf-8", "replace").decode()

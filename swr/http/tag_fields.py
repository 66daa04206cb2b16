"""Response fields that name tags for the caches on the way: `Surrogate-Key`, `Cache-Tag`, `xkey`. Pure.

| field | separator of its tags | who reads it |
| --- | --- | --- |
| `Surrogate-Key` | white space | Fastly |
| `xkey` | white space or commas | Varnish |
| `Cache-Tag`, `Edge-Cache-Tag`, any `...-Tag` or `...-Tags` | commas | Cloudflare, Akamai, Netlify |

Apps send text beyond ASCII as UTF-8 or as Latin-1 (as Starlette does), and no field says which. So swr counts such a
tag as both.
"""

from collections.abc import Collection
from typing import Final

from swr.http.fields import Headers, values_of

# Tags that one response may have, and bytes that each may have. A response with more is not stored, because an
# invalidation by one of the rest would miss it.
MOST_TAGS: Final = 1000
LONGEST_TAG: Final = 1024


def tags_in(headers: Headers, names: Collection[bytes]) -> tuple[str, ...] | None:
    """Return the tags in fields; None: there are too many tags, or too long ones.

    Parameters:
        names: the names of the fields, lower case.
    """
    found: dict[bytes, None] = {}
    for name in names:
        for value in values_of(headers, name):
            for tag in separated(name, value):
                if len(tag) > LONGEST_TAG:
                    return None
                found[tag] = None
    if len(found) > MOST_TAGS:
        return None
    return tuple(dict.fromkeys(text for tag in found for text in _texts_of(tag)))


def _texts_of(tag: bytes) -> tuple[str, ...]:
    """Return the texts that a tag may mean, in UTF-8 and in Latin-1."""
    latin = tag.decode("latin-1")
    try:
        return (tag.decode(), latin)
    except UnicodeDecodeError:
        return (latin,)


def separated(name: bytes, value: bytes) -> list[bytes]:
    """Return the tags in one line of a field; see the table of this module."""
    if name.endswith((b"-tag", b"-tags")):
        parts = [part.strip(b" \t") for part in value.split(b",")]
    elif name == b"xkey":
        # A value with a comma in it may also be one key.
        parts = [part for word in value.split() for part in (word, *word.split(b","))]
    else:
        parts = value.split()
    return [part for part in parts if part]

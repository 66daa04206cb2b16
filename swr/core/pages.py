"""Large lists, tuples, sets and dicts in pages, so that no single step of writing or reading a value takes long.

msgspec blocks all other threads while it works. A thread that handles one page after the other lets the event loop run
in between.
"""

import copy
import functools
import typing
from collections.abc import Callable, Iterator, Mapping
from itertools import chain, islice
from typing import Any, Final

import msgspec

from swr.core.fidelity import fields_of, put

# The most items of a page, and the most parts that these items should have together. A value with more than `LARGE`
# items always has pages.
_PAGE: Final = 2000
_PARTS: Final = 5 * _PAGE
LARGE: Final = 2 * _PAGE
# A value with at most this many items gets no pages: a single item may take most of the time.
_FEW: Final = 8
# Characters or bytes that count as one part.
_TEXT: Final = 1000
# A dict with at most this many items counts as an object, and each of its items is measured. Of longer dicts and lists
# only this many items are measured.
_FIELDS: Final = 8
# Only values of exactly these types have pages, because a subclass of the user may behave differently.
_KINDS: Final = frozenset({list, tuple, set, frozenset, dict})


class Paged(msgspec.Struct, array_like=True):
    """A value in pages.

    Parameters:
        outer: the bytes of the value, in which one list, tuple, set or dict is empty.
        name: the attribute or key of the value where that empty part is; None: the value itself is that part.
        pages: the bytes of each page of the part.
    """

    outer: bytes
    name: str | None
    pages: list[bytes]


def large_part(value: Any) -> tuple[str | None, Any] | None:
    """Return the name and the value of a part that needs pages, or None. The name None means `value` itself."""
    if _needs_pages(value):
        return None, value
    for name, part in _parts(value):
        if type(name) is str and _needs_pages(part):
            return name, part
    return None


def _needs_pages(part: Any) -> bool:
    if type(part) not in _KINDS or len(part) <= _FEW:
        return False
    return len(part) > LARGE or len(part) * _item_size(part) > 2 * _PARTS


def _item_size(part: Any) -> int:
    """Return how many parts one item has, estimated from the first items."""
    some = islice(part.values() if isinstance(part, dict) else part, _FIELDS)
    return max((_size(item, 5) for item in some), default=1)


def _parts(value: Any) -> Iterator[tuple[Any, Any]]:
    if type(value) is dict:
        yield from value.items()
    elif not isinstance(value, (str, bytes, list, tuple)):
        for name in fields_of(type(value)) or ():
            yield name, getattr(value, name)


def is_large(value: Any) -> bool:
    """Return whether a thread should write a value, because it has many or long parts. Some parts are measured."""
    return _size(value, 6) > LARGE


def _size(value: Any, depth: int) -> int:
    if isinstance(value, (str, bytes)):
        return 1 + len(value) // _TEXT
    if not depth or isinstance(value, (int, float, type(None))):
        return 1
    if isinstance(value, dict) and len(value) <= _FIELDS:
        return 1 + sum(_size(part, depth - 1) for part in value.values())
    if isinstance(value, (list, tuple, set, frozenset, dict)):
        some = islice(value.values() if isinstance(value, dict) else value, _FIELDS)
        return 1 + len(value) * max((_size(part, depth - 1) for part in some), default=0)
    own = getattr(value, "__dict__", None)
    fields = [getattr(value, name) for name in fields_of(type(value)) or ()] if own is None else own.values()
    return 1 + sum(_size(field, depth - 1) for field in fields)


def without(value: Any, name: str | None, part: Any) -> Any:
    """Return a copy of `value` in which the part is empty."""
    empty = type(part)()
    if name is None:
        return empty
    outer = copy.copy(value)
    if isinstance(outer, dict):
        outer[name] = empty
    else:
        put(outer, name, empty)
    return outer


def pages_of(part: Any) -> Iterator[Any]:
    """Yield the pages of a list, tuple, set or dict."""
    length = max(1, min(_PAGE, _PARTS // _item_size(part)))
    items = iter(part.items() if isinstance(part, dict) else part)
    while page := type(part)(islice(items, length)):
        yield page


def kind_of(kind: Any, value: Any, name: str) -> Any:
    """Return the type of a part of `value` according to its annotation `kind`; None: the annotation does not tell."""
    if type(value) is dict:
        if kind in (Any, dict):
            return Any
        arguments = typing.get_args(kind)
        if typing.get_origin(kind) is dict:
            return arguments[1]
        return _hints(kind).get(name) if isinstance(kind, type) else None
    hint = _hints(type(value)).get(name)
    # The hint of a generic class may be a type variable, which only the loader's annotation resolves.
    return None if getattr(hint, "__parameters__", ()) or isinstance(hint, typing.TypeVar) else hint


def _read_hints(kind: Any) -> Mapping[str, Any]:
    return typing.get_type_hints(kind, include_extras=True)


_hints: Final[Callable[[Any], Mapping[str, Any]]] = functools.lru_cache(maxsize=1024)(_read_hints)


def fill(outer: Any, name: str | None, pages: Iterator[Any]) -> Any:
    """Return `outer` with its empty part filled from the pages."""
    part = outer if name is None else outer[name] if isinstance(outer, dict) else getattr(outer, name)
    if isinstance(part, (list, set, dict)):
        for page in pages:
            if isinstance(part, list):
                part.extend(page)
            else:
                part.update(page)
        return outer
    # All pages at once: an immutable part would be copied again for each page.
    filled = type(part)(chain.from_iterable(pages))
    if name is None:
        return filled
    if isinstance(outer, dict):
        outer[name] = filled
    else:
        put(outer, name, filled)
    return outer

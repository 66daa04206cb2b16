"""Arguments as text and as copies: the text becomes part of a key, and a later load is called with the copy.

The text shows the type of each value: `1`, `"1"`, `True`, `None`, `1.0`, `("a:b",)` and `("a", "b")` all differ. It is
the same in every process (`hash()` is salted and never used). A `str` or `int` subclass, such as a `StrEnum` member,
is written as the string or number that it equals.
"""

import collections
import copy
import datetime
import decimal
import enum
import re
import types
import uuid
from collections.abc import Callable, Mapping
from typing import Any, Final

# Equal values of one of these types always have the same text, so the key of a call with only such values can be
# remembered. This does not hold for float (0.0 == -0.0) and datetime (equal in two time zones).
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, uuid.UUID})

_TEXT_TYPES: Final = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
# Other mappings may hold more than their items show: the query `?a=1&a=2` as a mapping has one item.
_MAPPINGS: Final = frozenset({dict, collections.defaultdict, collections.Counter, types.MappingProxyType})
# Immutable types, which need no copy.
CONSTANT: Final = (str, int, float, bytes, type(None), enum.Enum, *_TEXT_TYPES)


class Unkeyable(TypeError):
    """A value that has no canonical text, or cannot be copied; the message is the type of the part that prevents it."""


def canonical(value: Any) -> str:
    """Return text that only an equal value of the same type has.

    Raises:
        Unkeyable: the value, or one inside it, is of a type that has no such text.
        RecursionError: the value contains itself, or is nested too deeply.
        ValueError: the value contains an integer with more digits than Python writes.
    """
    kind = type(value)
    if isinstance(value, enum.Enum) and not isinstance(value, (str, int)):
        # A combination of flags may have no name.
        name = value.name if value.name is not None else canonical(value.value)
        return f"~{kind.__module__}.{kind.__qualname__}.{name}"
    if isinstance(value, str):
        return _text(str.__str__(value))
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (bytes, bytearray)):
        return f"~bytes({bytes(value).hex()})"
    if isinstance(value, _TEXT_TYPES):
        return f"~{kind.__name__}({_moment(value) if hasattr(value, 'isoformat') else value})"
    if isinstance(value, (list, tuple)):
        return f"~{_container(kind)}({','.join(map(_item, value))})"
    if isinstance(value, (set, frozenset)):
        name = "set" if kind in (set, frozenset) else _container(kind)
        return f"~{name}({','.join(sorted(map(_item, value)))})"
    if kind in _MAPPINGS:
        return f"~dict({','.join(sorted(_pairs(value)))})"
    if kind is collections.OrderedDict:
        return f"~OrderedDict({','.join(_pairs(value))})"
    raise Unkeyable(f"{kind.__module__}.{kind.__qualname__}")


def _text(value: str) -> str:
    """Return a string, in quotes if it could be taken for another value or for a quoted string."""
    if value == "" or value[0] in "'~" or value in ("None", "True", "False"):
        return f"'{value}'"
    try:
        float(value)
    except ValueError:
        return value
    return f"'{value}'"


def _moment(value: Any) -> str:
    """Return a date or time as ISO text, with its fold and the name of its time zone, which ISO text leaves out.

    The fold is 1 in the second run of an hour when clocks go back. Zones with the same offset now may differ later.
    """
    zone = getattr(value, "tzinfo", None)
    named = "" if zone is None or isinstance(zone, datetime.timezone) else f"[{zone}]"
    return f"{value.isoformat()}{named}{'*' if getattr(value, 'fold', 0) else ''}"


def _container(kind: type) -> str:
    # Named tuples of two classes with the same items are equal, but may mean different things.
    return kind.__name__ if kind in (list, tuple) else f"{kind.__module__}.{kind.__qualname__}"


_IN_CONTAINER: Final = str.maketrans({char: f"%{ord(char):02X}" for char in "%(),=~"})


def _item(value: Any) -> str:
    """Return the text of a value inside a container, with the characters escaped that would change its shape."""
    if isinstance(value, str):
        return _text(str.__str__(value).translate(_IN_CONTAINER))
    return canonical(value)


def _pairs(value: Mapping[Any, Any]) -> list[str]:
    return [f"{_item(name)}={_item(item)}" for name, item in value.items()]


_NAMES: Final[Mapping[str, Any]] = {"None": None, "True": True, "False": False}
_AS_TEXT: Final = re.compile(r"~(?:datetime|date|time|Decimal|UUID)\((.*)\)")


def plain_of(text: str) -> Any:
    """Return the value of a canonical text; dates, times, decimal numbers and UUIDs come back as strings.

    Raises:
        ValueError: the value is a container, or only user code could make it.
    """
    if text in _NAMES:
        return _NAMES[text]
    if text.startswith("'"):
        return text[1:-1]
    if text.startswith("~"):
        match = _AS_TEXT.fullmatch(text)
        if match is None:
            raise ValueError(f"{text!r} is not a plain value")
        return match[1]
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            pass
    return text


def snapshot(value: Any) -> Any:
    """Return a copy of `value`, which has a canonical text, so that later changes of `value` do not affect the copy.

    Raises:
        Unkeyable: the value, or one inside it, cannot be copied.
    """
    if isinstance(value, CONSTANT):
        return value
    copied = _COPIES.get(type(value))
    if copied is not None:
        return copied(value)
    try:
        whole = copy.deepcopy(value)
    except Exception as error:
        raise Unkeyable(f"{type(value).__module__}.{type(value).__qualname__} ({error})") from None
    if canonical(whole) != canonical(value):
        raise Unkeyable(f"{type(value).__module__}.{type(value).__qualname__}, whose copy differs")
    return whole


_COPIES: Final[Mapping[type, Callable[[Any], Any]]] = {
    list: lambda value: list(map(snapshot, value)),
    tuple: lambda value: tuple(map(snapshot, value)),
    set: set,
    frozenset: frozenset,
    bytearray: bytearray,
    dict: lambda value: {name: snapshot(item) for name, item in value.items()},
    types.MappingProxyType: lambda value: types.MappingProxyType(
        {name: snapshot(item) for name, item in value.items()}
    ),
}

"""Arguments as text and as copies: the text is in a key, and the copy is what a later load is called with.

Every value is written with its type in view: `1`, `"1"`, `True`, `None`, `1.0`, `("a:b",)` and `("a", "b")`
all differ, in every process alike (`hash()` is salted and never used). A `str` or `int` subclass, such as a `StrEnum`
member, is written as the string or number that it equals.
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

# Types whose equal values of the same type always have the same text: a call made of these alone can be
# remembered. Not float (0.0 == -0.0), nor datetime (equal in two time zones).
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, uuid.UUID})

_TEXT_TYPES: Final = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
# Others may hold more than their items show: `?a=1&a=2` as a mapping has one item.
_MAPPINGS: Final = frozenset({dict, collections.defaultdict, collections.Counter, types.MappingProxyType})
# What nothing can change.
CONSTANT: Final = (str, int, float, bytes, type(None), enum.Enum, *_TEXT_TYPES)


class Unkeyable(TypeError):
    """A value that has no canonical text, or cannot be copied; says what it holds."""


def canonical(value: Any) -> str:
    """Return text that only an equal value of the same type has.

    Raises:
        Unkeyable: the value, or one inside it, is of a type that has no such text.
        RecursionError: it holds itself, or is nested too deeply.
        ValueError: it holds an integer with more digits than Python writes.
    """
    kind = type(value)
    if isinstance(value, enum.Enum) and not isinstance(value, (str, int)):
        # Flags that no member has may have no name.
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
    """Quote a string that could be taken for something else; escape the quote only where it quotes."""
    if value == "" or value[0] in "'~" or value in ("None", "True", "False"):
        return f"'{value}'"
    try:
        float(value)
    except ValueError:
        return value
    return f"'{value}'"


def _moment(value: Any) -> str:
    """A date or time, with what its ISO text leaves out.

    That is the fold of a clock that goes back, and the time zone: one hour later may have another offset.
    """
    zone = getattr(value, "tzinfo", None)
    named = "" if zone is None or isinstance(zone, datetime.timezone) else f"[{zone}]"
    return f"{value.isoformat()}{named}{'*' if getattr(value, 'fold', 0) else ''}"


def _container(kind: type) -> str:
    # Two classes of tuples with the same items are equal, and may mean different things.
    return kind.__name__ if kind in (list, tuple) else f"{kind.__module__}.{kind.__qualname__}"


_IN_CONTAINER: Final = str.maketrans({char: f"%{ord(char):02X}" for char in "%(),=~"})


def _item(value: Any) -> str:
    """A value inside a container: the characters of strings that would change its shape are quoted."""
    if isinstance(value, str):
        return _text(str.__str__(value).translate(_IN_CONTAINER))
    return canonical(value)


def _pairs(value: Mapping[Any, Any]) -> list[str]:
    return [f"{_item(name)}={_item(item)}" for name, item in value.items()]


_NAMES: Final[Mapping[str, Any]] = {"None": None, "True": True, "False": False}
_AS_TEXT: Final = re.compile(r"~(?:datetime|date|time|Decimal|UUID)\((.*)\)")


def plain_of(text: str) -> Any:
    """Return the value whose canonical text this is; that of a moment, a decimal number or a UUID as a string.

    Raises:
        ValueError: only the caller's own code could make such a value, or it is a container.
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
    """Return `value`, which has a canonical text, as it is now: what is done to it later does not change the copy.

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

"""The size of objects in memory, so that a cap in bytes holds for live objects."""

import gc
import sys
import types
from collections.abc import Callable
from typing import Any, Final

# Types of objects that a value refers to but does not own.
_SHARED: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.CodeType,
    types.FrameType,
)
# Types that refer to no other object, each with a function for its size. `sys.getsizeof` takes five times as long.
_SIZES: Final[dict[type, Callable[[Any], int]]] = {
    bytes: bytes.__sizeof__,
    str: str.__sizeof__,
    int: int.__sizeof__,
    float: float.__sizeof__,
    bool: bool.__sizeof__,
    types.NoneType: object.__sizeof__,
}
_FLAT: Final = tuple(_SIZES)
# The most frequent types that refer to other objects. Looking them up is faster than testing for the classes above.
_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})
_MOST_OBJECTS: Final = 1_000_000
# Objects counted between two checks of the limit, and by one call of `gc`, during which other threads wait.
_AT_ONCE: Final = 1000


def memory_size(value: Any) -> int:
    """Return the bytes that `value` and everything it refers to occupy, every object counted once.

    After a million objects the function stops and estimates the rest, because counting takes time.
    """
    return measure(value, _MOST_OBJECTS)[0]


def measure(value: Any, most: int) -> tuple[int, bool]:
    """Return the bytes that `value` and everything it refers to occupy, and whether every object was counted.

    Parameters:
        most: how many objects are counted at most; for the others, their average size is assumed.
    """
    if issubclass(type(value), _FLAT):
        return sys.getsizeof(value), True
    total = 0
    seen: set[int] = set()
    pending = [value]
    size_of = _SIZES.get
    while pending and len(seen) < most:
        batch = pending[-_AT_ONCE:]
        del pending[-_AT_ONCE:]
        owners: list[Any] = []
        for item in batch:
            number = id(item)
            if number in seen:
                continue
            seen.add(number)
            kind = type(item)
            size = size_of(kind)
            if size is not None:
                total += size(item)
            elif kind in _CONTAINERS:
                owners.append(item)
                if kind is dict:
                    # `gc.get_referents` leaves out the keys of a dict whose keys are all strings.
                    pending += item
            elif issubclass(kind, _FLAT):
                total += sys.getsizeof(item)
            elif not issubclass(kind, _SHARED):
                owners.append(item)
                if issubclass(kind, dict):
                    pending += item
        if owners:
            total += sum(map(sys.getsizeof, owners))
            pending += gc.get_referents(*owners)
    if not pending:
        return total, True
    return total + len(pending) * total // len(seen), False

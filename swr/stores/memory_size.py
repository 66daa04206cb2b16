"""The size of objects in memory, so that a cap in bytes holds for live objects."""

import gc
import sys
import types
from collections.abc import Callable
from typing import Any, Final

# Things that an object leads to but does not own: classes, code, modules.
_SHARED: Final = (
    type,
    types.ModuleType,
    types.FunctionType,
    types.BuiltinFunctionType,
    types.MethodType,
    types.CodeType,
    types.FrameType,
)
# What leads to nothing, and the bytes of one: `sys.getsizeof` takes five times as long.
_SIZES: Final[dict[type, Callable[[Any], int]]] = {
    bytes: bytes.__sizeof__,
    str: str.__sizeof__,
    int: int.__sizeof__,
    float: float.__sizeof__,
    bool: bool.__sizeof__,
    types.NoneType: object.__sizeof__,
}
_FLAT: Final = tuple(_SIZES)
# Most of what leads to something else: it is looked up at once, where a search among the classes above takes longer.
_CONTAINERS: Final = frozenset({dict, list, tuple, set, frozenset})
_MOST_OBJECTS: Final = 1_000_000
# Objects that are counted between two looks at the limit, and by one call that keeps other threads waiting.
_AT_ONCE: Final = 1000


def memory_size(value: Any) -> int:
    """Return the bytes that `value` and everything it leads to occupy, every object counted once.

    Past a million objects it stops and returns an estimate, because counting takes time itself.
    """
    return measure(value, _MOST_OBJECTS)[0]


def measure(value: Any, most: int) -> tuple[int, bool]:
    """Return the bytes that `value` and everything it leads to occupy, and whether all of that was counted.

    Parameters:
        most: how many objects are counted; the others are taken for as large as these.
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
                    # The collector passes over keys that are strings.
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

"""The size of objects in memory, so that a cap in bytes holds for live objects."""

import gc
import sys
import types
from collections import defaultdict
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
    while pending and len(seen) < most:
        batch = {id(item): item for item in pending[-_AT_ONCE:]}
        del pending[-_AT_ONCE:]
        of_kind: defaultdict[type, list[Any]] = defaultdict(list)
        for number, item in batch.items():
            if number not in seen:
                of_kind[type(item)].append(item)
        seen.update(batch)
        for kind, items in of_kind.items():
            if kind in _SIZES:
                total += sum(map(_SIZES[kind], items))
            elif not issubclass(kind, _SHARED):
                total += sum(map(sys.getsizeof, items))
                pending += _led_to_by(kind, items)
    if not pending:
        return total, True
    return total + len(pending) * total // len(seen), False


def _led_to_by(kind: type, items: list[Any]) -> list[Any]:
    """Return what objects of one type lead to."""
    if issubclass(kind, _FLAT):
        return []
    found = gc.get_referents(*items)
    if issubclass(kind, dict):
        for item in items:
            # The collector passes over keys that are strings.
            found += item
    return found

"""The size of objects in memory, so that a cap in bytes holds for live objects."""

import gc
import sys
import types
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
_FLAT: Final = (bytes, str, int, float, bool, type(None))
_NESTED: Final = frozenset({tuple, list, dict})
_PLAIN: Final = _NESTED | {*_FLAT}
_MOST_OBJECTS: Final = 1_000_000
# So many objects are counted between two looks at the limit, and by one call that keeps other threads waiting.
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
    if isinstance(value, _FLAT):
        return sys.getsizeof(value), True
    total = 0
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < most:
        batch = {
            id(item): item
            for item in pending[-_AT_ONCE:]
            # To compare a class with all of `_SHARED` takes longer than the rest.
            if id(item) not in seen and (type(item) in _PLAIN or not isinstance(item, _SHARED))
        }
        del pending[-_AT_ONCE:]
        seen.update(batch)
        total += sum(map(sys.getsizeof, batch.values()))
        found = [item for item in batch.values() if type(item) in _NESTED or not isinstance(item, _FLAT)]
        pending += gc.get_referents(*found)
        for item in found:
            if isinstance(item, dict):
                # The collector passes over keys that are strings.
                pending += item
    if not pending:
        return total, True
    return total + len(pending) * total // len(seen), False

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
        found = []
        keys: list[Any] = []
        batch = pending[-_AT_ONCE:]
        del pending[-_AT_ONCE:]
        for item in batch:
            if id(item) in seen or isinstance(item, _SHARED):
                continue
            seen.add(id(item))
            total += sys.getsizeof(item)
            if not isinstance(item, _FLAT):
                found.append(item)
                if isinstance(item, dict):
                    # The collector passes over keys that are strings.
                    keys.extend(item)
        pending += gc.get_referents(*found)
        pending += keys
    if not pending:
        return total, True
    return total + len(pending) * total // len(seen), False

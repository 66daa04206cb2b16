"""The size of objects in memory, so that a cap in bytes holds for live objects."""

import gc
import sys
import types
from typing import Any, Final

# What an object leads to but does not own: classes, code, modules.
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


def memory_size(value: Any) -> int:
    """Return the bytes that `value` and everything it leads to occupy, every object counted once.

    Past a million objects it stops and returns what it has counted, because counting takes time itself.
    """
    if isinstance(value, _FLAT):
        return sys.getsizeof(value)
    total = 0
    seen: set[int] = set()
    pending = [value]
    while pending and len(seen) < _MOST_OBJECTS:
        found = []
        keys: list[Any] = []
        for item in pending:
            if id(item) in seen or isinstance(item, _SHARED):
                continue
            seen.add(id(item))
            total += sys.getsizeof(item)
            if not isinstance(item, _FLAT):
                found.append(item)
                if isinstance(item, dict):
                    # The collector passes over keys that are strings.
                    keys.extend(item)
        pending = gc.get_referents(*found)
        pending += keys
    return total

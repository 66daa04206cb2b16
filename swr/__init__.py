"""swr: a stale-while-revalidate cache. Served at once, refreshed exactly once.

`import swr` imports no module of swr. The first use of a name, as in `from swr import Cache`, imports its module.
"""

import importlib
import sys
import types
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    from swr.cache import Cache
    from swr.core.byte_codec import ByteCodec, NameCodec
    from swr.dashboard.mount import dashboard
    from swr.entry import Outcome, State
    from swr.errors import (
        CodecError,
        ConfigurationError,
        LeaseLost,
        LoadTimeout,
        StoreError,
        StoreUnavailable,
        SWRError,
    )
    from swr.loaders.cached import Cached
    from swr.loaders.cached_many import CachedMany
    from swr.loaders.context import NOT_MODIFIED, Fresh, LoadContext, NotModified
    from swr.policy import Policy
    from swr.refreshers import Refresher

__version__ = "0.1.0"

__all__ = [
    "NOT_MODIFIED",
    "ByteCodec",
    "Cache",
    "Cached",
    "CachedMany",
    "CodecError",
    "ConfigurationError",
    "Fresh",
    "LeaseLost",
    "LoadContext",
    "LoadTimeout",
    "NameCodec",
    "NotModified",
    "Outcome",
    "Policy",
    "Refresher",
    "SWRError",
    "State",
    "StoreError",
    "StoreUnavailable",
    "dashboard",
]

# The module of each public name. `tests/test_imports.py` checks that the names match the imports above.
_MODULES: Final = {
    "NOT_MODIFIED": "swr.loaders.context",
    "ByteCodec": "swr.core.byte_codec",
    "Cache": "swr.cache",
    "Cached": "swr.loaders.cached",
    "CachedMany": "swr.loaders.cached_many",
    "CodecError": "swr.errors",
    "ConfigurationError": "swr.errors",
    "Fresh": "swr.loaders.context",
    "LeaseLost": "swr.errors",
    "LoadContext": "swr.loaders.context",
    "LoadTimeout": "swr.errors",
    "NameCodec": "swr.core.byte_codec",
    "NotModified": "swr.loaders.context",
    "Outcome": "swr.entry",
    "Policy": "swr.policy",
    "Refresher": "swr.refreshers",
    "SWRError": "swr.errors",
    "State": "swr.entry",
    "StoreError": "swr.errors",
    "StoreUnavailable": "swr.errors",
    "dashboard": "swr.dashboard.mount",
}

if not TYPE_CHECKING:
    # If type checkers saw a module's `__getattr__`, they would accept misspelled names.
    def __getattr__(name: str) -> Any:
        """Import the module of a public name and return the object. Python's import lock makes other threads wait."""
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
        return value

    class _Package(types.ModuleType):
        """A package whose submodules cannot replace public names: Python would set `swr.dashboard` to the folder."""

        def __setattr__(self, name: str, value: Any) -> None:
            if name not in _MODULES or not isinstance(value, types.ModuleType):
                super().__setattr__(name, value)

    sys.modules[__name__].__class__ = _Package


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})

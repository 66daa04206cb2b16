"""The dashboard: an ASGI app that shows a fleet of caches while it runs.

Public name: `dashboard`, which users call as `swr.dashboard`. Everything else is private.
`state` has the JSON messages, with the table of routes; the page in `static/`, `swr top` and programs read the same.
Imports: the cache, the refreshers' queues and what is below them.
"""

import sys
from types import ModuleType
from typing import Any

from swr.dashboard.mount import ASGIApp, dashboard


class _Callable(ModuleType):
    """Python calls this package `swr.dashboard`, too, as soon as one of its modules is imported."""

    def __call__(self, *args: Any, **options: Any) -> ASGIApp:
        """See `swr.dashboard.mount.dashboard`."""
        return dashboard(*args, **options)


sys.modules[__name__].__class__ = _Callable

"""The dashboard: an ASGI app that shows a fleet of caches while it runs.

Public name: `dashboard`, which users call as `swr.dashboard`. Everything else is private.
`state` describes the routes and the JSON messages, which the page in `static/`, `swr top` and programs read.
Imports: the cache, the refreshers' queues and the folders below them.
"""

import sys
from types import ModuleType
from typing import Any

from swr.dashboard.mount import ASGIApp, dashboard


class _Callable(ModuleType):
    """A module that can be called: importing a module of this package makes `swr.dashboard` the package itself."""

    def __call__(self, *args: Any, **options: Any) -> ASGIApp:
        """See `swr.dashboard.mount.dashboard`."""
        return dashboard(*args, **options)


sys.modules[__name__].__class__ = _Callable

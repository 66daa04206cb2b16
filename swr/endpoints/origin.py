"""The path template of the route that has answered a request, under which swr counts its responses."""

import contextlib
import uuid
from collections.abc import Mapping
from typing import Any, Final

from swr.stats.counts import ROUTE

# The types into which Starlette's converters turn a part of a path.
_CONVERTED: Final = (str, int, float, uuid.UUID)


def origin_of(scope: Mapping[str, Any]) -> str:
    """Return the name of the route that has answered, as entries carry it; `ROUTE` alone if swr does not see a route.

    Parameters:
        scope: the scope of the request, after the app has answered.
    """
    route = scope.get("route")
    included = scope.get("fastapi", {}).get("effective_route_context")
    path = getattr(included, "path", None) or getattr(route, "path", None)
    if not isinstance(path, str):
        return ROUTE
    prefix = _prefix(scope)
    # A route with `routes` is a mount, and the app behind it has answered without a route of its own.
    return ROUTE + (prefix if hasattr(route, "routes") and prefix else prefix + path)


def _prefix(scope: Mapping[str, Any]) -> str:
    """Return the templates of the mounts on the way to the route."""
    root: str = scope.get("root_path", "")
    before: str = scope.get("app_root_path", root)
    if root == before:
        return ""
    values, prefix = scope.get("path_params", {}), f"{root.removeprefix(before)}/"
    for name, value in values.items():
        if isinstance(value, str) and "/" in value:
            prefix = prefix.replace(f"/{value}/", f"/{{{name}}}/", 1)
    return "/".join(_template_of(part, values) for part in prefix[:-1].split("/"))


def _template_of(part: str, values: Mapping[str, Any]) -> str:
    """Return a part of the path; if it is the value of a parameter, return the parameter's name in braces instead."""
    for name, value in values.items():
        if isinstance(value, _CONVERTED) and part:
            with contextlib.suppress(ValueError):
                if type(value)(part) == value:
                    return f"{{{name}}}"
    return part

"""The scope that a run of the app gets: which routes it has chosen, what it has looked at, whether it was copied."""

import functools
import sys
from collections.abc import Iterator, MutableMapping
from types import FrameType, FunctionType, MethodType
from typing import Any, Final

from starlette.routing import Router

from swr.endpoints.outer import OuterState
from swr.endpoints.reads import ADDRESS, NO_READS, Reads, watched

_MIXIN: Final = MutableMapping[str, Any]
# Apps that wrap apps are looked into so deep.
_DEEPEST: Final = 20
# What copies a scope and hands it to no app: links of Starlette, and routers that look for a path with another slash.
_HARMLESS: Final = frozenset(
    {
        ("starlette.requests", "base_url"),
        ("starlette.requests", "__getitem__"),
        ("starlette.routing", "app"),
        ("fastapi.routing", "app"),
    }
)


class RoutedScope(dict[str, Any]):
    """A scope that notes each route that a router chooses. An app behind the route may overwrite it with its own.

    The app's writes go into the client's scope, too: middleware around swr may look for them there.

    Parameters:
        scope: of the client.
    """

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        super().__init__(scope)
        self._client_scope = scope
        # Each with the context of its inclusion, which a router of FastAPI leaves beside the route.
        self.routes: list[tuple[Any, Any]] = []
        # Whether the scope was copied or wrapped since the last route was chosen: an app that gets that chooses its
        # routes out of sight.
        self.is_copied = False
        self.reads = Reads()
        # What middleware around swr has left, and the app has not overwritten.
        self._outer: set[str] = set()
        # The step of the code that copies the scope now.
        self._copying: tuple[int, int] | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._client_scope[name] = value
        self._outer.discard(f"scope {name}")
        if name == "route":
            self.routes.append((value, self.get("fastapi", {}).get("effective_route_context")))
        if name in ("route", "endpoint"):
            self.is_copied = False
        if name == "endpoint":
            # An app behind a mount has middleware and routes of its own.
            self.reads.is_routed = isinstance(value, (FunctionType, MethodType, type, functools.partial))

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._client_scope.pop(name, None)

    def watch(self, headers: list[tuple[bytes, bytes]], outer: set[str]) -> None:
        """Give these fields to the app, and note which of them it looks for, and what it takes of `outer`."""
        self["headers"] = watched(headers, self.reads)
        self._outer = outer
        if outer:
            # Middleware around swr keeps its own.
            dict.__setitem__(self, "state", OuterState(self._client_scope.setdefault("state", {}), self.reads, outer))

    # A wrapper of a scope that does not copy it, such as a ChainMap, reads it where it is read itself. Its writes need
    # not come here.

    def __getitem__(self, name: str) -> Any:
        self._note_read(name, sys._getframe(1))
        return super().__getitem__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a name, or `default`."""
        self._note_read(name, sys._getframe(1))
        return super().get(name, default)

    def _note_read(self, name: str, frame: FrameType) -> None:
        if frame.f_code.co_name == "__getitem__":
            self._note_copy(frame)
        if (name == ADDRESS or f"scope {name}" in self._outer) and (id(frame), frame.f_lasti) != self._copying:
            self.reads.note(name if name == ADDRESS else f"scope {name}", frame)

    # Whatever copies a scope asks for its names in one of these ways.

    def __iter__(self) -> Iterator[str]:
        self._note_copy(sys._getframe(1))
        return super().__iter__()

    def keys(self) -> Any:
        """Return the names."""
        frame = sys._getframe(1)
        self._note_copy(frame)
        self._copying = id(frame), frame.f_lasti
        return super().keys()

    def items(self) -> Any:
        """Return the names, each with its value."""
        self._note_copy(sys._getframe(1))
        return super().items()

    def _note_copy(self, frame: FrameType) -> None:
        if (frame.f_globals.get("__name__"), frame.f_code.co_name) not in _HARMLESS:
            self.is_copied = True

    def pop(self, name: str, *default: Any) -> Any:
        """Remove a name and return its value, or `default`."""
        self._client_scope.pop(name, None)
        return super().pop(name, *default)

    def copy(self) -> dict[str, Any]:
        """Return a copy, which notes nothing."""
        return dict(self)

    def __or__(self, other: Any) -> Any:
        return dict(self) | other

    # `dict` does these without the methods above.
    update, setdefault = _MIXIN.update, _MIXIN.setdefault
    popitem, clear = _MIXIN.popitem, _MIXIN.clear

    def __ior__(self, other: Any) -> Any:
        self.update(other)
        return self


def routed(scope: MutableMapping[str, Any], app: Any = None) -> MutableMapping[str, Any]:
    """Return a scope for one run of the app: a `RoutedScope` where the app may be one of Starlette or FastAPI.

    Parameters:
        scope: of the client.
        app: the app, as far as it is known.
    """
    # Other frameworks may insist on a plain dict. An outer swr notes for an inner one.
    if isinstance(scope, RoutedScope) or not ("fastapi" in sys.modules or "app" in scope or _may_route(app)):
        return scope
    return RoutedScope(scope)


def _may_route(app: Any) -> bool:
    """Return whether an app may have a router of Starlette, or may wrap an app that has one."""
    for _ in range(_DEEPEST):
        if isinstance(app, Router) or isinstance(getattr(app, "router", None), Router):
            return True
        if isinstance(app, FunctionType):
            # Whatever it wraps is out of sight.
            return "starlette.applications" in sys.modules
        # Middleware keeps the app that it wraps under this name. A method is an app, too.
        app = getattr(app, "app", None) or getattr(app, "__self__", None)
    return False


def give_headers(scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]], outer: set[str]) -> None:
    """Put these fields into a scope for one run of the app.

    Parameters:
        outer: what middleware around swr leaves in it; see `outer_names`.
    """
    if isinstance(scope, RoutedScope):
        scope.watch(headers, outer)
    else:
        scope["headers"] = headers


def reads_of(scope: MutableMapping[str, Any]) -> Reads:
    """Return what the app's own code has looked at that selects nothing."""
    return scope.reads if isinstance(scope, RoutedScope) else NO_READS


def unnoticed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the scope, or a copy that an outer swr does not take for the app's."""
    if not isinstance(scope, RoutedScope):
        return scope
    was_copied = scope.is_copied
    plain = dict(scope)
    scope.is_copied = was_copied
    return plain

"""The scope that a run of the app gets: it notes which routes were chosen, and whether it was copied."""

import sys
from collections.abc import Iterator, MutableMapping
from types import FrameType
from typing import Any, Final

_MIXIN: Final = MutableMapping[str, Any]
# What copies a scope and hands it to no app: links of Starlette, and routers that look for a path with another slash.
_HARMLESS: Final = frozenset(
    {
        ("starlette.requests", "base_url"),
        ("starlette.requests", "__getitem__"),
        ("starlette.routing", "app"),
        ("fastapi.routing", "app"),
    }
)


# They note an address without answering by it.
_OBSERVERS: Final = (
    "swr.", "uvicorn.", "opentelemetry.", "sentry_sdk.", "elasticapm.", "ddtrace.", "newrelic.", "logfire."
)  # fmt: skip
_FRAMEWORKS: Final = ("starlette.", "fastapi.", "swr.", "collections.abc", "_collections_abc")


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
        # The names that the app found in `request.state`, and whether it has written names of its own into the scope.
        self._state = dict(scope.get("state") or {})
        self._has_own_names = False
        self._has_read_address = False

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        self._client_scope[name] = value
        if not _module_of(sys._getframe(1)).startswith(_FRAMEWORKS):
            self._has_own_names = True
        if name == "route":
            self.routes.append((value, self.get("fastapi", {}).get("effective_route_context")))
        if name in ("route", "endpoint"):
            self.is_copied = False

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._client_scope.pop(name, None)

    @property
    def keeps_address(self) -> bool:
        """Whether something has looked at the client's address, and something was kept for the rest of the request.

        Middleware does so that turns an address into a country, say. Of two requests with one URL the endpoint may then
        answer each in its own way.
        """
        if not self._has_read_address:
            return False
        state = super().get("state") or {}
        has_new = any(name not in self._state or self._state[name] is not value for name, value in state.items())
        return has_new or self._has_own_names

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
        if name == "client":
            reader: FrameType | None = frame
            while reader is not None and _module_of(reader) == "starlette.requests":
                reader = reader.f_back
            if reader is not None and not _module_of(reader).startswith(_OBSERVERS):
                self._has_read_address = True

    # Whatever copies a scope asks for its names in one of these ways.

    def __iter__(self) -> Iterator[str]:
        self._note_copy(sys._getframe(1))
        return super().__iter__()

    def keys(self) -> Any:
        """Return the names."""
        self._note_copy(sys._getframe(1))
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


def _module_of(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__"))


def routed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return a scope for one run of the app: a `RoutedScope` where a route may declare what its answers depend on."""
    # Only FastAPI's routes do, and other frameworks may insist on a plain dict. An outer swr notes for an inner one.
    return scope if "fastapi" not in sys.modules or isinstance(scope, RoutedScope) else RoutedScope(scope)


def unnoticed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the scope, or a copy that an outer swr does not take for the app's."""
    if not isinstance(scope, RoutedScope):
        return scope
    was_copied = scope.is_copied
    plain = dict(scope)
    scope.is_copied = was_copied
    return plain

"""The scope that a run of the app gets: which routes it has chosen, what it has looked at, whether it was copied."""

import functools
import sys
from collections.abc import Collection, MutableMapping
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, Final

from starlette.routing import Router

from swr.endpoints.looking import reads_unseen
from swr.endpoints.noticing import Noticing
from swr.endpoints.outer import OuterState
from swr.endpoints.reads import (
    ADDRESS,
    ALL_FIELDS,
    DATASTRUCTURES,
    NO_READS,
    SERVER,
    Reads,
    asking,
    module_of,
    watched,
)
from swr.http.request_fields import FIELD_NAMES

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
# Parts of a scope that Starlette takes for whoever asks for a field or a link.
_OF_HEADERS: Final = ("headers", "server")
# Parts of every scope that select nothing by themselves, with how notes name them.
_PARTS: Final[dict[object, str]] = {"headers": FIELD_NAMES, "server": SERVER, "client": ADDRESS}


class RoutedScope(Noticing):
    """A scope that notes each route that a router chooses. An app behind the route may overwrite it with its own.

    Parameters:
        scope: of the client.
    """

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        # The names that are noted: `_PARTS`, and what middleware around swr has left and the app has not overwritten.
        self._parts = {**_PARTS}
        super().__init__(scope, self._parts)
        # Each with the context of its inclusion, which a router of FastAPI leaves beside the route.
        self.routes: list[tuple[Any, Any]] = []
        # Whether the scope was copied or wrapped since the last route was chosen: an app that gets that chooses its
        # routes out of sight.
        self.is_copied = False
        self.reads = Reads()
        # Where a copy was made before a route was chosen on the scope itself: who made it has taken all.
        self._reads_of_copies = Reads()
        # The step of the code that copies the scope now.
        self._copying: tuple[CodeType, int] | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        super().__setitem__(name, value)
        if name in self._parts and name not in _PARTS:
            del self._parts[name]
        if name == "route":
            self.routes.append((value, dict.get(self, "fastapi", {}).get("effective_route_context")))
        if name in ("route", "endpoint"):
            self.is_copied = False
            self.reads.add(self._reads_of_copies)
        if name == "endpoint":
            # An app behind a mount has middleware and routes of its own.
            self.reads.is_routed = isinstance(value, (FunctionType, MethodType, type, functools.partial))

    def watch(self, headers: list[tuple[bytes, bytes]], outer: set[str]) -> None:
        """Give these fields to the app, and note which of them it looks for, and what it takes of `outer`."""
        self["headers"] = watched(headers, self.reads)
        of_scope: dict[object, str] = {name.removeprefix("scope "): name for name in outer if name.startswith("scope ")}
        self._parts = self._watched = {**_PARTS, **of_scope}
        if outer:
            # Middleware around swr keeps its own.
            dict.__setitem__(self, "state", OuterState(self._of_client.setdefault("state", {}), self.reads, outer))

    # A wrapper of a scope that does not copy it, such as a ChainMap, reads it where it is read itself. Its writes need
    # not come here.

    def _note(self, name: object, frame: FrameType) -> None:
        code = frame.f_code
        if code.co_name == "__getitem__":
            self._note_copy(frame)
        if name not in self._parts or (code, frame.f_lasti) == self._copying:
            return
        # `Headers` of Starlette notes by itself which field it is asked for, and its `URL` reads the `Host`.
        if name not in _OF_HEADERS or module_of(frame) != DATASTRUCTURES:
            asks = asking(frame)
            takes_all = name == "headers" and asks is not None and reads_unseen(asks.f_code)
            self.reads.note(ALL_FIELDS if takes_all else self._parts[name], frame)

    def _note_all(self, frame: FrameType) -> None:
        self._copying = frame.f_code, frame.f_lasti
        self._note_copy(frame)

    def _note_copy(self, frame: FrameType) -> None:
        if (module_of(frame), frame.f_code.co_name) in _HARMLESS:
            return
        self.is_copied = True
        for name in self._parts.values():
            self._reads_of_copies.note(name, frame)

    @property
    def names_read_late(self) -> set[str]:
        """All that the app has looked at, also in copies of the scope that it has made while it sends the body."""
        return self.reads.names | self._reads_of_copies.by_route

    # The number of names tells no name.
    __len__ = dict.__len__


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


def reads_of(scope: MutableMapping[str, Any], outer: Collection[str] = ()) -> Reads:
    """Return what the app's own code has looked at that selects nothing.

    Parameters:
        outer: what middleware around swr leaves in the scope. An app whose looks swr cannot see may have taken all.
    """
    if isinstance(scope, RoutedScope):
        return scope.reads
    return Reads(outer) if outer else NO_READS


def names_read_late(scope: MutableMapping[str, Any]) -> set[str]:
    """Return the names of what the app's own code has looked at once it has sent its response."""
    return scope.names_read_late if isinstance(scope, RoutedScope) else set()


def unnoticed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the scope, or a copy that an outer swr does not take for the app's."""
    return dict(dict.items(scope)) if isinstance(scope, RoutedScope) else scope

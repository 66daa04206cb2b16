"""The scope that a run of the app gets: it notes the chosen routes, the app's reads, and copies of itself."""

import functools
import sys
from collections.abc import Collection, MutableMapping
from types import CodeType, FrameType, FunctionType, MethodType
from typing import Any, Final

from starlette.routing import Router

from swr.endpoints.libraries import is_imported, module_of
from swr.endpoints.looking import asking, reads_unseen
from swr.endpoints.noticing import Noticing
from swr.endpoints.outer import OuterState
from swr.endpoints.reads import (
    ADDRESS,
    ALL_FIELDS,
    DATASTRUCTURES,
    NO_READS,
    SERVER,
    Reads,
    notes_searches,
    watched,
)
from swr.endpoints.sessions import noted
from swr.http.request_fields import FIELD_NAMES

# The most apps, each wrapped by the one before, that swr looks into.
_DEEPEST: Final = 20
# Functions that copy a scope but pass the copy to no app: for links, and for redirects to a path with another slash.
_HARMLESS: Final = frozenset(
    {
        ("starlette.requests", "base_url"),
        ("starlette.requests", "__getitem__"),
        ("starlette.routing", "app"),
        ("fastapi.routing", "app"),
    }
)
# Parts of a scope that Starlette reads when the app asks for one field or a link.
_OF_HEADERS: Final = ("headers", "server")
# The parts of every scope whose reads swr notes, with their names in the notes.
PARTS: Final[dict[object, str]] = {"headers": FIELD_NAMES, "server": SERVER, "client": ADDRESS}


class RoutedScope(Noticing):
    """A scope that notes each route that a router chooses, even if an app behind it overwrites the route later.

    Parameters:
        scope: the client's scope.
    """

    def __init__(self, scope: MutableMapping[str, Any]) -> None:
        # The names to note: `PARTS`, and values of middleware around swr until the app overwrites them.
        self._parts = {**PARTS}
        super().__init__(scope, self._parts)
        # The chosen routes, each with the context of its inclusion, which a router of FastAPI puts beside the route.
        self.routes: list[tuple[Any, Any]] = []
        # Whether the scope was copied or wrapped after the last route was chosen: swr does not see the routes that an
        # app chooses in a copy.
        self.is_copied = False
        # Whether swr notes reads in this run: it does not if the method is unsafe.
        self._is_watched = False
        self.reads = Reads()
        # Reads by code that has copied the scope. They count once a route is chosen in the scope itself.
        self._reads_of_copies = Reads()
        # The instruction that copies the scope at the moment.
        self._copying: tuple[CodeType, int] | None = None

    def __setitem__(self, name: str, value: Any) -> None:
        if name == "session":
            value = noted(value, module_of(sys._getframe(1)))
        super().__setitem__(name, value)
        if name in self._parts and name not in PARTS:
            del self._parts[name]
        if name == "headers" and self._is_watched and not notes_searches(value):
            # The client has sent no field, or the app has replaced all that note searches.
            self.reads.by_route.add(FIELD_NAMES)
        if name == "route":
            self.routes.append((value, dict.get(self, "fastapi", {}).get("effective_route_context")))
        if name in ("route", "endpoint"):
            self.is_copied = False
            self.reads.add(self._reads_of_copies)
        if name == "endpoint":
            # Anything else is an app behind a mount, which has middleware and routes of its own.
            is_route = isinstance(value, (FunctionType, MethodType, type, functools.partial))
            self.reads.choose(is_route=is_route, is_watched=self._is_watched)

    def watch(self, headers: list[tuple[bytes, bytes]], outer: set[str]) -> None:
        """Give these fields to the app, and note its reads of them and of the values in `outer`."""
        self._is_watched = True
        self["headers"] = watched(headers, self.reads)
        of_scope: dict[object, str] = {name.removeprefix("scope "): name for name in outer if name.startswith("scope ")}
        self._parts = self._watched = {**PARTS, **of_scope}
        if outer:
            # Only the app's scope gets the noting state; middleware around swr keeps its own.
            dict.__setitem__(self, "state", OuterState(self._of_client.setdefault("state", {}), self.reads, outer))

    # A wrapper that does not copy the scope, such as a ChainMap, reads the scope in its own `__getitem__`. Its writes
    # may not arrive here, so it counts as a copy.

    def _note(self, name: object, frame: FrameType) -> None:
        code = frame.f_code
        if code.co_name == "__getitem__":
            self._note_copy(frame)
        if name not in self._parts or (code, frame.f_lasti) == self._copying:
            return
        if not is_for_one_field(name, frame):
            asks, is_compiled = asking(frame)
            takes_all = name == "headers" and asks is not None and (is_compiled or reads_unseen(asks.f_code))
            self.reads.note(ALL_FIELDS if takes_all else self._parts[name], frame)

    def _note_all(self, frame: FrameType) -> None:
        self._copying = frame.f_code, frame.f_lasti
        self._note_copy(frame)

    def _note_copy(self, frame: FrameType) -> None:
        if is_harmless_copy(frame):
            return
        self.is_copied = True
        for name in self._parts.values():
            self._reads_of_copies.note(name, frame)

    @property
    def names_read_late(self) -> set[str]:
        """The names of all parts that the app has read, also in copies of the scope that its route has made."""
        return self.reads.names | self._reads_of_copies.by_route

    # The number of items does not reveal any of them.
    __len__ = dict.__len__


def is_for_one_field(name: object, frame: FrameType) -> bool:
    """Return whether code reads a part of the scope to find one field or a link.

    Starlette's `Headers` and `URL` do, and the names in `headers` note which field they find.
    """
    return name in _OF_HEADERS and module_of(frame) == DATASTRUCTURES


def is_harmless_copy(frame: FrameType) -> bool:
    """Return whether code copies a scope, but passes the copy to no app."""
    return (module_of(frame), frame.f_code.co_name) in _HARMLESS


def routed(scope: MutableMapping[str, Any], app: Any = None) -> MutableMapping[str, Any]:
    """Return a scope for one run of the app: a `RoutedScope` if the app may use Starlette or FastAPI.

    Parameters:
        scope: the client's scope.
        app: the app, if known.
    """
    # An inner swr uses the notes of an outer one.
    if isinstance(scope, RoutedScope):
        return scope
    is_routed = "fastapi" in sys.modules or "app" in scope or "router" in scope
    return RoutedScope(scope) if is_routed or _may_route(app) else scope


def _may_route(app: Any) -> bool:
    """Return whether an app may have a router of Starlette, or may wrap an app that has one."""
    # The compiled code of blacksheep fails if the scope has subclasses of `bytes`.
    if "starlette.applications" in sys.modules and not is_imported("blacksheep"):
        return True
    for _ in range(_DEEPEST):
        if isinstance(app, Router) or isinstance(getattr(app, "router", None), Router):
            return True
        # Middleware usually keeps the app that it wraps in `app`. A bound method may be an app, too.
        app = getattr(app, "app", None) or getattr(app, "__self__", None)
    return False


def give_headers(scope: MutableMapping[str, Any], headers: list[tuple[bytes, bytes]], outer: set[str]) -> None:
    """Put these fields into a scope for one run of the app.

    Parameters:
        outer: the names of what middleware around swr has set; see `outer_names`.
    """
    if isinstance(scope, RoutedScope):
        scope.watch(headers, outer)
    else:
        scope["headers"] = headers


def reads_of(scope: MutableMapping[str, Any], outer: Collection[str] = ()) -> Reads:
    """Return the notes of what the app's own code has read.

    Parameters:
        outer: the names of what middleware around swr has set. If swr cannot see the app's reads, it notes all these.
    """
    if isinstance(scope, RoutedScope):
        return scope.reads
    return Reads(outer) if outer else NO_READS


def names_read_late(scope: MutableMapping[str, Any]) -> set[str]:
    """Return the names of what the app's own code has read by the end of its response; see `RoutedScope`."""
    return scope.names_read_late if isinstance(scope, RoutedScope) else set()


def unnoticed(scope: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Return the scope, or a plain copy of a `RoutedScope`: an outer swr must not take swr's reads for the app's."""
    return dict(dict.items(scope)) if isinstance(scope, RoutedScope) else scope

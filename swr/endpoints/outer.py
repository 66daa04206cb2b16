"""Finds values that middleware around swr has set for one request, and notes whether the app reads them.

Keys do not contain these values. The state of the app's lifespan is not among them: it is the same for all requests.
"""

from collections.abc import Iterable, Mapping, MutableMapping
from contextvars import Context, copy_context
from types import FrameType
from typing import Any, Final

from starlette.authentication import UnauthenticatedUser

from swr.endpoints.noticing import Noticing
from swr.endpoints.reads import IDENTIFIERS, Reads
from swr.endpoints.variables import outer_variables

# Parts of a scope that the key covers, or that swr examines separately.
_ACCOUNTED: Final = frozenset(
    {
        "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
        "app_root_path", "headers", "server", "client", "extensions", "state", "user", "auth", "session",
        # Set by servers and routers.
        "app", "router", "endpoint", "route", "path_params", "path_template", "route_handler", "url_route",
        "fastapi", "fastapi_astack", "fastapi_middleware_astack", "litestar_app",
    }
)  # fmt: skip
# Prefixes of names that only frameworks and swr itself use.
_OF_FRAMEWORKS: Final = (
    "fastapi.",
    "fastapi_inner_",
    "fastapi_function_",
    "fastapi_middleware_",
    "starlette.",
    "_ls_",
    "swr_",
)
_MISSING: Final = object()


def outer_names(scope: Mapping[str, Any], shared: Mapping[str, Any], ambient: Context) -> tuple[str, ...]:
    """Return the names of what middleware around swr has set for one request, sorted.

    The names are such as "scope tenant", "state tenant" and "context variable tenant".

    Parameters:
        scope: the client's scope.
        shared: the state of the app's lifespan.
        ambient: the context variables that are set for all requests.
    """
    names = {f"scope {name}" for name in names_left_in(scope)}
    for name, value in (scope.get("state") or {}).items():
        if name not in IDENTIFIERS and shared.get(name, _MISSING) is not value:
            names.add(f"state {name}")
    if _is_somebody(scope.get("user")):
        names.add("scope user")
    # `is_personal` examines a session that is a dict; anything else counts as set by middleware.
    if not isinstance(scope.get("session", {}), dict):
        names.add("scope session")
    return tuple(sorted((*names, *outer_variables(copy_context(), ambient))))


def _is_somebody(user: Any) -> bool:
    """Return whether a user who has not logged in may differ from other users, such as a guest with a number."""
    if user is None or type(user) is UnauthenticatedUser or getattr(user, "is_authenticated", True) is not False:
        return False
    return any(getattr(user, "__dict__", {"slots": user}).values())


def names_left_in(scope: Iterable[str]) -> list[str]:
    """Return the names in a scope that neither ASGI nor a framework defines."""
    known = _ACCOUNTED | IDENTIFIERS
    return [name for name in scope if name not in known and not name.startswith(_OF_FRAMEWORKS)]


class OuterState(Noticing):
    """The state of a request, which notes when the app reads values that middleware around swr has set.

    Parameters:
        state: the client's state.
        reads: the notes of this run.
        names: the names to note, as `outer_names` returns them.
    """

    def __init__(self, state: MutableMapping[str, Any], reads: Reads, names: set[str]) -> None:
        self._names = {name.removeprefix("state ") for name in names if name.startswith("state ")}
        super().__init__(state, self._names)
        self._reads = reads

    def _note(self, name: object, frame: FrameType) -> None:
        if name in self._names:
            self._reads.note(f"state {name}", frame)

    def _note_all(self, frame: FrameType) -> None:
        for name in [*self._names]:
            self._reads.note(f"state {name}", frame)

    def __setitem__(self, name: str, value: Any) -> None:
        # From now on this is the app's own value.
        self._names.discard(name)
        super().__setitem__(name, value)

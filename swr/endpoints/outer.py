"""Notes of where the app takes what middleware around swr has left in a scope for one request. It selects nothing.

The state of the app's lifespan is the same for all requests.
"""

import sys
from collections.abc import Iterable, Iterator, Mapping, MutableMapping
from contextvars import Context, copy_context
from typing import Any, Final

from swr.endpoints.reads import IDENTIFIERS, Reads
from swr.endpoints.variables import outer_variables

_MIXIN: Final = MutableMapping[str, Any]
# Parts of a scope that the key accounts for, or that swr looks at by itself.
_ACCOUNTED: Final = frozenset(
    {
        "type", "asgi", "http_version", "method", "scheme", "path", "raw_path", "query_string", "root_path",
        "app_root_path", "headers", "server", "client", "extensions", "state", "user", "auth", "session",
        # Of servers and routers.
        "app", "router", "endpoint", "route", "path_params", "path_template", "route_handler", "url_route",
    }
)  # fmt: skip
# So the frameworks and swr itself begin the names that only they use.
_OF_FRAMEWORKS: Final = ("fastapi", "starlette.", "litestar", "_ls_", "swr_", "http.", "django", "_")
_MISSING: Final = object()


def outer_names(scope: Mapping[str, Any], shared: Mapping[str, Any], ambient: Context) -> tuple[str, ...]:
    """Return what middleware around swr has set for one request, sorted.

    These are names of the scope, of its state as "state tenant", and of context variables.

    Parameters:
        scope: of the client.
        shared: the state of the app's lifespan.
        ambient: the context variables that are set for all requests.
    """
    names = {f"scope {name}" for name in names_left_in(scope)}
    for name, value in (scope.get("state") or {}).items():
        if name not in IDENTIFIERS and shared.get(name, _MISSING) is not value:
            names.add(f"state {name}")
    return tuple(sorted((*names, *outer_variables(copy_context(), ambient))))


def names_left_in(scope: Iterable[str]) -> list[str]:
    """Return the names in a scope that are neither of ASGI nor of a framework."""
    known = _ACCOUNTED | IDENTIFIERS
    return [name for name in scope if name not in known and not name.startswith(_OF_FRAMEWORKS)]


class OuterState(dict[str, Any]):
    """The state of a request, which notes where the app takes what middleware around swr has put there.

    The app's writes go into the client's own state, too: middleware around swr may look for them there.

    Parameters:
        state: of the client.
        reads: takes the notes.
        names: to note, as `outer_names` returns them.
    """

    def __init__(self, state: MutableMapping[str, Any], reads: Reads, names: set[str]) -> None:
        super().__init__(state)
        self._client_state = state
        self._reads = reads
        self._names = names

    def _note(self, name: object) -> None:
        if f"state {name}" in self._names:
            self._reads.note(f"state {name}", sys._getframe(2))

    def _note_all(self) -> None:
        for name in [*self._names]:
            if name.startswith("state "):
                self._reads.note(name, sys._getframe(2))

    def __getitem__(self, name: str) -> Any:
        self._note(name)
        return super().__getitem__(name)

    def __contains__(self, name: object) -> bool:
        self._note(name)
        return super().__contains__(name)

    def get(self, name: str, default: Any = None) -> Any:
        """Return the value of a name, or `default`."""
        self._note(name)
        return super().get(name, default)

    def __iter__(self) -> Iterator[str]:
        self._note_all()
        return super().__iter__()

    def keys(self) -> Any:
        """Return the names."""
        self._note_all()
        return super().keys()

    def values(self) -> Any:
        """Return the values."""
        self._note_all()
        return super().values()

    def items(self) -> Any:
        """Return the names, each with its value."""
        self._note_all()
        return super().items()

    def copy(self) -> dict[str, Any]:
        """Return a copy, which notes nothing."""
        self._note_all()
        return dict(super().items())

    def __setitem__(self, name: str, value: Any) -> None:
        # From here on it is the app's own.
        self._names.discard(f"state {name}")
        super().__setitem__(name, value)
        self._client_state[name] = value

    def __delitem__(self, name: str) -> None:
        super().__delitem__(name)
        self._client_state.pop(name, None)

    # `dict` does these without the methods above.
    pop, update, setdefault = _MIXIN.pop, _MIXIN.update, _MIXIN.setdefault
    popitem, clear = _MIXIN.popitem, _MIXIN.clear

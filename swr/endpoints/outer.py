"""Finds values that middleware around swr has set for one request, and notes whether the app reads them.

Keys do not contain these values. The state of the app's lifespan is not among them: it is the same for all requests.
"""

import functools
import sys
import uuid
from collections.abc import Iterable, Mapping, MutableMapping
from contextvars import Context, copy_context
from types import FrameType, MemberDescriptorType
from typing import Any, Final

from starlette.authentication import AuthCredentials, UnauthenticatedUser

from swr.core.canonical import canonical
from swr.endpoints.noticing import Noticing
from swr.endpoints.reads import IDENTIFIERS, Reads
from swr.endpoints.sessions import NotedSession
from swr.endpoints.variables import outer_variables
from swr.http.request import has_own_extension

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
# The prefix of what Litestar keeps in the scope and the state for its own request.
_OF_LITESTAR: Final = "_ls_"
# Names that a router around swr leaves in a scope.
_OF_ROUTERS: Final = frozenset(
    {"app", "router", "endpoint", "route", "path_template", "route_handler", "url_route", "litestar_app"}
)
# Prefixes of names that only frameworks and swr itself use.
_OF_FRAMEWORKS: Final = (
    "fastapi.",
    "fastapi_inner_",
    "fastapi_function_",
    "fastapi_middleware_",
    "starlette.",
    _OF_LITESTAR,
    "swr_",
)
_MISSING: Final = object()
# Types whose empty values tell nothing but their type.
_BUILT_IN: Final = frozenset({type(None), bool, int, str, bytes, tuple, list, dict, set, frozenset})
# Set for classes that Python code defines.
_HEAP_TYPE: Final = 1 << 9


def outer_names(scope: MutableMapping[str, Any], shared: Mapping[str, Any], ambient: Context) -> tuple[str, ...]:
    """Return the names of what middleware around swr has set for one request, sorted.

    The names are such as "scope tenant", "state tenant" and "context variable tenant".

    Parameters:
        scope: the client's scope.
        shared: the state of the app's lifespan.
        ambient: the context variables that are set for all requests.
    """
    names = {f"scope {name}" for name in names_left_in(scope)}
    for name, value in (scope.get("state") or {}).items():
        if name not in IDENTIFIERS and not name.startswith(_OF_LITESTAR) and shared.get(name, _MISSING) is not value:
            names.add(f"state {name}")
    names.update(f"scope {name}" for name, form in _guest(scope) if form is None)
    if not _is_usual_session(scope.get("session", {})):
        names.add("scope session")
    if has_own_extension(scope):
        names.add("scope extensions")
    return tuple(sorted((*names, *outer_variables(copy_context(), ambient))))


def selecting_values(scope: Mapping[str, Any]) -> tuple[str, ...]:
    """Return text for values that middleware around swr has set, and that select because they have few values.

    These are the class of a guest, such as "user app.Visitor", and path parameters that no router has found. Requests
    with the same text are alike. The usual guests have none, and `outer_names` names guests who may differ otherwise.
    """
    kinds = (f"{name} {form}" for name, form in _guest(scope) if form is not None and form not in _USUAL)
    return (*kinds, *_own_parameters(scope))


def _own_parameters(scope: Mapping[str, Any]) -> tuple[str, ...]:
    parameters = scope.get("path_params")
    # A router finds them in the URL.
    if not parameters or not _OF_ROUTERS.isdisjoint(scope):
        return ()
    try:
        return (f"path_params {canonical(parameters)}",)
    except (TypeError, ValueError, RecursionError):
        # No other request is like this one.
        return (f"path_params {uuid.uuid4()}",)


def known_guest(scope: Mapping[str, Any]) -> dict[str, Any]:
    """Return the user and `auth` of a client who has not logged in, if `selecting_values` tells all about them."""
    return {name: scope[name] for name, form in _guest(scope) if form is not None}


def _guest(scope: Mapping[str, Any]) -> list[tuple[str, str | None]]:
    """Return "user" and "auth", each with its form, as far as they do not say that somebody has logged in."""
    user, auth = scope.get("user"), scope.get("auth")
    found = []
    if user is not None and getattr(user, "is_authenticated", True) is False:
        found.append(("user", _form(user)))
    if auth is not None and not getattr(auth, "scopes", auth):
        found.append(("auth", _form(auth)))
    return found


def _form(value: Any) -> str | None:
    """Return text that only like objects have, if all attributes of an object are empty; None: it may say more."""
    kind: Any = type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    if kind in _BUILT_IN:
        return None if value else name
    # The text contains the class by its name, so that must lead to the class.
    if not _has_only_a_dict(kind) or getattr(sys.modules.get(kind.__module__), kind.__qualname__, None) is not kind:
        return None
    forms = {}
    for attribute, held in vars(value).items():
        if type(held) not in _BUILT_IN or held:
            return None
        forms[attribute] = type(held).__name__
    return f"{name} {sorted(forms.items())}"


@functools.lru_cache(256)
def _has_only_a_dict(kind: Any) -> bool:
    """Return whether `vars` returns all that the objects of a class hold: no slots, and no items of a tuple."""
    if not kind.__dictoffset__ or not all(base is object or base.__flags__ & _HEAP_TYPE for base in kind.__mro__):
        return False
    return not any(isinstance(held, MemberDescriptorType) for base in kind.__mro__ for held in vars(base).values())


# The guests of `AuthenticationMiddleware`.
_USUAL: Final = frozenset({_form(UnauthenticatedUser()), _form(AuthCredentials())})


def _is_usual_session(session: Any) -> bool:
    """Return whether `is_personal` sees all that a session may say: it is a dict, or Starlette's own session."""
    if type(session) in (dict, NotedSession):
        return True
    kind = type(session)
    is_of_starlette = (kind.__module__, kind.__qualname__) == ("starlette.middleware.sessions", "Session")
    return is_of_starlette and vars(session).keys() <= {"accessed", "modified"}


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

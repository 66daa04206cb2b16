"""Which parts of a request the user's `key=` functions read, so that their results select for these parts.

A `key=` that does not read a part changes nothing about that part.
"""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from contextvars import ContextVar, copy_context
from types import CodeType, FrameType
from typing import Any, Final

from starlette.types import Scope

from swr.core.canonical import canonical
from swr.endpoints.noticing import Noticing
from swr.endpoints.outer import OuterState
from swr.endpoints.reads import ADDRESS, ALL_FIELDS, SERVER, Reads, noting_name
from swr.endpoints.routed_scope import PARTS, is_for_one_field, is_harmless_copy
from swr.endpoints.variables import OF_VARIABLES
from swr.http.fields import Headers
from swr.http.request_fields import FIELD_NAMES, TELLING

Function = Callable[[Scope], object]

# Covered by a function that copies the scope.
_ALL_OF_SCOPE: Final = "all of the scope"


class Coverage:
    """The names of what `key=` covers; see `Reads` and `outer_names` for the names.

    Parameters:
        names: what the functions have read.
    """

    __slots__ = ("_names",)

    def __init__(self, names: Collection[str]) -> None:
        # Code that takes the list of fields reads all names, but only the values of some fields.
        self._names = frozenset(names) - {FIELD_NAMES}

    def __contains__(self, name: object) -> bool:
        text = str(name)
        if text in self._names:
            return True
        if _ALL_OF_SCOPE in self._names:
            return not text.startswith(OF_VARIABLES)
        # Names of fields have no blank.
        return ALL_FIELDS in self._names and " " not in text and text not in (ADDRESS, SERVER, FIELD_NAMES)


def coverage(functions: Sequence[Function], scope: Scope) -> Coverage:
    """Return what functions of the scope read of a request, except for what middleware around swr has set.

    This calls each function once or twice.
    """
    names: set[str] = set()
    headers = scope["headers"]
    for function in functions:
        read = _read_by(function, scope, PARTS, headers)
        names |= read
        if FIELD_NAMES in read:
            # In a dict of the fields, a search for a missing field leaves no trace. So let all fields be there.
            sent = {name for name, _ in headers}
            missing = {name.decode("latin-1"): (name, b"") for name in TELLING - sent}
            names |= _read_by(function, scope, PARTS, [*headers, *missing.values()]) & missing.keys()
    return Coverage(names)


def outer_coverage(functions: Sequence[Function], scope: Scope, outer: Collection[str]) -> Coverage:
    """Return which values that middleware around swr has set functions of the scope read.

    This calls each function once, and again for each context variable.

    Parameters:
        outer: the names of these values; see `outer_names`.
    """
    of_scope: dict[object, str] = {name.removeprefix("scope "): name for name in outer if name.startswith("scope ")}
    names: set[str] = set()
    for function in functions:
        names |= _read_by(function, scope, of_scope, outer=outer)
    names |= {name for name in outer if name.startswith(OF_VARIABLES) and _is_read(name, functions, scope)}
    return Coverage(names)


class _Notes(Reads):
    """The notes of a function of the user's: whatever code it calls reads on its behalf."""

    def note(self, name: str, frame: FrameType | None) -> None:
        self.by_middleware.add(name)


class _ReadScope(Noticing):
    """A scope that notes what a function reads for certain; `RoutedScope` notes what an app *may* read.

    Parameters:
        scope: of the request.
        parts: the parts to note, with their names in the notes.
        notes: the notes.
    """

    def __init__(self, scope: Scope, parts: Mapping[object, str], notes: Reads) -> None:
        super().__init__(scope, parts)
        # The function may change what it gets.
        self._of_client = {}
        self._parts = parts
        self._notes = notes
        # The instruction that copies the scope at the moment, which reads each part.
        self._copying: tuple[CodeType, int] | None = None

    def _note(self, name: object, frame: FrameType) -> None:
        if name not in self._parts or (frame.f_code, frame.f_lasti) == self._copying:
            return
        if not is_for_one_field(name, frame):
            self._notes.note(self._parts[name], frame)

    def _note_all(self, frame: FrameType) -> None:
        self._copying = frame.f_code, frame.f_lasti
        if not is_harmless_copy(frame):
            self._notes.note(_ALL_OF_SCOPE, frame)

    # The number of items does not reveal any of them.
    __len__ = dict.__len__


def _read_by(
    function: Function,
    scope: Scope,
    parts: Mapping[object, str],
    headers: Headers | None = None,
    outer: Collection[str] = (),
) -> set[str]:
    """Return the names of what a function reads of a scope.

    Parameters:
        parts: see `_ReadScope`.
        headers: the fields whose reads count; None: no reads of fields count.
        outer: names such as "state tenant" of values whose reads count, too.
    """
    notes = _Notes()
    noting = _ReadScope(scope, parts, notes)
    state = dict(scope["state"] or {})
    dict.update(noting, state=OuterState(state, notes, {*outer}) if outer else state)
    if headers is not None:
        # Code may decode all values to use only one, so only the search for a name says which field it reads.
        dict.update(noting, headers=[(noting_name(name, notes), value) for name, value in headers])
    # If it fails, what it has read until then counts.
    with contextlib.suppress(Exception):
        function(noting)
    return notes.by_middleware


class _Probe:
    """The value of a context variable that notes whether code uses it: each use asks for an attribute in the end."""

    used: list[bool]

    def __init__(self, used: list[bool]) -> None:
        object.__setattr__(self, "used", used)

    def __getattribute__(self, name: str) -> Any:
        object.__getattribute__(self, "used").append(True)
        raise AttributeError(name)

    def __bool__(self) -> bool:
        return bool(self.truth)

    def __eq__(self, other: object) -> bool:
        return bool(self.value)

    def __hash__(self) -> int:
        return hash(self.value)

    def __str__(self) -> str:
        return str(self.text)

    __repr__ = __str__

    def __format__(self, form: str) -> str:
        return str(self)


def _is_read(name: str, functions: Sequence[Function], scope: Scope) -> bool:
    """Return whether functions read a context variable, or all of them that have the same name."""
    alike = [variable for variable in copy_context() if f"{OF_VARIABLES}{variable.name}" == name]
    return bool(alike) and all(any(_reads(function, scope, each) for function in functions) for each in alike)


def _reads(function: Function, scope: Scope, variable: ContextVar[Any]) -> bool:
    used: list[bool] = []
    context = copy_context()
    context.run(variable.set, _Probe(used))
    try:
        # This looks at the whole result.
        canonical(context.run(function, {**scope}))
    except Exception:  # A function that fails with the real value, too, makes no key.
        return True
    return bool(used)

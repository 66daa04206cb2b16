"""Notes of which parts of a request the app's own code reads, beyond those that select its response.

These are the address, ignored fields, and values that middleware around swr puts into the scope or its state.

The app gets field names that note what they are compared with. So swr also notices a search for a missing field.
"""

import sys
from collections.abc import Iterable
from contextvars import ContextVar
from types import FrameType
from typing import Any, Final, SupportsIndex, TypeVar

import anyio

from swr.endpoints.libraries import CARRIERS, FRAMEWORKS, NOT_OF_THE_APP, module_of, runs_library
from swr.endpoints.looking import ACCESSORS, asking
from swr.http.request_fields import ADDRESSES, FIELD_NAMES, OF_FEW_VALUES, PREFERENCES, tells

ADDRESS: Final = "client"
# Which of the server's addresses the client has reached: some clients may not be able to reach all of them.
SERVER: Final = "server"
# Noted when the app copies the fields, as by `dict(request.headers)`, because it may read any field of the copy.
ALL_FIELDS: Final = "all fields"
# Names of identifiers that differ for each request, in the state as in request fields; swr ignores them.
IDENTIFIERS: Final = frozenset({"request_id", "correlation_id", "trace_id", "span_id"})

# The fields that select a response if the app's own code has read them.
SELECTING_IF_SEEN: Final = frozenset({FIELD_NAMES, *(name.decode() for name in OF_FEW_VALUES)})
# The notes of the client's address.
OF_ADDRESS: Final = frozenset({ADDRESS, "forwarded", *(name.decode() for name in ADDRESSES)})
_OF_NO_CLIENT: Final = frozenset(name.decode() for name in PREFERENCES | OF_FEW_VALUES)

# The module of Starlette's `Headers` and `URL`.
DATASTRUCTURES: Final = "starlette.datastructures"
# Modules that make a response from the endpoint's value, which may be the fields of its request.
_OF_RESPONSES: Final = frozenset({"fastapi.encoders", "starlette.responses"})
# Modules that call middleware, and modules that call a route.
_CALL_MIDDLEWARE: Final = ("starlette.middleware.", "starlette.applications", "fastapi.applications", "swr.middleware.")
_CALL_ROUTES: Final = frozenset({"starlette.routing", "fastapi.routing"})


class Reads:
    """The notes of one run: the parts of the request that the app's own code has read.

    The notes are names of fields in lower case, `ALL_FIELDS`, `FIELD_NAMES`, `ADDRESS`, `SERVER`, and names such as
    "state tenant" for values that middleware around swr has set.
    """

    __slots__ = ("_after_route", "by_middleware", "by_route", "is_routed")

    def __init__(self, by_middleware: Iterable[str] = ()) -> None:
        # Reads by middleware, before the request has reached the endpoint.
        self.by_middleware = {*by_middleware}
        # Reads by the endpoint, by code that it calls, by a template, or by other code of a route.
        self.by_route: set[str] = set()
        # Whether a router has chosen the endpoint. Afterwards, middleware around the router usually reads for its log,
        # so its reads count only if it asks the router again. Reads by middleware of the route itself always count.
        self.is_routed = False
        self._after_route: set[str] = set()

    @property
    def names(self) -> set[str]:
        """The names of all parts that the app has read."""
        return self.by_middleware | self.by_route

    @property
    def tell_who_asks(self) -> bool:
        """Return whether the app has read more than the client's preferences and fields of few values."""
        return not self.names <= _OF_NO_CLIENT

    def choose(self, *, is_route: bool, is_watched: bool) -> None:
        """Note that a router has chosen an endpoint.

        Parameters:
            is_route: whether the endpoint is that of a route, and not another app with middleware and routes.
            is_watched: whether swr notes the reads of this task, and so of all tasks that it starts.
        """
        self.by_middleware |= self._after_route
        self.is_routed = is_route
        if is_route and is_watched:
            ROUTED.set((self, _task()))

    def add(self, others: "Reads") -> None:
        """Add other notes of the same run."""
        self.by_middleware |= others.by_middleware
        self.by_route |= others.by_route

    def note(self, name: str, frame: FrameType | None) -> None:
        """Note that the code of a frame reads a part of the request, if this is code of the app."""
        frame, is_compiled = asking(frame)
        if frame is None or (runs_library(frame, NOT_OF_THE_APP) and not (is_compiled or _is_for_the_app(name, frame))):
            return
        if not _is_of_middleware(frame) or self._is_within_route():
            self.by_route.add(name)
        elif not self.is_routed:
            self.by_middleware.add(name)
        else:
            self._after_route.add(name)

    def _is_within_route(self) -> bool:
        """Return whether the route has started the current task, as a `BaseHTTPMiddleware` of a route does.

        In such a task the stack does not show that a router has called the code.
        """
        routed = ROUTED.get()
        return routed is not None and routed[0] is self and routed[1] != _task()


NO_READS: Final = Reads()
# The run that has chosen an endpoint, and the task in which it has. Tasks that this one starts have both, too.
ROUTED: Final[ContextVar[tuple[Reads, int] | None]] = ContextVar("swr_routed", default=None)


def _task() -> int:
    """Return a number for the current task; 0 in a thread that runs no event loop."""
    try:
        return anyio.get_current_task().id
    except RuntimeError:
        return 0


def _is_for_the_app(name: str, frame: FrameType) -> bool:
    """Return whether the code of a library reads a part of the request for the app's response."""
    # Other frameworks copy the state into a request of their own, from which their apps read unnoticed.
    is_outer = name.startswith(("scope ", "state "))
    # `FileResponse` answers ranges of bytes, which swr cuts out of the whole file itself.
    is_of_file = name in ("range", "if-range") and frame.f_code.co_name == "__call__"
    return (module_of(frame) in _OF_RESPONSES and not is_of_file) or (is_outer and runs_library(frame, CARRIERS))


def _is_of_middleware(frame: FrameType | None) -> bool:
    """Return whether the code of a frame belongs to middleware around all routes."""
    while frame is not None and not module_of(frame).startswith(FRAMEWORKS):
        frame = frame.f_back
    if frame is None or not module_of(frame).startswith(_CALL_MIDDLEWARE):
        return False
    while frame is not None and module_of(frame) not in _CALL_ROUTES:
        frame = frame.f_back
    return frame is None


class _Name(bytes):
    """The name of a field, which notes what it is compared with, also as a key of a dict.

    Starlette decodes the names for code that takes all fields. A dict of these would answer for missing fields, too.
    """

    reads: Reads

    def __eq__(self, other: object) -> bool:
        is_equal = bytes.__eq__(self, other)
        if is_equal is True and not _only_looks(sys._getframe(1)):
            # The code may leave this field out or replace it, and then search for others unnoticed.
            self.reads.note(FIELD_NAMES, sys._getframe(1))
        if isinstance(other, bytes) and tells(other):
            self.reads.note(bytes.decode(other, "latin-1"), sys._getframe(1))
        return is_equal

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        # With a set or a dict of names, code can find that a field is missing without comparing this name.
        self.reads.note(FIELD_NAMES, sys._getframe(1))
        return bytes.__hash__(self)

    def __deepcopy__(self, memo: object) -> "_Name":
        """Return the name itself, so that copied fields note the same."""
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Tell `copy` and `pickle` to make plain bytes."""
        self.reads.note(FIELD_NAMES, sys._getframe(1))
        return bytes, (bytes(self),)

    def lower(self) -> bytes:
        """Return the name in lower case; the result notes the same comparisons."""
        return noting_name(bytes.lower(self), self.reads)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the name as text; the result notes the same comparisons."""
        frame = sys._getframe(1)
        self.reads.note(ALL_FIELDS if module_of(frame) in ACCESSORS else FIELD_NAMES, frame)
        return _noting(_Text, bytes.decode(self, *args, **kwargs), self.reads)


class _First(bytes):
    """The value of the first field, if it says nothing about the client. It notes decoding by `headers.values()`."""

    reads: Reads

    def __deepcopy__(self, memo: object) -> "_First":
        """Return the value itself, so that copied fields note the same."""
        return self

    def __reduce_ex__(self, protocol: SupportsIndex) -> Any:
        """Tell `copy` and `pickle` to make plain bytes."""
        return bytes, (bytes(self),)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the value as text."""
        _note_values(self.reads, sys._getframe(1))
        return bytes.decode(self, *args, **kwargs)


def _note_values(reads: Reads, frame: FrameType) -> None:
    """Note that `Headers.values` decodes all values, which shows whether a field is missing that others send."""
    # Before Python 3.12 a comprehension has a frame of its own.
    caller = frame.f_back if frame.f_code.co_name == "<listcomp>" else frame
    if caller is not None and (module_of(caller), caller.f_code.co_name) == (DATASTRUCTURES, "values"):
        reads.note(ALL_FIELDS, frame)


class _Noting:
    """The value of a field that may say something of the client. It notes which code uses it."""

    reads: Reads
    field: str

    def __getattribute__(self, name: str) -> Any:
        # For methods such as `split`.
        if name not in _OF_VALUES:
            _note_value(self, sys._getframe(1))
        return super().__getattribute__(name)

    def __eq__(self, other: object) -> Any:
        _note_value(self, sys._getframe(1))
        return super().__eq__(other)

    def __ne__(self, other: object) -> Any:
        _note_value(self, sys._getframe(1))
        return super().__ne__(other)

    def __hash__(self) -> int:
        _note_value(self, sys._getframe(1))
        return super().__hash__()


def _operations(kind: type) -> list[str]:
    """Return the names of the methods of bytes or text that reveal any of its content, operators included."""
    # Only C code asks for a buffer.
    own = {*dir(kind)} - {*dir(object)} - {"__getnewargs__", "__buffer__", "maketrans"}
    return sorted({*own, "__lt__", "__le__", "__gt__", "__ge__", "__str__", "__repr__", "__format__"})


def _noted(name: str) -> Any:
    def method(self: Any, *args: Any) -> Any:
        _note_value(self, sys._getframe(1))
        return getattr(super(_Noting, self), name)(*args)

    return method


class _Value(_Noting, bytes):
    """The value of a field as bytes, as it was sent."""

    def __bytes__(self) -> bytes:
        _note_value(self, sys._getframe(1))
        return super().__bytes__()

    def __radd__(self, other: Any) -> Any:
        _note_value(self, sys._getframe(1))
        return other + super().__bytes__()

    def __deepcopy__(self, memo: object) -> "_Value":
        """Return the value itself, so that copied fields note the same."""
        return self

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the value as text that notes its use in turn: middleware may decode all fields to read only one."""
        frame = sys._getframe(1)
        if module_of(frame) in ACCESSORS or not _is_of_middleware(frame):
            # Decoding counts as a use in an endpoint, which may answer with all values.
            _note_value(self, frame)
            _note_values(object.__getattribute__(self, "reads"), frame)
            return bytes.decode(self, *args, **kwargs)
        text = _ValueText(bytes.decode(self, *args, **kwargs))
        text.reads, text.field = (object.__getattribute__(self, name) for name in ("reads", "field"))
        return text


class _ValueText(_Noting, str):
    """The value of a field as text; it notes like `_Value`."""

    def __radd__(self, other: Any) -> Any:
        _note_value(self, sys._getframe(1))
        return other + super().__str__()


# Attributes that do not count as a use: for finding out the type of a value, copying it, and decoding it.
_OF_VALUES: Final = frozenset({"__class__", "__deepcopy__", "decode"})


# Operators find these methods on the class, without `__getattribute__`.
for _kind, _plain in ((_Value, bytes), (_ValueText, str)):
    for _name in _operations(_plain):
        if _name.startswith("__") and _name not in vars(_kind):
            setattr(_kind, _name, _noted(_name))


def _note_value(value: _Noting, frame: FrameType) -> None:
    reads, field = (object.__getattribute__(value, name) for name in ("reads", "field"))
    reads.note(field, frame)


class _Text(str):
    """The name of a field as text; it notes like `_Name`."""

    reads: Reads
    __slots__ = ("reads",)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and tells(str.lower(other).encode("latin-1", "replace")):
            self.reads.note(str.lower(other), sys._getframe(1))
        return str.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = str.__hash__

    def lower(self) -> str:
        """Return the name in lower case; the result notes the same comparisons."""
        return _noting(_Text, str.lower(self), self.reads)

    def title(self) -> str:
        """Return the name with capitals; the result notes the same comparisons."""
        return _noting(_Text, str.title(self), self.reads)

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the name as bytes; the result notes the same comparisons."""
        return noting_name(str.encode(self, *args, **kwargs), self.reads)


_Kind = TypeVar("_Kind", _Name, _Text, _First)

# Methods that ask whether a name has some text. Their results tell the app nothing but names.
_ASKING: Final = frozenset({"startswith", "endswith", "__contains__", "find", "count", "index"})


def _noted_name(plain: type, operation: str) -> Any:
    # The results of other methods note nothing, so after them the app may read any field unnoticed.
    note = FIELD_NAMES if operation in _ASKING else ALL_FIELDS

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.reads.note(note, sys._getframe(1))
        return getattr(plain, operation)(self, *args, **kwargs)

    return method


for _naming, _plain in ((_Name, bytes), (_Text, str)):
    for _name in _operations(_plain):
        if _name not in vars(_naming):
            setattr(_naming, _name, _noted_name(_plain, _name))


def _noting(kind: type[_Kind], content: Any, reads: Reads) -> _Kind:
    noting = kind(content)
    noting.reads = reads
    return noting


def _noting_value(name: bytes, value: bytes, reads: Reads) -> bytes:
    noting = _Value(value)
    noting.reads, noting.field = reads, name.decode("latin-1")
    return noting


def _only_looks(frame: FrameType) -> bool:
    """Return whether the code of a frame is a method of Starlette's `Headers` or `URL` that changes no field."""
    return module_of(frame) == DATASTRUCTURES and frame.f_code.co_name not in ("__setitem__", "__delitem__")


def noting_name(name: bytes, reads: Reads) -> bytes:
    """Return the name of a field that notes what it is compared with."""
    return _noting(_Name, name, reads)


def notes_searches(headers: object) -> bool:
    """Return whether one of these fields still notes each search among them: the app may have replaced them."""
    return isinstance(headers, list) and any(type(name) is _Name for name, _ in headers)


def watched(headers: list[tuple[bytes, bytes]], reads: Reads) -> list[tuple[bytes, bytes]]:
    """Return fields whose names note searches for fields that may say something about the client.

    Every search begins with the first name, so that one notes it. Of the other names, only those of such fields need to
    note. The values of such fields note reads without a search.
    """
    return [
        (_noting(_Name, name, reads), _noting_value(name, value, reads))
        if tells(name)
        else (_noting(_Name, name, reads), _noting(_First, value, reads))
        if number == 0
        else (name, value)
        for number, (name, value) in enumerate(headers)
    ]

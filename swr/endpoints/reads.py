"""Notes of which parts of a request the app's own code looks at, beyond those that select its response.

These are the address, ignored fields, and what middleware around swr puts into the scope or its state.

The names of fields in a run's scope tell who compares them with what, so a field counts that is missing, too.
"""

import sys
from collections.abc import Iterable
from types import FrameType
from typing import Any, Final, SupportsIndex

from swr.http.request_fields import FIELD_NAMES, OF_FEW_VALUES, PREFERENCES, tells

ADDRESS: Final = "client"
# Which address of the server's own the client has reached: one may be open to some clients only.
SERVER: Final = "server"
# A copy of the fields, as `dict(request.headers)`, may be asked for any of them.
ALL_FIELDS: Final = "all fields"
# Each request has its own, as with the request fields of these names.
IDENTIFIERS: Final = frozenset({"request_id", "correlation_id", "trace_id", "span_id"})

# The fields that select where the app's own code has looked at them.
SELECTING_IF_SEEN: Final = frozenset({FIELD_NAMES, *(name.decode() for name in OF_FEW_VALUES)})
_OF_NO_CLIENT: Final = frozenset(name.decode() for name in PREFERENCES | OF_FEW_VALUES)

# These hand on what somebody else asks them for.
_ACCESSORS: Final = frozenset(
    {"starlette.requests", "starlette.datastructures", "_collections_abc", "collections.abc", "collections", "copy"}
)
# Where `Headers` and `URL` are.
DATASTRUCTURES: Final = "starlette.datastructures"
# These note an address or a field without answering by it.
OBSERVERS: Final = (
    "swr.", "uvicorn.", "hypercorn.", "granian.", "opentelemetry.", "opencensus.", "sentry_sdk.", "elasticapm.",
    "ddtrace.", "newrelic.", "logfire.", "rollbar.", "bugsnag.", "honeybadger.", "scout_apm.", "aws_xray_sdk.",
)  # fmt: skip
# These take all of a scope into a request of their own, whether the app looks at it or not.
_CARRIERS: Final = ("django.", "channels.", "asgiref.", "a2wsgi.", "litestar.", "quart.")
FRAMEWORKS: Final = ("starlette.", "fastapi.", "swr.", "collections.abc", "_collections_abc")
NOT_OF_THE_APP: Final = (*FRAMEWORKS, *OBSERVERS, *_CARRIERS)
# These make a response of what an endpoint has returned, such as the fields of its request.
_OF_RESPONSES: Final = frozenset({"fastapi.encoders", "starlette.responses"})
# What calls middleware, and what calls a route.
_CALL_MIDDLEWARE: Final = ("starlette.middleware.", "starlette.applications", "fastapi.applications", "swr.middleware.")
_CALL_ROUTES: Final = frozenset({"starlette.routing", "fastapi.routing"})


class Reads:
    """Notes for one run where the app's own code has looked.

    They are names of fields in lower case, `ALL_FIELDS`, `FIELD_NAMES`, `ADDRESS`, `SERVER`, and names of what comes
    from around swr: "state tenant".
    """

    __slots__ = ("by_middleware", "by_route", "is_routed")

    def __init__(self, by_middleware: Iterable[str] = ()) -> None:
        # On the way to the endpoint.
        self.by_middleware = {*by_middleware}
        # By the endpoint, by what it calls, by a template, or by what else belongs to a route.
        self.by_route: set[str] = set()
        # Whether the endpoint is chosen, so that middleware is on its way back and writes a log.
        self.is_routed = False

    @property
    def names(self) -> set[str]:
        """All that the app has looked at."""
        return self.by_middleware | self.by_route

    @property
    def tell_who_asks(self) -> bool:
        """Return whether the app has looked at more than what the client prefers."""
        return not self.names <= _OF_NO_CLIENT

    def add(self, others: "Reads") -> None:
        """Take other notes of the same run."""
        self.by_middleware |= others.by_middleware
        self.by_route |= others.by_route

    def note(self, name: str, frame: FrameType | None) -> None:
        """Note that the code of a frame looks at a part of the request, if it is the app's."""
        frame = asking(frame)
        if frame is None or (module_of(frame).startswith(NOT_OF_THE_APP) and module_of(frame) not in _OF_RESPONSES):
            return
        if not _is_of_middleware(frame):
            self.by_route.add(name)
        elif not self.is_routed:
            self.by_middleware.add(name)


NO_READS: Final = Reads()


def asking(frame: FrameType | None) -> FrameType | None:
    """Return the frame that has asked for a part of the request, behind those that hand it on."""
    while frame is not None and module_of(frame) in _ACCESSORS:
        frame = frame.f_back
    return frame


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

    Starlette makes text of it for who takes all fields: a dict of that answers for a field that is missing.
    """

    reads: Reads

    def __eq__(self, other: object) -> bool:
        if isinstance(other, bytes) and tells(other):
            self.reads.note(bytes.decode(other, "latin-1"), sys._getframe(1))
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __hash__(self) -> int:
        # A set or a dict of names answers for one that is missing without another look at a name.
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
        """Return the name in lower case, which notes the same."""
        return _noting(bytes.lower(self), self.reads)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the name as text, which notes the same."""
        frame = sys._getframe(1)
        self.reads.note(ALL_FIELDS if module_of(frame) in _ACCESSORS else FIELD_NAMES, frame)
        return _noting_text(bytes.decode(self, *args, **kwargs), self.reads)


class _First(bytes):
    """The value of the first field, if it tells nothing. It notes who takes all values, as `headers.values()` does."""

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
    """Note that `Headers` makes text of all values: one may be missing that other clients send."""
    # Before Python 3.12 a comprehension has a frame of its own.
    caller = frame.f_back if frame.f_code.co_name == "<listcomp>" else frame
    if caller is not None and (module_of(caller), caller.f_code.co_name) == (DATASTRUCTURES, "values"):
        reads.note(ALL_FIELDS, frame)


class _Noting:
    """The value of a field that may tell something of the client. It notes who makes something of it."""

    reads: Reads
    field: str

    def __getattribute__(self, name: str) -> Any:
        # Such as `split`.
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
    """Return the methods of bytes or text whose results tell something of it, operators included."""
    # A buffer is asked for by C alone.
    own = {*dir(kind)} - {*dir(object)} - {"__getnewargs__", "__buffer__", "maketrans"}
    return sorted({*own, "__lt__", "__le__", "__gt__", "__ge__", "__str__", "__repr__", "__format__"})


def _noted(name: str) -> Any:
    def method(self: Any, *args: Any) -> Any:
        _note_value(self, sys._getframe(1))
        return getattr(super(_Noting, self), name)(*args)

    return method


class _Value(_Noting, bytes):
    """The value as it was sent."""

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
        """Return the value as text. It notes the same, for middleware may make text of all fields to look at one."""
        frame = sys._getframe(1)
        if module_of(frame) in _ACCESSORS or not _is_of_middleware(frame):
            # An endpoint may answer with all of them.
            _note_value(self, frame)
            _note_values(object.__getattribute__(self, "reads"), frame)
            return bytes.decode(self, *args, **kwargs)
        text = _ValueText(bytes.decode(self, *args, **kwargs))
        text.reads, text.field = (object.__getattribute__(self, name) for name in ("reads", "field"))
        return text


class _ValueText(_Noting, str):
    """The same as text."""

    def __radd__(self, other: Any) -> Any:
        _note_value(self, sys._getframe(1))
        return other + super().__str__()


# What finding out the type of a value asks it for, copying it, and making text of it.
_OF_VALUES: Final = frozenset({"__class__", "__deepcopy__", "decode"})


# Operators find these without asking for an attribute.
for _kind, _plain in ((_Value, bytes), (_ValueText, str)):
    for _name in _operations(_plain):
        if _name.startswith("__") and _name not in vars(_kind):
            setattr(_kind, _name, _noted(_name))


def _note_value(value: _Noting, frame: FrameType) -> None:
    reads, field = (object.__getattribute__(value, name) for name in ("reads", "field"))
    reads.note(field, frame)


class _Text(str):
    """The same as text."""

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
        """Return the name in lower case, which notes the same."""
        return _noting_text(str.lower(self), self.reads)

    def title(self) -> str:
        """Return the name with capitals, which notes the same."""
        return _noting_text(str.title(self), self.reads)

    def encode(self, *args: Any, **kwargs: Any) -> bytes:
        """Return the name as bytes, which notes the same."""
        return _noting(str.encode(self, *args, **kwargs), self.reads)


# These ask for a name. Their answer tells no value.
_ASKING: Final = frozenset({"startswith", "endswith", "__contains__", "find", "count", "index"})


def _noted_name(plain: type, operation: str) -> Any:
    # What else becomes of a name is out of sight, and so is who asks for it then.
    note = FIELD_NAMES if operation in _ASKING else ALL_FIELDS

    def method(self: Any, *args: Any, **kwargs: Any) -> Any:
        self.reads.note(note, sys._getframe(1))
        return getattr(plain, operation)(self, *args, **kwargs)

    return method


for _naming, _plain in ((_Name, bytes), (_Text, str)):
    for _name in _operations(_plain):
        if _name not in vars(_naming):
            setattr(_naming, _name, _noted_name(_plain, _name))


def _noting(name: bytes, reads: Reads) -> bytes:
    noting = _Name(name)
    noting.reads = reads
    return noting


def _noting_text(name: str, reads: Reads) -> str:
    noting = _Text(name)
    noting.reads = reads
    return noting


def _noting_value(name: bytes, value: bytes, reads: Reads) -> bytes:
    noting = _Value(value)
    noting.reads, noting.field = reads, name.decode("latin-1")
    return noting


def _noting_first(value: bytes, reads: Reads) -> bytes:
    noting = _First(value)
    noting.reads = reads
    return noting


def watched(headers: list[tuple[bytes, bytes]], reads: Reads) -> list[tuple[bytes, bytes]]:
    """Return fields whose names note who looks for which field that may tell something of the client.

    Every search begins with the first one; of the others only those that may tell something need to note. Their values
    note who takes them without a search.
    """
    return [
        (
            _noting(name, reads) if number == 0 or tells(name) else name,
            _noting_value(name, value, reads) if tells(name) else _noting_first(value, reads) if number == 0 else value,
        )
        for number, (name, value) in enumerate(headers)
    ]


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))

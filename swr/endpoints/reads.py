"""Notes of where the app's own code looks in a request beyond what selects.

That is the address, ignored fields, and what middleware around swr puts into the scope or its state.

The names of fields in a run's scope tell who compares them with what, so a field counts that is missing, too.
"""

import sys
from types import FrameType
from typing import Any, Final

from swr.http.request_fields import PREFERENCES, TELLING

ADDRESS: Final = "client"
# A copy of the fields, as `dict(request.headers)`, may be asked for any of them.
ALL_FIELDS: Final = "all fields"
# Each request has its own, as with the request fields of these names.
IDENTIFIERS: Final = frozenset({"request_id", "correlation_id", "trace_id", "span_id"})

_PREFERENCES: Final = frozenset(name.decode() for name in PREFERENCES)
_TELLING_TEXTS: Final = frozenset(form for name in TELLING for form in (name.decode(), name.decode().title()))

# These hand on what somebody else asks them for.
_ACCESSORS: Final = frozenset({"starlette.requests", "starlette.datastructures", "_collections_abc", "collections.abc"})
# These note an address or a field without answering by it.
OBSERVERS: Final = (
    "swr.", "uvicorn.", "hypercorn.", "granian.", "opentelemetry.", "opencensus.", "sentry_sdk.", "elasticapm.",
    "ddtrace.", "newrelic.", "logfire.", "rollbar.", "bugsnag.", "honeybadger.", "scout_apm.", "aws_xray_sdk.",
)  # fmt: skip
# These take all of a scope into a request of their own, whether the app looks at it or not.
_CARRIERS: Final = ("django.", "channels.", "asgiref.", "a2wsgi.", "litestar.", "quart.")
FRAMEWORKS: Final = ("starlette.", "fastapi.", "swr.", "collections.abc", "_collections_abc")
NOT_OF_THE_APP: Final = (*FRAMEWORKS, *OBSERVERS, *_CARRIERS)
# This makes a response of what an endpoint has returned, such as the fields of its request.
_OF_RESPONSES: Final = "fastapi.encoders"
# What calls middleware, and what calls a route.
_CALL_MIDDLEWARE: Final = ("starlette.middleware.", "starlette.applications", "fastapi.applications", "swr.middleware.")
_CALL_ROUTES: Final = frozenset({"starlette.routing", "fastapi.routing"})


class Reads:
    """Notes for one run where the app's own code has looked.

    They are names of fields in lower case, `ALL_FIELDS`, `ADDRESS`, and names of what comes from around swr:
    "state tenant".
    """

    __slots__ = ("by_middleware", "by_route", "is_routed")

    def __init__(self) -> None:
        # On the way to the endpoint.
        self.by_middleware: set[str] = set()
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
        return not self.names <= _PREFERENCES

    def note(self, name: str, frame: FrameType | None) -> None:
        """Note that the code of a frame looks at a part of the request, if it is the app's."""
        while frame is not None and module_of(frame) in _ACCESSORS:
            frame = frame.f_back
        if frame is None or (module_of(frame).startswith(NOT_OF_THE_APP) and module_of(frame) != _OF_RESPONSES):
            return
        if not _is_of_middleware(frame):
            self.by_route.add(name)
        elif not self.is_routed:
            self.by_middleware.add(name)


NO_READS: Final = Reads()


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
        if isinstance(other, bytes) and other in TELLING:
            self.reads.note(bytes.decode(other), sys._getframe(1))
        return bytes.__eq__(self, other)

    def __ne__(self, other: object) -> bool:
        return not self == other

    __hash__ = bytes.__hash__

    def __deepcopy__(self, memo: object) -> "_Name":
        """Return the name itself, so that copied fields note the same."""
        return self

    def lower(self) -> bytes:
        """Return the name in lower case, which notes the same."""
        return _noting(bytes.lower(self), self.reads)

    def decode(self, *args: Any, **kwargs: Any) -> str:
        """Return the name as text, which notes the same."""
        if module_of(frame := sys._getframe(1)) in _ACCESSORS:
            self.reads.note(ALL_FIELDS, frame)
        return _noting_text(bytes.decode(self, *args, **kwargs), self.reads)


class _Text(str):
    """The same as text."""

    reads: Reads
    __slots__ = ("reads",)

    def __eq__(self, other: object) -> bool:
        if isinstance(other, str) and other in _TELLING_TEXTS:
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


def _noting(name: bytes, reads: Reads) -> bytes:
    noting = _Name(name)
    noting.reads = reads
    return noting


def _noting_text(name: str, reads: Reads) -> str:
    noting = _Text(name)
    noting.reads = reads
    return noting


def watched(headers: list[tuple[bytes, bytes]], reads: Reads) -> list[tuple[bytes, bytes]]:
    """Return fields whose names note who looks for which field that may tell something of the client.

    Every search begins with the first one; of the others only those that may tell something need to note.
    """
    return [
        (_noting(name, reads), value) if number == 0 or name in TELLING else (name, value)
        for number, (name, value) in enumerate(headers)
    ]


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))

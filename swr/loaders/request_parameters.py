"""Refuse loader arguments that live only as long as a request, because a load may outlive the request."""

import functools
import inspect
import logging
import sys
import types
import typing
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from typing import Any, Final

from swr.core.signatures import signature_of
from swr.errors import ConfigurationError
from swr.loaders.calling import name_of
from swr.loaders.values import is_a

log = logging.getLogger("swr")

_WRAPPED: Final = (typing.Union, types.UnionType, typing.Annotated)
_OF_REQUESTS: Final = (
    ("starlette.", ("HTTPConnection", "Response", "BackgroundTask")),
    ("django.", ("HttpRequest",)),
    ("litestar.", ("ASGIConnection",)),
    ("werkzeug.", ("Request",)),
    ("aiohttp.", ("BaseRequest",)),
)
# Names of classes in annotations that are text.
_NAMED: Final = ("BackgroundTasks", "HttpRequest", "Request", "Response", "WebSocket")
_OF_SQLALCHEMY: Final = (
    "AsyncConnection",
    "AsyncSession",
    "Connection",
    "Session",
    "async_scoped_session",
    "scoped_session",
)


def refuse_parameters(function: Callable[..., Any], name: str) -> None:
    """Refuse a loader that takes an object that belongs to one request.

    Parameters:
        function: the loader.
        name: the name of the loader, for errors.

    Raises:
        ConfigurationError: the loader has such a parameter; the message says what to do.
    """
    names = getattr(inspect.unwrap(function), "__globals__", {})
    for parameter in signature_of(function).parameters.values():
        if _is_of_a_request(parameter):
            raise ConfigurationError(
                f"{name} takes {parameter.name!r}, which belongs to one request; a background load has none. Pass what "
                f"matters of it, such as an id. Or, on an endpoint of FastAPI or Starlette, use @cache.response: it "
                f"caches the response and gets dependencies of its own"
            )
        if _is_a_session(parameter.annotation, names):
            raise ConfigurationError(
                f"{name} takes {parameter.name!r}, a database session or connection; a load may run on after its "
                f"caller has closed it. Let the loader open one of its own: async with sessions() as session"
            )


def warn_of_sessions(function: Callable[..., Any], args: Iterable[Any], kwargs: Mapping[str, Any]) -> None:
    """Warn, once for each loader, of an argument that is a session or holds one as an attribute.

    Parameters:
        function: the loader.
        args, kwargs: the arguments of the call.
    """
    if "sqlalchemy" not in sys.modules:
        return
    for argument in (*args, *kwargs.values()):
        if is_a(type(argument), "sqlalchemy.", _OF_SQLALCHEMY):
            _warn(name_of(function), type(argument).__name__)
            continue
        # Not every object has a `__dict__`, and a proxy object may raise any exception here.
        with suppress(Exception):
            for name, value in list(vars(argument).items()):
                if is_a(type(value), "sqlalchemy.", _OF_SQLALCHEMY):
                    _warn(name_of(function), f"{type(argument).__name__}.{name}")


@functools.lru_cache(1000)
def _warn(name: str, place: str) -> None:
    log.warning(
        "%s loads with %s, a database session or connection; a load may run on after a request has closed it. Give it "
        "a factory of sessions, and let the loader open one of its own: async with self.sessions() as session",
        name,
        place,
    )


def _is_of_a_request(parameter: inspect.Parameter) -> bool:
    """Return whether a framework fills in a parameter for each request: a Request, a Response, a Depends."""
    marks = [parameter.default, *getattr(parameter.annotation, "__metadata__", ())]
    if any(
        type(mark).__module__.startswith("fastapi") and type(mark).__name__ in ("Depends", "Security") for mark in marks
    ):
        return True
    annotation = parameter.annotation
    if isinstance(annotation, str):
        return annotation.split(".")[-1] in _NAMED or "Depends(" in annotation
    kinds = getattr(annotation, "__args__", (annotation,))
    return any(is_a(kind, package, classes) for kind in kinds for package, classes in _OF_REQUESTS)


def _is_a_session(annotation: Any, names: dict[str, Any]) -> bool:
    """Return whether a parameter is a session or connection, alone or optional, and not a factory of sessions."""
    if isinstance(annotation, str):
        try:
            annotation = eval(annotation, names)
        except Exception:
            # The type is imported only for type checkers, or defined further down.
            return False
    inner = typing.get_args(annotation) if typing.get_origin(annotation) in _WRAPPED else (annotation,)
    return any(is_a(typing.get_origin(kind) or kind, "sqlalchemy.", _OF_SQLALCHEMY) for kind in inner)

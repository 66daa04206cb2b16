"""Refuse, at decoration, functions that cannot be loaders."""

import contextlib
import functools
import inspect
import sys
from collections.abc import Callable, Iterator
from typing import Any, Final

from swr.core.signatures import signature_of
from swr.errors import ConfigurationError
from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany
from swr.loaders.request_parameters import refuse_parameters
from swr.loaders.values import USE_RESPONSE, is_a, is_response

# Classes of routers, each with a function that returns the endpoints of a router's routes.
_ROUTERS: Final = (
    (
        "starlette.",
        ("Router", "Starlette"),
        lambda router: [getattr(route, "endpoint", None) for route in router.routes],
    ),
    ("flask.", ("Flask",), lambda app: list(app.view_functions.values())),
)


def check_loader(function: Callable[..., Any], decorator: str) -> None:
    """Refuse an object that cannot be a loader.

    Parameters:
        decorator: the name of the decorator, such as "@cache.cached".

    Raises:
        ConfigurationError: it is not a function, is a generator, has a cache or a route already, or takes or returns an
            object that belongs to one request.
    """
    # A partial counts as a routine from Python 3.14 on.
    if isinstance(function, functools.partial) or not (inspect.isroutine(function) or hasattr(function, "cache_clear")):
        raise ConfigurationError(
            f"{decorator} decorates a function or a method, not {function!r}: put it directly above the def, below "
            f"other decorators, or write a def of your own around it"
        )
    name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
    _refuse_cached(function, name, decorator)
    _refuse_generator(function, name)
    if any(endpoint is function for endpoint in _endpoints_in_sight()):
        raise ConfigurationError(
            f"{decorator} on {name} does nothing there: it is above the decorator of a route, which calls the "
            f"function without it. Put it directly above the def, below @app.get(...); @cache.response caches whole "
            f"responses"
        )
    refuse_parameters(function, name)
    if is_response(signature_of(function).return_annotation):
        raise ConfigurationError(f"{name} returns a response, which belongs to one request: {USE_RESPONSE}")


def _refuse_cached(function: Any, name: str, decorator: str) -> None:
    """Refuse a function that has a cache already: each refresh would get the old value from that cache."""
    while function is not None:
        if isinstance(function, (Cached, CachedMany)) or callable(getattr(function, "cache_clear", None)):
            raise ConfigurationError(
                f"{name} has a cache already, such as lru_cache, and each refresh would get the old value from it: "
                f"remove that decorator below {decorator}"
            )
        function = getattr(function, "__wrapped__", None)


def _refuse_generator(function: Callable[..., Any], name: str) -> None:
    """Refuse a generator, and a context manager that is made from one."""
    is_manager = getattr(function, "__globals__", None) is vars(contextlib)
    if is_manager or inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        kind = "context manager, which can be entered once" if is_manager else "generator"
        raise ConfigurationError(f"{name} is a {kind}: a cached loader returns its whole value, such as a list")


def _endpoints_in_sight() -> Iterator[Any]:
    """Yield the endpoints of each router that is a local or global variable where the decorator is written."""
    frame = sys._getframe()
    while frame.f_globals.get("__name__", "").partition(".")[0] == "swr":
        assert frame.f_back is not None
        frame = frame.f_back
    for value in (*frame.f_locals.values(), *frame.f_globals.values()):
        for package, names, endpoints in _ROUTERS:
            if is_a(type(value), package, names):
                yield from endpoints(value)

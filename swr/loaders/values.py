"""Refuse a loader's value if only one reader could use it."""

import inspect
from collections.abc import AsyncIterator, Collection, Iterator
from typing import Any, Final

from swr.errors import ConfigurationError

# Packages whose responses cannot be shared, because the framework or its middleware changes a response as it sends it.
_WITH_RESPONSES: Final = ("starlette.", "werkzeug.", "django.http.", "litestar.")
_RESPONSES: Final = ("Response", "HttpResponseBase")
USE_RESPONSE: Final = "return its data, or cache the whole answer with @cache.response on the endpoint"


def refuse_unshareable(value: Any, where: str) -> None:
    """Refuse a value that its first reader would use up or change.

    Parameters:
        where: names the key in errors.

    Raises:
        ConfigurationError: an iterator, a coroutine, or a response of a web framework.
    """
    kind = type(value).__qualname__
    if isinstance(value, (Iterator, AsyncIterator)):
        raise ConfigurationError(
            f"the value for {where} is a {kind}, which its first reader would use up: return a list"
        )
    if inspect.isawaitable(value):
        raise ConfigurationError(
            f"the value for {where} is a {kind}, which its first reader would use up: await it in the loader"
        )
    if is_response(type(value)):
        raise ConfigurationError(f"the value for {where} is a {kind}, which belongs to one request: {USE_RESPONSE}")


def is_response(kind: Any) -> bool:
    """Return whether a class is that of a web framework's responses."""
    return any(is_a(kind, package, _RESPONSES) for package in _WITH_RESPONSES)


def is_a(kind: Any, package: str, names: Collection[str]) -> bool:
    """Return whether a class is, or inherits from, one of the named classes of a package.

    Parameters:
        package: the beginning of the module's name. Given as text, the package need not be imported.
        names: the names of the classes.
    """
    bases = kind.__mro__ if isinstance(kind, type) else ()
    return any(base.__module__.startswith(package) and base.__name__ in names for base in bases)

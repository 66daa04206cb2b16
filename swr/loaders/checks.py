"""Refuse functions that cannot be loaders, where they are decorated."""

import functools
import inspect
from collections.abc import Callable
from typing import Any

from swr.errors import ConfigurationError
from swr.loaders.request_parameters import refuse_parameters
from swr.loaders.values import USE_RESPONSE, is_response


def check_loader(function: Callable[..., Any]) -> None:
    """Refuse what cannot be a loader.

    Raises:
        ConfigurationError: no function, a generator, or a function that takes what belongs to one request.
    """
    # A partial counts as a routine from Python 3.14 on.
    if isinstance(function, functools.partial) or not inspect.isroutine(function):
        raise ConfigurationError(
            f"@cache.cached stands on a function or a method, not on {function!r}: write a def of your own around it"
        )
    name = f"{function.__module__}.{getattr(function, '__qualname__', function)}"
    if inspect.isgeneratorfunction(function) or inspect.isasyncgenfunction(function):
        raise ConfigurationError(f"{name} is a generator: a cached loader returns its whole value, such as a list")
    refuse_parameters(function, name)
    if is_response(inspect.signature(function).return_annotation):
        raise ConfigurationError(f"{name} returns a response, which belongs to one request: {USE_RESPONSE}")

"""The context variables that an endpoint can read, and which of them swr may ignore in shared responses."""

import datetime
import decimal
import functools
import sys
import uuid
from collections.abc import Collection
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from swr.core.canonical import canonical
from swr.endpoints.libraries import NOT_OF_THE_APP, OBSERVERS, is_of_library
from swr.endpoints.reads import IDENTIFIERS, ROUTED
from swr.endpoints.terms import endpoint_terms
from swr.engine import deadlocks, switch

# Immutable types.
_FIXED: Final = frozenset(
    {
        str, int, bool, float, bytes, type(None), decimal.Decimal, uuid.UUID,
        datetime.date, datetime.time, datetime.datetime, datetime.timedelta,
    }
)  # fmt: skip
# The variables of swr itself, which say nothing about who asks.
_OWN: Final[frozenset[ContextVar[Any]]] = frozenset({endpoint_terms, ROUTED, deadlocks.CHAIN, switch.BLOCKS})
# Library variables that say nothing about who asks, or that endpoints do not read, by name.
# The values are the module and the attribute of the variable.
_OF_LIBRARIES: Final = {
    "current_async_library_cvar": ("sniffio", "current_async_library_cvar"),
    "correlation_id": ("asgi_correlation_id.context", "correlation_id"),
    "isolation_scope": ("sentry_sdk.scope", "_isolation_scope"),
    "current_scope": ("sentry_sdk.scope", "_current_scope"),
    "sentry_current_hub": ("sentry_sdk.hub", "_local"),
    "sentry_asgi_middleware_applied": ("sentry_sdk.integrations.asgi", "_asgi_middleware_applied"),
    "is_sentry_internal_task": ("sentry_sdk.utils", "_is_sentry_internal_task"),
    "disable_capture_event": ("sentry_sdk.utils", "disable_capture_event"),
    "client_init_debug": ("sentry_sdk.client", "_client_init_debug"),
    # Up to version 2.11, pydantic leaves `_GENERIC_TYPES_CACHE` behind when code parametrizes a generic model.
    "_GENERIC_TYPES_CACHE": ("pydantic._internal._generics", "_GENERIC_TYPES_CACHE"),
    "_generic_recursion_cache": ("pydantic._internal._generics", "_generic_recursion_cache"),
}
# Django keeps its values in objects of asgiref, each with a context variable of this name.
_OF_ASGIREF: Final = "asgiref.local"
# Those of Django that say nothing about who asks, by module and attributes: the prefix of its URLs, which is the root
# path, and its connections to caches.
_OF_DJANGO: Final = (("django.urls.base", "_prefixes"), ("django.core.cache", "caches", "_connections"))
_MISSING: Final = object()
# The prefix of variables among the names of what middleware around swr has set.
OF_VARIABLES: Final = "context variable "


class Unknown(Exception):
    """Raised with the name of a context variable that may hold something about who asks."""


def text_of_variables(before: Context) -> str:
    """Return the context variables as text; only equal variables have the same text.

    Parameters:
        before: the variables as they were before the app began.

    Raises:
        Unknown: the app has set, changed or removed a variable, or the value of one is mutable.
    """
    now = copy_context()
    texts: list[str] = []
    for variable, value in now.items():
        if variable in _OWN or _is_harmless(variable, value):
            continue
        if before.get(variable, _MISSING) is not value or not _is_fixed(value):
            raise Unknown(variable.name)
        texts.append(f"{variable.name}={canonical(value)}")
    for variable in before:
        if variable not in now:
            raise Unknown(variable.name)
    return repr(sorted(texts))


def outer_variables(before: Context, ambient: Context) -> list[str]:
    """Return the names of variables that middleware around swr may have set for one request.

    The names are such as "context variable tenant".

    Parameters:
        before: the variables as they are before the app begins.
        ambient: the variables that are set for all requests.
    """
    names = []
    for variable, value in before.items():
        if ambient.get(variable, _MISSING) is not value and not _is_unrelated(variable, value):
            names.append(f"{OF_VARIABLES}{variable.name}")
    # If swr was created during the first request, `ambient` may have variables of that request alone.
    for variable, value in ambient.items():
        if variable not in before and not _is_unrelated(variable, value):
            names.append(f"{OF_VARIABLES}{variable.name}")
    return names


def _is_unrelated(variable: ContextVar[Any], value: Any) -> bool:
    """Return whether a variable belongs to swr, or to a library that uses it for nothing that an app answers by."""
    if variable in _OWN or (variable.name == _OF_ASGIREF and any(_is_in(variable, *path) for path in _OF_DJANGO)):
        return True
    return _is_harmless(variable, value) or _is_defined_in(variable, NOT_OF_THE_APP)


def _is_in(variable: ContextVar[Any], module: str, *attributes: str) -> bool:
    """Return whether a `Local` of asgiref, an attribute of a module or of an object in it, keeps its values here."""
    found: Any = sys.modules.get(module)
    for attribute in (*attributes, "_storage", "_data"):
        found = getattr(found, attribute, None)
    return found is variable


def carried(before: Context) -> Context:
    """Return the context for a background run as the same client: the variables with immutable values.

    Parameters:
        before: the variables as they were before the app began.
    """
    return _of({variable: value for variable, value in before.items() if variable not in _OWN and _is_fixed(value)})


def replayed(ambient: Context, outer: Collection[str], *, is_keyed: bool) -> Context:
    """Return the context for a background run whose response is for everybody.

    Parameters:
        ambient: the variables that are set for all requests, and library variables, perhaps of the first request.
        outer: the names of what middleware around swr has set for the request; see `outer_names`.
        is_keyed: whether `key=` says what selects. It may read every variable, so the run gets all that are set now.
    """
    if is_keyed:
        return _of({variable: value for variable, value in copy_context().items() if variable not in _OWN})
    if any(name.startswith(OF_VARIABLES) for name in outer):
        # The request has other variables than `ambient`, or lacks one of them.
        return Context()
    return _of({variable: value for variable, value in ambient.items() if not _is_unrelated(variable, value)})


def _of(values: dict[ContextVar[Any], Any]) -> Context:
    context = Context()
    for variable, value in values.items():
        context.run(variable.set, value)
    return context


def _is_fixed(value: Any) -> bool:
    return type(value) in _FIXED or (type(value) is tuple and all(map(_is_fixed, value)))


def _is_harmless(variable: ContextVar[Any], value: Any) -> bool:
    """Return whether a variable is set by a library and says nothing about who asks."""
    module, attribute = _OF_LIBRARIES.get(variable.name, ("", ""))
    if variable is getattr(sys.modules.get(module), attribute, None):
        return True
    if variable.name.removeprefix("structlog_") in IDENTIFIERS:
        # `structlog` prefixes the names of its variables.
        return _is_fixed(value) or value is ...
    if variable.name == "decimal_context" and type(value) is decimal.Context:
        # Any decimal calculation sets this variable. Its flags and traps do not change a result.
        return _terms_of(value) == _terms_of(decimal.DefaultContext)
    if variable.name == "current_context" and type(value).__module__ == "opentelemetry.context.context":
        # Each request has a span of its own. Other values in the context may say who asks.
        return all(name.startswith("current-span-") for name in value)
    return _is_defined_in(variable, OBSERVERS)


@functools.lru_cache(256)
def _is_defined_in(variable: ContextVar[Any], beginnings: tuple[str, ...]) -> bool:
    """Return whether a library has defined a variable, in a module or in a class.

    Parameters:
        beginnings: the prefixes of the names of the library's modules.
    """
    modules = [
        module
        for name, module in [*sys.modules.items()]
        if name.startswith(beginnings) and is_of_library(name, getattr(module, "__file__", None))
    ]
    defined = [value for module in modules for value in [*vars(module).values()]]
    # Not `isinstance`, which reads `__class__` and would create lazy objects.
    inner = [value for kind in defined if issubclass(type(kind), type) for value in [*vars(kind).values()]]
    return any(value is variable for value in (*defined, *inner))


def _terms_of(context: decimal.Context) -> tuple[Any, ...]:
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp

"""The context variables that an endpoint can read, and which of them a shared response may disregard."""

import datetime
import decimal
import functools
import sys
import uuid
from collections.abc import Collection
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from swr.core.canonical import canonical
from swr.endpoints.reads import IDENTIFIERS, NOT_OF_THE_APP, OBSERVERS
from swr.endpoints.terms import endpoint_terms
from swr.engine import deadlocks, switch

# Types of which no value can be changed.
_FIXED: Final = frozenset(
    {
        str, int, bool, float, bytes, type(None), decimal.Decimal, uuid.UUID,
        datetime.date, datetime.time, datetime.datetime, datetime.timedelta,
    }
)  # fmt: skip
# Those of swr itself say nothing about who asks.
_OWN: Final[frozenset[ContextVar[Any]]] = frozenset({endpoint_terms, deadlocks.CHAIN, switch.BLOCKS})
# Variables of libraries that say nothing about who asks, or nothing that an endpoint reads: where each is defined.
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
    # Up to pydantic 2.11 whoever makes a type of a generic model leaves the first.
    "_GENERIC_TYPES_CACHE": ("pydantic._internal._generics", "_GENERIC_TYPES_CACHE"),
    "_generic_recursion_cache": ("pydantic._internal._generics", "_generic_recursion_cache"),
}
# Django keeps what belongs to its own requests there. It never wraps swr.
_OF_DJANGO: Final = "asgiref.local"
_MISSING: Final = object()
# So the names of variables begin among those of what middleware around swr has set.
OF_VARIABLES: Final = "context variable "


class Unknown(Exception):
    """Raised with the name of a context variable that may hold something about who asks."""


def text_of_variables(before: Context) -> str:
    """Return text that only equal context variables have.

    Parameters:
        before: what the app found set when it began.

    Raises:
        Unknown: the app has set or changed one, or one holds what can be changed.
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
    """Return the variables that middleware around swr may have set for one request, as "context variable tenant".

    Parameters:
        before: what the app finds set when it begins.
        ambient: what is set for all requests.
    """
    names = []
    for variable, value in before.items():
        if ambient.get(variable, _MISSING) is not value and not _is_unrelated(variable, value):
            names.append(f"{OF_VARIABLES}{variable.name}")
    # If the first request has made swr, what it had set is set for some requests only.
    for variable, value in ambient.items():
        if variable not in before and not _is_unrelated(variable, value):
            names.append(f"{OF_VARIABLES}{variable.name}")
    return names


def _is_unrelated(variable: ContextVar[Any], value: Any) -> bool:
    """Return whether a variable is of swr, or of a library that makes nothing of it that an app answers by."""
    if variable in _OWN or variable.name == _OF_DJANGO:
        return True
    return _is_harmless(variable, value) or _is_defined_in(variable, NOT_OF_THE_APP)


def carried(before: Context) -> Context:
    """Return a context with the variables that a background run as a client gets: those whose values cannot be changed.

    Parameters:
        before: what the app found set when it began.
    """
    return _of({variable: value for variable, value in before.items() if variable not in _OWN and _is_fixed(value)})


def replayed(ambient: Context, outer: Collection[str], *, is_keyed: bool) -> Context:
    """Return a context with the variables that a background run for everybody gets.

    Parameters:
        ambient: what is set for all requests, and variables of libraries, which may belong to the first request.
        outer: what middleware around swr has set for the request; see `outer_names`.
        is_keyed: whether `key=` says what selects, and may look at all that are set now.
    """
    if is_keyed:
        return _of({variable: value for variable, value in copy_context().items() if variable not in _OWN})
    if any(name.startswith(OF_VARIABLES) for name in outer):
        # It has others than those, or lacks one of them.
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
    """Return whether a variable is one of those that libraries set and that say nothing about who asks."""
    module, attribute = _OF_LIBRARIES.get(variable.name, ("", ""))
    if variable is getattr(sys.modules.get(module), attribute, None):
        return True
    if variable.name.removeprefix("structlog_") in IDENTIFIERS:
        # `structlog` puts its name in front.
        return _is_fixed(value) or value is ...
    if variable.name == "decimal_context" and type(value) is decimal.Context:
        # Any calculation leaves one. Its flags and traps do not change a result.
        return _terms_of(value) == _terms_of(decimal.DefaultContext)
    if variable.name == "current_context" and type(value).__module__ == "opentelemetry.context.context":
        # Each request has a span of its own. Anything else in it may say who asks.
        return all(name.startswith("current-span-") for name in value)
    return _is_defined_in(variable, OBSERVERS)


@functools.lru_cache(256)
def _is_defined_in(variable: ContextVar[Any], beginnings: tuple[str, ...]) -> bool:
    """Return whether a library has defined a variable, in a module or in a class.

    Parameters:
        beginnings: of the names of its modules.
    """
    modules = [module for name, module in [*sys.modules.items()] if name.startswith(beginnings)]
    defined = [value for module in modules for value in [*vars(module).values()]]
    # `isinstance` would ask objects that are made at their first use.
    inner = [value for kind in defined if issubclass(type(kind), type) for value in [*vars(kind).values()]]
    return any(value is variable for value in (*defined, *inner))


def _terms_of(context: decimal.Context) -> tuple[Any, ...]:
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp

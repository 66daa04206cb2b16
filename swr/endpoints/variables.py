"""Context variables that an endpoint can read: which may a shared response disregard, and which not."""

import datetime
import decimal
import sys
import uuid
from contextvars import Context, ContextVar, copy_context
from typing import Any, Final

from swr.core.canonical import canonical
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
# Each request has its own, as with the request fields of these names; `structlog` puts its name in front.
_IDENTIFIERS: Final = frozenset({"request_id", "correlation_id", "trace_id", "span_id"})
_MISSING: Final = object()


class Unknown(Exception):
    """A context variable may hold something about who asks; carries its name."""


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


def carried(before: Context) -> Context:
    """Return a context with the variables that a background run gets: those whose values cannot be changed.

    Parameters:
        before: what the app found set when it began.
    """
    context = Context()
    for variable, value in before.items():
        if variable not in _OWN and _is_fixed(value):
            context.run(variable.set, value)
    return context


def _is_fixed(value: Any) -> bool:
    return type(value) in _FIXED or (type(value) is tuple and all(map(_is_fixed, value)))


def _is_harmless(variable: ContextVar[Any], value: Any) -> bool:
    """Whether a variable is one of those that libraries set and that say nothing about who asks."""
    module, attribute = _OF_LIBRARIES.get(variable.name, ("", ""))
    if variable is getattr(sys.modules.get(module), attribute, None):
        return True
    if variable.name.removeprefix("structlog_") in _IDENTIFIERS:
        return _is_fixed(value) or value is ...
    if variable.name == "decimal_context" and type(value) is decimal.Context:
        # Any calculation leaves one. Its flags and traps do not change a result.
        return _terms_of(value) == _terms_of(decimal.DefaultContext)
    if variable.name == "current_context" and type(value).__module__ == "opentelemetry.context.context":
        # Each request has a span of its own. Anything else in it may say who asks.
        return all(name.startswith("current-span-") for name in value)
    return False


def _terms_of(context: decimal.Context) -> tuple[Any, ...]:
    return context.prec, context.rounding, context.Emin, context.Emax, context.capitals, context.clamp

"""The route that calls an endpoint: which parts of the request it passes on, and how it makes the response.

FastAPI's own objects say both. swr uses them only after FastAPI has routed a request, so it need not import FastAPI
before that.
"""

import functools
import hashlib
import inspect
import re
from collections.abc import Awaitable, Iterator, MutableMapping
from typing import Any, Final, NamedTuple

from starlette.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response

from swr.core.canonical import canonical
from swr.endpoints.declared import fields_of_guards, guards_of, has_own_class, looking_part
from swr.endpoints.looking import looks_at_request, takes_request

# Attributes of a dependant that name arguments made neither from path and query, nor from the request (`_REQUEST`).
_GIVEN: Final = (
    "websocket_param_name",
    "response_param_name",
    "background_tasks_param_name",
    "security_scopes_param_name",
)
_REQUEST: Final = ("request_param_name", "http_connection_param_name")
_OF_REQUEST: Final = ("header_params", "cookie_params")
_ADDRESS: Final = re.compile(r" at 0x[0-9a-fA-F]+")
_IDENTITY: Final = (
    "path_format",
    "name",
    "methods",
    "unique_id",
    "response_model",
    "response_model_include",
    "response_model_exclude",
    "response_model_by_alias",
    "response_model_exclude_unset",
    "response_model_exclude_defaults",
    "response_model_exclude_none",
    "status_code",
    "response_class",
)


class Route(NamedTuple):
    """The route that calls an endpoint, as swr knows it.

    Parameters:
        is_fastapi: whether FastAPI calls the endpoint.
        identity: text that differs between routes whose responses may differ.
        digest: a digest of the identity.
        hidden: why swr cannot know what reaches the endpoint or how the route writes its value; empty: it can.
        reason: the argument by which more than path and query reaches the endpoint; empty: none.
        of_content: the argument by which the content reaches the endpoint; empty: none.
        guard_fields: the request fields that its guards read; None: any, or another part of the route may read any.
        sets_response: whether a dependency may set fields of the response.
    """

    is_fastapi: bool
    identity: str
    digest: str
    hidden: str = ""
    reason: str = ""
    of_content: str = ""
    guard_fields: frozenset[str] | None = frozenset()
    sets_response: bool = False


def route_of(
    places: list[Any], where: Any, app: Any, overrides: dict[Any, Any], hidden_names: tuple[str, ...], name: str
) -> Route:
    """Return what swr knows of the route of a request.

    Parameters:
        places: see `places_of`.
        where: the one of `places` that calls the endpoint; None: none does.
        app: the app of the request.
        overrides: see `overrides_of`.
        hidden_names: the parameters that swr's wrapper adds to the endpoint.
        name: the name of the endpoint.
    """
    identity = f"{name}\n{getattr(app, 'title', '')}\n{getattr(app, 'version', '')}"
    if where is None:
        # A decorator between FastAPI's route and the endpoint may change its arguments.
        hidden = "route" if places else ""
        return Route(False, identity, _digest(identity), hidden, reason="argument request")
    identity += "".join(f"\n{attribute}={_text(getattr(where, attribute, None))}" for attribute in _IDENTITY)
    guards = list(guards_of(where, overrides))
    return Route(
        True,
        identity,
        _digest(identity),
        _why_hidden(where),
        _why_not_shared(where.dependant, guards, overrides, hidden_names),
        _argument_of_content(where.dependant),
        None if looking_part(where, overrides) else fields_of_guards(guards),
        any(part.response_param_name for part in (*guards, *_parts(where.dependant.dependencies))),
    )


def _digest(text: str) -> str:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()


def places_of(scope: MutableMapping[str, Any]) -> list[Any]:
    """Return FastAPI's route of a request, after the context of its router's inclusion, if there is one."""
    included = scope.get("fastapi", {}).get("effective_route_context")
    return [where for where in (included, scope.get("route")) if getattr(where, "dependant", None) is not None]


def overrides_of(places: list[Any], app: Any) -> dict[Any, Any]:
    """Return FastAPI's `dependency_overrides`, which tests use.

    Parameters:
        places: see `places_of`.
        app: the app of the request.
    """
    for provider in (*(getattr(where, "dependency_overrides_provider", None) for where in places), app):
        if overrides := getattr(provider, "dependency_overrides", None):
            return dict(overrides)
    return {}


def _text(value: Any) -> str:
    """Return a value as text that is the same in every process."""
    value = getattr(value, "value", value) if type(value).__name__ == "DefaultPlaceholder" else value
    try:
        return canonical(value)
    except TypeError:
        return _ADDRESS.sub("", repr(value))


def _why_hidden(where: Any) -> str:
    if has_own_class(where):
        # A custom route class may write the response in its own way.
        return "route class"
    return "" if is_plain(response_class_of(where)[0]) else "response class"


# -- what reaches the endpoint ------------------------------------------------------------------------------------


def _parts(dependants: list[Any]) -> Iterator[Any]:
    """Yield dependants and all their dependencies."""
    todo = [*dependants]
    while todo:
        part = todo.pop()
        yield part
        todo.extend(part.dependencies)


def _why_not_shared(dependant: Any, guards: list[Any], overrides: dict[Any, Any], hidden_names: tuple[str, ...]) -> str:
    """Return the first argument of the endpoint that may depend on more than path and query; empty: none."""
    for kind in _OF_REQUEST:
        for parameter in getattr(dependant, kind):
            return f"argument {parameter.name}"
    for given in (*_REQUEST, *_GIVEN):
        name = getattr(dependant, given)
        if name is None or name in hidden_names:
            continue
        if given not in _REQUEST or looks_at_request(dependant.call.__wrapped__, name):
            return f"argument {name}"
    # FastAPI runs equal dependencies only once, so an argument may be the value of a guard.
    shared = {part.call for part in guards}
    for argument in dependant.dependencies:
        if argument.name is not None:
            parts = list(_parts([argument]))
            if any(getattr(part, kind) for part in parts for kind in (*_OF_REQUEST, *_GIVEN)):
                return f"argument {argument.name}"
            if any(map(takes_request, parts)):
                return f"argument {argument.name}"
            if any(part.call in shared for part in parts):
                return f"argument {argument.name}, which a guard needs too"
            if any(part.call in overrides for part in parts):
                return f"argument {argument.name}, which is overridden"
    return ""


def _argument_of_content(dependant: Any) -> str:
    """Return the first argument of the endpoint that is made from the content of the request; empty: none."""
    for parameter in dependant.body_params:
        return f"argument {parameter.name}"
    for argument in dependant.dependencies:
        if argument.name is not None and any(part.body_params for part in _parts([argument])):
            return f"argument {argument.name}"
    return ""


# -- the response -------------------------------------------------------------------------------------------------


_PLAIN: Final = frozenset({Response, JSONResponse, HTMLResponse, PlainTextResponse})
_PLAIN_OF_FASTAPI: Final = frozenset({"ORJSONResponse", "UJSONResponse"})


def is_plain(kind: type[Response]) -> bool:
    """Return whether responses of a class consist of nothing but status, fields and body."""
    return kind in _PLAIN or (kind.__module__ == "fastapi.responses" and kind.__qualname__ in _PLAIN_OF_FASTAPI)


def response_class_of(where: Any) -> tuple[type[Response], bool]:
    """Return the class of a route's responses, and whether that is FastAPI's default."""
    from fastapi.datastructures import DefaultPlaceholder

    chosen = where.response_class
    is_default = isinstance(chosen, DefaultPlaceholder)
    return (chosen.value if is_default else chosen), is_default


def respond(where: Any, value: Any, status: int | None) -> Response:
    """Return the response that FastAPI makes from the value of an endpoint.

    Parameters:
        where: the route.
        status: the status that a dependency or the endpoint has set; None: use the route's.

    Raises:
        ResponseValidationError: the value does not fit the route's response model.
    """
    from fastapi.routing import serialize_response
    from fastapi.utils import is_body_allowed_for_status_code

    kind, is_default = response_class_of(where)
    writes_json = where.response_field is not None and is_default and _can_write_json(serialize_response)
    options: dict[str, Any] = {"dump_json": True} if writes_json else {}
    # With `is_coroutine=True`, `serialize_response` starts no thread, so it never really waits.
    writing = serialize_response(
        field=where.response_field,
        response_content=value,
        include=where.response_model_include,
        exclude=where.response_model_exclude,
        by_alias=where.response_model_by_alias,
        exclude_unset=where.response_model_exclude_unset,
        exclude_defaults=where.response_model_exclude_defaults,
        exclude_none=where.response_model_exclude_none,
        is_coroutine=True,
        **options,
    )
    content = _result_of(writing)
    status = status or where.status_code
    statuses: dict[str, Any] = {} if status is None else {"status_code": status}
    if writes_json:
        response = Response(content, media_type="application/json", **statuses)
    else:
        response = kind(content, **statuses)
    if not is_body_allowed_for_status_code(response.status_code):
        response.body = b""
    return response


@functools.lru_cache(1)
def _can_write_json(serialize: Any) -> bool:
    return "dump_json" in inspect.signature(serialize).parameters


def _result_of(coroutine: Awaitable[Any]) -> Any:
    """Return the result of a coroutine that never waits."""
    results: list[Any] = []

    async def keep() -> None:
        results.append(await coroutine)

    list(keep().__await__())
    return results[0]

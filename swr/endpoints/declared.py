"""The request fields that a FastAPI route declares, in its endpoint and in all dependencies."""

import functools
import inspect
from collections.abc import Iterator, MutableMapping
from typing import Any, NamedTuple


class Declared(NamedTuple):
    """What a route asks a request for.

    Parameters:
        fields: request fields that select the answer, lower case.
        credentials: those of them that say who asks.
        is_complete: whether these are all; False where FastAPI answers and its route is out of sight, or reads fields
            that it does not name.
    """

    fields: frozenset[str] = frozenset()
    credentials: frozenset[str] = frozenset()
    is_complete: bool = True


_NOTHING = Declared()
_OUT_OF_SIGHT = Declared(is_complete=False)
# Apps that wrap apps are looked into so deep.
_DEEPEST = 20


def declared(scope: MutableMapping[str, Any]) -> Declared:
    """Return what the route that has answered asks its requests for; nothing if no FastAPI app has answered.

    FastAPI resolves headers, header models, aliases and security schemes into the route's `dependant`, so this holds
    for every way to declare them.

    Parameters:
        scope: of the request, after the app has answered.
    """
    route = scope.get("route")
    # A route of an included router runs with what the inclusion adds to it.
    included = scope.get("fastapi", {}).get("effective_route_context")
    wheres: list[Any] = [where for where in (included, route) if getattr(where, "dependant", None) is not None]
    if not wheres:
        return _OUT_OF_SIGHT if _hides_a_route(scope) else _NOTHING
    provider = getattr(wheres[0], "dependency_overrides_provider", None) or scope.get("app")
    overrides = getattr(provider, "dependency_overrides", None) or {}
    fields: set[str] = set()
    credentials: set[str] = set()
    is_complete = True
    for part in _parts([where.dependant for where in wheres], overrides, getattr(route, "path_format", "/")):
        for parameter in part.header_params:
            names = _names_of(parameter)
            is_complete = is_complete and names is not None
            fields |= names or set()
        if part.cookie_params:
            fields.add("cookie")
        credentials |= _fields_of_scheme(part.call)
    return Declared(frozenset(fields | credentials), frozenset(credentials), is_complete)


def answers(scope: MutableMapping[str, Any], endpoint: Any) -> bool:
    """Return whether `endpoint`, a function under `@cache.response`, is what the visible route calls."""
    called = scope.get("endpoint")
    # An HTTPEndpoint calls one of its methods.
    candidates = [*vars(called).values()] if inspect.isclass(called) else [called]
    return any(_bare(candidate) is _bare(endpoint) for candidate in candidates if callable(candidate))


def _bare(function: Any) -> Any:
    """Return the function inside wrappers, and of a bound method."""
    function = inspect.unwrap(function)
    return getattr(function, "__func__", function)


def _hides_a_route(scope: MutableMapping[str, Any]) -> bool:
    """Return whether a FastAPI app may have routed the request on a copy of the scope."""
    seen = scope.get("endpoint")
    if seen is None and scope.get("route") is None:
        return "fastapi" in scope or hasattr(scope.get("app"), "dependency_overrides")
    for _ in range(_DEEPEST):
        if hasattr(seen, "dependency_overrides"):
            return True
        seen = getattr(seen, "app", None)
    return False


def _parts(dependants: list[Any], overrides: dict[Any, Any], path: str) -> Iterator[Any]:
    """Yield dependants and all that they depend on, overridden ones and what overrides them."""
    todo = [*dependants]
    # Kept, so that no other object gets the identity of one that was looked at.
    seen: dict[int, Any] = {}
    while todo:
        part = todo.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        todo.extend(part.dependencies)
        replacement = overrides.get(part.call) if part.call is not None else None
        if replacement is not None and replacement is not part.call:
            from fastapi.dependencies.utils import get_dependant

            todo.append(get_dependant(path=path, call=replacement))


def _names_of(parameter: Any) -> set[str] | None:
    """Return the request fields of one header parameter, which may be a model of several; None: any field."""
    info = parameter.field_info
    aliases = [parameter.alias, getattr(info, "validation_alias", None)]
    for model in (info.annotation, *getattr(info.annotation, "__args__", ())):
        model_fields = getattr(model, "model_fields", None)
        if model_fields is None:
            continue
        validators = getattr(getattr(model, "__pydantic_decorators__", None), "model_validators", {})
        reads_all = any(validator.info.mode != "after" for validator in validators.values())
        if reads_all or getattr(model, "model_config", {}).get("extra") == "allow":
            return None
        for name, field in model_fields.items():
            aliases += [name, field.alias, field.validation_alias]
    names: set[str] = set()
    for alias in aliases:
        texts = _texts(alias)
        if texts is None:
            return None
        names.update(texts)
    # FastAPI asks for the name with hyphens, unless it is told not to convert underscores.
    return {form.lower() for name in names for form in (name, name.replace("_", "-"))}


def _texts(alias: Any) -> list[str] | None:
    """Return the names that an alias stands for; None if its kind is unknown."""
    if alias is None or isinstance(alias, str):
        return [alias] if alias else []
    if isinstance(path := getattr(alias, "path", None), list) and path:
        return _texts(path[0])
    choices = getattr(alias, "choices", None)
    if not isinstance(choices, list):
        return None
    found = [_texts(choice) for choice in choices]
    return None if None in found else [text for texts in found for text in texts or ()]


def _fields_of_scheme(call: Any) -> set[str]:
    """Return the request field of a security scheme: an API key's own, `Authorization` for all others."""
    candidates = [call]
    for _ in range(_DEEPEST):
        inner = candidates[-1]
        if isinstance(inner, functools.partial):
            candidates.append(inner.func)
        elif hasattr(inner, "__wrapped__"):
            candidates.append(inner.__wrapped__)
        elif inspect.ismethod(inner):
            candidates.append(inner.__self__)
        else:
            break
    fields = set()
    for scheme in candidates:
        model = getattr(scheme, "model", None)
        if model is None or not hasattr(scheme, "scheme_name"):
            continue
        place = getattr(model, "in_", None)
        place = "" if place is None else str(getattr(place, "value", place))
        if place in ("", "header"):
            fields.add(str(model.name).lower() if place else "authorization")
        elif place == "cookie":
            fields.add("cookie")
    return fields

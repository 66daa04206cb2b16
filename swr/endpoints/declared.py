"""The request fields and parameters that a FastAPI route declares, in its endpoint and in all dependencies."""

import functools
import inspect
import sys
from collections.abc import Iterator, MutableMapping
from typing import Any, Final, NamedTuple

from swr.endpoints.looking import bare, function_of, is_compiled, reads_address, takes_request


class Declared(NamedTuple):
    """The parts of a request that a route declares.

    Parameters:
        fields: the request fields that select the answer, lower case.
        credentials: the fields among them that say who asks.
        is_complete: whether `fields` has all; False if FastAPI answers and swr does not see its route, or if the route
            reads fields without naming them.
        parameters: the query parameters.
        keys: the parameters among them that say who asks.
        names_parameters: whether `parameters` has all; False if a model takes any.
        guard_fields: the request fields that guards read, `QUERY` for the query; None: any field, and the address.
        looking: the part of the route that may read any field, or reads the address; empty: none. It is an argument of
            the endpoint (by its dependency), the class of the route, or the endpoint itself.
    """

    fields: frozenset[str] = frozenset()
    credentials: frozenset[str] = frozenset()
    is_complete: bool = True
    parameters: frozenset[str] = frozenset()
    keys: frozenset[str] = frozenset()
    names_parameters: bool = True
    guard_fields: frozenset[str] | None = frozenset()
    looking: str = ""


_NOTHING = Declared()
_OUT_OF_SIGHT = Declared(is_complete=False)
_UNSEEN = Declared(looking="route not seen")
_LOOKING = Declared(looking="argument request")
# Represents the query among the fields that guards read. It may contain an API key, which may be revoked.
QUERY: Final = "?"
# The most apps, each wrapped by the one before, that swr looks into.
_DEEPEST = 20


def declared(scope: MutableMapping[str, Any]) -> Declared:
    """Return what the route that has answered declares; nothing if no FastAPI app has answered.

    FastAPI resolves headers, header models, aliases and security schemes into the route's `dependant`, so this covers
    every way to declare them.

    Parameters:
        scope: the scope of the request, after the app has answered.
    """
    chosen = [*getattr(scope, "routes", ())]
    # A route of an included router also has the dependencies that its inclusion adds.
    chosen.append((scope.get("route"), scope.get("fastapi", {}).get("effective_route_context")))
    wheres: list[Any] = []
    for where in (where for pair in chosen for where in pair):
        if getattr(where, "dependant", None) is not None and not any(where is known for known in wheres):
            wheres.append(where)
    if _is_frontend(scope):
        return _OUT_OF_SIGHT
    # The endpoint, or the object that it has returned, may have passed a copy to another app. A router writes itself
    # into the scope. In a plain dict it is one in which swr has noted nothing.
    is_copied = getattr(scope, "is_copied", "router" in scope)
    if not wheres:
        if is_copied:
            # That app may declare something only if it is one of FastAPI.
            return _OUT_OF_SIGHT if "fastapi" in sys.modules else _UNSEEN
        if _hides_a_route(scope):
            return _OUT_OF_SIGHT
        return _LOOKING if any(reads_address(candidate) for candidate in _called(scope)) else _NOTHING
    fields: set[str] = set()
    credentials: set[str] = set()
    parameters: set[str] = set()
    keys: set[str] = set()
    is_complete, names_parameters = not is_copied, True
    app = scope.get("app")
    guards = [guard for where in wheres for guard in guards_of(where, _overrides(where, app))]
    looking = [looking_part(where, _overrides(where, app)) for where in wheres]
    for part in (part for where in wheres for part in _parts(where, app)):
        for parameter in part.header_params:
            names = names_of(parameter)
            is_complete = is_complete and names is not None
            # FastAPI reads the field with hyphens, unless `convert_underscores` is off.
            fields |= {form.lower() for name in names or () for form in (name, name.replace("_", "-"))}
        for parameter in part.query_params:
            names = names_of(parameter)
            names_parameters = names_parameters and names is not None
            parameters |= names or set()
        if part.cookie_params:
            fields.add("cookie")
        for place, name in places_of_scheme(part.call):
            if place == "query":
                keys.add(name)
            else:
                credentials.add("cookie" if place == "cookie" else name.lower())
    return Declared(
        frozenset(fields | credentials),
        frozenset(credentials),
        is_complete,
        frozenset(parameters | keys),
        frozenset(keys),
        names_parameters,
        fields_of_guards(guards),
        next(filter(None, looking), ""),
    )


def answers(scope: MutableMapping[str, Any], endpoint: Any) -> bool:
    """Return whether the visible route calls `endpoint`, a function under `@cache.response`, or a wrapper of it."""
    return any(bare(candidate) is bare(endpoint) for candidate in _called(scope) if callable(candidate))


def calls(scope: MutableMapping[str, Any], function: Any) -> bool:
    """Return whether the visible route calls a function directly, and not a wrapper of it."""
    return any(function_of(candidate) is function for candidate in _called(scope))


def _called(scope: MutableMapping[str, Any]) -> list[Any]:
    """Return the callables that the visible route may call: of an `HTTPEndpoint`, all its methods."""
    called = scope.get("endpoint")
    if not inspect.isclass(called):
        return [called]
    return [*{name: value for kind in reversed(called.__mro__) for name, value in vars(kind).items()}.values()]


def _is_frontend(scope: MutableMapping[str, Any]) -> bool:
    """Return whether FastAPI's `frontend()` has answered: it chooses between files by fields that no route declares."""
    return "frontend_path" in scope.get("fastapi", {})


def _hides_a_route(scope: MutableMapping[str, Any]) -> bool:
    """Return whether FastAPI may have answered by a route that the scope does not name."""
    if "fastapi_inner_astack" in scope:
        # FastAPI has solved dependencies.
        return True
    seen = scope.get("endpoint")
    if seen is None and scope.get("route") is None:
        return "fastapi" in scope or hasattr(scope.get("app"), "dependency_overrides")
    for _ in range(_DEEPEST):
        if hasattr(seen, "dependency_overrides"):
            return True
        seen = getattr(seen, "app", None)
    return False


def _overrides(where: Any, app: Any) -> dict[Any, Any]:
    provider = getattr(where, "dependency_overrides_provider", None) or app
    return getattr(provider, "dependency_overrides", None) or {}


def _parts(where: Any, app: Any) -> Iterator[Any]:
    """Yield the dependant of a route and its dependencies, both overridden ones and those that override them.

    Parameters:
        where: a route, or the context of its inclusion.
        app: the app that answered.
    """
    overrides = _overrides(where, app)
    todo = [where.dependant]
    # Keep the objects, so that no new object gets the `id` of one that was visited.
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

            todo.append(get_dependant(path=getattr(where, "path_format", "/"), call=replacement))


def guards_of(where: Any, overrides: dict[Any, Any]) -> Iterator[Any]:
    """Yield the guards of a route: dependants whose values do not reach the endpoint, and those that override them.

    Parameters:
        where: a route, or the context of its inclusion.
        overrides: FastAPI's `dependency_overrides`, which tests use.
    """
    # A dependency in `dependencies=[...]` has no parameter name.
    return _overridden([part for part in where.dependant.dependencies if part.name is None], overrides)


def _overridden(parts: list[Any], overrides: dict[Any, Any]) -> Iterator[Any]:
    """Yield dependants, their dependencies, and those that override any of them."""
    from fastapi.dependencies.utils import get_dependant

    todo = [*parts]
    while todo:
        part = todo.pop()
        yield part
        todo.extend(part.dependencies)
        replacement = overrides.get(part.call, part.call)
        if replacement is not part.call:
            todo.append(get_dependant(path="/", call=replacement))


def has_own_class(where: Any) -> bool:
    """Return whether a route has a class of the app's own, whose handler runs around all dependencies.

    Parameters:
        where: a route, or the context of its inclusion.
    """
    from fastapi.routing import APIRoute

    return type(getattr(where, "original_route", where)) is not APIRoute


def looking_part(where: Any, overrides: dict[Any, Any]) -> str:
    """Return the part of a route, apart from guards, that may read anything in the request; empty: none.

    Parameters:
        where, overrides: see `guards_of`.
    """
    if has_own_class(where):
        return "route class"
    endpoint = where.dependant
    if reads_address(endpoint.call) or (is_compiled(endpoint.call) and takes_request(endpoint)):
        return "argument request"
    arguments = [part for part in where.dependant.dependencies if part.name is not None]
    for part in arguments:
        if any(map(looks_anywhere, _overridden([part], overrides))):
            return f"argument {part.name}"
    return ""


def looks_anywhere(part: Any) -> bool:
    """Return whether a dependency takes the request and may read anything in it, such as the client's address."""
    return takes_request(part) and not (places_of_scheme(part.call) and _is_of_fastapi(part.call))


def fields_of_guards(guards: list[Any]) -> frozenset[str] | None:
    """Return the request fields that guards read, with `QUERY` if they read query parameters; None: any."""
    fields: set[str] = set()
    for part in guards:
        if looks_anywhere(part):
            return None
        places = places_of_scheme(part.call)
        fields |= {{"header": name.lower(), "query": QUERY}.get(place, place) for place, name in places}
        for parameter in part.header_params:
            names = names_of(parameter)
            if names is None:
                return None
            fields |= {form.lower() for name in names for form in (name, name.replace("_", "-"))}
        if part.cookie_params:
            fields.add("cookie")
        if part.query_params:
            fields.add(QUERY)
    return frozenset(fields)


def _is_of_fastapi(scheme: Any) -> bool:
    """Return whether a security scheme is FastAPI's own, and not a subclass that may look at more."""
    return getattr(type(scheme).__call__, "__module__", "").startswith("fastapi.security.")


def names_of(parameter: Any) -> set[str] | None:
    """Return the names of one header or query parameter, which may be a model of several; None: any name."""
    info = parameter.field_info
    is_model = hasattr(info.annotation, "model_fields")
    aliases = [] if is_model else [parameter.alias, getattr(info, "validation_alias", None)]
    for model in (info.annotation, *getattr(info.annotation, "__args__", ())):
        model_fields = getattr(model, "model_fields", None)
        if model_fields is None:
            continue
        validators = getattr(getattr(model, "__pydantic_decorators__", None), "model_validators", {})
        reads_all = any(validator.info.mode != "after" for validator in validators.values())
        extra = getattr(model, "model_config", {}).get("extra")
        # A model that forbids extra fields reads which fields the request has.
        is_of_fields = getattr(getattr(info, "in_", None), "value", "") == "header"
        if reads_all or extra == "allow" or (extra == "forbid" and is_of_fields):
            return None
        for name, field in model_fields.items():
            aliases += [name, field.alias, field.validation_alias]
    names: set[str] = set()
    for alias in aliases:
        texts = _texts(alias)
        if texts is None:
            return None
        names.update(texts)
    return names


def _texts(alias: Any) -> list[str] | None:
    """Return the names of an alias, which may be a path or a choice of pydantic; None if its kind is unknown."""
    if alias is None or isinstance(alias, str):
        return [alias] if alias else []
    if isinstance(path := getattr(alias, "path", None), list) and path:
        return _texts(path[0])
    choices = getattr(alias, "choices", None)
    if not isinstance(choices, list):
        return None
    found = [_texts(choice) for choice in choices]
    return None if None in found else [text for texts in found for text in texts or ()]


def places_of_scheme(call: Any) -> set[tuple[str, str]]:
    """Return where a security scheme looks and for which name: that of an API key, or else `Authorization`."""
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
    places = set()
    for scheme in candidates:
        model = getattr(scheme, "model", None)
        if model is None or not hasattr(scheme, "scheme_name"):
            continue
        place = getattr(model, "in_", None)
        places.add(("header", "authorization") if place is None else (str(getattr(place, "value", place)), model.name))
    return places

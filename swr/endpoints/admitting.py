"""Decides whether an endpoint may answer a request from the cache after its dependencies, and under which key."""

import inspect
import weakref
from collections.abc import Callable, Collection
from typing import Any, Final

from starlette.requests import Request
from starlette.responses import Response

from swr.core.canonical import PLAIN, canonical
from swr.core.signatures import signature_of
from swr.endpoints.declared import answers, calls, declared
from swr.endpoints.looking import function_of, reads_address
from swr.endpoints.reader import Reader
from swr.endpoints.route import Route, overrides_of, places_of, route_of
from swr.endpoints.terms import ADMISSION, Admission, EndpointTerms, Owner
from swr.endpoints.variables import Unknown, text_of_variables
from swr.endpoints.words import Words
from swr.errors import ConfigurationError
from swr.http.caching import Terms
from swr.http.fields import values_of
from swr.http.request import Scope

_REQUEST: Final = "swr_request"
_RESPONSE: Final = "swr_response"
_HIDDEN: Final = (_REQUEST, _RESPONSE)
_MOST_ROUTES: Final = 256

# The arguments of a call, by position and by name.
Call = tuple[tuple[Any, ...], dict[str, Any]]


class Admitting:
    """The decision for the requests to one endpoint.

    Parameters:
        owner: the cache.
        endpoint: the function under the decorator.
        name: the name of the endpoint.
        words: the user's `key=` and `shared=`.

    Raises:
        ConfigurationError: `words` cannot work for this endpoint.
    """

    # The function that the decorator returns, and that the route calls.
    wrapper: Any

    def __init__(self, owner: Owner, endpoint: Callable[..., Any], name: str, words: Words) -> None:
        self._owner = owner
        self._endpoint = endpoint
        self._name = name
        self._words = words
        self._signature = signature = signature_of(endpoint)
        self._key_names = words.names_for(name, signature.parameters)
        self._is_generator = any(
            is_one(inspect.unwrap(endpoint)) for is_one in (inspect.isgeneratorfunction, inspect.isasyncgenfunction)
        )
        self._defaults = {name: parameter.default for name, parameter in signature.parameters.items()}
        self._reads_address = reads_address(endpoint)
        self._has_decorator = hasattr(endpoint, "__wrapped__")
        if words.are_given and _has_requires(endpoint):
            raise ConfigurationError(
                f"@cache.response is above @requires of {name}, which would not run: put it below @requires"
            )
        # An endpoint of Starlette takes nothing but its request.
        self.is_from_request = list(signature.parameters) in (["request"], ["self", "request"])
        self._given = {kind: parameter_of(endpoint, kind) for kind in (Request, Response)}
        self._routes: dict[tuple[int, ...], tuple[Route, weakref.ref[Any]]] = {}

    @property
    def signature(self) -> inspect.Signature | None:
        """The signature that FastAPI sees: the endpoint's, plus the request and the response; None: unchanged."""
        if self.is_from_request or self._is_generator:
            return None
        own = list(self._signature.parameters.values())
        hidden = [
            inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, annotation=kind)
            for name, kind in ((_REQUEST, Request), (_RESPONSE, Response))
            if self._given[kind] is None
        ]
        # No parameter may follow `**kwargs`.
        at = len(own) - any(parameter.kind is inspect.Parameter.VAR_KEYWORD for parameter in own)
        return self._signature.replace(parameters=[*own[:at], *hidden, *own[at:]])

    def take_hidden(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Request | None, Response | None]:
        """Return the request and the response of a call, and remove the arguments that the endpoint does not take."""
        request = kwargs.pop(_REQUEST, None) or kwargs.get(self._given[Request] or "request")
        own = kwargs.pop(_RESPONSE, None) or kwargs.get(self._given[Response] or "")
        if request is None and args:
            request = args[-1]
        return (request if isinstance(request, Request) else None), own

    def reader(
        self, collected: EndpointTerms, terms: Terms, request: Request, own: Response | None, call: Call
    ) -> Reader | None:
        """Return a reader that answers the request from the cache; None: the endpoint runs in any case.

        Parameters:
            collected: the terms of this request; they hold the middleware's admission.
            terms: the terms of the endpoint.
            request: the request, as the endpoint gets it.
            own: the response on which the dependencies of the request set fields; None: there is none.
            call: the arguments of the endpoint.
        """
        admission, scope = collected.admission, request.scope
        if admission is None or self._is_generator or scope["method"] != admission.asked.method:
            return None
        if admission.is_taken or id(scope.get(ADMISSION)) != id(admission):
            # This request is an inner one, which another endpoint makes while it answers.
            return None
        route, where = self._route(scope)
        if not self._is_kept_out(admission, terms, request, route):
            return None
        admission.is_taken, admission.scope = True, scope
        try:
            self._check(admission, route, request, own)
            key = self._key(admission, terms, route, request, call)
        except Refused as refused:
            if self._is_kept_apart(admission, terms, request, route):
                return None
            admission.reason = str(refused)
            path = getattr(where, "path_format", scope["path"])
            self._words.explain(self._name, f"{scope['method']} {path}", str(refused), is_fastapi=route.is_fastapi)
            return None
        admission.is_admitted = True
        return Reader(self._owner, admission, key, terms, where, own, collected.tags_of)

    def _is_kept_out(
        self, admission: Admission, terms: Terms, request: Request, route: Route, declares: Collection[str] = ()
    ) -> bool:
        """Return whether the middleware does not share the response of this request before the dependencies run.

        Parameters:
            declares: the request fields that the route declares, by which the middleware may keep responses apart.
        """
        if self._words.key is not None or self._reads_address or not calls(request.scope, self.wrapper):
            return True
        if terms.per_credential:
            # The middleware stores one response for each credential.
            return False
        known = (*terms.vary, *terms.ignores, *declares)
        return admission.asked.is_kept_out(request.scope, route.guard_fields, known)

    def _is_kept_apart(self, admission: Admission, terms: Terms, request: Request, route: Route) -> bool:
        """Return whether the middleware stores this response for each value of the fields that the route declares.

        The middleware learns these fields from the first response, so the first request comes here nevertheless.
        """
        asked = declared(request.scope)
        return asked.is_complete and not self._is_kept_out(admission, terms, request, route, asked.fields)

    def _check(self, admission: Admission, route: Route, request: Request, own: Response | None) -> None:
        """Raise `Refused` if the response may depend on something that swr cannot see."""
        if route.hidden:
            raise Refused(route.hidden)
        if not route.is_fastapi and not answers(request.scope, self._endpoint):
            raise Refused("route")
        if self._is_of_another(route.identity, request.scope.get("app")):
            raise Refused("another app")
        if own is not None and own.status_code is not None:
            raise Refused("status of a dependency")
        if own is None and route.sets_response:
            raise Refused("response of a dependency")
        if left_out := admission.asked.why_left_out(request.scope):
            raise Refused(left_out)
        if self._words.are_given:
            return
        # For other methods than GET, the content is part of the key.
        reason = route.reason or (route.of_content if request.method == "GET" else "")
        if reason:
            raise Refused(reason)
        if self._has_decorator:
            raise Refused("decorator")

    def _route(self, scope: Scope) -> tuple[Route, Any]:
        """Return what swr knows of the route of a request, and FastAPI's own object for it."""
        places, app = places_of(scope), scope.get("app")
        where = next((where for where in places if function_of(where.dependant.call) is self.wrapper), None)
        if overrides := overrides_of(places, app):
            return route_of(places, where, app, overrides, _HIDDEN, self._name), where
        marker = id(where), id(app)
        known = self._routes.get(marker)
        # The reference tells a new object from a deleted one that had the same `id`.
        if known is None or known[1]() is not (where or app or self):
            if len(self._routes) >= _MOST_ROUTES:
                self._routes.clear()
            known = route_of(places, where, app, overrides, _HIDDEN, self._name), weakref.ref(where or app or self)
            self._routes[marker] = known
        return known[0], where

    def _is_of_another(self, identity: str, app: Any) -> bool:
        """Return whether another endpoint or app of this process has the same identity."""
        known, first = self._owner.first, self._owner.first.get(identity)
        mine = self.wrapper, app or self
        found = None if first is None else (first[0](), first[1]())
        if found is None or None in found:
            known[identity] = weakref.ref(mine[0]), weakref.ref(mine[1])
            return False
        return found[0] is not mine[0] or found[1] is not mine[1]

    # -- the key ----------------------------------------------------------------------------------------------

    def _key(self, admission: Admission, terms: Terms, route: Route, request: Request, call: Call) -> str:
        """Return the key of the response.

        Raises:
            Refused: something that selects the response cannot be part of a key.
        """
        scope, asked = request.scope, admission.asked
        texts = [route.digest]
        try:
            # The path is in `asked.key`, but a dependency may have changed these parameters.
            texts.extend(f"{name}={_text(value)}" for name, value in scope.get("path_params", {}).items())
        except TypeError:
            raise Refused("path") from None
        # `asked.key` has the query as it came. If the app has changed the query, the changed one counts, too.
        texts.append("" if scope["query_string"] == asked.query else repr(scope["query_string"]))
        args, kwargs = call
        arguments = {**dict(zip(self._signature.parameters, args, strict=False)), **kwargs} if args else kwargs
        for name, value in arguments.items():
            try:
                texts.append(f"{name}={_text(value)}")
            except TypeError:
                # Skip this argument. Either it is made from the path and query, which are in the key, or the user says
                # with `key=` or `shared=` what selects the response.
                continue
        for name in sorted({*terms.vary, *asked.fields_of_rule(scope)}):
            texts.append(f"field {name}: {values_of(scope['headers'], name.encode('latin-1'))}")
        if not self._words.are_given:
            try:
                texts.append(text_of_variables(admission.variables))
            except Unknown as unknown:
                raise Refused(f"context variable {unknown}") from None
        if self._words.key is not None:
            values = {"scope": scope, **self._defaults, **arguments}
            selected = self._words.text(self._name, {name: values[name] for name in self._key_names})
            if selected is None:
                raise Refused("key")
            texts.append(f"key: {selected}")
        digest = self._owner.digest(repr(texts).encode("utf-8", "surrogatepass"))
        return f"{asked.key}\nafter dependencies: {digest}"


def _text(value: Any) -> str:
    """Return a value as text; only equal values of the same type have the same text.

    Raises:
        TypeError: the value has no such text.
    """
    return repr(value) if type(value) in PLAIN else canonical(value)


class Refused(Exception):
    """Raised with the reason why the cache cannot answer a request."""


def parameter_of(endpoint: Callable[..., Any], kind: type) -> str | None:
    """Return the parameter of an endpoint that FastAPI fills with an object of `kind`, or None."""
    try:
        parameters = inspect.signature(endpoint, eval_str=True).parameters
    except Exception:
        # An annotation contains a name that is not defined (yet).
        parameters = signature_of(endpoint).parameters
    for parameter in parameters.values():
        annotation = parameter.annotation
        if any(type(mark).__module__.startswith("fastapi") for mark in getattr(annotation, "__metadata__", ())):
            # FastAPI fills this parameter by `Depends` or the like.
            continue
        if hasattr(annotation, "__metadata__"):
            annotation = annotation.__origin__
        if isinstance(annotation, str):
            if annotation.rpartition(".")[2] == kind.__name__:
                return parameter.name
        elif isinstance(annotation, type) and issubclass(annotation, kind):
            return parameter.name
    return None


def _has_requires(endpoint: Any) -> bool:
    """Return whether `@requires` of Starlette decorates an endpoint."""
    while endpoint is not None:
        if getattr(endpoint, "__globals__", {}).get("__name__") == "starlette.authentication":
            return True
        endpoint = getattr(endpoint, "__wrapped__", None)
    return False

"""`@cache.response`: it tells the middleware how to cache the responses of one endpoint, and nothing else."""

import functools
import inspect
import logging
from collections.abc import Callable, Mapping, Sequence
from contextvars import ContextVar
from typing import Any, TypeVar

import anyio.from_thread

from swr.core.keys import Template
from swr.errors import ConfigurationError
from swr.http.caching import Terms
from swr.http.fields import field_names
from swr.loaders.cached import is_async
from swr.policy import Duration, Policy

log = logging.getLogger("swr")
F = TypeVar("F", bound=Callable[..., Any])


class EndpointTerms:
    """Collects the terms that an endpoint gives while it answers one request.

    Parameters:
        owner: the cache that the middleware uses.
        limit: sets the time limit of the load, in seconds, if there is a load; call it in the event loop's thread.
    """

    __slots__ = ("limit", "owner", "terms")

    def __init__(self, owner: object, limit: Callable[[float], None] | None = None) -> None:
        self.owner = owner
        self.limit = limit
        self.terms: Terms | None = None


endpoint_terms: ContextVar[EndpointTerms | None] = ContextVar("swr_endpoint_terms", default=None)


class ResponseRule:
    """The terms for the responses of one endpoint.

    Parameters:
        owner: the cache whose middleware applies them.
        fresh_for, stale_for, stale_if_error, tags, override, vary, hard_timeout: see `Rule`; tags may name the
            endpoint's parameters. Fields that the endpoint or its dependencies ask FastAPI for (`Header()`,
            `APIKeyHeader`) are found without `vary`.

    Raises:
        ConfigurationError: any of these that cannot work.
    """

    def __init__(
        self,
        owner: object,
        fresh_for: Duration,
        stale_for: Duration,
        stale_if_error: Duration,
        tags: Sequence[str],
        override: bool,
        vary: Sequence[str],
        hard_timeout: Duration | None = None,
    ) -> None:
        self._owner = owner
        self._policy = Policy(fresh_for, stale_for, stale_if_error, tags, hard_timeout=hard_timeout)
        self._override = override
        self._vary = field_names(vary)
        self._warned = False

    def __call__(self, endpoint: F) -> F:
        """Wrap `endpoint`, `def` or `async def`; its signature stays, for dependency injection."""
        if not callable(endpoint) or inspect.isclass(endpoint):
            raise ConfigurationError(f"@cache.response stands on an endpoint function, not on {endpoint!r}")
        name = f"{endpoint.__module__}.{endpoint.__qualname__}"
        parameters = inspect.signature(endpoint).parameters
        templates = [Template(tag, "tags", name) for tag in self._policy.tags]
        # An endpoint of Starlette takes its request alone; its path's parameters are known only when it runs.
        vary = tuple(sorted({*self._vary, *fields_asked_for(endpoint)}))
        from_request = list(parameters) in (["request"], ["self", "request"])
        for placeholder in (placeholder for template in templates for placeholder in template.names):
            if placeholder not in parameters and not from_request:
                raise ConfigurationError(
                    f"the tags of {name} name {placeholder!r}, which is none of its parameters: {', '.join(parameters)}"
                )

        def give_terms(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            collected = endpoint_terms.get()
            if collected is None or collected.owner is not self._owner:
                if not self._warned:
                    self._warned = True
                    log.warning(
                        "@cache.response on %s does nothing: its cache's SWRMiddleware is not in place; "
                        "app.add_middleware(SWRMiddleware, cache=cache)",
                        name,
                    )
                return
            if collected.terms is None:
                values: Mapping[str, Any] = kwargs
                if from_request and templates:
                    values = (kwargs.get("request") or args[-1]).path_params
                tags = tuple(template.fill_plain(values) for template in templates)
                policy = self._policy
                collected.terms = Terms(policy.tagged(tags), True, self._override, vary)
                if policy.hard_timeout is not None and collected.limit is not None:
                    _in_the_loop(collected.limit, policy.hard_timeout)

        if is_async(endpoint):

            @functools.wraps(endpoint)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                give_terms(args, kwargs)
                return await endpoint(*args, **kwargs)

        else:

            @functools.wraps(endpoint)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                give_terms(args, kwargs)
                return endpoint(*args, **kwargs)

        # The wrapper takes and returns what the endpoint does, in either case.
        return wrapper  # type: ignore[return-value]


def _in_the_loop(function: Callable[[float], None], seconds: float) -> None:
    """Call `function` in the event loop's thread: a `def` endpoint runs in one of its worker threads."""
    try:
        anyio.from_thread.run_sync(function, seconds)
    except RuntimeError:
        # No worker thread: this is the event loop's own.
        function(seconds)


def fields_asked_for(function: Callable[..., Any], seen: frozenset[Any] = frozenset()) -> set[str]:
    """Return the request fields that FastAPI hands to `function` and to its dependencies, lower case.

    What is read from a `Request` itself cannot be seen; it has to be named.
    """
    fields: set[str] = set()
    try:
        parameters = inspect.signature(function, eval_str=True).parameters
    except (NameError, TypeError, ValueError):
        parameters = inspect.signature(function).parameters
    for name, parameter in parameters.items():
        for mark in (parameter.default, *getattr(parameter.annotation, "__metadata__", ())):
            kind = type(mark)
            if not kind.__module__.startswith("fastapi."):
                continue
            if kind.__name__ == "Header":
                underscores = getattr(mark, "convert_underscores", True)
                fields.add((mark.alias or (name.replace("_", "-") if underscores else name)).lower())
            elif kind.__name__ in ("Depends", "Security"):
                annotation = parameter.annotation
                dependency = mark.dependency or getattr(annotation, "__origin__", annotation)
                if kind_of_key(dependency) == "header":
                    fields.add(dependency.model.name.lower())
                elif callable(dependency) and dependency not in seen:
                    fields |= fields_asked_for(dependency, seen | {dependency})
    return fields


def kind_of_key(dependency: Any) -> str:
    """Return where FastAPI's `APIKeyHeader` and its like look for the key: "header", "cookie", "query", or ""."""
    place = getattr(getattr(dependency, "model", None), "in_", "")
    return str(getattr(place, "value", place))

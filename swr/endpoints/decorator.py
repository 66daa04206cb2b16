"""`@cache.response`: it tells the middleware how to cache the responses of one endpoint."""

import contextlib
import functools
import inspect
import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from types import EllipsisType
from typing import Any, Self, TypeVar, cast
from weakref import WeakKeyDictionary

import anyio.from_thread
from starlette.requests import Request
from starlette.websockets import WebSocket

from swr.core.signatures import signature_of
from swr.core.template import Template
from swr.endpoints.admitting import Admitting, parameter_of
from swr.endpoints.reader import Reader
from swr.endpoints.response_tags import ResponseTags
from swr.endpoints.terms import EndpointTerms, Owner, endpoint_terms
from swr.endpoints.words import Words
from swr.engine import deadlocks
from swr.errors import ConfigurationError
from swr.http.caching import Terms
from swr.http.request_fields import field_names
from swr.lifecycle.default_policy import DecoratorPolicy
from swr.loaders.call import is_async
from swr.loaders.calling import TagsOf, tags_or_function
from swr.policy import Duration, Policy, seconds, timeout_or_auto

log = logging.getLogger("swr")
F = TypeVar("F", bound=Callable[..., Any])


class Placement:
    """A note whether anything has called the wrapper of an endpoint.

    Parameters:
        name: the name of the endpoint.
    """

    __slots__ = ("is_called", "name")

    def __init__(self, name: str) -> None:
        self.name = name
        # Also set by the warning about a wrapper that is not called, so that it comes only once.
        self.is_called = False


# The placement of each endpoint that `@cache.response` has wrapped.
placements: WeakKeyDictionary[Any, Placement] = WeakKeyDictionary()


class ResponseRule:
    """The terms for the responses of one endpoint.

    Parameters:
        owner: the cache whose middleware applies them.
        fresh_for, stale_for, stale_if_error: see `Rule`; `...`: use the policy of the cache.
        tags, override, vary, hard_timeout: see `Rule`; tags may contain the endpoint's parameters. swr finds fields
            that the route declares (`Header()`, `APIKeyHeader`) without `vary`.

    Raises:
        ConfigurationError: one of these options cannot work.
    """

    def __init__(
        self,
        owner: Owner,
        fresh_for: Duration | EllipsisType,
        stale_for: Duration | EllipsisType,
        stale_if_error: Duration | EllipsisType,
        tags: Sequence[str] | TagsOf,
        override: bool,
        vary: Sequence[str],
        hard_timeout: Duration | None = None,
    ) -> None:
        self._owner = owner
        tags, self._tags_of = tags_or_function(tags)
        given = {
            "fresh_for": fresh_for,
            "stale_for": stale_for,
            "stale_if_error": stale_if_error,
            "tags": tags,
            "keep_for": 0,
            "soft_timeout": None,
            "hard_timeout": hard_timeout,
            "early": 0,
            "jitter": 0,
        }
        self._policies = DecoratorPolicy(owner.default_policy, given, "@cache.response")
        self._client_max_age = 0.0
        self._override = override
        self._vary = field_names(vary)
        self._ignores: tuple[str, ...] = ()
        self._per_credential = False
        self._words = Words(None, False)
        self._warned = False

    @property
    def _policy(self) -> Policy:
        return self._policies.now

    def about_requests(self, ignore_fields: Sequence[str], credentials: str) -> Self:
        """Set what request fields and credentials mean for the responses; return this object.

        Parameters:
            ignore_fields: request fields that no response depends on, besides those that swr knows as harmless.
            credentials: see `Rule`.

        Raises:
            ConfigurationError: one of them cannot work.
        """
        self._ignores = field_names(ignore_fields, "ignore_fields")
        if credentials not in ("private", "vary"):
            raise ConfigurationError(f'credentials={credentials!r}: give "private" or "vary"')
        self._per_credential = credentials == "vary"
        return self

    def about_clients(self, client_max_age: Duration, soft_timeout: Duration | None) -> Self:
        """Set how long clients may keep the responses, and how long they wait for one; return this object.

        Parameters:
            client_max_age, soft_timeout: see `Rule`.

        Raises:
            ConfigurationError: one of them is not a duration.
        """
        self._client_max_age = seconds(client_max_age, "client_max_age")
        self._policies.change(soft_timeout=timeout_or_auto(soft_timeout, "soft_timeout"))
        return self

    def about_readers(self, key: Callable[..., Any] | None, shared: bool) -> Self:
        """Set who gets which response after the endpoint's dependencies have run; return this object.

        Parameters:
            key, shared: see `Cache.response`.

        Raises:
            ConfigurationError: one of them cannot work.
        """
        self._words = Words(key, shared)
        if self._words.are_given and self._per_credential:
            raise ConfigurationError('credentials="vary" and key= or shared=True contradict each other: give one')
        return self

    def __call__(self, endpoint: F) -> F:
        """Wrap `endpoint`, `def` or `async def`; FastAPI sees two more parameters, the request and its response."""
        name = name_of(endpoint)
        # A decorator that injects arguments may add a parameter for both; FastAPI fills that of the connection.
        if parameter_of(endpoint, WebSocket) is not None and parameter_of(endpoint, Request) is None:
            raise ConfigurationError(
                f"@cache.response decorates {name}, which takes a WebSocket: leave the decorator out, because swr "
                f"caches only HTTP"
            )
        parameters = signature_of(endpoint).parameters
        templates = [Template(tag, "tags", name) for tag in self._policy.tags]
        tags_of = None if self._tags_of is None else ResponseTags(self._tags_of, name, parameters)
        admitting = Admitting(self._owner, endpoint, name, self._words)
        # The parameters of its path are known only when the endpoint runs.
        from_request = admitting.is_from_request
        for placeholder in (placeholder for template in templates for placeholder in template.names):
            if placeholder not in parameters and not from_request:
                raise ConfigurationError(
                    f"the tags of {name} contain {{{placeholder}}}, but it has no such parameter: it has "
                    f"{', '.join(parameters) or 'none'}"
                )

        terms = Terms(
            self._policy,
            True,
            self._override,
            self._vary,
            self._ignores,
            self._per_credential,
            self._client_max_age,
        )
        placement = Placement(name)
        # An object without a hash or weak references is not noted, and gets no warning.
        with contextlib.suppress(TypeError):
            placements[endpoint] = placement

        def give_terms(args: tuple[Any, ...], kwargs: dict[str, Any]) -> EndpointTerms | None:
            placement.is_called = True
            collected = endpoint_terms.get()
            if collected is None or collected.owner is not self._owner:
                if not self._warned:
                    self._warned = True
                    log.warning(
                        "@cache.response on %s does nothing, because its cache's SWRMiddleware is not in place: call "
                        "app.add_middleware(SWRMiddleware, cache=cache)",
                        name,
                    )
                return None
            if collected.terms is not None:
                return None
            collected.endpoint = endpoint
            collected.wrapper = admitting.wrapper
            collected.is_keyed = self._words.key is not None
            policy = self._policy
            collected.terms = terms._replace(policy=policy)
            if tags_of is not None:
                collected.tags_of = tags_of.bound({**dict(zip(parameters, args, strict=False)), **kwargs})
            if templates:
                values: Mapping[str, Any] = kwargs
                if from_request:
                    values = (kwargs.get("request") or args[-1]).path_params
                tags = tuple(template.fill_plain(values) for template in templates)
                collected.terms = terms._replace(policy=policy.tagged(tags))
            return collected

        def reader_of(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[EndpointTerms | None, Reader | None]:
            request, response = admitting.take_hidden(args, kwargs)
            collected = give_terms(args, kwargs)
            if collected is None or collected.terms is None:
                return None, None
            reader = None
            if request is not None:
                reader = admitting.reader(collected, collected.terms, request, response, (args, kwargs))
            policy = self._policy
            if reader is None and isinstance(policy.hard_timeout, float) and collected.limit is not None:
                _in_the_loop(collected.limit, policy.hard_timeout)
            return collected, reader

        wrapper: Any
        if is_async(endpoint):

            @functools.wraps(endpoint)
            async def wrapper(*args: Any, **kwargs: Any) -> Any:
                collected, reader = reader_of(args, kwargs)
                if reader is None:
                    return tagged(collected, await endpoint(*args, **kwargs))
                return await _answer(reader, functools.partial(endpoint, *args, **kwargs))

        else:

            @functools.wraps(endpoint)
            def wrapper(*args: Any, **kwargs: Any) -> Any:
                collected, reader = reader_of(args, kwargs)
                if reader is None:
                    return tagged(collected, endpoint(*args, **kwargs))
                return _answer_in_thread(reader, functools.partial(endpoint, *args, **kwargs))

        admitting.wrapper = wrapper
        if admitting.signature is not None:
            wrapper.__signature__ = admitting.signature
        if not hasattr(endpoint, "__name__"):
            # FastAPI names the route by this; a partial and a callable object have none.
            wrapper.__name__ = name.rpartition(".")[2]
        # Both wrappers take and return what the endpoint does.
        return cast(F, wrapper)


def tagged(collected: EndpointTerms | None, answer: Any) -> Any:
    """Return the result of an endpoint, after taking its tags."""
    if collected is not None:
        collected.add_tags(answer)
    return answer


async def _answer(reader: Reader, run: Callable[[], Awaitable[Any]]) -> Any:
    """Answer with a stored response, or run the endpoint."""
    response = await reader.seek()
    if response is not None:
        return response
    if reader.turns is None:
        return await run()
    try:
        with reader.running, deadlocks.loading(reader.flight):
            answer = reader.take(await run())
    except Exception as error:
        return await reader.fail(error)
    except BaseException:
        reader.leave()
        raise
    if reader.running.cancelled_caught:
        return await reader.end()
    return await reader.finish(answer)


def _answer_in_thread(reader: Reader, run: Callable[[], Any]) -> Any:
    """Do the same as `_answer` in a worker thread of the event loop."""
    response = anyio.from_thread.run(reader.seek)
    if response is not None:
        return response
    if reader.turns is None:
        return run()
    try:
        with deadlocks.loading(reader.flight):
            answer = reader.take(run())
    except Exception as error:
        return anyio.from_thread.run(reader.fail, error)
    except BaseException:
        anyio.from_thread.run_sync(reader.leave)
        raise
    return anyio.from_thread.run(reader.finish, answer)


def name_of(endpoint: Any) -> str:
    """Return the name of an endpoint, with its module; for a partial, the name of its function.

    Raises:
        ConfigurationError: `endpoint` is not a function, a partial or a callable object.
    """
    function = endpoint
    while isinstance(function, functools.partial):
        function = function.func
    is_function = callable(function) and not inspect.isclass(function)
    if not is_function or list(signature_of(endpoint).parameters)[:3] == ["scope", "receive", "send"]:
        raise ConfigurationError(
            f"@cache.response decorates an endpoint function, not {endpoint!r}; for a class or an ASGI app, "
            f"give the middleware a Rule of its path"
        )
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}.{named.__qualname__}"


def warn_if_above(endpoint: Any) -> None:
    """Warn once if `@cache.response` is above the decorator of the route, where nothing calls it.

    Parameters:
        endpoint: the callable of the route, as the scope names it; None: not known.
    """
    placement = None
    # The callable may be None, or an object without a hash or weak references.
    with contextlib.suppress(TypeError):
        placement = placements.get(endpoint)
    if placement is not None and not placement.is_called:
        placement.is_called = True
        log.warning(
            "@cache.response on %s does nothing: it is above the decorator of the route, which calls the function "
            "without it; put @cache.response directly above the function, below @app.get(...)",
            placement.name,
        )


def _in_the_loop(function: Callable[[float], None], seconds: float) -> None:
    """Call `function` in the event loop's thread: a `def` endpoint runs in one of its worker threads."""
    try:
        anyio.from_thread.run_sync(function, seconds)
    except RuntimeError:
        # No worker thread: this is the event loop's own.
        function(seconds)

"""The decorators that `Cache.cached` and `Cache.cached_many` return: their types, and methods of every kind."""

import functools
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

import msgspec

from swr.errors import ConfigurationError
from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany
from swr.loaders.context import Fresh, LoadContext, NotModified

P = ParamSpec("P")
R = TypeVar("R")
R_co = TypeVar("R_co", covariant=True)
K = TypeVar("K")
S = TypeVar("S")


class _LikeContext(msgspec.Struct, frozen=True):
    """For type checkers: fits wherever a `LoadContext` fits, except where an annotation names `LoadContext`."""

    value: Any = None
    age: float = 0.0
    validator: str | None = None
    has_value: bool = False


class _TakesAnything(Protocol[P, R_co]):
    """For type checkers: a function whose first parameter takes any (hashable) object, so it asks for no context."""

    @overload
    def __call__(self, context: _LikeContext, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class _TakesAnythingSecond(Protocol[P, R_co]):
    """For type checkers: the same for a second parameter, which follows `self`."""

    @overload
    def __call__(self, instance: Any, context: _LikeContext, /, *args: Any, **kwargs: Any) -> Any: ...
    @overload
    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R_co: ...


class CachedDecorator(Protocol):
    """The decorator that `Cache.cached` returns: it makes a `Cached` of a loader."""

    # The cache gives the context, so callers leave it out. Types can say so only if it is the first parameter, or the
    # second one after `self`. The overloads for loaders that accept a context without asking for one come first.
    @overload
    def __call__(self, function: _TakesAnything[P, Awaitable[R | Fresh[R] | NotModified]], /) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[LoadContext[Any], P], Awaitable[R | Fresh[R] | NotModified]], /
    ) -> Cached[P, R]: ...
    @overload
    def __call__(self, function: _TakesAnythingSecond[P, Awaitable[R | Fresh[R] | NotModified]], /) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, LoadContext[Any], P], Awaitable[R | Fresh[R] | NotModified]], /
    ) -> Cached[Concatenate[S, P], R]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R | Fresh[R] | NotModified]], /) -> Cached[P, R]: ...
    @overload
    def __call__(self, function: _TakesAnything[P, R | Fresh[R] | NotModified], /) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[LoadContext[Any], P], R | Fresh[R] | NotModified], /
    ) -> Cached[P, R]: ...
    @overload
    def __call__(self, function: _TakesAnythingSecond[P, R | Fresh[R] | NotModified], /) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, LoadContext[Any], P], R | Fresh[R] | NotModified], /
    ) -> Cached[Concatenate[S, P], R]: ...
    @overload
    def __call__(self, function: Callable[P, R | Fresh[R] | NotModified], /) -> Cached[P, R]: ...


class CachedManyDecorator(Protocol):
    """The decorator that `Cache.cached_many` returns: it makes a `CachedMany` of a batch loader."""

    @overload
    def __call__(
        self, function: Callable[P, Awaitable[Mapping[K, R | Fresh[R] | NotModified]]], /
    ) -> CachedMany[P, K, R]: ...
    @overload
    def __call__(self, function: Callable[P, Mapping[K, R | Fresh[R] | NotModified]], /) -> CachedMany[P, K, R]: ...


def with_options(method: Callable[P, R]) -> Callable[P, R]:
    """Make a method that returns a decorator raise a clear error if it is used without parentheses.

    Raises:
        ConfigurationError: `@cache.cached` without parentheses, or an option without its name.
    """
    name = method.__name__

    @functools.wraps(method)
    def checked(*args: P.args, **kwargs: P.kwargs) -> R:
        for given in args[1:2]:
            if callable(given):
                raise ConfigurationError(f"@cache.{name} decorates {given!r} without options: {_EXAMPLES[name]}")
            if not isinstance(given, str | None) or name == "response":
                raise ConfigurationError(f"@cache.{name} got the positional argument {given!r}: {_EXAMPLES[name]}")
        return method(*args, **kwargs)

    return checked


_EXAMPLES = {
    "cached": "write @cache.cached(fresh_for=60)",
    "cached_many": 'write @cache.cached_many("ranking:{group}", fresh_for=60)',
    "response": "write @cache.response(fresh_for=60)",
}


class CachedClassmethod:
    """A cached classmethod: a descriptor that binds the class, for calls and for methods such as `outcome`.

    Parameters:
        cached: the loader that the decorator made from the function.
    """

    def __init__(self, cached: Cached[..., Any] | CachedMany[..., Any, Any]) -> None:
        self._cached = cached

    def __get__(self, instance: object, owner: type | None = None) -> Any:
        return self._cached.__get__(type(instance) if owner is None else owner)


def on_methods(
    decorate: Callable[[Callable[..., Any]], Cached[..., Any] | CachedMany[..., Any, Any]], function: Any
) -> Any:
    """Return the result of `decorate` for a function, or for the function in a staticmethod or a classmethod.

    Raises:
        ConfigurationError: as `decorate` does.
    """
    if isinstance(function, staticmethod):
        return staticmethod(decorate(function.__func__))
    if isinstance(function, classmethod):
        return CachedClassmethod(decorate(function.__func__))
    return decorate(function)

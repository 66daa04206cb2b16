"""The types of the decorators that `Cache.cached` and `Cache.cached_many` return."""

from collections.abc import Awaitable, Callable, Mapping
from typing import Any, Concatenate, ParamSpec, Protocol, TypeVar, overload

from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany
from swr.loaders.context import Fresh, LoadContext, NotModified

P = ParamSpec("P")
R = TypeVar("R")
K = TypeVar("K")
S = TypeVar("S")


class CachedDecorator(Protocol):
    """What `Cache.cached` returns: makes a `Cached` of a loader."""

    # The cache gives the context, so callers leave it out. Types can say so only if it is the first parameter, or the
    # second one behind `self`.
    @overload
    def __call__(
        self, function: Callable[Concatenate[LoadContext[Any], P], Awaitable[R | Fresh[R] | NotModified]], /
    ) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, LoadContext[Any], P], Awaitable[R | Fresh[R] | NotModified]], /
    ) -> Cached[Concatenate[S, P], R]: ...
    @overload
    def __call__(self, function: Callable[P, Awaitable[R | Fresh[R] | NotModified]], /) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[LoadContext[Any], P], R | Fresh[R] | NotModified], /
    ) -> Cached[P, R]: ...
    @overload
    def __call__(
        self, function: Callable[Concatenate[S, LoadContext[Any], P], R | Fresh[R] | NotModified], /
    ) -> Cached[Concatenate[S, P], R]: ...
    @overload
    def __call__(self, function: Callable[P, R | Fresh[R] | NotModified], /) -> Cached[P, R]: ...


class CachedManyDecorator(Protocol):
    """What `Cache.cached_many` returns: makes a `CachedMany` of a batch loader."""

    @overload
    def __call__(
        self, function: Callable[P, Awaitable[Mapping[K, R | Fresh[R] | NotModified]]], /
    ) -> CachedMany[P, K, R]: ...
    @overload
    def __call__(self, function: Callable[P, Mapping[K, R | Fresh[R] | NotModified]], /) -> CachedMany[P, K, R]: ...

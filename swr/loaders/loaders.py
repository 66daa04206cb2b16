"""Makers of loaders: the decorators of a cache, and `get_or_load`. `Cache` inherits them."""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from types import EllipsisType
from typing import Any, ParamSpec, TypeVar, cast, overload

from swr.core.arguments import NO_ARGUMENTS
from swr.core.key_functions import FunctionOf
from swr.core.keys import CallKeys, loader_digest
from swr.engine.engine import Engine
from swr.entry import Outcome
from swr.errors import ConfigurationError
from swr.lifecycle.default_policy import DecoratorPolicy, DefaultPolicy
from swr.loaders.annotations import codec_for, codec_of
from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany
from swr.loaders.call import Call, Loader, is_async
from swr.loaders.calling import StoreIf, TagsOf, asking, tags_or_function
from swr.loaders.checks import check_loader
from swr.loaders.context import Fresh, LoadContext, NotModified
from swr.loaders.decorators import CachedDecorator, CachedManyDecorator, on_methods, with_options
from swr.loaders.many_keys import ManyKeys
from swr.loaders.stored_entries import warn_of_slot
from swr.loaders.templates import Templates
from swr.loaders.terms import LoaderTerms, checked_store_if, seats_of, stays_here
from swr.policy import Duration, Policy, seconds
from swr.stores.local import LocalCache

Q = ParamSpec("Q")
R = TypeVar("R")


class Loaders:
    """The decorators that put functions behind a cache, and `get_or_load`, which needs no decorator."""

    engine: Engine
    local: LocalCache
    default_policy: DefaultPolicy
    passed_by: set[str]
    _templates: Templates

    @with_options
    def cached(
        self,
        template: str | None = None,
        *,
        key: "FunctionOf[str, Q] | None" = None,
        fresh_for: Duration | EllipsisType = ...,
        stale_for: Duration | EllipsisType = ...,
        stale_if_error: Duration | EllipsisType = ...,
        tags: Sequence[str] | TagsOf = (),
        ignore: Sequence[str] = (),
        copy: bool = False,
        keep_for: Duration | EllipsisType = ...,
        soft_timeout: Duration | EllipsisType | None = ...,
        hard_timeout: Duration | EllipsisType | None = ...,
        early: float | EllipsisType = ...,
        jitter: float | EllipsisType = ...,
        store_if: StoreIf | None = None,
        local: bool = True,
        shared: bool = True,
        max_concurrent_loads: int | None = None,
    ) -> CachedDecorator:
        """Put a loader, `async def` or `def`, function or method, behind the cache.

        Parameters:
            template: the key template, such as "ranking:{group}:{limit}". It names every parameter that `ignore` does
                not name. None: swr makes the key from the function's name and all its arguments.
            key: a function that returns the key, instead of a template, from the parameters that it names: `lambda
                user, page: f"{user.id}:{page}"`. swr puts the name of the loader before the key.
            fresh_for: how long a value is fresh: seconds, or "90s", "10m", "1d".
            stale_for: how long after `fresh_for` swr still serves the value, and refreshes it in the background.
            stale_if_error: how long after `fresh_for` the value is a fallback if a load fails.
                Options of `Policy` that you leave out, here and below, are those of the cache's policy.
            tags: names to invalidate by, such as "group:{group}"; or a function that returns such names, from the
                value and from the parameters that it names.
            ignore: parameters that do not change the answer, such as `self`.
            copy: give every caller a deep copy. Without it all callers in this process share one object, which
                they must not change.
            keep_for: how long after `fresh_for` swr keeps a value at least, even if it does not serve it. A loader
                that asks for a `LoadContext` gets that value.
            soft_timeout: how long a reader waits if there is an entry to fall back on; see `Policy`.
            hard_timeout: how long a load may run; see `Policy`.
            early: refresh a value before it goes stale; a greater number refreshes earlier; see `Policy`. A fresh hit
                then costs some microseconds more.
            jitter: shorten each lifetime by a random share between 0 and this, so that values do not end together.
            store_if: a function that returns whether swr stores a value, as in `store_if=bool`. Callers that wait for
                a value that is not stored get it anyway, and swr removes the stored entry.
            local: whether this process's memory holds values. `local=False` has no effect without Redis.
            shared: whether Redis holds values. With `shared=False` each process loads for itself, and a value may be
                any object.
            max_concurrent_loads: how many calls of the loader run at once in this process. Other calls wait; calls
                that readers wait for go first. None: any number.

        A `def` runs in a thread. A refresh in the background runs with the arguments of the call that found the entry
        stale. These arguments must not be objects that live only as long as a request, such as a database session.

        Raises:
            ConfigurationError: at decoration, if one of these cannot work.
        """
        tags, of_value = tags_or_function(tags)
        given = {
            "fresh_for": fresh_for,
            "stale_for": stale_for,
            "stale_if_error": stale_if_error,
            "tags": tags,
            "keep_for": keep_for,
            "soft_timeout": soft_timeout,
            "hard_timeout": hard_timeout,
            "early": early,
            "jitter": jitter,
        }
        policies = DecoratorPolicy(self.default_policy, given, "@cache.cached")
        seats = seats_of(max_concurrent_loads)
        terms = LoaderTerms(policies, copy, None, checked_store_if(store_if), stays_here(local, shared), seats)

        def decorate(function: Callable[..., Any]) -> Cached[..., Any]:
            check_loader(function, "@cache.cached")
            asks = asking(function)
            keys = CallKeys(
                function, template, policies.now.tags, ignore, None if asks is None else asks.signature, key
            )
            own = terms.with_tags(of_value, keys.template.where, keys.parameters)
            self._templates.claim(keys.template, function, is_default=template is None)
            if not local:
                self.passed_by.add(loader_digest(keys.template.text))
            loader: Cached[..., Any] = Cached(self.engine, self.local, function, keys, own, asks)
            self._templates.loaders.add(loader)
            return loader

        return cast(CachedDecorator, functools.partial(on_methods, decorate))

    @with_options
    def cached_many(
        self,
        template: str | None = None,
        *,
        key: "FunctionOf[str, Q] | None" = None,
        fresh_for: Duration | EllipsisType = ...,
        stale_for: Duration | EllipsisType = ...,
        stale_if_error: Duration | EllipsisType = ...,
        tags: Sequence[str] | TagsOf = (),
        ignore: Sequence[str] = (),
        copy: bool = False,
        absent_for: Duration = 0,
        soft_timeout: Duration | EllipsisType | None = ...,
        hard_timeout: Duration | EllipsisType | None = ...,
        early: float | EllipsisType = ...,
        jitter: float | EllipsisType = ...,
        store_if: StoreIf | None = None,
        local: bool = True,
        shared: bool = True,
        max_concurrent_loads: int | None = None,
    ) -> CachedManyDecorator:
        """Put a batch loader, which takes a list of items and returns a dict of their values, behind the cache.

        Parameters:
            template: the key template of one item, such as "ranking:{group}:{limit}" for `async def top(groups,
                limit=100)`. It names the item, by a name that is not a parameter, and every parameter except the list
                and those in `ignore`. A `cached` loader with the same template shares the entries.
            key: a function that returns the key of one item, instead of a template. Its parameters have the names that
                a template would have.
            absent_for: how long swr remembers that an item was not in the dict.
            fresh_for: see `cached`.
            stale_for: see `cached`.
            stale_if_error: see `cached`.
            tags: see `cached`; templates and functions may name the item, too.
            ignore: see `cached`.
            copy: see `cached`.
            soft_timeout: see `cached`.
            hard_timeout: see `cached`.
            early: see `cached`.
            jitter: see `cached`.
            store_if: see `cached`; the function gets the value of one item.
            local: see `cached`.
            shared: see `cached`.
            max_concurrent_loads: see `cached`.

        swr calls the loader once for each 1,000 missing items that no other load brings already.

        Raises:
            ConfigurationError: at decoration, if one of these cannot work.
        """
        tags, of_value = tags_or_function(tags)
        given = {
            "fresh_for": fresh_for,
            "stale_for": stale_for,
            "stale_if_error": stale_if_error,
            "tags": tags,
            "keep_for": 0,
            "soft_timeout": soft_timeout,
            "hard_timeout": hard_timeout,
            "early": early,
            "jitter": jitter,
        }
        policies = DecoratorPolicy(self.default_policy, given, "@cache.cached_many")
        seats = seats_of(max_concurrent_loads)
        terms = LoaderTerms(policies, copy, None, checked_store_if(store_if), stays_here(local, shared), seats)
        absent = seconds(absent_for, "absent_for")

        def decorate(function: Callable[..., Any]) -> CachedMany[..., Any, Any]:
            check_loader(function, "@cache.cached_many")
            keys = ManyKeys(function, template, policies.now.tags, ignore, key)
            if asking(function) is not None:
                raise ConfigurationError(
                    f"{keys.where} asks for a LoadContext, which is about one value: leave it out, because a batch "
                    f"loader loads several"
                )
            own = terms.with_tags(of_value, keys.where, keys.known)
            self._templates.claim(keys.template, function, is_default=key is not None, many=True)
            if not local:
                self.passed_by.add(loader_digest(keys.template.text))
            loader: CachedMany[..., Any, Any] = CachedMany(self.engine, function, keys, own, absent)
            self._templates.loaders.add(loader)
            return loader

        return cast(CachedManyDecorator, functools.partial(on_methods, decorate))

    def refresh_of(self, key: str) -> Callable[[], Coroutine[Any, Any, Any]] | None:
        """Return a function that loads a key again; None: its loader or its arguments are not known for certain."""
        found: list[tuple[Any, tuple[Any, ...]]] = []
        # A thread may define another loader during this loop.
        for loader in tuple(self._templates.loaders):
            arguments = loader.arguments_of(key)
            if arguments is not None:
                found.append((loader, arguments))
        # A `cached` loader and a batch loader may share entries: then take the `cached` one. Two loaders of one kind
        # may close over different variables, so neither is certain.
        found = [pair for pair in found if isinstance(pair[0], Cached)] or found
        return functools.partial(found[0][0].refresh, *found[0][1]) if len(found) == 1 else None

    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], Awaitable[R | Fresh[R] | NotModified]]
        | Callable[[LoadContext[Any]], Awaitable[R | Fresh[R] | NotModified]],
        policy: Policy | None = None,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    @overload
    async def get_or_load(
        self,
        key: str,
        loader: Callable[[], R | Fresh[R] | NotModified] | Callable[[LoadContext[Any]], R | Fresh[R] | NotModified],
        policy: Policy | None = None,
        *,
        returns: Any = None,
    ) -> Outcome[R]: ...
    async def get_or_load(
        self, key: str, loader: Callable[..., Any], policy: Policy | None = None, *, returns: Any = None
    ) -> Outcome[Any]:
        """Return the value that is stored under `key`, or the one that `loader` returns.

        Parameters:
            key: any text.
            loader: an `async def` or `def` that takes no argument, or a `LoadContext`.
            policy: how long the value may be served, and how long a load may take; None: the policy of the cache.
            returns: the type of the value, for Redis; None: the loader's return annotation.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            LoadTimeout: the loader ran longer than `policy.hard_timeout`, and there is no entry to fall back on.
            CodecError: the value cannot be stored in Redis.
            ConfigurationError: an argument cannot work.
        """
        if not isinstance(key, str):
            raise ConfigurationError(f"key={key!r}: give a string")
        warn_of_slot(key)
        if not callable(loader):
            raise ConfigurationError(
                f"loader={loader!r} is not a function: give one, or store the value with cache.set"
            )
        policy = self.default_policy.of(policy)
        codec = codec_for(loader) if returns is None else codec_of(returns)
        asks = asking(loader)
        called = loader if asks is None else asks.call
        made = Loader(self.engine, called, not is_async(loader), asks is not None)
        if self.engine.switch.is_off:
            return await made.call_past((), {}, policy.hard_timeout)
        job = Call(made, NO_ARGUMENTS, policy, codec)
        return await self.engine.fetch(key, job, patience=policy.soft_timeout, early=policy.early)

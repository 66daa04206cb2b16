"""The loaders that `@cache.cached` makes: called like the decorated function, answered from the cache."""

import functools
from collections.abc import Awaitable, Callable, Coroutine, Iterable
from typing import TYPE_CHECKING, Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import msgspec

from swr.core.codec import UNSHARED, Codec
from swr.core.keys import CallKeys, loader_digest
from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.entry import Outcome
from swr.loaders.annotations import codec_for, codec_if_defined
from swr.loaders.call import Call, Loader, is_async
from swr.loaders.calling import Asking, value_of
from swr.loaders.context import Fresh
from swr.loaders.parsing import arguments_in
from swr.loaders.sync import SyncLoader
from swr.loaders.tag_functions import TagFunction
from swr.loaders.terms import LoaderTerms
from swr.policy import NO_LIMITS, Policy
from swr.stores.local import LocalCache, NoSlot, Slot
from swr.stores.tag_versions import OfLoader, Soft
from swr.stores.threads import deep_copy

P = ParamSpec("P")
Q = ParamSpec("Q")
R = TypeVar("R")
S = TypeVar("S")


class Cached(Generic[P, R]):
    """A loader behind the cache. A call gives an awaitable of the loader's value.

    `Cache.cached` makes it. It has the name, the docstring and the signature of the loader.
    """

    # The loader itself.
    __wrapped__: Callable[..., Any]

    def __init__(
        self,
        engine: Engine,
        local: LocalCache,
        function: Callable[P, R] | Callable[P, Awaitable[R]],
        keys: CallKeys,
        terms: LoaderTerms,
        asking: Asking | None = None,
    ) -> None:
        functools.update_wrapper(self, function)
        if asking is not None:
            self.__signature__ = asking.signature
        called = function if asking is None else asking.call
        digest = loader_digest(keys.template.text)
        engine.counts.add_loader(digest, keys.template.text)
        self._terms, self._copies = terms, terms.copies
        self._loader = Loader(
            engine,
            called,
            not is_async(function),
            asking is not None,
            terms.copies,
            digest,
            None if terms.tags is None else functools.partial(_tags_of, terms.tags, keys),
            terms.store_if,
            terms.new_seat,
        )
        self._engine = engine
        self._local = local
        self._function = function
        self._keys = keys
        # Slots of the local cache, by positional arguments.
        self._held: dict[tuple[Any, ...], Slot] = local.aliases_of(keys)
        # With any store there is a codec, so that tests without Redis also fail for a type that Redis cannot hold.
        self._codec = UNSHARED if terms.stays_here else codec_if_defined(function, tags=keys.tag_templates)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return the loader's value for these arguments, from the cache if possible.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            LoadTimeout: the loader ran longer than `hard_timeout`, and there is no entry to fall back on.
            ConfigurationError: an argument cannot be part of a key.
            CodecError: the value cannot be stored in Redis.
        """
        # A fresh hit does the work of `CallKeys.key`, `peek` and `decide` here, in the fewest steps. `_held` leads from
        # the arguments to their slot, as long as the local cache has the slot.
        slot: Slot | NoSlot
        if kwargs:
            slot = self._slot(args, kwargs)
        else:
            try:
                slot = self._held[args]
                # Most calls have one argument, and the comparison of one type is faster.
                if (types := slot.types) and (
                    types[0] is not type(args[0]) if len(types) == 1 else types != tuple(map(type, args))
                ):
                    raise KeyError
            except (KeyError, TypeError):
                slot = self._slot(args, kwargs)
        now = self._local.short_clock.time()
        if now < slot.fresh_until and now < slot.trust.until:
            slot.is_used = True
            slot.hits.l1 += 1
            fresh: R = slot.value
            return fresh
        value: R = (await self._fetch(slot.key, args, kwargs)).value
        return await deep_copy(value) if self._copies else value

    def _slot(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Slot | NoSlot:
        """Return the local cache's slot of a call, and let positional arguments lead to it from now on."""
        key = self._keys.key(args, kwargs)
        # With early refreshes or copies, a hit needs more steps than the fast path has.
        slot = None if self._copies or self._terms.policies.now.early else self._local.slots.get(key)
        if slot is None:
            return NoSlot(key)
        if slot.aliases is None and not kwargs:
            types = self._keys.types_of(args, key)
            if types is not None:
                self._local.alias(slot, args, self._held, types)
        return slot

    def _fetch(self, key: str, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Coroutine[Any, Any, Outcome[Any]]:
        policy = self._terms.policies.now
        if self._engine.switch.is_off:
            return self._loader.call_past(args, kwargs, policy.hard_timeout)
        return self._engine.fetch(key, self._job(args, kwargs), NO_LIMITS, policy.soft_timeout, policy.early)

    def _job(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Call:
        codec = self._codec
        policy = self._policy_of(args, kwargs)
        return Call(self._loader, self._keys.keep(args, kwargs), policy, self.codec if codec is None else codec)

    def _policy_of(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Policy:
        policy = self._terms.policies.now
        return policy if self._keys.fixed_tags is not None else policy.tagged(self._keys.tags(args, kwargs))

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """Return the key of a call.

        Raises:
            ConfigurationError: an argument cannot be part of a key.
        """
        return self._keys.key(args, kwargs)

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """Return the same value as a call, with the state, the age and the error of the answer."""
        return await self._copied(await self._fetch(self._keys.key(args, kwargs), args, kwargs))

    @property
    def sync(self) -> SyncLoader[P, R, Outcome[R], R | Fresh[R], Outcome[R] | None]:
        """The same loader for code that is not async: `top100.sync("ATL")` waits in its thread for the answer."""
        return SyncLoader(self)

    @property
    def engine(self) -> Engine:
        """The engine that runs its loads."""
        return self._engine

    @property
    def template(self) -> str:
        """The key template, given by the user or made by swr."""
        return self._keys.template.text

    @property
    def stays_here(self) -> bool:
        """Return whether the values of this loader are not shared with other processes."""
        return self._terms.stays_here

    @property
    def codec(self) -> Codec:
        """The codec of the loader's values."""
        if self._codec is None:
            self._codec = codec_for(self._function, tags=self._keys.tag_templates)
        return self._codec

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load each call, unless its stored entry is newer than a version; see `Flight.newer_than`.

        Parameters:
            calls: for each call its positional arguments, and the version.
        """
        engine, flights = self._engine, []
        for args, newer_than in calls:
            key = self._keys.key(args, {})
            flights.append(engine.begin(key, self._job(args, {}), engine.store.peek(key), newer_than=newer_than))
        return flights

    def arguments_of(self, key: str) -> tuple[Any, ...] | None:
        """Return the arguments of the call that has this key; see `arguments_in`."""
        keys = self._keys
        return arguments_in(key, keys.template, self._function, keys.parameters, self.key)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now, whatever is stored, and return the new value.

        Raises:
            Exception: whatever the loader raised; the stored entry stays.
        """
        key = self._keys.key(args, kwargs)
        if not await self._engine.enter():
            return await self.uncached(*args, **kwargs)
        return (await self._copied(await self._engine.refresh(key, self._job(args, kwargs)))).value

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Call the loader without the cache and return its value. swr reads nothing from the cache and stores nothing.

        A `hard_timeout` in seconds holds for this call, too.

        Raises:
            Exception: whatever the loader raised.
            LoadTimeout: the loader ran longer than `hard_timeout`.
        """
        value: R = (await self._loader.call_past(args, kwargs, self._terms.policies.now.hard_timeout)).value
        return value

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove the entry of these arguments in every process. swr does not store a load that is already under way."""
        await self._engine.invalidate(self._keys.key(args, kwargs))

    async def set(self, value: R | Fresh[R], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store `value` as if the loader had just returned it for these arguments.

        The value replaces the stored entry in every process. swr does not store a load that is already under way. A
        later invalidation outdates the value, as does another `set`. If Redis does not take the value, swr outdates
        older values: at once in this process, which keeps the new value meanwhile, and in other processes when Redis
        takes the invalidation.

        Returns:
            Whether every process gets the value from now on. It is False if the cache is off, `store_if` refuses the
            value, Redis does not take it, or an invalidation or another `set` came meanwhile.

        Raises:
            CodecError: the value cannot be stored in Redis. The stored entry is gone anyway.
            ConfigurationError: `value` is not a value, or an argument cannot be part of a key.
        """
        key = self._keys.key(args, kwargs)
        tags = self._loader.tags
        tags_of = None if tags is None else tags(args, kwargs)
        stored = value_of(value, self._policy_of(args, kwargs), repr(key), tags_of, self._terms.store_if)
        if self._copies:
            stored = stored._replace(value=await deep_copy(stored.value))
        return await self._engine.entries.set(key, self.codec, stored._replace(loader=self._loader.digest))

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R] | None:
        """Return the outcome that is stored for these arguments, fresh or stale, or None if a call would wait.

        swr looks in this process first, then in Redis. It begins no load, and waits for none.

        Raises:
            ConfigurationError: an argument cannot be part of a key.
        """
        outcome = await self._engine.entries.peek(self._keys.key(args, kwargs), self.codec)
        return None if outcome is None else await self._copied(outcome)

    async def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Mark the entry of these arguments as stale in every process.

        The next reader gets the stale value at once, and swr refreshes it. swr does not store a load that is already
        under way. An entry without `stale_for` is from then on only a fallback for a failed load (`stale_if_error`).
        """
        await self._engine.entries.mark_stale(self._keys.key(args, kwargs))

    async def invalidate_all(self) -> None:
        """Remove the entries of all arguments, in one step; otherwise as `invalidate`.

        This includes the entries of a batch loader with the same key template.
        """
        await self._engine.invalidate_tag(OfLoader(self.template))

    async def mark_stale_all(self) -> None:
        """Mark the entries of all arguments as stale, in one step; otherwise as `mark_stale`."""
        await self._engine.invalidate_tag(Soft(OfLoader(self.template)))

    async def _copied(self, outcome: Outcome[Any]) -> Outcome[R]:
        if not self._copies:
            return outcome
        return msgspec.structs.replace(outcome, value=await deep_copy(outcome.value))

    # For types, `self` is a function whose first parameter takes `S`: an object (methods) or its class (classmethods).
    # A staticmethod binds nothing. mypy solves `S` only if `self` is a Callable.
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: None, owner: S
    ) -> "BoundCached[Q, R]": ...
    @overload
    def __get__(self, instance: None, owner: object) -> "Cached[P, R]": ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: S, owner: object = None
    ) -> "BoundCached[Q, R]": ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, R]], instance: object, owner: S
    ) -> "BoundCached[Q, R]": ...
    @overload
    def __get__(self, instance: object, owner: object = None) -> "Cached[P, R]": ...
    def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
        return self if instance is None else BoundCached(self, instance)


class BoundCached(Generic[P, R]):
    """A cached method of one object: `Cached` with `self` filled in."""

    __slots__ = ("_cached", "_instance")

    def __init__(self, cached: "Cached[..., R]", instance: object) -> None:
        self._cached = cached
        self._instance = instance

    if not TYPE_CHECKING:
        # For the name, the docstring and the like. Type checkers do not see this, so they still find misspelled names.
        def __getattr__(self, name: str) -> Any:
            return getattr(self._cached, name)

    @property
    def sync(self) -> SyncLoader[P, R, Outcome[R], R | Fresh[R], Outcome[R] | None]:
        """See `Cached.sync`."""
        return SyncLoader(self)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.__call__`."""
        return await self._cached(self._instance, *args, **kwargs)

    @property
    def engine(self) -> Engine:
        """The engine that runs its loads."""
        return self._cached.engine

    @property
    def template(self) -> str:
        """See `Cached.template`."""
        return self._cached.template

    @property
    def stays_here(self) -> bool:
        """See `Cached.stays_here`."""
        return self._cached.stays_here

    @property
    def codec(self) -> Codec:
        """The codec of the loader's values."""
        return self._cached.codec

    def key(self, *args: P.args, **kwargs: P.kwargs) -> str:
        """See `Cached.key`."""
        return self._cached.key(self._instance, *args, **kwargs)

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """See `Cached.begin`."""
        return self._cached.begin(((self._instance, *args), newer_than) for args, newer_than in calls)

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R]:
        """See `Cached.outcome`."""
        return await self._cached.outcome(self._instance, *args, **kwargs)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.refresh`."""
        return await self._cached.refresh(self._instance, *args, **kwargs)

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """See `Cached.uncached`."""
        return await self._cached.uncached(self._instance, *args, **kwargs)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """See `Cached.invalidate`."""
        await self._cached.invalidate(self._instance, *args, **kwargs)

    async def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """See `Cached.mark_stale`."""
        await self._cached.mark_stale(self._instance, *args, **kwargs)

    async def invalidate_all(self) -> None:
        """Remove the entries of all objects, not only of this one; see `Cached.invalidate_all`."""
        await self._cached.invalidate_all()

    async def mark_stale_all(self) -> None:
        """Mark the entries of all objects, not only of this one, as stale; see `Cached.mark_stale_all`."""
        await self._cached.mark_stale_all()

    async def set(self, value: R | Fresh[R], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """See `Cached.set`."""
        return await self._cached.set(value, self._instance, *args, **kwargs)

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R] | None:
        """See `Cached.peek`."""
        return await self._cached.peek(self._instance, *args, **kwargs)


def _tags_of(
    tags: TagFunction, keys: CallKeys, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> Callable[[Any], tuple[str, ...]]:
    """Return a function that makes tags from the value of a call."""
    return functools.partial(tags, keys.bind(args, kwargs))

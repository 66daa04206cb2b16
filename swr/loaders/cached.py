"""The decorator for data loaders: the function as it was, answered from the cache."""

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
    """A loader behind the cache; calling it gives an awaitable of what the loader returns.

    Made by `Cache.cached`. The attributes of the loader (name, docstring, signature) are its own.
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
        # By positional arguments.
        self._held: dict[tuple[Any, ...], Slot] = local.aliases_of(keys)
        # With any store, so that a type that Redis cannot hold is found in tests without Redis.
        self._codec = UNSHARED if terms.stays_here else codec_if_defined(function, tags=keys.tag_templates)

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the loader returns for these arguments, from the cache where it may.

        Raises:
            Exception: whatever the loader raised, if there is no entry to fall back on.
            LoadTimeout: it ran longer than `hard_timeout`; likewise.
            ConfigurationError: an argument cannot be part of a key.
            CodecError: the value cannot be stored in Redis.
        """
        # The fresh hit, spelled out: `CallKeys.key`, `peek` and `decide` in the fewest steps. The arguments lead to
        # what is held for them, as long as it is held.
        slot: Slot | NoSlot
        if kwargs:
            slot = self._slot(args, kwargs)
        else:
            try:
                slot = self._held[args]
                # Most calls have one argument, and its type alone is compared faster.
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
        """Return the local cache's slot of a call whose arguments are no alias yet, and make them one."""
        key = self._keys.key(args, kwargs)
        # Where values may be refreshed early or are copied, a hit takes more than this.
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
        """The same as a call, with the state, the age and the error of the answer."""
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
        """The key template, given or made."""
        return self._keys.template.text

    @property
    def stays_here(self) -> bool:
        """Return whether its values are not shared with other processes."""
        return self._terms.stays_here

    @property
    def codec(self) -> Codec:
        """The codec of its values."""
        if self._codec is None:
            self._codec = codec_for(self._function, tags=self._keys.tag_templates)
        return self._codec

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load what is stored for each call, unless it is newer than a version; see `Flight.newer_than`.

        Parameters:
            calls: positional arguments, and the version.
        """
        engine, flights = self._engine, []
        for args, newer_than in calls:
            key = self._keys.key(args, {})
            flights.append(engine.begin(key, self._job(args, {}), engine.store.peek(key), newer_than=newer_than))
        return flights

    def arguments_of(self, key: str) -> tuple[Any, ...] | None:
        """Return the arguments of the call that has a key; see `arguments_in`."""
        keys = self._keys
        return arguments_in(key, keys.template, self._function, keys.parameters, self.key)

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Load now, whatever is stored, and return the new value.

        Raises:
            Exception: whatever the loader raised; what is stored stays.
        """
        key = self._keys.key(args, kwargs)
        if not await self._engine.enter():
            return await self.uncached(*args, **kwargs)
        return (await self._copied(await self._engine.refresh(key, self._job(args, kwargs)))).value

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """Return what the loader returns now, past the cache: nothing is read from it, and nothing stored.

        A `hard_timeout` in seconds holds for this call, too.

        Raises:
            Exception: whatever the loader raised.
            LoadTimeout: it ran longer than `hard_timeout`.
        """
        value: R = (await self._loader.call_past(args, kwargs, self._terms.policies.now.hard_timeout)).value
        return value

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove what is stored for these arguments, here and in every process; loads in flight included."""
        await self._engine.invalidate(self._keys.key(args, kwargs))

    async def set(self, value: R | Fresh[R], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store `value` as if the loader had just returned it for these arguments.

        It replaces what is stored, here and in every process. A load under way is not stored any more. An invalidation
        that comes later outdates the value, as does another `set`. If Redis does not take the value, swr invalidates
        its key: at once in this process, which keeps the value meanwhile, and elsewhere when Redis takes the
        invalidation.

        Returns:
            Whether every process gets the value from now on. False: Redis did not take it, or an invalidation or
            another `set` came meanwhile.

        Raises:
            CodecError: the value cannot be stored in Redis. The stored entry is gone anyway.
            ConfigurationError: it is not a value, or an argument cannot be part of a key.
        """
        key = self._keys.key(args, kwargs)
        tags = self._loader.tags
        tags_of = None if tags is None else tags(args, kwargs)
        stored = value_of(value, self._policy_of(args, kwargs), repr(key), tags_of, self._terms.store_if)
        if self._copies:
            stored = stored._replace(value=await deep_copy(stored.value))
        return await self._engine.entries.set(key, self.codec, stored._replace(loader=self._loader.digest))

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> Outcome[R] | None:
        """Return what is stored for these arguments, fresh or stale, or None. Nothing is loaded or refreshed.

        It looks in this process first, then in Redis, and waits for no load. None: a call would wait for one.

        Raises:
            ConfigurationError: an argument cannot be part of a key.
        """
        outcome = await self._engine.entries.peek(self._keys.key(args, kwargs), self.codec)
        return None if outcome is None else await self._copied(outcome)

    async def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Mark the entry of these arguments as stale, here and in every process.

        The next reader gets it at once, and it is refreshed. swr does not store a load that is already under way.
        An entry without `stale_for` is then an answer only if its load fails (`stale_if_error`).
        """
        await self._engine.entries.mark_stale(self._keys.key(args, kwargs))

    async def invalidate_all(self) -> None:
        """Remove what is stored for all arguments, in one step; else as `invalidate`.

        That is all under this key template, which a batch loader may share.
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
        # The name, the docstring and the like. Type checkers look for what is misspelled.
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
        """The key template, given or made."""
        return self._cached.template

    @property
    def stays_here(self) -> bool:
        """See `Cached.stays_here`."""
        return self._cached.stays_here

    @property
    def codec(self) -> Codec:
        """The codec of its values."""
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
        """Outdate the values for all objects; see `Cached.invalidate_all`."""
        await self._cached.invalidate_all()

    async def mark_stale_all(self) -> None:
        """See `Cached.mark_stale_all`: for all objects, too."""
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
    """Return what makes tags of the value of a call."""
    return functools.partial(tags, keys.bind(args, kwargs))

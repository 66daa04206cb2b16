"""The batch loaders that `@cache.cached_many` makes: one call for many keys, each cached as an entry of its own."""

import copy
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import anyio
import anyio.lowlevel

from swr.core.codec import UNSHARED, Codec
from swr.core.decision import FRESH, decide
from swr.core.keys import loader_digest
from swr.engine.deadlocks import wait
from swr.engine.engine import AGAIN, Engine
from swr.engine.flights import Flight
from swr.engine.read_log import log_read
from swr.entry import Entry, Outcome, State
from swr.loaders.annotations import codec_for, codec_if_defined
from swr.loaders.batch import Batch
from swr.loaders.call import is_async
from swr.loaders.context import Fresh
from swr.loaders.items import Items, copied, copied_values
from swr.loaders.lookup import Answer, look_up
from swr.loaders.many_keys import ManyCall, ManyKeys
from swr.loaders.parsing import arguments_in
from swr.loaders.sync import SyncLoader
from swr.loaders.terms import LoaderTerms
from swr.loaders.turns import MOST_AT_ONCE, Outdated, parts
from swr.policy import Policy, Timeout
from swr.stats.counts import Layer
from swr.stores.tag_versions import OfLoader, Soft

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")


class CachedMany(Generic[P, K, V]):
    """A batch loader behind the cache. A call gives an awaitable of a dict with the values that exist.

    `Cache.cached_many` makes it. It has the name, the docstring and the signature of the loader.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[P, Any],
        keys: ManyKeys,
        terms: LoaderTerms,
        absent_for: float,
    ) -> None:
        functools.update_wrapper(self, function)
        self._engine = engine
        self._function = function
        self._runs_in_thread = not is_async(function)
        self._keys, self.list_name = keys, keys.list_name
        self._terms, self._copies = terms, terms.copies
        self._absent_for = absent_for
        self._digest = loader_digest(keys.template.text)
        engine.counts.add_loader(self._digest, keys.template.text)
        self._codec = UNSHARED if terms.stays_here else codec_if_defined(function, many=True, tags=keys.tag_templates)
        # The object that this method is bound to, in a tuple, which is empty for a function.
        self._bound_to: tuple[Any, ...] = ()

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Return the loader's values for these items, from the cache if possible.

        The dict leaves out items without a value. Fresh and stale items come from the cache. One call of the loader
        for each 1,000 items loads the rest, except the items that another call is already loading.

        Raises:
            Exception: whatever the loader raised, for the first item without an entry to fall back on.
            LoadTimeout: the loader ran longer than `hard_timeout`, and an item has no entry to fall back on.
            TypeError: the loader does not take these arguments, or they hold no list of hashable items.
            ConfigurationError: an argument or an item cannot be part of a key.
            CodecError: a value cannot be stored in Redis.
        """
        if not (self._engine.is_entered or await self._engine.enter()):
            return await self._call_past(args, kwargs, checks=True)
        items, answers = await self._ask(args, kwargs)
        values = {item: answers[item][0].value for item in items if item in answers}
        return await copied_values(values) if self._copies else values

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, Outcome[V]]:
        """Return the same values as a call, with the state, the age and the error of each answer."""
        if not (self._engine.is_entered or await self._engine.enter()):
            values = await self._call_past(args, kwargs, checks=True)
            return {item: Outcome(value, State.MISSING, 0.0, bypassed=True) for item, value in values.items()}
        items, answers = await self._ask(args, kwargs)
        outcomes = {}
        for number, some in parts([item for item in items if item in answers]):
            if number:
                await anyio.lowlevel.checkpoint()
            for item in some:
                outcome = self._engine.outcome(*answers[item])
                outcomes[item] = await copied(outcome) if self._copies else outcome
        return outcomes

    async def _ask(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[list[Any], dict[Any, Answer]]:
        """Return the items of a call, and the answers to those that have a value."""
        call, items = self._bind(args, kwargs)
        if len(items) <= MOST_AT_ONCE:
            return items, await self._answer(call, items)
        answers: dict[Any, Answer] = {}
        with Outdated(self._engine, call.keys) as outdated:
            again = items
            for _ in range(AGAIN + 1):
                for number, some in parts(again, MOST_AT_ONCE):
                    if number:
                        await anyio.lowlevel.checkpoint()
                    answers.update(await self._answer(call, some))
                again = outdated.among({item: answer[0] for item, answer in answers.items()})
                if not again:
                    break
        return items, answers

    async def _answer(self, call: ManyCall, items: list[Any]) -> dict[Any, Answer]:
        engine, policy = self._engine, self._policy
        keys = {item: call.add(item) for item in items}
        answers, found = dict[Any, Answer](), dict[Any, Answer]()
        layers, told_absent = dict[Any, Layer](), dict[Any, Entry[Any]]()
        absent = dict[Any, Entry[Any]]()
        try:
            for _ in range(AGAIN + 1):
                # `look_up` evaluates the codec only if it asks the store.
                looked = await look_up(engine, call, items, lambda: self.codec, policy.early)
                found = looked.found
                layers.update(looked.layers)
                absent.update(looked.absent)
                if looked.behind:
                    await engine.ready()
                    self._batch(call).refresh_soon(looked.behind, call.keys, lambda item: call.policy(item, policy))
                loaded = await self._load(call, looked.missing, forced=False)
                for item, (_, state, error) in loaded.items():
                    log_read(engine.backoffs, call.keys[item], False, True, state, error)
                    layers[item] = Layer.LOAD
                answers.update(loaded)
                if not looked.missing:
                    break
                # While this waited for loads, an invalidation may have outdated the entries that were found before.
                items = list(found)
            answers.update(found)
            told_absent = absent
        finally:
            for item, key in keys.items():
                if item in answers:
                    engine.tell(key, *answers[item], layers[item])
                elif item in told_absent:
                    engine.tell(key, told_absent[item], State.FRESH, None, layers[item])
                else:
                    engine.tell_miss(key, self._digest)
        return answers

    @property
    def _policy(self) -> Policy:
        return self._terms.policies.now

    @property
    def sync(self) -> SyncLoader[P, dict[K, V], dict[K, Outcome[V]], Mapping[K, V | Fresh[V]], dict[K, Outcome[V]]]:
        """The same loader for code that is not async; see `Cached.sync`."""
        return SyncLoader(self)

    @property
    def engine(self) -> Engine:
        """The engine that runs its loads."""
        return self._engine

    @property
    def template(self) -> str:
        """The key template of one item."""
        return self._keys.template.text

    def key(self, *args: Any) -> str:
        """Return the key of one item, which you give instead of the loader's list.

        Raises:
            ConfigurationError: an argument or the item cannot be part of a key.
        """
        item, rest = self._keys.split((*self._bound_to, *args))
        return self._keys.key(rest, item)

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load each item, unless its stored entry is newer than a version; see `Flight.newer_than`.

        One call of the loader loads all items whose other arguments are equal.

        Parameters:
            calls: for each item its positional arguments, with the item instead of the list, and the version.
        """
        engine, flights = self._engine, []
        batches: list[tuple[ManyCall, Batch]] = []
        try:
            for args, newer_than in calls:
                item, rest = self._keys.split((*self._bound_to, *args))
                shared = next((known for known in batches if known[0].has(rest, item)), None)
                if shared is None:
                    call = ManyCall(self._keys, rest)
                    batches.append(shared := (call, self._batch(call)))
                call, batch = shared
                key = call.add(item)
                flights.append(
                    batch.begin(
                        item, key, call.policy(item, self._policy), engine.store.peek(key), newer_than=newer_than
                    )
                )
        finally:
            for _, batch in batches:
                batch.filled()
        return flights

    def arguments_of(self, key: str) -> tuple[Any, ...] | None:
        """Return the arguments of the call that loads only the item with this key; see `arguments_in`."""
        keys, name = self._keys, self.list_name
        found = arguments_in(key, keys.template, self._function, keys.parameters, self.key, name)
        if found is None:
            return None
        return tuple([value] if given == name else value for given, value in zip(keys.parameters, found, strict=True))

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Load now, whatever is stored, by one call of the loader for each 1,000 items, and return the new values.

        Raises:
            Exception: whatever the loader raised; the stored entries stay.
        """
        if not (self._engine.is_entered or await self._engine.enter()):
            return await self._call_past(args, kwargs, checks=True)
        call, items = self._bind(args, kwargs)
        values: dict[Any, Any] = {}
        for number, some in parts(items, MOST_AT_ONCE):
            if number:
                await anyio.lowlevel.checkpoint()
            entries = {item: self._engine.store.peek(call.add(item)) for item in some}
            loaded = await self._load(call, entries, forced=True)
            values.update((item, loaded[item][0].value) for item in some if item in loaded)
        return await copied_values(values) if self._copies else values

    async def uncached(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Call the loader without the cache and return its dict. swr reads nothing from the cache and stores nothing.

        swr calls the loader once for each 1,000 items. A `hard_timeout` in seconds holds for each of these calls.

        Raises:
            Exception: whatever the loader raised.
            LoadTimeout: the loader ran longer than `hard_timeout`.
        """
        return await self._call_past(args, kwargs, checks=False)

    async def _call_past(self, args: tuple[Any, ...], kwargs: dict[str, Any], *, checks: bool) -> dict[K, V]:
        """Return the loader's values without the cache; with `checks`, refuse an item that cannot be part of a key."""
        items = Items(self._engine, *self._bind(args, kwargs), self._copies)
        return await items.call_past(self._keys.where, self._runs_in_thread, self._policy, checks=checks)

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove the entries of these items in every process. swr does not store loads that are already under way."""
        await Items(self._engine, *self._bind(args, kwargs), self._copies).invalidate()

    async def mark_stale(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Mark the entries of these items as stale in every process; see `Cached.mark_stale`."""
        await Items(self._engine, *self._bind(args, kwargs), self._copies).mark_stale()

    async def invalidate_all(self) -> None:
        """Remove the entries of all items and arguments, in one step; see `Cached.invalidate_all`."""
        await self._engine.invalidate_tag(OfLoader(self.template))

    async def mark_stale_all(self) -> None:
        """Mark the entries of all items and arguments as stale, in one step; see `Cached.mark_stale`."""
        await self._engine.invalidate_tag(Soft(OfLoader(self.template)))

    async def set(self, values: Mapping[K, V | Fresh[V]], /, *args: P.args, **kwargs: P.kwargs) -> bool:
        """Store `values` as if the loader had just returned this dict for these arguments; see `Cached.set`.

        For an item that the dict leaves out, swr stores that it has no value (`absent_for`).

        Returns:
            Whether every process gets all of these values from now on.

        Raises:
            CodecError: a value cannot be stored in Redis. The stored entries of these items are gone anyway.
            TypeError: the loader does not take these arguments, or they hold no list of hashable items.
            ConfigurationError: `values` is not a dict, or has items that these arguments do not have.
        """
        call, items = self._bind(args, kwargs)
        answer = self._keys.checked(values, items)
        return await Items(self._engine, call, items, self._copies).set(
            answer, self._policy, self._absent_for, self.codec, self._digest, self._terms
        )

    async def peek(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, Outcome[V]]:
        """Return what is stored for these items, fresh or stale, without the other items; see `Cached.peek`."""
        return await Items(self._engine, *self._bind(args, kwargs), self._copies).peek(self.codec)

    async def _load(self, call: ManyCall, wanted: dict[Any, Entry[Any] | None], *, forced: bool) -> dict[Any, Answer]:
        """Return the answers for the wanted items. The loader loads those that no other call is loading."""
        engine = self._engine
        patience: Timeout = None if forced else self._policy.soft_timeout
        found: dict[Any, Answer] = {}
        again = 0
        while wanted:
            batch = self._batch(call)
            flights = {}
            try:
                for number, some in parts(list(wanted)):
                    if number:
                        await anyio.lowlevel.checkpoint()
                    for item in some:
                        policy = call.policy(item, self._policy)
                        flights[item] = batch.begin(item, call.keys[item], policy, wanted[item], forced=forced)
            finally:
                batch.filled()
            await wait(flights.values(), engine.patience_for(flights.values(), patience))
            wanted = {}
            superseded = False
            for item, flight in flights.items():
                fallback = None
                if flight.loaded is None and not flight.has_no_value:
                    fallback = None if forced else engine.fallback(flight, flight.error)
                    if fallback is None and flight.error is not None and not flight.must_be_repeated:
                        raise flight.failure()
                if fallback is not None:
                    found[item] = engine.given(fallback, flight)
                elif not flight.done.is_set() or flight.must_be_repeated or (flight.superseded and again < AGAIN):
                    # There is no fallback, or an invalidation superseded the load.
                    entry = engine.store.peek(call.keys[item])
                    if flight.superseded and entry is not None and decide(entry, engine.clock()) is FRESH:
                        # Another load has stored a fresh entry meanwhile.
                        found[item] = entry, State.FRESH, None
                        continue
                    wanted[item] = entry
                    superseded = superseded or flight.superseded
                elif flight.loaded is not None:
                    found[item] = flight.loaded, State.MISSING, None
            again += superseded
            patience = None
        return found

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[ManyCall, list[Any]]:
        return self._keys.bind((*self._bound_to, *args), kwargs)

    def _batch(self, call: ManyCall) -> Batch:
        load = functools.partial(call.load, self._engine, self._runs_in_thread)
        terms = self._terms
        tags = functools.partial(call.tags_of, tags=terms.tags)
        return Batch(
            self._engine, load, self.codec, self._absent_for, self._digest, tags, terms.store_if, terms.new_seat
        )

    @property
    def stays_here(self) -> bool:
        """Return whether the values of this loader are not shared with other processes."""
        return self._terms.stays_here

    @property
    def codec(self) -> Codec:
        """The codec of the values of the loader's items."""
        if self._codec is None:
            self._codec = codec_for(self._function, many=True, tags=self._keys.tag_templates)
        return self._codec

    # These overloads are explained at `Cached.__get__`.
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, dict[K, V]]], instance: None, owner: S
    ) -> "CachedMany[Q, K, V]": ...
    @overload
    def __get__(self, instance: None, owner: object) -> "CachedMany[P, K, V]": ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, dict[K, V]]], instance: S, owner: object = None
    ) -> "CachedMany[Q, K, V]": ...
    @overload
    def __get__(
        self: Callable[Concatenate[S, Q], Coroutine[Any, Any, dict[K, V]]], instance: object, owner: S
    ) -> "CachedMany[Q, K, V]": ...
    @overload
    def __get__(self, instance: object, owner: object = None) -> "CachedMany[P, K, V]": ...
    def __get__(self: Any, instance: Any, owner: Any = None) -> Any:
        if instance is None:
            return self
        method = copy.copy(self)
        method._bound_to = (instance,)
        return method

"""The decorator for batch loaders: one call for many keys, each cached as an entry of its own."""

import copy
import functools
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import anyio

from swr.core.codec import ANY, Codec
from swr.core.decision import FRESH, Revalidate, decide, is_absent, is_due_early
from swr.engine.deadlocks import wait
from swr.engine.engine import AGAIN, Engine
from swr.engine.flights import Flight
from swr.entry import Entry, Outcome, State
from swr.events import Miss
from swr.loaders.annotations import codec_for
from swr.loaders.batch import Batch
from swr.loaders.cached import is_async
from swr.loaders.many_keys import ManyCall, ManyKeys
from swr.policy import Policy

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")
# What a reader gets of one item: the entry, how it is marked, and why its load failed.
_Answer = tuple[Entry[Any], State, BaseException | None]


class CachedMany(Generic[P, K, V]):
    """A batch loader behind the cache; calling it gives an awaitable of a dict of what there is.

    Made by `Cache.cached_many`. The attributes of the loader (name, docstring, signature) are its own.
    """

    def __init__(
        self,
        engine: Engine,
        function: Callable[P, Any],
        keys: ManyKeys,
        policy: Policy,
        absent_for: float,
        *,
        encodes: bool,
        copies: bool,
    ) -> None:
        functools.update_wrapper(self, function)
        self._engine = engine
        self._function = function
        self._runs_in_thread = not is_async(function)
        self._keys = keys
        self._policy = policy
        self._absent_for = absent_for
        self._copies = copies
        self._codec: Codec | None = None if encodes else ANY
        # The object whose method this is, if it is one.
        self._bound_to: tuple[Any, ...] = ()

    async def __call__(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Return what the loader returns for these items, from the cache where it may.

        Items that there are none for are left out. What is fresh or stale is answered from the cache; the rest is
        loaded by one call of the loader, with what nobody else loads already.

        Raises:
            Exception: whatever the loader raised, for the first item without an entry to fall back on.
            LoadTimeout: it ran longer than `hard_timeout`; likewise.
            TypeError: the loader does not take these arguments, or they hold no list of hashable items.
            ConfigurationError: an argument or an item cannot be part of a key.
            CodecError: a value cannot be stored in Redis.
        """
        return _values(await self.outcome(*args, **kwargs))

    async def outcome(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, Outcome[V]]:
        """The same as a call, with the state, the age and the error of each answer."""
        call, engine = self._bind(args, kwargs), self._engine
        answers: dict[Any, _Answer] = {}
        try:
            items: Iterable[Any] = call.keys
            for _ in range(AGAIN + 1):
                found, missing = await self._look(call, items)
                loaded = await self._load(call, missing, forced=False)
                answers.update(loaded)
                if not missing:
                    break
                # What was found before that wait may have been invalidated meanwhile.
                items = found
            answers.update(found)
        finally:
            for item, key in call.keys.items():
                if item in answers:
                    engine.tell(key, *answers[item])
                else:
                    engine.events.publish(Miss, key)
        return self._in_order(call, answers)

    async def _look(
        self, call: ManyCall, items: Iterable[Any]
    ) -> tuple[dict[Any, _Answer], dict[Any, Entry[Any] | None]]:
        """Return what may be answered from the cache, and what has to be loaded; refresh what is stale."""
        engine, policy = self._engine, self._policy
        store, clock = engine.store, engine.clock
        entries = {item: store.peek(call.keys[item]) for item in items}
        now = clock()
        unsure = [item for item, entry in entries.items() if not (decide(entry, now).serve or is_absent(entry, now))]
        if unsure:
            await engine.ready()
            codec = self._codec_of_values()

            async def read(item: Any) -> None:
                entries[item] = await store.read(call.keys[item], codec)

            # All in one trip: what is asked in one turn of the event loop leaves in one write.
            await _all_at_once(read, unsure)
            now = clock()
        found: dict[Any, _Answer] = {}
        missing: dict[Any, Entry[Any] | None] = {}
        behind = {}
        for item, entry in entries.items():
            decision = decide(entry, now)
            if entry is not None and decision.serve:
                found[item] = entry, decision.state, None
                early = decision is FRESH and policy.early
                if decision.revalidate is Revalidate.BACKGROUND or (
                    early and is_due_early(entry, now, early, engine.runtime.uniform(0.0, 1.0))
                ):
                    behind[item] = entry
            elif not is_absent(entry, now):
                missing[item] = entry
        if behind:
            await engine.ready()
            batch = self._batch(call)
            for item, entry in behind.items():
                batch.refresh_soon(item, call.keys[item], call.policy(item, policy), entry)
        return found, missing

    @property
    def engine(self) -> Engine:
        """What runs its loads."""
        return self._engine

    @property
    def template(self) -> str:
        """The key template of one item."""
        return self._keys.text

    def key(self, *args: Any) -> str:
        """Return the key of one item, which replaces the loader's list.

        Raises:
            ConfigurationError: an argument or the item cannot be part of a key.
        """
        item, rest = self._keys.split((*self._bound_to, *args))
        return self._keys.key(rest, item)

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load what is stored for each item, unless it is newer than a version; see `Flight.newer_than`.

        Those whose other arguments are equal are one call of the loader.

        Parameters:
            calls: positional arguments with one item in the place of the list, and the version.
        """
        engine, flights = self._engine, []
        batches: list[tuple[dict[str, Any], Batch, ManyCall]] = []
        for args, newer_than in calls:
            item, rest = self._keys.split((*self._bound_to, *args))
            shared = next((known for known in batches if known[0] == rest), None)
            if shared is None:
                call = self._keys.call(rest, [])
                batches.append(shared := (rest, self._batch(call), call))
            _, batch, call = shared
            key = self._keys.key(rest, item)
            flights.append(
                batch.begin(item, key, call.policy(item, self._policy), engine.store.peek(key), newer_than=newer_than)
            )
        return flights

    async def refresh(self, *args: P.args, **kwargs: P.kwargs) -> dict[K, V]:
        """Load now, by one call of the loader, whatever is stored, and return what there is.

        Raises:
            Exception: whatever the loader raised; what is stored stays.
        """
        call = self._bind(args, kwargs)
        await self._engine.ready()
        entries = {item: self._engine.store.peek(key) for item, key in call.keys.items()}
        return _values(self._in_order(call, await self._load(call, entries, forced=True)))

    async def invalidate(self, *args: P.args, **kwargs: P.kwargs) -> None:
        """Remove what is stored for these items, here and in every process; loads in flight included."""
        await _all_at_once(self._engine.invalidate, list(self._bind(args, kwargs).keys.values()))

    async def _load(self, call: ManyCall, wanted: dict[Any, Entry[Any] | None], *, forced: bool) -> dict[Any, _Answer]:
        """Return what one call of the loader brings, and what others bring who load some of it already."""
        engine = self._engine
        patience = None if forced else self._policy.soft_timeout
        found: dict[Any, _Answer] = {}
        again = 0
        while wanted:
            batch = self._batch(call)
            flights = {
                item: batch.begin(item, call.keys[item], call.policy(item, self._policy), entry, forced=forced)
                for item, entry in wanted.items()
            }
            await wait(flights.values(), patience)
            wanted = {}
            superseded = False
            for item, flight in flights.items():
                fallback = None
                if flight.loaded is None and not flight.has_no_value:
                    fallback = None if forced else engine.fallback(flight, flight.error)
                    if fallback is None and flight.error is not None:
                        raise flight.error
                if fallback is not None:
                    found[item] = fallback, State.STALE, flight.error
                elif not flight.done.is_set() or (flight.superseded and again < AGAIN):
                    # There is nothing to fall back on, or an invalidation superseded the load.
                    wanted[item] = engine.store.peek(call.keys[item])
                    superseded = superseded or flight.superseded
                elif flight.loaded is not None:
                    found[item] = flight.loaded, State.MISSING, None
            again += superseded
            patience = None
        return found

    def _bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> ManyCall:
        return self._keys.bind((*self._bound_to, *args), kwargs)

    def _batch(self, call: ManyCall) -> Batch:
        load = functools.partial(call.load, self._engine, self._runs_in_thread)
        return Batch(self._engine, load, self._codec_of_values(), self._absent_for)

    def _codec_of_values(self) -> Codec:
        if self._codec is None:
            self._codec = codec_for(self._function, many=True)
        return self._codec

    def _in_order(self, call: ManyCall, found: dict[Any, _Answer]) -> dict[Any, Outcome[Any]]:
        outcomes = {item: self._engine.outcome(*found[item]) for item in call.keys if item in found}
        if not self._copies:
            return outcomes
        return {
            item: Outcome(copy.deepcopy(outcome.value), outcome.state, outcome.age, outcome.error)
            for item, outcome in outcomes.items()
        }

    @overload
    def __get__(self, instance: None, owner: type) -> "CachedMany[P, K, V]": ...
    @overload
    def __get__(
        self: "CachedMany[Concatenate[S, Q], K, V]", instance: S, owner: type | None = None
    ) -> "CachedMany[Q, K, V]": ...
    def __get__(self, instance: Any, owner: type | None = None) -> Any:
        if instance is None:
            return self
        method = copy.copy(self)
        method._bound_to = (instance,)
        return method


def _values(outcomes: Mapping[K, Outcome[V]]) -> dict[K, V]:
    return {item: outcome.value for item, outcome in outcomes.items()}


async def _all_at_once(function: Callable[[Any], Coroutine[Any, Any, None]], arguments: list[Any]) -> None:
    """Call `function` for each argument, all in one turn of the event loop, and wait for all."""
    try:
        async with anyio.create_task_group() as group:
            for argument in arguments:
                group.start_soon(function, argument)
    except ExceptionGroup as errors:
        # Each is the cache's own, and one is as good as another.
        raise errors.exceptions[0] from None

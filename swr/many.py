"""The decorator for batch loaders: one call for many keys, each cached as an entry of its own."""

import copy
import functools
import inspect
from collections.abc import Callable, Coroutine, Iterable, Mapping
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, overload

import anyio

from swr.batch import Batch
from swr.codec import ANY, Codec, codec_for
from swr.decision import FRESH, Revalidate, decide, is_absent, is_due_early
from swr.decorator import is_async
from swr.engine import AGAIN, Engine
from swr.entry import Entry, Outcome, State
from swr.errors import ConfigurationError
from swr.events import Miss
from swr.flight import Flight
from swr.keys import Template
from swr.loader import answer_of
from swr.policy import Policy, tag_names
from swr.waiting import wait

P = ParamSpec("P")
Q = ParamSpec("Q")
S = TypeVar("S")
K = TypeVar("K")
V = TypeVar("V")
# What a reader gets of one item: the entry, how it is marked, and why its load failed.
_Answer = tuple[Entry[Any], State, BaseException | None]


class ManyKeys:
    """Turns the arguments of a batch loader into keys and tags, one for each item of its list.

    Parameters:
        function: the batch loader.
        template: the key of one item. It names every parameter but the list, and one name that is no parameter: the
            item's.
        tags: tag templates; they may name the same.
        ignore: parameters that are left out of the key.

    Raises:
        ConfigurationError: a template that does not tell which parameter is the list and which slot its item.
    """

    def __init__(
        self, function: Callable[..., Any], template: str, tags: Iterable[str] = (), ignore: Iterable[str] = ()
    ) -> None:
        if not isinstance(template, str):
            raise ConfigurationError(f'template={template!r} is not a string, "ranking:{{group}}" for one')
        if isinstance(ignore, str):
            raise ConfigurationError(f"ignore={ignore!r} is one string: give a tuple, ({ignore!r},)")
        self._function = function
        self.where = where = f"{function.__module__}.{function.__qualname__}"
        self._signature = inspect.signature(function)
        self._key = Template(template, "key", where)
        self._tags = [Template(tag, "tags", where) for tag in tag_names(tags)]
        parameters, ignored = self._signature.parameters, frozenset(ignore)
        named = dict.fromkeys(self._key.names)
        items = [name for name in named if name not in parameters]
        lists = [name for name in parameters if name not in named and name not in ignored]
        if len(items) != 1 or len(lists) != 1:
            raise ConfigurationError(
                f"the key template {template!r} of {where}({', '.join(parameters)}) must leave out one parameter, the "
                f"list of items, and name one thing that is no parameter, an item of it; it leaves out "
                f"{', '.join(lists) or 'nothing'} and names {', '.join(items) or 'nothing else'}"
            )
        (self._item,), (self._list,) = items, lists
        if parameters[self._list].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            raise ConfigurationError(f"{where} takes its items as {parameters[self._list]}: take them as one list")
        for slot in {*ignored, *(name for tag in self._tags for name in tag.names)}:
            if slot not in parameters and (slot != self._item or slot in ignored):
                raise ConfigurationError(f"{where} has no parameter {slot!r}: it has {', '.join(parameters)}")

    @property
    def text(self) -> str:
        """The key template."""
        return self._key.text

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> "ManyCall":
        """Return a call for many items, each once.

        Raises:
            TypeError: the function does not take these arguments, or they hold no list of hashable items.
        """
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        asked = bound.arguments[self._list]
        if isinstance(asked, (str, bytes)) or not isinstance(asked, Iterable):
            raise TypeError(f"{self._list}={asked!r} of {self.where} is not a list of items: give [{asked!r}]")
        items: dict[Any, None] = {}
        for item in asked:
            try:
                items[item] = None
            except TypeError:
                raise TypeError(
                    f"{self._list} of {self.where} holds {item!r}, which cannot be a key of the dict that is returned"
                ) from None
        return ManyCall(self, bound, list(items))

    def split(self, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
        """Return the one item that stands in the place of the list, and the other arguments by name.

        Raises:
            TypeError: the function does not take these arguments, or the item is not hashable.
        """
        bound = self._signature.bind(*args)
        bound.apply_defaults()
        item = bound.arguments.pop(self._list)
        hash(item)
        return item, bound.arguments

    def call(self, rest: dict[str, Any], items: list[Any]) -> "ManyCall":
        """Return a call for `items`, with the other arguments by name."""
        return ManyCall(self, inspect.BoundArguments(self._signature, {**rest, self._list: items}), items)

    def key(self, values: Mapping[str, Any], item: Any) -> str:
        """Return the key of `item`.

        Raises:
            ConfigurationError: an argument, or the item, cannot be part of a key.
        """
        return self._key.fill({**values, self._item: item})

    def tags(self, values: Mapping[str, Any], item: Any) -> tuple[str, ...]:
        """Return the tags of `item`."""
        return tuple(tag.fill_plain({**values, self._item: item}) for tag in self._tags)

    def loader(self, bound: inspect.BoundArguments, items: list[Any]) -> Callable[[], Any]:
        """Return the function, to be called for `items` alone."""
        asked = inspect.BoundArguments(self._signature, {**bound.arguments, self._list: items})
        return functools.partial(self._function, *asked.args, **asked.kwargs)


class ManyCall:
    """One call of a batch loader: its items, and what each is stored under."""

    def __init__(self, keys: ManyKeys, bound: inspect.BoundArguments, items: list[Any]) -> None:
        self._keys = keys
        self._bound = bound
        self.keys = {item: keys.key(bound.arguments, item) for item in items}

    def policy(self, item: Any, policy: Policy) -> Policy:
        """Return `policy` with the tags of `item`."""
        return policy.tagged(self._keys.tags(self._bound.arguments, item)) if policy.tags else policy

    async def load(self, engine: Engine, runs_in_thread: bool, items: list[Any]) -> Mapping[Any, Any]:
        """Call the loader for `items`.

        Raises:
            ConfigurationError: it answered with something else than a dict of these.
        """
        # A list of the loader's own, to do with as it likes.
        answer = await answer_of(engine, self._keys.loader(self._bound, list(items)), runs_in_thread)
        if not isinstance(answer, Mapping):
            raise ConfigurationError(
                f"{self._keys.where} returned {type(answer).__name__}: a batch loader returns a dict, item: value"
            )
        asked = set(items)
        extra = [item for item in answer if item not in asked]
        if extra:
            raise ConfigurationError(
                f"{self._keys.where} was asked for {items!r} and returned {extra[0]!r} too: the dict's keys are the "
                f"items that it was given, and an item that is not there is left out"
            )
        return answer


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
        loaded by one call of the loader, together with what nobody else loads already.

        Raises:
            Exception: whatever the loader raised, for the first item for which nothing stored can stand in.
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
                    early and is_due_early(entry, now, early, engine.uniform(0.0, 1.0))
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
        """Return the key of one item, which stands in the place of the loader's list.

        Raises:
            ConfigurationError: an argument or the item cannot be part of a key.
        """
        item, rest = self._keys.split((*self._bound_to, *args))
        return self._keys.key(rest, item)

    def begin(self, calls: Iterable[tuple[tuple[Any, ...], int]]) -> list[Flight]:
        """Begin to load what is stored for each item, unless it is newer than a version; see `Flight.since`.

        Those whose other arguments are equal are one call of the loader.

        Parameters:
            calls: positional arguments with one item in the place of the list, and the version.
        """
        engine, flights = self._engine, []
        batches: list[tuple[dict[str, Any], Batch, ManyCall]] = []
        for args, since in calls:
            item, rest = self._keys.split((*self._bound_to, *args))
            together = next((known for known in batches if known[0] == rest), None)
            if together is None:
                call = self._keys.call(rest, [])
                batches.append(together := (rest, self._batch(call), call))
            _, batch, call = together
            key = self._keys.key(rest, item)
            flights.append(batch.begin(item, key, call.policy(item, self._policy), engine.store.peek(key), since=since))
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
            overtaken = False
            for item, flight in flights.items():
                fallback = None
                if flight.landed is None and not flight.left:
                    fallback = None if forced else engine.fallback(flight, flight.error)
                    if fallback is None and flight.error is not None:
                        raise flight.error
                if fallback is not None:
                    found[item] = fallback, State.STALE, flight.error
                elif not flight.done.is_set() or (flight.doomed and again < AGAIN):
                    # Nothing can stand in, or what it brings is overtaken by an invalidation.
                    wanted[item] = engine.store.peek(call.keys[item])
                    overtaken = overtaken or flight.doomed
                elif flight.landed is not None:
                    found[item] = flight.landed, State.MISSING, None
            again += overtaken
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

"""Operations on the stored entries of a batch loader's items without a load."""

import asyncio
import functools
from collections.abc import Callable, Coroutine, Iterator, Mapping
from typing import Any, TypeVar

import anyio
import anyio.lowlevel
import msgspec

from swr.core.codec import Codec
from swr.engine.carrying_on import carry_on
from swr.engine.engine import Engine
from swr.engine.entries import Value
from swr.entry import Outcome
from swr.errors import CodecError
from swr.loaders.calling import call_past, plain_value, value_of
from swr.loaders.many_keys import ManyCall
from swr.loaders.terms import LoaderTerms
from swr.loaders.turns import MOST_AT_ONCE, parts
from swr.policy import Policy
from swr.stores.threads import deep_copy

V = TypeVar("V")


class Items:
    """The stored entries of one call of a batch loader.

    Parameters:
        engine: the engine of these entries.
        call: the other arguments of the call.
        items: the items of the call.
        copies: whether callers get copies of stored values.
    """

    def __init__(self, engine: Engine, call: ManyCall, items: list[Any], copies: bool) -> None:
        self._engine = engine
        self._call = call
        self._items = items
        self._copies = copies

    async def set(
        self,
        answer: Mapping[Any, Any],
        policy: Policy,
        absent_for: float,
        codec: Codec,
        loader: str,
        terms: LoaderTerms,
    ) -> bool:
        """Store `answer`; for an item that it leaves out, store that there is no value. See `CachedMany.set`."""
        are_stored = []

        async def store(value: tuple[str, Value]) -> None:
            are_stored.append(await self._engine.entries.set(value[0], codec, value[1]))

        try:
            # Check all values first, so that a wrong one is refused before anything is stored.
            with anyio.CancelScope(shield=True):
                values = await self._values(answer, policy, absent_for, loader, terms)
            steps = (some for _, some in parts(list(values.items()), MOST_AT_ONCE))
            await carry_on(functools.partial(all_at_once, store), steps)
        except (asyncio.CancelledError, CodecError):
            # No older value stays, neither of an item that was not stored nor of one that cannot be.
            await self.invalidate()
            raise
        return all(are_stored)

    async def _values(
        self, answer: Mapping[Any, Any], policy: Policy, absent_for: float, loader: str, terms: LoaderTerms
    ) -> dict[str, Value]:
        """Return the value to store under each key; see `set`."""
        values: dict[str, Value] = {}
        for number, some in parts(self._items):
            if number:
                await anyio.lowlevel.checkpoint()
            for item in some:
                key, of_item = self._call.add(item), self._call.policy(item, policy)
                if item not in answer:
                    absent = Policy(0, keep_for=absent_for).tagged(of_item.tags)
                    values[key] = Value(None, absent, None, True, loader)
                    continue
                value = value_of(answer[item], of_item, repr(key), self._call.tags_of(item, terms.tags), terms.store_if)
                copy = await deep_copy(value.value) if self._copies else value.value
                values[key] = value._replace(value=copy, loader=loader)
        return values

    async def peek(self, codec: Codec) -> dict[Any, Outcome[Any]]:
        """Return the stored outcome of each item that has one; see `CachedMany.peek`."""
        found: dict[Any, Outcome[Any]] = {}

        async def look(item: Any) -> None:
            outcome = await self._engine.entries.peek(self._call.keys[item], codec)
            if outcome is not None:
                found[item] = await copied(outcome) if self._copies else outcome

        for some in self._added():
            await all_at_once(look, some)
        return {item: found[item] for item in self._items if item in found}

    async def invalidate(self) -> None:
        """Remove the entry of each item."""

        async def invalidate(item: Any) -> None:
            await self._engine.invalidate(self._call.keys[item])

        await carry_on(functools.partial(all_at_once, invalidate), self._added())

    async def mark_stale(self) -> None:
        """Mark the entry of each item as stale."""

        async def mark(item: Any) -> None:
            await self._engine.entries.mark_stale(self._call.keys[item])

        await carry_on(functools.partial(all_at_once, mark), self._added())

    async def call_past(self, where: str, runs_in_thread: bool, policy: Policy, *, checks: bool) -> dict[Any, Any]:
        """Return the loader's values for these items, as if there were no cache.

        Parameters:
            where: the name of the loader, for errors.
            checks: whether to refuse an item that cannot be part of a key.
        """
        values: dict[Any, Any] = {}
        for number, some in parts(self._items, MOST_AT_ONCE):
            if number:
                await anyio.lowlevel.checkpoint()
            if checks:
                for item in some:
                    self._call.add(item)
            load = functools.partial(self._call.load, self._engine, runs_in_thread, some)
            answer = await call_past(self._engine, where, load, False, policy.hard_timeout)
            values.update((item, plain_value(where, answer[item])) for item in some if item in answer)
        return values

    def _added(self) -> Iterator[list[Any]]:
        """Add the items to the call, which makes their keys, and yield them in parts."""
        for _, some in parts(self._items, MOST_AT_ONCE):
            for item in some:
                self._call.add(item)
            yield some


async def copied(outcome: Outcome[V]) -> Outcome[V]:
    """Return `outcome` with a copy of its value."""
    return msgspec.structs.replace(outcome, value=await deep_copy(outcome.value))


async def all_at_once(function: Callable[[Any], Coroutine[Any, Any, None]], arguments: list[Any]) -> None:
    """Call `function` for each argument, all in one turn of the event loop, and wait for all."""
    try:
        async with anyio.create_task_group() as group:
            for argument in arguments:
                group.start_soon(function, argument)
    except ExceptionGroup as errors:
        # These are errors of swr itself, and one of them says as much as all.
        raise errors.exceptions[0] from None


async def copied_values(values: dict[Any, V]) -> dict[Any, V]:
    """Replace each value by a copy, and return the dict."""
    for number, some in parts(list(values)):
        if number:
            await anyio.lowlevel.checkpoint()
        for item in some:
            values[item] = await deep_copy(values[item])
    return values

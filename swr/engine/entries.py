"""Operations on stored entries without a load: set, peek, invalidate, mark stale."""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from types import TracebackType
from typing import Any, Final, NamedTuple, Protocol, Self

import anyio

from swr.core.codec import Codec
from swr.core.decision import FRESH, decide
from swr.engine import repeats
from swr.engine.carrying_on import carry_on
from swr.engine.flights import Flights
from swr.engine.notifications import Notifications, publish_named
from swr.engine.portal import Portal
from swr.engine.runtime import RELEASED_WITHIN, Runtime
from swr.entry import Entry, Outcome, absence, stamp
from swr.errors import LeaseLost, StoreUnavailable
from swr.events import CommitRejected, Committed, Invalidated
from swr.policy import Policy
from swr.stores.base import Kind, Lease, Notification
from swr.stores.tag_versions import Name

# Number of tags that one command invalidates, in one turn of the event loop.
IN_ONE_STEP: Final = 1000


class Engine(Protocol):
    """The parts of the engine that `Entries` uses."""

    runtime: Runtime
    flights: Flights
    notifications: Notifications
    portal: Portal

    async def ready(self) -> None:
        """See `swr.engine.engine.Engine.ready`."""

    async def enter(self) -> bool:
        """See `swr.engine.engine.Engine.enter`."""

    async def invalidate(self, *keys: str) -> None:
        """See `Store.invalidate`."""

    async def invalidate_tag(self, *names: Name) -> None:
        """See `Store.invalidate_tag`."""

    async def invalidate_announced(self, *tags: str) -> None:
        """See `Store.invalidate_announced`."""


class Value(NamedTuple):
    """A value to store, as if a loader had returned it.

    Parameters:
        value: the value.
        policy: how long the value may be served.
        validator: given to the next load, which can ask with it whether the value has changed.
        absent: whether to store that there is no value.
        loader: see `Entry`.
        is_stored: False: swr does not store the value, and removes the stored entry.
    """

    value: Any
    policy: Policy
    validator: str | None = None
    absent: bool = False
    loader: str = ""
    is_stored: bool = True


class Entries:
    """The operations on stored entries that do not take the refresh path.

    Parameters:
        engine: the engine of these entries.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine = engine
        self._runtime = engine.runtime

    async def peek(self, key: str, codec: Codec) -> Outcome[Any] | None:
        """Return the outcome that a reader of `key` would get at once, or None if the reader would wait for a load."""
        if not await self._engine.enter():
            return None
        store, clock = self._runtime.store, self._runtime.clock
        entry = store.peek(key)
        decision = decide(entry, clock())
        if decision is not FRESH:
            entry = await store.read(key, codec)
            decision = decide(entry, clock())
        if entry is None or not decision.serve:
            return None
        return Outcome(entry.value, decision.state, max(0.0, clock() - entry.created_at))

    async def set(self, key: str, codec: Codec, value: Value) -> bool:
        """Store a value. It replaces the stored entry, and outdates loads under way; see `Cached.set`.

        Raises:
            CodecError: the value cannot be stored. The stored entry is gone anyway.
        """
        repeats.note(self._engine, self._engine.invalidate, key)
        # A caller that is cancelled here must not leave a lease behind.
        with anyio.CancelScope(shield=True):
            try:
                version = await self._set(key, codec, value)
            except asyncio.CancelledError:
                # The store may have the value, but does not notify this process of it.
                await self._engine.invalidate(key)
                raise
        if version is None:
            return False
        self._engine.flights.wake(key)
        repeats.note_value(self._engine, self._engine.invalidate, key, lambda: self._has(key, codec, version))
        return True

    async def _set(self, key: str, codec: Codec, value: Value) -> int | None:
        """Store the value; return the version of its entry, or None if the store does not have it."""
        if not value.is_stored or not await self._engine.enter():
            # The value does not get into the cache, and an older value must not stay there.
            await self._engine.invalidate(key)
            return None
        with _Overtaken(self._engine, key) as overtaken:
            return await self._store(key, codec, value, overtaken)

    async def _store(self, key: str, codec: Codec, value: Value, overtaken: "_Overtaken") -> int | None:
        runtime, store, publish = self._runtime, self._runtime.store, self._runtime.events.publish
        last, began = store.peek(key), runtime.clock()
        took = 0.0 if last is None else last.took
        lease = Lease(key, runtime.new_token(), 0, store.tag_versions.newest)
        try:
            lease = await store.seize(key, lease.token, runtime.lease_for, codec)
            await store.commit(lease, self._stamped(value, began, lease, took), codec)
        except LeaseLost:
            publish(CommitRejected, key)
            return None
        except StoreUnavailable:
            if not overtaken.is_true:
                store.keep(key, self._stamped(value, began, lease, took), codec)
            return None
        except Exception:
            with anyio.move_on_after(RELEASED_WITHIN):
                await store.release(lease)
            raise
        publish(Committed, key, lease.version)
        if overtaken.by_unfenced_load:
            # Readers in this process may have got a newer value, from a load without a lease.
            await self._invalidate(key)
            return None
        return lease.version

    async def invalidate(self, *keys: str) -> None:
        """See `Store.invalidate`. Only the cache's event loop may call this and the next two methods."""
        repeats.note(self._engine, self._engine.invalidate, *keys)
        await carry_on(self._invalidate, keys, self._engine.ready)

    async def _invalidate(self, key: str) -> None:
        await self._runtime.store.invalidate(key)
        self._runtime.events.publish(Invalidated, key, None, False)

    async def invalidate_tag(self, *names: Name) -> None:
        """See `Store.invalidate_tag`."""
        repeats.note(self._engine, self._engine.invalidate_tag, *names)
        await carry_on(self._invalidate_named, in_steps(names), self._engine.ready)

    async def _invalidate_named(self, names: Sequence[Name]) -> None:
        """Invalidate `names`, and after a full step let other tasks run."""
        await self._runtime.store.invalidate_tag(*names)
        for name in names:
            publish_named(self._runtime.events, name, elsewhere=False)
        if len(names) == IN_ONE_STEP:
            await anyio.lowlevel.checkpoint()

    async def invalidate_announced(self, *tags: str) -> None:
        """See `Store.invalidate_announced`."""
        repeats.note(self._engine, self._engine.invalidate_announced, *tags)
        await carry_on(self._invalidate_announced, [tags] if tags else [], self._engine.ready)

    async def _invalidate_announced(self, tags: Sequence[str]) -> None:
        await self._runtime.store.invalidate_announced(tags)
        for tag in tags:
            publish_named(self._runtime.events, tag, elsewhere=False)

    async def mark_stale(self, *keys: str) -> None:
        """See `Store.mark_stale`. Any event loop may call it."""
        await self._engine.portal.reach(self._mark_stale, *keys)

    async def _mark_stale(self, *keys: str) -> None:
        repeats.note(self._engine, self.mark_stale, *keys)
        await carry_on(self._mark_one_stale, keys, self._engine.ready)

    async def _mark_one_stale(self, key: str) -> None:
        await self._runtime.store.mark_stale(key)
        self._runtime.events.publish(Invalidated, key, None, False, None, True)

    def _stamped(self, value: Value, began: float, lease: Lease, took: float) -> Entry[Any]:
        policy, uniform = value.policy, self._runtime.uniform
        shortened = uniform(0.0, policy.jitter) if policy.jitter else 0.0
        entry = stamp(
            value.value, policy, began, lease.version, lease.tag_version, value.validator, took, shortened, value.loader
        )
        return absence(entry) if value.absent else entry

    async def _has(self, key: str, codec: Codec, version: int) -> bool:
        """Return whether the stored entry still has this version."""
        store = self._runtime.store
        entry = store.peek(key) or await store.read(key, codec)
        return entry is not None and entry.version == version


def in_steps(names: Sequence[Name]) -> Iterator[Sequence[Name]]:
    """Yield parts of `names`. Each part takes some milliseconds of the event loop."""
    for first in range(0, len(names), IN_ONE_STEP):
        yield names[first : first + IN_ONE_STEP]


class _Overtaken:
    """A `with` block that notes whether something newer overtakes the value that the block stores.

    Parameters:
        engine: its notifications tell what happens to the key.
        key: the key of the value.

    Attributes:
        by_unfenced_load: whether a load without a lease, unknown to the store, has ended in this process meanwhile.
    """

    def __init__(self, engine: Engine, key: str) -> None:
        self._engine = engine
        self._key = key
        self._invalidations = 0
        self._has_gap = self._has_load = self.by_unfenced_load = False
        self._end: Callable[[], None]

    @property
    def is_true(self) -> bool:
        """Return whether anything may outdate the value, other than the one invalidation that storing it brings."""
        return self._has_gap or self._has_load or self._invalidations > 1

    def __enter__(self) -> Self:
        self._end = self._engine.notifications.subscribe(self._note)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end()

    def _note(self, notification: Notification) -> None:
        kind, is_of_key = notification.kind, notification.name == self._key
        if kind is Kind.INVALIDATED:
            self._invalidations += is_of_key
        elif kind in (Kind.TAG_VERSION, Kind.REACHABLE, Kind.GAP) or (kind is Kind.MARKED and is_of_key):
            self._has_gap = True
        elif kind is Kind.HELD and is_of_key:
            self._has_load = True
            self.by_unfenced_load = self.by_unfenced_load or not notification.version

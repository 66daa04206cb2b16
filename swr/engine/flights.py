"""A flight: one load of one key in this process, its states, and the table of the flights under way."""

from collections.abc import Callable
from contextvars import Context
from typing import Any, Final, Protocol

import anyio
import msgspec

from swr.core.codec import Codec
from swr.engine.by_tag import ByTag
from swr.engine.failures import for_caller
from swr.engine.load_slots import Seat
from swr.engine.one_shot_event import OneShotEvent
from swr.engine.results import Failed, HeldElsewhere, LocalOnly, NoValue, Result, Stored, Unstored
from swr.entry import Entry, marked_stale
from swr.stores.base import NEWEST, Lease
from swr.stores.tag_versions import ALL, Name, Soft, concerns


class LoadTerms(Protocol):
    """The parts of a job that its flight uses."""

    codec: Codec
    # The context variables of a run; None: a copy of those of the caller that begins the flight.
    context: Context | None

    @property
    def new_seat(self) -> Callable[[], Seat] | None:
        """A function that returns a seat, with which a load takes a slot of its loader; None: it needs no slot."""

    @property
    def loader(self) -> str:
        """The loader's name as entries carry it, see `Entry`; empty: the job is not of a loader."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of the value, as far as they are known before the load."""

    @property
    def is_outer(self) -> bool:
        """Return whether a load inside this one is counted instead: behind a login, the load of the endpoint."""

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return whether the job allows `entry` as a fallback after `error`; the entry's policy limits for how long."""


# -- states -------------------------------------------------------------------------------------------------------


class Asking(msgspec.Struct, frozen=True):
    """The flight asks for the lease, and the store has not refused it yet."""


class WaitingForSlot(msgspec.Struct, frozen=True):
    """The flight waits for a slot of its loader, and has not asked for the lease yet.

    Parameters:
        since: when the flight began to wait, in seconds of the event loop's clock.
    """

    since: float


class WaitingForLease(msgspec.Struct, frozen=True):
    """Another load holds the lease, and the flight waits for it.

    Parameters:
        since: when the store first refused the lease, in seconds of the event loop's clock.
    """

    since: float


class Loading(msgspec.Struct, frozen=True):
    """The job runs.

    Parameters:
        lease: the right to store the value; None: the store gave none, because it was unreachable or refused.
        began: when the load began, in seconds of the event loop's clock.
    """

    lease: Lease | None
    began: float

    @property
    def version(self) -> int:
        """The version that the loaded entry will have; 0 without a lease."""
        return 0 if self.lease is None else self.lease.version

    @property
    def tag_version(self) -> int:
        """The newest tag version when the lease was granted; 0 without a lease."""
        return 0 if self.lease is None else self.lease.tag_version


class Finished(msgspec.Struct, frozen=True):
    """The flight has its final result, even if the job still runs.

    Parameters:
        result: the result.
        load: the load that brought the result; None: this process did not load.
    """

    result: Result
    load: Loading | None = None


State = Asking | WaitingForSlot | WaitingForLease | Loading | Finished

ASKING: Final = Asking()


class Flight:
    """One load of one key in this process, which all callers of the key wait for.

    Parameters:
        owner: represents the engine; compared by identity.
        key: the key to load.
        job: how the value is loaded.
        entry: the stored entry, which is the fallback; or None.
        fence: `Flights.fence` when the flight began.
        forced: load even if the store has a fresh entry.
        newer_than: load unless the stored entry is newer than this version. Such a flight belongs to a refresher.
            Unless readers join it, it does not wait for a lease that another load holds, and respects a backoff.
    """

    __slots__ = (
        "_notified",
        "answered",
        "done",
        "entry",
        "fence",
        "forced",
        "is_notified",
        "job",
        "key",
        "newer_than",
        "owner",
        "scope",
        "seat",
        "state",
        "superseded",
        "then",
        "waiters",
        "waits_for",
    )

    # Cancels the flight's task. A flight that only reports a backoff has no task.
    scope: anyio.CancelScope

    def __init__(
        self,
        owner: object,
        key: str,
        job: LoadTerms,
        entry: Entry[Any] | None,
        fence: int,
        *,
        forced: bool = False,
        newer_than: int | None = None,
    ) -> None:
        self.owner = owner
        self.key = key
        self.job = job
        self.entry = entry
        self.fence = fence
        self.forced = forced
        self.newer_than = newer_than
        self.state: State = ASKING
        # Whether an invalidation, or a load that began later, outdates the value that this flight loads.
        self.superseded = False
        # Set when waiters may go on. A flight that timed out is `Finished` earlier, and releases its lease first.
        self.done = OneShotEvent()
        # Set when the store has answered the last lease request.
        self.answered = OneShotEvent()
        # Whether something happened to the key since the last lease request.
        self.is_notified = False
        self._notified: OneShotEvent | None = None
        self.waiters = 0
        # Called when the flight ends, in the task that ends it.
        self.then: tuple[Callable[[Flight], None], ...] = ()
        self.seat = None if job.new_seat is None else job.new_seat()
        # The flights that its loader waits for, each with the number of waits. Flights of one batch share this dict.
        self.waits_for: dict[Flight, int] = {}

    @property
    def is_finished(self) -> bool:
        """Return whether the flight has its final result."""
        return type(self.state) is Finished

    @property
    def result(self) -> Result | None:
        """The result of the flight; None: its waiters have to wait longer."""
        state = self.state
        return state.result if type(state) is Finished and self.done.is_set() else None

    @property
    def load(self) -> Loading | None:
        """The load of this flight, under way or ended; None: no load has begun."""
        state = self.state
        return state if type(state) is Loading else state.load if type(state) is Finished else None

    def under_way_since(self, now: float) -> float:
        """Return when the load or the wait before it began, else `now`; in seconds of the event loop's clock."""
        state = self.state
        if isinstance(state, (WaitingForSlot, WaitingForLease)):
            return state.since
        return now if self.load is None else self.load.began

    @property
    def loaded(self) -> Entry[Any] | None:
        """The entry that readers get, or None."""
        result = self.result
        if isinstance(result, (Stored, LocalOnly, Unstored)):
            return None if result.entry.absent else result.entry
        return None

    @property
    def has_no_value(self) -> bool:
        """Return whether the flight found that there is no value to give to readers."""
        result = self.result
        return isinstance(result, NoValue) or (isinstance(result, (Stored, LocalOnly)) and result.entry.absent)

    @property
    def error(self) -> BaseException | None:
        """The error with which the flight failed, or None."""
        result = self.result
        return result.error if isinstance(result, Failed) else None

    @property
    def must_be_repeated(self) -> bool:
        """Return whether a reader without a fallback needs another flight.

        This flight backed off because there was a fallback, which an invalidation has outdated since.
        """
        result = self.result
        return isinstance(result, HeldElsewhere) or (isinstance(result, Failed) and result.is_earlier)

    def failure(self) -> BaseException:
        """Return the exception that one more waiting caller raises. The flight must have failed."""
        result = self.result
        assert isinstance(result, Failed)
        if self.waiters and result.short is not None:
            return for_caller(*result.short, is_last=False)
        return for_caller(result.error, result.traceback, is_last=not self.waiters)

    @property
    def is_unasked(self) -> bool:
        """Return whether a refresher began the flight and no reader waits for it."""
        return self.newer_than is not None and not self.waiters

    def notify(self) -> None:
        """Note that something happened to the key, and wake the flight if it waits for a notification."""
        self.is_notified = True
        if self._notified is not None:
            self._notified.set()

    async def notification(self) -> None:
        """Wait until `is_notified` is true."""
        self._notified = OneShotEvent()
        if self.is_notified:
            self._notified.set()
        await self._notified.wait()


class Flights:
    """The flights under way: for each key at most one that callers can join, and any number of detached ones."""

    def __init__(self) -> None:
        # Number of notifications so far that may outdate a load without a lease.
        self.fence = 0
        self._joinable: dict[str, Flight] = {}
        self._detached: dict[str, set[Flight]] = {}
        # Flights by the tags of the values that they load, and by the tags of their fallbacks.
        self._tagged: ByTag[Flight] = ByTag()

    def __len__(self) -> int:
        return len(self._joinable) + sum(map(len, self._detached.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._joinable

    def all(self) -> list[Flight]:
        """Return every flight under way. Any thread may call this, because `list` copies in one step."""
        detached = [flight for flights in list(self._detached.values()) for flight in list(flights)]
        return [*self._joinable.values(), *detached]

    def get(self, key: str) -> Flight | None:
        """Return the flight of `key` that a caller may join, or None."""
        return self._joinable.get(key)

    def add(self, flight: Flight) -> None:
        """Let callers join `flight` from now on, and detach the flight that they joined so far."""
        before = self._joinable.get(flight.key)
        if before is not None:
            self._detach(before)
        self._joinable[flight.key] = flight
        self._tagged.add(flight, flight.job.tags)
        if flight.entry is not None:
            self.fall_back(flight, flight.entry)

    def fall_back(self, flight: Flight, entry: Entry[Any]) -> None:
        """Make `entry` the fallback of `flight`."""
        flight.entry = entry
        self._tagged.add(flight, entry.tags)

    def remove(self, flight: Flight) -> None:
        """Forget a flight that has ended."""
        self._tagged.remove(flight)
        if self.is_current(flight):
            del self._joinable[flight.key]
        elif (detached := self._detached.get(flight.key)) is not None:
            detached.discard(flight)
            if not detached:
                del self._detached[flight.key]

    def is_current(self, flight: Flight) -> bool:
        """Return whether callers still join `flight`, because no refresh or invalidation has detached it."""
        return self._joinable.get(flight.key) is flight

    def _of(self, key: str) -> list[Flight]:
        current = self._joinable.get(key)
        return [*self._detached.get(key, ()), *([] if current is None else [current])]

    def invalidate(self, key: str, version: int) -> None:
        """Detach the flight of `key` if its load began before `version`; its load is then superseded."""
        flight = self._joinable.get(key)
        for one in self._of(key):
            if one.entry is not None and one.entry.version < version:
                # The load may be newer than the invalidation, but the fallback is older.
                one.entry = None
        if flight is not None and (flight.load is None or flight.load.version < version):
            self._detach(flight)
            # Before it loads, a flight has read nothing that an invalidation could outdate.
            flight.superseded = flight.load is not None

    def mark_stale(self, key: str, version: int) -> None:
        """Detach the flight of `key` if its load began before `version`; mark the fallbacks of its flights."""
        flight = self._joinable.get(key)
        for one in self._of(key):
            if one.entry is not None and one.entry.version < version:
                one.entry = marked_stale(one.entry, version)
        if flight is not None and flight.load is not None and flight.load.version < version:
            self._detach(flight)
            flight.superseded = True

    def outdate(self, name: Name, version: int) -> list[Flight]:
        """Detach the flights whose load a new tag version outdates, so that later callers begin another; return them.

        Parameters:
            name: the tag, the loader or `ALL` that was invalidated, or was marked stale (`Soft`).
            version: the new version; 0: the store could not tell it.
        """
        version, outdated = version or NEWEST, []
        for flight in self._named(name):
            entry, load, job = flight.entry, flight.load, flight.job
            if entry is not None and entry.tag_version < version and concerns(name, entry.tags, entry.loader):
                # An entry that is marked stale may still be a fallback.
                flight.entry = marked_stale(entry, version) if isinstance(name, Soft) else None
            is_older = load is not None and load.tag_version < version
            if is_older and self.is_current(flight) and concerns(name, job.tags, job.loader):
                self._detach(flight)
                flight.superseded = True
                outdated.append(flight)
        return outdated

    def _named(self, name: Name) -> list[Flight]:
        """Return the flights that a version of `name` may concern."""
        of = name.of if isinstance(name, Soft) else name
        return self._tagged.of(of) if isinstance(of, str) and of != ALL else self.all()

    def on_gap(self) -> None:
        """Forget the fallbacks of all flights, because notifications may have been missed."""
        self.fence += 1
        for flight in self.all():
            flight.entry = None

    def wake(self, key: str) -> None:
        """Notify every flight of `key`."""
        for flight in self._of(key):
            flight.notify()

    def wake_all(self) -> None:
        """Notify every flight, because an unreachable store cannot send the message that a flight waits for."""
        for key in (*self._joinable, *self._detached):
            self.wake(key)

    def clear(self) -> None:
        """Forget all flights: their event loop has ended."""
        self._joinable.clear()
        self._detached.clear()
        self._tagged.clear()

    def _detach(self, flight: Flight) -> None:
        del self._joinable[flight.key]
        self._detached.setdefault(flight.key, set()).add(flight)

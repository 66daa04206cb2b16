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
    """The job of a flight, as the flight sees it."""

    codec: Codec
    # The context variables that a run sees; None: a copy of those of the caller that causes it.
    context: Context | None

    @property
    def new_seat(self) -> Callable[[], Seat] | None:
        """Returns what a load of it takes of the slots of its loader; None: it needs no slot."""

    @property
    def loader(self) -> str:
        """The loader's name as entries carry it, see `Entry`; empty: no loader has caused it."""

    @property
    def tags(self) -> tuple[str, ...]:
        """The tags of what is loaded, as far as they are known before."""

    @property
    def is_outer(self) -> bool:
        """Return whether a load within this one counts in its place: behind a login, that of the endpoint."""

    def may_fall_back(self, entry: Entry[Any], error: BaseException, now: float) -> bool:
        """Return whether `entry`, while its policy allows it, may be served instead of this failure."""


# -- states -------------------------------------------------------------------------------------------------------


class Asking(msgspec.Struct, frozen=True):
    """The flight asks for the lease, and the store has not refused it yet."""


class WaitingForSlot(msgspec.Struct, frozen=True):
    """As many loads of the loader run as may run at once, and the flight has not asked for the lease yet.

    Parameters:
        since: when it began to wait, in seconds of the event loop's clock.
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
        lease: the right to store the value; None: the store is unreachable.
        began: seconds of the event loop's clock.
    """

    lease: Lease | None
    began: float

    @property
    def version(self) -> int:
        """The version of what is being loaded; 0 without a lease."""
        return 0 if self.lease is None else self.lease.version

    @property
    def tag_version(self) -> int:
        """The newest tag version when the lease was granted; 0 without a lease."""
        return 0 if self.lease is None else self.lease.tag_version


class Finished(msgspec.Struct, frozen=True):
    """The result stands, and nothing that the job still does changes it.

    Parameters:
        result: what came of the flight.
        load: the load that brought it; None: this process did not load.
    """

    result: Result
    load: Loading | None = None


State = Asking | WaitingForSlot | WaitingForLease | Loading | Finished

ASKING: Final = Asking()


class Flight:
    """One load of one key in this process, and everybody who waits for it.

    Parameters:
        owner: represents the engine; compared by identity.
        key: what is loaded.
        job: how it is loaded.
        entry: what is stored so far, or None.
        fence: `Flights.fence` when the flight began.
        forced: load even if the store has a fresh entry.
        newer_than: load unless the stored entry is newer than this version. Such a flight belongs to a refresher: it
            does not wait behind another's lease, and it respects a backoff, unless readers have joined it.
    """

    __slots__ = (
        "_notified",
        "answered",
        "done",
        "entry",
        "fence",
        "forced",
        "is_detached",
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
        # An invalidation, or a load that began later, outdates what this flight loads.
        self.superseded = False
        # Later callers start another flight, and notifications no longer update this one.
        self.is_detached = False
        # Waiters may go on. A flight that timed out is finished before that: its lease is given back first.
        self.done = OneShotEvent()
        # The store has answered the last lease request.
        self.answered = OneShotEvent()
        # Something happened to the key since the last lease request.
        self.is_notified = False
        self._notified: OneShotEvent | None = None
        self.waiters = 0
        # Called at the end, in the task of the load.
        self.then: tuple[Callable[[Flight], None], ...] = ()
        self.seat = None if job.new_seat is None else job.new_seat()
        # The flights that its loader waits for, and in how many places. Flights of one call of a loader share it.
        self.waits_for: dict[Flight, int] = {}

    @property
    def is_finished(self) -> bool:
        """Return whether the result stands."""
        return type(self.state) is Finished

    @property
    def result(self) -> Result | None:
        """The result of the flight; None: its waiters have to wait."""
        state = self.state
        return state.result if type(state) is Finished and self.done.is_set() else None

    @property
    def load(self) -> Loading | None:
        """The load of this process, under way or over; None: there is none (yet)."""
        state = self.state
        return state if type(state) is Loading else state.load if type(state) is Finished else None

    def under_way_since(self, now: float) -> float:
        """Return when the load began, or the wait for a slot or for another load; else `now`. In the loop's seconds."""
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
        """Why the flight failed, or None."""
        result = self.result
        return result.error if isinstance(result, Failed) else None

    @property
    def must_be_repeated(self) -> bool:
        """Return whether a reader who has nothing to fall back on needs another flight.

        This one backed off because something could be served, which an invalidation has outdated since.
        """
        result = self.result
        return isinstance(result, HeldElsewhere) or (isinstance(result, Failed) and result.is_earlier)

    def failure(self) -> BaseException:
        """Return the exception for one more waiting caller, if the flight failed."""
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
        """Note that something happened to the key, and wake the flight if it waits for that."""
        self.is_notified = True
        if self._notified is not None:
            self._notified.set()

    async def notification(self) -> None:
        """Wait until the flight `is_notified`."""
        self._notified = OneShotEvent()
        if self.is_notified:
            self._notified.set()
        await self._notified.wait()


class Flights:
    """The flights under way: for each key at most one that callers join, and those that were detached from it."""

    def __init__(self) -> None:
        # Number of notifications so far that may outdate a load without a lease.
        self.fence = 0
        self._joinable: dict[str, Flight] = {}
        self._detached: dict[str, set[Flight]] = {}
        # By the tags of what they load, and of what they fall back on.
        self._tagged: ByTag[Flight] = ByTag()

    def __len__(self) -> int:
        return len(self._joinable) + sum(map(len, self._detached.values()))

    def __contains__(self, key: str) -> bool:
        return key in self._joinable

    def all(self) -> list[Flight]:
        """Return every flight under way."""
        return [*self._joinable.values(), *(flight for flights in self._detached.values() for flight in flights)]

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
        """Have `flight` fall back on `entry` from now on."""
        flight.entry = entry
        self._tagged.add(flight, entry.tags)

    def remove(self, flight: Flight) -> None:
        """Forget a flight that is over."""
        self._tagged.remove(flight)
        if self.is_current(flight):
            del self._joinable[flight.key]
        elif (detached := self._detached.get(flight.key)) is not None:
            detached.discard(flight)
            if not detached:
                del self._detached[flight.key]

    def is_current(self, flight: Flight) -> bool:
        """Return whether callers still join `flight`: no refresh or invalidation came after it."""
        return self._joinable.get(flight.key) is flight

    def _of(self, key: str) -> list[Flight]:
        current = self._joinable.get(key)
        return [*self._detached.get(key, ()), *([] if current is None else [current])]

    def invalidate(self, key: str, version: int) -> None:
        """Detach the flight of `key` if its load began before `version`; what it loads is then superseded."""
        flight = self._joinable.get(key)
        for one in self._of(key):
            if one.entry is not None and one.entry.version < version:
                # The load may be newer than the invalidation. The entry to fall back on is not.
                one.entry = None
        if flight is not None and (flight.load is None or flight.load.version < version):
            self._detach(flight)
            # Before it loads, a flight has read nothing that an invalidation could outdate.
            flight.superseded = flight.load is not None

    def mark_stale(self, key: str, version: int) -> None:
        """Detach the flight of `key` if its load began before `version`; mark what its flights fall back on."""
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
            name: of what it is a version.
            version: the new one; 0: the store could not say one.
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
        """Note that notifications may have been missed: what flights fall back on is to be read again."""
        self.fence += 1
        for flight in self.all():
            flight.entry = None

    def wake(self, key: str) -> None:
        """Notify every flight of `key`."""
        for flight in self._of(key):
            flight.notify()

    def wake_all(self) -> None:
        """Notify every flight: none has to wait any longer for a message of a store that cannot send any."""
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
        flight.is_detached = True

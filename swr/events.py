"""What happens in a cache, one class for each thing, and who is told of it."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Final, ParamSpec

P = ParamSpec("P")

log = logging.getLogger("swr")


class Event:
    """Something that happened. All are frozen; times are seconds, ages by the cache's clock, the others measured."""

    __slots__ = ()


@dataclass(frozen=True, slots=True)
class Hit(Event):
    """A reader is given a fresh entry.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
    """

    key: str
    age: float


@dataclass(frozen=True, slots=True)
class Stale(Event):
    """A reader is given a stale entry.

    Parameters:
        key: of the entry.
        age: seconds since its load began.
        staleness: seconds since it ceased to be fresh; 0 if it is fresh, but not as fresh as this reader asked for.
        error: why the load failed that this reader waited for; None if it waited for none.
    """

    key: str
    age: float
    staleness: float
    error: BaseException | None = None


@dataclass(frozen=True, slots=True)
class Miss(Event):
    """A reader was given nothing that had been stored before it asked. Told when its wait is over, however it ended.

    Parameters:
        key: what was asked for; for a response that of its URL, whatever selects the variant.
    """

    key: str


@dataclass(frozen=True, slots=True)
class LeaseHeld(Event):
    """A load found the lease taken: it is the loser of a race. Told once a load.

    Parameters:
        key: what was to be loaded.
        retry_after: seconds until the lease expires, or the pause ends.
        failures: above 0, the key backs off after this many failures in a row.
    """

    key: str
    retry_after: float
    failures: int


@dataclass(frozen=True, slots=True)
class LeaseWaited(Event):
    """A load that lost the race has waited, until it got the lease, or what the winner brought. Told once a load.

    Parameters:
        key: what was to be loaded.
        seconds: from the refusal of the lease to the end of the wait.
    """

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class RenewalRejected(Event):
    """While it was loading, a process learned that its lease is gone: expired, or deleted by an invalidation.

    Parameters:
        key: what is being loaded.
    """

    key: str


@dataclass(frozen=True, slots=True)
class LoadBegun(Event):
    """A loader, or the app for a response, begins to run. Exactly one `Loaded` or `LoadFailed` follows.

    Parameters:
        key: what is loaded.
        waited: seconds that it took to get the lease, or to find the store unreachable.
    """

    key: str
    waited: float


@dataclass(frozen=True, slots=True)
class Loaded(Event):
    """A load ended with a value, stored or not.

    `Committed` or `CommitRejected` comes before it where it was to be stored. While the store is unreachable
    neither may come.

    Parameters:
        key: what was loaded.
        seconds: that the loader ran, without the commit.
    """

    key: str
    seconds: float


@dataclass(frozen=True, slots=True)
class LoadFailed(Event):
    """A load ended without a value: its loader raised, its value cannot be stored, or the cache was closed.

    Parameters:
        key: what was loaded.
        seconds: that the loader ran.
        error: what was raised.
    """

    key: str
    seconds: float
    error: BaseException


@dataclass(frozen=True, slots=True)
class Committed(Event):
    """A value was stored.

    Parameters:
        key: under which.
        version: of the entry; later ones of the same key are greater.
    """

    key: str
    version: int


@dataclass(frozen=True, slots=True)
class CommitRejected(Event):
    """A value was not stored, because an invalidation or another load superseded it.

    Parameters:
        key: under which.
    """

    key: str


@dataclass(frozen=True, slots=True)
class Invalidated(Event):
    """A key, a tag, all that a loader has stored, or everything was invalidated or marked stale.

    Parameters:
        key: what, if it is a key.
        tag: what, if it is a tag.
        elsewhere: another process did it, and this one was notified.
        loader: the key template of a loader, if it is all that this loader has stored.
        soft: it was marked stale, in place of removed.
    """

    key: str | None
    tag: str | None
    elsewhere: bool
    loader: str | None = None
    soft: bool = False


@dataclass(frozen=True, slots=True)
class StoreUnreachable(Event):
    """The link to the store was lost, or not there to begin with: memory and loaders answer alone.

    Parameters:
        reason: what was wrong, as the log has it.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class StoreReachable(Event):
    """The store answers again.

    Parameters:
        unreachable_for: seconds since `StoreUnreachable`.
    """

    unreachable_for: float


@dataclass(frozen=True, slots=True)
class CommandRefused(Event):
    """The store, which is reachable, has refused a command of this process: its memory is full, say.

    Parameters:
        reason: what it has answered.
    """

    reason: str


@dataclass(frozen=True, slots=True)
class RoundQueued(Event):
    """The leader of a `Refresher` with a queue has enqueued a round.

    Parameters:
        name: of the refresher.
        number: of the round: its start, in seconds since 1970, divided by `every`.
        new: how many tasks there are now that were not there before.
        merged: how many groups were in the queue already, since an earlier round.
        missed: rounds that nobody has enqueued since the last one.
    """

    name: str
    number: int
    new: int
    merged: int
    missed: int


@dataclass(frozen=True, slots=True)
class RoundEnded(Event):
    """A worker of a `Refresher` has done its part of a round.

    Parameters:
        name: of the refresher.
        number: of the round: its start, in seconds since 1970, divided by `every`.
        seconds: that it took.
        groups: how many it has looked at; with a queue, how many tasks have ended.
        loaded: how many it has loaded.
        current: how many had been loaded already.
        held: how many somebody else was loading, or all kept off.
        failed: how many loads have failed.
        missed: rounds that nobody has done since the last one.
        commands: how many commands this process sent to Redis in that time, whoever caused them.
    """

    name: str
    number: int
    seconds: float
    groups: int
    loaded: int
    current: int
    held: int
    failed: int
    missed: int
    commands: int


KINDS: Final = (
    Hit,
    Stale,
    Miss,
    LeaseHeld,
    LeaseWaited,
    RenewalRejected,
    LoadBegun,
    Loaded,
    LoadFailed,
    Committed,
    CommitRejected,
    Invalidated,
    StoreUnreachable,
    StoreReachable,
    CommandRefused,
    RoundQueued,
    RoundEnded,
)

Subscriber = Callable[[Any], object]


class _Subscription:
    """One subscriber, and whether it has been complained about."""

    __slots__ = ("failed", "subscriber")

    def __init__(self, subscriber: Subscriber) -> None:
        self.subscriber = subscriber
        self.failed = False


class Publisher:
    """Tells subscribers what happens: at once, in the order in which it happens, in the task in which it happens.

    Attributes:
        reads: whether anybody listens to `Hit` or `Stale`; all that a fresh hit looks at.
    """

    __slots__ = ("_subscriptions", "reads")

    def __init__(self) -> None:
        self._subscriptions: dict[object, tuple[_Subscription, ...]] = {}
        self.reads = False

    def publish(self, kind: Callable[P, Event], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Publish one event to the subscribers of its kind; without any, make none."""
        subscriptions = self._subscriptions.get(kind)
        if subscriptions is None:
            return
        event = kind(*args, **kwargs)
        for subscription in subscriptions:
            try:
                subscription.subscriber(event)
            except Exception:
                if not subscription.failed:
                    subscription.failed = True
                    log.exception(
                        "the subscriber %r raised an exception at %r; it stays subscribed, and swr logs this once",
                        subscription.subscriber,
                        event,
                    )

    def subscribe(self, subscriber: Subscriber, kinds: Collection[type[Event]]) -> Callable[[], None]:
        """Call `subscriber` with every event of `kinds`; call the returned function to end that."""
        subscription = _Subscription(subscriber)
        for kind in set(kinds):
            self._subscriptions[kind] = (*self._subscriptions.get(kind, ()), subscription)
        self._look()

        def end() -> None:
            for kind, subscriptions in list(self._subscriptions.items()):
                rest = tuple(other for other in subscriptions if other is not subscription)
                if rest:
                    self._subscriptions[kind] = rest
                else:
                    del self._subscriptions[kind]
            self._look()

        return end

    def _look(self) -> None:
        self.reads = Hit in self._subscriptions or Stale in self._subscriptions

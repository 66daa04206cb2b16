"""Apply the store's notifications to loads under way, to backoffs and to events."""

import time
from collections.abc import Callable, Iterable

from swr.engine.backoff import Backoffs
from swr.engine.flights import Flight, Flights
from swr.engine.publisher import Publisher
from swr.events import CommandRefused, Invalidated, StoreReachable, StoreUnreachable
from swr.stores.base import NEWEST, Kind, Notification, Subscriber
from swr.stores.tag_versions import ALL, Name, OfLoader, Soft


class Notifications:
    """The receiver of the store's notifications, which passes them on to flights, backoffs and events.

    Parameters:
        events: publishes events.
        flights: the flights under way; notifications wake or supersede them.
        backoffs: the keys that back off; notifications end their backoffs.
        give_way: called with the flights that an invalidation has outdated.
    """

    def __init__(
        self, events: Publisher, flights: Flights, backoffs: Backoffs, give_way: Callable[[Iterable[Flight]], None]
    ) -> None:
        self._events = events
        self._flights = flights
        self._backoffs = backoffs
        self._give_way = give_way
        # When the store became unreachable, in seconds of a clock that outlives event loops; None: it is reachable.
        self._unreachable_since: float | None = None
        # When the store last became unreachable or reachable, by the wall clock; None: never so far.
        self.changed_at: float | None = None
        # Called with every notification, before anything else.
        self._subscribers: list[Subscriber] = []

    @property
    def is_store_reachable(self) -> bool:
        """Return whether the store is reachable, as far as this process knows."""
        return self._unreachable_since is None

    def forget_outage(self) -> None:
        """Regard the store as reachable, because another store has replaced it."""
        self._unreachable_since = self.changed_at = None

    def subscribe(self, subscriber: Subscriber) -> Callable[[], None]:
        """Call `subscriber` with every notification of the store; call the returned function to stop."""
        self._subscribers.append(subscriber)
        return lambda: self._subscribers.remove(subscriber)

    def handle(self, notification: Notification) -> None:
        """Apply one notification."""
        for subscriber in self._subscribers:
            subscriber(notification)
        kind, name, version, elsewhere, _ = notification
        match kind:
            case Kind.QUEUED | Kind.HELD:
                pass
            case Kind.REFUSED:
                self._events.publish(CommandRefused, notification.text)
            case Kind.GAP:
                self._flights.on_gap()
            case Kind.REACHABLE:
                self._on_reachable()
            case Kind.UNREACHABLE:
                self._on_unreachable(notification.text)
            case Kind.REPEATED:
                publish_named(self._events, name, elsewhere=True)
            case Kind.TAG_VERSION:
                self._flights.fence += 1
                self._give_way(self._flights.outdate(name, version))
                if elsewhere:
                    publish_named(self._events, name, elsewhere=True)
            case _:
                self._on_key(notification)

    def _on_key(self, notification: Notification) -> None:
        kind, key = notification.kind, notification.text
        if kind in (Kind.INVALIDATED, Kind.MARKED):
            is_mark = kind is Kind.MARKED
            outdate = self._flights.mark_stale if is_mark else self._flights.invalidate
            outdate(key, notification.version or NEWEST)
            if notification.elsewhere:
                self._events.publish(Invalidated, key, None, True, None, is_mark)
        elif kind is Kind.COMMITTED:
            self._on_commit(key, notification.fingerprint)
        self._backoffs.end(key)
        self._flights.wake(key)

    def _on_commit(self, key: str, fingerprint: str) -> None:
        """Mark a load without a lease as superseded by a commit, because swr cannot tell which value is newer."""
        flight = self._flights.get(key)
        if flight is None or flight.load is None or flight.load.lease is not None:
            return
        if flight.job.codec.fingerprint == fingerprint:
            flight.superseded = True

    def _on_reachable(self) -> None:
        self._flights.on_gap()
        if self._unreachable_since is not None:
            seconds, self._unreachable_since = time.monotonic() - self._unreachable_since, None
            self.changed_at = time.time()
            self._events.publish(StoreReachable, seconds)

    def _on_unreachable(self, reason: str) -> None:
        if self._unreachable_since is None:
            self._unreachable_since, self.changed_at = time.monotonic(), time.time()
            self._events.publish(StoreUnreachable, reason)
            self._flights.wake_all()


def publish_named(events: Publisher, name: Name, *, elsewhere: bool) -> None:
    """Publish that a tag, the entries of a loader, or all entries were invalidated or marked stale."""
    is_soft = isinstance(name, Soft)
    of = name.of if isinstance(name, Soft) else name
    tag = of if isinstance(of, str) and of != ALL else None
    events.publish(Invalidated, None, tag, elsewhere, of.template if isinstance(of, OfLoader) else None, is_soft)

"""Events and their subscribers."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, ParamSpec

from swr.events import Answered, Event, Hit, Subscriber

P = ParamSpec("P")

log = logging.getLogger("swr")

# Event classes that a fresh hit publishes.
_READS: Final = frozenset({Hit, Answered})


@dataclass(slots=True, eq=False)
class _Subscription:
    """One subscriber, and whether swr has logged a failure of it."""

    subscriber: Subscriber
    failed: bool = False


class Publisher:
    """A publisher of events. It calls subscribers at once, in the order of events, in the task that causes an event.

    Parameters:
        on_reads: called with `reads` whenever it may have changed.

    Attributes:
        reads: whether a subscriber listens to `Hit` or `Answered`.
    """

    __slots__ = ("_on_reads", "_subscriptions", "reads")

    def __init__(self, on_reads: Callable[[bool], object] = bool) -> None:
        self._subscriptions: dict[object, tuple[_Subscription, ...]] = {}
        self._on_reads = on_reads
        self.reads = False

    def publish(self, kind: Callable[P, Event], /, *args: P.args, **kwargs: P.kwargs) -> None:
        """Publish one event to the subscribers of its kind. Without subscribers, create no event."""
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

    def has_subscriber(self, kind: type[Event]) -> bool:
        """Return whether events of this kind have a subscriber. Ask this before you create an expensive event."""
        return kind in self._subscriptions

    def subscribe(self, subscriber: Subscriber, kinds: Collection[type[Event]]) -> Callable[[], None]:
        """Call `subscriber` with every event of `kinds`; call the returned function to stop."""
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
        self.reads = not _READS.isdisjoint(self._subscriptions)
        self._on_reads(self.reads)

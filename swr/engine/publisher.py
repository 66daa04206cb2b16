"""The subscribers of events."""

import logging
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Final, ParamSpec

from swr.events import Answered, Event, Hit, Subscriber

P = ParamSpec("P")

log = logging.getLogger("swr")

# The events of reads.
_READS: Final = frozenset({Hit, Answered})


@dataclass(slots=True, eq=False)
class _Subscription:
    """One subscriber, and whether it has been complained about."""

    subscriber: Subscriber
    failed: bool = False


class Publisher:
    """Tells subscribers what happens: at once, in the order in which it happens, in the task in which it happens.

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

    def has_subscriber(self, kind: type[Event]) -> bool:
        """Return whether a subscriber listens to events of a kind. Ask before making one that is expensive."""
        return kind in self._subscriptions

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
        self.reads = not _READS.isdisjoint(self._subscriptions)
        self._on_reads(self.reads)

"""Values that a queue and its workers exchange: deliveries, settlements, dead letters, and the leader's lease."""

from typing import Any, NamedTuple

import msgspec


class Delivery(NamedTuple):
    """A task that a consumer got from the queue.

    Parameters:
        shard: the number of the shard.
        receipt: identifies the delivery in the queue.
        key: the cache key of the group.
        newer_than: the entry must be newer than this version.
        number: the time of the delivery, in microseconds by the server's clock. It is the fence of the settlement.
        tries: the number of deliveries that count towards the limit, including this one.
        args: the arguments of the loader.
    """

    shard: int
    receipt: bytes
    key: str
    newer_than: int
    number: int
    tries: int
    args: tuple[Any, ...]


class Settlement(NamedTuple):
    """The result of a delivery.

    Parameters:
        delivery: the delivery.
        what: "done", "current", "failed", or "back": handed back, which does not count as a try.
        delay: seconds until the queue delivers the task again.
        why: the reason of a failure.
        stored: the fingerprint of the entry's type, so that replicas can be asked for the entry; "": there is no entry.
    """

    delivery: Delivery
    what: str
    delay: float = 0.0
    why: str = ""
    stored: str = ""


class DeadLetter(msgspec.Struct, frozen=True):
    """A task that the queue gave up after too many failed deliveries.

    Parameters:
        key: the cache key of the group.
        args: the arguments of the loader.
        why: the error of its last load.
        tries: how often the task was delivered.
        at: when the queue gave it up, in seconds since 1970.
    """

    key: str
    args: list[Any]
    why: str
    tries: int
    at: float


class Superseded(Exception):
    """Raised if there is a newer leader."""


class Led(NamedTuple):
    """The state of leadership.

    Parameters:
        epoch: the epoch of the lease, if the worker that asked leads; "": another worker leads.
        held_for: seconds until the lease of that other worker ends.
        last: when the last completely enqueued round began, in microseconds; None: there was no round.
        now: the server's clock, in microseconds.
        part: the enqueued part of another round, as the last leader stored it.
    """

    epoch: str
    held_for: float
    last: int | None
    now: int
    part: str = ""

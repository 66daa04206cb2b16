"""Messages between a queue and its workers: deliveries, settlements, dead letters, and the leader's lease."""

from typing import Any, NamedTuple

import msgspec


class Delivery(NamedTuple):
    """A task that a consumer has been given.

    Parameters:
        shard: which it comes from.
        receipt: what the queue knows it by.
        key: of the group's entry.
        newer_than: the entry must be newer than this version.
        number: when it was delivered, in microseconds by the server's clock; the fence of what is settled.
        tries: how many deliveries, this one included, count against it.
        args: of the loader.
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
        delivery: which.
        what: "done", "current", "failed", or "back": handed back, which does not count as a try.
        delay: seconds until it is given to anybody again.
        why: the reason of a failure.
        stored: the fingerprint of the entry's type, which replicas must have before it is done; "": there is no entry.
    """

    delivery: Delivery
    what: str
    delay: float = 0.0
    why: str = ""
    stored: str = ""


class DeadLetter(msgspec.Struct, frozen=True):
    """A task that was given up.

    Parameters:
        key: of the group's entry.
        args: of the loader.
        why: what its last load raised.
        tries: how often it was delivered.
        at: when, seconds since 1970.
    """

    key: str
    args: list[Any]
    why: str
    tries: int
    at: float


class Superseded(Exception):
    """There is a newer leader."""


class Led(NamedTuple):
    """The state of leadership.

    Parameters:
        epoch: one's own; "": somebody else leads.
        held_for: seconds for which that process does.
        last: when the last round began that was enqueued whole, in microseconds.
        now: the server's clock, in microseconds.
        part: what part of another round is enqueued, as the leader has said.
    """

    epoch: str
    held_for: float
    last: int | None
    now: int
    part: str = ""

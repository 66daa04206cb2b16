"""The results that a flight can have."""

from types import TracebackType
from typing import Any

import msgspec

from swr.entry import Entry


class Stored(msgspec.Struct, frozen=True):
    """The store has the entry, or had it until something newer came."""

    entry: Entry[Any]


class LocalOnly(msgspec.Struct, frozen=True):
    """The store does not have the entry: it was unreachable, or did not confirm the commit, or rejected it."""

    entry: Entry[Any]


class Unstored(msgspec.Struct, frozen=True):
    """The load succeeded with a value that swr does not store. Waiters get the value."""

    entry: Entry[Any]


class NoValue(msgspec.Struct, frozen=True):
    """The load succeeded without a value to store."""


class HeldElsewhere(msgspec.Struct, frozen=True):
    """Another process holds the lease, and no reader of this process waits for the value."""


class Failed(msgspec.Struct, frozen=True):
    """The load failed, or did not take place because earlier ones failed.

    Parameters:
        error: the failure.
        traceback: the traceback of the load, without the frames of callers that raise the failure.
        is_earlier: the failure is that of an earlier load, and the flight did not load at all.
        short: a shortened failure for all callers except the last, and its traceback; see `failures.shortened`.
    """

    error: BaseException
    traceback: TracebackType | None = None
    is_earlier: bool = False
    short: tuple[BaseException, TracebackType | None] | None = None


Result = Stored | LocalOnly | Unstored | NoValue | HeldElsewhere | Failed

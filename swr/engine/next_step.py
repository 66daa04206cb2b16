"""Decide what a flight does with the store's answer to its lease request.

| the store answers                  | and                                               | step                    |
| ---------------------------------- | ------------------------------------------------- | ----------------------- |
| the lease                          |                                                   | LoadNow                 |
| a newer entry that says "no value" |                                                   | AskAgain                |
| a newer entry that is marked stale |                                                   | AskAgain                |
| a newer entry                      | fresh; or the flight waited, is forced or unasked | Take                    |
| a newer entry                      | otherwise                                         | AskAgain                |
| held, after failures               | readers wait and have nothing to fall back on     | AskAgain                |
| held, after failures               | the key was notified since                        | AskAgain                |
| held, after failures               | otherwise                                         | BackOff                 |
| held by another load               | readers wait, or the flight is forced             | Wait                    |
| held by another load               | no reader waits, and the key was notified since   | AskAgain                |
| held by another load               | no reader waits                                   | BackOff                 |
| nothing: it is unreachable         | the flight is unasked                             | GiveUp                  |
| nothing: it is unreachable         | otherwise                                         | LoadNow without a lease |
"""

from typing import Any

import msgspec

from swr.core.decision import FRESH, decide
from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.base import Held, Lease


class Asker(msgspec.Struct, frozen=True):
    """A flight at the moment when the store answers.

    Parameters:
        forced: the flight loads whatever is stored.
        is_unasked: a refresher began it, and no reader waits.
        has_readers: readers of this process wait for it.
        has_waited: an earlier answer was that another load holds the lease.
        can_fall_back: something stored may be served if there is no load.
        is_notified: something happened to the key since the request was sent.
    """

    forced: bool = False
    is_unasked: bool = False
    has_readers: bool = False
    has_waited: bool = False
    can_fall_back: bool = False
    is_notified: bool = False


class LoadNow(msgspec.Struct, frozen=True):
    """Load, with the lease or, where the store is unreachable, without."""

    lease: Lease | None


class Take(msgspec.Struct, frozen=True):
    """Finish with the entry that another load has stored."""

    entry: Entry[Any]


class AskAgain(msgspec.Struct, frozen=True):
    """Send another lease request at once.

    Parameters:
        known: only an entry newer than this version counts from now on; None: what counted so far.
        held: the refusal, if a notification has overtaken it.
    """

    known: int | None = None
    held: Held | None = None


class BackOff(msgspec.Struct, frozen=True):
    """Finish without a load, and leave the key alone for a while."""

    held: Held


class Wait(msgspec.Struct, frozen=True):
    """Wait for a notification or for the end of the other lease, then ask again."""

    held: Held


class GiveUp(msgspec.Struct, frozen=True):
    """Finish with the store's error."""

    error: StoreUnavailable


Step = LoadNow | Take | AskAgain | BackOff | Wait | GiveUp


def next_step(answer: Lease | Held | Entry[Any] | StoreUnavailable, asker: Asker, now: float) -> Step:
    """Return what the flight does next; see the table of this module.

    Parameters:
        answer: what the store answered to the lease request, or why it did not.
        asker: the flight, at this moment.
        now: wall clock, seconds.
    """
    if isinstance(answer, Lease):
        return LoadNow(answer)
    if isinstance(answer, Entry):
        # A load that began before the entry was marked stale is not enough.
        enough = (asker.has_waited or asker.forced or asker.is_unasked) and not answer.is_marked
        wanted = enough or decide(answer, now) is FRESH
        # Only a batch loader can report that an item does not exist, so this flight looks for itself.
        return Take(answer) if wanted and not answer.absent else AskAgain(answer.version)
    if isinstance(answer, Held):
        if answer.failures and asker.has_readers and not asker.can_fall_back:
            # What could have been served was invalidated meanwhile. The next request disregards the backoff.
            return AskAgain()
        if not answer.failures and (asker.has_readers or asker.forced):
            return Wait(answer)
        # The lease may have been given back since the answer was sent.
        return AskAgain(held=answer) if asker.is_notified else BackOff(answer)
    # A refresher fills the store. Without readers, one process's memory is not worth a load.
    return GiveUp(answer) if asker.is_unasked else LoadNow(None)

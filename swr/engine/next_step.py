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
| no answer, or a refusal            | the flight is unasked                             | GiveUp                  |
| no answer, or a refusal            | otherwise                                         | LoadNow without a lease |
"""

from typing import Any

import msgspec

from swr.core.decision import FRESH, decide
from swr.entry import Entry
from swr.errors import StoreUnavailable
from swr.stores.base import Held, Lease


class Asker(msgspec.Struct, frozen=True):
    """The state of a flight at the moment when the store answers.

    Parameters:
        forced: the flight loads whatever is stored.
        is_unasked: a refresher began the flight, and no reader waits.
        has_readers: readers of this process wait for the flight.
        has_waited: an earlier answer was that another load holds the lease.
        can_fall_back: a stored entry may be served without a load.
        is_notified: something happened to the key since the request was sent.
    """

    forced: bool = False
    is_unasked: bool = False
    has_readers: bool = False
    has_waited: bool = False
    can_fall_back: bool = False
    is_notified: bool = False


class LoadNow(msgspec.Struct, frozen=True):
    """Load, with the lease, or without one if the store is unreachable or refused it."""

    lease: Lease | None


class Take(msgspec.Struct, frozen=True):
    """Finish with the entry that another load has stored."""

    entry: Entry[Any]


class AskAgain(msgspec.Struct, frozen=True):
    """Send another lease request at once.

    Parameters:
        known: from now on only an entry newer than this version counts; None: the limit stays as it is.
        held: the refusal, if a notification came before it.
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
        answer: the store's answer to the lease request, or the error if it is unreachable or refuses.
        asker: the state of the flight at this moment.
        now: time of the wall clock, in seconds.
    """
    if isinstance(answer, Lease):
        return LoadNow(answer)
    if isinstance(answer, Entry):
        # An entry that is marked stale is not enough: its load began before the mark.
        enough = (asker.has_waited or asker.forced or asker.is_unasked) and not answer.is_marked
        wanted = enough or decide(answer, now) is FRESH
        # Only a batch loader can report that an item does not exist, so this flight asks for the lease again.
        return Take(answer) if wanted and not answer.absent else AskAgain(answer.version)
    if isinstance(answer, Held):
        if answer.failures and asker.has_readers and not asker.can_fall_back:
            # An invalidation has outdated the fallback meanwhile. The next request disregards the backoff.
            return AskAgain()
        if not answer.failures and (asker.has_readers or asker.forced):
            return Wait(answer)
        # The lease may have been given back since the answer was sent.
        return AskAgain(held=answer) if asker.is_notified else BackOff(answer)
    # A refresher fills the store. Without readers, one process's memory is not worth a load.
    return GiveUp(answer) if asker.is_unasked else LoadNow(None)

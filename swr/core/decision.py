"""The one decision of swr: may this entry be the answer now, and must its loader run?

| when                    | state   | serve | revalidate        | fallback |
| ----------------------- | ------- | ----- | ----------------- | -------- |
| no entry, or too old    | missing | no    | the reader waits  | no       |
| `now < fresh_until`     | fresh   | yes   | no                |          |
| `now < stale_until`     | stale   | yes   | in the background | yes      |
| `now < error_until`     | missing | no    | the reader waits  | yes      |

An entry that was marked stale is not fresh, even if a clock was set back past `fresh_until`.

The decorators, the middleware and the proxy call `decide`. No other code of swr compares deadlines to decide what a
reader gets, except the fastest hits: their code copies the second and third row, because a call would double its cost.
"""

import enum
import math
import sys
from typing import Any, Final, NamedTuple

from swr.entry import Entry, State
from swr.policy import NO_LIMITS, Limits


class Revalidate(enum.Enum):
    """The kind of load that a decision requires: none, one in the background, or one for which the reader waits."""

    NO = "no"
    BACKGROUND = "background"
    WAIT = "wait"


class Decision(NamedTuple):
    """The decision for one reader.

    Parameters:
        state: of the answer.
        serve: whether the entry is the answer.
        revalidate: which kind of load is needed.
        fallback: whether the entry is the answer if that load fails or takes too long.
    """

    state: State
    serve: bool
    revalidate: Revalidate
    fallback: bool


FRESH: Final = Decision(State.FRESH, True, Revalidate.NO, False)
STALE: Final = Decision(State.STALE, True, Revalidate.BACKGROUND, True)
FALLBACK: Final = Decision(State.MISSING, False, Revalidate.WAIT, True)
MISSING: Final = Decision(State.MISSING, False, Revalidate.WAIT, False)


def is_fresh(entry: Entry[Any], now: float) -> bool:
    """Return whether an entry is fresh for a reader without limits of its own."""
    return now < entry.fresh_until and not entry.is_marked


def is_absent(entry: Entry[Any] | None, now: float) -> bool:
    """Return whether `entry` is a mark, still valid, that a batch loader found no value."""
    return entry is not None and entry.absent and now < entry.keep_until


def is_due_early(entry: Entry[Any], now: float, early: float, draw: float) -> bool:
    """Return whether this reader of a fresh entry begins an early refresh (XFetch).

    Parameters:
        early: see `Policy`.
        draw: a random number between 0 and 1, drawn for this reader.
    """
    return now - entry.took * early * math.log(max(draw, sys.float_info.min)) >= entry.fresh_until


def decide(entry: Entry[Any] | None, now: float, limits: Limits = NO_LIMITS) -> Decision:
    """Return the decision about `entry` at the time `now`.

    Parameters:
        entry: the stored entry, or None.
        now: wall clock, seconds.
        limits: the limits of the reader.
    """
    if entry is None:
        return MISSING
    fresh_until, stale_until = entry.fresh_until, entry.stale_until
    if limits is not NO_LIMITS:
        accepted = min(fresh_until, entry.created_at + limits.max_age)
        if limits.min_fresh is not None:
            # RFC 9111 5.2.1.3: the reader accepts an entry that stays fresh for exactly `min_fresh` seconds.
            enough = math.nextafter(fresh_until - limits.min_fresh, math.inf)
            accepted, stale_until = min(accepted, enough), min(stale_until, enough)
        if limits.no_cache:
            fresh_until = stale_until = 0.0
        elif limits.max_stale is not None:
            # 5.2.1.2: the reader accepts an entry that is stale by exactly `max_stale` seconds.
            fresh_until, stale_until = accepted, math.nextafter(accepted + limits.max_stale, math.inf)
        elif accepted < fresh_until:
            fresh_until, stale_until = accepted, 0.0
    if now < fresh_until and not entry.is_marked:
        return FRESH
    if now < stale_until:
        return STALE
    if now < entry.servable_until:
        return FALLBACK
    return MISSING

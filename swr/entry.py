"""A stored value with its deadlines (`Entry`), and a reader's answer (`Outcome`) with its state (`State`)."""

import enum
import functools
from typing import Final, Generic, TypeVar

import msgspec

from swr.policy import Policy

T = TypeVar("T")
# The `marked_at` of an entry that is doubtful and was never marked stale.
_DOUBTFUL: Final = -1


class State(enum.StrEnum):
    """The state of an answer: fresh, stale, or missing (the reader waited for a load)."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


class Entry(msgspec.Struct, Generic[T], frozen=True):
    """A value with absolute deadlines (wall clock, seconds), which mean the same in every process.

    All deadlines count from `created_at`, the time at which the load *began*. A value that was read before an
    invalidation must lose against that invalidation.

    Parameters:
        value: the loader's result; None is a value.
        created_at: when the load began.
        fresh_until: when the entry ceases to be fresh.
        stale_until: until when it may be served while it is refreshed.
        error_until: until when it is a fallback if a load fails.
        keep_until: when a store may delete it.
        version: the fence version of the lease under which it was loaded; 0 if there was no lease.
        tag_version: the newest tag version (or version of a `clear`) known when the load began.
        tags: the names under which it can be invalidated.
        validator: lets the next load ask its source whether the value has changed.
        took: how long its load took, in seconds, rounded to three digits.
        absent: a batch loader found that the item does not exist, which holds until `keep_until`. A reader who asks
            for this key alone never gets that answer.
        loader: the digest of the loader that loaded it (`swr.core.keys.loader_digest`), or "".
        marked_at: the version at which it was last marked stale; 0: never; below 0: see `doubtful`. Unless this is 0,
            the entry is not fresh, whatever a clock says.
    """

    value: T
    created_at: float
    fresh_until: float
    stale_until: float
    error_until: float
    keep_until: float
    version: int = 0
    tag_version: int = 0
    tags: tuple[str, ...] = ()
    validator: str | None = None
    took: float = 0.0
    absent: bool = False
    loader: str = ""
    marked_at: int = 0

    @property
    def is_marked(self) -> bool:
        """Return whether the entry was marked stale, or is doubtful."""
        return self.marked_at != 0

    @property
    def servable_until(self) -> float:
        """The last time at which the entry may be an answer."""
        return max(self.stale_until, self.error_until)


def stamp(
    value: T,
    policy: Policy,
    created_at: float,
    version: int = 0,
    tag_version: int = 0,
    validator: str | None = None,
    took: float = 0.0,
    shortened: float = 0.0,
    loader: str = "",
) -> Entry[T]:
    """Return `value` as an entry whose deadlines follow from `policy` and the time its load began.

    Parameters:
        shortened: the share of `policy.fresh_for`, 0 to 1, that is taken off.
        loader: see `Entry`.
    """
    fresh_until = created_at + policy.fresh_for * (1 - shortened)
    # Equal deadlines share one float object, which saves memory if there are many entries.
    stale_until = fresh_until + policy.stale_for if policy.stale_for else fresh_until
    error_until = fresh_until + policy.stale_if_error if policy.stale_if_error else fresh_until
    return Entry(
        value=value,
        created_at=created_at,
        fresh_until=fresh_until,
        stale_until=stale_until,
        error_until=error_until,
        keep_until=max(stale_until, error_until, fresh_until + policy.keep_for),
        version=version,
        tag_version=tag_version,
        tags=policy.tags,
        validator=validator,
        took=_shared(f"{took:.3g}"),
        loader=loader,
    )


@functools.lru_cache(maxsize=4096)
def _shared(number: str) -> float:
    """Return the same float object for equal texts."""
    return float(number)


def absence(entry: Entry[T]) -> Entry[T]:
    """Return `entry` as a mark that there is no value, which is neither fresh nor stale, whatever the clock says."""
    return msgspec.structs.replace(entry, fresh_until=0.0, stale_until=0.0, error_until=0.0, absent=True)


def marked_stale(entry: Entry[T], version: int) -> Entry[T]:
    """Return `entry` as stale from its first mark on; `stale_for` and `stale_if_error` then count from that time.

    Without a `stale_for`, the entry may not be served stale: it is an answer only if its load fails
    (`stale_if_error`).

    Parameters:
        version: the version of the mark.
    """
    if entry.marked_at > 0:
        return entry if version <= entry.marked_at else msgspec.structs.replace(entry, marked_at=version)
    # Versions are microseconds by a server's clock, which may differ from the clock that stamped the entry.
    at = entry.created_at + max(0, version - entry.version) / 1e6 if entry.version else version / 1e6
    stale_for, stale_if_error = entry.stale_until - entry.fresh_until, entry.error_until - entry.fresh_until
    return msgspec.structs.replace(
        entry,
        fresh_until=min(entry.fresh_until, at),
        stale_until=min(entry.stale_until, at + stale_for) if stale_for > 0 else 0.0,
        error_until=min(entry.error_until, at + stale_if_error) if stale_if_error > 0 else 0.0,
        marked_at=version,
    )


def doubtful(entry: Entry[T]) -> Entry[T]:
    """Return `entry` as one that must be loaded again, and is served only if that load fails.

    `fresh_until` stays: if the entry is marked stale later, `marked_stale` computes its fallback window from it.
    """
    marked_at = entry.marked_at or _DOUBTFUL
    return msgspec.structs.replace(entry, stale_until=0.0, error_until=entry.servable_until, marked_at=marked_at)


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """A value and how it came to be the answer.

    Attributes:
        value: the value of the key.
        state: fresh, stale, or missing (this reader waited for a load).
        age: seconds since its load began.
        error: the error of a failed load, because of which the reader got a stale value; else None.
        bypassed: whether the cache was off, so that the loader was called and nothing was stored.
    """

    value: T
    state: State
    age: float
    error: BaseException | None = None
    bypassed: bool = False

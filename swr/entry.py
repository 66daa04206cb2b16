"""One stored value with its deadlines (`Entry`), how old it was when served (`State`), and what a reader gets."""

import enum
import functools
from typing import Final, Generic, TypeVar

import msgspec

from swr.policy import Policy

T = TypeVar("T")
# Instead of the version of a mark.
_DOUBTFUL: Final = -1


class State(enum.StrEnum):
    """The state of an answer: fresh, stale, or missing, for which the reader waited for a load."""

    FRESH = "fresh"
    STALE = "stale"
    MISSING = "missing"


class Entry(msgspec.Struct, Generic[T], frozen=True):
    """A value with absolute deadlines (wall clock, seconds), so that it explains itself wherever it is.

    All deadlines count from `created_at`, the time at which its load *began*: what was read before an
    invalidation must lose against it.

    Parameters:
        value: what the loader returned; None is a value.
        created_at: when the load began.
        fresh_until: the end of the first window of `swr.core.decision`.
        stale_until: the end of the second.
        error_until: the end of the third.
        keep_until: when a store may forget it.
        version: the fencing number of the lease it was loaded under; 0 where there was none.
        tag_version: the newest tag version (or version of a `clear`) known when the load began.
        tags: the names under which it can be invalidated.
        validator: lets the next load ask whether the value still holds.
        took: how long its load took, seconds; three digits of it.
        absent: a batch loader has found that there is no value; that holds until `keep_until`. A reader who asks for
            this key alone never gets that answer.
        loader: says which loader it is of (`swr.core.keys.loader_digest`); empty for none.
        marked_at: the version at which it was marked stale last; 0: never; below 0: see `doubtful`. With any value but
            0 the entry is not fresh, whatever a clock says.
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
        """Return whether it was marked stale, or is doubtful."""
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
        shortened: the share of `policy.fresh_for` that is taken off.
        loader: see `Entry`.
    """
    fresh_until = created_at + policy.fresh_for * (1 - shortened)
    # Equal times are one object: there may be very many entries.
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
    """Return one object for each number."""
    return float(number)


def absence(entry: Entry[T]) -> Entry[T]:
    """Return `entry` as a mark that there is no value; whatever the clock says, it is never fresh nor stale."""
    return msgspec.structs.replace(entry, fresh_until=0.0, stale_until=0.0, error_until=0.0, absent=True)


def marked_stale(entry: Entry[T], version: int) -> Entry[T]:
    """Return `entry` as one that is stale since it was first marked; its other windows count from then.

    Without a `stale_for` it may not be served stale: it is an answer only if its load fails (`stale_if_error`).

    Parameters:
        version: at which it was marked.
    """
    if entry.marked_at > 0:
        return entry if version <= entry.marked_at else msgspec.structs.replace(entry, marked_at=version)
    # Versions are times of servers, whose clocks need not agree with the one that stamped the entry.
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
    """Return `entry` as one that has to be loaded again, and is served only if that fails.

    It keeps the beginning of its windows: if it is marked stale meanwhile, they say for how long it may be served.
    """
    marked_at = entry.marked_at or _DOUBTFUL
    return msgspec.structs.replace(entry, stale_until=0.0, error_until=entry.servable_until, marked_at=marked_at)


class Outcome(msgspec.Struct, Generic[T], frozen=True):
    """A value and how it came to be the answer.

    Attributes:
        value: what was asked for.
        state: fresh, stale, or missing (this reader waited for a load).
        age: seconds since its load began.
        error: why a stale value was given instead of a new one, where a load failed; else None.
        bypassed: whether the cache was off, so that the loader was called and nothing was stored.
    """

    value: T
    state: State
    age: float
    error: BaseException | None = None
    bypassed: bool = False

"""The numbers of a cache at one moment. They only grow unless it says otherwise; a rate is the difference of two."""

from typing import Any

import msgspec


class Layers(msgspec.Struct, frozen=True):
    """Numbers of reads by the layer that answered.

    Attributes:
        l1: answered at once from this process's memory.
        redis: after a look into Redis.
        load: after a wait for a load, which may have ended with what was stored before.
    """

    l1: int
    redis: int
    load: int

    @property
    def total(self) -> int:
        """All of them."""
        return self.l1 + self.redis + self.load


class Distribution(msgspec.Struct, frozen=True):
    """A histogram of durations.

    Attributes:
        bounds: upper bounds of the buckets, in seconds; one more bucket has what is longer than the last.
        counts: how many were in each bucket, and in no lower one.
        sum: of all of them, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Return how many there were."""
        return sum(self.counts)

    def since(self, earlier: "Distribution") -> "Distribution":
        """Return what came after an earlier one of the same cache."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, share: float) -> float | None:
        """Return the seconds within which a share of them ended, interpolated; None: there were none.

        Parameters:
            share: from 0 to 1; 0.99 for the 99th percentile.
        """
        wanted, below, lower = share * self.count, 0, 0.0
        if not self.count:
            return None
        for bound, number in zip(self.bounds, self.counts, strict=False):
            if number and below + number >= wanted:
                return lower + (bound - lower) * (wanted - below) / number
            below, lower = below + number, bound
        return self.bounds[-1]


class LastError(msgspec.Struct, frozen=True):
    """The last failure of a load.

    Attributes:
        type: the name of the exception's class.
        text: what it says, 200 characters at most.
        at: when, in seconds since 1970.
        key: what was loaded.
    """

    type: str
    text: str
    at: float
    key: str = ""


class Counted(msgspec.Struct, frozen=True):
    """The numbers of one loader or one route.

    Attributes:
        fresh: reads that got a fresh value, by the layer that answered.
        stale: reads that got a stale value, likewise.
        missing: reads that waited for a load. A request that the cache cannot answer is not a read; see
            `Stats.bypasses`.
        loads: how many loads have ended with a value.
        failed: how many without one.
        in_flight: loads that run now.
        seconds: how long loads ran, failed ones too.
        failures: how long the failed ones ran.
        error: the last failure; None: there was none.
        backoffs: keys that swr leaves alone now, because their loads have failed.
        bytes: memory size of its entries in the local cache (L1) now.
    """

    fresh: Layers
    stale: Layers
    missing: Layers
    loads: int
    failed: int
    in_flight: int
    seconds: Distribution
    failures: Distribution
    error: LastError | None
    backoffs: int
    bytes: int


class LocalCacheStats(msgspec.Struct, frozen=True):
    """The local cache (L1).

    Attributes:
        bytes: memory size of its entries now, outdated ones included.
        entries: how many there are now.
        evictions: entries that have left it because it was full.
    """

    bytes: int
    entries: int
    evictions: int


class StoreStats(msgspec.Struct, frozen=True):
    """The store that the processes share.

    Attributes:
        reachable: whether it is reachable now; True without Redis.
        since: since when that is so, in seconds since 1970; None: since the cache was made.
        seconds: how long Redis took to answer, from command to reply; None: without Redis.
    """

    reachable: bool
    since: float | None
    seconds: Distribution | None


class Stats(msgspec.Struct, frozen=True):
    """The numbers of one cache in this process, since it was made.

    Attributes:
        at: when they were taken, in seconds since 1970.
        since: when the cache was made, likewise.
        loaders: by key template. Under `""`: what has none, such as `get_or_load`. Under `"other"`: what came when
            there were 200 already, or was stored by a loader that this process does not have.
        routes: by path template, such as `/rankings/{group}`. Under `""`: responses whose route swr does not see.
        bypasses: requests that bypassed the cache, by the reason, which `Cache-Status` says as `detail`.
        not_stored: responses of the app that were not stored, likewise.
        invalidations: by what was invalidated or marked stale: key, tag, loader or all; those of other processes, too.
            A `set` of another process counts as one of its key.
        local: the local cache (L1).
        store: Redis or Valkey.
        leases: how long loads waited that found the lease held.
    """

    at: float
    since: float
    loaders: dict[str, Counted]
    routes: dict[str, Counted]
    bypasses: dict[str, int]
    not_stored: dict[str, int]
    invalidations: dict[str, int]
    local: LocalCacheStats
    store: StoreStats
    leases: Distribution

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as a dict that `json.dumps` takes."""
        plain: dict[str, Any] = msgspec.to_builtins(self)
        return plain

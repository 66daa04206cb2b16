"""The numbers of a cache at one moment. They only grow, except those of "now"; subtract two snapshots for a rate."""

from typing import Any

import msgspec


class Layers(msgspec.Struct, frozen=True):
    """Numbers of reads by the layer that answered.

    Attributes:
        l1: answered at once from this process's memory.
        redis: answered after a read in Redis.
        load: answered after a wait for a load; if that failed or took too long, with an older entry.
    """

    l1: int
    redis: int
    load: int

    @property
    def total(self) -> int:
        """The sum of all layers."""
        return self.l1 + self.redis + self.load


class Distribution(msgspec.Struct, frozen=True):
    """A histogram of durations.

    Attributes:
        bounds: upper bounds of the buckets, in seconds; one more bucket counts durations above the last bound.
        counts: how many durations were in each bucket, and in no lower one.
        sum: of all durations, in seconds.
    """

    bounds: tuple[float, ...]
    counts: tuple[int, ...]
    sum: float

    @property
    def count(self) -> int:
        """Return the number of durations."""
        return sum(self.counts)

    def since(self, earlier: "Distribution") -> "Distribution":
        """Return the durations that were added after an earlier snapshot of the same cache."""
        counts = tuple(now - then for now, then in zip(self.counts, earlier.counts, strict=True))
        return Distribution(self.bounds, counts, self.sum - earlier.sum)

    def quantile(self, share: float) -> float | None:
        """Return the duration in seconds that a share of all durations does not exceed, interpolated; None if empty.

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
        text: the exception's text, 200 characters at most.
        at: when the load failed, in seconds since 1970.
        key: of the load.
    """

    type: str
    text: str
    at: float
    key: str = ""


class Counted(msgspec.Struct, frozen=True):
    """The numbers of one loader or one route.

    Attributes:
        fresh: reads that got a fresh value, by the layer that answered.
        stale: reads that got a stale value, by the layer that answered.
        missing: reads that waited for a load. A request that the cache cannot answer is not a read; see
            `Stats.bypasses`.
        loads: how many loads ended with a value.
        failed: how many loads ended without a value.
        in_flight: loads that run now.
        seconds: how long loads ran, including failed ones.
        failures: how long failed loads ran.
        error: the last failure, or None.
        backoffs: keys that back off now, because their loads failed.
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
        bytes: memory size of its entries now, including outdated ones.
        entries: number of its entries now.
        evictions: entries that it evicted because it was full.
    """

    bytes: int
    entries: int
    evictions: int


class StoreStats(msgspec.Struct, frozen=True):
    """The store that the processes share.

    Attributes:
        reachable: whether it is reachable now; True without Redis.
        since: when it became reachable or unreachable, in seconds since 1970; None: when the cache was created.
        seconds: how long Redis took to answer, from command to reply; None: without Redis.
    """

    reachable: bool
    since: float | None
    seconds: Distribution | None


class Stats(msgspec.Struct, frozen=True):
    """The numbers of one cache in this process, since it was created.

    Attributes:
        at: the time of this snapshot, in seconds since 1970.
        since: when the cache was created, in seconds since 1970.
        loaders: numbers by key template. `""` is for entries without one, such as those of `get_or_load`. `"other"` is
            for loaders beyond the first 200, and for entries of loaders that this process does not have.
        routes: numbers by path template, such as `/rankings/{group}`. `""` is for responses without a known route.
        bypasses: requests that bypassed the cache, by reason (the `detail` of `Cache-Status`).
        not_stored: responses of the app that were not stored, by reason (the `detail` of `Cache-Status`).
        invalidations: by what was invalidated or marked stale: key, tag, loader or all; by this process or another. A
            `set` in another process counts as an invalidation of its key.
        local: the local cache (L1).
        store: Redis or Valkey.
        leases: how long loads waited because another load held the lease.
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

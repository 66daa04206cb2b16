"""The numbers of a cache since it was made.

Public names: `Stats` and what it is made of, which `Cache.stats` returns. Private: `counts`, which the other parts add
to: each loader and each route has a `Tally`, the cache itself `Counts`.
Imports: `swr.errors` and nothing else of swr.
"""

from swr.stats.snapshot import Counted, Distribution, LastError, Layers, LocalCacheStats, Stats, StoreStats

__all__ = ["Counted", "Distribution", "LastError", "Layers", "LocalCacheStats", "Stats", "StoreStats"]

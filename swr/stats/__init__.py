"""The numbers of a cache since it was created.

Public names: `Stats`, which `Cache.stats` returns, and the types in it. Private: `counts`, where the other parts count.
Each loader and each route has a `Tally` there, and each cache has `Counts`.
Imports: `swr.errors` and nothing else of swr.
"""

from swr.stats.snapshot import Counted, Distribution, LastError, Layers, LocalCacheStats, Stats, StoreStats

__all__ = ["Counted", "Distribution", "LastError", "Layers", "LocalCacheStats", "Stats", "StoreStats"]

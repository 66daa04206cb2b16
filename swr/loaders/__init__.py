"""`@cache.cached`, `@cache.cached_many`, and what loaders get and return. Private; users import from `swr`.

Imports: `swr.engine`, `swr.stores.local` and below. Offers: `Cached`, `CachedMany`, `LoadContext`, `Fresh`,
`NOT_MODIFIED`, and `calling`, which runs a loader and stores its answer.
"""

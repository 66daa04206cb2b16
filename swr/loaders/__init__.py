"""`@cache.cached`, `@cache.cached_many` and what a loader may ask and answer. Private; users import from `swr`.

Imports: `swr.engine`, `swr.stores.local` and below. Offers: `Cached`, `CachedMany`, `LoadContext`, `Fresh`,
`NOT_MODIFIED`, and `calling`, which runs a loader and stores its answer.
"""

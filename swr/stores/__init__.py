"""The stores of entries and leases: this process (L1), Redis, or both. Private.

`base` defines the two ports that the engine runs on; every store passes one conformance suite in `tests/`. Imports:
`swr.core` and the modules beside the folders. Offers: `MemoryStore`, `TieredStore` (the local cache in front of a
shared store), `LocalCache`, `TagVersions`, and `redis/`, which only a cache with Redis imports.
"""

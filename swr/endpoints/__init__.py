"""The caching of responses as endpoints declare it: `@cache.response`, and the declarations of routes. Private.

It wraps an endpoint of Starlette or FastAPI and hands its terms to the middleware of the same cache. Behind the
endpoint's dependencies it answers from the cache itself: `admitting` decides and makes the key, `reader` answers,
`turns` loads. Imports: `swr.http`, `swr.loaders` and below, and Starlette; FastAPI only once it has called. Offers:
`decorator.ResponseRule`, `terms`, `declared.declared`, `routed_scope.routed`.
"""

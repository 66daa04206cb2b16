"""The caching of responses as endpoints declare it: `@cache.response`, and the declarations of routes. Private.

The decorator wraps an endpoint of Starlette or FastAPI and hands its terms to the middleware of the same cache. After
the endpoint's dependencies have run, the wrapper may answer from the cache itself: `admitting` decides and makes the
key, `reader` answers, `turns` loads. Imports: `swr.http`, `swr.loaders` and below, and Starlette; FastAPI only after
FastAPI has called swr. Offers: `decorator.ResponseRule`, `terms`, `declared.declared`, `routed_scope.routed`.
"""

"""`@cache.response`: what an endpoint says about the caching of its own responses. Private.

It wraps an endpoint of Starlette or FastAPI and hands its terms to the middleware of the same cache. Imports:
`swr.http`, `swr.loaders` and below; no web framework is imported. Offers: `decorator.ResponseRule` and `terms`.
"""

"""The one refresh path: flight, lease, second look at the store, load, fenced commit, wake-up. Private.

Everything that loads and stores runs through `engine.Engine`; a second path would be a defect. Imports: `swr.core`,
`swr.stats`, `swr.stores` without its Redis part, and the modules beside the folders. Offers: `Engine`, `Flight`, `Job`
(how a decorator, the middleware or a refresher says what to load) and `Load` (how a job ends).
"""

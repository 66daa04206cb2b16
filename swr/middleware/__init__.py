"""The ASGI middleware: it applies the pure rules of `swr.http` to requests.

Public names: `SWRMiddleware` and `Rule`; the modules are private. Imports: everything below `swr.cache`, and
`swr.cache` itself. `rules` holds what an operator says, `lookup` how a stored response is found, `capture` how a run of
the app fills the cache, `passthrough` how requests go by it.
"""

from swr.middleware.middleware import SWRMiddleware
from swr.middleware.rules import Rule

__all__ = ["Rule", "SWRMiddleware"]

"""The ASGI middleware: it applies the pure rules of `swr.http` to requests.

Public names: `SWRMiddleware`, `Rule`, and for rules of POST `Content` and `is_graphql_query`; the modules are private.
Imports: everything below `swr.cache`, and `swr.cache` itself. `middleware` answers fresh hits, `handler` every other
request as `swr.http.classify` says, with `lookup` and `passthrough`; `content` reads those whose content selects.
A run of the app is three objects: `outbox` (the client), `captured` (the response and its verdict) and `capture` (the
job); `storing` stores.
"""

from swr.http.content import Content
from swr.http.graphql import is_graphql_query
from swr.middleware.middleware import SWRMiddleware
from swr.middleware.rules import Rule

__all__ = ["Content", "Rule", "SWRMiddleware", "is_graphql_query"]

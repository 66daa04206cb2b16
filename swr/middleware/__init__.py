"""The ASGI middleware: it applies the pure rules of `swr.http` to requests.

Public names: `SWRMiddleware`, `Rule`, and for rules of POST `Content` and `is_graphql_query`; the modules are private.
Imports: `swr.cache` and everything below it. `middleware` answers fresh hits. `handler` answers all other requests as
`swr.http.classify` decides, with `lookup` and `passthrough`. `content` reads request content that is part of the key.
A run of the app consists of three objects: `outbox` (the client), `captured` (the response and its verdict) and
`capture` (the job). `storing` stores the response.
"""

from swr.http.content import Content
from swr.http.graphql import is_graphql_query
from swr.middleware.middleware import SWRMiddleware
from swr.middleware.rules import Rule

__all__ = ["Content", "Rule", "SWRMiddleware", "is_graphql_query"]

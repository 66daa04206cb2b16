"""The HTTP of a shared cache, as pure functions: RFC 9110, 9111, 9211, 9213 and 9875. Private.

No function here does I/O, reads a clock or uses a framework. Imports: `swr.core`, `swr.entry`, `swr.policy`,
`swr.errors`.

Offers: `fields` (syntax), `caching` (may it be stored, and for how long), and `classify` (how a request is handled, and
why). Also `conditional` (preconditions and ranges), `request` (URLs, keys and tags) and `stored_response` (the form in
which responses are stored and sent).
"""

"""Sets of status codes: those that rules cover, that may be stored, and that concern only the client. Pure."""

from typing import Final

# Rules cover answers. A response that says that something is not there (404) is stored only on its own terms.
BY_RULE: Final = frozenset({200, 203, 204, 300, 301, 308})
# RFC 9110 15.1: a cache may guess the lifetime of these. (swr handles 206 separately.)
GUESSABLE: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# RFC 9111 5.2.2.3: status codes whose caching requirements swr knows and meets.
UNDERSTOOD: Final = GUESSABLE | {206, 201, 202, 205, 302, 303, 307, 400, 401, 402, 403, *range(406, 410)} | {
    *range(411, 414), 415, 416, 417, 421, 422, 424, 425, 426, 428, 429, 431, 451, 500, 502, 503, 504, 505, 511,
}  # fmt: skip
# RFC 5861 4: errors for which a stale response is an allowed fallback.
ERRORS: Final = frozenset({500, 502, 503, 504})
# RFC 9111 4.2.4: a gateway that got no answer itself sends these; the cache is disconnected from the origin.
UNREACHABLE: Final = frozenset({502, 504})
# The resource does not exist (any more), for any client.
GONE: Final = frozenset({404, 410})
# These may be about the request alone, not about the resource, so swr concludes nothing from them for other requests.
ABOUT_THE_CLIENT: Final = frozenset({304, *range(400, 500)}) - GONE
# They refuse a client, the form of its request or its location. Another client may get an answer, so swr stores them
# only with `public` or `s-maxage`.
REFUSALS: Final = frozenset({401, 402, 403, 406, 407, 408, 417, 421, 425, 426, 428, 429, 431, 451, 511})
# RFC 6585 3 to 6: no cache may store these, whatever they say.
NEVER_STORED: Final = frozenset({428, 429, 431, 511})

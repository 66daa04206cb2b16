"""Status codes: which a rule is for, which may be stored, and whom they are about. Pure."""

from typing import Final

# A rule is for answers. That something is not there (404) is stored only if the response itself says so.
BY_RULE: Final = frozenset({200, 203, 204, 300, 301, 308})
# RFC 9110 15.1: a lifetime may be guessed. (206 has a way of its own.)
GUESSABLE: Final = frozenset({200, 203, 204, 300, 301, 308, 404, 405, 410, 414, 501})
# RFC 9111 5.2.2.3: status codes whose caching requirements this module knows and meets.
UNDERSTOOD: Final = GUESSABLE | {206, 201, 202, 205, 302, 303, 307, 400, 401, 402, 403, *range(406, 410)} | {
    *range(411, 414), 415, 416, 417, 421, 422, 424, 425, 426, 428, 429, 431, 451, 500, 502, 503, 504, 505, 511,
}  # fmt: skip
# RFC 5861 4: errors for which a stale response is an allowed fallback.
ERRORS: Final = frozenset({500, 502, 503, 504})
# RFC 9111 4.2.4: a gateway that got no answer itself sends these; the cache is disconnected from the origin.
UNREACHABLE: Final = frozenset({502, 504})
# The resource is not there (any more), whoever asks.
GONE: Final = frozenset({404, 410})
# These may be about the request alone, not about the resource: nothing for others follows from them.
ABOUT_THE_CLIENT: Final = frozenset({304, *range(400, 500)}) - GONE
# They refuse who asks, how, or from where; another client may get an answer. Stored only if marked for everybody.
REFUSALS: Final = frozenset({401, 402, 403, 406, 407, 408, 417, 421, 425, 426, 428, 429, 431, 451, 511})
# RFC 6585 3 to 6: no cache may store these, whatever they say.
NEVER_STORED: Final = frozenset({428, 429, 431, 511})

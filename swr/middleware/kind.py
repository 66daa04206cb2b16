"""Name what the app has answered in one run."""

import enum


class Kind(enum.Enum):
    """The answer of the app."""

    # Nothing, so far.
    NONE = "none"
    RESPONSE = "response"
    # A 304 that confirms the stored response.
    CONFIRMATION = "confirmation"
    # A 304 to something else than the stored response.
    UNRELATED = "unrelated 304"
    # An error for which a stale response may be a fallback; it is not stored.
    ERROR = "error"

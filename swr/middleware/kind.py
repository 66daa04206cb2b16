"""The kinds of answers that one run of the app can have."""

import enum


class Kind(enum.Enum):
    """The kind of the app's answer."""

    # The app has not answered so far.
    NONE = "none"
    RESPONSE = "response"
    # A 304 that confirms the stored response.
    CONFIRMATION = "confirmation"
    # A 304 that is about another response than the stored one.
    UNRELATED = "unrelated 304"
    # An error that swr does not store; a stale response may be its fallback.
    ERROR = "error"

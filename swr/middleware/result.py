"""The result of a request: whether it counts as a read, or why the cache could not answer it."""

import enum

from swr.http.classify import Reason

_DETAIL = b'; detail="'


class Problem(enum.Enum):
    """Why the content of a request is not part of its key."""

    NONE = "none"
    TOO_LARGE = "too large"
    INCOMPLETE = "incomplete"


class Result:
    """The result of a request, as far as it has come.

    Attributes:
        is_told: whether it was counted as a read, when it was answered.
        origin: of its response, see `Entry.loader`; empty: it was not loaded for several.
        bypass: why it has bypassed the cache; empty: it has not.
        not_stored: why the response of the app was not stored; empty: it was, or was to be.
    """

    __slots__ = ("bypass", "is_told", "not_stored", "origin")

    def __init__(self) -> None:
        self.is_told = False
        self.origin = self.bypass = self.not_stored = ""

    def pass_by(self, status: bytes, reason: Reason) -> None:
        """Note that the app answers this client alone.

        Parameters:
            status: the member of `Cache-Status`.
            reason: why.
        """
        self.bypass = detail_of(status) or reason.value

    def pass_through(self, status: bytes) -> None:
        """Note that the app answers, because a load that this request has waited for was of no use."""
        self.not_stored = detail_of(status)

    def reach(self, is_told: bool, is_read: bool, reason: str) -> None:
        """Note that the dependencies of the endpoint have admitted the request to the cache, or not.

        Parameters:
            is_told: whether it was counted as a read there.
            is_read: whether its response came from the cache or was stored, or the load has failed.
            reason: why not; empty: the endpoint has not asked.
        """
        self.is_told = self.is_told or is_told
        if is_read:
            self.bypass = self.not_stored = ""
        elif reason:
            self.bypass, self.not_stored = "", reason


def detail_of(status: bytes) -> str:
    """Return the `detail` of a member of `Cache-Status`, or nothing."""
    _, _, detail = status.partition(_DETAIL)
    return detail.partition(b'"')[0].decode("latin-1")

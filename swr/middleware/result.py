"""The result of a request: whether it counts as a read, or why the cache could not answer."""

import enum

from swr.http.classify import Reason

_DETAIL = b'; detail="'


class Problem(enum.Enum):
    """Why the content of a request is not part of its key."""

    NONE = "none"
    TOO_LARGE = "too large"
    INCOMPLETE = "incomplete"


class Result:
    """The result of a request, as far as it is known.

    Attributes:
        is_told: whether the request was already counted as a read, with its answer.
        origin: the route of the load that the request joined or began, see `Entry.loader`; empty: there was no load.
        bypass: why the request bypassed the cache; empty: it did not.
        not_stored: why swr did not store the app's response; empty: swr did, or meant to.
    """

    __slots__ = ("bypass", "is_told", "not_stored", "origin")

    def __init__(self) -> None:
        self.is_told = False
        self.origin = self.bypass = self.not_stored = ""

    def pass_by(self, status: bytes, reason: Reason) -> None:
        """Note that the request bypasses the cache.

        Parameters:
            status: the member of `Cache-Status`; its `detail`, if it has one, is the reason that counts.
            reason: why the request bypasses the cache.
        """
        self.bypass = detail_of(status) or reason.value

    def pass_through(self, status: bytes) -> None:
        """Note that the app answers, because the load that this request waited for had no answer for it."""
        self.not_stored = detail_of(status)

    def reach(self, is_told: bool, is_read: bool, reason: str) -> None:
        """Note whether the endpoint has used the cache after its dependencies.

        Parameters:
            is_told: whether the request was counted as a read there.
            is_read: whether the response came from the cache or was stored, or the load failed.
            reason: why the endpoint did not use the cache; empty: it did, or did not try.
        """
        self.is_told = self.is_told or is_told
        if is_read:
            self.bypass = self.not_stored = ""
        elif reason:
            self.bypass, self.not_stored = "", reason


def detail_of(status: bytes) -> str:
    """Return the `detail` of a member of `Cache-Status`; empty if it has none."""
    _, _, detail = status.partition(_DETAIL)
    return detail.partition(b'"')[0].decode("latin-1")

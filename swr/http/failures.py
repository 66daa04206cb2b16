"""Which failures of an app a stored response may answer for. Pure."""

from typing import Any

from swr.entry import Entry
from swr.errors import LoadTimeout, SWRError
from swr.http.statuses import UNREACHABLE
from swr.http.stored_response import StoredResponse, is_response


class ErrorResponse(SWRError):
    """The app answered with a status for which a stale response is a fallback.

    Parameters:
        status: of the answer.
        response: the answer, for waiting requests that have no fallback; None if it is not for others.
    """

    def __init__(self, status: int, response: StoredResponse | None) -> None:
        super().__init__(f"the app answered {status}")
        self.status = status
        self.response = response


def is_fallback(entry: Entry[Any], error: BaseException, now: float) -> bool:
    """Return whether a stored response may answer after a failure (RFC 5861 4; RFC 9111 4.2.4 and 4.3.3).

    Its own directives say how long for any failure; for an app that gives no answer at all it may do so longer.
    """
    if not is_response(entry):
        return False
    if isinstance(error, ErrorResponse):
        unreachable = error.status in UNREACHABLE
    else:
        unreachable = isinstance(error, (ConnectionError, TimeoutError, SWRError))
    return unreachable or now < max(entry.stale_until, entry.fresh_until + entry.value.stale_if_error)


def has_timed_out(key: str, error: BaseException | None) -> bool:
    """Return whether the load of a response was given up because it ran too long.

    A loader that the app itself has called may run too long, too. That is an exception of the app.

    Parameters:
        key: of the response.
        error: the failure of its load.
    """
    return isinstance(error, LoadTimeout) and error.key == key

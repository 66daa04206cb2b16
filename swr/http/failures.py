"""Failures of an app after which a stored response may be the answer. Pure."""

from typing import Any

from swr.entry import Entry
from swr.errors import LoadTimeout, SWRError
from swr.http.statuses import UNREACHABLE
from swr.http.stored_response import StoredResponse, is_response


class ErrorResponse(SWRError):
    """The app answered with a status for which a stale response is a fallback.

    Parameters:
        status: of the answer.
        response: the answer, for waiting requests without a fallback; None: other requests must not get it.
    """

    def __init__(self, status: int, response: StoredResponse | None) -> None:
        super().__init__(f"the app answered {status}")
        self.status = status
        self.response = response


def is_fallback(entry: Entry[Any], error: BaseException, now: float) -> bool:
    """Return whether a stored response may answer after a failure (RFC 5861 4; RFC 9111 4.2.4 and 4.3.3).

    The response's own directives limit how long it may answer after any failure. If the app gave no answer at all, the
    response may answer for longer.
    """
    if not is_response(entry):
        return False
    if isinstance(error, ErrorResponse):
        unreachable = error.status in UNREACHABLE
    else:
        unreachable = isinstance(error, (ConnectionError, TimeoutError, SWRError))
    return unreachable or now < max(entry.stale_until, entry.fresh_until + entry.value.stale_if_error)


def has_timed_out(key: str, error: BaseException | None) -> bool:
    """Return whether swr gave up the load of a response because it ran too long.

    The load of another key, which the app itself began, may also run too long. That is an exception of the app.

    Parameters:
        key: of the response.
        error: the failure of its load.
    """
    return isinstance(error, LoadTimeout) and error.key == key

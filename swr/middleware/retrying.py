"""Decides which failures of another request's run are worth another run of the app."""

from swr.engine.flights import Flight
from swr.errors import LoadTimeout
from swr.http.failures import ErrorResponse
from swr.middleware.capture import Capture
from swr.middleware.request import Request


def blames_client(request: Request, flight: Flight, error: BaseException) -> bool:
    """Return whether a run of the app may have failed because of the client that caused it.

    A time-out has cost the waiting clients much time. After one, only a request with other fields or from another
    address is worth another run.

    Parameters:
        request: a request that has waited for the run.
    """
    job = flight.job
    if not isinstance(job, Capture) or job.error is not error:
        return False
    is_timeout = isinstance(error, LoadTimeout) or (isinstance(error, ErrorResponse) and error.status == 504)
    return not is_timeout or job.sender not in (None, request.sender)

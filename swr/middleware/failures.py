"""Decides whether the app's answer is a failure, and whether something is stored that may answer in its place."""

from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.http.failures import ErrorResponse
from swr.http.statuses import ABOUT_THE_CLIENT, ERRORS
from swr.http.stored_response import is_response
from swr.middleware.captured import CapturedResponse


def is_failure(response: CapturedResponse, engine: Engine, flight: Flight) -> bool:
    """Return whether a response is an error that swr does not store."""
    status = response.status
    if response.is_replay and (status in ABOUT_THE_CLIENT or status >= 500):
        # A replay has no credentials; a refusal says nothing about what is stored.
        return True
    if status not in ERRORS:
        return False
    # An error is stored only if its author says for how long, and only if there is no fallback.
    return response.is_replay or response.verdict.policy is None or has_fallback(engine, flight, status)


def has_fallback(engine: Engine, flight: Flight, status: int) -> bool:
    """Return whether a stored response may answer instead of an error with this status."""
    return engine.fallback(flight, ErrorResponse(status, None)) is not None


def has_entry(engine: Engine, flight: Flight) -> bool:
    """Return whether a response to others is stored that has not run out for good."""
    entry = engine.fallback(flight)
    return entry is not None and is_response(entry) and entry.value.status < 400

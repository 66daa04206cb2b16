"""Decides whether the app's answer is a failure, and whether a stored response may answer instead."""

from swr.engine.engine import Engine
from swr.engine.flights import Flight
from swr.http.failures import ErrorResponse
from swr.http.statuses import ABOUT_THE_CLIENT, ERRORS
from swr.http.stored_response import is_response
from swr.middleware.captured import CapturedResponse


def is_failure(response: CapturedResponse, engine: Engine, flight: Flight) -> bool:
    """Return whether the response is an error that swr treats as a failed load."""
    status = response.status
    if response.is_replay and (status in ABOUT_THE_CLIENT or status >= 500):
        # A replay has no credentials, so a refusal says nothing about the stored response.
        return True
    if status not in ERRORS:
        return False
    # swr stores an error only if its directives or the terms give it a lifetime, and there is no fallback.
    return response.is_replay or response.verdict.policy is None or has_fallback(engine, flight, status)


def has_fallback(engine: Engine, flight: Flight, status: int) -> bool:
    """Return whether a stored response may answer instead of an error with this status."""
    return engine.fallback(flight, ErrorResponse(status, None)) is not None


def has_entry(engine: Engine, flight: Flight) -> bool:
    """Return whether a stored response, not an error, may still be served or be a fallback."""
    entry = engine.fallback(flight)
    return entry is not None and is_response(entry) and entry.value.status < 400

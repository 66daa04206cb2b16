"""Responses of the dashboard: their security fields, JSON messages, and refusals."""

from typing import Any, Final

from starlette.responses import Response

from swr.dashboard.json import dumps
from swr.dashboard.targets import Refusal

JSON: Final = "application/json"
SECURITY: Final = {
    # No cache may store the dashboard's responses, not even swr's own middleware.
    "cache-control": "no-store",
    "content-security-policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; connect-src 'self'; "
        "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
    ),
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
}


def as_json(message: Any) -> Response:
    """Return a response with a message as JSON."""
    return Response(dumps(message), media_type=JSON)


def refused(why: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return a response that refuses a request.

    Parameters:
        why: the reason, and what to do.
        status: the status of the response.
        headers: further fields.
    """
    refusal: Refusal = {"error": why}
    return Response(dumps(refusal), status, {**SECURITY, **(headers or {})}, JSON)

"""Answers of the dashboard: what each carries, and refusals."""

from typing import Any, Final

from starlette.responses import Response

from swr.dashboard.json import dumps
from swr.dashboard.targets import Refusal

JSON: Final = "application/json"
SECURITY: Final = {
    # No cache, swr's own included, keeps what it answers.
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
    """Return a message as it is sent."""
    return Response(dumps(message), media_type=JSON)


def refused(why: str, status: int, headers: dict[str, str] | None = None) -> Response:
    """Return a refusal.

    Parameters:
        why: a sentence that says what to do.
        status: of the response.
        headers: more fields.
    """
    refusal: Refusal = {"error": why}
    return Response(dumps(refusal), status, {**SECURITY, **(headers or {})}, JSON)

"""The ranking API with `/metrics` for Prometheus, as one of several processes.

FLIGHTS_DB=flights.db REDIS_URL=redis://127.0.0.1:6379/0 python -m uvicorn examples.compose.app:app
"""

from prometheus_client import make_asgi_app
from starlette.types import Receive, Scope, Send

from examples.ranking import app as rankings
from examples.ranking import cache
from swr.prometheus import export

export(cache)
_metrics = make_asgi_app()


async def app(scope: Scope, receive: Receive, send: Send) -> None:
    """Answer `/metrics` outside of the cache, and give everything else to the ranking API."""
    is_metrics = scope["type"] == "http" and scope["path"] == "/metrics"
    await (_metrics if is_metrics else rankings)(scope, receive, send)

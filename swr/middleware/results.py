"""The counting of a request that has ended, and the event with its result."""

from swr.endpoints.origin import origin_of
from swr.engine.engine import Engine
from swr.events import Bypassed, NotStored
from swr.middleware.request import Request


def tell(engine: Engine, request: Request) -> None:
    """Count a request that has ended and publish its event, unless it was already counted as a read."""
    result, counts = request.result, engine.counts
    if result.is_told:
        return
    origin = result.origin or origin_of(request.scope)
    if result.bypass:
        counts.bypasses.add(result.bypass)
        engine.events.publish(Bypassed, request.key, result.bypass, counts.of(origin).route)
    elif result.not_stored:
        counts.not_stored.add(result.not_stored)
        engine.events.publish(NotStored, request.key, result.not_stored, counts.of(origin).route)
    else:
        engine.tell_miss(request.key, origin)

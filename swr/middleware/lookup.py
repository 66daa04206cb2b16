"""The lookup of a request: the entry that is stored for it, and whether that entry may answer it."""

import math
from typing import Any, Final, NamedTuple

import msgspec

from swr.core.decision import FRESH, decide
from swr.engine.engine import Engine
from swr.entry import Entry
from swr.http.stored_response import RESPONSES, StoredResponse, Varies, is_response
from swr.middleware.request import Request
from swr.policy import Limits
from swr.stats.counts import Layer

# The suffix that makes the key of a stored part from the key of the whole response.
PART: Final = "\npart"
# For a URL that does not vary.
NO_VARIES: Final = Varies(())


class Found(NamedTuple):
    """The result of a lookup.

    Parameters:
        key: the key that the request selects.
        varies: the request fields that the URL varies by.
        entry: the entry under the key, or None.
        layer: the layer that was asked.
    """

    key: str
    varies: Varies
    entry: Entry[Any] | None
    layer: Layer

    @property
    def names(self) -> tuple[str, ...]:
        """The request fields that select the key among the variants of the URL; none if the URL does not vary."""
        return self.varies.names

    @property
    def where(self) -> str:
        """The layer that was asked, for the log."""
        return "local cache" if self.layer is Layer.L1 else "store"

    def why_missing(self, now: float) -> bytes:
        """Return why the entry does not answer, as `fwd` of `Cache-Status` (RFC 9211 2.2)."""
        if not is_response(self.entry):
            return b"vary-miss" if self.names else b"uri-miss"
        return b"request" if decide(self.entry, now) is FRESH else b"stale"


def look_up_local(engine: Engine, request: Request) -> Found:
    """Look up a request in the local cache alone."""
    key = request.key
    entry = engine.store.peek(key)
    if entry is not None and type(entry.value) is Varies:
        key = request.variant(entry.value.names)
        return Found(key, entry.value, engine.store.peek(key), Layer.L1)
    return Found(key, NO_VARIES, entry, Layer.L1)


async def look_up(engine: Engine, request: Request, accepted: Limits) -> Found:
    """Look up a request in the local cache, and in the store unless the local entry may answer.

    Parameters:
        accepted: how old a response the client accepts.
    """
    key = request.key
    varies = NO_VARIES
    entry, layer = await read_entry(engine, key, accepted)
    if entry is not None and type(entry.value) is Varies:
        varies = entry.value
        key = request.variant(varies.names)
        entry, layer = await read_entry(engine, key, accepted)
    return Found(key, varies, entry, layer)


async def read_entry(engine: Engine, key: str, accepted: Limits) -> tuple[Entry[Any] | None, Layer]:
    """Return the entry of a key from the local cache if that entry may answer, or else from the store."""
    entry = engine.store.peek(key)
    if decide(entry, engine.clock(), accepted).serve:
        return entry, Layer.L1
    await engine.ready()
    return await engine.store.read(key, RESPONSES), Layer.REDIS


def may_use(request: Request, entry: Entry[Any]) -> bool:
    """Return whether a stored response may answer a request.

    A request with credentials needs a response that says it is for everybody (RFC 9111 3.5), or one that its
    credentials select. A request with a field that swr does not know needs a response on its own terms.
    """
    stored = entry.value
    is_own = stored.per_credential and request.is_selected_by(stored.names)
    if request.authorized and not stored.shared and not is_own:
        return False
    return stored.own_terms or request.unknown_beyond({*stored.names, *stored.ignores}) is None


def find_unknown(request: Request, found: Found) -> str | None:
    """Return an unknown request field that rules out the found response, or storing one after a miss; or None."""
    if found.entry is None or not is_response(found.entry):
        return request.unknown_beyond(found.names)
    stored = found.entry.value
    return None if stored.own_terms else request.unknown_beyond({*found.names, *stored.ignores})


def limits_for(accepted: Limits, entry: Entry[StoredResponse]) -> Limits:
    """Return the limits of a client, adjusted to this response.

    swr never serves a strict response stale, and counts the time that a response spent in other caches.
    """
    stored = entry.value
    if stored.strict and stored.validate:
        # Without this, the entry would look fresh after someone has set the clock back.
        return msgspec.structs.replace(accepted, no_cache=True)
    if accepted.max_stale is not None and (stored.strict or stored.overdue):
        rest = accepted.max_stale - stored.overdue
        accepted = msgspec.structs.replace(accepted, max_stale=None if stored.strict or rest < 0 else rest)
    if stored.initial_age and accepted.max_age < math.inf:
        accepted = msgspec.structs.replace(accepted, max_age=accepted.max_age - stored.initial_age)
    return accepted

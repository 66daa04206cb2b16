"""Storing a captured response under the key that it selects, among the variants and parts of its URL."""

from typing import Final

from swr.engine.load import Load
from swr.http.stored_response import RESPONSES, StoredResponse, Varies, combined, is_response
from swr.middleware.config import Config
from swr.middleware.lookup import PART
from swr.middleware.request import Request
from swr.policy import Policy

# Seconds that swr remembers by which fields a URL varies; this has to outlive the variants.
_VARIES_FOR: Final = 7 * 86400.0


async def store_response(
    config: Config,
    request: Request,
    load: Load,
    response: StoredResponse,
    policy: Policy,
    vary: tuple[str, ...],
    *,
    is_apart: bool,
) -> bool:
    """Store a response, end the load, and return whether the response has another key than the load.

    Parameters:
        load: of the run of the app.
        response: the response, or a part of one.
        policy: how long it may be served.
        vary: the request fields that select it.
        is_apart: whether the load's key is that of a part, or of this request alone.
    """
    key = request.variant(vary)
    if response.status == 206:
        key, response = await _with_known_parts(config, key, response)
    if key == load.flight.key:
        await load.store(response, policy)
        if vary:
            await _add_variant(config, request, load, vary, key, put=True)
        return False
    await config.engine.put(key, RESPONSES, response, policy, load.snapshot)
    if is_apart:
        if vary:
            await _add_variant(config, request, load, vary, key, put=True)
        await load.skip()
        return True
    # The URL turns out to vary, or to vary by other fields: the waiting requests learn by which.
    varies = await _add_variant(config, request, load, vary, key, put=load.flight.key != request.key)
    await load.store(varies, Policy(_VARIES_FOR, tags=request.tags))
    return True


async def _with_known_parts(config: Config, key: str, part: StoredResponse) -> tuple[str, StoredResponse]:
    """Return a part combined with the stored part of the same response, and the key of the result.

    Parameters:
        key: of the whole response.
    """
    known = await config.engine.store.read(key + PART, RESPONSES)
    if known is not None and is_response(known):
        part = combined(known.value, part)
    return (key if part.complete is None else key + PART), part


async def _add_variant(
    config: Config, request: Request, load: Load, names: tuple[str, ...], key: str, *, put: bool
) -> Varies:
    """Return the variants of the URL with one more; if they are too many, invalidate the oldest.

    Parameters:
        names: the request fields by which the URL varies.
        key: of the new variant.
        put: store the result, if the variant is new.
    """
    engine = config.engine
    entry = engine.store.peek(request.key)
    known: tuple[str, ...] = ()
    if entry is not None and type(entry.value) is Varies and entry.value.names == names:
        known = entry.value.variants
    mine = key[len(request.key) :]
    if mine in known:
        return Varies(names, known)
    variants = (*known, mine)
    for old in variants[: -config.max_variants]:
        await engine.invalidate(request.key + old)
    varies = Varies(names, variants[-config.max_variants :])
    if put:
        policy = Policy(_VARIES_FOR, tags=request.tags)
        await engine.put(request.key, RESPONSES, varies, policy, load.snapshot)
    return varies

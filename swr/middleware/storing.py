"""Storing a captured response under the key that it selects, among the variants and parts of its URL."""

from typing import Final

from swr.core.decision import decide
from swr.engine.load import Load
from swr.http.caching import Verdict
from swr.http.content import Content
from swr.http.stored_response import RESPONSES, StoredResponse, Varies, are_of_one, combined, is_response, span_of
from swr.middleware.config import Config, Uncacheable
from swr.middleware.lookup import NO_VARIES, PART
from swr.middleware.request import Request
from swr.policy import Policy

# Seconds that swr remembers by which fields a URL varies. If it forgets, a load for each variant teaches it again.
_VARIES_FOR: Final = 7 * 86400.0
# Tries to store the list of variants, which other processes change, too.
_MOST_TRIES: Final = 3
# A part is combined with the stored one if that writes no more bytes than these, or than this many times its own.
_ALWAYS_WRITTEN: Final = 2**16
_MOST_WRITTEN: Final = 8


async def store_response(
    config: Config,
    request: Request,
    load: Load,
    response: StoredResponse,
    verdict: Verdict,
    *,
    is_apart: bool,
) -> bool:
    """Store a response, end the load, and return whether the response has another key than the load.

    Parameters:
        load: of the run of the app.
        response: the response, or a part of one.
        verdict: how long it may be served, and which request fields select it.
        is_apart: whether the load's key is that of a part, or of this request alone.
    """
    policy, vary = verdict.policy, verdict.vary
    assert policy is not None
    if verdict.tags_of is not None:
        tags = verdict.tags_of(Content(response.body, response.headers))
        if tags is None:
            found = Uncacheable("tags", request.tags, load.tag_version)
            config.note_uncacheable(load.flight.key, request, found)
            await load.skip()
            return False
        policy = policy.tagged((*policy.tags, *tags))
    key = request.variant(vary)
    if response.status == 206:
        key, part = await _with_known_parts(config, key, response)
        if part is None:
            await load.skip()
            return False
        response = part
    if key == load.flight.key:
        await load.store(response, policy)
        if vary:
            await _add_variant(config, request, load, verdict, key, put=True)
        return False
    await config.engine.put(key, RESPONSES, response, policy, load.snapshot)
    if is_apart or not vary:
        if vary:
            await _add_variant(config, request, load, verdict, key, put=True)
        await load.skip()
        return True
    # The URL turns out to vary, or to vary by other fields: the waiting requests learn by which.
    varies = await _add_variant(config, request, load, verdict, key, put=load.flight.key != request.key)
    await load.store(varies, Policy(_VARIES_FOR, tags=request.tags))
    return True


async def withdraw(config: Config, request: Request, verdict: Verdict) -> None:
    """Invalidate what `store_response` has stored."""
    key = request.variant(verdict.vary)
    await config.engine.invalidate(key, key + PART)


async def _with_known_parts(config: Config, key: str, part: StoredResponse) -> tuple[str, StoredResponse | None]:
    """Return a part combined with the stored part of the same response, and the key of the result.

    None: the stored part stays, because the new one is shorter, and adds too little to write both.

    Parameters:
        key: of the whole response.
    """
    engine = config.engine
    known = await engine.store.read(key + PART, RESPONSES)
    if known is not None and is_response(known) and are_of_one(known.value, part):
        span = span_of(known.value, part)
        if span <= min(config.max_body_bytes, _ALWAYS_WRITTEN + _MOST_WRITTEN * len(part.body)):
            part = combined(known.value, part)
        elif len(known.value.body) > len(part.body) and decide(known, engine.clock()).serve:
            return key + PART, None
    return (key if part.complete is None else key + PART), part


async def _add_variant(
    config: Config, request: Request, load: Load, verdict: Verdict, key: str, *, put: bool
) -> Varies:
    """Return the variants of the URL with one more; if they are too many, invalidate some.

    Parameters:
        verdict: of the new variant.
        key: of the new variant.
        put: store the result, if it is new. If others change the variants again and again meanwhile, the new one is
            invalidated, because a variant in no list would never be removed as the oldest.
    """
    engine = config.engine
    url, mine = request.key, key[len(request.key) :]
    # Requests of this process take turns.
    async with config.variants.lock(url):
        for _ in range(_MOST_TRIES):
            entry = engine.store.peek(url) or await engine.store.read(url, RESPONSES)
            before = entry.value if entry is not None and type(entry.value) is Varies else NO_VARIES
            known = before.variants if before.names == verdict.vary else ()
            until = _names_until(verdict, before, load.began)
            version = 0 if entry is None else entry.version
            policy = Policy(_VARIES_FOR, tags=request.tags)
            if mine in known:
                varies = Varies(verdict.vary, known, until)
                if put and until != before.until:
                    # If others have changed it meanwhile, the next response does this.
                    await engine.put(url, RESPONSES, varies, policy, load.snapshot, known=version)
                return varies
            kept, gone = config.variants.make_room(url, known)
            varies = Varies(verdict.vary, (*kept, mine), until)
            if not put or await engine.put(url, RESPONSES, varies, policy, load.snapshot, known=version):
                for old in gone:
                    await engine.invalidate(url + old)
                return varies
        await engine.invalidate(key)
        return varies


def _names_until(verdict: Verdict, varies: Varies, began: float) -> tuple[float, ...]:
    """Return, for each field that selects a response, until when one that names it may be served.

    All processes read again what changes here, so it is put off until half of the time is over.

    Parameters:
        verdict: of the response.
        varies: what is known of the URL so far.
        began: wall clock, seconds, when the app was asked.
    """
    policy = verdict.policy
    assert policy is not None
    served_for = policy.fresh_for + max(policy.stale_for, verdict.stale_if_error) or policy.keep_for
    known = dict(zip(varies.names, varies.until, strict=False))
    until = {name: known.get(name, 0.0) for name in verdict.vary}
    for name in until:
        if name not in verdict.unnamed and until[name] < began + served_for / 2:
            until[name] = began + served_for
    return tuple(until.values())

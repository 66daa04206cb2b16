"""The storing of a captured response, among the variants and parts of its URL."""

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

# How long swr stores the fields that a URL varies by, in seconds. After that it learns them from the next load.
_VARIES_FOR: Final = 7 * 86400.0
# How often swr tries to store the list of variants, which other processes change, too.
_MOST_TRIES: Final = 3
# Combining writes the whole result, which may have up to `_ALWAYS_WRITTEN` bytes plus `_MOST_WRITTEN` times the part.
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
        load: the load that ran the app.
        response: the response, or a part of one.
        verdict: how long swr may serve the response, and which request fields select it.
        is_apart: whether the load's key is that of a range, or of requests with the same unknown fields.
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
    # The URL varies by fields that were not known. The waiting requests get these and look up again.
    varies = await _add_variant(config, request, load, verdict, key, put=load.flight.key != request.key)
    await load.store(varies, Policy(_VARIES_FOR, tags=request.tags))
    return True


async def withdraw(config: Config, request: Request, verdict: Verdict) -> None:
    """Invalidate the response that `store_response` has stored."""
    key = request.variant(verdict.vary)
    await config.engine.invalidate(key, key + PART)


async def _with_known_parts(config: Config, key: str, part: StoredResponse) -> tuple[str, StoredResponse | None]:
    """Return a part combined with the stored part of the same response, and the key of the result.

    The part is None if the stored one stays: it is longer, and combining both would write too much for the new one.

    Parameters:
        key: the key of the whole response.
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
    """Return the variants of the URL with one more; if there are too many, invalidate some.

    Parameters:
        verdict: the verdict on the new variant.
        key: the key of the new variant.
        put: store the list, if it has changed. If other processes change it at each try, swr invalidates the new
            variant, because swr could never remove a variant that is in no list.
    """
    engine = config.engine
    url, mine = request.key, key[len(request.key) :]
    # Requests of this process change the list one after the other.
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
                    # No retry if another process has changed the list: the next response updates the times.
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
    """Return, for each field that selects a response, until when a response that names the field may be served.

    Each change makes all processes read the list again, so a time is extended only when less than half of it is left.

    Parameters:
        verdict: the verdict on the response.
        varies: the stored list of the URL's variants.
        began: when the run of the app began; wall clock, seconds.
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

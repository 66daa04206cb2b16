"""The life of one key: its entry, its lease, and its last events."""

import time
from typing import Any

from swr.core.decision import decide
from swr.dashboard.hub import Hub
from swr.dashboard.keys import Keys
from swr.dashboard.moments import CallSeen, EntryLife, Happening, KeyLife, LeaseLife, Moment
from swr.engine.engine import Engine
from swr.entry import Entry, State
from swr.errors import StoreUnavailable
from swr.reports.reporter import Reporter, cleaned
from swr.stores.redis.inspection import Inspection, inspect
from swr.stores.redis.store import RedisStore

_MOST_MOMENTS = 50
_KINDS = {"fresh": "hit", "stale": "stale", "missing": "missing"}
_HAPPENED = {"LoadFailed": "failed", "Invalidated": "invalidated"}


async def life_of(key: str, engine: Engine, reporter: Reporter, hub: Hub, keys: Keys) -> KeyLife:
    """Return the entry, the lease and the last events of a key, without its value."""
    slot = engine.store.peek(key)
    entry = None if slot is None else _entry_in_memory(slot, engine.clock())
    lease, note = _lease_in_memory(key, engine), ""
    if hub.store is not None:
        try:
            found = await _found(hub.store, key)
            entry, lease = _entry_in_redis(found) or entry, _lease_in_redis(found) or lease
        except StoreUnavailable as error:
            note = f"Only this process's memory is shown: {error}"
    shown = keys.shown(key)
    return {
        "now": time.time(),
        "key": shown,
        "row": reporter.row_of(key) or None,
        "entry": entry,
        "lease": lease,
        "moments": _moments(shown["id"], hub),
        "note": note,
    }


async def _found(store: RedisStore, key: str) -> Inspection:
    return await inspect(store, key)


def _entry_in_memory(entry: Entry[Any], now: float) -> EntryLife:
    decision = decide(entry, now)
    state = "error" if decision.fallback and not decision.serve else decision.state.value
    return {
        "state": state,
        "loaded_at": entry.created_at,
        "fresh_until": entry.fresh_until,
        "stale_until": entry.stale_until,
        "error_until": entry.error_until,
        "version": entry.version,
        "bytes": None,
        "tags": [cleaned(tag) for tag in entry.tags],
        "marked_stale": entry.is_marked,
        "layer": "l1",
    }


def _entry_in_redis(found: Inspection) -> EntryLife | None:
    if found.created_at is None or found.fresh_until is None:
        return None
    is_fallback = found.state is State.MISSING and found.why is not None and "fails" in found.why
    return {
        "state": "error" if is_fallback else found.state.value,
        "loaded_at": found.created_at,
        "fresh_until": found.fresh_until,
        "stale_until": found.stale_until or found.fresh_until,
        "error_until": found.error_until or found.fresh_until,
        "version": found.version or 0,
        "bytes": found.bytes,
        "tags": [cleaned(tag) for tag in found.tags],
        "marked_stale": found.marked_at is not None,
        "layer": "redis",
    }


def _lease_in_memory(key: str, engine: Engine) -> LeaseLife | None:
    left = engine.backoffs.left(key)
    if left > 0 and engine.backoffs.last_error(key) is not None:
        return {"kind": "backoff", "until": time.time() + left, "failures": engine.backoffs.failures(key)}
    if engine.is_loading(key):
        return {"kind": "loading", "until": time.time() + engine.runtime.lease_for, "failures": 0}
    return None


def _lease_in_redis(found: Inspection) -> LeaseLife | None:
    lease = found.lease
    if lease is None:
        return None
    kind = "loading" if "holder" in lease else "backoff"
    return {"kind": kind, "until": time.time() + lease["ends_in"], "failures": int(lease.get("failures", 0))}


def _moments(name: str, hub: Hub) -> list[Moment]:
    """Return the last reads and events of the key with an id."""
    found: list[Moment] = []
    calls: list[CallSeen] = hub.calls.since(0)[0]
    happenings: list[Happening] = hub.happenings.since(0)[0]
    for call in calls:
        if call["key"] is not None and call["key"]["id"] == name and call["state"] in _KINDS:
            found.append(_moment(call))
    for event in happenings:
        if event["key"] is not None and event["key"]["id"] == name and event["kind"] in _HAPPENED:
            kind = "marked stale" if "marked stale" in event["text"] else _HAPPENED[event["kind"]]
            found.append({"t": event["t"], "kind": kind, "text": event["text"]})
    return sorted(found, key=lambda moment: moment["t"])[-_MOST_MOMENTS:]


def _moment(call: CallSeen) -> Moment:
    took = "" if call["seconds"] is None else f" in {_duration(call['seconds'])}"
    if call["layer"] == "load":
        return {"t": call["t"], "kind": "loaded", "text": f"loaded{took}"}
    words = {"l1": "from this memory", "redis": "from Redis", "flight": "waited for another's load"}
    text = words.get(call["layer"] or "", "")
    return {"t": call["t"], "kind": _KINDS[call["state"]], "text": f"{text}{took}".strip()}


def _duration(seconds: float) -> str:
    return f"{seconds:.2f} s" if seconds >= 1 else f"{seconds * 1000:.3g} ms"

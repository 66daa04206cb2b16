"""What lies in Redis for one key, for whoever has to find out why a reader was given what he was given."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from swr.core import codec as frames
from swr.core.codec import VERSION_DIGITS
from swr.core.decision import decide
from swr.entry import Entry, State
from swr.errors import CodecError
from swr.stores.redis.store import RedisStore


class Inspection(msgspec.Struct, frozen=True):
    """What was found.

    Parameters:
        key: which was asked for.
        state: what a reader without anything in memory would be given now.
        why: why that is nothing, if there is something.
        age: seconds since its load began.
        created_at, fresh_until, stale_until, error_until, keep_until: see `Entry`; seconds since 1970.
        version: its fencing number, or that of its invalidation.
        bytes: how long the value is.
        tags, validator, took: see `Entry`.
        lease: who loads, or since how many failures nobody does, and for how long.
    """

    key: str
    state: State
    why: str | None = None
    age: float | None = None
    created_at: float | None = None
    fresh_until: float | None = None
    stale_until: float | None = None
    error_until: float | None = None
    keep_until: float | None = None
    version: int | None = None
    bytes: int | None = None
    tags: tuple[str, ...] = ()
    validator: str | None = None
    took: float | None = None
    lease: dict[str, Any] | None = None


async def inspect(store: RedisStore, key: str) -> Inspection:
    """Return what lies there for `key`; its value is not looked at.

    Raises:
        StoreUnavailable: no answer.
    """
    frame, held, left = await store.look(key)
    lease = _lease(held, max(0, left) / 1000)
    if not frames.is_entry(frame):
        known = frames.is_tombstone(frame)
        why = "it was invalidated" if known else "it is not swr's" if frame else None
        return Inspection(key, State.MISSING, why, version=int(frame[:VERSION_DIGITS]) if known else None, lease=lease)
    try:
        entry = frames.decode(key, frame, None)
    except CodecError as error:
        return Inspection(key, State.MISSING, f"it cannot be read: {error}", lease=lease)
    now = time.time()
    state, why = _state(entry, now, store)
    return Inspection(
        key,
        state,
        why,
        max(0.0, now - entry.created_at),
        entry.created_at,
        entry.fresh_until,
        entry.stale_until,
        entry.error_until,
        entry.keep_until,
        entry.version,
        entry.value,
        entry.tags,
        entry.validator,
        entry.took,
        lease,
    )


def _state(entry: Entry[int], now: float, store: RedisStore) -> tuple[State, str | None]:
    if not store.tag_versions.admits(entry.tag_version, entry.tags):
        return State.MISSING, "one of its tags was invalidated, or everything was"
    if entry.absent:
        return State.MISSING, "its batch loader has found that there is none"
    decision = decide(entry, now)
    if decision.fallback and not decision.serve:
        return decision.state, "it is served only if its loader fails"
    return decision.state, None if decision.serve else "its time is over"


def _lease(text: bytes, left: float) -> dict[str, Any] | None:
    """What a lease's key says (see `swr.stores.redis.scripts`)."""
    kind, number, rest = text[:1], text[1 : 1 + VERSION_DIGITS], text[1 + VERSION_DIGITS :].decode("latin-1")
    if kind == b"l":
        return {"holder": rest, "version": int(number), "ends_in": left}
    if kind == b"p":
        return {"failures": int(rest), "ends_in": max(0.0, int(number) / 1e6 - time.time())}
    return None


def told(found: Inspection) -> str:
    """Return it as lines for people."""
    lines = [("key", found.key), ("state", f"{found.state}{f' ({found.why})' if found.why else ''}")]
    if found.created_at is not None:
        lines += [
            ("age", f"{found.age:.1f} s, loaded in {found.took:.3f} s"),
            *(
                (name.replace("_", " "), _moment(getattr(found, name)))
                for name in ("created_at", "fresh_until", "stale_until", "error_until", "keep_until")
            ),
            ("bytes", f"{found.bytes:,}"),
            ("tags", ", ".join(found.tags) or "none"),
            ("validator", found.validator or "none"),
        ]
    if found.version is not None:
        lines.append(("version", str(found.version)))
    lease = found.lease
    if lease is None:
        lines.append(("lease", "none"))
    elif "holder" in lease:
        lines.append(("lease", f"held by {lease['holder']}, for {lease['ends_in']:.1f} s unless it is renewed"))
    else:
        lines.append(("lease", f"loads have failed: {lease['failures']}; the next comes in {lease['ends_in']:.1f} s"))
    return "\n".join(f"{name:<12} {text}" for name, text in lines)


def _moment(at: float) -> str:
    """Return a time as text, with the seconds until it or since it."""
    seconds = at - time.time()
    distance = f"in {seconds:.1f} s" if seconds >= 0 else f"{-seconds:.1f} s ago"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC, {distance}"

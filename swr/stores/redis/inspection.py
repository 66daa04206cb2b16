"""Inspects the entry of a key in Redis, to explain why a caller received what it did."""

import time
from datetime import UTC, datetime
from typing import Any

import msgspec

from swr.core import frames
from swr.core.decision import decide
from swr.core.frames import VERSION_DIGITS
from swr.core.keys import one_line
from swr.entry import Entry, State, marked_stale
from swr.errors import CodecError
from swr.stores.redis.store import RedisStore


class Inspection(msgspec.Struct, frozen=True):
    """The entry of a key in Redis, as it was found.

    Parameters:
        key: the key that was inspected.
        state: the state that a reader with an empty local cache would get now.
        why: why a reader would get no value although something is stored, or that the entry was marked stale.
        age: seconds since the load of the entry began.
        created_at, fresh_until, stale_until, error_until, keep_until: see `Entry`; seconds since 1970.
        version: the version of the entry, or that of its invalidation.
        bytes: the length of the value in bytes.
        tags, validator, took: see `Entry`.
        loader: identifies its loader or route; see `Entry`.
        marked_at: when it was marked stale, in seconds since 1970; None: never.
        lease: who loads, or how many loads have failed, and how long the lease or the backoff lasts.
        fingerprint: the fingerprint of the value's type.
        others: inspections of the values of other types, which other versions of the application read.
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
    loader: str | None = None
    marked_at: float | None = None
    lease: dict[str, Any] | None = None
    fingerprint: str | None = None
    others: "tuple[Inspection, ...]" = ()


async def inspect(store: RedisStore, key: str, fingerprint: str | None = None) -> Inspection:
    """Return an inspection of `key`; the value itself is not decoded.

    Parameters:
        fingerprint: that of the type to inspect; None: the type that was stored last, with the others in `others`.

    Raises:
        StoreUnavailable: the server did not answer.
    """
    data, leases, now = await store.look(key)
    held = {name: lease for name, text in leases.items() if (lease := _lease(text, now)) is not None}
    mark = frames.mark_in(data)
    found = [_inspection(key, frame, held.pop(name, None), name, store, mark) for name, frame in frames.frames_in(data)]
    alone = [Inspection(key, State.MISSING, lease=lease, fingerprint=name) for name, lease in held.items()]
    if not found:
        # The data are not an entry of any type, so each type gets the same reason.
        known = frames.is_tombstone(data)
        unknown = "it cannot be read" if frames.is_entry(data) else "it is not swr's" if data else None
        version = int(data[:VERSION_DIGITS]) if known else None
        nothing = Inspection(key, State.MISSING, "it was invalidated" if known else unknown, version=version)
        alone = [msgspec.structs.replace(nothing, **_who(one)) for one in alone] or [nothing]
    all_types = found + alone
    if fingerprint is not None:
        return next((one for one in all_types if one.fingerprint == fingerprint), Inspection(key, State.MISSING))
    return msgspec.structs.replace(all_types[0], others=tuple(all_types[1:]))


def of_data(store: RedisStore, key: str, data: bytes) -> Inspection | None:
    """Return an inspection of `key` from data that were read before, without leases; None if there is no entry."""
    mark = frames.mark_in(data)
    found = [_inspection(key, frame, None, name, store, mark) for name, frame in frames.frames_in(data)]
    return msgspec.structs.replace(found[0], others=tuple(found[1:])) if found else None


def _who(found: Inspection) -> dict[str, Any]:
    return {"fingerprint": found.fingerprint, "lease": found.lease}


def _inspection(
    key: str, frame: bytes, lease: dict[str, Any] | None, fingerprint: str, store: RedisStore, mark: int
) -> Inspection:
    """Return the inspection of the entry of one type.

    Parameters:
        mark: the version at which the entries of the key were marked stale; 0: never.
    """
    try:
        entry = frames.decode(key, frame, None, store.packing)
    except CodecError as error:
        why = f"it cannot be read: {error}"
        return Inspection(key, State.MISSING, why, lease=lease, fingerprint=fingerprint)
    mark = max(mark if mark > entry.version else 0, store.tag_versions.marked_at(entry))
    if mark:
        entry = marked_stale(entry, mark)
    now = time.time()
    state, reason = _state(entry, now, store)
    return Inspection(
        key,
        state,
        reason,
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
        entry.loader or None,
        entry.marked_at / 1e6 if entry.is_marked else None,
        lease,
        fingerprint,
    )


def _state(entry: Entry[int], now: float, store: RedisStore) -> tuple[State, str | None]:
    if not store.tag_versions.admits_entry(entry):
        return State.MISSING, "one of its tags was invalidated, or everything was"
    if entry.absent:
        return State.MISSING, "its batch loader has found that there is none"
    decision = decide(entry, now)
    if entry.is_marked and decision.serve:
        return decision.state, "it was marked stale"
    if decision.fallback and not decision.serve:
        return decision.state, "it is served only if its loader fails"
    return decision.state, None if decision.serve else "its time is over"


def _lease(text: bytes, now: float) -> dict[str, Any] | None:
    """Return the parts of a lease or pause (see `swr.stores.redis.scripts`).

    Return None if the lease has ended, or if swr has not written the text.
    """
    kind, ends, rest = text[:1], text[1 : 1 + VERSION_DIGITS], text[1 + VERSION_DIGITS :].decode("latin-1")
    version, left = rest[:VERSION_DIGITS], int(ends) / 1e6 - now if ends.isdigit() else -1.0
    if kind == b"l" and left > 0 and version.isdecimal():
        return {"holder": rest[VERSION_DIGITS:], "version": int(version), "ends_in": left}
    if kind == b"p" and ends.isdigit() and rest.isdecimal():
        return {"failures": int(rest), "ends_in": max(0.0, left)}
    return None


def is_nothing(found: Inspection) -> bool:
    """Return whether Redis has nothing for the key: no entry, no lease or pause, and no tombstone."""
    lies_there = found.why is not None or found.version is not None or found.created_at is not None
    return not (lies_there or found.lease is not None or found.others)


def told(found: Inspection) -> str:
    """Return an inspection as lines of text for people."""
    lines = [("key", found.key), ("state", f"{found.state}{f' ({found.why})' if found.why else ''}")]
    if found.created_at is not None:
        lines += [
            ("age", f"{found.age:.1f} s, loaded in {found.took:.3f} s"),
            *(
                (name.replace("_", " "), moment(getattr(found, name)))
                for name in ("created_at", "fresh_until", "stale_until", "error_until", "keep_until")
            ),
            *([("marked stale", moment(found.marked_at))] if found.marked_at is not None else []),
            ("bytes", f"{found.bytes:,}"),
            ("tags", ", ".join(found.tags) or "none"),
            ("validator", found.validator or "none"),
        ]
    if found.version is not None:
        lines.append(("version", str(found.version)))
    if found.fingerprint is not None:
        lines.append(("type", found.fingerprint))
    lease = found.lease
    if lease is None:
        lines.append(("lease", "none"))
    elif "holder" in lease:
        lines.append(("lease", f"held by {lease['holder']}, for {lease['ends_in']:.1f} s unless it is renewed"))
    else:
        lines.append(("lease", f"loads have failed: {lease['failures']}; the next comes in {lease['ends_in']:.1f} s"))
    shown = "\n".join(f"{name:<12} {one_line(text)}" for name, text in lines)
    return "\n\n".join([shown, *map(told, found.others)])


def moment(at: float) -> str:
    """Return a time as text, with the seconds until it or since it; "never" for 0."""
    if not at:
        return "never"
    seconds = at - time.time()
    distance = f"in {seconds:.1f} s" if seconds >= 0 else f"{-seconds:.1f} s ago"
    return f"{datetime.fromtimestamp(at, UTC):%Y-%m-%d %H:%M:%S} UTC, {distance}"

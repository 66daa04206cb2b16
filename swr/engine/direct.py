"""Store a value without a flight: the middleware's variants, and responses that pass through it."""

from typing import Any

import anyio

from swr.core.codec import Codec
from swr.engine.flights import Flights
from swr.engine.load import Snapshot
from swr.engine.runtime import RELEASED_WITHIN, Runtime
from swr.entry import Entry, stamp
from swr.errors import LeaseLost, StoreUnavailable
from swr.events import CommitRejected, Committed
from swr.policy import Policy
from swr.stores.base import NEWEST, Lease


async def put(
    runtime: Runtime,
    flights: Flights,
    key: str,
    codec: Codec,
    value: Any,
    policy: Policy,
    snapshot: Snapshot,
    known: int = NEWEST,
) -> bool:
    """Store one more value under a key of its own; return False if something newer is stored or was invalidated.

    Parameters:
        runtime: of the engine.
        flights: those under way.
        key: where the value is stored.
        codec: how it is written.
        value: what is stored.
        policy: how long it may be served.
        snapshot: what was known when the value was loaded.
        known: the version of the entry that it is to replace, if nothing newer may have come.
    """
    lease = Lease(key, runtime.new_token(), 0, 0)
    store, publish = runtime.store, runtime.events.publish
    try:
        answer = await store.acquire(key, lease.token, runtime.lease_for, known, codec, force=True, tags=policy.tags)
        if not isinstance(answer, Lease):
            publish(CommitRejected, key)
            return False
        lease = answer
        if snapshot.heard is not None and await _may_be_outdated(runtime, policy.tags, snapshot.heard):
            await store.release(lease)
            publish(CommitRejected, key)
            return False
        await store.commit(lease, _stamped(value, policy, snapshot, lease.version), codec)
        publish(Committed, key, lease.version)
    except LeaseLost:
        publish(CommitRejected, key)
        return False
    except StoreUnavailable:
        # No lease fences this value; only the notifications of this process can.
        flight = snapshot.flight
        if snapshot.fence != flights.fence or (flight is not None and not flights.is_current(flight)):
            publish(CommitRejected, key)
            return False
        store.keep(key, _stamped(value, policy, snapshot, 0), codec)
    except BaseException:
        # The caller was cancelled. Its lease would block every other load of the key.
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASED_WITHIN):
            await store.release(lease)
        raise
    return True


def _stamped(value: Any, policy: Policy, snapshot: Snapshot, version: int) -> Entry[Any]:
    return stamp(value, policy, snapshot.began, version, snapshot.tag_version, loader=snapshot.origin)


async def _may_be_outdated(runtime: Runtime, tags: tuple[str, ...], since: int) -> bool:
    """Return whether these tags may have been invalidated after a time, before the value was announced."""
    try:
        return await runtime.store.was_passed_over(tags, since)
    except StoreUnavailable:
        return True

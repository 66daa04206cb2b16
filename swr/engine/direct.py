"""Store a value without a flight: variants of a response, and responses that pass through the middleware."""

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
    """Store a value that has no flight; return False if the store has a newer entry, or an invalidation came.

    Parameters:
        runtime: the runtime of the engine.
        flights: the flights under way.
        key: the key to store the value under.
        codec: how the value is written.
        value: the value to store.
        policy: how long the value may be served.
        snapshot: the state of this process when the load of the value began.
        known: the value does not replace an entry that is newer than this version.
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
        # No lease fences this value. Only notifications that this process received can show that it is outdated.
        flight = snapshot.flight
        if snapshot.fence != flights.fence or (flight is not None and not flights.is_current(flight)):
            publish(CommitRejected, key)
            return False
        store.keep(key, _stamped(value, policy, snapshot, 0), codec)
    except BaseException:
        # The caller was cancelled. Without this, its lease would block every other load of the key.
        with anyio.CancelScope(shield=True), anyio.move_on_after(RELEASED_WITHIN):
            await store.release(lease)
        raise
    return True


def _stamped(value: Any, policy: Policy, snapshot: Snapshot, version: int) -> Entry[Any]:
    return stamp(value, policy, snapshot.began, version, snapshot.tag_version, loader=snapshot.origin)


async def _may_be_outdated(runtime: Runtime, tags: tuple[str, ...], since: int) -> bool:
    """Return whether an invalidation after `since` may have passed over `tags`, which were not announced yet."""
    try:
        return await runtime.store.was_passed_over(tags, since)
    except StoreUnavailable:
        return True

"""Tests of everything that a store must do."""

from collections.abc import Awaitable
from typing import Any

import anyio

from swr.core.codec import ANY
from swr.entry import Entry, stamp
from swr.errors import LeaseLost
from swr.policy import Policy
from swr.stores.base import NEWEST, Held, Lease, LeasingStore
from swr.stores.tag_versions import ALL
from swr.testing.clock import START


class StoreConformance:
    """Tests for pytest of everything that a store must do: inherit them, and provide a fixture `store`, an open store.

    The store's clock may be real; no test waits longer than it must for a lease to expire.
    """

    policy = Policy(60, 600, 3600, tags=("t1", "t2"))

    async def take(self, store: LeasingStore, key: str, token: str = "a", ttl: float = 30.0) -> Lease:
        """Acquire a lease that must be free."""
        lease = await store.acquire(key, token, ttl, NEWEST, ANY)
        assert isinstance(lease, Lease), lease
        return lease

    async def is_refused(self, operation: Awaitable[None]) -> bool:
        """Return whether an operation raises LeaseLost."""
        try:
            await operation
        except LeaseLost:
            return True
        return False

    async def put(self, store: LeasingStore, key: str, value: Any, tags: tuple[str, ...] = ()) -> Entry[Any]:
        """Take a lease and commit a value; return its entry."""
        lease = await self.take(store, key)
        entry = stamp(value, Policy(60, 600, tags=tags), START, lease.version, lease.tag_version)
        await store.commit(lease, entry, ANY)
        return entry

    async def test_new_store_holds_no_entry(self, store: LeasingStore) -> None:
        """An entry that was never stored is None, and None is not an error."""
        assert await store.read("k", ANY) is None
        assert store.peek("k") is None

    async def test_read_returns_committed_entry_unchanged(self, store: LeasingStore) -> None:
        """Deadlines, version, tag version and tags come back as they were stamped."""
        lease = await self.take(store, "k")
        entry = stamp({"a": [1, None, "x"]}, self.policy, 1_800_000_000.25, lease.version, lease.tag_version)
        await store.commit(lease, entry, ANY)
        assert await store.read("k", ANY) == entry

    async def test_none_is_stored_as_a_value(self, store: LeasingStore) -> None:
        """A stored None is an entry."""
        await self.put(store, "k", None)
        entry = await store.read("k", ANY)
        assert entry is not None
        assert entry.value is None

    async def test_entries_of_unusual_keys_are_kept_apart(self, store: LeasingStore) -> None:
        """Odd keys are stored apart, like all others."""
        odd = ["a", "{a}", "}x", "a:l", "%7Da", "", "일", "a\ud800b", "x" * 500, "x" * 499 + "y", "a b\r\n"]
        for number, key in enumerate(odd):
            await self.put(store, key, number)
        for number, key in enumerate(odd):
            entry = await store.read(key, ANY)
            assert entry is not None
            assert entry.value == number

    async def test_second_token_is_refused_while_the_first_holds_the_lease(self, store: LeasingStore) -> None:
        """A second token is refused, with the time to wait; the first token gets its own lease again."""
        lease = await self.take(store, "k", "a", 30)
        held = await store.acquire("k", "b", 30, 0, ANY)
        assert isinstance(held, Held)
        assert 0 < held.retry_after <= 30
        assert held.failures == 0
        again = await store.acquire("k", "a", 30, 0, ANY)
        assert isinstance(again, Lease)
        assert again.version == lease.version

    async def test_next_token_gets_the_lease_after_its_holder_releases_it(self, store: LeasingStore) -> None:
        """After a release the next token gets the lease; a release with another token has no effect."""
        lease = await self.take(store, "k", "a")
        await store.release(lease._replace(token="b"))
        assert isinstance(await store.acquire("k", "b", 30, 0, ANY), Held)
        await store.release(lease)
        assert isinstance(await store.acquire("k", "b", 30, 0, ANY), Lease)

    async def test_release_with_version_0_frees_a_lease_whose_grant_was_lost(self, store: LeasingStore) -> None:
        """Version 0 matches any lease with this token."""
        await self.take(store, "k", "a")
        await store.release(Lease("k", "a", 0, 0))
        assert isinstance(await store.acquire("k", "b", 30, 0, ANY), Lease)

    async def test_seize_removes_entry_and_rejects_commit_of_previous_holder(self, store: LeasingStore) -> None:
        """Seizing invalidates the key: earlier loads cannot commit, and the commit of the seized lease counts."""
        old = await self.put(store, "k", 1)
        before = await self.take(store, "k", "a")
        lease = await store.seize("k", "b", 30, ANY)
        assert lease.version > before.version > old.version
        assert await store.read("k", ANY) is None
        entry = stamp(2, Policy(60), START, before.version, before.tag_version)
        assert await self.is_refused(store.commit(before, entry, ANY))
        await store.commit(lease, stamp(2, Policy(60), START, lease.version, lease.tag_version), ANY)
        found = await store.read("k", ANY)
        assert found is not None
        assert (found.value, found.version) == (2, lease.version)

    async def test_entry_of_seized_lease_is_not_read_after_invalidation_or_another_seize(
        self, store: LeasingStore
    ) -> None:
        """An invalidation of the key or of its tag, or another seizure, outdates the entry."""
        for later in (
            lambda: store.invalidate("k"),
            lambda: store.invalidate_tag("t1"),
            lambda: store.seize("k", "b", 30, ANY),
        ):
            lease = await store.seize("k", "a", 30, ANY)
            await later()
            entry = stamp(1, self.policy, START, lease.version, lease.tag_version)
            # A store may accept an entry that a tag has outdated, and ignore the entry in reads.
            await self.is_refused(store.commit(lease, entry, ANY))
            assert await store.read("k", ANY) is None

    async def test_each_new_entry_of_a_key_has_a_greater_version(self, store: LeasingStore) -> None:
        """Every lease of a key has a greater version than the entry before it."""
        versions = [(await self.put(store, "k", number)).version for number in range(20)]
        assert versions == sorted(set(versions))

    async def test_acquire_returns_entry_newer_than_the_known_version_else_a_lease(self, store: LeasingStore) -> None:
        """Acquire returns an entry that is newer than the known one, or the lease if there is none."""
        entry = await self.put(store, "k", 1)
        assert await store.acquire("k", "b", 30, entry.version - 1, ANY) == entry
        assert isinstance(await store.acquire("k", "b", 30, entry.version, ANY), Lease)

    async def test_lease_granted_after_a_refusal_is_newer_than_the_time_of_the_refusal(
        self, store: LeasingStore
    ) -> None:
        """`Held.now` separates values loaded before the request from values loaded after it."""
        lease = await self.take(store, "k", "a")
        held = await store.acquire("k", "b", 30, NEWEST, ANY)
        assert isinstance(held, Held)
        assert lease.version <= held.now
        await store.release(lease)
        assert (await self.take(store, "k", "c")).version > held.now

    async def test_store_clock_separates_earlier_from_later_versions(self, store: LeasingStore) -> None:
        """Values loaded earlier are older than the store's clock, and values loaded later are newer."""
        before = await self.put(store, "k", 1)
        now = await store.now()
        assert before.version <= now
        assert not isinstance(await store.acquire("k", "a", 30, now, ANY), Entry)
        assert (await self.take(store, "other")).version > now
        assert isinstance(store.sent, int)
        assert not store.has_pending

    async def test_concurrent_lease_requests_each_get_their_own_answer(self, store: LeasingStore) -> None:
        """Each caller gets the answer to its own request, whatever other callers get."""
        await self.put(store, "stored", 1)
        await self.take(store, "taken", "somebody")
        answers: dict[str, object] = {}

        async def ask(key: str) -> None:
            answers[key] = await store.acquire(key, f"mine of {key}", 30, 0, ANY)

        async with anyio.create_task_group() as group:
            for key in ("free", "stored", "taken", "free too"):
                group.start_soon(ask, key)
        kinds = {key: type(answer) for key, answer in answers.items()}
        assert kinds == {"free": Lease, "stored": Entry, "taken": Held, "free too": Lease}
        for key in ("free", "free too"):
            lease = answers[key]
            assert isinstance(lease, Lease)
            assert (lease.key, lease.token) == (key, f"mine of {key}")
            await store.commit(lease, stamp(1, self.policy, START, lease.version, lease.tag_version), ANY)

    async def test_commit_without_the_lease_is_rejected(self, store: LeasingStore) -> None:
        """If the lease was released or never held, a commit raises LeaseLost and stores nothing."""
        lease = await self.take(store, "k", "a")
        await store.release(lease)
        for stale in (lease, lease._replace(token="z")):
            entry = stamp(1, self.policy, START, stale.version, stale.tag_version)
            assert await self.is_refused(store.commit(stale, entry, ANY))
        assert await store.read("k", ANY) is None

    async def test_renewal_after_release_raises_lease_lost(self, store: LeasingStore) -> None:
        """The renewal tells a holder that it has lost its lease."""
        lease = await self.take(store, "k", "a")
        await store.renew(lease, 30)
        await store.release(lease)
        assert await self.is_refused(store.renew(lease, 30))

    async def test_invalidation_removes_entry_and_rejects_commit_of_running_load(self, store: LeasingStore) -> None:
        """A load that ran during the invalidation cannot commit; the next load can."""
        await self.put(store, "k", 1)
        lease = await self.take(store, "k", "a")
        await store.invalidate("k")
        assert await store.read("k", ANY) is None
        entry = stamp(2, self.policy, START, lease.version, lease.tag_version)
        assert await self.is_refused(store.commit(lease, entry, ANY))
        assert await store.read("k", ANY) is None
        assert (await self.put(store, "k", 3)).version > lease.version

    async def test_tag_invalidation_removes_only_entries_with_this_tag(self, store: LeasingStore) -> None:
        """Entries with other tags or none stay; entries loaded afterwards count."""
        for key, tags in (("both", ("x", "y")), ("x", ("x",)), ("y", ("y",)), ("none", ())):
            await self.put(store, key, key, tags)
        await store.invalidate_tag("x")
        found = {key: await store.read(key, ANY) is not None for key in ("both", "x", "y", "none")}
        assert found == {"both": False, "x": False, "y": True, "none": True}
        await self.put(store, "x", "again", ("x",))
        assert await store.read("x", ANY) is not None

    async def test_clear_removes_entries_with_and_without_tags(self, store: LeasingStore) -> None:
        """Clear outdates entries with and without tags."""
        await self.put(store, "a", 1, ("x",))
        await self.put(store, "b", 2)
        await store.invalidate_tag(ALL)
        assert await store.read("a", ANY) is None
        assert await store.read("b", ANY) is None

    async def test_entry_whose_tag_is_invalidated_during_its_load_is_not_read(self, store: LeasingStore) -> None:
        """The tag version counts from when the load began, not from when it was committed."""
        lease = await self.take(store, "k", "a")
        await store.invalidate_tag("t1")
        # A store may reject the commit, or ignore the entry in reads.
        await self.is_refused(store.commit(lease, stamp(1, self.policy, START, lease.version, lease.tag_version), ANY))
        assert await store.read("k", ANY) is None
        assert store.peek("k") is None

    async def test_lease_request_after_a_failure_is_refused_with_pause_and_failure_count(
        self, store: LeasingStore
    ) -> None:
        """Each process learns how often loads failed; `force` gets the lease anyway, and the count goes on."""
        lease = await self.take(store, "k", "a")
        await store.release(lease, pause=20)
        held = await store.acquire("k", "b", 30, 0, ANY)
        assert isinstance(held, Held)
        assert held.failures == 1
        assert 0 < held.retry_after <= 20
        forced = await store.acquire("k", "b", 30, 0, ANY, force=True)
        assert isinstance(forced, Lease)
        assert forced.failures == 1
        await store.release(forced, pause=20)
        held = await store.acquire("k", "b", 30, 0, ANY)
        assert isinstance(held, Held)
        assert held.failures == 2

    async def test_announced_invalidation_of_unused_tag_is_remembered_without_a_version(
        self, store: LeasingStore
    ) -> None:
        """A process that stores an entry with the tag later, without an earlier announcement, can detect this."""
        tag, before = "host:a\nurl:/x", store.heard
        newest = store.tag_versions.newest
        await store.invalidate_announced((tag, "host:a\nurl:/y"))
        assert store.tag_versions.newest == newest
        assert await store.was_passed_over((tag,), before)
        assert not await store.was_passed_over((tag,), store.heard)
        assert not await store.was_passed_over(("host:a\nurl:/z",), before)

    async def test_announced_invalidation_outdates_loads_and_entries_with_the_tag(self, store: LeasingStore) -> None:
        """An announced tag gets a version from the moment when the load may begin."""
        tag = "host:a\nurl:/x"
        lease = await store.acquire("k", "a", 30, NEWEST, ANY, tags=(tag, "other"))
        assert isinstance(lease, Lease)
        await store.renew(lease, 30)
        await store.invalidate_announced((tag,))
        entry = stamp(1, Policy(60, tags=(tag,)), START, lease.version, lease.tag_version)
        assert not store.tag_versions.admits(entry.tag_version, entry.tags)
        lease = await store.acquire("k2", "a", 30, NEWEST, ANY, tags=(tag,))
        assert isinstance(lease, Lease)
        await store.commit(lease, stamp(1, Policy(60, tags=(tag,)), START, lease.version, lease.tag_version), ANY)
        assert await store.read("k2", ANY) is not None
        await store.invalidate_announced((tag,))
        assert await store.read("k2", ANY) is None

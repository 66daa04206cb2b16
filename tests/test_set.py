"""A value that its caller has already is stored as if it had been loaded; and what is stored is looked at."""

import asyncio
from typing import Annotated

import anyio
import httpx
import pytest
from fastapi import Depends, FastAPI, HTTPException

from swr import NOT_MODIFIED, Cache, CodecError, ConfigurationError, Fresh, LoadContext, Policy, State
from swr.engine.entries import Value
from swr.engine.repeats import Repeats
from swr.events import CommitRejected, Committed
from swr.middleware import SWRMiddleware
from swr.stores.base import Kind, Notification, StoreRefused
from tests.fleet import POLICY, Job, define, settle
from tests.servers import Server
from tests.test_redis import until

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend():
    return "asyncio"


def value(number, policy=POLICY):
    return Value(number, policy)


class TestSet:
    async def test_set_value_is_returned_by_every_process_without_a_load(self, url):
        async with Cache(url) as one, Cache(url) as other:
            rank = define(one)
            assert await rank("ATL") == [1]
            assert await rank.set([7], "ATL") is True
            assert await rank("ATL") == [7]
            assert rank.calls == ["ATL"]
            if url is not None:
                assert await define(other)(group="ATL") == [7]

    async def test_set_removes_the_older_value_from_other_processes(self, server: Server):
        async with Cache(server.url) as one, Cache(server.url) as other:
            rank, elsewhere = define(one), define(other)
            assert await rank("ATL") == await elsewhere("ATL") == [1]
            assert await rank.set([7], "ATL")
            await until(lambda: other.engine.store.peek("rank:ATL") is None)
            assert await elsewhere("ATL") == [7]
            assert elsewhere.calls == []

    async def test_set_value_has_the_policy_tags_and_age_of_a_loaded_one(self, cache, clock):
        rank = define(cache, tags=("group:{group}", "all"))
        await rank.set([7], "ATL")
        clock.advance(10)
        outcome = await rank.outcome("ATL")
        assert (outcome.value, outcome.state, outcome.age) == ([7], State.FRESH, 10)
        clock.advance(51)
        assert (await rank.outcome("ATL")).state is State.STALE
        for tag in ("group:ATL", "all"):
            await rank.set([8], "ATL")
            await cache.invalidate_tag(tag)
            assert await rank.peek("ATL") is None

    async def test_fresh_overrides_duration_tags_and_validator_of_a_set_value(self, cache, clock):
        seen = []

        @cache.cached("asks", fresh_for=60, tags=("a",))
        async def asks(context: LoadContext[int]) -> int | Fresh[int]:
            seen.append(context.validator)
            return 2

        await asks.set(Fresh(1, fresh_for=5, tags=("b",), validator="v1"))
        await cache.invalidate_tag("a")
        assert await asks() == 1
        clock.advance(5)
        assert await asks() == 2
        await asks.set(Fresh(3, tags=("b",), validator="v2"))
        await cache.invalidate_tag("b")
        assert await asks() == 2
        await asks.set(Fresh(3, validator="v3"))
        await asks.refresh()
        assert seen[-1] == "v3"

    @pytest.mark.parametrize("answer", [NOT_MODIFIED, "coroutine"])
    async def test_set_of_not_modified_or_a_coroutine_is_refused_and_changes_nothing(self, cache, answer):
        rank = define(cache)
        await rank("ATL")
        if answer == "coroutine":
            answer = asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="is not a value for 'rank:ATL'"):
            await rank.set(answer, "ATL")
        assert await rank("ATL") == [1]
        if answer is not NOT_MODIFIED:
            answer.close()

    async def test_set_of_a_value_that_cannot_be_stored_raises_and_leaves_no_older_value(self, server: Server):
        async with Cache(server.url) as cache:
            rank = define(cache)
            await rank("ATL")
            with pytest.raises(CodecError):
                await rank.set(["x"], "ATL")
            # Nor a lease for which the next reader would wait.
            assert await rank("ATL") == [2]

    async def test_set_with_copy_stores_a_copy_of_the_value(self, cache):
        rank, mine = define(cache, copy=True), [7]
        await rank.set(mine, "ATL")
        mine.append(8)
        assert await rank("ATL") == [7]
        (await rank.peek("ATL")).value.append(8)
        assert await rank("ATL") == [7]

    async def test_method_loader_has_set_and_peek(self, cache):
        class Service:
            @cache.cached("s:{group}", fresh_for=60, ignore=("self",))
            async def rank(self, group: str) -> int:
                return 1

        service = Service()
        assert await service.rank.set(5, "ATL")
        assert await service.rank("ATL") == 5
        assert (await service.rank.peek("ATL")).value == 5

    async def test_jitter_shortens_a_set_value_and_the_load_time_is_kept(self, two, clock):
        engine = two[0].engine
        job = Job()

        async def slow():
            clock.advance(3)

        job.before_store = slow
        await engine.fetch("k", job)
        await engine.entries.set("k", job.codec, value(7, Policy(100, jitter=0.5)))
        entry = two[0].store.peek("k")
        assert (entry.fresh_until - entry.created_at, entry.took) == (0, 3)

    async def test_value_set_by_key_is_found_by_get_or_load_and_peek(self, url):
        async with Cache(url) as cache:
            policy = Policy(fresh_for=60)

            async def load() -> dict[str, int]:
                return {"a": 2}

            assert await cache.set("k", {"a": 1}, policy, returns=dict[str, int])
            assert (await cache.get_or_load("k", load, policy)).value == {"a": 1}
            assert (await cache.peek("k", returns=dict[str, int])).value == {"a": 1}
            assert await cache.set("u", Fresh(1, fresh_for=5), policy)
            assert (await cache.get_or_load("u", lambda: 2, policy)).value == 1
            assert await cache.peek("nothing") is None

    async def test_set_or_peek_with_an_invalid_key_or_policy_is_refused(self, cache):
        with pytest.raises(ConfigurationError, match="not a string"):
            await cache.set(1, 1, Policy(1))
        with pytest.raises(ConfigurationError, match="not a Policy"):
            await cache.set("k", 1, 60)
        with pytest.raises(ConfigurationError, match="not a string"):
            await cache.peek(1)

    async def test_set_emits_a_committed_event(self, cache):
        rank, events = define(cache), []
        cache.subscribe(events.append, Committed, CommitRejected)
        await rank.set([7], "ATL")
        assert [(type(event), event.key) for event in events] == [(Committed, "rank:ATL")]


class TestOff:
    async def test_set_in_a_disabled_block_stores_nothing_and_removes_the_older_value(self, cache):
        rank = define(cache)
        await rank("ATL")
        with cache.disabled():
            assert await rank.peek("ATL") is None
            assert await rank.set([7], "ATL") is False
        assert await rank.peek("ATL") is None

    async def test_set_and_peek_do_nothing_in_a_cache_that_is_always_off(self):
        async with Cache(enabled=False) as cache:
            rank = define(cache)
            assert await rank.set([7], "ATL") is False
            assert await rank.peek("ATL") is None
            await rank.mark_stale("ATL")
            await rank.invalidate_all()
            assert await rank("ATL") == [1]


class TestFence:
    @pytest.fixture(params=["asyncio", "trio"])
    def anyio_backend(self, request):
        return request.param

    async def test_load_begun_before_a_set_does_not_overwrite_its_value(self, two):
        one, other = two
        job = Job()
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            answers = []

            async def read():
                answers.append((await one.engine.fetch("k", job)).value)

            group.start_soon(read)
            await job.begun.wait()
            assert await other.engine.entries.set("k", job.codec, value(7))
            job.gate.set()
        # Who waited for that load gets what is stored.
        assert answers == [7]
        assert (await one.engine.fetch("k", job)).value == 7
        assert job.runs == 1

    async def test_refresh_begun_before_a_set_does_not_overwrite_its_value(self, two, clock):
        one, _ = two
        await one.engine.fetch("k", Job())
        clock.advance(61)
        job = Job(lambda run: 2)
        job.gate = anyio.Event()
        assert (await one.engine.fetch("k", job)).state is State.STALE
        await job.begun.wait()
        assert await one.engine.entries.set("k", job.codec, value(7))
        job.gate.set()
        await settle()
        for process in two:
            outcome = await process.engine.fetch("k", job)
            assert (outcome.value, outcome.state) == (7, State.FRESH)

    async def test_reader_waiting_for_the_lease_gets_the_set_value(self, two):
        one, other = two
        job = Job()
        job.gate = anyio.Event()
        mine = Job()
        async with anyio.create_task_group() as group:
            group.start_soon(one.engine.fetch, "k", job)
            await job.begun.wait()
            answers = []

            async def read():
                answers.append((await other.engine.fetch("k", mine)).value)

            group.start_soon(read)
            await settle()
            assert await other.engine.entries.set("k", job.codec, value(7))
            await settle()
            assert answers == [7]
            job.gate.set()
        assert mine.runs == 0

    @pytest.mark.parametrize("which", ["key", "tag", "clear", "set"])
    async def test_invalidation_or_another_set_during_a_set_rejects_its_commit(self, two, which):
        one, other = two
        policy = Policy(60, tags=("t",))
        events = []
        one.engine.events.subscribe(events.append, (CommitRejected,))

        async def later():
            one.link.before.clear()
            if which == "set":
                await other.engine.entries.set("k", Job.codec, value(8, policy))
            elif which == "key":
                await other.engine.invalidate("k")
            else:
                await other.engine.invalidate_tag("t" if which == "tag" else "")

        one.link.before["commit"] = later
        assert await one.engine.entries.set("k", Job.codec, value(7, policy)) is False
        assert [event.key for event in events] == ["k"]
        await settle()
        for process in two:
            found = await process.engine.entries.peek("k", Job.codec)
            assert (found and found.value) == (8 if which == "set" else None)

    async def test_cancelled_set_leaves_no_lease(self, two):
        one, _ = two
        scope = anyio.CancelScope()

        async def cancel():
            scope.cancel()

        one.link.before["commit"] = cancel
        with scope:
            await one.engine.entries.set("k", Job.codec, value(7))
            await anyio.sleep(60)
        job = Job()
        assert (await one.engine.fetch("k", job)).value == 7


class TestAnOutage:
    async def test_set_value_serves_this_process_in_an_outage_and_all_load_afterwards(self, two):
        one, other = two
        job = Job(lambda run: run + 10)
        for process in two:
            await process.engine.fetch("k", job)
        one.link.set_down(True)
        assert await one.engine.entries.set("k", job.codec, value(7)) is False
        assert (await one.engine.fetch("k", job)).value == 7
        # The others cannot know of it.
        assert (await other.engine.fetch("k", job)).value == 11
        one.link.set_down(False)
        await settle()
        assert (await other.engine.fetch("k", job)).value == 12
        assert (await one.engine.fetch("k", job)).value == 12

    @pytest.mark.parametrize("what", ["seize", "commit"])
    async def test_lost_reply_of_a_set_leaves_no_older_value_and_no_lease(self, two, what):
        one, _ = two
        job = Job(lambda run: run + 10)
        for process in two:
            await process.engine.fetch("k", job)
        one.link.lost = {what}
        assert await one.engine.entries.set("k", job.codec, value(7)) is False
        one.link.set_down(True)
        one.link.set_down(False)
        await settle()
        for process in two:
            assert (await process.engine.fetch("k", job)).value != 11
        assert not one.store.has_pending

    @pytest.mark.parametrize("which", ["key", "tag", "mark", "unread", "gap"])
    async def test_set_value_that_may_be_outdated_is_not_kept_locally_in_an_outage(self, two, which):
        one, _ = two
        job = Job(lambda run: run + 10)

        async def meanwhile():
            one.link.before.clear()
            if which == "key":
                one.link.set_down(True)
                await one.engine.invalidate("k")
            elif which == "tag":
                one.link.set_down(True)
                await one.engine.invalidate_tag("t")
            elif which == "mark":
                one.link.set_down(True)
                await one.engine.entries.mark_stale("k")
            elif which == "unread":
                one.link.set_down(True)
                one.engine.notifications.handle(Notification(Kind.GAP))
            else:
                one.link.set_down(True)
                one.link.set_down(False)
                one.link.is_down = True

        one.link.before["seize"] = meanwhile
        assert await one.engine.entries.set("k", job.codec, value(7, Policy(60, tags=("t",)))) is False
        assert (await one.engine.fetch("k", job)).value == 11

    async def test_set_value_older_than_a_load_served_meanwhile_is_dropped(self, two):
        one, _ = two
        job = Job(lambda run: run + 10)

        async def meanwhile():
            one.link.before.clear()
            assert (await one.engine.refresh("k", job)).value == 12
            one.link.set_down(True)

        await one.engine.fetch("k", job)
        one.link.before["seize"] = meanwhile
        assert await one.engine.entries.set("k", job.codec, value(7)) is False
        assert (await one.engine.fetch("k", job)).value == 13

    @pytest.mark.parametrize("is_refused", [False, True], ids=["stored", "refused"])
    @pytest.mark.parametrize("what", ["seize", "commit"])
    async def test_set_value_overtaken_by_a_load_without_a_lease_is_dropped(self, two, what, is_refused):
        one, other = two
        job = Job(lambda run: run + 10)

        async def refuse():
            raise StoreRefused("full")

        async def meanwhile():
            del one.link.before[what]
            one.link.before["acquire"] = refuse
            assert (await one.engine.fetch("k", job)).value == 11
            del one.link.before["acquire"]
            if is_refused:
                one.link.before["commit"] = refuse

        one.link.before[what] = meanwhile
        assert await one.engine.entries.set("k", job.codec, value(7)) is False
        one.link.before.clear()
        assert (await one.engine.fetch("k", job)).value != 7
        await settle()
        assert (await other.engine.fetch("k", job)).value != 7

    async def test_value_set_while_redis_hangs_is_served_locally_and_loaded_again_afterwards(self, own_server: Server):
        url = own_server.url
        async with Cache(url, timeout=0.2) as one, Cache(url, timeout=0.2) as other:
            rank, elsewhere = define(one), define(other)
            await rank("ATL")
            assert await elsewhere("ATL") == [1]
            own_server.pause()
            try:
                assert await rank.set([7], "ATL") is False
                assert await rank("ATL") == [7]
                assert await elsewhere("ATL") == [1]
            finally:
                own_server.resume()
            await until(lambda: other.engine.store.peek("rank:ATL") is None)
            await until(lambda: not one.engine.store.has_pending)
            # Neither the value of then nor an older one: it is loaded again.
            assert await elsewhere("ATL") == [1]
            assert elsewhere.calls == ["ATL"]
            assert await rank("ATL") == [1]

    async def test_set_stores_although_the_redis_user_may_not_publish(self, own_server: Server):
        own_server.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
        url = own_server.url.replace("redis://", "redis://mute:secret@")
        async with Cache(url) as cache:
            rank = define(cache)
            assert await rank.set([7], "ATL")
            assert await rank("ATL") == [7]


class TestMany:
    def define(self, cache, **options):
        calls = []

        @cache.cached_many("rank:{group}", **{"fresh_for": 60, "tags": ("group:{group}",), **options})
        async def ranks(groups: list[str], scale: int = 1) -> dict[str, list[int]]:
            calls.append(list(groups))
            return {group: [0] for group in groups if group != "none"}

        ranks.calls = calls
        return ranks

    async def test_batch_set_stores_its_dict_as_if_the_loader_had_returned_it(self, url):
        async with Cache(url) as cache:
            ranks = self.define(cache, ignore=("scale",))
            assert await ranks.set({"ATL": [1], "BOS": Fresh([2], tags=("b",))}, ["ATL", "BOS"], scale=2)
            assert await ranks(["ATL", "BOS"]) == {"ATL": [1], "BOS": [2]}
            assert ranks.calls == []
            await cache.invalidate_tag("group:ATL")
            await cache.invalidate_tag("b")
            assert await ranks.peek(["ATL", "BOS"]) == {}

    async def test_item_left_out_of_a_batch_set_is_absent(self, cache):
        ranks = self.define(cache, ignore=("scale",), absent_for=60)
        await ranks(["ATL", "BOS"])
        assert await ranks.set({"ATL": [1]}, ["ATL", "BOS"])
        assert await ranks(["ATL", "BOS"]) == {"ATL": [1]}
        assert len(ranks.calls) == 1

    async def test_batch_set_of_an_invalid_answer_is_refused(self, cache):
        ranks = self.define(cache, ignore=("scale",))
        with pytest.raises(ConfigurationError, match="returned 'BOS' too"):
            await ranks.set({"BOS": [1]}, ["ATL"])
        with pytest.raises(ConfigurationError, match="returned list"):
            await ranks.set([1], ["ATL"])
        with pytest.raises(ConfigurationError, match="is not a value"):
            await ranks.set({"ATL": [1], "BOS": NOT_MODIFIED}, ["ATL", "BOS"])
        assert await ranks.peek(["ATL"]) == {}

    async def test_batch_set_with_a_value_that_cannot_be_stored_leaves_no_older_values(self, server: Server):
        async with Cache(server.url) as cache:
            ranks, groups = self.define(cache, ignore=("scale",)), list(map(str, range(1500)))
            await ranks(groups)
            with pytest.raises(CodecError):
                await ranks.set({group: ["x"] if group == "0" else [1] for group in groups}, groups)
            assert [0] not in [outcome.value for outcome in (await ranks.peek(groups)).values()]

    async def test_batch_peek_returns_stored_items_without_a_load(self, cache, clock):
        ranks = self.define(cache, ignore=("scale",), stale_for=600, copy=True)
        await ranks(["ATL"])
        clock.advance(61)
        await ranks.set({"BOS": [2]}, ["BOS"])
        found = await ranks.peek(["BOS", "ATL", "none"])
        assert {item: (one.value, one.state) for item, one in found.items()} == {
            "BOS": ([2], State.FRESH),
            "ATL": ([0], State.STALE),
        }
        await settle()
        assert len(ranks.calls) == 1

    async def test_long_list_is_set_and_peeked_in_parts(self, cache, monkeypatch):
        monkeypatch.setattr("swr.loaders.items.MOST_AT_ONCE", 10)
        monkeypatch.setattr("swr.loaders.turns.IN_ONE_TURN", 10)
        ranks = self.define(cache, ignore=("scale",))
        items = [str(number) for number in range(250)]
        assert await ranks.set({item: [1] for item in items}, items)
        assert len(await ranks.peek(items)) == 250


class TestPeek:
    async def test_peek_neither_loads_nor_refreshes(self, url, clock):
        async with Cache(url, clock=clock) as cache:
            rank = define(cache, stale_if_error=3600)
            assert await rank.peek("ATL") is None
            await rank("ATL")
            assert (await rank.peek("ATL")).state is State.FRESH
            clock.advance(61)
            outcome = await rank.peek("ATL")
            assert (outcome.value, outcome.state, outcome.age) == ([1], State.STALE, 61)
            clock.advance(600)
            # What is kept for a load that fails is not an answer yet.
            assert await rank.peek("ATL") is None
            assert rank.calls == ["ATL"]

    async def test_peek_finds_an_entry_stored_by_another_process(self, server: Server):
        async with Cache(server.url) as one, Cache(server.url, l1_max_bytes=0) as other:
            await define(one)("ATL")
            assert (await define(other).peek("ATL")).value == [1]

    async def test_peek_does_not_wait_for_a_load(self, two):
        one, other = two
        job = Job()
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(one.engine.fetch, "k", job)
            await job.begun.wait()
            assert await one.engine.entries.peek("k", job.codec) is None
            assert await other.engine.entries.peek("k", job.codec) is None
            job.gate.set()

    async def test_peek_finds_local_entries_while_redis_is_unreachable(self, two, clock):
        one, _ = two
        await one.engine.fetch("k", Job())
        one.link.set_down(True)
        clock.advance(61)
        assert (await one.engine.entries.peek("k", Job.codec)).state is State.STALE
        assert await one.engine.entries.peek("other", Job.codec) is None


class TestUntilCommitted:
    async def test_set_value_stays_after_a_block_without_interference(self, url):
        async with Cache(url) as cache:
            rank = define(cache)
            await rank("ATL")
            async with cache.until_committed(), cache.until_committed():
                await rank.invalidate("ATL")
                await rank.set([7], "ATL")
            assert (await rank.peek("ATL")).value == [7]

    async def test_set_value_is_removed_when_its_block_fails(self, cache):
        rank = define(cache)

        async def fail():
            async with cache.until_committed():
                await rank.set([7], "ATL")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        assert await rank.peek("ATL") is None

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_value_loaded_by_another_reader_during_the_block_is_removed(self, server: Server, l1_max_bytes):
        async with Cache(server.url, l1_max_bytes=l1_max_bytes) as cache:
            rank = define(cache)
            async with cache.until_committed():
                await rank.set([7], "ATL")
                # A reader in between loads what is not committed yet.
                async with Cache(server.url) as other:
                    await other.invalidate("rank:ATL")
                    assert await define(other)("ATL") == [1]
            assert await rank.peek("ATL") is None

    async def test_key_whose_set_failed_in_an_outage_is_invalidated_after_the_block(self, two):
        one, other = two
        job = Job()
        await other.engine.fetch("k", job)
        one.link.set_down(True)
        async with Repeats(one.engine):
            assert await one.engine.entries.set("k", job.codec, value(7)) is False
        one.link.set_down(False)
        await settle()
        assert (await other.engine.fetch("k", job)).value == 2

    @pytest.mark.parametrize("end", ["error", "cancelled"])
    async def test_key_whose_set_raised_an_error_is_invalidated_again_after_the_block(self, two, end):
        one, other = two
        job = Job()
        failure = CodecError("cannot be written") if end == "error" else asyncio.CancelledError()

        async def fail():
            del one.link.before["commit"]
            raise failure

        one.link.before["commit"] = fail
        async with Repeats(one.engine):
            with pytest.raises(type(failure)):
                await one.engine.entries.set("k", job.codec, value(7))
            # A reader before the commit of the transaction.
            assert (await other.engine.fetch("k", job)).value == 1
        assert (await other.engine.fetch("k", job)).value == 2

    async def test_failed_block_of_another_cache_does_not_remove_a_set_value(self, cache):
        rank = define(cache)
        async with Cache() as other, other.until_committed() as block:
            await rank.set([7], "ATL")
            block.fail()
        assert (await rank.peek("ATL")).value == [7]

    @pytest.mark.parametrize("status", [200, 409])
    async def test_set_value_survives_a_successful_request_and_not_a_refused_one(self, cache, status):
        rank, app = define(cache), FastAPI()

        async def transaction():
            yield
            # The commit, or the end of what was not committed.

        @app.put("/ranks/{group}")
        async def put(group: str, ranks: list[int], _: Annotated[None, Depends(transaction)]) -> None:
            await rank.set(ranks, group)
            if status == 409:
                raise HTTPException(409)

        app.add_middleware(SWRMiddleware, cache=cache)
        transport = httpx.ASGITransport(app=app)
        async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:
            assert (await client.put("/ranks/ATL", json=[7])).status_code == status
        found = await rank.peek("ATL")
        assert (found and found.value) == ([7] if status == 200 else None)

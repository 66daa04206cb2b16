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
    async def test_a_set_value_is_the_answer_everywhere(self, url):
        async with Cache(url) as one, Cache(url) as other:
            rank = define(one)
            assert await rank("ATL") == [1]
            assert await rank.set([7], "ATL") is True
            assert await rank("ATL") == [7]
            assert rank.calls == ["ATL"]
            if url is not None:
                assert await define(other)(group="ATL") == [7]

    async def test_a_process_that_holds_an_older_value_drops_it(self, server: Server):
        async with Cache(server.url) as one, Cache(server.url) as other:
            rank, elsewhere = define(one), define(other)
            assert await rank("ATL") == await elsewhere("ATL") == [1]
            assert await rank.set([7], "ATL")
            await until(lambda: other.engine.store.peek("rank:ATL") is None)
            assert await elsewhere("ATL") == [7]
            assert elsewhere.calls == []

    async def test_the_policy_the_tags_and_the_age_are_those_of_a_load(self, cache, clock):
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

    async def test_fresh_says_what_counts_for_this_value(self, cache, clock):
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
    async def test_what_is_no_value_is_refused_and_changes_nothing(self, cache, answer):
        rank = define(cache)
        await rank("ATL")
        if answer == "coroutine":
            answer = asyncio.sleep(0)
        with pytest.raises(ConfigurationError, match="is not a value for 'rank:ATL'"):
            await rank.set(answer, "ATL")
        assert await rank("ATL") == [1]
        if answer is not NOT_MODIFIED:
            answer.close()

    async def test_a_value_that_cannot_be_stored_is_an_error_and_leaves_nothing_older(self, server: Server):
        async with Cache(server.url) as cache:
            rank = define(cache)
            await rank("ATL")
            with pytest.raises(CodecError):
                await rank.set(["x"], "ATL")
            # Nor a lease for which the next reader would wait.
            assert await rank("ATL") == [2]

    async def test_with_copy_the_stored_value_is_not_the_callers(self, cache):
        rank, mine = define(cache, copy=True), [7]
        await rank.set(mine, "ATL")
        mine.append(8)
        assert await rank("ATL") == [7]
        (await rank.peek("ATL")).value.append(8)
        assert await rank("ATL") == [7]

    async def test_a_method_has_it_too(self, cache):
        class Service:
            @cache.cached("s:{group}", fresh_for=60, ignore=("self",))
            async def rank(self, group: str) -> int:
                return 1

        service = Service()
        assert await service.rank.set(5, "ATL")
        assert await service.rank("ATL") == 5
        assert (await service.rank.peek("ATL")).value == 5

    async def test_jitter_shortens_it_and_how_long_a_load_takes_is_remembered(self, two, clock):
        engine = two[0].engine
        job = Job()

        async def slow():
            clock.advance(3)

        job.before_store = slow
        await engine.fetch("k", job)
        await engine.entries.set("k", job.codec, value(7, Policy(100, jitter=0.5)))
        entry = two[0].store.peek("k")
        assert (entry.fresh_until - entry.created_at, entry.took) == (0, 3)

    async def test_by_key_it_is_what_get_or_load_finds(self, url):
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

    async def test_what_cannot_work_is_refused(self, cache):
        with pytest.raises(ConfigurationError, match="not a string"):
            await cache.set(1, 1, Policy(1))
        with pytest.raises(ConfigurationError, match="not a Policy"):
            await cache.set("k", 1, 60)
        with pytest.raises(ConfigurationError, match="not a string"):
            await cache.peek(1)

    async def test_its_event_is_that_of_a_commit(self, cache):
        rank, events = define(cache), []
        cache.subscribe(events.append, Committed, CommitRejected)
        await rank.set([7], "ATL")
        assert [(type(event), event.key) for event in events] == [(Committed, "rank:ATL")]


class TestOff:
    async def test_while_the_cache_is_off_nothing_is_stored_or_found_and_nothing_older_stays(self, cache):
        rank = define(cache)
        await rank("ATL")
        with cache.disabled():
            assert await rank.peek("ATL") is None
            assert await rank.set([7], "ATL") is False
        assert await rank.peek("ATL") is None

    async def test_of_a_cache_that_is_never_on(self):
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

    async def test_a_load_that_began_before_does_not_overwrite_it(self, two):
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

    async def test_a_refresh_that_began_before_does_not_overwrite_it(self, two, clock):
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

    async def test_a_reader_who_waits_for_the_lease_gets_it(self, two):
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
    async def test_what_comes_while_it_is_under_way_outdates_it(self, two, which):
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

    async def test_a_set_that_is_cancelled_leaves_no_lease(self, two):
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
    async def test_this_process_serves_it_and_afterwards_all_load(self, two):
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
    async def test_a_lost_reply_leaves_nothing_older_and_no_lease(self, two, what):
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
    async def test_what_may_be_outdated_is_not_even_kept_here(self, two, which):
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

    async def test_nor_is_what_is_older_than_a_load_that_was_served_meanwhile(self, two):
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
    async def test_nor_is_what_a_load_without_a_lease_has_overtaken(self, two, what, is_refused):
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

    async def test_redis_is_unreachable_and_reachable_again(self, own_server: Server):
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

    async def test_a_user_who_may_not_publish_stores_all_the_same(self, own_server: Server):
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

    async def test_the_dict_is_stored_as_if_the_loader_had_returned_it(self, url):
        async with Cache(url) as cache:
            ranks = self.define(cache, ignore=("scale",))
            assert await ranks.set({"ATL": [1], "BOS": Fresh([2], tags=("b",))}, ["ATL", "BOS"], scale=2)
            assert await ranks(["ATL", "BOS"]) == {"ATL": [1], "BOS": [2]}
            assert ranks.calls == []
            await cache.invalidate_tag("group:ATL")
            await cache.invalidate_tag("b")
            assert await ranks.peek(["ATL", "BOS"]) == {}

    async def test_an_item_that_is_left_out_has_no_value(self, cache):
        ranks = self.define(cache, ignore=("scale",), absent_for=60)
        await ranks(["ATL", "BOS"])
        assert await ranks.set({"ATL": [1]}, ["ATL", "BOS"])
        assert await ranks(["ATL", "BOS"]) == {"ATL": [1]}
        assert len(ranks.calls) == 1

    async def test_what_is_no_answer_is_refused(self, cache):
        ranks = self.define(cache, ignore=("scale",))
        with pytest.raises(ConfigurationError, match="returned 'BOS' too"):
            await ranks.set({"BOS": [1]}, ["ATL"])
        with pytest.raises(ConfigurationError, match="returned list"):
            await ranks.set([1], ["ATL"])
        with pytest.raises(ConfigurationError, match="is not a value"):
            await ranks.set({"ATL": [1], "BOS": NOT_MODIFIED}, ["ATL", "BOS"])
        assert await ranks.peek(["ATL"]) == {}

    async def test_where_a_value_cannot_be_stored_nothing_older_stays(self, server: Server):
        async with Cache(server.url) as cache:
            ranks, groups = self.define(cache, ignore=("scale",)), list(map(str, range(1500)))
            await ranks(groups)
            with pytest.raises(CodecError):
                await ranks.set({group: ["x"] if group == "0" else [1] for group in groups}, groups)
            assert [0] not in [outcome.value for outcome in (await ranks.peek(groups)).values()]

    async def test_peek_gives_what_is_there(self, cache, clock):
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

    async def test_long_lists_let_the_loop_turn(self, cache, monkeypatch):
        monkeypatch.setattr("swr.loaders.items.MOST_AT_ONCE", 10)
        monkeypatch.setattr("swr.loaders.turns.IN_ONE_TURN", 10)
        ranks = self.define(cache, ignore=("scale",))
        items = [str(number) for number in range(250)]
        assert await ranks.set({item: [1] for item in items}, items)
        assert len(await ranks.peek(items)) == 250


class TestPeek:
    async def test_it_loads_and_refreshes_nothing(self, url, clock):
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

    async def test_it_finds_what_another_process_has_stored(self, server: Server):
        async with Cache(server.url) as one, Cache(server.url, l1_max_bytes=0) as other:
            await define(one)("ATL")
            assert (await define(other).peek("ATL")).value == [1]

    async def test_it_does_not_wait_for_a_load(self, two):
        one, other = two
        job = Job()
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(one.engine.fetch, "k", job)
            await job.begun.wait()
            assert await one.engine.entries.peek("k", job.codec) is None
            assert await other.engine.entries.peek("k", job.codec) is None
            job.gate.set()

    async def test_while_redis_is_unreachable_it_finds_what_this_process_holds(self, two, clock):
        one, _ = two
        await one.engine.fetch("k", Job())
        one.link.set_down(True)
        clock.advance(61)
        assert (await one.engine.entries.peek("k", Job.codec)).state is State.STALE
        assert await one.engine.entries.peek("other", Job.codec) is None


class TestInABlock:
    async def test_a_value_that_nothing_has_touched_stays(self, url):
        async with Cache(url) as cache:
            rank = define(cache)
            await rank("ATL")
            async with cache.until_committed(), cache.until_committed():
                await rank.invalidate("ATL")
                await rank.set([7], "ATL")
            assert (await rank.peek("ATL")).value == [7]

    async def test_a_value_of_a_block_that_fails_does_not(self, cache):
        rank = define(cache)

        async def fail():
            async with cache.until_committed():
                await rank.set([7], "ATL")
                raise RuntimeError

        with pytest.raises(RuntimeError):
            await fail()
        assert await rank.peek("ATL") is None

    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_nor_what_came_in_between(self, server: Server, l1_max_bytes):
        async with Cache(server.url, l1_max_bytes=l1_max_bytes) as cache:
            rank = define(cache)
            async with cache.until_committed():
                await rank.set([7], "ATL")
                # A reader in between loads what is not committed yet.
                async with Cache(server.url) as other:
                    await other.invalidate("rank:ATL")
                    assert await define(other)("ATL") == [1]
            assert await rank.peek("ATL") is None

    async def test_what_redis_did_not_take_is_invalidated_once_more(self, two):
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
    async def test_a_key_whose_value_was_not_stored_is_invalidated_once_more(self, two, end):
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

    async def test_a_block_of_another_cache_has_no_part_in_it(self, cache):
        rank = define(cache)
        async with Cache() as other, other.until_committed() as block:
            await rank.set([7], "ATL")
            block.fail()
        assert (await rank.peek("ATL")).value == [7]

    @pytest.mark.parametrize("status", [200, 409])
    async def test_a_request_that_is_refused_leaves_nothing(self, cache, status):
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

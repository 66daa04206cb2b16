"""What is marked stale is served at once and refreshed; tags, URLs and loaders are invalidated in one step; tags may
come from the value."""

import asyncio

import anyio
import httpx
import msgspec
import pytest
from fastapi import FastAPI, Response

from swr import NOT_MODIFIED, Cache, ConfigurationError, Fresh, LoadContext, Policy, State
from swr.core.codec import ANY
from swr.core.decision import FALLBACK, MISSING, decide
from swr.core.frames import encode, frame_of, mark_in
from swr.core.keys import loader_digest
from swr.entry import doubtful, marked_stale, stamp
from swr.events import Invalidated
from swr.middleware import Rule, SWRMiddleware
from swr.stores.redis.messages import member_of, name_in
from swr.stores.redis.names import Names
from swr.stores.tag_versions import ALL, OfKey, OfLoader, Soft, TagVersions
from tests.fleet import POLICY, Job, define, settle
from tests.servers import ClusterOfSix, Server, kinds
from tests.test_losses import restart
from tests.test_redis import until

pytestmark = pytest.mark.anyio

NAMES = Names("swr")
MARKS = {
    "key": lambda cache, rank: cache.mark_stale("rank:ATL"),
    "loader's key": lambda cache, rank: rank.mark_stale("ATL"),
    "tag": lambda cache, rank: cache.mark_stale_tags("other", "group:ATL"),
    "loader": lambda cache, rank: rank.mark_stale_all(),
    "everything": lambda cache, rank: cache.mark_stale_all(),
}


@pytest.fixture
def anyio_backend():
    return "asyncio"


@pytest.fixture(scope="module")
def cluster():
    with ClusterOfSix(kinds()[0]) as cluster:
        yield cluster


class TestMarks:
    @pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
    async def test_marked_entry_is_served_stale_and_refreshed_once(self, url, mark):
        async with Cache(url) as cache:
            rank = define(cache)
            await rank("ATL")
            await mark(cache, rank)
            rank.gate = anyio.Event()
            for _ in range(3):
                outcome = await rank.outcome("ATL")
                assert (outcome.value, outcome.state) == ([1], State.STALE)
                assert await rank("ATL") == [1]
            rank.gate.set()
            await until(lambda: cache.engine.store.peek("rank:ATL").value == [2])
            outcome = await rank.outcome("ATL")
            assert (outcome.value, outcome.state) == ([2], State.FRESH)
            assert len(rank.calls) == 2

    @pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
    @pytest.mark.parametrize("l1_max_bytes", [0, 2**20])
    async def test_marked_entry_is_served_stale_and_refreshed_in_another_process(
        self, server: Server, mark, l1_max_bytes
    ):
        async with Cache(server.url) as one, Cache(server.url, l1_max_bytes=l1_max_bytes) as other:
            rank, elsewhere = define(one), define(other)
            assert await rank("ATL") == await elsewhere("ATL") == [1]
            await mark(one, rank)

            async def state():
                return (await elsewhere.peek("ATL")).state

            with anyio.fail_after(30):
                while await state() is not State.STALE:
                    await anyio.sleep(0.005)
            assert (await elsewhere.outcome("ATL")).state is State.STALE
            with anyio.fail_after(30):
                while await state() is not State.FRESH:
                    await anyio.sleep(0.005)
            # A process that starts now finds what was refreshed.
            async with Cache(server.url) as third:
                assert (await define(third).peek("ATL")).state is State.FRESH

    async def test_marks_and_invalidations_reach_another_process_through_a_cluster(self, cluster: ClusterOfSix):
        async with Cache(cluster.url, timeout=2) as one, Cache(cluster.url, timeout=2, l1_max_bytes=0) as other:
            rank, elsewhere = define(one), define(other)
            for mark in MARKS.values():
                await rank.refresh("ATL")
                await mark(one, rank)
                assert (await elsewhere.peek("ATL")).state is State.STALE
            assert await rank.set([7], "ATL")
            assert (await elsewhere.peek("ATL")).value == [7]
            await one.invalidate_tags("other", "group:ATL")
            assert await elsewhere.peek("ATL") is None
            await rank.refresh("ATL")
            await rank.invalidate_all()
            assert await elsewhere.peek("ATL") is None

    @pytest.mark.parametrize("mark", MARKS.values(), ids=MARKS)
    async def test_refresh_that_began_before_the_mark_is_repeated(self, url, mark):
        async with Cache(url) as cache:
            rank = define(cache)
            await rank("ATL")
            rank.gate = anyio.Event()
            async with anyio.create_task_group() as group:
                group.start_soon(rank.refresh, "ATL")
                await until(lambda: len(rank.calls) == 2)
                await mark(cache, rank)
                rank.gate.set()
            # Whoever asked for that refresh got a newer one.
            await until(lambda: len(rank.calls) == 3)
            assert await rank("ATL") == [3]

    @pytest.mark.parametrize("stale_for", [0, 60])
    async def test_first_value_is_stale_if_its_own_tag_is_marked_during_the_load(self, url, stale_for):
        """A reader that comes after the mark gets that value only if the policy allows stale values."""
        loads, gate = [], anyio.Event()
        async with Cache(url) as cache:

            @cache.cached("news:{n}", fresh_for=60, stale_for=stale_for)
            async def news(n: int) -> Fresh[int]:
                loads.append(n)
                number = len(loads)
                await gate.wait()
                return Fresh(number, tags=("author",))

            async def reads() -> None:
                assert await news(1) == (1 if stale_for else 2)

            async with anyio.create_task_group() as group:
                group.start_soon(news, 1)
                await until(lambda: len(loads) == 1)
                await cache.mark_stale_tags("author")
                group.start_soon(reads)
                await settle()
                gate.set()
            # What may be served stale is so now, and refreshed.
            assert await news(1) == (1 if stale_for else 2)
            await until(lambda: len(loads) == 2)

    async def test_refresh_is_repeated_when_another_process_marks_the_key_during_it(self, two):
        one, other = two
        job = Job()
        await one.engine.fetch("k", job)
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            job.begun = anyio.Event()
            group.start_soon(one.engine.refresh, "k", job)
            await job.begun.wait()
            await other.engine.entries.mark_stale("k")
            job.gate.set()
        assert (await other.engine.fetch("k", job)).value == 3

    async def test_reader_that_waits_for_a_load_gets_a_newer_value_after_a_mark(self, two):
        one, other = two
        job, late = Job(lambda run: f"old{run}"), Job(lambda run: f"new{run}")
        job.gate = anyio.Event()
        async with anyio.create_task_group() as group:
            group.start_soon(one.engine.fetch, "k", job)
            await job.begun.wait()
            answers = []

            async def read():
                answers.append((await other.engine.fetch("k", late)).value)

            group.start_soon(read)
            await settle()
            # Another process that has not heard of it stores a value with an older tag version.
            other.store.tag_versions.raise_to(Soft(ALL), int(other.engine.clock() * 1e6) + 10**9)
            job.gate.set()
        assert answers == ["new1"]

    async def test_mark_ends_the_stale_window_of_a_copy_that_another_process_replaced(self, two, clock):
        one, other = two
        job = Job(policy=Policy(60, 10, tags=("t",)))
        await one.engine.fetch("k", job)
        assert (await other.engine.fetch("k", job)).value == 1
        clock.advance(50)
        await one.engine.invalidate_tag(Soft("t"))
        await one.engine.refresh("k", job)
        clock.advance(15)
        # The copy was stale from the mark on, and its window has ended.
        outcome = await other.engine.fetch("k", job)
        assert (outcome.value, outcome.state) == (2, State.FRESH)

    @pytest.mark.parametrize("stale_if_error", [0, 3600])
    async def test_marked_entry_without_stale_for_is_missing_except_as_fallback(self, cache, stale_if_error):
        rank = define(cache, stale_for=0, stale_if_error=stale_if_error)
        await rank("ATL")
        await rank.mark_stale("ATL")
        assert await rank.peek("ATL") is None

        @cache.cached("fails", fresh_for=60, stale_if_error=stale_if_error)
        async def fails() -> int:
            fails.calls += 1
            if fails.calls > 1:
                raise RuntimeError
            return 1

        fails.calls = 0
        await fails()
        await cache.mark_stale_all()
        if stale_if_error:
            outcome = await fails.outcome()
            assert (outcome.value, outcome.state, type(outcome.error)) == (1, State.STALE, RuntimeError)
        else:
            with pytest.raises(RuntimeError):
                await fails()

    async def test_stale_window_counts_from_the_first_mark(self, cache, clock):
        rank = define(cache, stale_for=10)
        await rank("ATL")
        clock.advance(5)
        await rank.mark_stale("ATL")
        clock.advance(9)
        assert (await rank.peek("ATL")).state is State.STALE
        # A second mark prolongs nothing.
        await rank.mark_stale("ATL")
        clock.advance(2)
        assert await rank.peek("ATL") is None

    async def test_marked_entry_stays_stale_when_the_clock_is_set_back(self, cache, clock):
        rank = define(cache)
        await rank("ATL")
        clock.advance(30)
        await rank.mark_stale("ATL")
        clock.advance(-20)
        assert (await rank.peek("ATL")).state is State.STALE

    async def test_invalidation_takes_precedence_over_a_mark_in_either_order(self, url):
        async with Cache(url) as cache:
            rank = define(cache)
            for invalidate in (
                lambda: cache.invalidate("rank:ATL"),
                lambda: cache.invalidate_tag("group:ATL"),
                rank.invalidate_all,
                cache.clear,
            ):
                for mark in MARKS.values():
                    await rank("ATL")
                    await mark(cache, rank)
                    await invalidate()
                    assert await rank.peek("ATL") is None
                    await rank("ATL")
                    await invalidate()
                    await mark(cache, rank)
                    assert await rank.peek("ATL") is None

    async def test_mark_emits_a_soft_invalidated_event_here_and_in_another_process(self, server: Server):
        async with Cache(server.url) as one, Cache(server.url) as other:
            here, there = [], []
            one.subscribe(here.append, Invalidated)
            other.subscribe(there.append, Invalidated)
            rank = define(one)
            for mark in MARKS.values():
                await mark(one, rank)
            said = [(event.key, event.tag, event.loader, event.soft) for event in here]
            assert said == [
                ("rank:ATL", None, None, True),
                ("rank:ATL", None, None, True),
                (None, "other", None, True),
                (None, "group:ATL", None, True),
                (None, None, "rank:{group}", True),
                (None, None, None, True),
            ]
            await until(lambda: len(there) == len(here))
            assert {(event.key, event.tag, event.loader, event.soft) for event in there} == set(said)

    async def test_batch_loader_is_marked_by_item_or_as_a_whole(self, cache):
        calls = []

        @cache.cached_many("rank:{group}", fresh_for=60, stale_for=600)
        async def ranks(groups: list[str]) -> dict[str, int]:
            calls.append(groups)
            return {group: len(calls) for group in groups}

        one = define(cache)
        await ranks(["ATL", "BOS"])
        await ranks.mark_stale(["ATL"])
        found = await ranks.outcome(["ATL", "BOS"])
        assert {item: outcome.state for item, outcome in found.items()} == {"ATL": State.STALE, "BOS": State.FRESH}
        await settle()
        await ranks.mark_stale_all()
        assert {outcome.state for outcome in (await ranks.peek(["ATL", "BOS"])).values()} == {State.STALE}
        # They share a template, and so what is stored.
        await one.invalidate_all()
        assert await ranks.peek(["ATL", "BOS"]) == {}
        await ranks(["ATL"])
        await ranks.invalidate_all()
        assert await one.peek("ATL") is None

    async def test_until_committed_repeats_the_mark_at_the_end_of_the_block(self, cache):
        rank = define(cache)
        await rank("ATL")
        async with cache.until_committed():
            await rank.mark_stale("ATL")
            # A refresh before the commit.
            await rank.refresh("ATL")
        assert (await rank.peek("ATL")).state is State.STALE

    async def test_invalid_key_or_tag_or_url_is_refused(self, cache):
        with pytest.raises(ConfigurationError, match="not a string"):
            await cache.mark_stale(1)
        for method in (cache.invalidate_tags, cache.mark_stale_tags):
            with pytest.raises(ConfigurationError, match="give a string that is not empty"):
                await method("a", "")
        for method in (cache.invalidate_urls, cache.mark_stale_urls):
            with pytest.raises(ConfigurationError, match="has no path"):
                await method("/a", "a")


class TestResponses:
    @pytest.mark.parametrize("vary", ["", "Accept-Language"])
    async def test_marked_responses_are_served_stale_and_refreshed(self, url, vary):
        runs, app = [], FastAPI()

        @app.get("/ranks/{group}")
        async def ranks(group: str, response: Response) -> int:
            runs.append(group)
            if vary:
                response.headers["vary"] = vary
            return len(runs)

        async with Cache(url) as cache:
            rules = [Rule("/ranks/{group}", fresh_for=60, stale_for=600)]
            app.add_middleware(SWRMiddleware, cache=cache, rules=rules)
            transport = httpx.ASGITransport(app=app)
            async with httpx.AsyncClient(transport=transport, base_url="http://test") as client:

                async def get(group):
                    response = await client.get(f"/ranks/{group}", headers={"accept-language": "de"})
                    return response.headers["swr-state"], response.json()

                assert await get("ATL") == ("missing", 1)
                assert await get("BOS") == ("missing", 2)
                assert await get("ATL") == ("fresh", 1)
                await cache.mark_stale_urls("/ranks/ATL", "/ranks/BOS")
                assert await get("ATL") == ("stale", 1)
                assert await get("BOS") == ("stale", 2)
                with anyio.fail_after(30):
                    while (await get("ATL"))[0] != "fresh" or (await get("BOS"))[0] != "fresh":
                        await anyio.sleep(0.005)
                assert len(runs) == 4
                await cache.invalidate_urls("/ranks/ATL", "/ranks/BOS")
                assert (await get("ATL"))[0] == (await get("BOS"))[0] == "missing"


class TestOutage:
    @pytest.mark.parametrize("what", [OfKey("k"), "t", OfLoader("l:{x}"), ALL])
    async def test_mark_during_an_outage_counts_here_at_once_and_everywhere_afterwards(self, two, what):
        one, other = two
        job = Job(policy=Policy(60, 600, tags=("t",)))
        job.loader = loader_digest("l:{x}")
        for process in two:
            await process.engine.fetch("k", job)
        await one.engine.fetch("other", Job(policy=POLICY))
        one.link.set_down(True)

        async def mark():
            if isinstance(what, OfKey):
                await one.engine.entries.mark_stale("k")
            else:
                await one.engine.invalidate_tag(Soft(what))

        await mark()
        assert (await one.engine.entries.peek("k", ANY)).state is State.STALE
        expected = State.STALE if what == ALL else State.FRESH
        assert (await one.engine.entries.peek("other", ANY)).state is expected
        assert (await other.engine.entries.peek("k", ANY)).state is State.FRESH
        one.link.set_down(False)
        await settle()
        for process in two:
            assert (await process.engine.entries.peek("k", ANY)).state is State.STALE
            assert not process.store.has_pending

    @pytest.mark.parametrize("is_marked_before", [False, True])
    @pytest.mark.parametrize("is_marked_meanwhile", [False, True])
    async def test_value_loaded_during_an_outage_is_stale_only_if_a_mark_was_missed(
        self, two, is_marked_before, is_marked_meanwhile
    ):
        one, other = two
        job = Job(lambda run: run + 10)
        for process in two:
            await process.engine.fetch("k", job)
        if is_marked_before:
            # Twice: what each process has heard and what the store says of it must be the same mark.
            for _ in range(2):
                await other.engine.entries.mark_stale("k")
            await settle()
        one.link.set_down(True)
        assert (await one.engine.refresh("k", job)).value == 12
        if is_marked_meanwhile:
            await other.engine.entries.mark_stale("k")
        one.link.set_down(False)
        await settle()
        found = await one.engine.entries.peek("k", ANY)
        assert (found.value, found.state) == (12, State.STALE if is_marked_meanwhile else State.FRESH)

    async def test_load_is_repeated_if_its_tag_is_marked_while_redis_is_unreachable(self, two):
        one, _ = two
        job = Job(policy=Policy(60, 600, tags=("t",)))

        async def meanwhile():
            job.before_store = None
            one.link.is_down = True
            await one.engine.invalidate_tag(Soft("t"))
            one.link.is_down = False

        job.before_store = meanwhile
        assert (await one.engine.fetch("k", job)).value == 2

    async def test_marks_made_while_redis_hangs_reach_another_process_afterwards(self, own_server: Server):
        url = own_server.url
        async with Cache(url, timeout=0.2) as one, Cache(url, timeout=0.2) as other:
            rank, elsewhere = define(one), define(other)
            await rank("ATL")
            await elsewhere("ATL")
            own_server.pause()
            try:
                await rank.mark_stale("ATL")
                await rank.mark_stale_all()
                assert (await rank.peek("ATL")).state is State.STALE
            finally:
                own_server.resume()
            await until(lambda: not one.engine.store.has_pending)

            async def is_stale():
                found = await elsewhere.peek("ATL")
                return found is not None and found.state is State.STALE

            with anyio.fail_after(30):
                while not await is_stale():
                    await anyio.sleep(0.01)

    async def test_mark_by_a_redis_user_without_publish_marks_everything(self, own_server: Server):
        own_server.command("ACL", "SETUSER", "mute", "on", ">secret", "~*", "&*", "+@all", "-publish")
        url = own_server.url.replace("redis://", "redis://mute:secret@")
        async with Cache(url) as one, Cache(own_server.url) as other:
            rank = define(other)
            await rank("ATL")
            await rank("BOS")
            await one.mark_stale("rank:ATL")
            with anyio.fail_after(30):
                while (await rank.peek("BOS")).state is not State.STALE:
                    await anyio.sleep(0.01)

    async def test_entry_is_missing_in_a_new_process_after_redis_loses_the_tag_versions(self, server: Server):
        async with Cache(server.url) as cache:
            rank = define(cache)
            await rank("ATL")
            await rank.mark_stale_all()
            server.command("DEL", "swr:{!}b")

            async def is_gone():
                async with Cache(server.url) as new:
                    return await define(new).peek("ATL") is None

            assert await is_gone()

    @pytest.mark.parametrize("which", ["key", "tag"])
    async def test_marked_entry_is_not_fresh_after_redis_restarts_with_older_data(self, own_server: Server, which):
        async with Cache(own_server.url) as one, Cache(own_server.url, l1_max_bytes=0) as other:
            rank = define(one)
            await rank("ATL")
            own_server.command("SAVE")
            await MARKS[which](one, rank)
            await until(lambda: other.engine.store.store._invalidations._marks or which == "tag")
            await asyncio.to_thread(restart, own_server)
            await until(lambda: one.engine.store.is_reachable and other.engine.store.is_reachable)
            for cache in (one, other):
                found = await define(cache).peek("ATL")
                assert found is None or found.state is State.STALE
            async with Cache(own_server.url) as late:
                found = await define(late).peek("ATL")
                assert found is None or found.state is State.STALE

    async def test_mark_that_survives_a_redis_restart_does_not_become_an_invalidation(self, own_server: Server):
        async with Cache(own_server.url) as cache:
            rank = define(cache)
            await rank("ATL")
            await rank.mark_stale("ATL")
            own_server.command("SAVE")
            await asyncio.to_thread(restart, own_server)
            await until(lambda: cache.engine.store.is_reachable)
            async with Cache(own_server.url) as late:
                assert (await define(late).peek("ATL")).state is State.STALE

    async def test_mark_applies_to_every_type_of_a_key_until_that_type_is_refreshed(self, server: Server):
        """Two releases of an application: one refreshes its own entry, and the entry of the other stays marked."""
        async with Cache(server.url) as one, Cache(server.url) as other:

            @one.cached("k", fresh_for=60, stale_for=600)
            async def old() -> int:
                return 1

            @other.cached("k", fresh_for=60, stale_for=600)
            async def new() -> str:
                return "1"

            await old()
            await new()
            await one.mark_stale("k")
            await old.refresh()
            for kind, state in ((int, State.FRESH), (str, State.STALE)):
                async with Cache(server.url) as third:
                    assert (await third.peek("k", returns=kind)).state is state


class TestManyAtOnce:
    async def test_thousand_tags_are_invalidated_by_one_command(self, server: Server, no_heartbeats):
        async with Cache(server.url) as cache:
            await cache.get_or_load("k", lambda: 1, Policy(60, tags=("t7",)))
            await settle()
            sent = cache.engine.store.sent
            await cache.invalidate_tags(*(f"t{number}" for number in range(1000)))
            assert cache.engine.store.sent == sent + 1
            assert await cache.peek("k") is None
            await cache.invalidate_tags()

    async def test_invalidate_all_removes_entries_of_its_loader_only(self, url):
        async with Cache(url) as cache:
            rank = define(cache)

            @cache.cached("other:{group}", fresh_for=60)
            async def other(group: str) -> int:
                return 1

            for group in ("ATL", "BOS"):
                await rank(group)
                await other(group)
            await rank.invalidate_all()
            for group in ("ATL", "BOS"):
                assert await rank.peek(group) is None
                assert (await other.peek(group)).state is State.FRESH

    async def test_tag_named_like_a_loader_does_not_affect_its_entries(self, url):
        async with Cache(url) as cache:
            template = "rank:{group}"
            rank = define(cache, tags=("{group}",))
            names = [template, f"l{template}", loader_digest(template), "*", "s*", "!", f"sl{template}"]
            await rank("ATL")
            await cache.invalidate_tags(*names)
            await cache.mark_stale_tags(*names)
            assert (await rank.peek("ATL")).state is State.FRESH

    async def test_untagged_entries_keep_their_marks_when_old_tags_are_forgotten(self, server: Server, monkeypatch):
        monkeypatch.setattr("swr.stores.redis.shared_tag_versions._MOST_TAGS", 10)
        async with Cache(server.url) as cache:
            rank = define(cache, tags=())
            await rank("ATL")
            await rank.mark_stale_all()
            await cache.invalidate_tags(*map(str, range(40)))
            async with Cache(server.url) as new:
                assert (await define(new, tags=()).peek("ATL")).state is State.STALE
            await rank.refresh("ATL")
            await cache.invalidate_tags(*map(str, range(40)))
            async with Cache(server.url) as new:
                # Nor is an entry without tags outdated by that.
                assert (await define(new, tags=()).peek("ATL")).state is State.FRESH

    def test_loader_digest_adds_eight_bytes_to_a_frame(self):
        entry = stamp(b"", Policy(60), 0.0)
        marked = stamp(b"", Policy(60), 0.0, loader=loader_digest("rank:{group}"))
        assert len(encode("k", marked, ANY)) - len(encode("k", entry, ANY)) == 8


class TestTagsOfTheValue:
    async def test_tags_function_makes_tags_from_value_and_arguments(self, url):
        async with Cache(url) as cache:

            @cache.cached(fresh_for=60, tags=lambda rows, airport, limit=2: [f"row:{row}" for row in rows] + [airport])
            async def rows(airport: str, limit: int = 2) -> list[int]:
                return list(range(limit))

            for tag in ("row:1", "ATL"):
                await rows("ATL", limit=3)
                await cache.invalidate_tag("row:3")
                assert await rows.peek("ATL", limit=3) is not None
                await cache.invalidate_tag(tag)
                assert await rows.peek("ATL", limit=3) is None
            await rows.set([9], "ATL")
            await cache.invalidate_tag("row:9")
            assert await rows.peek("ATL") is None

    async def test_tags_of_fresh_take_precedence_over_the_tags_function(self, cache):
        @cache.cached(fresh_for=60, tags=lambda value, kind: (f"of:{value}",))
        async def load(context: LoadContext[int], kind: str):
            if kind == "tags":
                return Fresh(1, tags=("own",))
            return Fresh(2, fresh_for=30) if not context.has_value else NOT_MODIFIED

        await load("tags")
        await cache.invalidate_tag("of:1")
        assert await load.peek("tags") is not None
        await cache.invalidate_tag("own")
        assert await load.peek("tags") is None
        await load("plain")
        await load.refresh("plain")
        await cache.invalidate_tag("of:2")
        assert await load.peek("plain") is None

    async def test_tags_function_of_a_batch_loader_gets_each_item(self, cache):
        @cache.cached_many(
            "n:{item}", fresh_for=60, ignore=("scale",), tags=lambda value, item, scale: [f"{item}{value}"]
        )
        async def load(items: list[str], scale: int = 3) -> dict[str, int]:
            return dict.fromkeys(items, scale)

        await load(["a", "b"])
        await cache.invalidate_tag("a3")
        assert list(await load.peek(["a", "b"])) == ["b"]
        await load.set({"a": 5}, ["a"])
        await cache.invalidate_tag("a5")
        assert list(await load.peek(["a", "b"])) == ["b"]

    async def test_tags_function_gets_its_parameters_with_defaults_for_every_call_style(self, cache):
        def tags_of(rows: list[int], *, limit: int, sep: str = "/", groups: str = "") -> list[str]:
            return [f"limit{sep}{limit}{groups}"]

        @cache.cached("one:{airport}:{limit}", fresh_for=60, tags=tags_of)
        async def one(context: LoadContext[list[int]], airport: str, limit: int = 100) -> list[int]:
            return [1]

        @cache.cached_many("many:{group}:{limit}", fresh_for=60, tags=tags_of)
        async def many(groups: list[str], limit: int = 100) -> dict[str, list[int]]:
            return {group: [1] for group in groups}

        for call in (
            lambda: one("ATL"),
            lambda: one(airport="ATL"),
            lambda: one("ATL", 100),
            lambda: one.refresh("ATL"),
            lambda: one.set([2], "ATL"),
        ):
            await call()
            await cache.invalidate_tag("limit/100")
            assert await one.peek("ATL") is None
        for call in (lambda: many(["a"]), lambda: many(groups=["a"], limit=100), lambda: many.set({"a": [2]}, ["a"])):
            await call()
            await cache.invalidate_tag("limit/100a")
            assert not await many.peek(["a"])

    @pytest.mark.parametrize(
        ("tags", "problem"),
        [
            (lambda: ["a"], "takes no argument"),
            (lambda **named: [], "takes no argument"),
            (lambda rows, code: [], "takes 'code', but it gets only these parameters: airport"),
            (lambda rows, *rest: [], "takes 'rest'"),
            (lambda rows, airport, /: [], "takes 'airport'"),
        ],
    )
    async def test_tags_function_with_unknown_parameters_is_refused_by_the_decorator(self, cache, tags, problem):
        with pytest.raises(ConfigurationError, match=problem):

            @cache.cached(fresh_for=60, tags=tags)
            async def load(airport: str) -> list[int]:
                return []

    @pytest.mark.parametrize(
        ("tags", "problem"),
        [
            ("text", "is one string"),
            (None, "tags=None is not a list"),
            (5, "tags=5 is not a list"),
            ([1], "holds 1"),
            (anyio.sleep, "coroutine object sleep at .* is not a list"),
        ],
    )
    async def test_load_fails_and_names_the_tags_function_that_returned_no_list(self, cache, tags, problem):
        @cache.cached(fresh_for=60, tags=lambda value: tags(0) if callable(tags) else tags)
        async def load() -> int:
            return 1

        with pytest.raises(ConfigurationError, match=f"what tags=.*<lambda>.* returned: .*{problem}"):
            await load()

    @pytest.mark.parametrize("tags", [None, 5])
    async def test_tags_that_are_not_a_list_are_refused_at_definition(self, cache, tags):
        for write in (
            lambda: cache.cached("top:{group}", fresh_for=60, tags=tags),
            lambda: cache.response(fresh_for=60, tags=tags),
            lambda: Policy(60, tags=tags),
        ):
            with pytest.raises(ConfigurationError, match=f"tags={tags} is not a list: give a tuple of strings"):
                write()(lambda group: group)

    async def test_async_tags_function_is_refused(self, cache):
        async def tags(value):
            return []

        with pytest.raises(ConfigurationError, match="is async"):
            cache.cached(fresh_for=60, tags=tags)


class TestNames:
    @pytest.mark.parametrize("name", [ALL, "t", "*", OfLoader("a:{b}"), OfLoader("")])
    def test_names_of_tag_versions_survive_encoding_and_decoding(self, name):
        assert name_in(member_of(name, NAMES), NAMES) == name
        assert name_in(member_of(Soft(name), NAMES), NAMES) == Soft(name)

    def test_key_or_malformed_member_is_refused_as_a_tag(self):
        member = member_of(Soft(OfKey("k")), NAMES)
        assert name_in(member, NAMES, may_be_key=True) == Soft(OfKey("k"))
        for foreign in (member, b"", b"s", b"t", b"st", b"x", b"kk", b"**"):
            with pytest.raises(ValueError, match="is not a tag"):
                name_in(foreign, NAMES)

    def test_forgotten_marks_raise_the_minimum_tag_version(self):
        versions = TagVersions(most_tags=10)
        entry = stamp(1, Policy(60, tags=("never",)), 0.0, 1, 1)
        for number in range(2, 14):
            versions.raise_to(Soft(str(number)), number)
        assert not versions.admits_entry(entry)
        assert (Soft("13"), 13) in versions.since(12)
        assert versions.marked_at(stamp(1, Policy(60, tags=("13",)), 0.0, 12, 12)) == 13

    def test_mark_is_read_from_the_bytes_after_the_frames(self):
        frame = encode("k", stamp(1, Policy(60), 0.0, 5), ANY)
        mark = b"%016ds" % 7
        assert mark_in(frame + mark) == 7
        assert frame_of(frame + mark, ANY.fingerprint) == frame
        assert frame_of(frame + mark, "00000000") is None
        for foreign in (b"", mark, frame + b"x" * 17, frame + mark + b"s"):
            assert mark_in(foreign) == 0

    def test_newer_mark_changes_only_marked_at_and_older_mark_changes_nothing(self):
        entry = marked_stale(stamp(1, Policy(60, 600), 0.0, 5), 7)
        # Only when it was marked last is noted: another mark is told from none.
        assert marked_stale(entry, 6) is entry
        assert marked_stale(entry, 9) == msgspec.structs.replace(entry, marked_at=9)
        assert marked_stale(stamp(1, Policy(60, 600), 0.0), 7_000_000).fresh_until == 7

    @pytest.mark.parametrize(("policy", "until"), [(Policy(60), 0), (Policy(60, 600), 610), (Policy(60, 0, 30), 40)])
    def test_doubtful_entry_is_a_fallback_only_until_the_window_of_its_mark_ends(self, policy, until):
        entry = doubtful(stamp(1, policy, 0.0, 1))
        assert decide(entry, 20.0) is FALLBACK
        marked = marked_stale(entry, 10_000_001)
        assert [decide(marked, now) for now in (20.0, max(20.0, until - 0.01))] == [FALLBACK if until else MISSING] * 2
        assert decide(marked, until) is MISSING
        assert decide(doubtful(marked), until) is MISSING

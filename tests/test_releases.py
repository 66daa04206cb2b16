"""A rolling deploy whose model has changed: both releases serve from the same keys, and each loads once for its own."""

import asyncio
import dataclasses
import functools
import json
import time
from typing import Any, NewType

import pytest

from swr import Cache, ConfigurationError, Policy, State
from swr.cli.main import main
from swr.core import frames
from swr.core.arguments import NO_ARGUMENTS
from swr.core.codec import Codec
from swr.core.fingerprint import fingerprint
from swr.entry import stamp
from swr.errors import LeaseLost
from swr.loaders.annotations import _cached_codec, codec_for
from swr.loaders.call import Call, Loader
from swr.middleware import SWRMiddleware
from swr.stores.base import Kind, Lease, Notification
from swr.stores.local import LocalCache
from swr.stores.memory import MemoryStore
from swr.stores.redis import scripts
from swr.stores.tiered import TieredStore
from tests.flaky_store import FlakyStore
from tests.releases import CHANGES, SCHEMALESS, SCHEMALESS_AFTER, Unresolvable
from tests.servers import ClusterOfSix, Server, kinds
from tests.test_processes import Loads, loads, start  # noqa: F401  # fixtures
from tests.test_redis import until
from tests.test_stores import opened, redis_store
from tests.web import MAX_AGE, App, client

POLICY = Policy(60, 600, 3600)


@dataclasses.dataclass
class Old:
    number: int


@dataclasses.dataclass
class New:
    number: int
    rank: int = 0


OLD, NEW = Codec(Old), Codec(New)


@pytest.fixture
def anyio_backend():
    return "asyncio"


class Release:
    """One version of an application: a cache of its own, and a loader of its model that counts."""

    def __init__(self, url: str, kind: Any = Old, value: Any = None, policy: Policy = POLICY, **options: Any) -> None:
        self.cache = Cache(url, timeout=2, **options)
        self.kind = kind
        self.value = value
        self.policy = policy
        self.loads = 0
        self.fails = False

    async def load(self) -> Any:
        self.loads += 1
        if self.fails:
            raise ValueError("mine")
        return self.kind(self.loads) if self.value is None else self.value

    async def get(self, key: str = "k") -> tuple[State, Any]:
        outcome = await self.cache.get_or_load(key, self.load, self.policy, returns=self.kind)
        return outcome.state, outcome.value

    async def loaded(self, number: int) -> None:
        """Wait until that many loads are over."""
        await until(lambda: self.loads == number)
        await until(lambda: not len(self.cache.engine.flights))

    async def __aenter__(self) -> "Release":
        await self.cache.__aenter__()
        return self

    async def __aexit__(self, *error: Any) -> None:
        await self.cache.__aexit__(*error)


def releases(server: Server, **options: Any) -> tuple[Release, Release]:
    return Release(server.url, **options), Release(server.url, kind=New, **options)


# -- fingerprints -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("change", CHANGES)
def test_each_change_of_a_model_changes_its_fingerprint(change: str):
    before, _, after, _ = CHANGES[change]
    assert Codec(before).fingerprint != Codec(after).fingerprint


def test_model_without_schema_is_fingerprinted_by_its_field_names():
    def no_schema(kind: object) -> dict[str, Any]:
        raise TypeError(kind)

    found = {fingerprint(kind, no_schema) for kind in (SCHEMALESS, SCHEMALESS_AFTER, Unresolvable, SCHEMALESS)}
    assert len(found) == 3


def test_model_keeps_its_fingerprint_whatever_its_defaults_and_field_order():
    """Defaults, docstrings and the order of fields do not change the fingerprint."""

    def made(default: object) -> type:
        one = dataclasses.make_dataclass("One", [("at", float, default), ("id", NewType("Id", int), 0)])
        one.__doc__ = f"Made with {default}."
        return one

    assert Codec(made(time.time())).fingerprint == Codec(made(0.5)).fingerprint
    in_order = dataclasses.make_dataclass("One", [("a", int), ("b", int)])
    turned = dataclasses.make_dataclass("One", [("b", int), ("a", int)])
    assert Codec(in_order).fingerprint == Codec(turned).fingerprint


# -- loads --------------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("change", CHANGES)
async def test_each_release_loads_once_and_gets_its_own_value(server: Server, change: str):
    before, old_value, after, new_value = CHANGES[change]
    async with (
        Release(server.url, before, old_value, l1_max_bytes=0) as old,
        Release(server.url, after, new_value, l1_max_bytes=0) as new,
    ):
        for _ in range(3):
            for release in (old, new):
                assert (await release.get())[1] == release.value
        assert (old.loads, new.loads) == (1, 1)
        assert [(await release.get())[0] for release in (old, new)] == [State.FRESH] * 2


@pytest.mark.anyio
async def test_releases_with_two_frame_formats_load_once_each_and_share_invalidations(
    server: Server, monkeypatch: pytest.MonkeyPatch
):
    def now_in(form: int) -> None:
        monkeypatch.setattr("swr.core.fingerprint.FORMAT", form)
        monkeypatch.setattr("swr.core.frames.FORMAT", form)
        _cached_codec.cache_clear()

    forms = (frames.FORMAT, frames.FORMAT + 1)
    options = {"namespace": "formats", "l1_max_bytes": 0}
    async with Release(server.url, **options) as older, Release(server.url, **options) as newer:
        for loads_of_each in (1, 2):
            for expected in (State.MISSING, State.FRESH):
                for form, release in zip(forms, (older, newer), strict=True):
                    now_in(form)
                    assert await release.get() == (expected, Old(loads_of_each))
            await newer.cache.invalidate("k")
    _cached_codec.cache_clear()


@pytest.mark.parametrize("first", ["old", "new"])
def test_two_processes_of_a_deploy_load_once_each_after_every_invalidation(
    start: Any,  # noqa: F811  # a fixture
    loads: Loads,  # noqa: F811  # a fixture
    first: str,
):
    """In either order of the releases: a load of one release removes nothing of the other."""
    second = "new" if first == "old" else "old"
    (one,), (other,) = start(1, release=first), start(1, release=second)

    def loaded() -> list[int]:
        pids = [pid for pid, _ in loads.lines()]
        return [pids.count(one.pid), pids.count(other.pid)]

    for process in (one, other):
        process.ask("set", policy=[60, 600], tags=["t"])
    for _ in range(5):
        for process in (one, other):
            process.ask("read", key="k", readers=20)
    assert loaded() == [1, 1]
    for windows, (process, invalidate) in enumerate(
        [
            (one, {"do": "invalidate", "key": "k"}),
            (other, {"do": "invalidate_tag", "tag": "t"}),
            (one, {"do": "clear"}),
        ],
        2,
    ):
        loads.now(f"truth {windows}")
        process.ask(**invalidate)
        for reader in (one, other):
            deadline = time.time() + 30
            while reader.ask("read", key="k", readers=5)["values"] != {f"truth {windows}": 5}:
                assert time.time() < deadline
        assert loaded() == [windows, windows]


@pytest.mark.anyio
async def test_stale_value_of_one_release_is_served_whatever_the_other_release_stores(server: Server):
    async with Release(server.url, policy=Policy(0.001, 600), l1_max_bytes=0) as old, Release(server.url, New) as new:
        await old.get()
        for number in range(1, 4):
            await asyncio.sleep(0.01)
            await new.cache.invalidate("other")
            await new.get(f"k{number}")
            await new.cache.get_or_load("k", new.load, POLICY, returns=New)
            state, value = await old.get()
            assert (state, value) == (State.STALE, Old(number))
            await old.loaded(number + 1)


@pytest.mark.anyio
async def test_each_release_has_its_own_lease(server: Server):
    async with opened(redis_store(server)) as store:
        old, new = [await store.acquire("k", "t", 30, 0, codec) for codec in (OLD, NEW)]
        await store.renew(old, 30)
        await store.commit(new, stamp(New(1), POLICY, time.time(), new.version, new.tag_version), NEW)
        assert (await store.acquire("k", "other", 30, 0, NEW)).value == New(1)
        assert (await store.acquire("k", "other", 30, 0, OLD)).retry_after > 0
        await store.release(old)
        assert isinstance(await store.acquire("k", "other", 30, 0, OLD), Lease)


@pytest.mark.anyio
async def test_each_release_backs_off_after_its_own_failures_only(server: Server, monkeypatch):
    # The backoff must not end meanwhile.
    monkeypatch.setattr("swr.engine.endings.backoff_after", lambda failures, uniform: 60.0)
    async with (
        Release(server.url, policy=Policy(0.001, 0, 600), l1_max_bytes=0) as old,
        Release(server.url, New) as new,
    ):
        await old.get()
        await asyncio.sleep(0.01)
        old.fails = True
        for _ in range(3):
            assert await old.get() == (State.STALE, Old(1))
        assert old.loads == 2
        assert await new.get() == (State.MISSING, New(1))
        # The other version's commit does not end the backoff.
        assert await old.get() == (State.STALE, Old(1))
        assert old.loads == 2


@pytest.mark.anyio
async def test_refresh_or_early_refresh_of_one_release_leaves_the_other_fresh(server: Server):
    eager = Policy(60, 600, early=1e9)
    async with Release(server.url, policy=eager, l1_max_bytes=0) as old, Release(server.url, New) as new:
        await new.get()
        await old.get()
        await old.cache.engine.refresh("k", _job(old))
        # It is a matter of chance which reader of a fresh value has it refreshed.
        async with asyncio.timeout(60):
            while old.loads < 3:
                await old.get()
                await asyncio.sleep(0.01)
        assert await new.get() == (State.FRESH, New(1))
        assert new.loads == 1


def _job(release: Release) -> Any:
    loader = Loader(release.cache.engine, release.load, False, False)
    return Call(loader, NO_ARGUMENTS, release.policy, Codec(release.kind))


@pytest.mark.anyio
async def test_batch_loaders_of_two_releases_load_once_each_under_one_template(server: Server):
    one, other = Cache(server.url, timeout=2), Cache(server.url, timeout=2)
    loads_of: list[str] = []

    @one.cached_many("row:{n}", fresh_for=60, absent_for=60)
    async def old_rows(numbers: list[int]) -> dict[int, Old]:
        loads_of.append("old")
        return {number: Old(number) for number in numbers if number}

    @other.cached_many("row:{n}", fresh_for=60, absent_for=60)
    async def new_rows(numbers: list[int]) -> dict[int, New]:
        loads_of.append("new")
        return {number: New(number, 1) for number in numbers if number != 3}

    @other.cached("row:{n}", fresh_for=60)
    async def new_row(n: int) -> New:
        raise AssertionError("the batch has loaded it")

    async with one, other:
        for _ in range(3):
            assert await old_rows([0, 1, 2]) == {1: Old(1), 2: Old(2)}
            assert await new_rows([1, 2, 3]) == {1: New(1, 1), 2: New(2, 1)}
            for cache in (one, other):
                cache.local.clear()
        assert loads_of == ["old", "new"]
        assert await new_row(1) == New(1, 1)


@pytest.mark.anyio
@pytest.mark.parametrize("many", [False, True], ids=["cached", "cached_many"])
@pytest.mark.parametrize("tags", [("group:{group}",), ("all", "group:{group}")], ids=["adds", "adds and keeps"])
async def test_release_that_adds_a_tag_gets_no_entry_without_this_tag(server: Server, many: bool, tags: Any):
    """An entry of the earlier release would survive the invalidation of the new tag while it is fresh."""
    one, other = Cache(server.url, timeout=2), Cache(server.url, timeout=2)
    truth = 1

    def decorated(cache: Cache, *tags: str) -> Any:
        async def score(group: str) -> int:
            return truth

        async def scores(groups: list[str]) -> dict[str, int]:
            return dict.fromkeys(groups, truth)

        if many:
            of_many = cache.cached_many("score:{group}", fresh_for=60, tags=tags)(scores)
            return lambda group: of_many([group])
        return cache.cached("score:{group}", fresh_for=60, tags=tags)(score)

    before, after = decorated(one, *tags[:-1]), decorated(other, *reversed(tags))
    async with one, other:
        for score in (before, after):
            await score("ATL")
        truth = 2
        await other.invalidate_tag("group:ATL")
        assert await after("ATL") == ({"ATL": 2} if many else 2)
    async with Cache(server.url, timeout=2) as late:
        # In whatever order they are declared, tags are the same: there is nothing to load.
        truth = 3
        assert await decorated(late, *tags)("ATL") == ({"ATL": 2} if many else 2)


# -- invalidations ------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("by", ["key", "tag", "clear"])
async def test_invalidation_by_one_release_removes_the_entries_of_both(server: Server, by: str):
    tagged = POLICY.tagged(["t"])
    async with Release(server.url, policy=tagged) as old, Release(server.url, New, policy=tagged) as new:
        for invalidating in (old, new):
            for release in (old, new):
                await release.get()
            before = old.loads, new.loads
            if by == "key":
                await invalidating.cache.invalidate("k")
            elif by == "tag":
                await invalidating.cache.invalidate_tag("t")
            else:
                await invalidating.cache.clear()
            for release in (old, new):
                await until(lambda release=release: release.cache.engine.store.peek("k") is None)
                assert await release.cache.engine.store.read("k", Codec(release.kind)) is None
                assert (await release.get())[0] is State.MISSING
            assert (old.loads, new.loads) == (before[0] + 1, before[1] + 1)


@pytest.mark.anyio
async def test_invalidation_rejects_the_running_commits_of_every_release(server: Server):
    async with opened(redis_store(server)) as store:
        leases = [
            (await store.acquire("k", "t", 30, 0, codec), codec, kind) for codec, kind in ((OLD, Old), (NEW, New))
        ]
        await store.invalidate("k")
        for lease, codec, kind in leases:
            with pytest.raises(LeaseLost):
                await store.commit(lease, stamp(kind(1), POLICY, time.time(), lease.version, lease.tag_version), codec)
            assert await store.read("k", codec) is None


@pytest.mark.anyio
async def test_replayed_invalidation_removes_only_older_entries_and_leases(server: Server):
    """A server has lost the invalidation: one release loaded before it, the other after it."""
    async with opened(redis_store(server)) as store:
        versions = []
        for codec, kind in ((OLD, Old), (NEW, New)):
            lease = await store.acquire("k", "t", 30, 0, codec)
            await store.commit(lease, stamp(kind(1), POLICY, time.time(), lease.version, lease.tag_version), codec)
            versions.append(lease.version)
        waiting = await store.acquire("k", "later", 30, versions[0], OLD)

        async def remind(version: int) -> int:
            keys = store.names.entry_and_lease("k")
            arguments = (b"channel", scripts.TOMBSTONE_FOR, scripts.digits(version), b"message")
            return int(await store.commands.script(scripts.REMIND, keys, *arguments))

        assert await remind(versions[0]) == 0
        assert await remind(versions[0] + 1) == 1
        assert await store.read("k", OLD) is None
        assert (await store.read("k", NEW)).value == New(1)
        await store.renew(waiting, 30)
        assert await remind(waiting.version + 1) == 1
        assert await store.read("k", NEW) is None
        assert await remind(waiting.version + 1) == 0
        with pytest.raises(LeaseLost):
            await store.renew(waiting, 30)


# -- the local cache ----------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.usefixtures("no_heartbeats")
async def test_commit_of_one_release_keeps_the_local_copy_of_the_other(server: Server):
    async with Release(server.url) as old, Release(server.url, New) as new:
        await old.get()
        heard: list[Notification] = []
        old.cache.engine.notifications.subscribe(heard.append)
        await new.get()
        await until(lambda: any(message.kind is Kind.COMMITTED for message in heard))
        sent = old.cache.engine.store.sent
        assert await old.get() == (State.FRESH, Old(1))
        assert old.cache.engine.store.sent == sent
        assert old.cache.engine.store.peek("k") is not None


async def with_an_old_entry() -> tuple[TieredStore, FlakyStore, Lease]:
    """Return a store that holds "k" of the old release, not in its local cache, and the lease that stored it."""
    store = FlakyStore(MemoryStore())
    tiered = TieredStore(LocalCache(2**20, 100), store)
    await tiered.open(lambda *_: None, lambda _: None)
    lease = await tiered.acquire("k", "t", 30, 0, OLD)
    await tiered.commit(lease, stamp(Old(1), POLICY, time.time(), lease.version, lease.tag_version), OLD)
    tiered.local.clear()
    return tiered, store, lease


@pytest.mark.anyio
async def test_commit_of_another_type_does_not_outdate_a_read_that_is_under_way():
    tiered, store, lease = await with_an_old_entry()

    async def hear(fingerprint: str) -> None:
        store._subscriber(Notification(Kind.COMMITTED, "k", lease.version + 1, True, fingerprint))

    store.after["read"] = functools.partial(hear, NEW.fingerprint)
    assert (await tiered.read("k", OLD)).value == Old(1)
    tiered.local.clear()
    store.after["read"] = functools.partial(hear, OLD.fingerprint)
    assert await tiered.read("k", OLD) is None


@pytest.mark.anyio
async def test_invalidation_outdates_reads_of_every_type_that_are_under_way():
    tiered, store, lease = await with_an_old_entry()
    answers: list[Any] = []

    async def read_and_invalidate() -> None:
        del store.after["read"]
        answers.append(await tiered.read("k", NEW))
        store.after["read"] = invalidate
        answers.append(await tiered.read("k", NEW))
        del store.after["read"]

    async def invalidate() -> None:
        store._subscriber(Notification(Kind.INVALIDATED, "k", lease.version + 1, True))

    store.after["read"] = read_and_invalidate
    answers.append(await tiered.read("k", OLD))
    assert answers[1:] == [None, None]


# -- what Redis holds ---------------------------------------------------------------------------------------------


async def _store(store: Any, codec: Codec, value: Any, policy: Policy = POLICY) -> None:
    lease = await store.acquire("k", "t", 30, 10**16 - 1, codec, force=True)
    await store.commit(lease, stamp(value, policy, time.time(), lease.version, lease.tag_version), codec)


@pytest.mark.anyio
async def test_read_of_one_release_beside_another_runs_no_script(server: Server, no_heartbeats):
    async with Release(server.url, l1_max_bytes=0) as old, Release(server.url, New) as new:
        await old.get()
        await new.get()
        calls = server.says("INFO", "commandstats")
        assert await old.get() == (State.FRESH, Old(1))
        after = server.says("INFO", "commandstats")

    def count(stats: str, name: str) -> int:
        found = [line for line in stats.splitlines() if line.startswith(f"cmdstat_{name}:")]
        return int(found[0].partition("calls=")[2].partition(",")[0]) if found else 0

    assert count(after, "eval") == count(calls, "eval")
    assert count(after, "get") == count(calls, "get")


@pytest.mark.anyio
async def test_commit_drops_expired_types_and_the_oldest_of_too_many(server: Server):
    async with opened(redis_store(server)) as store:
        # 5 s longer than its time.
        short = dataclasses.make_dataclass("Short", [("a", int)])
        await _store(store, Codec(short), short(1), Policy(0.001))
        await _store(store, OLD, Old(1))
        assert (await store.read("k", Codec(short))).value == short(1)
        await asyncio.sleep(5.1)
        await _store(store, NEW, New(1))
        assert await store.read("k", Codec(short)) is None
        assert (await store.read("k", OLD)).value == Old(1)
        for number in range(scripts.MOST_TYPES - 1):
            other = dataclasses.make_dataclass("Other", [(f"a{number}", int)])
            await _store(store, Codec(other), other(1))
        assert await store.read("k", OLD) is None
        assert (await store.read("k", NEW)).value == New(1)
        assert (await store.read("k", Codec(other))).value == other(1)


@pytest.mark.anyio
async def test_redis_key_lives_as_long_as_its_longest_lived_entry(server: Server):
    async with opened(redis_store(server)) as store:
        await _store(store, OLD, Old(1), Policy(60, 600))
        await _store(store, NEW, New(1), Policy(60))
        left = int(server.command("PTTL", "swr:{k}")[1:])
        assert 600_000 < left <= 666_000
        assert (await store.read("k", OLD)).value == Old(1)


@pytest.mark.anyio
async def test_repeated_commit_succeeds_but_commit_without_a_lease_raises_lease_lost(server: Server):
    async with opened(redis_store(server)) as store:
        lease = await store.acquire("k", "t", 30, 0, OLD)
        entry = stamp(Old(1), POLICY, time.time(), lease.version, lease.tag_version)
        await store.commit(lease, entry, OLD)
        await _store(store, NEW, New(1))
        await store.commit(lease, entry, OLD)
        with pytest.raises(LeaseLost):
            await store.commit(lease, stamp(New(2), POLICY, time.time(), lease.version, lease.tag_version), NEW)


@pytest.mark.anyio
@pytest.mark.parametrize(
    "data",
    [
        b"0" * 16 + b"e" + b"z" * 40,
        b"0000000000000001e00000000" + b"9" * 10 + b"0" * 16,
        b"0000000000000001e00000000" + b"0" * 10 + b"0" * 16,
        b"9999999999999999t",
        b"9999999999999999e" + OLD.fingerprint.encode() + b"0000000100" + b"0" * 70,
    ],
)
async def test_foreign_data_is_a_miss_and_is_replaced(server: Server, data: bytes):
    from redis.asyncio import Redis

    client = Redis.from_url(server.url)
    async with Release(server.url, l1_max_bytes=0) as old, Release(server.url, New, l1_max_bytes=0) as new:
        await client.set("swr:{k}", data)
        for _ in range(2):
            assert await old.get()
            assert await new.get()
        assert (old.loads, new.loads) == (1, 1)
        await client.set("swr:{k}", data)
        await old.cache.invalidate("k")
        assert (await old.get())[0] is State.MISSING
    await client.aclose()


@pytest.mark.anyio
@pytest.mark.parametrize(
    "text",
    [
        "x",
        "l" + "9" * 16 + "1" * 16 + "stranger",
        "l" + "2" * 16 + "9" * 16 + "stranger",
        "l" + "1" * 16 + "1" * 16 + "stranger",
        "l" + "2" * 16,
        "p" + "9" * 16 + "1",
        "p" + "1" * 16 + "9" * 400,
        "p" + "1" * 16 + "1e9",
    ],
    ids=lambda text: text[:24],
)
async def test_malformed_lease_or_backoff_delays_no_reader(server: Server, text: str):
    async with Release(server.url) as old:
        server.command("HSET", "swr:{k}:l", OLD.fingerprint, text)
        async with asyncio.timeout(60):
            assert (await old.get())[1] == Old(1)
        assert server.command("EXISTS", "swr:{k}:l") == b":0\r\n"


def test_frame_of_each_type_is_found_among_the_frames_of_a_key():
    old = frames.encode("k", stamp(Old(1), POLICY, 0.0, 5), OLD)
    new = frames.encode("k", stamp(New(1), POLICY, 0.0, 6), NEW)
    assert frames.frame_of(new + old, OLD.fingerprint) == old
    assert frames.frame_of(new + old, NEW.fingerprint) == new
    assert frames.frame_of(new, OLD.fingerprint) is None
    assert frames.frame_of(new + old[:-1], OLD.fingerprint) == old[:-1]
    assert frames.frame_of(new + b"x", OLD.fingerprint) == b"x"
    assert [found.fingerprint for found in frames.frames_in(new + old)] == [NEW.fingerprint, OLD.fingerprint]


@pytest.mark.anyio
async def test_releases_keep_separate_entries_in_a_cluster_and_share_invalidations():
    with ClusterOfSix(kinds()[0]) as cluster:
        async with Release(cluster.url, l1_max_bytes=0) as old, Release(cluster.url, New, l1_max_bytes=0) as new:
            for key in ("a", "b", "{c}"):
                for _ in range(2):
                    await old.get(key)
                    await new.get(key)
            assert (old.loads, new.loads) == (3, 3)
            await new.cache.invalidate("a")
            assert (await old.get("a"))[0] is State.MISSING


# -- looking ------------------------------------------------------------------------------------------------------


def test_inspect_shows_the_entry_of_each_release(server: Server, capsys: Any, monkeypatch):
    # The backoff must not end meanwhile.
    monkeypatch.setattr("swr.engine.endings.backoff_after", lambda failures, uniform: 60.0)

    def said() -> dict[str, Any]:
        assert main(["inspect", "k", "--redis", server.url, "--json"]) == 0
        found: dict[str, Any] = json.loads(capsys.readouterr().out)
        return found

    async def both() -> None:
        async with Release(server.url) as old, Release(server.url, New, policy=Policy(0.001, 0, 600)) as new:
            await old.get()
            await new.get()
            await asyncio.sleep(0.01)
            new.fails = True
            await new.get()
            found = await asyncio.to_thread(said)
            assert (found["fingerprint"], found["why"]) == (NEW.fingerprint, "it is served only if its loader fails")
            assert found["lease"]["failures"] == 1
            (other,) = found["others"]
            assert (other["fingerprint"], other["state"], other["lease"]) == (OLD.fingerprint, "fresh", None)
            assert await asyncio.to_thread(main, ["inspect", "k", "--redis", server.url]) == 0
            shown = capsys.readouterr().out
            assert shown.count("key ") == 2
            assert f"type         {OLD.fingerprint}" in shown
            await old.cache.invalidate("k")

    asyncio.run(both())
    assert main(["inspect", "k", "--redis", server.url]) == 0
    assert "it was invalidated" in capsys.readouterr().out
    found = said()
    assert (found["why"], found["others"], found["fingerprint"]) == ("it was invalidated", [], None)


@pytest.mark.anyio
async def test_inspect_shows_a_lease_without_entry_but_no_malformed_lease(server: Server):
    from swr.stores.redis.inspection import inspect

    async with opened(redis_store(server)) as store:
        await _store(store, OLD, Old(1))
        await store.acquire("k", "loads", 30, 0, NEW)
        server.command("HSET", "swr:{k}:l", "foreign", "x")
        found = await inspect(store, "k")
        assert [one.fingerprint for one in (found, *found.others)] == [OLD.fingerprint, NEW.fingerprint]
        assert found.others[0].lease["holder"] == "loads"
        assert (await inspect(store, "k", NEW.fingerprint)).state is State.MISSING
        assert (await inspect(store, "k", "00000000")).lease is None
        await store.invalidate("k")
        await store.acquire("k", "loads", 30, 0, NEW)
        assert [(await inspect(store, "k")).why, (await inspect(store, "k")).lease["holder"]] == [
            "it was invalidated",
            "loads",
        ]


@pytest.mark.anyio
async def test_inspect_shows_an_unreadable_entry_with_the_reason(server: Server, capsys: Any):
    async with Release(server.url) as old:
        await old.get()
        last = int(server.command("STRLEN", "swr:{k}")[1:]) - 1
        server.command("SETRANGE", "swr:{k}", str(last), "x")
        assert await asyncio.to_thread(main, ["inspect", "k", "--redis", server.url]) == 0
    shown = capsys.readouterr().out
    assert "cannot be read: the checksum does not match" in shown
    assert OLD.fingerprint in shown


def test_codec_of_a_loader_comes_from_its_return_annotation():
    cache = Cache("redis://127.0.0.1:1/0")

    @cache.cached("k", fresh_for=60)
    async def load() -> Old: ...

    assert load.codec is codec_for(load.__wrapped__)


# -- responses ----------------------------------------------------------------------------------------------------


@pytest.mark.anyio
@pytest.mark.parametrize("shared", [True, False], ids=["Redis", "memory"])
async def test_middleware_version_keeps_responses_apart_and_shares_invalidations(server: Server, shared: bool):
    """Each version has its own responses, on both paths to a hit; an invalidated URL is missing for both."""
    caches = [Cache(server.url, timeout=2) for _ in range(2)] if shared else [Cache()] * 2
    apps = [App(MAX_AGE, body=release) for release in (b"old", b"new")]
    async with caches[0], caches[1]:
        old, new = [
            client(SWRMiddleware(app, cache=cache, version=version))
            for app, cache, version in zip(apps, caches, ("2026-11-01", "2026-11-29"), strict=True)
        ]
        for loads in (1, 2):
            for _ in range(3):
                for one, body in ((old, b"old"), (new, b"new")):
                    for headers in ({}, {"cache-control": "max-age=600"}):
                        assert (await one.get("/a?b=1", headers=headers)).content == body
            assert [app.runs for app in apps] == [loads] * 2
            await caches[loads - 1].invalidate_url("/a?b=1")
            if shared:
                key = "GET http://test\n/a?b=1\nversion: 2026-11-"
                for cache, day in zip(caches, ("01", "29"), strict=True):
                    await until(lambda cache=cache, key=key + day: cache.engine.store.peek(key) is None)
        same = client(SWRMiddleware(apps[0], cache=caches[1], version="2026-11-29"))
        assert (await new.get("/a?b=1")).content == (await same.get("/a?b=1")).content == b"new"


def test_middleware_version_that_is_not_one_line_of_text_is_refused():
    for version in ("a\nb", 1, None):
        with pytest.raises(ConfigurationError, match="version="):
            SWRMiddleware(App(), cache=Cache(), version=version)

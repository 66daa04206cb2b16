"""The local cache: the size of its entries, its caps, its tag versions."""

import collections
import enum
import gc
import sys
import threading
import tracemalloc

import anyio
import anyio.lowlevel
import pytest

from swr import Cache, State
from swr.entry import stamp
from swr.policy import Policy
from swr.stores.local import LocalCache
from swr.stores.memory_size import measure, memory_size
from swr.stores.tag_versions import ALL, TagVersions


def entry(value):
    return stamp(value, Policy(60), 0.0)


class Plain:
    def __init__(self, data):
        self.data = data


@pytest.mark.uncounted
@pytest.mark.parametrize(
    "make",
    [
        lambda: "x" * 5000,
        lambda: [float(n) for n in range(2000)],
        lambda: [{"tailnum": f"N{n:05}", "delay": n * 1000} for n in range(500)],
        lambda: [Plain([str(n)] * 3) for n in range(500)],
        lambda: {str(n): (n + 10**6, None) for n in range(500)},
    ],
)
def test_the_memory_size_of_an_object_is_what_it_occupies(make):
    make()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    value = make()
    occupied = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * occupied < memory_size(value) < 1.5 * occupied


def test_what_is_shared_or_circular_is_counted_once():
    text = "x" * 1000
    assert memory_size([text] * 50) < 2 * memory_size([text])
    circular = []
    circular.append(circular)
    assert memory_size(circular) == sys.getsizeof(circular)
    assert memory_size(Plain(len)) < 1000


class Fruit(enum.StrEnum):
    APPLE = "apple"


class Proxy:
    """What represents another object, and only within a request, as Werkzeug's and Django's do."""

    @property
    def __class__(self):
        raise RuntimeError("outside of a request")


def test_subclasses_of_plain_types_count_with_what_they_hold():
    counter = collections.Counter({"a" * 99: 7})
    expected = [[counter, Fruit.APPLE], counter, "a" * 99, 7, Fruit.APPLE]
    assert memory_size([counter, Fruit.APPLE]) == sum(map(sys.getsizeof, expected))


def test_an_object_that_does_not_say_its_class_is_measured_all_the_same():
    for value in (Proxy(), [Proxy()]):
        assert memory_size(value) >= sys.getsizeof(value)


def test_counting_stops_at_a_number_of_objects(monkeypatch):
    monkeypatch.setattr("swr.stores.memory_size._MOST_OBJECTS", 100)
    assert memory_size([[n] for n in range(10_000)]) >= sys.getsizeof([]) * 100


@pytest.mark.parametrize("limit", [3000, 5000])
def test_what_is_not_counted_is_taken_for_as_large_as_what_is(limit):
    value = [f"{number:05}" for number in range(10_000)]
    size, is_whole = measure(value, limit)
    assert not is_whole
    assert 0.5 * memory_size(value) < size < 2 * memory_size(value)
    assert measure(value, 20_000) == (memory_size(value), True)


class TestLargeValues:
    pytestmark = pytest.mark.anyio

    @pytest.fixture
    def value(self):
        # What is counted first says little about the rest.
        return [[str(number)] * 1 for number in range(3000)] + ["x" * 1000 + str(number) for number in range(20_000)]

    async def test_a_large_value_is_measured_in_a_thread_and_keeps_its_place(self, value):
        async with Cache() as cache:
            await cache.get_or_load("k", lambda: value, Policy(60))
            slot = cache.local.slots["k"]
            with anyio.fail_after(30):
                while cache.local.slots["k"] is slot:
                    await anyio.sleep(0.001)
            assert cache.local.slots["k"].weight >= memory_size(value)
            assert cache.local.slots.currsize == cache.local.slots["k"].weight
            assert (await cache.get_or_load("k", lambda: 1, Policy(60))).value is value

    async def test_a_large_value_that_is_replaced_meanwhile_is_not_put_back(self, value, monkeypatch):
        begun, go_on = threading.Event(), threading.Event()

        def slow(value):
            begun.set()
            assert go_on.wait(30)
            return 10

        monkeypatch.setattr("swr.stores.local.memory_size", slow)
        async with Cache() as cache:
            await cache.get_or_load("k", lambda: value, Policy(60))
            await anyio.to_thread.run_sync(begun.wait, 30)
            await cache.invalidate("k")
            go_on.set()
        assert "k" not in cache.local.slots

    async def test_a_large_value_that_turns_out_too_large_is_dropped_with_a_word(self, value, caplog):
        async with Cache(l1_max_bytes=memory_size(value) * 9 // 10) as cache:
            for _ in range(2):
                await cache.get_or_load("k", lambda: value, Policy(60))
                with anyio.fail_after(30):
                    while "k" in cache.local.slots:
                        await anyio.sleep(0.001)
        assert [record.message for record in caplog.records if "is not kept" in record.message] == [
            f"the value of 'k' is larger than l1_max_bytes={memory_size(value) * 9 // 10} and is not kept, so each "
            "call loads it again: give the cache more memory, or Redis"
        ]


@pytest.mark.anyio
@pytest.mark.parametrize("l1_max_bytes", [10_000, 0])
async def test_a_value_that_a_cache_without_redis_cannot_keep_is_said_once_for_each_key(l1_max_bytes, caplog):
    async with Cache(l1_max_bytes=l1_max_bytes) as cache:
        for key in ("a", "b", "a"):
            assert (await cache.get_or_load(key, lambda: "x" * 20_000, Policy(60))).state is State.MISSING
        for number in range(200):
            await cache.get_or_load(str(number), lambda: "x" * 20_000, Policy(60))
    warned = [record for record in caplog.records if "is not kept" in record.message]
    assert [record.args[0] for record in warned][:2] == ["a", "b"]
    assert len(warned) == 100


def test_the_bytes_that_slots_take_stay_below_the_cap():
    local = LocalCache(10_000, 100)
    for number in range(20):
        local.put(str(number), entry("x" * 1000))
    assert 4 <= len(local.slots) <= 9
    assert sum(slot.weight for slot in local.slots.values()) == local.slots.currsize <= 10_000


def test_what_very_many_entries_have_in_common_is_there_once():
    """A shop keeps a million small pages in each process: what swr adds to each decides how many fit."""
    many = 2000
    local = LocalCache(2**30, many)

    def load(number):
        took = 0.0123 + number * 1e-9
        page = stamp(b"%0200d" % number, Policy(60), 1e9 + number, 10**15 + number, took=took, loader="pages")
        local.put(f"page:{number:06}", page, 1000, "fingerprint")

    load(0)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(1, many):
            load(number)
        taken = (tracemalloc.get_traced_memory()[0] - before) / (many - 1)
    finally:
        tracemalloc.stop()
    slots = list(local.slots.values())
    assert len({id(slot.origin) for slot in slots}) == len({id(slot.entry.took) for slot in slots}) == 1
    assert len({id(slot.weight) for slot in slots}) == 1
    # The value and the key are 290 of them, the item of the dictionary about 80.
    assert taken < 780
    assert taken < slots[0].weight


def test_the_time_of_a_load_is_kept_with_three_digits():
    assert stamp("x", Policy(60), 0.0, took=12.3456).took == 12.3
    assert stamp("x", Policy(60), 0.0, took=0.00123456).took == 0.00123
    assert stamp("x", Policy(60), 0.0, took=123456.0).took == 123000.0


def test_entries_are_bounded_by_number_too():
    local = LocalCache(2**30, 3)
    for number in range(10):
        local.put(str(number), entry(number))
    assert list(local.slots) == ["7", "8", "9"]


def test_what_is_too_large_is_not_held_and_takes_its_predecessor_away():
    local = LocalCache(5000, 100)
    local.put("k", entry("small"))
    local.put("other", entry("small"))
    local.put("k", entry("x" * 10_000))
    assert local.get("k") is None
    assert local.get("other") is not None


def test_a_local_cache_of_no_bytes_holds_nothing():
    local = LocalCache(0, 100)
    local.put("k", entry(None))
    assert local.get("k") is None


class TestForgetting:
    """A clear, or an invalidation that no server has taken, costs the event loop the same however much there is."""

    @pytest.mark.anyio
    async def test_many_entries_are_gone_at_once_and_freed_in_turns(self):
        local, freed = LocalCache(2**30, 10_000), []
        local.start = lambda function, *args: freed.append((function, args))
        for number in range(3500):
            local.put(str(number), entry(number))
        trust = local.trust
        local.clear()
        assert local.trust is not trust
        assert len(local.slots) == 3500
        local.put("5", entry("new"))
        assert local.get("3499") is None
        ((function, args),) = freed
        seen = {len(local.slots)}
        async with anyio.create_task_group() as group:
            group.start_soon(function, *args)
            while len(local.slots) > 1:
                await anyio.lowlevel.checkpoint()
                seen.add(len(local.slots))
        assert len(seen) > 2
        assert local.get("5").entry.value == "new"

    @pytest.mark.anyio
    async def test_a_cache_forgets_all_at_a_clear(self):
        async with Cache() as cache:
            for number in range(1500):
                await cache.get_or_load(str(number), lambda: 1, Policy(60))
            await cache.clear()
            assert (await cache.get_or_load("7", lambda: 2, Policy(60))).value == 2
            with anyio.fail_after(60):
                while len(cache.local.slots) > 1:
                    await anyio.lowlevel.checkpoint()
            assert (await cache.get_or_load("7", lambda: 3, Policy(60))).value == 2

    def test_a_tag_is_forgotten_without_a_look_at_each_entry(self):
        local = LocalCache(2**30, 10_000)
        for number in range(4):
            local.put(str(number), stamp(number, Policy(60, tags=(f"t{number % 2}",)), 0.0))
        trust = local.trust
        local.forget("none", 0)
        assert local.trust is trust
        local.forget("t1", 0)
        assert local.trust is not trust
        local.put("3", stamp("new", Policy(60, tags=("t1",)), 0.0))
        assert [local.get(str(number)) is None for number in range(4)] == [False, True, False, False]

    def test_of_more_tags_than_are_remembered_all_is_forgotten(self, monkeypatch):
        monkeypatch.setattr("swr.stores.local._MOST_FORGOTTEN", 1)
        local = LocalCache(2**30, 10_000)
        for number in range(4):
            local.put(str(number), stamp(number, Policy(60, tags=(f"t{number}",)), 0.0))
        local.forget("t1", 0)
        local.forget("t2", 0)
        assert len(local.slots) == 0


class TestAlias:
    """An alias leads to a slot for as long as the slot is held."""

    @pytest.fixture
    def local(self):
        local = LocalCache(10_000, 5)
        local.put("k", entry("x"))
        local.alias(local.get("k"), ("a", "b"), local.aliases_of(""))
        return local

    def test_an_alias_leads_to_its_slot(self, local):
        assert local.aliases_of("") == {("a", "b"): local.get("k")}

    def test_a_slot_keeps_its_first_alias(self, local):
        local.alias(local.get("k"), "another", local.aliases_of("2"))
        assert local.aliases_of("2") == {}
        assert local.aliases_of("") == {("a", "b"): local.get("k")}

    @pytest.mark.parametrize(
        "lose",
        [
            lambda local: local.put("k", entry("newer")),
            lambda local: local.put("k", entry("x" * 20_000)),
            lambda local: local.drop("k"),
            lambda local: local.clear(),
            lambda local: local.put("large", entry("x" * 8800)),
            lambda local: [local.put(str(number), entry(number)) for number in range(5)],
        ],
        ids=["replaced", "replaced by nothing", "dropped", "cleared", "pushed out by size", "pushed out by number"],
    )
    def test_an_alias_goes_with_its_slot(self, local, lose):
        lose(local)
        assert local.aliases_of("") == {}


def test_a_tag_version_outdates_older_entries_with_the_tag():
    tag_versions = TagVersions()
    assert tag_versions.raise_to("t", 5)
    assert not tag_versions.raise_to("t", 5)
    assert not tag_versions.raise_to("t", 4)
    assert not tag_versions.admits(4, ("t",))
    assert tag_versions.admits(5, ("t",))
    assert tag_versions.admits(0, ("other",))
    assert tag_versions.admits(0, ())
    assert tag_versions.raise_to(ALL, 7)
    assert not tag_versions.admits(6, ())
    assert tag_versions.admits(7, ("t",))
    assert tag_versions.newest == 7
    assert tag_versions.since(0) == [(ALL, 7), ("t", 5)]
    assert tag_versions.since(5) == [(ALL, 7)]


def test_forgotten_tags_raise_the_minimum_of_all_tagged_entries():
    tag_versions = TagVersions(most_tags=10)
    for number in range(1, 31):
        tag_versions.raise_to(str(number), number)
    assert len(tag_versions.since(0)) <= 10
    assert not tag_versions.admits(1, ("1",))
    assert not tag_versions.admits(1, ("never invalidated",))
    assert tag_versions.admits(0, ())
    assert tag_versions.admits(30, ("1",))
    minimum = min(number for _, number in tag_versions.since(0)) - 1
    assert not tag_versions.raise_to("late", minimum)
    assert tag_versions.raise_minimum(29)
    assert not tag_versions.raise_minimum(29)
    assert not tag_versions.admits(28, ("x",))

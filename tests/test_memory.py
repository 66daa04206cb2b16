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
def test_memory_size_is_close_to_the_memory_occupied(make):
    make()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    value = make()
    occupied = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * occupied < memory_size(value) < 1.5 * occupied


def test_shared_and_circular_objects_are_counted_once():
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


def test_subclasses_of_plain_types_are_measured_with_their_content():
    counter = collections.Counter({"a" * 99: 7})
    expected = [[counter, Fruit.APPLE], counter, "a" * 99, 7, Fruit.APPLE]
    assert memory_size([counter, Fruit.APPLE]) == sum(map(sys.getsizeof, expected))


def test_object_whose_class_cannot_be_read_is_measured():
    for value in (Proxy(), [Proxy()]):
        assert memory_size(value) >= sys.getsizeof(value)


def test_measuring_stops_after_a_number_of_objects(monkeypatch):
    monkeypatch.setattr("swr.stores.memory_size._MOST_OBJECTS", 100)
    assert memory_size([[n] for n in range(10_000)]) >= sys.getsizeof([]) * 100


@pytest.mark.parametrize("limit", [3000, 5000])
def test_size_of_unmeasured_objects_is_estimated_from_measured_ones(limit):
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

    async def test_large_value_stays_in_l1_and_its_weight_is_measured_later(self, value):
        async with Cache() as cache:
            await cache.get_or_load("k", lambda: value, Policy(60))
            slot = cache.local.slots["k"]
            with anyio.fail_after(30):
                while cache.local.slots["k"] is slot:
                    await anyio.sleep(0.001)
            assert cache.local.slots["k"].weight >= memory_size(value)
            assert cache.local.slots.currsize == cache.local.slots["k"].weight
            assert (await cache.get_or_load("k", lambda: 1, Policy(60))).value is value

    async def test_large_value_invalidated_while_it_is_measured_is_not_put_back(self, value, monkeypatch):
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

    async def test_value_measured_as_too_large_is_dropped_and_logged_once(self, value, caplog):
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
async def test_value_too_large_for_a_memory_cache_is_logged_once_for_each_key(l1_max_bytes, caplog):
    async with Cache(l1_max_bytes=l1_max_bytes) as cache:
        for key in ("a", "b", "a"):
            assert (await cache.get_or_load(key, lambda: "x" * 20_000, Policy(60))).state is State.MISSING
        for number in range(200):
            await cache.get_or_load(str(number), lambda: "x" * 20_000, Policy(60))
    warned = [record for record in caplog.records if "is not kept" in record.message]
    assert [record.args[0] for record in warned][:2] == ["a", "b"]
    assert len(warned) == 100


def test_total_weight_of_slots_stays_below_the_cap():
    local = LocalCache(10_000, 100)
    for number in range(20):
        local.put(str(number), entry("x" * 1000))
    assert 4 <= len(local.slots) <= 9
    assert sum(slot.weight for slot in local.slots.values()) == local.slots.currsize <= 10_000


def test_entries_of_one_loader_share_common_objects_and_take_below_780_bytes():
    """In a shop with a million small pages, the overhead of each entry decides how many fit."""
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


def test_duration_of_a_load_is_rounded_to_three_digits():
    assert stamp("x", Policy(60), 0.0, took=12.3456).took == 12.3
    assert stamp("x", Policy(60), 0.0, took=0.00123456).took == 0.00123
    assert stamp("x", Policy(60), 0.0, took=123456.0).took == 123000.0


def test_oldest_entries_are_evicted_beyond_the_maximum_number():
    local = LocalCache(2**30, 3)
    for number in range(10):
        local.put(str(number), entry(number))
    assert list(local.slots) == ["7", "8", "9"]


def test_too_large_value_is_not_held_and_removes_its_predecessor():
    local = LocalCache(5000, 100)
    local.put("k", entry("small"))
    local.put("other", entry("small"))
    local.put("k", entry("x" * 10_000))
    assert local.get("k") is None
    assert local.get("other") is not None


def test_local_cache_of_zero_bytes_holds_no_entry():
    local = LocalCache(0, 100)
    local.put("k", entry(None))
    assert local.get("k") is None


class TestForgetting:
    """A clear and a pending invalidation take the event loop the same time for any number of entries."""

    @pytest.mark.anyio
    async def test_cleared_entries_are_missing_at_once_and_freed_in_steps(self):
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
    async def test_clear_outdates_all_entries_and_frees_them_later(self):
        async with Cache() as cache:
            for number in range(1500):
                await cache.get_or_load(str(number), lambda: 1, Policy(60))
            await cache.clear()
            assert (await cache.get_or_load("7", lambda: 2, Policy(60))).value == 2
            with anyio.fail_after(60):
                while len(cache.local.slots) > 1:
                    await anyio.lowlevel.checkpoint()
            assert (await cache.get_or_load("7", lambda: 3, Policy(60))).value == 2

    def test_forgetting_a_tag_outdates_only_its_entries(self):
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

    def test_all_entries_are_dropped_when_too_many_tags_are_forgotten(self, monkeypatch):
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

    def test_alias_leads_to_its_slot(self, local):
        assert local.aliases_of("") == {("a", "b"): local.get("k")}

    def test_slot_keeps_its_first_alias(self, local):
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
        ids=["replaced", "replaced by a too large value", "dropped", "cleared", "evicted by size", "evicted by number"],
    )
    def test_alias_is_removed_with_its_slot(self, local, lose):
        lose(local)
        assert local.aliases_of("") == {}


def test_tag_version_outdates_older_entries_with_the_tag():
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

"""Which entry goes from the local cache when there is no room."""

import lzma
from array import array
from pathlib import Path

import pytest
from cachetools import LRUCache
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from swr import Cache
from swr.entry import stamp
from swr.middleware import SWRMiddleware
from swr.policy import Policy
from swr.stats.counts import Counts
from swr.stores import eviction
from swr.stores.local import LocalCache, Origin, Slot, Slots

TRACE = Path(__file__).parent.parent / "examples/data/web12.trace.xz"
ENTRY = stamp("x", Policy(60), 0.0)
COUNTS = Counts()


def slot(key, weight=1):
    return Slot(key, ENTRY, weight, Origin(COUNTS.of(""), "", 0, None, 0))


class Reference:
    """The same as lists that are searched from one end to the other."""

    def __init__(self, maxsize, most, visits):
        self.maxsize, self.most, self.visits = maxsize, most, visits
        self.clear()

    def clear(self):
        self.small, self.main, self.weights, self.used, self.hand = [], [], {}, set(), None
        self.gone = []

    def weight(self, keys):
        return sum(self.weights[key] for key in keys)

    def drop(self, key):
        if key not in self.weights:
            return
        if key == self.hand:
            self.hand = self.after(key)
        (self.small if key in self.small else self.main).remove(key)
        del self.weights[key]
        self.used.discard(key)

    def after(self, key):
        at = self.main.index(key) + 1
        return self.main[at] if at < len(self.main) else None

    def put(self, key, weight):
        was_main, was_small, was_used = key in self.main, key in self.small, key in self.used
        self.drop(key)
        if weight > self.maxsize:
            return
        while self.weights and (self.weight(self.weights) + weight > self.maxsize or len(self.weights) >= self.most):
            self.evict()
        self.weights[key] = weight
        if was_used:
            self.used.add(key)
        place = hash(key) % len(self.gone) if self.gone else 0
        if not was_small and not was_main and self.gone and self.gone[place] == key:
            self.gone[place], was_main = None, True
        (self.main if was_main else self.small).append(key)

    def evict(self):
        for _ in range(self.visits):
            if not self.main or self.weight(self.small) > 0.2 * self.weight(self.weights):
                key = self.small[0]
                if key not in self.used:
                    if len(self.gone) < len(self.weights):
                        self.gone = [None] * (1 << len(self.weights).bit_length())
                    self.gone[hash(key) % len(self.gone)] = key
                    return self.drop(key)
                self.used.remove(key)
                self.small.remove(key)
                self.main.append(key)
                # The hand has gone round, and the newest of the queue is what it comes to.
            else:
                self.hand = self.hand or self.main[0]
                if self.hand not in self.used:
                    return self.drop(self.hand)
                self.used.remove(self.hand)
                self.hand = self.after(self.hand)
        return self.drop(self.hand or self.main[0])


KEYS = st.integers(0, 25).map(str)


class Model(RuleBasedStateMachine):
    """The slots beside the reference."""

    def __init__(self):
        super().__init__()
        self.slots = Slots(40, Counts())
        self.reference = Reference(40, 12, eviction._MOST_VISITS)

    @rule(key=KEYS, weight=st.integers(1, 8))
    def put(self, key, weight):
        assert self.slots.put(slot(key, weight), 12)
        self.reference.put(key, weight)

    @rule(key=KEYS)
    def put_what_is_too_large(self, key):
        assert not self.slots.put(slot(key, 41), 12)
        self.reference.put(key, 41)

    @rule(key=KEYS, weight=st.integers(1, 8))
    def read(self, key, weight):
        if key in self.slots:
            self.slots[key].is_used = True
            self.reference.used.add(key)
        else:
            self.put(key, weight)

    @rule(key=KEYS)
    def drop(self, key):
        dropped = self.slots.drop(key)
        assert (dropped is not None) == (key in self.reference.weights)
        self.reference.drop(key)

    @precondition(lambda self: len(self.slots) > 8)
    @rule()
    def clear(self):
        self.slots.clear()
        self.reference.clear()

    @invariant()
    def they_agree(self):
        assert {key: slot.weight for key, slot in self.slots.items()} == self.reference.weights
        assert self.slots.currsize == self.reference.weight(self.reference.weights) <= 40
        assert {key for key, slot in self.slots.items() if slot.is_used} == self.reference.used
        assert {key for key, slot in self.slots.items() if slot.is_main} == set(self.reference.main)


@pytest.mark.uncounted
@pytest.mark.parametrize("visits", [3, 500])
def test_slots_are_evicted_as_by_the_reference_implementation(visits, monkeypatch):
    monkeypatch.setattr(eviction, "_MOST_VISITS", visits)

    class TestCase(Model.TestCase):
        settings = settings(max_examples=30, stateful_step_count=60, deadline=None)

    TestCase().runTest()


def read(local, key):
    found = local.get(key)
    if found is None:
        local.put(key, ENTRY)
    else:
        found.is_used = True
    return found is not None


@pytest.mark.uncounted
def test_crawl_evicts_no_entry_that_is_read_often():
    local = LocalCache(2**30, 100)
    hot = [f"hot {number}" for number in range(50)]
    for number in range(5000):
        for key in hot[number % 5 :: 5]:
            read(local, key)
        read(local, f"page {number}")
        read(local, f"other {number}")
    assert set(hot) <= set(local.slots)


@pytest.mark.uncounted
def test_real_trace_gets_more_hits_than_with_lru():
    trace = array("I")
    trace.frombytes(lzma.decompress(TRACE.read_bytes())[:100_000])
    trace.byteswap()
    local, lru = LocalCache(2**30, 300), LRUCache(300)
    hits = misses_of_lru = 0
    for number in trace:
        hits += read(local, str(number))
        if lru.get(number) is None:
            lru[number] = True
            misses_of_lru += 1
    assert hits > 1.03 * (len(trace) - misses_of_lru)


def test_eviction_visits_a_bounded_number_of_slots():
    slots = Slots(10_000, COUNTS)
    for number in range(10_000):
        slots.put(slot(str(number)), 10_000)
        slots[str(number)].is_used = True
    slots.put(slot("new"), 10_000)
    assert len(slots) == 10_000
    assert sum(not slot.is_used for slot in slots.values()) <= eviction._MOST_VISITS


def test_eviction_skips_slots_used_since_its_last_visit():
    slots = Slots(4, COUNTS)
    for key in ("a", "b", "c", "d"):
        slots.put(slot(key), 4)
        slots[key].is_used = True
    # All four enter the main queue, and lose their flag.
    slots.put(slot("e"), 4)
    assert set(slots) == {"b", "c", "d", "e"}
    assert all(slots[key].is_main and not slots[key].is_used for key in ("b", "c", "d"))
    slots["b"].is_used = slots["e"].is_used = True
    slots.put(slot("f"), 4)
    assert set(slots) == {"b", "d", "e", "f"}
    assert not slots["b"].is_used


def test_dropped_slot_references_no_other_slot():
    slots = Slots(100, COUNTS)
    for number in range(3):
        slots.put(slot(str(number)), 100)
    gone = slots.drop("1")
    assert gone is not None
    assert gone.newer is gone.older is gone


def test_keys_stored_again_soon_after_eviction_enter_the_main_queue():
    counts = Counts()
    slots = Slots(1000, counts)
    for number in range(1020):
        slots.put(slot(str(number)), 10_000)
    assert counts.evictions == 20
    for number in range(10):
        slots.put(slot(str(number)), 10_000)
    # One place remembers one key.
    assert sum(slots[str(number)].is_main for number in range(10)) >= 5
    assert not any(slots[str(number)].is_main for number in range(40, 1020))


def test_replaced_entry_keeps_its_used_flag_and_updates_the_size():
    slots = Slots(10, COUNTS)
    slots.put(slot("a"), 100)
    slots["a"].is_used = True
    slots.put(slot("a", 2), 100)
    assert slots["a"].is_used
    assert slots.currsize == 2


class TestArguments:
    """The arguments of a call lead to what is held for them."""

    pytestmark = pytest.mark.anyio

    @pytest.mark.uncounted
    async def test_calls_are_remembered_as_long_as_their_entries_are_held(self):
        async with Cache() as cache:

            @cache.cached("k:{group}:{limit}", fresh_for=60)
            async def load(group, limit=1):
                return [group, limit]

            for _ in range(2):
                for number in range(5000):
                    assert await load(str(number)) == [str(number), 1]
            held = cache.local.aliases_of(load._keys)
            assert len(held) == 5000
            assert await load(group="7") == await load("7", limit=1) == await load("7", 1) == ["7", 1]
            assert await load(7) == [7, 1]
            await load.invalidate("7")
            assert len(held) == 4999
            assert await load("7") == ["7", 1]
            await cache.clear()
            assert await load("7") == ["7", 1]

    @pytest.mark.parametrize("order", [(1, True, 1.0), (True, 1, 1.0), (1.0, 1, True)])
    async def test_equal_arguments_of_different_types_get_separate_values(self, order):
        async with Cache() as cache:

            @cache.cached("one:{a}", fresh_for=60)
            async def one(a):
                return repr(a)

            @cache.cached("two:{a}:{b}", fresh_for=60)
            async def two(a, b):
                return repr((a, b))

            for _ in range(4):
                for value in order:
                    assert await one(value) == repr(value)
                    assert await two("x", value) == repr(("x", value))
                    assert await two(value, "x") == repr((value, "x"))

    async def test_call_with_unhashable_argument_is_answered(self):
        async with Cache() as cache:

            @cache.cached("k:{items}", fresh_for=60)
            async def total(items):
                return sum(items)

            assert [await total([1, 2]) for _ in range(3)] == [3, 3, 3]


@pytest.mark.anyio
async def test_page_requested_often_survives_a_crawl():
    runs = []

    async def app(scope, receive, send):
        runs.append(scope["path"])
        await send({"type": "http.response.start", "status": 200, "headers": [(b"cache-control", b"max-age=600")]})
        await send({"type": "http.response.body", "body": b"x" * 500})

    async def receive():
        return {"type": "http.request", "body": b"", "more_body": False}

    async def send(message):
        pass

    async with Cache(l1_max_bytes=60_000) as cache:
        middleware = SWRMiddleware(app, cache)

        async def ask(path):
            scope = {"type": "http", "method": "GET", "scheme": "http", "path": path, "raw_path": path.encode()}
            scope |= {"query_string": b"", "headers": [(b"host", b"test")]}
            await middleware(scope, receive, send)

        for number in range(150):
            await ask("/hot")
            await ask(f"/page/{number}")
        assert len(cache.local.slots) < 50
    assert runs.count("/hot") == 1

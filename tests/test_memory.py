"""What lies in memory: its weight, its caps, its barriers."""

import gc
import sys
import tracemalloc

import pytest

from swr.entry import stamp
from swr.policy import Policy
from swr.stores.barriers import ALL, FLOOR, Barriers
from swr.stores.shelf import Shelf
from swr.weigh import weigh


def entry(value):
    return stamp(value, Policy(60), 0.0)


class Plain:
    def __init__(self, data):
        self.data = data


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
def test_an_object_weighs_what_it_occupies(make):
    make()
    gc.collect()
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    value = make()
    occupied = tracemalloc.get_traced_memory()[0] - before
    tracemalloc.stop()
    assert 0.7 * occupied < weigh(value) < 1.5 * occupied


def test_what_is_shared_or_circular_is_weighed_once():
    text = "x" * 1000
    assert weigh([text] * 50) < 2 * weigh([text])
    circular = []
    circular.append(circular)
    assert weigh(circular) == sys.getsizeof(circular)
    assert weigh(Plain(len)) < 1000


def test_weighing_ends(monkeypatch):
    monkeypatch.setattr("swr.weigh._MOST_OBJECTS", 100)
    assert weigh([[n] for n in range(10_000)]) >= sys.getsizeof([]) * 100


def test_the_least_recently_used_goes_first():
    shelf = Shelf(10_000, 100)
    for number in range(5):
        shelf.put(str(number), entry("x" * 1000))
    shelf.get("0")
    shelf.put("new", entry("x" * 1000))
    shelf.put("newer", entry("x" * 1000))
    assert shelf.get("0") is not None
    assert shelf.get("1") is None
    assert shelf.slots.currsize <= 10_000


def test_entries_are_bounded_by_number_too():
    shelf = Shelf(2**30, 3)
    for number in range(10):
        shelf.put(str(number), entry(number))
    assert list(shelf.slots) == ["7", "8", "9"]


def test_what_is_too_large_is_not_held_and_takes_its_predecessor_away():
    shelf = Shelf(5000, 100)
    shelf.put("k", entry("small"))
    shelf.put("other", entry("small"))
    shelf.put("k", entry("x" * 10_000))
    assert shelf.get("k") is None
    assert shelf.get("other") is not None


def test_a_shelf_of_no_bytes_holds_nothing():
    shelf = Shelf(0, 100)
    shelf.put("k", entry(None))
    assert shelf.get("k") is None


class TestAlias:
    """What a face knows a slot by leads to it for as long as it is held."""

    @pytest.fixture
    def shelf(self):
        shelf = Shelf(10_000, 5)
        shelf.put("k", entry("x"))
        shelf.alias(shelf.get("k"), ("a", "b"))
        return shelf

    def test_it_leads_there(self, shelf):
        assert shelf.aliases == {("a", "b"): shelf.get("k")}

    def test_a_slot_has_one(self, shelf):
        shelf.alias(shelf.get("k"), "another")
        assert shelf.aliases == {("a", "b"): shelf.get("k")}

    @pytest.mark.parametrize(
        "lose",
        [
            lambda shelf: shelf.put("k", entry("newer")),
            lambda shelf: shelf.put("k", entry("x" * 20_000)),
            lambda shelf: shelf.drop("k"),
            lambda shelf: shelf.clear(),
            lambda shelf: shelf.put("large", entry("x" * 8800)),
            lambda shelf: [shelf.put(str(number), entry(number)) for number in range(5)],
        ],
        ids=["replaced", "replaced by nothing", "dropped", "cleared", "pushed out by weight", "pushed out by number"],
    )
    def test_it_goes_with_its_slot(self, shelf, lose):
        lose(shelf)
        assert shelf.aliases == {}


def test_a_barrier_outdates_what_is_older_and_tagged_so():
    barriers = Barriers()
    assert barriers.raise_to("t", 5)
    assert not barriers.raise_to("t", 5)
    assert not barriers.raise_to("t", 4)
    assert not barriers.admits(4, ("t",))
    assert barriers.admits(5, ("t",))
    assert barriers.admits(0, ("other",))
    assert barriers.admits(0, ())
    assert barriers.raise_to(ALL, 7)
    assert not barriers.admits(6, ())
    assert barriers.admits(7, ("t",))
    assert barriers.head == 7
    assert barriers.items() == [(ALL, 7), ("t", 5)]


def test_forgotten_tags_become_a_floor_for_all_tagged_entries():
    barriers = Barriers(most_tags=10)
    for number in range(1, 31):
        barriers.raise_to(str(number), number)
    assert len(barriers.items()) <= 11
    assert not barriers.admits(1, ("1",))
    assert not barriers.admits(1, ("never invalidated",))
    assert barriers.admits(0, ())
    assert barriers.admits(30, ("1",))
    floor = dict(barriers.items())[FLOOR]
    assert not barriers.raise_to("late news", floor)
    assert barriers.raise_to(FLOOR, 29)
    assert not barriers.admits(28, ("x",))

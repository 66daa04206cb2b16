"""The table of what counts for a time: leases, pauses, announcements."""

from dataclasses import dataclass

import pytest

from swr.stores.expiring import Expiring


@dataclass
class Until:
    ends_at: float


@pytest.fixture
def table(clock):
    return Expiring(3, clock)


def test_expired_item_is_not_found(table, clock):
    table["a"], table["b"] = Until(clock() + 1), Until(clock() + 5)
    assert table["a"] is table.get("a")
    assert "a" in table
    assert list(table) == ["a", "b"]
    clock.advance(1)
    assert table.get("a") is None
    assert "a" not in table
    assert list(table) == ["b"]
    with pytest.raises(KeyError):
        table["a"]
    assert table.get("c") is None
    assert table.get("c", 1) == 1


def test_item_set_again_has_its_new_expiry_and_popped_item_is_gone(table, clock):
    table["a"] = Until(clock() + 1)
    table["a"] = Until(clock() + 5)
    clock.advance(1)
    assert table.pop("a").ends_at == clock() + 4
    assert len(table) == 0
    assert table.pop("a", None) is None


def test_oldest_item_is_dropped_when_the_table_is_full(table, clock):
    for name in "abcd":
        table[name] = Until(clock() + 5)
    assert list(table) == ["b", "c", "d"]
    table["b"] = Until(clock() + 5)
    table["e"] = Until(clock() + 5)
    assert list(table) == ["d", "b", "e"]


def test_expired_items_are_removed_when_new_ones_are_set(clock):
    table = Expiring(1_000_000, clock)
    for number in range(100):
        table[f"old {number}"] = Until(clock() + 1)
    clock.advance(1)
    for number in range(100):
        table[f"new {number}"] = Until(clock() + 1)
    assert len(table) == 100


def test_item_set_with_a_past_expiry_is_not_found(table, clock):
    table["a"] = Until(clock())
    assert "a" not in table
    table["b"] = Until(clock() + 1)
    assert list(table) == ["b"]

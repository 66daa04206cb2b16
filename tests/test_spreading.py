"""The shards of a queue lie evenly on the masters of a cluster."""

from collections import Counter

import pytest
from redis.crc import key_slot

from swr.refreshers.queue.spreading import hash_tags

NAMES = ("ranking", "r:group", "일", "x" * 200)


def slots(name, shards):
    """Return the slot of each shard."""
    tags = hash_tags(name, shards, lambda tag: f"swr:{{{tag}}}t".encode())
    assert len(set(tags)) == shards
    return [key_slot(f"swr:{{{tag}}}m".encode()) for tag in tags]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(("masters", "shards"), [(1, 1), (2, 2), (3, 3), (6, 6), (3, 6), (6, 18), (2, 64), (8, 192)])
def test_shards_are_spread_evenly_over_masters(name, masters, shards):
    on_each = Counter(slot * masters // 16_384 for slot in slots(name, shards))
    assert set(on_each.values()) == {shards // masters}


@pytest.mark.parametrize("shards", [1, 3, 6])
def test_first_shard_has_the_same_slot_for_any_number_of_shards(shards):
    assert slots("ranking", shards)[0] == key_slot(b"ranking:0")


def test_first_shards_of_many_queues_cover_all_masters():
    assert len({slots(f"ranking-{number}", 6)[0] * 6 // 16_384 for number in range(60)}) == 6


def test_shard_slots_are_the_same_on_every_call():
    assert slots("ranking", 6) == slots("ranking", 6)

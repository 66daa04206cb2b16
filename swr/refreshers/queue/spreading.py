"""The places of a queue's shards, and of its groups, on a cluster."""

import itertools
from collections.abc import Callable
from typing import Final, TypeVar

from redis.crc import key_slot

from swr.refreshers.rounds.groups import in_turns

# Of a cluster.
_SLOTS: Final = 16_384
# Each takes as many tries as there are ranges.
_MOST_RANGES: Final = 64

T = TypeVar("T")


def hash_tags(name: str, shards: int, key_of: Callable[[str], bytes]) -> list[str]:
    """Return the hash tag of each shard: as many masters that share the slots evenly have one shard each.

    The slots of a cluster are divided into as many equal ranges as there are shards, 64 at most, and the shards take
    turns. The first shard is where its name leads, so that the queues of many refreshers begin on different masters.

    Parameters:
        name: of the refresher, as it may be in a key.
        shards: how many.
        key_of: returns a key with a hash tag.
    """

    ranges = min(shards, _MOST_RANGES)

    def range_of(tag: str) -> int:
        return key_slot(key_of(tag)) * ranges // _SLOTS

    tags = [f"{name}:0"]
    first = range_of(tags[0])
    for shard in range(1, shards):
        candidates = itertools.chain((f"{name}:{shard}",), (f"{name}:{shard}.{n}" for n in itertools.count(1)))
        tags.append(next(tag for tag in candidates if range_of(tag) == (first + shard) % ranges))
    return tags


async def in_order_of_places(groups: dict[str, T], place_of: Callable[[str], int]) -> dict[str, T]:
    """Return groups in the order of where they lie: on a cluster, leases and commits of one slot share a command.

    The groups of one place, which on one server are all, stay in their order. A shard has all groups of a slot.

    Parameters:
        place_of: returns where the entry of a key lies; see `Servers.place_of`.
    """
    by_place: dict[int, list[str]] = {}
    async for key in in_turns(groups):
        by_place.setdefault(place_of(key), []).append(key)
    keys = itertools.chain.from_iterable(by_place[place] for place in sorted(by_place))
    return {key: groups[key] async for key in in_turns(keys)}

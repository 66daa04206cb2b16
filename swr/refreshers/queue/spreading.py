"""Spreads the shards of a queue over a Redis cluster, and sorts groups by the places of their entries."""

import itertools
from collections.abc import Callable
from typing import Final, TypeVar

from redis.crc import key_slot

from swr.refreshers.rounds.groups import in_turns

# The number of hash slots of a Redis cluster.
_SLOTS: Final = 16_384
# Finding a hash tag in a given range takes about as many tries as there are ranges.
_MOST_RANGES: Final = 64

T = TypeVar("T")


def hash_tags(name: str, shards: int, key_of: Callable[[str], bytes]) -> list[str]:
    """Return the hash tag of each shard. If as many masters share the slots evenly, each master has one shard.

    The slots of a cluster are divided into as many equal ranges as there are shards, 64 at most. Consecutive shards are
    in consecutive ranges. The first shard is in the range to which its name hashes, so that the queues of many
    refreshers begin on different masters.

    Parameters:
        name: the name of the refresher, in the form for Redis keys.
        shards: the number of shards.
        key_of: returns a Redis key with a hash tag.
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
    """Return groups sorted by the place of their entries: on a cluster, leases and commits of one slot share a command.

    Groups of the same place keep their order. A single server is one place. All groups of a slot are in one shard.

    Parameters:
        groups: values by cache key.
        place_of: returns the place of a key's entry; see `Servers.place_of`.
    """
    by_place: dict[int, list[str]] = {}
    async for key in in_turns(groups):
        by_place.setdefault(place_of(key), []).append(key)
    keys = itertools.chain.from_iterable(by_place[place] for place in sorted(by_place))
    return {key: groups[key] async for key in in_turns(keys)}

"""The account of a run: how many marks were acknowledged, how long they took, and how many were lost."""

from collections.abc import Mapping, Sequence

from examples.cluster.consumer import Consumed
from examples.cluster.producer import Produced
from swr import Cache, Policy
from swr.refreshers import QueueStatus, Refresher


async def lost_of(
    cache: Cache, refresher: Refresher, acknowledged: Mapping[str, int]
) -> dict[str, tuple[int, int | None]]:
    """Return the groups with a missing or older number in the cache, with the acknowledged number and the cached one.

    Parameters:
        cache: the cache of a process that has loaded nothing itself.
        refresher: the refresher of the groups.
        acknowledged: the newest number of each group whose mark was acknowledged.
    """
    lost: dict[str, tuple[int, int | None]] = {}
    for group, number in acknowledged.items():
        found = await _cached(cache, refresher.loader.key(group))
        if found is None or found < number:
            lost[group] = number, found
    return lost


async def _cached(cache: Cache, key: str) -> int | None:
    async def absent() -> int:
        raise LookupError(key)

    try:
        outcome = await cache.get_or_load(key, absent, Policy(3600))
    except LookupError:
        return None
    return outcome.value


def left_of(status: QueueStatus) -> int:
    """Return how many tasks, marks and dead letters a queue holds."""
    return status.dirty + status.queued + status.running + status.waiting + status.dead


def account(produced: Sequence[Produced], consumed: Sequence[Consumed], failover: float, left: int, lost: int) -> str:
    """Return the account of a run, a line for each figure.

    Parameters:
        produced: the reports of the producers.
        consumed: the reports of the consumers.
        failover: seconds without a master.
        left: how many tasks, marks and dead letters the queue still holds.
        lost: how many groups have an acknowledged mark, but an older number or none in the cache.
    """
    lines = (
        ("marks acknowledged", f"{sum(each.acknowledged for each in produced):,}"),
        ("marks refused, and repeated", f"{sum(each.refused for each in produced):,}"),
        ("slowest mark", f"{max(each.slowest for each in produced):.1f} s"),
        ("loads", f"{sum(each.loads for each in consumed):,}"),
        ("loads that failed", f"{sum(each.failed for each in consumed):,}"),
        ("failover", f"{failover:.1f} s"),
        ("left in the queue", f"{left:,}"),
        ("lost", f"{lost:,}"),
    )
    return "\n".join(f"{what:<28} {figure:>8}" for what, figure in lines)

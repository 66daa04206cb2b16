"""The statistics of a cache: its counters, and the current numbers of the parts of its engine."""

from collections import Counter
from collections.abc import Callable

from swr.engine.backoff import Backoffs
from swr.engine.flights import Flights, Loading
from swr.engine.notifications import Notifications
from swr.engine.publisher import Publisher
from swr.events import Invalidated, LeaseWaited
from swr.stats.counts import Counts
from swr.stats.snapshot import Counted, LocalCacheStats, Stats, StoreStats


def count_events(events: Publisher, counts: Counts) -> Callable[[], None]:
    """Count invalidations and waits for leases by their events; call the returned function to stop."""

    def on_event(event: Invalidated | LeaseWaited) -> None:
        if isinstance(event, LeaseWaited):
            counts.leases.add(event.seconds)
        else:
            counts.invalidations[event.scope] += 1

    return events.subscribe(on_event, (Invalidated, LeaseWaited))


def stats_of(
    counts: Counts,
    flights: Flights,
    backoffs: Backoffs,
    notifications: Notifications,
    local: tuple[int, int],
    *,
    at: float,
    is_shared: bool,
) -> Stats:
    """Return the numbers as they are now.

    Parameters:
        counts, flights, backoffs, notifications: these parts of the engine.
        local: the size of the local cache in bytes, and the number of its entries.
        at: time of the wall clock, in seconds.
        is_shared: whether the store is Redis.
    """
    running = (flight.job for flight in flights.all() if isinstance(flight.state, Loading))
    loading = Counter(counts.of(job.loader) for job in running if not job.is_outer)
    backing_off = Counter(map(counts.of, backoffs.origins()))
    by_name: dict[bool, dict[str, Counted]] = {False: {}, True: {}}
    for tally in list(counts.tallies.values()):
        by_name[tally.is_route][tally.name] = tally.snapshot(loading[tally], backing_off[tally])
    size, entries = local
    return Stats(
        at,
        counts.since,
        by_name[False],
        by_name[True],
        dict(counts.bypasses.counts),
        dict(counts.not_stored.counts),
        dict(counts.invalidations),
        LocalCacheStats(size, entries, counts.evictions),
        StoreStats(
            notifications.is_store_reachable,
            notifications.changed_at,
            counts.commands.snapshot() if is_shared else None,
        ),
        counts.leases.snapshot(),
    )

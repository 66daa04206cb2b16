"""Chooses the loaders and routes that get their own row in a process's digests: the first ones, and failing ones."""

import time
from collections.abc import Iterable
from typing import Final

import msgspec

from swr.reports.digest import RowReport, added, growth
from swr.stats.counts import OTHER

# The first 40 loaders and routes get their own rows. At most 20 others get one while they fail.
_MOST: Final = 40
_MOST_FAILING: Final = 20
# Seconds after its last failed load for which a loader or a route counts as failing.
_FAILS_FOR: Final = 60.0

# Whether the row is of a route, and the name of the loader or route.
Name = tuple[bool, str]


class Rows:
    """The rows of one process.

    Loaders and routes without their own row share one. Its counts never shrink, because dashboards compute the growth
    from digest to digest. So if a loader moves between the shared row and its own row, only its counts from then on are
    added there.
    """

    def __init__(self) -> None:
        self._named: set[Name] = set()
        # For loaders and routes after the first 40: their counts at the last digest, and the rows of the last digest.
        self._before: dict[Name, RowReport] = {}
        self._told: dict[Name, RowReport] = {}

    def told(self, rows: Iterable[RowReport]) -> tuple[RowReport, ...]:
        """Return the rows of a digest.

        Parameters:
            rows: the numbers of all loaders and routes. A name may occur twice, because long names were cut.
        """
        own, later = dict[Name, RowReport](), dict[Name, RowReport]()
        for row in rows:
            name = (row.is_route, row.name)
            if len(self._named) < _MOST and row.name != OTHER:
                self._named.add(name)
            place = own if name in self._named else later
            place[name] = row if name not in place else added(place[name], row)
        return (*own.values(), *self._told_of(later).values())

    def _told_of(self, later: dict[Name, RowReport]) -> dict[Name, RowReport]:
        failing, told = _failing(later), dict[Name, RowReport]()
        for name, row in later.items():
            change = growth(self._before.get(name, _nothing(name)), row)
            place = name if name in failing else (row.is_route, OTHER)
            if place not in told:
                # Counts continue from the last digest. Present numbers, such as bytes, come from the rows added below.
                told[place] = _without_present(self._told.get(place, _nothing(place)))
            told[place] = added(told[place], change)
        self._before, self._told = later, told
        return told


def _failing(rows: dict[Name, RowReport]) -> set[Name]:
    """Return the names of failing loaders and routes; if there are too many, those that failed most recently."""
    now = time.time()
    found = [
        (0.0 if row.error is None else row.error[2], name)
        for name, row in rows.items()
        if row.backoffs or (row.error is not None and now - row.error[2] < _FAILS_FOR)
    ]
    return {name for _, name in sorted(found)[-_MOST_FAILING:]}


def _nothing(name: Name) -> RowReport:
    return RowReport(name[1], name[0])


def _without_present(row: RowReport) -> RowReport:
    return msgspec.structs.replace(row, in_flight=0, backoffs=0, bytes=0, retry_at=None, error=None)

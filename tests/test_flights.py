"""The example's database: complete, its rankings right, its gaps NULL."""

import csv
import gzip
import sqlite3
from collections import defaultdict
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from examples.flights import DATA, Flight, Flights, build


@pytest.fixture(scope="module")
def path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("flights") / "flights.db"
    build(path)
    return path


@pytest.fixture
def flights(path: Path) -> Flights:
    return Flights(path)


@pytest.fixture(scope="module")
def rows() -> list[dict[str, str]]:
    with gzip.open(DATA / "flights2013.csv.gz", "rt", newline="") as file:
        return list(csv.DictReader(file))


def ask(path: Path, query: str) -> list[tuple[object, ...]]:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute(query).fetchall()


def ranked(pairs: Iterator[tuple[str, str]]) -> list[tuple[str, int, int]]:
    """The Top 100 of (aircraft, number), gaps left out: the greatest total first, then by name."""
    totals: dict[str, list[int]] = defaultdict(list)
    for tailnum, number in pairs:
        if tailnum not in ("", "NA") and number not in ("", "NA"):
            totals[tailnum].append(int(number))
    lines = [(tailnum, len(numbers), sum(numbers)) for tailnum, numbers in totals.items()]
    return sorted(lines, key=lambda line: (-line[2], line[0]))[:100]


def test_database_holds_all_336776_flights(path: Path, rows: list[dict[str, str]]) -> None:
    assert ask(path, "SELECT COUNT(*) FROM flights") == [(len(rows),)] == [(336_776,)]


def test_missing_values_are_null(path: Path, rows: list[dict[str, str]]) -> None:
    for column in ("tailnum", "arr_delay"):
        gaps = sum(row[column] in ("", "NA") for row in rows)
        assert gaps > 2_000
        assert ask(path, f"SELECT COUNT(*) FROM flights WHERE {column} IS NULL") == [(gaps,)]
        assert ask(path, f"SELECT COUNT(*) FROM flights WHERE {column} IN ('', 'NA')") == [(0,)]


def test_airports_returns_105_airports_busiest_first(flights: Flights) -> None:
    airports = flights.airports()
    assert len(airports) == len(set(airports)) == 105
    assert airports[:3] == ["ORD", "ATL", "LAX"]


def test_by_delay_matches_the_csv_for_every_airport(flights: Flights, rows: list[dict[str, str]]) -> None:
    to: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        to[row["dest"]].append(row)
    for airport in flights.airports():
        expected = ranked((row["tailnum"], row["arr_delay"]) for row in to[airport])
        aircraft = flights.by_delay(airport)
        assert [(line.tailnum, line.flights, line.total) for line in aircraft] == expected
        assert [line.rank for line in aircraft] == list(range(1, len(expected) + 1))


def test_by_miles_matches_the_csv(flights: Flights, rows: list[dict[str, str]]) -> None:
    expected = ranked((row["tailnum"], row["distance"]) for row in rows)
    aircraft = flights.by_miles()
    assert [(line.tailnum, line.flights, line.total) for line in aircraft] == expected
    assert aircraft[0].airline == "American Airlines Inc."


def test_airport_without_known_delays_has_an_empty_ranking(flights: Flights) -> None:
    assert flights.by_delay("LGA") == []


def test_limit_shortens_the_ranking(flights: Flights) -> None:
    assert flights.by_delay("ATL", limit=3) == flights.by_delay("ATL")[:3]


def test_added_flights_change_only_the_ranking_of_their_airport(flights: Flights) -> None:
    before, other = flights.by_delay("BOS"), flights.by_delay("ATL")
    late = Flight("N0TNEW", carrier="DL", arr_delay=1_000_000)
    flights.add("BOS", [late, late])
    leader, *rest = flights.by_delay("BOS")
    assert (leader.tailnum, leader.airline, leader.flights, leader.total) == (
        "N0TNEW",
        "Delta Air Lines Inc.",
        2,
        2_000_000,
    )
    assert [line.tailnum for line in rest] == [line.tailnum for line in before[:99]]
    assert flights.by_delay("ATL") == other


def test_ranking_queries_of_all_objects_count_as_loads_but_airports_does_not(path: Path) -> None:
    one, other = Flights(path), Flights(path)
    before = one.loads
    one.by_delay("ATL")
    other.by_miles()
    one.airports()
    assert one.loads == other.loads == before + 2


def test_missing_database_raises_an_error_with_its_path_and_is_not_created(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"nowhere\.db"):
        Flights(tmp_path / "nowhere.db")
    assert not (tmp_path / "nowhere.db").exists()


def test_build_refuses_to_overwrite_an_existing_file(path: Path) -> None:
    with pytest.raises(FileExistsError):
        build(path)

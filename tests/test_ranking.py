"""The ranking API as it is deployed: uvicorn, a real server, and each strategy by its name in the environment."""

import shutil
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import httpx
import pytest

from examples.demo.servers import StartError, workers
from examples.flights import Flights, build
from tests.servers import Server, until

# How many groups have been marked for the queue, whatever its name.
MARKED = "local k = redis.call('KEYS', '*}c')[1]; return k and redis.call('HGET', k, 'marked') or '0'"
LATE = [{"tailnum": "N0LATE", "arr_delay": 99_999}]


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The database with twelve of its airports: rounds over all 105 are what the demo shows."""
    path = tmp_path_factory.mktemp("flights") / "flights.db"
    few = build(path).airports()[1:13]
    assert "ATL" in few
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"DELETE FROM flights WHERE dest NOT IN ({', '.join('?' * len(few))})", few)
        connection.commit()
        connection.execute("VACUUM")
    return path


@pytest.fixture
def flights(built: Path, tmp_path: Path) -> Flights:
    return Flights(Path(shutil.copy(built, tmp_path)))


@contextmanager
def api(folder: Path, **environment: str) -> Iterator[httpx.Client]:
    environment |= {"FLIGHTS_DB": str(folder / "flights.db")}
    with (
        workers("examples.ranking:app", 1, environment, folder) as url,
        httpx.Client(base_url=url, timeout=30, trust_env=False) as client,
    ):
        yield client


def states(client: httpx.Client, path: str) -> tuple[str | None, str]:
    response = client.get(path).raise_for_status()
    return response.headers.get("Loader-State"), response.headers["SWR-State"]


def first(client: httpx.Client, airport: str) -> str:
    return str(client.get(f"/rankings/{airport}").json()["aircraft"][0]["tailnum"])


def test_second_request_hits_except_on_uncached_routes(flights: Flights, tmp_path: Path, own_server: Server) -> None:
    with api(tmp_path, REDIS_URL=own_server.url, FRESH_FOR="1h") as client:
        assert [states(client, "/rankings/ATL")[0] for _ in range(2)] == ["missing", "fresh"]
        assert [states(client, "/rankings") for _ in range(2)] == [(None, "missing"), (None, "fresh")]
        assert flights.loads == 2
        assert [states(client, f"/uncached/rankings{path}")[1] for path in ("", "", "/ATL", "/ATL")] == ["missing"] * 4
        assert flights.loads == 6


@pytest.mark.parametrize("strategy", ["read", "locks", "queue"])
def test_ranking_includes_an_added_flight_at_the_next_request(
    flights: Flights, tmp_path: Path, own_server: Server, strategy: str
) -> None:
    with api(tmp_path, REDIS_URL=own_server.url, FRESH_FOR="1h", EVERY="1h", STRATEGY=strategy) as client:
        assert first(client, "ATL") != "N0LATE"
        client.post("/flights/ATL", json=LATE).raise_for_status()
        assert first(client, "ATL") == "N0LATE"
    assert own_server.says("EVAL", MARKED, "0").strip() == ("1" if strategy == "queue" else "0")


@pytest.mark.parametrize("strategy", ["locks", "queue"])
def test_rounds_load_every_ranking_without_requests(
    flights: Flights, tmp_path: Path, own_server: Server, strategy: str
) -> None:
    airports = flights.airports()
    with api(tmp_path, REDIS_URL=own_server.url, FRESH_FOR="1h", EVERY="3s", STRATEGY=strategy) as client:
        until(lambda: flights.loads >= 2 * len(airports))
        assert {states(client, f"/rankings/{airport}")[0] for airport in airports} == {"fresh"}
        client.post("/flights/ATL", json=LATE).raise_for_status()
        # Two rounds: one may have begun before the flight was added.
        loads = flights.loads
        until(lambda: flights.loads >= loads + 2 * len(airports))
        assert states(client, "/rankings/ATL")[0] == "fresh"
        assert first(client, "ATL") == "N0LATE"


def test_default_strategy_loads_only_on_requests(flights: Flights, tmp_path: Path, own_server: Server) -> None:
    with api(tmp_path, REDIS_URL=own_server.url, EVERY="0.1s") as client:
        states(client, "/rankings/ATL")
        time.sleep(1)
        assert flights.loads == 1


def test_queue_strategy_without_redis_fails_to_start(
    flights: Flights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("REDIS_URL", raising=False)
    with pytest.raises(StartError, match="ConfigurationError"), api(tmp_path, STRATEGY="queue"):
        pass

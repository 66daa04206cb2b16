"""Fixtures: event loops, and real servers that the tests start and end themselves."""

import signal
from collections.abc import AsyncIterator, Iterator

import pytest
from hypothesis import HealthCheck, settings

from swr import Cache
from swr.testing import FakeClock
from tests.fleet import Process, fleet
from tests.servers import Server, kinds

# What a shell starts in the background ignores Ctrl-C, and so do its children; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Hypothesis measures time, which says something of the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark the tests on trio: scripts/test runs those of some files without coverage."""
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        if params.get("anyio_backend") == "trio":
            item.add_marker("on_trio")


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def clock() -> FakeClock:
    """The clock of a test, which stands still."""
    return FakeClock()


@pytest.fixture
async def cache(clock: FakeClock) -> AsyncIterator[Cache]:
    """A cache in memory, open, on the clock of the test."""
    async with Cache(clock=clock) as cache:
        yield cache


@pytest.fixture
async def two(clock: FakeClock) -> AsyncIterator[list[Process]]:
    """Two processes over one store, connected."""
    async with fleet(2, clock) as processes:
        for process in processes:
            await process.engine.ready()
        yield processes


@pytest.fixture(scope="session", params=kinds())
def shared_server(request: pytest.FixtureRequest) -> Iterator[Server]:
    """One server of each kind for the whole run; nobody hurts it."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """A server, empty."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server to be paused, killed and started again."""
    with Server(kinds()[0]) as server:
        yield server


@pytest.fixture(scope="session")
def any_server() -> Iterator[Server]:
    """One server for the whole run, of whatever kind there is; nobody hurts it."""
    with Server(kinds()[0]) as server:
        yield server


@pytest.fixture(params=["memory on asyncio", "memory on trio", "server on asyncio"])
def place(request: pytest.FixtureRequest) -> str:
    """Where a cache can be: for tests of what is the same everywhere, whose backend the last word is."""
    return request.param


@pytest.fixture
def place_url(place: str, any_server: Server) -> str | None:
    """The URL of a cache at `place`, empty."""
    if place.startswith("memory"):
        return None
    any_server.command("FLUSHALL")
    return any_server.url


@pytest.fixture(params=["memory", "server"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The URL of a cache, empty, without Redis and with."""
    if request.param == "memory":
        return None
    server: Server = request.getfixturevalue("any_server")
    server.command("FLUSHALL")
    return server.url


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count commands: a heartbeat among them would be one more."""
    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 3600.0)


@pytest.fixture(autouse=True)
def _patience_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine that stands still for a second makes swr ask again what it holds: test_standstill tries that."""
    monkeypatch.setattr("swr.stores.hearing.HEARD_FOR", 3600.0)

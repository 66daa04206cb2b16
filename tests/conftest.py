"""Fixtures: event loops, and real servers that the tests start and end themselves."""

import signal
from collections.abc import Iterator

import pytest

from tests.servers import Server, kinds

# What a shell starts in the background ignores Ctrl-C, and so do its children; some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    return request.param


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


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests that count commands: a heartbeat among them would be one more."""
    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 3600.0)


@pytest.fixture(autouse=True)
def _patience_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine that stands still for a second makes swr ask again what it holds: test_standstill tries that."""
    monkeypatch.setattr("swr.stores.hearing.HEARD_FOR", 3600.0)

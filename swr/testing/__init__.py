"""Help for tests of apps that use swr: an app's cache isolated in one test, and a clock that the test moves.

Public names: `FakeClock`, `Isolate`, `isolated`, and the fixtures of `swr.testing.pytest_plugin`. Imports the cache;
only the plugin imports pytest.
"""

from swr.testing.clock import FakeClock
from swr.testing.isolated import Isolate, isolated

__all__ = ["FakeClock", "Isolate", "isolated"]

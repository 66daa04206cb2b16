"""Help for the tests of apps that use swr: an app's cache in one test, a clock that moves when the test says so.

Public names: `FakeClock`, `Isolate`, `isolated`, and the fixtures of `swr.testing.pytest_plugin`. Imports the cache,
and pytest in the plugin alone.
"""

from swr.testing.clock import FakeClock
from swr.testing.isolated import Isolate, isolated

__all__ = ["FakeClock", "Isolate", "isolated"]

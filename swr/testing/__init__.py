"""Help for the tests of apps that use swr: a clock that moves when the test says so.

Public name: `FakeClock`. Imports nothing else of swr.
"""

from swr.testing.clock import FakeClock

__all__ = ["FakeClock"]

"""For tests, of swr and of what is built on it: a clock, a store that fails, and what every store must do.

`swr.testing.simulate` is not imported here: it needs trio, and is a command.
"""

from swr.testing.clock import FakeClock
from swr.testing.conformance import StoreConformance
from swr.testing.flaky import FlakyStore

__all__ = ["FakeClock", "FlakyStore", "StoreConformance"]

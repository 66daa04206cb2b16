"""swr: a stale-while-revalidate cache. Served at once, refreshed exactly once."""

from swr.cache import Cache
from swr.decorator import Cached
from swr.entry import Outcome, State
from swr.errors import CodecError, ConfigurationError, LeaseLost, StoreError, StoreUnavailable, SWRError
from swr.policy import Limits, Policy

__all__ = [
    "Cache",
    "Cached",
    "CodecError",
    "ConfigurationError",
    "LeaseLost",
    "Limits",
    "Outcome",
    "Policy",
    "SWRError",
    "State",
    "StoreError",
    "StoreUnavailable",
]

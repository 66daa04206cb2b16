"""swr: a stale-while-revalidate cache. Served at once, refreshed exactly once."""

from swr.cache import Cache
from swr.decorator import Cached
from swr.entry import Outcome, State
from swr.errors import CodecError, ConfigurationError, LeaseLost, LoadTimeout, StoreError, StoreUnavailable, SWRError
from swr.loading import NOT_MODIFIED, Fresh, LoadContext, NotModified
from swr.many import CachedMany
from swr.policy import Limits, Policy
from swr.refreshers import Refresher

__all__ = [
    "NOT_MODIFIED",
    "Cache",
    "Cached",
    "CachedMany",
    "CodecError",
    "ConfigurationError",
    "Fresh",
    "LeaseLost",
    "Limits",
    "LoadContext",
    "LoadTimeout",
    "NotModified",
    "Outcome",
    "Policy",
    "Refresher",
    "SWRError",
    "State",
    "StoreError",
    "StoreUnavailable",
]

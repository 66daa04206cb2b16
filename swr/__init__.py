"""swr: a stale-while-revalidate cache. Served at once, refreshed exactly once."""

from swr.cache import Cache
from swr.entry import Outcome, State
from swr.errors import CodecError, ConfigurationError, LeaseLost, LoadTimeout, StoreError, StoreUnavailable, SWRError
from swr.loaders.cached import Cached
from swr.loaders.cached_many import CachedMany
from swr.loaders.context import NOT_MODIFIED, Fresh, LoadContext, NotModified
from swr.policy import Policy
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

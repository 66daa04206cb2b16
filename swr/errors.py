"""The errors of swr, and when each is raised.

    SWRError
    ├── ConfigurationError    a policy, template, URL, rule or argument that cannot work
    ├── StoreError            a failure between swr and its store
    │   ├── StoreUnavailable  the store did not answer, or refused; callers of a cache never see it
    │   └── CodecError        a value that cannot be written as bytes and come back the same
    ├── LeaseLost             a load lost its lease before the commit; callers of a cache never see it
    └── LoadTimeout           a load ran longer than its `hard_timeout`, and there was no entry to fall back on

swr does not wrap an exception that a loader raises: it reaches the caller unchanged. If several callers waited for the
load, one of them gets the exception itself. The others get an equal exception with the loader's traceback.
"""


class SWRError(Exception):
    """The base class of all errors that swr itself raises."""


class ConfigurationError(SWRError):
    """An option or argument that cannot work: the message names it, its value and the remedy."""


class StoreError(SWRError):
    """The base class of failures between swr and its store."""


class StoreUnavailable(StoreError):
    """The store gave no usable answer in time. The cache answers from memory or from the loader instead."""


class CodecError(StoreError):
    """A value that cannot be encoded, or bytes that cannot be decoded, without losing something."""


class LeaseLost(SWRError):
    """A commit or a renewal came too late: the lease had expired or an invalidation had deleted it."""


class LoadTimeout(SWRError, TimeoutError):
    """A load that swr gave up because it ran too long.

    Parameters:
        key: the key of the load.
        seconds: how long the load was allowed to run.
        limit: the option that sets this time.
    """

    def __init__(self, key: str, seconds: float, limit: str = "hard_timeout") -> None:
        super().__init__(f"the load of {key!r} was given up after {seconds:g} s, its {limit}")
        self.key = key
        self.seconds = seconds

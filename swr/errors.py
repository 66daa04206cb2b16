"""The errors of swr, and when each is raised.

    SWRError
    ├── ConfigurationError    a policy, template, URL, rule or argument that cannot work
    ├── StoreError            something between swr and its store
    │   ├── StoreUnavailable  the store did not answer, or refused; callers of a cache never see it
    │   └── CodecError        a value that cannot be written as bytes and come back the same
    ├── LeaseLost             the lease was taken away before the commit; callers of a cache never see it
    └── LoadTimeout           a load ran longer than its `hard_timeout`, and there was no entry to fall back on

A loader's own exception is none of these: it reaches the caller as it was raised. If several callers waited for the
load, each but one gets an equal exception with the loader's traceback.
"""


class SWRError(Exception):
    """The base of everything that swr raises of its own accord."""


class ConfigurationError(SWRError):
    """Something that was written cannot work: the message names it, its value and the remedy."""


class StoreError(SWRError):
    """The base of what goes wrong between swr and its store."""


class StoreUnavailable(StoreError):
    """The store gave no usable answer in time. The cache answers from memory or from the loader instead."""


class CodecError(StoreError):
    """A value cannot be encoded, or bytes cannot be decoded, without losing something."""


class LeaseLost(SWRError):
    """A commit or a renewal came too late: the lease had expired or an invalidation had deleted it."""


class LoadTimeout(SWRError, TimeoutError):
    """A load was given up because it ran too long.

    Parameters:
        key: what was loaded.
        seconds: how long it was allowed to take.
        limit: the option that says so.
    """

    def __init__(self, key: str, seconds: float, limit: str = "hard_timeout") -> None:
        super().__init__(f"the load of {key!r} was given up after {seconds:g} s, its {limit}")
        self.key = key
        self.seconds = seconds

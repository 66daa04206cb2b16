"""The log line of a read at DEBUG level: what the reader got, and from which layer."""

import logging

from swr.engine.backoff import Backoffs
from swr.engine.failures import text_of
from swr.entry import State

log = logging.getLogger("swr")


def log_read(backoffs: Backoffs, key: str, found: bool, asked: bool, state: State, error: BaseException | None) -> None:
    """Write a line about a read.

    Parameters:
        backoffs: the keys that back off.
        key: the key that was read.
        found: whether there was an entry that could be served.
        asked: whether the store was asked.
        state: the state of the answer.
        error: the failure of the load, if the answer is a fallback.
    """
    if log.isEnabledFor(logging.DEBUG):
        layer = "the store" if asked else "the local cache"
        if not found:
            layer = "a load" if state is State.MISSING else "the stored entry"
        log.debug("read of %r: %s, from %s", key, state.value, layer)
        if error is not None:
            backoff = backoffs.left(key)
            log.debug("read of %r: the load failed (%s); backing off for %.3f s", key, text_of(error), backoff)

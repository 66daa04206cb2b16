"""Threads that encode, decode, measure and copy large values, which would block the event loop."""

import copy
from collections.abc import Callable
from typing import Any, Final, TypeVar, TypeVarTuple

import anyio
import anyio.to_thread
from anyio.lowlevel import RunVar

from swr.core.pages import is_large

R = TypeVar("R")
Ts = TypeVarTuple("Ts")

_THREADS: Final = 4
_limiter: Final[RunVar[anyio.CapacityLimiter]] = RunVar("swr_threads")


async def in_thread(function: Callable[[*Ts], R], *args: *Ts) -> R:
    """Return what `function(*args)` returns, called in a thread.

    swr has its own threads. An application may occupy all threads of the event loop: they may hang, or may wait for
    this very value.
    """
    try:
        limiter = _limiter.get()
    except LookupError:
        limiter = anyio.CapacityLimiter(_THREADS)
        _limiter.set(limiter)
    return await anyio.to_thread.run_sync(function, *args, abandon_on_cancel=True, limiter=limiter)


async def deep_copy(value: Any) -> Any:
    """Return a deep copy of `value`; a thread copies a large one."""
    return await in_thread(copy.deepcopy, value) if is_large(value) else copy.deepcopy(value)

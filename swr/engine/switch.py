"""Tells whether a caller uses the cache: not inside a `disabled` block, nor while another event loop has the cache."""

import logging
import threading
from collections.abc import Callable
from contextvars import ContextVar
from types import TracebackType
from typing import Final

from swr.stores.clocks import Clock, OwnClock, clock_of
from swr.stores.local import LocalCache

log = logging.getLogger("swr")

# The fast path to a fresh hit checks only the time. At infinity no entry is fresh, so callers take the slow path.
_ENDS_EVERYTHING: Final = OwnClock(lambda: float("inf"))


class Switch:
    """The switch that turns a cache off. All code but the fast path to a fresh hit asks `is_off`.

    Parameters:
        local: the local cache; the fast path asks its clock.

    Attributes:
        is_enabled: whether the configuration lets callers use the cache.
        is_elsewhere: returns whether an event loop other than the one that runs here has the cache.
    """

    def __init__(self, local: LocalCache | None = None) -> None:
        self._local = LocalCache(0, 0) if local is None else local
        self._lock = threading.Lock()
        self._clock: Clock = clock_of(None)
        self._blocks = 0
        self._tells_reads = False
        self._has_warned = False
        self.is_enabled = True
        self.is_elsewhere: Callable[[], bool] = lambda: False

    def configure(self, clock: Clock, is_enabled: bool) -> None:
        """Use this clock and this setting from now on."""
        with self._lock:
            self._clock, self.is_enabled = clock, is_enabled
            self._set_clock()

    @property
    def is_disabled(self) -> bool:
        """Return whether the cache is switched off, for all callers or by a `disabled` block around this one."""
        if not self.is_enabled:
            return True
        return self._blocks > 0 and any(block.switch is self and block.is_active for block in BLOCKS.get())

    @property
    def is_off(self) -> bool:
        """Return whether the caller bypasses the cache: it reads and stores nothing."""
        if self.is_disabled:
            return True
        if not self.is_elsewhere():
            return False
        self.warn()
        return True

    def warn(self) -> None:
        """Log, once, that another event loop has the cache, and what to do about it."""
        if self._has_warned:
            return
        self._has_warned = True
        log.warning(
            "the cache is in use on another event loop of this process, so calls and requests in this one bypass it; "
            "invalidations still work. Run the app in one event loop, give each loop a Cache of its own, or call "
            "`.sync` in a thread: await asyncio.to_thread(loader.sync, ...)"
        )

    def add(self, blocks: int) -> None:
        """Change the number of active `disabled` blocks. While there is one, all callers take the slow path and ask."""
        with self._lock:
            self._blocks += blocks
            self._set_clock()

    def tell_reads(self, is_wanted: bool) -> None:
        """Choose whether the decorators publish an event for each read, for which fresh hits take the slow path."""
        with self._lock:
            self._tells_reads = is_wanted
            self._set_clock()

    def _set_clock(self) -> None:
        self._local.clock = clock = _ENDS_EVERYTHING if self._blocks or not self.is_enabled else self._clock
        self._local.short_clock = _ENDS_EVERYTHING if self._tells_reads else clock


class _Block:
    """A `disabled` block, active or ended."""

    __slots__ = ("is_active", "switch")

    def __init__(self, switch: Switch) -> None:
        self.switch = switch
        self.is_active = True


# The blocks around the current task or thread. A task that outlives its block still has the block here.
BLOCKS: Final[ContextVar[tuple[_Block, ...]]] = ContextVar("swr_disabled", default=())


class Disabled:
    """A `with` block that bypasses the cache; see `Cache.disabled`.

    Parameters:
        switch: the switch of the cache.
    """

    def __init__(self, switch: Switch) -> None:
        self._switch = switch
        self._entered: list[_Block] = []

    def __enter__(self) -> None:
        block = _Block(self._switch)
        self._entered.append(block)
        self._switch.add(1)
        BLOCKS.set((*BLOCKS.get(), block))

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        # Several tasks may share this object, each with a block of its own. Or, as with a fixture of a test, the task
        # that ends the block is not the one that began it: then the block is not in this context.
        inside = [block for block in BLOCKS.get() if block in self._entered]
        block = inside[-1] if inside else self._entered[-1]
        self._entered.remove(block)
        block.is_active = False
        self._switch.add(-1)
        BLOCKS.set(tuple(other for other in BLOCKS.get() if other is not block))

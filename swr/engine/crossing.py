"""Call an async function from a thread, in the event loop of another thread, and wait for the result."""

import asyncio
import concurrent.futures
import inspect
import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, Final, TypeVar, cast

from swr.errors import SWRError

T = TypeVar("T")

# Interval, in seconds, at which a waiting thread checks that the event loop still exists.
_LOOKED_AFTER: Final = 1.0
# Number of checks after which the event loop must have begun the call.
_LOOKS: Final = 30


class LoopEnded(SWRError):
    """The event loop ended before the call had an answer."""

    def __init__(self) -> None:
        super().__init__("the event loop of the cache has ended, or ended during a call from a thread")


class HeldUp(SWRError):
    """The event loop did not begin the call in time.

    Parameters:
        seconds: how long the call waited.
    """

    def __init__(self, seconds: float) -> None:
        super().__init__(
            f"the event loop of the cache has been held up for {seconds:g} s. An async test with a TestClient does "
            "that: use httpx.AsyncClient there, or close the cache before"
        )


def is_in_loop() -> bool:
    """Return whether this thread runs an event loop right now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        trio = sys.modules.get("trio")
        return trio is not None and bool(trio.lowlevel.in_trio_run())
    return True


def wait_for(loop: Any, function: Callable[[], Awaitable[T]]) -> T:
    """Return the result of `function`, called in another thread's event loop with the caller's context variables.

    Raises:
        LoopEnded: the event loop ended before there was a result.
        HeldUp: something blocks the event loop. The loop makes the call as soon as it runs again.
    """
    if not isinstance(loop, asyncio.AbstractEventLoop):
        import trio

        try:
            return _answer(trio.from_thread.run(_called, function, trio_token=loop))
        except (trio.RunFinishedError, trio.Cancelled):
            raise LoopEnded from None
    coroutine = _called(function)
    try:
        future = asyncio.run_coroutine_threadsafe(coroutine, loop)
    except RuntimeError:
        coroutine.close()
        raise LoopEnded from None
    try:
        return _answer(_result(loop, future, coroutine))
    except concurrent.futures.CancelledError:
        raise LoopEnded from None
    except LoopEnded:
        if inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            coroutine.close()
        raise
    except HeldUp:
        # The loop still makes the call as soon as it runs again: an invalidation must not get lost.
        raise
    except BaseException:
        # Something interrupted the waiting thread, such as Ctrl-C. Loads that others wait for go on.
        future.cancel()
        raise


def _result(
    loop: asyncio.AbstractEventLoop, future: "concurrent.futures.Future[T]", coroutine: Coroutine[Any, Any, Any]
) -> T:
    looks = 0
    while True:
        try:
            return future.result(_LOOKED_AFTER)
        except TimeoutError:
            if future.done():
                # The function itself raised a TimeoutError.
                return future.result()
        if loop.is_closed():
            raise LoopEnded
        looks += 1
        if looks == _LOOKS and inspect.getcoroutinestate(coroutine) == inspect.CORO_CREATED:
            raise HeldUp(_LOOKS * _LOOKED_AFTER)


async def _called(function: Callable[[], Awaitable[T]]) -> tuple[T | None, BaseException | None]:
    try:
        return await function(), None
    except (SystemExit, KeyboardInterrupt) as error:
        # The waiting thread raises this error. Raised in this task, it would end the event loop.
        return None, error


def _answer(called: tuple[T | None, BaseException | None]) -> T:
    value, error = called
    if error is not None:
        raise error
    return cast(T, value)

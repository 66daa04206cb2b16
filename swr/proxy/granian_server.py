"""The proxy under granian, which implements HTTP in Rust: it serves more requests per second, but has fewer time-outs.

granian limits how long a client may take for the header section of a request. It has no time-out for clients that send
a body slowly, or that do not read an answer.
"""

import asyncio
import contextlib
import signal
from collections.abc import Callable
from typing import Any, Final

import uvloop
from granian.constants import HTTPModes, Interfaces
from granian.http import HTTP1Settings
from granian.log import LogLevels
from granian.server.embed import Server
from starlette.types import ASGIApp

# Seconds between two attempts to connect to the server that starts.
_LOOK_EVERY: Final = 0.02


def serve(
    app: ASGIApp, host: str, port: int, *, head_timeout: float, grace: float, on_start: Callable[[], None]
) -> None:
    """Serve an app until SIGINT or SIGTERM comes, and then raise that signal again.

    Parameters:
        app: an app with a lifespan.
        host: an address of this machine.
        port: a free port.
        head_timeout: seconds for the header section of a request.
        grace: seconds for which running requests may go on after a signal.
        on_start: called when the server accepts connections.
    """
    server = Server(
        app,
        address=host,
        port=port,
        interface=Interfaces.ASGI,
        http=HTTPModes.http1,
        websockets=False,
        backlog=2048,
        http1_settings=HTTP1Settings(header_read_timeout=max(1, round(1000 * head_timeout))),
        # Otherwise granian logs at each start that its embedded server is experimental.
        log_enabled=False,
        log_level=LogLevels.error,
    )
    caught: list[signal.Signals] = []
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}

    async def run() -> signal.Signals:
        loop, stopped = asyncio.get_running_loop(), asyncio.Event()

        def stop(number: signal.Signals) -> None:
            caught.append(number)
            stopped.set()

        for number in handlers:
            loop.add_signal_handler(number, stop, number)
        serving = asyncio.ensure_future(server.serve())
        announcing = asyncio.ensure_future(_announce(host, port, on_start))
        stopping = asyncio.ensure_future(stopped.wait())
        # If a signal comes while the server starts, the server stops as soon as it has started.
        for step in (announcing, stopping):
            await asyncio.wait({serving, step}, return_when=asyncio.FIRST_COMPLETED)
            step.cancel()
        server.stop()  # type: ignore[no-untyped-call]  # granian has no types here
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(serving, grace)
        return caught[0]

    _pass_on(uvloop.run(run()), handlers)


def _pass_on(number: signal.Signals, handlers: dict[signal.Signals, Any]) -> None:
    """Restore the signal handlers and raise the signal again, as if the server had not caught it."""
    for each, handler in handlers.items():
        signal.signal(each, handler)
    signal.raise_signal(number)


async def _announce(host: str, port: int, on_start: Callable[[], None]) -> None:
    """Call `on_start` as soon as the server accepts a connection."""
    while True:
        with contextlib.suppress(OSError):
            _, writer = await asyncio.open_connection(host, port)
            writer.close()
            break
        await asyncio.sleep(_LOOK_EVERY)
    on_start()

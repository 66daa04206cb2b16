"""Lets signals end a program in good order, with its cleanup."""

import asyncio
import signal
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def cancelled_by_signals() -> list[signal.Signals]:
    """Let the first signal cancel this task; return a list to which each received signal is appended.

    The cancellation takes effect only where the task awaits, so no child process is started and then forgotten. A
    second Ctrl-C does not interrupt the cleanup.
    """
    task, received = asyncio.current_task(), list[signal.Signals]()

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if task is not None and len(received) == 1:
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return received

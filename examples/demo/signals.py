"""Signals that end a program in good order."""

import asyncio
import signal
from typing import Final

_SIGNALS: Final = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


def cancelled_by_signals() -> list[signal.Signals]:
    """Have the first signal cancel this task; return the list in which signals will be found.

    It takes effect where the task awaits and nowhere else: no child process can be started and then forgotten, and a
    second Ctrl-C does not cut short the end of the first.
    """
    task, received = asyncio.current_task(), list[signal.Signals]()

    def stop(number: signal.Signals) -> None:
        received.append(number)
        if task is not None and len(received) == 1:
            task.cancel()

    for number in _SIGNALS:
        asyncio.get_running_loop().add_signal_handler(number, stop, number)
    return received

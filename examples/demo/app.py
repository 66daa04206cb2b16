"""The ranking API with its dashboard; its workers log their rounds for the demo."""

import os
from pathlib import Path

from examples.demo.log import Log
from examples.ranking import app, cache, refresher
from swr import dashboard
from swr.events import Committed, Event, RoundQueued

__all__ = ["app"]

_log = Log(Path(os.environ["ROUNDS_LOG"]))


def _tell(event: Event) -> None:
    if isinstance(event, RoundQueued):
        _log.write(event.number, "")
    elif isinstance(event, Committed) and event.key.startswith("delay:"):
        # Versions are microseconds of the server's clock, so they show in which round a load began.
        _log.write(int(event.version / 1e6 // refresher.every), event.key.removeprefix("delay:"))


# Without `auth=` only this machine's user can open the page, so it may offer all actions.
app.mount("/swr", dashboard(cache, actions=True, simulate=True))
cache.subscribe(_tell, Committed, RoundQueued)

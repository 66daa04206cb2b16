"""Reports of a worker's rounds: an event for each, and a log line if a round took too long or rounds were skipped."""

import logging
import time

from swr.engine.engine import Engine
from swr.events import RoundEnded
from swr.refreshers.rounds.load_limiter import LoadLimiter, Result
from swr.refreshers.rounds.schedule import Round

log = logging.getLogger("swr")


class Report:
    """The reports of one worker.

    Parameters:
        name: the name of the refresher.
        engine: publishes the events.
        limiter: counts the results.
        every: seconds that a round may take; None: no limit, because a leader schedules the rounds.
    """

    def __init__(self, name: str, engine: Engine, limiter: LoadLimiter, every: float | None) -> None:
        self.name = name
        self._engine = engine
        self._limiter = limiter
        self._every = every
        self._this: Round | None = None
        self._began = 0.0
        self._sent = 0
        self._counts = dict(limiter.counts)

    def begin(self, this: Round) -> None:
        """Note that a round begins, and log the rounds that were skipped before it."""
        self._this, self._began = this, time.monotonic()
        self._sent = self._engine.store.sent
        self._counts = dict(self._limiter.counts)
        if this.missed:
            log.warning(
                "%d rounds of the refresher %r were left out; this one makes up for all", this.missed, self.name
            )

    def end(self, groups: int | None = None) -> None:
        """End the round, and report it.

        Parameters:
            groups: the number of groups; None: the sum of all results that the limiter counted in this round.
        """
        if self._this is None:
            return
        counted = {result: count - self._counts[result] for result, count in self._limiter.counts.items()}
        seconds = time.monotonic() - self._began
        if self._every is not None and seconds > self._every:
            log.warning(
                "a round of the refresher %r took %.1f s, which is more than every=%g: loads fail, or it "
                "needs more workers",
                self.name,
                seconds,
                self._every,
            )
        self._engine.events.publish(
            RoundEnded,
            self.name,
            self._this.number,
            seconds,
            sum(counted.values()) if groups is None else groups,
            counted[Result.LOADED],
            counted[Result.CURRENT],
            counted[Result.HELD] + counted[Result.UNREACHABLE],
            counted[Result.FAILED],
            self._this.missed,
            max(0, self._engine.store.sent - self._sent),
        )
        self._this = None

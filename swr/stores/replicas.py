"""Values from replicas, which lag: what a replica is known to have, and what this process knows that it must have.

A replica is measured by its master: at every beat the master says how far its stream of writes has got, then the
replica how much of the same stream it has applied. Where it has come up to what the master said at some moment, it
has every write from before that moment (`Replica.since`). What was heard of later is remembered key by key
(`Floors`). Between the two nothing is missing, and an answer that is older than what was heard of is not taken.
"""

import asyncio
import logging
import math
import random
import time
from collections import deque
from collections.abc import Callable
from typing import Final

import anyio
from redis.asyncio import Redis

from swr.codec import VERSION_DIGITS
from swr.errors import StoreUnavailable
from swr.stores.link import Link, first
from swr.stores.wire import Wire

log = logging.getLogger("swr")

_BEAT: Final = 0.45
# A replica that is further behind is of little use.
_MOST_BEHIND: Final = 10.0
_LONGEST_PAUSE: Final = 5.0
# What was heard of is forgotten after one to two times as long, or as many keys.
_REMEMBERED: Final = 30.0
_MOST_REMEMBERED: Final = 100_000


class Replica:
    """One replica of a master, whichever `connect` leads to; when it fails, perhaps another.

    Parameters:
        link: to the master.
        connect: makes a client of one of its replicas. Raises StoreUnavailable where none is known.
        timeout: seconds after which an unanswered command counts as failed.
        readonly: whether it must be told that reads are meant for it, as in a cluster.
    """

    def __init__(self, link: Link, connect: Callable[[], Redis], timeout: float, *, readonly: bool = False) -> None:
        # The wire while there is one, and the monotonic time up to which the replica has all that its master had.
        self.wire: Wire | None = None
        self.since = -math.inf
        self._link = link
        self._connect = connect
        self._timeout = timeout
        self._readonly = readonly
        # How far the master's stream had got, and when; which stream that is.
        self._marks: deque[tuple[float, int]] = deque(maxlen=int(_MOST_BEHIND / _BEAT) + 1)
        self._stream = b""
        self._complained = False

    async def run(self) -> None:
        """Keep a replica at hand until the master's link is retired."""
        delay = 0.0
        while not self._link.retired:
            self._was_of_use = False
            try:
                await self._session()
            except Exception as error:
                # Whatever it was: the master answers, and another try is made.
                self._complain(error)
            delay = 0.0 if self._was_of_use else delay
            delay = min(_LONGEST_PAUSE, delay * 2 or 0.05)
            await asyncio.sleep(delay * random.uniform(0.5, 1.0))

    def _complain(self, error: Exception) -> None:
        """Log once that there is no replica of use; one that fails later is nobody's concern."""
        if not self._was_of_use and not self._complained:
            self._complained = True
            log.warning("no replica of %s can be read from, it is asked itself (%s)", self._link.name, first(error))

    async def _session(self) -> None:
        client = self._connect()
        try:
            with anyio.fail_after(5 * self._timeout):
                connection = await client.connection_pool.get_connection()
            # Half: the master has to be asked within the time-out, too.
            wire = Wire(connection, self._timeout / 2)
            async with anyio.create_task_group() as group:
                group.start_soon(wire.run)
                group.start_soon(self._beat, wire)
        finally:
            self.wire, self.since = None, -math.inf
            with anyio.CancelScope(shield=True), anyio.move_on_after(1.0):
                await client.aclose()

    async def _beat(self, wire: Wire) -> None:
        """Measure it at every beat."""
        if self._readonly:
            await wire.ask("READONLY")
        self.wire = wire
        began = time.monotonic()
        while not self._link.retired:
            master = self._link.wire
            if master is not None:
                await self._measure(master, wire)
            if time.monotonic() - max(began, self.since) > _MOST_BEHIND:
                raise StoreUnavailable(f"the replica is more than {_MOST_BEHIND:g} s behind")
            await asyncio.sleep(_BEAT)
        raise StoreUnavailable("its master is not asked any more")

    async def _measure(self, master: Wire, wire: Wire) -> None:
        """Find out up to when the replica has all that its master had."""
        # From before the question: what the master says then covers all that was written until now.
        now = time.monotonic()
        said = info_fields(await master.ask("INFO", "replication"))
        stream, reached = said[b"master_replid"], int(said[b"master_repl_offset"])
        if stream != self._stream:
            self._marks.clear()
            self._stream = stream
        self._marks.append((now, reached))
        said = info_fields(await wire.ask("INFO", "replication"))
        if said[b"role"] != b"slave":
            raise StoreUnavailable("the server is no replica")
        if said[b"master_replid"] != stream:
            # Another master's by now: what it had may be gone.
            self.since = -math.inf
        elif said[b"master_link_status"] == b"up":
            applied = int(said[b"slave_repl_offset"])
            self.since = max((at for at, offset in self._marks if offset <= applied), default=self.since)
            self._was_of_use = self._was_of_use or self.since > -math.inf

    def doubt(self) -> None:
        """Count it as behind until it is measured again: it refused to answer."""
        self.since = -math.inf


class Floors:
    """The newest version of each key that this process has heard of since a moment (`since`, monotonic time)."""

    def __init__(self) -> None:
        self.forget()

    def forget(self) -> None:
        """Begin anew: something may not have been heard."""
        self.since = self._turned_at = time.monotonic()
        self._recent: dict[str, bytes] = {}
        self._older: dict[str, bytes] = {}

    def raise_to(self, key: str, version: int) -> None:
        """Remember that a version exists."""
        now = time.monotonic()
        # As text, in which order is the order of numbers.
        newest = max(self._newest(key), b"%0*d" % (VERSION_DIGITS, version))
        if len(self._recent) >= _MOST_REMEMBERED or now - self._turned_at > _REMEMBERED:
            self._recent, self._older = {}, self._recent
            self.since, self._turned_at = self._turned_at, now
        self._recent[key] = newest

    def _newest(self, key: str) -> bytes:
        return self._recent.get(key) or self._older.get(key, b"")

    def admit(self, key: str, frame: bytes | None) -> bool:
        """Whether what a replica has is no older than what was heard of."""
        return (frame or b"")[:VERSION_DIGITS] >= self._newest(key)


def info_fields(info: bytes) -> dict[bytes, bytes]:
    """Return what a reply to INFO says, by name."""
    return dict(line.split(b":", 1) for line in info.splitlines() if b":" in line)

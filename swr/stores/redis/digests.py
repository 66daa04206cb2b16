"""The digests of processes in Redis: each process writes its own, and dashboards read them all.

The codec of the cache encodes them, if there is one. They are on the server of the tag versions. A hash has the digests
by process, and a sorted set has the times at which they were written. By these times, processes remove the digests of
ended processes. Both keys have a time-to-live. Three more keys say whether a dashboard is open and which faults are
simulated, and hold the secret with which dashboards seal the names of keys.
"""

import contextlib
import logging
import time
from typing import Any, Final, NamedTuple, Protocol

from swr.core.packing import Packing
from swr.errors import CodecError, StoreUnavailable
from swr.stores.redis.commands import Commands
from swr.stores.redis.heartbeat import Part, Report
from swr.stores.redis.names import Names
from swr.stores.redis.reasons import with_remedy
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.topology import Servers

log = logging.getLogger("swr")

# Seconds between two digests of a process, at least.
_EVERY: Final = 0.8
# Seconds that digests, and claims of faults, stay in Redis.
_KEPT_FOR: Final = 60
# Seconds that the secret of the dashboards stays in Redis.
_SECRET_FOR: Final = 30 * 86_400
# The context that the codec gets, for each kind of data.
_DIGEST: Final = b"digest"
_FAULTS: Final = b"faults"
_SECRET: Final = b"secret"
# Ended processes that a running one removes at a time.
_REMOVED_AT_ONCE: Final = 20

# KEYS: the digests, their times, whether a dashboard is open, the faults.
# ARGV: the process, its digest, seconds that digests are kept, how many old ones are removed at most.
REPORT: Final = """
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
-- HDEL first: a server out of memory refuses no command of a script that has deleted something.
redis.call('HDEL', KEYS[1], ARGV[1])
redis.call('HSET', KEYS[1], ARGV[1], ARGV[2])
redis.call('ZADD', KEYS[2], now, ARGV[1])
local gone = redis.call('ZRANGEBYSCORE', KEYS[2], '-inf', now - ARGV[3], 'LIMIT', 0, ARGV[4])
if #gone > 0 then
  redis.call('HDEL', KEYS[1], unpack(gone))
  redis.call('ZREM', KEYS[2], unpack(gone))
end
redis.call('PEXPIRE', KEYS[1], ARGV[3] * 1000)
redis.call('PEXPIRE', KEYS[2], ARGV[3] * 1000)
return redis.call('MGET', KEYS[3], KEYS[4])
"""


# Other programs may have written more digests than a dashboard can hold, or longer ones. It gets the newest that fit.
# KEYS: the digests, their times. ARGV: the most digests, bytes of a name, bytes of a digest, and bytes of all digests.
READ: Final = """
local names
if redis.call('HLEN', KEYS[1]) > tonumber(ARGV[1]) then
  names = redis.call('ZREVRANGE', KEYS[2], 0, ARGV[1] - 1)
else
  names = redis.call('HKEYS', KEYS[1])
end
local time = redis.call('TIME')
local now = time[1] + time[2] / 1e6
local found, left = {}, tonumber(ARGV[4])
for _, name in ipairs(names) do
  local size = redis.call('HSTRLEN', KEYS[1], name)
  if size > 0 and size <= math.min(left, tonumber(ARGV[3])) and #name <= tonumber(ARGV[2]) then
    left = left - size
    found[#found + 1] = name
    found[#found + 1] = redis.call('HGET', KEYS[1], name)
    found[#found + 1] = (now - (redis.call('ZSCORE', KEYS[2], name) or now)) * 1000
  end
end
return found
"""
# KEYS: whether a dashboard is open. ARGV: for how long it is open (ms).
WATCH: Final = """
-- DEL first: a server out of memory refuses no command of a script that has deleted something.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], '1', 'PX', ARGV[1])
"""
# KEYS: the secret. ARGV: the proposed secret, for how long it is kept (ms). -> the secret that was proposed first
SECRET: Final = """
local known = redis.call('GET', KEYS[1])
if known then return known end
-- DEL first: a server out of memory refuses no command of a script that has deleted something.
redis.call('DEL', KEYS[1])
redis.call('SET', KEYS[1], ARGV[1], 'PX', ARGV[2])
return ARGV[1]
"""
# The limits of READ: digests, bytes of a name, bytes of a digest, and bytes of all. The digests of swr are smaller.
_LIMITS: Final = (2000, 100, 600_000, 1 << 24)


class Reports(Protocol):
    """The object that makes the digests of a process."""

    id: str

    def make(self, *, is_last: bool = False) -> bytes:
        """Return the digest of this moment.

        Parameters:
            is_last: whether the process ends, so that this is its last digest.
        """

    def on_wanted(self, is_open: bool, faults: bytes) -> None:
        """Note whether a dashboard is open, and which faults are simulated."""


class Server(NamedTuple):
    """A server, as this process sees it.

    Parameters:
        name: its address.
        lost_for: for how many seconds it has been unreachable; None: it is reachable.
        reason: why it is unreachable; empty if it is reachable or if the reason is not known.
    """

    name: str
    lost_for: float | None
    reason: str


class Digests:
    """Writes the digest of this process, and reads the digests of all processes.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        packing: its codec encodes the digests.

    Attributes:
        reports: makes the digests of this process; None: the process does not report.
        refused: why the server has refused the last digest of this process; empty if it has not.
        unreadable: how many digests this process could not decode at the last `read`.
        ages: how old the digests were at the last `read`, in seconds by the server's clock.
    """

    def __init__(self, servers: Servers, names: Names, commands: Commands, packing: Packing) -> None:
        self.reports: Reports | None = None
        self.refused = ""
        self.unreadable = 0
        self.ages: dict[str, float] = {}
        self._servers = servers
        self._names = names
        self._commands = commands
        self._packing = packing
        self._keys = (names.digests, names.digest_times, names.is_watched, names.faults)
        # When the last digest was made, by the monotonic clock.
        self._reported_at = 0.0
        self._has_left = False

    def open(self) -> None:
        """Report from now on."""
        self._has_left = False

    def due(self, link: ServerLink) -> Report | None:
        """Return the digest of this process for a link's heartbeat, about once a second; None if it is not due."""
        now = time.monotonic()
        if self._has_left or now - self._reported_at < _EVERY:
            return None
        if not self._commands.is_at(self._names.newest_tag_version, link):
            return None
        self._reported_at = now
        part = self._part(is_last=False)
        return None if part is None else Report(part, self._on_reply)

    async def leave(self) -> None:
        """Write the last digest of this process, by which dashboards know that it has ended and not died."""
        part, self._has_left = self._part(is_last=True), True
        if part is not None:
            # Without this digest, dashboards still notice that the process stops reporting.
            with contextlib.suppress(StoreUnavailable):
                await self._commands.script(part.script, part.keys, *part.arguments)

    def _part(self, *, is_last: bool) -> Part | None:
        """Return the script that writes the digest of this process, or None if there is no digest."""
        reports = self.reports
        if reports is None:
            return None
        try:
            made = reports.make(is_last=is_last)
        except Exception:
            # An error in a digest must not break the link to Redis.
            log.exception("swr could not make the digest of this process, so dashboards no longer show it")
            self.reports = None
            return None
        try:
            digest = self._packing.encoded(made, _DIGEST, reports.id.encode())
        except StoreUnavailable as error:
            self._commands.warn_once("digest", f"no dashboard shows this process: {error}")
            return None
        return Part(REPORT, self._keys, (reports.id, digest, _KEPT_FOR, _REMOVED_AT_ONCE))

    def _on_reply(self, reply: Any) -> None:
        reports = self.reports
        if reports is None or isinstance(reply, StoreUnavailable):
            return
        if isinstance(reply, Exception):
            self.refused = str(reply)
            text = f"Redis refuses the digest of this process ({reply}); no dashboard shows it"
            self._commands.warn_once("digest", with_remedy(text, reply))
            return
        self.refused = ""
        is_open, faults = reply
        reports.on_wanted(bool(is_open), self._decoded(faults, _FAULTS))

    def _decoded(self, data: bytes | None, what: bytes, place: bytes = b"") -> bytes:
        """Return the decoded data; empty if there are none, or if another codec has written them."""
        try:
            return self._packing.decoded(data, what, place) if data else b""
        except CodecError:
            return b""

    async def read(self) -> dict[str, bytes]:
        """Return the digests of the processes that have reported in the last minute.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        found = await self._commands.script(READ, self._keys[:2], *_LIMITS)
        pairs = zip(found[::3], found[1::3], strict=True)
        decoded = ((name, self._decoded(data, _DIGEST, name)) for name, data in pairs)
        sound = {name.decode("utf-8", "replace"): data for name, data in decoded if 0 < len(data) <= _LIMITS[2]}
        self.unreadable = len(found) // 3 - len(sound)
        ages = zip(found[::3], found[2::3], strict=True)
        self.ages = {name.decode("utf-8", "replace"): age / 1000 for name, age in ages}
        return sound

    async def watch(self, seconds: float) -> None:
        """Tell all processes that a dashboard is open, for some seconds.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        await self._commands.script(WATCH, (self._names.is_watched,), int(seconds * 1000))

    async def faults(self) -> bytes:
        """Return which faults are simulated.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        return self._decoded(await self._ask("GET", self._names.faults), _FAULTS)

    async def simulate(self, faults: bytes, seconds: float) -> None:
        """Tell all processes which faults they simulate, for some seconds.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        data = self._packing.encoded(faults, _FAULTS, b"")
        await self._ask("SET", self._names.faults, data, "PX", int(seconds * 1000))

    async def claim(self, fault: str, name: str) -> bool:
        """Return whether this process is the one to simulate a fault that only one process simulates.

        Parameters:
            name: the name of this process.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        # The reply to SET does not tell who was first, because swr repeats a command whose reply it has lost.
        await self._ask("SET", self._names.fault(fault), name, "NX", "PX", _KEPT_FOR * 1000)
        return bool(await self._ask("GET", self._names.fault(fault)) == name.encode())

    async def secret(self, proposed: bytes) -> bytes:
        """Return the secret that the dashboards of this namespace share: the one that was proposed first.

        Raises:
            StoreUnavailable: the server did not answer.
        """
        name = self._names.dashboard_secret
        data = self._packing.encoded(proposed, _SECRET, b"")
        known = await self._commands.script(SECRET, (name,), data, _SECRET_FOR * 1000)
        return self._decoded(known, _SECRET) or proposed

    async def _ask(self, command: str, key: bytes, *arguments: bytes | str | int) -> Any:
        return await self._commands.ask(self._names.newest_tag_version, command, key, *arguments)

    def refusal(self) -> tuple[str, float] | None:
        """Return the last recent refusal of the servers, and since when they refuse; see `Refusals.lately`."""
        return self._commands.refusals.lately()

    def servers(self) -> list[Server]:
        """Return the servers that this process has links to."""
        now = time.monotonic()
        return [
            Server(link.name, None if link.connection is not None else now - link.lost_at, str(link.error or ""))
            for link in self._servers.links
        ]

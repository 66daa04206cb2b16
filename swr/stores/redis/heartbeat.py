"""A heartbeat: everything that a process asks a server again and again, in one command.

It publishes the probe that says whether messages arrive, looks whether the server became a master, learns of tag
versions, and writes the digest of the process. Each part is a script of its own, which runs here as a function.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from redis.exceptions import AskError, RedisError

from swr.stores.redis.connection import Connection
from swr.stores.redis.replies import error_of

# ARGV: channel and message of the probe, the line of writes that the server carried on at the last look, how many keys
# and arguments the lesson has; then those of the lesson, then those of the report.
# -> {why the probe was refused, what INFO says, the lesson, {the report} or why there is none}
_BEGIN: Final = """
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
local info = redis.pcall('INFO', 'replication')
info = type(info) == 'string' and info or ''
local keys, arguments = tonumber(ARGV[4]), tonumber(ARGV[5])
local lesson, report = false, false
"""
# A server that carries on another line of writes may lack some, and gets them first.
_LEARN: Final = """
local history = string.match(info, 'master_replid:(%%w+)')
if not history or history == ARGV[3] then
  lesson = (function(KEYS, ARGV) %s end)({unpack(KEYS, 1, keys)}, {unpack(ARGV, 6, 5 + arguments)})
end
"""
# Whatever keeps the report from being written keeps nothing else.
_REPORT: Final = """
local ran, answer = pcall(
  function(KEYS, ARGV) %s end, {unpack(KEYS, keys + 1)}, {unpack(ARGV, 6 + arguments)}
)
if ran then report = {answer} else report = type(answer) == 'table' and answer.err or tostring(answer) end
"""
_END: Final = """
return {type(told) == 'table' and told.err or '', info, lesson, report}
"""


class Part(NamedTuple):
    """A script that runs with others in one command.

    Parameters:
        script: what runs.
        keys, arguments: KEYS and ARGV for it.
    """

    script: str
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | str | int, ...]


class Report(NamedTuple):
    """A report of a process, and a function that is called with the reply or the error."""

    part: Part
    on_reply: Callable[[Any], None]


class OtherHistory(Exception):
    """The server carries on another line of writes than at the last look, and has not been asked for tag versions."""


class Heartbeat:
    """One heartbeat of one connection.

    Parameters:
        connection: to the server.
        probe: channel and message of the probe.
        history: which line of writes the server carried on at the last look; None: that is not known.
        report: what this process reports.

    Attributes:
        info: what the server says of its replication, once it was asked; empty if this user may not ask.
        refused: why the probe was refused.
    """

    def __init__(
        self, connection: Connection, probe: tuple[bytes, int], history: bytes | None, report: Report | None
    ) -> None:
        self.info: bytes | None = None
        self.refused: RedisError | None = None
        self._connection = connection
        self._probe = probe
        self._history = history or b""
        self._report = report

    async def ask(self, *command: bytes | str | int) -> Any:
        """Run the script of the first command together with the rest of the heartbeat; send the others as they are.

        Raises:
            OtherHistory: the script has not run.
            StoreUnavailable, RedisError: no answer.
        """
        if self.info is not None:
            return await self._connection.ask(*command)
        _, script, number, *rest = command
        keys, arguments = rest[: int(number)], rest[int(number) :]
        try:
            lesson = await self.send(Part(str(script), tuple(map(_bytes, keys)), tuple(arguments)))
        except AskError:
            # The digests are where the tag versions are: elsewhere.
            self._report = None
            raise
        if lesson is None:
            raise OtherHistory
        return lesson

    async def send(self, lesson: Part | None = None) -> Any:
        """Send the heartbeat, and return the reply of the script `lesson`; None: that script has not run.

        Raises:
            StoreUnavailable, RedisError: no answer.
        """
        learned = lesson or _NOTHING
        report = _NOTHING if self._report is None else self._report.part
        text = _BEGIN
        if lesson is not None:
            text += _LEARN % lesson.script
        if self._report is not None:
            text += _REPORT % report.script
        keys = (*learned.keys, *report.keys)
        sizes = len(learned.keys), len(learned.arguments)
        arguments = (*self._probe, self._history, *sizes, *learned.arguments, *report.arguments)
        refused, info, reply, reported = await self._connection.ask("EVAL", text + _END, len(keys), *keys, *arguments)
        self.info = info
        if refused:
            self.refused = _error(refused)
        if self._report is not None:
            self._report.on_reply(reported[0] if isinstance(reported, list) else _error(reported))
        return reply


_NOTHING: Final = Part("", (), ())


def _error(text: bytes) -> RedisError:
    return error_of(text.decode("utf-8", "replace").removeprefix("-"))


def _bytes(key: bytes | str | int) -> bytes:
    assert isinstance(key, bytes)
    return key

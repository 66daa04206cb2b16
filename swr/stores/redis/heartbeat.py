"""A heartbeat: everything that a process asks a server at regular intervals, in one command.

It publishes the probe that shows whether messages arrive, checks whether the server became a master, learns tag
versions, and writes the digest of the process. The last two parts are scripts, which run here as functions.
"""

from collections.abc import Callable
from typing import Any, Final, NamedTuple

from redis.exceptions import AskError, RedisError

from swr.stores.redis.connection import Connection
from swr.stores.redis.replies import error_of

# The lesson is the script that learns tag versions, the report the one that writes the digest.
# KEYS: those of the lesson, then those of the report.
# ARGV: channel and message of the probe, the last known ID of the server's replication history, the numbers of keys and
# of arguments of the lesson; then the arguments of the lesson, then those of the report.
# -> {why the probe was refused, text of INFO, reply of the lesson, {reply of the report} or its error}
_BEGIN: Final = """
local told = redis.pcall('PUBLISH', ARGV[1], ARGV[2])
local info = redis.pcall('INFO', 'replication')
info = type(info) == 'string' and info or ''
local keys, arguments = tonumber(ARGV[4]), tonumber(ARGV[5])
local lesson, report = false, false
"""
# A server with another replication history may lack writes, and must get them first. So the lesson is left out.
_LEARN: Final = """
local history = string.match(info, 'master_replid:(%%w+)')
if not history or history == ARGV[3] then
  lesson = (function(KEYS, ARGV) %s end)({unpack(KEYS, 1, keys)}, {unpack(ARGV, 6, 5 + arguments)})
end
"""
# An error of the report leaves the other parts as they are.
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
        script: the text of the script.
        keys, arguments: its KEYS and ARGV.
    """

    script: str
    keys: tuple[bytes, ...]
    arguments: tuple[bytes | str | int, ...]


class Report(NamedTuple):
    """A script that reports this process to the server, and a callback for the reply or the error."""

    part: Part
    on_reply: Callable[[Any], None]


class OtherHistory(Exception):
    """The server has another replication history than before, so the heartbeat has not learned tag versions."""


class Heartbeat:
    """One heartbeat of one connection.

    Parameters:
        connection: the connection to the server.
        probe: the channel and the message of the probe.
        history: the last known ID of the server's replication history, or None.
        report: the report of this process, or None.

    Attributes:
        info: the replication section of the server's INFO; None before the heartbeat, empty without the right to it.
        refused: why the probe was refused, or None.
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
        """Run the script of the first command as a part of the heartbeat; send later commands as they are.

        Raises:
            OtherHistory: the script has not run.
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
        """
        if self.info is not None:
            return await self._connection.ask(*command)
        _, script, number, *rest = command
        keys, arguments = rest[: int(number)], rest[int(number) :]
        try:
            lesson = await self.send(Part(str(script), tuple(map(_bytes, keys)), tuple(arguments)))
        except AskError:
            # The tag versions are on another server, and so are the digests.
            self._report = None
            raise
        if lesson is None:
            raise OtherHistory
        return lesson

    async def send(self, lesson: Part | None = None) -> Any:
        """Send the heartbeat, and return the reply of the script `lesson`, or None if that script has not run.

        Raises:
            StoreUnavailable, RedisError: the server did not answer, or answered with an error.
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

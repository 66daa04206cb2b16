"""Commands and scripts, each sent to the server that has its key; errors become StoreUnavailable."""

import logging
from collections.abc import Callable
from typing import Any

from redis.exceptions import MovedError, RedisError

from swr.errors import StoreUnavailable
from swr.stores.base import StoreRefused
from swr.stores.redis.reasons import explain_redirect
from swr.stores.redis.refusals import Refusals
from swr.stores.redis.scripts import milliseconds
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.topology import Servers

log = logging.getLogger("swr")

_MOST_WARNINGS = 1000


class Commands:
    """Sends commands to the servers of one store.

    Parameters:
        servers: knows which server has each key.
        timeout: the time-out of replies, in seconds; replicas get half of it to confirm a write.

    Attributes:
        refusals: tracks which commands the servers refuse.
    """

    def __init__(self, servers: Servers, timeout: float) -> None:
        self._servers = servers
        self._timeout = timeout
        self.refusals = Refusals()
        self._warned: set[str] = set()

    def send(self, name: bytes, command: tuple[bytes | str | int, ...], on_reply: Callable[[Any], None]) -> None:
        """Send a command to the server that has the key `name`; `on_reply` is called with its reply or an exception."""
        try:
            connection = self._servers.link_to(name).connection
        except StoreUnavailable:
            connection = None
        if connection is None:
            on_reply(StoreUnavailable("the connection to Redis is broken"))
        else:
            connection.send(command, on_reply)

    async def ask(self, name: bytes, *command: bytes | str | int) -> Any:
        """Return the reply of the server that has the key `name`.

        Raises:
            StoreUnavailable: the server did not answer, or answered with an error.
        """
        try:
            return await self._servers.ask(name, *command)
        except MovedError as error:
            self.warn_once("moved", explain_redirect(error))
            raise StoreUnavailable(str(error)) from error
        except RedisError as error:
            raise self._refused(error) from error

    def _refused(self, error: RedisError) -> StoreRefused:
        self.refusals.refused(error)
        return StoreRefused(str(error))

    async def script(self, script: str, keys: tuple[bytes, ...], *args: bytes | str | int) -> Any:
        """Run a script on the server that has its keys.

        Raises:
            StoreUnavailable: the script did not run, or its reply was lost.
        """
        # EVAL, not EVALSHA: the server caches scripts by content in both cases, and a failover cannot lose the script.
        return await self.ask(keys[0], "EVAL", script, len(keys), *keys, *args)

    async def replicated(self, replicas: int, script: str, keys: tuple[bytes, ...], *args: bytes | str | int) -> Any:
        """Run a script, and wait until this many replicas have what it wrote.

        Raises:
            StoreUnavailable: too few replicas confirmed it.
        """
        before = self._servers.link_to(keys[0]).connection
        answer = await self.script(script, keys, *args)
        if replicas:
            connection = self._servers.link_to(keys[0]).connection
            # WAIT only counts the writes of its own connection.
            if connection is None or connection is not before:
                raise StoreUnavailable("the connection broke before the replicas had confirmed the write")
            try:
                had = await connection.ask("WAIT", replicas, milliseconds(self._timeout / 2))
            except RedisError as error:
                raise self._refused(error) from error
            if had < replicas:
                raise StoreUnavailable(
                    f"only {had} of {replicas} replicas have the write after {self._timeout / 2:g} s"
                )
        return answer

    def place_of(self, name: bytes) -> int:
        """Return the place of a key. One command can name several keys of one place."""
        return self._servers.place_of(name)

    def is_at(self, name: bytes, link: ServerLink) -> bool:
        """Return whether `link` leads to the server that has the key `name`."""
        try:
            return self._servers.link_to(name) is link
        except StoreUnavailable:
            return False

    def warn_once(self, about: str, text: str) -> None:
        """Log `text` as a warning, unless one about the same subject was logged before."""
        if about not in self._warned and len(self._warned) < _MOST_WARNINGS:
            self._warned.add(about)
            log.warning("%s", text)

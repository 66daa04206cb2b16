"""Turns messages of other processes into notifications of the store's subscriber."""

from cachetools import LRUCache

from swr.stores.base import Kind, Start, Subscriber
from swr.stores.redis.commands import Commands
from swr.stores.redis.invalidations import Invalidations
from swr.stores.redis.messages import Messages, before_in, invalidated_in, split
from swr.stores.redis.names import ForeignName, Names
from swr.stores.redis.reading import Reading
from swr.stores.redis.server_link import ServerLink
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.redis.topology import Servers


class Notifications:
    """Turns messages into notifications.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        commands: sends commands to the servers.
        messages: reads the messages.
        shared: the tag versions.
        invalidations: the last invalidations of keys.
        readings: the readings under way, by key; a message about a key removes its reading.
    """

    def __init__(
        self,
        servers: Servers,
        names: Names,
        commands: Commands,
        messages: Messages,
        shared: SharedTagVersions,
        invalidations: Invalidations,
        readings: dict[str, Reading],
    ) -> None:
        self._servers = servers
        self._names = names
        self._commands = commands
        self._messages = messages
        self._shared = shared
        self._invalidations = invalidations
        self._readings = readings
        # The latest messages. A cluster's masters pass messages on to each other, so every link brings each message.
        self._received: LRUCache[bytes, None] = LRUCache(1000)

    def open(self, start: Start, subscriber: Subscriber) -> None:
        """Call `subscriber` with every notification from now on; `start` starts a task."""
        self._start = start
        self._subscriber = subscriber

    def on_message(self, link: ServerLink, data: bytes) -> None:
        """Take a message of one of the links, or several that were sent as one."""
        messages = split(data)
        if messages is None:
            self._ignore(data)
            return
        # Only commits come several at once. Their arrival is noted once for the whole batch.
        is_batch = len(messages) > 1
        if not (is_batch and self._came_before(data)):
            for message in messages:
                self._on_message(link, message, is_batch)

    def _ignore(self, data: bytes) -> None:
        self._commands.warn_once(
            "message", f"a message on {self._messages.channel!r} that is not swr's was ignored: {data[:80]!r}"
        )

    def _on_foreign_name(self, data: bytes) -> None:
        """Invalidate everything if another process has invalidated something whose name this one cannot read."""
        self._commands.warn_once(
            "foreign name",
            f"a process in the namespace {self._names.prefix.decode()!r} has another secret or codec, so that neither "
            f"reads what the other stores, and every invalidation invalidates everything: give all processes the same "
            f"codec=, or another namespace",
        )
        version = invalidated_in(data)
        if version is not None:
            self._start(self._shared.clear_after, version)

    def _on_message(self, link: ServerLink, data: bytes, is_known: bool) -> None:
        try:
            notification = self._messages.read(data)
        except ForeignName:
            self._on_foreign_name(data)
            return
        if notification is None:
            self._ignore(data)
            return
        kind, name, version, elsewhere, _ = notification
        if kind is Kind.TAG_VERSION:
            again = self._came_before(data)
            is_theirs = link.connection is not None and self._commands.is_at(self._names.newest_tag_version, link)
            if self._shared.on_message(name, version, before_in(data) if is_theirs else b""):
                self._subscriber(notification)
            elif elsewhere and not again:
                self._subscriber(notification._replace(kind=Kind.REPEATED))
            return
        # A leader wakes consumers of its own process, too.
        is_meant = elsewhere or kind is Kind.QUEUED
        if not is_meant or (version and not is_known and self._came_before(data)):
            return
        if kind is Kind.QUEUED:
            self._subscriber(notification)
            return
        if kind in (Kind.INVALIDATED, Kind.MARKED):
            self._invalidations.remember(notification.text, version, is_mark=kind is Kind.MARKED)
        # A reader that asks from now on must not share a read that was sent before this message.
        if isinstance(name, str):
            self._readings.pop(name, None)
        self._subscriber(notification)

    def _came_before(self, data: bytes) -> bool:
        """Return whether this message has already come over another link of a cluster."""
        if self._servers.is_single:
            return False
        known = data in self._received
        self._received[data] = None
        return known

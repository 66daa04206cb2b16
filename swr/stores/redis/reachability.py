"""Tracks whether Redis can be reached: logs each change and each new reason, and notifies the subscriber of changes."""

import logging
from typing import Final

from cachetools import TTLCache

from swr.errors import StoreUnavailable
from swr.stores.base import Kind, Notification, Subscriber
from swr.stores.redis.names import Names
from swr.stores.redis.shared_tag_versions import SharedTagVersions
from swr.stores.redis.topology import Servers

log = logging.getLogger("swr")

# Seconds after which a reason is logged again, if several alternate.
_REPEATED_AFTER: Final = 60.0
_MOST_REASONS: Final = 100


class Reachability:
    """Tracks whether every key can be reached.

    Parameters:
        servers: knows which server has each key.
        names: the keys of the namespace.
        shared: the tag versions.

    Attributes:
        is_reachable: whether every key can be reached; None if that is not known since the last opening.
    """

    def __init__(self, servers: Servers, names: Names, shared: SharedTagVersions) -> None:
        self.is_reachable: bool | None = None
        self._servers = servers
        self._names = names
        self._shared = shared
        # The reason that was logged last; None once Redis is reachable again.
        self._logged: str | None = None
        # The reasons that were logged lately, because reasons may alternate.
        self._told: TTLCache[str, str] = TTLCache(_MOST_REASONS, _REPEATED_AFTER)

    def open(self, subscriber: Subscriber) -> None:
        """Call `subscriber` at every change from now on."""
        self._subscriber = subscriber
        self.is_reachable = None

    def on_link_changed(self) -> None:
        """Log and notify when some key can no longer be reached, and when every key can be reached again."""
        error = self._servers.error
        if error is not None:
            self._servers.refresh_map()
        if self._servers.is_reachable and self.is_reachable is not True:
            if self._logged is not None:
                log.warning("Redis at %s is reachable again (it was unreachable: %s)", self._where(), self._logged)
            self.is_reachable, self._logged = True, None
            self._told.clear()
            # Messages may have been missed: the subscriber checks what it holds.
            self._subscriber(Notification(Kind.REACHABLE, self._servers.runs, self._shared.time))
        elif error is not None:
            self._tell(str(error))
            if self.is_reachable is not False:
                self.is_reachable = False
                self._subscriber(Notification(Kind.UNREACHABLE, str(error)))

    def _tell(self, reason: str) -> None:
        """Log a new reason why Redis cannot be reached; closing and opening the cache does not make a reason new."""
        if reason == self._logged or reason in self._told:
            return
        if self._logged is None:
            text = "cannot reach Redis at %s (%s); serving from memory and from the loaders"
        else:
            text = "Redis at %s is still unreachable, now for another reason (%s)"
        log.warning(text, self._where(), reason)
        self._logged = self._told[reason] = reason

    def _where(self) -> str:
        namespace = self._names.prefix.decode()
        return f"{self._servers.name}, database {self._servers.database}, namespace {namespace!r}"

    def is_unreachable(self, key: str) -> bool:
        """Return whether the key's server is known to be unreachable, and for more than a moment."""
        if self.is_reachable is not False:
            return False
        try:
            # A single server has every key, so that the name of this key does not matter.
            return self._servers.link_to(b"" if self._servers.is_single else self._names.entry(key)).is_unreachable
        except StoreUnavailable:
            return True

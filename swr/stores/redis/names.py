"""The names of Redis keys in one namespace, and the form of cache keys and tags in Redis.

`swr.stores.redis.scripts` describes the contents of each Redis key. Without a codec that hides names, cache keys and
tags are in Redis as they are. With one, each hidden name begins with two bytes that no UTF-8 text has. By these bytes,
a process that cannot read a name knows that it cannot.
"""

import base64
import functools
from typing import Final

from swr.core.keys import storage_name
from swr.core.packing import PLAIN, Packing
from swr.errors import StoreUnavailable

_HIDDEN: Final = b"\xff\x01"
_REMEMBERED: Final = 4096


class ForeignName(ValueError):
    """A name that this process cannot read: another secret hides it, or only one of two processes hides names."""


class Names:
    """The names of Redis keys in one namespace.

    Parameters:
        namespace: the beginning of every name.
        packing: its codec may hide names.

    Attributes:
        prefix: the namespace, as bytes.
        tag_versions: names the sorted set of tag versions by tag.
        newest_tag_version: names the newest tag version.
        announcements: names the tags of URLs that loads have announced.
        passed_over: names the times at which invalidations were passed over.
        hidden: returns the form in Redis of a key, a tag or another name.
        digests, digest_times: name the digests of processes, and when each was written.
        is_watched: names whether a dashboard is open.
        faults: names the faults that processes simulate.
        dashboard_secret: names the secret with which dashboards seal the names of keys.
    """

    def __init__(self, namespace: str, packing: Packing = PLAIN) -> None:
        self.prefix = namespace.encode()
        self.tag_versions = self.prefix + b":{!}b"
        self.newest_tag_version = self.prefix + b":{!}h"
        self.announcements = self.prefix + b":{!}a"
        self.passed_over = self.prefix + b":{!}p"
        self.digests = self.prefix + b":{!}d"
        self.digest_times = self.prefix + b":{!}dt"
        self.is_watched = self.prefix + b":{!}dw"
        self.faults = self.prefix + b":{!}df"
        self.dashboard_secret = self.prefix + b":{!}ds"
        self._before_entry = self.prefix + b":{"
        self._codec = codec = packing.names
        self.hidden = _bytes if codec is None else functools.lru_cache(_REMEMBERED)(self._hide)

    def _hide(self, name: str) -> bytes:
        assert self._codec is not None
        try:
            return _HIDDEN + self._codec.encode_name(_bytes(name), self.prefix)
        except Exception as error:
            raise StoreUnavailable(f"the codec could not hide a name ({type(error).__name__}: {error})") from error

    def shown(self, data: bytes) -> str:
        """Return the name that `data` represents.

        Raises:
            ForeignName: the process that wrote it hides names in another way, or does not hide them.
            ValueError: `data` is not a name.
        """
        if data.startswith(_HIDDEN) is (self._codec is None):
            raise ForeignName("one of the two processes hides names with a codec, the other does not")
        if self._codec is not None:
            try:
                data = self._codec.decode_name(data[len(_HIDDEN) :], self.prefix)
            except Exception as error:
                raise ForeignName(str(error)) from error
        return data.decode("utf-8", "surrogatepass")

    def unhidden(self, data: bytes) -> str:
        """Return the key that `storage_name` has hidden.

        Raises:
            ValueError: another secret has hidden the name, or `data` is not a name.
        """
        return self.shown(_HIDDEN + data)

    @property
    def digest_key(self) -> bytes:
        """A key for hashes that only processes with the same secret can compute; empty if names are not hidden."""
        return b"" if self._codec is None else self.hidden("")[-16:]

    def storage_name(self, name: str) -> str:
        """Return `name` as a part of a Redis key, safe inside a hash tag."""
        if self._codec is None:
            return storage_name(name)
        return storage_name(base64.urlsafe_b64encode(self.hidden(name)[len(_HIDDEN) :]).decode().rstrip("="))

    def entry(self, key: str) -> bytes:
        """Return the Redis key of the entry of `key`.

        Raises:
            StoreUnavailable: the codec cannot hide the name.
        """
        name = storage_name(key) if self._codec is None else self.storage_name(key)
        return b"%b%b}" % (self._before_entry, name.encode())

    def entry_and_lease(self, key: str) -> tuple[bytes, bytes]:
        """Return the Redis keys of the entry and of the lease of `key`; a cluster keeps both in one slot."""
        entry = self.entry(key)
        return entry, entry + b":l"

    def fault(self, name: str) -> bytes:
        """Return the Redis key with which one process claims to simulate a fault."""
        return b"%b:%b" % (self.faults, name.encode())

    def named(self, name: str) -> bytes:
        """Return the Redis key with this name in the namespace."""
        return b"%b:%b" % (self.prefix, name.encode())


def _bytes(name: str) -> bytes:
    return name.encode("utf-8", "surrogatepass")

"""The names of Redis keys in one namespace; `swr.stores.redis.scripts` says what lies under each."""

from swr.core.keys import storage_name


class Names:
    """The names of Redis keys in one namespace.

    Parameters:
        namespace: the beginning of every name.

    Attributes:
        prefix: the namespace, as bytes.
        tag_versions: names the sorted set of tag versions by tag.
        newest_tag_version: names the newest tag version.
        announcements: names the tags of URLs of which loads have begun.
        passed_over: names the times at which invalidations were passed over.
    """

    def __init__(self, namespace: str) -> None:
        self.prefix = namespace.encode()
        self.tag_versions = self.prefix + b":{!}b"
        self.newest_tag_version = self.prefix + b":{!}h"
        self.announcements = self.prefix + b":{!}a"
        self.passed_over = self.prefix + b":{!}p"
        self._before_entry = self.prefix + b":{"

    def entry(self, key: str) -> bytes:
        """Return where the entry of `key` is."""
        return self._before_entry + storage_name(key).encode() + b"}"

    def entry_and_lease(self, key: str) -> tuple[bytes, bytes]:
        """Return where the entry of `key` is, and its lease; a cluster keeps both in one slot."""
        entry = self.entry(key)
        return entry, entry + b":l"

    def named(self, name: str) -> bytes:
        """Return `name` as a key of this namespace."""
        return b"%b:%b" % (self.prefix, name.encode())

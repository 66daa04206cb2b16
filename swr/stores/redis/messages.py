"""The format of the messages that processes publish to each other on one channel.

A message is its kind, 16 digits of version, 16 characters that name its sender, and the key or tag. That of a commit
has the 8 characters of its type's fingerprint before the key, and that of a tag version 16 digits of the newest one
before it. Several may come as one: "m", and each behind its length in eight digits.
"""

import secrets
from typing import Final

from swr.core.frames import VERSION_DIGITS
from swr.stores.base import NEWEST, Kind, Notification
from swr.stores.redis.invalidations import LastInvalidation
from swr.stores.redis.names import Names
from swr.stores.redis.scripts import TOMBSTONE_FOR, digits
from swr.stores.tag_versions import ALL, Name, OfKey, OfLoader, Soft

_INSTANCE: Final = 16
_FINGERPRINT: Final = 8
PENDING: Final = (Kind.PENDING_KEY, Kind.PENDING_TAG)
# What processes tell each other. What a process notes for itself, such as an outage, is foreign in a message.
_KINDS: Final = {
    kind.value.encode(): kind
    for kind in (Kind.COMMITTED, Kind.RELEASED, Kind.INVALIDATED, Kind.MARKED, Kind.TAG_VERSION, Kind.QUEUED, *PENDING)
}
# Those that name something by a member of the tag versions.
_NAMED: Final = (Kind.TAG_VERSION, Kind.PENDING_TAG)


class Messages:
    """Writes and reads the messages of one channel.

    Parameters:
        names: the keys of the namespace.

    Attributes:
        channel: where they are published.
        instance: names this process since the last opening.
        latest: the latest version that is not foreign, going by the server's clock.
    """

    def __init__(self, names: Names) -> None:
        self.channel = b""
        self.latest = NEWEST
        self.instance = ""
        self._names = names

    def open(self) -> None:
        """Take a new name as a sender."""
        self.instance = secrets.token_hex(_INSTANCE // 2)

    def use_database(self, number: int) -> None:
        """Publish on the channel of a database; channels belong to the server, so that the number has to be in it."""
        self.channel = b"%b:%d:messages" % (self._names.prefix, number)

    def write(self, kind: Kind, name: Name, version: int = 0, fingerprint: str = "") -> bytes:
        """Return a message; that of a commit has a fingerprint. Those about tag versions are written by scripts."""
        begin = f"{kind.value}{digits(version)}{self.instance}{fingerprint}".encode()
        if kind is Kind.PENDING_TAG or not isinstance(name, str):
            return begin + member_of(name)
        return begin + name.encode("utf-8", "surrogatepass")

    def around_version(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        """Return a message in two parts, between which a script puts the version."""
        whole = self.write(kind, name)
        return whole[:1], whole[17:]

    def reminders(self, invalidations: list[LastInvalidation]) -> list[bytes | int | str]:
        """Return the arguments with which a script invalidates keys again, each at its version."""
        arguments: list[bytes | int | str] = [self.channel, TOMBSTONE_FOR]
        for key, version, is_mark in invalidations:
            text = f"{digits(version)}s" if is_mark else digits(version)
            arguments += [text, self.write(Kind.INVALIDATED, key, version)]
        return arguments

    def read(self, message: bytes) -> Notification | None:
        """Return what a message says, or None if it is not one of swr's."""
        kind, instance, name = _KINDS.get(message[:1]), message[17 : 17 + _INSTANCE], message[17 + _INSTANCE :]
        fingerprint = b""
        if kind is Kind.COMMITTED:
            fingerprint, name = name[:_FINGERPRINT], name[_FINGERPRINT:]
        elif kind is Kind.TAG_VERSION:
            name = name[VERSION_DIGITS:]
        try:
            version = int(message[1:17])
            named: Name
            if kind in _NAMED:
                named = name_in(name, may_be_key=kind is Kind.PENDING_TAG)
            else:
                named = name.decode("utf-8", "surrogatepass")
        except ValueError:
            return None
        if kind is None or version > self.latest:
            return None
        return Notification(kind, named, version, instance != self.instance.encode(), fingerprint.decode("latin-1"))


def before_in(message: bytes) -> bytes:
    """Return the digits of the tag version that was the newest before the one that a message is about."""
    return message[17 + _INSTANCE : 17 + _INSTANCE + VERSION_DIGITS]


def member_of(name: Name) -> bytes:
    """Return what was invalidated or marked, as scripts and messages name it."""
    of = name.of if isinstance(name, Soft) else name
    if isinstance(of, OfLoader):
        text = f"l{of.template}"
    elif isinstance(of, OfKey):
        text = f"k{of.key}"
    else:
        text = "*" if of == ALL else f"t{of}"
    return f"{'s' if isinstance(name, Soft) else ''}{text}".encode("utf-8", "surrogatepass")


def name_in(member: bytes, *, may_be_key: bool = False) -> Name:
    """Return what a member of the tag versions names.

    Parameters:
        may_be_key: it may be a mark of a key, which has no tag version.

    Raises:
        ValueError: it is not swr's.
    """
    is_soft = member[:1] == b"s"
    member = member[is_soft:]
    kind, text = member[:1], member[1:].decode("utf-8", "surrogatepass")
    if is_soft and may_be_key and kind == b"k":
        return Soft(OfKey(text))
    name: str | OfLoader
    if member == b"*":
        name = ALL
    elif kind == b"t" and text:
        name = text
    elif kind == b"l":
        name = OfLoader(text)
    else:
        raise ValueError(f"{member!r} is no tag")
    return Soft(name) if is_soft else name


def split(data: bytes) -> list[bytes] | None:
    """Return the message, or the several that came as one; None if the data is neither."""
    if data[:1] != b"m":
        return [data]
    messages, first = [], 1
    while first < len(data):
        length = data[first : first + 8]
        if not length.isdigit():
            return None
        first += 8 + int(length)
        messages.append(data[first - int(length) : first])
    return messages

"""The format of the messages that processes publish to each other on one channel.

A message is its kind, 16 digits of a version, 16 characters that identify its sender, and a name, such as a key or tag.
Some kinds have more before the name. A commit has the 8 characters of its type's fingerprint. A tag version has 16
digits of the newest version before it. A message that wakes consumers has four digits of their number, and eight
characters for each consumer. Several messages may come as one: "m", then each message after its length in eight digits.
"""

import secrets
from typing import Final

from swr.core.frames import VERSION_DIGITS
from swr.stores.base import NEWEST, Kind, Notification
from swr.stores.redis.invalidations import LastInvalidation
from swr.stores.redis.names import ForeignName, Names
from swr.stores.redis.scripts import TOMBSTONE_FOR, digits
from swr.stores.tag_versions import ALL, Name, OfKey, OfLoader, Soft

_INSTANCE: Final = 16
_FINGERPRINT: Final = 8
# How many digits the number of consumers has in a message that wakes them.
_NUMBER: Final = 4
PENDING: Final = (Kind.PENDING_KEY, Kind.PENDING_TAG)
# Kinds that processes send each other. A process notifies only itself of the others, such as an outage.
_KINDS: Final = {
    kind.value.encode(): kind
    for kind in (Kind.COMMITTED, Kind.RELEASED, Kind.INVALIDATED, Kind.MARKED, Kind.TAG_VERSION, Kind.QUEUED, *PENDING)
}
_INVALIDATING: Final = (Kind.INVALIDATED, Kind.MARKED, Kind.TAG_VERSION, *PENDING)
# Kinds whose name is written as a member of the tag versions.
_NAMED: Final = (Kind.TAG_VERSION, Kind.PENDING_TAG)


class Messages:
    """Writes and reads the messages of one channel.

    Parameters:
        names: the keys of the namespace.

    Attributes:
        channel: the channel on which they are published.
        instance: identifies this process as a sender since the last opening.
        latest: the highest version that a message may have: one far ahead of the server's clock is foreign.
    """

    def __init__(self, names: Names) -> None:
        self.channel = b""
        self.latest = NEWEST
        self.instance = ""
        self._names = names

    def open(self) -> None:
        """Take a new identifier as a sender."""
        self.instance = secrets.token_hex(_INSTANCE // 2)

    def use_database(self, number: int) -> None:
        """Publish on the channel of a database, which has the number in its name: all databases share the channels."""
        self.channel = b"%b:%d:messages" % (self._names.prefix, number)

    def write(self, kind: Kind, name: Name, version: int = 0, fingerprint: str = "") -> bytes:
        """Return a message; a commit needs a fingerprint. Scripts write the messages about tag versions."""
        begin = f"{kind.value}{digits(version)}{self.instance}{fingerprint}".encode()
        if kind is Kind.PENDING_TAG or not isinstance(name, str):
            return begin + member_of(name, self._names)
        return begin + self._names.hidden(name)

    def around_version(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        """Return a message in two parts, between which a script puts the version."""
        whole = self.write(kind, name)
        return whole[:1], whole[17:]

    def around_consumers(self, name: str) -> tuple[bytes, bytes]:
        """Return a message that wakes consumers in two parts, between which a script puts their number and names.

        The script puts the kind and the time before them.
        """
        return self.instance.encode(), self._names.hidden(name)

    def reminders(self, invalidations: list[LastInvalidation]) -> list[bytes | int | str]:
        """Return the arguments of the script REMIND, which invalidates keys again at their versions."""
        arguments: list[bytes | int | str] = [self.channel, TOMBSTONE_FOR]
        for key, version, is_mark in invalidations:
            text = f"{digits(version)}s" if is_mark else digits(version)
            arguments += [text, self.write(Kind.INVALIDATED, key, version)]
        return arguments

    def read(self, message: bytes) -> Notification | None:
        """Return a message as a notification, or None if swr has not written it.

        Raises:
            ForeignName: this process cannot read the name in the message.
        """
        kind, instance, name = _KINDS.get(message[:1]), message[17 : 17 + _INSTANCE], message[17 + _INSTANCE :]
        fingerprint = b""
        if kind is None or not message[1:17].isdigit():
            return None
        if kind is Kind.COMMITTED:
            fingerprint, name = _cut(name, _FINGERPRINT)
        elif kind is Kind.TAG_VERSION:
            name = name[VERSION_DIGITS:]
        elif kind is Kind.QUEUED:
            number = name[:_NUMBER]
            if not number.isdigit():
                return None
            fingerprint, name = _cut(name[_NUMBER:], int(number) * _FINGERPRINT)
        version = int(message[1:17])
        named: Name
        try:
            if kind in _NAMED:
                named = name_in(name, self._names, may_be_key=kind is Kind.PENDING_TAG)
            else:
                named = self._names.shown(name)
        except ForeignName:
            raise
        except ValueError:
            return None
        if version > self.latest:
            return None
        return Notification(kind, named, version, instance != self.instance.encode(), fingerprint.decode("latin-1"))


def _cut(text: bytes, at: int) -> tuple[bytes, bytes]:
    return text[:at], text[at:]


def invalidated_in(message: bytes) -> int | None:
    """Return the version at which a message invalidates or marks any name, or None if it does neither."""
    return int(message[1:17]) if _KINDS.get(message[:1]) in _INVALIDATING else None


def before_in(message: bytes) -> bytes:
    """Return the digits of the newest version before the one that a message about a tag version brings."""
    return message[17 + _INSTANCE : 17 + _INSTANCE + VERSION_DIGITS]


def member_of(name: Name, names: Names) -> bytes:
    """Return a name to invalidate or mark in the form that scripts and messages use: a member of the tag versions."""
    of = name.of if isinstance(name, Soft) else name
    if isinstance(of, OfLoader):
        member = b"l" + names.hidden(of.template)
    elif isinstance(of, OfKey):
        member = b"k" + names.hidden(of.key)
    else:
        member = b"*" if of == ALL else b"t" + names.hidden(of)
    return b"s" + member if isinstance(name, Soft) else member


def name_in(member: bytes, names: Names, *, may_be_key: bool = False) -> Name:
    """Return the name that a member of the tag versions represents.

    Parameters:
        may_be_key: whether the member may be a mark of a key, which has no tag version.

    Raises:
        ForeignName: this process cannot read the name.
        ValueError: swr has not written the member.
    """
    is_soft = member[:1] == b"s"
    member = member[is_soft:]
    if member == b"*":
        return Soft(ALL) if is_soft else ALL
    kind = member[:1]
    if kind not in (b"t", b"l") and not (kind == b"k" and is_soft and may_be_key):
        raise ValueError(f"{member!r} is not a tag")
    text = names.shown(member[1:])
    if kind == b"k":
        return Soft(OfKey(text))
    if kind == b"t" and not text:
        raise ValueError(f"{member!r} is not a tag")
    name = text if kind == b"t" else OfLoader(text)
    return Soft(name) if is_soft else name


def split(data: bytes) -> list[bytes] | None:
    """Return the messages in the data: one, or several that came as one. None: the data is malformed."""
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

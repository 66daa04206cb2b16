"""The format of the messages that processes publish to each other on one channel.

A message is its kind, 16 digits of version, 16 characters that name its sender, and the key or tag. Several may come
as one: "m", and each behind its length in eight digits.
"""

import secrets
from typing import Final

from swr.stores.base import Kind, Notification
from swr.stores.redis.names import Names
from swr.stores.redis.scripts import digits

_INSTANCE: Final = 16


class Messages:
    """Writes and reads the messages of one channel.

    Parameters:
        names: the keys of the namespace.

    Attributes:
        channel: where they are published.
        instance: names this process since the last opening.
    """

    def __init__(self, names: Names) -> None:
        self.channel = b""
        self.instance = ""
        self._names = names

    def open(self) -> None:
        """Take a new name as a sender."""
        self.instance = secrets.token_hex(_INSTANCE // 2)

    def use_database(self, number: int) -> None:
        """Publish on the channel of a database; channels belong to the server, so that the number has to be in it."""
        self.channel = b"%b:%d:messages" % (self._names.prefix, number)

    def write(self, kind: Kind, name: str, version: int = 0) -> bytes:
        """Return a message."""
        return f"{kind.value}{digits(version)}{self.instance}{name}".encode("utf-8", "surrogatepass")

    def around_version(self, kind: Kind, name: str) -> tuple[bytes, bytes]:
        """Return a message in two parts, between which a script puts the version."""
        whole = self.write(kind, name)
        return whole[:1], whole[17:]

    def read(self, message: bytes) -> Notification | None:
        """Return what a message says, or None if it is not one of swr's."""
        instance, name = message[17 : 17 + _INSTANCE], message[17 + _INSTANCE :]
        try:
            return Notification(
                Kind(message[:1].decode()),
                name.decode("utf-8", "surrogatepass"),
                int(message[1:17]),
                instance != self.instance.encode(),
            )
        except ValueError:
            return None


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

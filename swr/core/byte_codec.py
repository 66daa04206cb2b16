"""The protocols of codecs, which turn bytes into the bytes that are in Redis."""

from typing import Protocol, runtime_checkable


class ByteCodec(Protocol):
    """A codec that turns the bytes of values, tags and arguments into bytes for Redis, and back.

    swr calls a codec from several threads at a time. If it cannot read bytes, swr logs that once and counts a miss, and
    the next load replaces the bytes. If it cannot write a value, the value stays in the memory of this process.
    """

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        """Return the bytes that swr stores for `data`.

        Parameters:
            data: the bytes to encode, already compressed if they are large.
            context: names the place in Redis: the namespace, the key, the version and the like.
        """

    def decode(self, data: bytes, context: bytes, /) -> bytes:
        """Return the data that `encode` was given.

        Parameters:
            data: a result of `encode`, or bytes that somebody else wrote in its place.
            context: names the place where swr found `data`.

        Raises:
            CodecError: `data` cannot be read, or was encoded for another place; the message says why.
        """


@runtime_checkable
class NameCodec(ByteCodec, Protocol):
    """A codec that hides keys, tags and the names of loaders and refreshers, too."""

    def encode_name(self, name: bytes, context: bytes, /) -> bytes:
        """Return the bytes that represent a name: the same in every process, and different for different names.

        Parameters:
            name: a key, a tag, or any other name.
            context: the namespace.
        """

    def decode_name(self, data: bytes, context: bytes, /) -> bytes:
        """Return the name that `encode_name` was given.

        Raises:
            CodecError: `data` is not a result of `encode_name`.
        """

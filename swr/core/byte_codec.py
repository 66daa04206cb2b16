"""The protocols of codecs, which turn bytes into the bytes that are in Redis."""

from typing import Protocol, runtime_checkable


class ByteCodec(Protocol):
    """Turns the bytes of values, tags and arguments into those that are in Redis, and back.

    swr calls it from several threads at a time. If it cannot read bytes, they are a miss, logged once, and the next
    load replaces them. If it cannot write a value, the value stays in the memory of the process that loaded it.
    """

    def encode(self, data: bytes, context: bytes, /) -> bytes:
        """Return what is stored for `data`.

        Parameters:
            data: what is stored, compressed if it is large.
            context: names the place in Redis: the namespace, the key, the version and the like.
        """

    def decode(self, data: bytes, context: bytes, /) -> bytes:
        """Return what `encode` was given.

        Parameters:
            data: what `encode` returned, or what somebody else has put in its place.
            context: of the place where it was found. It must raise for bytes that were encoded for another place.

        Raises:
            CodecError: it cannot be read, and why.
        """


@runtime_checkable
class NameCodec(ByteCodec, Protocol):
    """A codec that hides keys, tags and the names of loaders and refreshers, too."""

    def encode_name(self, name: bytes, context: bytes, /) -> bytes:
        """Return what represents a name: the same in every process, and another one for every other name.

        Parameters:
            name: a key, a tag, or any other name.
            context: the namespace.
        """

    def decode_name(self, data: bytes, context: bytes, /) -> bytes:
        """Return the name that `encode_name` was given.

        Raises:
            CodecError: `encode_name` has not made it.
        """

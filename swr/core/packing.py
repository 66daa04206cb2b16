"""The packing of bytes on their way to Redis: compressed above a size, and encoded by the user's codec.

swr compresses with zlib at level 1: `benchmarks/compression.py` says why. Data that does not shrink stays as it is.
"""

import zlib
from typing import Final, Literal

from swr.core.byte_codec import ByteCodec, NameCodec
from swr.errors import CodecError, ConfigurationError, StoreUnavailable

# The shortest value to compress, in bytes. For a shorter one, compressing and decompressing takes longer than a fast
# network takes to send the saved bytes.
DEFAULT: Final = 16_384
# The longest payload that swr compresses, in bytes. It does not decompress a frame that claims a greater length.
MOST: Final = 64 * 2**20
# A payload that compresses to more than this share of its length stays uncompressed.
_WORTH: Final = 0.9
# Lengths in bytes. swr first compresses samples of a payload longer than `_SAMPLED`, to see whether compressing all of
# it is worth the time.
_SAMPLED: Final = 65_536
_SAMPLE: Final = 2048


class Unreadable(CodecError):
    """An error about bytes in Redis that cannot be unpacked.

    Parameters:
        about: the same text for all bytes with the same problem, so that swr logs the problem once.
    """

    def __init__(self, text: str, about: str) -> None:
        super().__init__(text)
        self.about = about


class Packing:
    """The form of bytes in Redis.

    Parameters:
        namespace: of the cache.
        compress_above: length in bytes above which values are compressed; None: never. "auto": 16,384 without a codec,
            never with one. The compressed length tells something about a value, even if it is encrypted afterwards.
        codec: the user's codec, or None.

    Raises:
        ConfigurationError: `compress_above` or `codec` cannot work.
    """

    __slots__ = ("codec", "compress_above", "context", "names")

    def __init__(
        self,
        namespace: str = "swr",
        compress_above: int | Literal["auto"] | None = "auto",
        codec: ByteCodec | None = None,
    ) -> None:
        if codec is not None and not all(callable(getattr(codec, name, None)) for name in ("encode", "decode")):
            raise ConfigurationError(
                f"codec= is a {type(codec).__name__} without methods encode and decode: see swr.ByteCodec"
            )
        if compress_above == "auto":
            compress_above = DEFAULT if codec is None else None
        if compress_above is not None and (
            not isinstance(compress_above, int) or isinstance(compress_above, bool) or compress_above < 0
        ):
            raise ConfigurationError(f'compress_above={compress_above!r}: give a number of bytes, None or "auto"')
        self.compress_above = compress_above
        self.codec = codec
        # The codec, if it also hides names; else None.
        self.names = codec if isinstance(codec, NameCodec) else None
        self.context = namespace.encode()

    def compressed(self, payload: bytes) -> bytes | None:
        """Return `payload` compressed; None: it stays as it is."""
        if self.compress_above is None or not self.compress_above < len(payload) <= MOST:
            return None
        if len(payload) > _SAMPLED:
            middle = (len(payload) - _SAMPLE) // 2
            samples = payload[:_SAMPLE] + payload[middle : middle + _SAMPLE] + payload[-_SAMPLE:]
            if len(zlib.compress(samples, 1)) > _WORTH * len(samples):
                return None
        short = zlib.compress(payload, 1)
        return short if len(short) <= _WORTH * len(payload) else None

    def encoded(self, data: bytes, what: bytes, place: bytes) -> bytes:
        """Return `data` as the codec encodes it.

        Parameters:
            what: a word for the kind of data.
            place: bytes that name the place of the data in Redis.

        Raises:
            StoreUnavailable: the codec failed, so the data cannot be stored.
        """
        if self.codec is None:
            return data
        try:
            encoded = self.codec.encode(data, self._context(what, place))
            if not isinstance(encoded, bytes):
                raise TypeError(f"it made a {type(encoded).__name__} instead of bytes")
            return encoded
        except Exception as error:
            raise StoreUnavailable(f"the codec could not encode ({type(error).__name__}: {error})") from error

    def decoded(self, data: bytes, what: bytes, place: bytes) -> bytes:
        """Return the data that `encoded` was given.

        Raises:
            Unreadable: the codec cannot read `data`.
        """
        if self.codec is None:
            return data
        try:
            return self.codec.decode(data, self._context(what, place))
        except CodecError as error:
            raise Unreadable(str(error), str(error)) from error
        except Exception as error:
            kind = type(error).__name__
            raise Unreadable(f"the codec could not read it ({kind}: {error})", kind) from error

    def _context(self, what: bytes, place: bytes) -> bytes:
        # Neither a namespace nor a kind of data contains a line break, so a context is unambiguous.
        return b"%b\n%b\n%b" % (self.context, what, place)


def decompressed(data: bytes, length: int) -> bytes:
    """Return decompressed `data`; stop at one byte past `length`, the length that a frame claims.

    Raises:
        CodecError: `data` was not compressed, has another length than `length`, or is longer than swr compresses.
    """
    if length > MOST:
        raise CodecError(f"its {length} bytes are more than swr compresses")
    unpacking = zlib.decompressobj()
    try:
        # The additional byte shows whether the data ends here or goes on.
        payload = unpacking.decompress(data, length + 1)
    except zlib.error as error:
        raise CodecError(f"it cannot be decompressed: {error}") from None
    if len(payload) != length or not unpacking.eof or unpacking.unused_data:
        raise CodecError("its length is not the one that it states")
    return payload


# A packing that neither compresses nor encodes.
PLAIN: Final = Packing(compress_above=None)

"""The packing of bytes on their way to Redis: compressed above a size, and encoded by the user's codec.

zlib at level 1 compresses: `benchmarks/compression.py` says why. What does not shrink stays as it is.
"""

import zlib
from typing import Final, Literal

from swr.core.byte_codec import ByteCodec, NameCodec
from swr.errors import CodecError, ConfigurationError, StoreUnavailable

# Bytes. Below that, compressing and reading cost more microseconds than a fast network takes for what they save.
DEFAULT: Final = 16_384
# Bytes. More is neither compressed nor, whatever a frame says of itself, decompressed.
MOST: Final = 64 * 2**20
# What compresses to more than this share stays as it is.
_WORTH: Final = 0.9
# Samples of a payload longer than this show first whether it can be compressed at all.
_SAMPLED: Final = 65_536
_SAMPLE: Final = 2048


class Unreadable(CodecError):
    """Bytes in Redis cannot be unpacked.

    Parameters:
        about: the same for everything that has the same trouble, so that it is logged once.
    """

    def __init__(self, text: str, about: str) -> None:
        super().__init__(text)
        self.about = about


class Packing:
    """The form of bytes in Redis.

    Parameters:
        namespace: of the cache.
        compress_above: bytes; what is longer is compressed. "auto": 16,384 without a codec, and nothing with one: how
            well a value is compressed shows what is in it, also once it is encrypted. None: nothing is.
        codec: the user's; None: none.

    Raises:
        ConfigurationError: one of these cannot work.
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
            raise ConfigurationError(f'compress_above={compress_above!r} is neither a number of bytes, None nor "auto"')
        self.compress_above = compress_above
        self.codec = codec
        # Hides names, if the codec does.
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
            place: where it is.

        Raises:
            StoreUnavailable: the codec has failed, so that nothing can be stored.
        """
        if self.codec is None:
            return data
        try:
            encoded = self.codec.encode(data, self._context(what, place))
            if not isinstance(encoded, bytes):
                raise TypeError(f"it made a {type(encoded).__name__} instead of bytes")
            return encoded
        except Exception as error:
            raise StoreUnavailable(f"the codec could not write ({type(error).__name__}: {error})") from error

    def decoded(self, data: bytes, what: bytes, place: bytes) -> bytes:
        """Return what `encoded` was given.

        Raises:
            Unreadable: the codec cannot read it.
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
        # No namespace has a line break, and no kind of data.
        return b"%b\n%b\n%b" % (self.context, what, place)


def decompressed(data: bytes, length: int) -> bytes:
    """Return what was compressed; no more than one byte past `length` is ever made of it.

    Raises:
        CodecError: it is not so long, or too long, or was not compressed.
    """
    if length > MOST:
        raise CodecError(f"its {length} bytes are more than swr compresses")
    unpacking = zlib.decompressobj()
    try:
        # One more, so that the end of the data is seen, or that there is more.
        payload = unpacking.decompress(data, length + 1)
    except zlib.error as error:
        raise CodecError(f"it cannot be decompressed: {error}") from None
    if len(payload) != length or not unpacking.eof or unpacking.unused_data:
        raise CodecError("it is not as long as it says")
    return payload


# Nothing is compressed or encoded.
PLAIN: Final = Packing(compress_above=None)

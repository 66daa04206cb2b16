"""Entries as bytes: a versioned, checksummed frame around a value written by msgspec. No pickle.

A frame is `version` (16 digits), `e`, the XXH3 (64 bits) of header and payload, the length of the header, the
header (MessagePack), and the payload. The version stands first, in text, so that a Lua script on the server can
compare it without parsing the rest.
"""

import hashlib
import struct
import typing
from collections.abc import Callable
from typing import Any, Final

import msgspec
from xxhash import xxh3_64_intdigest as _checksum

from swr.entry import Entry
from swr.errors import CodecError, ConfigurationError

VERSION_DIGITS: Final = 16
_KIND: Final = b"e"
# The version, the kind, the checksum, and the length of the header.
_PREFIX: Final = struct.Struct(f">{VERSION_DIGITS}scQI")
_BODY: Final = _PREFIX.size


class _Header(msgspec.Struct, array_like=True):
    """The fields of a frame beside the payload; `format` is raised when its meaning changes."""

    format: int
    key: bytes
    fingerprint: str
    tag_version: int
    created_at: float
    fresh_until: float
    stale_until: float
    error_until: float
    keep_until: float
    tags: list[bytes]
    validator: bytes | None
    took: float
    absent: bool


_FORMAT: Final = 1
_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode


def _is_model(kind: Any) -> bool:
    """Whether `kind` is a pydantic model class, told without importing pydantic."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


def _encode_custom(value: Any) -> Any:
    if _is_model(type(value)):
        return value.model_dump_json(round_trip=True, by_alias=False)
    raise CodecError(
        f"a value of type {_name(type(value))} cannot be stored in Redis: return a dataclass, msgspec Struct, "
        f"pydantic model, TypedDict or builtin type, and annotate the loader with it"
    )


def _decode_custom(kind: Any, value: Any) -> Any:
    if _is_model(kind):
        return kind.model_validate_json(value, by_alias=False, by_name=True)
    raise CodecError(f"the type {_name(kind)} cannot be read back from Redis")


def _name(kind: Any) -> str:
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def _schema_custom(kind: Any) -> dict[str, Any]:
    if _is_model(kind):
        return typing.cast(dict[str, Any], kind.model_json_schema())
    raise CodecError(f"no schema for {_name(kind)}")


class Codec:
    """Writes and reads values of one type.

    Parameters:
        kind: the type that values have, as an annotation: `Ranking`, `list[Row]`, `dict[str, Decimal]`.
            With `Any`, only what MessagePack itself can tell apart survives: None, bool, int, float, str,
            bytes, list and dict.

    Every value is read back once when it is written. What does not come back equal is refused then, in the
    process that loaded it, rather than served changed in all the others.
    """

    __slots__ = ("_decode", "_raw", "decode_value", "fingerprint", "kind")

    def __init__(self, kind: Any = Any) -> None:
        self.kind = kind
        self._raw = kind is bytes
        try:
            self._decode = msgspec.msgpack.Decoder(kind, dec_hook=_decode_custom).decode
        except (TypeError, NotImplementedError) as error:
            raise ConfigurationError(f"values of type {_name(kind)} cannot be stored in Redis: {error}") from None
        # Returns the value that a payload was made of.
        self.decode_value: Callable[[bytes], Any] = bytes if self._raw else self._decode
        self.fingerprint = _fingerprint(kind)

    def encode_value(self, value: Any) -> bytes:
        """Return `value` as bytes.

        Raises:
            CodecError: it cannot be written, or would not come back as it is; the message names its type.
        """
        if self._raw and type(value) is bytes:
            return value
        try:
            # to_builtins writes dates as text, which keeps the offset that MessagePack's timestamp drops.
            payload = _encode(msgspec.to_builtins(value, builtin_types=(bytes, bytearray), enc_hook=_encode_custom))
            back = self._decode(payload)
            same = back == value or _same(back, value)
        except CodecError:
            raise
        except Exception as error:
            raise CodecError(
                f"a value of type {_name(type(value))} cannot be stored in Redis as {_name(self.kind)}: {error}"
            ) from error
        if not same:
            raise CodecError(
                f"a value of type {_name(type(value))} would come back from Redis changed, read as "
                f"{_name(self.kind)}: annotate the loader's return type with what it returns"
            )
        return payload


def _same(a: Any, b: Any) -> bool:
    """Whether two values that are not equal differ only where nothing can be equal, as NaN is."""
    if type(a) is not type(b):
        return False
    if isinstance(a, float):
        return a == b or (a != a and b != b)
    if isinstance(a, (list, tuple)):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_same(a[name], b[name]) for name in a)
    fields = getattr(a, "__dataclass_fields__", None) or getattr(a, "__struct_fields__", None)
    if fields:
        return all(_same(getattr(a, name), getattr(b, name)) for name in fields)
    return bool(a == b)


def _fingerprint(kind: Any) -> str:
    """Eight hex digits that change when the shape of a type does, the same in every process."""
    try:
        shape = msgspec.json.encode(msgspec.json.schema(kind, schema_hook=_schema_custom), order="deterministic")
    except Exception:
        # Types that have no JSON schema (bytes as dict keys, say) are told apart by name alone.
        shape = str(kind).encode()
    return hashlib.blake2b(shape, digest_size=4).hexdigest()


ANY: Final = Codec()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


def encode(key: str, entry: Entry[Any], codec: Codec) -> bytes:
    """Return `entry` as a frame.

    Raises:
        CodecError: its value cannot be written.
    """
    header = _encode(
        _Header(
            _FORMAT,
            _bytes(key),
            codec.fingerprint,
            entry.tag_version,
            entry.created_at,
            entry.fresh_until,
            entry.stale_until,
            entry.error_until,
            entry.keep_until,
            [_bytes(tag) for tag in entry.tags],
            None if entry.validator is None else _bytes(entry.validator),
            entry.took,
            entry.absent,
        )
    )
    payload = b"" if entry.absent else codec.encode_value(entry.value)
    body = header + payload
    return _PREFIX.pack(b"%016d" % entry.version, _KIND, _checksum(body), len(header)) + body


def is_entry(frame: bytes) -> bool:
    """Whether `frame` is an entry's, not a tombstone's."""
    return frame[VERSION_DIGITS : VERSION_DIGITS + 1] == _KIND


def is_tombstone(frame: bytes) -> bool:
    """Whether `frame` is what an invalidation leaves behind."""
    return len(frame) == VERSION_DIGITS + 1 and frame.endswith(b"t")


def decode(key: str, frame: bytes, codec: Codec | None) -> Entry[Any]:
    """Return the entry in `frame`.

    Parameters:
        codec: reads its value; None: it may be of any type, and the number of its bytes replaces it.

    Raises:
        CodecError: the frame is cut, changed, of another key, of another type or from another version of swr.
    """
    try:
        version, kind, checksum, length = _PREFIX.unpack_from(frame)
        if kind != _KIND or _checksum(memoryview(frame)[_BODY:]) != checksum:
            raise CodecError("the checksum does not match")
        end = _BODY + length
        header = _decode_header(frame[_BODY:end])
        fingerprint = header.fingerprint if codec is None else codec.fingerprint
        if header.format != _FORMAT or header.fingerprint != fingerprint or header.key != _bytes(key):
            raise CodecError(
                f"it is of format {header.format}, key {header.key!r} and type {header.fingerprint}, "
                f"not {_FORMAT}, {key!r} and {fingerprint}"
            )
        if codec is None:
            value: Any = len(frame) - end
        else:
            value = None if header.absent else codec.decode_value(frame[end:])
        return Entry(
            value,
            header.created_at,
            header.fresh_until,
            header.stale_until,
            header.error_until,
            header.keep_until,
            int(version),
            header.tag_version,
            tuple(map(_text, header.tags)) if header.tags else (),
            None if header.validator is None else _text(header.validator),
            header.took,
            header.absent,
        )
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"{type(error).__name__}: {error}") from error

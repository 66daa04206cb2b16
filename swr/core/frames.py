"""Entries as bytes: a versioned, checksummed frame around a value that a codec writes.

A frame is the version (16 digits), `e`, the fingerprint of the value's type (8 hex digits), the length of the frame (10
digits), the time at which it may be forgotten (16 digits, in the unit of versions), the XXH3 (64 bits) of header and
payload with version and time as its seed, the length of the header, the header (MessagePack), and the payload. What
stands before the checksum is text, so that a Lua script on the server can tell frames apart without parsing the rest.

Frames of one key stand side by side, one for each fingerprint. In a deploy that changes a model, both versions of the
application then find their own.
"""

import struct
from collections.abc import Iterator
from typing import Any, Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest as _checksum

from swr.core.codec import Codec
from swr.entry import Entry
from swr.errors import CodecError

VERSION_DIGITS: Final = 16
# Seconds that the server keeps a frame past `keep_until`, beside frames of other types, for those who wait for it.
_KEPT_LONGER: Final = 5.0
# Times and versions that are further away from 0 are foreign: seconds, and microseconds.
_FURTHEST: Final = 1e12
_LATEST: Final = 9 * 10**15
_KIND: Final = b"e"
# What stands behind the version of a mark.
_MARK: Final = b"s"
# The version, the kind, the fingerprint, the frame's length, the end of its life, the checksum, the header's length.
_PREFIX: Final = struct.Struct(f">{VERSION_DIGITS}sc8s10s{VERSION_DIGITS}sQI")
_BODY: Final = _PREFIX.size
# Where the fingerprint stands, and the length behind it.
_TYPE: Final = slice(VERSION_DIGITS + 1, VERSION_DIGITS + 9)
_LENGTH: Final = slice(VERSION_DIGITS + 9, VERSION_DIGITS + 19)


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
    loader: str


_FORMAT: Final = 3
_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode


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
            entry.loader,
        )
    )
    payload = b"" if entry.absent else codec.encode_value(entry.value)
    body = header + payload
    life = min(_FURTHEST, max(0.0, entry.keep_until - entry.created_at)) + _KEPT_LONGER
    ends = min(_LATEST, entry.version + int(life * 1e6))
    prefix = _PREFIX.pack(
        b"%016d" % entry.version,
        _KIND,
        codec.fingerprint.encode(),
        b"%010d" % (_BODY + len(body)),
        b"%016d" % ends,
        _checksum(body, entry.version ^ ends),
        len(header),
    )
    return prefix + body


class Found(NamedTuple):
    """One frame among those of a key.

    Parameters:
        fingerprint: of the type of its value.
        frame: the frame.
    """

    fingerprint: str
    frame: bytes


def frames_in(data: bytes) -> Iterator[Found]:
    """Return the frames that stand side by side in `data`, up to what is no frame."""
    first = 0
    while data[first + VERSION_DIGITS : first + VERSION_DIGITS + 1] == _KIND:
        length = data[first + _LENGTH.start : first + _LENGTH.stop]
        last = first + int(length) if length.isdigit() else 0
        if not first < last <= len(data):
            return
        frame = data[first:last]
        yield Found(frame[_TYPE].decode("latin-1"), frame)
        first = last


def mark_in(data: bytes) -> int:
    """Return the version at which what lies in `data` was marked stale, which stands behind the last frame; 0: never.

    What is loaded later is newer, and so not concerned.
    """
    last = sum(len(found.frame) for found in frames_in(data))
    mark = data[last : last + VERSION_DIGITS]
    return int(mark) if last and data[last + VERSION_DIGITS :] == _MARK and mark.isdigit() else 0


def frame_of(data: bytes, fingerprint: str) -> bytes | None:
    """Return the frame of a type; None if only other types have one; what is no frame as it is."""
    if data[_TYPE] == fingerprint.encode() and data[_LENGTH] == b"%010d" % len(data):
        return data
    others = 0
    for found in frames_in(data):
        if found.fingerprint == fingerprint:
            return found.frame
        others += len(found.frame)
    rest = data[others:]
    return None if others and (not rest or mark_in(data)) else rest


def is_entry(frame: bytes) -> bool:
    """Whether `frame` is an entry's, not a tombstone's."""
    return frame[VERSION_DIGITS : VERSION_DIGITS + 1] == _KIND


def is_tombstone(frame: bytes) -> bool:
    """Whether `frame` is what an invalidation leaves behind."""
    return len(frame) == VERSION_DIGITS + 1 and frame.endswith(b"t")


def _check_header(version: bytes, header: _Header) -> None:
    """Refuse what no process of swr writes, and what arithmetic would stumble over.

    Raises:
        CodecError: a time or the version is none.
    """
    times = abs(header.created_at) + abs(header.fresh_until) + abs(header.stale_until) + abs(header.error_until)
    # False for NaN, too.
    if not times + abs(header.keep_until) + abs(header.took) <= _FURTHEST:
        raise CodecError("its times are none")
    if not version.isdigit() or int(version) > _LATEST:
        raise CodecError(f"its version is {version!r}")


def decode(key: str, frame: bytes, codec: Codec | None) -> Entry[Any]:
    """Return the entry in `frame`.

    Parameters:
        codec: reads its value; None: it may be of any type, and the number of its bytes replaces it.

    Raises:
        CodecError: the frame is cut, changed, of another key, of another type or from another version of swr.
    """
    try:
        version, kind, shown, total, ends, checksum, length = _PREFIX.unpack_from(frame)
        seed = int(version) ^ int(ends)
        if kind != _KIND or int(total) != len(frame) or _checksum(memoryview(frame)[_BODY:], seed) != checksum:
            raise CodecError("the checksum does not match")
        end = _BODY + length
        header = _decode_header(frame[_BODY:end])
        read = header.fingerprint
        fingerprint = read if codec is None else codec.fingerprint
        if header.format != _FORMAT or header.key != _bytes(key) or not shown.decode() == read == fingerprint:
            raise CodecError(
                f"it is of format {header.format}, key {header.key!r} and type {read}, "
                f"not {_FORMAT}, {key!r} and {fingerprint}"
            )
        _check_header(version, header)
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
            header.loader,
        )
    except CodecError:
        raise
    except Exception as error:
        raise CodecError(f"{type(error).__name__}: {error}") from error

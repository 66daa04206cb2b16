"""Entries as bytes: a versioned, checksummed frame around a value that a codec writes.

A frame begins with text, so that a Lua script on the server can tell frames apart without parsing the rest:

- the version, 16 digits; `e`;
- the fingerprint of the value's type, 8 hex digits;
- the length of the frame, 10 digits;
- the time at which the server may delete the frame, 16 digits, in microseconds like versions.

A checksum follows, the XXH3 (64 bits) of the rest, with version and time as its seed. The rest is:

- the format of the frame, and flags that say how the bytes were changed, 1 byte each;
- the length of the header, and the length of a compressed payload once it is decompressed, 4 bytes each;
- the header (MessagePack) and the payload.

A codec may encode header and payload together (`swr.core.packing`).

Frames of one key are side by side, one for each fingerprint. In a deploy that changes a model, both versions of the
application then find their own frames.
"""

import struct
from collections.abc import Iterator
from typing import Annotated, Any, Final, NamedTuple

import msgspec
from xxhash import xxh3_64_intdigest as _checksum

from swr.core.codec import Codec
from swr.core.fingerprint import FORMAT
from swr.core.packing import PLAIN, Packing, Unreadable, decompressed
from swr.entry import Entry
from swr.errors import CodecError

VERSION_DIGITS: Final = 16
# The server keeps a frame this many seconds past `keep_until` when it stores frames of other types beside it, because
# callers may still wait for the frame.
_KEPT_LONGER: Final = 5.0
# The limits of times, in seconds, and of versions, in microseconds. swr does not write frames that exceed them.
_FURTHEST: Final = 1e12
_LATEST: Final = 9 * 10**15
_KIND: Final = b"e"
# The byte after the version of a stale mark.
_MARK: Final = b"s"
# The version, the kind, the fingerprint, the frame's length, the end of its life, the checksum.
_PREFIX: Final = struct.Struct(f">{VERSION_DIGITS}sc8s10s{VERSION_DIGITS}sQ")
_CHECKED: Final = _PREFIX.size
# The format, the flags, the header's length, and the length of a compressed payload once it is decompressed.
_LENGTHS: Final = struct.Struct(">BBII")
_WHOLE: Final = struct.Struct(_PREFIX.format + _LENGTHS.format[1:])
_BODY: Final = _WHOLE.size
# Flags: how the bytes were changed.
_COMPRESSED: Final = 1
_ENCODED: Final = 2
# The places of the fingerprint and of the frame's length after it.
_TYPE: Final = slice(VERSION_DIGITS + 1, VERSION_DIGITS + 9)
_LENGTH: Final = slice(VERSION_DIGITS + 9, VERSION_DIGITS + 19)


# swr does not write times beyond the limits, nor NaN. Decoding refuses such times, because arithmetic would fail.
_Time = Annotated[float, msgspec.Meta(ge=-_FURTHEST, le=_FURTHEST)]


class _Header(msgspec.Struct, array_like=True):
    """The fields of a frame besides the payload."""

    key: bytes
    fingerprint: str
    tag_version: int
    created_at: _Time
    fresh_until: _Time
    stale_until: _Time
    error_until: _Time
    keep_until: _Time
    tags: list[bytes]
    validator: bytes | None
    took: _Time
    absent: bool
    loader: str


_encode = msgspec.msgpack.Encoder().encode
_decode_header = msgspec.msgpack.Decoder(_Header).decode


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogatepass")


class Draft(NamedTuple):
    """The parts of an entry's frame, before they are compressed and encoded.

    Parameters:
        key: of the entry.
        version, ends: of the frame, as text.
        fingerprint: of the type of its value.
        header, payload: its parts.
        may_shrink: whether compressing the payload is worth a try.
    """

    key: bytes
    version: bytes
    ends: bytes
    fingerprint: bytes
    header: bytes
    payload: bytes
    may_shrink: bool


def draft(key: str, entry: Entry[Any], codec: Codec) -> Draft:
    """Return the parts of the frame of `entry`.

    Raises:
        CodecError: its value cannot be written.
    """
    header = _Header(
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
    payload = b"" if entry.absent else codec.encode_value(entry.value)
    life = min(_FURTHEST, max(0.0, entry.keep_until - entry.created_at)) + _KEPT_LONGER
    ends = min(_LATEST, entry.version + int(life * 1e6))
    return Draft(
        header.key,
        b"%016d" % entry.version,
        b"%016d" % ends,
        codec.fingerprint.encode(),
        _encode(header),
        payload,
        not entry.absent and codec.may_shrink(entry.value),
    )


def pack(made: Draft, packing: Packing) -> bytes:
    """Return the frame of a draft.

    Raises:
        StoreUnavailable: the codec of the packing failed.
    """
    key, version, ends, fingerprint, header, payload, may_shrink = made
    done, length = 0, 0
    short = packing.compressed(payload) if may_shrink else None
    if short is not None:
        done, length, payload = _COMPRESSED, len(payload), short
    body = header + payload
    if packing.codec is not None:
        done |= _ENCODED
    lengths = _LENGTHS.pack(FORMAT, done, len(header), length)
    rest = lengths + packing.encoded(body, b"entry", version + fingerprint + ends + lengths + key)
    return (
        _PREFIX.pack(
            version,
            _KIND,
            fingerprint,
            b"%010d" % (_CHECKED + len(rest)),
            ends,
            _checksum(rest, int(version) ^ int(ends)),
        )
        + rest
    )


def encode(key: str, entry: Entry[Any], codec: Codec, packing: Packing = PLAIN) -> bytes:
    """Return `entry` as a frame.

    Raises:
        CodecError: its value cannot be written.
        StoreUnavailable: the codec of the packing failed.
    """
    return pack(draft(key, entry, codec), packing)


class Found(NamedTuple):
    """One frame among those of a key.

    Parameters:
        fingerprint: of the type of its value.
        frame: the frame.
    """

    fingerprint: str
    frame: bytes


def frames_in(data: bytes) -> Iterator[Found]:
    """Yield the frames that are side by side in `data`, up to the first bytes that are not a frame."""
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
    """Return the version of the mark that follows the last frame in `data` and makes the frames stale; 0: no mark.

    A frame of a later load has a greater version than the mark, and so is not stale.
    """
    last = sum(len(found.frame) for found in frames_in(data))
    mark = data[last : last + VERSION_DIGITS]
    return int(mark) if last and data[last + VERSION_DIGITS :] == _MARK and mark.isdigit() else 0


def frame_of(data: bytes, fingerprint: str) -> bytes | None:
    """Return the frame of a type, or None if only other types have one. Return data that is not a frame unchanged."""
    if data[_TYPE.start : _LENGTH.stop] == b"%b%010d" % (fingerprint.encode(), len(data)):
        # Most entries are alone under their key.
        return data
    others = 0
    for found in frames_in(data):
        if found.fingerprint == fingerprint:
            return found.frame
        others += len(found.frame)
    rest = data[others:]
    return None if others and (not rest or mark_in(data)) else rest


def is_entry(frame: bytes) -> bool:
    """Return whether `frame` is the frame of an entry, not a tombstone."""
    return frame[VERSION_DIGITS : VERSION_DIGITS + 1] == _KIND


def is_tombstone(frame: bytes) -> bool:
    """Return whether `frame` is a tombstone, which an invalidation leaves behind."""
    return len(frame) == VERSION_DIGITS + 1 and frame.endswith(b"t")


def key_in(frame: bytes, packing: Packing) -> str | None:
    """Return the key in a frame; None: the frame cannot be read, or its codec needs the key to decode it."""
    if packing.codec is not None or len(frame) < _BODY:
        return None
    end = _LENGTHS.unpack_from(frame, _CHECKED)[2]
    try:
        return _text(_decode_header(frame[_BODY : _BODY + end]).key)
    except (msgspec.MsgspecError, ValueError):
        return None


def weight(frame: bytes) -> int:
    """Return how many bytes decoding must process: the frame, or its decompressed payload if that is longer."""
    if len(frame) < _BODY or not frame[_CHECKED + 1] & _COMPRESSED:
        return len(frame)
    return max(len(frame), int.from_bytes(frame[_BODY - 4 : _BODY], "big"))


def _decoded(key: bytes, frame: bytes, packing: Packing) -> bytes:
    """Return header and payload in one.

    Raises:
        CodecError: the frame is of another format, or the codec cannot read it.
    """
    kind, done, _, _ = _LENGTHS.unpack_from(frame, _CHECKED)
    if kind != FORMAT or done & ~(_COMPRESSED | _ENCODED):
        raise Unreadable(f"it is of the format {kind}.{done}, which another version of swr has written", "format")
    if bool(done & _ENCODED) is not (packing.codec is not None):
        raise Unreadable(
            "a codec has written it, and this cache has none: open the cache with codec="
            if done & _ENCODED
            else "it was written without a codec, and this cache has one",
            f"codec {done & _ENCODED}",
        )
    place = frame[:VERSION_DIGITS] + frame[_TYPE] + frame[_LENGTH.stop : _LENGTH.stop + VERSION_DIGITS]
    return packing.decoded(frame[_BODY:], b"entry", place + frame[_CHECKED:_BODY] + key)


def decode(key: str, frame: bytes, codec: Codec | None, packing: Packing = PLAIN) -> Entry[Any]:
    """Return the entry in `frame`.

    Parameters:
        codec: reads the value; None: the entry gets the number of its payload's bytes as its value, whatever its type.
        packing: how it was packed.

    Raises:
        CodecError: the frame is truncated, changed, of another key, of another type or from another version of swr.
    """
    try:
        version, kind, shown, total, ends, checksum, form, done, end, length = _WHOLE.unpack_from(frame)
        number = int(version)
        if kind != _KIND or int(total) != len(frame) or _checksum(frame[_CHECKED:], number ^ int(ends)) != checksum:
            raise CodecError("the checksum does not match")
        name, body, first = _bytes(key), frame, _BODY
        if form != FORMAT or done or packing.codec is not None:
            body, first = _decoded(name, frame, packing), 0
        end += first
        header = _decode_header(body[first:end])
        read = header.fingerprint
        fingerprint = read if codec is None else codec.fingerprint
        if header.key != name or not shown.decode() == read == fingerprint:
            raise CodecError(f"the frame holds key {header.key!r} of type {read}, not {key!r} of type {fingerprint}")
        if not version.isdigit() or number > _LATEST:
            raise CodecError(f"its version is {version!r}")
        value: Any = None
        if codec is None:
            value = length if done & _COMPRESSED else len(body) - end
        elif not header.absent:
            payload = body[end:]
            value = codec.decode_value(decompressed(payload, length) if done & _COMPRESSED else payload)
        return Entry(
            value,
            header.created_at,
            header.fresh_until,
            header.stale_until,
            header.error_until,
            header.keep_until,
            number,
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

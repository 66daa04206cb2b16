"""Values as bytes, written by msgspec. No pickle."""

import contextlib
import functools
import typing
from collections.abc import Callable, Sequence
from typing import Any, Final

import msgspec

from swr.core.fidelity import Changed, Comparison, Repairs, repair
from swr.core.fingerprint import fingerprint, tagged
from swr.core.pages import Paged, fill, kind_of, large_part, pages_of, without
from swr.core.shapes import is_model, is_plain, name_of
from swr.errors import CodecError, ConfigurationError

_encode = msgspec.msgpack.Encoder().encode


def _encode_custom(value: Any) -> Any:
    if is_model(type(value)):
        return value.model_dump_json(round_trip=True, by_alias=False)
    raise CodecError(
        f"a value of type {name_of(type(value))} cannot be stored in Redis: return a dataclass, msgspec Struct, "
        f"pydantic model, TypedDict or builtin type, and annotate the loader with it"
    )


def _decode_custom(kind: Any, value: Any) -> Any:
    if is_model(kind):
        return kind.model_validate_json(value, by_alias=False, by_name=True)
    if kind is object:
        return value
    raise CodecError(f"the type {name_of(kind)} cannot be read back from Redis")


def _schema_custom(kind: Any) -> dict[str, Any]:
    if is_model(kind):
        return typing.cast(dict[str, Any], kind.model_json_schema(by_alias=False))
    raise CodecError(f"no schema for {name_of(kind)}")


# Prefixes of payloads with repairs and of payloads in pages. No MessagePack data begins with these bytes.
_REPAIRED: Final = b"\xc1"
_PAGED: Final = b"\xc1\xc1"
_decode_pages = msgspec.msgpack.Decoder(Paged).decode
_decode_repairs = msgspec.msgpack.Decoder(Repairs).decode


class Codec:
    """A codec that writes and reads values of one type.

    Parameters:
        kind: the type that values have, as an annotation: `Ranking`, `list[Row]`, `dict[str, Decimal]`.
            With `Any`, only the types survive that MessagePack itself distinguishes: None, bool, int, float, str,
            bytes, list and dict.
        check: called with each value that was read; it raises `CodecError` if the value has the right type but cannot
            be used.
        may_shrink: returns whether compressing a value is worth a try; None: always.
        tags: see `tagged`.

    `encode_value` reads every value back once. It refuses a value that does not come back the same. Otherwise, all
    other processes would serve a changed value.

    Raises:
        ConfigurationError: values of this type cannot be written and read again.
        NameError: the type has a part that is not defined yet.

    Attributes:
        stays_here: values are not written at all, because they stay in this process.
    """

    __slots__ = ("_decode", "_is_plain", "decode_value", "fingerprint", "kind", "may_shrink")

    stays_here = False

    def __init__(
        self,
        kind: Any = Any,
        check: Callable[[Any], None] | None = None,
        may_shrink: Callable[[Any], bool] | None = None,
        tags: Sequence[str] = (),
    ) -> None:
        self.kind = kind
        self.may_shrink = may_shrink or _always
        try:
            self._decode = msgspec.msgpack.Decoder(kind, dec_hook=_decode_custom).decode
            self._is_plain = is_plain(kind)
        except (TypeError, NotImplementedError) as error:
            raise ConfigurationError(
                f"values of type {name_of(kind)} cannot be stored in Redis: {error}. To allow several classes, wrap "
                f"them in one, such as a pydantic RootModel; a loader whose values need not leave this process may be "
                f"annotated with Any"
            ) from None
        # Returns the value in a payload.
        self.decode_value: Callable[[bytes], Any] = bytes if kind is bytes else self._decode_marked
        if check is not None:
            self.decode_value = _checked(self.decode_value, check)
        of_kind = fingerprint(kind, _schema_custom)
        self.fingerprint = tagged(of_kind, tags) if tags else of_kind

    def tagged(self, templates: Sequence[str]) -> "Codec":
        """Return the codec for values that carry the tags of these templates.

        Values of a release that declares other tags count as another type, because invalidating one of these tags
        would not reach them.
        """
        return Codec(self.kind, tags=templates) if templates else self

    def encode_value(self, value: Any) -> bytes:
        """Return `value` as bytes.

        Raises:
            CodecError: the value cannot be written, or would not come back unchanged; the message names its type.
        """
        if self.kind is bytes and type(value) is bytes:
            return value
        large = large_part(value)
        if large is not None:
            # If pages fail, `_encode_whole` writes the value, or raises the error to report.
            with contextlib.suppress(Exception):
                return self._encode_pages(value, *large)
        return self._encode_whole(value)

    def _encode_pages(self, value: Any, name: str | None, part: Any) -> bytes:
        codec = self if name is None else _part_codec(kind_of(self.kind, value, name))
        outer = self._encode_whole(without(value, name, part))
        pages = list(map(codec._encode_whole, pages_of(part)))
        return _PAGED + _encode(Paged(outer, name, pages))

    def _encode_whole(self, value: Any) -> bytes:
        try:
            # to_builtins writes dates as text, which keeps the offset that MessagePack's timestamp drops.
            payload = _encode(msgspec.to_builtins(value, builtin_types=(bytes, bytearray), enc_hook=_encode_custom))
            back = self._decode(payload)
            if self._is_plain and back == value:
                return back if self.kind is bytes else payload
            return self._compared(back, value, payload)
        except CodecError:
            raise
        except Changed as error:
            raise CodecError(
                f"a value of type {name_of(type(value))} would come back from Redis changed, read as "
                f"{name_of(self.kind)}: {error}. Annotate the loader with the type that it returns"
            ) from None
        except Exception as error:
            raise CodecError(
                f"a value of type {name_of(type(value))} cannot be stored in Redis as {name_of(self.kind)}: {error}"
            ) from error

    def _compared(self, back: Any, value: Any, payload: bytes) -> bytes:
        """Return the payload, completed with the parts of `value` that it left out.

        Raises:
            Changed: `back` differs from `value`, and swr cannot restore what differs.
        """
        comparison = Comparison()
        tree = comparison.of(back, value)
        if tree is None:
            return payload
        payload = _REPAIRED + _encode(comparison.repaired(tree, payload))
        if Comparison().of(self.decode_value(payload), value) is not None:
            raise Changed("has a part that swr cannot restore, such as a time zone with other rules than its name says")
        return payload

    def _decode_marked(self, payload: bytes) -> Any:
        if not payload.startswith(_REPAIRED):
            return self._decode(payload)
        if payload.startswith(_PAGED):
            paged = _decode_pages(memoryview(payload)[2:])
            outer, name = self._decode_marked(paged.outer), paged.name
            codec = self if name is None else _part_codec(kind_of(self.kind, outer, name))
            return fill(outer, name, map(codec._decode_marked, paged.pages))
        repairs = _decode_repairs(memoryview(payload)[1:])
        return repair(self._decode(repairs.payload), repairs)


def _always(value: Any) -> bool:
    return True


def _checked(decode: Callable[[bytes], Any], check: Callable[[Any], None]) -> Callable[[bytes], Any]:
    def decode_value(payload: bytes) -> Any:
        value = decode(payload)
        check(value)
        return value

    return decode_value


class _UnsharedCodec(Codec):
    """The codec of values that stay in this process."""

    __slots__ = ()

    stays_here = True


ANY: Final = Codec()
# Its values may be any objects, because no store writes them.
UNSHARED: Final = _UnsharedCodec()


@functools.lru_cache(maxsize=1024)
def _part_codec(kind: Any) -> Codec:
    if kind is None:
        raise CodecError("no annotation says what type a part has")
    return Codec(kind)

"""The fingerprint of a type. A deploy that changes a model changes its fingerprint, and so gets entries of its own."""

import enum
import hashlib
import types
import typing
from collections.abc import Callable, Iterable
from typing import Any, Final

import msgspec

from swr.core.shapes import is_model

# The format of frames; raise it when their meaning changes. It is part of every fingerprint, so two releases of swr
# with different formats store their entries side by side.
FORMAT: Final = 4
# Keywords of a schema that do not affect the shape. A default may differ from process to process.
_NO_SHAPE: Final = {"default", "description", "examples"}
# Under these keywords, a schema has the user's names instead of keywords.
_NAMES: Final = {"properties", "$defs"}
_PLAIN: Final = (str, bytes, int, float, type(None))


def fingerprint(kind: Any, schema_of_custom: Callable[[Any], dict[str, Any]]) -> str:
    """Return eight hex digits that change when the shape of a type changes, and are the same in every process.

    Parameters:
        kind: the type, as an annotation.
        schema_of_custom: returns the JSON schema of a class that msgspec does not know.
    """
    shapes = _Shapes()
    parts = [FORMAT, _schema(kind, schema_of_custom), shapes.name(kind), shapes.lines]
    return hashlib.blake2b(msgspec.json.encode(parts, order="deterministic"), digest_size=4).hexdigest()


def tagged(of_type: str, templates: Iterable[str]) -> str:
    """Return the fingerprint of values that carry the tags of these templates, in whatever order."""
    text = msgspec.json.encode([of_type, sorted(templates)])
    return hashlib.blake2b(text, digest_size=4).hexdigest()


def _schema(kind: Any, schema_of_custom: Callable[[Any], dict[str, Any]]) -> Any:
    """Return the constraints, required fields and encoded names from a type's schema; None: it has no schema."""

    def of_custom(custom: Any) -> dict[str, Any]:
        try:
            return schema_of_custom(custom)
        except Exception:
            # A class without a schema must not hide the schemas of the other classes.
            return {}

    try:
        return _shape_of(msgspec.json.schema(kind, schema_hook=of_custom))
    except Exception:
        return None


def _shape_of(schema: Any, *, are_names: bool = False) -> Any:
    """Return the part of a schema that values depend on."""
    if isinstance(schema, list):
        parts = [_shape_of(part) for part in schema]
        # Sort the names of required fields: their order in the class does not matter.
        return sorted(parts) if all(isinstance(part, str) for part in parts) else parts
    if not isinstance(schema, dict):
        return schema
    return {
        word: _shape_of(part, are_names=not are_names and word in _NAMES)
        for word, part in schema.items()
        if are_names or word not in _NO_SHAPE
    }


class _Shapes:
    """The details that a schema leaves out: names of enum members, fields by position, types that JSON writes alike.

    Attributes:
        lines: one for each class, in the order in which `name` met the classes.
    """

    def __init__(self) -> None:
        self.lines: list[list[str]] = []
        self._seen: set[int] = set()

    def name(self, kind: Any) -> str:
        """Return an annotation as text, and add a line for each new class in it."""
        origin, arguments = typing.get_origin(kind), typing.get_args(kind)
        if origin is typing.Annotated:
            return self.name(arguments[0])
        if origin is typing.Literal:
            return f"Literal{[_plain(argument) for argument in arguments]}"
        if arguments:
            return f"{self.name(origin)}[{', '.join(map(self.name, arguments))}]"
        # `NewType("Id", int)`, and `type Id = int`.
        below = getattr(kind, "__supertype__", None) or getattr(kind, "__value__", None)
        if below is None and not isinstance(kind, type):
            return str(kind)
        name: str = kind.__name__
        if id(kind) not in self._seen:
            self._seen.add(id(kind))
            line = [name]
            self.lines.append(line)
            line += [*self._fields(kind), *_code_of(kind)] if below is None else [self.name(below)]
        return name

    def _fields(self, kind: Any) -> list[str]:
        if issubclass(kind, enum.Enum):
            return sorted(f"{name}={_plain(member.value)}" for name, member in kind.__members__.items())
        fields = {name: self.name(hint) for name, hint in _hints(kind).items()}
        # A field that is not stored comes back as its default, so the default counts as a part of the shape.
        for name, field in _models_fields(kind).items():
            if field.exclude:
                fields[name] += f"={_plain(field.default)}"
        if getattr(getattr(kind, "__struct_config__", None), "omit_defaults", False):
            for field in msgspec.structs.fields(kind):
                fields[field.name] += f"={_plain(field.default)}"
        texts = [f"{name}: {text}" for name, text in fields.items()]
        return texts if _is_by_position(kind) else sorted(texts)


def _models_fields(kind: Any) -> dict[str, Any]:
    """Return the fields of a pydantic model; {} for other classes."""
    return kind.model_fields if is_model(kind) else {}


def _code_of(kind: Any) -> list[str]:
    """Return the code, as text, of a class's own functions that write and read its values."""
    functions: list[Any] = [getattr(kind, "__post_init__", None)]
    if is_model(kind):
        infos = kind.__pydantic_decorators__
        for name in ("field_validators", "field_serializers", "model_validators", "model_serializers"):
            functions += [getattr(found.func, "__func__", found.func) for found in getattr(infos, name).values()]
    for field in _models_fields(kind).values():
        functions += [getattr(mark, "func", None) for mark in field.metadata]
    return [_text_of(function.__code__) for function in functions if hasattr(function, "__code__")]


def _text_of(code: types.CodeType) -> str:
    """Return the code of a function as text, without its place in the source."""
    constants = [_text_of(one) if isinstance(one, types.CodeType) else _plain(one) for one in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _hints(kind: Any) -> dict[str, Any]:
    models = _models_fields(kind)
    if models:
        return {name: field.annotation for name, field in models.items()}
    try:
        return typing.get_type_hints(kind)
    except Exception:
        # A class whose annotations cannot be resolved.
        return dict(getattr(kind, "__annotations__", {}))


def _is_by_position(kind: Any) -> bool:
    return issubclass(kind, tuple) or bool(getattr(getattr(kind, "__struct_config__", None), "array_like", False))


def _plain(value: object) -> str:
    """Return a value as text that is the same in every process."""
    if isinstance(value, enum.Enum):
        return str(value)
    return repr(value) if type(value) in (*_PLAIN, bool) else type(value).__name__

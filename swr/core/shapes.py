"""Checks of a type, without a value: whether all of its parts can be stored, and whether `==` detects each change."""

import typing
from collections.abc import Iterator
from typing import Any, Final

import msgspec
import msgspec.inspect as shapes

from swr.errors import ConfigurationError

_DICTS: Final = (shapes.DataclassType, shapes.TypedDictType, shapes.StructType, shapes.DictType)
# Types whose `==` does not show whether a value changed: it ignores time zones, is False for NaN, or is the user's own.
_COMPARED: Final = (
    shapes.CustomType,
    shapes.DateTimeType,
    shapes.TimeType,
    shapes.DecimalType,
    shapes.DataclassType,
    shapes.NamedTupleType,
)


def is_model(kind: Any) -> bool:
    """Return whether `kind` is a pydantic model class, without importing pydantic."""
    return hasattr(kind, "__pydantic_validator__") and hasattr(kind, "model_validate_json")


def name_of(kind: Any) -> str:
    """Return a type's full name."""
    return f"{kind.__module__}.{kind.__qualname__}" if isinstance(kind, type) else str(kind)


def is_plain(kind: Any) -> bool:
    """Return whether `==` is enough to compare values of this type; values of other types are compared by parts."""
    parts = _parts(shapes.type_info(kind), "", set())
    return not any(isinstance(part, _COMPARED) or _has_own_equality(part) for part, _ in parts)


def check(kind: Any) -> None:
    """Raise an error if a part of a type cannot be stored in Redis.

    Raises:
        ConfigurationError: a part cannot be stored; the message names it, such as `[].owner`, and the remedy.
        NameError: the type has a part that is not defined yet.
    """
    for part, path in _parts(shapes.type_info(kind), "", set()):
        found = _unwritable(part)
        if found is not None:
            step, reason = found
            raise ConfigurationError(
                f"values of type {name_of(kind)} cannot be stored in Redis: {path + step or 'it'} {reason}. A loader "
                f"whose values need not leave this process may be annotated with Any"
            )


def _parts(part: Any, path: str, seen: set[int]) -> Iterator[tuple[Any, str]]:
    """Yield a type and then all of its parts, each with its path, such as `[].owner`."""
    if id(part) in seen:
        return
    seen.add(id(part))
    yield part, path
    inner = [(part.item_type, "[]")] if hasattr(part, "item_type") else []
    inner += [(member, "[]") for member in getattr(part, "item_types", ())]
    inner += [(member, "") for member in getattr(part, "types", ())]
    inner += [(field.type, f".{field.name}") for field in getattr(part, "fields", ())]
    inner += [(getattr(part, name), "[]") for name in ("key_type", "value_type") if hasattr(part, name)]
    inner += [(part.type, "")] if isinstance(part, shapes.Metadata) else []
    for member, step in inner:
        yield from _parts(member, path + step, seen)


def _unwritable(part: Any) -> tuple[str, str] | None:
    """Return the path inside `part` that cannot be stored, and why; None: all of it can be stored."""
    if isinstance(part, shapes.CustomType) and part.cls is not object:
        if is_model(part.cls):
            return _unwritable_model(part.cls, "", set())
        return "", (
            f"is of type {name_of(part.cls)}, which swr cannot read back: return a dataclass, msgspec Struct, pydantic "
            f"model, TypedDict or builtin type"
        )
    key = getattr(part, "key_type", None)
    if isinstance(key, _DICTS) and not getattr(key, "array_like", False):
        return "", "has keys that are objects: let its keys be strings, numbers, dates or tuples"
    return None


def _has_own_equality(part: Any) -> bool:
    """Return whether `part` is a Struct type whose values may compare equal although they differ."""
    if not isinstance(part, shapes.StructType):
        return False
    kind: Any = part.cls
    return bool(kind.__eq__ is not msgspec.Struct.__eq__ or not kind.__struct_config__.eq or kind.__dictoffset__)


def _unwritable_model(kind: Any, path: str, seen: set[Any]) -> tuple[str, str] | None:
    seen.add(kind)
    if kind.__module__ == "pydantic.main":
        return path, "is any model: annotate the loader with the model that it returns"
    if not kind.__pydantic_complete__ and not kind.model_rebuild(raise_errors=False):
        raise NameError(f"{name_of(kind)} is not fully defined")
    relationships = getattr(kind, "__sqlmodel_relationships__", ())
    if relationships:
        return f"{path}.{next(iter(relationships))}", (
            "is a relationship, which a model does not write: return a model that has what callers need as fields"
        )
    written = _written_by_functions(kind)
    for name, part in _opaque_fields(kind).items():
        return f"{path}.{name}", (
            f"is of type {name_of(part)}, which pydantic cannot write: give the field a type that pydantic knows"
        )
    for name, field in kind.model_fields.items():
        if field.exclude and field.is_required():
            return f"{path}.{name}", "has exclude=True, so pydantic does not write it, and no default: give it one"
        for part in _classes(field.annotation):
            if hasattr(part, "get_secret_value") and field.is_required() and name not in written:
                return f"{path}.{name}", (
                    "is a secret, of which pydantic writes only stars: leave it out of what is cached, or give the "
                    "field a serializer"
                )
            inner = _unwritable_model(part, f"{path}.{name}", seen) if is_model(part) and part not in seen else None
            if inner is not None:
                return inner
    return None


def _opaque_fields(kind: Any) -> dict[str, Any]:
    """Return those fields of a model whose class pydantic checks only by `isinstance`."""
    schema = kind.__pydantic_core_schema__
    while schema["type"] in ("definitions", "model"):
        schema = schema["schema"]
    found = {name: next(_opaque(field), None) for name, field in schema.get("fields", {}).items()}
    return {name: part for name, part in found.items() if part is not None}


def _opaque(schema: Any) -> Iterator[Any]:
    if schema["type"] == "is-instance":
        yield schema["cls"]
    # Other schemas contain functions, which may read and write anything.
    if schema["type"] in ("model-field", "nullable", "default", "list", "set", "frozenset", "tuple", "dict", "union"):
        members = [schema[name] for name in ("schema", "items_schema", "values_schema") if name in schema]
        for member in [*members, *schema.get("choices", ())]:
            for inner in member if isinstance(member, list) else [member]:
                if "serialization" not in inner:
                    yield from _opaque(inner)


def _written_by_functions(kind: Any) -> frozenset[str]:
    """Return the fields of a model that the user's own serializers write."""
    decorators = kind.__pydantic_decorators__
    if decorators.model_serializers:
        return frozenset(kind.model_fields)
    named = {name for found in decorators.field_serializers.values() for name in found.info.fields}
    for name, field in kind.model_fields.items():
        if any(type(mark).__name__.endswith("Serializer") for mark in field.metadata):
            named.add(name)
    return frozenset(named)


def _classes(annotation: Any) -> Iterator[Any]:
    yield annotation
    for inner in typing.get_args(annotation):
        yield from _classes(inner)

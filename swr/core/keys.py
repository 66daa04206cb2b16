"""Keys: canonical text for the arguments of a call, so that two calls share a key only if they are the same.

Every value is written with its type in view: `1`, `"1"`, `True`, `None`, `1.0`, `("a:b",)` and `("a", "b")`
all differ, in every process alike (`hash()` is salted and never used). A `str` or `int` subclass, a `StrEnum`
member for one, is written as the string or number that it equals.
"""

import datetime
import decimal
import enum
import hashlib
import inspect
import re
import string
import uuid
from collections.abc import Callable, Iterable, Mapping
from typing import Any, Final
from urllib.parse import quote

from swr.errors import ConfigurationError
from swr.policy import tag_names

# Types whose equal values of the same type always have the same text: a call made of these alone can be
# remembered. Not float (0.0 == -0.0), nor datetime (equal in two time zones).
PLAIN: Final = frozenset({str, int, bool, type(None), bytes, uuid.UUID})

_TEXT_TYPES: Final = (
    datetime.datetime,
    datetime.date,
    datetime.time,
    datetime.timedelta,
    decimal.Decimal,
    uuid.UUID,
)
_REMEMBERED: Final = 4096
_LONGEST_REMEMBERED: Final = 512


class _Unkeyable(TypeError):
    """A value for which there is no canonical text; carries the value's type."""


def canonical(value: Any) -> str:
    """Return text that only an equal value of the same type has.

    Raises:
        TypeError: the value, or one inside it, is of a type that has no such text.
    """
    if isinstance(value, enum.Enum) and not isinstance(value, (str, int)):
        kind = type(value)
        return f"~{kind.__module__}.{kind.__qualname__}.{value.name}"
    if isinstance(value, str):
        return _text(str.__str__(value))
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, int):
        return int.__repr__(value)
    if isinstance(value, float):
        return float.__repr__(value)
    if isinstance(value, (bytes, bytearray)):
        return f"~bytes({bytes(value).hex()})"
    if isinstance(value, _TEXT_TYPES):
        text = value.isoformat() if hasattr(value, "isoformat") else str(value)
        # A time in the fold of a clock that goes back is another instant with the same text.
        return f"~{type(value).__name__}({text}{'*' if getattr(value, 'fold', 0) else ''})"
    if isinstance(value, (list, tuple)):
        kind_of = "list" if isinstance(value, list) else "tuple"
        return f"~{kind_of}({','.join(map(_item, value))})"
    if isinstance(value, (set, frozenset)):
        return f"~set({','.join(sorted(map(_item, value)))})"
    if isinstance(value, Mapping):
        pairs = sorted(f"{_item(name)}={_item(item)}" for name, item in value.items())
        return f"~dict({','.join(pairs)})"
    raise _Unkeyable(f"{type(value).__module__}.{type(value).__qualname__}")


def _text(value: str) -> str:
    """Quote a string that could be taken for something else; escape the quote only where it quotes."""
    if value == "" or value[0] in "'~" or value in ("None", "True", "False"):
        return f"'{value}'"
    try:
        float(value)
    except ValueError:
        return value
    return f"'{value}'"


_IN_CONTAINER: Final = str.maketrans({char: f"%{ord(char):02X}" for char in "%(),=~"})


def _item(value: Any) -> str:
    """A value inside a container: strings lose the characters that give the container its shape."""
    if isinstance(value, str):
        return _text(str.__str__(value).translate(_IN_CONTAINER))
    return canonical(value)


def _keyable(value: Any, name: str, where: str) -> str:
    try:
        return canonical(value)
    except _Unkeyable as error:
        raise ConfigurationError(
            f"argument {name!r} of {where} holds a {error}, which cannot be part of a key: pass a string, "
            f"number, date, UUID, Enum or a container of these, name an attribute of it in the key template "
            f'("{{{name}.id}}"), or leave it out with ignore=("{name}",)'
        ) from None


class _Slot:
    """One `{name}` or `{name.attribute}` of a template."""

    __slots__ = ("attributes", "name")

    def __init__(self, field: str) -> None:
        self.name, *self.attributes = field.split(".")

    def of(self, values: Mapping[str, Any]) -> Any:
        value = values[self.name]
        for attribute in self.attributes:
            value = getattr(value, attribute)
        return value


class Template:
    """Text with slots, `"ranking:{group}:{limit}"`, that is filled so that different values give different text.

    The characters between slots are percent-encoded in what fills the slots, as are `:`, `%` and braces.

    Parameters:
        text: the template.
        what: what it is called in errors: "key" or "tags".
        where: the function it belongs to, for errors.

    Raises:
        ConfigurationError: slots that nothing separates, conversions, format specifications, positional slots.
    """

    __slots__ = ("_escapes", "_literals", "_slots", "text", "where")

    def __init__(self, text: str, what: str, where: str) -> None:
        self.text, self.where = text, where
        named = f"the {what} template {text!r} of {where}"
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{named} cannot be read: {error}") from None
        self._literals: list[str] = []
        self._slots: list[_Slot] = []
        literal = ""
        escaped = set(":%{}")
        for text_before, field, specification, conversion in parts:
            literal += text_before
            if field is None:
                continue
            if specification or conversion or not all(map(str.isidentifier, field.split("."))):
                raise ConfigurationError(
                    f"{named} has the slot {{{field}}}: a slot is a parameter's name, or name.attribute, alone"
                )
            if self._slots:
                marks = {char for char in literal if char.isascii() and not char.isalnum() and char not in "%{}"}
                if not marks:
                    raise ConfigurationError(
                        f"{named} has two slots with nothing to tell them apart before {{{field}}}: put a ':' there"
                    )
                escaped |= marks
            self._literals.append(literal)
            self._slots.append(_Slot(field))
            literal = ""
        self._literals.append(literal)
        self._escapes = str.maketrans({char: f"%{ord(char):02X}" for char in escaped})

    @property
    def names(self) -> list[str]:
        """The parameters that its slots name."""
        return [slot.name for slot in self._slots]

    def fill_plain(self, values: Mapping[str, Any]) -> str:
        """Return the text that an f-string would give: for tags, where a clash only invalidates too much."""
        pieces = [f"{literal}{slot.of(values)}" for literal, slot in zip(self._literals, self._slots, strict=False)]
        return "".join([*pieces, self._literals[-1]])

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text for `values`, a mapping from every slot's name to its value.

        Raises:
            ConfigurationError: a value that cannot be part of a key; the message names the argument.
        """
        pieces = []
        for literal, slot in zip(self._literals, self._slots, strict=False):
            pieces.append(literal)
            pieces.append(_keyable(slot.of(values), slot.name, self.where).translate(self._escapes))
        pieces.append(self._literals[-1])
        return "".join(pieces)


def _where(function: Callable[..., Any]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


class CallKeys:
    """Turns the arguments of one function into a key and tags.

    Parameters:
        function: the function whose calls are keyed.
        template: the key template, or None: a key is then made of the function's name and all arguments.
        tags: tag templates.
        ignore: parameters that are left out of the key.
        signature: of its calls, where that is not the function's own.

    Raises:
        ConfigurationError: a slot or an ignored name that is no parameter, or a parameter that is neither
            named in the template nor ignored (what is silently left out of a key is a wrong answer).
    """

    def __init__(
        self,
        function: Callable[..., Any],
        template: str | None = None,
        tags: Iterable[str] = (),
        ignore: Iterable[str] = (),
        signature: inspect.Signature | None = None,
    ) -> None:
        if isinstance(ignore, str):
            raise ConfigurationError(f"ignore={ignore!r} is one string: give a tuple, ({ignore!r},)")
        self._where = where = _where(function)
        self._signature = signature = signature or inspect.signature(function)
        parameters = list(signature.parameters)
        ignored = frozenset(ignore)
        if template is None:
            kept = [name for name in parameters if name not in ignored]
            text = ":".join([where.replace("{", "{{").replace("}", "}}"), *(f"{name}={{{name}}}" for name in kept)])
            self._key = Template(text, "default key", where)
        else:
            self._key = Template(template, "key", where)
        self._tags = [Template(tag, "tags", where) for tag in tag_names(tags)]
        named = self._key.names
        for slot in {*named, *ignored, *(name for tag in self._tags for name in tag.names)}:
            if slot not in parameters:
                raise ConfigurationError(f"{where} has no parameter {slot!r}: it has {', '.join(parameters) or 'none'}")
        missing = [name for name in parameters if name not in named and name not in ignored]
        if missing:
            raise ConfigurationError(
                f"the key template {template!r} of {where} leaves out {', '.join(missing)}: two calls that differ "
                f"only there would share an answer. Name each in the template, or list it in ignore="
            )
        self.fixed_tags = tuple(tag.text for tag in self._tags) if not any(t.names for t in self._tags) else None
        kinds = {parameter.kind for parameter in signature.parameters.values()}
        # What is called by position alone needs no binding, which takes as long as the rest of a key.
        self._positional = parameters if kinds <= _BY_POSITION else None
        self.remembered: dict[tuple[Any, ...], tuple[str, tuple[type, ...] | None]] = {}

    @property
    def text(self) -> str:
        """The key template, given or made."""
        return self._key.text

    def key(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> str:
        """Return the key of a call.

        Raises:
            TypeError: the function does not take these arguments.
            ConfigurationError: an argument cannot be part of a key.
        """
        call, values = args, args
        if kwargs:
            call, values = (*args, _KEYWORDS, *kwargs.items()), (*args, *kwargs.values())
        try:
            key, types = self.remembered[call]
            if types is None or types == tuple(map(type, values)):
                return key
        except (KeyError, TypeError):
            pass
        key = self._key.fill(self.bind(args, kwargs))
        types = tuple(map(type, values))
        if PLAIN.issuperset(types) and len(key) <= _LONGEST_REMEMBERED:
            if len(self.remembered) >= _REMEMBERED:
                self.remembered.clear()
            # Strings alone need no look at their types again: what equals a str gets the str's key.
            self.remembered[call] = (key, None if set(types) <= {str} else types)
        return key

    def tags(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[str, ...]:
        """Return the tags of a call, filled as f-strings would be."""
        if self.fixed_tags is not None:
            return self.fixed_tags
        values = self.bind(args, kwargs)
        return tuple(tag.fill_plain(values) for tag in self._tags)

    def bind(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Any]:
        """Return every parameter's value for a call, defaults filled in."""
        if not kwargs and self._positional is not None and len(args) == len(self._positional):
            return dict(zip(self._positional, args, strict=True))
        bound = self._signature.bind(*args, **kwargs)
        bound.apply_defaults()
        return bound.arguments


_KEYWORDS: Final = object()
_BY_POSITION: Final = frozenset({inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD})


# Printable ASCII but `%`, `{` and `}`: encoding it would take longer than looking.
_AS_IT_IS: Final = re.compile(r"[ -$&-z|~]{1,200}")


def storage_name(key: str) -> str:
    """Return `key` as a store holds it: safe inside a Redis hash tag, at most 200 bytes.

    Braces are percent-encoded, because a key such as `}x` would put an entry and its lease into two slots.
    What is longer becomes a digest; the full key stands in the frame and is compared on every read.
    """
    if _AS_IT_IS.fullmatch(key):
        return key
    if not key:
        # An empty hash tag is none; no key is encoded to this.
        return "%"
    name = quote(key, safe="!\"#$&'()*+,/:;<=>?@[]^`|~\\ ", errors="surrogatepass")
    if len(name) <= 200:
        return name
    return "%%" + hashlib.blake2b(key.encode("utf-8", "surrogatepass"), digest_size=20).hexdigest()

"""Templates: text with slots, filled so that different values give different text."""

import re
import string
from collections.abc import Mapping
from typing import Any, NamedTuple
from urllib.parse import unquote

from swr.core.canonical import Unkeyable, canonical
from swr.errors import ConfigurationError


def _keyable(value: Any, name: str, where: str) -> str:
    try:
        return canonical(value)
    except Unkeyable as error:
        raise ConfigurationError(
            f"argument {name!r} of {where} holds a {error}, which cannot be part of a key. Pass a string, "
            f"number, date, UUID, Enum or a list, tuple, set or dict of these. Or name an attribute of it in the key "
            f'template ("{{{name}.id}}"), or leave it out with ignore=("{name}",)'
        ) from None
    except RecursionError:
        raise ConfigurationError(
            f"argument {name!r} of {where} holds itself or is nested too deeply, and cannot be part of a key: "
            f"pass a flatter value, or leave it out with ignore=({name!r},)"
        ) from None
    except ValueError as error:
        raise ConfigurationError(f"argument {name!r} of {where} cannot be part of a key: {error}") from None


class Slot:
    """One `{name}` or `{name.attribute}` of a template."""

    __slots__ = ("attributes", "name", "text")

    def __init__(self, field: str) -> None:
        self.text = field
        self.name, *self.attributes = field.split(".")

    def of(self, values: Mapping[str, Any]) -> Any:
        """Return the value that fills the slot."""
        value = values[self.name]
        try:
            for attribute in self.attributes:
                value = getattr(value, attribute)
        except AttributeError as error:
            raise ConfigurationError(f"the slot {{{self.text}}} of a template cannot be filled: {error}") from error
        return value


class _Chars(NamedTuple):
    """A character in the keys of a template: `only`, or any character except those of `but`; it may be repeated."""

    only: str
    but: frozenset[str]
    repeats: bool

    def meets(self, other: "_Chars") -> bool:
        """Return whether one character fits both."""
        if self.only and other.only:
            return self.only == other.only
        return not (self.only in other.but or other.only in self.but)


class Template:
    """Text with slots, `"ranking:{group}:{limit}"`, that is filled so that different values give different text.

    In the values that fill slots, `:`, `%`, braces and the characters between slots are percent-encoded.

    Parameters:
        text: the template.
        what: the template's name in errors, such as "key" or "tags".
        where: the name of its function, for errors.

    Raises:
        ConfigurationError: nothing separates two slots, or a slot is positional, or has a conversion or a format.
    """

    __slots__ = ("_escapes", "_literals", "is_pure", "slots", "text", "where")

    def __init__(self, text: str, what: str, where: str) -> None:
        self.text, self.where = text, where
        # Whether equal values always have the same text.
        self.is_pure = True
        named = f"the {what} template {text!r} of {where}"
        try:
            parts = list(string.Formatter().parse(text))
        except ValueError as error:
            raise ConfigurationError(f"{named} cannot be read: {error}") from None
        self._literals: list[str] = []
        self.slots: list[Slot] = []
        literal = ""
        escaped = set(":%{}")
        for text_before, field, specification, conversion in parts:
            literal += text_before
            if field is None:
                continue
            if specification or conversion or not all(map(str.isidentifier, field.split("."))):
                raise ConfigurationError(
                    f"{named} has the slot {{{field}}}: a slot has only a parameter's name, or name.attribute"
                )
            if self.slots:
                marks = {char for char in literal if char.isascii() and not char.isalnum() and char not in "%{}"}
                if not marks:
                    raise ConfigurationError(
                        f"{named} has no separator before the slot {{{field}}}: put a ':' between the two slots"
                    )
                escaped |= marks
            self._literals.append(literal)
            self.slots.append(Slot(field))
            literal = ""
        self._literals.append(literal)
        self._escapes = str.maketrans({char: f"%{ord(char):02X}" for char in escaped})

    @property
    def names(self) -> list[str]:
        """The parameters that its slots name."""
        return [slot.name for slot in self.slots]

    def overlaps(self, other: "Template") -> bool:
        """Return whether a key of this template may be a key of the other."""
        begins, begin = self._literals[0], other._literals[0]
        if not begins.startswith(begin) and not begin.startswith(begins):
            return False
        one, two = self._pattern(), other._pattern()
        seen: set[tuple[int, int]] = set()
        ahead = [(0, 0)]
        while ahead:
            i, j = place = ahead.pop()
            if place in seen:
                continue
            seen.add(place)
            if i == len(one) and j == len(two):
                return True
            # A repeated character may go on, or end here.
            if i < len(one) and one[i].repeats:
                ahead.append((i + 1, j))
            if j < len(two) and two[j].repeats:
                ahead.append((i, j + 1))
            if i < len(one) and j < len(two) and one[i].meets(two[j]):
                ahead.append((i + (not one[i].repeats), j + (not two[j].repeats)))
        return False

    def _pattern(self) -> list["_Chars"]:
        """Return the pattern of the template's keys: an item for each character, and two items for a slot."""
        inside = frozenset(map(chr, self._escapes)) - {"%"}
        pattern = []
        for number, literal in enumerate(self._literals):
            if number:
                pattern += [_Chars("", inside, False), _Chars("", inside, True)]
            pattern += [_Chars(char, inside, False) for char in literal]
        return pattern

    def texts_in(self, key: str) -> dict[str, str] | None:
        """Return the canonical text in each slot of a key; None: the key does not show the arguments."""
        if any(slot.attributes for slot in self.slots):
            return None
        one = "([^" + re.escape("".join(char for char in map(chr, self._escapes) if char != "%")) + "]+)"
        match = re.fullmatch(one.join(map(re.escape, self._literals)), key, re.DOTALL)
        return None if match is None else dict(zip(self.names, map(unquote, match.groups()), strict=True))

    def fill_plain(self, values: Mapping[str, Any]) -> str:
        """Return the text that an f-string would give. Only tags use it: if two clash, one invalidates too much."""
        pieces = [f"{literal}{slot.of(values)}" for literal, slot in zip(self._literals, self.slots, strict=False)]
        return "".join([*pieces, self._literals[-1]])

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the text for `values`, a mapping from every slot's name to its value.

        Raises:
            ConfigurationError: a value that cannot be part of a key; the message names the argument.
        """
        pieces = []
        for literal, slot in zip(self._literals, self.slots, strict=False):
            pieces.append(literal)
            pieces.append(_keyable(slot.of(values), slot.name, self.where).translate(self._escapes))
        pieces.append(self._literals[-1])
        return "".join(pieces)

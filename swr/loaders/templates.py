"""The key templates of a cache and the loaders they belong to, so that no two loaders share their answers."""

import contextlib
import inspect
import types
from collections.abc import Callable
from typing import Any
from weakref import WeakSet

from swr.core.canonical import CONSTANT, canonical
from swr.core.template import Template
from swr.errors import ConfigurationError


class Templates:
    """The key templates of a cache, which refuse a second loader whose template can make the same key.

    The same loader may be defined again, unless its constants from the functions around it differ.
    """

    def __init__(self) -> None:
        # By text, and by whether the template is that of a batch loader, which may share the entries of another loader.
        self._owners: dict[tuple[str, bool], tuple[str, Template]] = {}
        # By the same keys: the constants that the last function with the template has from the functions around it.
        self._captured: dict[tuple[str, bool], dict[str, str]] = {}
        # Templates made from the name of a function inside another function.
        self._nested: set[str] = set()
        # Loaders that are still in use.
        self.loaders: WeakSet[Any] = WeakSet()

    def claim(
        self, template: Template, function: Callable[..., Any], *, is_default: bool = False, many: bool = False
    ) -> None:
        """Note that `template` belongs to `function`.

        Parameters:
            is_default: whether the template is made from the function's name.
            many: whether the function is a batch loader.

        Raises:
            ConfigurationError: a key of this template may also be a key of another function.
        """
        name, text = f"{function.__module__}.{function.__qualname__}", template.text
        for (other_text, other_many), (owner, other) in self._owners.items():
            is_shared = other_text == text and many != other_many
            if owner != name and not is_shared and template.overlaps(other):
                likeness = "" if other_text == text else f"can make a key of {other_text!r}, which "
                raise ConfigurationError(
                    f"the key template {text!r} of {name} {likeness}is that of {owner} already, and the two loaders "
                    f"would share their answers: begin the template with a word of its own, and a ':'"
                )
        captured, before = _captured_by(function), self._captured.get((text, many), {})
        for variable in captured.keys() & before:
            if captured[variable] != before[variable]:
                raise ConfigurationError(
                    f"{name} is defined again with another {variable}, which the key template {text!r} leaves out: "
                    f"the two would share their answers. Make {variable} a parameter, or give each a template of its "
                    f"own"
                )
        self._owners[text, many] = name, template
        self._captured[text, many] = captured
        if is_default and "<" in name:
            # Only functions inside others can share one name.
            if text in self._nested:
                raise ConfigurationError(
                    f"several functions are called {name}, and by default would share one key: give each a template"
                )
            self._nested.add(text)


def _captured_by(function: Callable[..., Any]) -> dict[str, str]:
    """Return the constants that a function has from the functions around it: their text by variable name."""
    inner = inspect.unwrap(function)
    captured: dict[str, str] = {}
    if isinstance(inner, types.FunctionType):
        for name, cell in zip(inner.__code__.co_freevars, inner.__closure__ or (), strict=True):
            # A variable may not have a value yet, such as the loader itself if its function calls it.
            with contextlib.suppress(ValueError):
                if isinstance(cell.cell_contents, CONSTANT):
                    captured[name] = canonical(cell.cell_contents)
    return captured

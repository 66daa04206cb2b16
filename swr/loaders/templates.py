"""The key templates of a cache and the loaders they belong to, so that no two loaders share their answers."""

from collections.abc import Callable
from typing import Any

from swr.errors import ConfigurationError


class Templates:
    """Refuse two loaders with one key template. The same loader may be defined again."""

    def __init__(self) -> None:
        self._owners: dict[str, str] = {}
        # Those made of the name of a function inside another function.
        self._nested: set[str] = set()

    def claim(self, text: str, function: Callable[..., Any], *, is_default: bool = False) -> None:
        """Note that the template `text` belongs to `function`.

        Parameters:
            is_default: the template is made of the function's name.

        Raises:
            ConfigurationError: the template belongs to another function.
        """
        name = f"{function.__module__}.{function.__qualname__}"
        owner = self._owners.setdefault(text, name)
        if owner != name:
            raise ConfigurationError(
                f"the key template {text!r} of {name} is that of {owner} already, and they would share their "
                f"answers: begin it with a word of its own"
            )
        if is_default and "<" in name:
            # Only functions inside others can share one name.
            if text in self._nested:
                raise ConfigurationError(
                    f"several functions are called {name}, and by default would share one key: give each a template"
                )
            self._nested.add(text)

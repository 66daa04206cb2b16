"""Tags that a user's function makes from a loader's value."""

import inspect
from collections.abc import Collection, Mapping
from typing import Any

from swr.core.signatures import signature_of
from swr.errors import ConfigurationError
from swr.loaders.calling import TagsOf
from swr.policy import tag_names


def names_in(function: TagsOf, where: str, known: Collection[str]) -> list[str]:
    """Return the parameters that a tag function takes by name, besides the value or response.

    Parameters:
        where: the name of the loader or route, for errors.
        known: names of the parameters that the function may take.

    Raises:
        ConfigurationError: the function takes another parameter, or none for the value.
    """
    try:
        answer, *others = signature_of(function).parameters.values() or (None,)
    except ValueError:
        # A function of C code does not always have a signature.
        return []
    if answer is None or answer.kind in (answer.KEYWORD_ONLY, answer.VAR_KEYWORD):
        raise ConfigurationError(f"tags= of {where} takes no argument: give it one for the value or the response")
    names = [other.name for other in others if other.name in known and other.kind is not other.POSITIONAL_ONLY]
    for parameter in others:
        if parameter.name not in names and parameter.default is parameter.empty:
            raise ConfigurationError(
                f"tags= of {where} takes {parameter.name!r}, but it gets only these parameters: {', '.join(known)}"
            )
    return names


class TagFunction:
    """A function that makes the tags of a value.

    Parameters:
        function: returns tags, from the value and from the loader's parameters that it names.
        where: the name of the loader, for errors.
        known: names of the parameters that the function may take.

    Raises:
        ConfigurationError: the function takes another parameter, or none for the value.
    """

    __slots__ = ("_function", "_names")

    def __init__(self, function: TagsOf, where: str, known: Collection[str]) -> None:
        self._function = function
        self._names = names_in(function, where, known)

    def __call__(self, values: Mapping[str, Any], value: Any) -> tuple[str, ...]:
        """Return the tags of a value.

        Parameters:
            values: the loader's arguments by name.

        Raises:
            ConfigurationError: the function returned something else than tags.
            Exception: whatever the function raises.
        """
        found: object = self._function(value, **{name: values[name] for name in self._names})
        if inspect.iscoroutine(found):
            found.close()
        return tag_names(found, f"what tags={self._function!r} returned: tags")

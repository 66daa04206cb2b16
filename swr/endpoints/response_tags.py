"""Tags that a function of the user's makes from a response."""

import logging
from collections.abc import Callable, Collection, Mapping
from typing import Any

from swr.engine.failures import text_of
from swr.http.tag_fields import MOST_TAGS
from swr.loaders.calling import TagsOf
from swr.loaders.tag_functions import names_in
from swr.policy import tag_names

log = logging.getLogger("swr")


class ResponseTags:
    """The function of a `tags=` option.

    Parameters:
        function: returns tags from the answer and from the parameters that it names.
        where: the name of the endpoint or rule, for errors and logs.
        known: the names of the parameters that the function may take.

    Raises:
        ConfigurationError: the function takes another parameter.
    """

    def __init__(self, function: TagsOf, where: str, known: Collection[str]) -> None:
        self._function = function
        self._where = where
        self._has_warned = False
        self._names = names_in(function, where, known)

    def bound(self, values: Mapping[str, Any]) -> Callable[[Any], tuple[str, ...] | None]:
        """Return the function with the parameters of one request filled in; see `of`."""
        given = {name: values[name] for name in self._names if name in values}

        def of(answer: Any) -> tuple[str, ...] | None:
            """Return the tags of an answer; None, with one warning, if that fails: then it must not be stored."""
            try:
                tags = tag_names(self._function(answer, **given))
                if len(tags) <= MOST_TAGS:
                    return tags
                problem = f"returned more than {MOST_TAGS} tags"
            except Exception as error:
                problem = f"failed ({text_of(error)})"
            if not self._has_warned:
                self._has_warned = True
                log.warning("tags= of %s %s: swr does not store such a response", self._where, problem)
            return None

        return of

"""The options by which the user says what selects the response of an endpoint behind a login: `key=` and `shared=`."""

import inspect
import logging
from collections.abc import Callable, Mapping
from typing import Any

from swr.core.canonical import canonical
from swr.core.signatures import signature_of
from swr.engine.failures import text_of
from swr.errors import ConfigurationError
from swr.loaders.call import is_async

log = logging.getLogger("swr")


class Words:
    """The decorator's `key=` and `shared=`.

    Parameters:
        key: returns what selects the response. Its parameters name parameters of the endpoint, or `scope`.
        shared: whether every client that the dependencies admit gets the same response.

    Raises:
        ConfigurationError: one of them cannot work, or both are given.
    """

    def __init__(self, key: Callable[..., Any] | None, shared: bool) -> None:
        if key is not None and (not callable(key) or is_async(key)):
            raise ConfigurationError(
                f"key={key!r} is not a plain function: give a def (not async) or a lambda of the endpoint's parameters"
            )
        if not isinstance(shared, bool):
            raise ConfigurationError(f"shared={shared!r}: give True or False")
        if key is not None and shared:
            raise ConfigurationError("key= and shared=True contradict each other: give one of them")
        self.key = key
        self.shared = shared
        self._warned = False
        # The reasons that were logged as warnings.
        self._explained: set[str] = set()

    @property
    def are_given(self) -> bool:
        """Return whether the user says what selects the response, so that swr need not find out."""
        return self.shared or self.key is not None

    def names_for(self, name: str, parameters: Mapping[str, inspect.Parameter]) -> list[str]:
        """Return the parameters that `key` takes.

        Parameters:
            name: the name of the endpoint.
            parameters: the parameters of the endpoint.

        Raises:
            ConfigurationError: `key` takes another parameter, which has no default.
        """
        names = []
        for parameter in signature_of(self.key).parameters.values() if self.key is not None else ():
            if parameter.name in parameters or parameter.name == "scope":
                names.append(parameter.name)
            elif parameter.default is parameter.empty:
                raise ConfigurationError(
                    f"key= of {name} takes {parameter.name!r}, which is neither a parameter of the endpoint "
                    f"({', '.join(parameters)}) nor 'scope'"
                )
        return names

    def text(self, name: str, values: dict[str, Any]) -> str | None:
        """Return the result of `key` as text that only equal results have; None, with one warning, if there is none.

        Parameters:
            name: the name of the endpoint.
            values: the arguments of `key`.
        """
        assert self.key is not None
        problem = "returned None"
        try:
            selected = self.key(**values)
            if selected is not None:
                return canonical(selected)
        except Exception as error:
            problem = f"failed ({text_of(error)})"
        if not self._warned:
            self._warned = True
            log.warning(
                "key= of %s %s: the endpoint runs for such requests; return a string, a number, a date, a UUID or a "
                "tuple of these",
                name,
                problem,
            )
        return None

    def explain(self, name: str, route: str, reason: str, *, is_fastapi: bool) -> None:
        """Log why the endpoint does not use the cache; the first time as a warning, if an option can change that.

        Parameters:
            name: the name of the endpoint.
            route: the method and path of the endpoint.
            reason: see the table in the documentation.
            is_fastapi: whether FastAPI calls the endpoint. An endpoint of Starlette always takes its request.
        """
        kind, _, about = reason.partition(" ")
        parameter, _, more = about.partition(", which ")
        level = logging.DEBUG
        if is_fastapi and (kind == "argument" or reason.startswith("context variable")) and more != "is overridden":
            level = logging.DEBUG if reason in self._explained else logging.WARNING
            self._explained.add(reason)
        if more:
            remedy = f"or give it another {parameter}, from a function of its own"
        elif kind == "argument":
            # A decorator has added an argument with such a name.
            parameter = "scope" if parameter.startswith("__") else parameter
            remedy = f"key=lambda {parameter}: ... if that selects it"
        else:
            remedy = "key=... if something selects it"
        log.log(
            level,
            "%s: the endpoint runs for each request that its dependencies admit (%s): write shared=True in "
            "@cache.response on %s if all of them get the same response, %s",
            route,
            reason,
            name,
            remedy,
        )

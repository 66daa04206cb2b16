"""Keys that a user's function makes from a loader's arguments, instead of a key template."""

import dis
import functools
import inspect
import re
import types
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, Final, ParamSpec, TypeVar

from swr.core.canonical import PLAIN
from swr.core.signatures import signature_of
from swr.core.template import Slot, Template
from swr.errors import ConfigurationError

Q = ParamSpec("Q")
T = TypeVar("T")

# A function of some of a loader's or an endpoint's parameters. A type checker takes the parameters of a lambda from the
# first member that has as many, and those of a `def` from the function itself.
FunctionOf = (
    Callable[[Any], T]
    | Callable[[Any, Any], T]
    | Callable[[Any, Any, Any], T]
    | Callable[[Any, Any, Any, Any], T]
    | Callable[[Any, Any, Any, Any, Any], T]
    | Callable[Q, T]
)

# The results of these functions depend only on their arguments, in every process.
_PURE: Final = frozenset(
    {
        "abs", "all", "any", "ascii", "bool", "bytes", "chr", "dict", "divmod", "enumerate", "float", "format",
        "frozenset", "hex", "int", "isinstance", "len", "list", "map", "max", "min", "oct", "ord", "pow", "range",
        "repr", "reversed", "round", "set", "sorted", "str", "sum", "tuple", "zip",
    }
)  # fmt: skip
# The results of these functions differ from process to process.
_OF_PROCESS: Final = frozenset({"hash", "id"})
_HASHES: Final = frozenset({"__hash__"})
_ADDRESS: Final = re.compile(r"<[^<>]* at 0x[0-9a-fA-F]+>")
_NAMED: Final = frozenset({inspect.Parameter.POSITIONAL_OR_KEYWORD, inspect.Parameter.KEYWORD_ONLY})


class KeyFunction(Template):
    """A key function instead of a key template. Its keys begin with the loader's name, unlike all other keys.

    Parameters:
        function: returns the key, from parameters of the loader that it names, or from all with `**kwargs`.
        parameters: names of the loader's parameters.
        ignored: names of the parameters that are not part of the key.
        where: the loader's name, for errors.

    Raises:
        ConfigurationError: `function` is not a function that returns a string, or it depends on this process.

    Attributes:
        own: parameters of the function that have no default and are not the loader's: the item, for a batch loader.
    """

    __slots__ = ("_begins", "_function", "_is_by_name", "_rest", "_signature", "own")

    def __init__(
        self, function: Callable[..., Any], parameters: Iterable[str], ignored: Collection[str], where: str
    ) -> None:
        if not callable(function):
            raise ConfigurationError(
                f"key={function!r} of {where} is not a function; if it is a template, give it as the first argument, "
                f"without key="
            )
        # A callable object may have a `__call__` that is a coroutine function.
        call = getattr(function, "__call__", None)  # noqa: B004  # the method itself is wanted
        if inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(call):
            raise ConfigurationError(f"key={function!r} of {where} is async, and swr would not await it: give a def")
        super().__init__(where.replace("{", "{{").replace("}", "}}") + ":{key}", "default key", where)
        # The function may return any text. Without escapes, `overlaps` expects any character after the loader's name.
        self._escapes = {}
        self._begins = self._literals[0]
        self._function = function
        try:
            self._signature = signature_of(function)
        except ValueError:
            raise ConfigurationError(
                f"key={function!r} of {where} does not say which parameters it takes: give a lambda or a def"
            ) from None
        known, named, self.own, self._rest = set(parameters), [], [], None
        for name, parameter in self._signature.parameters.items():
            if name in known:
                named.append(name)
            elif parameter.kind is parameter.VAR_KEYWORD:
                self._rest = name
            elif parameter.kind is not parameter.VAR_POSITIONAL and parameter.default is parameter.empty:
                self.own.append(name)
        if self._rest is not None:
            named = [name for name in parameters if name in named or name not in ignored]
        self.slots = [Slot(name) for name in (*named, *self.own)]
        kinds = {parameter.kind for name, parameter in self._signature.parameters.items() if name not in known}
        kinds |= {self._signature.parameters[name].kind for name in named if name in self._signature.parameters}
        self._is_by_name = kinds <= _NAMED
        self.is_pure = _is_pure(function, where)

    def texts_in(self, key: str) -> None:
        """Return None: only the function knows how it makes its keys."""

    def fill(self, values: Mapping[str, Any]) -> str:
        """Return the key for `values`, a mapping from every name to its value.

        Raises:
            ConfigurationError: the function raises, or returns no text that could be a key.
        """
        taken = {slot.name: values[slot.name] for slot in self.slots}
        try:
            key = self._function(**taken) if self._is_by_name else self._call(taken)
        except Exception as error:
            raise ConfigurationError(
                f"the key function of {self.where} raised {type(error).__name__}: {error}; it was called with "
                f"{', '.join(taken) or 'nothing'}"
            ) from error
        if not isinstance(key, str) or not key:
            if inspect.iscoroutine(key):
                key.close()
            raise ConfigurationError(f"the key function of {self.where} returned {key!r}: a key is a string, not empty")
        if " at 0x" in key and _ADDRESS.search(key) and not PLAIN.issuperset(map(type, taken.values())):
            raise ConfigurationError(
                f"the key function of {self.where} returned {key!r}, with the address of an object, which may later "
                f"belong to another object: return an attribute of the object instead"
            )
        # An Enum that is a string must appear as the string that it equals, not as its name.
        return self._begins + str.__str__(key)

    def _call(self, taken: dict[str, Any]) -> Any:
        parameters = self._signature.parameters
        bound = {name: value for name, value in taken.items() if name in parameters}
        if self._rest is not None:
            bound[self._rest] = {name: value for name, value in taken.items() if name not in parameters}
        # In the order of the function's own parameters, on which positional arguments depend.
        arguments = inspect.BoundArguments(self._signature, {name: bound[name] for name in parameters if name in bound})
        return self._function(*arguments.args, **arguments.kwargs)


def _globals_of(code: types.CodeType) -> set[str]:
    """Return the global and imported names that code reads."""
    return {
        instruction.argval
        for instruction in dis.get_instructions(code)
        if "GLOBAL" in instruction.opname or "IMPORT" in instruction.opname
    }


def _functions_in(function: Any) -> list[types.FunctionType]:
    """Return the functions written in Python that a call of `function` runs, as far as inspection finds them."""
    found: list[types.FunctionType] = []
    todo = [function]
    while todo:
        one = todo.pop()
        if isinstance(one, types.FunctionType):
            found.append(one)
        elif isinstance(one, functools.partial):
            todo.append(one.func)
        elif isinstance(one, types.MethodType):
            todo.append(one.__func__)
        elif isinstance(call := inspect.getattr_static(type(one), "__call__", None), types.FunctionType):
            todo.append(call)
        # A decorator calls the function that it decorates.
        if (wrapped := getattr(one, "__wrapped__", None)) is not None:
            todo.append(wrapped)
    return found


def _is_pure(function: Callable[..., Any], where: str) -> bool:
    """Return whether inspection shows that a function depends only on its arguments: it reads no outer variable.

    Raises:
        ConfigurationError: the function's result depends on this process.
    """
    for inner in _functions_in(function):
        codes = [inner.__code__]
        for code in codes:
            codes += [constant for constant in code.co_consts if isinstance(constant, types.CodeType)]
            called = _OF_PROCESS & (_globals_of(code) - inner.__globals__.keys())
            for name in sorted(called or _HASHES.intersection(code.co_names)):
                raise ConfigurationError(
                    f"the key function of {where} calls {name}(), whose result differs from process to process: "
                    f"put the value itself, or an attribute of it, into the key"
                )
    if not isinstance(function, types.FunctionType):
        return False
    code, read = function.__code__, _globals_of(function.__code__)
    defaults = (*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values())
    is_closed = not code.co_freevars and not any(isinstance(constant, types.CodeType) for constant in code.co_consts)
    return is_closed and read <= _PURE - function.__globals__.keys() and PLAIN.issuperset(map(type, defaults))

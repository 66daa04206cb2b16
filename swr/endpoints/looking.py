"""Find out which parts of a request a function of an app may look at."""

import dis
import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CodeType, FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary

# With these a function gets at its variables in other ways than by their names.
_INTROSPECTION: Final = frozenset({"locals", "vars", "eval", "exec", "dir"})
# Instructions that end with taking a variable, and those that take an attribute of it.
_LOADS: Final = ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF")
_ABOUT_VARIABLES: Final = ("_FAST", "_DEREF", "_CLOSURE")
_READS: Final = ("LOAD_ATTR", "LOAD_METHOD")
# What begins a call: before Python 3.12 the first.
_CALLS: Final = frozenset({"PRECALL", "CALL", "CALL_KW"})
# These take bytes as they lie in memory.
_OF_BUFFERS: Final = frozenset({"bytearray", "memoryview"})
# The names of the address, in a request and in its scope.
_ADDRESS: Final = "client"
# By the function that a route calls: its code, and whether that takes the address. Each miss asks for it.
_READS_ADDRESS: Final[WeakKeyDictionary[FunctionType, tuple[CodeType, bool]]] = WeakKeyDictionary()


def function_of(call: Any) -> Any:
    """Return the function of a bound method; anything else is itself."""
    return getattr(call, "__func__", call)


def bare(call: Any) -> Any:
    """Return the function inside wrappers, and of a bound method."""
    return function_of(inspect.unwrap(call))


def looks_at_request(call: Any, name: str) -> bool:
    """Return whether a function may look at more of a request than its app, as `request.app.state.pool` does.

    The app is the same for every request. What does not show that it takes nothing else may look at anything.

    Parameters:
        call: the function.
        name: of its parameter.
    """
    if not inspect.isfunction(call) or hasattr(call, "__wrapped__"):
        return True
    code = call.__code__
    if name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        # It is in `**kwargs`, under a signature that the function has been given.
        return True
    if name in code.co_cellvars or not _INTROSPECTION.isdisjoint(code.co_names):
        return True
    return not _uses_of(code, name) <= {"app"}


def reads_address(call: Any) -> bool:
    """Return whether an endpoint's own code takes the client's address from its request.

    As in `request.client.host` or `request.scope["client"]`, also in a function within the endpoint.

    Parameters:
        call: what the route calls.
    """
    function = bare(call)
    if not inspect.isfunction(function):
        # An object that can be called.
        function = bare(getattr(function, "__call__", None))  # noqa: B004  # the method itself is wanted
    if not inspect.isfunction(function):
        return False
    code = function.__code__
    known = _READS_ADDRESS.get(function)
    if known is None or known[0] is not code:
        known = _READS_ADDRESS[function] = code, _function_reads_address(code, function.__annotations__)
    return known[1]


def _function_reads_address(code: CodeType, annotations: dict[str, Any]) -> bool:
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        annotation = str(annotations.get(name, ""))
        is_request = name == "request" or "Request" in annotation or "HTTPConnection" in annotation
        if is_request and any(_takes_address(part, name) for part in _codes_of(code)):
            return True
    return False


def _takes_address(code: CodeType, name: str) -> bool:
    """Return whether code takes the address of a request: as an attribute, or by its name in the scope."""
    uses = _uses_of(code, name)
    return _ADDRESS in uses or ("scope" in uses and _ADDRESS in code.co_consts)


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of all functions in it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)


@functools.lru_cache(256)
def _uses_of(code: CodeType, name: str) -> frozenset[str]:
    """Return which attributes of a variable a function takes, and an empty name if it does anything else with it."""
    uses = set()
    for instruction, following in itertools.pairwise(dis.get_instructions(code)):
        # Some instructions are about two variables, one after the other.
        variables = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if name not in variables or not any(part in instruction.opname for part in _ABOUT_VARIABLES):
            continue
        is_loaded = instruction.opname.endswith(_LOADS) and variables.index(name) == len(variables) - 1
        # `request["client"]` takes it as well.
        is_taken = following.opname in _READS or (following.opname, following.argval) == ("LOAD_CONST", _ADDRESS)
        uses.add(following.argval if is_loaded and is_taken else "")
    return frozenset(uses)


@functools.lru_cache(256)
def reads_unseen(code: CodeType) -> bool:
    """Return whether a function makes something of bytes without asking them: by `str(value, "latin-1")`, or a join."""
    return any(_decodes_or_joins(part) for part in _codes_of(code))


def _decodes_or_joins(code: CodeType) -> bool:
    instructions = [*dis.get_instructions(code)]
    for number, (instruction, following) in enumerate(itertools.pairwise(instructions), 1):
        if isinstance(instruction.argval, bytes) and following.argval == "join":
            return True
        if instruction.opname != "LOAD_GLOBAL":
            continue
        # `str` is called, and not an argument as in `map(str, values)`.
        is_text = instruction.argval == "str" and (instruction.arg or 0) & 1
        if instruction.argval in _OF_BUFFERS or (is_text and _arguments_of(instructions[number:]) not in (0, 1)):
            return True
    return False


def _arguments_of(instructions: list[dis.Instruction]) -> int | None:
    """Return with how many arguments a function is called that lies on the stack; None: that does not show.

    Parameters:
        instructions: those after the one that put it there.
    """
    depth = 0
    for instruction in instructions:
        # The names of keywords lie on the stack as well.
        if instruction.opname in _CALLS and depth - (instruction.opname == "CALL_KW") == instruction.arg:
            return depth
        depth += dis.stack_effect(instruction.opcode, instruction.arg, jump=False)
        if instruction.opname == "JUMP_FORWARD":
            # The other value of a conditional expression takes the same place.
            depth -= 1
    return None


def takes_request(part: Any) -> bool:
    """Return whether a dependency takes the request, and may look at more of it than its app.

    Parameters:
        part: a dependant of FastAPI.
    """
    names = (part.request_param_name, part.http_connection_param_name)
    return any(name and looks_at_request(part.call, name) for name in names)

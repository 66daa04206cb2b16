"""Finds out which parts of a request a function may read, from its code, and which code reads at the moment."""

import dis
import functools
import inspect
import itertools
from collections.abc import Iterator
from types import CodeType, FrameType, FunctionType
from typing import Any, Final
from weakref import WeakKeyDictionary

from swr.core.signatures import annotations_of
from swr.endpoints.libraries import module_of

# Functions by which code can read variables without naming them.
_INTROSPECTION: Final = frozenset({"locals", "vars", "eval", "exec", "dir"})
# The ends of the names of instructions that load a variable.
_LOADS: Final = ("LOAD_FAST", "LOAD_FAST_BORROW", "LOAD_FAST_CHECK", "LOAD_DEREF")
# Parts of the names of all instructions about variables.
_ABOUT_VARIABLES: Final = ("_FAST", "_DEREF", "_CLOSURE")
# Instructions that read an attribute.
_READS: Final = ("LOAD_ATTR", "LOAD_METHOD")
# Instructions that begin a call; before Python 3.12, `PRECALL` comes first.
_CALLS: Final = frozenset({"PRECALL", "CALL", "CALL_KW"})
# Instructions after which the code does not go on with the next one.
_LEAVES: Final = frozenset(
    {"JUMP_FORWARD", "JUMP_BACKWARD", "RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"}
)
# Modules whose code reads a part of the request only on behalf of its caller.
ACCESSORS: Final = frozenset(
    {
        "starlette.requests", "starlette.datastructures", "_collections_abc", "collections.abc", "collections", "copy",
        "fastapi.dependencies.utils",
    }
)  # fmt: skip
# These read the memory of bytes directly, without calling a method.
_OF_BUFFERS: Final = frozenset({"bytearray", "memoryview"})
# The operators that fill a template.
_FORMATS: Final = frozenset({"%", "%="})
# The instruction of `await` and `async for` that runs what is awaited.
_SEND: Final = dis.opmap["SEND"]
# The name of the client's address, in a request and in its scope.
_ADDRESS: Final = "client"
# The code of functions that routes call, and whether it reads the address. A cache, because each miss asks for it.
_READS_ADDRESS: Final[WeakKeyDictionary[FunctionType, tuple[CodeType, bool]]] = WeakKeyDictionary()


def function_of(call: Any) -> Any:
    """Return the function of a bound method; return anything else as it is."""
    return getattr(call, "__func__", call)


def bare(call: Any) -> Any:
    """Return the function inside all wrappers and bound methods."""
    return function_of(inspect.unwrap(call))


def looks_at_request(call: Any, name: str) -> bool:
    """Return whether a function may read more of a request than `request.app`, which is the same for all requests.

    If the code does not show that it reads nothing else, it may read anything.

    Parameters:
        call: the function.
        name: the name of its parameter for the request.
    """
    if not inspect.isfunction(call) or hasattr(call, "__wrapped__"):
        return True
    code = call.__code__
    if name not in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        # The request is in `**kwargs`, under a `__signature__` that the function has been given.
        return True
    if name in code.co_cellvars or not _INTROSPECTION.isdisjoint(code.co_names):
        return True
    return not _uses_of(code, name) <= {"app"}


def is_compiled(call: Any) -> bool:
    """Return whether a callable has no Python code: its reads look like those of the framework that calls it."""
    while isinstance(call, functools.partial):
        call = call.func
    function = bare(call)
    return not inspect.isfunction(function) and not inspect.isfunction(bare(type(function).__call__))


def reads_address(call: Any) -> bool:
    """Return whether an endpoint's own code reads the client's address from its request.

    For example by `request.client.host` or `request.scope["client"]`, also in a function inside the endpoint.

    Parameters:
        call: the callable that the route calls.
    """
    function = bare(call)
    if not inspect.isfunction(function):
        # A callable object: its code is in `__call__`.
        function = bare(getattr(function, "__call__", None))  # noqa: B004  # the method itself is wanted
    if not inspect.isfunction(function):
        return False
    code = function.__code__
    known = _READS_ADDRESS.get(function)
    if known is None or known[0] is not code:
        known = _READS_ADDRESS[function] = code, _function_reads_address(code, annotations_of(function))
    return known[1]


def _function_reads_address(code: CodeType, annotations: dict[str, Any]) -> bool:
    for name in code.co_varnames[: code.co_argcount + code.co_kwonlyargcount]:
        annotation = str(annotations.get(name, ""))
        is_request = name == "request" or "Request" in annotation or "HTTPConnection" in annotation
        if is_request and any(_takes_address(part, name) for part in _codes_of(code)):
            return True
    return False


def _takes_address(code: CodeType, name: str) -> bool:
    """Return whether code reads the address of a request: as an attribute, or by its name in the scope."""
    uses = _uses_of(code, name)
    return _ADDRESS in uses or ("scope" in uses and _ADDRESS in code.co_consts)


def _codes_of(code: CodeType) -> Iterator[CodeType]:
    """Yield the code of a function, and of all functions inside it."""
    yield code
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _codes_of(constant)


@functools.lru_cache(256)
def _uses_of(code: CodeType, name: str) -> frozenset[str]:
    """Return which attributes of a variable the code reads, and an empty name if it uses the variable otherwise."""
    uses = set()
    for instruction, following in itertools.pairwise(dis.get_instructions(code)):
        # Some instructions are about two variables, one after the other.
        variables = instruction.argval if isinstance(instruction.argval, tuple) else (instruction.argval,)
        if name not in variables or not any(part in instruction.opname for part in _ABOUT_VARIABLES):
            continue
        is_loaded = instruction.opname.endswith(_LOADS) and variables.index(name) == len(variables) - 1
        # `request["client"]` reads the address, too.
        is_taken = following.opname in _READS or (following.opname, following.argval) == ("LOAD_CONST", _ADDRESS)
        uses.add(following.argval if is_loaded and is_taken else "")
    return frozenset(uses)


@functools.lru_cache(256)
def reads_unseen(code: CodeType) -> bool:
    """Return whether code reads bytes without calling their methods: by `str(value, "latin-1")`, a join or `%`.

    The noting subclasses of bytes in `swr.endpoints.reads` do not see such reads.
    """
    return any(_takes_memory(part) for part in _codes_of(code))


def _takes_memory(code: CodeType) -> bool:
    instructions = [*dis.get_instructions(code)]
    has_template = any(isinstance(constant, bytes) and b"%" in constant for constant in code.co_consts)
    if has_template and any(instruction.argrepr in _FORMATS for instruction in instructions):
        return True
    for number, (instruction, following) in enumerate(itertools.pairwise(instructions), 1):
        if isinstance(instruction.argval, bytes) and following.argval == "join":
            return True
        if instruction.opname != "LOAD_GLOBAL":
            continue
        # The low bit: the code calls `str`, and does not pass it on as in `map(str, values)`.
        is_text = instruction.argval == "str" and (instruction.arg or 0) & 1
        if instruction.argval in _OF_BUFFERS or (is_text and _arguments_of(instructions, number) not in (0, 1)):
            return True
    return False


def _arguments_of(instructions: list[dis.Instruction], first: int) -> int | None:
    """Return the number of arguments of the call of a function on the stack; None: unknown.

    Parameters:
        instructions: the code.
        first: the index of the instruction after the one that has loaded the function.
    """
    places = {instruction.offset: place for place, instruction in enumerate(instructions)}
    seen: set[int] = set()
    # Where the code may go on, and how many values lie above the function on the stack then.
    ways = [(first, 0)]
    while ways:
        place, depth = ways.pop()
        if place in seen:
            continue
        seen.add(place)
        name, code, argument = instructions[place].opname, instructions[place].opcode, instructions[place].arg
        # `CALL_KW` also has the names of the keywords on the stack.
        if name in _CALLS and depth - (name == "CALL_KW") == argument:
            return depth
        if code in dis.hasjrel:
            ways.append((places[instructions[place].argval], depth + dis.stack_effect(code, argument, jump=True)))
        if name not in _LEAVES:
            ways.append((place + 1, depth + dis.stack_effect(code, argument, jump=False)))
    return None


def asking(frame: FrameType | None) -> tuple[FrameType | None, bool]:
    """Return the frame that has asked for a part of the request, without the frames of accessors that it has called.

    Also return whether compiled code has asked: a coroutine of Cython, for instance, has no frame of its own, so the
    frame that awaits it seems to ask.
    """
    below = None
    while frame is not None and module_of(frame) in ACCESSORS:
        below, frame = frame, frame.f_back
    if frame is None or (below is not None and below.f_code.co_flags & inspect.CO_COROUTINE):
        return frame, False
    return frame, frame.f_code.co_code[frame.f_lasti] == _SEND


def takes_request(part: Any) -> bool:
    """Return whether a dependency takes the request, and may read more of it than its app.

    Parameters:
        part: a dependant of FastAPI.
    """
    names = (part.request_param_name, part.http_connection_param_name)
    return any(name and looks_at_request(part.call, name) for name in names)

"""One failure for many callers: each raises an exception of its own, and what is kept for later holds no frames.

A raised exception collects the frames that it passes. If a thousand callers raised the same one, its traceback would
have the frames of all of them, and each would log that traceback.
"""

import copy
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from types import GetSetDescriptorType, MemberDescriptorType, TracebackType
from typing import Any, Final

from swr.errors import SWRError

# Of `type.__flags__`: a class of Python code, as a rule.
_HEAP_TYPE: Final = 1 << 9
_MISSING: Final = object()
# Exceptions that each of many callers gets in full: the failure, the members of its groups, and what it was raised
# from. To copy a hundred for each of a thousand callers would hold the event loop, and each caller logs all of them.
_MOST_TOLD: Final = 5
# Frames that are kept of one traceback. Endless recursion leaves a thousand.
_MOST_FRAMES: Final = 64
_LEFT_OUT: Final = (
    "swr: one of the callers that waited for this load raises all of it; for the others, "
    "tracebacks and what led to an exception are left out in part"
)
# What runs a load, up to the frames that say something of it.
_RUNNERS: Final = frozenset(("swr", "anyio", "asyncio", "trio", "outcome", "concurrent", "threading", "contextvars"))


class _WithReference(Exception):
    """An exception class written in Python, whose objects have room for a weak reference."""


_REFERENCE: Final = _WithReference.__basicsize__ - Exception.__basicsize__
_SLOT: Final = tuple.__itemsize__


# Returns what a copy of a group has instead of its members.
_Members = Callable[[Sequence[BaseException]], list[BaseException]]


def _copies(members: Sequence[BaseException]) -> list[BaseException]:
    return [_copied(member, _copies) for member in members]


def another(error: BaseException, members: _Members = _copies) -> BaseException | None:
    """Return an exception equal to `error`, without its traceback and what it was raised from.

    None: it holds something that cannot be copied.

    Parameters:
        members: returns what a copied group has instead of its members. Default: copies of all.
    """
    from_parts = functools.partial(_from_parts, members=members)
    for way in (from_parts,) if isinstance(error, BaseExceptionGroup) else (from_parts, _as_pickled):
        try:
            copied = way(error)
            if _says_the_same(copied, error):
                if notes := getattr(copied, "__notes__", None):
                    # Each caller may add its own.
                    _put(copied, "__notes__", list(notes))
                return copied
        except Exception:
            # Its class makes exceptions in a way of its own.
            continue
    return None


def _from_parts(error: BaseException, members: _Members) -> BaseException:
    """Return an exception of the same parts, without calling the code of its class."""
    kind, args = type(error), error.args
    if isinstance(error, BaseExceptionGroup):
        # A caller may raise one of the group alone.
        args = error.message, members(error.exceptions)
    builtin = next(base for base in kind.__mro__ if not base.__flags__ & _HEAP_TYPE)
    slots = sum(bool(part.__objclass__.__flags__ & _HEAP_TYPE) for part in _parts_of(kind))
    if kind.__basicsize__ > builtin.__basicsize__ + slots * _SLOT + (kind.__weakrefoffset__ and _REFERENCE):
        raise TypeError("it keeps state in C code")
    # Not by calling the class: its `__init__` may take other arguments than those that the exception keeps.
    copied: BaseException = builtin.__new__(kind, *args)
    for part in _parts_of(kind):
        value = _read(part, error)
        if _read(part, copied) is not value is not _MISSING:
            try:
                part.__set__(copied, value)
            except (AttributeError, TypeError):
                # It is for reading alone: the arguments have set it, or the comparison finds that they have not.
                continue
    _put(copied, "args", args)
    copied.__dict__.update(error.__dict__)
    return copied


def _as_pickled(error: BaseException) -> BaseException:
    """Return what the class itself makes of an exception's state, as pickling does."""
    copied = copy.copy(error)
    if copied is error or str(copied) != str(error):
        raise TypeError(f"{error!r} has no copy")
    _put(copied, "args", error.args)
    return copied


def _copied(error: BaseException, members: _Members) -> BaseException:
    """Return another `error`.

    Raises:
        TypeError: it cannot be copied.
    """
    copied = another(error, members)
    if copied is None:
        raise TypeError(f"{error!r} cannot be copied")
    return copied


def _find_parts(kind: Any) -> tuple[Any, ...]:
    """Return what an exception of this class holds beside its `args` and its `__dict__`: slots, and state of C code."""
    return tuple(
        part
        for base in kind.__mro__
        for name, part in vars(base).items()
        if isinstance(part, (MemberDescriptorType, GetSetDescriptorType)) and name != "args" and name[:2] != "__"
    )


_parts_of: Final[Callable[[Any], tuple[Any, ...]]] = functools.lru_cache(maxsize=256)(_find_parts)


def _read(part: Any, error: BaseException) -> Any:
    try:
        return part.__get__(error)
    except AttributeError:
        return _MISSING


def _put(error: BaseException, name: str, value: object) -> None:
    """Set an attribute, even if the class forbids it, as a frozen dataclass does."""
    BaseException.__setattr__(error, name, value)


def _says_the_same(copied: BaseException, error: BaseException) -> bool:
    """Return whether nothing of `error` is lost in its copy."""
    if type(copied) is not type(error) or copied.__dict__ != error.__dict__:
        return False
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        # The members of a group are copies themselves.
        return len(copied.exceptions) == len(error.exceptions)
    return copied.args == error.args and all(
        (mine := _read(part, copied)) is (own := _read(part, error)) or mine == own for part in _parts_of(type(error))
    )


def for_caller(error: BaseException, traceback: TracebackType | None, *, is_last: bool) -> BaseException:
    """Return what one of several callers raises for a load that has failed.

    Parameters:
        error: the failure.
        traceback: of the load.
        is_last: no other caller raises it after this one, which gets the failure itself.
    """
    copied = None if is_last else another(error, _Copying().members)
    if copied is None:
        return error.with_traceback(traceback)
    for each, original in _pairs(copied, error):
        for name in ("__cause__", "__context__", "__suppress_context__", "__traceback__"):
            _put(each, name, getattr(original, name))
    return copied.with_traceback(traceback)


def _pairs(copied: BaseException, error: BaseException) -> Iterator[tuple[BaseException, BaseException]]:
    """Yield a copy and its original, and those of the members of a group."""
    yield copied, error
    if isinstance(copied, BaseExceptionGroup) and isinstance(error, BaseExceptionGroup):
        for each, original in zip(copied.exceptions, error.exceptions, strict=True):
            if each is original:
                # The others are, too.
                break
            yield from _pairs(each, original)


class _Copying:
    """Copies the first members of groups, and leaves the others as they are."""

    def __init__(self) -> None:
        self.left = _MOST_TOLD - 1

    def members(self, members: Sequence[BaseException]) -> list[BaseException]:
        """Return the members that a copied group has."""
        copies: list[BaseException] = []
        for member in members:
            if not self.left:
                break
            self.left -= 1
            copies.append(_copied(member, self.members))
        return [*copies, *members[len(copies) :]]


def shortened(
    error: BaseException, traceback: TracebackType | None
) -> tuple[BaseException, TracebackType | None] | None:
    """Return a shortened failure for all callers but one to copy, and its traceback, if the failure is long.

    It has all members of a group. The first exceptions have their tracebacks and what they were raised from.
    None: all callers get copies of the failure as it is.
    """
    told = list(itertools.islice(_told(error), _MOST_TOLD + 1))
    short = _innermost(traceback)
    if len(told) <= _MOST_TOLD and short is traceback and all(_innermost(tb) is tb for tb in _tracebacks(told[1:])):
        return None
    copied = _Shortening().short(error)
    if copied is None:
        return None
    _put(copied, "__notes__", [*getattr(copied, "__notes__", ()), _LEFT_OUT])
    return copied, short


def _told(error: BaseException) -> Iterator[BaseException]:
    """Yield what a traceback tells of: an exception, the members of a group, and what each was raised from."""
    waiting: list[BaseException | None] = [error]
    while waiting:
        if (each := waiting.pop()) is not None:
            yield each
            waiting.append(_reason(each))
            if isinstance(each, BaseExceptionGroup):
                waiting += reversed(each.exceptions)


def _tracebacks(errors: Sequence[BaseException]) -> list[TracebackType | None]:
    return [error.__traceback__ for error in errors]


def _reason(error: BaseException) -> BaseException | None:
    """Return what a traceback names as that which `error` was raised from."""
    return error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _innermost(traceback: TracebackType | None) -> TracebackType | None:
    """Return the last frames of a traceback, those next to what went wrong."""
    first = last = traceback
    for _ in range(_MOST_FRAMES):
        if last is None:
            return traceback
        last = last.tb_next
    while first is not None and last is not None:
        first, last = first.tb_next, last.tb_next
    return first


class _Shortening:
    """Copies an exception, the first of its group's members, and the first of those that it was raised from."""

    def __init__(self) -> None:
        self.left = _MOST_TOLD

    def short(self, error: BaseException) -> BaseException | None:
        """Return a copy of `error` that is short to tell; None: it cannot be copied."""
        self.left -= 1
        copied = another(error, self.members)
        if copied is not None:
            reason = _reason(error)
            told = None if reason is None or not self.left else self.short(reason)
            is_cause = error.__cause__ is not None
            _put(copied, "__cause__", told if is_cause else None)
            _put(copied, "__context__", told)
            _put(copied, "__suppress_context__", is_cause or error.__suppress_context__)
            _put(copied, "__traceback__", _innermost(error.__traceback__))
        return copied

    def members(self, members: Sequence[BaseException]) -> list[BaseException]:
        """Return copies of the members of a group, or of the first ones."""
        copies: list[BaseException] = []
        for member in members:
            copied = self.short(member) if self.left else another(member)
            if copied is None:
                raise TypeError(f"{member!r} cannot be copied")
            copies.append(copied)
        return copies


def of_loader(traceback: TracebackType | None) -> TracebackType | None:
    """Return the part of a traceback that begins in the application; all of it, if no part does.

    Each caller logs it, and what runs the load is longer than most loaders.
    """
    part = traceback
    while part is not None and part.tb_frame.f_globals.get("__name__", "").partition(".")[0] in _RUNNERS:
        part = part.tb_next
    return part or traceback


def for_later(error: BaseException) -> BaseException:
    """Return an exception that says what `error` says and keeps nothing alive that the load worked with."""
    copied = another(error)
    return SWRError(text_of(error)) if copied is None else copied


def text_of(error: BaseException | None) -> str:
    """Return the name of an exception's class, and what it says."""
    try:
        return f"{type(error).__name__}: {error}"
    except Exception:
        # The class is an application's, and so is its `__str__`.
        return type(error).__name__

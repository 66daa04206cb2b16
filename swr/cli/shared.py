"""Parts that several commands use: parsers, messages, and access to loaders and caches."""

import argparse
import contextlib
import importlib
import inspect
import itertools
import logging
import operator
import os
import reprlib
import sys
import textwrap
import time
import types
import typing
from collections.abc import Awaitable, Callable, Iterator
from datetime import date, timedelta
from datetime import time as timeofday
from decimal import Decimal
from enum import Enum
from typing import TYPE_CHECKING, Any, Final, NoReturn, TextIO, TypeVar, cast
from uuid import UUID

import msgspec

from swr.cache import Cache
from swr.core.signatures import signature_of
from swr.engine.failures import text_of
from swr.errors import ConfigurationError, StoreUnavailable
from swr.lifecycle.options import codec_in
from swr.loaders.cached_many import CachedMany
from swr.policy import Duration
from swr.settings import ENABLED, NAMESPACE, URL, read_environment, redacted, without_passwords

if TYPE_CHECKING:
    from swr.engine.engine import Engine
    from swr.stores.redis.store import RedisStore
    from swr.stores.tiered import TieredStore

    Commands = argparse._SubParsersAction["Parser"]
else:
    Commands = object

T = TypeVar("T")

NAMESPACE_HELP: Final = f"the beginning of every key in Redis (the value of {NAMESPACE}, or swr)"
# Indentation of the command in an example. The explanation below has a deeper one.
_COMMAND: Final = "  "
# Types of parameters for which a text argument is converted.
_NO_TEXT: Final = (int, float, Decimal, Enum, UUID, date, timeofday, timedelta)

USAGE: Final = 2
FAILURE: Final = 1


class Failure(Exception):
    """A failure of a command. Its text is the line that the user gets."""


class Parser(argparse.ArgumentParser):
    """A parser that reports an error in one line."""

    def error(self, message: str) -> NoReturn:
        """Exit with the message and a hint to `--help`."""
        self.exit(USAGE, f"swr: {without_passwords(message)} ({self.prog} --help)\n")


class Formatter(argparse.RawDescriptionHelpFormatter):
    """A formatter that wraps the paragraphs and examples of a description at the width of the terminal."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(_folded(lines, width) for lines in _paragraphs(text))


def _paragraphs(text: str) -> list[list[str]]:
    """Return groups of lines to wrap together: of one indentation, up to a ":" or "."; commands are separate groups."""
    found: list[list[str]] = []
    for line in text.splitlines():
        before = found[-1][-1] if found else ""
        is_next = line.strip() and before and _indent(line) == _indent(before)
        if is_next and _indent(line) != _COMMAND and not before.endswith((":", ".")):
            found[-1].append(line)
        else:
            found.append([line])
    return found


def _indent(line: str) -> str:
    return line[: len(line) - len(line.lstrip())]


def _folded(lines: list[str], width: int) -> str:
    indent, is_command = _indent(lines[0]), _indent(lines[0]) == _COMMAND
    folded = textwrap.wrap(
        " ".join(line.strip() for line in lines),
        width - 2 * is_command,
        initial_indent=indent,
        subsequent_indent=indent + "    " * is_command,
        break_long_words=False,
        break_on_hyphens=False,
    )
    # A shell reads a wrapped command as one line only if each line break is escaped.
    return (" \\\n" if is_command else "\n").join(folded)


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int] | None, about: str, more: str, examples: str
) -> Parser:
    """Add a command and return its parser.

    Parameters:
        run: runs the command and returns the exit code; None: the command has subcommands.
        about: the line in the list of commands.
        more: the text above the options in its help.
        examples: the text below the options.
    """
    parser = commands.add_parser(
        name,
        help=about,
        description=more,
        epilog=examples,
        formatter_class=Formatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser, what: str = "one JSON object") -> None:
    """Add the option `--json`."""
    parser.add_argument("--json", action="store_true", help=f"for programs: {what}")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add the options that say where the cache is."""
    add = parser.add_argument
    add(
        "--redis",
        metavar="URL",
        help=f"redis://, rediss://, unix://, redis+sentinel:// or redis+cluster:// (the value of {URL})",
    )
    add("--namespace", metavar="NAME", help=NAMESPACE_HELP)
    add("--timeout", type=duration, default=2, metavar="TIME", help="how long Redis may be silent (%(default)s)")


def add_watch(parser: argparse.ArgumentParser) -> None:
    """Add the option `--watch`, which repeats a command."""
    parser.add_argument(
        "--watch",
        nargs="?",
        type=float,
        const=2.0,
        metavar="SECONDS",
        help="repeat the command every SECONDS (2), until Ctrl-C",
    )


def watched(options: argparse.Namespace, show: Callable[[], int]) -> int:
    """Call `show` once and return its exit code, or with --watch call it periodically without end.

    Raises:
        ConfigurationError: the pause is out of range.
        Failure: `show` failed, without --watch.
    """
    if options.watch is None:
        return show()
    if not 0.01 <= options.watch <= 86_400:
        raise ConfigurationError(f"--watch {options.watch:g} is not between 0.01 and 86400 seconds")
    while True:
        if sys.stdout.isatty():
            # Clear the screen, and move the cursor to its top.
            sys.stdout.write("\x1b[H\x1b[2J")
        try:
            show()
        except (Failure, StoreUnavailable) as error:
            say(str(error), FAILURE)
        sys.stdout.flush()
        time.sleep(options.watch)


def find_store(options: argparse.Namespace) -> None:
    """Set the options --redis and --namespace from the environment if the user did not give them.

    Raises:
        ConfigurationError: a variable cannot work.
    """
    environment = read_environment()
    if options.redis is None:
        options.redis = environment.url
    if options.namespace is None:
        options.namespace = environment.namespace or "swr"


async def with_store(options: argparse.Namespace, ask: "Callable[[RedisStore], Awaitable[T]]") -> T:
    """Call `ask` with the store in Redis itself. A failure ends the command: no part of swr repeats the call later.

    Raises:
        ConfigurationError: neither the options nor the environment say where Redis is.
    """
    with quiet():
        async with cache_of(options) as cache:
            tiered = cast("TieredStore", cache.engine.store)
            return await ask(cast("RedisStore", tiered.store))


def cache_of(options: argparse.Namespace) -> Cache:
    """Return a cache without a local cache, in the Redis that the options or the environment name.

    Raises:
        ConfigurationError: neither the options nor the environment say where Redis is.
    """
    find_store(options)
    if options.redis is None:
        raise ConfigurationError(f"where is Redis? Give --redis URL, or set {URL}")
    codec = codec_in(read_environment())
    return Cache(options.redis, namespace=options.namespace, timeout=options.timeout, l1_max_bytes=0, codec=codec)


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Return a context manager in which swr logs almost nothing, because the command prints its own error line."""
    log = logging.getLogger("swr")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def imported(name: str) -> Any:
    """Return the object of a name. Its module may be in the current directory.

    Parameters:
        name: "examples.ranking:refresher"; a dot after the colon means an attribute.

    Raises:
        ConfigurationError: there is no such module or object.
        Failure: importing the module raised another error.
    """
    where, colon, what = name.partition(":")
    if not (colon and all(part.isidentifier() for part in (*where.split("."), *what.split(".")))):
        # This may be a URL for which the user forgot to write `--redis`, so the message must not show its password.
        shown = redacted(name) if "@" in name else repr(name)
        raise ConfigurationError(f"{shown} must be MODULE:NAME, such as examples.ranking:refresher")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(where)
    except ConfigurationError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r}: swr looks for {name!r} from the current directory"
            ) from None
        raise Failure(f"importing {where!r} failed: {described(error)}") from error
    try:
        return operator.attrgetter(what)(module)
    except AttributeError as error:
        raise ConfigurationError(f"cannot find {name!r}: {error}") from None


def redis_of(engine: "Engine", name: str) -> "RedisStore":
    """Return the store in Redis of a cache.

    Parameters:
        engine: the engine of the cache.
        name: the name of a loader or refresher that uses the cache, for errors.

    Raises:
        ConfigurationError: the cache has no store in Redis.
    """
    from swr.refreshers.queue.queue import store_of

    if not engine.switch.is_enabled:
        raise ConfigurationError(
            f"the cache of {name!r} is off: nothing is stored, and no process hears of an invalidation; see enabled= "
            f"and {ENABLED}"
        )
    return store_of(
        engine,
        f"the cache of {name!r} is in the memory of one process, and no other process reads what is loaded here: give "
        f'it a URL, Cache("redis://…"), or name a module that calls its configure(...) when it is imported',
    )


def described(error: BaseException | None) -> str:
    """Return an error as one line."""
    return " ".join(text_of(error).split())


def duration(text: str) -> Duration:
    """Return a number as seconds, and any other text unchanged; swr checks it later."""
    try:
        return float(text)
    except ValueError:
        return text


def arguments_of(loader: Any, text: str) -> tuple[Any, ...]:
    """Return the arguments of a call of a loader.

    A text becomes a number, date, UUID or the like if the loader declares that: 1 and "1" have different keys.

    Parameters:
        loader: the cached loader.
        text: a single argument, or several as a JSON array.

    Raises:
        ConfigurationError: the text does not fit the declared type.
    """
    args: tuple[Any, ...] = (text,)
    with contextlib.suppress(msgspec.DecodeError):
        if text.startswith("["):
            args = tuple(msgspec.json.decode(text))
    kinds = _kinds_of(loader)
    try:
        return tuple(_as_declared(arg, kind) for arg, kind in itertools.zip_longest(args, kinds[: len(args)]))
    except msgspec.ValidationError as error:
        raise ConfigurationError(f"the loader of {loader.template!r} does not take {text!r}: {error}") from None


def _kinds_of(loader: Any) -> list[Any]:
    """Return the type of each parameter of a loader. For the list of a batch loader, it is the type of an item."""
    try:
        hints = typing.get_type_hints(inspect.unwrap(loader))
    except (NameError, TypeError):
        # An annotation may name a type that is imported for type checkers alone.
        hints = {}
    names = [name for name in signature_of(loader).parameters if name.lstrip("_") not in ("self", "cls")]
    kinds = [hints.get(name) for name in names]
    if isinstance(loader, CachedMany):
        kinds = [
            (typing.get_args(kind) or (None,))[0] if name == loader.list_name else kind
            for name, kind in zip(names, kinds, strict=True)
        ]
    return kinds


def _as_declared(value: Any, kind: Any) -> Any:
    """Return a text converted to its declared type if that is in `_NO_TEXT`; return other values unchanged."""
    is_union = typing.get_origin(kind) in (typing.Union, types.UnionType)
    kinds = [one for one in (typing.get_args(kind) if is_union else (kind,)) if one is not types.NoneType]
    if isinstance(value, str) and all(isinstance(one, type) and issubclass(one, _NO_TEXT) for one in kinds):
        return msgspec.convert(value, kind, strict=False)
    return value


def loader_of(name: str) -> Any:
    """Return the cached loader of a name MODULE:FUNCTION.

    Raises:
        ConfigurationError: there is no such object, or it is not a cached loader.
        Failure: importing the module failed.
    """
    loader = imported(name)
    if not all(hasattr(loader, attribute) for attribute in ("begin", "template", "engine")):
        raise ConfigurationError(
            f"{name!r} is {reprlib.repr(loader)}, and not a loader that @cache.cached or @cache.cached_many made"
        )
    return loader


def key_with(loader: Any, args: tuple[Any, ...]) -> str:
    """Return the key of a call of a loader.

    Raises:
        ConfigurationError: the loader does not take these arguments.
    """
    try:
        return cast(str, loader.key(*args))
    except TypeError as error:
        shown = ", ".join(map(repr, args))
        raise ConfigurationError(
            f"the loader of {loader.template!r} cannot be called with ({shown}): {error}"
        ) from None


def key_of(text: str) -> str:
    """Return the key that the user typed, with a line break for each `\\n`: keys of responses contain one."""
    return text.replace("\\n", "\n")


def say(message: str, code: int) -> int:
    """Write an error line to stderr, and return the exit code."""
    # This is a single write, because several processes may write lines at once.
    sys.stderr.write(f"swr: {without_passwords(message)}\n")
    sys.stderr.flush()
    return code


def write_nowhere(file: TextIO) -> None:
    """Discard further output to a pipe without a reader, so that flushing it at exit cannot fail again."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, file.fileno())
    os.close(nowhere)

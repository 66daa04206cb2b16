"""What the commands share: how they are described, what they say, and what they work on."""

import argparse
import contextlib
import importlib
import logging
import operator
import sys
from collections.abc import Awaitable, Callable, Iterator
from typing import TYPE_CHECKING, Any, Final, NoReturn, TypeVar, cast

from swr.cache import Cache
from swr.engine.failures import text_of
from swr.errors import ConfigurationError
from swr.policy import Duration

if TYPE_CHECKING:
    from swr.engine.engine import Engine
    from swr.stores.redis.store import RedisStore
    from swr.stores.tiered import TieredStore

    Commands = argparse._SubParsersAction["Parser"]
else:
    Commands = object

T = TypeVar("T")

USAGE: Final = 2
FAILURE: Final = 1


class Failure(Exception):
    """What was asked for could not be done; its text is the line that says so."""


class Parser(argparse.ArgumentParser):
    """A parser that says what is wrong in one line."""

    def error(self, message: str) -> NoReturn:
        """End with the message and where help is."""
        self.exit(USAGE, f"swr: {message} ({self.prog} --help)\n")


def command(
    commands: Commands, name: str, run: Callable[[argparse.Namespace], int] | None, about: str, more: str, examples: str
) -> Parser:
    """Add a command.

    Parameters:
        run: does it, and returns the exit code; None: it has commands of its own.
        about: a line for the list of commands.
        more: what stands above its options.
        examples: what stands below them.
    """
    parser = commands.add_parser(
        name,
        help=about,
        description=more,
        epilog=examples,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    if run is not None:
        parser.set_defaults(run=run)
    return parser


def add_json(parser: argparse.ArgumentParser, what: str = "one JSON object") -> None:
    """Add the option that every command has for programs."""
    parser.add_argument("--json", action="store_true", help=f"for programs: {what}")


def add_store(parser: argparse.ArgumentParser) -> None:
    """Add what says where a cache lies."""
    add = parser.add_argument
    add(
        "--redis",
        metavar="URL",
        required=True,
        help="redis://, rediss://, unix://, redis+sentinel:// or redis+cluster://",
    )
    add("--namespace", default="swr", metavar="NAME", help="the beginning of every key in Redis (%(default)s)")
    add("--timeout", type=duration, default=2, metavar="TIME", help="how long Redis may be silent (%(default)s)")
    add_json(parser)


async def with_store(options: argparse.Namespace, ask: "Callable[[RedisStore], Awaitable[T]]") -> T:
    """Do something with the store alone, where what fails is said and not made up for later."""
    with quiet():
        async with Cache(options.redis, namespace=options.namespace, timeout=options.timeout, l1_max_bytes=0) as cache:
            tiered = cast("TieredStore", cache.engine.store)
            return await ask(cast("RedisStore", tiered.store))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Log nothing meanwhile: what is said is said in one line, by whoever asked."""
    log = logging.getLogger("swr")
    before = log.level
    log.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        log.setLevel(before)


def imported(name: str) -> Any:
    """Return what a module, of the current directory for one, has under a name.

    Parameters:
        name: "examples.ranking:refresher"; behind the colon dots are attributes.

    Raises:
        ConfigurationError: there is no such thing.
        Failure: the module raised something else.
    """
    where, colon, what = name.partition(":")
    if not (where and colon and what):
        raise ConfigurationError(f"{name!r} is not MODULE:NAME, such as examples.ranking:refresher")
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        module = importlib.import_module(where)
    except ConfigurationError:
        raise
    except Exception as error:
        if isinstance(error, ModuleNotFoundError) and f"{where}.".startswith(f"{error.name}."):
            raise ConfigurationError(
                f"there is no module {error.name!r}: {name!r} is looked for from the current directory"
            ) from None
        raise Failure(f"importing {where!r} failed: {described(error)}") from error
    try:
        return operator.attrgetter(what)(module)
    except AttributeError as error:
        raise ConfigurationError(f"{name!r} is not there: {error}") from None


def redis_of(engine: "Engine", name: str) -> "RedisStore":
    """Return the store in Redis behind a cache.

    Parameters:
        name: what was asked for that uses this cache.

    Raises:
        ConfigurationError: there is none.
    """
    from swr.refreshers.queue.queue import store_of

    return store_of(
        engine,
        f"the cache of {name!r} is in the memory of one process, and what is loaded here nobody reads: give it a URL, "
        f'Cache("redis://…")',
    )


def described(error: BaseException | None) -> str:
    """Return an error as one line."""
    return " ".join(text_of(error).split())


def duration(text: str) -> Duration:
    """Return a number as seconds, anything else as it is: what it means is not decided here."""
    try:
        return float(text)
    except ValueError:
        return text


def key_of(text: str) -> str:
    """Return the key that is meant; those of responses have a line break in them."""
    return text.replace("\\n", "\n")


def say(message: str, code: int) -> int:
    """Say a line of what is wrong; return the exit code."""
    # In one write: several processes may say something at once.
    sys.stderr.write(f"swr: {message}\n")
    sys.stderr.flush()
    return code

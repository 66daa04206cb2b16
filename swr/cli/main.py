"""The command `swr`: its parser and its exit codes."""

import signal
import sys
from collections.abc import Sequence
from typing import Final

from swr import __version__
from swr.cli import dashboard, entries, keys, proxy, queue, refresh, top, warm
from swr.cli.shared import FAILURE, USAGE, Failure, Parser, say, write_nowhere
from swr.errors import ConfigurationError, StoreUnavailable

# The exit code that a shell shows for a process that ends by SIGPIPE.
_NOBODY_READS: Final = 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code.

    It is 0 for success, 1 for a failure, 2 for wrong arguments, and 128 plus its number for a signal.
    """
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of a pipe has ended, as in `swr queue status | head -1`.
        write_nowhere(sys.stdout)
        return _NOBODY_READS


def _run(arguments: Sequence[str] | None) -> int:
    options = _parser().parse_args(arguments)
    try:
        code: int = options.run(options)
    except ConfigurationError as error:
        return say(str(error), USAGE)
    except Failure as error:
        return say(str(error), FAILURE)
    except StoreUnavailable as error:
        return say(f"Redis did not carry out the command: {error}", FAILURE)
    except KeyboardInterrupt:
        # After Ctrl-C, the command has already closed everything.
        return 128 + signal.SIGINT
    return code


def _parser() -> Parser:
    parser = Parser("swr", description="A stale-while-revalidate cache.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"swr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for family in (proxy, dashboard, top, refresh, queue, warm, keys, entries):
        family.add(commands)
    return parser

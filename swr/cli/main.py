"""The command `swr`: its parser, and what its exit codes are."""

import signal
import sys
from collections.abc import Sequence
from typing import Final

from swr import __version__
from swr.cli import dashboard, entries, keys, proxy, queue, refresh, top, warm
from swr.cli.shared import FAILURE, USAGE, Failure, Parser, say, write_nowhere
from swr.errors import ConfigurationError, StoreUnavailable

# As a shell shows a process that ends by SIGPIPE.
_NOBODY_READS: Final = 128 + 13


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 2 for what was asked wrongly, 1 for what failed."""
    try:
        try:
            return _run(arguments)
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        # `swr queue status | head -1`, which has seen enough.
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
        # Ctrl-C, after everything has been closed.
        return 128 + signal.SIGINT
    return code


def _parser() -> Parser:
    parser = Parser("swr", description="A stale-while-revalidate cache.", allow_abbrev=False)
    parser.add_argument("--version", action="version", version=f"swr {__version__}")
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for family in (proxy, dashboard, top, refresh, queue, warm, keys, entries):
        family.add(commands)
    return parser

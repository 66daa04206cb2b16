"""The command `swr`: its parser, and what its exit codes are."""

import signal
from collections.abc import Sequence

from swr.cli import entries, proxy, queue, refresh, warm
from swr.cli.shared import FAILURE, USAGE, Failure, Parser, say
from swr.errors import ConfigurationError, StoreUnavailable


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; return its exit code: 2 for what was asked wrongly, 1 for what failed."""
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
    commands = parser.add_subparsers(title="commands", metavar="command", required=True)
    for family in (proxy, refresh, queue, warm, entries):
        family.add(commands)
    return parser

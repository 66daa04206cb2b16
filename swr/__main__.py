"""The command `swr` as `python -m swr`."""

import sys

from swr.cli.main import main

if __name__ == "__main__":
    sys.exit(main())

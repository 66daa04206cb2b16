"""Imports all modules of swr, so that `scripts/test` counts the branches that imports reach.

In the other parts coverage pauses while pytest collects tests, and so while the tests import swr.
"""

import importlib
import pkgutil

import swr

for module in pkgutil.walk_packages(swr.__path__, "swr."):
    # This module is the command itself.
    if module.name != "swr.__main__":
        importlib.import_module(module.name)

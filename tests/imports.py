"""Imports all modules of swr: `scripts/test` counts so what importing reaches, and pauses while tests are collected."""

import importlib
import pkgutil

import swr

for module in pkgutil.walk_packages(swr.__path__, "swr."):
    # That one runs the command.
    if module.name != "swr.__main__":
        importlib.import_module(module.name)

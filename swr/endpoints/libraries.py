"""Tells the code of libraries from the app's own code, by the names of modules and by where the modules come from."""

import functools
import importlib.metadata
import sys
from pathlib import PurePath
from types import FrameType
from typing import Final

# Prefixes of the modules of frameworks. swr imports these itself, so no package of the app has such a name.
FRAMEWORKS: Final = ("starlette.", "fastapi.", "swr.", "collections.abc", "_collections_abc")
# Prefixes of modules that record an address or a field, without an effect on the response.
OBSERVERS: Final = (
    "swr.", "uvicorn.", "hypercorn.", "granian.", "opentelemetry.", "opencensus.", "sentry_sdk.", "elasticapm.",
    "ddtrace.", "newrelic.", "logfire.", "rollbar.", "bugsnag.", "honeybadger.", "scout_apm.", "aws_xray_sdk.",
)  # fmt: skip
# Prefixes of modules that copy the whole scope into their own request, whether the app reads it or not.
CARRIERS: Final = ("django.", "channels.", "asgiref.", "a2wsgi.", "litestar.", "quart.")
NOT_OF_THE_APP: Final = (*FRAMEWORKS, *OBSERVERS, *CARRIERS)
# The distributions of packages, where their names differ. A namespace package has several.
_DISTRIBUTIONS: Final = {"elasticapm": "elastic-apm", "opentelemetry": "opentelemetry-api"}


def module_of(frame: FrameType) -> str:
    """Return the name of the module whose code a frame runs."""
    return str(frame.f_globals.get("__name__"))


def runs_library(frame: FrameType, beginnings: tuple[str, ...]) -> bool:
    """Return whether a frame runs the code of a library.

    Parameters:
        beginnings: the prefixes of the names of the library's modules.
    """
    name = module_of(frame)
    return name.startswith(beginnings) and is_of_library(name, frame.f_globals.get("__file__"))


def is_imported(package: str) -> bool:
    """Return whether the process has imported a library."""
    module = sys.modules.get(package)
    return module is not None and is_of_library(package, getattr(module, "__file__", None))


def is_of_library(name: str, file: object) -> bool:
    """Return whether a module with the name of a library's module is the library's, and not the app's own.

    A package of the app may have the name of a library. The library's files lie beside the metadata of a distribution
    of that name. If the metadata is missing, as in an editable installation, the module counts as the app's.

    Parameters:
        name: the name of the module, such as "channels.routing".
        file: its `__file__`; None if it has none.
    """
    return name.startswith(FRAMEWORKS) or (isinstance(file, str) and _is_beside_metadata(name, file))


@functools.lru_cache(1024)
def _is_beside_metadata(name: str, file: str) -> bool:
    path = PurePath(file)
    depth = name.count(".") + (path.stem == "__init__")
    if len(path.parents) <= depth:
        return False
    package = name.partition(".")[0]
    folder = str(path.parents[depth])
    found = importlib.metadata.distributions(name=_DISTRIBUTIONS.get(package, package), path=[folder])
    return any(map(_is_published, found))


def _is_published(distribution: importlib.metadata.Distribution) -> bool:
    """Return whether a distribution was installed from a wheel or an index, and not from a folder, as an app may be."""
    # A source folder has no `WHEEL`. `pip` notes where a distribution came from, unless an index had it (PEP 610), and
    # packages of conda keep the note of the folder in which they were built.
    origin = distribution.read_text("direct_url.json")
    is_of_conda = (distribution.read_text("INSTALLER") or "").strip() == "conda"
    is_of_folder = origin is not None and "archive_info" not in origin
    return distribution.read_text("WHEEL") is not None and (is_of_conda or not is_of_folder)

"""Packages of Python, written to a folder as installers write them."""

import json
from pathlib import Path
from typing import Any


def write_package(folder: Path, package: str, modules: dict[str, str]) -> Path:
    """Write a package with these modules, by name, and return its folder."""
    root = folder / package
    root.mkdir(parents=True)
    for name, source in {"__init__": "", **modules}.items():
        (root / f"{name}.py").write_text(source)
    return root


def write_metadata(
    folder: Path, name: str, *, origin: dict[str, Any] | None = None, kind: str = "dist-info", installer: str = "pip"
) -> None:
    """Write the metadata of a distribution.

    Parameters:
        origin: what `pip` notes of a distribution that came from a folder or a file (PEP 610); None: from an index.
        kind: "egg-info" for what setuptools writes into a source folder.
        installer: the program that has installed the distribution.
    """
    root = folder / (f"{name}-1.0.dist-info" if kind == "dist-info" else f"{name}.egg-info")
    root.mkdir(parents=True)
    if kind == "dist-info":
        (root / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
        (root / "WHEEL").write_text("Wheel-Version: 1.0\n")
        (root / "INSTALLER").write_text(f"{installer}\n")
    else:
        (root / "PKG-INFO").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    if origin is not None:
        (root / "direct_url.json").write_text(json.dumps(origin))

"""Prints the lower bound of every requirement in pyproject.toml as a constraint; torch is left to the Makefile."""

from __future__ import annotations

import re
import sys
import tomllib
from pathlib import Path

PYPROJECT = Path(__file__).parents[1] / "pyproject.toml"


def lowest(pyproject: str) -> dict[str, str]:
    """Name of a package -> the lowest version that all of its requirements allow."""
    project = tomllib.loads(pyproject)["project"]
    listed = [*project["dependencies"], *(one for extra in project["optional-dependencies"].values() for one in extra)]
    pairs = [pair for requirement in listed if (pair := re.fullmatch(r"([\w-]+)>=([\d.]+)", requirement))]
    highest = sorted(pairs, key=lambda pair: [int(part) for part in pair[2].split(".")])
    return {pair[1]: pair[2] for pair in highest if pair[1] != "torch"}


if __name__ == "__main__":
    sys.stdout.writelines(f"{name}=={version}\n" for name, version in lowest(PYPROJECT.read_text("utf-8")).items())

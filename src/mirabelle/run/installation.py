"""The installed packages that Mirabelle requires, and its optional extras.

Everything is read from package metadata, so that no list here can go out of date and nothing has to be imported.
"""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata

_PACKAGE = "mirabelle"
_FOR_DEVELOPMENT = "dev"


@dataclass(frozen=True)
class Package:
    """A required package.

    Args:
        name: as on the package index.
        version: installed version; None if it is not installed.
        fault: why it cannot be used; "" if it can.
    """

    name: str
    version: str | None
    fault: str


@dataclass(frozen=True)
class Extra:
    """An optional extra of Mirabelle and the packages that it requires."""

    name: str
    packages: tuple[Package, ...]

    @property
    def present(self) -> bool:
        """Whether all packages of the extra are installed and usable."""
        return not any(package.fault for package in self.packages)

    @property
    def command(self) -> str:
        """The command that installs the extra."""
        return f"pip install '{_PACKAGE}[{self.name}]'"


def installed() -> tuple[list[Package], list[Extra]]:
    """The packages that the installed Mirabelle requires, and its extras."""
    try:
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return [Package(_PACKAGE, None, "is not installed, so its requirements are unknown")], []
    return read(requirements)


def read(requirements: list[str]) -> tuple[list[Package], list[Extra]]:
    """Check a list of requirements against the installed packages.

    Args:
        requirements: as in package metadata, such as 'click>=8.1' or 'wandb>=0.19; extra == "wandb"'. Those of the extra "dev"
            are skipped.

    Returns:
        The required packages, and the extras with theirs.

    Example:
        >>> needed, extras = read(["click>=8.1", 'no-such-package>=1; extra == "dreams"'])
        >>> needed[0].fault, extras[0].present, extras[0].command
        ('', False, "pip install 'mirabelle[dreams]'")
    """
    needed: list[Package] = []
    extras: dict[str, list[Package]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        minimum = re.search(r">=\s*([\d.]+)", requirement.partition(";")[0])
        extra = re.search(r"extra\s*==\s*[\"']([\w.-]+)[\"']", requirement)
        assert name, "a requirement begins with a name"
        if extra and extra[1] == _FOR_DEVELOPMENT:
            continue
        package = _package(name[0], minimum[1] if minimum else "0")
        (extras.setdefault(extra[1], []) if extra else needed).append(package)
    return needed, [Extra(name, tuple(packages)) for name, packages in extras.items()]


def _package(name: str, minimum: str) -> Package:
    try:
        distribution = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return Package(name, None, "is not installed")
    modules = (distribution.read_text("top_level.txt") or "").split()
    missing = [module for module in modules if module[0] != "_" and not _exists(module)]
    if missing:
        return Package(name, distribution.version, f"is broken: its module {missing[0]} is missing")
    if _numbers(distribution.version) < _numbers(minimum):
        return Package(name, distribution.version, f"is too old: version {minimum} is required")
    return Package(name, distribution.version, "")


def _exists(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version, maxsplit=1)[0]))

"""What is installed beside Mirabelle: the packages it needs, and the extras that can be added. Read from the metadata of the
packages, so that no list here can go out of date and nothing is imported to be asked for its version."""

from __future__ import annotations

import importlib.util
import re
from dataclasses import dataclass
from importlib import metadata

_PACKAGE = "mirabelle"
_FOR_DEVELOPMENT = "dev"


@dataclass(frozen=True)
class Package:
    """A package that is needed.

    Args:
        name: as package indexes have it.
        version: that is installed; None where it is not.
        fault: why it cannot serve, "" where it can.
    """

    name: str
    version: str | None
    fault: str


@dataclass(frozen=True)
class Extra:
    """An addition to Mirabelle: whether its packages are there, and how to add them."""

    name: str
    packages: tuple[Package, ...]

    @property
    def present(self) -> bool:
        return not any(package.fault for package in self.packages)

    @property
    def command(self) -> str:
        return f"pip install '{_PACKAGE}[{self.name}]'"


def installed() -> tuple[list[Package], list[Extra]]:
    """The packages that Mirabelle needs, and its extras."""
    try:
        requirements = metadata.requires(_PACKAGE) or []
    except metadata.PackageNotFoundError:
        return [Package(_PACKAGE, None, "is not installed, so what it needs is not known")], []
    return read(requirements)


def read(requirements: list[str]) -> tuple[list[Package], list[Extra]]:
    """The same for these requirements.

    Args:
        requirements: as metadata has them: 'click>=8.1', 'wandb>=0.19; extra == "wandb"'.

    Example:
        >>> needed, extras = read(["click>=8.1", 'no-such-package>=1; extra == "dreams"'])
        >>> needed[0].fault, extras[0].present, extras[0].command
        ('', False, "pip install 'mirabelle[dreams]'")
    """
    needed: list[Package] = []
    extras: dict[str, list[Package]] = {}
    for requirement in requirements:
        name = re.match(r"[\w.-]+", requirement)
        least = re.search(r">=\s*([\d.]+)", requirement.partition(";")[0])
        extra = re.search(r"extra\s*==\s*[\"']([\w.-]+)[\"']", requirement)
        assert name, "a requirement begins with a name"
        if extra and extra[1] == _FOR_DEVELOPMENT:
            continue
        package = _package(name[0], least[1] if least else "0")
        (extras.setdefault(extra[1], []) if extra else needed).append(package)
    return needed, [Extra(name, tuple(packages)) for name, packages in extras.items()]


def _package(name: str, least: str) -> Package:
    try:
        found = metadata.distribution(name)
    except metadata.PackageNotFoundError:
        return Package(name, None, "is not installed")
    gone = [module for module in (found.read_text("top_level.txt") or "").split() if module[0] != "_" and not _is_there(module)]
    if gone:
        return Package(name, found.version, f"is broken: its module {gone[0]} is gone")
    if _numbers(found.version) < _numbers(least):
        return Package(name, found.version, f"is too old: {least} is needed")
    return Package(name, found.version, "")


def _is_there(module: str) -> bool:
    return importlib.util.find_spec(module) is not None


def _numbers(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in re.findall(r"\d+", re.split(r"[+a-zA-Z]", version, maxsplit=1)[0]))

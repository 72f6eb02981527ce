"""`mirabelle doctor`: shows the machine, the installed packages, and what they mean for speed."""

from __future__ import annotations

import json
from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import json_option

if TYPE_CHECKING:
    from mirabelle.run.installation import Extra, Package
    from mirabelle.run.machine import Machine


@click.command("doctor", short_help="Show the machine and the installed packages.")
@json_option
def command(*, as_json: bool) -> int:
    """Show cores, CPU features, memory, disk, package versions and extras, and what they mean for speed.

    \b
    Example:
      mirabelle doctor
    """
    import platform

    from mirabelle import __version__
    from mirabelle.run.installation import installed
    from mirabelle.run.machine import advice, this_machine

    machine = this_machine()
    needed, extras = installed()
    faults = [f"{package.name} {package.fault}" for package in needed if package.fault]
    if as_json:
        data = {
            "machine": machine.to_data(),
            "advice": advice(machine),
            "python": platform.python_version(),
            "mirabelle": __version__,
            "packages": {package.name: asdict(package) for package in needed},
            "faults": faults,
            "extras": {extra.name: {"present": extra.present, "install": extra.command} for extra in extras},
        }
        click.echo(json.dumps(data, indent=2))
        return 0
    for name, value in _facts(machine):
        click.echo(f"{name:<15}{value}")
    click.echo(f"{'python':<15}{platform.python_version()}")
    click.echo(f"{'mirabelle':<15}{__version__}")
    for name, value in (*map(_package_line, needed), *map(_extra_line, extras)):
        click.echo(f"{name:<15} {value}" if len(name) >= 15 else f"{name:<15}{value}")  # noqa: PLR2004 (the column's width)
    click.echo("")
    for fault in faults:
        click.echo(f"FAULT: {fault}; run: pip install --upgrade mirabelle")
    for sentence in advice(machine):
        click.echo(f"- {sentence}")
    return 0


def _facts(machine: Machine) -> list[tuple[str, str]]:
    facts = [
        ("processor", machine.processor),
        ("features", ", ".join(machine.features) or "none that matter here"),
        ("cores", f"{machine.physical_cores} physical, {machine.logical_cores} logical, {machine.usable_cores} usable"),
        ("threads", f"{machine.threads} in torch and in ONNX Runtime"),
        ("memory", f"{_gigabytes(machine.memory_bytes)}, {_gigabytes(machine.available_bytes)} available"),
        ("disk", f"{_gigabytes(machine.disk_free_bytes)} free in the current folder"),
    ]
    if machine.core_limit is not None:
        facts.append(("container", f"CPU time limited to {machine.core_limit:g} cores"))
    if machine.memory_limit_bytes is not None:
        facts.append(("container", f"memory limited to {_gigabytes(machine.memory_limit_bytes)}"))
    return facts


def _package_line(package: Package) -> tuple[str, str]:
    return package.name, " ".join(part for part in (package.version, package.fault) if part)


def _extra_line(extra: Extra) -> tuple[str, str]:
    return f"[{extra.name}]", "present" if extra.present else f"absent; {extra.command}"


def _gigabytes(count: int | None) -> str:
    return "unknown" if count is None else f"{count / 1e9:.1f} GB"

"""`mirabelle verify`: the gates of an artifact, run again."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import data_dir_option, data_option, json_option


@click.command("verify")
@click.argument("artifact", metavar="FILE")
@data_option
@data_dir_option
@click.option(
    "--input", "shape", help='Shape of one input without its batch axis, such as "1x28x28", where a file leaves it open.'
)
@json_option
def command(artifact: str, data: str | None, data_dir: Path | None, shape: str | None, *, as_json: bool) -> int:
    """Check FILE again: the folder of a run, an .onnx file or a .mira file.

    A run: torch and ONNX Runtime agree, the packed file gives the ONNX file bit for bit, the folder holds what the last step
    left, and the metric is that of report.json. A file: it decodes, is valid ONNX, and gives finite outputs on the data (or on
    drawn inputs); with --data its metric is told. Exit status 4 when a gate fails.

    \b
    Example:
      mirabelle verify runs/digits
    """
    from mirabelle.cli.arguments import sizes_of
    from mirabelle.errors import UserError
    from mirabelle.job.verification import verify_file, verify_run
    from mirabelle.sources import task_from

    path = Path(artifact)
    task = None if data is None else task_from(data, {}, data_folder=data_dir, folder=Path())
    checks = verify_run(path, task, data_dir) if path.is_dir() else verify_file(path, task, sizes_of(shape))
    failed = [check for check in checks if check.verdict == "failed"]
    if as_json:
        told = {"artifact": artifact, "passed": not failed, "gates": [check.to_data() for check in checks]}
        click.echo(json.dumps(told, indent=2))
    else:
        click.echo(f"{'gate':<17}{'verdict':<13}detail")
        for check in checks:
            click.echo(f"{check.name:<17}{check.verdict:<13}{check.detail}")
    if failed:
        first = failed[0]
        raise UserError("E302", f"{artifact}: gate {first.name} failed: {first.detail}", "do not ship it; run its recipe again")
    return 0

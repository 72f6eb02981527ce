"""`mirabelle verify`: repeats the checks (gates) of a finished run or an exported file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import (
    codec_option,
    data_dir_option,
    data_option,
    input_option,
    json_option,
    runtime_option,
    trust_option,
)


@click.command("verify", short_help="Repeat the checks of a run or an exported file.")
@click.argument("artifact", metavar="FILE")
@data_option
@data_dir_option
@input_option
@runtime_option
@codec_option(read=True)
@trust_option
@json_option
def command(
    *,
    artifact: str,
    data: str | None,
    data_dir: Path | None,
    shapes: tuple[str, ...],
    runtime: str | None,
    trust: bool,
    as_json: bool,
) -> int:
    """Verify FILE: the folder of a run, an .onnx file or a .mira file.

    For a run: torch and ONNX Runtime agree, unpacking the packed file gives the ONNX file byte for byte, the files are those of
    the last step, and the metric equals that in report.json. For a file: it can be decoded, is valid ONNX, and gives finite
    outputs on the data or on random inputs, for which sizes that --input leaves out are found by trial; with --data its
    metric is printed. The exit status is 4 if a gate fails.

    The files are read as data. Code that the recipe of a run names is imported only with --trust; what takes it is "not
    checked" otherwise.

    \b
    Example:
      mirabelle verify runs/digits
    """
    from mirabelle.cli.arguments import given_of
    from mirabelle.errors import UserError
    from mirabelle.job.verification import verify_file, verify_run
    from mirabelle.runtime.runtime import runtime_named
    from mirabelle.sources import task_from

    path = Path(artifact)
    task = None if data is None else task_from(data, {}, data_folder=data_dir, folder=Path())
    used = None if runtime is None else runtime_named(runtime)
    if path.is_dir():
        checks = verify_run(path, task, data_dir, trust=trust, runtime=used)
    else:
        checks = verify_file(path, task, given_of(shapes), used)
    failed = [check for check in checks if check.verdict == "failed"]
    if as_json:
        result = {"artifact": artifact, "passed": not failed, "gates": [check.to_data() for check in checks]}
        click.echo(json.dumps(result, indent=2))
    else:
        click.echo(f"{'gate':<17}{'verdict':<13}detail")
        for check in checks:
            click.echo(f"{check.name:<17}{check.verdict:<13}{check.detail}")
    if failed:
        first = failed[0]
        drawn = first.name == "outputs" and data is None
        remedy = "it may need real inputs: give --data" if drawn else "do not use this file; run its recipe again"
        raise UserError("E302", f"{artifact}: gate {first.name} failed: {first.detail}", remedy)
    return 0

"""`mirabelle compare`: which of several techniques or recipes is better at the same budget."""

from __future__ import annotations

import json
from contextlib import closing
from pathlib import Path

import click

from mirabelle.cli.options import data_dir_option, device_option, json_option, quiet_option, set_option, verbose
from mirabelle.run.launch import is_first


@click.command("compare", short_help="Compare techniques or recipes at equal budgets.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="Output folder; by default runs/<name of the file>.")
@data_dir_option
@device_option
@set_option
@json_option
@quiet_option
def command(
    *,
    file: Path,
    out: Path | None,
    data_dir: Path | None,
    device: str | None,
    settings: tuple[str, ...],
    as_json: bool,
    quiet: bool,
) -> int:
    """Compare the techniques or recipes of FILE at equal budgets of bytes, operations or milliseconds.

    Each of them is fitted to each budget without training, then trained equally long, with several seeds. After an
    interruption, the same command goes on with the runs that are missing.

    \b
    Example:
      mirabelle compare comparison.toml --out runs/which
    """
    from mirabelle.recipe.comparison import read_comparison

    settings = settings if device is None else (*settings, f"run.device={device}")
    read = read_comparison(file, settings, data_folder=data_dir)  # before heavy imports: mistakes are reported at once

    from mirabelle.cli.display import Watcher
    from mirabelle.job.compare_file import compare_file

    out = out or Path("runs") / file.stem
    with closing(Watcher(quiet=quiet, verbose=verbose())) as watcher, read.shown_at():

        def tell(line: str) -> None:
            if not quiet:
                click.echo(line, err=True)

        found = compare_file(read, data_dir, out, callbacks=(watcher,), tell=tell)
    if not is_first():
        return 0
    click.echo(json.dumps(found.to_data(), indent=2) if as_json else found.table(), nl=as_json)
    return 0

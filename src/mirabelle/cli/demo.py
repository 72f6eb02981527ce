"""`mirabelle demo`: the whole job on the bundled digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

RECIPE = Path(__file__).parent / "demo.toml"


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Begin anew where an earlier demo has ended.")
@click.option("--json", "as_json", is_flag=True, help="Print report.json instead of a table.")
@click.option("--quiet", is_flag=True, help="No progress on standard error.")
def command(out: Path, *, fresh: bool, as_json: bool, quiet: bool) -> int:
    """Train, prune while distilling, quantize, pack, check and measure a small network: offline, in about a minute."""
    from mirabelle.cli.run import run_recipe

    if fresh and (out / "recipe.toml").is_file():
        shutil.rmtree(out)
    return run_recipe(RECIPE, out, None, None, as_json=as_json, quiet=quiet)

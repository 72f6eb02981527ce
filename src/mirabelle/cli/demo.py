"""`mirabelle demo`: runs a complete compression on the handwritten digits that come with scikit-learn."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mirabelle.cli.options import json_option, quiet_option, track_option

RECIPE = Path(__file__).parent / "demo.toml"
_MODEL = "mirabelle.sources.zoo:digits_cnn"


@click.command("demo", short_help="Run a complete compression in about a minute, offline.")
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Output folder of the run."
)
@click.option("--fresh", is_flag=True, help="Delete an earlier demo in this folder and start again.")
@track_option
@json_option
@quiet_option
def command(out: Path, track: tuple[str, ...], *, fresh: bool, as_json: bool, quiet: bool) -> int:
    """Train, prune with distillation, quantize, pack, verify and measure a small network, offline, in about a minute.

    \b
    Example:
      mirabelle demo --out runs/demo
    """
    from mirabelle.cli.run import run_recipe
    from mirabelle.run.lock import FolderLock

    if fresh and _holds_demo(out):
        FolderLock(out).release()  # fails if another demo is still running there
        shutil.rmtree(out)
    return run_recipe(RECIPE, out, None, track=track, as_json=as_json, quiet=quiet)


def _holds_demo(folder: Path) -> bool:
    """Whether a folder was written by an earlier demo, so that it is safe to delete."""
    recipe, journal = folder / "recipe.toml", folder / "events.jsonl"
    return journal.is_file() and recipe.is_file() and _MODEL in recipe.read_text("utf-8", errors="replace")

"""`mirabelle demo`: the whole job on the bundled digits."""

from __future__ import annotations

import shutil
from pathlib import Path

import click

from mirabelle.cli.options import json_option, quiet_option, track_option

RECIPE = Path(__file__).parent / "demo.toml"
_MODEL = "mirabelle.sources.zoo:digits_cnn"


@click.command("demo")
@click.option("--out", type=click.Path(path_type=Path), default=Path("runs/demo"), show_default=True, help="Folder of the run.")
@click.option("--fresh", is_flag=True, help="Begin anew where an earlier demo has ended.")
@track_option
@json_option
@quiet_option
def command(out: Path, track: tuple[str, ...], *, fresh: bool, as_json: bool, quiet: bool) -> int:
    """Train, prune while distilling, quantize, pack, check and measure a small network: offline, in about a minute.

    \b
    Example:
      mirabelle demo --out runs/demo
    """
    from mirabelle.cli.run import run_recipe
    from mirabelle.run.lock import FolderLock

    if fresh and _holds_demo(out):
        FolderLock(out).release()  # refuses where another demo is still at work
        shutil.rmtree(out)
    return run_recipe(RECIPE, out, None, track=track, as_json=as_json, quiet=quiet)


def _holds_demo(folder: Path) -> bool:
    """Whether a folder is that of an earlier demo, and not one in which somebody keeps recipes of their own."""
    recipe, journal = folder / "recipe.toml", folder / "events.jsonl"
    return journal.is_file() and recipe.is_file() and _MODEL in recipe.read_text("utf-8", errors="replace")

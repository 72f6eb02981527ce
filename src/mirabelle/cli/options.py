"""Options that several commands share, so that each has one name, one meaning and one help text."""

from __future__ import annotations

from pathlib import Path

import click

json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_QUIET = "No progress on standard error."
quiet_option = click.option("--quiet", is_flag=True, help=_QUIET)
data_option = click.option(
    "--data", help='A built-in set, a folder of class folders, a .csv or .npz file, or "file.py:function".'
)
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Where data sets lie; by default $MIRABELLE_DATA."
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Instead of what the recipe says: step.1.sparsity=0.9, say."
)
track_option = click.option(
    "--track", multiple=True, type=click.Choice(["tensorboard", "wandb"]), help="Also write the run's curves there."
)


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 (click's own call)
    context.meta[str(parameter.name)] = value


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Tell every event, and show where a mistake in code of your own was raised.",
)


# What every command takes, whether it has much to say or not.
EVERYWHERE = {
    "quiet": click.option("--quiet", is_flag=True, expose_value=False, callback=_remember, help=_QUIET),
    "verbose": verbose_option,
}


def verbose() -> bool:
    """Whether the command that is running was given -v."""
    return bool(click.get_current_context().meta.get("verbose", False))

"""Options shared by several commands, with one name, one meaning and one help text each."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

F = TypeVar("F", bound=Callable[..., Any])
input_option = click.option(
    "--input",
    "shapes",
    multiple=True,
    metavar="[NAME=]SIZES[:DTYPE]",
    help='Sizes of an input: "1x28x28" without the batch axis, "8,1,28,28" with it; "ids=16:int64" by name. Repeat for each.',
)
json_option = click.option("--json", "as_json", is_flag=True, help="Print the result as JSON.")
_QUIET = "Do not show progress on standard error."
quiet_option = click.option("--quiet", is_flag=True, help=_QUIET)
data_option = click.option(
    "--data", help='A built-in data set, a folder with one subfolder per class, a .csv or .npz file, or "./file.py:function".'
)
data_dir_option = click.option(
    "--data-dir", type=click.Path(path_type=Path), help="Folder with the built-in data sets; by default $MIRABELLE_DATA."
)
device_option = click.option(
    "--device", metavar="NAME", help='Where models compute: "auto" (the accelerator that is there), "cpu", "cuda", "cuda:1".'
)
set_option = click.option(
    "--set", "settings", multiple=True, metavar="KEY=VALUE", help="Override a value of the recipe, such as step.1.sparsity=0.9."
)
track_option = click.option(
    "--track",
    multiple=True,
    type=click.Choice(["tensorboard", "wandb"]),
    help="Also log the learning curves with this tracker.",
)


_RUNTIMES = '"onnxruntime", "onnxruntime_extended", "onnxruntime_cuda", "openvino" (float32) or "openvino_bf16"'
runtime_option = click.option(
    "--runtime", metavar="NAME", help=f"Runtime: {_RUNTIMES}; by default that of the run, or else ONNX Runtime."
)
goal_runtime_option = click.option(
    "--runtime", metavar="NAME", help=f'Runtime of the goal: {_RUNTIMES}, or "fastest"; by default ONNX Runtime.'
)
trust_option = click.option(
    "--trust",
    is_flag=True,
    help="Import the code that the recipe in the folder of a run names: it may do anything that you may do.",
)


def _import_codecs(_context: click.Context, _parameter: click.Parameter, names: tuple[str, ...]) -> tuple[str, ...]:
    """Import the user's codecs, so that files packed with them can be read."""
    from mirabelle.codecs.codec import CODECS

    for name in names:
        CODECS.member(name)
    return names


def codec_option(*, read: bool) -> Callable[[F], F]:
    """The option --codec. With `read`, the codecs are only imported, and the command does not get their names."""
    return click.option(
        "--codec",
        "codecs",
        multiple=True,
        metavar="NAME",
        callback=_import_codecs,
        expose_value=not read,
        help='Codec of your own used in the packed file: "package.module:Codec" or "./file.py:Codec".',
    )


def _remember(context: click.Context, parameter: click.Parameter, value: bool) -> None:  # noqa: FBT001 (click's own call)
    context.meta[str(parameter.name)] = value


verbose_option = click.option(
    "-v",
    "--verbose",
    is_flag=True,
    expose_value=False,
    callback=_remember,
    help="Print every event, and the full traceback of errors in your own code.",
)


# Options that every command accepts, even where they have no effect.
COMMON_OPTIONS = {
    "quiet": click.option("--quiet", is_flag=True, expose_value=False, callback=_remember, help=_QUIET),
    "verbose": verbose_option,
}


def verbose() -> bool:
    """Whether the current command was called with -v."""
    return bool(click.get_current_context().meta.get("verbose", False))

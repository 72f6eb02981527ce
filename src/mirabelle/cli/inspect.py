"""`mirabelle inspect`: a model layer by layer."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import json_option

if TYPE_CHECKING:
    from mirabelle.batch import Batch
    from mirabelle.inspection import Layer


@click.command("inspect")
@click.argument("model")
@click.option(
    "--input", "shape", help='Shape of one input without its batch axis, such as "1x28x28": counts MACs of a factory.'
)
@json_option
def command(model: str, shape: str | None, *, as_json: bool) -> int:
    """Print the layers of MODEL: shape, parameters, MACs, sparsity, bytes.

    MODEL is an .onnx or .mira file, the folder of a run, or a factory ("pkg.mod:function", "./file.py:function").

    \b
    Example:
      mirabelle inspect ./net.py:net --input 1x8x8
    """
    layers = _layers(model, shape)
    if as_json:
        click.echo(json.dumps([layer.to_data() for layer in layers], indent=2))
        return 0
    from mirabelle.cli.display import print_table

    lines = [
        (
            layer.name,
            layer.kind,
            "×".join(map(str, layer.shape)),
            f"{layer.parameters:,}",
            "–" if layer.macs is None else f"{layer.macs:,}",
            f"{layer.sparsity:.1%}",
            f"{layer.size_bytes:,}",
        )
        for layer in layers
    ]
    known = [layer.macs for layer in layers if layer.macs is not None]
    total = sum(layer.parameters for layer in layers)
    lines.append(
        (
            "total",
            "",
            "",
            f"{total:,}",
            f"{sum(known):,}" if known else "–",
            "",
            f"{sum(layer.size_bytes for layer in layers):,}",
        )
    )
    print_table(("layer", "kind", "shape", "parameters", "MACs", "sparsity", "bytes"), lines)
    if shape is None and not known and not _is_file(model):
        click.echo("\nMACs depend on the input: --input 3x224x224, say, counts them")
    return 0


def _is_file(model: str) -> bool:
    return Path(model).is_dir() or Path(model).suffix in (".onnx", ".mira")


def _layers(model: str, shape: str | None) -> list[Layer]:
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.errors import UserError
    from mirabelle.inspection import layers_of_module, layers_of_onnx

    if _is_file(model):
        return layers_of_onnx(onnx_of(model))
    from mirabelle.sources import model_from

    module = model_from(model, {}, Path())
    try:
        return layers_of_module(module, _example(shape))
    except RuntimeError as error:
        raise UserError(
            "E121", f"the model fails on inputs of {shape}: {error}".splitlines()[0], "give --input its shape"
        ) from error


def _example(shape: str | None) -> Batch | None:
    import torch

    from mirabelle.batch import Batch
    from mirabelle.cli.arguments import sizes_of

    sizes = sizes_of(shape)
    return None if sizes is None else Batch(torch.zeros(2, *sizes), torch.zeros(2))

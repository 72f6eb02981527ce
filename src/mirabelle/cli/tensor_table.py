"""The table of `mirabelle inspect --bits`."""

from __future__ import annotations

import json
from pathlib import Path

import click


def print_costs(name: str, *, as_json: bool) -> int:
    """Print what each tensor of a packed file takes; an .onnx file is packed first, a folder has its model.mira."""
    from mirabelle.artifact.foreign import pack_any
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.artifact.tensor_costs import costs_of
    from mirabelle.errors import UserError

    path = Path(name)
    path = path / "model.mira" if (path / "model.mira").is_file() else path
    if path.suffix not in (".mira", ".onnx") and not path.is_dir():
        raise UserError("E143", f"{name} is no packed file", "give a .mira or .onnx file, or the folder of a run")
    try:
        costs = costs_of(path.read_bytes() if path.suffix == ".mira" else pack_any(onnx_of(path)).packed)
    except OSError:
        onnx_of(path)  # says what is wrong with the path
        raise
    except UserError as error:
        raise error.at(str(path)) from None
    if as_json:
        click.echo(json.dumps(costs.to_data(), indent=2))
        return 0
    from mirabelle.cli.display import print_table

    lines: list[tuple[str, ...]] = [("graph", "", "", "", "", "", "", f"{costs.graph_bytes:,.1f}")]
    for one in costs.tensors:
        sizes = (one.size_bytes, one.entropy_bytes, one.huffman_bytes)
        bits = [f"{8 * size / one.elements if one.elements else 0.0:.2f}" for size in sizes]
        lines.append((one.name, one.kind, "×".join(map(str, one.shape)), one.codec, *bits, f"{one.size_bytes:,.1f}"))
    lines.append(("file", "", "", "", "", "", "", f"{costs.size_bytes:,}"))
    print_table(("tensor", "type", "shape", "codec", "bits", "entropy", "Huffman", "bytes"), lines)
    return 0

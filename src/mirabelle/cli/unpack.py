"""`mirabelle unpack`: restores the ONNX file from a packed file."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import codec_option, json_option


@click.command("unpack", short_help="Restore an ONNX file from a packed file.")
@click.argument("packed", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The .onnx file to write; by default in the folder of PACKED.")
@codec_option(read=True)
@json_option
def command(packed: Path, out: Path | None, *, as_json: bool) -> int:
    """Restore the ONNX file from PACKED, a .mira file.

    \b
    Example:
      mirabelle unpack runs/digits/model.mira --out digits.onnx
    """
    from mirabelle.artifact import PackedModel
    from mirabelle.cli.arguments import output_of
    from mirabelle.errors import UserError
    from mirabelle.run import files
    from mirabelle.sources.missing import missing

    if not packed.is_file():
        raise missing("file", str(packed), packed, "check the path")
    target = output_of(out or packed.with_suffix(".onnx"), ".onnx", packed)
    try:
        model = PackedModel(files.mapped(packed))
        files.write_parts(target, model.parts(), model.onnx_bytes)
    except UserError as error:
        raise error.at(str(packed)) from None
    length, size = model.onnx_bytes, packed.stat().st_size
    if as_json:
        click.echo(json.dumps({"onnx": str(target), "onnx_bytes": length, "packed_bytes": size}))
    else:
        click.echo(f"{target}: {length:,} bytes, from {size:,} ({length / size:.1f}× larger)")
    return 0

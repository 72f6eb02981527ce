"""`mirabelle pack`: compresses any ONNX file losslessly by entropy coding."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import codec_option, input_option, json_option


@click.command("pack", short_help="Compress an ONNX file losslessly.")
@click.argument("onnx", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(path_type=Path), help="The .mira file to write; by default in the folder of ONNX.")
@input_option
@codec_option(read=False)
@json_option
def command(onnx: Path, out: Path | None, shapes: tuple[str, ...], codecs: tuple[str, ...], *, as_json: bool) -> int:
    """Pack ONNX, any .onnx file, losslessly into a .mira file.

    Unpacking restores the file byte for byte if possible. Otherwise it gives the canonical form of the file: the same graph and
    tensors, without doc strings and exporter metadata. Equal outputs of both are checked before anything is written.

    \b
    Example:
      mirabelle pack runs/digits/model.onnx --out digits.mira
    """
    from mirabelle.artifact.foreign import pack_any
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.cli.arguments import given_of, output_of
    from mirabelle.codecs.codec import codecs_named
    from mirabelle.errors import UserError
    from mirabelle.numerics.gzip_length import EXACT_BYTES, gzip_length
    from mirabelle.run import files

    if onnx.suffix == ".mira":
        raise UserError("E143", f"{onnx} is already packed", "give an .onnx file")
    data = onnx_of(onnx)
    target = output_of(out or onnx.with_suffix(".mira"), ".mira", onnx)
    try:
        result = pack_any(data, given_of(shapes), codecs_named(codecs))
    except UserError as error:
        raise error.at(str(onnx)) from None
    for name, gate in result.gates.items():
        if not gate.passed:
            raise UserError(
                "E302", f"{onnx}: gate {name} failed: {gate.detail}", "nothing was written; use the .onnx file itself"
            )
    size = result.size_bytes
    files.write_parts(target, result.parts, size)
    zipped, about = gzip_length(data), "" if len(data) <= EXACT_BYTES else "about "
    if as_json:
        summary = {
            "packed": str(target),
            "onnx_bytes": len(data),
            "onnx_gzip_bytes": zipped,
            "onnx_gzip_estimated": bool(about),
            "packed_bytes": size,
            "ratio": len(data) / size,
            "as_it_was": result.as_it_was and len(data) == onnx.stat().st_size,
            "gates": {name: gate.to_data() for name, gate in result.gates.items()},
        }
        click.echo(json.dumps(summary, indent=2))
        return 0
    click.echo(f"{target}: {size:,} bytes, from {len(data):,} ({len(data) / size:.2f}× smaller; gzip: {about}{zipped:,})")
    click.echo(
        "unpacking restores the file byte for byte"
        if result.as_it_was and len(data) == onnx.stat().st_size
        else "unpacking gives one file, with the tensors that are in files beside it now, and equal outputs"
        if len(data) != onnx.stat().st_size
        else "unpacking gives the canonical form of the file: different bytes, bit-identical outputs"
    )
    return 0

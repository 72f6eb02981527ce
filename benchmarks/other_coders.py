"""The codes of quantized tensors by Mirabelle's coders, by DeepCABAC of NNCodec and by general compressors.

    pip install --no-deps nncodec zstandard          # nncodec is built from source and needs pybind11 for it
    python benchmarks/other_coders.py NAME=FILE [NAME=FILE …]

FILE is a `.mira` or `.onnx` file. Compared are only the integers of quantized weights, tensor by tensor, without the graph, the
values of codebooks and the scales: bytes, and seconds to decode all of them on one core. Codes of a codebook of multiples of one
step go to the others as these multiples, which DeepCABAC is made for; to general compressors as one byte each.
"""

from __future__ import annotations

import argparse
import gzip
import lzma
import time
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import zstandard
from nncodec.extensions import deepCABAC
from nncodec.nnc_core.hdsp.hdsp_tool import HDSP_OPTS_OFF

from conditions import write
from mirabelle import PackedModel, pack
from mirabelle.artifact.multiples import step_of
from mirabelle.artifact.tensor_costs import costs_of

Integers = npt.NDArray[np.int64]
_KINDS = ("int8", "uint8", "int4", "uint4", "int2", "uint2")
_UNARY = 10  # of DeepCABAC's binarization; its default
_LEAST = 64  # elements: smaller tensors of integers are no codes of weights


def levels_of(model: PackedModel, name: str) -> Integers:
    """The integers of a weight: codes, or the multiples of a step that they stand for, or of which its floats are made."""
    array = model.array(name)
    if array.dtype.kind == "f":
        found = step_of(array.astype("<f4").tobytes())
        assert found is not None, "it is coded as multiples"
        return found[1].reshape(array.shape)
    codes = array.astype(np.int64)
    values = name.removesuffix("codes") + "values"
    found = step_of(model.array(values).astype("<f4").tobytes()) if values in model.names else None
    return codes if found is None else found[1][codes]


def cabac(levels: Integers) -> tuple[int, float]:
    """(bytes, seconds to decode) by DeepCABAC, with the better of its two ways to choose parameters."""
    rows = np.ascontiguousarray(levels.reshape(len(levels), -1) if levels.ndim > 1 else levels[None], np.int32)
    skipped = np.array([int(not row.any()) for row in rows], np.int32)
    streams = []
    for optimized in (0, 1):
        encoder = deepCABAC.Encoder()
        encoder.initCtxModels(_UNARY, optimized)
        encoder.encodeLayer(rows, 0, 0, 1, 0, 1, skipped, *HDSP_OPTS_OFF(), 0, 0)
        streams.append(bytes(encoder.finish()))
    shortest = min(streams, key=len)
    decoder, out = deepCABAC.Decoder(), np.zeros_like(rows)
    begin = time.perf_counter()
    decoder.setStream(np.frombuffer(shortest, np.uint8).copy())
    decoder.initCtxModels(_UNARY)
    decoder.decodeLayer(out, 0, 0, 1, 0, *HDSP_OPTS_OFF(), 0, 0)
    seconds = time.perf_counter() - begin
    if not np.array_equal(out, rows):
        raise SystemExit("DeepCABAC did not give the same integers back")
    return len(shortest), seconds


def measured(path: Path) -> dict[str, Any]:
    """Bytes and seconds of each coder for all codes of a file; the seconds of Mirabelle are those of the whole file."""
    content = path.read_bytes()
    packed = content if path.suffix == ".mira" else pack(content)
    costs = {one.name: one for one in costs_of(packed).tensors}
    names = [one.name for one in costs.values() if one.elements >= _LEAST and (one.kind in _KINDS or "multiples" in one.codec)]
    begin = time.perf_counter()
    model = PackedModel(packed)  # small tensors are decoded here
    for name in names:
        model.array(name)
    seconds = time.perf_counter() - begin
    levels = [levels_of(model, name) for name in names]
    flat = b"".join(one.astype(np.int8).tobytes() for one in levels)
    others = [cabac(one) for one in levels]
    zstd = zstandard.ZstdCompressor(level=19).compress(flat)
    begin = time.perf_counter()
    zstandard.ZstdDecompressor().decompress(zstd)
    seconds_zstd = time.perf_counter() - begin
    return {
        "elements": sum(costs[name].elements for name in names),
        "entropy": sum(costs[name].entropy_bytes for name in names),
        "mirabelle": sum(costs[name].size_bytes for name in names), "mirabelle_seconds": seconds,
        "cabac": sum(size for size, _ in others), "cabac_seconds": sum(each for _, each in others),
        "zstd": len(zstd), "zstd_seconds": seconds_zstd,
        "gzip": len(gzip.compress(flat, 9)), "xz": len(lzma.compress(flat, preset=9 | lzma.PRESET_EXTREME)),
    }  # fmt: skip


def page(found: dict[str, dict[str, Any]]) -> str:
    lines = [
        "# The same codes by several coders",
        "",
        "Bytes; in brackets, million elements decoded in a second on one core.",
        "",
    ]
    lines += [
        "| network | codes | zero-order entropy | Mirabelle | DeepCABAC (NNCodec) | zstd -19 | gzip -9 | xz -9e |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for name, one in found.items():
        with_speed = [
            f"{one[key]:,.0f} ({one['elements'] / one[f'{key}_seconds'] / 1e6:.3g})" for key in ("mirabelle", "cabac", "zstd")
        ]
        cells = [name, f"{one['elements']:,}", f"{one['entropy']:,.0f}", *with_speed, f"{one['gzip']:,}", f"{one['xz']:,}"]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join([*lines, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="+", metavar="NAME=FILE")
    options = parser.parse_args()
    found = {name: measured(Path(path)) for name, _, path in (one.partition("=") for one in options.files)}
    write("other_coders", {"files": found}, page(found))


if __name__ == "__main__":
    main()

"""`quantize.RateDistortion` on real networks: bytes of the file, and accuracy in ONNX Runtime, without training and without labels.

    python benchmarks/bytes_post_training.py --data-dir DATA --run RUN --out FOLDER [--networks resnet56] [--sizes 10% 8%]

ResNet-20 and ResNet-56 on CIFAR-10 (all 10,000 test images) and MiniLM on SST-2 (dev set and 5,000 training sentences that its
fine-tuning has not seen; RUN is the folder of the run that has fine-tuned it). Sizes are those of the coded weights, as a share of
float32; bytes are those of the whole `.mira` file against the whole ONNX file in float32. Beside it, the same quantized ONNX file
compressed by general programs, and int8 (`quantize.Weights`, one scale for each row) packed and plain. Differences are paired, in
points. Nothing was chosen on these samples. Finished parts are kept under --out.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, artifact, quantize
from mirabelle.artifact.mira import pack
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.task.samples import Samples
from mirabelle.training.evaluation import evaluation
from speed_int8 import ACCURACY, MODELS
from speed_weights import judges

SIZES = {"resnet20": ("12%", "8%", "5.9%"), "resnet56": ("12%", "8%"), "minilm": ("12%", "8%")}
MOST_POINTS, LEAST, BEST = 0.3, 8.0, 12.0
SHARE_OF_INT8 = 0.75


def opened(name: str, options: argparse.Namespace) -> tuple[nn.Module, Task, list[Samples]]:
    if name != "minilm":
        model, task = MODELS[name](options.data_dir)
        return model, task, [task.test]
    network, task, sets = judges(options.run / "recipe.toml", options.data_dir, options.held_out)
    return artifact.load(network, options.run / "steps" / "0-baseline").eval(), task, list(sets.values())


def scores(file: bytes, task: Task, sets: list[Samples]) -> Any:
    session = default_runtime().load(file, threads=1)
    return np.concatenate([np.asarray(evaluation(session, samples, task, (ACCURACY,)).scores[0]) for samples in sets])


def measured(name: str, options: argparse.Namespace, kept: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(kept.read_text()) if kept.is_file() else {}
    sizes = [size for size in options.sizes or SIZES[name] if size not in found]
    if found and not sizes:
        return found
    model, task, sets = opened(name, options)
    dense = export(model, task.example())
    before = scores(dense, task, sets)
    if "float32" not in found:
        with tempfile.TemporaryDirectory() as folder:
            plain = export(quantize.Weights()(model, task, Run(folder)), task.example())
        found["float32"] = {"accuracy": ACCURACY.value(before), "samples": len(before), "bytes": len(dense)}
        found["int8"] = {"bytes": len(plain), "mira": len(pack(plain))} | differences(before, scores(plain, task, sets))
        kept.write_text(json.dumps(found, indent=2))
    for size in sizes:
        began = time.process_time()
        with tempfile.TemporaryDirectory() as folder:
            small = quantize.RateDistortion(size=size)(model, task, Run(folder))
        seconds = time.process_time() - began
        file = export(small, task.example())
        found[size] = {
            "mira": len(pack(file)), "gzip": len(gzip.compress(file, 9)), "xz": len(lzma.compress(file, preset=9 | lzma.PRESET_EXTREME)),
            "bytes": len(file), "cpu_seconds": seconds,
        } | differences(before, scores(file, task, sets))  # fmt: skip
        print(name, size, found[size], flush=True)
        kept.write_text(json.dumps(found, indent=2))
    return found


def differences(before: Any, after: Any) -> dict[str, float]:
    points, low, high = (100 * value for value in ACCURACY.difference(before, after))
    return {"accuracy": ACCURACY.value(after), "points": points, "low": low, "high": high}


def page(found: dict[str, dict[str, Any]]) -> str:
    lines = ["# Files of quantized networks without training and without labels", ""]
    for name, forms in found.items():
        whole, codes = forms["float32"]["bytes"], forms["int8"]
        lines += [
            f"## {name}",
            "",
            f"float32: {whole:,} bytes of ONNX, {forms['float32']['accuracy']:.2%} on {forms['float32']['samples']:,} samples.",
            "",
        ]
        lines += ["| form | .mira | smaller | of the int8 ONNX file | gzip -9 | xz -9e | accuracy | points (95 %) | CPU s |"]
        lines += ["|---|--:|--:|--:|--:|--:|--:|--:|--:|"]
        for form, one in forms.items():
            if form == "float32":
                continue
            others = [f"{one[key]:,}" if key in one else "–" for key in ("gzip", "xz")]
            lines.append(
                f"| {form if form == 'int8' else f'size = {form}'} | {one['mira']:,} | {whole / one['mira']:.1f}× | {one['mira'] / codes['bytes']:.2f} | "
                f"{' | '.join(others)} | {one['accuracy']:.2%} | {one['points']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f}) | "
                f"{one.get('cpu_seconds', 0):.0f} |"
            )
        within = [
            whole / one["mira"]
            for form, one in forms.items()
            if form not in {"float32", "int8"} and one["points"] >= -MOST_POINTS
        ]
        best = max(within, default=0.0)
        lines += ["", (
            f"Asked: {LEAST:.0f}× at {MOST_POINTS} points or less, then {BEST:.0f}×. The smallest file within {MOST_POINTS} points is {best:.1f}× smaller: "
            f"{'reached' if best >= LEAST else 'NOT reached'}{', the second as well' if best >= BEST else ''}."
        )]  # fmt: skip
        if name == "minilm":
            share = whole / best / codes["bytes"] if best else float("inf")
            lines += [
                "",
                f"Asked: {SHARE_OF_INT8} of the int8 file; {share:.2f}: {'reached' if share <= SHARE_OF_INT8 else 'NOT reached'}.",
            ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--run", type=Path, help="the folder of a run that has fine-tuned MiniLM on SST-2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--networks", nargs="+", default=list(SIZES), choices=list(SIZES))
    parser.add_argument("--sizes", nargs="+")
    parser.add_argument("--held-out", type=int, default=5000)
    options = parser.parse_args()
    if options.data_dir is None or ("minilm" in options.networks and options.run is None):
        raise SystemExit("name the data with --data-dir or MIRABELLE_DATA, and the run of MiniLM with --run")
    torch.set_num_threads(1)
    options.out.mkdir(parents=True, exist_ok=True)
    found = {name: measured(name, options, options.out / f"{name}.json") for name in options.networks}
    write("bytes_post_training", {"networks": found}, page(found))


if __name__ == "__main__":
    main()

"""`mirabelle pack` and `unpack` of a network with 100 million parameters, and how fast codes are decoded on one core.

    python benchmarks/coding_speed.py --out FOLDER [--mira FILE …]

The network has 24 layers of 2048 × 2048 random weights with a normal distribution: as float32, and as int8 with one scale for each
row. Every command runs in a process of its own; memory is its largest resident size, and beside it that of the same command on a
network of four weights, which is the program itself. FILEs, such as that of a quantized MiniLM, are decoded tensor by tensor.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from onnx import TensorProto, helper

from conditions import write
from mirabelle import PackedModel

LAYERS, WIDTH = 24, 2048
MOST_SECONDS = {"pack": 60, "unpack": 10}
LEAST_SPEED = 40e6  # elements a second
_CHILD = """
import sys, time
begin = time.perf_counter()
from mirabelle.cli.main import run
code = run(sys.argv[1:])
seconds = time.perf_counter() - begin
status = dict(line.split(":", 1) for line in open("/proc/self/status"))
print(code, seconds, int(status["VmHWM"].split()[0]) / 1024)
"""


def network(kind: str, layers: int, width: int) -> bytes:
    """An ONNX file of matrix products."""
    draw = np.random.default_rng(0)
    tensors, nodes, value = [], [], "x"
    for layer in range(layers):
        weight, name = 0.02 * draw.standard_normal((width, width), dtype=np.float32), f"layer{layer}.weight"
        if kind == "int8":
            scale = (np.abs(weight).max(1) / 127).astype(np.float32)
            codes = np.round(weight / scale[:, None]).astype(np.int8)
            tensors += [
                TensorProto(name=f"layer{layer}.codes", data_type=TensorProto.INT8, dims=codes.shape, raw_data=codes.tobytes()),
                TensorProto(
                    name=f"layer{layer}.scale", data_type=TensorProto.FLOAT, dims=scale.shape, raw_data=scale.tobytes()
                ),
            ]
            nodes.append(helper.make_node("DequantizeLinear", [f"layer{layer}.codes", f"layer{layer}.scale"], [name], axis=0))
        else:
            tensors.append(TensorProto(name=name, data_type=TensorProto.FLOAT, dims=weight.shape, raw_data=weight.tobytes()))
        nodes.append(helper.make_node("MatMul", [value, name], [f"layer{layer}"]))
        value = f"layer{layer}"
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width]) for name in ("x", value)]
    graph = helper.make_graph(nodes, "main", ends[:1], ends[1:], tensors)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return bytes(made.SerializeToString(deterministic=True))


def command(*arguments: str) -> tuple[float, float]:
    """(seconds, largest resident size in MB) of a command of Mirabelle."""
    done = subprocess.run([sys.executable, "-c", _CHILD, *arguments], capture_output=True, text=True, check=True)
    code, seconds, memory = done.stdout.split()[-3:]
    if code != "0":
        raise SystemExit(f"{arguments} ended with {code}: {done.stderr}")
    return float(seconds), float(memory)


def of_network(kind: str, folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, layers, width in (("small", 1, 2), ("whole", LAYERS, WIDTH)):
        onnx, packed, back = (folder / f"{name}-{kind}.{ending}" for ending in ("onnx", "mira", "back.onnx"))
        onnx.write_bytes(network(kind, layers, width))
        for what, arguments in (("pack", (onnx, packed)), ("unpack", (packed, back))):
            seconds, memory = command(what, str(arguments[0]), "--out", str(arguments[1]))
            found[f"{name} {what}"] = {"seconds": seconds, "memory": memory}
        if back.read_bytes() != onnx.read_bytes():
            raise SystemExit(f"{kind}: unpacking did not give the same file back")
        found |= {f"{name} onnx": onnx.stat().st_size, f"{name} mira": packed.stat().st_size}
        for path in (onnx, back):
            path.unlink()
    return found


def speed(packed: bytes) -> tuple[int, float]:
    """(elements, seconds to decode all tensors one by one) of an open file."""
    model = PackedModel(packed)
    begin = time.perf_counter()
    elements = sum(model.array(name).size for name in model.names)
    return elements, time.perf_counter() - begin


def page(networks: dict[str, dict[str, Any]], speeds: dict[str, tuple[int, float]], load: float) -> str:
    lines = ["# Packing and unpacking 100 million parameters", ""]
    lines += [
        "| weights | command | seconds | memory, MB | of the program itself | times the model | .onnx | .mira |",
        "|---|---|--:|--:|--:|--:|--:|--:|",
    ]
    said = []
    for kind, one in networks.items():
        for what, most in MOST_SECONDS.items():
            whole, small = one[f"whole {what}"], one[f"small {what}"]
            times = (whole["memory"] - small["memory"]) / (one["whole onnx"] / 1e6)
            lines.append(
                f"| {kind} | {what} | {whole['seconds']:.1f} | {whole['memory']:,.0f} | {small['memory']:,.0f} | {times:.2f} | "
                f"{one['whole onnx']:,} | {one['whole mira']:,} |"
            )
            met = "reached" if whole["seconds"] <= most and times <= 2 else "NOT reached"
            said.append(f"- {kind}, {what}: {most} s and twice the model asked: {met}.")
    lines += ["", "| file | elements | million decoded in a second |", "|---|--:|--:|"]
    for name, (elements, seconds) in speeds.items():
        lines.append(f"| {name} | {elements:,} | {elements / seconds / 1e6:.0f} |")
        said.append(
            f"- {name}: 40 million a second asked: {'reached' if elements / seconds >= LEAST_SPEED else 'NOT reached'}."
        )
    return "\n".join([*lines, "", *said, "", f"Load of the machine at the end: {load:.1f}.", ""])


def files(options: argparse.Namespace) -> Iterator[tuple[str, Path]]:
    yield "int8, 100 million", options.out / "whole-int8.mira"
    for path in options.mira:
        yield path.stem, path


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--mira", type=Path, nargs="*", default=[])
    options = parser.parse_args()
    os.environ["OMP_NUM_THREADS"] = "1"
    options.out.mkdir(parents=True, exist_ok=True)
    networks = {kind: of_network(kind, options.out) for kind in ("int8", "float32")}
    speeds = {name: speed(path.read_bytes()) for name, path in files(options)}
    load = os.getloadavg()[0]
    write("coding_speed", {"networks": networks, "speeds": speeds, "load": load}, page(networks, speeds, load))


if __name__ == "__main__":
    main()

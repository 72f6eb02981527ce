"""MiniLM on SST-2 in 8 bits, and cut as well: accuracy, and time against the file in floating point in ONNX Runtime and OpenVINO.

    python benchmarks/speed_minilm.py --run RUN --data-dir DATA [--cut RUN …] [--nncf ENVIRONMENT/bin/python] [--held-out 5000] [--quick]

RUN is the folder of a run that has fine-tuned MiniLM on SST-2 (steps/0-baseline). The forms are `quantize.Dynamic` with each
granularity, `quantize.Static`, and the quantizers of ONNX Runtime and NNCF on the same float file, the static ones with the same
300 sentences; --cut adds the results of runs that also cut the network, such as examples/sst2-minilm-fast.toml or benchmarks/sst2_minilm_faster.toml. Each file is judged in
ONNX Runtime, in batches of 32, on the dev set and on training sentences that the fine-tuning has not seen, with the paired difference
from the float file. Times are medians of interleaved calls with 32 tokens: CPU time with one thread, wall time with two.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, artifact, quantize
from mirabelle.numerics.statistics import Scores
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import Session, default_runtime, runtime_named
from mirabelle.task.batch import map_tensors
from mirabelle.task.samples import Samples
from mirabelle.training.evaluation import evaluation
from other_quantizers import by_nncf, by_onnxruntime, by_onnxruntime_dynamic
from speed_weights import ACCURACY, judges

FORMS: dict[str, Any] = {
    "Dynamic, auto": quantize.Dynamic(),
    "Dynamic, token": quantize.Dynamic(granularity="token"),
    "Dynamic, tensor": quantize.Dynamic(granularity="tensor"),
    "Static": quantize.Static(),
}
SETTINGS = [(1, 1), (32, 1), (1, 2), (32, 2)]  # (batch, threads)
MOST_POINTS, LEAST_FASTER = 0.3, 2.5
CUT_POINTS, CUT_FASTER = 1.0, 4.0
SECONDS = 8.0
SAMPLES, TOKENS = 300, 32
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
CUT = "cut,"


def files_of(model: nn.Module, task: Task, nncf: Path | None) -> dict[str, bytes]:
    """The ONNX file of each form."""
    found = {"float32": export(model, task.example())}
    for name, step in FORMS.items():
        with tempfile.TemporaryDirectory() as folder:
            found[name] = export(step(model, task, Run(Path(folder))), task.example())
        print(f"made {name}", flush=True)
    session = default_runtime().load(found["float32"], 1)
    samples = {name: np.asarray(array) for name, array in session.feed(task.train.drawn(SAMPLES, 0).inputs).items()}
    with tempfile.TemporaryDirectory() as folder:
        source = Path(folder) / "float32.onnx"
        source.write_bytes(found["float32"])
        found["ONNX Runtime, dynamic"] = by_onnxruntime_dynamic(source).read_bytes()
        found["ONNX Runtime, static"] = by_onnxruntime(source, samples, "QDQ", skip_symbolic_shape=True).read_bytes()
        if nncf is not None:
            found["NNCF"] = by_nncf(source, samples, nncf, "--transformer").read_bytes()
    return found


def accuracy(files: dict[str, bytes], task: Task, sets: dict[str, Samples]) -> dict[str, dict[str, Any]]:
    """Accuracy of each file on both sets together, and the paired difference from the first file in points."""
    found: dict[str, dict[str, Any]] = {}
    first: Scores | None = None
    for name, file in files.items():
        session = default_runtime().load(file, threads=1)
        parts = [evaluation(session, samples, task, (ACCURACY,)).scores[0] for samples in sets.values()]
        scores = torch.cat([torch.as_tensor(part) for part in parts]).numpy()
        first = scores if first is None else first
        difference, low, high = (100 * value for value in ACCURACY.difference(first, scores))
        found[name] = {
            "dev": ACCURACY.value(parts[0]), "together": ACCURACY.value(scores), "n": len(scores),
            "points": difference, "low": low, "high": high, "bytes": len(file), "operators": operators(file),
        }  # fmt: skip
        print(name, found[name], flush=True)
    return found


def operators(file: bytes) -> int:
    """The number of operators after ONNX Runtime's optimization."""
    import onnxruntime

    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.optimized_model_filepath, options.log_severity_level = str(Path(folder) / "optimized.onnx"), 3
        onnxruntime.InferenceSession(file, options, providers=["CPUExecutionProvider"])
        return sum(Counter(node.op_type for node in onnx.load(options.optimized_model_filepath).graph.node).values())


def times(
    files: dict[str, bytes], samples: Samples, runtime: str, batch: int, threads: int, *, seconds: float
) -> dict[str, dict[str, float]]:
    """Median milliseconds of each file, and the quartiles of its ratio to the first, call by call."""
    sessions: dict[str, Session] = {name: runtime_named(runtime).load(file, threads=threads) for name, file in files.items()}
    inputs = map_tensors(samples.inputs, lambda tensor: tensor[:batch, :TOKENS])
    clock = time.process_time if threads == 1 else time.perf_counter
    feeds = {name: session.feed(inputs) for name, session in sessions.items()}
    taken: dict[str, list[float]] = {name: [] for name in files}
    order = list(files)
    end = time.perf_counter() + seconds * len(files)
    while time.perf_counter() < end or len(taken[order[0]]) < 5:
        for name in order:
            sessions[name].run(feeds[name])  # warms the caches
            start = clock()
            sessions[name].run(feeds[name])
            taken[name].append(1e3 * (clock() - start))
        order.reverse()
    base = taken[next(iter(files))]
    found = {}
    for name, own in taken.items():
        ratios = [one / other for one, other in zip(own, base, strict=True)]
        low, middle, high = statistics.quantiles(ratios, n=4)
        found[name] = {"ms": statistics.median(own), "ratio": middle, "low": low, "high": high}
    return found


def page_of(judged: dict[str, dict[str, Any]], timed: dict[str, dict[str, dict[str, dict[str, float]]]], load: float) -> str:
    best = judged["Dynamic, auto"]
    own = timed["onnxruntime"]
    faster = 1 / own["batch 32, 1 thread"]["Dynamic, auto"]["ratio"]
    met = -best["points"] <= MOST_POINTS and faster >= LEAST_FASTER
    lines = [
        "# MiniLM on SST-2 in 8 bits", "",
        f"Accuracy on the dev set, and on it and held-out training sentences together ({best['n']:,}), with the 95 % interval of the paired",
        f"difference from float32; the number of operators is that after ONNX Runtime's optimization. Load of the machine: {load:.1f}.", "",
        "| form | MB | operators | dev | together | points |", "|---|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for name, one in judged.items():
        lost = "–" if name == "float32" else f"{one['points']:+.2f} ({one['low']:+.2f} to {one['high']:+.2f})"
        lines.append(
            f"| {name} | {one['bytes'] / 1e6:.1f} | {one['operators']} | {100 * one['dev']:.2f} % | {100 * one['together']:.2f} % | {lost} |"
        )
    for runtime, found in timed.items():
        heads = [f"{where} | {'CPU' if '1 thread' in where else 'wall'} ms" for where in found]
        lines += [
            "", f"In {RUNTIMES[runtime]}, {TOKENS} tokens: ratios to float32 with the quartiles of calls in alternation.", "",
            f"| form | {' | '.join(heads)} |", f"|---|{'--:|' * 2 * len(heads)}",
        ]  # fmt: skip
        for name in judged:
            cells = [
                f"{t[name]['ratio']:.3f} ({t[name]['low']:.3f} to {t[name]['high']:.3f}) | {t[name]['ms']:.1f}"
                for t in found.values()
            ]
            lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", (
        f"Asked: 8 bits at {MOST_POINTS} points or less and at least {LEAST_FASTER}× as fast at batch 32. Dynamic, auto: {best['points']:+.2f} points, "
        f"{faster:.2f}×: {'reached' if met else 'NOT reached'}."
    )]  # fmt: skip
    for name in (name for name in judged if name.startswith(CUT)):
        points, ratios = judged[name]["points"], [one[name]["ratio"] for one in own.values()]
        met = -points <= CUT_POINTS and max(ratios) <= 1 / CUT_FASTER
        lines += ["", (
            f"Asked of a cut network: {CUT_FASTER:.0f}× at {CUT_POINTS} points or less. {name}: {points:+.2f} points, {1 / max(ratios):.2f}× to "
            f"{1 / min(ratios):.2f}×: {'reached' if met else 'NOT reached'}."
        )]  # fmt: skip
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--cut", type=Path, action="append", default=[], help="the folder of a finished run")
    parser.add_argument("--nncf", type=Path, help="the interpreter of an environment with NNCF")
    parser.add_argument("--held-out", type=int, default=5000, metavar="SENTENCES")
    parser.add_argument("--quick", action="store_true", help="few sentences, short measurements; nothing is written")
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds sst2 with --data-dir or MIRABELLE_DATA")
    torch.set_num_threads(1)
    network, task, sets = judges(options.run / "recipe.toml", options.data_dir, 100 if options.quick else options.held_out)
    if options.quick:
        sets = {name: samples.drawn(100, 0) for name, samples in sets.items()}
    model = artifact.load(network, options.run / "steps" / "0-baseline").eval()
    files = files_of(model, task, options.nncf) | {
        f"{CUT} {folder.name}": (folder / "model.onnx").read_bytes() for folder in options.cut
    }
    judged = accuracy(files, task, sets)
    seconds = 1.0 if options.quick else SECONDS
    timed = {
        runtime: {
            f"batch {batch}, {threads} thread{'s' if threads > 1 else ''}": times(
                files, sets["dev"], runtime, batch, threads, seconds=seconds
            )
            for batch, threads in SETTINGS
        }
        for runtime in RUNTIMES
    }
    load = os.getloadavg()[0]
    page = page_of(judged, timed, load)
    if options.quick:
        print(page)
    else:
        write("speed_minilm", {"load": load, "accuracy": judged, "times": timed}, page)


if __name__ == "__main__":
    main()

"""Static int8: ours beside ONNX Runtime's own quantizer and NNCF, in ONNX Runtime and OpenVINO, on the same calibration images.

    python benchmarks/speed_int8.py --data-dir DATA [--nncf ENVIRONMENT/bin/python] [--quick] [MODEL …]

MODEL is resnet56, resnet20, resnet8 (MLPerf Tiny, from Keras) or lenet5 (trained here for two epochs); by default all. Every side gets
the same 300 training images, its usual settings, uint8 activations and int8 weights per channel. Times are CPU time of one thread, in
turns (A B … B A), so that other work on the machine changes all sides alike, and all files are loaded anew every five turns, in another
order, because the place of its memory makes a session faster or slower by some percent. What is told are medians of ratios to the float32
file and to ours, and the range of their middle half. Accuracy is that of the file in ONNX Runtime on all test images, with the paired
difference from ours; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import random
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import mirabelle
from conditions import ROOT, write
from mirabelle import Task, Training, quantize
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime, runtime_named
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.datasets.image_settings import BuiltInImages
from mirabelle.sources.datasets.mnist import mnist
from mirabelle.sources.models.by_name import model_from
from mirabelle.sources.zoo import lenet5, resnet20, resnet56
from mirabelle.task.metric import Metric
from mirabelle.training import fit
from other_quantizers import by_nncf, by_onnxruntime

SAMPLES, TURNS, OURS = 300, 5, "Mirabelle"
RUNTIMES = {"onnxruntime": "ONNX Runtime", "openvino": "OpenVINO"}
UNREADABLE = {("openvino", "ONNX Runtime, QOperator")}
ACCURACY = Metric.of("accuracy")
PIXELS = BuiltInImages(mean=(0.0,) * 3, deviation=(1 / 255,) * 3, layout="channels-last")


def resnet(kind: Callable[[], nn.Module], weights: str, data: Path) -> tuple[nn.Module, Task]:
    held = torch.load(data / "cifar10-resnets" / weights, map_location="cpu", weights_only=True)["state_dict"]
    model = kind()
    model.load_state_dict({name.removeprefix("module."): tensor for name, tensor in held.items()})
    return model.eval(), cifar10(data)


def resnet8(data: Path) -> tuple[nn.Module, Task]:
    model = model_from(str(data / "keras-resnet8" / "pretrainedResnet.h5"), {}, Path())
    return model.eval(), cifar10(data, PIXELS)


def lenet(data: Path) -> tuple[nn.Module, Task]:
    task = mnist(data)
    run = mirabelle.Run(ROOT / "runs" / "speed_int8" / "lenet5", seed=0)
    return fit(lenet5(), task, Training(epochs=2, lr=1e-3), run).eval(), task


MODELS: dict[str, Callable[[Path], tuple[nn.Module, Task]]] = {
    "resnet56": lambda data: resnet(resnet56, "resnet56-4bfd9763.th", data),
    "resnet20": lambda data: resnet(resnet20, "resnet20-12fca82f.th", data),
    "resnet8": resnet8,
    "lenet5": lenet,
}


def forms(model: nn.Module, task: Task, folder: Path, nncf: Path | None) -> Iterator[tuple[str, Path]]:
    """Name and file of each side; the float32 file first."""
    run = mirabelle.Run(folder / "run", seed=0)
    drawn = task.train.drawn(SAMPLES, run.seed_for("calibration"))
    images = np.concatenate([batch.inputs.numpy() for batch in drawn.batches(100)])
    source = folder / "float32.onnx"
    source.write_bytes(export(model, task.example()))
    yield "float32", source
    ours = folder / "mirabelle.onnx"
    ours.write_bytes(export(quantize.Static(samples=SAMPLES)(model, task, run), task.example()))
    yield OURS, ours
    feed = {default_runtime().load(source.read_bytes(), 1).input_names[0]: images}
    for form in ("QDQ", "QOperator"):
        yield f"ONNX Runtime, {form}", by_onnxruntime(source, feed, form)
    if nncf is not None:
        yield "NNCF", by_nncf(source, feed, nncf)


def times(files: dict[str, Path], images: np.ndarray[Any, Any], rounds: int, runtime: str) -> dict[str, list[float]]:
    """Milliseconds of CPU time of a call, of every file in every turn."""
    engine, order = runtime_named(runtime), random.Random(0)  # noqa: S311  # an order, not a secret
    calls = max(1, 20 // len(images))
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(-(-rounds // TURNS)):
        sessions = {name: engine.load(files[name].read_bytes(), 1) for name in order.sample(list(files), len(files))}
        for k in range(TURNS + 1):  # the first turn warms up
            for name in list(sessions)[:: 1 if k % 2 else -1]:
                feed = {sessions[name].input_names[0]: images}
                begin = time.process_time()
                for _ in range(calls):
                    sessions[name].run(feed)
                if k:
                    found[name].append((time.process_time() - begin) / calls * 1e3)
    return found


def ratio(own: list[float], other: list[float]) -> dict[str, float]:
    low, middle, high = np.percentile(np.array(own) / np.array(other), [25, 50, 75]).tolist()
    return {"ratio": middle, "low": low, "high": high}


def hits(one: Any, task: Task, most: int) -> np.ndarray[Any, Any]:
    """1 for each test image that a session gets right, else 0; on all, or on as many batches of them."""
    found = []
    for batch in itertools.islice(task.test.batches(500), most or None):
        scores = one.run({one.input_names[0]: batch.inputs.numpy()})[0]
        found.append((scores.argmax(1) == batch.targets.numpy()).astype(float))
    return np.concatenate(found)


def measured(model: nn.Module, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = dict(forms(model, task, Path(folder), options.nncf))
        found: dict[str, Any] = {name: {"bytes": file.stat().st_size} for name, file in files.items()}
        for runtime, size in itertools.product(RUNTIMES, (1, 32)):
            readable = {name: file for name, file in files.items() if (runtime, name) not in UNREADABLE}
            taken = times(readable, task.test.inputs[:size].numpy(), 10 if options.quick else 60, runtime)
            for name, own in taken.items():
                found[name].setdefault(runtime, {})[f"batch {size}"] = {
                    **ratio(own, taken["float32"]), "to ours": ratio(own, taken[OURS]), "milliseconds": float(np.median(own))
                }  # fmt: skip
        judge = default_runtime()
        right = {name: hits(judge.load(file.read_bytes(), 1), task, 2 if options.quick else 0) for name, file in files.items()}
        for name, own in right.items():
            difference, low, high = ACCURACY.difference(right[OURS], own)
            found[name] |= {"test accuracy": float(own.mean()), "points": [100 * one for one in (difference, low, high)]}
    return found


def page(results: dict[str, Any], load: float, images: str) -> str:
    lines = [
        "# Static int8 beside other quantizers\n",
        f"CPU time against float32 and against ours in the same runtime, one thread (median; quartiles in brackets); accuracy on {images} test "
        f"images in ONNX Runtime. The machine had a load of {load:.1f} while it was measured.\n",
    ]
    for runtime, title in RUNTIMES.items():
        lines += [f"## In {title}\n", "| model | form | batch 1 | to ours | batch 32 | to ours |", "|---|---|---|---|---|---|"]
        for model, name, one in each(results):
            if runtime not in one:
                lines.append(f"| {model} | {name} | cannot be loaded | | | |")
                continue
            timed = [
                part for size in (1, 32) for part in (one[runtime][f"batch {size}"], one[runtime][f"batch {size}"]["to ours"])
            ]
            shown = [f"{part['ratio']:.3f} ({part['low']:.3f}–{part['high']:.3f})" for part in timed]
            lines.append(f"| {model} | {name} | {' | '.join(shown)} |")
        lines.append("")
    lines += ["## Accuracy\n", "| model | form | accuracy | points more than ours |", "|---|---|---|---|"]
    for model, name, one in each(results):
        more = "{:+.2f} ({:+.2f} to {:+.2f})".format(*one["points"]) if name != OURS else ""
        lines.append(f"| {model} | {name} | {100 * one['test accuracy']:.2f} % | {more} |")
    return "\n".join(lines) + "\n"


def each(results: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """(model, form, what was measured) of every row."""
    return ((model, name, one) for model, sides in results.items() for name, one in sides.items())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=list(MODELS), metavar="MODEL")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--nncf", type=Path, help="the interpreter of an environment with NNCF")
    parser.add_argument("--quick", action="store_true", help="few rounds, and 1,000 test images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    results = {}
    for name in options.models:
        results[name] = measured(*MODELS[name](options.data_dir), options)
        print(name, results[name], file=sys.stderr)
        load = os.getloadavg()[0]
        write("speed_int8", {"load": load, "models": results}, page(results, load, "1,000" if options.quick else "all"))


if __name__ == "__main__":
    main()

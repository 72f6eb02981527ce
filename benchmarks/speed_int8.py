"""Static int8: ours beside ONNX Runtime's own quantizer and NNCF, in ONNX Runtime, on the same calibration images.

    python benchmarks/speed_int8.py --data-dir DATA [--nncf ENVIRONMENT/bin/python] [--quick] [MODEL …]

MODEL is resnet56, resnet20, resnet8 (MLPerf Tiny, from Keras) or lenet5 (trained here for two epochs); by default all. Every side gets
the same 300 training images, its usual settings, uint8 activations and int8 weights per channel. Times are CPU time of one thread, in
turns (A B … B A), so that other work on the machine changes all sides alike, and all files are loaded anew every five turns, because the
place of its memory makes a session faster or slower by some percent. What is told are medians of ratios to the float32 file and to ours,
and the range of their middle half. Accuracy is that of the file in ONNX Runtime on all test images, with the paired difference from
ours; nothing was chosen on them.
"""

from __future__ import annotations

import argparse
import itertools
import os
import subprocess
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
from mirabelle.runtime.onnxruntime import library
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.datasets.image_settings import BuiltInImages
from mirabelle.sources.datasets.mnist import mnist
from mirabelle.sources.models.by_name import model_from
from mirabelle.sources.zoo import lenet5, resnet20, resnet56
from mirabelle.task.metric import Metric
from mirabelle.training import fit

SAMPLES, TURNS, OURS = 300, 5, "Mirabelle"
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


def by_onnxruntime(source: Path, images: np.ndarray[Any, Any], folder: Path, form: str) -> Path:
    """The file of ONNX Runtime's own quantizer."""
    import onnx
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # has no types
        def __init__(self) -> None:
            self.left = iter(images)

        def get_next(self) -> dict[str, Any] | None:
            image = next(self.left, None)
            return None if image is None else {name: image[None]}

    name = onnx.load(source).graph.input[0].name
    prepared, target = folder / "prepared.onnx", folder / f"onnxruntime-{form}.onnx"
    quant_pre_process(str(source), str(prepared))
    quantize_static(
        str(prepared), str(target), Reader(), quant_format=QuantFormat[form],
        activation_type=QuantType.QUInt8, weight_type=QuantType.QInt8, per_channel=True,
    )  # fmt: skip
    return target


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
    for form in ("QDQ", "QOperator"):
        yield f"ONNX Runtime, {form}", by_onnxruntime(source, images, folder, form)
    if nncf is not None:
        np.save(folder / "images.npy", images)
        target = folder / "nncf.onnx"
        command = [nncf, ROOT / "benchmarks" / "nncf_int8.py", source, folder / "images.npy", target]
        subprocess.run([str(part) for part in command], check=True, capture_output=True, env={"PATH": os.environ["PATH"]})
        yield "NNCF", target


def session(file: Path) -> Any:
    options = library().SessionOptions()
    options.intra_op_num_threads = 1
    options.add_session_config_entry("session.force_spinning_stop", "1")
    return library().InferenceSession(str(file), options, providers=["CPUExecutionProvider"])


def times(files: dict[str, Path], images: np.ndarray[Any, Any], rounds: int) -> dict[str, list[float]]:
    """Milliseconds of CPU time of a call, of every file in every turn."""
    calls = max(1, 20 // len(images))
    found: dict[str, list[float]] = {name: [] for name in files}
    for _ in range(-(-rounds // TURNS)):
        sessions = {name: session(file) for name, file in files.items()}
        for k in range(TURNS + 1):  # the first turn warms up
            for name in list(sessions)[:: 1 if k % 2 else -1]:
                feed = {sessions[name].get_inputs()[0].name: images}
                begin = time.process_time()
                for _ in range(calls):
                    sessions[name].run(None, feed)
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
        scores = one.run(None, {one.get_inputs()[0].name: batch.inputs.numpy()})[0]
        found.append((scores.argmax(1) == batch.targets.numpy()).astype(float))
    return np.concatenate(found)


def measured(model: nn.Module, task: Task, options: argparse.Namespace) -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as folder:
        files = dict(forms(model, task, Path(folder), options.nncf))
        found: dict[str, Any] = {name: {"bytes": file.stat().st_size} for name, file in files.items()}
        for size in (1, 32):
            taken = times(files, task.test.inputs[:size].numpy(), 10 if options.quick else 60)
            for name, own in taken.items():
                found[name][f"batch {size}"] = {
                    **ratio(own, taken["float32"]), "to ours": ratio(own, taken[OURS]), "milliseconds": float(np.median(own))
                }  # fmt: skip
        right = {name: hits(session(file), task, 2 if options.quick else 0) for name, file in files.items()}
        for name, own in right.items():
            difference, low, high = ACCURACY.difference(right[OURS], own)
            found[name] |= {"test accuracy": float(own.mean()), "points": [100 * one for one in (difference, low, high)]}
    return found


def page(results: dict[str, Any], load: float, images: str) -> str:
    lines = [
        "# Static int8 in ONNX Runtime\n",
        f"CPU time against float32 and against ours, one thread (median; quartiles in brackets); accuracy on {images} test images. Other work on the "
        f"machine while it was measured: a load of {load:.1f}; read the ratios.\n",
        "| model | form | batch 1 | to ours | batch 32 | to ours | accuracy | points more than ours |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for model, sides in results.items():
        for name, one in sides.items():
            timed = [part for size in (1, 32) for part in (one[f"batch {size}"], one[f"batch {size}"]["to ours"])]
            shown = [f"{part['ratio']:.3f} ({part['low']:.3f}–{part['high']:.3f})" for part in timed]
            more = "{:+.2f} ({:+.2f} to {:+.2f})".format(*one["points"]) if name != OURS else ""
            lines.append(f"| {model} | {name} | {' | '.join(shown)} | {100 * one['test accuracy']:.2f} % | {more} |")
    return "\n".join(lines) + "\n"


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

"""Where low rank pays: rank -> accuracy -> milliseconds of LeNet-300-100 (MNIST), VGG-8 (CIFAR-10) and MiniLM (SST-2).

Each network is trained once (VGG-8 and LeNet-300-100 here; MiniLM comes from a run folder, --minilm). Then every layer that can be
smaller becomes factors of a fraction of its full rank, without and with a short training under the dense network as teacher. The
time of a call in ONNX Runtime is told as a ratio to the dense network: CPU time of the process, one thread, calls of both in
alternation, the median of the blocks' ratios and their quartiles, so that other work on the machine changes it little. Finished
parts are kept under --out, so the benchmark can be interrupted and goes on.

    python benchmarks/speed_low_rank.py --data-dir DATA --minilm RUN            # hours
    python benchmarks/speed_low_rank.py --data-dir DATA --quick                 # fewer images, steps and fractions
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditions import ROOT, write
from mirabelle import Run, Task, Training, factorize, load
from mirabelle.inspection.measure import count_parameters, multiply_accumulates
from mirabelle.model.architecture import replaced_module_names
from mirabelle.model.state import copied, load_tensors, tensors_of_module
from mirabelle.recipe.file import read_recipe
from mirabelle.run import files
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources.datasets.by_name import task_from
from mirabelle.sources.zoo import lenet300, vgg8
from mirabelle.task.batch import map_tensors
from mirabelle.training import evaluate, fit

BLOCKS, SECONDS = 15, 0.25  # of one ratio: blocks, and CPU seconds of each side in a block
QUICK_SECONDS, QUICK_TEST = 0.08, 2_000  # the same in the quick form, and its most test samples
BATCHES = (1, 32)

Built = tuple[nn.Module, Task]


def trained(make: Callable[[], nn.Module], data: str, training: Training, options: argparse.Namespace, samples: int) -> Built:
    """A network of the zoo, trained once."""
    torch.manual_seed(0)
    task, model = task_from(data, {}, data_folder=Path(options.data_dir), folder=Path()), make()
    if options.quick:
        task = task.replace(test=task.test.drawn(QUICK_TEST, seed=0))
        task = (
            task.replace(train=task.train.drawn(samples, seed=0), validation=task.validation.drawn(500, 0)) if samples else task
        )
    folder = options.out / f"{make.__name__}{'-quick' * options.quick}"
    known = folder / "dense.safetensors"
    if known.is_file():
        load_tensors(model, files.read_tensors(known)[0])
        return model.eval(), task
    model = fit(model, task, training, Run(folder)).eval()
    files.write_tensors(known, tensors_of_module(model))
    return model, task


def lenet(options: argparse.Namespace) -> Built:
    return trained(lenet300, "mnist", Training(epochs=4 if options.quick else 20, lr=2e-3, weight_decay=0.1), options, 0)


def vgg(options: argparse.Namespace) -> Built:
    training = Training(epochs=4 if options.quick else 20, batch_size=64, lr=2e-3, weight_decay=0.05, lr_schedule="one-cycle")
    return trained(vgg8, "cifar10", training, options, 4_000)


def minilm(options: argparse.Namespace) -> Built:
    """The network that a run has fine-tuned on SST-2, and its data."""
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    recipe = read_recipe(options.minilm / "recipe.toml")
    model = recipe.build_model()
    task = recipe.build_task(Path(options.data_dir))
    return load(model, options.minilm / "steps" / "0-baseline").eval(), task


@dataclass(frozen=True)
class Network:
    """A network of the benchmark.

    Args:
        made: makes it, trained, with its task.
        steps: name of a method -> fraction of the full rank -> step.
        fractions: of the full rank.
        training: steps of training under the dense network.
        quick: fractions and steps of the quick form.
        lr: learning rate of that training.
    """

    made: Callable[[argparse.Namespace], Built]
    steps: dict[str, Callable[[float], Any]]
    fractions: tuple[float, ...]
    training: int
    quick: tuple[tuple[float, ...], int]
    lr: float = 3e-4


NETWORKS = {
    "LeNet-300-100": Network(
        lenet,
        {
            "svd": lambda ratio: factorize.Linear(ratio=ratio, keep="smaller", multiple=4, exclude=("fc3",)),
            "whitened": lambda ratio: factorize.Linear(
                ratio=ratio, keep="smaller", multiple=4, method="whitened", samples=4096, exclude=("fc3",)
            ),
        },
        (0.5, 0.35, 0.25, 0.15, 0.1, 0.05),
        2000,
        ((0.5, 0.25, 0.1), 400),
    ),
    "VGG-8": Network(
        vgg,
        {
            "tucker": lambda ratio: factorize.Conv(ratio=ratio, keep="smaller"),
            "channels, whitened": lambda ratio: factorize.Conv(
                form="channels", ratio=ratio, keep="smaller", method="whitened", samples=128, exclude=("conv1",)
            ),
            "separated": lambda ratio: factorize.Conv(form="separated", ratio=ratio, keep="smaller"),
        },
        (0.75, 0.5, 0.35, 0.25),
        500,
        ((0.5, 0.25), 0),
    ),
    "MiniLM": Network(
        minilm,
        {
            "svd": lambda ratio: factorize.Linear(ratio=ratio, keep="smaller"),
            "whitened": lambda ratio: factorize.Linear(ratio=ratio, keep="smaller", method="whitened", samples=512),
        },
        (0.6, 0.45, 0.35, 0.25),
        400,
        ((0.5, 0.25), 0),
        5e-5,
    ),
}


def cpu_ratio(dense: nn.Module, other: nn.Module, task: Task, batch: int, each: float) -> dict[str, float]:
    """CPU time of a call over that of the dense network, and milliseconds of the dense one; one thread, blocks of `each` s."""
    inputs = task.example(max(batch, 2)).inputs
    sessions = [default_runtime().load(export(model, task.example()), 1) for model in (dense, other)]
    feeds = [session.feed(map_tensors(inputs, lambda tensor: tensor[:batch])) for session in sessions]
    calls = [0, 0]

    def seconds(place: int, count: int) -> float:
        begin = time.process_time()
        for _ in range(count):
            sessions[place].run(feeds[place])
        return time.process_time() - begin

    for place in (0, 1):
        calls[place] = max(1, round(each / max(seconds(place, 3) / 3, 1e-6)))
    blocks = []
    for block in range(BLOCKS):
        order = (0, 1) if block % 2 else (1, 0)
        found = {place: seconds(place, calls[place]) / calls[place] for place in order}
        blocks.append((found[1] / found[0], found[0]))
    ratios = sorted(ratio for ratio, _ in blocks)
    quarter = len(ratios) // 4
    return {
        "ratio": statistics.median(ratios), "low": ratios[quarter], "high": ratios[-1 - quarter],
        "dense_cpu_ms": 1000 * statistics.median(dense_seconds for _, dense_seconds in blocks),
    }  # fmt: skip


def points(name: str, options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One row for each method and fraction; finished ones are read."""
    network = NETWORKS[name]
    fractions, steps = network.quick if options.quick else (network.fractions, network.training)
    store = options.out / f"{name}{'-quick' * options.quick}.json"
    known: dict[str, Any] = json.loads(store.read_text()) if store.is_file() else {}
    if options.finished:
        yield from known.values()
        return
    dense, task = network.made(options)
    taught = task.with_teacher(dense)
    each = QUICK_SECONDS if options.quick else SECONDS
    for method, step_of in network.steps.items():
        for fraction in fractions:
            key = f"{method} {fraction}"
            if key not in known:
                run = Run(options.out / "steps" / f"{name}-{key}{'-quick' * options.quick}".replace(" ", "-"))
                small = step_of(fraction)(dense, task, run)
                row: dict[str, Any] = {
                    "method": method, "fraction": fraction, "factorized": len(replaced_module_names(small)),
                    "parameters": count_parameters(small)[0] / count_parameters(dense)[0],
                    "macs": multiply_accumulates(small, task.example()) / multiply_accumulates(dense, task.example()),
                    "times": {str(batch): cpu_ratio(dense, small, task, batch, each) for batch in BATCHES},
                    "dense_accuracy": evaluate(dense, task.test, task).mean(),
                    "accuracy": evaluate(small, task.test, task).mean(),
                }  # fmt: skip
                if steps:
                    training = Training(steps=steps, batch_size=64, lr=network.lr)
                    small = fit(copied(small), taught, training, run.within("trained"))
                row |= {
                    "steps": steps,
                    "accuracy_trained": evaluate(small, task.test, task).mean() if steps else row["accuracy"],
                }
                known[key] = row
                store.write_text(json.dumps(known, indent=2))
            yield known[key]


def table(name: str, rows: list[dict[str, Any]]) -> list[str]:
    first = rows[0]
    ms = {batch: first["times"][batch]["dense_cpu_ms"] for batch in first["times"]}
    lines = [
        f"## {name}", "",
        f"Dense: {100 * first['dense_accuracy']:.2f} %; {ms['1']:.3f} ms at batch 1, {ms['32']:.3f} ms at batch 32 (CPU time of a call).",
        f"Trained: {first['steps']} steps of 64 under the dense network{'' if first['steps'] else ' (none: as factorized)'}.", "",
        "| form | rank / full | layers | MACs | accuracy | trained | time, batch 1 (quartiles) | time, batch 32 (quartiles) |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]  # fmt: skip
    for row in rows:
        one, many = row["times"]["1"], row["times"]["32"]
        lines.append(
            f"| {row['method']} | {row['fraction']} | {row['factorized']} | {row['macs']:.2f} | {100 * row['accuracy']:.2f} % | "
            f"{100 * row['accuracy_trained']:.2f} % | {one['ratio']:.2f} ({one['low']:.2f}–{one['high']:.2f}) | "
            f"{many['ratio']:.2f} ({many['low']:.2f}–{many['high']:.2f}) |"
        )
    return [*lines, "", *verdict(rows), ""]


def verdict(rows: list[dict[str, Any]]) -> Iterator[str]:
    """In words: the fastest point of each batch size that loses at most a point, if it is faster at all."""
    for batch in ("1", "32"):
        kept = [row for row in rows if row["accuracy_trained"] >= row["dense_accuracy"] - 0.01]
        best = min(kept, key=lambda row: row["times"][batch]["ratio"], default=None)
        if best is None or best["times"][batch]["high"] >= 1:
            yield f"- Batch {batch}: it does not pay: no point measured here that loses at most 1 point is faster."
        else:
            yield (
                f"- Batch {batch}: it pays: {best['method']} at {best['fraction']} of the full rank takes "
                f"{best['times'][batch]['ratio']:.2f} of the time, {100 * (best['dense_accuracy'] - best['accuracy_trained']):.2f} points lost."
            )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--networks", nargs="+", choices=list(NETWORKS), default=list(NETWORKS))
    parser.add_argument("--minilm", type=Path, help="run folder of MiniLM fine-tuned on SST-2; without it MiniLM is left out")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--finished", action="store_true", help="write the page of the points that are finished")
    parser.add_argument("--note", default="", help="a sentence for the page, such as how MiniLM was trained")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark-low-rank")
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder of the data sets with --data-dir or MIRABELLE_DATA")
    options.out.mkdir(parents=True, exist_ok=True)
    names = [name for name in options.networks if name != "MiniLM" or options.minilm or options.finished]
    found = {name: rows for name in names if (rows := list(points(name, options)))}
    page = "\n".join(
        [
            "# Low rank: rank, accuracy, time", "",
            "Accuracy on the test set. Times are ratios to the dense network in ONNX Runtime, one thread: CPU time of calls in alternation,",
            f"median of {BLOCKS} blocks with their quartiles; below 1 is faster. Load of the machine while this page was written: "
            f"{os.getloadavg()[0]:.1f} on {os.cpu_count()} cores{'; the quick form' * options.quick}.",
            "The quick form trains VGG-8 on 4,000 images for 4 epochs and judges on at most 2,000 samples." * options.quick, options.note, "",
            *[line for name, rows in found.items() for line in table(name, rows)],
        ]
    )  # fmt: skip
    write("speed_low_rank" + "_quick" * options.quick, {"quick": options.quick, "load": os.getloadavg(), "rows": found}, page)


if __name__ == "__main__":
    main()

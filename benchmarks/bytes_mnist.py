"""The smallest files on MNIST: bytes of the one `.mira` file, everything counted, and error in ONNX Runtime.

    python benchmarks/bytes_mnist.py --data-dir DATA --out FOLDER [--seeds 3] [--networks LeNet-5] [--finished]

Each network is trained by `mirabelle run` with its recipe, once for each seed; runs are resumable, and finished ones are not repeated.
The teacher is a LeNet-5 with dropout, trained on the same images, one for each seed, and used for all networks; training images are
shifted by up to one pixel, but for the four convolutions, whose teacher saw shifted images.
Settings were chosen on the validation images (5,000 of the training set). Judged is `model.onnx` as it comes out of `model.mira`, on the
10,000 test images. Beside it, the same file by general compressors.
"""

from __future__ import annotations

import argparse
import gzip
import json
import lzma
import os
import re
import statistics
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from conditions import ROOT, write
from mirabelle import pack, unpack
from mirabelle.runtime.runtime import default_runtime
from mirabelle.sources import task_from
from mirabelle.task.metric import Metric
from mirabelle.training.evaluation import evaluation

ACCURACY = Metric.of("accuracy")
SEEDS = 3
KEPT = "Finished runs are kept, so a row may be of an earlier commit than the page: the history of this file tells which."


@dataclass(frozen=True)
class Asked:
    """A recipe, and what it is to reach: bytes and error in percent, first and if possible, and the best known."""

    recipe: str
    reach: tuple[int, float]
    best: tuple[int, float] | None
    anchor: str


NETWORKS = {
    "LeNet-300-100": Asked(
        "benchmarks/mnist_lenet300_smallest.toml", (6_000, 1.80), (4_000, 1.80), "8.56 kB at 1.9 % (Oktay 2020); Deep Compression 27 kB at 1.58 %"
    ),
    "LeNet-5": Asked(
        "examples/mnist-smallest.toml", (2_500, 0.95), (1_400, 0.90), "3.03 kB at 0.69 %, 1.52 kB at 0.96 % (MIRACLE 2019)"
    ),
    "four convolutions": Asked(
        "benchmarks/mnist_kilobyte.toml", (1_024, 1.00), (512, 1.00), "697 parameters in float32, chosen on the test set"
    ),
    "LeNet-300-100, Deep Compression": Asked(
        "examples/deep-compression.toml", (1_067_181 // 40, 1.60), None, "27 kB at 1.58 % (Han 2016), 40 times smaller"
    ),
    "LeNet-5, Deep Compression": Asked(
        "benchmarks/deep_compression_lenet5.toml", (1_725_666 // 39, 0.80), None, "44 kB at 0.74 % (Han 2016), 39 times smaller"
    ),
}  # fmt: skip


def folder_of(name: str, seed: int, options: argparse.Namespace) -> Path:
    out: Path = options.out
    return out / f"{name.replace(', ', '-').replace(' ', '-')}-{seed}"


def trained(name: str, seed: int, options: argparse.Namespace) -> Path:
    """The folder of the finished run."""
    folder = folder_of(name, seed, options)
    if (folder / "report.json").is_file() or options.finished:
        return folder
    recipe = folder.with_suffix(".toml")
    if not recipe.is_file():  # so that a run goes on with the recipe with which it began
        given = ROOT / NETWORKS[name].recipe
        text = given.read_text("utf-8").replace('from = "./', f'from = "{given.parent}/')
        teachers = sorted(options.out.glob(f"*-{seed}/steps/0-teacher/model.safetensors"))
        if teachers:
            text = re.sub(
                r"(\[teacher\]\n(?:.*\n)*?)train = .*\n", rf'\g<1>weights = "{teachers[0].resolve()}"\n', text, count=1
            )
        recipe.write_text(text, "utf-8")
    command = [
        "mirabelle", "run", str(recipe), "--data-dir", str(options.data_dir), "--seed", str(seed), "--out", str(folder),
    ]  # fmt: skip
    done = subprocess.run(command, check=False)
    if done.returncode not in {0, 4}:  # 4: a goal was missed
        raise SystemExit(f"{name} with seed {seed} ended with {done.returncode}")
    return folder


def judged(folder: Path, test: Any, task: Any) -> dict[str, Any]:
    """Error and bytes of a finished run, kept in its folder."""
    kept = folder / "judged.json"
    packed = pack((folder / "model.onnx").read_bytes())  # as Mirabelle packs the model today
    if kept.is_file():
        found: dict[str, Any] = json.loads(kept.read_text())
        if found["bytes"] == len(packed):
            return found
    file = unpack(packed)
    scores = np.asarray(evaluation(default_runtime().load(file, threads=1), test, task, (ACCURACY,)).scores[0])
    report = json.loads((folder / "report.json").read_text())
    found = {
        "bytes": len(packed), "error": 100 * (1 - ACCURACY.value(scores)), "onnx": len(file), "gzip": len(gzip.compress(file, 9)),
        "xz": len(lzma.compress(file, preset=9 | lzma.PRESET_EXTREME)), "minutes": sum(one["seconds"] for one in report["trail"]) / 60,
    }  # fmt: skip
    kept.write_text(json.dumps(found))
    return found


def page(found: dict[str, dict[int, dict[str, Any]]]) -> str:
    lines = ["# The smallest files on MNIST", "", f"Means over the seeds, and the single runs behind them. {KEPT}", ""]
    lines += [
        "| network | seeds | bytes | error, % | gzip -9 of the same ONNX file | xz -9e | minutes | best known |",
        "|---|--:|--:|--:|--:|--:|--:|---|",
    ]
    said = []
    for name, runs in found.items():
        asked, mean = (
            NETWORKS[name],
            {key: statistics.mean(one[key] for one in runs.values()) for key in ("bytes", "error", "gzip", "xz", "minutes")},
        )
        each = ", ".join(f"{one['bytes']:,} B at {one['error']:.2f}" for one in runs.values())
        lines.append(
            f"| {name} | {len(runs)} | {mean['bytes']:,.0f} ({each}) | {mean['error']:.2f} | {mean['gzip']:,.0f} | {mean['xz']:,.0f} | "
            f"{mean['minutes']:.0f} | {asked.anchor} |"
        )
        for one, what in ((asked.reach, "Asked"), (asked.best, "Then")):
            if one is None:
                continue
            size, error = one
            met = mean["bytes"] <= size and mean["error"] <= error
            reached = (
                "NOT reached"
                if not met
                else "reached"
                if len(runs) >= SEEDS
                else f"so far met, by {len(runs)} of {SEEDS} seeds"
            )
            said.append(f"- {name}. {what}: {size:,} bytes at {error:.2f} %: {reached}.")
    return "\n".join([*lines, "", *said, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--finished", action="store_true", help="write the page from the runs that are finished")
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds mnist with --data-dir or MIRABELLE_DATA")
    options.out.mkdir(parents=True, exist_ok=True)
    for seed in range(options.seeds):
        for name in options.networks:
            folder = trained(name, seed, options)
            print(name, seed, folder, file=sys.stderr, flush=True)
    task = task_from("mnist", {}, data_folder=Path(options.data_dir), folder=Path())
    found = {
        name: {
            seed: judged(folder, task.test, task)
            for seed in range(options.seeds)
            if ((folder := folder_of(name, seed, options)) / "report.json").is_file()
        }
        for name in NETWORKS
    }
    found = {name: runs for name, runs in found.items() if runs}
    write("bytes_mnist", {"networks": found}, page(found))


if __name__ == "__main__":
    main()

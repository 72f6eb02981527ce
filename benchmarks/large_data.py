"""Folders of images that do not fit into memory: peak memory, and epochs from the decoded file against the same data in memory.

    python benchmarks/large_data.py --out FOLDER [--images 50000] [--compared 10000]

memory    a folder of JPEG files of 224 × 224 pixels, made here: a run (task, one epoch, integers, gates, report) in a process of its own;
          its peak memory above that of the same run on 200 images.
epochs    the same training on fewer images, in memory, from the file, and decoded at every read, from the folder and from tar shards
          (`cache = false`), one after the other, three times each; the first reading, in which the images are decoded, is reported.

The network is small, so that reading counts. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import io
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import nn

from conditions import write
from mirabelle import Run, Training, compress, quantize
from mirabelle.sources import task_from
from mirabelle.sources.datasets import images
from mirabelle.training import fit

FEW, SIZE, CLASSES, REPEATS = 200, 224, 10, 3
IN_A_SHARD = 1000
MEGA, GIGA = 1e6, 1e9


def made(folder: Path, count: int) -> Path:
    """A folder with so many images in classes, unless it is there: each a gradient of the colour of its class with noise."""
    place = folder / f"images-{count}"
    if (place / "whole").is_file():
        return place / "data"
    draw = np.random.default_rng(0)
    noise = draw.integers(0, 40, (64, SIZE, SIZE, 3), dtype=np.uint8)
    ramp = np.linspace(0, 100, SIZE, dtype=np.uint8)[:, None, None]
    for k in range(count):
        label = k % CLASSES
        color = np.array([label * 11, 110 - label * 11, (label * 37) % 110], np.uint8)
        path = place / "data" / f"class-{label}" / f"{k}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise[k % 64] + ramp + color).save(path, quality=80)
    (place / "whole").touch()
    return place / "data"


def net() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(3, 8, 7, stride=4, padding=3), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2, padding=1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(16, CLASSES),
    )  # fmt: skip


def one_run(folder: Path) -> None:
    """A run on a folder of images, in this process; prints its peak memory and seconds."""
    begin = time.perf_counter()
    task = task_from("./data", {"size": [SIZE, SIZE]}, data_folder=None, folder=folder.parent)
    read = time.perf_counter() - begin
    with tempfile.TemporaryDirectory() as out:
        training = Training(epochs=1, batch_size=64, precision="float32")
        compress(net(), task, [quantize.Static(samples=100)], {"max_drop": "100pt", "latency": "any"}, out, baseline=training)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    print(json.dumps({"peak": peak, "read": read, "whole": time.perf_counter() - begin, "kind": type(task.train).__name__}))


def in_a_process(folder: Path, cache: Path) -> dict[str, Any]:
    environment = {**os.environ, "MIRABELLE_CACHE": str(cache)}
    command = [sys.executable, __file__, "--run", str(folder), "--out", str(cache)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    return dict(json.loads(done.stdout.splitlines()[-1]))


def in_shards(images: Path) -> Path:
    """The same images in tar files of 1,000 samples, with their classes, unless they are there."""
    folder = images.parent / "shards"
    if (images.parent / "shards-whole").is_file():
        return folder
    folder.mkdir(exist_ok=True)
    files = sorted(images.rglob("*.jpg"), key=lambda path: int(path.stem))
    for start in range(0, len(files), IN_A_SHARD):
        with tarfile.open(folder / f"train-{start // IN_A_SHARD:06}.tar", "w") as shard:
            for path in files[start : start + IN_A_SHARD]:
                shard.add(path, path.name)
                label = tarfile.TarInfo(f"{path.stem}.cls")
                label.size = 1
                shard.addfile(label, io.BytesIO(path.parent.name[-1].encode()))
    (images.parent / "shards-whole").touch()
    return folder


def epochs(folder: Path, cache: Path) -> dict[str, Any]:
    """Seconds of an epoch in memory, from the file and without it; the first reading decodes, or learns mean and deviation."""
    os.environ["MIRABELLE_CACHE"] = str(cache)
    in_shards(folder)
    ways = {"memory": ("./data", True), "file": ("./data", True), "files": ("./data", False), "shards": ("./shards", False)}
    limit, found = images.IN_MEMORY, {name: list[float]() for name in ways}
    tasks, reading = {}, {}
    for name, (data, kept) in ways.items():
        images.IN_MEMORY = 1 << 62 if name == "memory" else 0
        begin = time.perf_counter()
        arguments = {"size": [SIZE, SIZE], "cache": kept}
        tasks[name] = task_from(data, arguments, data_folder=None, folder=folder.parent)
        reading[name] = time.perf_counter() - begin
    images.IN_MEMORY = limit
    weights: dict[str, set[float]] = {"./data": set(), "./shards": set()}
    for _ in range(REPEATS):
        for name, task in tasks.items():
            with tempfile.TemporaryDirectory() as out:
                run = Run(out, seed=0)
                run.journal.decisions["execution"] = "float32"
                task = task.replace(validation=task.validation.drawn(50, 0))  # noqa: PLW2901 (the epoch alone counts)
                begin = time.perf_counter()
                model = fit(net(), task, Training(epochs=1, batch_size=64, precision="float32"), run)
                found[name].append(time.perf_counter() - begin)
                weights[ways[name][0]].add(sum(parameter.detach().double().sum().item() for parameter in model.parameters()))
    assert all(len(own) == 1 for own in weights.values()), "all ways give the same bits"
    seconds = {name: statistics.median(own) for name, own in found.items()}
    return {"seconds": seconds, "reading": reading, "ratio": seconds["file"] / seconds["memory"], "all": found}


def page(found: dict[str, Any]) -> str:
    few, many, times = found["few"], found["many"], found["epochs"]
    rows = [
        f"| peak memory of a run on {found['images']:,} JPEG files of {SIZE} × {SIZE}, above that of {FEW} | ≤ 1.5 GB | **{(many['peak'] - few['peak']) / GIGA:.2f} GB** (peak {many['peak'] / GIGA:.2f} GB) |",
        f"| seconds of that run, with decoding | – | {many['whole']:.0f} ({many['read']:.0f} of them decode) |",
        f"| an epoch of {found['compared']:,} images from the decoded file, against memory | ≤ 1.10 | **{times['ratio']:.3f}** ({times['seconds']['file']:.1f} and {times['seconds']['memory']:.1f} s; the same weights to the bit) |",
        f"| the same epoch with images decoded at every read: a folder, tar shards | – | {times['seconds']['files']:.1f} s, {times['seconds']['shards']:.1f} s |",
        f"| reading {found['compared']:,} images for the first time: file, memory | – | {times['reading']['file']:.0f} s, {times['reading']['memory']:.0f} s |",
    ]
    return "\n".join(["# Data that do not fit into memory", "", "| | asked | reached |", "|---|---|---|", *rows, ""])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/large_data"))
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--compared", type=int, default=10_000)
    parser.add_argument("--run", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        one_run(options.run)
        return
    cache = options.out / "cache"
    found: dict[str, Any] = {"images": options.images, "compared": options.compared}
    for name, count in (("few", FEW), ("many", options.images)):
        found[name] = in_a_process(made(options.out, count), cache)
        print(name, found[name], flush=True)
    found["epochs"] = epochs(made(options.out, options.compared), cache)
    write("large_data", found, page(found))
    shutil.rmtree(cache)


if __name__ == "__main__":
    main()

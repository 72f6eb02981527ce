"""Whether the intervals of timings hold what repetitions give: `mirabelle bench` on five pairs of files, twenty times each.

Every repetition is a process of its own, and the pairs take turns, so that repetitions of one pair are minutes apart. It is counted

- how many of the intervals of the ratio hold the median ratio of all repetitions of the pair,
- how many of all (interval, other repetition) hold the ratio that the other repetition told.

A repetition that is done is not done again, so that a run that was stopped goes on: work is kept in --work.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from itertools import permutations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from conditions import write
from mirabelle import Run, Task, prune, quantize
from mirabelle.runtime.export import export
from mirabelle.sources.zoo import digits_cnn, digits_mlp, lenet5, resnet20, vgg6
from mirabelle.task.batch import Batch

Step = Callable[[nn.Module, Task, Run], nn.Module]
MIRABELLE = str(Path(sys.executable).parent / "mirabelle")


def pairs() -> Iterator[tuple[str, nn.Module, tuple[int, ...], Step]]:
    """Names, networks, shapes of an image, and the step that makes the second file from the first."""
    yield "digits CNN, static int8", digits_cnn(), (1, 8, 8), quantize.Static()
    yield "LeNet-5, half of its channels", lenet5(), (1, 28, 28), prune.Channels(sparsity=0.5)
    yield "VGG of six layers, static int8", vgg6(), (1, 28, 28), quantize.Static()
    yield "ResNet-20, half of its channels", resnet20(), (3, 32, 32), prune.Channels(sparsity=0.5)
    yield "two layers, dynamic int8", digits_mlp(hidden=256), (1, 8, 8), quantize.Dynamic()


def made(work: Path) -> dict[str, tuple[Path, Path]]:
    """The files of each pair, written once."""
    found = {}
    for number, (name, model, shape, step) in enumerate(pairs()):
        files = (work / f"{number}-first.onnx", work / f"{number}-second.onnx")
        found[name] = files
        if not files[1].is_file():
            torch.manual_seed(number)
            inputs, targets = torch.randn(64, *shape), torch.arange(64) % 10
            task = Task(train=(inputs, targets), test=(inputs, targets))
            smaller = step(model.eval(), task, Run(work / f"run-{number}"))
            example = Batch(inputs[:2], targets[:2])
            for file, one in zip(files, (model, smaller), strict=True):
                file.write_bytes(export(one.eval(), example))
    return found


def repetition(files: tuple[Path, Path], seconds: float, threads: int) -> dict[str, Any]:
    """What one process of `mirabelle bench` tells: ratio with its interval, latencies, and the seconds that it took."""
    command = [MIRABELLE, "bench", *map(str, files)]
    command += ["--seconds", str(seconds), "--threads", str(threads), "--json"]
    begin = time.perf_counter()
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    first, second = json.loads(done.stdout)["models"]
    return {
        "took": time.perf_counter() - begin,
        "ratio": [second["ratio"][key] for key in ("median", "low", "high")],
        "first_ms": first["median_ms"],
        "second_ms": second["median_ms"],
    }


def coverage(told: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """(share of intervals that hold the median of all, share of ordered pairs whose first interval holds the second value).

    Args:
        told: value, low, high of each repetition, (repetitions, 3).
    """
    values, low, high = told.T
    middle = np.median(values)
    held = [low[i] <= values[j] <= high[i] for i, j in permutations(range(len(told)), 2)]
    return float(np.mean((low <= middle) & (middle <= high))), float(np.mean(held))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=20)
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--work", type=Path, default=Path("runs/interval_coverage"))
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    log = options.work / "repetitions.jsonl"
    done = [json.loads(line) for line in log.read_text().splitlines()] if log.is_file() else []
    files = made(options.work)
    for number in range(options.repeats):
        for name in files:
            if sum(one["pair"] == name for one in done) <= number:
                one = {"pair": name, **repetition(files[name], options.seconds, options.threads)}
                done.append(one)
                with log.open("a") as lines:
                    lines.write(json.dumps(one) + "\n")
                print(name, one["ratio"], f"{one['took']:.1f} s", flush=True)
    lines, numbers = [], {}
    for name in files:
        of_pair = [one for one in done if one["pair"] == name]
        told = np.array([one["ratio"] for one in of_pair])
        of_median, of_others = coverage(told)
        first, second = (np.array([one[key] for one in of_pair]) for key in ("first_ms", "second_ms"))
        numbers[name] = {"told": told.tolist(), "first_ms": first.tolist(), "of_median": of_median, "of_others": of_others}
        numbers[name]["ratio_is_that_of_the_latencies"] = bool(np.allclose(second / first, told[:, 0]))
        lines.append(
            f"| {name} | {np.median(told[:, 0]):.3f} | {told[:, 0].min():.3f} – {told[:, 0].max():.3f} "
            f"| {np.median((told[:, 2] - told[:, 1]) / told[:, 0] / 2):.1%} | {of_median:.0%} | {of_others:.0%} "
            f"| {first.min():.3f} – {first.max():.3f} |"
        )
    took = np.median([one["took"] for one in done])
    page = "\n".join(
        ["# What intervals of timings hold", "", f"{options.repeats} processes for each pair, in turn, {took:.1f} s each (median).", "",
         "| pair | ratio | of repetitions | ± of an interval | hold the median of all | hold another repetition | ms before, of repetitions |",
         "|---|--:|--:|--:|--:|--:|--:|", *lines]
    )  # fmt: skip
    write("interval_coverage", numbers, page + "\n")


if __name__ == "__main__":
    main()

"""What the settings of `quantize.Static` are worth: accuracy of ResNet-20 and ResNet-56 on CIFAR-10 in 8 and 4 bits, without training.

    python benchmarks/static_settings.py --data-dir DATA [--images 10000]

Every form gets the same 1,000 training images, of which adaptive rounding reads 256. Judged in torch, which computes the values of the
codes, on all test images; nothing was chosen on them. Differences are paired, in points to the network in floating point.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch

from conditions import write
from mirabelle import Run, quantize
from mirabelle.training.evaluation import evaluation
from speed_int8 import ACCURACY, MODELS

FORMS: dict[str, dict[str, Any]] = {
    "8 bits": {},
    "8 bits, mse ranges": {"calibration": "mse"},
    "8 bits, symmetric": {"symmetric": True},
    "8 bits, one scale per weight": {"per_channel": False},
    "8 bits, one scale, equalized": {"per_channel": False, "equalize": True},
    "8 bits, one scale, equalized, bias corrected": {"per_channel": False, "equalize": True, "correct_bias": True},
    "8 bits, max_damage = 0.005": {"max_damage": 0.005},
    "4 bits": {"weight_bits": 4},
    "4 bits, bias corrected": {"weight_bits": 4, "correct_bias": True},
    "4 bits, max_damage = 0.02": {"weight_bits": 4, "max_damage": 0.02},
    "4 bits, adaptive rounding": {"weight_bits": 4, "rounding": "adaptive"},
    "3 bits": {"weight_bits": 3},
    "3 bits, adaptive rounding": {"weight_bits": 3, "rounding": "adaptive"},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", default=["resnet20", "resnet56"], metavar="MODEL")
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--images", type=int, default=10_000)
    options = parser.parse_args()
    found: dict[str, dict[str, dict[str, float]]] = {}
    lines = ["# Settings of static quantization", "", f"Accuracy on {options.images:,} test images.", ""]
    for name in options.models:
        model, task = MODELS[name](options.data_dir)
        test = task.test if options.images >= len(task.test) else task.test.drawn(options.images, 0)

        def scores(network: Any, test: Any = test, task: Any = task) -> Any:
            return np.asarray(evaluation(network, test, task, (ACCURACY,)).scores[0])

        dense = scores(model)
        rows = found[name] = {"float32": {"accuracy": ACCURACY.value(dense)}}
        lines += [f"## {name}", "", "| form | accuracy | points | CPU seconds of the step |", "|---|--:|--:|--:|"]
        lines.append(f"| float32 | {rows['float32']['accuracy']:.2%} | – | |")
        for form, settings in FORMS.items():
            with tempfile.TemporaryDirectory() as folder, torch.random.fork_rng():
                began = time.process_time()
                made = quantize.Static(**settings)(model, task, Run(Path(folder)))
                seconds = time.process_time() - began
            own = scores(made)
            points, low, high = (100 * value for value in ACCURACY.difference(dense, own))
            rows[form] = {"accuracy": ACCURACY.value(own), "points": points, "low": low, "high": high, "cpu_seconds": seconds}
            lines.append(
                f"| {form} | {rows[form]['accuracy']:.2%} | {points:+.2f} ({low:+.2f} to {high:+.2f}) | {seconds:.0f} |"
            )
            print(lines[-1], file=sys.stderr, flush=True)
        lines.append("")
    write("static_settings", {"load": os.getloadavg()[0], "models": found}, "\n".join(lines))


if __name__ == "__main__":
    main()

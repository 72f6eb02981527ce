"""Bytes at an error on MNIST: both example recipes, three seeds each, as a user would run them.

Needs MIRABELLE_DATA (or --data-dir). No augmentation; every setting was chosen on the validation split; the test set is looked at
once, at the end of each run. Finished runs are kept, so the benchmark can be interrupted; time is wall time of the whole command.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from conditions import ROOT, write

MODELS = {
    "LeNet-300-100": ("mnist-lenet300", 1.60, 20_000, "Deep Compression 27 kB at 1.58 %; TFMOT 32.1 kB at 1.53 %"),
    "LeNet-5-Caffe": ("mnist-lenet5", 0.80, 36_000, "Deep Compression 44 kB at 0.74 %; TFMOT 52.9 kB at 0.80 %"),
}


def one_run(recipe: str, seed: int, out: Path, data: str) -> dict[str, Any]:
    """The report of one run and the seconds of its command; a finished run is only read."""
    seconds_file, was_begun = out / "seconds.json", out.exists()
    command = [str(Path(sys.executable).parent / "mirabelle"), "run", str(ROOT / "examples" / f"{recipe}.toml")]
    command += ["--seed", str(seed), "--data-dir", data, "--out", str(out), "--json", "--quiet"]
    begin = time.monotonic()
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode not in (0, 4):
        raise SystemExit(done.stderr)
    if not seconds_file.is_file():
        seconds_file.write_text(json.dumps(None if was_begun else time.monotonic() - begin))  # None: it was interrupted
    return {"report": json.loads(done.stdout), "seconds": json.loads(seconds_file.read_text())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data-dir", default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "benchmark-mnist")
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds mnist with --data-dir or MIRABELLE_DATA")
    lines, numbers, trail = [], {}, []
    for model, (recipe, error_limit, size_limit, anchor) in MODELS.items():
        runs = [one_run(recipe, seed, options.out / f"{recipe}-{seed}", options.data_dir) for seed in options.seeds]
        ends = [run["report"]["end"] for run in runs]
        errors = [100 * (1 - end["metric"]["value"]) for end in ends]
        sizes = [end["size_bytes"]["packed"] for end in ends]
        seconds = [run["seconds"] for run in runs if run["seconds"] is not None]
        starts = [100 * (1 - run["report"]["start"]["metric"]["value"]) for run in runs]
        ratio = statistics.median(run["report"]["comparison"]["latency_ratio"]["median"] for run in runs)
        met = statistics.mean(errors) <= error_limit and statistics.mean(sizes) <= size_limit
        numbers[model] = {
            "seeds": options.seeds, "errors": errors, "packed_bytes": sizes, "seconds": seconds, "start_errors": starts,
            "onnx_bytes": [end["size_bytes"]["onnx"] for end in ends],
            "nonzero_parameters": [end["nonzero_parameters"] for end in ends],
            "met": met, "gates_passed": all(gate["passed"] for run in runs for gate in run["report"]["gates"].values()),
        }  # fmt: skip
        lines.append(
            f"| {model} | ≤ {error_limit:.2f} %, ≤ {size_limit / 1000:.0f} kB | **{statistics.mean(errors):.2f} %** "
            f"({', '.join(f'{error:.2f}' for error in errors)}) | **{statistics.mean(sizes) / 1000:.2f} kB** "
            f"({', '.join(f'{size / 1000:.2f}' for size in sizes)}) | {statistics.mean(starts):.2f} % | "
            f"{statistics.mean(seconds):.0f} s | {'yes' if met else 'NO'} | {anchor} |"
        )
        trail.append(
            f"- {model}: {statistics.mean(e['nonzero_parameters'] for e in ends):,.0f} of {ends[0]['parameters']:,} parameters left; "
            f"the ONNX file falls from {runs[0]['report']['start']['size_bytes']['onnx']:,} to {ends[0]['size_bytes']['onnx']:,} bytes; "
            f"latency in ONNX Runtime, batch 1: {ratio:.2f} times the dense one's."
        )
    page = "\n".join(
        [
            "# Bytes at an error, MNIST", "",
            "Error on the 10,000 test images, measured in ONNX Runtime on the file that ships; the packed file is everything a fresh",
            "process needs to give that ONNX file back bit for bit. Mean of the seeds (each in brackets); no augmentation; settings chosen",
            "on 5,000 images held out of the 60,000; 55,000 are trained on.", "",
            "| model | asked | error | packed file | error before | whole command | reached | anchors |", "|---|---|--:|--:|--:|--:|---|---|",
            *lines, "", *trail,
        ]
    )  # fmt: skip
    write("mnist", numbers, page + "\n")


if __name__ == "__main__":
    main()

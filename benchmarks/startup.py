"""How soon the command line answers: `--help`, `init`, a mistake in a recipe; whole processes, after one warm-up each."""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conditions import write

RUNS = 15
MIRABELLE = str(Path(sys.executable).parent / "mirabelle")
WRONG = """schema = 1
[model]
from = "mirabelle.sources.zoo:digits_mlp"
[task]
data = "digits"
[goal]
sise = "5%"
[[step]]
use = "prune.Weights"
sparcity = 0.5
train = { epochs = 0 }
"""


def seconds_of(command: list[str], status: int, folder: str) -> list[float]:
    """Wall times of a command that ends with `status`."""
    times = []
    for _ in range(RUNS + 1):
        begin = time.perf_counter()
        done = subprocess.run(command, cwd=folder, capture_output=True, check=False)
        times.append(time.perf_counter() - begin)
        assert done.returncode == status, done.stderr
    return times[1:]


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "recipe.toml").write_text(WRONG)
        cases = {
            "`mirabelle --help`": ([MIRABELLE, "--help"], 0, 0.3),
            "`mirabelle init`": ([MIRABELLE, "init"], 0, 0.5),
            "a recipe with three mistakes reported": ([MIRABELLE, "run", "recipe.toml"], 2, 0.5),
            "an unknown command reported": ([MIRABELLE, "runn"], 2, 0.5),
        }
        found = {name: (asked, seconds_of(command, status, folder)) for name, (command, status, asked) in cases.items()}
    lines = [
        f"| {name} | ≤ {asked:.1f} s | **{statistics.median(times):.2f} s** | {min(times):.2f} – {max(times):.2f} |"
        for name, (asked, times) in found.items()
    ]
    page = "\n".join(
        ["# How soon the command line answers", "", f"Whole processes, {RUNS} runs each after a warm-up.", "",
         "| | asked | median | least – most |", "|---|--:|--:|--:|", *lines]
    )  # fmt: skip
    write("startup", {name: {"asked": asked, "seconds": times} for name, (asked, times) in found.items()}, page + "\n")


if __name__ == "__main__":
    main()

"""`mirabelle demo`, timed as a whole command, three times, each in a fresh folder."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conditions import write

RUNS = 3


def main() -> None:
    seconds, reports = [], []
    for _ in range(RUNS):
        with tempfile.TemporaryDirectory() as folder:
            command = [str(Path(sys.executable).parent / "mirabelle"), "demo", "--out", f"{folder}/demo", "--json", "--quiet"]
            begin = time.monotonic()
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seconds.append(time.monotonic() - begin)
            reports.append(json.loads(done.stdout))
    report = reports[0]
    start, end = report["start"], report["end"]
    times_smaller = start["size_bytes"]["torch"] / end["size_bytes"]["packed"]
    p_value = report["comparison"]["p_value"]
    page = "\n".join(
        [
            "# mirabelle demo", "",
            "| | asked | reached |", "|---|--:|--:|",
            f"| whole command, median of {RUNS} | ≤ 90 s | {statistics.median(seconds):.1f} s ({', '.join(f'{s:.1f}' for s in seconds)}) |",
            f"| packed file against the dense fp32 file | ≥ 15× smaller | {times_smaller:.1f}× "
            f"({start['size_bytes']['torch']:,} to {end['size_bytes']['packed']:,} bytes) |",
            f"| accuracy on 400 test images | drop not significant | {start['metric']['value']:.2%} to {end['metric']['value']:.2%}, "
            f"paired test p = {p_value:.2g} |",
            f"| ONNX file | about a quarter | {end['size_bytes']['onnx'] / start['size_bytes']['onnx']:.2f} |",
        ]
    )  # fmt: skip
    numbers = {"seconds": seconds, "times_smaller": times_smaller, "p_value": p_value, "end": end, "start": start}
    write("demo", numbers, page + "\n")


if __name__ == "__main__":
    main()

"""The memory that a .parquet table takes while it becomes a task: the peak above what Python and torch take, and the values.

Each measurement runs in a process of its own. Run: python benchmarks/parquet_memory.py [--rows 2000000]
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

RESULTS = Path(__file__).parent / "results"
_CHILD = """
import json, resource, sys, threading, time
import pyarrow, pyarrow.parquet, torch
from pathlib import Path
import mirabelle.sources.datasets.table, mirabelle.task.task
from mirabelle.sources import task_from
import psutil
warm = Path(sys.argv[2])
task_from(f"./{warm.name}", {}, data_folder=None, folder=warm.parent)
path, process = Path(sys.argv[1]), psutil.Process()
base, peak, done = process.memory_info().rss, 0, threading.Event()
def watch():
    global peak
    while not done.is_set():
        peak = max(peak, process.memory_info().rss)
        time.sleep(0.002)
watcher = threading.Thread(target=watch)
watcher.start()
begin = time.perf_counter()
task = task_from(f"./{path.name}", {}, data_folder=None, folder=path.parent)
seconds = time.perf_counter() - begin
done.set()
watcher.join()
parts = (task.train, task.validation, task.test)
kept = sum(part.inputs.nbytes + part.targets.nbytes for part in parts)
print(json.dumps({"peak": peak - base, "task": kept, "seconds": seconds, "features": parts[0].inputs.shape[1]}))
"""


def write(path: Path, kind: str, rows: int) -> int:
    """Write a table; the bytes of its values as Arrow holds them."""
    import pyarrow as pa
    from pyarrow import parquet

    generator = np.random.default_rng(0)
    columns: dict[str, pa.Array] = {}
    if kind in ("float64", "float32"):
        columns = {f"x{k}": pa.array(generator.normal(size=rows).astype(kind)) for k in range(30)}
    else:
        columns = {f"x{k}": pa.array(generator.normal(size=rows)) for k in range(15)}
        columns |= {f"n{k}": pa.array(generator.integers(0, 10**6, rows)) for k in range(10)}
        words = np.array(["north", "south", "east", "west"])
        columns |= {f"w{k}": pa.array(words[generator.integers(0, 4, rows)]) for k in range(3)}
        columns |= {f"d{k}": pa.array(generator.integers(10**9, 1.7e9, rows), pa.timestamp("s")) for k in range(2)}
    columns["y"] = pa.array(generator.integers(0, 2, rows))
    table = pa.table(columns)
    parquet.write_table(table, path)
    return int(table.nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=2_000_000)
    rows = parser.parse_args().rows
    found = []
    for kind in ("float64", "float32", "mixed"):
        with tempfile.TemporaryDirectory() as folder:
            path, warm = Path(folder) / "t.parquet", Path(folder) / "warm.parquet"
            write(warm, kind, 1000)
            values = write(path, kind, rows)
            command = [sys.executable, "-c", _CHILD, str(path), str(warm)]
            done = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        found.append({"columns": kind, "rows": rows, "values": values, **done})
        print(found[-1], flush=True)
    lines = [
        "# The memory that a .parquet table takes",
        "",
        "`python benchmarks/parquet_memory.py`: peak above the process before, while a table becomes a task.",
        "",
        "| columns | rows | values, MB | model inputs and targets, MB | peak, MB | peak / larger of both | bytes a row | seconds |",
        "|---|--:|--:|--:|--:|--:|--:|--:|",
    ]
    for one in found:
        values, task, peak = one["values"] / 1e6, one["task"] / 1e6, one["peak"] / 1e6
        lines.append(
            f"| {one['columns']} | {rows:,} | {values:,.0f} | {task:,.0f} | {peak:,.0f} | {peak / max(values, task):.2f} | "
            f"{one['peak'] / rows:,.0f} | {one['seconds']:.1f} |"
        )
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "parquet_memory.md").write_text("\n".join(lines) + "\n")
    (RESULTS / "parquet_memory.json").write_text(json.dumps(found, indent=2) + "\n")


if __name__ == "__main__":
    main()

"""Tables that do not fit into memory: peak memory, and the rows of an epoch in a second, against a plain loop over row groups.

    python benchmarks/large_tables.py --out FOLDER [--rows 20000000] [--batch 4096]

memory    a .parquet file of numbers, whole numbers and categories in row groups of a million rows, made here: a run (task, one epoch,
          integers, gates, report) in a process of its own; its peak memory, and the seconds of the first reading and of the second.
epoch     the same network, optimizer and batches, one thread each, in processes of their own, one after the other, three times: an epoch
          of Mirabelle's training, and one of a loop of torch and pyarrow that reads the row groups with `iter_batches`, shuffles within
          each of them, and encodes its rows with the means, deviations and categories that Mirabelle has learned.
values    the same values as a table in memory gives: on the first rows, encoded both ways.

Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from pyarrow import parquet
from torch import nn

from conditions import write
from mirabelle import Run, Task, Training, compress, quantize
from mirabelle.sources import task_from
from mirabelle.sources.datasets import table as tables
from mirabelle.task.preprocessing import Table, from_json, to_json
from mirabelle.training import fit

GROUP, REPEATS, COMPARED = 1_000_000, 3, 200_000
NUMBERS, WHOLE = 10, 2
PLACES, KINDS = ("north", "south", "east", "west"), ("new", "used")
GIGA = 1e9


def made(folder: Path, rows: int) -> Path:
    """A table with so many rows, unless it is there. Its last column, of two classes, follows from the others, with noise."""
    path = folder / f"table-{rows}.parquet"
    if path.is_file():
        return path
    folder.mkdir(parents=True, exist_ok=True)
    writing, writer = path.with_suffix(".writing"), None
    for start in range(0, rows, GROUP):
        group = _group(start // GROUP, min(GROUP, rows - start))
        writer = writer or parquet.ParquetWriter(writing, group.schema)
        writer.write_table(group, row_group_size=GROUP)
    assert writer is not None
    writer.close()
    writing.rename(path)
    return path


def _group(number: int, rows: int) -> pa.Table:
    draw = np.random.default_rng(number)
    numbers = draw.normal(size=(rows, NUMBERS)) * 3 + 5
    whole = draw.integers(0, 1000, (rows, WHOLE))
    place, kind = draw.integers(0, len(PLACES), rows), draw.integers(0, len(KINDS), rows)
    score = (numbers[:, 0] - 5) * (place - 1.5) + (numbers[:, 1] - 5) + (whole[:, 0] - 500) / 200 + kind
    classes = (score + draw.normal(size=rows) > 0).astype(np.int64)
    return pa.table(
        {
            **{f"number{k}": numbers[:, k] for k in range(NUMBERS)},
            **{f"whole{k}": whole[:, k] for k in range(WHOLE)},
            "place": pa.DictionaryArray.from_arrays(place.astype(np.int32), pa.array(PLACES)),
            "kind": pa.DictionaryArray.from_arrays(kind.astype(np.int32), pa.array(KINDS)),
            "class": classes,
        }
    )


def net(features: int) -> nn.Module:
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for width in (128, 128, 128):
        layers += [nn.Linear(features, width), nn.ReLU()]
        features = width
    return nn.Sequential(*layers, nn.Linear(features, 2))


def task_of(path: Path) -> Task:
    return task_from(f"./{path.name}", {}, data_folder=None, folder=path.parent)


def peak() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def own_epoch(path: Path, batch: int, out: Path) -> dict[str, Any]:
    """An epoch of Mirabelle in this process: reading, training, and the peak of both."""
    torch.set_num_threads(1)
    tables.IN_MEMORY = 0  # so that fewer rows measure the same
    begin = time.perf_counter()
    task = task_of(path)
    read, read_peak = time.perf_counter() - begin, peak()
    assert isinstance(task.preprocessing, Table)
    out.write_text(to_json(task.preprocessing))
    task = task.replace(validation=task.validation.drawn(1000, 0))  # the epoch alone counts
    rows = len(task.train) // batch * batch
    with tempfile.TemporaryDirectory() as folder:
        run = Run(folder, seed=0)
        run.journal.decisions["execution"] = "float32"
        begin, used = time.perf_counter(), time.process_time()
        model = fit(net(task.preprocessing.shape[0]), task, Training(epochs=1, batch_size=batch, precision="float32"), run)
        seconds, used = time.perf_counter() - begin, time.process_time() - used
    few = task.test.drawn(20_000, 0)
    with torch.no_grad():
        right = float((model(few.inputs).argmax(1) == few.targets).float().mean())
    return {
        "kind": type(task.train).__name__, "read": read, "peak_of_reading": read_peak, "peak": peak(), "rows": rows,
        "seconds": seconds, "per_second": rows / seconds, "used": used / rows, "accuracy": right,
    }  # fmt: skip


def whole_run(path: Path, batch: int, out: Path) -> dict[str, Any]:
    """A run in this process."""
    torch.set_num_threads(1)
    tables.IN_MEMORY = 0
    begin = time.perf_counter()
    task = task_of(path)
    read, read_peak = time.perf_counter() - begin, peak()
    assert isinstance(task.preprocessing, Table)
    training = Training(epochs=1, batch_size=batch, precision="float32")
    goal = {"max_drop": "100pt", "latency": "any"}
    with tempfile.TemporaryDirectory(dir=out.parent) as folder:
        compress(net(task.preprocessing.shape[0]), task, [quantize.Static(samples=500)], goal, folder, baseline=training)
    return {"read": read, "peak_of_reading": read_peak, "peak": peak(), "whole": time.perf_counter() - begin}


def plain_epoch(path: Path, batch: int, learned: Path) -> dict[str, Any]:
    """An epoch of a plain loop over the first 70 % of the rows, group by group, each of them shuffled."""
    torch.set_num_threads(1)
    pa.set_cpu_count(1)
    preprocessing = from_json(learned.read_text())
    assert isinstance(preprocessing, Table)
    file = parquet.ParquetFile(path)
    wanted = int(file.metadata.num_rows * 0.7) // batch * batch
    training = Training(epochs=1, batch_size=batch)
    model = net(preprocessing.shape[0])
    optimizer = torch.optim.AdamW(model.parameters(), lr=training.lr, weight_decay=training.weight_decay, fused=True)
    loss_of, draw, done = nn.CrossEntropyLoss(), np.random.default_rng(0), 0
    begin, used = time.perf_counter(), time.process_time()
    for part in file.iter_batches(GROUP):
        inputs, targets = _encoded(part, preprocessing)
        order = torch.from_numpy(draw.permutation(len(inputs)))
        for start in range(0, len(inputs) - batch + 1, batch):
            index = order[start : start + batch]
            optimizer.zero_grad(set_to_none=True)
            loss = loss_of(model(inputs[index]), targets[index])
            loss.backward()
            optimizer.step()
            done += batch
            if done >= wanted:
                break
        if done >= wanted:
            break
    seconds, used = time.perf_counter() - begin, time.process_time() - used
    return {"rows": done, "seconds": seconds, "per_second": done / seconds, "used": used / done, "peak": peak()}


def _encoded(part: pa.RecordBatch, table: Table) -> tuple[torch.Tensor, torch.Tensor]:
    """The rows of a batch of Arrow, with the features of a table: numbers scaled, words as ones and zeros."""
    inputs = np.zeros((len(part), len(table.features)), np.float32)
    at = 0
    for name, mean, deviation in zip(table.columns, table.mean, table.deviation, strict=True):
        column, features = part.column(name), table.features_of(name)
        if name in table.words:
            own = {word: k for k, word in enumerate(table.words[name])}
            slots = np.array([own[word] for word in column.dictionary.to_pylist()])
            inputs[np.arange(len(part)), at + slots[column.indices.to_numpy()]] = 1
        else:
            inputs[:, at] = (column.to_numpy() - mean) / deviation
        at += len(features)
    return torch.from_numpy(inputs), torch.from_numpy(part.column("class").to_numpy())


def in_a_process(what: str, path: Path, options: argparse.Namespace) -> dict[str, Any]:
    environment = {**os.environ, "MIRABELLE_CACHE": str(options.out / "cache"), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, "--run", what, str(path), "--out", str(options.out), "--batch", str(options.batch)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found = dict(json.loads(done.stdout.splitlines()[-1]))
    print(what, found, flush=True)
    return found


def same_values(folder: Path) -> bool:
    """Whether a table gives the same samples from the file as from memory."""
    path, limit = made(folder, COMPARED), tables.IN_MEMORY
    os.environ["MIRABELLE_CACHE"] = str(folder / "cache")
    found = []
    for most in (1 << 62, 0):
        tables.IN_MEMORY = most
        found.append(task_of(path))
    tables.IN_MEMORY = limit
    one, other = found
    assert one.preprocessing == other.preprocessing
    return all(
        torch.equal(getattr(one, part).inputs, getattr(other, part).inputs)
        and torch.equal(getattr(one, part).targets, getattr(other, part).targets)
        for part in ("train", "validation", "test")
    )


def page(found: dict[str, Any]) -> str:
    own, plain, run, ratio = found["own"], found["plain"], found["run"], found["ratio"]
    rows = [
        f"| peak memory of a run on {found['rows']:,} rows × {NUMBERS + WHOLE + 3} columns | ≤ 2 GB | **{run['peak'] / GIGA:.2f} GB** (reading alone: {run['peak_of_reading'] / GIGA:.2f} GB) |",
        f"| seconds of that run; of reading the table for the first time, with encoding; of reading it again | – | {run['whole']:.0f}; {run['read']:.0f}; {statistics.median(one['read'] for one in own):.0f} |",
        f"| rows in a second of an epoch, against the plain loop | ≥ 0.95 | **{ratio:.3f}** ({found['own_rows']:,.0f} and {found['plain_rows']:,.0f}; medians of {REPEATS} each) |",
        f"| seconds of processors for a million rows, with reading: Mirabelle, plain loop | – | {found['used']['own'] * 1e6:.2f}, {found['used']['plain'] * 1e6:.2f} |",
        f"| ratio of each pair | – | {', '.join(f'{one:.3f}' for one in found['pairs'])} |",
        f"| file of encoded rows | – | {found['encoded'] / GIGA:.2f} GB; the .parquet file has {found['parquet'] / GIGA:.2f} GB |",
        f"| peak memory of the plain loop, with row groups of {GROUP:,} rows | – | {max(one['peak'] for one in plain) / GIGA:.2f} GB |",
        f"| the same values as from memory, on {COMPARED:,} rows | all | {'all' if found['same'] else 'not all'} |",
    ]
    text = f"Batches of {found['batch']:,}, a network of three layers of 128, AdamW, one thread of torch and of pyarrow. Mirabelle draws the order from all rows; the plain loop shuffles within a row group."
    return "\n".join(
        ["# Tables that do not fit into memory", "", text, "", "| | asked | reached |", "|---|---|---|", *rows, ""]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("runs/large_tables"))
    parser.add_argument("--rows", type=int, default=20_000_000)
    parser.add_argument("--batch", type=int, default=4096)
    parser.add_argument("--run", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.run is not None:
        what, path = options.run
        run = {"own": own_epoch, "plain": plain_epoch, "run": whole_run}[what]
        print(json.dumps(run(Path(path), options.batch, options.out / "learned.json")))
        return
    path = made(options.out, options.rows)
    shutil.rmtree(options.out / "cache", ignore_errors=True)
    run = in_a_process("run", path, options)
    runs: dict[str, list[dict[str, Any]]] = {"own": [], "plain": []}
    for _ in range(REPEATS):
        for what, done in runs.items():
            done.append(in_a_process(what, path, options))
    speeds = {what: [one["per_second"] for one in done] for what, done in runs.items()}
    encoded = max(file.stat().st_size for file in (options.out / "cache").iterdir())
    found: dict[str, Any] = {
        "rows": options.rows, "batch": options.batch, "run": run, **runs, "own_rows": statistics.median(speeds["own"]),
        "plain_rows": statistics.median(speeds["plain"]), "encoded": encoded, "parquet": path.stat().st_size,
        "pairs": [one / other for one, other in zip(speeds["own"], speeds["plain"], strict=True)],
        "used": {what: statistics.median(one["used"] for one in done) for what, done in runs.items()},
        "same": same_values(options.out),
    }  # fmt: skip
    found["ratio"] = found["own_rows"] / found["plain_rows"]
    write("large_tables", found, page(found))
    shutil.rmtree(options.out / "cache")


if __name__ == "__main__":
    main()

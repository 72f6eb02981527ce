"""Writes docs/zoo.md, with one row for each architecture of the test zoo: `make zoo`.

Two processes test the architectures one after the other. Rows are cached in build/zoo.jsonl as long as neither
`mirabelle.graph` nor the zoo changes. An architecture that takes too long, or whose process crashes, gets a row that says so.
"""

from __future__ import annotations

import hashlib
import json
import multiprocessing
import os
import re
import sys
import time
import warnings
from collections import defaultdict
from collections.abc import Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, TypeAlias

ROOT = Path(__file__).parents[1]
TARGET, KNOWN = ROOT / "docs" / "zoo.md", ROOT / "build" / "zoo.jsonl"
PROCESSES, SECONDS = 2, 300.0
TARGET_SHARE = 0.4  # fraction of parameters that removing half of every group should remove
SHOWN = 3  # operators listed per row

Row: TypeAlias = dict[str, Any]


def main() -> None:
    """Compute all rows, then write the page."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    sys.path.insert(0, str(ROOT / "tests" / "graph"))
    from zoo import ARCHITECTURES

    names = sys.argv[1:] or list(ARCHITECTURES)
    state = state_of_sources()
    rows = {name: row for name, row in known_rows(state).items() if name in names}
    KNOWN.parent.mkdir(exist_ok=True)
    with KNOWN.open("a", encoding="utf-8") as file:
        for row in made_rows([name for name in names if name not in rows]):
            rows[row["name"]] = row
            file.write(json.dumps({**row, "state": state}) + "\n")
            file.flush()
            print(f"{len(rows)}/{len(names)}", line(row), flush=True)  # noqa: T201
    if not sys.argv[1:]:
        TARGET.write_text(page([rows[name] for name in ARCHITECTURES]), encoding="utf-8")


def state_of_sources() -> str:
    """A hash of all source files on which a row depends."""
    digest = hashlib.sha256()
    for folder in (ROOT / "src" / "mirabelle" / "graph", ROOT / "tests" / "graph" / "zoo"):
        for path in sorted(folder.rglob("*.py")):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def known_rows(state: str) -> dict[str, Row]:
    lines = KNOWN.read_text("utf-8").splitlines() if KNOWN.is_file() else []
    return {row["name"]: row for row in map(json.loads, lines) if row.pop("state") == state and not row["faults"]}


# Processes ------------------------------------------------------------------------------------------------------------


class Worker:
    """A process that tests architectures; replaced if it does not answer."""

    def __init__(self) -> None:
        context = multiprocessing.get_context("spawn")
        self.connection, other = context.Pipe()
        self.process = context.Process(target=work, args=(other,), daemon=True)
        self.process.start()
        other.close()
        self.name, self.since = "", 0.0

    def take(self, name: str) -> None:
        self.name, self.since = name, time.monotonic()
        self.connection.send(name)

    def answer(self) -> Row:
        """The row of the current architecture; one with a fault if the process ended or is late."""
        try:
            if self.connection.poll():
                row: Row = self.connection.recv()
                return row
            fault = f"no answer within {SECONDS:.0f} s"
        except EOFError:
            fault = "its process ended"
        self.process.kill()
        return {"name": self.name, "seconds": time.monotonic() - self.since, "faults": [fault]}


def made_rows(names: Sequence[str]) -> Iterator[Row]:
    """Compute the rows, in the order in which they are finished."""
    pending = list(reversed(names))
    workers = [Worker() for _ in range(min(PROCESSES, len(pending)))]
    for worker in workers:
        worker.take(pending.pop())
    while workers:
        wait([worker.connection for worker in workers], timeout=1.0)
        for position, worker in enumerate(list(workers)):
            late = time.monotonic() - worker.since > SECONDS
            if worker.connection.poll() or late or not worker.process.is_alive():
                yield worker.answer()
                if not worker.process.is_alive() or late:
                    workers[position] = Worker()
                if pending:
                    workers[position].take(pending.pop())
                else:
                    workers[position].name = ""
        for worker in [worker for worker in workers if not worker.name]:
            worker.process.kill()
            workers.remove(worker)


def work(connection: Connection) -> None:
    """Test the architectures received, until the connection is closed."""
    warnings.simplefilter("ignore")
    import torch

    torch.set_num_threads(1)
    while True:
        try:
            name = connection.recv()
        except EOFError:
            return
        began = time.perf_counter()
        try:
            row = row_of(name)
        except Exception as error:  # noqa: BLE001 (every failure is reported in the table)
            message = " ".join(str(error).split())[:160]
            row = {"faults": [f"{type(error).__name__}: {message}"]}
        connection.send({"name": name, **row, "seconds": time.perf_counter() - began})


def row_of(name: str) -> Row:
    """Test one architecture: exactness of the cut, and agreement of the exported forms."""
    from proof import proved
    from shipping import NOT_IN_ONNX, shipped

    proof, forms = proved(name), shipped(name)
    return {
        "exact": proof.worst,
        "removed": proof.removed,
        "not_in_onnx": NOT_IN_ONNX.get(name, ""),
        "rewritten": forms.rewritten,
        "forms": max(forms.module, forms.loaded, forms.onnx),
        "batches": forms.batches,
        "step": forms.step,
        "frozen": [[part.name, part.dimension, part.elements, list(part.reasons)] for part in proof.frozen],
        "unknown": list(proof.unknown),
        "faults": [*proof.faults(), *forms.faults()],
    }


# The page -------------------------------------------------------------------------------------------------------------


def page(rows: Sequence[Row]) -> str:
    """The page docs/zoo.md."""
    good = [row for row in rows if not row["faults"]]
    shares = sorted(row["removed"] for row in good)
    enough = sum(share >= TARGET_SHARE for share in shares)
    own = sum(not row["rewritten"] for row in good)
    seconds = sorted(row["seconds"] for row in rows)
    exact, forms = (max((row[key] for row in good), default=0) for key in ("exact", "forms"))
    batches, step = ([row[key] for row in good if row[key] is not None] for key in ("batches", "step"))
    text = f"""# The zoo

Made by `make zoo`. For every architecture of `tests/graph/zoo`, with random weights that are nowhere close to zero, half of the
units of every group are removed.

- *exact*: the largest relative difference in float64 of three comparisons: the traced program with the model, the cut program
  with the masked program, and the outputs before and after the units of each group are permuted.
- *removed*: the fraction of parameters that is removed.
- *forms*: the largest relative difference in float32 between the masked program and the cut module, the same module saved and
  loaded, and its ONNX export.
- *batches*: the largest relative difference in float32 between the masked program and the cut module with one sample, with one
  more and with three more than in the trace; a dash where the code of the model fixes the number of samples.
- *step*: the same between the cut program and the cut module after one optimizer step of the module in training mode; a dash
  where the model itself cannot be trained on its example.
- *ships as*: the model's own module with new widths, or, if its code contains literal widths, its rewritten program.
- *frozen*: the operators that freeze the most dimensions, each with its first dimension. Dimensions that are
  always frozen are not listed: outputs and inputs of the model, kernels and vocabularies.

{len(rows)} architectures: **{len(good)} exact, {len(rows) - len(good)} not**. The largest differences are
{exact:.0e} in float64 and {forms:.0e} in float32. On other batches, {len(batches)} differ by at most
{max(batches, default=0):.0e}, and after an optimizer step, {len(step)} by at most {max(step, default=0):.0e}.
With half of every group removed, {enough} of them ({enough / len(rows):.1%}) lose at least {TARGET_SHARE:.0%} of their
parameters; the median is {shares[len(shares) // 2]:.0%}. {own} ship as their own module, {len(good) - own} as their rewritten
program. Seconds on one thread: median {seconds[len(seconds) // 2]:.1f}, maximum {seconds[-1]:.1f}, total {sum(seconds):.0f}.

| architecture | exact | removed | forms | batches | step | ships as | frozen | s |
|---|--:|--:|--:|--:|--:|---|---|--:|"""
    return "\n".join([text, *map(line, rows)]) + "\n"


def line(row: Row) -> str:
    """One row of the table."""
    if row["faults"]:
        return f"| {row['name']} | **{escaped('; '.join(row['faults']))[:200]}** | | | | | | | {row['seconds']:.1f} |"
    ships = f"program: {escaped(row['rewritten'])[:110]}" if row["rewritten"] else "module"
    ships += f"; {row['not_in_onnx']}" if row["not_in_onnx"] else ""
    numbers = [f"{row['exact']:.0e}", f"{row['removed']:.0%}", *(shown(row[key]) for key in ("forms", "batches", "step"))]
    cells = [row["name"], *numbers, ships, frozen(row)]
    return f"| {' | '.join(cells)} | {row['seconds']:.1f} |"


def shown(difference: float | None) -> str:
    return "–" if difference is None else f"{difference:.0e}"


OPERATOR = re.compile(r'operator "([^"]+)"')  # reasons without an operator always apply: outputs, kernels, vocabularies


def frozen(row: Row) -> str:
    """The operators that freeze the most dimensions, each with its first dimension."""
    frozen_by: dict[str, list[str]] = defaultdict(list)
    for name, dimension, _, reasons in row["frozen"]:
        for reason in reasons:
            if (match := OPERATOR.match(reason)) is not None:
                frozen_by[match[1]].append(f"{name}:{dimension}")
    ordered = sorted(frozen_by.items(), key=lambda item: -len(item[1]))
    parts = [
        f"{operator}: `{dimensions[0]}`" + (f" and {len(dimensions) - 1} more" if len(dimensions) > 1 else "")
        for operator, dimensions in ordered[:SHOWN]
    ]
    rest = len(ordered) - SHOWN
    return "; ".join(parts) + (f"; {rest} more operators" if rest > 0 else "")


def escaped(text: str) -> str:
    return text.replace("|", "\\|").replace("<", "&lt;").replace("\n", " ")


if __name__ == "__main__":
    main()

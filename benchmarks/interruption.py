"""Kills real runs: at random instants, and at every write and rename. How many end with the same bytes, how many files are damaged.

Shares its code with tests/interruption, where it is told what is killed and how. With --sample the writes and renames are only
some of all, and the page says so.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from conditions import ROOT, write

sys.path.insert(0, str(ROOT / "tests" / "interruption"))

from harness import AT_ONCE, KINDS, Harness, Tally

WHAT = {
    "train": "a training, half of the weights pruned at once, a training",
    "distill": "a teacher's training; a student with batch norm and dropout learns from it and is pruned on a cubic schedule",
    "static": "a training, int8 with calibrated ranges",
    "dynamic": "int8 with the ranges of each batch",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=60, help="random kills of each kind, at least")
    parser.add_argument("--sample", type=int, help="so many writes and renames of each kind instead of all")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    tallies: dict[tuple[str, str], Tally] = {}
    begin = time.monotonic()
    with tempfile.TemporaryDirectory() as place:
        harness = Harness(Path(place))
        try:
            with ThreadPoolExecutor(AT_ONCE) as pool:  # a chain of kills goes on in one folder, so kinds run side by side
                randomly = pool.map(lambda kind: harness.randomly(options.seed, options.kills, (kind,)), KINDS)
                tallies |= {(kind, "at random"): tally for kind, tally in zip(KINDS, randomly, strict=True)}
            for kind in KINDS:
                tallies[kind, "at writes and renames"] = harness.at_points(options.seed, options.sample, (kind,))
        finally:
            harness.close()
    seconds = time.monotonic() - begin
    rows = [{"kind": kind, "instants": instants, **numbers(tally)} for (kind, instants), tally in tallies.items()]
    numbers_kept = {"seed": options.seed, "sample": options.sample, "seconds": seconds, "rows": rows}
    write("interruption", numbers_kept, page(tallies, options.seed, options.sample, seconds))


def numbers(tally: Tally) -> dict[str, object]:
    """A tally as plain data."""
    return {
        "kills": tally.kills, "ends": tally.ends, "identical": tally.identical, "damaged_files": tally.damaged,
        "faults": tally.faults, "by_instant": dict(tally.instants), "resumed_at_steps": sorted(tally.taken_up),
    }  # fmt: skip


def page(tallies: dict[tuple[str, str], Tally], seed: int, sample: int | None, seconds: float) -> str:
    total = sum(tallies.values(), Tally())
    rows = [
        f"| {kind} | {instants} | {tally.kills} | {tally.identical} of {tally.ends} | {tally.damaged} | {len(tally.faults)} | "
        f"{', '.join(f'{name} {count}' for name, count in sorted(tally.instants.items()))} | {len(tally.taken_up)} |"
        for (kind, instants), tally in tallies.items()
    ]
    return "\n".join(
        [
            "# Killed, and gone on with", "",
            "Real commands are killed and started again. A run is identical when `model.mira`, `model.onnx` and `model.safetensors` are",
            "byte for byte those of a run that nobody disturbed; a file is damaged when a kill leaves it unreadable under its own name.",
            "Random instants are drawn evenly over the run, up to five kills in a chain before a run is let through; SIGTERM and SIGINT,",
            "sent once or twice in a row, must also end in status 143 or 130 and one line. Instants are counted right before a file is",
            "opened to write, renamed or removed, right after a rename, and with the file or the line being written cut to half (torn).",
            f"Writes and renames: {f'{sample} of each kind, drawn by lot' if sample else 'all of them'}. Seed {seed}; {seconds:.0f} s in all.", "",
            *(f"- {kind}: {what}" for kind, what in WHAT.items()), "",
            "| run | killed | kills | identical | damaged files | other faults | by instant | steps it resumed from |",
            "|---|---|--:|--:|--:|--:|---|--:|", *rows,
            f"| **all** | | **{total.kills}** | **{total.identical} of {total.ends}** | **{total.damaged}** | **{len(total.faults)}** | | |", "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    main()

"""The Pareto front of a study, as files: which metric each cost buys, and the recipe of each point."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import tomli_w

from mirabelle.planning.trials import BestTrial
from mirabelle.run import files
from mirabelle.step import step_to_data
from mirabelle.task.profile import MeasuredMetric

UNITS = {"size": "bytes", "latency": "ms", "macs": "MACs", "parameters": "parameters"}


def write_front(out: Path, front: Sequence[BestTrial], cost: str, start: MeasuredMetric, tables: Mapping[str, object]) -> None:
    """Write front.json and front.md, and front/<number>.toml with the recipe of each point; those of before are removed.

    Args:
        out: folder of the search for this goal.
        front: its points, the cheapest first.
        cost: its name.
        start: metric of the given model on the validation data.
        tables: of a recipe, that name model and data; without them the files hold the steps alone.
    """
    folder = out / "front"
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    points = []
    for one in front:
        steps = [step_to_data(step) for step in one.steps]
        files.write(folder / f"{one.number}.toml", tomli_w.dumps({**tables, "step": steps}).encode())
        points.append({"trial": one.number, start.name: one.metric, cost: one.cost, "plan": one.plan, "step": steps})
    data = {"metric": start.name, "start": start.value, "cost": cost, "unit": UNITS[cost], "points": points}
    files.write_json(out / "front.json", data)
    lines = [
        f"{start.name} on the validation data by {cost}; the given model has {start.value:.4f}.",
        "",
        f"| {UNITS[cost]} | {start.name} | plan | recipe |",
        "|--:|--:|---|---|",
        *(f"| {one.cost:,.6g} | {one.metric:.4f} | {one.plan} | front/{one.number}.toml |" for one in front),
        "",
    ]
    files.write(out / "front.md", "\n".join(lines).encode())

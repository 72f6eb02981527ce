"""`mirabelle auto`: what is planned against what is measured, and plans against uniform compression with the same recovery.

    python benchmarks/automatic.py --data-dir DATA --out FOLDER [--networks LeNet-5 resnet56] [--part plans uniform]

plans     for each goal, the bytes and milliseconds that the plan told before anything was trained, and those of the run.
uniform   at each budget, the plan and the same fraction for every layer, fitted to the same budget by previews; both without labels,
          fitted by least squares and quantized after the training, nothing trained. Judged on the test data, differences paired.

LeNet-5 is trained here (8 epochs); ResNet-56 has its published weights. Nothing is chosen on test data. Finished parts are kept.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
from pathlib import Path
from typing import Any

from torch import nn

from conditions import write
from mirabelle import Run, Task, Training, auto, compress, prune, quantize
from mirabelle.job.fitting import Limit, fitted
from mirabelle.job.techniques import OpenRecipe
from mirabelle.model.state import copied
from mirabelle.planning import Found
from mirabelle.report import read_report
from mirabelle.run import files
from mirabelle.sources import task_from
from mirabelle.sources.zoo import lenet5
from mirabelle.training import fit
from speed_int8 import MODELS

GOALS: dict[str, list[dict[str, str]]] = {
    "LeNet-5": [{"size": "4%"}, {"size": "2%"}, {"size": "1%"}, {"size": "0.5%"}, {"latency": "60%"}, {"latency": "40%"}],
    "resnet56": [{"size": "10%"}, {"latency": "60%"}, {"latency": "45%", "size": "15%"}],
}
BUDGETS = {"LeNet-5": ("size", ["5%", "3%", "2%", "1%", "0.5%"]), "resnet56": ("macs", ["75%", "65%", "55%"])}


def opened(name: str, options: argparse.Namespace) -> tuple[nn.Module, Task]:
    if name != "LeNet-5":
        model, task = MODELS[name](options.data_dir)
        return model.eval(), task
    task = task_from("mnist", {}, data_folder=options.data_dir, folder=Path())
    place = Run(options.out / "LeNet-5" / "trained")
    training = Training(epochs=8, batch_size=128, lr=2e-3, weight_decay=0.05, precision="float32")
    return fit(lenet5(), task, training, place).eval(), task


def searched(model: nn.Module, task: Task, goal: dict[str, str], folder: Path) -> Found:
    """The result for a goal, in a folder whose measurements serve all goals."""
    return auto(model, task, goal, folder, minutes=1, tell=lambda line: print(line, flush=True))


def planned(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Each goal, with what was expected of each limited cost and what the run measured."""
    found = []
    for number, goal in enumerate(GOALS[name]):
        folder = options.out / name / f"plan-{number}"
        kept = folder / "result.json"
        if not kept.is_file():
            model, task = opened(name, options)
            result = searched(model, task, {**goal, "max_drop": "20pt"}, options.out / name / "auto")
            one = result.attempts[0]
            assert result.best is not None, "the plan was run"
            row = {
                "goal": goal, "plan": one.plan, "expected": dict(one.expected), "measured": dict(one.costs),
                "metric_expected": result.plan.metric, "metric": one.metric, "start": result.start_metric.value,
            }  # fmt: skip
            files.write_json(kept, row)
        found.append(files.read_json(kept))
    return found


def uniform(name: str, options: argparse.Namespace) -> list[dict[str, Any]]:
    """At each budget the test metric of the plan, and of the same fraction for every layer."""
    kind, budgets = BUDGETS[name]
    found = []
    for budget in budgets:
        folder = options.out / name / f"uniform-{kind}-{budget.rstrip('%')}"
        kept = folder / "result.json"
        if not kept.is_file():
            model, task = opened(name, options)
            result = searched(model, task, {kind: budget, "max_drop": "50pt"}, options.out / name / "auto")
            limit = Limit.of(kind, budget, copied(model), task)
            recipe = OpenRecipe("uniform", lambda amount: list(same_everywhere(kind, amount)))
            steps = fitted(recipe, limit, model, task, folder / "amount.json").steps
            other = compress(model, task, steps, {kind: budget}, folder / "uniform")
            assert result.best is not None, "the plan was run"
            rows = {}
            for title, one in (("plan", result.best), ("uniform", other)):
                report = read_report(one.folder)
                assert report.end.metric is not None, "a run measures its metric"
                rows[title] = {
                    "metric": report.end.metric.value, "size": report.end.size_bytes.packed, "macs": report.end.macs,
                    "steps": [step["use"] for step in report.recipe["step"]],
                }  # fmt: skip
            files.write_json(kept, {"budget": budget, **rows})
        found.append(files.read_json(kept))
    return found


def same_everywhere(kind: str, amount: float) -> Any:
    """The steps of uniform compression: equal bits for all weights, or the same fraction of every group of units."""
    if kind == "macs":
        return [prune.Channels(sparsity=0.95 * amount, score="Hessian", recover="least-squares")]  # type: ignore[arg-type]
    cut = [prune.Channels(sparsity=0.9 * amount, score="Hessian", recover="least-squares")] if amount > 0 else []  # type: ignore[arg-type]
    return [*cut, quantize.Weights(weight_bits=4, method="gptq")]


def page(found: dict[str, Any]) -> str:
    lines = ["# Automatic compression", ""]
    if found.get("plans"):
        lines += [
            "## Planned and measured",
            "",
            "| network | goal | plan | cost | expected | measured | error |",
            "|---|---|---|---|--:|--:|--:|",
        ]
        errors: dict[str, list[float]] = {}
        for name, rows in found["plans"].items():
            for row in rows:
                for cost, measured in row["measured"].items():
                    error = row["expected"][cost] / measured - 1
                    errors.setdefault(cost, []).append(abs(error))
                    goal = ", ".join(f"{key} {value}" for key, value in row["goal"].items())
                    lines.append(
                        f"| {name} | {goal} | {row['plan']} | {cost} | {row['expected'][cost]:,.5g} | {measured:,.5g} | {error:+.1%} |"
                    )
        lines += [
            "",
            "Mean error: "
            + ", ".join(f"{cost} {statistics.mean(own):.1%} ({len(own)} plans)" for cost, own in errors.items())
            + ".",
            "",
        ]
    if found.get("uniform"):
        lines += [
            "## Plan and uniform compression",
            "",
            "| network | budget | plan | its steps | uniform | difference |",
            "|---|---|--:|---|--:|--:|",
        ]
        for name, rows in found["uniform"].items():
            for row in rows:
                plan, other = row["plan"]["metric"], row["uniform"]["metric"]
                steps = ", ".join(row["plan"]["steps"])
                lines.append(
                    f"| {name} | {row['budget']} {BUDGETS[name][0]} | {plan:.2%} | {steps} | {other:.2%} | {100 * (plan - other):+.2f} |"
                )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/automatic"))
    parser.add_argument("--networks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--part", nargs="+", choices=["plans", "uniform"], default=["plans", "uniform"])
    options = parser.parse_args()
    results = Path(__file__).with_name("results") / "automatic.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    for part, made in (("plans", planned), ("uniform", uniform)):
        if part in options.part:
            found[part] = {**found.get(part, {}), **{name: made(name, options) for name in options.networks}}
    found = {part: found[part] for part in ("plans", "uniform") if part in found}
    write("automatic", found, page(found))


if __name__ == "__main__":
    main()

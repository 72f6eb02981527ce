"""`mirabelle auto`: what is planned against what is measured, and plans against uniform compression with the same recovery.

    python benchmarks/automatic.py --data-dir DATA --out FOLDER [--networks LeNet-5 resnet56 MiniLM] [--part plans uniform trials unseen search]

plans     for each goal, the bytes and milliseconds that the plan told before anything was trained, and those of the run; the page
          also has those of the first attempts of "unseen".
uniform   at each budget, the plan and the same fraction for every layer, fitted to the same budget by previews; both without labels,
          fitted by least squares and quantized after the training, nothing trained. Judged on the test data, differences paired.

trials    the plan for LeNet-5 in 0.5 % of the bytes against the best of 100 Optuna trials around it, all without training, on the
          validation data; and what each took.
unseen    the goal "at most 0.5 points, half the milliseconds" on five of the models of first_recipes.py, whose folder --first names; none
          of them was used while plans were made. Needs a finished first_recipes.py.
search    whether that goal is out of reach where it was missed: trials of Optuna around the plan, all within half the milliseconds, each
          trained for two and a half minutes; the best metric of all on the validation data.

LeNet-5 is trained here (8 epochs), MiniLM is that of first_recipes.py (6,000 sentences); ResNet-56 has its published weights. Nothing is
chosen on test data. Finished parts are kept.
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

from torch import nn

from conditions import write
from mirabelle import Run, Task, Training, auto, compress, prune, quantize
from mirabelle.job.fitting import Limit, fitted
from mirabelle.job.techniques import OpenRecipe
from mirabelle.model.state import copied
from mirabelle.planning import Found, TrialSettings
from mirabelle.recipe.goal_file import read_goal_file
from mirabelle.report import read_report
from mirabelle.run import files
from mirabelle.sources import task_from
from mirabelle.sources.zoo import lenet5
from mirabelle.training import fit
from speed_int8 import MODELS

GOALS: dict[str, list[dict[str, str]]] = {
    "LeNet-5": [{"size": "4%"}, {"size": "2%"}, {"size": "1%"}, {"size": "0.5%"}, {"latency": "60%"}, {"latency": "40%"}],
    "resnet56": [{"size": "10%"}, {"latency": "60%"}, {"latency": "45%", "size": "15%"}],
    "MiniLM": [{"latency": "50%", "size": "24%"}, {"latency": "90%", "size": "15%"}],
}
BUDGETS = {
    "LeNet-5": ("size", ["5%", "3%", "2%", "1%", "0.5%"]),
    "resnet56": ("macs", ["75%", "65%", "55%"]),
    "MiniLM": ("macs", ["90%", "80%", "70%", "55%", "40%"]),
}
ROOT = Path(__file__).parents[1]
PARTS = ("plans", "uniform", "trials", "unseen", "search")
MISSED, OF_A_SEARCH = ("keras", "unlabelled"), ("--trials", "8", "--time", "2.5 min")
TRIALS, OF_TRIALS = 100, {"size": "0.5%", "max_drop": "50pt", "latency": "any"}
REFUSED = 2  # exit status
TRAINED = 'baseline={weights="run/steps/0-baseline/model.safetensors"}'  # of a run in the folder of a recipe
UNSEEN = {"texts": "trained", "keras": "", "audio": "trained", "table": "trained", "unlabelled": ""}


def opened(name: str, options: argparse.Namespace) -> tuple[nn.Module, Task]:
    if name == "MiniLM":
        place = options.first / "texts"
        file = read_goal_file(place / "recipe.toml", [TRAINED], data_folder=options.data_dir)
        return file.build_model().eval(), file.build_task(options.data_dir)
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
            goal = {kind: budget, "max_drop": "50pt", "latency": "any"}  # or what a cut slows down is undone
            result = searched(model, task, goal, options.out / name / "auto")
            limit = Limit.of(kind, budget, copied(model), task)
            recipe = OpenRecipe("uniform", lambda amount: list(same_everywhere(kind, amount)))
            steps = fitted(recipe, limit, model, task, folder / "amount.json").steps
            other = compress(model, task, steps, {kind: budget, "latency": "any"}, folder / "uniform")
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


def tried(options: argparse.Namespace) -> dict[str, Any]:
    """The plan and the best of many trials, without training, on the validation data."""
    folder = options.out / "LeNet-5" / "trials"
    kept = folder / "result.json"
    if not kept.is_file():
        model, task = opened("LeNet-5", options)
        times: list[float] = [time.monotonic()]

        def measured(line: str) -> None:
            if line.startswith("accuracy of the given model"):  # what follows is the planning
                times.append(time.monotonic())

        auto(model, task, OF_TRIALS, folder, dry_run=True, tell=measured)
        begin, planning, end = *times, time.monotonic()
        told: list[str] = []
        result = auto(model, task, OF_TRIALS, folder, minutes=0.01, trials=TrialSettings(TRIALS), tell=told.append)
        metrics = [float(line.partition(": ")[2].split()[0]) for line in told if line.startswith("trial ")]
        row = {
            "plan": metrics[0], "best": max(metrics), "trials": len(metrics), "start": result.start_metric.value,
            "measuring_seconds": planning - begin, "planning_seconds": end - planning, "trials_seconds": time.monotonic() - end,
        }  # fmt: skip
        files.write_json(kept, row)
    return dict(files.read_json(kept))


def unseen(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each model what `mirabelle auto` says of half the milliseconds at no more than half a point."""
    found = []
    for name, trained in UNSEEN.items():
        place: Path = options.first / name
        kept = place / "unseen.json"
        if not kept.is_file():
            more = ["--set", TRAINED] if trained else []
            begin = time.monotonic()
            done = asked(place, options, "--time", "10 min", *more)
            row = {
                "name": name,
                "status": done.returncode,
                "seconds": time.monotonic() - begin,
                "told": done.stderr.splitlines()[-2:],
            }
            if done.returncode != REFUSED:
                report = json.loads((place / "runs" / "auto-recipe" / "report.json").read_text("utf-8"))
                start, end = report["start"], report["end"]
                row |= {
                    "metric": start["metric"]["name"], "before": start["metric"]["value"], "after": end["metric"]["value"],
                    "ms_before": start["latency_ms"]["median"], "ms_after": end["latency_ms"]["median"],
                    "steps": [step["use"] for step in report["recipe"]["step"]],
                }  # fmt: skip
                first = json.loads((place / "runs" / "auto-recipe" / "best.json").read_text("utf-8"))["attempts"][0]
                row["first"] = {"plan": first["plan"], "expected": first["expected"], "measured": first["costs"]}
            print(done.stdout[-400:], done.stderr[-800:], flush=True)
            files.write_json(kept, row)
        found.append(files.read_json(kept))
    return found


def asked(place: Path, options: argparse.Namespace, *more: str) -> subprocess.CompletedProcess[str]:
    """`mirabelle auto` with the recipe of a folder, for half the milliseconds at no more than half a point."""
    goal = ("--max-drop", "0.5pt", "--latency", "50%")
    command = [sys.executable, "-m", "mirabelle.cli.main", "auto", "recipe.toml", *goal, *more]
    environment = {**os.environ, "MIRABELLE_DATA": str(options.data_dir)}
    return subprocess.run(command, cwd=place, env=environment, capture_output=True, text=True, check=False)


def searches(options: argparse.Namespace) -> list[dict[str, Any]]:
    """For each model that missed the goal, the metrics of trials around its plan on the validation data."""
    found = []
    for name in MISSED:
        place: Path = options.first / name
        told, begin = place / "search.err", time.monotonic()
        if not (place / "search.json").is_file():
            told.write_text(asked(place, options, *OF_A_SEARCH, "--out", "runs/search").stderr, "utf-8")
            files.write_json(place / "search.json", {"name": name, **of_search(told), "seconds": time.monotonic() - begin})
        found.append(files.read_json(place / "search.json"))
    return found


def of_search(told: Path) -> dict[str, Any]:
    """What the lines of a search say: the metric at the start, those of the trials, and how much a plan changes before any training."""
    lines = told.read_text("utf-8").splitlines()
    start = next(line for line in lines if " of the given model on the validation data: " in line)
    trials = [line.partition(": ")[2] for line in lines if line.startswith("trial ")]
    stopped = sum("stopped" in one for one in trials)
    metrics = [float(one.split()[0]) for one in trials if one.lstrip("-")[0].isdigit()]
    return {
        "metric": start.split(" of the ")[0],
        "start": float(start.rsplit(" ", 1)[1]),
        "trials": metrics,
        "stopped": stopped,
    }


def page(found: dict[str, Any]) -> str:
    parts = (
        ("plans", of_plans),
        ("uniform", of_uniform),
        ("trials", of_trials),
        ("unseen", of_unseen),
        ("search", of_searches),
    )
    goal = {"latency": "50%"}
    first = {row["name"]: [{"goal": goal, **row["first"]}] for row in found.get("unseen", []) if "first" in row}
    told = {**found, "plans": {**found.get("plans", {}), **first}}
    lines = [line for part, lines_of in parts if told.get(part) for line in ("", *lines_of(told[part]))]
    return "\n".join(["# Automatic compression", *lines, ""])


def of_plans(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "## Planned and measured",
        "",
        "| network | goal | plan | cost | expected | measured | error |",
        "|---|---|---|---|--:|--:|--:|",
    ]
    errors: dict[str, list[float]] = {}
    for name, row, cost in [(name, one, cost) for name, rows in found.items() for one in rows for cost in one["measured"]]:
        expected, measured = row["expected"][cost], row["measured"][cost]
        errors.setdefault(cost, []).append(abs(expected / measured - 1))
        goal = ", ".join(f"{key} {value}" for key, value in row["goal"].items())
        lines.append(
            f"| {name} | {goal} | {row['plan']} | {cost} | {expected:,.5g} | {measured:,.5g} | {expected / measured - 1:+.1%} |"
        )
    means = ", ".join(f"{cost} {statistics.mean(own):.1%} ({len(own)} plans)" for cost, own in errors.items())
    return [*lines, "", f"Mean error: {means}."]


def of_uniform(found: dict[str, list[dict[str, Any]]]) -> list[str]:
    lines = [
        "## Plan and uniform compression",
        "",
        "| network | budget | plan | its steps | uniform | difference |",
        "|---|---|--:|---|--:|--:|",
    ]
    for name, row in [(name, one) for name, rows in found.items() for one in rows]:
        plan, other = row["plan"]["metric"], row["uniform"]["metric"]
        steps = ", ".join(row["plan"]["steps"])
        lines.append(
            f"| {name} | {row['budget']} {BUDGETS[name][0]} | {plan:.2%} | {steps} | {other:.2%} | {100 * (plan - other):+.2f} |"
        )
    return lines


def of_trials(found: dict[str, Any]) -> list[str]:
    times = found["trials_seconds"] / found["planning_seconds"]
    said = (
        f"LeNet-5 in 0.5 % of the bytes, without training, {found['start']:.2%} before, on the validation data: the plan {found['plan']:.2%}, made "
        f"in {found['planning_seconds']:.0f} s; the best of {found['trials']} trials {found['best']:.2%}, in {found['trials_seconds']:.0f} s, "
        f"{times:.0f} times as long. Before both, measuring took {found['measuring_seconds']:.0f} s."
    )
    return ["## Plan and trials", "", said]


def of_unseen(found: list[dict[str, Any]]) -> list[str]:
    head = [
        "| model | metric | before | after | ms before | ms after | seconds | outcome |",
        "|---|---|--:|--:|--:|--:|--:|---|",
    ]
    lines = ["## At most 0.5 points, half the milliseconds", "", *head]
    for row in found:
        refused = row["status"] == REFUSED
        values = (
            []
            if refused
            else [f"{row['before']:.2%}", f"{row['after']:.2%}", f"{row['ms_before']:.4g}", f"{row['ms_after']:.4g}"]
        )
        cells = " | ".join([row.get("metric", "–"), *(values or ["–"] * 4)])
        outcome = row["told"][0] if refused else "met" if row["status"] == 0 else "missed"
        lines.append(f"| {row['name']} | {cells} | {row['seconds']:.0f} | {outcome} |")
    return lines


def of_searches(found: list[dict[str, Any]]) -> list[str]:
    head = ["| model | metric | before | best of the trials | trials | least that is asked |", "|---|---|--:|--:|--:|--:|"]
    lines = ["## Whether what was missed is out of reach", "", *head]
    for row in found:
        best, asked = max(row["trials"]), row["start"] - 0.005
        lines.append(
            f"| {row['name']} | {row['metric']} | {row['start']:.2%} | {best:.2%} | {len(row['trials'])} | {asked:.2%} |"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--out", type=Path, default=Path("runs/automatic"))
    parser.add_argument("--networks", nargs="+", choices=list(GOALS), default=list(GOALS))
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--first", type=Path, help="the folder of a finished first_recipes.py")
    options = parser.parse_args()
    results = Path(__file__).with_name("results") / "automatic.json"
    found: dict[str, Any] = json.loads(results.read_text()) if results.is_file() else {}
    for part, made in (("plans", planned), ("uniform", uniform)):
        if part in options.part:
            found[part] = {**found.get(part, {}), **{name: made(name, options) for name in options.networks}}
    for part, once in (("trials", tried), ("unseen", unseen), ("search", searches)):
        if part in options.part:
            found[part] = once(options)
    found = {part: found[part] for part in PARTS if part in found}
    write("automatic", found, page(found))


if __name__ == "__main__":
    main()

"""MiniLM on SST-2: 60 % of the encoder's weights pruned by threshold, fine-tuned under the teacher, against the fine-tuned start.

    python benchmarks/sst2.py --data-dir DATA [--seeds 0 1 2]

Runs examples/sst2-minilm.toml, up to 40 minutes a seed; a run that is there is gone on with. Its start, the model after each step,
and the file that ships are judged on the dev set and on 5,000 training sentences that the run has seen neither in training nor in
validation. The settings were chosen without these. The start is the same network, fine-tuned, that is the teacher afterwards.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from conditions import ROOT, write
from mirabelle import Task, artifact
from mirabelle.job.reopening import recipe_of_run, steps_of_run
from mirabelle.numerics.statistics import Scores
from mirabelle.recipe.file import RecipeFile
from mirabelle.sources import task_from
from mirabelle.step import use_of
from mirabelle.task.metric import Metric
from mirabelle.task.samples import Samples
from mirabelle.training import evaluate

RECIPE = ROOT / "examples" / "sst2-minilm.toml"
MOST_POINTS = 0.5
ENCODER = ("query.weight", "key.weight", "value.weight", "dense.weight")
ACCURACY = Metric.of("accuracy")


def run(seed: int, out: Path, data: Path, settings: list[str]) -> RecipeFile:
    """The run of a seed, begun, gone on with, or only read."""
    command = [str(Path(sys.executable).parent / "mirabelle"), "run", str(RECIPE), "--seed", str(seed), "--data-dir", str(data)]
    command += ["--out", str(out), *(part for setting in settings for part in ("--set", setting))]
    code = subprocess.run(command, check=False).returncode
    if code not in (0, 4):
        raise SystemExit(f"seed {seed} ended with {code}")
    return recipe_of_run(out, trust=True)


def judges(file: RecipeFile, data: Path, held_out: int) -> tuple[Task, dict[str, Samples]]:
    """The run's task, and the samples that judge: the dev set, and training sentences that the run has not seen."""
    arguments = dict(file.task.arguments)
    used = arguments.pop("samples")
    whole = task_from(file.task.data, arguments, data_folder=data, folder=file.folder)
    assert isinstance(whole.train, Samples), "files lie in memory"
    drawn = whole.train.drawn(used + held_out, int(arguments.get("seed", 0)))  # of which the run took the first
    rest = drawn.at(torch.arange(used, len(drawn)))
    return whole, {"dev": whole.test, "held out": Samples(rest.inputs, rest.targets)}


def models(file: RecipeFile, folder: Path) -> Iterator[tuple[str, nn.Module]]:
    """The fine-tuned start, and what every step has left."""
    yield "start", artifact.load(file.build_model(), folder / "steps" / "0-baseline")
    for place, step in steps_of_run(file, folder):
        yield use_of(step), artifact.load(file.build_model(), place)


def encoder_sparsity(model: nn.Module) -> float:
    weights = [parameter for name, parameter in model.named_parameters() if "encoder" in name and name.endswith(ENCODER)]
    return 1 - sum(int(weight.count_nonzero()) for weight in weights) / sum(weight.numel() for weight in weights)


def judged(file: RecipeFile, folder: Path, data: Path, held_out: int) -> dict[str, Any]:
    """Accuracy of every model on both sets and together, and what was lost against the start, with interval and test."""
    task, sets = judges(file, data, held_out)
    found: dict[str, Any] = {}
    start: dict[str, Scores] = {}
    for name, model in models(file, folder):
        scores: dict[str, Scores] = {part: evaluate(model, samples, task) for part, samples in sets.items()}
        scores["together"] = torch.cat([torch.from_numpy(own) for own in scores.values()]).numpy()
        start = start or scores
        found[name] = {"encoder_sparsity": encoder_sparsity(model)}
        for part, own in scores.items():
            difference, low, high = ACCURACY.difference(start[part], own)
            p = ACCURACY.p_value([start[part]], [own])
            found[name][part] = {
                "n": len(own), "accuracy": ACCURACY.value(own), "difference": difference, "low": low, "high": high, "p": p,
            }  # fmt: skip
    return found


def row(seed: int, name: str, found: dict[str, Any]) -> str:
    cells = [f"{100 * found[part]['accuracy']:.2f} %" for part in ("dev", "held out", "together")]
    both = found["together"]
    lost = (
        "–" if name == "start" else f"{100 * both['difference']:+.2f} ({100 * both['low']:+.2f} to {100 * both['high']:+.2f})"
    )
    return f"| {seed} | {name} | {100 * found['encoder_sparsity']:.1f} % | {' | '.join(cells)} | {lost} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, default=os.environ.get("MIRABELLE_DATA"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0])
    parser.add_argument("--held-out", type=int, default=5000, metavar="SENTENCES")
    parser.add_argument("--out", type=Path, default=ROOT / "runs" / "sst2")
    parser.add_argument(
        "--set", dest="settings", action="append", default=[], metavar="KEY=VALUE", help="to try it out: nothing is written"
    )
    options = parser.parse_args()
    if options.data_dir is None:
        raise SystemExit("name the folder that holds sst2 with --data-dir or MIRABELLE_DATA")
    numbers = {}
    for seed in options.seeds:
        folder = options.out / f"seed-{seed}"
        numbers[f"seed {seed}"] = judged(
            run(seed, folder, options.data_dir, options.settings), folder, options.data_dir, options.held_out
        )
    lost = [-100 * found["prune.Weights"]["together"]["difference"] for found in numbers.values()]
    sparsity = min(found["prune.Weights"]["encoder_sparsity"] for found in numbers.values())
    met = statistics.mean(lost) <= MOST_POINTS and sparsity >= 0.6
    rows = [
        row(seed, name, one) for seed, found in zip(options.seeds, numbers.values(), strict=True) for name, one in found.items()
    ]
    judge = next(iter(numbers.values()))["start"]
    page = "\n".join(
        [
            "# 60 % of MiniLM's encoder, SST-2", "",
            f"Accuracy in float32 on the {judge['dev']['n']:,} sentences of the dev set, on {judge['held out']['n']:,} training sentences that the run has seen neither",
            "in training nor in validation (some are parts of sentences that it has seen), and on both together; points against the start on both,",
            "with the 95 % interval of the paired difference. The start is MiniLM (6 layers, width 384) fine-tuned on 20,000 sentences; it is the",
            "teacher of what follows: all encoder weights below one threshold go while the rest learns on, then a sixth of heads and neurons.", "",
            "| seed | model | encoder pruned | dev | held out | together | points |", "|--:|---|--:|--:|--:|--:|--:|", *rows, "",
            f"Asked: at least 60 % of the encoder's weights by threshold at 0.5 points or less. Pruned {100 * sparsity:.1f} % for "
            f"{statistics.mean(lost):.2f} points{' (mean of the seeds)' if len(lost) > 1 else ''}: {'reached' if met else 'NOT reached'}.",
        ]
    )  # fmt: skip
    if options.settings:
        print(page)
    else:
        write("sst2", {"met": met, **numbers}, page + "\n")


if __name__ == "__main__":
    main()

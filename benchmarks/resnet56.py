"""ResNet-56 on CIFAR-10, cut by Mirabelle and by Torch-Pruning under the same conditions: no training, 25 minutes, latency.

    python benchmarks/resnet56.py --weights resnet56.safetensors --data-dir DATA --torch-pruning ENVIRONMENT/bin/python PART

PART is one of (`page` writes the table of what is known again)
    no-training   multiply-accumulates ÷ 1.5 without any training, three calibration seeds (about 10 minutes)
    recovery      ÷ 2.1, then as many minutes of training as --minutes says, one seed (twice the minutes)
    blocks        five blocks of each of the first two stages dropped, then 30 epochs of training, one seed (1 to 2 hours)
    latency       the recovered models in ONNX Runtime, batch 32, 1 and 2 threads (2 minutes)

Every setting was chosen on the 5,000 validation images; the test images are judged once, at the end of a part. Torch-Pruning runs
in an environment of its own (`benchmarks/torch_pruning_resnet56.py`), cut as its authors do and, a second time, with Mirabelle's
aligned widths inside of blocks; its training has the same images, batches, optimizer and teacher. Numbers are kept in
benchmarks/results/resnet56.json, part by part.
"""

from __future__ import annotations

import argparse
import copy
import json
import subprocess
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

import mirabelle
from conditions import RESULTS, ROOT, conditions
from mirabelle import Augmentation, Task, Training, prune
from mirabelle.inspection.measure import multiply_accumulates
from mirabelle.prune.skipped import Skipped
from mirabelle.runtime.export import export
from mirabelle.runtime.runtime import default_runtime, time_all
from mirabelle.sources import load_weights
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.zoo import resnet56
from mirabelle.task.batch import map_tensors
from mirabelle.training import Execution, evaluate, fastest_execution, fit

INNER = ("layer*.conv1.*",)  # what lies inside of a block, not what all blocks of a stage add to
HESSIAN = {"use": "Hessian", "samples": 1024}
LR, VIEWS, BATCH = 0.02, 3, 128
SETTINGS = partial(Training, batch_size=BATCH, optimizer="sgd", lr=LR, weight_decay=5e-4, warmup=0.05, keep="last")
WORK = ROOT / "runs" / "resnet56"


def cut(macs: str, **settings: Any) -> prune.Channels:
    return prune.Channels(macs=macs, targets=INNER, score=HESSIAN, recover="least-squares", samples=1024, **settings)


def accuracy(model: nn.Module, task: Task) -> float:
    return float(evaluate(model, task.test, task).mean())


def told(model: nn.Module, dense: nn.Module, task: Task) -> dict[str, Any]:
    """Costs, widths and test accuracy of a model."""
    macs = [multiply_accumulates(one, task.example()) for one in (dense, model)]
    widths = [layer.out_channels for name, layer in model.named_modules() if name.endswith(".conv1")]
    return {"macs_ratio": macs[0] / macs[1], "inner_widths": widths, "test_accuracy": accuracy(model, task)}


def torch_pruning(options: argparse.Namespace, *arguments: str) -> dict[str, Any]:
    """One run of the other side, in its own environment."""
    script = ROOT / "benchmarks" / "torch_pruning_resnet56.py"
    folder = options.data_dir / "cifar-10-batches-bin"
    command = [options.torch_pruning, script, "--weights", options.weights, "--data", folder, *arguments]
    done = subprocess.run(
        [str(part) for part in command], env={"PYTHONPATH": str(ROOT / "src")}, capture_output=True, text=True, check=True
    )
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def no_training(dense: nn.Module, task: Task, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    for seed in range(3):
        begin = time.monotonic()
        model = cut("66.6%")(dense, task, mirabelle.Run(WORK / f"still-{seed}", seed=seed))
        yield f"mirabelle, seed {seed}", {"seconds": time.monotonic() - begin, **told(model, dense, task)}
    for name, extra in (("as its authors", ()), ("within blocks", ("--within-blocks",))):
        for seed in range(3):
            found = torch_pruning(options, "--speed-up", "1.5", "--statistics", "1024", "--seed", str(seed), *extra)
            yield f"torch-pruning, {name}, seed {seed}", found


def recovery(dense: nn.Module, task: Task, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    if options.side != "mirabelle":
        shared = ("--speed-up", "2.1", "--statistics", "1024", "--epochs", "200", "--minutes", str(options.minutes))
        shared += ("--lr", str(LR), "--batch", str(BATCH), "--alpha", "0.9", "--save", str(WORK / "torch_pruning.pt"))
        yield "torch-pruning", torch_pruning(options, *shared)
    if options.side == "torch-pruning":
        return
    task = task.with_augment(Augmentation(crop=4, flip=True, views=VIEWS)).with_teacher(dense)
    run = mirabelle.Run(WORK / "recovery", seed=0)
    step = cut("47.6%", multiple=4)
    begin = time.monotonic()
    model = step(dense, task, run)
    cutting = time.monotonic() - begin
    yield "mirabelle, before training", {"seconds": cutting, **told(model, dense, task)}
    execution = fastest_execution(model, task.example(BATCH), task.loss)
    # A tenth is left for what a trial of a minute does not see.
    steps = steps_in(0.9 * options.minutes * 60 - cutting, model, dense, task, execution)
    training = run.within("training")
    training.decide("execution", lambda: str(execution))
    begin = time.monotonic()
    model = fit(model, task, SETTINGS(steps=steps), training)
    seconds = time.monotonic() - begin
    torch.save(model, WORK / "recovered.pt")
    yield "mirabelle", {"steps": steps, "execution": str(execution), "seconds": cutting + seconds, **told(model, dense, task)}


def blocks(dense: nn.Module, task: Task, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    """Blocks of the third stage stay: they hold most parameters and, on their small images, cost the fewest milliseconds."""
    del options
    run, model, stages = mirabelle.Run(WORK / "blocks", seed=0), dense, ("layer1.*", "layer2.*", "layer3.*")
    for stage, fraction in (("layer1.*", 5 / 9), ("layer2.*", 5 / 8)):
        drop = prune.Layers(sparsity=fraction, ignore=tuple(other for other in stages if other != stage))
        model = drop(model, task, run.within(stage.removesuffix(".*")))
    dropped = [name for name, layer in model.named_modules() if isinstance(layer, Skipped)]
    yield "before training", {"dropped": dropped, **told(model, dense, task)}
    # New crops in every epoch: views that come back are learned by heart in as many epochs.
    task = task.with_augment(Augmentation(crop=4, flip=True)).with_teacher(dense)
    training = Training(epochs=30, batch_size=BATCH, optimizer="sgd", lr=0.05, weight_decay=5e-4, warmup=0.05, keep="last")
    begin = time.monotonic()
    model = fit(model, task, training, run.within("training"))
    seconds = time.monotonic() - begin
    torch.save(model, WORK / "blocks_dropped.pt")
    yield f"after {training.epochs} epochs", {"epochs": training.epochs, "seconds": seconds, **told(model, dense, task)}


def steps_in(seconds: float, model: nn.Module, dense: nn.Module, task: Task, execution: Execution) -> int:
    """How many optimizer steps fit, with the teacher's views and a judgement an epoch counted in."""
    trial = task.replace(train=task.train.drawn(70 * BATCH, 0), validation=task.validation.drawn(100, 0))
    trial = trial.with_augment(Augmentation(crop=4, flip=True))  # without views the teacher answers every batch anew
    spent = {}
    for steps in (10, 60):  # the first warms up
        run = mirabelle.Run(WORK / f"trial-{steps}")
        run.decide("execution", lambda: str(execution))
        spent[steps] = timed(lambda run=run, steps=steps: fit(copy.deepcopy(model), trial, SETTINGS(steps=steps), run))
    guide, images = execution.laid_out(copy.deepcopy(dense)), execution.inputs(task.example(BATCH).inputs)

    def taught() -> None:
        with torch.inference_mode(), execution.autocast():
            for _ in range(20):
                guide(images)

    taught()
    teacher, judged = timed(taught) / 20, timed(lambda: evaluate(dense, task.validation, task))
    an_epoch = len(task.train) // BATCH
    own = spent[60] / 60 - teacher
    return int((seconds - VIEWS * an_epoch * teacher) / (own + judged / an_epoch))


def timed(call: Callable[[], object]) -> float:
    """Seconds of one call."""
    begin = time.monotonic()
    call()
    return time.monotonic() - begin


def latency(dense: nn.Module, task: Task, options: argparse.Namespace) -> Iterator[tuple[str, Any]]:
    del options
    models = {"dense": dense}
    models |= {path.stem: torch.load(path, weights_only=False) for path in sorted(WORK.glob("*.pt"))}
    files = {name: export(model.eval(), task.example()) for name, model in models.items()}
    inputs = map_tensors(task.test.first(32).inputs, lambda tensor: tensor)
    for threads in (1, 2):
        sessions = {name: default_runtime().load(file, threads) for name, file in files.items()}
        latencies, ratios = time_all(sessions, inputs, batch=32, seconds=30.0)
        for name, model in models.items():
            macs = multiply_accumulates(dense, task.example()) / multiply_accumulates(model, task.example())
            yield (
                f"{name}, {threads} threads",
                {
                    "ms": latencies[name].median,
                    "faster": 1 / ratios[name].median,
                    "interval": [1 / ratios[name].high, 1 / ratios[name].low],
                    "macs_ratio": macs,
                },
            )


PARTS = {"no-training": no_training, "recovery": recovery, "blocks": blocks, "latency": latency}


def page(known: dict[str, Any]) -> str:
    """What has been measured so far, for people."""
    lines = [
        "# ResNet-56 on CIFAR-10, cut by Mirabelle and by Torch-Pruning", "",
        f"Published weights, {known['dense']:.2%} of the 10,000 test images before any cut. Mirabelle cuts what lies inside of blocks,",
        "chosen by structured OBS under a budget of multiply-accumulates (MACs), and fits the layers that read it by least squares.",
        "Torch-Pruning 1.6.1 prunes by group norm over the whole network, as its authors do for this network, or within blocks only;",
        "its BatchNorm statistics are estimated again on as many images. Nothing was chosen on test images.", "",
    ]  # fmt: skip
    if found := known.get("no-training"):
        lines += ["## No training, MACs ÷ 1.5", "", "| | MACs ÷ | seed 0 | seed 1 | seed 2 |", "|---|--:|--:|--:|--:|"]
        for name in ("mirabelle", "torch-pruning, as its authors", "torch-pruning, within blocks"):
            runs = [found[f"{name}, seed {seed}"] for seed in range(3)]
            lines.append(
                f"| {name} | {runs[0]['macs_ratio']:.2f} | " + " | ".join(f"{run['test_accuracy']:.2%}" for run in runs) + " |"
            )
        lines += ["", "A seed draws the images that scores, fits and statistics see (1,024 of the training images).", ""]
    if found := known.get("recovery"):
        lines += [
            f"## MACs ÷ 2.1, {found['minutes']:g} minutes on two cores, one seed", "",
            "| | MACs ÷ | steps of 128 images | minutes | test accuracy |", "|---|--:|--:|--:|--:|",
        ]  # fmt: skip
        for name, run in found.items():
            if not isinstance(run, dict) or "test_accuracy" not in run:
                continue
            seconds = run["seconds"] if isinstance(run["seconds"], float) else sum(run["seconds"].values())
            figures = f"{run['macs_ratio']:.2f} | {run.get('steps', 0):,} | {seconds / 60:.1f} | **{run['test_accuracy']:.2%}**"
            lines.append(f"| {name} | {figures} |")
        lines += ["", "Same images, batches, optimizer, learning rates and dense teacher; bfloat16 on both sides.", ""]
    if found := known.get("blocks"):
        still, *trained = (run for run in found.values() if isinstance(run, dict) and "test_accuracy" in run)
        ways = [f"**{run['test_accuracy']:.2%}** after {run['epochs']} ({run['seconds'] / 60:.0f} minutes)" for run in trained]
        lines += [
            "## Whole blocks dropped", "",
            f"MACs ÷ {still['macs_ratio']:.2f} without {', '.join(still['dropped'])}: {still['test_accuracy']:.2%} untrained;",
            f"epochs of training from the dense model: {', '.join(ways)}.", "",
        ]  # fmt: skip
    if found := known.get("latency"):
        lines += [
            "## ONNX Runtime, batch 32",
            "",
            "| | MACs ÷ | ms | times as fast | of the MACs' factor |",
            "|---|--:|--:|--:|--:|",
        ]
        for name, run in found.items():
            if isinstance(run, dict) and "ms" in run:
                low, high = run["interval"]
                faster = f"**{run['faster']:.2f}** ({low:.2f} – {high:.2f})"
                lines.append(
                    f"| {name} | {run['macs_ratio']:.2f} | {run['ms']:.2f} | {faster} | {run['faster'] / run['macs_ratio']:.2f} |"
                )
        lines.append("")
    where = next(known[part]["conditions"] for part in PARTS if part in known)
    lines.append(
        f"`python benchmarks/resnet56.py PART`; {where['processor']}, {where['cores']} cores, {where['cpu_capability']}; "
    )
    lines[-1] += ", ".join(f"{package} {version}" for package, version in where["versions"].items()) + "."
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "page"])
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument(
        "--torch-pruning", type=Path, required=True, help="the Python of an environment with Torch-Pruning 1.6.1"
    )
    parser.add_argument("--minutes", type=float, default=25.0)
    parser.add_argument("--side", choices=("both", "mirabelle", "torch-pruning"), default="both", help="which to recover")
    options = parser.parse_args()
    WORK.mkdir(parents=True, exist_ok=True)
    dense = resnet56()
    load_weights(dense, options.weights)
    dense.eval()
    path, task = RESULTS / "resnet56.json", cifar10(options.data_dir)
    known = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known["dense"] = accuracy(dense, task)
    if options.part in PARTS:
        known.setdefault(options.part, {}).update({"conditions": conditions(), "minutes": options.minutes})
        for name, numbers in PARTS[options.part](dense, task, options):
            known[options.part][name] = numbers
            print(
                name, json.dumps({key: value for key, value in numbers.items() if key not in ("widths", "options")}), flush=True
            )
            path.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    path.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(known), "utf-8")


if __name__ == "__main__":
    main()

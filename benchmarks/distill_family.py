"""ResNet-56 teaches VGG-8 on CIFAR-10: the whole family of terms, then the best of them against soft targets and no teacher.

    python benchmarks/distill_family.py --weights resnet56.safetensors --data-dir DATA PART

PART is one of
    every   each term, one seed, 3 epochs, judged on the 5,000 validation images (about 90 minutes on two cores)
    best    no teacher, soft targets and the two best of `every`, three seeds, --minutes a run, judged on the test images once
    page    writes the tables of what is known again, here and in docs/distillation.md

Weights of the terms are those of their papers or of the benchmark of Tian, Krishnan, Isola 2020 (arXiv:1910.10699); nothing is
tuned. All candidates see the same images in the same order, crop and flip in three views; what the teacher gives, maps of its layers
among it (7.8 GB on disk), is computed once for all of them, before a candidate's seconds begin. Finished runs are kept, so either part
can be interrupted. Numbers are kept in benchmarks/results/distill_family.json.
"""

from __future__ import annotations

import argparse
import json
from functools import partial
from pathlib import Path
from typing import Any

from conditions import RESULTS, ROOT, conditions
from mirabelle import Augmentation, Training, distill
from mirabelle.job.comparison import compare
from mirabelle.job.comparison_results import Budget, Comparison
from mirabelle.objectives import (
    CRD,
    DIST,
    DKD,
    MLKD,
    RKD,
    AttentionTransfer,
    FeatureKL,
    Hint,
    JensenShannon,
    Objective,
    Regression,
    ReverseKL,
    ReviewKD,
    SimilarityPreserving,
    SimKD,
    SoftTargets,
    TaskLoss,
)
from mirabelle.sources import load_weights
from mirabelle.sources.datasets.cifar10 import cifar10
from mirabelle.sources.zoo import resnet56
from mirabelle.training import evaluate

ALONE, SOFT = "no teacher", "soft targets"
OBJECTIVES: dict[str, Objective] = {
    ALONE: 1.0 * TaskLoss(),
    SOFT: 0.9 * SoftTargets(temperature=4.0) + 0.1 * TaskLoss(),
    "soft targets, standardized": 0.9 * SoftTargets(temperature=2.0, standardize=True) + 0.1 * TaskLoss(),
    "decoupled (DKD)": 1.0 * TaskLoss() + 1.0 * DKD(temperature=4.0, alpha=1.0, beta=8.0),
    "correlation (DIST)": 1.0 * TaskLoss() + 2.0 * DIST(),
    "multi-level (MLKD)": 0.1 * TaskLoss() + 0.9 * MLKD(),
    "multi-level (MLKD), few classes": 0.1 * TaskLoss() + 0.9 * MLKD(by_class=(10 / 128) ** 2),
    "reverse KL": 0.1 * TaskLoss() + 0.9 * ReverseKL(temperature=4.0),
    "Jensen-Shannon": 0.1 * TaskLoss() + 0.9 * JensenShannon(temperature=4.0),
    "logits, squared": 0.1 * TaskLoss() + 0.9 * Regression(),
    "hints (FitNet)": 1.0 * TaskLoss() + 100.0 * Hint(),
    "KL of features": 1.0 * TaskLoss() + 1.0 * FeatureKL(),
    "attention transfer": 1.0 * TaskLoss() + 1000.0 * AttentionTransfer(),
    "similarity": 1.0 * TaskLoss() + 3000.0 * SimilarityPreserving(),
    "review (ReviewKD)": 1.0 * TaskLoss() + 1.0 * ReviewKD(),
    "reused head (SimKD)": 1.0 * SimKD(),
    "relations (RKD)": 1.0 * TaskLoss() + 1.0 * RKD(),
    "contrast (CRD)": 1.0 * TaskLoss() + 0.8 * CRD(),
}
SETTINGS = partial(
    Training, batch_size=128, optimizer="sgd", lr=0.05, weight_decay=5e-4, warmup=0.05, keep="last", teacher_cache=10**10
)


def student(name: str) -> list[distill.Student]:
    training = SETTINGS(epochs=3, objective=OBJECTIVES[name])
    return [distill.Student(model="mirabelle.sources.zoo:vgg8", head="teacher" if "SimKD" in name else "own", train=training)]


def numbers(found: Comparison) -> dict[str, Any]:
    rows = {
        row.name: {"metric": row.metric, "difference": row.difference, "p": row.p_value, "seconds": row.seconds}
        for row in found.rows()
    }
    return {"judge": found.judge, "rows": rows, "table": found.table(), "conditions": conditions()}


def page(known: dict[str, Any]) -> str:
    lines = [
        "# ResNet-56 teaches VGG-8 on CIFAR-10", "",
        f"The teacher has {known['teacher']:.2%} of the test images right. VGG-8 has 3.9 million parameters in 5 convolutions and",
        "shares no layer with it. Weights of terms come from their papers, nothing is tuned; same images, order and views for all.", "",
    ]  # fmt: skip
    if "every" in known:
        lines += ["## Every term, one seed, 3 epochs, validation images", "", known["every"]["table"]]
    if "best" in known:
        lines += [f"## Three seeds, {known['best']['minutes']:g} minutes a run, test images", "", known["best"]["table"]]
    where = next(known[part]["conditions"] for part in ("every", "best") if part in known)
    lines.append(
        f"`python benchmarks/distill_family.py PART` at commit {where['commit']}; {where['processor']}, {where['cores']} cores, "
        f"{where['cpu_capability']}."
    )
    return "\n".join(lines) + "\n"


def into_docs(known: dict[str, Any]) -> None:
    """The tables where people look for them: between their marks in docs/distillation.md."""
    path = ROOT / "docs" / "distillation.md"
    text = path.read_text("utf-8")
    for part in ("every", "best"):
        if part in known:
            before, mark, rest = text.partition(f"<!-- {part} -->\n")
            _, end, after = rest.partition(f"<!-- end of {part} -->")
            assert mark, f"docs/distillation.md has a place for {part}"
            text = f"{before}{mark}\n{known[part]['table']}\n{end}{after}"
    path.write_text(text, "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("every", "best", "page"))
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--minutes", type=float, default=8.0)
    options = parser.parse_args()
    teacher = resnet56()
    load_weights(teacher, options.weights)
    task = cifar10(options.data_dir).with_augment(Augmentation(crop=4, flip=True, views=3)).with_teacher(teacher.eval())
    path = RESULTS / "distill_family.json"
    known: dict[str, Any] = json.loads(path.read_text("utf-8")) if path.is_file() else {}
    known["teacher"] = float(evaluate(teacher, task.test, task).mean())
    work = ROOT / "runs" / "distill-family"
    if options.part == "every":
        candidates = {name: student(name) for name in OBJECTIVES}
        known["every"] = numbers(compare(teacher, task, candidates, out=work / "every", seeds=(0,), reference=ALONE))
    if options.part == "best":
        ranked = [name for name in known["every"]["rows"] if name not in (ALONE, SOFT)]
        candidates = {name: student(name) for name in (ALONE, SOFT, *ranked[:2])}
        budget = Budget(seconds=60 * options.minutes)
        found = compare(teacher, task, candidates, out=work / "best", budget=budget, reference=ALONE, judge="test")
        known["best"] = {**numbers(found), "minutes": options.minutes}
    path.write_text(json.dumps(known, indent=2) + "\n", "utf-8")
    path.with_suffix(".md").write_text(page(known), "utf-8")
    into_docs(known)


if __name__ == "__main__":
    main()

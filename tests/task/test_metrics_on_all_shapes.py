"""Every metric of classes, labels and numbers equals scikit-learn's on every shape that it takes, and is refused on the others.

`python tests/task/test_metrics_on_all_shapes.py` prints the table of docs/correctness.md.
"""

from __future__ import annotations

import math
import sys
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as known
from torch import Tensor

from mirabelle.errors import UserError
from mirabelle.task.loss import LOSSES
from mirabelle.task.metric import Metric
from mirabelle.task.outputs import OutputKind
from mirabelle.task.torch_losses import known_loss

BCE = "binary_cross_entropy"
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class Layout:
    """How outputs and targets of a task lie in memory.

    Args:
        loss: the loss that says what the outputs are.
        exclusive: whether exactly one class is right.
        positions: number of axes of positions.
        axis: the axis of the classes or labels among outputs; None if there is none.
        alone: whether there is a single label.
        short: whether targets lack the axis of the single label.
    """

    loss: str
    exclusive: bool
    positions: int = 0
    axis: int | None = -1
    alone: bool = False
    short: bool = False


LAYOUTS: Mapping[str, Layout] = {
    "(N, C)": Layout("cross_entropy", exclusive=True),
    "(N, C, L)": Layout("cross_entropy", exclusive=True, positions=1, axis=1),
    "(N, C, H, W)": Layout("cross_entropy", exclusive=True, positions=2, axis=1),
    "(N, L, C)": Layout("token_cross_entropy", exclusive=True, positions=1),
    "(N, H, W, C)": Layout("token_cross_entropy", exclusive=True, positions=2),
    "(N), yes or no": Layout(BCE, exclusive=False, axis=None, alone=True),
    "(N, 1), yes or no": Layout(BCE, exclusive=False, alone=True),
    "(N, 1), targets (N)": Layout(BCE, exclusive=False, alone=True, short=True),
    "(N, L), labels": Layout(BCE, exclusive=False),
    "(N, T, 1), targets (N, T)": Layout(BCE, exclusive=False, positions=1, alone=True, short=True),
    "(N, 1, H, W), targets (N, H, W)": Layout(BCE, exclusive=False, positions=2, axis=1, alone=True, short=True),
    "(N, L, H, W), labels": Layout(BCE, exclusive=False, positions=2, axis=1),
}


@dataclass(frozen=True)
class Case:
    """Outputs and targets, and the same as rows, one for each decision that counts."""

    outputs: Tensor
    targets: Tensor
    kind: OutputKind
    scores: Array
    due: Array

    @property
    def exclusive(self) -> bool:
        return self.due.ndim == 1


def case(layout: Layout, seed: int, samples: int, classes: int, length: int, *, padded: bool, typed: str) -> Case:
    """Scores that know a little of the targets; whole samples may be padding.

    Some are tied, unless their softmax decides: sums in another order would then be tied in one library, and not in another.
    """
    generator = np.random.default_rng(seed)
    place = (samples, *(length + k for k in range(layout.positions)))
    labels = 1 if layout.alone else classes
    due = generator.integers(0, classes, place) if layout.exclusive else generator.integers(0, 2, (*place, labels))
    told = np.eye(classes)[due] if layout.exclusive else due
    scores = generator.normal(size=(*place, labels))
    scores = ((scores if layout.exclusive and classes > 2 else scores.round(1)) + told).astype(np.float32)
    hidden = np.zeros(place, bool)
    if padded:
        hidden = generator.random(place) < 0.3
        hidden.flat[0] = False
    targets = due.copy()
    targets[hidden] = -100
    counted = ~hidden
    outputs = torch.from_numpy(scores)
    found = torch.from_numpy(targets)
    if layout.axis is None:
        outputs = outputs[..., 0]
    elif layout.axis == 1:
        outputs = outputs.movedim(-1, 1)
    if not layout.exclusive:
        found = found[..., 0] if layout.short or layout.axis is None else found.movedim(-1, layout.axis or -1)
        found = found.bool() if typed == "bool" and not padded else found.float() if typed == "float" else found
    loss = LOSSES[layout.loss]
    return Case(outputs, found, OutputKind.of_task(loss, found, ()), scores[counted].astype(float), due[counted])


def soft(case: Case) -> Array:
    powers = np.exp(case.scores - case.scores.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def by_label(case: Case) -> list[tuple[Array, Array]]:
    """(right, score) of each label, one class against the rest."""
    if not case.exclusive:
        return list(zip(case.due.T, case.scores.T, strict=True))
    if case.scores.shape[1] == 2:
        return [(case.due, case.scores[:, 1] - case.scores[:, 0])]
    return [(case.due == k, score) for k, score in enumerate(soft(case).T)]


def mean_over_labels(function: Callable[[Array, Array], float]) -> Callable[[Case], float]:
    """NaN where a label has no positive, or, for ROC, no negative decision."""

    def value(case: Case) -> float:
        parts = by_label(case)
        most = len(case.due) - (function is known.roc_auc_score)
        defined = all(0 < right.sum() <= most for right, _ in parts)
        return float(np.mean([function(right, score) for right, score in parts])) if defined else math.nan

    return value


def f1(case: Case) -> float:
    if case.exclusive and case.scores.shape[1] > 2:
        return float(known.f1_score(case.due, case.scores.argmax(1), average="macro"))
    found = case.scores.argmax(1)[:, None] if case.exclusive else case.scores > 0
    pairs = zip(case.due.reshape(len(case.due), -1).T, found.T, strict=True)
    return float(np.mean([known.f1_score(right, said, zero_division=0) for right, said in pairs]))


def balanced(case: Case) -> float:
    if case.exclusive:
        return float(known.balanced_accuracy_score(case.due, case.scores.argmax(1)))
    return float(np.mean([known.balanced_accuracy_score(right, score > 0) for right, score in by_label(case)]))


def calibration(case: Case) -> float:
    """Guo et al. 2017, equation 3, decision by decision."""
    if case.exclusive:
        shares = soft(case)
        confidence, right = shares.max(1), shares.argmax(1) == case.due
    else:
        yes = (1 / (1 + np.exp(-case.scores))).ravel()
        confidence, right = np.maximum(yes, 1 - yes), (case.scores > 0).ravel() == (case.due.ravel() == 1)
    total = 0.0
    for k in range(15):
        inside = (confidence > k / 15) & (confidence <= (k + 1) / 15)
        if inside.any():
            total += inside.mean() * abs(right[inside].mean() - confidence[inside].mean())
    return -total


def sensitivity(case: Case) -> float:
    ((right, score),) = by_label(case)
    if not 0 < right.sum() < len(right):
        return math.nan
    false, true, _ = known.roc_curve(right, score, drop_intermediate=False)
    return float(true[false <= 0.1 + 1e-12].max())


REFERENCES: Mapping[str, tuple[str, Callable[[Case], float]]] = {
    "accuracy": (
        "`accuracy_score` of all decisions",
        lambda case: float(
            np.mean(case.scores.argmax(1) == case.due if case.exclusive else (case.scores > 0) == (case.due == 1))
        ),
    ),
    "balanced_accuracy": ("`balanced_accuracy_score`", balanced),
    "f1": ("`f1_score`: of the second of two classes, else macro", f1),
    "roc_auc": ("`roc_auc_score`, one class against the rest", mean_over_labels(known.roc_auc_score)),
    "average_precision": ("`average_precision_score`, the same", mean_over_labels(known.average_precision_score)),
    "sensitivity": ("`roc_curve`, two classes", sensitivity),
    "negative_calibration_error": ("equation 3 of arXiv:1706.04599", calibration),
    "negative_perplexity": (
        "exp of `log_loss`",
        lambda case: -math.exp(known.log_loss(case.due, soft(case), labels=range(case.scores.shape[1]))),
    ),
    "hit_rate@2": (
        "`top_k_accuracy_score`, ties against the model",
        lambda case: float(np.mean((case.scores >= case.scores[np.arange(len(case.due)), case.due][:, None]).sum(1) <= 2)),
    ),
}


def value(name: str, case: Case) -> float:
    metric = Metric.of(name)
    return metric.value(metric.of_samples(case.outputs, case.targets, case.kind))


def takes(name: str, layout: Layout, classes: int) -> bool:
    """Whether the metric is defined for the layout."""
    if name in ("negative_perplexity", "hit_rate@2"):
        return layout.exclusive
    return name != "sensitivity" or layout.alone or (classes == 2 and layout.exclusive)


def differences(name: str, layout: Layout, drawn: Case, classes: int) -> float | None:
    """The difference from the reference; None if the metric is refused, as it must be."""
    if not takes(name, layout, classes):
        with pytest.raises(UserError, match=r"E111|E131"):
            value(name, drawn)
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # scikit-learn warns of classes without a sample
        due = REFERENCES[name][1](drawn)
    found = value(name, drawn)
    assert math.isnan(found) == math.isnan(due), (name, found, due)
    return 0.0 if math.isnan(due) else abs(found - due)


@settings(max_examples=150, deadline=None, derandomize=True)
@given(
    name=st.sampled_from(sorted(LAYOUTS)),
    seed=st.integers(0, 10_000),
    samples=st.integers(1, 12),
    classes=st.integers(2, 5),
    length=st.integers(1, 5),
    padded=st.booleans(),
    typed=st.sampled_from(["int", "bool", "float"]),
)
def test_metrics_are_those_of_scikit_learn(  # noqa: PLR0917 (drawn one by one)
    name: str, seed: int, samples: int, classes: int, length: int, padded: bool, typed: str
) -> None:
    layout = LAYOUTS[name]
    drawn = case(layout, seed, samples, classes, length, padded=padded, typed=typed)
    for metric in REFERENCES:
        difference = differences(metric, layout, drawn, classes)
        assert difference is None or difference < 1e-9, (metric, difference)


ACCEPTED = [
    (metric, name)
    for metric in REFERENCES
    for name, layout in LAYOUTS.items()
    if takes(metric, layout, 2 if metric == "sensitivity" else 3)
]


@pytest.mark.parametrize(("metric", "name"), ACCEPTED)
def test_a_resampled_set_has_the_metric_of_its_samples(metric: str, name: str) -> None:
    layout, classes = LAYOUTS[name], 2 if metric == "sensitivity" else 3
    drawn = case(layout, 0, 40, classes, 3, padded=True, typed="int")
    index = np.random.default_rng(1).integers(0, 40, 40)
    again = Metric.of(metric)
    scores = again.of_samples(drawn.outputs, drawn.targets, drawn.kind)
    anew = again.of_samples(drawn.outputs[index], drawn.targets[index], drawn.kind)
    assert again.value(scores[index]) == pytest.approx(again.value(anew), abs=1e-12, nan_ok=True)


@pytest.mark.parametrize(("metric", "name"), ACCEPTED)
def test_a_decision_on_numbers_that_are_not_finite_is_never_right(metric: str, name: str) -> None:
    """They lower the metric, whatever the targets are; NaN is not class 0."""
    layout, classes = LAYOUTS[name], 2 if metric == "sensitivity" else 3
    drawn = case(layout, 3, 60, classes, 2, padded=False, typed="int")
    outputs = drawn.outputs.clone()
    outputs[:45] = math.nan
    outputs[45:50] = math.inf
    broken = Case(outputs, drawn.targets, drawn.kind, drawn.scores, drawn.due)
    whole, found = value(metric, drawn), value(metric, broken)
    assert found < whole
    if metric in ("accuracy", "hit_rate@2"):
        kept = Case(outputs[50:], drawn.targets[50:], drawn.kind, drawn.scores, drawn.due)
        assert found == pytest.approx(value(metric, kept) * 10 / 60)
    if metric == "negative_perplexity":
        assert found == -math.inf
    constant = Case(torch.full_like(outputs, math.nan), torch.zeros_like(drawn.targets), drawn.kind, drawn.scores, drawn.due)
    if metric in ("accuracy", "f1", "balanced_accuracy"):
        assert value(metric, constant) == 0, "class 0 everywhere, and no output at all"


NUMBERS = {
    "(N)": ((), ()),
    "(N, 1)": ((1,), (1,)),
    "(N, 1), targets (N)": ((1,), ()),
    "(N), targets (N, 1)": ((), (1,)),
    "(N, D)": ((3,), (3,)),
    "(N, H, W)": ((2, 3), (2, 3)),
    "(N, 1, H, W), targets (N, H, W)": ((1, 2, 3), (2, 3)),
}
OF_NUMBERS: Mapping[str, Callable[[Array, Array], float]] = {
    "r2": known.r2_score,
    "negative_squared_error": lambda due, found: -known.mean_squared_error(due, found),
    "negative_absolute_error": lambda due, found: -known.mean_absolute_error(due, found),
}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("metric", OF_NUMBERS)
@pytest.mark.parametrize("loss", ["mse", "mae", "huber"])
def test_metrics_and_losses_of_numbers_pair_each_output_with_its_target(name: str, metric: str, loss: str) -> None:
    generator = torch.Generator().manual_seed(0)
    of_output, of_target = NUMBERS[name]
    outputs, targets = torch.randn(30, *of_output, generator=generator), torch.randn(30, *of_target, generator=generator)
    flat = targets.reshape(30, -1).double().numpy(), outputs.reshape(30, -1).double().numpy()
    kind = OutputKind.of_task(LOSSES[loss], targets, ())
    found = Metric.of(metric)
    scores = found.of_samples(outputs, targets, kind)
    assert found.value(scores) == pytest.approx(OF_NUMBERS[metric](*flat), abs=1e-9)
    assert found.value(scores[:7]) == pytest.approx(OF_NUMBERS[metric](*(part[:7] for part in flat)), abs=1e-9)
    function = {"mse": torch.nn.MSELoss(), "mae": torch.nn.L1Loss(), "huber": torch.nn.HuberLoss()}[loss]
    due = function(outputs.flatten(), targets.flatten())
    torch.testing.assert_close(LOSSES[loss](outputs, targets), due)
    torch.testing.assert_close(known_loss(function).loss(outputs, targets), due)
    outputs[3] = math.nan
    with pytest.raises(UserError, match=r"E121.* the outputs of 1 samples are NaN or infinite"):
        found.measured(found.of_samples(outputs, targets, kind), not_finite=1)


@pytest.mark.parametrize(("outputs", "targets"), [((4, 2, 3), (4, 3, 2)), ((4, 1), (1, 4)), ((4, 2), (4,)), ((4, 2), (8,))])
@pytest.mark.parametrize("loss", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_shapes_that_do_not_belong_together_are_refused(outputs: Any, targets: Any, loss: str) -> None:
    with pytest.raises(UserError, match=r"E131.*each output needs one target"):
        LOSSES[loss](torch.zeros(outputs), torch.zeros(targets))


def main() -> None:
    """Print the table of metrics × shapes × reference: the largest difference of 40 draws each, or "refused"."""
    lines = ["| metric | reference | " + " | ".join(LAYOUTS) + " |", "|---|---|" + "---|" * len(LAYOUTS)]
    for metric, (reference, _) in REFERENCES.items():
        cells = []
        for layout in LAYOUTS.values():
            classes = (2,) if metric == "sensitivity" else (2, 3, 5)
            found = [
                differences(metric, layout, case(layout, seed, 30, count, 3, padded=seed % 2 > 0, typed="int"), count)
                for count in classes
                for seed in range(40)
            ]
            told = [one for one in found if one is not None]
            cells.append("equal" if told and max(told) < 1e-9 else f"{max(told):.1e}" if told else "refused")
        lines.append(f"| `{metric}` | {reference} | " + " | ".join(cells) + " |")
    sys.stdout.write("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()

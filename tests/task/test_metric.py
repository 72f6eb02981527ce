"""Metrics of samples and of sets: their values are those of other libraries, their intervals and tests hold what they say."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn import metrics as known
from torch import Tensor, nn

from mirabelle import Task, Training, compress, prune
from mirabelle.errors import UserError
from mirabelle.job.comparison import compare
from mirabelle.numerics.metrics import edits, span_of
from mirabelle.numerics.statistics import resampled_difference, resampled_interval, unseen
from mirabelle.report.document import Report
from mirabelle.report.table import rows
from mirabelle.task.metric import Metric

RNG = np.random.default_rng(0)


def value(metric: str, outputs: Tensor, targets: Tensor) -> float:
    found = Metric.of(metric)
    return found.value(found.of_samples(outputs, targets))


def drawn(classes: int, n: int = 300) -> tuple[Tensor, Tensor]:
    """Scores, some of them tied, that know a little of the targets."""
    targets = torch.from_numpy(RNG.integers(0, classes, n))
    outputs = torch.from_numpy(RNG.normal(size=(n, classes)).round(1)).float()
    outputs[torch.arange(n), targets] += 1
    return outputs, targets


def test_metrics_of_two_classes_are_those_of_scikit_learn() -> None:
    outputs, targets = drawn(2)
    due, shares = targets.numpy(), (outputs[:, 1].double() - outputs[:, 0].double()).numpy()
    assert value("roc_auc", outputs, targets) == pytest.approx(known.roc_auc_score(due, shares), abs=1e-12)
    assert value("average_precision", outputs, targets) == pytest.approx(known.average_precision_score(due, shares), abs=1e-12)
    one = outputs[:, 1:].double() - outputs[:, :1].double()
    assert value("f1", one, targets) == pytest.approx(known.f1_score(due, one[:, 0].numpy() > 0), abs=1e-12)
    balanced = known.balanced_accuracy_score(due, one[:, 0].numpy() > 0)
    assert value("balanced_accuracy", one, targets) == pytest.approx(balanced, abs=1e-12)
    assert value("roc_auc", one, targets) == pytest.approx(known.roc_auc_score(due, one.float()), abs=1e-12)


def test_metrics_of_many_classes_are_means_over_each_against_the_rest() -> None:
    outputs, targets = drawn(5)
    shares, due, found = outputs.double().softmax(1).numpy(), targets.numpy(), outputs.argmax(1).numpy()
    assert value("roc_auc", outputs, targets) == pytest.approx(known.roc_auc_score(due, shares, multi_class="ovr"), abs=1e-12)
    assert value("f1", outputs, targets) == pytest.approx(known.f1_score(due, found, average="macro"), abs=1e-12)
    assert value("balanced_accuracy", outputs, targets) == pytest.approx(known.balanced_accuracy_score(due, found), abs=1e-12)


def test_metrics_of_several_labels_are_means_over_them() -> None:
    targets = torch.from_numpy(RNG.integers(0, 2, (200, 4))).float()
    outputs = torch.from_numpy(RNG.normal(size=(200, 4))).float() + targets
    due, scores = targets.numpy(), outputs.numpy()
    assert value("roc_auc", outputs, targets) == pytest.approx(known.roc_auc_score(due, scores), abs=1e-12)
    assert value("f1", outputs, targets) == pytest.approx(known.f1_score(due, scores > 0, average="macro"), abs=1e-12)
    precision = known.average_precision_score(due, scores)
    assert value("average_precision", outputs, targets) == pytest.approx(precision, abs=1e-12)


def test_metrics_of_numbers_are_those_of_scikit_learn() -> None:
    targets = torch.from_numpy(RNG.normal(size=(50, 1)))
    outputs = targets + torch.from_numpy(RNG.normal(size=(50, 1)))
    assert value("r2", outputs.float(), targets.float()) == pytest.approx(
        known.r2_score(targets.numpy(), outputs.numpy()), abs=1e-6
    )
    error = known.mean_absolute_error(targets.numpy(), outputs.numpy())
    assert value("negative_absolute_error", outputs, targets) == pytest.approx(-error, abs=1e-12)


def test_sensitivity_is_the_share_of_positives_above_the_threshold_that_spares_the_negatives() -> None:
    outputs = torch.tensor([float(k) for k in range(10)] + [8.5, 8.7, 9.5, 3.0])
    targets = torch.tensor([0] * 10 + [1] * 4)
    assert value("sensitivity@0.9", outputs, targets) == 0.75  # above 8, which nine of ten negatives do not exceed
    assert value("sensitivity@0.5", outputs, targets) == 0.75
    assert value("sensitivity@0.99", outputs, targets) == 0.25
    scores, hits = drawn(2)
    rates, found, _ = known.roc_curve(hits.numpy(), (scores[:, 1] - scores[:, 0]).numpy(), drop_intermediate=False)
    assert value("sensitivity", scores, hits) == pytest.approx(found[rates <= 0.1].max(), abs=1e-12)


def test_calibration_compares_confidence_with_what_comes_true() -> None:
    sure = torch.tensor([[0.0, math.log(3)]] * 8)  # 75 % for the second class
    right = torch.tensor([1, 1, 1, 1, 1, 1, 0, 0])
    assert value("negative_calibration_error", sure, right) == pytest.approx(0.0, abs=1e-7)
    assert value("negative_calibration_error", sure, torch.zeros(8, dtype=torch.long)) == pytest.approx(-0.75, abs=1e-7)
    assert value("negative_calibration_error", torch.full((4, 1), math.log(3)), torch.tensor([1, 1, 1, 0])) == pytest.approx(
        0, abs=1e-7
    )


def test_tokens_count_alike_however_long_their_samples_are() -> None:
    outputs = torch.zeros(2, 3, 4)
    outputs[0, :, 1] = 9.0
    outputs[1, 0, 2] = 9.0
    targets = torch.tensor([[1, 1, 3], [2, -100, -100]])
    assert value("accuracy", outputs, targets) == 0.75
    assert value("negative_perplexity", torch.zeros(2, 3, 4), targets) == pytest.approx(-4.0)


def test_the_best_span_ends_where_it_begins_or_later() -> None:
    outputs = torch.zeros(1, 5, 2)
    outputs[0, 3, 0] = 5.0
    outputs[0, 1, 1] = 6.0  # an end before the best beginning
    outputs[0, 4, 1] = 4.0
    assert span_of(outputs).tolist() == [[3, 4]]
    assert span_of(outputs, longest=1).tolist() == [[1, 1]]
    assert value("exact_match", outputs, torch.tensor([[3, 4]])) == 1.0
    assert value("span_f1", outputs, torch.tensor([[4, 4]])) == pytest.approx(2 / 3)
    assert value("span_f1", outputs, torch.tensor([[0, 1]])) == 0.0


def test_a_transcript_is_judged_by_its_edits() -> None:
    path = torch.tensor([[1, 1, 0, 1, 2, 2, 0]])
    outputs = nn.functional.one_hot(path, 4).float()
    assert value("character_accuracy", outputs, torch.tensor([[1, 1, 2, -100]])) == 1.0
    assert value("character_accuracy", outputs, torch.tensor([[1, 2, 3, 3]])) == 0.25
    assert edits([1, 2, 3], []) == 3
    assert edits([], [1]) == 1
    assert edits([3, 1, 2], [1, 2, 3]) == 2


def test_ranking_counts_ties_against_the_model() -> None:
    outputs = torch.tensor([[3.0, 2.0, 1.0], [0.0, 0.0, 0.0]])
    targets = torch.tensor([1, 1])
    assert value("hit_rate@2", outputs, targets) == 0.5
    assert value("hit_rate", outputs, targets) == 1.0
    assert value("ndcg@2", outputs, targets) == pytest.approx(0.5 / math.log2(3))


@pytest.mark.parametrize("name", ["accuracy@3", "hit_rate@0", "hit_rate@1.5", "sensitivity@1", "sensitivity@much", "rocauc"])
def test_a_name_that_says_nothing_is_refused(name: str) -> None:
    with pytest.raises(UserError, match="E110"):
        Metric.of(name)


def test_a_set_without_a_positive_has_no_such_metric() -> None:
    metric = Metric.of("roc_auc")
    scores = metric.of_samples(torch.randn(5, 1), torch.zeros(5))
    with pytest.raises(UserError, match=r"E121.*roc_auc is nan"):
        metric.measured(scores)


def test_the_interval_of_a_resampled_mean_is_students() -> None:
    scores = RNG.normal(size=400)
    found, low, high = resampled_interval(scores, lambda part: float(part.mean()))
    half = 1.966 * scores.std(ddof=1) / 20
    assert found == scores.mean()
    assert (low, high) == pytest.approx((found - half, found + half), abs=0.015)


def test_a_resampled_difference_finds_what_is_there_and_nothing_else() -> None:
    before = RNG.normal(size=300)
    same, better = before + RNG.normal(size=300), before + 0.5 + RNG.normal(size=300)
    difference, low, high, p_value = resampled_difference([before], [better], lambda part: float(part.mean()))
    assert difference == pytest.approx(float((better - before).mean()))
    assert 0 < low < difference < high
    assert p_value < 0.01
    assert resampled_difference([before], [same], lambda part: float(part.mean()))[3] > 0.05
    assert resampled_difference([before, better], [better, before], lambda part: float(part.mean()))[:3] == (0.0, 0.0, 0.0)


def imbalanced() -> Task:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(900, 6, generator=generator)
    targets = (inputs[:, 0] + 0.5 * torch.randn(900, generator=generator) > 1.2).long()
    return Task(train=(inputs[:600], targets[:600]), test=(inputs[600:], targets[600:]), metric="roc_auc")


@pytest.mark.slow
def test_a_job_is_judged_by_a_metric_of_the_set(tmp_path: Path) -> None:
    task, train = imbalanced(), Training(epochs=6, lr=0.02, batch_size=50)
    net = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 2))
    result = compress(net, task, [prune.Weights(sparsity=0.5)], {"max_drop": "5pt"}, out=tmp_path / "run", baseline=train)
    assert result.met
    assert result.start.metric is not None
    with torch.no_grad():
        scores = result.model(task.test.inputs).softmax(1)[:, 1].numpy()
    assert result.profile.metric.value == pytest.approx(known.roc_auc_score(task.test.targets.numpy(), scores), abs=1e-6)
    assert result.profile.metric.low < result.profile.metric.value < result.profile.metric.high
    assert result.profile.metric.name == "roc_auc"


def test_further_metrics_are_told_and_judge_nothing(tmp_path: Path) -> None:
    whole = imbalanced()
    parts = [(part.inputs, part.targets) for part in (whole.train, whole.validation, whole.test)]
    task = Task(train=parts[0], validation=parts[1], test=parts[2], extra_metrics=("roc_auc", "negative_calibration_error"))
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 2))
    result = compress(net, task, [prune.Weights(sparsity=0.5)], out=tmp_path / "run")
    assert [metric.name for metric in result.profile.others] == ["roc_auc", "negative_calibration_error"]
    with torch.no_grad():
        due = known.roc_auc_score(task.test.targets, result.model(task.test.inputs).softmax(1)[:, 1])
    assert result.profile.others[0].value == pytest.approx(due, abs=1e-6)
    report = Report.from_data(json.loads((tmp_path / "run" / "report.json").read_text()))
    assert report.end.others == result.profile.others
    assert [row[0] for row in rows(report)][:3] == ["accuracy (95 %)", "roc_auc (95 %)", "negative_calibration_error (95 %)"]
    assert "negative_calibration_error" in (tmp_path / "run" / "report.html").read_text()


@pytest.mark.slow
def test_recipes_are_compared_by_a_metric_of_the_set(tmp_path: Path) -> None:
    task = imbalanced()
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(6, 2))
    recipes = {"little": [prune.Weights(sparsity=0.2)], "nearly all": [prune.Weights(sparsity=0.9)]}
    found = compare(net, task, recipes, out=tmp_path, seeds=(0, 1))
    again = compare(net, task, recipes, out=tmp_path, seeds=(0, 1))
    assert found.table() == again.table()
    assert "roc_auc" in found.table()
    kept = again.outcomes["little"][0]
    assert kept.metric == task.metric.value(kept.scores)
    assert kept.scores.dtype.names == ("codes",)


def test_fidelity_is_the_mean_r2_of_the_outputs() -> None:
    generator = torch.Generator().manual_seed(0)
    due = torch.randn(40, 2, 3, generator=generator), 50 + 9 * torch.randn(40, 4, generator=generator)
    outputs = due[0] + 0.3 * torch.randn(40, 2, 3, generator=generator), due[1] + torch.randn(40, 4, generator=generator)
    targets = torch.cat([part.flatten(1) for part in due], 1)
    flat = [(one.flatten(1).numpy(), other.flatten(1).numpy()) for one, other in zip(due, outputs, strict=True)]
    totals = [1 - np.square(a - b).sum() / np.square(a - a.mean(0)).sum() for a, b in flat]
    assert value("fidelity", outputs, targets) == pytest.approx(np.mean(totals), abs=1e-6)
    weighted = known.r2_score(*flat[0], multioutput="variance_weighted")
    assert value("fidelity", outputs[0], due[0]) == pytest.approx(weighted, abs=1e-6)
    met = Metric.of("fidelity").measured(Metric.of("fidelity").of_samples(due, targets))
    expected = (1, 1 - unseen(40), 1)  # met in every set that is drawn anew, but 40 samples do not show what others would
    assert (met.value, met.low, met.high) == pytest.approx(expected)
    fixed = torch.ones(40, 3)
    assert value("fidelity", fixed, fixed) == pytest.approx(1), "an output that is the same for all samples"
    assert value("fidelity", 1.1 * fixed, fixed) == pytest.approx(0.99)
    assert value("fidelity", torch.zeros(40, 3), torch.zeros(40, 3)) == pytest.approx(1)


def test_distances_to_another_network_are_means_over_outputs_and_samples() -> None:
    due = torch.tensor([[3.0, 4.0, 1.0], [0.0, 2.0, 1.0]])
    outputs = torch.tensor([[3.0, 4.0], [2.0, 0.0]]), torch.tensor([[2.0], [1.0]])
    assert value("cosine_similarity", outputs, due) == pytest.approx(((1 + 1) / 2 + (0 + 1) / 2) / 2)
    errors = [(0 / 5 + 1 / 1) / 2, (math.sqrt(8) / 2 + 0) / 2]
    assert value("negative_relative_error", outputs, due) == pytest.approx(-np.mean(errors))


def test_a_metric_of_the_set_takes_several_outputs() -> None:
    def apart(outputs: tuple[Tensor, Tensor], targets: Tensor) -> float:
        return float((outputs[0] - outputs[1]).mean() + targets.float().mean())

    metric = Metric.over_set(apart)
    outputs, targets = (torch.full((6, 1), 3.0), torch.ones(6, 1)), torch.arange(6)
    scores = metric.of_samples(outputs, targets)
    assert scores.dtype.names == ("outputs.0", "outputs.1", "targets")
    assert metric.value(scores) == pytest.approx(4.5)

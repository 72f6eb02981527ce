"""Losses by name: their values are those of torch, their targets may be shaped as data come."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F

from mirabelle import Task
from mirabelle.errors import UserError
from mirabelle.numerics.several_outputs import as_one_tensor
from mirabelle.task.loss import LOSSES, CrossEntropy, Matching, balanced, loss_of

X = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("name", ["mse", "mae", "huber", "binary_cross_entropy"])
def test_flat_targets_fit_a_single_column(name: str) -> None:
    column, targets = X[:, :1], torch.tensor([0.0, 1.0, 1.0, 0.0, 1.0, 0.0])
    assert loss_of(name)(column, targets) == loss_of(name)(column, targets[:, None])
    due = {
        "mse": F.mse_loss,
        "mae": F.l1_loss,
        "huber": F.huber_loss,
        "binary_cross_entropy": F.binary_cross_entropy_with_logits,
    }
    assert loss_of(name)(column, targets.long()) == due[name](column[:, 0], targets)


def test_tokens_have_their_classes_last_and_padding_does_not_count() -> None:
    outputs = torch.randn(2, 4, 5, generator=torch.Generator().manual_seed(1))
    targets = torch.tensor([[1, 2, -100, -100], [0, 4, 3, -100]])
    found = loss_of("token_cross_entropy")(outputs, targets)
    assert found == pytest.approx(float(F.cross_entropy(outputs.transpose(1, 2), targets)))


def test_balanced_weights_let_rare_classes_count_alike() -> None:
    targets = torch.tensor([0, 0, 0, 0, 1, -100])
    weights = balanced(targets, 3)
    assert weights == pytest.approx((5 / 12, 5 / 3, 0.0))
    losses = F.cross_entropy(X, targets, reduction="none")
    due = (losses[:4].mean() + losses[4]) / 2
    assert CrossEntropy(weights=weights)(X, targets) == pytest.approx(float(due), abs=1e-6)


def test_a_span_has_two_ends() -> None:
    outputs = torch.randn(3, 7, 2, generator=torch.Generator().manual_seed(2))
    targets = torch.tensor([[0, 3], [2, 2], [5, 6]])
    due = (F.cross_entropy(outputs[..., 0], targets[:, 0]) + F.cross_entropy(outputs[..., 1], targets[:, 1])) / 2
    assert loss_of("span")(outputs, targets) == pytest.approx(float(due), abs=1e-6)


def test_ctc_sums_over_all_paths_that_read_as_the_target() -> None:
    outputs = torch.randn(1, 4, 3, generator=torch.Generator().manual_seed(3))
    target = [1, 2]
    shares = outputs[0].double().softmax(-1)
    total = 0.0
    for path in itertools.product(range(3), repeat=4):
        read = [symbol for symbol, _ in itertools.groupby(path) if symbol]
        total += math.prod(float(shares[k, symbol]) for k, symbol in enumerate(path)) if read == target else 0.0
    padded = torch.tensor([[*target, -100]])
    assert float(loss_of("ctc")(outputs, padded)) == pytest.approx(-math.log(total) / 2, abs=1e-6)


def test_cross_entropies_alone_have_class_scores() -> None:
    axes = {name: Task(train=(X, X), test=(X, X), loss=name).outputs.classes_axis for name in LOSSES}
    assert axes == {
        "cross_entropy": 1, "token_cross_entropy": -1, "binary_cross_entropy": None, "mse": None, "mae": None, "huber": None,
        "span": 1, "ctc": None, "matching": None,
    }  # fmt: skip
    assert Task(train=(X, X), test=(X, X), loss=CrossEntropy(weights=(1.0, 2.0, 1.0))).outputs.classifies


def test_several_outputs_match_by_what_each_varies() -> None:
    outputs = torch.randn(5, 2, 3, generator=torch.Generator().manual_seed(4)), 100 * X[:5]
    due = torch.randn(5, 9, generator=torch.Generator().manual_seed(5))
    parts = [F.mse_loss(outputs[0].flatten(1), due[:, :6]), F.mse_loss(outputs[1], due[:, 6:])]
    assert loss_of("matching")(outputs, due) == pytest.approx(float(sum(parts)) / 2)
    assert Matching((1.0, 1e4))(outputs, due) == pytest.approx(float(parts[0] + parts[1] / 1e4) / 2)
    assert loss_of("matching")(X, X + 2) == pytest.approx(4.0)
    torch.testing.assert_close(as_one_tensor(outputs), torch.cat([outputs[0].flatten(1), outputs[1]], 1))
    assert float(Matching()(outputs, as_one_tensor(outputs))) == 0


def test_a_function_of_one_s_own_is_a_loss_by_its_name(tmp_path: Path) -> None:
    (tmp_path / "own.py").write_text("def twice(outputs, targets):\n    return 2 * (outputs - targets).abs().mean()\n")
    assert loss_of("./own.py:twice", tmp_path)(X, X + 1) == pytest.approx(2.0)
    assert loss_of("torch.nn.functional:l1_loss") is F.l1_loss
    with pytest.raises(UserError, match=r'own.py has no function "once"'):
        loss_of("./own.py:once", tmp_path)


def test_a_loss_that_is_not_known_is_named() -> None:
    with pytest.raises(UserError, match='loss "bce" is not known'):
        loss_of("bce")

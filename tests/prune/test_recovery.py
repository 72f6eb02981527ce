"""Recovery: statistics as computed by hand, layers as least squares says, and nothing touched that should stay."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mirabelle import Run, Task, prune
from mirabelle.calibration.columns import columns_of
from mirabelle.errors import UserError
from mirabelle.model.architecture import Architecture, architecture_of, attach
from mirabelle.model.edits import Cut
from mirabelle.model.state import copied
from mirabelle.prune.recovery import reconstruct, reestimate_batch_norm
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.task.batch import Batch


def batches(*shape: int, count: int = 2) -> list[Tensor]:
    return [torch.randn(shape, generator=torch.Generator().manual_seed(k)) for k in range(count)]


def cut_to(dense: nn.Module, smaller: nn.Module, slices: dict[str, dict[int, list[int]]]) -> nn.Module:
    """The smaller module with the dense one's tensors, sliced."""
    tensors = dense.state_dict()
    for name, dimensions in slices.items():
        for dimension, kept in dimensions.items():
            tensors[name] = tensors[name].index_select(dimension, torch.tensor(kept))
    smaller.load_state_dict(tensors)
    attach(smaller, Architecture().with_edit(Cut.of(slices, {})))
    return smaller.eval()


class Normed(nn.Module):
    """Two norms, one behind the other, with dropout between."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.norm1, self.drop = nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.Dropout(0.5)
        self.conv2, self.norm2 = nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
        self.unused = nn.BatchNorm1d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm2(self.conv2(self.drop(self.norm1(self.conv1(x)).relu())))


def test_statistics_are_those_of_all_samples_one_norm_after_the_other() -> None:
    torch.manual_seed(0)
    model, data = Normed().train(), [batches(5, 2, 8, 8)[0], 3 + 2 * batches(3, 2, 8, 8)[0]]
    before = copy.deepcopy(model.state_dict())
    recovery = reestimate_batch_norm(model, [Batch(data[0], torch.zeros(5)), data[1]])
    assert recovery.norms == ("norm1", "norm2")
    assert recovery.left == {"unused": "it is not reached"}
    found = recovery.model
    with torch.no_grad():
        x = found.conv1(torch.cat(data))
        for norm, read in ((found.norm1, x), (found.norm2, found.conv2(found.norm1.eval()(x).relu()))):
            assert torch.allclose(norm.running_mean, read.mean((0, 2, 3)), atol=1e-5)
            assert torch.allclose(norm.running_var, read.var((0, 2, 3)), rtol=1e-4)
    assert all(torch.equal(tensor, model.state_dict()[name]) for name, tensor in before.items())
    changed = {name for name, tensor in found.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {f"norm{k}.running_{what}" for k in (1, 2) for what in ("mean", "var")}
    assert all(module.training for module in model.modules())


def test_a_norm_that_runs_twice_pools_what_it_sees() -> None:
    class Twice(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.norm = nn.BatchNorm1d(2, affine=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(x) + self.norm(5 * x + 1)

    x = batches(7, 2, 3)[0]
    norm = reestimate_batch_norm(Twice(), [x]).model.norm
    values = torch.cat([x, 5 * x + 1]).transpose(0, 1).flatten(1)
    assert torch.allclose(norm.running_mean, values.mean(1), atol=1e-6)
    assert torch.allclose(norm.running_var, values.var(1), rtol=1e-5)


def test_one_value_a_channel_is_left() -> None:
    recovery = reestimate_batch_norm(nn.BatchNorm1d(2), [torch.ones(1, 2)])
    assert recovery.left == {"": "one value has no variance"}
    assert torch.equal(recovery.model.running_var, torch.ones(2))


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Linear(6, 4), (5, 6)),
        (nn.Linear(6, 4, bias=False), (5, 3, 6)),
        (nn.Conv1d(6, 4, 3, stride=2, padding=1), (5, 6, 9)),
        (nn.Conv2d(6, 4, (3, 2), stride=(1, 2), padding=(0, 1), dilation=(2, 1)), (5, 6, 9, 8)),
        (nn.Conv2d(6, 4, 3, padding="same", padding_mode="reflect", groups=2), (5, 6, 7, 8)),
        (nn.Conv2d(6, 6, 3, padding=1, groups=6, bias=False), (5, 6, 7, 8)),
    ],
    ids=["linear", "tokens", "conv1d", "dilated", "grouped", "depthwise"],
)
def test_a_layer_is_the_product_of_its_weight_and_some_rows(layer: nn.Linear | nn.Conv2d, shape: tuple[int, ...]) -> None:
    (x,), columns = batches(*shape, count=1), columns_of(layer)
    with torch.no_grad():
        outputs = layer(x)
    rows = torch.arange(columns.rows_in(x))[::3]
    (read,) = columns.at(x, rows)
    by_hand = (read.double() @ columns.weight().transpose(1, 2)).transpose(0, 1).reshape(len(rows), -1)
    if layer.bias is not None:
        by_hand = by_hand + layer.bias.detach().double()
    assert (by_hand - columns.outputs_at(outputs, rows)).abs().max() < 1e-5


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("kind", [nn.Linear, nn.Conv2d])
def test_inputs_that_are_sums_of_kept_ones_are_made_up_for(kind: type[nn.Module], bias: bool) -> None:
    torch.manual_seed(0)
    more, shape = (
        ({}, (300, 4)) if kind is nn.Linear else ({"kernel_size": 3, "padding": 1, "padding_mode": "circular"}, (60, 4, 5, 5))
    )
    dense = nn.Sequential(kind(4, 5, **more), kind(5, 3, bias=bias, **more)).double()
    with torch.no_grad():  # units 1 and 3 are mixtures of the others, constant apart
        for tensor in dense[0].parameters():
            tensor[1], tensor[3] = 2 * tensor[0] - tensor[4], tensor[2] + tensor[0]
        dense[0].bias[3] += 0.7 if bias else 0.0
    kept = [0, 2, 4]
    smaller = nn.Sequential(kind(4, 3, **more), kind(3, 3, bias=bias, **more)).double()
    cut_to(dense, smaller, {"0.weight": {0: kept}, "0.bias": {0: kept}, "1.weight": {1: kept}})
    data = [x.double() for x in batches(*shape)]
    recovery = reconstruct(dense, smaller, data, ridge=1e-10)
    (x,) = batches(*shape, count=1)
    with torch.no_grad():
        assert (smaller(x.double()) - dense(x.double())).abs().max() > 0.1
        assert (recovery.model(x.double()) - dense(x.double())).abs().max() < 1e-6
    assert list(recovery.layers) == ["1"], "what stands before the cut stays"
    before, after = recovery.layers["1"]
    assert before > 0.01
    assert after < 1e-12
    assert torch.equal(recovery.model[0].weight, smaller[0].weight)


def test_grouped_layers_are_fitted_group_by_group_and_only_to_outputs_that_stay() -> None:
    torch.manual_seed(0)
    dense = nn.Sequential(nn.Conv1d(2, 6, 1), nn.ReLU(), nn.Conv1d(6, 4, 3, groups=2, bias=False), nn.Conv1d(4, 4, 1, groups=4))
    smaller = nn.Sequential(
        nn.Conv1d(2, 4, 1), nn.ReLU(), nn.Conv1d(4, 2, 3, groups=2, bias=False), nn.Conv1d(2, 2, 1, groups=2)
    )
    first, last = {"0.weight": {0: [0, 1, 3, 5]}, "0.bias": {0: [0, 1, 3, 5]}}, [1, 2]
    slices = {**first, "2.weight": {0: last}, "3.weight": {0: last}, "3.bias": {0: last}}
    tensors = dense.state_dict()
    held = torch.stack([tensors["2.weight"][1][:2], tensors["2.weight"][2][[0, 2]]])
    tensors = {name: tensors[name][parts[0]] if 0 in parts else tensors[name] for name, parts in slices.items()}
    smaller.load_state_dict({**tensors, "2.weight": held})
    attach(smaller, Architecture().with_edit(Cut.of(slices, {})))
    data = batches(200, 2, 6)
    recovery = reconstruct(dense, smaller, data, ridge=1e-9)
    with torch.no_grad():
        read = smaller[1](smaller[0](torch.cat(data))).double()
        due = dense[:3](torch.cat(data))[:, last].double()
        for group in range(2):
            x = read[:, 2 * group : 2 * group + 2].unfold(2, 3, 1).transpose(1, 2).reshape(-1, 6)
            best = torch.linalg.lstsq(x, due[:, group].reshape(-1, 1)).solution.reshape(2, 3)
            assert torch.allclose(recovery.model[2].weight[group].double(), best, atol=1e-4)
    assert list(recovery.layers) == ["2", "3"]
    assert all(after <= before for before, after in recovery.layers.values())


class Strange(nn.Module):
    """Layers that must be left: tied, run twice, not run, pruned."""

    def __init__(self, inner: int) -> None:
        super().__init__()
        self.first, self.tied, self.twin = nn.Linear(4, inner), nn.Linear(inner, 4), nn.Linear(inner, 4)
        self.twin.weight = self.tied.weight
        self.twice, self.never, self.pruned, self.last = (nn.Linear(4, 4) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.first(x).relu()
        x = self.twice(self.twice(self.tied(x) + self.twin(x)))
        return self.last(input=self.pruned(x))


def test_what_cannot_be_fitted_alone_is_left_and_named() -> None:
    torch.manual_seed(0)
    dense, kept = Strange(6), [0, 1, 2]
    slices = {"first.weight": {0: kept}, "first.bias": {0: kept}, "tied.weight": {1: kept}, "twin.weight": {1: kept}}
    smaller = cut_to(dense, Strange(3), slices)
    attach(smaller, architecture_of(smaller).with_pruned(["pruned.weight"]))
    before = {**dense.state_dict(), **{f"smaller.{name}": tensor.clone() for name, tensor in smaller.state_dict().items()}}
    before = copy.deepcopy(before)
    recovery = reconstruct(dense, smaller, batches(50, 4))
    assert recovery.left == {
        "tied": "its weights are shared",
        "twin": "its weights are shared",
        "twice": "it runs more than once",
        "never": "it is not reached",
        "pruned": "its zeros are kept",
    }
    assert list(recovery.layers) == ["last"]
    after = {**dense.state_dict(), **{f"smaller.{name}": tensor for name, tensor in smaller.state_dict().items()}}
    assert all(torch.equal(after[name], tensor) for name, tensor in before.items())
    changed = {
        name for name, tensor in recovery.model.state_dict().items() if not torch.equal(tensor, smaller.state_dict()[name])
    }
    assert changed == {"last.weight", "last.bias"}
    again = reconstruct(dense, smaller, batches(50, 4))
    assert torch.equal(again.model.last.weight, recovery.model.last.weight)
    assert again.layers == recovery.layers
    assert dense.training
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in recovery.model.modules())


def test_a_rewritten_program_comes_back_as_it_was(images: Task, tmp_path: Path) -> None:
    class Written(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.head = nn.Conv2d(1, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Linear(6, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.norm(self.conv(x)).relu().reshape(len(x), 6, 64).mean(2))

    torch.manual_seed(0)
    dense = Written()
    smaller = prune.Channels(sparsity=0.5)(dense, images, Run(tmp_path))
    x = images.train.first(2).inputs
    for recovery in (reestimate_batch_norm(smaller, [x]), reconstruct(dense, smaller, [x])):
        assert recovery.left == {"": "it is a rewritten program"}
        assert torch.equal(recovery.model(x), smaller(x))


def test_mistakes_are_told() -> None:
    model = nn.BatchNorm1d(2)
    with pytest.raises(UserError, match=r"E131.*no batch"):
        reestimate_batch_norm(model, [])
    with pytest.raises(UserError, match=r"E131.*have different shapes"):
        reestimate_batch_norm(model, [torch.ones(2, 2), torch.ones(2, 2, 3)])
    with pytest.raises(UserError, match=r"E110.*ridge is 0"):
        reconstruct(model, model, [torch.ones(2, 2)], ridge=0.0)


def test_half_of_a_trained_network_works_again_without_labels(tmp_path: Path) -> None:
    task = digits()
    torch.manual_seed(0)
    dense = digits_cnn()
    optimizer = torch.optim.Adam(dense.parameters(), lr=3e-3)
    for k in range(60):
        batch = task.train.at(torch.arange(96) + 96 * (k % 12))
        optimizer.zero_grad()
        task.loss(dense(batch.inputs), batch.targets).backward()
        optimizer.step()
    smaller = prune.Channels(sparsity=0.5)(dense, task, Run(tmp_path))
    recovery = reconstruct(dense, smaller, [task.train.first(400)])

    def accuracy(model: nn.Module) -> float:
        with torch.no_grad():
            return float((model.eval()(task.validation.inputs).argmax(1) == task.validation.targets).float().mean())

    assert accuracy(recovery.model) > max(accuracy(smaller) + 0.03, accuracy(dense) - 0.03)
    assert set(recovery.layers) == {"conv2", "fc1", "fc2"}


class Words(nn.Module):
    """Reads tokens that an attention mask counts."""

    def __init__(self) -> None:
        super().__init__()
        self.table, self.inner, self.head = nn.Embedding(9, 6), nn.Linear(6, 8), nn.Linear(8, 3)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        counted = attention_mask[..., None].float()
        return (self.head(torch.relu(self.inner(self.table(input_ids)))) * counted).sum(1) / counted.sum(1)


def test_tokens_that_are_masked_do_not_count_in_a_fit() -> None:
    """Padding to twice the length, with whatever tokens, changes neither the fit nor what it says of it."""
    torch.manual_seed(0)
    dense = Words().eval()
    smaller = copied(dense)
    smaller.inner, smaller.head = nn.Linear(6, 4), nn.Linear(4, 3)
    with torch.no_grad():
        smaller.inner.weight.copy_(dense.inner.weight[:4])
        smaller.inner.bias.copy_(dense.inner.bias[:4])
        smaller.head.weight.copy_(dense.head.weight[:, :4])
        smaller.head.bias.copy_(dense.head.bias)
    cut = {"inner.weight": {0: [0, 1, 2, 3]}, "inner.bias": {0: [0, 1, 2, 3]}, "head.weight": {1: [0, 1, 2, 3]}}
    attach(smaller, Architecture().with_edit(Cut.of(cut, {})))
    ids, mask = torch.randint(0, 9, (50, 5)), torch.ones(50, 5, dtype=torch.long)
    padded = {
        "input_ids": torch.cat([ids, torch.randint(0, 9, (50, 5))], 1), "attention_mask": torch.cat([mask, 0 * mask], 1)
    }  # fmt: skip
    plain = reconstruct(dense, smaller, [{"input_ids": ids, "attention_mask": mask}])
    found = reconstruct(dense, smaller, [padded])
    torch.testing.assert_close(found.model.head.weight, plain.model.head.weight)
    torch.testing.assert_close(found.model.head.bias, plain.model.head.bias)
    assert not torch.allclose(plain.model.head.weight, smaller.head.weight)
    assert found.layers["head"] == pytest.approx(plain.layers["head"])

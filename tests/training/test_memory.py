"""Trainings in less memory, in half precision, and compiled: what they change of a training, and what not."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from elsewhere import ELSEWHERE, a_second_device
from mirabelle import Run, Task, Training
from mirabelle.errors import UserError
from mirabelle.model.device import computing_on
from mirabelle.model.state import copied, tensors_of_module
from mirabelle.objectives import SimilarityPreserving, SoftTargets, TaskLoss
from mirabelle.run.journal import read_events
from mirabelle.task import LOSSES, CrossEntropy
from mirabelle.task.batch import Batch
from mirabelle.training import Execution, evaluate, fit, optimizer, outputs_of
from mirabelle.training.memory import blocks_to_recompute, parts_of_batch, recomputing


def trained(model: nn.Module, task: Task, folder: Path, **settings: Any) -> nn.Module:
    defaults: dict[str, Any] = {"epochs": 2, "batch_size": 32, "lr": 0.05, "precision": "float32", "optimizer": "sgd"}
    return fit(copied(model), task, Training(**{**defaults, **settings}), Run(folder, seed=1))


def losses(folder: Path) -> list[float]:
    return [event["loss"] for event in read_events(folder) if event["event"] == "epoch"]


def same(one: nn.Module, other: nn.Module) -> bool:
    mine, others = tensors_of_module(one), tensors_of_module(other)
    return mine.keys() == others.keys() and all(torch.equal(tensor, others[name]) for name, tensor in mine.items())


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm, self.one, self.two = nn.BatchNorm1d(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop = nn.Dropout(0.3)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.two(self.drop(torch.relu(self.one(self.norm(x)))))


class Blocks(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.blocks, self.head = nn.Linear(8, 16), nn.ModuleList(Block(16) for _ in range(3)), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = block(x)
        return self.head(x)


def test_parts_have_the_gradient_of_the_whole_batch(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    whole = trained(mlp, blobs, tmp_path / "whole")
    for size in (32, 40):
        assert same(whole, trained(mlp, blobs, tmp_path / f"of {size}", micro_batch=size))
    parts = trained(mlp, blobs, tmp_path / "parts", micro_batch=12)
    assert not same(whole, parts)
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    assert losses(tmp_path / "parts") == pytest.approx(losses(tmp_path / "whole"), rel=1e-5)


def test_the_share_of_a_part_is_that_of_the_targets_that_count() -> None:
    targets = torch.tensor([[0, 1, 2], [0, -100, -100], [-100, -100, -100], [1, 1, -100]])
    batch = Batch(torch.randn(4, 5), targets, torch.arange(4), view=3)
    parts = parts_of_batch(batch, 2, LOSSES["token_cross_entropy"])
    assert [shares.targets for shares, _ in parts] == pytest.approx([4 / 6, 2 / 6])
    assert [shares.samples for shares, _ in parts] == [0.5, 0.5]
    assert [part.index.tolist() for _, part in parts if part.index is not None] == [[0, 1], [2, 3]]
    assert {part.view for _, part in parts} == {3}
    logits = torch.randn(4, 3, 7)
    cross_entropy = partial(nn.functional.cross_entropy, ignore_index=-100)
    mean = cross_entropy(logits.transpose(1, 2), targets)
    added = sum(
        shares.targets * cross_entropy(logits[k : k + 2].transpose(1, 2), part.targets)
        for (shares, part), k in zip(parts, (0, 2), strict=True)
    )
    torch.testing.assert_close(added, mean)
    without = parts_of_batch(Batch(torch.zeros(5, 1), torch.full((5,), -100)), 2, LOSSES["cross_entropy"])
    assert [shares.targets for shares, _ in without] == [0.4, 0.4, 0.2]


OF_CLASSES = [
    nn.CrossEntropyLoss(),
    nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 25.0])),
    nn.CrossEntropyLoss(torch.tensor([1.0, 5.0, 25.0]), reduction="sum"),
    CrossEntropy(weights=(1.0, 5.0, 25.0)),
]


@pytest.mark.parametrize("loss", OF_CLASSES)
def test_each_term_of_a_loss_has_its_own_share_in_a_part(loss: Any, tmp_path: Path) -> None:
    """Class weights and labels that are missing count in the loss of the task, and not in that of a teacher's decisions."""
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(60, 6, generator=generator), torch.arange(60) % 3
    y[torch.arange(60) % 4 == 0] = -100
    torch.manual_seed(0)
    model, teacher = nn.Linear(6, 3), nn.Linear(6, 3)
    task = Task(train=(x, y), validation=(x, y.clamp_min(0)), test=(x, y.clamp_min(0)), loss=loss).with_teacher(teacher)
    settings = {"objective": 0.5 * SoftTargets() + 0.5 * TaskLoss(), "lr": 0.01, "batch_size": 30}
    whole, parts = (trained(model, task, tmp_path / str(size), micro_batch=size, **settings) for size in (30, 11))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_blocks_that_are_computed_again_give_the_same_bits_in_less_memory(blobs: Task, tmp_path: Path) -> None:
    """With batch norms, whose statistics count once, and dropout, whose draws are repeated."""
    torch.manual_seed(0)
    model = Blocks()
    one = trained(model, blobs, tmp_path / "one", optimizer="adamw", lr=1e-3)
    other = trained(model, blobs, tmp_path / "other", optimizer="adamw", lr=1e-3, recompute=True)
    assert same(one, other)
    assert all("forward" not in vars(module) for module in other.modules())

    def kept(blocks: list[nn.Module]) -> int:
        seen: dict[int, int] = {}

        def pack(tensor: Tensor) -> Tensor:
            seen[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor), recomputing(blocks):
            held = model.train()(torch.randn(256, 8))
        assert held.requires_grad
        return sum(seen.values())

    assert kept(blocks_to_recompute(model)) < 0.4 * kept([])


def test_the_blocks_are_the_members_of_the_outer_lists() -> None:
    model = Blocks()
    assert blocks_to_recompute(model) == list(model.blocks)
    inner = nn.Sequential(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.ReLU()))
    assert blocks_to_recompute(inner) == list(inner)
    assert blocks_to_recompute(nn.Sequential(nn.Linear(2, 2), nn.ReLU(), nn.Linear(2, 2))) == []  # layers, no blocks


class Hungry(nn.Linear):
    """Has memory for so many samples in training."""

    def __init__(self, most: int) -> None:
        super().__init__(8, 3)
        self.most = most

    def forward(self, x: Tensor) -> Tensor:
        if self.training and len(x) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 1 GiB")
        return super().forward(x)


def test_a_batch_too_large_for_the_memory_is_taken_in_parts(blobs: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Hungry(10)
    found = trained(model, blobs, tmp_path / "found")
    assert same(found, trained(model, blobs, tmp_path / "asked", micro_batch=8))
    events = read_events(tmp_path / "found")
    told = [event["text"] for event in events if event["event"] == "warning"]
    assert told == [
        "memory does not suffice for 32 samples: batches are taken in parts of at most 16",
        "memory does not suffice for 16 samples: batches are taken in parts of at most 8",
    ]
    assert [event["value"] for event in events if event.get("name") == "micro_batch"] == [16, 8]
    with pytest.raises(torch.OutOfMemoryError):
        trained(Hungry(0), blobs, tmp_path / "none")


@pytest.mark.parametrize("precision", ["float32", "auto"])
def test_memory_is_found_too_small_also_while_executions_are_measured(precision: str, blobs: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    trained(Hungry(10), blobs, tmp_path, precision=precision)
    assert Run(tmp_path).folder.is_dir()
    values = [event["value"] for event in read_events(tmp_path) if event.get("name") == "micro_batch"]
    assert values == [16, 8]


def test_parts_have_the_weights_of_their_classes(mlp: nn.Module, blobs: Task, tmp_path: Path) -> None:
    task = blobs.replace(loss=CrossEntropy(weights=(0.3, 1.0, 5.0)))
    whole, parts = (trained(mlp, task, tmp_path / str(size), micro_batch=size) for size in (32, 5))
    for one, other in zip(whole.parameters(), parts.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("precision", ["float32", "float16"])
def test_gradients_that_are_never_finite_are_a_divergence(precision: str, blobs: Task, tmp_path: Path) -> None:
    class Broken(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            found = super().forward(x)
            return found + 0 * (found.detach() - found).abs().sqrt()  # its derivative is infinite, its value is not

    with pytest.raises(UserError, match=r"E201.*diverged"):
        trained(Broken(8, 3), blobs, tmp_path, precision=precision, epochs=4)


def test_buffers_of_any_module_count_once_where_blocks_are_computed_again(blobs: Task, tmp_path: Path) -> None:
    torch.manual_seed(0)
    norm = torch.nn.utils.parametrizations.spectral_norm
    blocks = [nn.Sequential(norm(nn.Linear(8, 8)), nn.ReLU()) for _ in range(3)]
    model = nn.Sequential(*blocks, nn.Sequential(nn.Linear(8, 3)))
    one, other = (trained(model, blobs, tmp_path / str(k), recompute=bool(k)) for k in range(2))
    assert same(one, other)


@pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor")  # by the compiler, about what the hooks keep
def test_a_compiled_model_tells_the_layers_that_a_loss_reads(
    blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A graph of another model of the class, without hooks, is not taken: such as that of the copy that was measured."""
    monkeypatch.setattr(torch, "compile", torch._dynamo.optimize("eager"))
    monkeypatch.setattr("mirabelle.training.execution._GAIN", 0.0)
    torch.manual_seed(0)
    model, teacher = (nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3)) for _ in range(2))
    objective = 1.0 * TaskLoss() + 0.5 * SimilarityPreserving(layers=("1",), teacher_layers=("1",))
    task = blobs.with_teacher(teacher.eval())
    trained(model, task, tmp_path, compile=True, objective=objective)
    assert [event["value"] for event in read_events(tmp_path) if event.get("name") == "execution"] == ["float32 compiled"]


def test_losses_in_float16_are_scaled_and_a_killed_training_goes_on(
    blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.manual_seed(0)
    model = Blocks()
    settings: dict[str, Any] = {"precision": "float16", "epochs": 3, "clip": 1.0, "optimizer": "adamw", "lr": 1e-2}
    whole = trained(model, blobs, tmp_path / "whole", **settings)
    assert losses(tmp_path / "whole")[-1] < 0.3
    assert all(bool(tensor.isfinite().all()) for tensor in whole.state_dict().values())

    def kill(event: Any) -> None:
        if event["event"] == "epoch" and event["epoch"] == 2:
            raise KeyboardInterrupt

    training = Training(**{"batch_size": 32, **settings})
    monkeypatch.setattr("mirabelle.training.checkpoint.Checkpoint.due", property(lambda _: True))
    with pytest.raises(KeyboardInterrupt):
        fit(copied(model), blobs, training, Run(tmp_path / "killed", seed=1, callbacks=[kill]))
    again = fit(copied(model), blobs, training, Run(tmp_path / "killed", seed=1))
    assert any(event["event"] == "taken up" for event in read_events(tmp_path / "killed"))
    assert same(whole, again)


def test_a_compiled_model_trains_the_same_weights(
    mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By the compiler's own tracing, without code for the processor, which may have no compiler."""
    plain = trained(mlp, blobs, tmp_path / "plain")
    made: list[nn.Module] = []

    def compiled(model: nn.Module) -> Any:
        made.append(model)
        return torch._dynamo.optimize("eager")(model)

    monkeypatch.setattr(torch, "compile", compiled)
    assert Execution.parse("bfloat16 channels_last compiled") == Execution("bfloat16", channels_last=True, compiled=True)
    run = Run(tmp_path / "compiled", seed=1)
    run.journal.decisions["execution"] = "float32 compiled"
    training = Training(epochs=2, batch_size=32, lr=0.05, precision="float32", optimizer="sgd", compile=True)
    found = fit(copied(mlp), blobs, training, run)
    assert len(made) == 1
    assert same(plain, found)


def test_what_cannot_be_compiled_is_not(mlp: nn.Module, blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def compiled(_: nn.Module) -> Any:
        raise OSError("no compiler")

    monkeypatch.setattr(torch, "compile", compiled)
    trained(mlp, blobs, tmp_path, compile=True)
    decided = [event["value"] for event in read_events(tmp_path) if event["event"] == "decision"]
    assert decided == ["float32"]


def test_an_evaluation_takes_halves_where_memory_does_not_suffice(blobs: Task) -> None:
    torch.manual_seed(0)
    model, sizes = nn.Linear(8, 3), list[int]()

    def hungry(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        sizes.append(len(given[0]))
        if len(given[0]) > 60:
            raise torch.OutOfMemoryError("CUDA out of memory")

    due = evaluate(model, blobs.test, blobs)
    model.register_forward_pre_hook(hungry)
    assert (evaluate(model, blobs.test, blobs) == due).all()
    assert sum(size for size in sizes if size <= 60) == len(blobs.test)
    outputs, targets = outputs_of(model, blobs.test)
    assert len(outputs) == len(targets) == len(blobs.test)


def test_data_that_fit_stay_on_the_device(blobs: Task, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    model, moved = nn.Linear(8, 3), list[torch.Size]()
    monkeypatch.setattr(optimizer, "FUSED", ())
    plain = trained(model, blobs, tmp_path / "plain", optimizer="adamw")
    with a_second_device(), computing_on(ELSEWHERE):
        monkeypatch.setattr("mirabelle.training.memory.free_bytes", lambda _: 1 << 30)
        monkeypatch.setattr(Batch, "to", _counting(moved))
        there = trained(model, blobs, tmp_path / "there", optimizer="adamw")
    monkeypatch.undo()
    assert same(plain, there)
    assert not moved  # every batch was there already


def _counting(moved: list[torch.Size]) -> Any:
    move = Batch.to

    def to(batch: Batch, device: torch.device) -> Batch:
        if batch.targets.device != device:
            moved.append(batch.targets.shape)
        return move(batch, device)

    return to


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))


MEANS: dict[str, tuple[Tensor, Tensor]] = {
    "ctc": (drawn(6, 12, 5), torch.tensor([[1, 2, 3, 4], [1, -100, -100, -100], [2, 2, -100, -100]] * 2)),
    "span": (drawn(4, 9, 2), torch.tensor([[1, 2, 7], [-100, -100, 3], [0, 5, 1], [4, 4, 2]])),
    "binary_cross_entropy": (drawn(4, 3), torch.tensor([[1.0, 0, -100], [-100, -100, 1], [0, 0, 1], [1, -100, 0]])),
    "mse": (drawn(4, 3), drawn(4, 3) + 1),
    "cross_entropy": (drawn(5, 4), torch.tensor([0, 3, -100, 1, 2])),
    "token_cross_entropy": (drawn(3, 4, 6), torch.tensor([[1, 2, -100, -100], [5, 4, 3, 2], [-100, -100, -100, 0]])),
}


@pytest.mark.parametrize("name", MEANS)
def test_the_shares_of_parts_add_up_to_the_loss_of_the_batch(name: str) -> None:
    outputs, targets = MEANS[name]
    loss = LOSSES[name]
    parts = parts_of_batch(Batch(outputs, targets), 2, loss)
    added = sum(shares.targets * loss(part.inputs, part.targets) for shares, part in parts if shares.targets)
    torch.testing.assert_close(added, loss(outputs, targets))


def test_a_loss_of_the_user_that_sums_is_told_where_batches_are_taken_in_parts(blobs: Task, tmp_path: Path) -> None:
    for name, told in (("mean", False), ("sum", True)):

        def loss(outputs: Tensor, targets: Tensor, how: str = name) -> Tensor:
            return nn.functional.cross_entropy(outputs, targets, reduction=how)

        task = Task(train=blobs.train, validation=blobs.validation, test=blobs.test, loss=partial(loss))
        model = nn.Linear(blobs.train.first(1).inputs.shape[1], 3)  # type: ignore[union-attr]
        for micro_batch in (None, 8):
            trained(model, task, tmp_path / f"{name}-{micro_batch}", micro_batch=micro_batch, epochs=1, lr=1e-4)
            events = read_events(tmp_path / f"{name}-{micro_batch}")
            warned = any("no mean over the samples" in event.get("text", "") for event in events)
            assert warned == (told and micro_batch is not None)

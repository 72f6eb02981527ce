"""Objectives in other loops: one of one's own, and the Trainer of transformers."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from mirabelle import Run, Task, Training
from mirabelle.distill import Guided
from mirabelle.errors import UserError
from mirabelle.objectives import CRD, HiddenStates, Hint, SoftTargets, TaskLoss
from mirabelle.records.schedules import Annealed
from mirabelle.task.batch import Batch
from mirabelle.training import evaluate, fit
from students import pair_for


def test_a_loop_of_ones_own_trains_student_and_projectors_and_leaves_nothing(images: Task, run: Run) -> None:
    student, task = pair_for(Hint, images)
    teacher = fit(task.teacher, images, Training(epochs=4, batch_size=50, lr=0.01), run)  # type: ignore[arg-type]
    names = list(student.state_dict())
    objective = 0.5 * Hint(layers=("coarse",), teacher_layers=("coarse",)) + 0.5 * SoftTargets() + 0.1 * TaskLoss()
    example = images.example()
    with Guided(student, teacher, objective, (example.inputs, example.targets)) as loss:
        optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
        projector = student.get_parameter("distillation_0")
        before = projector.detach().clone()
        for epoch in range(15):
            for batch in images.train.shuffled(50, epoch):
                optimizer.zero_grad()
                loss(student.train()(batch.inputs), batch.targets).backward()
                optimizer.step()
    assert not torch.equal(projector, before)
    assert float(evaluate(student, images.validation, images).mean()) > 0.9
    assert list(student.state_dict()) == names
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in student.modules())


def test_what_is_trained_along_is_not_part_of_the_student(images: Task) -> None:
    student, task = pair_for(Hint, images)
    assert task.teacher is not None
    plain = copy.deepcopy(student)
    names, example = list(student.state_dict()), images.example()
    objective = Annealed(start=1.0, end=0.0) * Hint(layers=("coarse",), teacher_layers=("coarse",)) + 1.0 * TaskLoss()

    def guided(model: nn.Module) -> Guided:
        return Guided(model, task.teacher, objective, (example.inputs, example.targets), steps=4)  # type: ignore[arg-type]

    with guided(student) as loss:
        assert "distillation_0" in dict(student.named_parameters())
        state = student.state_dict()
        assert list(state) == names
        assert list(nn.Sequential(student).state_dict()) == [f"0.{name}" for name in names]
        plain.load_state_dict(state)
        loss(student.train()(example.inputs), example.targets)
        projector = student.get_parameter("distillation_0").detach().clone()
        student.load_state_dict(plain.state_dict())
        assert torch.equal(student.get_parameter("distillation_0"), projector)
        kept = loss.state_dict()
    student.load_state_dict(plain.state_dict())
    with guided(plain) as resumed:
        resumed.load_state_dict(kept)
        assert torch.equal(plain.get_parameter("distillation_0"), projector)
        assert int(resumed.state_dict()["steps_done"]) == 1
        with pytest.raises(UserError, match=r"E140"):
            resumed.load_state_dict({})
    assert not plain._state_dict_hooks
    assert not plain._load_state_dict_pre_hooks


def test_a_loop_goes_on_with_the_same_bits_from_what_is_stored(images: Task) -> None:
    objective = Annealed(start=1.0, end=0.0) * Hint(layers=("coarse",), teacher_layers=("coarse",)) + 0.5 * SoftTargets()
    example = images.example()

    def trained(student: nn.Module, state: Any, begin: int, end: int) -> tuple[dict[str, Tensor], Any]:
        assert task.teacher is not None
        with Guided(student, task.teacher, objective, (example.inputs, example.targets), steps=6) as loss:
            optimizer = torch.optim.AdamW(student.parameters(), lr=0.02)
            if state is not None:
                student.load_state_dict(state["student"])
                optimizer.load_state_dict(state["optimizer"])
                loss.load_state_dict(state["loss"])
            for k in range(begin, end):
                batch = images.train.at(torch.arange(20 * k, 20 * k + 20))
                optimizer.zero_grad()
                loss(student.train()(batch.inputs), batch.targets).backward()
                optimizer.step()
            state = {"student": student.state_dict(), "optimizer": optimizer.state_dict(), "loss": loss.state_dict()}
            return {name: tensor.clone() for name, tensor in student.named_parameters()}, copy.deepcopy(state)

    student, task = pair_for(Hint, images)
    whole, _ = trained(student, None, 0, 6)
    student, task = pair_for(Hint, images)
    _, state = trained(student, None, 0, 3)
    other = copy.deepcopy(student)
    torch.manual_seed(99)  # other projectors, were they not restored
    found, _ = trained(other, state, 3, 6)
    assert "distillation_0" in found
    assert all(torch.equal(tensor, whole[name]) for name, tensor in found.items())


def test_it_is_the_loss_of_the_house(images: Task) -> None:
    student, task = pair_for(Hint, images)
    assert task.teacher is not None
    objective = Annealed(start=1.0, end=0.0) * SoftTargets(temperature=3.0) + 1.0 * TaskLoss()
    batch = images.train.first(16)
    student = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    example = (batch.inputs, batch.targets)
    with Guided(student, task.teacher, objective, example, steps=4) as loss:
        judged = [float(loss(student.eval()(batch.inputs), batch.targets).detach()) for _ in range(2)]
        found = [float(loss(student.train()(batch.inputs), batch.targets).detach()) for _ in range(6)]
        half = loss(student(batch.inputs), batch.targets, num_items_in_batch=32)
    assert judged == found[:1] * 2, "judging does not count as a step"
    assert float(half.detach()) == pytest.approx(found[-1] / 2, rel=1e-6), "sixteen of thirty-two items"
    bound = objective.bind(student, task, batch)
    seen = bound.seen(student, Batch(batch.inputs, batch.targets), task.teacher.eval())
    parts = [float(term(seen).detach()) for term in bound.terms]
    assert found == pytest.approx([weight * parts[0] + parts[1] for weight in (1.0, 0.75, 0.5, 0.25, 0.0, 0.0)], rel=1e-5)


def test_what_cannot_work_in_another_loop_is_told(images: Task) -> None:
    student, task = pair_for(Hint, images)
    assert task.teacher is not None
    batch = images.train.first(16)
    example = (batch.inputs, batch.targets)
    with (
        Guided(student, task.teacher, 1.0 * SoftTargets(), example) as loss,
        pytest.raises(UserError, match="needs a forward pass"),
    ):
        loss(torch.zeros(16, 3), batch.targets)
    with (
        Guided(student, task.teacher, 1.0 * CRD(), example) as loss,
        pytest.raises(UserError, match="CRD needs the index of every sample"),
    ):
        loss(student(batch.inputs), batch.targets)


def test_a_trainer_of_transformers_distills(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    sizes = {"vocab_size": 40, "intermediate_size": 24, "max_position_embeddings": 16, "num_labels": 3}
    torch.manual_seed(0)
    teacher, student = (
        transformers.BertForSequenceClassification(
            transformers.BertConfig(hidden_size=width, num_hidden_layers=layers, num_attention_heads=2, **sizes)
        )
        for width, layers in ((16, 4), (8, 2))
    )
    words = torch.randint(1, 40, (64, 9))
    masks = torch.ones_like(words)
    labels = words[:, 0] % 3
    rows = [{"input_ids": words[k], "attention_mask": masks[k], "labels": labels[k]} for k in range(64)]
    example = ({"input_ids": words[:2], "attention_mask": masks[:2]}, labels[:2])
    settings = transformers.TrainingArguments(
        output_dir=str(tmp_path), num_train_epochs=3, per_device_train_batch_size=16, learning_rate=3e-3, report_to=[],
        save_strategy="epoch", logging_steps=1, disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    names = list(student.state_dict())
    objective = 0.5 * HiddenStates() + 0.5 * SoftTargets(temperature=2.0)

    def apart() -> float:
        with torch.no_grad():
            both = [model.eval()(words, masks).logits for model in (student, teacher)]
        return float((both[0] - both[1]).square().mean())

    before = apart()
    with Guided(student, teacher, objective, example) as loss:
        trainer = transformers.Trainer(model=student, args=settings, train_dataset=rows, compute_loss_func=loss)
        trainer.train()
        assert sum(name.startswith("distillation_") for name, _ in student.named_parameters()) == 4
    saved = load_file(tmp_path / "checkpoint-12" / "model.safetensors")
    assert sorted(saved) == sorted(names)
    plain = transformers.BertForSequenceClassification(student.config)
    plain.load_state_dict(saved)
    loaded, told = transformers.BertForSequenceClassification.from_pretrained(
        tmp_path / "checkpoint-12", output_loading_info=True
    )
    assert not any(told[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert all(torch.equal(tensor, student.state_dict()[name]) for name, tensor in loaded.state_dict().items())
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < 0.8 * losses[0]
    assert apart() < before
    assert list(student.state_dict()) == names

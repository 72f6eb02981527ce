from __future__ import annotations

import json
from pathlib import Path

import pytest
from torch import nn

from mirabelle import Run, Training, distill, prune
from mirabelle.errors import UserError
from mirabelle.sources.digits import digits
from mirabelle.sources.zoo import digits_cnn
from mirabelle.state import fingerprint
from mirabelle.step import JoinsTraining, ReplacesModel, Step, step_from_data, step_to_data
from mirabelle.training import Joint, evaluate

MLP = "mirabelle.sources.zoo:digits_mlp"


def test_it_keeps_the_contracts_of_a_step() -> None:
    step = distill.Student(model=MLP, arguments={"hidden": 8}, train=Training(epochs=1))
    assert isinstance(step, Step)
    assert isinstance(step, JoinsTraining)
    assert isinstance(step, ReplacesModel)
    assert step_from_data(step_to_data(step)) == step


def test_the_student_replaces_the_model_and_learns_under_it(tmp_path: Path) -> None:
    task, teacher = digits(), digits_cnn()
    run = Run(tmp_path)
    student = distill.Student(model=MLP, train=Training(epochs=20, batch_size=64, lr=0.01))(teacher, task, run)
    assert [type(layer).__name__ for layer in student] == ["Flatten", "Linear", "ReLU", "Linear"]
    kinds = [json.loads(line)["event"] for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    assert "teacher" in kinds, "by default the model that is replaced teaches"
    assert len(list((tmp_path / "teacher").iterdir())) == 1


def test_the_student_follows_its_teacher_rather_than_the_labels(tmp_path: Path) -> None:
    """A teacher that is always wrong makes the student wrong."""

    class Wrong(nn.Module):
        def forward(self, inputs):
            return 20 * nn.functional.one_hot(((inputs.sum((1, 2, 3)) * 16).long() * 0 + 3), 10).float()

    from mirabelle.objectives import SoftTargets

    training = Training(epochs=8, batch_size=64, lr=0.02, objective=1.0 * SoftTargets(temperature=2.0), keep="last")
    task = digits().with_teacher(Wrong())
    student = distill.Student(model=MLP, train=training)(digits_cnn(), task, Run(tmp_path))
    assert evaluate(student, task.validation, task).mean() < 0.2


def test_the_students_first_weights_follow_the_seed(tmp_path: Path) -> None:
    step = distill.Student(model=MLP)
    prints = [fingerprint(step.origin(nn.Identity(), Run(tmp_path, seed=seed))) for seed in (0, 0, 1)]
    assert prints[0] == prints[1] != prints[2]


def test_it_can_be_pruned_while_it_learns(tmp_path: Path) -> None:
    joint = Joint(
        steps=(distill.Student(model=MLP), prune.Weights(sparsity=0.5)), train=Training(epochs=2, batch_size=64)
    )  # fmt: skip
    student = joint(digits_cnn(), digits(), Run(tmp_path))
    assert int((student.fc1.weight == 0).sum()) == 512
    assert joint.stage == "thin"
    assert isinstance(joint.origin(digits_cnn(), Run(tmp_path)).fc1, nn.Linear)


def test_a_student_without_training_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="has no training"):
        distill.Student(model=MLP)(digits_cnn(), digits(), Run(tmp_path))

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from mirabelle import Run, Task, Training, compress, distill, load, prune, quantize, save
from mirabelle.distill.reinitialized import redrawn
from mirabelle.errors import UserError
from mirabelle.model.state import fingerprint
from mirabelle.objectives import DKD, SimKD, SoftTargets
from mirabelle.sources.datasets.digits import digits
from mirabelle.sources.zoo import digits_cnn, digits_mlp, resnet20
from mirabelle.step import ReplacesModel, Step, step_from_data, step_to_data
from mirabelle.training import Joint, evaluate, fit
from mirabelle.training.contracts import JoinsTraining

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


# Derived students.


def test_a_student_is_cut_out_of_the_model_it_replaces(tmp_path: Path) -> None:
    task, teacher = digits(), digits_cnn()
    training = Training(epochs=1, batch_size=64, lr=1e-6)
    step = distill.Student(width=0.5, start="teacher", train=training)
    student = step(teacher, task, Run(tmp_path / "run"))
    widths = [(layer.out_channels, dense.out_channels) for layer, dense in convolutions(student, teacher)]
    assert all(own == -(-whole // 2) for own, whole in widths)
    first, dense = next(convolutions(student, teacher))
    rows = [row for row in first.weight if (row - dense.weight).abs().flatten(1).amax(1).min() < 1e-3]
    assert len(rows) == len(first.weight), "every filter is one of the teacher's"
    save(student, tmp_path / "saved")
    assert fingerprint(load(digits_cnn, tmp_path / "saved")) == fingerprint(student)


def convolutions(student: nn.Module, teacher: nn.Module):
    pairs = zip(student.modules(), teacher.modules(), strict=True)
    return (pair for pair in pairs if isinstance(pair[1], nn.Conv2d))


class Block(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(width, width, 3, padding=1), nn.BatchNorm2d(width)

    def forward(self, x):
        return x + self.norm(self.conv(x)).relu()


def test_depth_and_width_are_cut(tmp_path: Path) -> None:
    teacher = nn.Sequential(
        nn.Conv2d(1, 12, 3, padding=1), *(Block(12) for _ in range(4)), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(12, 10)
    )  # fmt: skip
    student = distill.Student(width=0.5, depth=0.5).prepare(teacher, digits(), Run(tmp_path)).model
    assert [type(module).__name__ for module in student].count("Skipped") == 2
    assert (student[0].out_channels, student[-1].in_features) == (6, 6)
    assert student(digits().test.first(2).inputs).shape == (2, 10)


def test_a_rewritten_program_cannot_begin_anew(tmp_path: Path) -> None:
    images = torch.randn(24, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    task = Task(train=(images, torch.arange(24) % 10), test=(images, torch.arange(24) % 10))
    with pytest.raises(UserError, match=r'(?s)E111.*rewritten program.*start = "teacher"'):
        distill.Student(width=0.5).prepare(resnet20(), task, Run(tmp_path))


def test_a_random_start_is_drawn_anew_by_the_seed(tmp_path: Path) -> None:
    task, teacher = digits(), digits_cnn()
    with torch.no_grad():
        for module in teacher.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.fill_(3.0)
    born = [distill.Student(width=1.0).prepare(teacher, task, Run(tmp_path / str(k), seed=k)).model for k in (0, 1)]
    again = distill.Student(width=1.0).prepare(teacher, task, Run(tmp_path / "again", seed=0)).model
    assert fingerprint(born[0]) == fingerprint(again) != fingerprint(born[1])
    shapes = [[tensor.shape for tensor in model.state_dict().values()] for model in (born[0], teacher)]
    assert shapes[0] == shapes[1]
    for name, tensor in born[0].named_parameters():
        assert tensor.ndim < 2 or not torch.equal(tensor, teacher.get_parameter(name))
    means = [module.running_mean for module in born[0].modules() if isinstance(module, nn.BatchNorm2d)]
    assert all(float(mean.abs().max()) == 0 for mean in means)


def test_parameters_of_no_known_module_keep_their_mean_and_deviation() -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale, self.inner = nn.Parameter(5 + 0.1 * torch.randn(4000)), nn.Linear(4, 4)

    model = Scaled()
    fresh = redrawn(model, 0)
    assert not torch.equal(fresh.scale, model.scale)
    assert float(fresh.scale.detach().mean()) == pytest.approx(5.0, abs=0.01)
    assert float(fresh.scale.detach().std()) == pytest.approx(0.1, abs=0.01)
    assert float(fresh.inner.weight.detach().abs().max()) <= 0.5, "as a linear layer of four inputs draws them"


def test_an_assistant_teaches_the_student_after_it(tmp_path: Path) -> None:
    """The task's own teacher says three, the assistant knows digits: who follows the assistant learns them."""

    class Three(nn.Module):
        def forward(self, inputs):
            return 20 * nn.functional.one_hot(torch.full((len(inputs),), 3), 10).float()

    task, assistant = digits(), digits_cnn()
    fit(assistant, task, Training(epochs=6, batch_size=64, lr=0.01), Run(tmp_path / "assistant"))
    objective = 1.0 * SoftTargets(temperature=2.0)
    settings = Training(epochs=10, batch_size=64, lr=0.02, objective=objective)
    found = {}
    for taught_by in ("task", "model"):
        step = distill.Student(model=MLP, taught_by=taught_by, train=settings)
        student = step(assistant, task.with_teacher(Three()), Run(tmp_path / taught_by))
        found[taught_by] = float(evaluate(student, task.validation, task).mean())
    assert found["task"] < 0.2
    assert found["model"] > 0.8


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, "needs either `model`, or"),
        ({"model": MLP, "width": 0.5}, "needs either `model`, or"),
        ({"model": MLP, "start": "teacher"}, "needs a student that is derived"),
    ],
)
def test_a_student_is_made_or_derived(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError, match=f"E111.*{words}"):
        distill.Student(**settings)


def test_a_student_with_the_teachers_head_learns_its_embedding(tmp_path: Path) -> None:
    task, teacher = digits(), digits_cnn()
    fit(teacher, task, Training(epochs=6, batch_size=64, lr=0.01), Run(tmp_path / "teacher"))
    training = Training(epochs=20, batch_size=64, lr=0.01, objective=1.0 * SimKD())
    step = distill.Student(model=MLP, arguments={"hidden": 32}, head="teacher", train=training)
    student = step(teacher, task, Run(tmp_path / "run"))
    head = student.fc2
    assert type(head).__name__ == "ReusedHead"
    theirs = [module for module in teacher.modules() if isinstance(module, nn.Linear)][-1]
    assert torch.equal(head.head.weight, theirs.weight), "it is not trained"
    assert float(evaluate(student, task.validation, task).mean()) > 0.85
    save(student, tmp_path / "saved")
    again = load(lambda: digits_mlp(hidden=32), tmp_path / "saved")
    assert fingerprint(again) == fingerprint(student)
    with torch.no_grad():
        x = task.test.first(5).inputs
        assert torch.equal(again.eval()(x), student.eval()(x))


def test_an_embedding_of_another_width_is_no_projection_onto_the_teachers(tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=64, objective=1.0 * SimKD())
    with pytest.raises(UserError, match=r'(?s)E111.*"fc2:input", \(2, 16\).*differ in width.*head = "teacher"'):
        distill.Student(model=MLP, train=training)(digits_cnn(), digits(), Run(tmp_path))


@pytest.mark.parametrize(
    "then",
    [
        quantize.Static(),
        pytest.param(quantize.Dynamic(), marks=pytest.mark.slow),
        pytest.param(prune.Channels(sparsity=0.5), marks=pytest.mark.slow),
    ],
    ids=lambda step: step.stage,
)
def test_a_student_with_the_teachers_head_is_cut_and_quantized_like_any_other(then: Any, tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=64, objective=1.0 * SimKD())
    steps = [distill.Student(width=0.5, head="teacher", train=training), then]
    result = compress(digits_cnn(), digits(), steps, out=tmp_path / "run")
    assert all(gate.passed for gate in result.gates.values())
    again = load(digits_cnn, tmp_path / "run")
    with torch.no_grad():
        x = digits().test.first(5).inputs
        assert torch.equal(again.eval()(x), result.model.eval()(x))


def test_an_assistant_with_a_reused_head_goes_through_a_whole_run(tmp_path: Path) -> None:
    training = Training(epochs=1, batch_size=64, objective=1.0 * SimKD())
    middle = distill.Student(model=MLP, arguments={"hidden": 24}, train=Training(epochs=1, batch_size=64))
    small = distill.Student(model=MLP, arguments={"hidden": 8}, head="teacher", taught_by="model", train=training)
    result = compress(digits_cnn(), digits(), [middle, small], out=tmp_path / "run")
    assert result.model.fc2.head.in_features == 24


def test_samples_without_labels_go_through_a_whole_run(tmp_path: Path) -> None:
    task = digits().with_unlabelled(torch.rand(100, 1, 8, 8))
    step = distill.Student(model=MLP, train=Training(epochs=1, batch_size=64))
    assert compress(digits_cnn(), task, [step], out=tmp_path / "run").gates
    wrong = distill.Student(model=MLP, train=Training(epochs=1, batch_size=64, objective=1.0 * DKD()))
    with pytest.raises(UserError, match=r"E111.*DKD needs one correct class.*some without a class"):
        compress(digits_cnn(), task, [wrong], out=tmp_path / "wrong")


def test_other_shares_are_another_teacher() -> None:
    one, other = nn.Linear(4, 3), nn.Linear(4, 3)
    assert fingerprint(distill.Ensemble([one, other], [9.0, 1.0])) != fingerprint(distill.Ensemble([one, other], [1.0, 9.0]))

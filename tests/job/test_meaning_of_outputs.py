"""What a run says of its outputs is what they are; what nobody can say is refused before anything begins."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
import torch.nn.functional as F
from sklearn.metrics import f1_score, r2_score
from torch import Tensor, nn

from mirabelle import Task, Training, compress, prune, quantize
from mirabelle.artifact.prediction import Predictor
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.job.dry_run import JobPlan, try_one_batch
from mirabelle.job.forecast import forecast
from mirabelle.objectives import SoftTargets
from mirabelle.recipe.recipe import Recipe
from mirabelle.run.journal import read_events
from mirabelle.runtime.gates import same_outputs, torch_equals_onnx
from mirabelle.task.batch import Batch
from mirabelle.task.goal import Goal
from mirabelle.task.metric import Metric
from mirabelle.task.outputs import Form
from mirabelle.training import default_objective

THIN = [prune.Weights(sparsity=0.3)]


def in_runtime(folder: Path, inputs: Tensor) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    found: np.ndarray[Any, Any] = session.run(None, {session.get_inputs()[0].name: inputs.numpy()})[0]
    return found


def test_tagged_tokens_are_judged_token_by_token(tmp_path: Path) -> None:
    torch.manual_seed(0)
    tokens = torch.randint(0, 30, (120, 6))
    tags = (tokens % 7 == 0).long() + (tokens % 5 == 0).long()
    tags[:, 4:] = -100
    net = nn.Sequential(nn.Embedding(30, 16), nn.Linear(16, 3))
    extra = ("accuracy", "roc_auc", "negative_calibration_error")
    task = Task(
        train=(tokens[:60], tags[:60]),
        test=(tokens[60:], tags[60:]),
        loss="token_cross_entropy",
        metric="f1",
        extra_metrics=extra,
    )
    result = compress(net, task, THIN, out=tmp_path / "run", baseline=Training(epochs=3, lr=1e-2))
    known = tags[60:, :4].flatten()
    found = in_runtime(tmp_path / "run", tokens[60:])[:, :4].argmax(-1).flatten()
    assert result.profile.metric.value == pytest.approx(f1_score(known, found, average="macro"))
    assert [metric.name for metric in result.profile.others] == list(extra)
    assert result.profile.others[0].value == pytest.approx((found == known.numpy()).mean())


def test_tokens_and_pixels_get_their_labels_by_predict(tmp_path: Path) -> None:
    torch.manual_seed(0)
    names = ("sky", "road", "tree")
    np.save(tmp_path / "tokens.npy", np.arange(4)[None])
    np.save(tmp_path / "tokens_as_many_as_classes.npy", np.arange(3)[None])
    np.save(tmp_path / "image.npy", np.random.default_rng(0).normal(size=(1, 1, 2, 4)).astype(np.float32))
    for net, data, loss in (
        (nn.Embedding(9, 3), "tokens", "token_cross_entropy"),
        (nn.Sequential(nn.Embedding(9, 5), nn.Linear(5, 3)), "tokens_as_many_as_classes", "token_cross_entropy"),
        (nn.Conv2d(1, 3, 1), "image", "cross_entropy"),
        (nn.Sequential(nn.Flatten(1, 2), nn.Conv1d(2, 3, 1), nn.Linear(4, 3)), "image", "cross_entropy"),
    ):
        given = torch.from_numpy(np.load(tmp_path / f"{data}.npy")).repeat(20, *[1] * (3 if data == "image" else 1))
        axis = 1 if data == "image" else -1
        due = net(given).argmax(axis)
        task = Task(train=(given, torch.zeros_like(due)), test=(given, torch.zeros_like(due)), loss=loss, labels=names)
        result = compress(net, task, [prune.Weights(sparsity=0.0)], out=tmp_path / type(net).__name__ / data)
        if axis == 1 and due.shape[1:] == (3,):
            with pytest.raises(UserError, match="gives outputs of shape"):
                Predictor(result.folder)([tmp_path / f"{data}.npy"])
            continue
        (found,) = Predictor(result.folder)([tmp_path / f"{data}.npy"])
        assert found.outputs == np.array(names)[due[0].numpy()].tolist()


@pytest.mark.parametrize("metric", [None, "f1"])
def test_pixels_are_classified_by_default(metric: str | None, tmp_path: Path) -> None:
    torch.manual_seed(0)
    images = torch.randn(30, 1, 4, 4)
    masks = (images[:, 0] > 0.5).long() + (images[:, 0] > -0.5).long()
    masks[:, :1] = -100
    net = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    task = Task(train=(images[:20], masks[:20]), test=(images[20:], masks[20:]), metric=metric)
    result = compress(net, task, [quantize.Static()], out=tmp_path / "run", baseline=Training(epochs=2, batch_size=4))
    known, found = masks[20:, 1:].flatten(), in_runtime(tmp_path / "run", images[20:]).argmax(1)[:, 1:].flatten()
    due = f1_score(known, found, average="macro") if metric else (found == known.numpy()).mean()
    assert result.profile.metric.name == (metric or "accuracy")
    assert result.profile.metric.value == pytest.approx(due)


def yes_or_no() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(200, 4, generator=generator)
    return inputs, inputs[:, 0] + 0.8 > 0


SHAPES: dict[str, Callable[[Tensor], Tensor]] = {
    "int": lambda yes: yes.long(),
    "bool": lambda yes: yes,
    "float": lambda yes: yes.float(),
    "column": lambda yes: yes.float()[:, None],
    "column of ints": lambda yes: yes.long()[:, None],
}


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("flat", [True, False])
def test_one_output_decides_between_two_answers(shape: str, flat: bool, tmp_path: Path) -> None:
    inputs, yes = yes_or_no()
    targets = SHAPES[shape](yes)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1), *([nn.Flatten(0)] if flat else []))
    task = Task(
        train=(inputs[:100], targets[:100]), test=(inputs[100:], targets[100:]),
        loss="binary_cross_entropy", extra_metrics=("f1", "roc_auc"), labels=("no", "yes"),
    )  # fmt: skip
    result = compress(net, task, THIN, out=tmp_path / "run", baseline=Training(epochs=3, lr=1e-2))
    scores = in_runtime(tmp_path / "run", inputs[100:]).reshape(-1)
    assert result.profile.metric.name == "accuracy"
    assert result.profile.metric.value == pytest.approx(((scores > 0) == yes[100:].numpy()).mean())
    assert result.profile.others[0].value == pytest.approx(f1_score(yes[100:], scores > 0))
    np.save(tmp_path / "one.npy", inputs[100:101].numpy())
    (found,) = Predictor(tmp_path / "run")([tmp_path / "one.npy"])
    share = 1 / (1 + np.exp(-scores[0]))
    assert {one.label: pytest.approx(one.probability, abs=1e-6) for one in found.top} == {"no": 1 - share, "yes": share}
    assert found.to_data()["label"] == ("yes" if share > 0.5 else "no")


def test_a_dead_model_of_one_output_misses_its_goal(tmp_path: Path) -> None:
    inputs, yes = yes_or_no()
    targets = yes.float()[:, None]
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(4, 16), nn.ReLU(), nn.Linear(16, 1))
    nn.init.constant_(net[2].bias, -1.0)
    task = Task(train=(inputs[:100], targets[:100]), test=(inputs[100:], targets[100:]), loss="binary_cross_entropy")
    dead = [prune.Weights(sparsity=0.98, scope="global")]
    trained = Training(epochs=30, lr=1e-2)
    result = compress(net, task, dead, {"max_drop": "1pt"}, out=tmp_path / "run", baseline=trained)
    by_hand = float(((result.model(inputs[100:])[:, 0] > 0) == yes[100:]).float().mean())
    assert result.profile.metric.value == pytest.approx(by_hand)
    assert result.start.metric is not None
    assert result.met == (by_hand >= result.start.metric.value - 0.01)


def test_a_recipe_of_one_output_ends_in_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any) -> None:
    monkeypatch.chdir(tmp_path)
    inputs, yes = yes_or_no()
    rows = [",".join(f"{v:.4f}" for v in row) + f",{'yes' if one else 'no'}" for row, one in zip(inputs, yes, strict=True)]
    Path("paid.csv").write_text("\n".join(["a,b,c,d,paid", *rows]))
    Path("net.py").write_text(
        "from torch import nn\n\ndef net():\n    return nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 1))\n"
    )
    Path("recipe.toml").write_text(
        'schema = 1\n[model]\nfrom = "./net.py:net"\n[task]\ndata = "./paid.csv"\n'
        'arguments = { loss = "binary_cross_entropy" }\n'
        '[baseline]\ntrain = { epochs = 40, batch_size = 32, lr = 1e-2 }\n[[step]]\nuse = "quantize.Dynamic"\n'
    )
    assert main.run(["run", "recipe.toml", "--out", "out", "--quiet"]) == 0
    told = json.loads(Path("out/report.json").read_text())["end"]["metric"]
    assert (told["name"], told["value"] > 0.9) == ("accuracy", True)
    capsys.readouterr()
    assert main.run(["predict", "out/model.mira", "paid.csv", "--json"]) == 0
    said = [one["label"] for one in json.loads(capsys.readouterr().out)]
    assert np.mean([one == ("yes" if due else "no") for one, due in zip(said, yes, strict=True)]) > 0.9


def three_classes() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(120, 6, generator=generator)
    return inputs, (inputs[:, 0] > 0).long() + (inputs[:, 1] > 0.5).long()


WEIGHT = torch.tensor([1.0, 2.0, 0.5])


@pytest.mark.parametrize(
    ("loss", "due"),
    [
        (nn.CrossEntropyLoss(), F.cross_entropy),
        (nn.CrossEntropyLoss(label_smoothing=0.1), partial(F.cross_entropy, label_smoothing=0.1)),
        (nn.CrossEntropyLoss(weight=WEIGHT, reduction="sum"), partial(F.cross_entropy, weight=WEIGHT, reduction="sum")),
        (partial(F.cross_entropy, label_smoothing=0.1), partial(F.cross_entropy, label_smoothing=0.1)),
        (nn.CrossEntropyLoss(label_smoothing=0.1).forward, partial(F.cross_entropy, label_smoothing=0.1)),
    ],
)
def test_cross_entropy_is_known_however_it_is_written(loss: Any, due: Any, tmp_path: Path) -> None:
    inputs, targets = three_classes()
    task = Task(train=(inputs, targets), test=(inputs, targets), loss=loss)
    outputs = torch.randn(120, 3)
    torch.testing.assert_close(task.loss(outputs, targets), due(outputs, targets))
    assert (task.outputs.form, task.metric.name) == (Form.CLASSES, "accuracy")
    assert any(isinstance(term, SoftTargets) for _, term in default_objective(task.with_teacher(nn.Linear(6, 3))).terms)
    wrong = Task(train=(inputs, targets + 1), test=(inputs, targets + 1), loss=loss)
    with pytest.raises(UserError, match=r"E132.*labels must be in \[0, 2\]"):
        compress(nn.Linear(6, 3), wrong, THIN, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("loss", "form"),
    [
        (nn.BCEWithLogitsLoss(pos_weight=torch.tensor(3.0)), Form.LABELS),
        (nn.BCELoss(), Form.LABELS),
        (F.binary_cross_entropy_with_logits, Form.LABELS),
        (nn.MSELoss(), Form.NUMBERS),
        (partial(F.smooth_l1_loss, beta=0.5), Form.NUMBERS),
    ],
)
def test_losses_of_single_outputs_never_pair_all_samples(loss: Any, form: Form) -> None:
    inputs, yes = yes_or_no()
    task = Task(train=(inputs, yes.float()), test=(inputs, yes.float()), loss=loss)
    outputs = torch.rand(200, 1)
    torch.testing.assert_close(task.loss(outputs, yes), loss(outputs[:, 0], yes.float()))
    assert task.outputs.form is form


def own_cross_entropy(outputs: Tensor, targets: Tensor) -> Tensor:
    return F.cross_entropy(outputs, targets)


def test_a_loss_that_nobody_knows_is_told(tmp_path: Path) -> None:
    inputs, targets = three_classes()
    data: dict[str, Any] = {"train": (inputs, targets), "test": (inputs, targets), "loss": own_cross_entropy}
    task, trained = Task(**data), [prune.Weights(sparsity=0.3, train=Training(epochs=1))]
    sentence = "What the outputs are is not known, since the loss is your own"
    plan = JobPlan(model=nn.Linear(6, 3), task=task, recipe=Recipe(trained), goal=Goal())
    assert any(remark.startswith(sentence) for remark in forecast(plan).remarks)
    compress(nn.Linear(6, 3), task, trained, out=tmp_path / "run")
    told = [event["text"] for event in read_events(tmp_path / "run") if event.get("event") == "warning"]
    assert any(text.startswith(sentence) for text in told)
    said = Task(**data, outputs_are="classes")
    assert said.outputs.classifies
    with pytest.raises(UserError, match=r'E111.*outputs_are = "numbers", but the loss takes scores of classes'):
        Task(**data | {"loss": "cross_entropy"}, outputs_are="numbers")
    wrong = Task(**data | {"train": (inputs, targets + 1)}, outputs_are="classes")
    with pytest.raises(UserError, match=r"E132.*labels must be in"):
        try_one_batch(nn.Linear(6, 3), wrong)


def test_what_shapes_leave_open_is_asked_for_if_the_loss_does_not_say() -> None:
    inputs, targets = torch.randn(20, 3, 3), torch.randint(0, 3, (20, 3), generator=torch.Generator().manual_seed(0))
    task = Task(train=(inputs, targets), test=(inputs, targets), loss=own_cross_entropy)
    with pytest.raises(UserError, match=r"E131.*does not say what"):
        try_one_batch(nn.Identity(), task)
    for said, axis in (("classes", 1), ("classes_last", -1)):
        known = Task(train=(inputs, targets), test=(inputs, targets), outputs_are=said, loss=own_cross_entropy)  # type: ignore[arg-type]
        try_one_batch(nn.Identity(), known)
        scores = known.metric.of_samples(inputs, targets, known.outputs)
        assert known.metric.value(scores) == pytest.approx(float((inputs.argmax(axis) == targets).float().mean()))


def test_a_target_that_the_loss_ignores_is_ignored_by_all() -> None:
    images = torch.randn(20, 3, 4, 4)
    masks = torch.randint(0, 3, (20, 4, 4), generator=torch.Generator().manual_seed(0))
    masks[:, 0] = 255
    loss = nn.CrossEntropyLoss(ignore_index=255)
    task = Task(train=(images, masks), test=(images, masks), loss=loss)
    assert sorted(task.test.targets.unique().tolist()) == [-100, 0, 1, 2]
    try_one_batch(nn.Identity(), task)
    batch = task.test.first(10)
    torch.testing.assert_close(task.loss(batch.inputs, batch.targets), loss(batch.inputs, masks[batch.index]))
    scores = task.metric.of_samples(images, task.test.targets, task.outputs)
    assert task.metric.value(scores) == pytest.approx(float((images.argmax(1) == masks)[:, 1:].float().mean()))


def test_evaluated_samples_whose_only_target_is_ignored_are_refused_by_that_name() -> None:
    inputs = torch.randn(60, 3)
    loss = nn.CrossEntropyLoss(ignore_index=1)
    task = Task(train=(inputs, torch.arange(60) % 3), test=(inputs[:30], torch.arange(30) % 3), loss=loss)
    with pytest.raises(UserError, match=r"E132.*validation samples have no class"):
        try_one_batch(nn.Identity(), task)


class Broken(nn.Module):
    """NaN where the first feature is below −10."""

    def __init__(self, outputs: int) -> None:
        super().__init__()
        self.linear = nn.Linear(4, outputs)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.linear(x) + 0 * torch.log(x[:, :1] + 10)
        return found


class Masked(nn.Module):
    """Scores of three classes, of which the last is never possible."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x).masked_fill(torch.tensor([False, False, True]), float("-inf"))


def test_outputs_that_are_not_finite_are_wrong_and_told(tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(100, 4)
    tested = inputs.clone()
    tested[:75, 0] = -11
    never = torch.zeros(100, dtype=torch.long)
    task = Task(train=(inputs, (inputs[:, 1] > 0).long()), test=(tested, never))
    result = compress(Broken(2), task, THIN, out=tmp_path / "run")
    kept = in_runtime(tmp_path / "run", tested[75:]).argmax(1) == 0
    assert result.profile.metric.value == pytest.approx(kept.sum() / 100)
    assert result.profile.metric.not_finite == 75
    remarks = json.loads((tmp_path / "run" / "report.json").read_text())["remarks"]
    assert any("compressed model for 75 of 100 test samples are NaN or infinite; they count as wrong" in one for one in remarks)
    told = [event["text"] for event in read_events(tmp_path / "run") if event.get("event") == "warning"]
    assert [text for text in told if "75 of 100 test samples are NaN or infinite" in text] != []
    np.save(tmp_path / "x.npy", tested[74:77].numpy())
    with pytest.raises(UserError, match=r"E121.*NaN or infinite for x.npy\[0\]|E121.*NaN or infinite for .*x.npy"):
        Predictor(tmp_path / "run")([tmp_path / "x.npy"])
    batch = Batch(tested, never, torch.arange(100))
    gate = torch_equals_onnx(result.model, (tmp_path / "run" / "model.onnx").read_bytes(), [batch], quantized=True)
    assert (gate.passed, gate.detail) == (False, "outputs of 75 of 100 samples are NaN or infinite")
    assert not same_outputs(result.model, result.model, batch).passed


@pytest.mark.parametrize(
    ("first", "told"), [(0, "for 3 of the 8 test samples tried"), (50, "is nan on 100 samples: .* of 3 samples")]
)
@pytest.mark.parametrize(
    "metric",
    ["r2", "negative_squared_error", lambda o, t: (o[:, 0] > t).float(), Metric.over_set(lambda o, t: float(o.argmax()))],
)
def test_a_metric_without_a_worst_value_has_none_for_such_outputs(metric: Any, first: int, told: str, tmp_path: Path) -> None:
    inputs = torch.randn(100, 4, generator=torch.Generator().manual_seed(0))
    tested = inputs.clone()
    tested[first : first + 3, 0] = -11
    task = Task(train=(inputs, inputs[:, 1]), test=(tested, inputs[:, 1]), loss="mse", metric=metric)
    with pytest.raises(UserError, match=rf"E121.*{told} are NaN or infinite"):
        compress(Broken(1), task, THIN, out=tmp_path / "run")


@pytest.mark.parametrize(("targets", "due"), [((1,), "r2"), ((), "r2"), ((2,), "r2"), ("constant", "negative_squared_error")])
def test_numbers_are_a_regression_by_default(targets: Any, due: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    inputs = torch.randn(60, 4)
    known = torch.full((60, 1), 2.0) if targets == "constant" else inputs.sum(1, keepdim=True).expand(60, *targets or (1,))
    known = known.reshape(60) if targets == () else known
    width = 2 if targets == (2,) else 1
    task = Task(train=(inputs, known), test=(inputs, known))
    result = compress(nn.Linear(4, width), task, THIN, out=tmp_path / "run", baseline=Training(epochs=2))
    assert (task.outputs.form, result.profile.metric.name) == (Form.NUMBERS, due)
    found, right = in_runtime(tmp_path / "run", inputs).reshape(60, -1), known.reshape(60, -1).numpy()
    if due == "r2":
        assert result.profile.metric.value == pytest.approx(r2_score(right, found), abs=1e-5)
    else:
        assert result.profile.metric.value == pytest.approx(-np.square(right - found).mean(), rel=1e-5)


X = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))
CLASS = torch.arange(40) % 3
ENDS: dict[str, tuple[nn.Module, dict[str, Any], str]] = {
    "softmax": (nn.Sequential(nn.Linear(4, 3), nn.Softmax(1)), {}, "E131.*ends in Softmax, but the loss takes scores"),
    "sigmoid": (
        nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)),
        {"loss": "binary_cross_entropy", "targets": CLASS > 0},
        "E131.*ends in Sigmoid, but the loss takes scores",
    ),
    "no log-softmax": (nn.Linear(4, 3), {"loss": nn.NLLLoss()}, "E131.*takes log-probabilities"),
}


@pytest.mark.parametrize("end", ENDS)
def test_a_model_that_ends_in_probabilities_is_not_trained_by_a_loss_of_scores(end: str, tmp_path: Path) -> None:
    net, given, message = ENDS[end]
    targets = given.get("targets", CLASS)
    task = Task(train=(X, targets), test=(X, targets), loss=given.get("loss"))
    trained = [prune.Weights(sparsity=0.3, train=Training(epochs=1))]
    with pytest.raises(UserError, match=message):
        compress(net, task, trained, out=tmp_path / "run")


@pytest.mark.parametrize(
    ("net", "loss", "targets"),
    [
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), nn.NLLLoss(), CLASS),
        (nn.Sequential(nn.Linear(4, 3), nn.LogSoftmax(1)), nn.CrossEntropyLoss(), CLASS),
        (nn.Sequential(nn.Linear(4, 1), nn.Sigmoid()), nn.BCELoss(), CLASS > 0),
    ],
)
def test_probabilities_are_trained_by_their_own_losses(net: nn.Module, loss: Any, targets: Tensor, tmp_path: Path) -> None:
    names = ("no", "yes") if targets.dtype == torch.bool else ("a", "b", "c")
    task = Task(train=(X, targets), test=(X, targets), loss=loss, labels=names, extra_metrics=("negative_calibration_error",))
    result = compress(net, task, [prune.Weights(sparsity=0.3, train=Training(epochs=2))], out=tmp_path / "run")
    found = in_runtime(tmp_path / "run", X)
    right = (found[:, 0] > 0.5) == targets.numpy() if len(names) == 2 else found.argmax(1) == targets.numpy()
    assert result.profile.metric.value == pytest.approx(right.mean())
    shares = np.concatenate([1 - found, found], 1) if len(names) == 2 else np.exp(found)
    np.save(tmp_path / "x.npy", X[:5].numpy())
    for row, one in zip(shares, Predictor(tmp_path / "run")([tmp_path / "x.npy"]), strict=False):
        assert {choice.index: choice.probability for choice in one.top} == pytest.approx(dict(enumerate(row)), abs=1e-5)


def test_a_softmax_that_is_not_trained_is_judged_as_probabilities(tmp_path: Path) -> None:
    torch.manual_seed(0)
    scores = nn.Linear(4, 3)
    told = []
    for k, net in enumerate((scores, nn.Sequential(scores, nn.Softmax(1)))):
        task = Task(
            train=(X, CLASS), test=(X, CLASS), metric="negative_calibration_error", extra_metrics=("negative_perplexity",)
        )
        result = compress(net, task, THIN, out=tmp_path / str(k))
        told.append([result.profile.metric.value, result.profile.others[0].value])
    assert told[0] == pytest.approx(told[1], abs=1e-6)


REFUSED: dict[str, tuple[nn.Module, Callable[[], Task], str]] = {
    "several targets in a tuple": (
        nn.Linear(4, 3),
        lambda: Task(train=(X, (CLASS, CLASS)), test=(X, CLASS)),
        r"E131.*targets must be one tensor; got a tuple of 2",
    ),
    "several targets in a dict": (
        nn.Linear(4, 3),
        lambda: Task(train=(X, {"a": CLASS, "b": CLASS}), test=(X, CLASS)),
        "E131.*got a dict of 2",
    ),
    "a class that the test data lack": (
        nn.Linear(4, 3),
        lambda: Task(train=(X, CLASS), validation=(X, CLASS), test=(X[:20], CLASS[:20] % 2), metric="roc_auc"),
        "E131.*roc_auc is not defined on the test data: 20 samples have the targets 0, 1",
    ),
    "an extra metric that is not defined": (
        nn.Linear(4, 1),
        lambda: Task(
            train=(X, X),
            validation=(X, X[:, 0]),
            test=(X, torch.ones(40)),
            loss="mse",
            metric="negative_squared_error",
            extra_metrics=("r2",),
        ),
        "E131.*each output needs one target",
    ),
    "a constant target": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, X[:, 0]), test=(X, torch.ones(40)), metric="r2"),
        "E131.*r2 is not defined on the test data: 1 of 1 numbers are the same in all 40 samples",
    ),
    "a metric of classes for numbers": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, X[:, 0]), test=(X, X[:, 0]), metric="accuracy"),
        "E111.*accuracy takes classes or labels; by loss and targets the outputs are numbers",
    ),
    "a metric of numbers for classes": (
        nn.Linear(4, 3),
        lambda: Task(train=(X, CLASS), test=(X, CLASS), extra_metrics=("r2",)),
        "E111.*r2 takes matched or numbers",
    ),
    "labels that are neither 0 nor 1": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, CLASS), test=(X, CLASS % 2), loss="binary_cross_entropy"),
        "E132.*targets of labels are 0 or 1; the train data have 0 to 2",
    ),
    "three names for one output": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, CLASS % 2), test=(X, CLASS % 2), loss="binary_cross_entropy", labels=("a", "b", "c")),
        "E132.*there are 3 labels: a, b, c; targets have 1 columns",
    ),
    "a loss that pairs all samples": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, X[:, 0]), test=(X, X[:, 0]), loss=lambda o, t: (o - t).square().mean(), outputs_are="numbers"),
        r"E131.*compares all pairs of outputs \(5, 1\) and targets \(5,\)",
    ),
    "numbers or labels under a loss that nobody knows": (
        nn.Linear(4, 1),
        lambda: Task(train=(X, X[:, :1]), test=(X, X[:, :1]), loss=nn.PoissonNLLLoss()),
        "E111.*nor which metric fits(?s:.)*outputs_are",
    ),
    "scores of classes that are masked by -inf": (
        Masked(),
        lambda: Task(train=(X, CLASS), test=(X, CLASS)),
        "E121.*returns -inf(?s:.)*mask scores with a large negative number",
    ),
    "test outputs without a single finite one": (
        Broken(1),
        lambda: Task(train=(X, X[:, :1]), test=(X[:3] - 20, X[:3, :1])),
        "E121.*3 of the 3 test samples tried are NaN",
    ),
    "a loss of one number for each sample": (
        nn.Linear(4, 3),
        lambda: Task(train=(X, CLASS), test=(X, CLASS), loss=nn.CrossEntropyLoss(reduction="none")),
        'E110.*a loss must be one number; this one has reduction = "none"',
    ),
    "tokens under a loss of pixels": (
        nn.Embedding(9, 3),
        lambda: Task(train=(CLASS[:, None].repeat(1, 5),) * 2, test=(CLASS[:, None].repeat(1, 5),) * 2),
        r"E131.*fails on outputs of \(2, 5, 3\)(?s:.)*token_cross_entropy",
    ),
    "as many tokens as classes, and no loss that says which axis is which": (
        nn.Embedding(9, 3),
        lambda: Task(train=(CLASS[:, None].repeat(1, 3),) * 2, test=(CLASS[:, None].repeat(1, 3),) * 2),
        r"E131.*may be in axis 1 or in the last one(?s:.)*token_cross_entropy",
    ),
    "tokens whose label is no class": (
        nn.Embedding(9, 3),
        lambda: Task(
            train=(CLASS[:, None], CLASS[:, None]), test=(CLASS[:, None], CLASS[:, None] + 1), loss="token_cross_entropy"
        ),
        r"E132.*labels must be in \[0, 2\].*the validation|E132.*labels must be in \[0, 2\].*the test data have 1 to 3",
    ),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_judged_is_refused_before_anything_begins(case: str, tmp_path: Path) -> None:
    net, task, message = REFUSED[case]
    with pytest.raises(UserError, match=message):
        compress(net, task(), THIN, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()

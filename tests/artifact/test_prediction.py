"""What ships takes raw inputs and gives labels, and nothing in it reaches beyond itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import ModelProto, TensorProto, helper
from PIL import Image as Picture
from torch import nn

import mirabelle
from mirabelle import Training, quantize
from mirabelle.artifact.prediction import Predictor
from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.sources.datasets.digits import digits


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Photos of two classes, dark and light, and the run of a network that learned them."""
    place = tmp_path_factory.mktemp("predict")
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("light", 128)):
        (place / "photos" / name).mkdir(parents=True)
        for k in range(20):
            values = generator.integers(low, low + 128, (8, 8), np.uint8)
            Picture.fromarray(values).save(place / "photos" / name / f"{k:02}.png")
    task = task_from("./photos", {}, data_folder=None, folder=place)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 2))
    training = Training(epochs=10, batch_size=8, lr=1e-2)
    mirabelle.compress(model, task, [quantize.Static(samples=16)], out=place / "run", baseline=training)
    return place


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A table of sums, and the run of a linear model that learned them."""
    place = tmp_path_factory.mktemp("table")
    rows = np.random.default_rng(0).normal(size=(80, 2)).round(3)
    lines = ["a,b,sum", *(f"{a},{b},{a + b:.3f}" for a, b in rows)]
    (place / "sums.csv").write_text("\n".join(lines) + "\n")
    task = task_from("./sums.csv", {}, data_folder=None, folder=place)
    training = Training(epochs=60, batch_size=8, lr=3e-2)
    mirabelle.compress(nn.Sequential(nn.Linear(2, 1)), task, [quantize.Dynamic()], out=place / "run", baseline=training)
    return place


def predict(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    assert main.mirabelle(args=["predict", *map(str, arguments)], standalone_mode=False) == 0
    return capsys.readouterr().out


def test_of_several_labels_each_is_told_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    inputs = np.random.default_rng(0).normal(size=(60, 3)).astype(np.float32)
    np.savez(tmp_path / "tags.npz", inputs=inputs, targets=(inputs > 0).astype(np.int64))
    settings = {"kind": "multi-label", "labels": ["red", "round", "ripe"]}
    task = task_from("./tags.npz", settings, data_folder=None, folder=tmp_path)
    assert (task.labels, task.outputs.multi_label) == (("red", "round", "ripe"), True)
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3) * 4)
        model.bias.zero_()
    mirabelle.compress(model, task, [quantize.Dynamic()], out=tmp_path / "run")
    np.save(tmp_path / "fruit.npy", np.array([[1.0, -1, 0.5], [-1, -1, -1]], np.float32))
    first, second = json.loads(predict(capsys, tmp_path / "run", tmp_path / "fruit.npy", "--json"))
    assert (first["labels"], second["labels"]) == (["red", "ripe"], [])
    assert [choice["label"] for choice in first["top"]] == ["red", "ripe", "round"]
    shares = [choice["probability"] for choice in first["top"]]
    assert shares == pytest.approx([1 / (1 + np.exp(-4)), 1 / (1 + np.exp(-2)), 1 / (1 + np.exp(4))], abs=0.02)
    graph = onnx.load(tmp_path / "run/model.onnx")
    tensor = next(one for one in graph.graph.initializer if one.data_type == TensorProto.FLOAT)
    numbers = onnx.numpy_helper.to_array(tensor).ravel().tolist()
    tensor.ClearField("raw_data")  # as other tools write it, so that packing brings it into canonical form again
    tensor.float_data.extend(numbers)
    onnx.save(graph, tmp_path / "touched.onnx")
    packed = tmp_path / "packed.mira"
    pack = ["pack", str(tmp_path / "touched.onnx"), "--out", str(packed), "--quiet"]
    assert main.mirabelle(args=pack, standalone_mode=False) == 0
    capsys.readouterr()
    shown = predict(capsys, packed, tmp_path / "fruit.npy")
    assert "red, ripe" in shown
    assert "none" in shown


@pytest.mark.parametrize("file", ["run", "run/model.onnx", "run/model.mira"])
def test_a_raw_image_gets_its_label_from_every_form_of_the_model(
    place: Path, capsys: pytest.CaptureFixture[str], file: str
) -> None:
    images = [place / "photos" / "light" / "07.png", place / "photos" / "dark" / "11.png"]
    found = json.loads(predict(capsys, place / file, *images, "--json"))
    assert [entry["label"] for entry in found] == ["light", "dark"]
    assert [entry["index"] for entry in found] == [1, 0]
    assert [entry["input"] for entry in found] == [str(image) for image in images]
    assert found[0]["top"][0] == {key: found[0][key] for key in ("label", "index", "probability")}
    assert sum(choice["probability"] for choice in found[0]["top"]) == pytest.approx(1)


def test_the_outputs_are_those_of_the_run_for_the_very_samples(place: Path) -> None:
    predictor = Predictor(place / "run")
    task = task_from("./photos", {}, data_folder=None, folder=place)
    np.save(place / "test.npy", task.test.inputs.numpy())
    by_array = predictor([place / "test.npy"])
    by_image = {entry.top for entry in predictor([place / "photos"])}
    assert [entry.input for entry in by_array] == [f"{place / 'test.npy'}[{k}]" for k in range(len(task.test))]
    assert {entry.top for entry in by_array} <= by_image
    report = json.loads((place / "run" / "report.json").read_text())
    right = np.mean([entry.top[0].index == target for entry, target in zip(by_array, task.test.targets, strict=True)])
    assert right == pytest.approx(report["end"]["metric"]["value"])


def test_the_table_names_inputs_labels_and_probabilities(
    place: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    shown = predict(capsys, "run", "photos").splitlines()
    assert shown[0].split() == ["input", "label", "probability", "then"]
    assert len(shown) == 41
    assert shown[1].split()[:2] == ["photos/dark/00.png", "dark"]
    assert "light" in shown[1]
    assert "light" not in predict(capsys, "run", "photos/dark/00.png", "--top", "1").splitlines()[1]


def test_one_sample_is_taken_as_well_as_a_batch(place: Path) -> None:
    image = Predictor(place / "run").preprocessing(place / "photos" / "dark" / "00.png")
    np.save(place / "one.npy", image)
    (one,) = Predictor(place / "run")([place / "one.npy"])
    assert one.input == str(place / "one.npy")
    assert one.top == Predictor(place / "run")([place / "photos" / "dark" / "00.png"])[0].top


def test_rows_of_a_table_are_taken_by_name_and_give_numbers(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (table / "rows.csv").write_text("b,note,a\n1.0,x,0.5\n-1.0,y,-1.0\n")
    found = json.loads(predict(capsys, table / "run", table / "rows.csv", "--json"))
    assert [entry["input"] for entry in found] == [f"{table / 'rows.csv'}:2", f"{table / 'rows.csv'}:3"]
    assert found[0]["outputs"] == pytest.approx([1.5], abs=0.1)  # as well as 60 epochs and 8 bits know it
    assert found[1]["outputs"] == pytest.approx([-2.0], abs=0.1)
    assert "outputs" in predict(capsys, table / "run", table / "rows.csv")
    (table / "rows.csv").write_text("a,c\n1.0,2.0\n")
    with pytest.raises(UserError, match=r'E131.*rows\.csv lacks columns "b"'):
        Predictor(table / "run")([table / "rows.csv"])
    Picture.new("L", (8, 8)).save(table / "a.png")
    with pytest.raises(UserError, match=r"(?s)E131.*takes rows of a table.*give a \.csv file with the columns a, b"):
        Predictor(table / "run")([table / "a.png"])


@pytest.mark.parametrize(
    ("name", "array", "words"),
    [
        (
            "x.npy",
            np.zeros((1, 8, 9), np.float32),
            r"E131.*float32, shape \(1, 8, 9\).*takes float32, shape \(1, 8, 8\) for one",
        ),
        ("x.npy", np.zeros((2, 3, 8, 8), np.float32), r"E131.*\(batch, 1, 8, 8\) for several"),
        ("x.npy", np.zeros((1, 8, 8)), r"E131.*contains float64.*the model takes float32"),
        ("x.npy", np.float32(1), r"E131.*shape \(\)"),
        ("x.npy", np.zeros((0, 1, 8, 8), np.float32), "E131.*is empty"),
        ("x.npy", np.full((1, 8, 8), np.inf, np.float32), "E131.*infinite"),
        ("x.npy", np.array([{}], dtype=object), r"E143.*Python objects \(a pickle\)"),
        ("x.npy", b"\x80\x04K\x01.", "E143.*pickle"),
        ("x.npy", b"\x93NUMPY\x01\x00", "E131.*is damaged"),
        ("x.npz", b"", "E143.*unknown file type"),
        ("x.txt", b"", "E143.*give an image"),
        ("x.png", b"no", r"E131.*x\.png cannot be read as an image"),
        ("x.csv", b"a,b\n1,2\n", r"E131.*takes images, not .*x\.csv"),
    ],
)
def test_inputs_that_the_model_cannot_take_are_told(
    place: Path, tmp_path: Path, name: str, array: np.ndarray | bytes, words: str
) -> None:
    if isinstance(array, bytes):
        (tmp_path / name).write_bytes(array)
    else:
        np.save(tmp_path / name, array, allow_pickle=True)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        Predictor(place / "run")([tmp_path / name])
    assert str(tmp_path / name) in caught.value.message
    assert len(str(caught.value).splitlines()) == 2


def test_what_is_missing_is_told(place: Path, tmp_path: Path) -> None:
    for inputs, words in (("absent.png", "E130.*no input at"), (".", "E130.*no image in")):
        with pytest.raises(UserError, match=words):
            Predictor(place / "run")([tmp_path / inputs])
    (tmp_path / "model.pt").write_text("")
    for file, words in (("absent.onnx", "E130"), (".", r"E130.*no model\.onnx"), ("model.pt", "E143.*neither")):
        with pytest.raises(UserError, match=words):
            Predictor(tmp_path / file)


def changed(place: Path, folder: Path, **metadata: str) -> Path:
    """The run's model with other metadata; an empty text takes an entry away."""
    model = ModelProto.FromString((place / "run" / "model.onnx").read_bytes())
    entries = {entry.key: entry.value for entry in model.metadata_props} | metadata
    del model.metadata_props[:]
    helper.set_model_props(model, {key: value for key, value in entries.items() if value})
    (folder / "changed.onnx").write_bytes(model.SerializeToString())
    return folder / "changed.onnx"


def test_without_preprocessing_an_array_is_asked_for_and_without_labels_outputs_are_given(place: Path, tmp_path: Path) -> None:
    file = changed(place, tmp_path, preprocessing="", labels="")
    with pytest.raises(UserError, match=r"(?s)E131.*contains no preprocessing.*give a \.npy.*float32, shape \(1, 8, 8\)"):
        Predictor(file)([place / "photos" / "dark" / "00.png"])
    np.save(tmp_path / "x.npy", np.zeros((3, 1, 8, 8), np.float32))
    found = Predictor(file)([tmp_path / "x.npy"])
    assert [(len(entry.outputs), entry.top) for entry in found] == [(2, ())] * 3


@pytest.mark.parametrize(
    ("metadata", "words"),
    [
        ({"labels": "{"}, "the stored labels are damaged"),
        ({"labels": '"ab"'}, "the stored labels are damaged"),
        ({"labels": "[1, 2]"}, "the stored labels are damaged"),
        ({"labels": '["a", "b", "c"]'}, r"outputs of shape \(2,\) for 3 labels"),
        ({"preprocessing": '{"size":[8,8],"file":"/etc/passwd"}'}, "preprocessing is damaged"),
        ({"preprocessing": '{"size":[16,16]}'}, r"makes float32 of shape \(1, 16, 16\); the model takes"),
        ({"preprocessing": '{"columns":["a"]}'}, "makes float32 of shape"),
    ],
)
def test_damaged_metadata_are_an_error_of_the_file(place: Path, tmp_path: Path, metadata: dict[str, str], words: str) -> None:
    with pytest.raises(UserError, match=f"E141.*{words}") as caught:
        Predictor(changed(place, tmp_path, **metadata))([place / "photos" / "dark" / "00.png"])
    assert "changed.onnx" in caught.value.message


@pytest.mark.parametrize("where", ["initializer", "constant", "subgraph"])
def test_a_model_that_names_another_file_is_refused(place: Path, tmp_path: Path, where: str) -> None:
    model = ModelProto.FromString((place / "run" / "model.onnx").read_bytes())
    tensor = TensorProto(name="secret", data_type=TensorProto.FLOAT, dims=[4], data_location=TensorProto.EXTERNAL)
    tensor.external_data.add(key="location", value="/etc/passwd")
    if where == "initializer":
        model.graph.initializer.append(tensor)
    else:
        node = helper.make_node("Constant", [], ["secret"], value=tensor)
        inner = helper.make_graph([node], "inner", [], [])
        model.graph.node.append(node if where == "constant" else helper.make_node("If", ["c"], [], then_branch=inner))
    (tmp_path / "outside.onnx").write_bytes(model.SerializeToString())
    with pytest.raises(UserError, match=r"E143.*is stored in another file"):
        Predictor(tmp_path / "outside.onnx")


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x0a"])
def test_files_that_are_no_models_are_refused(tmp_path: Path, content: bytes) -> None:
    for suffix, code in ((".onnx", "E141"), (".mira", "E143")):
        (tmp_path / f"a{suffix}").write_bytes(content)
        with pytest.raises(UserError, match=code):
            Predictor(tmp_path / f"a{suffix}")


def test_labels_give_no_orders_to_the_terminal(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    file = changed(place, tmp_path, labels=json.dumps(["\x1b[31mred", "[bold]b[/bold]"]))
    shown = predict(capsys, file, place / "photos" / "dark" / "00.png")
    assert "\x1b" not in shown
    assert "\N{REPLACEMENT CHARACTER}[31mred" in shown
    assert "[bold]b[/bold]" in shown


def test_a_model_that_ends_in_softmax_is_not_softened_twice(tmp_path: Path) -> None:
    from mirabelle.inspection.measure import exported

    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 10), nn.Softmax(dim=1))
    task = digits()
    (tmp_path / "m.onnx").write_bytes(exported(model, task).onnx)
    np.save(tmp_path / "x.npy", task.test.inputs[0].numpy())
    (found,) = Predictor(tmp_path / "m.onnx")([tmp_path / "x.npy"], top=10)
    with torch.no_grad():
        due = model(task.test.inputs[:1])[0].sort(descending=True).values
    np.testing.assert_allclose([choice.probability for choice in found.top], due, rtol=1e-4)  # float32 in two runtimes


def test_preprocessing_of_built_in_data_travels_with_the_packed_file() -> None:
    from mirabelle.inspection.measure import exported

    task = digits()
    files = exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task)
    assert mirabelle.unpack(files.packed) == files.onnx
    metadata = {entry.key: entry.value for entry in ModelProto.FromString(files.onnx).metadata_props}
    assert metadata["preprocessing"] == '{"size":[8,8]}'
    without = exported(nn.Sequential(nn.Flatten(), nn.Linear(64, 10)), task.replace(preprocessing=None))
    assert len(files.packed) - len(without.packed) < 60


def test_a_model_of_sequences_without_alignment_writes_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = torch.eye(3)[torch.tensor([[0, 1, 1, 0, 1, 2], [2, 2, 2, 0, 0, 0]])]
    inputs, targets = 8.0 * paths.repeat(20, 1, 1), torch.tensor([[1, 1, 2], [2, -100, -100]]).repeat(20, 1)
    model = nn.Linear(3, 3)
    with torch.no_grad():
        model.weight.copy_(torch.eye(3))
        model.bias.zero_()
    task = mirabelle.Task(
        train=(inputs, targets), test=(inputs, targets), loss="ctc", metric="character_accuracy", labels=("", "a", "b")
    )
    result = mirabelle.compress(model, task, [quantize.Static(samples=16)], out=tmp_path / "run")
    assert result.profile.metric is not None
    assert result.profile.metric.value == 1.0
    np.save(tmp_path / "x.npy", inputs[:2].numpy())
    capsys.readouterr()
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "x.npy"), "--json"]) == 0
    assert [entry["text"] for entry in json.loads(capsys.readouterr().out)] == ["aab", "b"]
    assert main.run(["predict", str(tmp_path / "run"), str(tmp_path / "x.npy")]) == 0
    assert "aab" in capsys.readouterr().out

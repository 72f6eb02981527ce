"""Folders of images, .npz and .csv files as data; and what one reads when they are not right."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image as Picture

from mirabelle import Task
from mirabelle.errors import UserError, UserErrors
from mirabelle.recipe.file import read_recipe
from mirabelle.sources import task_from
from mirabelle.sources.datasets.splits import completed
from mirabelle.sources.models.weights import StateDict
from mirabelle.task.loss import CrossEntropy, balanced, loss_of
from mirabelle.task.preprocessing import Image, Table
from mirabelle.task.preprocessing.table import read_rows


def draw(folder: Path, count: int = 10, size: tuple[int, int] = (8, 8), *, color: bool = False, seed: int = 0) -> None:
    """`count` pictures of noise in `folder`, named after their number."""
    generator = np.random.default_rng(seed)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Picture.fromarray(generator.integers(0, 256, (*size, 3) if color else size, np.uint8)).save(folder / f"{k:03}.png")


def task(path: Path, **arguments: object) -> Task:
    return task_from(f"./{path.name}", arguments, data_folder=None, folder=path.parent)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    for k, name in enumerate(("plum", "apple", "pear")):
        draw(tmp_path / "photos" / name, 10 + 10 * k, seed=k)
    (tmp_path / "photos" / "plum" / "notes.txt").write_text("not an image")
    (tmp_path / "photos" / "plum" / "._000.png").write_text("not an image either")
    (tmp_path / "photos" / ".git").mkdir()
    return tmp_path / "photos"


def test_a_folder_of_class_folders_is_a_task_whose_every_class_is_in_every_split(photos: Path) -> None:
    found = task(photos)
    assert found.labels == ("apple", "pear", "plum")
    assert found.name == "photos"
    assert [torch.bincount(part.targets).tolist() for part in (found.train, found.validation, found.test)] == [
        [14, 21, 7],
        [2, 3, 1],
        [4, 6, 2],
    ]
    assert found.train.inputs.dtype == torch.float32
    assert found.train.inputs.shape == (42, 1, 8, 8)
    assert found.train.inputs.mean().item() == pytest.approx(0, abs=1e-4)
    assert found.train.inputs.std().item() == pytest.approx(1, abs=1e-3)
    assert found.fingerprint() == task(photos).fingerprint()
    assert found.fingerprint() != task(photos, seed=1).fingerprint()


def test_what_trains_and_what_predicts_are_the_same_bits(photos: Path) -> None:
    draw(photos / "plum", 3, (20, 11), color=True, seed=9)  # so that every image is scaled and converted
    found = task(photos, size=[5, 6])
    assert found.preprocessing is not None
    predicted = [found.preprocessing(path) for path in sorted(photos.rglob("[0-9]*.png"))]
    trained = torch.cat([part.inputs for part in (found.train, found.validation, found.test)]).numpy()
    assert len(predicted) == len(trained)
    assert {array.tobytes() for array in predicted} == {array.tobytes() for array in trained}


def test_size_and_mode_follow_from_the_images(photos: Path) -> None:
    assert task(photos).preprocessing == Image(
        size=(8, 8), mean=task(photos).preprocessing.mean, deviation=task(photos).preprocessing.deviation
    )
    draw(photos / "pear", 1, (9, 8), color=True)
    mixed = task(photos)
    assert (mixed.preprocessing.size, mixed.preprocessing.mode) == ((64, 64), "RGB")
    assert mixed.train.inputs.shape[1:] == (3, 64, 64)
    given = task(photos, size=[4, 6], mode="L", mean=[0.5], deviation=[0.25])
    assert given.preprocessing == Image(size=(4, 6), mean=(0.5,), deviation=(0.25,))
    last = task(photos, size=[4, 6], mode="RGB", layout="channels-last")
    assert last.train.inputs.shape[1:] == (4, 6, 3)
    assert torch.equal(last.train.inputs.movedim(-1, 1), task(photos, size=[4, 6], mode="RGB").train.inputs)


def test_12_of_16_bits_are_scaled_by_the_training_images_and_told(tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    for name, low in (("dark", 0), ("bright", 110)):
        (tmp_path / "scans" / name).mkdir(parents=True)
        for k in range(20):
            values = generator.integers(low, low + 110, (8, 8))
            values[0, 0] = 4000 if k else 3000
            Picture.fromarray(values.astype(np.uint16)).save(tmp_path / "scans" / name / f"{k:02}.png")
    found = task(tmp_path / "scans")
    assert isinstance(found.preprocessing, Image)
    assert found.preprocessing.white == 4095
    assert any("40 of 40 images have more than 8 bits" in note and "4,095 counts as white" in note for note in found.notes)
    means = found.train.inputs[:, 0, 1:].mean((1, 2))
    assert means[found.train.targets == 0].min() > means[found.train.targets == 1].max()
    again = torch.from_numpy(np.stack([found.preprocessing(path) for path in sorted((tmp_path / "scans/bright").iterdir())]))
    assert all(any(torch.equal(one, other) for other in again) for one in found.train.inputs[found.train.targets == 0])
    assert task(tmp_path / "scans", white=65535.0).preprocessing.white == 65535


def test_files_of_8_and_16_bits_may_lie_side_by_side(tmp_path: Path) -> None:
    for name in ("a", "b"):
        draw(tmp_path / "mixed" / name, 10)
        values = (np.arange(64).reshape(8, 8) * 65).astype(np.uint16)  # up to 4,095
        Picture.fromarray(values).save(tmp_path / "mixed" / name / "deep.png")
    found = task(tmp_path / "mixed", mean=[0.0], deviation=[1.0], test_fraction=0.1, validation_fraction=0.1)
    assert float(found.train.inputs.max()) <= 1
    assert any(note.startswith("2 of 22 images have more than 8 bits") for note in found.notes)


def test_what_a_folder_leaves_out_is_told(photos: Path) -> None:
    Picture.fromarray(np.zeros((8, 8, 4), np.uint8)).save(photos / "plum" / "clear.png")
    draw(photos / "pear" / "more", 2)
    draw(photos / "pear" / "other", 1, (16, 8))
    (photos / "pear" / "other" / "000.png").rename(photos / "pear" / "large.png")
    notes = " ".join(task(photos).notes)
    assert "Not all files in photos are read: 2 × .png, 1 × .txt are left out" in notes
    assert "1 of 62 images have transparency, which is left out" in notes
    assert "62 of 62 images (8×8 to 16×8 pixels) are resized to 64×64; `size`" in notes


def test_images_of_uint16_in_arrays_are_scaled_by_what_they_use(tmp_path: Path) -> None:
    x = np.random.default_rng(0).integers(0, 4096, (40, 6, 6)).astype(np.uint16)
    x[:, 0, 0] = 4095
    np.savez(tmp_path / "deep.npz", inputs=x, targets=np.arange(40) % 2)
    found = task(tmp_path / "deep.npz", mean=[0.0], deviation=[1.0])
    assert found.preprocessing.white == 4095
    assert float(found.train.inputs.max()) == pytest.approx(1)
    assert len(found.notes) == 1


def test_split_folders_are_kept_and_missing_ones_are_drawn_from_train(tmp_path: Path) -> None:
    for split, count in (("train", 10), ("val", 4), ("test", 5)):
        for k, name in enumerate("ab"):
            draw(tmp_path / "photos" / split / name, count, seed=k)
    found = task(tmp_path / "photos")
    assert (len(found.train), len(found.validation), len(found.test)) == (20, 8, 10)
    with pytest.raises(UserError, match=r"E111.*validation_fraction = 0\.3.*of its own"):
        task(tmp_path / "photos", validation_fraction=0.3)
    shutil.rmtree(tmp_path / "photos" / "test")
    found = task(tmp_path / "photos")
    assert (len(found.train), len(found.validation), len(found.test)) == (16, 8, 4)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("train", "tram"):
        draw(tmp_path / "photos" / name)
    assert task(tmp_path / "photos").labels == ("train", "tram")


def _break(photos: Path, how: str) -> None:
    if how == "absent":
        shutil.rmtree(photos)
    elif how == "empty":
        shutil.rmtree(photos)
        photos.mkdir()
    elif how == "one class":
        shutil.rmtree(photos / "plum")
        shutil.rmtree(photos / "pear")
    elif how == "no image":
        shutil.rmtree(photos / "plum")
        (photos / "plum").mkdir()
    elif how == "unreadable":
        (photos / "plum" / "003.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    elif how == "two images":
        shutil.rmtree(photos / "plum")
        draw(photos / "plum", 2)
    elif how in ("splits differ", "extra folder", "two names"):
        (photos / "train").mkdir()
        for name in ("plum", "pear", "apple"):
            (photos / name).rename(photos / "train" / name)
        for name in {"splits differ": ["test"], "extra folder": ["extra"], "two names": ["val", "valid"]}[how]:
            draw(photos / name / "pear")
            draw(photos / name / "apple")


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("absent", r"E130.*no folder of images at .*photos"),
        ("empty", "E130.*contains no class folders"),
        ("one class", 'E131.*at least two class folders; it contains one, "apple"'),
        ("no image", 'E131.*class "plum" in .* has no image'),
        ("unreadable", r"E131.*plum/003\.png cannot be read as an image"),
        ("two images", 'E131.*class "plum" has 2 samples; a split needs 3'),
        ("splits differ", 'E131.*class "plum" is only in one of the splits "train" and "test"'),
        ("extra folder", 'E131.*has a folder "extra" next to "train"'),
        ("two names", 'E131.*"validation"'),
    ],
)
def test_a_folder_that_is_no_data_set_is_told_in_one_line(photos: Path, how: str, words: str) -> None:
    _break(photos, how)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        task(photos)
    assert len(str(caught.value).splitlines()) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"sise": [8, 8]}, 'E102.*"task.arguments.sise".*did you mean "size"'),
        ({"size": [8]}, "E10[34]"),
        ({"size": [0, 8]}, "E110.*size must be"),
        ({"mode": "BGR"}, "E103.*task.arguments.mode"),
        ({"mean": [0.5, 0.5]}, 'E110.*mean needs one number for each of 1 channels of mode "L"; got 2'),
        ({"deviation": [0.0]}, "E110.*deviation must be finite and above 0"),
        ({"test_fraction": 1.5}, r"E110.*test_fraction must be a number in \(0, 1\)"),
        ({"test_fraction": 0.6, "validation_fraction": 0.4}, "E110.*add up to less than 1"),
    ],
)
def test_settings_of_a_folder_are_held_to_their_rules(photos: Path, arguments: dict[str, object], words: str) -> None:
    with pytest.raises(UserError, match=f"(?s){words}"):
        task(photos, **arguments)


def medmnist(path: Path, *, color: bool = False) -> dict[str, np.ndarray]:
    generator = np.random.default_rng(0)
    arrays = {}
    for split, count in (("train", 30), ("val", 10), ("test", 12)):
        arrays[f"{split}_images"] = generator.integers(0, 256, (count, 8, 8, 3) if color else (count, 8, 8), np.uint8)
        arrays[f"{split}_labels"] = (np.arange(count) % 3).astype(np.uint8)[:, None]
    np.savez(path, **arrays)
    return arrays


@pytest.mark.parametrize("color", [False, True])
def test_the_layout_of_medmnist_is_read(tmp_path: Path, color: bool) -> None:
    arrays = medmnist(tmp_path / "med.npz", color=color)
    found = task(tmp_path / "med.npz")
    assert (len(found.train), len(found.validation), len(found.test)) == (30, 10, 12)
    assert found.labels == ("0", "1", "2")
    assert isinstance(found.preprocessing, Image)
    assert found.preprocessing.mode == ("RGB" if color else "L")
    assert found.train.inputs.mean().item() == pytest.approx(0, abs=1e-4)
    Picture.fromarray(arrays["train_images"][4]).save(tmp_path / "four.png")
    assert found.preprocessing(tmp_path / "four.png").tobytes() == found.train.inputs[4].numpy().tobytes()
    assert task(tmp_path / "med.npz", labels=["a", "b", "c"]).labels == ("a", "b", "c")


def test_other_arrays_are_taken_as_they_are(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(40) % 2
    np.savez(tmp_path / "xy.npz", inputs=x, targets=y)
    found = task(tmp_path / "xy.npz")
    assert (len(found.train), len(found.validation), len(found.test)) == (28, 4, 8)
    assert found.preprocessing is None
    assert found.train.inputs.dtype == torch.float32
    np.savez(tmp_path / "split.npz", x_train=x[:30], y_train=x[:30, 0], x_test=x[30:], y_test=x[30:, 0])
    found = task(tmp_path / "split.npz")
    assert (found.metric.name, found.labels) == ("r2", ())
    assert torch.equal(found.test.targets, torch.from_numpy(x[30:, :1]).float())
    np.savez(tmp_path / "first.npz", inputs=np.zeros((12, 3, 4, 5), np.uint8), targets=np.arange(12) % 2)
    assert task(tmp_path / "first.npz").preprocessing.shape == (3, 4, 5)


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"a": np.zeros(3)}, "E131.*contains a.*train_images and train_labels; x_train and y_train"),
        ({"inputs": np.array([{}], dtype=object), "targets": np.zeros(1)}, r"E143.*Python objects \(a pickle\)"),
        ({"x_train": np.zeros((9, 2)), "y_train": np.zeros(9), "x_test": np.zeros((3, 2))}, "E131.*has x_test, but not"),
        ({"inputs": np.zeros((9, 2)), "targets": np.zeros(8)}, "E131.*the same length, above 0; got 9 and 8"),
        ({"inputs": np.zeros((0, 2)), "targets": np.zeros(0)}, "E131.*the same length, above 0"),
        (
            {"inputs": np.zeros((9, 2)), "targets": np.zeros((9, 14), int)},
            r"E131.*one class for each sample.*got shape \(9, 14\)",
        ),
        ({"inputs": np.zeros((9, 2)), "targets": np.arange(9) - 1}, "E131.*train targets must be from 0 to 7.*got -1"),
        ({"inputs": np.zeros((9, 2)), "targets": np.zeros(9, int)}, "E131.*needs at least two classes"),
        ({"inputs": np.zeros((9, 2)), "targets": np.arange(9) * 10}, "E131.*9 training samples for 81 classes"),
        ({"inputs": np.zeros((9, 2)), "targets": np.arange(9)}, 'E131.*class "0" has 1 sample; a split needs 3'),
        ({"inputs": np.zeros((9, 2, 5, 7), np.uint8), "targets": np.arange(9) % 2}, r"E131.*images of uint8 or uint16 must be"),
        ({"inputs": np.array(["a"] * 9), "targets": np.arange(9) % 2}, "E131.*must be numbers; got <U1"),
        ({"inputs": np.full((9, 2), np.nan), "targets": np.arange(9) % 2}, r"E131.*bad\.npz: the inputs contain NaN"),
        (
            {"x_train": np.zeros((9, 2)), "y_train": np.arange(9) % 2, "x_test": np.zeros((3, 4)), "y_test": np.arange(3) % 2},
            "E131.*the splits differ in shape or type",
        ),
        (
            {"x_train": np.zeros((9, 2)), "y_train": np.arange(9) % 2, "x_test": np.zeros((3, 2)), "y_test": np.arange(3)},
            "E131.*test targets must be from 0 to 1, according to the training data; got 2",
        ),
    ],
)
def test_arrays_that_cannot_be_used_are_told(tmp_path: Path, arrays: dict[str, np.ndarray], words: str) -> None:
    np.savez(tmp_path / "bad.npz", **arrays)
    with pytest.raises(UserError, match=f"(?s){words}") as caught:
        task(tmp_path / "bad.npz")
    assert str(tmp_path / "bad.npz") in str(caught.value)


def test_a_damaged_or_pickled_npz_is_refused(tmp_path: Path) -> None:
    medmnist(tmp_path / "med.npz")
    content = (tmp_path / "med.npz").read_bytes()
    for name, damaged, code in (
        ("half", content[: len(content) // 2], "E131"),
        ("flipped", content[:200] + bytes([content[200] ^ 255]) + content[201:], "E131"),
        ("empty", b"", "E131"),
        ("pickle", b"\x80\x04K\x01.", "E143"),
    ):
        (tmp_path / f"{name}.npz").write_bytes(damaged)
        with pytest.raises(UserError, match=code):
            task(tmp_path / f"{name}.npz")
    np.save(tmp_path / "one.npy", np.zeros(3))
    (tmp_path / "one.npy").rename(tmp_path / "one.npz")
    with pytest.raises(UserError, match=r"E131.*one array without a name"):
        task(tmp_path / "one.npz")


@pytest.mark.skipif("MIRABELLE_DATA" not in os.environ, reason="MIRABELLE_DATA does not name a folder of data")
def test_pneumonia_is_read_as_it_was_published() -> None:
    path = Path(os.environ["MIRABELLE_DATA"]) / "pneumonia" / "pneumoniamnist.npz"
    if not path.is_file():
        pytest.skip(f"no {path}")
    found = task(path)
    assert (len(found.train), len(found.validation), len(found.test)) == (4708, 524, 624)
    assert torch.bincount(found.test.targets).tolist() == [234, 390]
    assert found.train.inputs.shape[1:] == (1, 28, 28)


def iris(path: Path, species: tuple[str, ...] = ("setosa", "versicolor")) -> None:
    generator = np.random.default_rng(0)
    lines = ["length,width,constant,species"]
    lines += [f"{generator.normal():.3f},{generator.normal():.3f},0.1,{species[k % len(species)]}" for k in range(40)]
    path.write_text("\n".join(lines) + "\n")


def test_a_table_with_texts_to_predict_is_a_classification(tmp_path: Path) -> None:
    iris(tmp_path / "iris.csv")
    found = task(tmp_path / "iris.csv")
    assert found.labels == ("setosa", "versicolor")
    assert (len(found.train), len(found.validation), len(found.test)) == (28, 4, 8)
    assert isinstance(found.preprocessing, Table)
    assert found.preprocessing.columns == ("length", "width", "constant")
    assert found.train.inputs[:, :2].mean(0).abs().max() < 1e-4
    assert found.train.inputs[:, 2].abs().max() < 1e-5  # a constant column says nothing, loudly or otherwise
    predicted = found.preprocessing(read_rows(tmp_path / "iris.csv"))
    trained = torch.cat([part.inputs for part in (found.train, found.validation, found.test)]).numpy()
    assert {row.tobytes() for row in predicted} == {row.tobytes() for row in trained}


@pytest.mark.parametrize(
    ("species", "labels"),
    [(("1", "0"), ("0", "1")), (("10.0", "2.0"), ("2", "10")), (("1", "x"), ("1", "x")), (("1.5", "2"), ())],
)
def test_few_whole_numbers_are_classes_and_others_are_quantities(
    tmp_path: Path, species: tuple[str, ...], labels: tuple[str, ...]
) -> None:
    iris(tmp_path / "iris.csv", species)
    found = task(tmp_path / "iris.csv")
    assert found.labels == labels
    assert found.metric.name == ("accuracy" if labels else "r2")
    assert found.train.targets.dtype == (torch.int64 if labels else torch.float32)


def test_rare_classes_may_count_alike_and_be_judged_by_more_than_accuracy(tmp_path: Path) -> None:
    iris(tmp_path / "iris.csv", ("0", "0", "0", "1"))
    found = task(tmp_path / "iris.csv", metric="roc_auc", class_weights="balanced")
    assert found.metric.name == "roc_auc"
    assert found.loss == CrossEntropy(weights=balanced(found.train.targets, 2))
    assert found.outputs.classifies
    with pytest.raises(UserError, match=r'E110.*metric "auc" is not known'):
        task(tmp_path / "iris.csv", metric="auc")
    with pytest.raises(UserError, match=r"E111.*class_weights need a classification with one class"):
        task(tmp_path / "iris.csv", kind="regression", class_weights="balanced")


def test_targets_may_be_several_labels_a_sample(tmp_path: Path) -> None:
    x, y = np.random.default_rng(0).normal(size=(40, 5)), np.arange(120).reshape(40, 3) % 2
    np.savez(tmp_path / "many.npz", inputs=x, targets=y)
    found = task(tmp_path / "many.npz", kind="multi-label", metric="average_precision")
    assert found.train.targets.shape == (28, 3)
    assert (found.loss, found.outputs.classifies, found.outputs.multi_label) == (loss_of("binary_cross_entropy"), False, True)
    assert found.labels == ("0", "1", "2")
    outputs = torch.where(found.test.targets > 0, 1.0, -1.0)
    assert found.metric.value(found.metric.of_samples(outputs, found.test.targets)) == 1.0
    for targets, words in ((y * 2, "must be 0 or 1"), (y[:, 0], r"\(N, labels\)")):
        np.savez(tmp_path / "wrong.npz", inputs=x, targets=targets)
        with pytest.raises(UserError, match=f"E131.*{words}"):
            task(tmp_path / "wrong.npz", kind="multi-label")
    with pytest.raises(UserError, match=r"E131.*2 labels for 3 columns of targets"):
        task(tmp_path / "many.npz", kind="multi-label", labels=["a", "b"])


def test_a_table_may_be_read_otherwise(tmp_path: Path) -> None:
    iris(tmp_path / "iris.csv", ("1", "0"))
    found = task(tmp_path / "iris.csv", target="width", ignore=["constant"])
    assert found.preprocessing.columns == ("length", "species")
    assert found.train.targets.shape == (28, 1)
    assert task(tmp_path / "iris.csv", kind="regression").labels == ()
    iris(tmp_path / "many.csv", tuple(str(k) for k in range(30)))
    assert task(tmp_path / "many.csv").labels == ()


@pytest.mark.parametrize(
    ("lines", "arguments", "words"),
    [
        (
            ["a,b", *(f"{k},x" for k in range(25)), "oops,y"],
            {},
            r'E131.*t\.csv, line 27, column "a": "oops" is not a finite number.*list the text under missing',
        ),
        (["a,b", "1,x", "2,"], {}, 'E131.*line 3, column "b": the cell is empty'),
        (["a,b", *(f"1,{k}.5" for k in range(30)), "1,oops"], {}, 'E131.*line 32, column "b": "oops"'),
        (["a,b", "1,x", "2,x"], {}, 'E131.*column "b" is "x" in every row'),
        (["a,b", "1,x", "2,y"], {}, r't\.csv: class "x" has 1 sample; a split needs 3'),
        (["a", "1", "2"], {}, "E131.*has no column left"),
        (["a,b", "1,2"], {"target": "bb"}, 'E110.*has no column "bb".*did you mean "b"'),
        (["a,b", "1,2"], {"ignore": ["c"]}, 'E110.*has no column "c"'),
        (["a,b", "1,2.5"], {}, "E131.*the training data has 1 sample"),
        (["a,b", "1,2"], {"targets": "b"}, "E102"),
    ],
)
def test_tables_that_cannot_be_used_are_told(
    tmp_path: Path, lines: list[str], arguments: dict[str, object], words: str
) -> None:
    (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(UserError, match=f"(?s){words}"):
        task(tmp_path / "t.csv", **arguments)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("./absent.csv", r"E130.*no table at .*absent\.csv"),
        ("./absent.npz", r"E130.*no arrays at"),
        ("~/photos", 'E130.*"~" is not expanded'),
        ("./notes.doc", r"E143.*notes\.doc has a file type that is not supported as data"),
        ("./notes.txt", r"E130.*notes\.txt is empty"),
        ("./weights.pkl", "E143"),
        ("photos", r'E130.*not a built-in data set.*write "\./photos" for the folder'),
    ],
)
def test_a_name_that_is_no_data_is_told(photos: Path, name: str, words: str) -> None:
    (photos.parent / "notes.doc").write_text("")
    (photos.parent / "notes.txt").write_text("")
    (photos.parent / "weights.pkl").write_text("")
    with pytest.raises(UserError, match=f"(?s){words}"):
        task_from(name, {}, data_folder=None, folder=photos.parent)
    with pytest.raises(UserError, match=r'E102.*"size" for data "digits"'):
        task_from("digits", {"size": [8, 8]}, data_folder=None, folder=photos.parent)


def test_data_may_lie_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "flowers").mkdir()
    iris(tmp_path / "flowers" / "iris.csv")
    (tmp_path / "recipe.toml").write_text(
        'schema = 1\n[model]\nfrom = "torch.nn:Identity"\n[task]\ndata = "data:flowers/iris.csv"\n'
        'arguments = { target = "width", ignore = ["species"] }\n[[step]]\nuse = "quantize.Dynamic"\n'
    )
    recipe = read_recipe(tmp_path / "recipe.toml")
    assert recipe.task.data == "data:flowers/iris.csv"
    assert recipe.build_task(tmp_path).name == "iris"
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    with pytest.raises(UserError, match=r'E130.*the data folder of "data:flowers/iris\.csv" is not known'):
        recipe.build_task(None)
    monkeypatch.setenv("MIRABELLE_DATA", str(tmp_path))
    assert len(recipe.build_task(None).train) == 28
    with pytest.raises(UserError, match="E130"):
        task_from("data:flowers/none.csv", {}, data_folder=None, folder=Path())
    draw(tmp_path / "photos" / "a")
    draw(tmp_path / "photos" / "b", seed=1)
    assert task_from("data:photos", {"size": [4, 4]}, data_folder=None, folder=Path()).train.inputs.shape[2:] == (4, 4)


def test_models_and_weights_may_lie_in_the_folder_of_data_sets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MIRABELLE_DATA", raising=False)
    (tmp_path / "sets" / "nets").mkdir(parents=True)
    for name in ("net.h5", "net.safetensors", "net.th"):
        (tmp_path / "sets" / "nets" / name).touch()
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'schema = 1\n[model]\nfrom = "data:nets/net.h5"\nweights = { pickle = "data:nets/net.th" }\n[task]\ndata = "digits"\n'
        '[teacher]\nfrom = "m:f"\nweights = "data:nets/net.safetensors"\n[[step]]\nuse = "quantize.Static"\n'
    )
    found = read_recipe(recipe, data_folder=tmp_path / "sets")
    assert found.model.factory == str(tmp_path / "sets" / "nets" / "net.h5")
    assert found.model.weights == StateDict(pickle=str(tmp_path / "sets" / "nets" / "net.th"))
    assert found.teacher is not None
    assert found.teacher.weights == str(tmp_path / "sets" / "nets" / "net.safetensors")
    with pytest.raises(
        UserErrors, match=r'(?s)the data folder of "data:nets/net\.h5" is not known.*--data-dir FOLDER'
    ) as caught:
        read_recipe(recipe)
    assert [error.code for error in caught.value.errors] == ["E130"] * 3
    monkeypatch.setenv("MIRABELLE_DATA", str(tmp_path))
    with pytest.raises(UserErrors, match=r"no model at .*net\.h5"):
        read_recipe(recipe)


def test_recipes_name_data_by_absolute_paths(tmp_path: Path) -> None:
    recipe = 'schema = 1\n[model]\nfrom = "m:f"\n[task]\ndata = "DATA"\n[[step]]\nuse = "quantize.Static"\n'
    for name, due in (
        ("./photos", str(tmp_path / "photos")),
        ("table.CSV", str(tmp_path / "table.CSV")),
        ("sub/photos", str(tmp_path / "sub" / "photos")),
        ("digits", "digits"),
        ("pkg.mod:function", "pkg.mod:function"),
        ("./data.py:function", f"{tmp_path / 'data.py'}:function"),
    ):
        (tmp_path / "recipe.toml").write_text(recipe.replace("DATA", name))
        assert read_recipe(tmp_path / "recipe.toml", sources=False).task.data == due


def test_splits_are_disjoint_whole_and_have_every_class() -> None:
    targets = np.repeat(np.arange(4), [3, 7, 50, 11])
    splits = completed({"train": (np.arange(71), targets)}, 0.9, 0.05, 3, ("a", "b", "c", "d"))
    assert sorted(np.concatenate([inputs for inputs, _ in splits.values()])) == list(range(71))
    for inputs, classes in splits.values():
        assert set(classes) == {0, 1, 2, 3}
        assert (targets[inputs] == classes).all()


def test_preprocessing_that_cannot_have_made_the_data_is_refused() -> None:
    x, y = torch.zeros(20, 1, 8, 8), torch.arange(20) % 2
    with pytest.raises(UserError, match=r"E131.*makes inputs of shape \(3, 8, 8\); the data have \[\(1, 8, 8\)\]"):
        Task(train=(x, y), test=(x, y), preprocessing=Image(size=(8, 8), mode="RGB"))

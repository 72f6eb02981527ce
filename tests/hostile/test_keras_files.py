"""A Keras file is data: what names code, or data in other files, is refused before Keras sees it, and its code never runs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from hostile.keras_files import dense, named, sequence, tried, write_all, write_h5, write_keras
from mirabelle.errors import UserError
from mirabelle.sources import model_from
from mirabelle.sources.models.keras_model.contents import check_contents
from mirabelle.sources.models.keras_model.library import library

keras = library()


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("keras")
    return write_all(folder, folder / "mark")


def test_every_hostile_file_is_refused_in_one_line_and_none_runs(
    files: dict[str, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = next(iter(files.values())).parent
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    for name, path in files.items():
        with pytest.raises(UserError, match="E141") as caught:
            model_from(str(path), {}, Path())
        assert str(caught.value).count("\n") == 1, name
        assert not (folder / "mark").exists(), name
        with pytest.raises(UserError, match="E141"):
            check_contents(path)  # not by Keras' own checks, which differ from version to version
    assert "payload" not in sys.modules
    assert not (folder.parent / "out.txt").exists()


def test_the_installed_keras_runs_none_of_them_either(files: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """It holds from 3.11.3 on, which is below the version that is required."""
    folder = next(iter(files.values())).parent
    monkeypatch.chdir(folder)
    monkeypatch.syspath_prepend(folder)
    ran = [name for name, path in files.items() if tried(path, folder / "mark", _loaded)[1]]
    assert ran == []


def _loaded(path: Path) -> object:
    return keras.models.load_model(path, compile=False, safe_mode=True)


def test_commands_on_a_hostile_file_run_nothing(files: dict[str, Path], status, tmp_path: Path) -> None:
    path = files["os.system as the function of a Lambda"]
    mark = path.parent / "mark"
    for command in (
        ("inspect", path),
        ("inspect", path, "--groups"),
        ("export", path, "--input", "1", "--out", tmp_path / "x.onnx"),
        ("verify", path),
        ("bench", path),
        ("predict", path, path),
    ):
        code, _, said = status(*command)
        assert code == 2
        assert said.startswith("error[E1")
        assert "Traceback" not in said
    assert not mark.exists()


def test_what_keras_writes_itself_is_read(tmp_path: Path) -> None:
    layers = keras.layers
    x = keras.Input((8, 3))
    y = layers.Conv1D(4, 3, activation="relu6", kernel_regularizer="l2", kernel_constraint="max_norm")(x)
    y = layers.Bidirectional(layers.LSTM(3, return_sequences=True))(y)
    y = layers.TimeDistributed(layers.Dense(4, activation=keras.activations.gelu))(y)
    inner = keras.Sequential([keras.Input((6, 4)), layers.Dense(4)])
    inner.compile("adam", "mse")
    y = layers.Dropout(0.1, seed=3)(keras.ops.add(inner(y), 1.0))
    model = keras.Model(x, layers.Dense(2, activation="softmax")(layers.GlobalAveragePooling1D()(y)))
    model.compile("adam", loss=of_a_user)
    for name in ("x.keras", "x.h5"):
        model.save(tmp_path / name)
        check_contents(tmp_path / name)


def of_a_user(target, output):
    return keras.ops.mean(target - output)


@keras.saving.register_keras_serializable(package="hostile")
def twice(x):
    return 2 * x


def test_what_the_user_has_registered_is_the_users_own(tmp_path: Path) -> None:
    keras.Sequential([keras.Input((1,)), keras.layers.Dense(1, activation=twice)]).save(tmp_path / "x.keras")
    check_contents(tmp_path / "x.keras")
    check_contents(write_keras(tmp_path / "y.keras", sequence(dense(activation=named("builtins", "relu")))))
    check_contents(write_h5(tmp_path / "y.h5", sequence(dense(activation="relu"))))


def test_a_loop_of_links_inside_a_file_ends(tmp_path: Path) -> None:
    import h5py

    with h5py.File(tmp_path / "x.h5", "w") as file:
        below = file.create_group("a/b")
        below["up"] = file["a"]
        file["soft"] = h5py.SoftLink("/a/b/up")
        file["gone"] = h5py.SoftLink("/nowhere")
    check_contents(tmp_path / "x.h5")

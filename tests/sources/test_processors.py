"""Image processors and feature extractors of transformers as settings of data."""

from __future__ import annotations

import importlib.util
import json
import shutil
import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import PIL.Image
import pytest

from mirabelle.cli import main
from mirabelle.errors import UserError
from mirabelle.sources import task_from
from mirabelle.sources.folder_arguments import folder_arguments
from mirabelle.sources.models.processors import image_arguments, sound_arguments
from mirabelle.task.preprocessing import Image

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import transformers

from shards import write_shards


def saved(folder: Path, kind: str, **settings: Any) -> Any:
    processor = getattr(transformers, kind)(**settings)
    processor.save_pretrained(folder)
    return processor


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("ViTImageProcessor", {"size": {"height": 20, "width": 24}}),
        ("CLIPImageProcessor", {"size": {"shortest_edge": 24}, "crop_size": {"height": 20, "width": 20}}),
        ("DeiTImageProcessor", {"size": {"height": 30, "width": 30}, "crop_size": {"height": 20, "width": 20}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 24}}),
        ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
        ("SegformerImageProcessor", {"size": {"height": 20, "width": 20}, "do_reduce_labels": True}),
        ("ViTImageProcessor", {"size": {"height": 20, "width": 20}, "do_normalize": False, "rescale_factor": 1 / 127.5}),
    ],
)
def test_settings_make_the_inputs_that_a_processor_makes(kind: str, settings: dict[str, Any], tmp_path: Path) -> None:
    processor = saved(tmp_path / "model", kind, **settings)
    found = image_arguments(tmp_path / "model")
    assert found.pop("reduce_labels", False) == settings.get("do_reduce_labels", False)
    image = Image(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})
    for k, size in enumerate(((50, 31), (31, 50), (20, 20), (400, 700))):
        pixels = np.random.default_rng(k).integers(0, 256, (*size, 3), np.uint8)
        picture = PIL.Image.fromarray(pixels)
        picture.save(tmp_path / "a.png")
        due = processor(picture, return_tensors="np")["pixel_values"][0]
        np.testing.assert_allclose(image(tmp_path / "a.png"), due, atol=1e-5)


def test_a_detector_gets_images_of_one_size(tmp_path: Path) -> None:
    saved(tmp_path / "model", "DetrImageProcessor", size={"shortest_edge": 32, "longest_edge": 64})
    assert image_arguments(tmp_path / "model")["size"] == [32, 32]


def test_what_no_settings_say_is_refused_in_one_line(tmp_path: Path) -> None:
    saved(tmp_path / "model", "DonutImageProcessor")
    with pytest.raises(UserError, match="does cannot be said by settings of images") as caught:
        image_arguments(tmp_path / "model")
    assert caught.value.code == "E121"
    assert "\n" not in caught.value.message
    saved(tmp_path / "whisper", "WhisperFeatureExtractor")
    with pytest.raises(UserError, match="is a WhisperFeatureExtractor, which the settings of recordings cannot say"):
        sound_arguments(tmp_path / "whisper")
    with pytest.raises(UserError, match="cannot be read"):
        image_arguments(tmp_path / "nowhere")


def test_extractors_of_sounds(tmp_path: Path) -> None:
    saved(tmp_path / "one", "Wav2Vec2FeatureExtractor", return_attention_mask=True)
    assert sound_arguments(tmp_path / "one") == {"features": "waveform", "rate": 16_000, "normalize": "recording"}
    saved(tmp_path / "two", "ASTFeatureExtractor", max_length=48, num_mel_bins=32, mean=1.0, std=2.0)
    due = {"features": "kaldi", "rate": 16_000, "mels": 32, "frames": 48, "mean": 1.0, "deviation": 4.0}
    assert sound_arguments(tmp_path / "two") == due


def classes(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).mkdir(parents=True)
        for k in range(4):
            PIL.Image.fromarray(np.full((9, 9, 3), 20 * k, np.uint8)).save(folder / name / f"{k}.png")
    return folder


def model_folder(folder: Path, architecture: str, *names: str, **settings: Any) -> str:
    saved(folder, "ViTImageProcessor", size={"height": 20, "width": 20})
    config = {"architectures": [architecture], "id2label": dict(enumerate(names)), **settings}
    (folder / "config.json").write_text(json.dumps(config))
    return str(folder)


def test_classes_are_in_the_order_of_the_model(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = model_folder(tmp_path / "vit", "ViTForImageClassification", "Red", "green", "blue", num_attention_heads=2)
    photos = classes(tmp_path / "photos", "blue", "red")
    found = folder_arguments(model, f"{photos}/")
    assert found is not None
    assert (found["labels"], found["size"], found["mean"]) == (["red", "green", "blue"], [20, 20], [0.5, 0.5, 0.5])
    task = task_from(f"{photos}/", found, data_folder=None, folder=tmp_path)
    assert task.labels == ("red", "green", "blue")
    assert sorted(task.train.first(9).targets.unique().tolist()) == [0, 2]
    assert main.run(["init", "--model", model, "--data", str(photos), "--no-look"]) == 0  # there are no weights
    recipe = capsys.readouterr().out
    read = tomllib.loads(recipe)
    assert read["task"]["arguments"] == found
    assert read["step"][1]["use"] == "quantize.Dynamic"
    classes(photos, "violet")
    with pytest.raises(UserError, match='has a class folder "violet", which is no class of the model: Red, green, blue'):
        folder_arguments(model, f"{photos}/")


@pytest.mark.parametrize(
    ("architecture", "places", "due"),
    [
        ("SegformerForSemanticSegmentation", ("images", "masks"), {"kind": "segmentation", "labels": ["a", "b"]}),
        ("YolosForObjectDetection", (), {"kind": "unlabelled"}),
        ("ViTModel", ("x", "y"), {"kind": "unlabelled"}),
        ("ViTForImageClassification", (), {"kind": "unlabelled"}),
    ],
)
def test_the_kind_of_images_follows_the_model(architecture: str, places: tuple[str, ...], due: Any, tmp_path: Path) -> None:
    model = model_folder(tmp_path / "model", architecture, "a", "b")
    (tmp_path / "data").mkdir()
    classes(tmp_path / "data", *places)
    PIL.Image.new("RGB", (9, 9)).save(tmp_path / "data" / "a.png")
    found = folder_arguments(model, f"{tmp_path}/data")
    assert found is not None
    assert {name: found.get(name) for name in due} == due
    assert folder_arguments(f"{tmp_path}/nowhere", f"{tmp_path}/data") is None
    assert folder_arguments(model, "./file.py:task") is None


def test_shards_are_read_as_the_model_takes_images(tmp_path: Path) -> None:
    write_shards(tmp_path / "shards", label=("a", "b"))
    for name in ("shards", "shards/train-{000000..000001}.tar"):
        data = f"{tmp_path}/{name}"
        found = folder_arguments(model_folder(tmp_path / "vit", "ViTForImageClassification", "a", "b", "c"), data)
        assert found is not None
        assert (found["labels"], found["size"]) == (["a", "b", "c"], [20, 20])
        task = task_from(data, found, data_folder=None, folder=tmp_path)
        assert task.train.first(1).inputs.shape == (1, 3, 20, 20)
        found = folder_arguments(model_folder(tmp_path / "vit", "ViTModel", "a", "b"), data)
        assert found is not None
        assert found["kind"] == "unlabelled"
        shutil.rmtree(tmp_path / "vit")


def test_a_model_of_images_and_texts_needs_both(tmp_path: Path) -> None:
    model = model_folder(tmp_path / "clip", "CLIPModel", text_config={}, vision_config={})
    with pytest.raises(UserError, match="CLIPModel reads images and texts together") as caught:
        folder_arguments(model, str(classes(tmp_path / "photos", "a")))
    assert caught.value.code == "E121"

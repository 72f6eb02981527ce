"""Folders of transformers for images: what they are given, what they return, and what their classes are called."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import mirabelle
from mirabelle import Run, Task, Training, prune, quantize
from mirabelle.errors import UserError
from mirabelle.job.dry_run import try_one_batch
from mirabelle.model.plain_weights import with_plain_weights
from mirabelle.sources import model_from

if importlib.util.find_spec("transformers") is None:
    pytest.skip("transformers is not installed", allow_module_level=True)
import transformers

LAYERS = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
NAMES = {"id2label": {0: "red", 1: "green", 2: "blue"}, "label2id": {"red": 0, "green": 1, "blue": 2}}
DETECTS = {"image_size": [16, 16], "patch_size": 8, "num_detection_tokens": 4, "num_labels": 2}
RESNET = {"embedding_size": 8, "hidden_sizes": [8, 16], "depths": [1, 1], "layer_type": "basic"}
SEGMENTS = {
    "hidden_sizes": [8] * 4,
    "depths": [1] * 4,
    "num_attention_heads": [1] * 4,
    "decoder_hidden_size": 8,
    "sr_ratios": [1] * 4,
    "num_labels": 2,
}


def saved(folder: Path, kind: str, config: Any) -> Path:
    torch.manual_seed(0)
    model = getattr(transformers, kind)(config)
    for parameter in model.parameters():
        parameter.data.add_(0.02 * torch.randn_like(parameter))
    model.eval().save_pretrained(folder)
    return folder


def pictures(count: int = 12) -> torch.Tensor:
    return torch.randn(count, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def test_one_input_needs_no_name_and_two_do(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**LAYERS, **NAMES, image_size=16, patch_size=8)
    folder, images = saved(tmp_path / "vit", "ViTForImageClassification", config), pictures(2)
    model = model_from("./vit", {}, tmp_path)
    with torch.no_grad():
        due = transformers.ViTForImageClassification.from_pretrained(folder)(pixel_values=images).logits
        torch.testing.assert_close(model(images), due)
    with pytest.raises(UserError, match="2 inputs without names"):
        model(images, images)


@pytest.mark.parametrize(
    ("labels", "told"),
    [
        (("red", "green", "blue"), None),
        (("Red", "Green", "Blue"), None),
        (("0", "1", "2"), None),
        (("blue", "green", "red"), r'labels = \["red", "green", "blue"\]'),
        (("cat", "dog", "fox"), "the model names its classes red, green, blue, the data theirs cat, dog, fox"),
    ],
)
def test_classes_of_another_order_are_refused(labels: tuple[str, ...], told: str | None, tmp_path: Path) -> None:
    saved(tmp_path / "resnet", "ResNetForImageClassification", transformers.ResNetConfig(**RESNET, **NAMES))
    data = (pictures(), torch.arange(12) % 3)
    task = Task(train=data, test=data, labels=labels)
    model = model_from("./resnet", {}, tmp_path)
    if told is None:
        assert try_one_batch(model, task).shape == (2, 3)
        return
    with pytest.raises(UserError, match=told) as caught:
        try_one_batch(model, task)
    assert caught.value.code == "E132"
    assert try_one_batch(model_from("./resnet", {"labels": 3}, tmp_path), task).shape == (2, 3)


@pytest.mark.slow
def test_a_detector_without_labels_is_matched_in_both_outputs(tmp_path: Path) -> None:
    saved(tmp_path / "yolos", "YolosForObjectDetection", transformers.YolosConfig(**LAYERS, **DETECTS))
    model, images = model_from("./yolos", {}, tmp_path), pictures()
    assert [tuple(part.shape) for part in model(images)] == [(12, 4, 3), (12, 4, 4)]
    task = Task(train=images[:8], validation=images[8:10], test=images[10:])
    result = mirabelle.compress(model, task, [quantize.Dynamic()], out=tmp_path / "run")
    assert result.profile.metric.name == "fidelity"
    again = transformers.YolosForObjectDetection.from_pretrained(tmp_path / "run" / "huggingface")
    with torch.no_grad():
        found = again(pixel_values=images[10:])
        for due, own in zip(result.model(images[10:]), (found.logits, found.pred_boxes), strict=True):
            torch.testing.assert_close(own, due, atol=0.05, rtol=0)


def test_logits_of_a_segmentation_have_the_size_of_the_image(tmp_path: Path) -> None:
    config = transformers.SegformerConfig(**SEGMENTS)
    folder, images = saved(tmp_path / "segformer", "SegformerForSemanticSegmentation", config), pictures(2)
    with torch.no_grad():
        small = transformers.SegformerForSemanticSegmentation.from_pretrained(folder)(pixel_values=images).logits
        found = model_from("./segformer", {}, tmp_path)(images)
    assert found.shape == (2, 2, 16, 16)
    due = torch.nn.functional.interpolate(small, size=(16, 16), mode="bilinear", align_corners=False)
    torch.testing.assert_close(found, due)


@pytest.mark.slow
def test_a_vision_transformer_is_trained_quantized_and_written_back(tmp_path: Path) -> None:
    config = transformers.ViTConfig(**LAYERS, **NAMES, image_size=16, patch_size=8)
    saved(tmp_path / "vit", "ViTForImageClassification", config)
    images, training = pictures(60), Training(epochs=1)
    task = Task(
        train=(images[:48], torch.arange(48) % 3), test=(images[48:], torch.arange(12) % 3), labels=("red", "green", "blue")
    )
    steps = [prune.Weights(sparsity=0.5, train=training), quantize.Static()]
    result = mirabelle.compress(model_from("./vit", {}, tmp_path), task, steps, out=tmp_path / "run")
    again = transformers.ViTForImageClassification.from_pretrained(tmp_path / "run" / "huggingface")
    with torch.no_grad():
        found, due = again(pixel_values=images[48:]).logits, result.model(images[48:])
    assert float((found - due).abs().max()) < 0.1 * float(due.abs().max())
    assert again.config.id2label == NAMES["id2label"]


def test_a_weight_that_is_computed_is_written_back_as_its_sources(tmp_path: Path) -> None:
    listens = {"conv_dim": (8, 8), "conv_kernel": (10, 8), "conv_stride": (8, 8), "num_feat_extract_layers": 2}
    convolves = {"num_conv_pos_embeddings": 8, "num_conv_pos_embedding_groups": 2}
    config = transformers.Wav2Vec2Config(**LAYERS, **listens, **convolves, vocab_size=5)
    saved(tmp_path / "ctc", "Wav2Vec2ForCTC", config)
    model: Any = model_from("./ctc", {}, tmp_path)
    plain = with_plain_weights(model)
    assert "model.wav2vec2.encoder.pos_conv_embed.conv.weight" in plain.state_dict()
    model.write_back(plain, tmp_path)
    again = transformers.Wav2Vec2ForCTC.from_pretrained(tmp_path / "huggingface")
    waves = torch.randn(2, 2_000, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        torch.testing.assert_close(again(waves).logits, model(waves), atol=1e-5, rtol=1e-5)


def test_the_sizes_of_images_are_those_of_the_processor(tmp_path: Path) -> None:
    saved(tmp_path / "resnet", "ResNetForImageClassification", transformers.ResNetConfig(**RESNET, **NAMES))
    model: Any = model_from("./resnet", {}, tmp_path)
    assert model.example() is None
    for size, due in (({"shortest_edge": 24}, (24, 24)), ({"height": 20, "width": 24}, (20, 24)), (28, (28, 28))):
        (tmp_path / "resnet" / "preprocessor_config.json").write_text(json.dumps({"size": size}))
        assert model.example().inputs["pixel_values"].shape == (2, 3, *due)


def test_an_example_of_features_of_sound_has_their_sizes(tmp_path: Path) -> None:
    config = transformers.ASTConfig(**LAYERS, max_length=32, num_mel_bins=16, patch_size=16)
    saved(tmp_path / "ast", "ASTForAudioClassification", config)
    model: Any = model_from("./ast", {}, tmp_path)
    assert model.example().inputs["input_values"].shape == (2, 32, 16)


def test_an_example_of_a_model_that_writes_what_it_hears_has_both_inputs(tmp_path: Path) -> None:
    halves = {f"{half}_{name}": 2 for half in ("encoder", "decoder") for name in ("layers", "attention_heads", "ffn_dim")}
    sizes = {"d_model": 8, "vocab_size": 12, "num_mel_bins": 6, "max_source_positions": 10, "max_target_positions": 9}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    config = transformers.WhisperConfig(**halves, **sizes, **special)
    saved(tmp_path / "whisper", "WhisperForConditionalGeneration", config)
    model: Any = model_from("./whisper", {}, tmp_path)
    inputs = model.example().inputs
    assert {name: tuple(part.shape) for name, part in inputs.items()} == {
        "input_features": (2, 6, 20),
        "decoder_input_ids": (2, 9),
    }
    with torch.no_grad():
        assert model(**inputs).shape == (2, 9, 12)


def test_an_example_of_images_and_texts_has_both(tmp_path: Path) -> None:
    words = {**LAYERS, "vocab_size": 20, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    pictures = {**LAYERS, "image_size": 16, "patch_size": 8}
    saved(tmp_path / "clip", "CLIPModel", transformers.CLIPConfig(text_config=words, vision_config=pictures, projection_dim=6))
    model: Any = model_from("./clip", {}, tmp_path)
    with torch.no_grad():
        assert [tuple(part.shape) for part in model(**model.example().inputs)] == [(2, 6), (2, 6)]


def test_a_folded_batch_norm_is_written_back(tmp_path: Path) -> None:
    saved(tmp_path / "resnet", "ResNetForImageClassification", transformers.ResNetConfig(**RESNET, **NAMES))
    model: Any = model_from("./resnet", {}, tmp_path)
    task = Task(train=(pictures(), torch.arange(12) % 3), test=(pictures(), torch.arange(12) % 3))
    quantized = quantize.Static()(model, task, Run(tmp_path / "run"))
    model.write_back(quantized, tmp_path)
    again = transformers.ResNetForImageClassification.from_pretrained(tmp_path / "huggingface")
    with torch.no_grad():
        found, due = again(pictures()).logits, quantized(pictures())
    assert float((found - due).abs().max()) < 0.05 * float(due.abs().max())

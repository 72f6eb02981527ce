"""Folders of tiny transformers for images, sounds and image-text pairs, with data, as people have them.

Every folder is made by `save_pretrained` of a random model and of its image processor, feature extractor or processor.
`transformers_folders.py` takes them through inspect, init, check, run and predict.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

COLOURS = {"blue": (40, 60, 210), "green": (50, 190, 70), "red": (210, 50, 40)}
TONES = {"high": 1200.0, "low": 300.0}
RATE = 16_000
_LAYERS = {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 32, "intermediate_size": 64}
_NAMES = {"id2label": dict(enumerate(("red", "green", "blue"))), "label2id": {"red": 0, "green": 1, "blue": 2}}
_SOUNDS = {"id2label": {0: "low", 1: "high"}, "label2id": {"low": 0, "high": 1}}


@dataclass(frozen=True)
class Case:
    """A folder of transformers with its data.

    Args:
        name: of the folder of the model.
        make: folder -> None; saves the model and its processor there.
        data: what `mirabelle init --data` is given, relative to the folder of all cases.
        predict: a file for `mirabelle predict`; "" if no raw input exists.
    """

    name: str
    make: Callable[[Path], None]
    data: str
    predict: str = ""


def cases() -> tuple[Case, ...]:
    """The folders of this half, in the order of their table."""
    photos = {"data": "./photos", "predict": "photos/red/00.png"}
    return (
        Case("vit", _vit, **photos),
        Case("deit", _deit, **photos),
        Case("beit", _beit, **photos),
        Case("data2vec", _data2vec, **photos),
        Case("resnet", _resnet, **photos),
        Case("convnext", _convnext, **photos),
        Case("swin", _swin, **photos),
        Case("mobilenet", _mobilenet, **photos),
        Case("segformer", _segformer, "./scenes", "scenes/images/00.png"),
        Case("detr", _detr, "./pictures", "pictures/00.png"),
        Case("yolos", _yolos, "./pictures", "pictures/00.png"),
        Case("clip", _clip, "./captions.py:task"),
        Case("wav2vec2", _wav2vec2, "./tones", "tones/low/00.wav"),
        Case("ast", _ast, "./tones", "tones/low/00.wav"),
        Case("ctc", _ctc, "./speech", "speech/00.wav"),
        Case("whisper", _whisper, "./speech", "speech/00.wav"),
    )


def write_data(folder: Path) -> None:
    """Images, masks, recordings and their texts."""
    _photos(folder / "photos", 40)
    _pictures(folder / "pictures", 40)
    _scenes(folder / "scenes", 40)
    _tones(folder / "tones", 24)
    _captions(folder / "captions", 40)
    _speech(folder / "speech", 40)


def _saved(folder: Path, model: Any, *processors: Any) -> None:
    for parameter in model.parameters():  # zero weights of a fresh model would hide what a layer computes
        parameter.data.add_(0.02 * parameter.new_empty(parameter.shape).normal_())
    for part in (model.eval(), *processors):
        part.save_pretrained(folder)


def _processor(name: str, **settings: Any) -> Any:
    import transformers

    return getattr(transformers, name)(**settings)


def _vit(folder: Path) -> None:
    from transformers import ViTConfig, ViTForImageClassification

    config = ViTConfig(**_LAYERS, **_NAMES, image_size=32, patch_size=8)
    size = {"height": 32, "width": 32}
    _saved(folder, ViTForImageClassification(config), _processor("ViTImageProcessor", size=size))


def _deit(folder: Path) -> None:
    from transformers import DeiTConfig, DeiTForImageClassificationWithTeacher

    config = DeiTConfig(**_LAYERS, **_NAMES, image_size=32, patch_size=8)
    sizes = {"size": {"height": 36, "width": 36}, "crop_size": {"height": 32, "width": 32}}
    _saved(folder, DeiTForImageClassificationWithTeacher(config), _processor("DeiTImageProcessor", **sizes))


def _beit(folder: Path) -> None:
    from transformers import BeitConfig, BeitForImageClassification

    config = BeitConfig(**_LAYERS, **_NAMES, image_size=32, patch_size=8)
    size = {"height": 32, "width": 32}
    processor = _processor("BeitImageProcessor", size=size, do_center_crop=False)
    _saved(folder, BeitForImageClassification(config), processor)


def _data2vec(folder: Path) -> None:
    from transformers import Data2VecVisionConfig, Data2VecVisionForImageClassification

    config = Data2VecVisionConfig(**_LAYERS, **_NAMES, image_size=32, patch_size=8, use_relative_position_bias=True)
    size = {"height": 32, "width": 32}
    processor = _processor("BeitImageProcessor", size=size, do_center_crop=False)
    _saved(folder, Data2VecVisionForImageClassification(config), processor)


def _resnet(folder: Path) -> None:
    from transformers import ResNetConfig, ResNetForImageClassification

    config = ResNetConfig(embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", **_NAMES)
    _saved(folder, ResNetForImageClassification(config), _processor("ConvNextImageProcessor", size={"shortest_edge": 32}))


def _convnext(folder: Path) -> None:
    from transformers import ConvNextConfig, ConvNextForImageClassification

    config = ConvNextConfig(hidden_sizes=[16, 32], depths=[1, 1], num_stages=2, patch_size=4, **_NAMES)
    _saved(folder, ConvNextForImageClassification(config), _processor("ConvNextImageProcessor", size={"shortest_edge": 32}))


def _swin(folder: Path) -> None:
    from transformers import SwinConfig, SwinForImageClassification

    config = SwinConfig(image_size=32, patch_size=4, embed_dim=16, depths=[1, 1], num_heads=[2, 2], window_size=4, **_NAMES)
    size = {"height": 32, "width": 32}
    _saved(folder, SwinForImageClassification(config), _processor("ViTImageProcessor", size=size))


def _mobilenet(folder: Path) -> None:
    from transformers import MobileNetV2Config, MobileNetV2ForImageClassification

    config = MobileNetV2Config(image_size=32, depth_multiplier=0.25, **_NAMES)
    sizes = {"size": {"shortest_edge": 36}, "crop_size": {"height": 32, "width": 32}}
    _saved(folder, MobileNetV2ForImageClassification(config), _processor("MobileNetV2ImageProcessor", **sizes))


def _segformer(folder: Path) -> None:
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    config = SegformerConfig(
        hidden_sizes=[16, 16, 32, 32],
        depths=[1, 1, 1, 1],
        num_attention_heads=[1, 1, 2, 2],
        decoder_hidden_size=32,
        id2label={0: "ground", 1: "thing"},
        label2id={"ground": 0, "thing": 1},
    )
    size = {"height": 32, "width": 32}
    _saved(folder, SegformerForSemanticSegmentation(config), _processor("SegformerImageProcessor", size=size))


def _detr(folder: Path) -> None:
    from transformers import DetrConfig, DetrForObjectDetection, ResNetConfig

    backbone = ResNetConfig(
        embedding_size=16, hidden_sizes=[16, 32], depths=[1, 1], layer_type="basic", out_features=["stage2"]
    )
    config = DetrConfig(
        use_timm_backbone=False,
        use_pretrained_backbone=False,
        backbone=None,
        backbone_config=backbone,
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=2,
        decoder_attention_heads=2,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        num_queries=5,
        num_labels=3,
    )
    size = {"shortest_edge": 32, "longest_edge": 64}
    _saved(folder, DetrForObjectDetection(config), _processor("DetrImageProcessor", size=size))


def _yolos(folder: Path) -> None:
    from transformers import YolosConfig, YolosForObjectDetection

    config = YolosConfig(**_LAYERS, image_size=[32, 32], patch_size=8, num_detection_tokens=5, num_labels=3)
    size = {"shortest_edge": 32, "longest_edge": 64}
    _saved(folder, YolosForObjectDetection(config), _processor("YolosImageProcessor", size=size))


def _clip(folder: Path) -> None:
    from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPProcessor

    text = {**_LAYERS, "vocab_size": 32, "max_position_embeddings": 16, "bos_token_id": 1, "eos_token_id": 2}
    config = CLIPConfig(text_config=text, vision_config={**_LAYERS, "image_size": 32, "patch_size": 8}, projection_dim=16)
    sizes = {"size": {"shortest_edge": 32}, "crop_size": {"height": 32, "width": 32}}
    _saved(folder, CLIPModel(config), CLIPProcessor(CLIPImageProcessor(**sizes), _words(folder)))


def _wav2vec2(folder: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2ForSequenceClassification

    config = Wav2Vec2Config(**_LAYERS, **_LISTENS, **_SOUNDS, classifier_proj_size=16)
    _saved(folder, Wav2Vec2ForSequenceClassification(config), _processor("Wav2Vec2FeatureExtractor"))


def _ast(folder: Path) -> None:
    from transformers import ASTConfig, ASTForAudioClassification

    config = ASTConfig(**_LAYERS, **_SOUNDS, max_length=48, num_mel_bins=32, patch_size=16)
    processor = _processor("ASTFeatureExtractor", max_length=48, num_mel_bins=32)
    _saved(folder, ASTForAudioClassification(config), processor)


def _ctc(folder: Path) -> None:
    from transformers import Wav2Vec2Config, Wav2Vec2CTCTokenizer, Wav2Vec2FeatureExtractor, Wav2Vec2ForCTC, Wav2Vec2Processor

    folder.mkdir(parents=True, exist_ok=True)
    symbols = ("<pad>", "<s>", "</s>", "<unk>", "|", "A", "B", "C")
    (folder / "vocab.json").write_text(json.dumps({symbol: k for k, symbol in enumerate(symbols)}))
    config = Wav2Vec2Config(**_LAYERS, **_LISTENS, vocab_size=len(symbols), pad_token_id=0)
    processor = Wav2Vec2Processor(Wav2Vec2FeatureExtractor(), Wav2Vec2CTCTokenizer(str(folder / "vocab.json")))
    _saved(folder, Wav2Vec2ForCTC(config), processor)


def _whisper(folder: Path) -> None:
    from transformers import WhisperConfig, WhisperFeatureExtractor, WhisperForConditionalGeneration

    layers = {f"{half}_{what}": count for half in ("encoder", "decoder") for what, count in _LAYERS_OF_HALF.items()}
    special = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2, "decoder_start_token_id": 1}
    sizes = {"d_model": 32, "num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 16}
    config = WhisperConfig(
        vocab_size=16, **layers, **special, **sizes, suppress_tokens=None, begin_suppress_tokens=None
    )  # a tokenizer is left out: the feature extractor is asked first
    extractor = WhisperFeatureExtractor(feature_size=16, chunk_length=1)
    _saved(folder, WhisperForConditionalGeneration(config), extractor)


_LAYERS_OF_HALF: Mapping[str, int] = {"layers": 1, "attention_heads": 2, "ffn_dim": 64}
_LISTENS: Mapping[str, Any] = {
    "conv_dim": (16, 16, 16),
    "conv_kernel": (10, 8, 4),
    "conv_stride": (8, 8, 5),
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}


_TASK = '''"""Images with their texts, as the processor of CLIP gives them."""

import csv
from pathlib import Path

import PIL.Image
import transformers

import mirabelle

HERE = Path(__file__).parent


def task() -> mirabelle.Task:
    rows = list(csv.DictReader((HERE / "captions" / "metadata.csv").open()))
    pictures = [PIL.Image.open(HERE / "captions" / row["file_name"]) for row in rows]
    processor = transformers.CLIPProcessor.from_pretrained(HERE / "clip")
    texts = [row["text"] for row in rows]
    inputs = dict(processor(text=texts, images=pictures, padding="max_length", max_length=10, return_tensors="pt"))
    inputs.pop("token_type_ids", None)
    parts = [{name: tensor[rows] for name, tensor in inputs.items()} for rows in (slice(24), slice(24, 32), slice(32, None))]
    return mirabelle.Task(train=parts[0], validation=parts[1], test=parts[2])
'''


def _words(folder: Path) -> Any:
    """A tokenizer of whole words."""
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    del folder
    names = ("[PAD]", "<s>", "</s>", "[UNK]", "a", "picture", "that", "is", *COLOURS)
    words = Tokenizer(models.WordLevel({name: k for k, name in enumerate(names)}, "[UNK]"))
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", pair=None, special_tokens=[("<s>", 1), ("</s>", 2)]
    )
    special = {"unk_token": "[UNK]", "pad_token": "[PAD]", "bos_token": "<s>", "eos_token": "</s>"}
    return PreTrainedTokenizerFast(tokenizer_object=words, **special, model_max_length=16)


def _coloured(colour: tuple[int, int, int], random: np.random.Generator) -> np.ndarray:
    """A picture of noise about a colour, with 40 rows and 48 columns."""
    noise = random.normal(0, 60, (40, 48, 3))
    return np.clip(np.array(colour) + noise, 0, 255).astype(np.uint8)


def _photos(folder: Path, count: int) -> None:
    from PIL import Image

    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            Image.fromarray(_coloured(colour, random)).save(folder / name / f"{k:02}.png")


def _pictures(folder: Path, count: int) -> None:
    from PIL import Image

    random = np.random.default_rng(1)
    folder.mkdir(parents=True, exist_ok=True)
    for k in range(count):
        Image.fromarray(_coloured(list(COLOURS.values())[k % 3], random)).save(folder / f"{k:02}.png")


def _scenes(folder: Path, count: int) -> None:
    """Images of a bright rectangle on dark ground, and masks in which the rectangle is 1 and a border of it 255."""
    from PIL import Image

    random = np.random.default_rng(2)
    for part in ("images", "masks"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for k in range(count):
        top, left = random.integers(2, 12, 2)
        mask = np.zeros((40, 40), np.uint8)
        mask[top : top + 22, left : left + 22] = 255
        mask[top + 1 : top + 21, left + 1 : left + 21] = 1
        picture = np.where(mask[..., None] > 0, 190, 60) + random.normal(0, 20, (40, 40, 3))
        Image.fromarray(np.clip(picture, 0, 255).astype(np.uint8)).save(folder / "images" / f"{k:02}.png")
        Image.fromarray(mask).save(folder / "masks" / f"{k:02}.png")


def _sound(tone: float, seconds: float, random: np.random.Generator) -> np.ndarray:
    times = np.arange(round(seconds * RATE)) / RATE
    wave = np.sin(2 * np.pi * tone * times + random.uniform(0, 6)) + 0.3 * random.normal(size=len(times))
    return (8000 * wave).clip(-32768, 32767).astype(np.int16)


def _tones(folder: Path, count: int) -> None:
    from scipy.io import wavfile

    random = np.random.default_rng(3)
    for name, tone in TONES.items():
        (folder / name).mkdir(parents=True, exist_ok=True)
        for k in range(count):
            wavfile.write(folder / name / f"{k:02}.wav", RATE, _sound(tone, 0.5, random))


def _captions(folder: Path, count: int) -> None:
    """Images with texts, in the form of the data sets of Hugging Face: a table of file names and texts."""
    _pictures(folder, count)
    rows = [f"{k:02}.png,a picture that is {list(COLOURS)[k % 3]}" for k in range(count)]
    (folder / "metadata.csv").write_text("\n".join(["file_name,text", *rows]) + "\n")
    folder.with_suffix(".py").write_text(_TASK)


def _speech(folder: Path, count: int) -> None:
    """Recordings of tones, one for each letter, with their texts in metadata.csv."""
    from scipy.io import wavfile

    random = np.random.default_rng(4)
    folder.mkdir(parents=True, exist_ok=True)
    rows = []
    for k in range(count):
        letters = "".join(random.choice(list("ABC"), 3))
        parts = [_sound(300.0 * (1 + "ABC".index(letter)), 0.2, random) for letter in letters]
        wavfile.write(folder / f"{k:02}.wav", RATE, np.concatenate(parts))
        rows.append(f"{k:02}.wav,{letters}")
    (folder / "metadata.csv").write_text("\n".join(["file_name,transcription", *rows]) + "\n")

"""What the image processor or feature extractor in a folder of transformers does, as settings of data that do the same."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from mirabelle.errors import UserError, first_line
from mirabelle.sources.models.huggingface import library, without_bars
from mirabelle.task.preprocessing.image import Image
from mirabelle.task.preprocessing.pictures import Resizing

_FILES = ("preprocessor_config.json", "processor_config.json")
_RESAMPLE = {0: "nearest", 1: "lanczos", 2: "bilinear", 3: "bicubic", 4: "box", 5: "hamming"}  # Pillow's numbers
_BYTE = 255
_WARPS = 384  # the shorter side from which ConvNeXt's processor no longer cuts out the middle
_LEVELS = 2.5  # of 255, by which two ways to resize may differ: torchvision rounds otherwise than Pillow
_TRIALS = ((61, 97), (97, 61))  # sizes of images on which both are compared; none is a multiple of another
_OWN = 'write a function that returns the task: data = "./file.py:task"'


def has_processor(folder: Path) -> bool:
    """Whether a folder has an image processor or a feature extractor."""
    return any((folder / name).is_file() for name in _FILES)


def image_arguments(folder: Path) -> dict[str, Any]:
    """Settings of `ImageFolder` with which images become the inputs that the image processor of a folder makes.

    The processor and the settings are compared on images of noise. A processor that keeps the proportions of an image has no
    one size; images then get the length of its shorter side as both sides.

    Raises:
        UserError: E121 if the processor does what no settings say, E130 if it cannot be read.
    """
    processor = _read(folder, "AutoImageProcessor")
    try:
        return _image_arguments(folder, processor)
    except Exception as error:
        reason = error.message if isinstance(error, UserError) else f"it raised {type(error).__name__}: {first_line(error)}"
        message = f"what {type(processor).__name__} of {folder} does cannot be said by settings of images: {reason}"
        raise UserError("E121", message, _OWN) from error


def _image_arguments(folder: Path, processor: Any) -> dict[str, Any]:
    settings = processor.to_dict()
    size, resize = _sizes(settings)
    factor = settings.get("rescale_factor", 1 / _BYTE) if settings.get("do_rescale", True) else 1.0
    normalizes = settings.get("do_normalize", False)
    scale = factor * _BYTE
    mean = [value / scale for value in settings["image_mean"]] if normalizes else [0.0] * 3
    deviation = [value / scale for value in settings["image_std"]] if normalizes else [1 / scale] * 3
    found: dict[str, Any] = {
        "size": list(size),
        **({"resize": list(resize)} if resize else {}),
        **_resample(settings),
        "mode": "RGB",
        "mean": [round(value, 9) for value in mean],
        "deviation": [round(value, 9) for value in deviation],
    }
    _compare(folder, processor, found, _TRIALS if _one_size(settings) else (size,))
    if settings.get("do_reduce_labels"):
        found["reduce_labels"] = True
    return found


def sound_arguments(folder: Path) -> dict[str, Any]:
    """Settings of `SoundFolder` with which recordings become the inputs that the feature extractor of a folder makes.

    Raises:
        UserError: E121 if it is of a kind that no settings say, E130 if it cannot be read.
    """
    extractor = _read(folder, "AutoFeatureExtractor")
    settings, kind = extractor.to_dict(), type(extractor).__name__
    rate = settings.get("sampling_rate")
    if kind == "Wav2Vec2FeatureExtractor" and not settings.get("padding_value"):
        first = "recording" if settings.get("return_attention_mask") else "padded"
        return {"features": "waveform", "rate": rate, "normalize": first if settings.get("do_normalize") else "none"}
    if kind == "ASTFeatureExtractor" and rate == 16_000:  # noqa: PLR2004 (its frames are of 400 samples at any rate)
        normalizes = settings.get("do_normalize")
        return {
            "features": "kaldi",
            "rate": rate,
            "mels": settings["num_mel_bins"],
            "frames": settings["max_length"],
            "mean": settings["mean"] if normalizes else 0.0,
            "deviation": 2 * settings["std"] if normalizes else 1.0,
        }
    message = f"the feature extractor of {folder} is a {kind}, which the settings of recordings cannot say"
    raise UserError("E121", message, _OWN)


def symbols_of(folder: Path, config: Mapping[str, Any]) -> list[str]:
    """The symbols of a model of CTC in the order of its outputs: "" for the blank, " " for the end of a word.

    Raises:
        UserError: E130 if there is no vocab.json, E121 if the blank is not the first symbol, or the symbols are not numbered.
    """
    try:
        given = json.loads((folder / "vocab.json").read_text("utf-8"))
        symbols = sorted(given, key=given.__getitem__)
        numbered = [given[name] for name in symbols] == list(range(len(symbols)))
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise UserError("E130", f"the symbols of {folder}, vocab.json, cannot be read: {first_line(error)}", _OWN) from error
    if not numbered or config.get("pad_token_id") != 0:
        message = f"the blank of {folder} is symbol {config.get('pad_token_id')} of vocab.json; only a blank of 0 is covered"
        raise UserError("E121", message, _OWN)
    return ["", *(" " if name == "|" else name for name in symbols[1:])]


def _read(folder: Path, kind: str) -> Any:
    try:
        with without_bars():
            return getattr(library(), kind).from_pretrained(str(folder), trust_remote_code=False, local_files_only=True)
    except UserError:
        raise
    except Exception as error:
        what = "image processor" if kind == "AutoImageProcessor" else "feature extractor"
        raise UserError("E130", f"the {what} of {folder} cannot be read: {first_line(error)}", _OWN) from error


def _sizes(settings: Mapping[str, Any]) -> tuple[tuple[int, int], tuple[int, ...]]:
    """(height and width of an input, the size before the middle is cut out)."""
    asked = dict(settings.get("size") or {}) if settings.get("do_resize", True) else {}
    side = asked.get("shortest_edge")
    before = (asked["height"], asked["width"]) if "height" in asked else (side,) if side else ()
    if "crop_pct" in settings and side:
        return (side, side), (int(side / settings["crop_pct"]),) if side < _WARPS else ()
    if settings.get("do_center_crop"):
        cut = dict(settings["crop_size"])
        return (cut["height"], cut["width"]), before
    if not before:
        raise UserError("E121", "the image processor gives images no size", _OWN)
    return (before[0], before[-1]), ()


def _resample(settings: Mapping[str, Any]) -> dict[str, str]:
    found = _RESAMPLE[int(settings.get("resample", 2))]
    return {} if found == "bilinear" else {"resample": found}


def _one_size(settings: Mapping[str, Any]) -> bool:
    """Whether all images get one size, and are not padded to that of the largest."""
    size = dict(settings.get("size") or {})
    return "longest_edge" not in size and not ("shortest_edge" in size and _keeps_proportions(settings))


def _keeps_proportions(settings: Mapping[str, Any]) -> bool:
    return not settings.get("do_center_crop") and "crop_pct" not in settings


def _compare(folder: Path, processor: Any, settings: Mapping[str, Any], sizes: tuple[tuple[int, int], ...]) -> None:
    """Raise E121 unless the processor and the settings make the same inputs of images of noise."""
    import PIL.Image

    known: dict[str, Any] = {name: tuple(value) if isinstance(value, list) else value for name, value in settings.items()}
    image = Image(**known)
    most = _LEVELS / _BYTE / min(image.deviation)
    for height, width in sizes:
        coarse = np.random.default_rng(0).integers(0, _BYTE + 1, (max(height // 8, 1), max(width // 8, 1), 3), np.uint8)
        picture = PIL.Image.fromarray(coarse).resize((width, height), PIL.Image.Resampling.BICUBIC)
        due = np.asarray(processor(picture, return_tensors="np")["pixel_values"])[0]
        own = np.asarray(Resizing(image.size, image.resize, image.resample).plane(picture))
        found = image.scaled(own)
        if due.shape != found.shape or float(np.abs(due - found).max()) > most:
            raise UserError("E121", f"{folder} makes other inputs than size, mean and deviation say", _OWN)

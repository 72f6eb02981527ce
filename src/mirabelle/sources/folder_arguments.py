"""How images or recordings are read for a transformers model: what `init` writes under `[task.arguments]`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mirabelle.errors import UserError
from mirabelle.sources.datasets.folders import split_folders
from mirabelle.sources.datasets.image_settings import TarShards
from mirabelle.sources.datasets.settings import SoundFolder, place_of_data, settings_from
from mirabelle.sources.first_arguments import config_of
from mirabelle.sources.model_classes import class_names, labels_in_order
from mirabelle.sources.models.processors import has_processor, image_arguments, sound_arguments, symbols_of
from mirabelle.sources.names import SHARD, names_model_folder, path_of

_READS_BOTH = {"text_config", "vision_config"}
_READS_IMAGES = ("VisionModel", "VisionModelWithProjection", "ForImageClassification")
_MASKS = {"images", "masks"}
_ATTENDS = ("num_attention_heads", "num_heads", "encoder_attention_heads", "text_config")


def folder_arguments(model: str, data: str) -> dict[str, Any] | None:
    """The settings with which images or recordings are read for a transformers model; None for other models or data.

    Sizes, means, deviations and rates are those of its image processor or feature extractor, the classes are in the order of
    its config.json.

    Args:
        model: folder of the model.
        data: folder of images or recordings, or names of .tar files.

    Raises:
        UserError: E121 if the model reads texts, too, or its processor does what no settings say; E132 if classes of the data
            are not those of the model.
    """
    place = place_of_data(data)
    there = place is not None and (place.is_dir() or place.suffix.lower() == SHARD)
    if not names_model_folder(model) or place is None or not there or not has_processor(path_of(model, Path())):
        return None
    config, folder = config_of(model), path_of(model, Path())
    architecture = next(iter(config.get("architectures") or ()), "")
    kind = settings_from(data, {}, Path())
    if isinstance(kind, SoundFolder):
        if architecture.endswith("ForCTC"):
            return {"kind": "transcription", "labels": symbols_of(folder, config), **sound_arguments(folder)}
        return {**sound_arguments(folder), **_labels(config, place)}
    if config.keys() >= _READS_BOTH and not architecture.endswith(_READS_IMAGES):
        message = f"{architecture} reads images and texts together, which a folder of images does not give"
        remedy = 'write a function that returns a task of both, without targets: data = "./file.py:task"'
        raise UserError("E121", message, remedy)
    read = image_arguments(folder)
    own = _kind_and_labels(config, architecture, None if isinstance(kind, TarShards) else place)
    reduced = read.pop("reduce_labels", False) and own.get("kind") == "segmentation"
    return {**own, **({"reduce_labels": True} if reduced else {}), **read}


def _kind_and_labels(config: Mapping[str, Any], architecture: str, place: Path | None) -> dict[str, Any]:
    """The kind of images and the classes that a model takes.

    Args:
        config: of the model.
        architecture: of the model.
        place: folder of the images; None for .tar files, whose classes have the names or numbers of the model.
    """
    inside = set() if place is None else _subfolders(place)
    names = class_names(config)
    if architecture.endswith("ForSemanticSegmentation") and inside >= _MASKS:
        return {"kind": "segmentation", **({"labels": names} if names else {})}
    if "ForImageClassification" not in architecture or (place is not None and not inside):
        return {"kind": "unlabelled"}
    if place is None:
        return {"labels": names} if names else {}
    return _labels(config, place)


def attends(model: str) -> bool:
    """Whether the config.json of a transformers model names heads of attention, or cannot be read."""
    config = config_of(model)
    return not config or any(name in config for name in _ATTENDS)


def _subfolders(place: Path) -> set[str]:
    """The names of the folders for the classes, or for images and masks."""
    train = split_folders(place)["train"]
    return {part.name for part in train.iterdir() if part.is_dir() and not part.name.startswith(".")}


def _labels(config: Mapping[str, Any], place: Path) -> dict[str, list[str]]:
    """The names of the class folders in the order of the outputs; E132 if some of them are no classes of the model."""
    return labels_in_order(config, _subfolders(place), f"{place} has a class folder", "rename the folder, or leave it out")

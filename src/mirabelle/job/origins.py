"""What is known of a run's model without measuring it: what it is for, and what its source says of licence and base model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.outputs import Form
from mirabelle.task.preprocessing import Image, Sound, Table, Text
from mirabelle.task.task import Task

_CLASSIFIES = (Form.CLASSES, Form.LABELS)
# Kind of raw inputs, forms of outputs -> name of the task on hubs, for one answer per sample.
_TASKS: tuple[tuple[type, tuple[Form, ...], str], ...] = (
    (Image, _CLASSIFIES, "image-classification"),
    (Sound, _CLASSIFIES, "audio-classification"),
    (Table, _CLASSIFIES, "tabular-classification"),
    (Table, (Form.NUMBERS,), "tabular-regression"),
    (Text, _CLASSIFIES, "text-classification"),
    (Text, (Form.SPAN,), "question-answering"),
)
# End of the name of a class of transformers -> name of its task on hubs.
_HEADS = {
    "ForSequenceClassification": "text-classification",
    "ForTokenClassification": "token-classification",
    "ForQuestionAnswering": "question-answering",
    "ForMaskedLM": "fill-mask",
    "ForCausalLM": "text-generation",
    "ForImageClassification": "image-classification",
    "ForAudioClassification": "audio-classification",
    "ForCTC": "automatic-speech-recognition",
    "ForSemanticSegmentation": "image-segmentation",
    "ForObjectDetection": "object-detection",
}
_OF_CARD = ("license", "license_name", "license_link", "base_model")
_HUB = "hf:"


def known_of(task: Task, origin: nn.Module, name: str = "") -> dict[str, str]:
    """Facts for the model card: "pipeline_tag", "license", "license_name", "license_link" and "base_model", as far as known.

    Args:
        task: of the run.
        origin: the model as it was given.
        name: of the model in the recipe, such as "hf:organisation/model".
    """
    found = {}
    if (tag := _pipeline_tag(task, origin)) is not None:
        found["pipeline_tag"] = tag
    if isinstance(origin, HuggingFaceModel) and origin.origin is not None:
        found |= _said_by_card(origin.origin / "README.md")
    if name.startswith(_HUB):
        found["base_model"] = name.removeprefix(_HUB).partition("@")[0]
    return found


def _pipeline_tag(task: Task, origin: nn.Module) -> str | None:
    if isinstance(origin, HuggingFaceModel):
        kind = type(origin.model).__name__
        return next((tag for end, tag in _HEADS.items() if kind.endswith(end)), None)
    form, one_answer = task.outputs.form, task.validation.targets.dim() <= 1
    for raw, forms, tag in _TASKS:
        if isinstance(task.preprocessing, raw) and form in forms and (one_answer or forms != _CLASSIFIES):
            return tag
    return None


def _said_by_card(path: Path) -> dict[str, str]:
    """What the card in a folder of transformers states; nothing if there is none, or it cannot be read."""
    if not path.is_file():
        return {}
    from huggingface_hub import ModelCard

    try:
        said: dict[str, Any] = ModelCard.load(path, ignore_metadata_errors=True).data.to_dict()
    except Exception:  # noqa: BLE001 (a text of others, which need not be a card)
        return {}
    return {key: said[key] for key in _OF_CARD if isinstance(said.get(key), str)}

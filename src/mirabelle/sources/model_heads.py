"""The head that a transformers model lacks for what data ask of it."""

from __future__ import annotations

from typing import Any

from torch import nn

from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.preprocessing.text import Text
from mirabelle.task.task import Task

# What data ask for: (end of the names of classes of transformers, value of `head`).
_HEADS = {
    "classify": ("ForSequenceClassification", "sequence-classification"),
    "tag": ("ForTokenClassification", "token-classification"),
    "answer": ("ForQuestionAnswering", "question-answering"),
}


def head_for(model: nn.Module, task: Task) -> dict[str, Any]:
    """The arguments of a model that put the head on it that data ask for; {} if it has that head, or none is known.

    Args:
        model: as its folder gives it.
        task: texts with classes, with a class for each word, or questions with answers.
    """
    if not isinstance(model, HuggingFaceModel) or not isinstance(task.preprocessing, Text) or not task.labelled:
        return {}
    text = task.preprocessing
    use = "answer" if text.answers else text.use or ("classify" if task.labels else "")
    if use not in _HEADS:
        return {}
    ending, head = _HEADS[use]
    kind = type(model.model).__name__
    if kind.endswith(ending) and (use == "answer" or _outputs(model) == len(task.labels)):
        return {}
    return {"head": head} if use == "answer" else {"head": head, "labels": len(task.labels)}


def _outputs(model: HuggingFaceModel) -> int:
    return int(getattr(model.model.config, "num_labels", 0))

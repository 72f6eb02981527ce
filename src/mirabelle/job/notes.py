"""What a user must know about data and models before the results: `check`, the run and the report show these sentences."""

from __future__ import annotations

from collections.abc import Sequence

from mirabelle.job.dry_run import JobPlan
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.unusual_inputs import unusual_inputs
from mirabelle.task.unusual_targets import unusual_targets

_MOST = 8  # names in a sentence


def notes_of(plan: JobPlan) -> tuple[str, ...]:
    """Sentences on the data (left out, cut, changed, constant) and on weights that no file contains."""
    models = {"model": plan.model, "teacher": plan.teacher}
    loaded = {what: model for what, model in models.items() if isinstance(model, HuggingFaceModel)}
    untrained = [
        f"The {what} has tensors that its file does not contain; they are random until they are trained: "
        f"{_few(model.untrained)}."
        for what, model in loaded.items()
        if model.untrained
    ]
    unused = [
        f"The file of the {what} has tensors that the {what} does not have, and that are left out: {_few(model.unused)}."
        for what, model in loaded.items()
        if model.unused
    ]
    return (*plan.task.notes, *unusual_inputs(plan.task), *unusual_targets(plan.task), *untrained, *unused)


def _few(names: Sequence[str]) -> str:
    """The first names, and how many there are if not all are shown."""
    return ", ".join(names[:_MOST]) + (f", … ({len(names)} in all)" if len(names) > _MOST else "")

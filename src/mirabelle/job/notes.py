"""What a user must know about data and models before the results: `check`, the run and the report show these sentences."""

from __future__ import annotations

from mirabelle.job.dry_run import JobPlan
from mirabelle.sources.models.huggingface import HuggingFaceModel
from mirabelle.task.unusual_inputs import unusual_inputs


def notes_of(plan: JobPlan) -> tuple[str, ...]:
    """Sentences on the data (left out, cut, changed, constant) and on weights that no file contains."""
    models = {"model": plan.model, "teacher": plan.teacher}
    untrained = [
        f"The {what} has tensors that its file does not contain; they are random until they are trained: "
        f"{', '.join(model.untrained)}."
        for what, model in models.items()
        if isinstance(model, HuggingFaceModel) and model.untrained
    ]
    return (*plan.task.notes, *unusual_inputs(plan.task), *untrained)

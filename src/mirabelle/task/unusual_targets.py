"""What the targets alone say against a task: classes that no training sample has."""

from __future__ import annotations

import torch

from mirabelle.numerics.target_shapes import are_class_indices
from mirabelle.task.outputs import Form
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

_FEW = 5  # classes in a sentence


def unusual_targets(task: Task) -> list[str]:
    """A sentence on classes below the largest of all targets that no training sample has, so that none can be learned.

    Only tasks with one class for each sample, and with training data in memory, are looked at.

    Example:
        >>> x, y = torch.zeros(9, 2), torch.tensor([1, 2, 3] * 3)
        >>> unusual_targets(Task(train=(x, y), validation=(x, y), test=(x, y)))
        ['No training sample has class 0; classes are numbered from 0.']
    """
    splits = [task.train, task.validation, task.test]
    if task.outputs.form is not Form.CLASSES or not isinstance(task.train, Samples) or not task.labelled:
        return []
    targets = [data.targets[data.targets >= 0] for data in splits if isinstance(data, Samples)]
    if not are_class_indices(task.train.targets) or not all(len(part) for part in targets):
        return []
    known = set(torch.unique(targets[0]).tolist())
    absent = [k for k in range(1 + max(int(part.max()) for part in targets)) if k not in known]
    if not absent:
        return []
    names = ", ".join(f'"{task.labels[k]}"' if k < len(task.labels) else str(k) for k in absent[:_FEW])
    more = f", … ({len(absent):,} in all)" if len(absent) > _FEW else ""
    hint = "; classes are numbered from 0" if absent[0] == 0 and not task.labels else ""
    return [f"No training sample has {'class' if len(absent) == 1 else 'one of the classes'} {names}{more}{hint}."]

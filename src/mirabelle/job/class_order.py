"""Whether the classes of a model that names them are those of the data, in the same order."""

from __future__ import annotations

import json

from torch import nn

from mirabelle.errors import UserError
from mirabelle.task.outputs import Form
from mirabelle.task.task import Task

_FEW = 5  # names in a message


def check_class_order(model: nn.Module, task: Task) -> None:
    """Raise an error if output k of a model means another class than target k of the data.

    Names are compared without regard to case. Numbers as names of the data, "0", "1", …, are the model's own numbers.

    Args:
        model: may have `class_names`, as a model of transformers whose config.json names its classes.
        task: its `labels` are the names of the classes of the data.

    Raises:
        UserError: E132 if the names are the same in another order, or as many other names.
    """
    own, given = tuple(getattr(model, "class_names", ())), task.labels
    if task.outputs.form not in (Form.CLASSES, Form.LABELS) or len(own) != len(given) or not given:
        return
    ours, theirs = [name.casefold() for name in own], [name.casefold() for name in given]
    if ours == theirs or theirs == [str(k) for k in range(len(given))]:
        return
    if sorted(ours) == sorted(theirs):
        right = [given[theirs.index(name)] for name in ours]
        message = f"the classes of the model are, in this order, {_named(own)}; those of the data {_named(given)}"
        raise UserError("E132", message, f"[task] arguments = {{ labels = {json.dumps(right, ensure_ascii=False)} }}")
    message = f"the model names its classes {_named(own)}, the data theirs {_named(given)}"
    remedy = (
        f"give the data the model's names, or [model] arguments = {{ labels = {len(own)} }} to give the outputs new meanings"
    )
    raise UserError("E132", message, remedy)


def _named(names: tuple[str, ...]) -> str:
    return ", ".join(names[:_FEW]) + (", …" if len(names) > _FEW else "")

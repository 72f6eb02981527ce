"""What there is to say of data before a model is compressed: how many samples, which classes are rare, how long texts are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mirabelle.numerics.target_shapes import unlabelled
from mirabelle.task.batch import tensors_of
from mirabelle.task.indexed import Indexed
from mirabelle.task.outputs import Form
from mirabelle.task.preprocessing.text import Text
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

_RARE = 3.0  # a class is rare if it has less than this part of an equal share of the samples
_READ = 1000  # texts whose lengths are looked at, of data that are not in memory
_SHOWN = 12  # classes named one by one
_FEW = 30  # validation samples of a class that show a drop of 3 points


@dataclass(frozen=True)
class Classes:
    """The classes of data with one class for each sample.

    Args:
        names: of the classes; "0", "1", … if they have none.
        counts: training samples of each.
    """

    names: tuple[str, ...]
    counts: tuple[int, ...]

    @property
    def rare(self) -> tuple[str, ...]:
        """The classes with less than a third of an equal share of the training samples, but with at least one."""
        least = sum(self.counts) / (_RARE * max(len(self.counts), 1))
        return tuple(name for name, count in zip(self.names, self.counts, strict=True) if 0 < count < least)

    @property
    def empty(self) -> tuple[str, ...]:
        """The classes without training samples."""
        return tuple(name for name, count in zip(self.names, self.counts, strict=True) if not count)

    def metric(self) -> str | None:
        """The metric that rare classes call for: "roc_auc" for two classes, "balanced_accuracy" for more; None without any."""
        if not self.rare:
            return None
        return "roc_auc" if len(self.names) == 2 else "balanced_accuracy"  # noqa: PLR2004 (yes and no)

    def in_words(self) -> str:
        if len(self.names) == 1:
            return f"a single class, {self.names[0]}"
        order = np.argsort(self.counts, kind="stable")
        if len(self.names) <= _SHOWN:
            shown = ", ".join(f"{name} {count:,}" for name, count in zip(self.names, self.counts, strict=True))
            return f"{len(self.names)} classes, with training samples: {shown}"
        least, most = order[0], order[-1]
        return (
            f"{len(self.names)} classes, of {self.counts[least]:,} ({self.names[least]}) to {self.counts[most]:,} "
            f"({self.names[most]}) training samples"
        )


def classes_of(task: Task) -> Classes | None:
    """The classes of a task with one class for each sample; None for other tasks, and for data that are not in memory.

    Example:
        >>> x = torch.zeros(100, 3)
        >>> y = (torch.arange(100) < 10).long()
        >>> found = classes_of(Task(train=(x, y), test=(x, y), labels=("no", "yes")))
        >>> found.rare, found.metric()
        (('yes',), 'roc_auc')
    """
    if not task.labelled or not task.outputs.classifies or not isinstance(task.train, Samples):
        return None
    targets = task.train.targets
    if targets.dim() != 1 or targets.is_floating_point():
        return None
    known = targets[~unlabelled(targets)]
    if not len(known):
        return None
    count = max(len(task.labels), int(known.max()) + 1)
    names = task.labels or tuple(map(str, range(count)))
    counts = torch.bincount(known.long(), minlength=count).tolist()
    return Classes(tuple(names), tuple(counts)) if len(names) == count else None


def sentences_on_data(task: Task, classes: Classes | None, *, labelled: bool) -> list[str]:
    """What an expert looks at first: samples and shapes, balance of classes or span of numbers, lengths of texts.

    Args:
        task: its data.
        classes: of the task.
        labelled: whether the data have targets; those of the task may be the outputs of a model.
    """
    counts = {"training": task.train, "validation": task.validation, "test": task.test}
    shapes = ", ".join("×".join(map(str, part.shape[1:])) or "1" for part in tensors_of(task.example().inputs))
    said = [f"data: {', '.join(f'{len(data):,} {name}' for name, data in counts.items())} samples; inputs {shapes}"]
    if not labelled:
        said.append("targets: none; the outputs of the given model take their place")
    elif classes is not None:
        said.append(f"targets: {classes.in_words()}")
        if classes.empty:
            said.append(f"without any training sample: {_listed(classes.empty)}")
        if classes.rare:
            said.append(f"rare: {_listed(classes.rare)}; accuracy hardly shows what happens to them")
            said += _few_to_judge(task, classes)
    elif task.outputs.form is Form.NUMBERS and isinstance(task.train, Samples):
        said.append(f"targets: {_span(task.train.targets)}")
    return [*said, *_lengths(task), *task.notes]


def _few_to_judge(task: Task, classes: Classes) -> list[str]:
    """A sentence if rare classes have so few validation samples that their metric is known only roughly."""
    found = torch.bincount(task.validation.targets[~unlabelled(task.validation.targets)].long(), minlength=len(classes.names))
    few = [f"{name} {int(found[classes.names.index(name)])}" for name in classes.rare]
    least = min(int(found[classes.names.index(name)]) for name in classes.rare)
    return [f"validation samples of these are few ({', '.join(few[:_SHOWN])}): their metric is rough"] if least < _FEW else []


def _span(targets: Tensor) -> str:
    values = targets.double()
    values = values[torch.isfinite(values)]
    if not len(values):
        return "numbers, none of them finite"
    span = f"numbers from {float(values.min()):.4g} to {float(values.max()):.4g}, mean {float(values.mean()):.4g}"
    return f"{span}: all the same" if float(values.min()) == float(values.max()) else span


def lengths_of_texts(task: Task) -> tuple[Tensor, int] | None:
    """(tokens of each training text, tokens of an input); None for other inputs, and for windows of a long text.

    Args:
        task: its training data are in memory.
    """
    text = task.preprocessing
    if not isinstance(text, Text) or text.use in ("continue", "fill") or not isinstance(task.train, Samples):
        return None
    inputs = (task.train.drawn(_READ, 0) if isinstance(task.train, Indexed) else task.train).inputs
    mask = inputs.get("attention_mask") if isinstance(inputs, dict) else None
    if mask is None or mask.dim() != 2:  # noqa: PLR2004 (texts, tokens)
        return None
    return mask.sum(1).double(), mask.shape[1]


def _lengths(task: Task) -> list[str]:
    """How many tokens texts have, and how much of the inputs is padding."""
    found = lengths_of_texts(task)
    if found is None:
        return []
    lengths, width = found
    full = float((lengths >= width).double().mean())
    said = (
        f"texts: half of them have at most {float(lengths.median()):.0f} tokens, 95% at most "
        f"{float(torch.quantile(lengths[:1_000_000], 0.95)):.0f}, the longest {int(lengths.max())} of {width}; "
        f"{1 - float(lengths.mean()) / width:.0%} of the inputs are padding"
    )
    cut = f"{full:.0%} of the texts fill all {width} tokens, and may have been cut" if full > 0 else ""
    return [said, cut] if cut else [said]


def _listed(names: tuple[str, ...]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")

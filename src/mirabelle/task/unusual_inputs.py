"""What the training inputs alone say against a task: inputs that are constant, nearly constant, or all the same.

A network can learn nothing from such inputs, and nothing else would say so: every number of the run would be that of chance.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mirabelle.task.batch import Inputs
from mirabelle.task.indexed import Indexed
from mirabelle.task.preprocessing.table import Table
from mirabelle.task.samples import Samples
from mirabelle.task.task import Task

_MOST_ELEMENTS = 20_000_000  # values that are looked at, so that it takes a fraction of a second
_FEWEST, _CHUNK = 16, 64  # samples that are looked at in any case; samples in one chunk
_NEARLY = 1e-3  # a spread below this fraction of the values counts as none
_SIGNAL = 64  # inputs (samples, width) from this width on are signals, not columns
_OFTEN, _RARELY = 0.99, 0.05  # fraction of equal values in a nearly constant column; of constant samples worth a word
_LEAST_ROWS = 200  # rows from which on a column counts as nearly constant
_READ = 1000  # samples that are looked at of data that are not in memory
_FEW = 5  # names in a sentence
_MOST_CHANNELS = 4
_MARKS = ("mask", "type")  # parts of the names of inputs that are constant by nature, such as "attention_mask"


def unusual_inputs(task: Task) -> list[str]:
    """Sentences on training inputs from which little can be learned; of a stream, the validation inputs are looked at.

    Inputs are all the same; nearly the same (no value differs between samples by more than 0.1 % of the largest value);
    constant or nearly so (the values of a sample differ by at most 0.1 % of the range of all); or have columns or channels
    with a single value. Of large data, samples at equal distances are looked at.

    Example:
        >>> x, y = torch.zeros(40, 1, 8, 8), torch.arange(40) % 2
        >>> unusual_inputs(Task(train=(x, y), test=(x, y)))
        ['All training inputs are the same, so nothing can be learned from them.']
    """
    which, data = ("training", task.train) if isinstance(task.train, Samples) else ("validation", task.validation)
    columns = task.preprocessing.features if isinstance(task.preprocessing, Table) else ()
    quantities = set(task.preprocessing.quantities) if isinstance(task.preprocessing, Table) else set()
    columns = tuple(name if name in quantities else "" for name in columns)
    looked = data.drawn(_READ, 0) if isinstance(data, Indexed) else data
    named = dict(_named(looked.inputs))
    parts = {
        name: part for name, part in named.items() if part.dtype != torch.bool and not any(mark in name for mark in _MARKS)
    }
    found: list[str] = []
    for name, part in parts.items():
        if len(part) > 1 and part[0].numel():
            what = f"{which} inputs" if len(named) == 1 else f'{which} inputs "{name}"'
            found += _Look.at(part).sentences(what, columns, task.preprocessing.image_layout if task.preprocessing else None)
    return found


def _named(inputs: Inputs, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """The tensors of inputs by name; without names, by their positions."""
    if isinstance(inputs, Tensor):
        yield name, inputs
    elif isinstance(inputs, Mapping):
        for key, part in inputs.items():
            yield from _named(part, str(key))
    else:
        for position, part in enumerate(inputs):
            yield from _named(part, f"{name}{position}")


@dataclass(frozen=True)
class _Look:
    """The extent of the values of one input.

    Args:
        part: the samples that were looked at.
        count: number of all samples.
        low, high: smallest and largest value at each position of a sample.
        spans: largest minus smallest value of each sample, (samples,).
    """

    part: Tensor
    count: int
    low: Tensor
    high: Tensor
    spans: Tensor

    @staticmethod
    def at(part: Tensor) -> _Look:
        most = min(len(part), max(_FEWEST, _MOST_ELEMENTS // part[0].numel()))
        seen = part if most == len(part) else part[torch.linspace(0, len(part) - 1, most).long()]
        low, high, spans = seen[0].float(), seen[0].float(), []
        for chunk in torch.split(seen, _CHUNK):
            values = chunk.float()
            low, high = torch.minimum(low, values.amin(0)), torch.maximum(high, values.amax(0))
            flat = values.reshape(len(values), -1)
            spans.append(flat.amax(1) - flat.amin(1))
        return _Look(seen, len(part), low, high, torch.cat(spans))

    def sentences(self, what: str, columns: Sequence[str], layout: str | None) -> list[str]:
        spread, largest = float((self.high - self.low).max()), float(torch.maximum(self.low.abs(), self.high.abs()).max())
        if spread == 0:
            return [f"All {what} are the same, so nothing can be learned from them."]
        if self.part.is_floating_point() and spread <= _NEARLY * largest:
            return [f"The {what} are nearly the same: their values, up to {largest:.4g}, differ by at most {spread:.2g}."]
        return [*self._constant_samples(what), *self._constant_columns(what, columns), *self._constant_channels(what, layout)]

    def _constant_samples(self, what: str) -> list[str]:
        few = self.part.dim() == 2 and self.part.shape[1] < _SIGNAL  # noqa: PLR2004 (samples, columns)
        if few or self.part[0].numel() == 1:
            return []
        least = _NEARLY * float(self.high.max() - self.low.min()) if self.part.is_floating_point() else 0.0
        constant = int((self.spans <= least).sum())
        if not constant or constant < _RARELY * len(self.part):
            return []
        seen = "" if len(self.part) == self.count else ", as far as looked at,"
        share = f"{constant:,} of {len(self.part):,}"
        return [f"Of the {what}{seen} {share} are constant or nearly constant: one value at all positions."]

    def _constant_columns(self, what: str, columns: Sequence[str]) -> list[str]:
        if self.part.dim() != 2 or not self.part.is_floating_point():  # noqa: PLR2004 (samples, columns)
            return []
        single = self.low == self.high
        judged = torch.tensor([bool(name) for name in columns] or [True])
        often = torch.zeros_like(single)
        if len(self.part) >= _LEAST_ROWS:
            often = (self.part == self.part.median(0).values).float().mean(0) >= _OFTEN
        single, often = single & judged, often & judged
        count = int((single | often).sum())
        if not count or (self.part.shape[1] >= _SIGNAL and not columns and 2 * count < self.part.shape[1]):
            return []
        names = [columns[k] if columns else str(k) for k in torch.nonzero(single | often).flatten()[:_FEW].tolist()]
        more = ", …" if count > _FEW else ""
        least = "all" if not bool((often & ~single).any()) else f"at least {_OFTEN:.0%} of the"
        where = f"{', '.join(names)}{more}"
        return [f"Of the {self.part.shape[1]} columns of the {what}, {count} have a single value in {least} samples: {where}."]

    def _constant_channels(self, what: str, layout: str | None) -> list[str]:
        if self.part.dim() != 4:  # noqa: PLR2004 (samples, channels, height, width)
            return []
        axis = 0 if layout == "channels-first" or (layout is None and self.low.shape[0] <= _MOST_CHANNELS) else 2
        low, high = (bound.movedim(axis, 0).flatten(1) for bound in (self.low, self.high))
        if len(low) > _MOST_CHANNELS or len(low) < 2:  # noqa: PLR2004 (a single channel is the whole input)
            return []
        single = torch.nonzero(low.amin(1) == high.amax(1)).flatten().tolist()
        return [f"Channel {k} of the {what} has a single value in all samples." for k in single]

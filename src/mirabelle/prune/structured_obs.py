"""Which units go first when the layers that read them are reconstructed afterwards: optimal brain surgery on whole columns."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.moments import Moments, damped
from mirabelle.calibration.samples import LEAST_ROWS, CalibrationSamples, DrawnRows, SampleBatches
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup, axes_of_tensors
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array
from mirabelle.model.watch import LayerRun, watch
from mirabelle.task.batch import Batch, Inputs


@dataclass(frozen=True)
class Removal:
    """In which order the units of a group go, and what that costs.

    Args:
        order: the units, the first to go first.
        damage: (units + 1,), rising from 0: after the first k are gone, the share of its outputs' power that a reader misses
            with its weights the best for what is left, summed over the readers; 1 for each when all are gone.
        readers: names of the layers that read the units.
    """

    order: Array
    damage: npt.NDArray[np.float64]
    readers: tuple[str, ...]


def structured_obs(
    model: nn.Module,
    program: Program,
    flow: Flow,
    groups: Sequence[AxisGroup],
    inputs: Iterable[Inputs | Batch] | CalibrationSamples,
    *,
    ridge: float = 1e-3,
    rows_per_column: int = 30,
    seed: int = 0,
) -> list[Removal | None]:
    """Remove the units of each group one by one, always the one whose loss the layers that read it can make up for best.

    A reader with weights W (outputs, columns) and inputs of second moments G, ridge included, has for a unit with columns S

        damage = tr(W_S [(G⁻¹)_SS]⁻¹ W_Sᵀ),    W ← W − W_S [(G⁻¹)_SS]⁻¹ (G⁻¹)_S,:

    which is what `reconstruct` with the same ridge attains on the dense model's inputs; G⁻¹ loses its rows and columns S the
    same way. Damages are divided by tr(W G Wᵀ). Units that several layers read (those of a residual stream) have the sum of
    their damages, and every reader is updated. Groups are judged one by one, each as if all others stayed whole.

    Cost: one pass, and for each reader of c columns c³ operations for G⁻¹ and about as many for all removals together.

    Args:
        model: dense, as it was traced; stays as it is.
        program: of the model.
        flow: of the program.
        groups: of the flow.
        inputs: calibration batches, labels unused; samples of one shape.
        ridge: as `reconstruct` has it.
        rows_per_column: as `reconstruct` has it.
        seed: of the rows drawn.

    Returns:
        For each group its removal; None where no Linear or ungrouped convolution reads it by columns, such as the places within
        heads over which attention compares queries and keys.

    Raises:
        UserError: E131 no batch, or batches that do not fit together.

    Example:
        >>> from mirabelle.graph import groups_of, propagated, traced
        >>> model, x = nn.Sequential(nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 5)), torch.randn(40, 3)
        >>> with torch.no_grad():
        ...     _ = model[2].weight[:, 1].zero_()
        >>> program = traced(model, (x[:4],))
        >>> flow = propagated(program)
        >>> (removal,) = structured_obs(model, program, flow, groups_of(program, flow), [x])
        >>> [round(float(damage), 3) for damage in removal.damage], removal.readers
        ([0.0, 0.0, 1.0], ('2',))

    Source: Hassibi, Stork 1993, "Second order derivatives for network pruning: Optimal Brain Surgeon"; Kurtić, Frantar,
    Alistarh 2023, arXiv:2302.04089 (whole columns, one by one).
    """
    columns = [_columns(model, program, flow, group) for group in groups]
    readers = {name: reader for own in columns for name, (reader, _) in own.items()}
    batches = CalibrationSamples.of(inputs).for_model(model)
    grams = _grams(model, readers, batches, (ridge, rows_per_column, seed))
    found: list[Removal | None] = []
    for group, own in zip(groups, columns, strict=True):
        read = {name: (_Reader(reader, grams[name]), at) for name, (reader, at) in own.items() if name in grams}
        found.append(_removal(group, read) if read else None)
    return found


class _Reader:
    """A layer whose columns go, its weights always the best for those that are left."""

    def __init__(self, columns: Columns, gram: Tensor) -> None:
        self._weight = columns.weight()[0]
        self._power = float(torch.sum(self._weight @ gram * self._weight).clamp_min(1e-300))
        self._inverse = torch.cholesky_inverse(torch.linalg.cholesky(gram))

    def damages(self, columns: Tensor) -> Tensor:
        """(units,): what it costs to lose each unit, whose columns are (units, columns)."""
        inner = self._inverse[columns[:, :, None], columns[:, None, :]]
        lost = self._weight[:, columns].permute(1, 2, 0)  # (units, columns, outputs)
        solved: Tensor = torch.linalg.solve(inner, lost)
        return (lost * solved).sum((1, 2)) / self._power

    def lose(self, columns: Tensor) -> None:
        rows = self._inverse[columns]
        shares = torch.linalg.solve(rows[:, columns], rows)
        self._weight = self._weight - self._weight[:, columns] @ shares
        self._inverse = self._inverse - rows.T @ shares


def _removal(group: AxisGroup, readers: dict[str, tuple[_Reader, Tensor]]) -> Removal:
    left = list(range(len(group)))
    order: list[int] = []
    damage = [0.0]
    while left:
        costs = torch.stack([reader.damages(columns[left]) for reader, columns in readers.values()]).sum(0)
        place = int(costs.argmin())
        damage.append(damage[-1] + max(float(costs[place]), 0.0))
        order.append(left.pop(place))
        for reader, columns in readers.values():
            reader.lose(columns[order[-1]])
    return Removal(group.units[order], np.array(damage), tuple(readers))


def _columns(model: nn.Module, program: Program, flow: Flow, group: AxisGroup) -> dict[str, tuple[Columns, Tensor]]:
    """The layers that read a group, and which of their columns each unit is, (units, columns)."""
    modules, axes, found = dict(model.named_modules()), axes_of_tensors(program, flow), {}
    for member in group.members:
        name, _, last = member.name.rpartition(".")
        columns = columns_of(modules.get(name))
        if columns is None or last != "weight" or member.dimension != 1 or columns.groups > 1:
            continue
        axis, size = axes[member.name][1]
        assert axis is not None, "a member has an axis"
        elements = np.stack([np.flatnonzero(axis[:, member.column] == unit) for unit in group.units])
        inner = columns.width // size
        places = (elements[:, :, None] * inner + np.arange(inner)).reshape(len(group), -1)
        found[name] = (columns, torch.from_numpy(places))
    return found


def _grams(
    model: nn.Module, readers: dict[str, Columns], batches: SampleBatches, settings: tuple[float, int, int]
) -> dict[str, Tensor]:
    """The damped second moments of each reader's inputs, averaged over its runs; a reader that is not reached has none."""
    ridge, rows_per_column, seed = settings
    drawn: dict[tuple[str, int], DrawnRows] = {}
    found: dict[str, list[Moments]] = {}
    runs = Counter[str]()

    def take(run: LayerRun) -> None:
        columns, place = readers[run.name], (run.name, runs[run.name])
        assert run.input is not None, "such layers take a tensor"
        if not columns.has_batch(run.input):
            return
        runs[run.name] += 1
        rows = columns.rows_in(run.input)
        if place not in drawn:
            count = max(LEAST_ROWS, rows_per_column * columns.width)
            drawn[place] = DrawnRows.draw(batches.rows_in_all(rows), count, seed + len(found))
            found.setdefault(run.name, []).append(Moments(centred=columns.layer.bias is not None))
        for part in columns.at(run.input, drawn[place].next(rows)):
            found[run.name][place[1]].add(part)

    def forwards() -> Iterator[Inputs]:
        for inputs in batches:
            runs.clear()
            yield inputs

    watch(model, forwards(), {name: columns.layer for name, columns in readers.items()}, before=take)
    return {name: torch.stack([damped(each.mean(), ridge)[0] for each in own]).mean(0) for name, own in found.items()}

"""Structured Optimal Brain Surgeon: an order of removal of units whose readers, the layers that use them, are fitted again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.layer_moments import Masked
from mirabelle.calibration.moments import Moments, damped
from mirabelle.calibration.samples import LEAST_ROWS, CalibrationSamples, DrawnRows
from mirabelle.graph.flow import Flow
from mirabelle.graph.groups import AxisGroup, axes_of_tensors
from mirabelle.graph.trace import Program
from mirabelle.graph.units import Array
from mirabelle.model.device import copy_at_work
from mirabelle.model.watch import LayerRun, watch
from mirabelle.task.batch import Batch, Inputs

_LATER = 64  # columns whose removal is put into the whole matrices at once


@dataclass(frozen=True)
class Removal:
    """The order in which the units of a group are removed, and the damage.

    Args:
        order: (units,), in the order of removal.
        damage: (units + 1,), increasing from 0. Entry k is the damage after k removals: for each reader, the squared error of
            its outputs with optimal weights for the remaining columns, as a share of their power; summed over the readers. It
            is the number of readers after all removals.
        readers: names of the layers that use the units as inputs.
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
    """Remove the units of each group one by one, each time the one whose removal its readers can compensate best.

    A reader is a layer that uses the units as inputs. For a reader with weights W (outputs, columns) and second moments G of
    its inputs, including the ridge, a unit with columns S has

        damage = tr(W_S [(G⁻¹)_SS]⁻¹ W_Sᵀ),    W ← W − W_S [(G⁻¹)_SS]⁻¹ (G⁻¹)_S,:

    This is the error that `recovery.reconstruct` with the same ridge attains on the inputs of the dense model; rows and columns
    S of G⁻¹ are eliminated in the same way. Damages are divided by tr(W G Wᵀ). If several layers use a unit, as in a residual
    stream, their damages are added, and all are updated. Groups are treated independently, as if no other group was pruned.

    Tokens that an input "attention_mask" masks do not count.

    Cost: one pass over the data, and for each reader with c columns c³ operations for G⁻¹ and about as many for all removals,
    nearly all of them in products of matrices.

    Args:
        model: the traced dense model; it is not changed.
        program: traced program of the model.
        flow: of the program.
        groups: of the flow.
        inputs: calibration batches of samples of one shape; labels are not used.
        ridge: regularization; λ = ridge · mean of the diagonal of G is added to this diagonal.
        rows_per_column: number of input rows per column, drawn at random; at least 10,000 rows, if there are so many.
        seed: of the draw.

    Returns:
        A removal per group; None for a group that no Linear or ungrouped convolution uses by columns, such as the positions
        within heads over which attention compares queries and keys.

    Raises:
        UserError: E131 if there is no batch, or if the batches differ in their shapes.

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
    found: list[Removal | None] = []
    with copy_at_work(model) as of_model:
        columns = [_columns(of_model, program, flow, group) for group in groups]
        readers = {name: reader for own in columns for name, (reader, _) in own.items()}
        batches = Masked(CalibrationSamples.of(inputs).for_model(of_model))
        grams = _grams(of_model, readers, batches, (ridge, rows_per_column, seed))
        for group, own in zip(groups, columns, strict=True):
            read = {name: _Reader(reader, grams[name], at) for name, (reader, at) in own.items() if name in grams}
            found.append(_removal(group, read) if read else None)
    return found


class _Reader:
    """A layer whose columns are removed, with optimal weights for the remaining columns.

    What removals cost follows from two matrices alone, A = WᵀW and G⁻¹, both (columns, columns), however many outputs the layer
    has: damage = tr([(G⁻¹)_SS]⁻¹ A_SS). With E = (G⁻¹)_:,S [(G⁻¹)_SS]⁻¹ and B = A_:,S − E A_SS / 2, the removal of S gives

        G⁻¹ − E (G⁻¹)_S,:        A − B Eᵀ − E Bᵀ

    Of each change only what the next removals read is computed at once, the blocks of the units and the columns of the next
    unit. The whole matrices follow for many removals together, and lose the removed columns.

    Args:
        columns: the layer.
        gram: G, with ridge, (columns, columns).
        at: the columns of each unit, (units, columns of a unit).
    """

    def __init__(self, columns: Columns, gram: Tensor, at: Tensor) -> None:
        weight = columns.weight()[0]
        self._products, self._inverse = weight.T @ weight, torch.cholesky_inverse(torch.linalg.cholesky(gram))
        self._power = float(torch.sum(self._products * gram).clamp_min(1e-300))
        self._at = at = at.to(gram.device)
        self._blocks = [matrix[at[:, :, None], at[:, None, :]] for matrix in (self._products, self._inverse)]
        self._left = torch.ones(len(gram), dtype=torch.bool, device=gram.device)
        self._begin()

    def _begin(self) -> None:
        empty = self._inverse.new_empty((len(self._inverse), _LATER + self._at.shape[1]))
        self._shares, self._rows, self._halves, self._width = empty, empty.clone(), empty.clone(), 0

    def damages(self) -> Tensor:
        """The damage of removing each unit, (units,); without a meaning for those that are removed."""
        products, inverse = self._blocks
        if products.shape[1] == 1:
            return (products / inverse)[:, 0, 0] / self._power
        solved: Tensor = torch.linalg.solve_ex(inverse, products)[0]
        return solved.diagonal(dim1=1, dim2=2).sum(1) / self._power

    def lose(self, unit: int) -> None:
        """Remove the columns of a unit, and update the weights of the remaining ones."""
        own, shares, rows, halves = (
            self._at[unit],
            *(part[:, : self._width] for part in (self._shares, self._rows, self._halves)),
        )
        inverse = self._inverse[:, own] - shares @ rows[own].T
        products = self._products[:, own] - halves @ shares[own].T - shares @ halves[own].T
        share = torch.linalg.solve(inverse[own], inverse, left=False)
        half = products - share @ products[own] / 2
        end = self._width + len(own)
        for kept, new in ((self._shares, share), (self._rows, inverse), (self._halves, half)):
            kept[:, self._width : end] = new
        self._width = end
        for_units = [part[self._at] for part in (share, inverse, half)]
        self._blocks[1] -= for_units[0] @ for_units[1].transpose(1, 2)
        change = for_units[2] @ for_units[0].transpose(1, 2)
        self._blocks[0] -= change + change.transpose(1, 2)
        self._left[own] = False
        if self._width >= _LATER:
            self._catch_up()

    def _catch_up(self) -> None:
        """Make the changes of both matrices, for the columns that are left."""
        left = torch.nonzero(self._left).flatten()
        shares, rows, halves = (part[left, : self._width] for part in (self._shares, self._rows, self._halves))
        change = halves @ shares.T
        self._products = self._products[left[:, None], left] - change - change.T
        self._inverse = torch.addmm(self._inverse[left[:, None], left], shares, rows.T, alpha=-1)
        self._at = (torch.cumsum(self._left, 0) - 1).clamp(min=0)[self._at]
        self._left = torch.ones(len(left), dtype=torch.bool, device=left.device)
        self._begin()


def _removal(group: AxisGroup, readers: dict[str, _Reader]) -> Removal:
    left = torch.ones(len(group), dtype=torch.bool)
    order: list[int] = []
    damage = [0.0]
    for _ in range(len(group)):
        costs = torch.stack([reader.damages() for reader in readers.values()]).sum(0)
        place = int(costs.masked_fill(~left.to(costs.device), torch.inf).argmin())
        damage.append(damage[-1] + max(float(costs[place]), 0.0))
        order.append(place)
        left[place] = False
        for reader in readers.values():
            reader.lose(place)
    return Removal(group.units[order], np.array(damage), tuple(readers))


def _columns(model: nn.Module, program: Program, flow: Flow, group: AxisGroup) -> dict[str, tuple[Columns, Tensor]]:
    """The readers of a group by name, each with the columns of the units, (units, columns)."""
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
    model: nn.Module, readers: dict[str, Columns], batches: Masked, settings: tuple[float, int, int]
) -> dict[str, Tensor]:
    """The second moments of each reader's inputs, with ridge, averaged over its runs; readers that do not run are omitted."""
    ridge, rows_per_column, seed = settings
    drawn: dict[tuple[str, int], DrawnRows] = {}
    found: dict[str, list[Moments]] = {}
    runs = Counter[str]()

    def take(run: LayerRun) -> None:
        columns, place = readers[run.name], (run.name, runs[run.name])
        assert run.input is not None, "such layers take a tensor"
        read = batches.read(run.input)
        if not columns.has_batch(read):
            return
        runs[run.name] += 1
        rows = columns.rows_in(read)
        if place not in drawn:
            count = max(LEAST_ROWS, rows_per_column * columns.width)
            drawn[place] = DrawnRows.draw(batches.rows_in_all(rows), count, seed + len(found))
            found.setdefault(run.name, []).append(Moments(centred=columns.layer.bias is not None))
        for part in columns.at(read, drawn[place].next(rows)):
            found[run.name][place[1]].add(part)

    def forwards() -> Iterator[Inputs]:
        for inputs in batches:
            runs.clear()
            yield inputs

    watch(model, forwards(), {name: columns.layer for name, columns in readers.items()}, before=take)
    return {name: torch.stack([damped(each.mean(), ridge)[0] for each in own]).mean(0) for name, own in found.items()}

"""Correct a pruned model without labels and without gradients: batch norm statistics, and least squares for layer outputs.

After pruning, the next layers get inputs on which they were not trained. Both functions run a copy of the pruned model on
calibration samples, in batches of bounded size, and correct its layers in the order in which they run, so that each layer is
fitted to the outputs of the corrected layers before it. Memory does not grow with the number of samples. If the samples need
more than one batch, there is one pass for each layer that changes, which ends at that layer.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.layer_moments import Masked
from mirabelle.calibration.moments import Moments, least_squares
from mirabelle.calibration.passes import layer_by_layer
from mirabelle.calibration.samples import LEAST_ROWS, CalibrationSamples, DrawnRows
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.device import at_work, copy_at_work
from mirabelle.model.state import copied
from mirabelle.model.watch import LayerRun, watch
from mirabelle.task.batch import Batch, Inputs
from mirabelle.task.samples import Samples, Stream
from mirabelle.training.by_length import texts_of, without_shared_padding

if TYPE_CHECKING:
    from mirabelle.prune.recovery_methods import Recover
    from mirabelle.run.run import Run

_SAME = 1e-10  # of the power of the outputs: a layer with a smaller error, which is due to rounding, is not changed
_MANY = 16  # layers, for which a pass for each takes longer than one batch of up to 512 MiB
_NUMBERS_AT_ONCE = 1 << 22  # number of inputs of a batch norm that are converted to float64 at once


@dataclass(frozen=True)
class Recovery:
    """A corrected model, and what was changed.

    Args:
        model: a copy of the given model.
        layers: name of each fitted layer -> its error before and after, as a share of the power of the target outputs.
        norms: names of the batch norms whose statistics were estimated again.
        left: name of each layer that was not changed -> the reason; the name "" is the whole model.
    """

    model: nn.Module
    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def reestimate_batch_norm(model: nn.Module, inputs: Iterable[Inputs | Batch] | CalibrationSamples) -> Recovery:
    """Estimate the running statistics of all batch norms again, from the inputs that they have now.

    The statistics are those of all samples together, as if in one batch: the mean, and the variance Σ(x − mean)² / (n − 1).
    Each batch norm is estimated after the ones before it have their new statistics. Nothing else is changed; dropout is off.

    Args:
        model: it is not changed.
        inputs: calibration batches of samples of one shape; labels are not used. The division into batches does not matter.

    Returns:
        A copy with new statistics, and the names of its batch norms. A rewritten program, in which batch norms are operators,
        is returned unchanged.

    Raises:
        UserError: E131 if there is no batch, or if the batches differ in their shapes.

    Example:
        >>> model = nn.Sequential(nn.BatchNorm1d(2))
        >>> recovery = reestimate_batch_norm(model, [torch.tensor([[0.0, 1.0]]), torch.tensor([[2.0, 5.0]])])
        >>> recovery.model[0].running_mean, recovery.model[0].running_var, recovery.norms
        (tensor([1., 3.]), tensor([2., 8.]), ('0',))

    Source: Ioffe, Szegedy 2015, arXiv:1502.03167 (statistics over the data, once the weights are fixed); Li, Wu, Su, Wang
    2020, arXiv:2007.02491 (estimated again after pruning).
    """
    recovered = copied(model)
    if (why := _rewritten(model)) is not None:
        return Recovery(recovered, left=why)
    norms: dict[str, Any] = {name: module for name, module in recovered.named_modules() if _has_statistics(module)}
    seen: dict[str, Moments] = {}

    def begin(name: str, _changes: bool) -> _Statistics:  # noqa: FBT001  # as `layer_by_layer` calls it
        return _Statistics(norms[name], seen.setdefault(name, Moments(centred=True, diagonal=True)))

    with at_work(recovered):
        if norms:
            layer_by_layer(recovered, CalibrationSamples.of(inputs).for_model(recovered), norms, begin)
    left = {name: "it is not reached" for name in norms if name not in seen}
    left |= {name: "one value has no variance" for name, moments in seen.items() if moments.rows == 1}
    return Recovery(recovered, norms=tuple(name for name in seen if name not in left), left=left)


class _Statistics:
    """Sets the statistics of a batch norm to the moments of its inputs, pooled with those of its earlier runs."""

    def __init__(self, norm: Any, moments: Moments) -> None:
        self._norm, self._moments = norm, moments

    def take(self, given: Tensor) -> bool:
        for part in torch.split(given, max(1, _NUMBERS_AT_ONCE // given[0].numel())):
            self._moments.add(part.transpose(0, 1).flatten(1).T[None])
        return True

    def finish(self) -> None:
        if self._moments.rows > 1:
            self._norm.running_mean.copy_(self._moments.means[0].flatten())
            self._norm.running_var.copy_(self._moments.total()[0] / (self._moments.rows - 1))


def reconstruct(
    dense: nn.Module,
    smaller: nn.Module,
    inputs: Iterable[Inputs | Batch] | CalibrationSamples,
    *,
    ridge: float = 1e-3,
    rows_per_column: int = 30,
    seed: int = 0,
) -> Recovery:
    """Fit the layers of a pruned model to the outputs of the dense model by least squares, in the order in which they run.

    For each linear layer and each convolution that is not transposed, let X (rows, columns) be its inputs in the pruned model
    corrected so far (unfolded into columns, `mirabelle.calibration.Columns`), and Y (rows, outputs) the kept outputs of the
    dense layer at the same positions; tokens that an input "attention_mask" masks do not count:

        min over W, b of  ‖X Wᵀ + b − Y‖² / rows + λ ‖W − W₀‖²,   λ = ridge · mean of the diagonal of XᵀX / rows

    where W₀ is the weight before. If the layer has a bias, X and Y are centred, and the bias compensates their means. Batch
    norms keep the statistics of the dense model, since the fitted outputs approximate those of the dense model; estimating
    the statistics again afterwards loses accuracy.

    Layers before the first cut stay exactly the same. So do layers that run more than once, share their weights, have pruned
    weights, or have a `forward` other than torch's; all but the last are listed in `left`.

    Args:
        dense: the model before pruning; it is not changed.
        smaller: the pruned model; it is not changed.
        inputs: calibration batches of samples of one shape; labels are not used.
        ridge: strength of the regularization towards the weights before.
        rows_per_column: number of rows of X per column, drawn at random; at least 10,000 rows, if there are so many.
        seed: of the draw.

    Returns:
        A corrected copy of the pruned model. A rewritten program, which has no modules, is returned unchanged.

    Raises:
        UserError: E110 if the ridge is not positive; E131 if there is no batch, or if the batches differ in their shapes.

    Example:
        >>> from mirabelle.model.architecture import Architecture, attach
        >>> from mirabelle.model.edits import Cut
        >>> dense = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = [dense[0].weight.fill_(1.0), dense[0].bias.fill_(0.0), dense[1].weight.fill_(1.0)]
        >>> smaller = nn.Sequential(nn.Linear(2, 1), nn.Linear(1, 1, bias=False))
        >>> with torch.no_grad():
        ...     _ = [smaller[0].weight.fill_(1.0), smaller[0].bias.fill_(0.0), smaller[1].weight.fill_(1.0)]
        >>> cut = Cut.of({"0.weight": {0: [0]}, "0.bias": {0: [0]}, "1.weight": {1: [0]}}, {})
        >>> attach(smaller, Architecture().with_edit(cut))
        >>> recovery = reconstruct(dense, smaller, [torch.randn(50, 2)], ridge=1e-6)
        >>> round(recovery.model[1].weight.item(), 4)
        2.0

    Source: He, Zhang, Sun 2017, arXiv:1707.06168 (least squares on what the pruned layers before give); Luo, Wu, Lin 2017,
    arXiv:1707.06342.
    """
    if not ridge > 0:
        raise UserError("E110", f"ridge is {ridge}; it must be above 0", "1e-3 is a good value")
    recovered = copied(smaller)
    if (why := _rewritten(smaller)) is not None:
        return Recovery(recovered, left=why)
    with copy_at_work(dense) as wide, at_work(recovered):
        found, left = _layers(recovered, wide)
        batches = Masked(CalibrationSamples.of(inputs).for_model(wide, pass_for_each_layer=len(found) >= _MANY))
        targets, runs = _targets(wide, smaller, batches, list(found), (rows_per_column, seed))
        left |= {name: "it is not reached" if not runs[name] else "it runs more than once" for name in found if runs[name] != 1}
        layers: dict[str, tuple[float, float]] = {}

        def begin(name: str, changes: bool) -> _Fit:  # noqa: FBT001  # as `layer_by_layer` calls it
            return _Fit(name, found[name], targets.get(name), batches, ridge=ridge, changes=changes, layers=layers, left=left)

        fitted = {name: found[name].layer for name in found if name not in left}
        layer_by_layer(recovered, batches, fitted, begin)
    return Recovery(recovered, layers, left=left)


def recovered(
    manner: Recover,
    dense: nn.Module,
    smaller: nn.Module,
    data: Samples | Stream,
    run: Run,
    *,
    samples: int,
) -> nn.Module:
    """Apply the recovery method of a pruning step, and record in the run what was changed.

    Args:
        manner: the method.
        dense: the model before pruning.
        smaller: the pruned model.
        data: training data, from which samples are drawn with the seed of the run.
        run: records the event.
        samples: number of samples.
    """
    if manner == "nothing":
        return smaller
    drawn = CalibrationSamples.drawn(data, samples, run.seed)
    if (texts := texts_of(data)) is not None:  # all at once, without the padding that they share
        drawn = CalibrationSamples.of([without_shared_padding(texts.drawn(samples, run.seed), dense).inputs])
    if manner == "batch-norm":
        recovery = reestimate_batch_norm(smaller, drawn)
        run.event("recovered", norms=len(recovery.norms), left=dict(recovery.left))
    else:
        recovery = reconstruct(dense, smaller, drawn)
        run.event("recovered", layers=len(recovery.layers), left=dict(recovery.left))
    return recovery.model


@dataclass(frozen=True)
class _Targets:
    """The target outputs of a layer: the kept outputs of the dense layer, at some rows of all batches.

    Args:
        rows: (rows,), indices of the rows.
        outputs: (rows, outputs).
    """

    rows: Tensor
    outputs: Tensor


def _targets(
    dense: nn.Module, smaller: nn.Module, batches: Masked, names: list[str], draw: tuple[int, int]
) -> tuple[dict[str, _Targets], Counter[str]]:
    """The outputs of the first run of each layer of the dense model, and its number of runs in a forward pass.

    The number of runs is the largest one of all batches.
    """
    rows_per_column, seed = draw
    modules = {name: dense.get_submodule(name) for name in names}
    wide = {name: Columns(module) for name, module in modules.items()}  # type: ignore[arg-type]  # `_layers` has looked
    drawn: dict[str, DrawnRows] = {}
    kept: dict[str, Tensor] = {}
    outputs: dict[str, Tensor] = {}
    runs, most = Counter[str](), Counter[str]()

    def keep(run: LayerRun) -> None:
        name = run.name
        runs[name] += 1
        most[name] = max(most[name], runs[name])
        if most[name] > 1:
            return
        assert run.input is not None, "such layers take a tensor"
        assert run.output is not None, "and give one"
        columns, read, given = wide[name], batches.read(run.input), batches.read(run.output)
        if not columns.has_batch(read):
            return
        rows = columns.rows_in(read)
        if name not in drawn:
            count = max(LEAST_ROWS, rows_per_column * columns.width)
            drawn[name] = DrawnRows.draw(batches.rows_in_all(rows), count, seed + len(drawn))
            kept[name] = torch.tensor(_kept(dense, smaller, f"{name}.weight", columns.layer.weight.shape[0]))
            outputs[name] = torch.empty(len(drawn[name].numbers), len(kept[name]), dtype=given.dtype, device=given.device)
        start, here = drawn[name].given, drawn[name].next(rows)
        outputs[name][start : start + len(here)] = columns.outputs_at(given, here)[:, kept[name]]

    def forwards() -> Iterable[Inputs]:
        for inputs in batches:
            runs.clear()
            yield inputs

    watch(dense, forwards(), modules, after=keep)
    return {name: _Targets(own.numbers[: own.given], outputs[name][: own.given]) for name, own in drawn.items()}, most


class _Fit:
    """Least-squares fit of the weights of one layer to its target outputs, from batches of its inputs.

    Second moments are only computed for a layer whose outputs differ from the targets, which those before a cut do not.
    """

    def __init__(
        self,
        name: str,
        columns: Columns,
        targets: _Targets | None,
        batches: Masked,
        *,
        ridge: float,
        changes: bool,
        layers: dict[str, tuple[float, float]],
        left: dict[str, str],
    ) -> None:
        self._name, self._columns, self._batches, self._ridge = name, columns, batches, ridge
        self._targets, self._layers, self._left = targets, layers, left
        layer = columns.layer
        self._weight = columns.weight()
        self._bias = 0.0 if layer.bias is None else layer.bias.detach().double().reshape(columns.groups, 1, -1)
        self._changes, self._missed, self._seen = changes, 0.0, 0
        centred = layer.bias is not None
        self._gram, self._cross = Moments(centred=centred), Moments(centred=centred)
        if targets is not None:
            self._drawn = DrawnRows(targets.rows)
            due = targets.outputs.double()
            power = (due - due.mean(0) if centred else due).square().mean()
            self._power = max(float(power), 1e-30) * due.numel()

    def take(self, given: Tensor) -> bool:
        given = self._batches.read(given)
        if self._targets is None or not self._columns.has_batch(given):
            self._left[self._name] = "its inputs have no batch"
            return False
        start, rows = self._drawn.given, self._drawn.next(self._columns.rows_in(given))
        if not self._changes:
            missed = self._missed
            for _, lacking in self._parts(given, rows, start):
                missed += float(lacking.square().sum())
                if missed > _SAME * self._power:
                    self._changes = True
                    break
            else:
                self._missed = missed
                return False
        for x, lacking in self._parts(given, rows, start):
            self._missed += float(lacking.square().sum())
            self._gram.add(x)
            self._cross.add(x, lacking)
        return True

    def _parts(self, given: Tensor, rows: Tensor, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The layer's inputs at some rows, and target minus output there, both (groups, rows, …) in float64."""
        assert self._targets is not None, "checked by the caller"
        for part in self._columns.at(given, rows):
            x, stop = part.double(), start + part.shape[1]
            due = self._targets.outputs[start:stop].double().reshape(stop - start, self._columns.groups, -1).transpose(0, 1)
            yield x, due - (x @ self._weight.transpose(1, 2) + self._bias)
            start = stop

    def finish(self) -> None:
        if not self._changes:
            return
        layer, gram, cross = self._columns.layer, self._gram.mean(), self._cross.mean()
        change = least_squares(gram, cross, self._ridge)
        layer.weight.copy_((self._weight + change.transpose(1, 2)).reshape(layer.weight.shape))
        gained = 2 * (change * cross).sum() - (change * (gram @ change)).sum()
        if layer.bias is not None:
            inputs, offset = self._cross.means
            layer.bias.add_((offset - inputs @ change).flatten().to(layer.bias.dtype))
            gained = gained + offset.square().sum()
        after = max(self._missed - float(gained) * self._cross.rows, 0.0)
        self._layers[self._name] = self._missed / self._power, after / self._power


def _layers(model: nn.Module, dense: nn.Module) -> tuple[dict[str, Columns], dict[str, str]]:
    """The layers that can be fitted, and for the other linear layers and convolutions the reason why not."""
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    pruned, wide = architecture_of(model).pruned, dict(dense.named_modules())
    found, left = {}, {}
    for name, module in model.named_modules():
        columns = columns_of(module)
        if columns is None:
            continue
        if any(holders[id(parameter)] > 1 for parameter in module.parameters()):
            left[name] = "its weights are shared"
        elif f"{name}.weight" in pruned:
            left[name] = "its zeros are kept"
        elif columns_of(wide.get(name)) is None:
            left[name] = "the dense layer is of another kind"
        else:
            found[name] = columns
    return found, left


def _kept(dense: nn.Module, smaller: nn.Module, name: str, size: int) -> list[int]:
    """The indices of the dense layer's outputs that the pruned layer keeps; both models may be cuts of the same one."""
    return architecture_of(smaller).kept_since(architecture_of(dense), name, 0, size)


def _rewritten(model: nn.Module) -> dict[str, str] | None:
    return {"": "it is a rewritten program"} if architecture_of(model).rewritten is not None else None


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None

"""Recovery without labels and without gradients: what a cut took from a model, given back by statistics and least squares.

A cut leaves the layers behind it with inputs that they were not trained on. Both functions run the smaller model once over all
calibration samples together, and set each layer right when the pass reaches it: it sees what the layers before it give by
then. What the pass holds in memory is what the model holds for a batch of all these samples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeAlias

import torch
from torch import Tensor, nn

from mirabelle.calibration.moments import Unfolding, moments, unfolding_of
from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of
from mirabelle.model.state import copied, in_eval_mode
from mirabelle.task.batch import Batch, Inputs, Samples, call, map_tensors, tensors_of

if TYPE_CHECKING:
    from mirabelle.prune.recovery_methods import Recover
    from mirabelle.run.run import Run

_SAME = 1e-10  # of the outputs' power: a layer that misses no more than rounding does stays as it is
Look: TypeAlias = Callable[[str, Tensor], None]  # what to do with the name of a module and a tensor of it


@dataclass(frozen=True)
class Recovery:
    """A model after a recovery, and what was done.

    Args:
        model: a copy of the one that was given.
        layers: by the name of a reconstructed layer, the share of its due outputs' power that it misses, before and after.
        norms: names of the norms whose statistics were estimated again.
        left: by name, why a layer stayed as it was; the name is empty where the whole model did.
    """

    model: nn.Module
    layers: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    norms: tuple[str, ...] = ()
    left: Mapping[str, str] = field(default_factory=dict)


def reestimate_batch_norm(model: nn.Module, inputs: Iterable[Inputs | Batch]) -> Recovery:
    """Give every BatchNorm the mean and the variance that its inputs have now.

    Statistics are those of all samples together, as if in one batch: the mean, and the variance Σ(x − mean)² / (n − 1).
    A norm behind another one sees what that one gives with its new statistics. Nothing else changes; dropout stays off.

    Args:
        model: stays as it is.
        inputs: calibration batches, labels unused; samples of one shape.

    Returns:
        A copy, with the names of its norms. A rewritten program, whose norms are operators, comes back as it was.

    Raises:
        UserError: E131 no batch, or batches that do not fit together.

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
    seen: dict[str, tuple[int, Tensor, Tensor]] = {}

    def estimate(name: str, given: Tensor) -> None:
        count, mean, squares = seen[name] = _pooled(seen.get(name), given)
        if count > 1:
            norms[name].running_mean.copy_(mean)
            norms[name].running_var.copy_(squares / (count - 1))

    if norms:
        pass_over(recovered, joined(inputs), norms, before=estimate)
    left = {name: "it is not reached" for name in norms if name not in seen}
    left |= {name: "one value tells no variance" for name, (count, _, _) in seen.items() if count == 1}
    return Recovery(recovered, norms=tuple(name for name in seen if name not in left), left=left)


def reconstruct(
    dense: nn.Module,
    smaller: nn.Module,
    inputs: Iterable[Inputs | Batch],
    *,
    ridge: float = 1e-3,
    rows_per_column: int = 30,
    seed: int = 0,
) -> Recovery:
    """Fit the layers of a cut model, in the order in which they run, to what the dense model's give.

    For each Linear, Conv1d and Conv2d, with X (rows, columns) what it reads in the smaller model as recovered so far, unfolded,
    and Y (rows, outputs) what the dense layer gives at the same places, only the outputs that stayed:

        min over W, b of  ‖X Wᵀ + b − Y‖² / rows + λ ‖W − W₀‖²,   λ = ridge · mean of the diagonal of XᵀX / rows

    with W₀ as it was before; X and Y are taken about their means where there is a bias, which takes up what is left. Norms keep
    the statistics that the dense outputs had, which is what they get again: estimating them anew afterwards loses accuracy.

    Layers before the first cut stay, bit by bit, and so do layers that run more than once, share their weights, have pruned
    weights, or whose forward is not torch's own; all but the last are named.

    Args:
        dense: the model that was cut; stays as it is.
        smaller: what the cut left; stays as it is.
        inputs: calibration batches, labels unused; samples of one shape.
        ridge: how strongly the weights are held where they were.
        rows_per_column: places looked at for each column, drawn at random; at least 10,000 places where there are as many.
        seed: of the draw.

    Returns:
        A copy of the smaller model. A rewritten program, which has no modules, comes back as it was.

    Raises:
        UserError: E110 a ridge that is not positive; E131 no batch, or batches that do not fit together.

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
    given = joined(inputs)
    found, left = _layers(recovered, dense)
    rows: dict[str, Tensor] = {}
    due: dict[str, Tensor] = {}
    calls: Counter[str] = Counter()
    wide = {name: unfolding_of(dense.get_submodule(name)) for name in found}

    def keep(name: str, outputs: Tensor) -> None:
        calls[name] += 1
        unfolding = wide[name]
        assert unfolding is not None, "only such layers are looked at"
        if calls[name] == 1:
            rows[name] = unfolding.drawn(outputs, rows_per_column, seed + len(rows))
            outputs = unfolding.outputs(outputs, rows[name])
            due[name] = outputs[:, _kept(dense, smaller, f"{name}.weight", outputs.shape[1])]

    pass_over(dense, given, {name: dense.get_submodule(name) for name in found}, after=keep)
    left |= {name: "it is not reached" if not calls[name] else "it runs more than once" for name in found if calls[name] != 1}
    layers: dict[str, tuple[float, float]] = {}

    def fit(name: str, read: Tensor) -> None:
        if not found[name].has_batch(read):
            left[name] = "its inputs have no batch"
        elif (shares := _fitted(found[name], read, rows[name], due.pop(name), ridge)) is not None:
            layers[name] = shares

    reached = {name: found[name].layer for name in found if name not in left}
    pass_over(recovered, given, reached, before=fit)
    return Recovery(recovered, layers, left=left)


def recovered(manner: Recover, dense: nn.Module, smaller: nn.Module, samples: Samples, run: Run) -> nn.Module:
    """The smaller model after the recovery that a step asks for; what was done becomes an event of the run."""
    if manner == "nothing":
        return smaller
    batches = [samples.first(len(samples))]
    if manner == "batch-norm":
        recovery = reestimate_batch_norm(smaller, batches)
        run.event("recovered", norms=len(recovery.norms), left=dict(recovery.left))
    else:
        recovery = reconstruct(dense, smaller, batches)
        run.event("recovered", layers=len(recovery.layers), left=dict(recovery.left))
    return recovery.model


def _fitted(unfolding: Unfolding, read: Tensor, rows: Tensor, due: Tensor, ridge: float) -> tuple[float, float] | None:
    """Give a layer its best weights; the shares of power missed before and after, None where it gives what is due as it is."""
    found = moments(unfolding, read, rows, due)
    power = max(found.power, 1e-30)
    if found.missed <= _SAME * power:
        return None
    change = torch.cholesky_solve(found.cross, torch.linalg.cholesky(found.damped(ridge)))
    layer = unfolding.layer
    layer.weight.copy_((unfolding.weight() + change.transpose(1, 2)).reshape(layer.weight.shape))
    if layer.bias is not None:
        layer.bias.add_((found.offset - found.inputs @ change).flatten().to(layer.bias.dtype))
    gained = (2 * (change * found.cross).sum() - (change * (found.gram @ change)).sum() + found.offset.square().sum()).item()
    return found.missed / power, max(found.missed - gained / due.shape[1], 0.0) / power


def _layers(model: nn.Module, dense: nn.Module) -> tuple[dict[str, Unfolding], dict[str, str]]:
    """The layers that may be fitted, and why others may not."""
    holders = Counter(id(parameter) for _, parameter in model.named_parameters(remove_duplicate=False))
    pruned, wide = architecture_of(model).pruned, dict(dense.named_modules())
    found, left = {}, {}
    for name, module in model.named_modules():
        unfolding = unfolding_of(module)
        if unfolding is None:
            continue
        if any(holders[id(parameter)] > 1 for parameter in module.parameters()):
            left[name] = "its weights are shared"
        elif f"{name}.weight" in pruned:
            left[name] = "its zeros are kept"
        elif unfolding_of(wide.get(name)) is None:
            left[name] = "the dense layer is of another kind"
        else:
            found[name] = unfolding
    return found, left


def _kept(dense: nn.Module, smaller: nn.Module, name: str, size: int) -> list[int]:
    """Which outputs of the dense layer the smaller one still has; both may be cuts of one origin."""
    return architecture_of(smaller).kept_since(architecture_of(dense), name, 0, size)


def joined(inputs: Iterable[Inputs | Batch]) -> Inputs:
    """All batches as one.

    Raises:
        UserError: E131 no batch, or batches that do not fit together.
    """
    parts = [part.inputs if isinstance(part, Batch) else part for part in inputs]
    if not parts:
        raise UserError("E131", "recovery needs calibration data, and there is no batch", "give at least one batch")
    try:
        whole = iter([torch.cat(tensors) for tensors in zip(*map(tensors_of, parts), strict=True)])
    except (RuntimeError, ValueError) as error:
        raise UserError("E131", f"calibration batches do not fit together: {error}", "give samples of one shape") from error
    return map_tensors(parts[0], lambda _: next(whole))


@torch.no_grad()
def pass_over(
    model: nn.Module,
    inputs: Inputs,
    modules: Mapping[str, nn.Module],
    before: Look | None = None,
    after: Look | None = None,
) -> None:
    """Run the model once, in eval mode, and show what goes into and comes out of some of its modules when it does.

    Args:
        model: left in the mode in which it was.
        inputs: of the model.
        modules: by name.
        before: is given the first input of a module before it runs, and may change the module.
        after: is given its output.
    """
    hooks: list[Any] = []
    for name, module in modules.items():
        if before is not None:
            hooks.append(module.register_forward_pre_hook(_showing_inputs(name, before), with_kwargs=True))
        if after is not None:
            hooks.append(module.register_forward_hook(_showing_outputs(name, after)))
    try:
        with in_eval_mode(model):
            call(model, inputs)
    finally:
        for hook in hooks:
            hook.remove()


def _showing_inputs(name: str, look: Look) -> Callable[[nn.Module, Sequence[Any], Mapping[str, Any]], None]:
    return lambda _module, args, kwargs: look(name, args[0] if args else next(iter(kwargs.values())))


def _showing_outputs(name: str, look: Look) -> Callable[[nn.Module, Any, Tensor], None]:
    return lambda _module, _args, outputs: look(name, outputs)


def _rewritten(model: nn.Module) -> dict[str, str] | None:
    return {"": "a rewritten program stands for it"} if architecture_of(model).rewritten is not None else None


def _has_statistics(module: nn.Module) -> bool:
    return isinstance(module, nn.modules.batchnorm._BatchNorm) and module.running_mean is not None


def _pooled(known: tuple[int, Tensor, Tensor] | None, given: Tensor) -> tuple[int, Tensor, Tensor]:
    """Count, mean and Σ(x − mean)² of each channel, over these values and those known before."""
    values = given.double().transpose(0, 1).flatten(1)
    count, mean = values.shape[1], values.mean(1)
    squares = (values - mean[:, None]).square().sum(1)
    if known is None:
        return count, mean, squares
    whole, apart = known[0] + count, mean - known[1]
    return whole, known[1] + apart * count / whole, known[2] + squares + apart.square() * known[0] * count / whole

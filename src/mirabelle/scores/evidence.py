"""The evidence for scores: gradients and input statistics of a model's parameters, measured on samples of the training data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, multiplies_inputs
from mirabelle.calibration.layer_moments import Masked
from mirabelle.calibration.moments import Moments
from mirabelle.errors import UserError
from mirabelle.model.device import at_work, home
from mirabelle.model.state import copied
from mirabelle.model.watch import LayerRun, watch
from mirabelle.numerics.draws import global_draws
from mirabelle.run.process_group import from_all, in_all_processes_if_possible, own_part
from mirabelle.scores.score import Evidence, Score, covered
from mirabelle.task.batch import call, in_float32
from mirabelle.task.samples import Samples

if TYPE_CHECKING:
    from mirabelle.task.loss import Loss
    from mirabelle.task.task import Task

_BATCH = 50


def evidence_for(
    score: Score,
    model: nn.Module,
    task: Task,
    names: Iterable[str] | None = None,
    *,
    most_samples: int | None = None,
    part: int | None = None,
    seed: int = 0,
) -> Mapping[str, Evidence]:
    """Measure the evidence that a score needs about a model's parameters.

    Args:
        score: the score; it determines the kinds of evidence and the parameters that it covers.
        model: the model; a copy of it runs in evaluation mode.
        task: gives the loss for gradients, and the training data from which samples are drawn.
        names: names of the parameters; by default those that the score covers, without those of layers that never run.
        most_samples: upper limit for the score's own number of samples; of a stream, the first samples are used.
        part: index of one of the score's parts, to use only its samples; None uses the samples of all parts.
        seed: seed of the draw, and of random operations of the model.

    Returns:
        Evidence by the name of the parameter; the gradient is zero for a parameter on which the loss does not depend.

    Raises:
        UserError: E112 if the score does not cover one of `names`, or its layer never runs.

    Example:
        >>> from mirabelle import Task
        >>> from mirabelle.scores import Taylor
        >>> layer = nn.Linear(4, 2)
        >>> x, y = torch.randn(20, 4), torch.arange(20) % 2
        >>> evidence_for(Taylor(), layer, Task(train=(x, y), test=(x, y)))["weight"].gradient.shape
        torch.Size([2, 4])
    """
    chosen = list(covered(score, model) if names is None else names)
    if not score.needs:
        return {name: Evidence(name) for name in chosen}
    count: int = getattr(score, "samples", _BATCH)
    drawn = task.train.drawn(count if most_samples is None else min(count, most_samples), seed)
    if part is not None:
        own = drawn.at(torch.arange(part, len(drawn), score.parts) if part < len(drawn) else torch.tensor([0]))
        drawn = Samples(own.inputs, own.targets)
    model = copied(model).eval()
    found: dict[str, dict[str, Tensor]] = {name: {} for name in chosen}
    with at_work(model) as device, global_draws(seed, device):
        if score.needs & {"gradient", "squared_gradient"}:
            _measure_gradients(score, model, task, drawn, found)
        if score.needs & {"input_moments", "input_norms"}:
            _measure_inputs(score, model, drawn, found)
    silent = [name for name in chosen if len(found[name]) < len(score.needs)]
    if silent and names is not None:
        raise UserError(
            "E112",
            f"{type(score).__name__} scores the weights of linear layers and convolutions that run; "
            f'"{silent[0]}" is no such weight, or its layer never ran on the data',
            f'set exclude = ["{silent[0]}"], or score = "Magnitude"',
        )
    return {name: Evidence(name, **home(found[name])) for name in chosen if name not in silent}


def _measure_gradients(
    score: Score, model: nn.Module, task: Task, drawn: Samples, found: Mapping[str, dict[str, Tensor]]
) -> None:
    kinds = sorted(score.needs & {"gradient", "squared_gradient"})
    first, *others = in_all_processes_if_possible(_gradients, model, list(found), kinds, task.loss, drawn)
    for name, own in first.items():
        found[name] |= {kind: sum((part[name][kind] for part in others), own[kind]) for kind in kinds}


def _gradients(
    model: nn.Module, names: Sequence[str], kinds: Sequence[str], loss: Loss, drawn: Samples
) -> list[dict[str, dict[str, Tensor]]]:
    """The mean gradients of the loss, as parts of it from each process, each from a part of the batches."""
    size = 1 if "squared_gradient" in kinds else _BATCH  # squared gradients are those of single samples
    batches = (drawn.between(start, start + size) for start in own_part(range(0, len(drawn), size)))

    def work() -> dict[str, dict[str, Tensor]]:
        parameters = dict(model.named_parameters())
        chosen = [parameters[name].requires_grad_() for name in names]
        found = {
            name: {kind: torch.zeros_like(parameter, requires_grad=False) for kind in kinds}
            for name, parameter in zip(names, chosen, strict=True)
        }
        with at_work(model) as device, torch.enable_grad():
            for given in batches:
                batch = given.to(device)
                gradients = torch.autograd.grad(
                    loss(in_float32(call(model, batch.inputs)), batch.targets), chosen, allow_unused=True
                )
                share = len(batch) / len(drawn)
                for name, gradient in zip(names, gradients, strict=True):
                    for kind in kinds if gradient is not None else ():
                        found[name][kind] += share * (gradient if kind == "gradient" else gradient.square())
        return home(found)

    return from_all(work)


def _measure_inputs(score: Score, model: nn.Module, drawn: Samples, found: Mapping[str, dict[str, Tensor]]) -> None:
    whole = "input_moments" in score.needs
    parameters = dict(model.named_parameters())
    moments = {parameters[name]: Moments(centred=False, diagonal=not whole, dtype=None) for name in found}
    layers = {
        name: module
        for name, module in model.named_modules()
        if isinstance(weight := getattr(module, "weight", None), nn.Parameter)
        and weight in moments
        and multiplies_inputs(module, weight)
    }

    def take(run: LayerRun) -> None:
        layer: Any = layers[run.name]
        assert run.input is not None, "the layers take a tensor"
        for columns in Columns(layer).of(batches.read(run.input)):
            moments[layer.weight].add(columns)

    batches = Masked(list(drawn.batches(_BATCH)))
    watch(model, batches, layers, before=take)
    for name, own in found.items():
        known = moments[parameters[name]]
        if known.rows and whole:
            own["input_moments"] = known.mean()
        if known.rows and "input_norms" in score.needs:
            own["input_norms"] = (known.mean().diagonal(dim1=1, dim2=2) if whole else known.mean()).sqrt()

"""The steps of layers' levels: how many bytes each step takes, how much it changes the outputs, and the levels themselves."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns
from mirabelle.calibration.layer_moments import change_by_moments
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.samples import SampleBatches
from mirabelle.model.architecture import architecture_of
from mirabelle.model.device import home
from mirabelle.model.state import memory_of
from mirabelle.numerics.entropy import MOST
from mirabelle.numerics.rate_distortion import FittedLevels, Moment, fitted_levels
from mirabelle.quantize.calibrated_codes import product_of
from mirabelle.quantize.dense_layers import WEIGHTED, bias_of, weight_of
from mirabelle.quantize.output_change import OutputChange, having

_GRID = tuple(2.0 ** (-k / 2) for k in range(-6, 10))  # steps, in root mean squares of the weights that are not 0
_REFERENCE = (
    10  # position of the step for which the change of the outputs is measured, or a coarser one if that is nearly exact
)
_LEAST_ERROR = 1e-4  # of the power of a layer's outputs, for an error by which a change is measured
_ENTRY_BYTES = 2.0  # of a weight in the head of a file
_MOST_CHANGE = 1e6  # for outputs that are not finite: the search needs numbers
_TOGETHER = 1 << 20  # weights of a layer and all its steps that are rounded together
_MOST_EXACT = 256  # the largest level that bfloat16 keeps apart from its neighbours
_BITS = 8

Tell = Callable[[int, int], object]
Look = Callable[[str, "Seen"], None]


@dataclass(frozen=True)
class Seen:
    """The inputs of a layer on the calibration samples.

    Args:
        moments: of each group; without a matrix if the inputs are not known.
        means: of the inputs, (groups, columns); None if they are not known.
    """

    moments: Sequence[Moment]
    means: Tensor | None = None


@dataclass(frozen=True)
class Option:
    """A step of a weight: the estimated change of the model's outputs if it is the only one, and the bytes of its levels."""

    step: float
    change: float
    size_bytes: float


@dataclass(frozen=True)
class Found:
    """What is stored of a layer.

    Args:
        levels: integers in float32, with the shape of the weight.
        step: the weight is step · levels.
        bias: (out,), rounded to multiples of a step where the inputs of the layer are known; None for none.
    """

    levels: Tensor
    step: float
    bias: Tensor | None


class LevelSearch:
    """Finds steps and levels of the weights of a model.

    Args:
        model: with dense layers.
        names: of the layers; of those that share a weight, the first.
        products: of them, the layers that run once, as matrix products: for the others, inputs do not count.
        batches: calibration samples.
        damping: of the moments.
    """

    def __init__(
        self,
        model: nn.Module,
        names: Sequence[str],
        products: Mapping[str, tuple[nn.Module, Columns]],
        batches: SampleBatches,
        damping: float,
    ) -> None:
        self._model, self._names, self._products, self._batches = model, names, products, batches
        self._damping, self._pruned = damping, set(architecture_of(model).pruned)
        self._means: dict[str, Tensor] = {}

    def options(self, change: OutputChange, tell: Tell) -> dict[str, list[Option]]:
        """For each layer the steps of a grid, with the changes that they cause and the bytes that they take.

        The change of the outputs is measured for one step of each layer, and is proportional to the error of the layer's own
        outputs for the others.
        """
        fitted: dict[str, list[FittedLevels]] = {}
        reference: dict[str, FittedLevels] = {}

        def look(name: str, seen: Seen) -> None:
            weight = self._weight(name)
            fitted[name] = []
            for one in self._each(name, weight, seen, _steps(weight)):
                before = reference.get(name)
                if before is None or (len(fitted[name]) <= _REFERENCE and one.error > _LEAST_ERROR * one.power):
                    reference[name] = one
                fitted[name].append(replace(one, levels=torch.zeros(0, dtype=torch.int8)))  # one is measured, none is kept
            if seen.means is not None:
                self._means[name] = seen.means
            tell(len(fitted), len(self._names))

        self._visit(self._model, look)
        return {name: self._measured(name, fitted[name], reference[name], change) for name in self._names}

    def levels(self, model: nn.Module, steps: Mapping[str, float]) -> dict[str, Found]:
        """The levels of each layer, found in the order in which the layers run, each with the inputs that it then gets.

        Args:
            model: a copy of the model; it gets the values of the levels.
            steps: of each layer.
        """
        found: dict[str, Found] = {}
        layers = dict(model.named_modules())
        biases = [memory_of(bias) for name in self._names if (bias := bias_of(layers[name])) is not None]

        def look(name: str, seen: Seen) -> None:
            weight, layer = self._weight(name), layers[name]
            (one,) = self._each(name, weight, seen, [steps[name]])
            bias = bias_of(layer)
            if bias is not None and seen.means is not None and name in self._means and biases.count(memory_of(bias)) == 1:
                due = _outputs(weight, self._means[name]) - _outputs(one.values, seen.means)
                bias.copy_(_rounded(home(bias) + due.to(bias.dtype), one.noise_step))
            shape = weight_of(layer, WEIGHTED).shape
            weight_of(layer, WEIGHTED).copy_(one.values.reshape(shape))
            found[name] = Found(home(one.levels.float().reshape(shape)), one.step, None if bias is None else home(bias.clone()))

        self._visit(model, look)
        return found

    def _visit(self, model: nn.Module, look: Look) -> None:
        """Look at each layer, first those whose inputs do not count, and then the others in the order in which they run."""
        for name in self._names:
            if name not in self._products:
                look(name, Seen([Moment(None, self._damping)]))
        products = {
            name: (layer, product)
            for name in self._products
            if (product := product_of(layer := model.get_submodule(name))) is not None
        }
        left = dict.fromkeys(products)

        def of_inputs(name: str, moments: Moments) -> None:
            moments.home()  # what follows goes column by column, in steps too small for another device
            means, matrices = moments.means[0], moments.mean()
            left.pop(name, None)
            if bias_of(products[name][0]) is None:  # nothing takes the mean error of its outputs away
                matrices = matrices + means.transpose(1, 2) @ means
            look(name, Seen([Moment(matrix, self._damping) for matrix in matrices], means[:, 0]))

        change_by_moments(model, self._batches, products, of_inputs, centred=True)
        for name in left:  # the inputs of the model decide which layers run, and no sample has reached these
            look(name, Seen([Moment(None, self._damping)] * products[name][1].groups))

    def _weight(self, name: str) -> Tensor:
        """The weight before the step, (groups, rows, columns)."""
        if name in self._products:
            return home(self._products[name][1].weight())
        return home(weight_of(self._model.get_submodule(name), WEIGHTED).flatten(1)[None].float())

    def _each(self, name: str, weight: Tensor, seen: Seen, steps: Sequence[float]) -> Iterator[FittedLevels]:
        """The levels for each step; as many steps at once as memory allows."""
        weight = weight.to(seen.moments[0].dtype or weight.dtype)
        together = max(1, _TOGETHER // max(weight.numel(), 1))
        for first in range(0, len(steps), together):
            some = steps[first : first + together]
            yield from fitted_levels(weight, seen.moments, some, keeps_zeros=f"{name}.weight" in self._pruned)

    def _measured(self, name: str, fitted: Sequence[FittedLevels], one: FittedLevels, change: OutputChange) -> list[Option]:
        layer = self._model.get_submodule(name)
        weight, bias = weight_of(layer, WEIGHTED), bias_of(layer)
        lost = self._weight(name) - one.values
        with ExitStack() as stack:
            stack.enter_context(having(weight, one.values.reshape(weight.shape)))
            if bias is not None and name in self._means:
                stack.enter_context(having(bias, home(bias) + _outputs(lost, self._means[name]).to(bias.dtype)))
            measured = min(change.of(self._model), _MOST_CHANGE)
        each = measured / one.error if one.error > 0 else 0.0
        return [Option(fit.start, each * fit.error, fit.bits / _BITS + _ENTRY_BYTES) for fit in fitted]


def _steps(weight: Tensor) -> list[float]:
    """The steps to try, from coarse to fine; the finest is that for which the largest weight has the largest level."""
    kept = weight[weight != 0].float()
    if not kept.numel():
        return [1.0]
    size, finest = float(kept.square().mean().sqrt()), float(kept.abs().max()) / MOST
    return [*(size * share for share in _GRID if size * share > finest), finest]


def _outputs(weight: Tensor, means: Tensor) -> Tensor:
    """The mean outputs, without the bias, (out,).

    Args:
        weight: (groups, rows, columns).
        means: of the inputs, (groups, columns).
    """
    return torch.einsum("grc,gc->gr", weight.to(means.dtype), means).flatten()


def _rounded(bias: Tensor, step: float) -> Tensor:
    """A bias rounded to multiples of a step, and these to bfloat16, as they are stored; unless it is too large for that."""
    levels = (bias / step).round()
    if not math.isfinite(step) or step <= 0 or bool((levels.abs() > _MOST_EXACT).any()):
        return bias
    return (levels * step).bfloat16().to(bias.dtype) + 0.0  # −0.0 becomes 0.0

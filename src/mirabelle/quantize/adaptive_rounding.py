"""Adaptive rounding of static layers: codes that keep what a layer gives, not what its weights are."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import Columns, columns_of
from mirabelle.calibration.layer_moments import Masked, runs_of
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.passes import layer_by_layer
from mirabelle.calibration.samples import CalibrationSamples, SampleBatches
from mirabelle.model.ties import all_names
from mirabelle.model.watch import EndOfForward, LayerRun, watch
from mirabelle.numerics.adaptive_rounding import adaptive_codes, output_error
from mirabelle.quantize.batch_norm_folding import FoldedNorm, folded
from mirabelle.quantize.dense_layers import bias_of
from mirabelle.quantize.layers import StaticLayer
from mirabelle.run.run import Run
from mirabelle.runtime import operators
from mirabelle.task.batch import Inputs

SAMPLES = 256  # most calibration samples: each has many positions in a convolution, and tokens in a transformer
_MOST_STEPS, _LEAST_STEPS = 1000, 200
_PRODUCTS = 4e11  # most multiply-accumulates of a layer's steps, unless that are fewer than the least


def with_adaptive_codes(dense: nn.Module, quantized: nn.Module, samples: CalibrationSamples, run: Run) -> nn.Module:
    """Choose the codes of static layers by what the layers give, in place, in the order in which they run.

    Each layer gets the inputs x of the quantized model, in which the layers before it have their codes, and is to give the
    outputs y of the dense one: the codes minimize E‖ŵ Q(x) + b − y‖² (`numerics.adaptive_rounding`). Scales stay. A layer keeps
    the nearest codes if it runs more than once, or if it shares its codes; so does an output whose own error does not fall.

    Args:
        dense: the model before quantization, with the same names.
        quantized: is changed.
        samples: calibration data.
        run: is told the progress, and by how much the error of each layer fell.
    """
    shared = {name for names in all_names(quantized).values() if len(names) > 1 for name in names}
    layers = {
        name: one for name, one in quantized.named_modules() if isinstance(one, StaticLayer) and f"{name}.codes" not in shared
    }
    norms = {str(one.settings["of"]): name for name, one in quantized.named_modules() if isinstance(one, FoldedNorm)}
    runs = runs_of(quantized, layers, samples.inputs(0, min(2, len(samples))))
    targets = {name: _Target(dense, name, norms.get(name)) for name in layers if runs[name] == 1}
    targets = {name: target for name, target in targets.items() if target.columns is not None}
    seen = _Seen(samples.for_model(quantized, pass_for_each_layer=True))
    shares: dict[str, float] = {}
    begin = time.monotonic()

    def begun(name: str, _changes: bool) -> _Rounding:  # noqa: FBT001  # as `layer_by_layer` calls it
        return _Rounding(layers[name], targets[name], seen, lambda share: told(name, share))

    def told(name: str, share: float) -> None:
        shares[name] = share
        left = (time.monotonic() - begin) / len(shares) * (len(targets) - len(shares))
        run.progress(len(shares), len(targets), seconds_left=left, text=f"adaptive rounding of {name}")

    layer_by_layer(quantized, seen, {name: layers[name] for name in targets}, begun)
    run.event("adaptive rounding", errors={name: round(share, 4) for name, share in shares.items()})
    return quantized


class _Seen:
    """Batches of inputs, which remember the batch that runs."""

    def __init__(self, batches: SampleBatches) -> None:
        self.masked = Masked(batches)
        self.inputs: Inputs = None

    def __len__(self) -> int:
        return len(self.masked)

    def __iter__(self) -> Iterator[Inputs]:
        for inputs in self.masked:
            self.inputs = inputs
            yield inputs


class _Target:
    """What a layer of the dense model gives, with the batch norm that was folded into it."""

    def __init__(self, dense: nn.Module, name: str, norm: str | None) -> None:
        layer = dense.get_submodule(name)
        self.joined = layer if norm is None else folded(layer, dense.get_submodule(norm))
        self.columns: Columns | None = columns_of(self.joined)
        self._dense, self._last = dense, dense.get_submodule(norm or name)

    def outputs(self, inputs: Inputs) -> Tensor:
        """The outputs for inputs of the model."""
        found: list[Tensor] = []

        def keep(run: LayerRun) -> None:
            assert run.output is not None, "layers return a tensor"
            found.append(run.output)
            raise EndOfForward

        watch(self._dense, [inputs], {"": self._last}, after=keep)
        return found[0]


class _Rounding:
    """Collects E[x xᵀ] and E[(y − b) xᵀ] of a layer, and then chooses its codes."""

    def __init__(self, layer: StaticLayer, target: _Target, seen: _Seen, told: Callable[[float], None]) -> None:
        assert target.columns is not None, "chosen for it"
        self._layer, self._target, self._seen, self._told = layer, target, seen, told
        self._columns = target.columns
        self._gram, self._cross = (Moments(centred=False, dtype=torch.float64) for _ in range(2))
        self._due = Moments(centred=False, diagonal=True, dtype=torch.float64)

    def take(self, given: Tensor) -> bool:
        layer, columns, masked = self._layer, self._columns, self._seen.masked
        inputs = operators.fake_quantize(masked.read(given), layer.input_scale, layer.input_zero_point)
        due = masked.read(self._target.outputs(self._seen.inputs))
        if layer.applied.kind != "linear":
            due = due.movedim(1, -1)
        bias = bias_of(self._target.joined)
        due = due.reshape(-1, due.shape[-1]) - (0 if bias is None else bias)  # (rows, outputs)
        self._due.add(due[None])
        first = 0
        for rows in columns.of(inputs):  # (groups, rows, columns)
            own = due[first : first + rows.shape[1]]
            first += rows.shape[1]
            self._gram.add(rows)
            self._cross.add(own.reshape(len(own), columns.groups, -1).transpose(0, 1), rows)
        return True

    @torch.no_grad()
    def finish(self) -> None:
        layer, columns = self._layer, self._columns
        gram, cross = self._gram.mean().float(), self._cross.mean().float()
        weight = columns.weight().float()
        scale = layer.scale.reshape(columns.groups, -1, 1) if layer.scale.ndim else layer.scale
        steps = round(_PRODUCTS / (2 * weight.numel() * columns.width))
        high = 2 ** (int(layer.settings["weight_bits"]) - 1) - 1
        codes = adaptive_codes(weight, scale, high, gram, cross, steps=max(_LEAST_STEPS, min(steps, _MOST_STEPS)))
        before, after = (
            float((output_error(one.reshape(weight.shape) * scale, gram, cross).sum() + self._due.mean().sum()).clamp(min=0))
            for one in (layer.codes, codes)
        )
        layer.codes.copy_(codes.reshape(layer.codes.shape))
        self._told(after / before if before else 1.0)

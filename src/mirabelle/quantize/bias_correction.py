"""Bias correction: the mean error that the quantization of a layer causes is subtracted from its bias.

Source: Nagel, van Baalen, Blankevoort, Welling 2019, arXiv:1906.04721, section 4.2 (the empirical form).
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from mirabelle.calibration.layer_moments import Masked, runs_of
from mirabelle.calibration.passes import layer_by_layer
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.model.watch import LayerRun, watch
from mirabelle.quantize.batch_norm_folding import FoldedNorm
from mirabelle.quantize.layers import BIAS_LIMIT, StaticLayer


def with_corrected_biases(dense: nn.Module, quantized: nn.Module, samples: CalibrationSamples) -> nn.Module:
    """Correct the biases of static layers, in place, in the order in which they run; the quantized model.

    Let e be the mean, over samples and positions, of a layer's output ŷ in the quantized model, before its activation, minus
    that of y in the dense one, (out,). The codes of the bias are lowered by round(e / s), with s their scale, so that at most
    half a step of the mean error remains, and no mean error grows.

    Args:
        dense: the model before quantization, with the same names.
        quantized: is changed.
        samples: calibration data.
    """
    layers = corrected_layers(quantized, samples)
    norms = {str(one.settings["of"]): name for name, one in quantized.named_modules() if isinstance(one, FoldedNorm)}
    masked = Masked(samples.for_model(quantized, pass_for_each_layer=True))
    due = _means_of_outputs(dense, layers, norms, masked)
    layer_by_layer(quantized, masked, layers, lambda name, _: _Correction(layers[name], due[name], masked))
    return quantized


def corrected_layers(quantized: nn.Module, samples: CalibrationSamples) -> dict[str, StaticLayer]:
    """The static layers whose bias can be corrected: those that have one and run once."""
    layers = {
        name: one for name, one in quantized.named_modules() if isinstance(one, StaticLayer) and one.bias_codes is not None
    }
    runs = runs_of(quantized, layers, samples.inputs(0, min(2, len(samples))))
    return {name: one for name, one in layers.items() if runs[name] == 1}


class _Mean:
    """The mean of each channel of a layer's outputs over batches, in float64; of tokens those that count.

    Args:
        layer: gives the axis of the channels: the last one of a linear layer, the second one of a convolution.
        masked: the batches.
    """

    def __init__(self, layer: StaticLayer, masked: Masked) -> None:
        self._axis = -1 if layer.applied.kind == "linear" else 1
        self._masked = masked
        self._sum: Tensor | float = 0.0
        self._rows = 0

    def add(self, outputs: Tensor) -> None:
        rows = self._masked.read(outputs).movedim(self._axis, -1)
        rows = rows.reshape(-1, rows.shape[-1])
        self._sum, self._rows = self._sum + rows.double().sum(0), self._rows + len(rows)

    def value(self) -> Tensor:
        assert isinstance(self._sum, Tensor), "the layer has run"
        return self._sum / self._rows


class _Correction:
    """Finds the mean output of a layer over all batches, and then corrects its bias."""

    def __init__(self, layer: StaticLayer, due: Tensor, masked: Masked) -> None:
        self._layer, self._due, self._mean = layer, due, _Mean(layer, masked)

    def take(self, given: Tensor) -> bool:
        self._mean.add(self._layer.before_rounding(given))
        return True

    def finish(self) -> None:
        layer = self._layer
        assert layer.bias_codes is not None, "chosen for it"
        assert layer.bias_scale is not None, "chosen for it"
        change = torch.round((self._mean.value() - self._due) / layer.bias_scale.double())
        layer.bias_codes.copy_((layer.bias_codes.double() - change).clamp(-BIAS_LIMIT, BIAS_LIMIT))


def _means_of_outputs(
    model: nn.Module, layers: Mapping[str, StaticLayer], norms: Mapping[str, str], masked: Masked
) -> dict[str, Tensor]:
    """Name of a layer -> the mean of each channel of its output, or of that of the norm that was folded into it, (out,)."""
    means = {name: _Mean(layer, masked) for name, layer in layers.items()}

    def add(run: LayerRun) -> None:
        assert run.output is not None, "layers return a tensor"
        means[run.name].add(run.output)

    watch(model, masked, {name: model.get_submodule(norms.get(name, name)) for name in layers}, after=add)
    return {name: mean.value() for name, mean in means.items()}

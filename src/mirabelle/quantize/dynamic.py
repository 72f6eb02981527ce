"""Dynamic quantization: int8 weights, and inputs quantized over their range at inference; well suited to transformers."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.quantize.bits import Bits
from mirabelle.quantize.layer_selection import coded, layers_for, opened, told
from mirabelle.records.record import Count, Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from collections.abc import Collection, Mapping

    from torch import nn

    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

_BATCH = 32


@record
class Dynamic:
    """Dynamic quantization of Linear layers: int8 weights (per output), inputs quantized over their range at inference.

    `Conv1D` of transformers, the linear layer of GPT-2, is quantized, too. With granularity "token", each input vector has 255
    levels between ± its own largest absolute value. With "tensor", the whole batch has 256 levels between its smallest and
    largest value: a single outlier then makes the steps of all values larger, which multiplies the rounding errors in
    transformers, and the result of a sample depends a little on its batch. "auto" takes "tensor" for the layers whose outputs
    have at most 1.25 times the error of "token" on training samples, in batches of 32, if ONNX Runtime computes them faster
    here; layers without an axis of tokens stay with "token". What was found is a decision of the run, which a resumed run
    repeats.

    MiniLM takes 0.41 of the time in floating point with "token" and 0.33 with "tensor", and with "auto" a time in between (ONNX
    Runtime, batch 32 of 32 tokens, CPU time of one thread, a processor with VNNI). In OpenVINO "token" takes 0.38 and "tensor"
    1.3, since it has no fast form of it.

    Layers that share a weight share its codes. An embedding that shares the weight of a layer becomes a table of these codes,
    which adds the rounding of its weights. A weight that is shared with anything else stays in floating point.

    Args:
        weight_bits: bits per weight, 2 to 8; codes are stored as int8.
        granularity: which inputs share a range: those of a "token" or of the whole "tensor"; "auto" decides by measuring.
        samples: number of training samples for "auto".
        include: patterns of module names; by default all Linear layers.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E112 if a pattern matches nothing, or no layer is selected; E121 for a
            rewritten program, which has no layers.

    Example:
        >>> Dynamic(exclude=("classifier",)).stage
        'quantize'

    Source: ONNX operators DynamicQuantizeLinear and MatMulInteger; per token: Yao et al. 2022, arXiv:2206.01861.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits = 8
    granularity: Literal["auto", "token", "tensor"] = "auto"
    samples: Count = 64
    include: Patterns = ()
    exclude: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        model = opened(model, self, run)
        selection = self._selection(model)
        whole = selection.layers if self.granularity == "tensor" else ()
        if self.granularity == "auto":
            whole = json.loads(run.decide("per_tensor", lambda: json.dumps(self._measured(model, selection.layers, task, run))))
        quantized = self._quantized(model, whole)
        told(model, quantized, self, task, run)
        return quantized

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        model = opened(model, self)
        quantized = self._quantized(model, self._selection(model).layers if self.granularity == "tensor" else ())
        notes = told(model, quantized, self, task, run)
        if self.granularity == "auto":
            notes += (f"a range per token or per tensor is chosen for each layer by measuring on {self.samples} samples",)
        return Preview(quantized, notes)

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR

        return (*LINEAR, *turned_linear())

    def _selection(self, model: nn.Module) -> Selection:
        from mirabelle.quantize.tied_weights import with_ties

        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        return with_ties(model, chosen, self.layers(), self.exclude)

    def _measured(self, model: nn.Module, layers: Mapping[str, nn.Module], task: Task, run: Run) -> list[str]:
        """The names of the layers that get one range for the whole input."""
        from mirabelle.quantize.granularity import layers_per_tensor

        batches = list(task.train.drawn(self.samples, run.seed_for("calibration")).batches(_BATCH))
        return layers_per_tensor(model, layers, self.weight_bits, batches)

    def _quantized(self, model: nn.Module, whole: Collection[str]) -> nn.Module:
        """A quantized copy of a model with plain weights; the layers in `whole` have one range for their whole input."""
        from mirabelle.model.state import copied
        from mirabelle.quantize.layers import DynamicLayer, TokenLayer

        model = copied(model).eval()
        return coded(
            model, self._selection(model), lambda name: DynamicLayer if name in whole else TokenLayer, self.weight_bits
        )

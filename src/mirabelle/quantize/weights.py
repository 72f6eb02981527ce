"""Weight-only quantization: int8 weights and floating-point activations; for embeddings, and to make files smaller."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from mirabelle.quantize.layer_selection import Bits, WithoutData, coded, layers_for
from mirabelle.records.record import Patterns, record
from mirabelle.step import Stage

if TYPE_CHECKING:
    from torch import nn


@record
class Weights(WithoutData):
    """Weight-only quantization of Embedding, Linear, Conv1d, Conv2d and Conv3d: int8 weights, computation in floating point.

    `Conv1D` of transformers, the linear layer of GPT-2, is quantized, too.

    w ≈ s_o · code, code in ±(2^(weight_bits − 1) − 1), with one scale per output, for an embedding one per row. Files become
    smaller, but inference does not become faster. Layers that `Static` or `Dynamic` quantized before are not changed, so this
    step can follow them to quantize the embeddings. Layers that share a weight share its codes; a weight that is shared with
    anything but such layers stays in floating point.

    Args:
        weight_bits: bits per weight, 2 to 8; codes are stored as int8 in ONNX, and fewer bits make the packed file smaller.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E112 if a pattern matches nothing, or no layer is selected; E121 for a
            rewritten program, which has no layers.

    Example:
        >>> import mirabelle, torch
        >>> table, ids = torch.nn.Embedding(100, 8), torch.randint(0, 100, (40,))
        >>> task = mirabelle.Task(train=(ids, torch.zeros(40, 8)), test=(ids, torch.zeros(40, 8)), loss="mse")
        >>> quantized = Weights()(table, task, mirabelle.Run("runs/example"))
        >>> quantized.codes.dtype, bool(torch.allclose(quantized(ids), table(ids), atol=0.02))
        (torch.int8, True)

    Source: symmetric quantization of weights, Jacob et al. 2018, arXiv:1712.05877; by row: Guan et al. 2019, arXiv:1911.02079.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits = 8
    include: Patterns = ()
    exclude: Patterns = ()

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.quantize.dense_layers import WEIGHTED, turned_linear

        return (*WEIGHTED, *turned_linear())

    def _quantized(self, model: nn.Module) -> nn.Module:
        from mirabelle.model.state import copied
        from mirabelle.quantize.layers import WeightLayer
        from mirabelle.quantize.tied_weights import is_plain, with_ties

        model = copied(model).eval()
        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        chosen = {name: dense for name, dense in chosen.items() if is_plain(dense)}
        return coded(model, with_ties(model, chosen, self.layers(), self.exclude), WeightLayer, self.weight_bits)

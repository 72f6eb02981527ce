"""Weight-only quantization: weights of 2 to 8 bits, alone or in groups, and floating-point activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.quantize.bits import Bits
from mirabelle.quantize.layer_selection import WithoutData, layers_for
from mirabelle.records.record import Patterns, record
from mirabelle.step import Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.model.replacement import Replacement

_PLAIN_BITS = 8  # with which each output has one scale by default
_GROUP = 128
_KERNEL_BITS, _KERNEL_GROUPS = (3, 4), (16, 32, 64, 128, 256)


@record
class Weights(WithoutData):
    """Weight-only quantization of Embedding, Linear, Conv1d, Conv2d and Conv3d: few bits per weight, computed in floats.

    `Conv1D` of transformers, the linear layer of GPT-2, is quantized, too.

    w ≈ s · code, with one scale s for each group of `group_size` neighbouring weights of an output (for an embedding, of a
    row). The codes of b bits are −2^(b−1) to 2^(b−1) − 1; with `zero_points`, each group has the range of 2^b codes around 0
    that fits it best. Scales are those with the smallest squared error. Zeros stay zeros.

    The file becomes smaller: `model.onnx` holds 2, 4, 4 and 8 bits per weight for 2, 3, 4 and 8 bits, and `model.mira` what
    the codes need. By default, runtimes decode the weights when they load the file, so inference is as fast as in floating
    point, and takes as much memory. With `kernel = "MatMulNBits"`, ONNX Runtime keeps the codes of linear layers in memory
    and multiplies by them, with activations in float32 (its accuracy level 1); that is faster for single tokens in large
    layers and slower otherwise.

    Layers that `Static` or `Dynamic` quantized before are not changed, so this step can follow them to quantize the
    embeddings. Layers that share a weight share its codes; a weight that is shared with anything but such layers stays in
    floating point.

    Args:
        weight_bits: bits per weight: 8, 4, 3 or 2, or between; codes of 5 to 7 bits are stored as int8 in ONNX.
        group_size: weights of a group; 0 for whole rows. By default 128, for 8 bits whole rows. The last group of a row may
            have fewer weights.
        zero_points: a zero point for each group, for up to 7 bits; helps where weights of a group are all of one sign.
        kernel: how linear layers are computed in ONNX Runtime: "float", or "MatMulNBits", for 3 and 4 bits in groups of 16,
            32, 64, 128 or 256.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E111 for zero points of 8 bits, or a kernel that does not exist or would be
            slower in every case; E112 if a pattern matches nothing, or no layer is selected; E121 for a rewritten program,
            which has no layers.

    Example:
        >>> import mirabelle, torch
        >>> table, ids = torch.nn.Embedding(100, 8), torch.randint(0, 100, (40,))
        >>> task = mirabelle.Task(train=(ids, torch.zeros(40, 8)), test=(ids, torch.zeros(40, 8)), loss="mse")
        >>> quantized = Weights()(table, task, mirabelle.Run("runs/example"))
        >>> quantized.codes.dtype, bool(torch.allclose(quantized(ids), table(ids), atol=0.02))
        (torch.int8, True)

    Source: symmetric quantization of weights, Jacob et al. 2018, arXiv:1712.05877; by row: Guan et al. 2019,
    arXiv:1911.02079; by group: Shen et al. 2019, arXiv:1909.05840.
    """

    stage: ClassVar[Stage] = "quantize"

    weight_bits: Bits = 8
    group_size: Annotated[int, Field(ge=0)] | None = None
    zero_points: bool = False
    kernel: Literal["float", "MatMulNBits"] = "float"
    include: Patterns = ()
    exclude: Patterns = ()

    def __post_init__(self) -> None:
        if self.zero_points and self.weight_bits == _PLAIN_BITS:
            message = "zero points are for up to 7 bits; codes of 8 bits have no use for them"
            raise UserError("E111", message, "leave zero_points out", path=("zero_points",))
        if self.kernel == "MatMulNBits" and (self.weight_bits not in _KERNEL_BITS or self._group not in _KERNEL_GROUPS):
            raise UserError(
                "E111",
                "MatMulNBits with activations in float32 is for 3 or 4 bits in groups of 16, 32, 64, 128 or 256; got "
                f"weight_bits = {self.weight_bits}, group_size = {self._group}",
                "leave kernel out (with 2 and 8 bits, it is 10 to 30 times slower than floats), or set 4 bits in groups of 128",
                path=("kernel",),
            )

    @property
    def _group(self) -> int:
        """The weights of a group; 0 for whole rows."""
        return (0 if self.weight_bits == _PLAIN_BITS else _GROUP) if self.group_size is None else self.group_size

    def layers(self) -> tuple[type[nn.Module], ...]:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import WEIGHTED

        return (*WEIGHTED, *turned_linear())

    def _quantized(self, model: nn.Module) -> nn.Module:
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.state import copied
        from mirabelle.model.ties import all_names
        from mirabelle.quantize.tied_weights import is_plain, tie_codes, with_ties

        model = copied(model).eval()
        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        chosen = {name: dense for name, dense in chosen.items() if is_plain(dense)}
        selection = with_ties(model, chosen, self.layers(), self.exclude)
        names = all_names(model)
        for name, dense in {**selection.layers, **selection.readers}.items():
            model = replace_module(model, name, self._layer(dense, tied=len(selection.group_of(name)) > 1))
        return tie_codes(model, names, selection)

    def _layer(self, dense: nn.Module, *, tied: bool) -> Replacement:
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR
        from mirabelle.quantize.group_layer import GroupLayer
        from mirabelle.quantize.layers import WeightLayer

        if self.weight_bits == _PLAIN_BITS and not self._group:
            return WeightLayer.quantized(dense, self.weight_bits)
        # A kernel has codes in an order of its own, so that layers that share codes would store them twice.
        multiplies = isinstance(dense, (*LINEAR, *turned_linear())) and not tied
        return GroupLayer.quantized(
            dense,
            self.weight_bits,
            self._group,
            zero_points=self.zero_points,
            kernel=self.kernel if multiplies else "float",
        )

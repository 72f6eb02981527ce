"""Weight-only quantization: weights of 2 to 8 bits, alone or in groups, and floating-point activations."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.quantize.bits import Bits
from mirabelle.quantize.layer_selection import opened, selected, told, weighted_kinds
from mirabelle.records.record import Count, Patterns, Positive, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from mirabelle.model.replacement import Replacement
    from mirabelle.quantize.calibrated_codes import Fitted
    from mirabelle.quantize.group_layer import Kernel
    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

_PLAIN_BITS = 8  # with which each output has one scale by default
_GROUP = 128
_COUNTED = 32  # samples by which the tokens of a sample are counted
_KERNEL_BITS, _KERNEL_GROUPS = (3, 4), (16, 32, 64, 128, 256)


@record
class Weights:
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

    `method` chooses the codes. "nearest" rounds each weight alone. "gptq" looks at the inputs of layers on calibration
    samples and lets the columns that follow make up for the rounding of each column, which keeps the outputs closer; it costs
    no time at inference. "awq" divides the columns of a linear layer by factors that make those of large inputs finer, and
    multiplies the inputs by them at inference, where that lowers the output error by 2 % or more. Both take layers in the
    order in which they run, each with the inputs that the quantized layers before it give, and need the memory of one layer's
    moments, columns² numbers. Embeddings, layers that share weights, and layers that run more than once are rounded to the
    nearest.

    Layers that `Static` or `Dynamic` quantized before are not changed, so this step can follow them to quantize the
    embeddings. Layers that share a weight share its codes; a weight that is shared with anything but such layers stays in
    floating point.

    Args:
        weight_bits: bits per weight: 8, 4, 3 or 2, or between; codes of 5 to 7 bits are stored as int8 in ONNX.
        group_size: weights of a group; 0 for whole rows. By default 128, for 8 bits whole rows. The last group of a row may
            have fewer weights.
        zero_points: a zero point for each group, for up to 7 bits; helps where weights of a group are all of one sign.
        method: "nearest", "gptq" or "awq".
        clipping: narrow the range of a group to the one with the smallest squared error.
        samples: number of training samples for "gptq" and "awq"; their labels are not used. By default as many as give the
            layers with 90 % of the weights 8 tokens, positions or samples for each of their columns, from 128 to 4,096;
            fewer, down to 32, of samples so large that 128 do not pass the model at once.
        damping: for "gptq", share of the mean of the moments' diagonal that is added to it, > 0.
        activation_order: for "gptq", round the columns of the largest inputs first, with the scales of the weights before.
        kernel: how linear layers are computed in ONNX Runtime: "float", "MatMulNBits", or the faster of both as "measured"
            for each size of a layer with the threads of the run; other than "float" for 3 and 4 bits in groups of 16, 32, 64,
            128 or 256.
        batch: number of samples of a call, if kernels are measured.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.

    Raises:
        UserError: E110 for a value out of range; E131 if inputs of a layer are NaN or infinite; E111 for zero points of 8
            bits, or a kernel that does not exist or would be slower in every case; E112 if a pattern matches nothing, or no
            layer is selected; E121 for a rewritten program, which has no layers.

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
    method: Literal["nearest", "gptq", "awq"] = "nearest"
    clipping: bool = True
    samples: Count | None = None
    damping: Positive = 0.01
    activation_order: bool = False
    kernel: Literal["float", "MatMulNBits", "measured"] = "float"
    batch: Count = 1
    include: Patterns = ()
    exclude: Patterns = ()

    def __post_init__(self) -> None:
        if self.zero_points and self.weight_bits == _PLAIN_BITS:
            message = "zero points are for up to 7 bits; codes of 8 bits have no use for them"
            raise UserError("E111", message, "leave zero_points out", path=("zero_points",))
        if self.kernel != "float" and not self.has_kernel:
            raise UserError(
                "E111",
                "MatMulNBits with activations in float32 is for 3 or 4 bits in groups of 16, 32, 64, 128 or 256; got "
                f"weight_bits = {self.weight_bits}, group_size = {self.size_of_groups}",
                "leave kernel out (with 2 and 8 bits, it is 10 to 30 times slower than floats), or set 4 bits in groups of 128",
                path=("kernel",),
            )

    @property
    def has_kernel(self) -> bool:
        """Whether MatMulNBits gains by such codes: 3 or 4 bits in groups that it takes."""
        return self.weight_bits in _KERNEL_BITS and self.size_of_groups in _KERNEL_GROUPS

    @property
    def size_of_groups(self) -> int:
        """The weights of a group; 0 for whole rows."""
        return (0 if self.weight_bits == _PLAIN_BITS else _GROUP) if self.group_size is None else self.group_size

    def layers(self) -> tuple[type[nn.Module], ...]:
        return weighted_kinds()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        model = opened(model, self, run)
        quantized = self._quantized(model, task, run)
        told(model, quantized, self, task, run)
        return quantized

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        model = opened(model, self)
        quantized = self._quantized(model)
        return Preview(quantized, told(model, quantized, self, task, run))

    def _quantized(self, model: nn.Module, task: Task | None = None, run: Run | None = None) -> nn.Module:
        """A quantized copy of a model with plain weights; without a task all codes are the nearest."""
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.state import copied
        from mirabelle.model.ties import all_names
        from mirabelle.quantize.tied_weights import tie_codes

        model = copied(model).eval()
        selection = selected(model, self)
        fitted: Mapping[str, Fitted] = {}
        if self.method != "nearest" and task is not None and run is not None:
            fitted = self._fitted(model, selection, task, run)
        kernels = self._kernels(model, selection, task, run)
        names = all_names(model)
        for name, dense in {**selection.layers, **selection.readers}.items():
            layer = self._layer(dense, fitted.get(name), kernels.get(name, "float"))
            model = replace_module(model, name, layer)
        return tie_codes(model, names, selection)

    def _fitted(self, model: nn.Module, selection: Selection, task: Task, run: Run) -> Mapping[str, Fitted]:
        """Calibrated codes of the layers that have weights of their own; the weights in `model` become their values."""
        from mirabelle.calibration.samples import CalibrationSamples
        from mirabelle.model.architecture import architecture_of
        from mirabelle.model.device import at_work
        from mirabelle.numerics.group_codes import Grid
        from mirabelle.quantize.calibrated_codes import Method, calibrated_codes, enough_samples

        assert self.method != "nearest", "which needs no samples"
        own = {name: layer for name, layer in selection.layers.items() if len(selection.group_of(name)) == 1}
        method = Method(
            self.method,
            Grid(self.weight_bits, zero_points=self.zero_points, clipping=self.clipping),
            self.size_of_groups,
            self.damping,
            by_activation=self.activation_order,
        )
        seed = run.seed_for("calibration")
        with at_work(model):
            few = CalibrationSamples.drawn(task.train, _COUNTED, seed).for_model(model)
            drawn = CalibrationSamples.drawn(task.train, self.samples or enough_samples(model, own, few, method), seed)
            batches = drawn.for_model(model, pass_for_each_layer=True)
            found = calibrated_codes(model, own, batches, method, pruned=architecture_of(model).pruned)
        left = found.left | {name: "it shares its weight" for name in selection.layers if name not in own}
        errors = {name: [round(error, 8) for error in one.errors] for name, one in found.layers.items()}
        run.event("calibrated", method=self.method, samples=len(drawn), errors=errors, nearest=left)
        return found.layers

    def _kernels(self, model: nn.Module, selection: Selection, task: Task | None, run: Run | None) -> Mapping[str, Kernel]:
        """The kernel of each linear layer that has codes of its own; a kernel would store shared codes twice."""
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import LINEAR
        from mirabelle.quantize.kernels import faster_kernels

        linear = {
            name: layer
            for name, layer in selection.layers.items()
            if isinstance(layer, (*LINEAR, *turned_linear())) and len(selection.group_of(name)) == 1
        }
        if self.kernel != "measured":
            return dict.fromkeys(linear, self.kernel)
        if task is None or run is None:
            return {}
        group = self.size_of_groups
        return faster_kernels(linear, model, task, run, bits=self.weight_bits, group_size=group, batch=self.batch)

    def _layer(self, dense: nn.Module, fitted: Fitted | None, kernel: Kernel) -> Replacement:
        from mirabelle.quantize.group_layer import GroupLayer
        from mirabelle.quantize.layers import WeightLayer

        if self.weight_bits == _PLAIN_BITS and not self.size_of_groups and self.method == "nearest":
            return WeightLayer.quantized(dense, self.weight_bits)
        return GroupLayer.quantized(
            dense,
            self.weight_bits,
            self.size_of_groups,
            zero_points=self.zero_points,
            clipping=self.clipping,
            kernel=kernel,
            codes=None if fitted is None else fitted.codes,
            factor=None if fitted is None else fitted.factor,
        )

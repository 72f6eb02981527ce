"""Weight sharing: the weights of a layer share the values of a small codebook, which are then trained."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field

from mirabelle.quantize.bits import Bits, MixedBits
from mirabelle.quantize.layer_selection import opened, selected, told, weighted_kinds
from mirabelle.records.record import Patterns, record
from mirabelle.step import Preview, Stage
from mirabelle.training import Training

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import Tensor, nn

    from mirabelle.quantize.mixed_bits import Rounded
    from mirabelle.quantize.tied_weights import Selection
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task

_PREVIEWED = 8  # samples with which a preview chooses bits


@record
class Codebook:
    """Weight sharing of Embedding, Linear, Conv1d, Conv2d and Conv3d: each weight is one of up to 2^bits values of its layer.

    w ≈ v[code], where the values v are those of k-means on the weights of the layer, or of each group of its outputs, and each
    weight gets the nearest one. If a weight is 0, one of the values is 0 and stays so: pruned weights stay pruned. Values and
    biases are stored as bfloat16.

    With `train`, the values are trained, and so are biases and all other parameters, while each weight keeps its code: the
    gradient of a value is the sum of the gradients of its weights. As in every training, the model before compression teaches
    by default. If the model is worse on the validation data after the training than before it, it is kept as it was before,
    and this is told.

    The file becomes smaller: `model.onnx` holds 2, 4 or 8 bits per weight, and `model.mira` what the codes need. Runtimes look
    up the values when they load the file, so inference is as fast as in floating point. Layers that share a weight share its
    codes and values.

    Args:
        bits: a codebook has up to 2^bits values, with the 0 of pruned weights, for 2 to 7 bits, and 255 besides it for 8; a
            table `{size, choices, samples}` chooses the bits of each layer within a size (see `MixedBits`; a value counts two
            bytes).
        group_size: outputs (for an embedding, rows) that share a codebook; 0 for all outputs of a layer.
        start: "exact" finds the values with the least squared error; otherwise k-means begins with values equally spaced
            between the smallest and the largest weight ("linear"), with quantiles of the weights ("density"), or with weights
            drawn at random ("random").
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in floating point.
        train: training of the values (fine-tuning); None for no training.

    Raises:
        UserError: E110 for a value out of range; E112 if a pattern matches nothing, or no layer is selected; E114 if the size
            cannot be reached; E121 if a weight is not finite, or for a rewritten program, which has no layers.

    Example:
        >>> import mirabelle, torch
        >>> x, y = torch.randn(40, 16), torch.arange(40) % 2
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> small = Codebook(bits=2)(torch.nn.Linear(16, 12), task, mirabelle.Run("runs/example"))
        >>> small.codes.shape, small.weight.unique().numel()
        (torch.Size([12, 16]), 4)

    Source: Han, Mao, Dally 2016, "Deep Compression", arXiv:1510.00149, section 3; Chen et al. 2015, arXiv:1504.04788.
    """

    stage: ClassVar[Stage] = "quantize"

    bits: Bits | MixedBits = 5
    group_size: Annotated[int, Field(ge=0)] = 0
    start: Literal["exact", "linear", "density", "random"] = "exact"
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def layers(self) -> tuple[type[nn.Module], ...]:
        return weighted_kinds()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        given = opened(model, self, run)
        shared = self._shared(given, task, run)
        told(given, shared, self, task, run)
        return shared if self.train is None else self._trained(shared, self.train, task, run)

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        given = opened(model, self)
        shared = self._shared(given, task, run, most_samples=_PREVIEWED)
        told_of = told(given, shared, self, task, run)
        if self.train is None:
            return Preview(shared, told_of)
        from mirabelle.model.state import copied
        from mirabelle.quantize.codebook_layer import with_parameters

        return Preview(shared, told_of, self.train, in_training=with_parameters(copied(shared)))

    def _shared(self, model: nn.Module, task: Task, run: Run, most_samples: int | None = None) -> nn.Module:
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.state import copied
        from mirabelle.model.ties import all_names
        from mirabelle.quantize.codebook_layer import CodebookLayer
        from mirabelle.quantize.tied_weights import check_finite, tie_codes

        model = copied(model).eval()
        selection = selected(model, self)
        check_finite(selection)
        bits = self._bits(model, selection, task, run, most_samples)
        seed, names = run.seed_for("codebook"), all_names(model)
        for name, dense in {**selection.layers, **selection.readers}.items():
            layer = CodebookLayer.shared(dense, bits[name], self.group_size, start=self.start, seed=seed)
            model = replace_module(model, name, layer)
        return tie_codes(model, names, selection)

    def _bits(
        self, model: nn.Module, selection: Selection, task: Task, run: Run, most_samples: int | None
    ) -> Mapping[str, int]:
        from mirabelle.quantize.mixed_bits import bits_within

        names = [*selection.layers, *selection.readers]
        if isinstance(self.bits, int):
            return dict.fromkeys(names, self.bits)
        return bits_within(self.bits, model, names, task, run, rounding=self._rounded, most_samples=most_samples)

    def _rounded(self, weight: Tensor, bits: int) -> Rounded:
        from mirabelle.quantize.codebook_layer import shared_values
        from mirabelle.quantize.mixed_bits import Rounded
        from mirabelle.runtime.codebook_operators import looked_up

        codes, values = shared_values(weight, bits, self.group_size, start=self.start)
        return Rounded(codes, looked_up(codes, values, self.group_size or len(weight)), values[:, 1:].numel())

    def _trained(self, shared: nn.Module, training: Training, task: Task, run: Run) -> nn.Module:
        from mirabelle.model.state import copied
        from mirabelle.quantize.after_training import better_one
        from mirabelle.quantize.codebook_layer import with_buffers, with_parameters
        from mirabelle.training import fit

        trained = with_buffers(fit(with_parameters(copied(shared)), task, training, run))
        return better_one(shared, trained, task, run, before_is="with the values of k-means")

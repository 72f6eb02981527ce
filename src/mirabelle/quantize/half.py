"""Weights in half precision, float16 or bfloat16."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar, Literal

from mirabelle.records.record import Patterns, record
from mirabelle.step import Preview, Stage

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Half:
    """Weights of Linear, Conv1d to Conv3d and Embedding in half precision: half the bytes, computed in float32.

    `Conv1D` of transformers, the linear layer of GPT-2, is stored so, too. Inputs, outputs, biases and activations stay
    float32, so that nothing overflows at inference. In the file, each weight is followed by a Cast, which runtimes compute
    once, when they load it: inference is as fast as before, neither faster nor slower. ONNX Runtime has no kernels on x86
    processors that would be faster in half precision: a graph of float16 throughout is computed in float32 between casts (1.02
    to 1.05 of the time, batch 32 and 1), and it refuses to multiply matrices of bfloat16. OpenVINO computes in bfloat16 by
    itself where the processor has it, whatever the weights are.

    float16 keeps 11 significant bits up to 65,504, bfloat16 keeps 8 up to 3.4 · 10³⁸. A layer with a weight beyond that is left
    in float32, and it is told; so are weights that become 0. Layers that share a weight keep sharing it; a weight that is
    shared with anything but such layers stays float32.

    Args:
        precision: "float16" or "bfloat16".
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay in float32.

    Raises:
        UserError: E112 if a pattern matches nothing, or no layer is selected; E121 for a rewritten program, which has no
            layers, or a weight that is not finite.

    Example:
        >>> import mirabelle, torch
        >>> x = torch.randn(40, 16)
        >>> task = mirabelle.Task(train=(x, x), test=(x, x), loss="mse")
        >>> half = Half()(torch.nn.Linear(16, 16), task, mirabelle.Run("runs/example"))
        >>> half.values.dtype, half(x).dtype
        (torch.float16, torch.float32)

    Source: Micikevicius et al. 2018, arXiv:1710.03740 (float16); Kalamkar et al. 2019, arXiv:1905.12322 (bfloat16).
    """

    stage: ClassVar[Stage] = "quantize"

    precision: Literal["float16", "bfloat16"] = "float16"
    include: Patterns = ()
    exclude: Patterns = ()

    def __call__(self, model: nn.Module, task: Task, run: Run) -> nn.Module:
        from mirabelle.model.plain_weights import with_plain_weights

        return self._rounded(with_plain_weights(model, run), task, run)[0]

    def preview(self, model: nn.Module, task: Task, run: Run) -> Preview:
        from mirabelle.model.plain_weights import with_plain_weights

        return Preview(*self._rounded(with_plain_weights(model), task, run))

    def layers(self) -> tuple[type[nn.Module], ...]:
        """The classes of layers whose weights are rounded."""
        from mirabelle.model.turned_linear import turned_linear
        from mirabelle.quantize.dense_layers import WEIGHTED

        return (*WEIGHTED, *turned_linear())

    def _rounded(self, model: nn.Module, task: Task, run: Run) -> tuple[nn.Module, tuple[str, ...]]:
        from mirabelle.model.architecture import replace_module
        from mirabelle.model.left_alone import few, tell_left_alone
        from mirabelle.model.state import copied
        from mirabelle.model.ties import all_names
        from mirabelle.quantize.half_layer import HalfLayer, rounded_to_zero, why_not_half
        from mirabelle.quantize.layer_selection import layers_for, why_in_floating_point
        from mirabelle.quantize.tied_weights import is_plain, left_with_ties, tie_codes, with_ties

        model = copied(model).eval()
        chosen = layers_for(model, self.layers(), self.include, self.exclude)
        known = {name: why for name, dense in chosen.items() if (why := why_not_half(name, dense, self.precision))}
        known |= left_with_ties(model, self.layers(), self.exclude)
        chosen = {name: dense for name, dense in chosen.items() if is_plain(dense) and name not in known}
        notes: list[str] = []
        if chosen:
            selection, names = with_ties(model, chosen, self.layers(), self.exclude), all_names(model)
            chosen = {**selection.layers, **selection.readers}
            for name, dense in chosen.items():
                if count := rounded_to_zero(dense, self.precision):
                    notes.append(f"{name}: {count:,} weights that were not 0 are 0 in {self.precision}")
                model = replace_module(model, name, HalfLayer.rounded(dense, self.precision))
            model = tie_codes(model, names, selection)
        for text in notes:
            run.event("note", text=text)
        reasons = why_in_floating_point(model, self.layers(), self.include, self.exclude, known)
        left = tell_left_alone(run, model, task.example(), reasons)
        return model, (f"{len(chosen)} weights are stored as {self.precision}: {few([*chosen])}", *notes, *left)

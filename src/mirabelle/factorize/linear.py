"""Linear layers as products of two smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from mirabelle.factorize.factorizing import Factorizes
from mirabelle.factorize.rank_rule import Keep, RankRule
from mirabelle.records.record import Count, Patterns, PositiveShare, record
from mirabelle.training import Training

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.factorize.candidate import Candidate
    from mirabelle.run.run import Run
    from mirabelle.task.task import Task


@record
class Linear(Factorizes):
    """Linear layers as products of two smaller ones: W ≈ U V, of (out, rank) and (rank, in), so that y = U (V x) + b.

    `Conv1D` of transformers, the linear layer of GPT-2, and the layers inside `nn.MultiheadAttention` (q_proj, k_proj, v_proj,
    out_proj) are factorized, too. A product of rank r has r · (in + out) weights and as many multiply-accumulates for each row,
    so it is smaller only for r < in · out / (in + out). The factors are closest

        svd        to the weight: min ‖W − U V‖²;
        whitened   to the outputs on training samples: min E ‖(W − U V) x‖². If the layer has a bias, it takes the mean of what
                   is lost, and x is centred.

    The rank is given in one of five ways:
        energy   the smallest that keeps this share of the sum of squared singular values (for "whitened", those of W C^½ with
                 the second moments C of the inputs);
        rank     a number for all layers;
        ratio    a fraction of the full rank, min(in, out);
        ranks    a number for each named layer; the others are left alone;
        limits   one or several of macs, parameters, size, latency of the whole model: the layers together lose the least
                 −Σ ln(share kept), as an exact integer program (`mirabelle.allocation`).
    A layer is left alone, and it is told why, if its factors are not smaller, if its weight has other holders, if its inputs
    are the same for all samples ("whitened"), and, with `keep = "faster"`, if the two products together are not measured to be
    faster in ONNX Runtime than the one. What was measured is recorded in the run. Both factors are ordinary linear layers:
    later steps cut, prune and quantize them.

    Args:
        energy: share of the sum of squared singular values to keep, in (0, 1].
        rank: rank of all layers; one of lower full rank is left alone.
        ratio: rank as a fraction of the full rank, in (0, 1].
        ranks: patterns of module names -> rank.
        macs: limit on multiply-accumulates per sample of the model, such as "2.3M", or "50%" of the model's.
        parameters: limit on parameters, such as "20k" or "60%".
        size: limit on the size of the parameters in float32, such as "80 kB" or "60%".
        latency: limit on the median latency of a call in ONNX Runtime, such as "0.8 ms" or "60%".
        batch: batch size for the measurements.
        method: "svd" or "whitened".
        samples: number of training samples for "whitened".
        multiple: ranks by energy or ratio are rounded up to a multiple of this; "measured" raises each to the next multiple of
            4, 8 or 16 where that takes no longer. Limits choose among multiples.
        keep: "faster" leaves a layer alone whose factors are not faster, "smaller" one whose factors are not smaller; by
            default "smaller" for limits on macs, parameters and size, "faster" otherwise.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay as they are.
        train: training of the factors (fine-tuning); None for no training.

    Raises:
        UserError: E110 for a value out of range, or a rank above every full rank; E111 unless the rank is given in one way, or
            for a layer with two ranks; E112 if a pattern matches nothing, or no layer is selected; E113 for a limit that
            cannot be read; E114 for one that cannot be reached; E105 if the model has quantized layers; E121 for a rewritten
            program, which has no layers, or a weight that is not finite; E131 if inputs of a layer are not finite on the
            calibration data.

    Example:
        >>> import mirabelle, torch
        >>> x, y = torch.randn(40, 16), torch.arange(40) % 2
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> small = Linear(rank=3, keep="smaller")(torch.nn.Linear(16, 12), task, mirabelle.Run("runs/example"))
        >>> small.reduce.weight.shape, small.expand.weight.shape
        (torch.Size([3, 16]), torch.Size([12, 3]))

    Source: Eckart, Young 1936 (truncation); Chen, Yu, Dhillon, Hsieh 2021, "DRONE", and Wang, Zheng, Wan, Zhang 2024,
    arXiv:2403.07378, SVD-LLM (on data); Zhang, Zou, He, Sun 2015, arXiv:1505.06798 (centred, with the bias).
    """

    energy: PositiveShare | None = None
    rank: Count | None = None
    ratio: PositiveShare | None = None
    ranks: Mapping[str, Count] | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None
    batch: Count = 1
    method: Literal["svd", "whitened"] = "svd"
    samples: Count = 1024
    multiple: Count | Literal["measured"] = 8
    keep: Keep | None = None
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def __post_init__(self) -> None:
        RankRule.of(self)

    def kinds(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        from mirabelle.model.turned_linear import turned_linear

        return (nn.Linear, *turned_linear())

    def opened(self, model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...]) -> nn.Module:
        from mirabelle.model.plain_attention import with_plain_attention

        return with_plain_attention(model, include, exclude)

    def _candidates(
        self, model: nn.Module, layers: Mapping[str, nn.Module], task: Task, run: Run
    ) -> tuple[list[Candidate], dict[str, str]]:
        from mirabelle.factorize.linear_candidate import linear_candidate
        from mirabelle.factorize.seen_inputs import seen_inputs

        samples = self.samples if self.method == "whitened" else 0
        seen = seen_inputs(model, task, layers, samples=samples, seed=run.seed_for("calibration"))
        refused = {name: why for name, own in seen.items() if (why := own.why_unusable())}
        usable = {name: dense for name, dense in layers.items() if name not in refused}
        return [linear_candidate(name, dense, seen[name], self.batch) for name, dense in usable.items()], refused

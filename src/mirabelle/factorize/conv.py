"""Convolutions as sequences of smaller ones."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Literal

from mirabelle.errors import UserError
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
class Conv(Factorizes):
    """Convolutions as sequences of smaller ones, in one of three forms, for a kernel W of (out, in, height, width):

        tucker     1 × 1 (in to q), height × width (q to p), 1 × 1 (p to out): W ≈ U · core · V, closest to the weight
                   (higher-order singular value decomposition, refined by alternating least squares);
        channels   height × width (in to p), 1 × 1 (p to out): the truncated singular value decomposition of W as a matrix
                   (out, in · height · width);
        separated  height × 1 (in to r), 1 × width (r to out), for Conv2d: the one of W as a matrix (out · width, in · height).

    With the method "whitened", for the form "channels", the outputs on training samples are closest instead of the weights, as
    in `factorize.Linear`; a bias takes the mean of what is lost. A kernel of one element has the two factors of "channels" in
    all forms but "separated". Where the rank of a side is full, its factor is left out.

    Conv1d, Conv2d and Conv3d are factorized, with any stride, padding and dilation. Convolutions in groups, depthwise ones
    among them, are left alone. The rank is given as in `factorize.Linear`; "tucker" has two, for which energy and limits choose
    what each side loses, and `rank` and `ratio` give both. A layer is left alone, and it is told why, if its factors are not
    smaller, or, with `keep = "faster"`, not measured to be faster in ONNX Runtime. The factors are ordinary convolutions: later
    steps cut, prune and quantize them.

    Args:
        form: "tucker", "channels" or "separated".
        energy: share of the squared norm to keep, in (0, 1]; for "tucker" at least this share.
        rank: rank of all layers, at most full.
        ratio: rank as a fraction of the full rank, in (0, 1].
        macs: limit on multiply-accumulates per sample of the model, such as "2.3M", or "50%" of the model's.
        parameters: limit on parameters, such as "20k" or "60%".
        size: limit on the size of the parameters in float32, such as "80 kB" or "60%".
        latency: limit on the median latency of a call in ONNX Runtime, such as "0.8 ms" or "60%".
        batch: batch size for the measurements.
        method: "svd" or, for the form "channels", "whitened".
        samples: number of training samples for "whitened".
        multiple: ranks by energy or ratio are rounded up to a multiple of this; "measured" raises each to the next multiple of
            4, 8 or 16 where that takes no longer. Limits choose among multiples.
        keep: "faster" leaves a layer alone whose factors are not faster, "smaller" one whose factors are not smaller; by
            default "smaller" for limits on macs, parameters and size, "faster" otherwise.
        include: patterns of module names; by default all layers of these classes.
        exclude: patterns of names of modules that stay as they are.
        train: training of the factors (fine-tuning); None for no training.

    Raises:
        UserError: as `factorize.Linear`; E111 if "whitened" is asked for with another form than "channels".

    Example:
        >>> import mirabelle, torch
        >>> x, y = torch.randn(20, 8, 6, 6), torch.arange(20) % 2
        >>> model = torch.nn.Sequential(torch.nn.Conv2d(8, 16, 3), torch.nn.Flatten(), torch.nn.Linear(256, 2))
        >>> task = mirabelle.Task(train=(x, y), test=(x, y))
        >>> small = Conv(rank=4, keep="smaller")(model, task, mirabelle.Run("runs/example"))
        >>> [tuple(part.weight.shape) for part in small[0].children()]
        [(4, 8, 1, 1), (4, 4, 3, 3), (16, 4, 1, 1)]

    Source: Kim, Park, Yoo, Choi, Yang, Shin 2016, arXiv:1511.06530 (Tucker-2); Jaderberg, Vedaldi, Zisserman 2014,
    arXiv:1405.3866 (separated); Zhang, Zou, He, Sun 2015, arXiv:1505.06798 (output channels, on data).
    """

    form: Literal["tucker", "channels", "separated"] = "tucker"
    energy: PositiveShare | None = None
    rank: Count | None = None
    ratio: PositiveShare | None = None
    macs: str | float | None = None
    parameters: str | float | None = None
    size: str | float | None = None
    latency: str | float | None = None
    batch: Count = 1
    method: Literal["svd", "whitened"] = "svd"
    samples: Count = 256
    multiple: Count | Literal["measured"] = 8
    keep: Keep | None = None
    include: Patterns = ()
    exclude: Patterns = ()
    train: Training | None = None

    def __post_init__(self) -> None:
        RankRule.of(self)
        if self.method == "whitened" and self.form != "channels":
            message = f'"whitened" has no optimum for the form "{self.form}"'
            raise UserError("E111", message, 'give form = "channels", or method = "svd"', path=("method",))

    def kinds(self) -> tuple[type[nn.Module], ...]:
        from torch import nn

        return (nn.Conv2d,) if self.form == "separated" else (nn.Conv1d, nn.Conv2d, nn.Conv3d)

    def _candidates(
        self, model: nn.Module, layers: Mapping[str, nn.Module], task: Task, run: Run
    ) -> tuple[list[Candidate], dict[str, str]]:
        from mirabelle.factorize.conv_candidate import conv_candidate, why_no_factors
        from mirabelle.factorize.seen_inputs import seen_inputs

        refused = {name: why for name, dense in layers.items() if (why := why_no_factors(dense, self.form))}
        layers = {name: dense for name, dense in layers.items() if name not in refused}
        samples = self.samples if self.method == "whitened" else 0
        seen = seen_inputs(model, task, layers, samples=samples, seed=run.seed_for("calibration"))
        refused |= {name: why for name, own in seen.items() if (why := own.why_unusable())}
        usable = {name: dense for name, dense in layers.items() if name not in refused}
        found = [conv_candidate(name, dense, seen[name], self.form, self.batch) for name, dense in usable.items()]
        return found, refused

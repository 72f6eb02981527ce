"""What layers get as inputs: shapes, numbers of calls, and second moments over calibration samples."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from mirabelle.calibration.columns import columns_of
from mirabelle.calibration.layer_moments import Masked
from mirabelle.calibration.moments import Moments
from mirabelle.calibration.samples import CalibrationSamples
from mirabelle.errors import UserError
from mirabelle.model.device import at_work
from mirabelle.model.watch import LayerRun, watch
from mirabelle.task.task import Task

_CONSTANT = 1e-12  # a variance below this share of the second moments is that of a constant


@dataclass
class Seen:
    """The inputs of a layer.

    Args:
        shapes: shape of the input of each call in one forward pass on the example, with the batch first.
        samples: number of samples of the example.
        moments: centred second moments of the rows that the layer multiplies; None if no data were asked for.
    """

    samples: int
    shapes: list[tuple[int, ...]] = field(default_factory=list)
    moments: Moments | None = None

    @property
    def constant(self) -> bool:
        """Whether all inputs are the same, as far as moments were taken."""
        if self.moments is None or not self.moments.rows:
            return False
        variance = float(self.centred().diagonal().sum())
        return variance <= _CONSTANT * float(self.mean().square().sum()) or variance == 0.0

    def why_unusable(self) -> str | None:
        """Why the layer cannot be factorized by these inputs; None if it can."""
        if not self.shapes or (self.moments is not None and not self.moments.rows):
            return "the model does not call it"
        return "its inputs are the same for all calibration samples" if self.constant else None

    def mean(self) -> Tensor:
        """The mean of the inputs, (columns,)."""
        assert self.moments is not None, "data were asked for"
        return self.moments.means[0].reshape(-1)

    def centred(self) -> Tensor:
        """The centred second moments, (columns, columns)."""
        assert self.moments is not None, "data were asked for"
        return self.moments.mean()[0]

    def plain(self) -> Tensor:
        """The second moments without a mean, (columns, columns)."""
        mean = self.mean()
        return self.centred() + torch.outer(mean, mean)


def seen_inputs(
    model: nn.Module, task: Task, layers: Mapping[str, nn.Module], *, samples: int = 0, seed: int = 0
) -> dict[str, Seen]:
    """Watch the inputs of layers.

    Args:
        model: runs in eval mode, on the example of the task and then on the calibration samples.
        task: gives them.
        layers: linear layers and convolutions, without samples also embeddings, by name.
        samples: number of training samples for the moments; 0 for none. Tokens that an "attention_mask" masks do not count.
        seed: of the draw.

    Raises:
        UserError: E131 if an input is not finite.
    """
    example = task.example()
    found = {name: Seen(len(example)) for name in layers}

    def note(run: LayerRun) -> None:
        assert run.input is not None, "these layers take a tensor"
        found[run.name].shapes.append(tuple(run.input.shape))

    watch(model, [example], layers, before=note)
    if not samples:
        return found
    drawn = CalibrationSamples.drawn(task.train, samples, seed)
    for seen in found.values():
        seen.moments = Moments(centred=True)

    def take(run: LayerRun) -> None:
        assert run.input is not None, "these layers take a tensor"
        if not bool(run.input.isfinite().all()):
            message = f'the inputs of layer "{run.name}" are not finite on the calibration data'
            raise UserError("E131", message, f'look at these data and weights, or exclude = ["{run.name}"]')
        moments, columns = found[run.name].moments, columns_of(layers[run.name])
        assert moments is not None, "made above"
        read = batches.read(run.input)
        for rows in [read.reshape(1, -1, read.shape[-1])] if columns is None else columns.of(read):
            moments.add(rows)

    with at_work(model):
        batches = Masked(drawn.for_model(model))
        watch(model, batches, layers, before=take)
    for seen in found.values():
        assert seen.moments is not None, "made above"
        seen.moments.home()
    return found

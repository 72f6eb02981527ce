"""How many bits a quantized weight has: one number for all layers, or for each layer its own within a size."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from mirabelle.errors import UserError
from mirabelle.records.record import Count, record
from mirabelle.task.goal import limit_of

Bits = Annotated[int, Field(ge=2, le=8)]


@record
class MixedBits:
    """Bits for each layer, so that the weights fit into a size and the outputs of the model change least.

    For each layer l and each number of bits b, the weights of this layer alone are rounded, and the change of the outputs
    e(l, b) = Σ (y − ŷ)² / Σ (y − ȳ)² is measured on training samples (ȳ: the mean over the samples). Then the bits with the
    least Σ e(l, b_l) are chosen among all that fit into the size, as an integer program. Labels are not needed.

    There is no limit of latency, because it would choose nothing: runtimes compute codes of 2 to 8 bits with the same kernels
    of int8. Layers that are faster in floating point stay so by the measurement that follows each step.

    Args:
        size: most bytes of all parameters: "40 kB", or "20%" of the present ones in float32. A rounded weight of n numbers
            counts n · H / 8 bytes, where H ≤ b is the entropy of its codes in bits, as it is packed, and two bytes for each
            scale; other parameters count as they are.
        choices: numbers of bits to choose from, ascending, 2 to 8.
        samples: number of training samples on which changes are measured.

    Raises:
        UserError: E110 for a value out of range; E111 for choices that are not ascending; E113 for a size that cannot be read;
            E114, when it is used, if the size cannot be reached.

    Example:
        >>> MixedBits(size="12%").choices
        (2, 3, 4, 5, 6, 8)

    Source: Dong et al. 2019, arXiv:1905.03696 (bits by sensitivity); the knapsack: `allocation`.
    """

    size: str | float
    choices: tuple[Bits, ...] = (2, 3, 4, 5, 6, 8)
    samples: Count = 128

    def __post_init__(self) -> None:
        limit_of("size", self.size, 1.0, where="weight_bits.")
        if not self.choices or list(self.choices) != sorted(set(self.choices)):
            message = f"choices must be ascending numbers of bits; got {list(self.choices)}"
            raise UserError("E111", message, "for example: choices = [2, 4, 8]", path=("choices",))

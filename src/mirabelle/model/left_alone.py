"""What a step leaves as it is, why, and how much of the model that is. Every step tells it in this way."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

from mirabelle.model.state import tensors_of_module

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.run.run import Run
    from mirabelle.task.batch import Batch

_SHOWN = 3  # names in a sentence


@dataclass(frozen=True)
class LeftAlone:
    """The tensors that a step left as they are for one reason.

    Args:
        names: of the tensors; of modules, if they compute products of activations.
        why: the reason.
        share_of_bytes: of the bytes of all tensors of the model after the step, in [0, 1].
        share_of_macs: of all multiply-accumulates of the model after the step, in [0, 1].
    """

    names: tuple[str, ...]
    why: str
    share_of_bytes: float
    share_of_macs: float

    @staticmethod
    def from_data(data: Mapping[str, Any]) -> LeftAlone:
        return LeftAlone(tuple(data["names"]), data["why"], data["share_of_bytes"], data["share_of_macs"])

    def __str__(self) -> str:
        return f"{few(self.names)} ({self.share_of_bytes:.1%} of the bytes, {self.share_of_macs:.1%} of the MACs): {self.why}"


def few(names: Sequence[str]) -> str:
    """The first names, and how many more there are.

    Example:
        >>> few(("a", "b", "c", "d"))
        'a, b, c and 1 more'
    """
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more} more" if more > 0 else "")


def reasons_of_weights(
    model: nn.Module,
    done: Collection[str],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    *,
    known: Mapping[str, str],
    otherwise: Callable[[str, nn.Module], str],
) -> dict[str, str]:
    """Name of each weight with two or more dimensions that a step left as it is -> why; a tied one has its first name.

    Args:
        model: the result of the step.
        done: names of the modules that the step has replaced, or parts of these.
        include: patterns of names of modules, as given to the step.
        exclude: as given to the step.
        known: name of a module -> why; it goes before other reasons.
        otherwise: (name, module) -> why, for modules that no pattern leaves out.
    """
    from mirabelle.model.ties import all_names
    from mirabelle.records.patterns import matches

    first = {name: names[0] for names in all_names(model).values() for name in names}
    reasons: dict[str, str] = {}
    for name, module in model.named_modules():
        if name in done:
            continue
        if name in known:
            why = known[name]
        elif matches(name, exclude):
            why = "excluded"
        elif include and not matches(name, include):
            why = "not in `include`"
        else:
            why = otherwise(name, module)
        for own, parameter in module.named_parameters(recurse=False):
            tensor = first[f"{name}.{own}".lstrip(".")]
            if parameter.dim() > 1 and (tensor not in reasons or name in known):
                reasons[tensor] = why
    return reasons


def left_alone(model: nn.Module, example: Batch, reasons: Mapping[str, str], activations: str = "") -> list[LeftAlone]:
    """What a step left alone, one entry for each reason, with the largest share first.

    Args:
        model: the result of the step.
        example: inputs, on which multiply-accumulates are counted.
        reasons: name of each tensor that the step left -> why.
        activations: why the step left products of activations, which have no weights; "" if the step does not deal with them.
    """
    from mirabelle.model.counting import macs_of
    from mirabelle.model.ties import all_names

    counted = macs_of(model, example)
    sizes = {name: tensor.numel() * tensor.element_size() for name, tensor in tensors_of_module(model).items()}
    same = {name: names for names in all_names(model).values() for name in names}
    named: dict[str, list[str]] = defaultdict(list)
    for name, why in reasons.items():
        named[why].append(name)
    total_bytes, total_macs = max(sum(sizes.values()), 1), max(counted.total, 1)
    found = [
        LeftAlone(
            tuple(names),
            why,
            _sum(sizes, {same.get(name, (name,)) for name in names}) / total_bytes,
            _sum(counted.by_tensor, {same.get(name, (name,)) for name in names}) / total_macs,
        )
        for why, names in named.items()
    ]
    if activations and counted.by_module:
        share = sum(counted.by_module.values()) / total_macs
        found.append(LeftAlone(tuple(name or "the model" for name in counted.by_module), activations, 0.0, share))
    return sorted(found, key=lambda one: -max(one.share_of_bytes, one.share_of_macs))


def _sum(values: Mapping[str, int], tensors: Collection[tuple[str, ...]]) -> int:
    """The sum over tensors, each given by all its names, of which one may have a value."""
    return sum(max(values.get(name, 0) for name in names) for names in tensors)


def tell_left_alone(
    run: Run, model: nn.Module, example: Batch, reasons: Mapping[str, str], activations: str = ""
) -> tuple[str, ...]:
    """Record what a step left alone as an event of the run, from which the report reads it; the same as sentences.

    Args:
        run: of the step; the other arguments are those of `left_alone`.
    """
    found = left_alone(model, example, reasons, activations)
    run.event("left alone", parts=[asdict(one) for one in found])
    return tuple(f"left as it is: {one}" for one in found)

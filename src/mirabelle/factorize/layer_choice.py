"""The layers that a step factorizes, and why others stay as they are."""

from __future__ import annotations

from collections.abc import Mapping

from torch import nn

from mirabelle.errors import UserError
from mirabelle.model.architecture import architecture_of, replaced_modules, rounds
from mirabelle.model.left_alone import reasons_of_weights
from mirabelle.model.replacement import Replacement
from mirabelle.model.ties import all_names
from mirabelle.records.patterns import selected_modules


def layers_for(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], include: tuple[str, ...], exclude: tuple[str, ...]
) -> tuple[dict[str, nn.Module], dict[str, str]]:
    """The layers of these classes that match `include` and not `exclude` and can be replaced; the others, with the reasons.

    Raises:
        UserError: E105 if the model has quantized layers; E112 if a pattern matches nothing, or no layer is selected; E121 for
            a rewritten program, which has no layers, or a weight that is not finite.
    """
    if rounds(model):
        raise UserError("E105", "a model with quantized layers cannot be factorized", "legal order: factorize, then quantize")
    why = architecture_of(model).rewritten
    if why and not any(type(module) in kinds for module in model.modules()):
        message = f"the model was replaced by a rewritten program without layers, so there is nothing to factorize ({why})"
        raise UserError("E121", message, "factorize before the cut")
    chosen, refused = selected_modules(model, kinds, include, exclude), {}
    within = parts_of_layers(model)
    for name, module in chosen.items():
        if module in within:
            refused[name] = "it is a factor of a layer that was replaced before"
        elif others := _sharers(model, module):
            refused[name] = f"it shares its weight with {', '.join(others)}"
        elif not bool(module.weight.isfinite().all()):  # type: ignore[operator]  # a tensor
            raise UserError("E121", f'the weight of layer "{name}" is not finite', "give weights of a trained model")
    return {name: module for name, module in chosen.items() if name not in refused}, refused


def parts_of_layers(model: nn.Module) -> set[nn.Module]:
    """The modules that replace a single layer, such as factors, and all that is in them."""
    layers = [
        one for one in replaced_modules(model).values() if isinstance(one, Replacement) and "weight" in one.plain_tensors()
    ]
    return {part for layer in layers for part in layer.modules()}


def _sharers(model: nn.Module, module: nn.Module) -> list[str]:
    """The names of other modules that hold the weight of this one, too."""
    first = next(name for name, own in model.named_modules() if own is module)
    names = next(same for same in all_names(model).values() if f"{first}.weight".lstrip(".") in same)
    owners = [name.rpartition(".")[0] for name in names]
    return [owner for owner in owners if model.get_submodule(owner) is not module]


def why_left(
    model: nn.Module,
    kinds: tuple[type[nn.Module], ...],
    include: tuple[str, ...],
    exclude: tuple[str, ...],
    known: Mapping[str, str],
) -> dict[str, str]:
    """Name of each weight with two or more dimensions that is not a factor -> why; a tied one has its first name.

    Args:
        model: the result of the step.
        kinds: the classes of layers that the step factorizes.
        include: as given to the step.
        exclude: as given to the step.
        known: name of a layer -> why; it goes before other reasons.
    """
    factors, named = parts_of_layers(model), ", ".join(kind.__name__ for kind in kinds)

    def why(_: str, module: nn.Module) -> str:
        kind = type(module).__name__
        if isinstance(module, kinds) and type(module) not in kinds:
            return f"{kind} is a class of its own, whose code may differ"
        return f"this step factorizes {named}; these are weights of {kind}"

    inside = {name for name, module in model.named_modules() if module in factors}
    return reasons_of_weights(model, inside, include, exclude, known=known, otherwise=why)

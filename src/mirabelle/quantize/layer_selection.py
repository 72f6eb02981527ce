"""Select the layers to quantize, and report which stay in floating point."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from mirabelle.errors import UserError

if TYPE_CHECKING:
    from collections.abc import Mapping

    from torch import nn

    from mirabelle.quantize.layers import WeightLayer
    from mirabelle.run.run import Run

Bits = Annotated[int, Field(ge=2, le=8)]


def layers_for(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Select the layers of these classes whose names match `include` (all, if it is empty) and not `exclude`.

    Raises:
        UserError: E112 if a pattern matches nothing, or no layer is selected; E121 if the model is a rewritten program, which
            has no layers.
    """
    from mirabelle.model.architecture import architecture_of
    from mirabelle.records.patterns import selected_modules

    why = architecture_of(model).rewritten
    if why and not any(type(module) in kinds for module in model.modules()):
        raise UserError(
            "E121",
            f"the model was replaced by a rewritten program without layers, so there is nothing to quantize ({why})",
            'restrict prune.Channels to widths that the code adapts to, for example include = ["*.conv1"] in residual blocks',
        )
    return selected_modules(model, kinds, include, exclude)


def coded(model: nn.Module, chosen: Mapping[str, nn.Module], kind: type[WeightLayer], weight_bits: int, run: Run) -> nn.Module:
    """Replace the chosen layers by layers of the class `kind` with integer weights, and record it in the run."""
    from mirabelle.model.architecture import replace_module

    for name, dense in chosen.items():
        model = replace_module(model, name, kind.quantized(dense, weight_bits))
    run.event("quantized", modules=list(chosen), left_alone=left_in_floating_point(model))
    return model


def left_in_floating_point(model: nn.Module) -> list[str]:
    """Names of the modules that have parameters with two or more dimensions and were not replaced."""
    from mirabelle.model.architecture import replaced_module_names

    replaced = replaced_module_names(model)
    return sorted(
        name
        for name, module in model.named_modules()
        if name not in replaced and any(parameter.dim() > 1 for parameter in module.parameters(recurse=False))
    )


def quantized_in_words(given: nn.Module, model: nn.Module) -> tuple[str, ...]:
    """Sentences on which layers of a model were quantized and which stay in floating point, for previews."""
    from mirabelle.model.architecture import replaced_module_names

    before, alone = replaced_module_names(given), left_in_floating_point(model)
    replaced = [name for name in replaced_module_names(model) if name not in before]
    return (f"{len(replaced)} layers are quantized: {', '.join(replaced)}",) + (
        (f"left in floating point: {', '.join(alone)}",) if alone else ()
    )

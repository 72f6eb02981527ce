"""Select parameters and modules by patterns of their names."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING

from mirabelle.errors import UserError, did_you_mean, raise_all

if TYPE_CHECKING:
    from torch import nn


def selected(
    model: nn.Module, include: tuple[str, ...], exclude: tuple[str, ...] = (), by_default: Collection[str] | None = None
) -> dict[str, nn.Parameter]:
    """Select the parameters of which a name matches a pattern of `include` and none matches one of `exclude`.

    A shared parameter is selected once, under its first name. If `include` is empty, the parameters named in `by_default` are
    used; if that is None, all with two or more dimensions.

    Raises:
        UserError: E112 if a pattern matches no parameter, or no parameter is selected.
    """
    parameters, names = dict(model.named_parameters()), names_of_parameters(model)
    every = [name for same in names.values() for name in same]
    every_pattern_matches("include", include, every)
    every_pattern_matches("exclude", exclude, every)
    if include:
        chosen = {name: parameter for name, parameter in parameters.items() if any_matches(names[name], include)}
    elif by_default is not None:
        chosen = {name: parameter for name, parameter in parameters.items() if name in by_default}
    else:
        chosen = {name: parameter for name, parameter in parameters.items() if parameter.dim() > 1}
    chosen = {name: parameter for name, parameter in chosen.items() if not any_matches(names[name], exclude)}
    if not chosen:
        raise UserError("E112", "`include` and `exclude` select no parameter", "widen `include`, or shorten `exclude`")
    return chosen


def matches(name: str, patterns: tuple[str, ...]) -> bool:
    """Whether a dotted name, or the name of a parent module, matches a shell pattern such as "layer*.weight" or "fc1".

    Example:
        >>> matches("fc1.weight", ("fc*.weight",)), matches("fc1.bias", ("fc1",)), matches("fc10.bias", ("fc1",))
        (True, True, False)
    """
    return any(fnmatchcase(name, pattern) or fnmatchcase(name, f"{pattern}.*") for pattern in patterns)


def any_matches(names: Iterable[str], patterns: tuple[str, ...]) -> bool:
    """Whether one of several names matches a pattern; see `matches`."""
    return any(matches(name, patterns) for name in names)


def names_of_parameters(model: nn.Module) -> dict[str, tuple[str, ...]]:
    """First name of each parameter -> all its names."""
    found: dict[int, list[str]] = defaultdict(list)
    for name, parameter in model.named_parameters(remove_duplicate=False):
        found[id(parameter)].append(name)
    return {names[0]: tuple(names) for names in found.values()}


def every_pattern_matches(key: str, patterns: tuple[str, ...], names: Iterable[str]) -> None:
    """Check that each pattern of the setting `key` matches at least one of the names.

    Raises:
        UserError: E112 for each pattern that matches none.
    """
    names = list(names)
    raise_all(
        [
            UserError(
                "E112",
                f'pattern "{pattern}" matches nothing in the model',
                did_you_mean(pattern, names),
                path=(key, position),
            )
            for position, pattern in enumerate(patterns)
            if not any(matches(name, (pattern,)) for name in names)
        ]
    )


def selected_modules(
    model: nn.Module, kinds: tuple[type[nn.Module], ...], include: tuple[str, ...], exclude: tuple[str, ...]
) -> dict[str, nn.Module]:
    """Select the modules of these classes whose names match `include` (all, if it is empty) and not `exclude`.

    Subclasses are not selected, since their code may differ. A module with several names is selected under its first one.

    Raises:
        UserError: E112 if a pattern matches no module, or no module is selected.
    """
    names: dict[nn.Module, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[module].append(name)
    every = [name for same in names.values() for name in same if name]
    every_pattern_matches("include", include, every)
    every_pattern_matches("exclude", exclude, every)
    chosen = {
        same[0]: module
        for module, same in names.items()
        if type(module) in kinds and (not include or any_matches(same, include)) and not any_matches(same, exclude)
    }
    if not chosen:
        wanted = ", ".join(kind.__name__ for kind in kinds)
        raise UserError("E112", f"no module of class {wanted} is selected", "widen `include`, or shorten `exclude`")
    return chosen

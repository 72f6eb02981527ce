"""The folder of a run -> its model in torch: the module that its recipe names, and what the run made of it."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mirabelle import artifact
from mirabelle.errors import UserError
from mirabelle.recipe.file import RecipeFile, read_recipe
from mirabelle.run.run import Run
from mirabelle.step import ReplacesModel, Step, folder_of


def recipe_of_run(folder: Path) -> RecipeFile:
    """The resolved recipe of a run that has ended.

    Raises:
        UserError: E130 when the folder holds no run, or one that has not ended; and what reading the recipe raises.
    """
    if not folder.is_dir() or not (folder / "recipe.toml").is_file():
        raise UserError("E130", f"{folder} holds no run: there is no recipe.toml", "name the folder of a run")
    if not (folder / "report.json").is_file():
        raise UserError("E130", f"the run in {folder} has not ended: there is no report.json", "repeat its command; it goes on")
    return read_recipe(folder / "recipe.toml", sources=False)  # a run can be read where its data no longer are


def origin_of_run(file: RecipeFile, folder: Path) -> nn.Module:
    """The dense module from which the model of the run descends: the recipe's, or that of the last step that replaced it.

    Raises:
        UserError: E120, E121 as a factory fails; E130, E140, E141 as the weights do that the recipe names.
    """
    run, dense = Run(folder, seed=file.seed), file.build_model()
    for place, step in steps_of_run(file, folder):
        if isinstance(step, ReplacesModel):
            dense = step.origin(dense, run.within(str(place.relative_to(folder))))
    return dense


def steps_of_run(file: RecipeFile, folder: Path) -> list[tuple[Path, Step]]:
    """The steps that were taken, each with the folder in which it left its model; a callback may have stopped the rest."""
    taken = []
    for position, step in enumerate(file.recipe.steps, start=1):
        place = folder_of(position, step)
        taken.append((folder / place, step))
        if f"{place}/stopped" in file.decisions:
            break
    return taken


def model_of_run(folder: Path) -> nn.Module:
    """The compressed model of a run, in eval mode.

    Raises:
        UserError: as `recipe_of_run` and `origin_of_run`; E140 when the module has changed since, E141 a damaged file.
    """
    return artifact.load(origin_of_run(recipe_of_run(folder), folder), folder)

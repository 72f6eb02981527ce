"""Load the recipe and the torch models of a finished run from its folder."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from mirabelle import artifact
from mirabelle.errors import UserError
from mirabelle.job.never_slower import origin_after
from mirabelle.recipe.file import RecipeFile, read_recipe
from mirabelle.run import files
from mirabelle.run.run import Run
from mirabelle.step import Step, folder_of


def recipe_of_run(folder: Path, *, trust: bool = False) -> RecipeFile:
    """Read the resolved recipe of a finished run.

    Args:
        folder: of the run.
        trust: the folder is trusted like a program: what its recipe names may be imported.

    Raises:
        UserError: E130 if the folder contains no run, or the run is not finished; E141 if the recipe is damaged; and the errors
            of `read_recipe`.
    """
    if not folder.is_dir() or not (folder / "recipe.toml").is_file():
        raise UserError("E130", f"{folder} contains no run: there is no recipe.toml", "give the folder of a run")
    if not (folder / "report.json").is_file():
        message = f"the run in {folder} is not finished: there is no report.json"
        raise UserError("E130", message, "run its command again to continue it")
    files.read_text(folder / "recipe.toml")  # checks its digest
    return read_recipe(folder / "recipe.toml", sources=False, trust=trust)  # its data need not exist


def origin_of_run(file: RecipeFile, folder: Path) -> nn.Module:
    """Build the dense module from which the compressed model was made: the recipe's model, or that of the last student.

    Raises:
        UserError: E120 or E121 if a factory fails; E130, E140 or E141 if weights cannot be loaded; E144 if it takes code that a
            folder which is not trusted names.
    """
    run, dense = Run(folder, seed=file.seed), file.build_model()
    run.journal.decisions = dict(file.decisions)
    for place, step in steps_of_run(file, folder):
        with file.naming():
            dense = origin_after(step, dense, run.within(str(place.relative_to(folder))))
    return dense


def steps_of_run(file: RecipeFile, folder: Path) -> list[tuple[Path, Step]]:
    """The steps that were run, each with its subfolder; steps after a stop by a callback are omitted."""
    steps = []
    for position, step in enumerate(file.recipe.steps, start=1):
        subfolder = folder_of(position, step)
        steps.append((folder / subfolder, step))
        if f"{subfolder}/stopped" in file.decisions:
            break
    return steps


def model_of_run(folder: Path, *, trust: bool = False) -> nn.Module:
    """Load the compressed model of a finished run, in eval mode.

    Args:
        folder: of the run.
        trust: the folder is trusted like a program: what its recipe names may be imported.

    Raises:
        UserError: E130 if the folder contains no finished run; E144 if the model takes code and the folder is not trusted; E120
            or E121 if the factory of the model fails; E140 if the model's code has changed since the run; E141 if a file is
            damaged.
    """
    return artifact.load(origin_of_run(recipe_of_run(folder, trust=trust), folder), folder)

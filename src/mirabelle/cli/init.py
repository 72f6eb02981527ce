"""`mirabelle init`: a recipe to start from."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import click

from mirabelle.cli.options import json_option
from mirabelle.errors import UserError, did_you_mean

_FOLDER = Path(__file__).parent
START = _FOLDER / "start.toml"
SCHEMA = _FOLDER.parent / "recipe.schema.json"
_TRAINED_HERE = """# The model is trained before it is compressed. Where your function returns a trained model, delete this
# table; where its weights lie in a file, write instead of `train`: weights = "trained.safetensors"
[baseline]
train = { epochs = 20, batch_size = 32, lr = 1e-3 }"""
_TRAINED_BEFORE = """[baseline]
weights = WEIGHTS"""


@click.command("init")
@click.option(
    "--model",
    default="mirabelle.sources.zoo:digits_cnn",
    show_default=True,
    help='What makes the model: "./file.py:function" or "package.module:function".',
)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help='A built-in set, a folder of class folders, a .csv or .npz file, or "./file.py:function".',
)
@click.option("--weights", help="A .safetensors file with trained weights of the model.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for editors, instead.")
@json_option
def command(*, model: str, data: str, weights: str | None, schema: bool, as_json: bool) -> int:
    """Print a commented recipe that runs as it stands, for a model and data.

    \b
    Example:
      mirabelle init --model ./net.py:net --data ./photos > recipe.toml
    """
    if schema:
        click.echo(SCHEMA.read_text("utf-8"), nl=False)
        return 0
    _hold_model(model)
    _hold_data(data)
    if weights is not None:
        _hold_weights(weights)
    trained = _TRAINED_HERE if weights is None else _TRAINED_BEFORE.replace("WEIGHTS", json.dumps(weights))
    values = {"MODEL": json.dumps(model), "DATA": json.dumps(data), "BASELINE": trained}
    text = re.sub("|".join(values), lambda found: values[found[0]], START.read_text("utf-8"))
    click.echo(json.dumps({"recipe": text}) if as_json else text, nl=as_json)
    return 0


def _hold_model(model: str) -> None:
    """Raise unless the name is one, and a Python file defines what it names; nothing is run."""
    place, colon, function = model.rpartition(":")
    if not colon or not place or not function:
        raise UserError("E120", f'"{model}" names no function', 'write "./file.py:function" or "package.module:function"')
    path = Path(place)
    if path.suffix != ".py":
        return
    if not path.is_file():
        raise UserError("E120", f"no Python file at {path}", "check the path")
    try:
        tree = ast.parse(path.read_text("utf-8"))
    except (SyntaxError, UnicodeDecodeError) as error:
        raise UserError("E120", f"{path} is no Python: {error}", "run it by hand to see why") from error
    names = _names(tree)
    if function not in names:
        raise UserError("E120", f'{path} has no function "{function}"', did_you_mean(function, names))


def _names(tree: ast.Module) -> set[str]:
    """What a module's top level binds."""
    found: set[str] = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            found.add(node.name)
        elif isinstance(node, (ast.Import, ast.ImportFrom)):
            found.update(alias.asname or alias.name for alias in node.names)
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            found.add(node.id)
    return found


def _hold_data(data: str) -> None:
    """Raise when a path is named where nothing lies, or a built-in set that there is not."""
    from mirabelle.sources.names import BUILT_IN, names_files, names_function

    if names_function(data):
        place = Path(data.rpartition(":")[0])
        if place.suffix == ".py" and not place.is_file():
            raise UserError("E130", f"no Python file at {place}", "check the path")
    elif names_files(data):
        if not Path(data).exists():
            raise UserError("E130", f"no data at {data}", "check the path")
    elif data not in BUILT_IN:
        remedy = f'write "./{data}" for the folder' if Path(data).is_dir() else did_you_mean(data, BUILT_IN)
        raise UserError("E130", f'data "{data}" is not a built-in set', remedy)


def _hold_weights(weights: str) -> None:
    from mirabelle.sources.names import PICKLES

    if Path(weights).suffix in PICKLES:
        raise UserError("E143", f"{weights} may hold code (a pickle), so it is not read", "save the state dict as safetensors")
    if not Path(weights).is_file():
        raise UserError("E130", f"no weights at {weights}", "name a .safetensors file")

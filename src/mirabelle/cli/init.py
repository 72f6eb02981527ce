"""`mirabelle init`: prints a commented recipe to start from."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from mirabelle.cli import table_recipe
from mirabelle.cli.options import json_option
from mirabelle.errors import UserError, gathered, raise_all

_MODEL = "mirabelle.sources.zoo:digits_cnn"
_FOLDER = Path(__file__).parent
START = _FOLDER / "start.toml"
SCHEMA = _FOLDER.parent / "recipe" / "recipe.schema.json"
_TRAINED_HERE = """# The model is trained before it is compressed. If your function returns a trained model, delete this table.
# If trained weights are in a file, replace `train` by: weights = "trained.safetensors"
[baseline]
train = { epochs = 20, batch_size = 32, lr = 1e-3 }"""
_TRAINED_ALREADY = "# The model already has trained weights, so there is no [baseline]."
_KEYWORDS = "# arguments = { width = 32 }         # keyword arguments of that function"
_HEADED = '# arguments = { head = "sequence-classification", labels = 2 }    # if config.json names no such head'
_READ = "# arguments = { size = [32, 32] }    # options for reading the data"
_READ_TEXTS = '# arguments = { tokenizer = "./bert" }    # the folder of a model with its tokenizer'
_QUANTIZE_STATIC = """# Quantizes weights and activations to 8-bit integers. For transformers: use = "quantize.Dynamic"
[[step]]
use = "quantize.Static\""""
_QUANTIZE_DYNAMIC = """# Quantizes weights to 8-bit integers, and activations by the range that each input has.
[[step]]
use = "quantize.Dynamic\""""
_TRAINED_BEFORE = """[baseline]
weights = WEIGHTS"""


@click.command("init", short_help="Print a commented recipe for your model and data.")
@click.option(
    "--model",
    show_default="mirabelle.sources.zoo:digits_cnn, for a table mirabelle.sources.zoo:table_mlp",
    help='A function that returns the model ("./file.py:function" or "package.module:function"), an .onnx, .keras or .h5 file, '
    "or a folder saved by transformers.",
)
@click.option(
    "--data",
    default="digits",
    show_default=True,
    help="A built-in data set, a folder with one subfolder per class, a .csv or .npz file, texts in a .tsv, .jsonl or .txt "
    'file, questions in a .json file, or "./file.py:function".',
)
@click.option("--weights", help="Load trained weights of the model from this .safetensors file.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for use in an editor, instead.")
@json_option
def command(*, model: str | None, data: str, weights: str | None, schema: bool, as_json: bool) -> int:
    """Print a commented recipe for a model and data set; it can be run without changes.

    \b
    Example:
      mirabelle init --model ./net.py:net --data ./photos > recipe.toml
    """
    if schema:
        click.echo(SCHEMA.read_text("utf-8"), nl=False)
        return 0
    from mirabelle.sources.checks import check_data, check_model, check_weights
    from mirabelle.sources.first_arguments import text_arguments
    from mirabelle.sources.folder_arguments import attends, folder_arguments
    from mirabelle.sources.model_classes import labels_of_texts
    from mirabelle.sources.names import HUBS, TABLES, TEXTS, is_trained, names_function, names_model_folder

    table = data.lower().endswith(TABLES) and not names_function(data)
    proposed = model is None
    model = model or (table_recipe.MODEL if table else _MODEL)
    mistakes: list[UserError] = []
    with gathered(mistakes):
        check_model(model, Path())
    with gathered(mistakes):
        check_data(data, Path())
    if weights is not None:
        with gathered(mistakes):
            check_weights(Path(weights))
    raise_all(mistakes)
    trained = _TRAINED_HERE if weights is None else _TRAINED_BEFORE.replace("WEIGHTS", json.dumps(weights))
    if weights is None and is_trained(model):
        trained = _TRAINED_ALREADY
    read, files = text_arguments(model, data), folder_arguments(model, data)
    arguments = _READ_TEXTS if data.lower().endswith(TEXTS) else _READ
    if files is not None:
        arguments = _settings(files)
    elif read is not None:
        arguments = _arguments({**read, **labels_of_texts(model, data, read)})
    keywords = _HEADED if names_model_folder(model) or model.startswith(HUBS) else _KEYWORDS
    if table and not is_trained(model):
        keywords, arguments = table_recipe.lines_of_table(data, proposed=proposed)
    values = {
        "MODEL": json.dumps(model),
        "DATA": json.dumps(data),
        "BASELINE": trained,
        "ARGUMENTS": arguments,
        "KEYWORDS": keywords,
        "QUANTIZE": _QUANTIZE_DYNAMIC if read is not None or (files is not None and attends(model)) else _QUANTIZE_STATIC,
    }
    text = re.sub("|".join(values), lambda match: values[match[0]], START.read_text("utf-8"))
    click.echo(json.dumps({"recipe": text}) if as_json else text, nl=as_json)
    return 0


def _arguments(read: Mapping[str, Any]) -> str:
    settings = ", ".join(f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in read.items())
    return f"arguments = {{ {settings} }}  # lengths in tokens"


def _settings(settings: Mapping[str, Any]) -> str:
    lines = [f"{name} = {json.dumps(value, ensure_ascii=False)}" for name, value in settings.items()]
    return "\n".join(["", "[task.arguments]                     # as the processor of the model reads its inputs", *lines])

"""`mirabelle init`: looks at a model and data, and prints a commented recipe to start from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from mirabelle.cli import table_recipe
from mirabelle.cli.first_recipe import TRAINED_ALREADY, UNTRAINABLE, inline, recipe_text, table, weights_before
from mirabelle.cli.options import data_dir_option, json_option, quiet_option
from mirabelle.errors import Place, UserError, gathered, raise_all

if TYPE_CHECKING:
    from torch import nn

    from mirabelle.planning.look import Looked, Weights
    from mirabelle.task.task import Task

_MODEL = "mirabelle.sources.zoo:digits_cnn"
SCHEMA = Path(__file__).parent.parent / "recipe" / "recipe.schema.json"
_KEYWORDS = "# arguments = { width = 32 }         # keyword arguments of that function"
_HEADED = '# arguments = { head = "sequence-classification", labels = 2 }    # if config.json names no such head'
_READ = "# arguments = { size = [32, 32] }    # options for reading the data"
_READ_TEXTS = '# arguments = { tokenizer = "./bert" }    # the folder of a model with its tokenizer'
_LENGTHS = "  # lengths in tokens"
_OF_PROCESSOR = "as the processor of the model reads its inputs"


@click.command("init", short_help="Look at your model and data, and print a recipe for them.")
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
@click.option("--no-look", is_flag=True, help="Load neither model nor data; the recipe then follows from their names alone.")
@click.option("--schema", is_flag=True, help="Print the JSON Schema of recipes, for use in an editor, instead.")
@data_dir_option
@json_option
@quiet_option
def command(
    *, model: str | None, data: str, weights: str | None, no_look: bool, schema: bool, data_dir: Path | None, as_json: bool,
    quiet: bool,
) -> int:  # fmt: skip
    """Look at a model and its data, and print a commented recipe for them; it can be run without changes.

    Says on standard error what was found: the kind of network, what is heavy in it, classes and their balance, whether it is
    trained, and what integers and coded weights would give. What does not fit is an error.

    \b
    Example:
      mirabelle init --model ./net.py:net --data ./photos > recipe.toml
    """
    if schema:
        click.echo(SCHEMA.read_text("utf-8"), nl=False)
        return 0
    from mirabelle.sources.checks import check_data, check_model, check_weights
    from mirabelle.sources.datasets.settings import data_folder_set

    is_table = _is_table(data)
    name = model or (table_recipe.MODEL if is_table else _MODEL)
    mistakes: list[UserError] = []
    with gathered(mistakes):
        check_model(name, Path())
    with gathered(mistakes):
        check_data(data, Path())
    if weights is not None:
        with gathered(mistakes):
            check_weights(Path(weights))
    raise_all(mistakes)
    asked = _Asked(name, data, weights, proposes=model is None and is_table)
    with data_folder_set(data_dir):
        sources = asked.unseen() if no_look else asked.seen(quiet=quiet)
    looked = sources.looked
    text = recipe_text(
        model=name, data=data, baseline=asked.baseline(looked), keywords=sources.keywords(asked),
        arguments=sources.lines(asked), looked=looked, dynamic=sources.dynamic,
    )  # fmt: skip
    found = [] if looked is None else list(looked.found)
    click.echo(json.dumps({"recipe": text, "found": found}) if as_json else text, nl=as_json)
    return 0


@dataclass
class _Sources:
    """How the recipe names model and data.

    Args:
        read: settings of the data.
        of_processor: whether they come from the processor of the model.
        of_texts: whether they are those of texts.
        dynamic: whether a model that nobody looked at is quantized by the range of each input.
        task: the data, if they were read.
        why_not: why a table could not be read.
        more: settings that model or data turned out to need.
        head: arguments of a transformers model that lacks the head for the data.
        looked: what was found.
    """

    read: dict[str, Any]
    of_processor: bool
    of_texts: bool
    dynamic: bool
    task: Task | None = None
    why_not: str = ""
    more: dict[str, Any] = field(default_factory=dict)
    head: dict[str, Any] = field(default_factory=dict)
    looked: Looked | None = None

    def keywords(self, asked: _Asked) -> list[str]:
        """The lines on the arguments of the model."""
        from mirabelle.sources.names import HUBS, names_model_file, names_model_folder

        if names_model_folder(asked.model) or asked.model.startswith(HUBS):
            return [inline("arguments", self.head, "    # a new head, which is trained first")] if self.head else [_HEADED]
        if names_model_file(asked.model):
            return []
        if not _is_table(asked.data):
            return [_KEYWORDS]
        if self.task is None:
            return [table_recipe.WIDTHS if asked.proposes else _KEYWORDS]
        line = inline("arguments", table_recipe.arguments_of_table(self.task))
        return [f"# {table_recipe.sentence_on_table(self.task)}", line if asked.proposes else f"# {line}"]

    def lines(self, asked: _Asked) -> list[str]:
        """The lines on the arguments of the data."""
        from mirabelle.sources.names import TEXTS, names_files

        settings = {**self.read, **self.more}
        if self.of_processor:
            return table("task.arguments", settings, _OF_PROCESSOR)
        if settings:
            return [inline("arguments", settings, _LENGTHS if self.of_texts else "")]
        if _is_table(asked.data):
            return [table_recipe.UNREAD + self.why_not if self.why_not else table_recipe.READ]
        if asked.data.lower().endswith(TEXTS):
            return [_READ_TEXTS]
        return [_READ] if names_files(asked.data) and not Path(asked.data).suffix else []


@dataclass(frozen=True)
class _Asked:
    """The arguments of the command; `proposes`: the model is the one that is proposed for tables."""

    model: str
    data: str
    weights: str | None
    proposes: bool

    def unseen(self) -> _Sources:
        """What follows from the names of model and data, and from a table."""
        from mirabelle.sources import task_from

        sources = self._by_names()
        if _is_table(self.data) and not sources.of_texts:
            try:
                sources.task = task_from(self.data, {}, data_folder=None, folder=Path())
            except UserError as error:
                sources.why_not = " ".join(error.errors[0].message.split())
        return sources

    def seen(self, *, quiet: bool) -> _Sources:
        """What follows from model and data themselves; they are loaded, and tried.

        Raises:
            UserError: what `check` would say of them, with the option in whose value it lies.
        """
        from mirabelle.planning.look import look
        from mirabelle.sources import load_weights
        from mirabelle.sources.fitting_arguments import fitting_images, readable
        from mirabelle.sources.model_heads import head_for
        from mirabelle.sources.names import names_function

        def tell(line: str) -> None:
            if not quiet:
                click.echo(line, err=True)

        sources = self._by_names()
        with _at_option("data"):
            tell(f"reading {self.data}")
            task, settings = readable(self.data, sources.read)
        if more := {key: value for key, value in settings.items() if key not in sources.read}:
            tell(f"it can be read with {inline('arguments', more)}")
        with _at_option("model"):
            tell(f"loading {self.model}")
            arguments = table_recipe.arguments_of_table(task) if self.proposes else {}
            model = self._built(arguments)
            if head := head_for(model, task):
                arguments = sources.head = head
                model = self._built(head)
                tell(f"its head does not fit the data: {head['head']} is put on it")
            weights = self._origin(model, arguments)
        if self.weights is not None:
            with _at_option("weights"):
                load_weights(model, Path(self.weights))
        with _at_option("model"):
            if more := fitting_images(model, self.data, task, settings):
                tell(f"the model takes the images with {inline('arguments', more)}")
                task, settings = readable(self.data, {**settings, **more})
            sources.looked = look(model, task, tell, weights=weights, sets_metric=not names_function(self.data))
        sources.more = {key: value for key, value in settings.items() if key not in sources.read}
        sources.more |= self._for_rare(sources.looked)
        sources.task = task
        for sentence in sources.looked.found:
            tell(f"- {sentence}")
        return sources

    def baseline(self, looked: Looked | None) -> str:
        """The table `[baseline]`, or a comment in its place; empty if the model is trained first."""
        from mirabelle.sources.names import is_trained

        if self.weights is not None:
            return weights_before(self.weights)
        if is_trained(self.model) if looked is None else looked.learned:
            return TRAINED_ALREADY
        return "" if looked is None or looked.training is not None else UNTRAINABLE

    def _by_names(self) -> _Sources:
        """The settings that the files of a transformers model give."""
        from mirabelle.sources.first_arguments import text_arguments
        from mirabelle.sources.folder_arguments import attends, folder_arguments
        from mirabelle.sources.model_classes import labels_of_texts

        texts, files = text_arguments(self.model, self.data), folder_arguments(self.model, self.data)
        if files is not None:
            return _Sources(dict(files), of_processor=True, of_texts=False, dynamic=attends(self.model))
        if texts is not None:
            labels = labels_of_texts(self.model, self.data, texts)
            return _Sources({**texts, **labels}, of_processor=False, of_texts=True, dynamic=True)
        return _Sources({}, of_processor=False, of_texts=False, dynamic=False)

    def _built(self, arguments: Mapping[str, Any], seed: int = 0) -> nn.Module:
        from mirabelle.sources import model_from
        from mirabelle.sources.models.by_name import in_torch

        return in_torch(model_from(self.model, arguments, Path(), seed)).eval()

    def _origin(self, model: nn.Module, arguments: Mapping[str, Any]) -> Weights:
        """Where the weights of a model come from: those that another seed changes are drawn at random."""
        from mirabelle.model.state import fingerprint
        from mirabelle.sources.names import is_trained

        if self.weights is not None:
            return "given"
        if is_trained(self.model) and not arguments:
            return "unknown"
        return "drawn" if fingerprint(self._built(arguments, seed=1)) != fingerprint(model) else "unknown"

    def _for_rare(self, looked: Looked) -> Mapping[str, Any]:
        """The settings that rare classes call for, if the data are files, which have such settings."""
        from mirabelle.sources.names import names_files

        if not names_files(self.data) or not looked.rare:
            return {}
        metric = {} if looked.metric is None else {"metric": looked.metric}
        return metric if looked.learned else {**metric, "class_weights": "balanced"}


def _is_table(data: str) -> bool:
    from mirabelle.sources.names import TABLES, names_function

    return data.lower().endswith(TABLES) and not names_function(data)


@contextmanager
def _at_option(name: str) -> Iterator[None]:
    """Says in which option the mistake lies that is raised inside: a mistake of data while the model is tried is theirs."""
    try:
        yield
    except UserError as error:
        raise_all([one.at(Place(f"--{_option_of(one, name)}")) for one in error.errors])


def _option_of(error: UserError, name: str) -> str:
    """The option in whose value a mistake lies: what it says itself, or else the one that was being read."""
    return {"task": "data", "model": "model"}.get(str(error.path[0]) if error.path else "", name)

"""`mirabelle predict`: a shipped model on raw inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import json_option

if TYPE_CHECKING:
    from mirabelle.artifact.prediction import Prediction


@click.command("predict")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="How many classes to name.")
@json_option
def command(file: Path, inputs: tuple[Path, ...], top: int, *, as_json: bool) -> int:
    """Print what the model in FILE makes of each INPUT, by its stored preprocessing and labels, in ONNX Runtime.

    FILE is an .onnx or .mira file, or the folder of a run. INPUT is an image or a recording (.wav), a folder of them, a .csv
    of rows, a .txt of a text a line (pairs, and a question and its paragraph, with a tab between), or a .npy of one sample or a
    batch that is already preprocessed.

    \b
    Example:
      mirabelle predict runs/digits/model.mira digit.png
    """
    from mirabelle.artifact.prediction import Predictor

    predictions = Predictor(file)(inputs, top)
    if as_json:
        click.echo(json.dumps([prediction.to_data() for prediction in predictions], indent=2, allow_nan=False))
    else:
        _print(predictions)
    return 0


def _print(predictions: list[Prediction]) -> None:
    from mirabelle.cli.display import print_table

    told = next((name for name in ("answer", "text") if predictions and getattr(predictions[0], name) is not None), None)
    if told is not None:
        print_table(("input", told), [(_shown(entry.input), _shown(getattr(entry, told) or "")) for entry in predictions])
        return
    if not any(prediction.top for prediction in predictions):
        print_table(("input", "outputs"), [(_shown(entry.input), _shown(str(entry.outputs))) for entry in predictions])
        return
    if any(prediction.multi_label is not None for prediction in predictions):
        shown = [
            (
                _shown(entry.input),
                _shown(", ".join(entry.multi_label or ("none",))),
                _shown(", ".join(f"{choice.label} {choice.probability:.1%}" for choice in entry.top)),
            )
            for entry in predictions
        ]
        print_table(("input", "labels", "probabilities"), shown)
        return
    lines = []
    for prediction in predictions:
        first, *others = prediction.top
        then = ", ".join(f"{choice.label} {choice.probability:.1%}" for choice in others)
        lines.append((_shown(prediction.input), _shown(first.label), f"{first.probability:.1%}", _shown(then)))
    print_table(("input", "label", "probability", "then"), lines)


def _shown(text: str) -> str:
    """Text of a file or its name without what a terminal would take as an order."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

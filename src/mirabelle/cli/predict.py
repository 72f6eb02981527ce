"""`mirabelle predict`: applies an exported model to raw inputs."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import codec_option, json_option, runtime_option

if TYPE_CHECKING:
    from mirabelle.artifact.prediction import Prediction


@click.command("predict", short_help="Apply an exported model to raw inputs.")
@click.argument("file", type=click.Path(path_type=Path))
@click.argument("inputs", metavar="INPUT...", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--top", type=click.IntRange(min=1), default=3, show_default=True, help="Number of classes to print.")
@runtime_option
@codec_option(read=True)
@json_option
def command(file: Path, inputs: tuple[Path, ...], top: int, runtime: str | None, *, as_json: bool) -> int:
    """Print the predictions of the model in FILE for each INPUT, with its stored preprocessing and class names.

    FILE is an .onnx or .mira file, or the folder of a run; it runs in --runtime, or the one of the run. INPUT is an image, a
    recording (.wav), a folder of either, a .csv file with one sample per row, a .txt file with one text per line (text pairs,
    or a question and its paragraph, separated by a tab), a file of texts like that of the training (.tsv, .jsonl, .csv, .conll
    or questions in .json; labels are not read), or a .npy file with one preprocessed sample or a batch. A causal language model
    continues a text, a masked one fills its mask tokens, a model of sequences writes another text.

    \b
    Example:
      mirabelle predict runs/digits/model.mira digit.png
    """
    from mirabelle.artifact.prediction import Predictor

    predictions = Predictor(file, runtime)(inputs, top)
    if as_json:
        click.echo(json.dumps([prediction.to_data() for prediction in predictions], indent=2, allow_nan=False))
    else:
        _print(predictions)
        for note in (note for prediction in predictions for note in prediction.notes):
            click.echo(f"note: {_printable(note)}", err=True)
    return 0


def _print(predictions: list[Prediction]) -> None:
    from mirabelle.cli.display import print_table

    field = next((name for name in ("answer", "text") if predictions and getattr(predictions[0], name) is not None), None)
    if field == "text" and predictions[0].top:
        print_table(
            ("input", "text", "first token"), [(*_row(entry, field), _printable(_shares(entry))) for entry in predictions]
        )
        return
    if field is not None:
        print_table(("input", field), [_row(entry, field) for entry in predictions])
        return
    if not any(prediction.top for prediction in predictions):
        print_table(("input", "outputs"), [(_printable(entry.input), _printable(str(entry.outputs))) for entry in predictions])
        return
    if any(prediction.multi_label is not None for prediction in predictions):
        rows = [
            (
                _printable(entry.input),
                _printable(", ".join(entry.multi_label or ("none",))),
                _printable(_shares(entry)),
            )
            for entry in predictions
        ]
        print_table(("input", "labels", "probabilities"), rows)
        return
    lines = []
    for prediction in predictions:
        first, *others = prediction.top
        then = ", ".join(f"{choice.label} {choice.probability:.1%}" for choice in others)
        lines.append((_printable(prediction.input), _printable(first.label), f"{first.probability:.1%}", _printable(then)))
    print_table(("input", "label", "probability", "then"), lines)


def _row(entry: Prediction, field: str) -> tuple[str, str]:
    return _printable(entry.input), _printable(getattr(entry, field) or "")


def _shares(entry: Prediction) -> str:
    return ", ".join(f"{choice.label} {choice.probability:.1%}" for choice in entry.top)


def _printable(text: str) -> str:
    """Text with non-printable characters replaced, so that no escape sequence reaches the terminal."""
    return "".join(character if character.isprintable() else "\N{REPLACEMENT CHARACTER}" for character in text)

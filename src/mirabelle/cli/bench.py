"""`mirabelle bench`: compares the latency of models in ONNX Runtime; calls alternate, so that noise affects all alike."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import codec_option, input_option, json_option

if TYPE_CHECKING:
    from mirabelle.numerics.arrays import Array
    from mirabelle.runtime.drawn_inputs import GivenInput
    from mirabelle.runtime.latency import Ratio
    from mirabelle.runtime.runtime import Session
    from mirabelle.task.profile import Latency


@click.command("bench", short_help="Compare the latency of models.")
@click.argument("models", metavar="FILE...", nargs=-1, required=True)
@click.option("--batch", type=click.IntRange(min=1), help="Batch size; by default 1.")
@click.option("--threads", type=click.IntRange(min=1), help="Threads of ONNX Runtime; by default one per physical core.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=4.0, show_default=True, help="Total measuring time.")
@input_option
@codec_option(read=True)
@json_option
def command(
    models: tuple[str, ...], batch: int | None, threads: int | None, seconds: float, shapes: tuple[str, ...], *, as_json: bool
) -> int:
    """Measure the latency of each FILE and compare it with the first.

    FILE is an .onnx or .mira file, or the folder of a run. The models are called alternately (A B B A ...) on random inputs, in
    blocks, for each of which they are loaded anew. The ratio is that of the milliseconds beside it; in its interval lie 95 % of
    the ratios that repetitions give. Milliseconds alone drift with the clock of the processor and other work on the machine.

    \b
    Example:
      mirabelle bench runs/digits/model.onnx runs/digits --seconds 1
    """
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.cli.arguments import given_of
    from mirabelle.errors import UserError
    from mirabelle.run.machine import this_machine
    from mirabelle.runtime.latency import interleaved
    from mirabelle.runtime.runtime import default_runtime

    given = given_of(shapes)
    if batch is not None and any(one.whole for one in given):
        raise UserError(
            "E111", "--batch and --input with all axes both define the batch", 'join the sizes by "x", or leave --batch out'
        )
    count, name = threads or this_machine().threads, default_runtime().describe().name
    files = [onnx_of(model) for model in models]
    prepared = [_prepared_call(model, onnx, batch or 1, given, count) for model, onnx in zip(models, files, strict=True)]

    batch = next((len(array) for array in prepared[0][1].values() if array.ndim), 1)

    def load() -> dict[str, Callable[[], object]]:
        return {str(position): partial(session.anew().run, feed) for position, (session, feed) in enumerate(prepared)}

    latencies, ratios = interleaved(load, runtime=name, threads=count, batch=batch, seconds=seconds)
    lengths = [len(onnx) for onnx in files]
    results = list(zip(models, lengths, latencies.values(), ratios.values(), strict=True))
    inputs = [[list(array.shape) for array in feed.values()] for _, feed in prepared]
    if as_json:
        click.echo(json.dumps({"runtime": name, "batch": batch, "threads": count, "models": _data(results, inputs)}, indent=2))
        return 0
    from mirabelle.cli.display import print_table

    lines = [
        (model, f"{length:,}", f"{latency.median:.4f}", f"{latency.p95:.4f}", _ratio(ratio, position))
        for position, (model, length, latency, ratio) in enumerate(results)
    ]
    print_table(("file", "ONNX bytes", "median ms", "p95 ms", "ratio (95 %)"), lines)
    click.echo(
        f"\n{name}, batch {batch}, {count} thread{'s' * (count > 1)}"
        + (f"; compared with {models[0]}:" if len(results) > 1 else "")
    )
    for position, (model, _, _, ratio) in enumerate(results[1:], start=1):
        click.echo(f"{model}: {_verdict(ratio, position)}")
        if inputs[position] != inputs[0]:
            click.echo(
                f"  note: input {_shapes(inputs[position])} here, {_shapes(inputs[0])} for the first; the work is not the same"
            )
    return 0


def _prepared_call(
    model: str, onnx: bytes, batch: int, given: Sequence[GivenInput], threads: int
) -> tuple[Session, dict[str, Array]]:
    """A session of the model, already tried, and random inputs."""
    from mirabelle.artifact.reading import model_of
    from mirabelle.errors import UserError, first_line
    from mirabelle.runtime.drawn_inputs import described, drawn_inputs
    from mirabelle.runtime.runtime import default_runtime
    from mirabelle.runtime.signature import signature_of

    try:
        inputs, _ = signature_of(model_of(onnx))
        feed = drawn_inputs(inputs, batch, given)
        session = default_runtime().load(onnx, threads)
    except UserError as error:
        raise error.at(model) from None
    try:
        session.run(feed)
    except Exception as error:
        raise UserError(
            "E121",
            f"{model} fails on random inputs: {first_line(error)}",
            f"give sizes with --input, the batch size with --batch; it takes {described(inputs)}",
        ) from error
    return session, feed


def _ratio(ratio: Ratio, position: int) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if position else "1"


def _verdict(ratio: Ratio, position: int) -> str:
    return ratio.in_words() if position else "the reference"


def _shapes(shapes: list[list[int]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)


def _data(results: list[tuple[str, int, Latency, Ratio]], inputs: list[list[list[int]]]) -> list[dict[str, object]]:
    return [
        {
            "file": model,
            "inputs": inputs[position],
            "onnx_bytes": length,
            "median_ms": latency.median,
            "p95_ms": latency.p95,
            "ratio": ratio.to_data(),
            "verdict": _verdict(ratio, position),
        }
        for position, (model, length, latency, ratio) in enumerate(results)
    ]

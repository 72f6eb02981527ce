"""`mirabelle bench`: models in ONNX Runtime, measured in turn so that a noisy machine cannot decide between them."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import TYPE_CHECKING

import click

from mirabelle.cli.options import json_option

if TYPE_CHECKING:
    from mirabelle.runtime.latency import Ratio
    from mirabelle.task.profile import Latency


@click.command("bench")
@click.argument("models", metavar="FILE...", nargs=-1, required=True)
@click.option("--batch", type=click.IntRange(min=1), default=1, show_default=True, help="Samples a call.")
@click.option("--threads", type=click.IntRange(min=1), help="Of ONNX Runtime; by default one a physical core.")
@click.option("--seconds", type=click.FloatRange(min=0.1), default=2.0, show_default=True, help="To measure for, in all.")
@click.option(
    "--input", "shape", help='Shape of one input without its batch axis, such as "1x28x28", where a file leaves it open.'
)
@json_option
def command(
    models: tuple[str, ...], batch: int, threads: int | None, seconds: float, shape: str | None, *, as_json: bool
) -> int:
    """Measure FILE... (.onnx, .mira, or the folder of a run) against the first of them.

    The files are called in turn, A B A B, in one process, on inputs drawn to fit. The ratio of times comes with its 95 %
    interval.

    \b
    Example:
      mirabelle bench runs/digits/model.onnx runs/digits --seconds 1
    """
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.cli.arguments import sizes_of
    from mirabelle.run.machine import this_machine
    from mirabelle.runtime.latency import interleaved
    from mirabelle.runtime.onnxruntime import NAME

    sizes = sizes_of(shape)
    count = threads or this_machine().threads
    files = [onnx_of(model) for model in models]
    prepared = [_call(model, onnx, batch, sizes, count) for model, onnx in zip(models, files, strict=True)]
    calls = {str(place): call for place, (call, _) in enumerate(prepared)}
    latencies, ratios = interleaved(calls, runtime=NAME, threads=count, batch=batch, seconds=seconds)
    lengths = [len(onnx) for onnx in files]
    results = list(zip(models, lengths, latencies.values(), ratios.values(), strict=True))
    inputs = [shapes for _, shapes in prepared]
    if as_json:
        click.echo(json.dumps({"runtime": NAME, "batch": batch, "threads": count, "models": _data(results, inputs)}, indent=2))
        return 0
    from mirabelle.cli.display import print_table

    lines = [
        (model, f"{length:,}", f"{latency.median:.4f}", f"{latency.p95:.4f}", _ratio(ratio, place))
        for place, (model, length, latency, ratio) in enumerate(results)
    ]
    print_table(("file", "ONNX bytes", "median ms", "p95 ms", "ratio (95 % interval)"), lines)
    click.echo(
        f"\n{NAME}, batch {batch}, {count} thread{'s' * (count > 1)}"
        + (f"; compared with {models[0]}:" if len(results) > 1 else "")
    )
    for place, (model, _, _, ratio) in enumerate(results[1:], start=1):
        click.echo(f"{model}: {_verdict(ratio, place)}")
        if inputs[place] != inputs[0]:
            click.echo(
                f"  note: it takes {_shapes(inputs[place])}, the first {_shapes(inputs[0])}; they do not do the same work"
            )
    return 0


def _call(
    model: str, onnx: bytes, batch: int, sizes: tuple[int, ...] | None, threads: int
) -> tuple[Callable[[], object], list[list[int]]]:
    """A call of the model on inputs drawn to fit, tried once, and their shapes."""
    from mirabelle.artifact.reading import model_of
    from mirabelle.errors import UserError
    from mirabelle.runtime.onnxruntime import Session
    from mirabelle.runtime.signature import drawn_inputs, signature_of

    try:
        feed = drawn_inputs(signature_of(model_of(onnx))[0], batch, sizes)
        session = Session(onnx, threads)
    except UserError as error:
        raise error.at(model) from None
    try:
        session.run(feed)
    except Exception as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            "E121", f"{model} fails on drawn inputs: {reason}", "give --input its sizes, --batch its batch"
        ) from error
    return lambda: session.run(feed), [list(array.shape) for array in feed.values()]


def _ratio(ratio: Ratio, place: int) -> str:
    return f"{ratio.median:.3f} ({ratio.low:.3f} to {ratio.high:.3f})" if place else "1"


def _verdict(ratio: Ratio, place: int) -> str:
    return ratio.in_words() if place else "the one to compare with"


def _shapes(shapes: list[list[int]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)


def _data(results: list[tuple[str, int, Latency, Ratio]], inputs: list[list[list[int]]]) -> list[dict[str, object]]:
    return [
        {
            "file": model,
            "inputs": inputs[place],
            "onnx_bytes": length,
            "median_ms": latency.median,
            "p95_ms": latency.p95,
            "ratio": ratio.to_data(),
            "verdict": _verdict(ratio, place),
        }
        for place, (model, length, latency, ratio) in enumerate(results)
    ]

"""`mirabelle bench`: compares the latency of models and runtimes; calls alternate, so that noise affects all alike."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from mirabelle.cli.options import codec_option, input_option, json_option

if TYPE_CHECKING:
    from mirabelle.numerics.arrays import Array
    from mirabelle.runtime.contest import Contest, Timing
    from mirabelle.runtime.drawn_inputs import GivenInput
    from mirabelle.runtime.first_call import FirstCall

_SHOWN_MB = 1e6


@click.command("bench", short_help="Compare the latency of models and runtimes.")
@click.argument("models", metavar="FILE...", nargs=-1, required=True)
@click.option("--batch", "batches", metavar="N,...", help="Batch sizes, such as 1,32; by default 1.")
@click.option("--threads", "counts", metavar="N,...", help="Numbers of threads; by default one per physical core.")
@click.option("--runtime", "runtimes", metavar="NAME,...|all", default="all", show_default=True, help="Runtimes.")
@click.option(
    "--seconds", type=click.FloatRange(min=0.1), default=4.0, show_default=True, help="Measuring time for each batch."
)
@click.option("--memory/--no-memory", default=True, help="Measure first calls and memory in processes of their own.")
@input_option
@codec_option(read=True)
@json_option
def command(
    *,
    models: tuple[str, ...],
    batches: str | None,
    counts: str | None,
    runtimes: str,
    seconds: float,
    shapes: tuple[str, ...],
    memory: bool,
    as_json: bool,
) -> int:
    """Measure the latency of each FILE in each runtime that is installed, and compare it with the first.

    FILE is an .onnx or .mira file, or the folder of a run. The models are called alternately (A B B A ...) on random inputs, in
    blocks, for each of which they are loaded anew. The ratio is that of the milliseconds beside it; in its interval lie 95 % of
    the ratios that repetitions give. Milliseconds alone drift with the clock of the processor and other work on the machine.

    The first call is that of a new process: from the bytes of the file to the first answer, without the import of the runtime;
    memory is by how much the process grows for it.

    \b
    Example:
      mirabelle bench runs/digits/model.onnx runs/digits --seconds 0.5 --runtime onnxruntime
    """
    from mirabelle.artifact.reading import onnx_of
    from mirabelle.cli.arguments import given_of
    from mirabelle.errors import UserError
    from mirabelle.run.machine import this_machine
    from mirabelle.runtime.contest import contest
    from mirabelle.runtime.first_call import first_call

    given = given_of(shapes)
    if batches is not None and any(one.whole for one in given):
        raise UserError(
            "E111", "--batch and --input with all axes both define the batch", 'join the sizes by "x", or leave --batch out'
        )
    names = _runtimes(runtimes)
    threads = [this_machine().threads] if counts is None else _numbers("threads", counts)
    sizes = [1] if batches is None else _numbers("batch", batches)
    forms = {model: onnx_of(model) for model in models}
    results: list[tuple[Contest, dict[str, dict[str, Array]]]] = []
    for asked in sizes:
        feeds = {model: _tried_inputs(model, onnx, asked, given, threads[0]) for model, onnx in forms.items()}
        batch = next((len(array) for array in feeds[models[0]].values() if array.ndim), 1)
        found = contest(forms, feeds, names, threads=threads, batch=batch, seconds=seconds)
        results.append((found, feeds))
    first, feeds = results[0]
    ran = {(one.form, one.latency.runtime) for one in first.timings} if memory else set()
    calls = {key: first_call(forms[key[0]], feeds[key[0]], key[1], threads[0]) for key in sorted(ran)}
    lengths = {model: len(onnx) for model, onnx in forms.items()}
    if as_json:
        click.echo(json.dumps(_data(results, lengths, calls), indent=2))
    else:
        _print(results, lengths, calls)
    return 0


def _runtimes(text: str) -> list[str]:
    from mirabelle.runtime.runtime import runtime_named, runtimes_present

    names = runtimes_present() if text == "all" else list(dict.fromkeys(text.split(",")))
    for name in names:
        runtime_named(name).describe()  # an unknown or absent one is an error
    return names


def _numbers(option: str, text: str) -> list[int]:
    from mirabelle.errors import UserError

    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and int(part) > 0 for part in parts):
        message = f"--{option} takes whole numbers from 1, joined by commas; got {text!r}"
        raise UserError("E100", message, f"write, for example, --{option} 1,32")
    return list(dict.fromkeys(map(int, parts)))


def _print(
    results: Sequence[tuple[Contest, dict[str, dict[str, Array]]]],
    lengths: dict[str, int],
    calls: dict[tuple[str, str], FirstCall],
) -> None:
    from mirabelle.cli.display import print_table

    titles = ["file", "ONNX bytes", "runtime", "batch", "threads", "median ms", "p95 ms", "ratio (95 %)"]
    lines = []
    for found, _ in results:
        for position, one in enumerate(found.timings):
            at = one.latency
            row = [one.form, f"{lengths[one.form]:,}", at.runtime, str(at.batch), str(at.threads)]
            row += [f"{at.median:.4f}", f"{at.p95:.4f}", _ratio(one, position)]
            if calls:
                call = calls.get((one.form, at.runtime))
                row += ["–", "–"] if call is None else [f"{1e3 * call.seconds:.0f}", _megabytes(call)]
            lines.append(tuple(row))
    print_table((*titles, *(("first call, ms", "memory, MB") if calls else ())), lines)
    click.echo("")
    for found, feeds in results:
        first = found.timings[0]
        click.echo(f"batch {first.latency.batch}; compared with {first.form} in {first.place}:")
        for sentence in found.refused:
            click.echo(f"  not measured: {sentence}")
        shapes = {form: [list(array.shape) for array in feed.values()] for form, feed in feeds.items()}
        for one in found.timings[1:]:
            here = one.form if one.place == first.place else f"{one.form} in {one.place}"
            click.echo(f"{here}: {one.ratio.in_words()}")
            if shapes[one.form] != shapes[first.form]:
                told = f"input {_shapes(shapes[one.form])} here, {_shapes(shapes[first.form])} for the first"
                click.echo(f"  note: {told}; the work is not the same")
        if len({one.latency.runtime for one in found.timings}) > 1:
            click.echo("\n".join(found.in_words()))


def _tried_inputs(model: str, onnx: bytes, batch: int, given: Sequence[GivenInput], threads: int) -> dict[str, Array]:
    """Random inputs with which ONNX Runtime has run the model."""
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
    return feed


def _ratio(one: Timing, position: int) -> str:
    return f"{one.ratio.median:.3f} ({one.ratio.low:.3f} to {one.ratio.high:.3f})" if position else "1"


def _megabytes(call: FirstCall) -> str:
    return "–" if call.memory_bytes is None else f"{call.memory_bytes / _SHOWN_MB:.0f}"


def _shapes(shapes: list[list[int]]) -> str:
    return " and ".join("x".join(map(str, shape)) for shape in shapes)


def _data(
    results: Sequence[tuple[Contest, dict[str, dict[str, Array]]]],
    lengths: dict[str, int],
    calls: dict[tuple[str, str], FirstCall],
) -> dict[str, Any]:
    rows = []
    for found, feeds in results:
        for position, one in enumerate(found.timings):
            call = calls.get((one.form, one.latency.runtime))
            rows.append(
                {
                    "file": one.form,
                    "inputs": [list(array.shape) for array in feeds[one.form].values()],
                    "onnx_bytes": lengths[one.form],
                    "runtime": one.latency.runtime,
                    "batch": one.latency.batch,
                    "threads": one.latency.threads,
                    "median_ms": one.latency.median,
                    "p95_ms": one.latency.p95,
                    "ratio": one.ratio.to_data(),
                    "verdict": one.ratio.in_words() if position else "the reference",
                    "first_call_ms": None if call is None else 1e3 * call.seconds,
                    "memory_bytes": None if call is None else call.memory_bytes,
                }
            )
    first = results[0][0].timings[0].latency
    return {
        "runtime": first.runtime,
        "batch": first.batch,
        "threads": first.threads,
        "models": rows,
        "fastest": [found.fastest.to_data() for found, _ in results],
        "sentences": [sentence for found, _ in results for sentence in found.in_words()],
        "not_measured": [sentence for found, _ in results for sentence in found.refused],
    }

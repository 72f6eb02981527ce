"""`mirabelle large`: prunes and quantizes a large language model block by block."""

from __future__ import annotations

import json
from pathlib import Path

import click

from mirabelle.cli.options import json_option, quiet_option


@click.command("large", short_help="Prune and quantize a large language model block by block.")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--text", type=click.Path(path_type=Path), required=True, help="A text file: calibration data.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="The folder to write; the same call goes on there.")
@click.option("--sparsity", type=float, help="Share of the weights that becomes zero, e.g. 0.5.")
@click.option("--pattern", help='Instead of --sparsity: "2:4" keeps two of each four neighbouring weights.')
@click.option("--score", default="SparseGPT", show_default=True, help="SparseGPT, Wanda or Magnitude.")
@click.option("--bits", type=int, help="Bits per weight: 8, 4, 3 or 2.")
@click.option("--group-size", type=int, default=128, show_default=True, help="Weights that share a scale; 0 for whole rows.")
@click.option("--method", default="gptq", show_default=True, help='"gptq" or "nearest".')
@click.option("--samples", type=click.IntRange(min=1), default=128, show_default=True, help="Number of calibration windows.")
@click.option("--length", type=click.IntRange(min=1), default=512, show_default=True, help="Tokens of a window.")
@click.option("--onnx", is_flag=True, help="Write model.onnx with external data, too.")
@quiet_option
@json_option
def command(
    model: Path,
    *,
    text: Path,
    out: Path,
    sparsity: float | None,
    pattern: str | None,
    score: str,
    bits: int | None,
    group_size: int,
    method: str,
    samples: int,
    length: int,
    onnx: bool,
    quiet: bool,
    as_json: bool,
) -> int:
    """Prune and quantize MODEL, the folder of a causal language model of transformers, block by block.

    Memory holds one block and the hidden states of the calibration windows, not the model. The result is a folder that
    from_pretrained loads. If the command is killed, the same command goes on at the next block. With --onnx, it also has
    model.onnx and model.onnx.data, in which layers of 4 bits are computed by their codes.

    \b
    Example:
      mirabelle large ./llama --text corpus.txt --sparsity 0.5 --bits 4 --out ./llama-small
    """
    from mirabelle.cli.display import duration
    from mirabelle.job.block_by_block import compress_large
    from mirabelle.job.calibration_tokens import tokens_of_text
    from mirabelle.step import step_from_data

    steps = []
    if sparsity is not None or pattern is not None:
        amount = {key: value for key, value in (("sparsity", sparsity), ("pattern", pattern)) if value is not None}
        steps.append(step_from_data({"use": "prune.Weights", "score": score, **amount}))
    if bits is not None:
        steps.append(
            step_from_data({"use": "quantize.Weights", "weight_bits": bits, "group_size": group_size, "method": method})
        )

    def told(done: int, total: int, seconds_left: float) -> None:
        click.echo(f"block {done} of {total} done, {duration(seconds_left)} left", err=True)
        if onnx and done == total:
            click.echo("writing model.onnx", err=True)

    if onnx and not quiet:
        click.echo("making the graph of model.onnx", err=True)
    data = tokens_of_text(model, text, samples=samples, length=length)
    result = compress_large(model, steps, data, out, onnx=onnx, progress=None if quiet else told)
    if as_json:
        click.echo(json.dumps({"folder": str(out), "errors": dict(result.errors), "sparsity": dict(result.sparsity)}, indent=2))
        return 0
    worst = max(result.errors, key=lambda name: result.errors[name])
    mean = sum(result.errors.values()) / len(result.errors)
    click.echo(f"{out}: {len(result.errors)} layers are changed; transformers loads it with from_pretrained")
    if onnx:
        size = sum((out / name).stat().st_size for name in ("model.onnx", "model.onnx.data"))
        click.echo(f"{out / 'model.onnx'}: ONNX with external data, {size / 1e6:,.1f} MB together; ONNX Runtime loads it")
    click.echo(f"errors of layer outputs: {mean:.2%} of their power in the mean, {result.errors[worst]:.2%} at most ({worst})")
    return 0

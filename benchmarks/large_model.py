"""A causal transformer of a billion parameters, pruned and quantized block by block: peak memory, seconds, and that it loads.

    python benchmarks/large_model.py [--folder FOLDER] [--layers 22] [--samples 8] [--length 256] [--onnx]

A Llama with random weights in bfloat16, of the sizes of TinyLlama (width 2048, 5632 neurons, 22 blocks: 1.1 billion parameters), is written in shards by a
process of its own. A second one prunes half of its weights with SparseGPT and quantizes them with GPTQ to 4 bits in groups of
128 (`mirabelle.compress_large`); its peak memory is the largest resident size that the system counted, pages of files included.
A third one loads the result with `from_pretrained` and computes one sequence. With --onnx, a fourth one writes it as ONNX with
external data, and a fifth one computes the same sequence in ONNX Runtime.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from conditions import write

MAKE = """
import sys, torch, transformers
torch.manual_seed(0)
config = transformers.LlamaConfig(
    hidden_size=2048, intermediate_size=5632, num_hidden_layers=int(sys.argv[2]), num_attention_heads=32,
    num_key_value_heads=4, vocab_size=32000, max_position_embeddings=2048
)
model = transformers.AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
model.save_pretrained(sys.argv[1], max_shard_size="500MB")
print(sum(parameter.numel() for parameter in model.parameters()))
"""
COMPRESS = """
import sys, time, torch
from mirabelle import compress_large, prune, quantize
tokens = torch.randint(0, 32000, (int(sys.argv[3]), int(sys.argv[4])), generator=torch.Generator().manual_seed(0))
steps = [prune.Weights(sparsity=0.5, score=sys.argv[5]), quantize.Weights(weight_bits=4, group_size=128, method="gptq")]
compress_large(sys.argv[1], steps, tokens, sys.argv[2])
"""
LOAD = """
import sys, torch, transformers
model = transformers.AutoModelForCausalLM.from_pretrained(sys.argv[1])
with torch.no_grad():
    logits = model(input_ids=torch.arange(32)[None]).logits
assert bool(logits.isfinite().all())
weights = [weight for name, weight in model.named_parameters() if "_proj" in name]
print(sum(int((weight == 0).sum()) for weight in weights) / sum(weight.numel() for weight in weights))
"""
EXPORT = COMPRESS.replace("tokens, sys.argv[2])", "tokens, sys.argv[2], onnx=True)")
RUN = """
import sys, numpy, onnxruntime
session = onnxruntime.InferenceSession(sys.argv[1] + "/model.onnx", providers=["CPUExecutionProvider"])
tokens = numpy.arange(32)[None]
(logits,) = session.run(["logits"], {"input_ids": tokens, "attention_mask": numpy.ones_like(tokens)})
assert bool(numpy.isfinite(logits).all())
"""
SCORES = ("SparseGPT", "Wanda")


def ran(code: str, *arguments: object) -> tuple[str, float, float]:
    """(output, seconds, peak memory in GB) of a Python process of its own."""
    watched = "import resource\ntry:\n exec({code!r})\nfinally:\n print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)"
    began = time.time()
    command = [sys.executable, "-c", watched.format(code=code), *map(str, arguments)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    lines = done.stdout.strip().splitlines()
    return (lines[-2] if len(lines) > 1 else ""), time.time() - began, int(lines[-1]) / 1e6


def exported(dense: Path, out: Path, *settings: object) -> dict[str, float]:
    """The same call again, which goes on where nothing but the ONNX file is left to do, and a sequence in ONNX Runtime."""
    _, seconds, memory = ran(EXPORT, dense, out, *settings)
    _, seconds_of_run, memory_of_run = ran(RUN, out)
    return {
        "onnx_seconds": round(seconds), "onnx_peak_memory_gb": round(memory, 2),
        "onnx_gb": round((out / "model.onnx.data").stat().st_size / 1e9, 3),
        "onnxruntime_seconds": round(seconds_of_run), "onnxruntime_peak_memory_gb": round(memory_of_run, 2),
    }  # fmt: skip


def onnx_rows(found: dict[str, dict[str, float]]) -> list[str]:
    """The second table, if ONNX files were asked for."""
    rows = [
        f"| {score} | {one['onnx_gb']:.2f} GB | {one['onnx_peak_memory_gb']:.2f} GB | {one['onnx_seconds']:,} s "
        f"| {one['onnxruntime_peak_memory_gb']:.2f} GB | {one['onnxruntime_seconds']:,} s |"
        for score, one in found.items()
        if "onnx_gb" in one
    ]
    head = "| ONNX file | size | peak memory of the export | seconds | peak memory in ONNX Runtime | seconds |"
    return [head, "|---|--:|--:|--:|--:|--:|", *rows, ""] if rows else []


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--layers", type=int, default=22)
    parser.add_argument("--samples", type=int, default=8)
    parser.add_argument("--length", type=int, default=256)
    parser.add_argument("--onnx", action="store_true")
    parser.add_argument("--scores", nargs="+", default=list(SCORES))
    given = parser.parse_args()
    found: dict[str, dict[str, float]] = {}
    with tempfile.TemporaryDirectory() as temporary:
        place = given.folder or Path(temporary)
        parameters = int(ran(MAKE, place / "dense", given.layers)[0])
        for score in given.scores:
            out = place / score
            _, seconds, memory = ran(COMPRESS, place / "dense", out, given.samples, given.length, score)
            zeros, _, _ = ran(LOAD, out)
            found[score] = {
                "seconds": round(seconds), "peak_memory_gb": round(memory, 2), "zeros": round(float(zeros), 4),
                "codes_gb": round(sum(path.stat().st_size for path in (out / "codes").iterdir()) / 1e9, 3),
            }  # fmt: skip
            if given.onnx:
                found[score] |= exported(place / "dense", out, given.samples, given.length, score)
            print(json.dumps({score: found[score]}), flush=True)
    rows = [
        f"| {score}, then GPTQ to 4 bits | {one['peak_memory_gb']:.2f} GB | {one['seconds']:,} s | {one['zeros']:.1%} | {one['codes_gb']:.2f} GB |"
        for score, one in found.items()
    ]
    page = "\n".join([
        f"# A Llama of {parameters:,} parameters, block by block", "", __doc__.split("\n\n")[-1].strip(),
        f"{given.samples} samples of {given.length} tokens.", "",
        "| steps | peak memory | seconds | zeros | packed codes |", "|---|--:|--:|--:|--:|", *rows, "",
        *onnx_rows(found),
    ])  # fmt: skip
    write("large_model", {"parameters": parameters, "runs": found}, page)


if __name__ == "__main__":
    main()

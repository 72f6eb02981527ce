"""Perplexity of a small Llama on tiny Shakespeare after one-shot pruning and weight quantization, block by block.

    python benchmarks/large_perplexity.py --data DATA [--steps 800] [--seeds 1]

A Llama of 4 blocks, 128 wide, is trained on the first 90 % of the characters. `mirabelle.compress_large` prunes and quantizes it
with 128 windows of the training text as calibration, and the perplexity per character is measured on the last 10 %.
"""

from __future__ import annotations

import argparse
import math
import tempfile
from pathlib import Path

import torch
from torch import Tensor

from conditions import write
from mirabelle import compress_large, prune, quantize

WINDOW = 128
FORMS = {
    "RTN, 4 bits, groups of 32": [quantize.Weights(weight_bits=4, group_size=32)],
    "GPTQ, 4 bits, groups of 32": [quantize.Weights(weight_bits=4, group_size=32, method="gptq")],
    "RTN, 3 bits, groups of 32": [quantize.Weights(weight_bits=3, group_size=32)],
    "GPTQ, 3 bits, groups of 32": [quantize.Weights(weight_bits=3, group_size=32, method="gptq")],
    "RTN, 2 bits, groups of 32": [quantize.Weights(weight_bits=2, group_size=32)],
    "GPTQ, 2 bits, groups of 32": [quantize.Weights(weight_bits=2, group_size=32, method="gptq")],
    "magnitude, 50 %": [prune.Weights(sparsity=0.5)],
    "Wanda, 50 %": [prune.Weights(sparsity=0.5, score="Wanda")],
    "SparseGPT, 50 %": [prune.Weights(sparsity=0.5, score="SparseGPT")],
    "magnitude, 2:4": [prune.Weights(pattern="2:4")],
    "Wanda, 2:4": [prune.Weights(pattern="2:4", score="Wanda")],
    "SparseGPT, 2:4": [prune.Weights(pattern="2:4", score="SparseGPT")],
    "SparseGPT, 50 %, then GPTQ, 4 bits": [
        prune.Weights(sparsity=0.5, score="SparseGPT"),
        quantize.Weights(weight_bits=4, group_size=32, method="gptq"),
    ],
}


def text(data: Path) -> tuple[Tensor, Tensor, int]:
    characters = (data / "tiny-shakespeare" / "input.txt").read_text("utf-8")
    known = {character: number for number, character in enumerate(sorted(set(characters)))}
    ids = torch.tensor([known[character] for character in characters])
    cut = int(0.9 * len(ids))
    return ids[:cut], ids[cut:], len(known)


def trained(  # noqa: PLR0917
    ids: Tensor, size: int, steps: int, batch_size: int, seed: int, folder: Path
) -> None:
    import transformers

    torch.manual_seed(seed)
    config = transformers.LlamaConfig(
        hidden_size=128, intermediate_size=352, num_hidden_layers=4, num_attention_heads=4, vocab_size=size,
        max_position_embeddings=WINDOW, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=0.1, betas=(0.9, 0.95))
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=steps, pct_start=0.1)
    for step in range(steps):
        starts = torch.randint(len(ids) - WINDOW - 1, (batch_size,))
        batch = torch.stack([ids[start : start + WINDOW + 1] for start in starts.tolist()])
        loss = model(input_ids=batch[:, :-1]).logits.flatten(0, 1)
        loss = torch.nn.functional.cross_entropy(loss, batch[:, 1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
        if step % 50 == 0:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    model.save_pretrained(folder)


@torch.no_grad()
def perplexity(folder: Path, ids: Tensor) -> float:
    import transformers

    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    windows = ids[: len(ids) // WINDOW * WINDOW].reshape(-1, WINDOW)
    total = 0.0
    for part in windows.split(64):
        logits = model(input_ids=part).logits[:, :-1]
        total += float(torch.nn.functional.cross_entropy(logits.flatten(0, 1), part[:, 1:].flatten(), reduction="sum"))
    return math.exp(total / (len(windows) * (WINDOW - 1)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--windows", type=int, default=871, help="of the held-out text that are judged")
    given = parser.parse_args()
    train, held_out, size = text(given.data)
    held_out = held_out[: given.windows * WINDOW]
    found: dict[str, list[float]] = {}
    for seed in range(given.seeds):
        with tempfile.TemporaryDirectory() as place:
            dense = Path(place) / "dense"
            trained(train, size, given.steps, given.batch, seed, dense)
            generator = torch.Generator().manual_seed(seed)
            starts = torch.randint(len(train) - WINDOW, (128,), generator=generator).tolist()
            data = torch.stack([train[start : start + WINDOW] for start in starts])
            found.setdefault("dense", []).append(perplexity(dense, held_out))
            for number, (name, steps) in enumerate(FORMS.items()):
                out = Path(place) / str(number)
                compress_large(dense, steps, data, out)
                found.setdefault(name, []).append(perplexity(out, held_out))
                print(f"{name:40} {found[name][-1]:.4f}", flush=True)
    rows = [f"| {name} | {' | '.join(f'{one:.3f}' for one in values)} |" for name, values in found.items()]
    head = ["| form | " + " | ".join(f"seed {k}" for k in range(given.seeds)) + " |", "|---|" + "--:|" * given.seeds]
    title = "# Perplexity per character of a small Llama on tiny Shakespeare"
    about = f"{__doc__.split(chr(10) * 2)[-1].strip()} {given.steps} training steps of {given.batch} windows; {len(held_out) // WINDOW} windows are judged."
    page = "\n".join([title, "", about, "", *head, *rows, ""])
    write("large_perplexity", {"perplexity": found, "steps": given.steps}, page)


if __name__ == "__main__":
    main()

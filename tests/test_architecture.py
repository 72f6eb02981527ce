"""The house itself: import order, no cycles, no vague names, no file too long, nothing heavy at start-up."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src" / "mirabelle"
# Imports point only upwards in this list. `__init__` re-exports lazily and is above none.
ROOMS = [
    "errors", "lazy", "records", "run", "numerics", "codecs", "task", "model", "graph", "step", "runtime", "calibration",
    "sources", "allocation", "objectives", "scores", "training", "factorize", "prune", "distill", "quantize", "artifact",
    "inspection", "recipe", "report", "job", "planning", "testing", "cli",
    "__main__",
]  # fmt: skip
VAGUE = {"utils", "util", "helpers", "helper", "common", "misc", "base", "core", "manager", "tools"}
MODULES = sorted(SOURCE.rglob("*.py"))
PUBLIC_FUNCTIONS = {"auto", "compare", "compress", "load", "save", "pack", "unpack"}


def room_of(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imports(path: Path) -> list[str]:
    """The rooms that a module imports, for its types alone or when it runs."""
    found: list[str] = []

    def visit(node: ast.AST) -> None:
        if isinstance(node, ast.ImportFrom) and node.module and node.module.split(".")[0] == "mirabelle":
            parts = node.module.split(".")
            found.extend([parts[1]] if len(parts) > 1 else [alias.name for alias in node.names])
        for child in ast.iter_child_nodes(node):
            visit(child)

    visit(ast.parse(path.read_text("utf-8")))
    return [name for name in found if name != "__version__"]


def test_every_room_is_in_the_order() -> None:
    rooms = {room_of(path) for path in MODULES} - {"__init__"}
    assert rooms == set(ROOMS)


def test_imports_point_upwards() -> None:
    """One test for all modules: hundreds of small ones cost more to hand out than to run."""
    wrong = []
    for path in MODULES:
        room = room_of(path)
        below = [] if room == "__init__" else [name for name in imports(path) if ROOMS.index(name) > ROOMS.index(room)]
        wrong += [f"{path.relative_to(SOURCE)} imports {name}, which is below {room}" for name in below]
    assert not wrong


def test_the_order_is_checked_at_all(tmp_path: Path) -> None:
    module = tmp_path / "wrong.py"
    module.write_text("from mirabelle.cli import main\nfrom mirabelle import job\n")
    assert imports(module) == ["cli", "job"]


def test_names_say_something_and_files_hold_one_idea() -> None:
    assert not [path for path in MODULES if path.stem in VAGUE]
    assert not [path for path in MODULES if path.stem in PUBLIC_FUNCTIONS and path.parent.name != "cli"]
    assert not [path for path in MODULES if len(path.read_text("utf-8").splitlines()) > 400]


def test_no_large_file_is_tracked() -> None:
    """What a benchmark leaves behind would stay in the history for ever."""
    root = SOURCE.parents[1]
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=root, capture_output=True, text=True, check=False)
    if listed.returncode:
        pytest.skip("this copy of the project is not a git checkout")
    files = [root / name for name in listed.stdout.split("\0") if name]
    assert not [file for file in files if file.is_file() and file.stat().st_size > 200_000]


def test_no_package_exports_a_name_of_one_of_its_modules() -> None:
    """Importing the module would put it in the place of what the package exports."""
    for path in SOURCE.rglob("__init__.py"):
        package = ".".join(("mirabelle", *path.parent.relative_to(SOURCE).parts))
        lazy = set(getattr(importlib.import_module(package), "__all__", ())) - set(vars(importlib.import_module(package)))
        assert not [name for name in lazy if (path.parent / f"{name}.py").is_file()], package


def test_every_module_says_what_it_is_for() -> None:
    assert not [path for path in MODULES if not ast.get_docstring(ast.parse(path.read_text("utf-8")))]


def test_modules_within_a_room_form_no_cycle() -> None:
    edges = {path: _neighbours(path) for path in MODULES}
    done: set[Path] = set()

    def walk(path: Path, trail: tuple[Path, ...]) -> None:
        assert path not in trail, f"cycle: {[str(step.relative_to(SOURCE)) for step in (*trail, path)]}"
        if path not in done:
            for neighbour in edges[path]:
                walk(neighbour, (*trail, path))
            done.add(path)

    for path in MODULES:
        walk(path, ())


def _neighbours(path: Path) -> list[Path]:
    """The modules of mirabelle that a module imports, for its types alone or when it runs."""
    found = []
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if not isinstance(node, ast.ImportFrom) or not (node.module or "").startswith("mirabelle"):
            continue
        place = SOURCE.joinpath(*(node.module or "").split(".")[1:])
        for alias in node.names:
            candidates = [place / f"{alias.name}.py", place.with_suffix(".py"), place / "__init__.py"]
            found += [next(candidate for candidate in candidates if candidate.is_file())]
    return [other for other in found if other not in (path, SOURCE / "__init__.py")]


@pytest.mark.parametrize("name", ["mirabelle", "mirabelle.cli.main", "mirabelle.errors", "mirabelle.task.goal"])
def test_nothing_heavy_is_imported_before_it_is_needed(name: str) -> None:
    code = f"import sys, {name}; print(sorted({{'torch', 'onnx', 'onnxruntime', 'sklearn', 'scipy'}} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"

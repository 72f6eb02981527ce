"""The documents say what is true: examples run, the reference is up to date, the map is the map."""

from __future__ import annotations

import importlib.util
import json
import re
import shlex
import shutil
import tomllib
from pathlib import Path
from types import ModuleType

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

import mirabelle
from mirabelle.cli import main
from mirabelle.recipe.comparison import read_comparison
from mirabelle.recipe.file import read_recipe

ROOT = Path(__file__).parents[1]


def blocks(name: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", (ROOT / name).read_text("utf-8"), re.DOTALL)


def test_the_python_of_the_readme_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("README.md", "python"):
        exec(compile(block, "README.md", "exec"), names)
    result = names["result"]
    assert isinstance(result, mirabelle.Result)
    assert (tmp_path / "runs" / "x" / "report.html").is_file()
    assert str(result.profile.size_bytes.packed) in capsys.readouterr().out


def test_the_python_of_the_page_on_distillation_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("transformers")
    pytest.importorskip("accelerate")
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    for block in blocks("docs/distillation.md", "python"):
        exec(compile(block, "docs/distillation.md", "exec"), names)
    student = names["student"]
    assert isinstance(student, torch.nn.Module)
    assert not any("distillation" in name for name, _ in student.named_parameters()), "projectors are dropped"


def test_the_python_of_the_page_on_frameworks_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    keras = pytest.importorskip("mirabelle.sources.models.keras_model.library").library()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("KERAS_BACKEND", "torch")  # as it is, put back afterwards
    names: dict[str, object] = {}
    for block in blocks("docs/frameworks.md", "python"):
        exec(compile(block, "docs/frameworks.md", "exec"), names)
    sparse = names["sparse"]
    assert isinstance(sparse, keras.Model)
    assert (sparse.layers[0].get_weights()[0] == 0).mean() >= 0.79
    assert names["scores"].shape == (300, 3)


def test_the_tables_of_the_page_on_distillation_are_those_of_the_benchmark() -> None:
    numbers = json.loads((ROOT / "benchmarks" / "results" / "distill_family.json").read_text("utf-8"))
    page = (ROOT / "docs" / "distillation.md").read_text("utf-8")
    assert all(numbers[part]["table"] in page for part in ("every", "best") if part in numbers)


@pytest.mark.parametrize("whole", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_person_gets_from_the_readme_to_their_own_compressed_model(
    whole: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Their module in ./net.py, their folder of images, and the five commands; `auto` to its plan, or to its end.

    They run as they stand, but for the goal of `auto`: half the milliseconds of so small a network is not to be had on every
    machine, a quarter of its bytes is.
    """
    (model,) = [block for block in blocks("README.md", "python") if "def net()" in block]
    (tmp_path / "net.py").write_text(model)
    generator = np.random.default_rng(0)
    for name, color in {"cat": (200, 120, 60), "dog": (60, 120, 200)}.items():
        (tmp_path / "photos" / name).mkdir(parents=True)
        for k in range(1, 61):
            pixels = np.clip(generator.normal(color, 40, (20, 20, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / "photos" / name / f"{k}.jpg")
    monkeypatch.chdir(tmp_path)
    commands = [line for block in blocks("README.md", "sh") for line in block.splitlines()]
    auto, *others = commands
    assert [line.split()[1] for line in commands] == ["auto", "init", "check", "run", "predict"]
    for line in others:
        typed, _, target = line.partition(" > ")
        assert main.run(shlex.split(typed)[1:]) == 0, capsys.readouterr().err
        out = capsys.readouterr().out
        if target:
            (tmp_path / target).write_text(out)
    assert (tmp_path / "runs" / "photos" / "report.html").is_file()
    assert "cat" in out.splitlines()[1], out
    shutil.copy("runs/photos/steps/0-baseline/model.safetensors", "trained.safetensors")
    assert auto.endswith("--latency 50%")
    typed = shlex.split(auto.replace("--latency 50%", "--size 25% --latency any"))
    assert main.run([*typed[1:], *(() if whole else ("--dry-run",))]) == 0, capsys.readouterr().err
    if not whole:
        kept = json.loads(next((tmp_path / "runs" / "auto").rglob("plan.json")).read_text("utf-8"))
        assert kept["plans"][0]["costs"]["size"] <= kept["limits"]["size"]
        return
    report = json.loads((tmp_path / "runs" / "auto" / "report.json").read_text("utf-8"))
    assert report["end"]["size_bytes"]["packed"] <= 0.25 * report["start"]["size_bytes"]["torch"]


def test_the_recipe_of_the_readme_is_one(tmp_path: Path) -> None:
    (recipe,) = blocks("README.md", "toml")
    (tmp_path / "recipe.toml").write_text(recipe)
    assert len(read_recipe(tmp_path / "recipe.toml").recipe.steps) == 2


def test_the_numbers_of_the_readme_are_those_of_the_benchmark() -> None:
    numbers = json.loads((ROOT / "benchmarks" / "results" / "mnist.json").read_text("utf-8"))
    readme = (ROOT / "README.md").read_text("utf-8")
    for model in ("LeNet-300-100", "LeNet-5-Caffe"):
        errors, sizes = numbers[model]["errors"], numbers[model]["packed_bytes"]
        assert len(errors) == 3
        assert f"| {model} | {sum(errors) / 3:.2f} % | {sum(sizes) / 3000:.1f} kB |" in readme


def test_every_link_of_the_documents_leads_somewhere() -> None:
    for page in [*ROOT.glob("*.md"), *ROOT.glob("docs/*.md")]:
        for target in re.findall(r"\]\(([^)#:]+)\)", page.read_text("utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


def reference_module() -> ModuleType:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_reference_is_up_to_date() -> None:
    assert (ROOT / "docs" / "reference.md").read_text("utf-8") == reference_module().reference(), "run `make docs`"


def test_the_reference_and_the_schema_describe_inherited_settings() -> None:
    page = (ROOT / "docs" / "reference.md").read_text("utf-8")
    section = page.split("## Data: an .npz file")[1].split("## ")[0]
    arguments = section.split("Args:\n")[1].split("\n\n")[0]
    assert "    labels: names of the classes" in arguments
    assert "    extra_metrics: further metrics" in arguments
    text = reference_module().documentation(mirabelle.objectives.RKD)
    assert "    layers: the student's layer" in text.split("Args:")[1].split("\n\n")[0]
    table = json.loads((ROOT / "src" / "mirabelle" / "recipe" / "recipe.schema.json").read_text("utf-8"))
    terms = table["$defs"]["Objective"]["items"]["oneOf"]
    (term,) = [term for term in terms if term["properties"]["term"].get("const") == "RKD"]
    assert term["properties"]["layers"]["description"]


def test_the_schema_for_editors_is_up_to_date_and_holds_for_every_example() -> None:
    shipped = (ROOT / "src" / "mirabelle" / "recipe" / "recipe.schema.json").read_text("utf-8")
    assert shipped == reference_module().schema(), "run `make docs`"
    validator = jsonschema.Draft202012Validator(json.loads(shipped))
    for path in [*ROOT.glob("examples/*.toml"), ROOT / "src" / "mirabelle" / "cli" / "demo.toml"]:
        data = tomllib.loads(path.read_text("utf-8"))
        if "compare" in data:
            assert read_comparison(path).table.train
        else:
            validator.validate(data)
    recipe = tomllib.loads((ROOT / "examples" / "digits.toml").read_text("utf-8"))
    for wrong in ({"sed": 1}, {"goal": {"sise": "5%"}}, {"step": []}, {"step": [{"use": "prune.Weights", "sparsity": 1.0}]}):
        assert not validator.is_valid({**recipe, **wrong}), wrong


def test_the_map_in_the_architecture_page_is_the_order_of_the_rooms() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text("utf-8")
    listed = page.split("## The rooms, in order")[1].split("```")[1]
    rooms = [word.rstrip("/") for line in listed.splitlines() for word in re.findall(r"^(\S+(?: \S+/)*)", line) if line]
    names = [name.rstrip("/") for room in rooms for name in room.split()]
    spec = importlib.util.spec_from_file_location("order", ROOT / "tests" / "test_architecture.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert names == module.ROOMS


def test_the_version_is_in_the_changelog_and_torch_is_pinned_first() -> None:
    assert f"## {mirabelle.__version__}" in (ROOT / "CHANGELOG.md").read_text("utf-8")
    constraints = (ROOT / "constraints.txt").read_text("utf-8").splitlines()
    assert "torch==2.13.0" in constraints
    assert all(re.fullmatch(r"[A-Za-z0-9_.-]+==[0-9][A-Za-z0-9.]*", line) for line in constraints)


def test_every_dependency_is_constrained() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
    wanted = [*project["dependencies"], *project["optional-dependencies"]["dev"]]
    names = {
        re.split(r"[<>=]", line)[0].lower().replace("_", "-") for line in (ROOT / "constraints.txt").read_text().splitlines()
    }
    assert {re.split(r"[<>=]", entry)[0].lower() for entry in wanted} <= names


def test_the_public_names_are_there() -> None:
    assert sorted(mirabelle.__all__) == mirabelle.__all__
    for name in mirabelle.__all__:
        assert getattr(mirabelle, name) is not None
    with pytest.raises(AttributeError, match="has no attribute 'squeeze'"):
        mirabelle.squeeze  # noqa: B018


PUBLIC_MODULES = {
    "mirabelle.errors",
    "mirabelle.step",
    "mirabelle.sources.zoo",
}  # contracts, and the networks that recipes name


def test_documents_and_examples_use_only_what_packages_export() -> None:
    """`from package import name`, with a name in the package's `__all__`; nothing out of a file of a package."""
    pages = [ROOT / "README.md", *ROOT.glob("docs/*.md")]
    sources = {path.name: "\n".join(blocks(str(path.relative_to(ROOT)), "python")) for path in pages}
    sources |= {path.name: path.read_text("utf-8") for path in ROOT.glob("examples/*.py")}
    private = []
    for name, text in sources.items():
        for module, names in re.findall(r"from (mirabelle[\w.]*) import ([^\n(]+|\([^)]*\))", text):
            if module not in PUBLIC_MODULES:
                exported = getattr(importlib.import_module(module), "__all__", ())
                wanted = re.findall(r"\w+", re.sub(r"#.*", "", names))
                private += [f"{name}: {module}.{word}" for word in wanted if word not in (*exported, "as")]
        for use in re.findall(r"(?<!from )(mirabelle\.[\w.]*\.[\w.]+)\(", text):
            module, _, word = use.rpartition(".")
            if word not in getattr(importlib.import_module(module), "__all__", ()):
                private.append(f"{name}: {use}")
    assert not private

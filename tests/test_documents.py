"""The documents say what is true: examples run, the reference is up to date, the map is the map."""

from __future__ import annotations

import importlib.util
import json
import re
import tomllib
from pathlib import Path

import pytest

import mirabelle
from mirabelle.recipe_file import read_recipe

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


def test_the_reference_is_up_to_date() -> None:
    spec = importlib.util.spec_from_file_location("reference", ROOT / "docs" / "reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    assert (ROOT / "docs" / "reference.md").read_text("utf-8") == module.reference(), "run `make docs`"


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

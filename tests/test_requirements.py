"""What pyproject.toml requires: the extra `all` is every extra for users, and lowest versions become constraints."""

from __future__ import annotations

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
EXTRAS: dict[str, list[str]] = PROJECT["optional-dependencies"]


def lowest(text: str) -> dict[str, str]:
    spec = importlib.util.spec_from_file_location("lowest", ROOT / ".ci" / "lowest.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    found: dict[str, str] = module.lowest(text)
    return found


def test_the_extra_all_is_the_union_of_the_extras_for_users() -> None:
    (itself,) = EXTRAS["all"]
    named = re.fullmatch(r"mirabelle\[([\w,]+)\]", itself)
    assert named is not None
    assert named[1].split(",") == sorted(set(EXTRAS) - {"all", "dev"})


def test_one_package_has_one_lower_bound() -> None:
    listed = [
        *PROJECT["dependencies"],
        *(one for extra in EXTRAS.values() for one in extra if not one.startswith("mirabelle[")),
    ]
    bounds: dict[str, set[str]] = {}
    for requirement in listed:
        name, _, version = requirement.partition(">=")
        assert version, requirement
        bounds.setdefault(name, set()).add(version)
    assert {name: found for name, found in bounds.items() if len(found) > 1} == {}
    due = {name: found.pop() for name, found in bounds.items() if name != "torch"}
    assert lowest((ROOT / "pyproject.toml").read_text("utf-8")) == due


def test_the_constraints_allow_what_is_required() -> None:
    """constraints.txt holds the versions that are tested; none of them is below its bound."""
    pinned = dict(line.lower().replace("_", "-").split("==") for line in (ROOT / "constraints.txt").read_text().split())
    for name, bound in lowest((ROOT / "pyproject.toml").read_text("utf-8")).items():
        if name in pinned:
            assert [int(part) for part in re.findall(r"\d+", pinned[name])[:2]] >= [
                int(part) for part in bound.split(".")[:2]
            ], name


def test_the_highest_of_several_bounds_counts_and_torch_is_left_out() -> None:
    text = '[project]\ndependencies = ["torch>=2.11", "onnx>=1.9"]\n[project.optional-dependencies]\nx = ["onnx>=1.18"]\n'
    assert lowest(text) == {"onnx": "1.18"}

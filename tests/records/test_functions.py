"""Functions by name: those that a module defines, not whatever it has imported."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mirabelle.errors import UserError
from mirabelle.records.functions import object_from
from mirabelle.records.trust import names_of


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A user's program: files that import from each other, and from elsewhere."""
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("parts_of_test_functions", "file_of_test_functions"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    (tmp_path / "parts_of_test_functions").mkdir()
    (tmp_path / "parts_of_test_functions" / "__init__.py").write_text("def small():\n    pass\n")
    (tmp_path / "file_of_test_functions.py").write_text(
        "from functools import lru_cache, partial\n"
        "from os import system\n"
        "from shutil import rmtree as net\n"
        "from parts_of_test_functions import small\n"
        "from torch.nn import Linear\n"
        "def own(): pass\n"
        "class Own: pass\n"
        "cached = lru_cache(own)\n"
        "half = partial(own)\n"
    )
    return tmp_path


@pytest.mark.parametrize("name", ["own", "Own", "cached", "half", "small"])
def test_what_a_file_defines_or_imports_from_its_own_folder_is_found(folder: Path, name: str) -> None:
    assert callable(object_from(f"./file_of_test_functions.py:{name}", folder))
    if name != "small":
        assert callable(object_from(f"file_of_test_functions:{name}", folder))


@pytest.mark.parametrize("name", ["torch.nn:Linear", "json:loads", "torch.nn.functional:relu", "operator:add"])
def test_what_a_package_exports_from_its_parts_is_found(name: str) -> None:
    assert callable(object_from(name, Path()))


@pytest.mark.parametrize(
    ("name", "home"),
    [
        ("os:system", "posix:system"),
        ("file_of_test_functions:system", "posix:system"),
        ("./file_of_test_functions.py:system", "posix:system"),
        ("./file_of_test_functions.py:net", "shutil:rmtree"),
        ("./file_of_test_functions.py:Linear", "torch.nn.modules.linear:Linear"),
    ],
)
def test_what_a_module_only_imports_is_named_where_it_is_defined(folder: Path, name: str, home: str) -> None:
    with pytest.raises(UserError, match=r"E120.*only imports") as caught:
        object_from(name, folder)
    assert f'write "{home}"' in caught.value.remedy


def test_a_folder_that_is_not_trusted_names_networks_of_our_own_alone(folder: Path) -> None:
    with names_of(folder, trust=False):
        assert object_from("mirabelle.sources.zoo:digits_mlp", folder)()
        for name in (
            "mirabelle.sources.zoo.Path:home",
            "mirabelle.sources:zoo",
            "json:loads",
            "./file_of_test_functions.py:own",
        ):
            with pytest.raises(UserError, match="E144"):
                object_from(name, folder)
        with pytest.raises(UserError, match="E120"):
            object_from("mirabelle.sources.zoo:RowTransformer", folder)
    with names_of(folder, trust=True):
        assert callable(object_from("./file_of_test_functions.py:own", folder))
    assert callable(object_from("json:loads", folder))

"""What is installed, from metadata alone."""

from __future__ import annotations

from importlib import metadata

from mirabelle.run.installation import installed, read


def test_everything_that_mirabelle_needs_is_there() -> None:
    needed, _ = installed()
    assert {"torch", "onnxruntime", "click"} <= {package.name for package in needed}
    assert [package for package in needed if package.fault] == []


def test_what_is_missing_or_too_old_is_named() -> None:
    needed, extras = read(
        ["torch>=2.11", "click>=999", "no-such-package", 'no-such-thing>=1; extra == "dreams"', 'click; extra == "clicks"']
    )
    assert [package.fault for package in needed] == ["", "is too old: version 999 is required", "is not installed"]
    assert [(extra.name, extra.present) for extra in extras] == [("dreams", False), ("clicks", True)]
    assert extras[0].command == "pip install 'mirabelle[dreams]'"


def test_a_package_whose_files_are_gone_is_broken(monkeypatch) -> None:
    monkeypatch.setattr("mirabelle.run.installation._exists", lambda module: module != "torch")
    needed, _ = read(["torch>=2.11"])
    assert needed[0].fault == "is broken: its module torch is missing"


def test_what_developers_need_is_no_extra() -> None:
    assert read(['pytest>=8; extra == "dev"']) == ([], [])


def test_a_mirabelle_that_is_not_installed_is_named(monkeypatch) -> None:
    def absent(name: str) -> list[str]:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "requires", absent)
    needed, extras = installed()
    assert needed[0].name == "mirabelle"
    assert needed[0].fault.startswith("is not installed")
    assert extras == []

"""Tables on the command line: what `init` and `check` say of their features, and what `predict` says of unknown words."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from mirabelle.cli import main

STEP = '[[step]]\nuse = "quantize.Dynamic"\n'


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    rows = "".join(f"{k % 50};{('clerk', 'nurse')[k % 2]};{k},5;{('no', 'yes')[k % 3 == 0]}\n" for k in range(120))
    Path("bank.csv").write_text("age;job;balance;y\n" + rows)
    return tmp_path


def test_init_names_the_features_and_proposes_a_network(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main.run(("init", "--data", "bank.csv")) == 0
    recipe = capsys.readouterr().out
    assert "# The network takes 5 features: age, job (3), balance. It returns 2 outputs, one for each class: no, yes." in recipe
    assert 'from = "mirabelle.sources.zoo:table_mlp"' in recipe
    assert "\narguments = { features = 5, outputs = 2 }" in recipe
    (place / "recipe.toml").write_text(recipe)
    assert main.run(("check", "recipe.toml")) == 0
    assert "- The network takes 5 features: age, job (3), balance.\n" in capsys.readouterr().out
    Path("net.py").write_text("from torch import nn\n\n\ndef net(width=32):\n    return nn.Linear(width, 2)\n")
    assert main.run(("init", "--data", "bank.csv", "--model", "./net.py:net", "--no-look")) == 0
    assert "\n# arguments = { features = 5, outputs = 2 }" in capsys.readouterr().out
    assert main.run(("init", "--data", "bank.csv", "--model", "./net.py:net")) == 2
    assert "error[E121]: --model: the model does not take the 5 features of each row" in capsys.readouterr().err


def test_init_says_why_a_table_cannot_be_read(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Without a look in the recipe; otherwise it tries what mostly helps."""
    Path("german.data").write_text("".join(f"A1{k % 4} {k} {k % 2 + 1}\n" for k in range(40)))
    assert main.run(("init", "--data", "german.data", "--no-look")) == 0
    assert "german.data: line 1 has no names but values: A10, 0, 1" in capsys.readouterr().out
    assert main.run(("init", "--data", "german.data")) == 0
    assert "\narguments = { header = false }\n" in capsys.readouterr().out
    Path("german.data").write_text("A 1\nB\nC 2 3\n")
    assert main.run(("init", "--data", "german.data")) == 2
    assert "error[E131]: --data: " in capsys.readouterr().err


def test_a_network_of_another_width_is_told_which_it_needs(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = 'from = "mirabelle.sources.zoo:table_mlp"\narguments = { features = 3, outputs = 2 }\n'
    Path("recipe.toml").write_text(f'schema = 1\n[model]\n{model}[task]\ndata = "bank.csv"\n{STEP}')
    assert main.run(("check", "recipe.toml")) == 2
    told = capsys.readouterr().err
    assert "the model does not take the 5 features of each row of the table" in told
    assert "help: give it this width. The network takes 5 features: age, job (3), balance.\n" in told


def test_predict_takes_rows_in_another_order_and_tells_unknown_words(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = 'from = "mirabelle.sources.zoo:table_mlp"\narguments = { features = 5, outputs = 2 }\n'
    Path("recipe.toml").write_text(f'schema = 1\n[model]\n{model}[task]\ndata = "bank.csv"\n{STEP}')
    assert main.run(("run", "recipe.toml", "--out", "run", "--quiet")) in (0, 4)
    capsys.readouterr()
    Path("new.csv").write_text("job\tmore\tbalance\tage\nclerk\tx\t3,5\t20\npilot\tx\t3,5\t20\n")
    assert main.run(("predict", "run/model.mira", "new.csv")) == 0
    printed = capsys.readouterr()
    assert [line.split()[0] for line in printed.out.splitlines()[1:]] == ["new.csv:2", "new.csv:3"]
    note = 'new.csv, line 3, column "job": "pilot" is none of the words that were learned; it counts as other'
    assert printed.err == f"note: {note}\n"
    assert main.run(("predict", "run", "new.csv", "--json")) == 0
    first, second = json.loads(capsys.readouterr().out)
    assert "notes" not in first
    assert second["notes"] == [note]
    Path("new.csv").write_text("job;balance;age\nclerk;x;20\n")
    assert main.run(("predict", "run", "new.csv")) == 2
    assert 'new.csv, line 2, column "balance": "x" is not a finite number' in capsys.readouterr().err

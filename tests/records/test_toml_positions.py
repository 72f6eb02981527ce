"""Where things stand in TOML, settings on the command line, and where each value of a resolved recipe comes from."""

from __future__ import annotations

import tomllib
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mirabelle import Training, compress, prune, quantize
from mirabelle.errors import UserError
from mirabelle.recipe.file import read_recipe
from mirabelle.recipe.overrides import Overrides
from mirabelle.records.annotated_toml import resolved_text
from mirabelle.records.toml_positions import TomlPositions

TEXT = '''# a comment
"quoted key" = 1
a.b.c = "ä" # dots
table = { x = 1, "y.z" = { w = [1, [2, 3]] } }

[outer.inner]
text = """
two lines"""
[[list]]
name = "first"
[[list.sub]]
deep = true
[[list.sub]]
deep = false
[[list]]
name = 'second'
[list.table]
value = 3
'''


@pytest.mark.parametrize(
    ("path", "key", "value"),
    [
        (("quoted key",), "2:1", "2:16"),
        (("a", "b", "c"), "3:1", "3:9"),
        (("a", "b"), "3:1", "3:1"),
        (("table", "x"), "4:11", "4:15"),
        (("table", "y.z", "w", 1, 0), "4:37", "4:37"),
        (("outer", "inner"), "6:2", "6:2"),
        (("outer", "inner", "text"), "7:1", "7:8"),
        (("list", 0, "name"), "10:1", "10:8"),
        (("list", 0, "sub", 1, "deep"), "14:1", "14:8"),
        (("list", 1, "name"), "16:1", "16:8"),
        (("list", 1, "table", "value"), "18:1", "18:9"),
        (("list", 1, "absent"), "15:3", "15:3"),
        (("nowhere",), "1:1", "1:1"),
    ],
)
def test_keys_and_values_are_found(path: tuple[str | int, ...], key: str, value: str) -> None:
    places = TomlPositions(TEXT, "f")
    assert str(places.of(path, key=True)) == f"f:{key}"
    assert str(places.of(path)) == f"f:{value}"


def leaves(value: object, path: tuple[str | int, ...] = ()):
    if isinstance(value, dict) and value:
        for name, item in value.items():
            yield from leaves(item, (*path, name))
    elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
        for position, item in enumerate(value):
            yield from leaves(item, (*path, position))
    else:
        yield path


PLAIN = st.one_of(st.integers(-9, 9), st.booleans(), st.text(max_size=6), st.lists(st.integers(0, 9), max_size=3))
NAMES = st.text(st.characters(codec="utf-8", exclude_categories=("Cs", "Cc")), min_size=1, max_size=5)
TABLES = st.recursive(
    st.dictionaries(NAMES, PLAIN, min_size=1, max_size=3),
    lambda inner: st.dictionaries(
        NAMES, st.one_of(PLAIN, inner, st.lists(inner, min_size=1, max_size=2)), min_size=1, max_size=3
    ),
    max_leaves=6,
)


@given(TABLES)
def test_every_value_of_any_document_has_its_place_and_its_origin(document: dict) -> None:
    text = resolved_text(document, lambda path: "/".join(map(str, path)).replace("\n", " "))
    assert tomllib.loads(text) == document, "comments change no value"
    places = TomlPositions(text, "f")
    for path in leaves(document):
        line = places.last_line(path)
        assert line is not None, path
        assert "  # " in text.split("\n")[line - 1], path


def test_settings_take_the_place_of_what_is_said() -> None:
    data = {"step": [{"use": "a"}, {"use": "b", "train": {"lr": 1}}], "goal": {"size": "5%"}}
    overrides = Overrides.of(["step.2.train.lr=0.5", "goal.size=7%", "seed=3", 'step.1.targets=["x", "y"]', "a.b=true"])
    assert overrides.applied(data) == {
        "step": [{"use": "a", "targets": ["x", "y"]}, {"use": "b", "train": {"lr": 0.5}}],
        "goal": {"size": "7%"},
        "seed": 3,
        "a": {"b": True},
    }
    assert data["goal"] == {"size": "5%"}


@pytest.mark.parametrize("setting", ["", "a", "=1", "a..b=1", "step.3.x=1", "step.0.x=1", "goal.size.x=1"])
def test_a_setting_that_cannot_be_made_is_named(setting: str) -> None:
    with pytest.raises(UserError, match="E100"):
        Overrides.of([setting]).applied({"step": [{}, {}], "goal": {"size": "5%"}})


def test_inside_a_table_only_what_was_written_is_given_and_a_setting_hides_what_it_replaces() -> None:
    text = '[[step]]\ntrain = { lr = 0.5, objective = [{ term = "L1" }] }\ntargets = ["a", "b"]\n'
    step = ("step", 0)
    plain = TomlPositions(text, "f")
    assert str(plain.given((*step, "train", "lr"))) == "f:2:16"
    assert str(plain.given((*step, "targets"))) == "f:3:11"
    for default in (("train", "batch_size"), ("train", "objective", 0, "weight"), ("sparsity",)):
        assert plain.given((*step, *default)) is None, default
    settings = Overrides.of(["step.1.train={epochs=2}", "step.1.sparsity=0.5"])
    hidden = TomlPositions(text, "f", settings.places())
    assert str(hidden.given((*step, "train", "epochs"))) == "--set step.1.train={epochs=2}"
    assert hidden.given((*step, "train", "lr")) is None
    assert str(hidden.given((*step, "sparsity"))) == "--set step.1.sparsity=0.5"
    assert str(hidden.of((*step, "train", "lr"))) == "--set step.1.train={epochs=2}"


def test_an_origin_with_ends_of_lines_in_it_breaks_no_recipe() -> None:
    text = resolved_text({"a": 1}, lambda _: '--set a="""\n1\x00"""')
    assert tomllib.loads(text) == {"a": 1}


def test_a_resolved_recipe_says_where_each_value_comes_from(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(
        'schema = 1\n[model]\nfrom = "mirabelle.sources.zoo:digits_mlp"\n[task]\ndata = "digits"\n'
        '[[step]]\nuse = "prune.Weights"\nsparsity = 0.5\n[[step]]\nuse = "quantize.Static"\n'
    )
    file = read_recipe(tmp_path / "r.toml", ["step.2.samples=50"])
    from mirabelle.job.job import Source

    source = Source(tables=file.source(), decisions=file.decisions, origin=file.origin)
    compress(file.build_model(), file.build_task(None), file.recipe, file.goal, tmp_path / "run", source=source)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    lines = {line.partition("  # ")[0]: line.partition("  # ")[2] for line in text.splitlines() if " = " in line}
    assert lines["sparsity = 0.5"] == f"{tmp_path}/r.toml:8"
    assert lines["samples = 50"] == "--set step.2.samples=50"
    assert lines['scope = "layer"'] == "default"
    assert lines["weight_bits = 8"] == "default"
    assert lines["threads = " + str(tomllib.loads(text)["decisions"]["threads"])] == "measured by this run"
    assert [origin for line, origin in lines.items() if line.startswith("train = ")] == ["computed from the model and the data"]
    assert all(lines.values()), "every value has its origin"


def test_a_run_made_in_python_tells_defaults_from_what_was_given(mlp, blobs, tmp_path: Path) -> None:
    train = Training(epochs=2, lr=0.002, batch_size=32)
    compress(mlp, blobs, [prune.Weights(sparsity=0.5), quantize.Static()], out=tmp_path / "run", baseline=train)
    text = (tmp_path / "run" / "recipe.toml").read_text()
    for line in ("epochs = 2  # given", "lr = 0.002  # given", "momentum = 0.9  # default", "sparsity = 0.5  # given"):
        assert line in text
